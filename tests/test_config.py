"""Configurations: read strictly, told of mistakes in one line, written back."""

from pathlib import Path
from typing import Any

import pytest

from retain import sections
from retain.config import ConfigError, RunConfig, dump, load, parse, tracker_arguments, training_arguments
from retain.method import Method

TASK = {"name": "faq", "path": "json", "data_files": "faq.jsonl"}
LEAST = {"model": {"path": "m"}, "tasks": [TASK]}
TEXT = """
# retain run bot.yaml
model: {path: some/model, dtype: bfloat16}
lora: {r: 16}
method: {name: sequential}
training: {learning_rate: 1e-4, num_train_epochs: 1}
tasks:
  - {name: faq, path: json, data_files: faq.jsonl}
  - name: sql
    path: json
    data_files: {train: [sql-1.jsonl, sql-2.jsonl], test: "t*.jsonl"}
    classes: [1, two]
    training: {num_train_epochs: 2}
scenario: class
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "bot.yaml"
    path.write_text(TEXT)
    return path


def mistake(**sections: Any) -> str:
    """What is said of the least configuration with ``sections`` in it; always one line."""
    with pytest.raises(ConfigError) as error:
        parse(LEAST | sections)
    assert "\n" not in str(error.value) and "pydantic" not in str(error.value)
    return str(error.value)


def task_mistake(**keys: Any) -> str:
    return mistake(tasks=[TASK, TASK | keys])


def test_a_file_is_read(file: Path) -> None:
    run = load(file)
    assert (run.model.path, run.model.dtype, run.model.kind) == ("some/model", "bfloat16", "text")
    assert run.lora == {"r": 16, "target_modules": "all-linear"}
    assert run.method == {"name": "sequential"}
    assert run.training == {"learning_rate": 1e-4, "num_train_epochs": 1}
    assert run.tasks[1].classes == [1, "two"] and run.tasks[1].training == {"num_train_epochs": 2}
    assert (run.scenario, run.output, run.seed) == ("class", "runs/bot", 0)


def test_what_is_left_out_has_a_default() -> None:
    run = parse(LEAST)
    assert run == parse(LEAST | {"training": None, "lora": None, "heads": {}})
    assert run.lora == {"r": 8, "target_modules": "all-linear"} and run.method["name"] == "ewc-lora"
    assert (run.scored_at_once, run.scenario, run.heads.learning_rate) == (64, "task", None)
    task = run.tasks[0]
    assert (task.text, task.image, task.label, task.test_fraction) == ("text", "image", "label", 0.2)


def test_dump_is_read_back(file: Path, tmp_path: Path) -> None:
    run = load(file, ["tasks.0.label='1e3'", "method={name: ewc-lora, strength: 2.5}", "training.lr_scheduler_kwargs="])
    again = tmp_path / "config.yaml"
    again.write_text(dump(run))
    assert load(again) == run and dump(load(again)) == dump(run)


def test_overrides(file: Path) -> None:
    overrides = ["training.learning_rate=2e-5", "seed=3", "tasks.0.max_train=50", "heads.learning_rate=1e-3"]
    overrides += ["tasks.1.classes=[a, b]", "output=runs/a=b", "tasks.1.classes.0=c", "evaluation.batch_size=8"]
    run = load(file, overrides)
    assert run.training["learning_rate"] == 2e-5 and run.training["num_train_epochs"] == 1
    assert (run.seed, run.tasks[0].max_train, run.heads.learning_rate, run.output) == (3, 50, 1e-3, "runs/a=b")
    assert run.tasks[1].classes == ["c", "b"] and run.evaluation.batch_size == 8
    assert load(file, ["output="]).output == load(file, ["output=null"]).output == "runs/bot"


@pytest.mark.parametrize(
    ("override", "complaint"),
    [
        ("seed", "override 'seed' is not of the form section.key=value"),
        ("seed 3", "override 'seed' is not of the form section.key=value; write seed=3, without spaces"),
        ("seed = 3", "override 'seed' is not of the form section.key=value; write seed=value, without spaces"),
        ("=3", "override '=3' is not of the form section.key=value"),
        ("tasks.2.max_train=1", "'2' is no entry of a list of 2, counted from 0"),
        ("tasks.x.max_train=1", "'x' is no entry of a list of 2"),
        ("seed.x=1", "seed: {'x': 1} is not allowed; expected a whole number"),
        ("model.path.x=1", "'x' is inside 'some/model', which is no section"),
        ("seed=[1", "override 'seed=[1': not YAML"),
        ("trainng.learning_rate=1", "unknown key 'trainng'"),
        ("training.learning_rat=1", "did you mean 'learning_rate'?"),
        ("training.lr=1e-4", "unknown key 'lr' (value 0.0001); known: the"),
        ("training.lr=1e-4", "did you mean 'learning_rate'?"),
        ("training.epochs=3", "did you mean 'num_train_epochs'?"),
        ("training.batch_size=8", "did you mean 'per_device_train_batch_size'?"),
        ("lora.rank=3", "did you mean 'r'?"),
        ("lora.alpha=3", "did you mean 'lora_alpha'?"),
        ("lora.dropout=.1", "did you mean 'lora_dropout'?"),
    ],
)
def test_overrides_that_cannot_be(file: Path, override: str, complaint: str) -> None:
    with pytest.raises(ConfigError) as error:
        load(file, override.split(" "))
    assert complaint in str(error.value) and "\n" not in str(error.value)


def test_files_beside_the_configuration_are_found(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("faq.jsonl", "sql-2.jsonl", "test.jsonl", "folder/x.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "json").mkdir()
    faq, sql = load(file).tasks
    assert faq.data_files == str(tmp_path / "faq.jsonl")
    assert faq.path == "json"
    assert sql.data_files == {
        "train": ["sql-1.jsonl", str(tmp_path / "sql-2.jsonl")],
        "test": str(tmp_path / "t*.jsonl"),
    }
    assert load(file, ["tasks.0={name: i, path: folder}"]).tasks[0].path == str(tmp_path / "folder")
    assert load(file, ["model.path=folder"]).model.path == str(tmp_path / "folder")
    monkeypatch.chdir(tmp_path)
    assert load("bot.yaml").tasks[0].data_files == "faq.jsonl"
    (tmp_path / "ledger.jsonl").touch()  # of a run, whose stages are no models
    assert load(file, ["model.path=folder"]).model.path == "folder"


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "holds no sections"),
        ("- a\n- b", "holds no sections"),
        ("model: {path: m", "not YAML: line "),
        ("model: {path: m}\nseed: 1\nseed: 2", "the key 'seed' stands twice"),
        ("model: {path: m, path: n}", "the key 'path' stands twice"),
        ("a: \x00", "not YAML"),
    ],
)
def test_files_that_are_no_configuration(tmp_path: Path, text: str, complaint: str) -> None:
    (tmp_path / "bad.yaml").write_text(text)
    with pytest.raises(ConfigError) as error:
        load(tmp_path / "bad.yaml")
    message = str(error.value)
    assert complaint in message and "bad.yaml" in message and "\n" not in message


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read the configuration '.*gone.yaml': No such file or directory"):
        load(tmp_path / "gone.yaml")


def test_unknown_keys_name_their_section_and_the_nearest() -> None:
    assert mistake(trainng={}).startswith("the top level: unknown key 'trainng' (value {}); known: model, lora, ")
    assert mistake(trainng={}).endswith("; did you mean 'training'?")
    known = "path, dtype, quantization, kind, resolution"
    assert mistake(model={"pth": "m"}) == f"model: unknown key 'pth' (value 'm'); known: {known}; did you mean 'path'?"
    assert task_mistake(max_trian=3).startswith("tasks.1: unknown key 'max_trian' (value 3); known: name, ")
    assert task_mistake(max_trian=3).endswith("; did you mean 'max_train'?")


def test_missing_keys() -> None:
    assert mistake(model={}) == "model: the key 'path' is missing"
    assert mistake(tasks=[{"name": "a"}]) == "tasks.0: the key 'path' is missing"
    assert mistake(tasks=None) == "the top level: the key 'tasks' is missing"


@pytest.mark.parametrize(
    ("sections", "complaint"),
    [
        (
            {"scenario": "clas"},
            "scenario: 'clas' is not allowed; expected 'task', 'class' or 'domain'; did you mean 'class'?",
        ),
        ({"seed": "a"}, "seed: 'a' is not allowed; expected a whole number"),
        ({"seed": -1}, "seed: -1 is not allowed; expected greater than or equal to 0"),
        ({"model": "m"}, "model: 'm' is not allowed; expected a section of keys"),
        ({"training": 3}, "training: 3 is not allowed; expected a section of keys"),
        ({"tasks": []}, "tasks: [] is not allowed; expected a list of at least 1"),
        ({"heads": {"learning_rate": "fast"}}, "heads.learning_rate: 'fast' is not allowed; expected a number"),
        (
            {"evaluation": {"batch_size": 0}},
            "evaluation.batch_size: 0 is not allowed; expected greater than or equal to 1",
        ),
    ],
)
def test_values_that_are_not_allowed(sections: dict[str, Any], complaint: str) -> None:
    assert mistake(**sections) == complaint


@pytest.mark.parametrize(
    ("keys", "complaint"),
    [
        ({"text": 3}, "tasks.1.text: 3 is not allowed; expected text or a list"),
        ({"text": ["a"]}, "tasks.1.text: ['a'] is not allowed; expected text or a list of at least 2"),
        ({"max_train": True}, "tasks.1.max_train: True is not allowed; expected a whole number"),
        ({"test_fraction": 1}, "tasks.1.test_fraction: 1 is not allowed; expected less than 1"),
        ({"name": "a/b"}, "tasks.1.name: 'a/b' cannot name a folder; allowed are letters, digits, spaces and _.+-"),
    ],
)
def test_values_of_a_task_that_are_not_allowed(keys: dict[str, Any], complaint: str) -> None:
    assert task_mistake(**keys) == complaint


def test_sections_that_are_passed_through_are_checked_by_name() -> None:
    assert parse(LEAST | {"lora": {"use_rslora": True}}).lora["use_rslora"] is True
    assert parse(LEAST | {"training": {"fsdp": True}}).training["fsdp"] is True
    assert mistake(lora={"target_module": "q"}).startswith("lora: unknown key 'target_module' (value 'q'); known: the ")
    assert mistake(lora={"target_module": "q"}).endswith("keywords of peft.LoraConfig; did you mean 'target_modules'?")
    assert mistake(training={"learning_rat": 1}).endswith(
        "of transformers.TrainingArguments; did you mean 'learning_rate'?"
    )
    assert task_mistake(training={"num_train_epoch": 1}).startswith("tasks.1.training: unknown key 'num_train_epoch'")


def test_importance_is_chosen_by_overrides(file: Path) -> None:
    overrides = ["method.name=ewc-lora", "method.fisher.form=kronecker", "method.fisher.rank=16"]
    assert load(file, overrides).method == {"name": "ewc-lora", "fisher": {"form": "kronecker", "rank": 16}}
    with pytest.raises(ConfigError) as error:
        load(file, [*overrides, "method.fisher.form=kronecer"])
    assert str(error.value).startswith("method.fisher.form: unknown form 'kronecer'") and "\n" not in str(error.value)


@pytest.mark.parametrize("key", ["output_dir", "seed", "data_seed", "remove_unused_columns", "label_names"])
def test_what_a_run_sets_itself_is_refused_with_the_reason(key: str) -> None:
    assert mistake(training={key: 1}) == f"training: {key!r} cannot be set here: {sections.OURS[key]}"
    assert task_mistake(training={key: 1}).startswith(f"tasks.1.training: {key!r} cannot be set here")


def test_the_constructor_of_a_method_is_its_schema(monkeypatch: pytest.MonkeyPatch) -> None:
    class Mine(Method):
        def __init__(self, model: Any, *, strength: float = 1.0, decay: float = 1.0) -> None: ...

        @classmethod
        def check(cls, *, strength: float, decay: float) -> None:
            if strength > 9:
                raise ValueError(f"{strength} with {decay} is too strong")

    monkeypatch.setattr("retain.methods.METHODS", {"mine": Mine, "ewc": Mine})
    assert parse(LEAST | {"method": {"name": "mine", "strength": 2}}).method == {"name": "mine", "strength": 2}
    assert mistake(method={"name": "ewcc"}) == "method: unknown method 'ewcc'; known: mine, ewc; did you mean 'ewc'?"
    assert mistake(method={"name": ["ewc"]}).startswith("method: unknown method ['ewc']; known: ")
    complaint = "method: unknown key 'strenght' (value 2); known: name, strength, decay; did you mean 'strength'?"
    assert mistake(method={"name": "mine", "strenght": 2}) == complaint
    assert mistake(method={"name": "mine", "model": 2}).startswith("method: unknown key 'model'")
    assert mistake(method={"name": "mine", "strength": 10}) == "method: 10 with 1.0 is too strong"


def test_every_method_is_known() -> None:
    from retain.methods import METHODS

    for name in METHODS:
        assert parse(LEAST | {"method": {"name": name}}).method == {"name": name}


@pytest.mark.versions
def test_steps_to_warm_up_in_may_be_a_share_of_all(tmp_path: Path) -> None:
    for given, steps in ((0.06, 60), (30, 30), (0, 0)):
        config = parse(LEAST | {"training": {"warmup_steps": given, "use_cpu": True}})
        for arguments in (training_arguments(config, 0, "faq", tmp_path), tracker_arguments(config)):
            assert arguments.get_warmup_steps(1000) == steps


def test_a_configuration_does_not_change() -> None:
    run = parse(LEAST)
    with pytest.raises(ValueError, match="frozen"):
        run.seed = 1
    run.lora["r"] = 99
    assert parse(LEAST).lora["r"] == 8 and RunConfig(**LEAST).lora["r"] == 8
