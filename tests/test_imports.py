"""The floors of the package: imports point down, and a file is a room with one purpose."""

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "retain"
LONGEST_FILE = 300

# From the ground up. A room imports from its own floor and from those below it.
FLOORS = (
    {
        "linalg",
        "metrics",
        "scores",
        "paired",
        "task",
        "nearest",
        "mistakes",
        "yamls",
        "stock",
        "formats",
        "wording",
        "batches",
        "files",
        "intake",
        "adapterfile",
        "units",
        "ranks",
    },
    {"stiefel", "past", "lora"},
    {
        "fisher",
        "subspace",
        "balanced",
        "bases",
        "buffer",
        "spanned",
        "released",
        "routing",
        "serving",
        "vllm",
        "method",
        "newhead",
        "gauge",
        "merging",
        "multiplier",
        "protection",
        "gradients",
        "sharding",
        "precision",
        "hooks",
        "grouping",
        "taskgraph",
    },
    {
        "methods",
        "heads",
        "evaluate",
        "answers",
        "callback",
        "learn",
        "reading",
        "reference",
        "checkpoints",
        "silence",
        "pipelines",
        "trainer",
        "hf",
        "forecasters",
        "progress",
        "stopping",
        "store",
        "artefact",
        "ledger",
        "collection",
        "summaries",
        "plots",
    },
    {"config", "sections", "kinds"},
    {"data", "diffusion", "sources", "splits", "regressions", "series", "language", "pictures"},
    {
        "run",
        "trackers",
        "trained",
        "workshop",
        "continuing",
        "provenance",
        "results",
        "scoring",
        "calibration",
        "card",
        "tokenwise",
        "guard",
        "report",
    },
    {"commands"},
    {"cli"},
    {"__init__", "__main__"},
)
KNOW_METHODS = {"methods", "config", "commands", "cli", "__init__"}

Graph = dict[str, set[str]]


def module_name(file: Path, package: Path) -> str:
    """``fisher/dense.py`` -> ``fisher.dense``, ``fisher/__init__.py`` -> ``fisher``, the root's own -> ``__init__``."""
    parts = file.relative_to(package).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


def imported_names(file: Path, package: Path) -> set[str]:
    """Every dotted name that ``file`` imports anywhere in it, late and type-only imports too."""
    here = (package.name, *file.relative_to(package).parts[:-1])
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = here[: len(here) - node.level + 1] if node.level else ()
            source = ".".join((*base, *([node.module] if node.module else [])))
            names |= {f"{source}.{alias.name}" for alias in node.names}
    return names


def import_graph(package: Path = PACKAGE) -> Graph:
    """Module -> the modules of the package that it imports; ``from retain import name`` counts as ``__init__``."""
    files = {module_name(file, package): file for file in sorted(package.rglob("*.py"))}

    def target(name: str) -> str:
        parts = name.split(".")[1:]
        found = (".".join(parts[:n]) for n in range(len(parts), 0, -1))
        return next((module for module in found if module in files), "__init__")

    return {
        module: {target(name) for name in imported_names(file, package) if name.split(".")[0] == package.name}
        for module, file in files.items()
    }


def room(module: str) -> str:
    return module.split(".")[0]


def unknown_rooms(graph: Graph) -> list[str]:
    return sorted({room(module) for module in graph} - set().union(*FLOORS))


def upward(graph: Graph) -> list[str]:
    height = {name: number for number, floor in enumerate(FLOORS) for name in floor}
    return [
        f"{source} -> {target}"
        for source, targets in sorted(graph.items())
        for target in sorted(targets)
        if height.get(room(target), 0) > height.get(room(source), 0)
    ]


def cycle(graph: Graph) -> list[str]:
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def acquainted_methods(graph: Graph) -> list[str]:
    """Methods that import another method, or the list of them."""
    return [
        f"{source} -> {target}"
        for source, targets in sorted(graph.items())
        for target in sorted(targets)
        if source.startswith("methods.") and room(target) == "methods"
    ]


def knows_methods(graph: Graph) -> set[str]:
    return {room(source) for source, targets in graph.items() if any(room(target) == "methods" for target in targets)}


def imports_peft(package: Path = PACKAGE) -> set[str]:
    return {
        module_name(file, package)
        for file in package.rglob("*.py")
        if any(name.split(".")[0] == "peft" for name in imported_names(file, package))
    }


def long_files(root: Path = ROOT) -> list[str]:
    folders = (root / name for name in ("src", "tests", "benchmarks", "examples"))
    files = sorted(file for folder in folders for file in folder.rglob("*.py"))
    lengths = {file: len(file.read_text(encoding="utf-8").splitlines()) for file in files}
    return [f"{file.relative_to(root)}: {lines}" for file, lines in lengths.items() if lines > LONGEST_FILE]


def test_every_room_has_a_floor() -> None:
    assert unknown_rooms(import_graph()) == [], "put the new room on its floor in FLOORS"


def test_imports_point_down() -> None:
    assert upward(import_graph()) == []


def test_no_cycles() -> None:
    assert cycle(import_graph()) == []


def test_no_method_knows_another() -> None:
    assert acquainted_methods(import_graph()) == []


def test_few_know_the_methods() -> None:
    assert knows_methods(import_graph()) <= KNOW_METHODS


def test_only_lora_imports_peft() -> None:
    assert imports_peft() <= {"lora"}


def test_no_file_is_long() -> None:
    assert long_files() == []


@pytest.fixture
def house(tmp_path: Path) -> Path:
    """A small package with one fault of every kind."""
    package = tmp_path / "src" / "retain"
    faults = {
        "__init__.py": "from retain.methods.ewc import EWC",
        "linalg.py": "def svd():\n    from retain.lora import sites",
        "lora.py": "import peft\nimport retain.linalg",
        "hf.py": "from .methods import METHODS\nfrom . import linalg\nfrom retain import EWC",
        "attic.py": "import peft.tuners as p",
        "methods/__init__.py": "from .ewc import EWC",
        "methods/ewc.py": "from .. import lora\nfrom ..fisher import dense",
        "methods/replay.py": "from retain.methods.ewc import EWC",
        "fisher/__init__.py": "",
        "fisher/dense.py": "from retain.fisher import Fisher\n" + "\n" * LONGEST_FILE,
    }
    for name, text in faults.items():
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_text(text)
    return package


def test_the_graph_reads_every_form_of_import(house: Path) -> None:
    graph = import_graph(house)
    assert graph["lora"] == {"linalg"}
    assert graph["hf"] == {"methods", "linalg", "__init__"}
    assert graph["methods"] == {"methods.ewc"}
    assert graph["methods.ewc"] == {"lora", "fisher.dense"}
    assert graph["fisher.dense"] == {"fisher"}


def test_every_fault_is_found(house: Path) -> None:
    graph = import_graph(house)
    assert unknown_rooms(graph) == ["attic"]
    assert upward(graph) == ["hf -> __init__", "linalg -> lora"]
    assert set(cycle(graph)) == {"linalg", "lora"}
    assert acquainted_methods(graph) == ["methods.replay -> methods.ewc"]
    assert knows_methods(graph) - KNOW_METHODS == {"hf"}
    assert imports_peft(house) == {"lora", "attic"}
    assert long_files(house.parents[1]) == ["src/retain/fisher/dense.py: 301"]
