"""Data sets that a recipe needs in another form than they come in, as JSON lines, parquet or CSV in runs/data.

    python scripts/recipe_data.py translation answers personas
    python scripts/recipe_data.py llm --folder data/CL_Benchmark
    python scripts/recipe_data.py ucit --folder data/UCIT
    python scripts/recipe_data.py poses --folder data/Human36M
    python scripts/recipe_data.py rates --folder data/ecb

Downloads from the hub what is not in its cache. Of what comes from elsewhere --folder is where it has been
unpacked.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import datasets
import numpy as np

Row = Mapping[str, Any]
Make = Callable[[datasets.Dataset, str], dict[str, datasets.Dataset]]
FOLDER = Path("runs/data")
CHARACTERS = 3
SUBJECTS = {"train": (1, 5, 6, 7, 8), "test": (9, 11)}  # protocol 2 of Human3.6M
EVERY, SIDE = 64, 224  # of whose 50 pictures a second one in so many is taken, and made so many pixels wide


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="+", choices=[*SOURCES, *BENCHMARKS, *FOLDERS])
    parser.add_argument("--folder", type=Path, help="where a benchmark has been unpacked")
    options = parser.parse_args()
    for name in options.names:
        if options.folder is None and name not in SOURCES:
            parser.error(f"{name} is read from a --folder")
        if name in FOLDERS:
            FOLDERS[name](options.folder, FOLDER / name)
            continue
        if name in BENCHMARKS:
            for task in BENCHMARKS[name]:
                pictured(task, options.folder, FOLDER / name)
            continue
        where, make = SOURCES[name]
        for part, rows in make(datasets.load_dataset(**where, split="train"), name).items():
            rows.to_json(FOLDER / f"{part}.jsonl")
            print(f"{len(rows)} rows -> {FOLDER / part}.jsonl")


def translation(row: Row) -> dict[str, Any]:
    """Of opus_books: {"id", "translation": {"en", "fr"}}."""
    return asked(f"Translate into French:\n{row['translation']['en']}", row["translation"]["fr"])


def answer(row: Row) -> dict[str, Any]:
    """Of SQuAD: {"context", "question", "answers": {"text": [...], "answer_start": [...]}, ...}."""
    return asked(f"{row['context']}\n\n{row['question']}", row["answers"]["text"][0])


def asked(prompt: str, completion: str) -> dict[str, Any]:
    """A row in the format "messages", so that a model's chat template applies."""
    return {"messages": [{"role": "user", "content": prompt}, {"role": "assistant", "content": completion}]}


def each(change: Callable[[Row], dict[str, Any]]) -> Make:
    """One file, of all rows, each changed."""
    return lambda rows, name: {name: rows.map(change, remove_columns=rows.column_names)}


def classified(folder: Path, to: Path) -> None:
    """A text -> the name of its class, in O-LoRA's prompt (arXiv 2310.14152): TASK.train.jsonl and TASK.test.jsonl.

    Of its CL_Benchmark, of which each task has labels.json, all names, and train.json and test.json of
    [{"label", "sentence"}, ...].
    """
    to.mkdir(parents=True, exist_ok=True)

    def read(file: str) -> Any:
        if not (folder / file).exists():
            raise SystemExit(f"{folder} has no {file}")
        return json.loads((folder / file).read_text(encoding="utf-8"))

    for task, (place, what) in CLASSIFIED.items():
        kind, source = place.split("/")
        question = f"Task:{kind}\nDataset:{source}\nWhat is the {what} of the following paragraph? "
        question += f"Choose one from the option.\nOption: {', '.join(read(f'{place}/labels.json'))} \n"
        for part in ("train", "test"):
            rows = [(f"{question}{row['sentence']}\nAnswer:", row["label"]) for row in read(f"{place}/{part}.json")]
            write([{"prompt": prompt, "completion": name} for prompt, name in rows], to / f"{task}.{part}.jsonl")


def write(rows: list[dict[str, Any]], there: Path) -> None:
    there.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    print(f"{len(rows)} rows -> {there}")


def pictured(task: str, folder: Path, to: Path) -> None:
    """Questions about pictures in LLaVA's form, to learn and to be tested on: TASK.train.jsonl and TASK.test.jsonl."""
    to.mkdir(parents=True, exist_ok=True)
    for part in ("train", "test"):
        texts = [file for place in (folder, folder / "instructions") for file in place.glob(f"{task}*/{part}*.json")]
        if not texts:
            raise SystemExit(f"{folder} has no {task}*/{part}*.json")
        rows = json.loads(sorted(texts)[-1].read_text())  # train_4w.json, where there is one beside train.json
        places = (folder / "datasets", folder, texts[0].parent, texts[0].parent / "images")
        pictures = next((place for place in places if (place / rows[0]["image"]).exists()), None)
        if pictures is None:
            raise SystemExit(f"{folder} has no picture {rows[0]['image']}")
        write([question(row, pictures) for row in rows], to / f"{task.lower()}.{part}.jsonl")


def question(row: Row, pictures: Path) -> dict[str, Any]:
    """Of {"image", "conversations": [{"from", "value"}, ...]} in training, of {"image", "text", "answer"} in tests."""
    said = [row["text"], row["answer"]] if "text" in row else [turn["value"] for turn in row["conversations"]]
    return {"image": str(pictures / row["image"])} | asked(said[0].replace("<image>", "").strip(), said[1])


def posed(folder: Path, to: Path) -> None:
    """Pictures of one person, and where the joints are in millimetres from the pelvis, as the camera sees them.

    Of Human3.6M in the form of arXiv 1907.11346: images/, and in annotations/ of each subject its pictures with boxes
    (COCO's), the rotations of its cameras, and its 17 joints, the pelvis first, by action, trial and frame. Writes
    ACTION.train.parquet and ACTION.test.parquet.
    """
    to.mkdir(parents=True, exist_ok=True)
    features = datasets.Features(
        {"image": datasets.Image(), "pose": datasets.List(datasets.List(datasets.Value("float32")))}
    )
    for part, subjects in SUBJECTS.items():
        rows: dict[str, list[dict[str, Any]]] = defaultdict(list)
        for subject in subjects:
            for action, row in poses_of(subject, folder):
                rows[action].append(row)
        for action, mine in rows.items():
            there = to / f"{action}.{part}.parquet"
            datasets.Dataset.from_list(mine, features=features).to_parquet(there)
            print(f"{len(mine)} rows -> {there}")


def poses_of(subject: int, folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The actions and rows of one ``subject``, of pictures that are cut square around the person."""

    def read(kind: str) -> Any:
        file = folder / "annotations" / f"Human36M_subject{subject}_{kind}.json"
        if not file.exists():
            raise SystemExit(f"{folder} has no annotations/{file.name}")
        return json.loads(file.read_text())

    from PIL import Image

    data, cameras, joints = map(read, ("data", "camera", "joint_3d"))
    boxes = {entry["image_id"]: entry["bbox"] for entry in data["annotations"]}
    for entry in data["images"]:
        if entry["frame_idx"] % EVERY:
            continue
        place = joints[str(entry["action_idx"])][str(entry["subaction_idx"])][str(entry["frame_idx"])]
        world = np.array(place) - np.array(place[0])
        seen = world @ np.array(cameras[str(entry["cam_idx"])]["R"]).T
        x, y, width, height = boxes[entry["id"]]
        half = max(width, height) / 2
        middle = x + width / 2, y + height / 2
        around = [round(c + side * half) for side in (-1, 1) for c in middle]
        with Image.open(folder / "images" / entry["file_name"]) as picture:
            cut = picture.convert("RGB").crop(around).resize((SIDE, SIDE))
        content = io.BytesIO()
        cut.save(content, format="JPEG", quality=95)
        image = {"bytes": content.getvalue(), "path": None}
        yield entry["action_name"].lower(), {"image": image, "pose": seen.tolist()}


def rates(folder: Path, to: Path) -> None:
    """Euros in eight currencies, oldest day first: a file for each of ``PERIODS``.

    Of the European Central Bank's eurofxref-hist.csv: a line a day, newest first, "N/A" where a currency has no rate.
    """
    source = folder / "eurofxref-hist.csv"
    if not source.exists():
        raise SystemExit(f"{folder} has no {source.name}")
    to.mkdir(parents=True, exist_ok=True)
    with source.open(newline="") as file:
        days = sorted(csv.DictReader(file), key=lambda day: day["Date"])
    for name, (first, last) in PERIODS.items():
        there, mine = to / f"{name}.csv", [day for day in days if first <= day["Date"] < last]
        lines = [[day["Date"], *(day[currency] for currency in CURRENCIES)] for day in mine]
        with there.open("w", newline="") as file:
            csv.writer(file).writerows([["date", *CURRENCIES], *(line for line in lines if "N/A" not in line)])
        print(f"{len(mine)} rows -> {there}")


def personas(rows: datasets.Dataset, name: str) -> dict[str, datasets.Dataset]:
    """Of Shakespeare's plays, a paragraph a speech: {"text": "Name:\\nWhat is said"}; a file for each who speaks most.

    Speeches answer the one before.
    """
    speeches = [text.split(":\n", 1) for text in rows["text"] if ":\n" in text]
    replies = [(who, asked(before, said)) for (_, before), (who, said) in pairwise(speeches)]
    most = [who for who, _ in Counter(who for who, _ in replies).most_common(CHARACTERS)]
    return {
        f"persona-{number}": datasets.Dataset.from_list([row for who, row in replies if who == one])
        for number, one in enumerate(most, 1)
    }


CLASSIFIED = {  # where it is, and what is asked
    "dbpedia": ("TC/dbpedia", "topic"),
    "amazon": ("SC/amazon", "sentiment"),
    "yahoo": ("TC/yahoo", "topic"),
    "ag": ("TC/agnews", "topic"),
}
BENCHMARKS = {
    "ucit": ("ImageNet-R", "ArxivQA", "VizWiz", "IconQA", "CLEVR", "Flickr30k"),
    "mllm-dcl": ("RS", "Med", "AD", "Sci", "Fin"),
}
PERIODS = {  # from, and up to but for
    "calm": ("1999", "2007-07"),
    "crisis": ("2007-07", "2013"),
    "calm-again": ("2013", "2020"),
    "crisis-again": ("2020", "2025"),
}
CURRENCIES = ("USD", "JPY", "GBP", "CHF", "SEK", "NOK", "CAD", "AUD")  # of all these days
FOLDERS = {"llm": classified, "poses": posed, "rates": rates}  # what is read from a --folder as a whole
PLAYS = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
SOURCES: dict[str, tuple[dict[str, Any], Make]] = {  # keywords of load_dataset, and what becomes of its rows
    "translation": ({"path": "Helsinki-NLP/opus_books", "name": "en-fr"}, each(translation)),
    "answers": ({"path": "rajpurkar/squad"}, each(answer)),
    "personas": ({"path": "text", "data_files": PLAYS, "sample_by": "paragraph"}, personas),
}


if __name__ == "__main__":
    main()
