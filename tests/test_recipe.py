"""Recipes: every mistake at once and in its place, overrides, names, the resolved recipe, the schema."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from alignkit.errors import PluginError, UsageError
from alignkit.findings import Unsettled
from alignkit.recipe import RECIPE_DEFAULTS, Recipe
from alignkit.recipe.file import dump, parse, read

METHODS = '''
from __future__ import annotations
from pathlib import Path
from typing import Literal
from pydantic import PositiveFloat, PositiveInt
from alignkit.components import *

class Letters(Task):
    """A task."""
    metric = "accuracy"
    labels: tuple[str, ...] = ("a", "b")
    def parse(self, fields, where): ...
    def encode(self, example, tokenizer): ...
    def collate(self, features, tokenizer): ...
    def decode(self, outputs, batch): ...
    def statistics(self, example, prediction): ...
    def metrics(self, totals): ...

class Plain(Objective):
    """An objective."""
    def loss(self, step, outputs): ...

class Length(Filter):
    """Too long."""
    maximum: PositiveInt
    """The longest that is kept."""
    lists: tuple[Path, ...] = ()
    def filter_examples(self, examples): ...

class Typos(Augmenter):
    """Typos."""
    rate: float = 0.1
    def augment_examples(self, examples, generator): ...

class Swap(Constraint):
    """Swaps words."""
    direction: Literal["forward", "reverse"] = "forward"
    def penalty(self, step, outputs): ...
    def views(self, example): ...

class Drift(Constraint):
    """Drifts."""
    def penalty(self, step, outputs): ...

class Budget(Weight):
    """At most."""
    limit: PositiveFloat
    """What it may cost."""
    def value(self): return 1.0

class FGM(Adversary):
    """One step."""
    epsilon: PositiveFloat = 1.0
    """The radius."""
    def __post_init__(self):
        if self.epsilon == 13:
            raise RuntimeError("unlucky")
    def attack(self, step): ...

class EMA(Averager):
    """An average."""
    decay: float = 0.99
    def average(self): ...
    def after_step(self, step): ...
'''
BASIC = """\
model: some/model
task: letters
objective: plain
plugins: [./methods.py]
data: {train: a.jsonl, validation: b.jsonl}
"""

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Writes a recipe beside the methods that it uses."""
    monkeypatch.setenv("ALIGNKIT_PLUGINS", "")
    (tmp_path / "methods.py").write_text(METHODS)

    def put(text: str, name: str = "recipe.yaml") -> Path:
        (tmp_path / name).write_text(text)
        return tmp_path / name

    return put


def mistakes(path: Path, *overrides: str) -> list[str]:
    """What loading a recipe complains about, without the folder."""
    with pytest.raises(UsageError) as caught:
        Recipe.load(path, overrides=overrides)
    return [str(mistake).replace(f"{path.parent}/", "") for mistake in caught.value.mistakes]


# -- mistakes ----------------------------------------------------------------------------------------------------


def test_every_mistake_at_once_with_file_line_path_found_expected_and_the_nearest_name(write: Write) -> None:
    text = """\
model: 5
task: letters
objective: plian
plugins: [./methods.py, ./none.py]
data:
  train: {path: a.jsonl, colums: {}}
  test: {benign: {path: b.csv, rows: first}}
filters:
  - {use: lenght, maximum: 3}
  - use: length
    maximum: -1
  - length
  - {maximum: 3}
constraints:
  - {use: swap, weight: {use: budget, limt: 3}, direction: up}
  - {use: swap, weight: big}
  - {use: swap, weight: -1}
adversary:
  use: fgm
  epsilonn: 5e-5
averaging: fgm
learning_rate: 3
seeds: 3
early_stopping: {patience: 0}
evaluation: {gaps: [swp, drift], under: typos}
peft: {method: lorra}
training:
  learning_rte: 1e-3
  num_train_epochs: three
  seed: 3
  optim: adamw
  lr_scheduler_type: liner
  fp16: maybe
  max_steps: true
"""
    path = write(text)
    missing = path.parent / "none.py"
    found = mistakes(path)
    assert [m.replace(str(missing), "none.py") for m in found if "peft" not in m] == [
        "recipe.yaml:4 plugins.1: plugin file none.py: no such file; expected a Python file",
        "recipe.yaml:1 model: 5; expected a string, or a mapping with config and tokenizer",
        "recipe.yaml:3 objective: no objective is called 'plian'; did you mean 'plain'?",
        "recipe.yaml:6 data.train.colums: unknown field 'colums'; did you mean 'columns'?",
        "recipe.yaml:7 data.test.benign.rows: 'first'; expected a slice such as '100:', ':2000' or '50:80'",
        "recipe.yaml:9 filters.0.use: no filter is called 'lenght'; did you mean 'length'?",
        "recipe.yaml:11 filters.1.maximum: -1; expected a number greater than 0",
        "recipe.yaml:12 filters.2.maximum: missing; expected the longest that is kept; write {use: length, maximum: …}",
        "recipe.yaml:13 filters.3: {'maximum': 3}; expected the name of a filter, or {use: NAME, ...}",
        "recipe.yaml:15 constraints.0.weight.limt: unknown field 'limt'; did you mean 'limit'?",
        "recipe.yaml:15 constraints.0.direction: 'up'; expected 'forward' or 'reverse'",
        "recipe.yaml:17 constraints.2.weight: -1; "
        "expected a number greater than or equal to 0 or a component of kind weight",
        "recipe.yaml:20 adversary.epsilonn: unknown field 'epsilonn'; did you mean 'epsilon'?",
        "recipe.yaml:21 averaging: no averager is called 'fgm'; 'fgm' is of kind adversary",
        "recipe.yaml:25 evaluation.under: 'typos'; expected a list; write [typos]",
        "recipe.yaml:25 evaluation.gaps.0: no constraint is called 'swp'; did you mean 'swap'?",
        "recipe.yaml:25 evaluation.gaps.1: drift makes no views of an example; "
        "expected a component that does, such as counterfactual",
        "recipe.yaml:24 early_stopping.patience: 0; expected a number greater than 0",
        "recipe.yaml:28 training.learning_rte: unknown field 'learning_rte'; did you mean 'learning_rate'?",
        "recipe.yaml:29 training.num_train_epochs: 'three'; expected a number",
        "recipe.yaml:30 training.seed: alignkit sets it itself; write `seed:` at the top of the recipe",
        "recipe.yaml:31 training.optim: 'adamw'; did you mean 'adamw_torch'?",
        "recipe.yaml:32 training.lr_scheduler_type: 'liner'; did you mean 'linear'?",
        "recipe.yaml:33 training.fp16: 'maybe'; expected a boolean",
        "recipe.yaml:34 training.max_steps: true; expected a number",
        "recipe.yaml:22 learning_rate: unknown field 'learning_rate'; "
        "write it under `training:`, as `training.learning_rate`",
        "recipe.yaml:23 seeds: unknown field 'seeds'; did you mean 'seed'?",
    ]
    assert next(m for m in found if "peft" in m).startswith("recipe.yaml:26 peft.method: 'lorra'; expected 'lora'")


def test_missing_fields_say_what_they_are(write: Write) -> None:
    assert mistakes(write("seed: 1")) == [
        "recipe.yaml model: missing; expected a hub id, a model's folder, a run's folder, a .gguf file, or, "
        "from scratch, a config and a tokenizer",
        "recipe.yaml task: missing; expected what the model is for",
        "recipe.yaml data: missing; expected where the splits come from",
    ]


@pytest.mark.parametrize(
    ("text", "name", "message"),
    [
        ("", "r.yaml", "r.yaml: an empty file; expected a mapping with model, task and data"),
        ("# nothing", "r.yaml", "r.yaml: nothing; expected a mapping with model, task and data"),
        ("- a\n- b", "r.yaml", "r.yaml: ['a', 'b']; expected a mapping with model, task and data"),
        ("model: a\n\ttask: b", "r.yaml", "r.yaml:2: not YAML: found character '\\t' that cannot start any token; "
                                         "indent with spaces, not with tabs"),
        ("model: [a\ntask: b", "r.yaml", "r.yaml:2: not YAML: expected ',' or ']', but got ':'"),
        ("model: &a [*a]", "r.yaml", "r.yaml:1: not YAML: a value that holds itself; "
                                       "write it out in place of its alias"),
        ("model: !!python/object/apply:os.system [ls]", "r.yaml", "r.yaml:1: not YAML: could not determine a constr"),
        ('{"model": "a",}', "r.json", "r.json:1: not JSON: "),
        ("a = 1\nmodel = =", "r.toml", "r.toml:2: not TOML: Invalid value (at line 2, column 9)"),
        ("model: a", "r.txt", "r.txt: a file .txt; expected .yaml, .yml, .toml or .json"),
    ],
)  # fmt: skip
def test_files_that_are_no_recipe(write: Write, text: str, name: str, message: str) -> None:
    found = mistakes(write(text, name))
    assert len(found) == 1
    assert found[0].startswith(message)


def test_a_key_with_a_colon_in_it_may_have_no_value(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text("model: a\ndata:\n  test:\n    x:y:\n    z:w: test.conll\n", "utf-8")
    assert read(tmp_path / "r.yaml")[0] == {"model": "a", "data": {"test": {"x:y": None, "z:w": "test.conll"}}}


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    assert mistakes(tmp_path / "none.yaml") == ["none.yaml: no such file; expected a recipe"]
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "recipe.yaml").touch()
    mend = f"{tmp_path / 'run' / 'recipe.yaml'} is a recipe".replace(f"{tmp_path}/", "")
    assert mistakes(tmp_path / "run") == [f"run: a directory; expected a recipe file; {mend}"]
    (tmp_path / "latin.yaml").write_bytes("model: a\ntask: né".encode("latin-1"))
    assert mistakes(tmp_path / "latin.yaml") == ["latin.yaml:2: byte 0xe9; expected UTF-8"]


def test_a_key_that_is_there_twice_is_reported_with_both_lines_and_beside_other_mistakes(write: Write) -> None:
    assert mistakes(write(BASIC + "adversary:\n  use: fgm\n  use: fmg\nseed: x\n")) == [
        "recipe.yaml:8 adversary.use: a second 'use'; the first is on line 7; take one of them out",
        "recipe.yaml:8 adversary.use: no adversary is called 'fmg'; did you mean 'fgm'?",
        "recipe.yaml:9 seed: 'x'; expected an integer",
    ]
    twice = json.dumps({"model": "a", "task": "letters"})[:-1] + ',\n"task": "letters"}'
    assert "r.json:2 task: a second 'task'; the first is on line 1; take one of them out" in mistakes(
        write(twice, "r.json")
    )


def test_a_plugins_fault_alone_is_a_plugin_error(write: Write) -> None:
    with pytest.raises(PluginError, match=r"adversary: methods.py: .*unlucky|recipe.yaml:6 adversary: .*unlucky"):
        Recipe.load(write(BASIC + "adversary: {use: fgm, epsilon: 13}"))
    found = mistakes(write(BASIC + "adversary: {use: fgm, epsilon: 13}\nseed: x"))
    assert len(found) == 2
    assert "fgm failed when it was made: RuntimeError: unlucky" in found[0]


def test_early_stopping_needs_a_validation_split(write: Write) -> None:
    text = BASIC.replace(", validation: b.jsonl", "") + "early_stopping: {patience: 2}"
    assert mistakes(write(text)) == [
        "recipe.yaml:6 early_stopping: there is no validation split that it could look at; "
        "name one as `data.validation`"
    ]


def test_what_training_arguments_themselves_refuse(write: Write) -> None:
    found = mistakes(write(BASIC + "training: {eval_strategy: steps, logging_steps: 0}"))
    assert len(found) == 1
    assert found[0].startswith("recipe.yaml:6 training: evaluation strategy IntervalStrategy.STEPS requires")


# -- values ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("5e-5", 5e-5),
        ("1e-3", 1e-3),
        ("1E3", 1000.0),
        (".5", 0.5),
        ("-1.", -1.0),
        (".inf", float("inf")),
        ("10_000", 10000),
        ("0", 0),
        ("no", "no"),
        ("off", "off"),
        ("true", True),
        ("10:30", "10:30"),
        ("2024-01-01", "2024-01-01"),
        ("~", None),
        ("1.2.3", "1.2.3"),
        ("007", "007"),
    ],
)
def test_scalars(text: str, value: Any) -> None:
    assert parse(text) == value
    assert type(parse(text)) is type(value)
    assert parse(dump({"a": value}))["a"] == value


@pytest.mark.parametrize("text", ["5e-5", "1e3", "no", "true", "10:30", "0o7", "~", "2024-01-01", "12", "a: b", "é"])
def test_text_that_looks_like_something_else_reads_back_as_text(text: str) -> None:
    assert parse(dump({"a": text})) == {"a": text}
    assert yaml.safe_load(dump({"a": text})) == {"a": text}


def test_toml_and_json_load_the_same_recipe(write: Write) -> None:
    written = Recipe.load(write(BASIC + "adversary: {use: fgm, epsilon: 5e-5}\n"))
    as_json = {**yaml.safe_load(BASIC), "adversary": {"use": "fgm", "epsilon": 5e-5}}
    as_toml = (
        'model = "some/model"\ntask = "letters"\nobjective = "plain"\nplugins = ["./methods.py"]\n'
        '[data]\ntrain = "a.jsonl"\nvalidation = "b.jsonl"\n[adversary]\nuse = "fgm"\nepsilon = 5e-5\n'
    )
    assert Recipe.load(write(json.dumps(as_json, indent="\t"), "r.json")) == written
    assert Recipe.load(write(as_toml, "r.toml")) == written
    assert mistakes(write(as_toml + "size = 1", "r.toml")) == [
        "r.toml adversary.size: unknown field 'size'; there is epsilon"
    ]


def test_components_are_instances_with_names_of_their_own(write: Write) -> None:
    text = """\
filters: [{use: length, maximum: 3, lists: [words.txt]}, {use: length, maximum: 4}]
augmenters: [typos]
constraints: [{use: swap, name: twin, weight: {use: budget, limit: 0.05}}, {use: methods.py/swap, weight: 2}]
adversary: fgm
averaging: {use: ema, decay: 0.5}
evaluation: {gaps: [twin, swap], under: [{use: typos, rate: 0.3}]}
"""
    recipe = Recipe.load(write(BASIC + text))
    assert [c.name for c in recipe.components()] == ["length", "length-2", "typos", "twin", "swap", "fgm", "ema"]
    assert recipe.task.name == "letters"
    assert recipe.objective.name == "plain"
    weight: Any = recipe.constraints[0].weight
    assert (weight.kind, weight.name, weight.limit) == ("weight", "budget", 0.05)
    assert recipe.evaluation.gaps == [recipe.constraints[0], recipe.constraints[1]]
    assert recipe.evaluation.under[0] is not recipe.augmenters[0]
    first: Any = recipe.filters[0]
    assert first.lists == (recipe.base / "words.txt",)


def test_text_is_a_path_only_where_the_field_takes_one(write: Write) -> None:
    code = """\
from pathlib import Path
from typing import Literal
from alignkit.components import Filter

class Terms(Filter):
    words: Path | tuple[str, ...]
    lists: tuple[Literal["common"] | Path, ...] = ()
    def filter_examples(self, examples): ...
"""
    write(code, "terms.py")
    text = "filters: [{use: terms, words: a.txt, lists: [common, b.txt]}, {use: terms, words: [a b]}]"
    recipe = Recipe.load(write(BASIC + text), overrides=["plugins.1=terms.py"])
    first, second = (component.fields() for component in recipe.filters)
    assert first == {"words": recipe.base / "a.txt", "lists": ("common", recipe.base / "b.txt")}
    assert second["words"] == ("a b",)


def test_a_gap_may_be_measured_with_a_component_that_takes_no_part_in_training(write: Write) -> None:
    recipe = Recipe.load(write(BASIC + "evaluation: {gaps: [{use: swap, direction: reverse}]}"))
    assert recipe.components() == []
    assert recipe.evaluation.gaps[0].fields()["direction"] == "reverse"
    assert recipe.resolved()["evaluation"]["gaps"] == [{"use": "swap", "weight": 1.0, "direction": "reverse"}]


def test_names_are_unique_and_not_the_hosts(write: Write) -> None:
    text = "constraints: [{use: swap, name: a}, {use: drift, name: a}, {use: drift, name: objective}, "
    assert mistakes(write(BASIC + text + "{use: drift, name: a/b}]")) == [
        "recipe.yaml:6 constraints.1.name: the name 'a' is taken; expected another name",
        "recipe.yaml:6 constraints.2.name: the name 'objective' is taken; expected another name",
        "recipe.yaml:6 constraints.3.name: 'a/b'; expected letters, digits, '-' and '_'",
    ]


# -- overrides ---------------------------------------------------------------------------------------------------


def test_overrides_are_yaml_values_and_promote_bare_names(write: Write) -> None:
    path = write(BASIC + "adversary: fgm\nconstraints: [swap]\n")
    changes = {
        "adversary.epsilon": "3e-1",
        "constraints.0.weight.use": "budget",
        "constraints.0.weight.limit": "0.2",
        "constraints.1": "drift",
        "filters.0.use": "length",
        "filters.0.maximum": "7",
        "training.max_steps": "5",
        "data.train.rows": "':10'",
        "output": "runs/a=b",
        "peft.method": "lora",
    }
    with pytest.raises(UsageError, match="weight is 1"):
        Recipe.load(
            write(BASIC + "constraints: [{use: swap, weight: 1}]", "weight.yaml"), ["constraints.0.weight.limit=2"]
        )
    recipe: Any = Recipe.load(path, [f"{key}={value}" for key, value in changes.items()])
    assert recipe.adversary.epsilon == 0.3
    assert recipe.constraints[0].weight.limit == 0.2
    assert [c.name for c in recipe.constraints] == ["swap", "drift"]
    assert recipe.filters[0].maximum == 7
    assert recipe.training == {"max_steps": 5}
    assert recipe.data.train[0].rows == ":10"
    assert recipe.output == "runs/a=b"
    assert recipe.peft.method == "lora"


def test_an_override_that_is_wrong_names_itself(write: Write) -> None:
    path = write(BASIC + "constraints: [swap]\n")
    wrong = ["adversary.epsilon=0.3", "constraints.4.weight=1", "seed", "=3", "seed.a=1", "seed=[", "output=3"]
    found = mistakes(path, *wrong)
    assert found == [
        "--set constraints.4.weight=1: constraints is a list of 1, which has no 4; "
        "its items have numbers from 0 on; `constraints.1` adds one",
        "--set seed: no `=` in it; expected FIELD=VALUE",
        "--set =3: no field before `=`; expected FIELD=VALUE",
        "--set seed=[: the value is not YAML: expected the node content, but found '<stream end>'; close the bracket",
        "--set adversary.epsilon=0.3: {'epsilon': 0.3}; expected the name of an adversary, or {use: NAME, ...}",
        "--set seed.a=1: {'a': 1}; expected an integer",
        "--set output=3: 3; expected a string",
    ]
    assert mistakes(path, "seed=-1") == ["--set seed=-1: -1; expected a number greater than or equal to 0"]
    assert mistakes(path, "adversary.use=fgm", "adversary.epsilon=.inf") == [
        "--set adversary.epsilon=.inf: inf; expected a finite number"
    ]


# -- training ----------------------------------------------------------------------------------------------------


def test_training_defaults(write: Write, tmp_path: Path) -> None:
    arguments = Recipe.load(write(BASIC + "training: {learning_rate: 1e-3}")).training_arguments(tmp_path)
    expected = {**RECIPE_DEFAULTS, "learning_rate": 1e-3, "report_to": []}
    assert {name: getattr(arguments, name) for name in expected} == expected
    assert (arguments.seed, arguments.remove_unused_columns, arguments.load_best_model_at_end) == (42, False, False)
    assert arguments.output_dir == str(tmp_path)


def test_without_validation_nothing_is_evaluated(write: Write, tmp_path: Path) -> None:
    recipe = Recipe.load(write(BASIC.replace(", validation: b.jsonl", "")))
    assert recipe.training_arguments(tmp_path).eval_strategy == "no"
    assert recipe.training_arguments(tmp_path).save_strategy == "epoch"


def test_early_stopping_keeps_the_best_by_the_tasks_metric_and_saving_follows_evaluation(
    write: Write, tmp_path: Path
) -> None:
    text = BASIC + "early_stopping: {patience: 2}\nseed: 7\ntraining: {eval_strategy: steps, eval_steps: 30}"
    arguments = Recipe.load(write(text)).training_arguments(tmp_path)
    assert arguments.load_best_model_at_end
    assert (arguments.metric_for_best_model, arguments.greater_is_better) == ("accuracy", True)
    assert (arguments.save_strategy, arguments.save_steps, arguments.seed) == ("steps", 30, 7)


# -- writing -----------------------------------------------------------------------------------------------------

FULL = BASIC.replace("}", ", test: {path: c.jsonl, rows: ':9'}}") + """\
filters: [{use: length, maximum: 3, lists: [words.txt, /etc/words.txt]}]
constraints: [{use: swap, name: twin, weight: {use: budget, limit: 0.05}}, swap, swap]
adversary: {use: fgm, epsilon: 5e-5}
evaluation: {gaps: [twin], under: [typos]}
peft: {method: lora, r: 4}
freeze: [embeddings, "layers.0-3"]
training: {learning_rate: 1e-3, save_strategy: no}
early_stopping: null
output: runs/full
"""  # fmt: skip


def test_the_resolved_recipe_has_every_default_and_reads_back_as_an_equal_one(write: Write) -> None:
    recipe = Recipe.load(write(FULL))
    values = recipe.resolved()
    assert values["adversary"] == {"use": "fgm", "epsilon": 5e-5}
    assert values["constraints"][0] == {
        "use": "swap", "name": "twin", "weight": {"use": "budget", "limit": 0.05}, "direction": "forward"
    }  # fmt: skip
    assert values["constraints"][2]["name"] == "swap-2"
    assert values["filters"][0]["lists"] == ["words.txt", "/etc/words.txt"]
    assert values["training"] == {**RECIPE_DEFAULTS, "learning_rate": 1e-3, "save_strategy": "no"}
    under = [{"use": "typos", "rate": 0.1}]
    none: dict[str, list[str]] = {"attacks": [], "evaluators": []}
    assert values["evaluation"] == {"under": under, **none, "gaps": ["twin"], "replicates": 10_000}
    assert values["averaging"] is None
    assert values["data"]["test"] == [{"path": "c.jsonl", "columns": {}, "rows": ":9", "split": None}]
    assert set(values["versions"]) == {"alignkit", "python", "torch", "transformers", "plugins"}
    folder = recipe.base / "runs" / "full"
    folder.mkdir(parents=True)
    recipe.save(folder / "recipe.yaml")
    assert yaml.safe_load((folder / "recipe.yaml").read_text())["base"] == "../.."
    again = Recipe.load(folder / "recipe.yaml")
    assert again == recipe
    assert again.resolve_path("a.jsonl").resolve() == (recipe.base / "a.jsonl").resolve()
    again.save(folder / "again.yaml")
    assert (folder / "again.yaml").read_bytes() == (folder / "recipe.yaml").read_bytes()
    assert Recipe.load(write(FULL), ["seed=1"]) != recipe


def test_other_versions_are_a_note_not_a_mistake(write: Write, caplog: pytest.LogCaptureFixture) -> None:
    recipe = Recipe.load(write(FULL))
    values = recipe.resolved()
    values["versions"]["torch"] = "1.0"
    with caplog.at_level(logging.WARNING):
        assert Recipe.load(write(dump(values))) == recipe
    assert len(caplog.messages) == 1
    assert caplog.messages[0].startswith("the recipe was written by other versions: torch 1.0 -> ")


def test_a_failed_write_leaves_the_old_recipe(write: Write, tmp_path: Path) -> None:
    recipe = Recipe.load(write(FULL))
    with pytest.raises(FileNotFoundError):
        recipe.save(tmp_path / "none" / "recipe.yaml")
    recipe.save(tmp_path / "recipe.yaml")
    assert not list(tmp_path.glob("*.tmp"))


# -- Python ------------------------------------------------------------------------------------------------------


def test_a_recipe_made_in_python_takes_instances(write: Write, tmp_path: Path) -> None:
    loaded: Any = Recipe.load(write(FULL))
    swap, fgm = type(loaded.constraints[0]), type(loaded.adversary)
    twin = swap(weight=0.5)
    recipe = Recipe(
        model="m",
        task=type(loaded.task)(),
        objective=type(loaded.objective)(),
        data={"train": "a.jsonl"},
        plugins=["methods.py"],
        constraints=[twin, swap()],
        adversary=fgm(epsilon=0.5),
        evaluation={"gaps": [twin]},
        base=tmp_path,
    )
    assert recipe.constraints[0] is twin
    assert [c.name for c in recipe.components()] == ["swap", "swap-2", "fgm"]
    assert recipe.resolved()["adversary"] == {"use": "fgm", "epsilon": 0.5}
    assert recipe.resolved()["evaluation"]["gaps"] == ["swap"]
    recipe.save(tmp_path / "python.yaml")
    assert Recipe.load(tmp_path / "python.yaml") == recipe
    with pytest.raises(UsageError) as caught:
        Recipe(
            model="m",
            task=loaded.task,
            objective=loaded.objective,
            data={"train": "a"},
            constraints=[twin, twin],
            adversary=fgm,
            averaging=twin,
        )
    assert str(caught.value).splitlines() == [
        "constraints.1: the same Swap a second time; expected an instance of its own",
        "adversary: the class FGM; expected an instance; write FGM()",
        "averaging: Swap, of kind constraint; expected a component of kind averager",
    ]


def test_the_parts_found_valid_come_with_the_error(write: Write) -> None:
    with pytest.raises(UsageError) as caught:
        Recipe.load(write(BASIC + "seed: x"))
    error: Any = caught.value
    assert error.known.data.train[0].path == "a.jsonl"
    assert error.known.task.name == "letters"
    with pytest.raises(Unsettled):
        error.known.seed  # noqa: B018  # asking for it is what is tested


# -- schema ------------------------------------------------------------------------------------------------------


def test_the_schema_knows_every_registered_component(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALIGNKIT_PLUGINS", "")
    schema = Recipe.json_schema()
    assert schema["required"] == ["model", "task", "data"]
    names, *mappings = schema["$defs"]["task"]["oneOf"]
    assert {"chat", "ner", "text-classification"} <= set(names["enum"])
    ner = next(own for own in mappings if own["properties"]["use"]["const"] == "ner")
    assert ner["properties"]["use"]["const"] == "ner"
    assert ner["additionalProperties"] is False
    assert schema["properties"]["training"]["properties"]["learning_rate"]["default"] == 5e-5
    assert "seed" not in schema["properties"]["training"]["properties"]
    text = json.dumps(schema)
    assert {p.split('"')[0] for p in text.split('"$ref": "#/$defs/')[1:]} <= set(schema["$defs"])


def test_a_components_schema_has_its_fields_with_weights_and_descriptions(write: Write) -> None:
    from alignkit.recipe.schema import component_schema

    recipe = Recipe.load(write(FULL))
    schema = component_schema(type(recipe.constraints[0]), "constraint.swap", {})
    assert schema["properties"]["weight"]["anyOf"] == [{"minimum": 0, "type": "number"}, {"$ref": "#/$defs/weight"}]
    assert schema["properties"]["direction"]["enum"] == ["forward", "reverse"]
    budget = component_schema(type(recipe.constraints[0].weight), "weight.budget", {})  # type: ignore[arg-type]
    assert budget["required"] == ["limit"]
    assert budget["properties"]["limit"]["description"] == "What it may cost."
    assert "name" not in budget["properties"]
