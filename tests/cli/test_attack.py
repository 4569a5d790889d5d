"""`alignkit attack`, and attacks in recipes: what they print, what they leave in a run's folder, what they refuse."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.dom import minidom

import pytest
import yaml

import alignkit

Cli = Callable[..., tuple[int, str, str]]

SETTINGS = ["deepwordbug", "pgd 0.1", "pgd 0.3"]


@pytest.fixture(scope="module")
def attacked_run(tmp_path_factory: pytest.TempPathFactory, plain_run: Path, ner_data: Path) -> Path:
    """The folder of a run that goes on from a trained model, both of them attacked. Read only."""
    recipe = alignkit.Recipe(
        model=str(plain_run),
        task="ner",
        data={"train": "train.conll", "validation": "dev.conll", "test": "test.conll"},
        evaluation={"attacks": ["deepwordbug", {"use": "pgd", "radii": [0.1, 0.3]}], "replicates": 100},
        training={"max_steps": 3, "learning_rate": 1e-4, "per_device_train_batch_size": 8},
        output=str(tmp_path_factory.mktemp("runs") / "attacked"),
        base=ner_data,
    )
    return alignkit.train(recipe).path


def lines_of(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text("utf-8").splitlines()]


# -- in a run ----------------------------------------------------------------------------------------------------


def test_a_runs_metrics_are_of_both_models_on_the_same_rows(attacked_run: Path) -> None:
    metrics = json.loads((attacked_run / "metrics.json").read_text("utf-8"))
    for side in ("before", "after", "difference"):
        assert set(metrics[side]) == {"validation", "test", *(f"test against {setting}" for setting in SETTINGS)}
        for setting in SETTINGS:
            found = metrics[side][f"test against {setting}"]
            assert set(found) >= {
                "f1",
                "f1/PER",
                "accuracy_before_attack",
                "accuracy_under_attack",
                "attack_success",
                "queries",
            }
            assert found["accuracy_under_attack"]["n"] == 24
    assert "p" in metrics["difference"]["test against pgd 0.1"]["accuracy_under_attack"]
    small, large = (metrics["after"][f"test against pgd {r}"]["accuracy_under_attack"]["value"] for r in ("0.1", "0.3"))
    assert small >= large


def test_attempts_are_kept(attacked_run: Path) -> None:
    lines = lines_of(attacked_run / "attacks.jsonl")
    assert {line["model"] for line in lines} == {"before", "after"}
    assert {line["measured"] for line in lines} == {f"test against {setting}" for setting in SETTINGS}
    broken = [line for line in lines if line["broken"] and line["measured"].endswith("deepwordbug")]
    assert broken
    for line in broken:
        before, after = line["input"]["tokens"], line["attacked"]["tokens"]
        assert len(before) == len(after)
        assert before != after
        assert line["predicted"] != line["under_attack"]
        assert line["queries"] > 1
        assert line["measures"]["edits"] >= 1
    assert all(line["attacked"] is None for line in lines if "pgd" in line["measured"])
    metrics = json.loads((attacked_run / "metrics.json").read_text("utf-8"))["after"]["test against deepwordbug"]
    mine = [line for line in lines if line["model"] == "after" and line["measured"] == "test against deepwordbug"]
    assert metrics["queries"]["value"] == pytest.approx(sum(line["queries"] for line in mine) / len(mine))


def test_the_report_shows_curves_and_broken_inputs(attacked_run: Path) -> None:
    page = (attacked_run / "report.html").read_text("utf-8")
    assert "<h2>Under attack</h2>" in page
    assert "pgd on test: accuracy under attack" in page
    assert "test against deepwordbug: inputs that broke the aligned model" in page
    assert page.count("<mark>") >= 2


def test_the_resolved_recipe_has_the_attacks_with_every_field_and_loads_again(attacked_run: Path) -> None:
    file = attacked_run / "recipe.yaml"
    attacks = yaml.safe_load(file.read_text("utf-8"))["evaluation"]["attacks"]
    assert attacks[0] == {
        "use": "deepwordbug",
        "limit": 500,
        "maximum_edits": 30,
        "operations": ["swap", "substitute", "delete", "insert"],
        "minimum_length": 4,
    }
    assert (attacks[1]["radii"], attacks[1]["steps"]) == ([0.1, 0.3], 10)
    again = alignkit.Recipe.load(file)
    assert [attack.name for attack in again.evaluation.attacks] == ["deepwordbug", "pgd"]
    assert again.evaluation.attacks[1].fields()["radii"] == (0.1, 0.3)


def test_the_schema_has_the_attacks() -> None:
    schema = alignkit.Recipe.json_schema()
    shape = schema["properties"]["evaluation"]["properties"]["attacks"]
    assert shape["items"] == {"$ref": "#/$defs/attack"}
    assert {"deepwordbug", "typos", "input-reduction", "pgd"} <= set(schema["$defs"]["attack"]["oneOf"][0]["enum"])


def test_evaluating_a_run_makes_its_attacks_again(attacked_run: Path, alignkit_cli: Cli) -> None:
    code, out, err = alignkit_cli("evaluate", attacked_run, "--json", "--replicates", 100)
    assert (code, err) == (0, "")
    metrics = json.loads((attacked_run / "metrics.json").read_text("utf-8"))["after"]
    found = json.loads(out)["after"]
    assert set(found) == set(metrics)
    for setting in SETTINGS:
        assert found[f"test against {setting}"] == metrics[f"test against {setting}"]


def test_an_attack_that_the_task_cannot_be_put_to_is_refused_before_training(
    tmp_path: Path, language_model: Path, alignkit_cli: Cli
) -> None:
    rows = "".join(json.dumps({"prompt": "who ?", "completion": f"bob {i}"}) + "\n" for i in range(4))
    (tmp_path / "chat.jsonl").write_text(rows, "utf-8")
    recipe = {
        "model": str(language_model), "task": "chat", "data": {"train": "chat.jsonl", "test": "chat.jsonl"},
        "evaluation": {"attacks": ["typos", "deepwordbug"]}, "output": "run",
    }  # fmt: skip
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe), "utf-8")
    code, _, err = alignkit_cli("check", tmp_path / "recipe.yaml")
    assert code == 2
    for name in ("typos", "deepwordbug"):
        assert f"attack {name}: task chat does not say which predictions are right" in err
    assert not (tmp_path / "run").exists()


def test_attacks_without_rows_to_attack_are_refused_before_training(
    tmp_path: Path, plain_run: Path, ner_data: Path, alignkit_cli: Cli
) -> None:
    recipe = {
        "model": str(plain_run), "task": "ner", "data": {"train": str(ner_data / "train.conll")},
        "evaluation": {"attacks": ["typos"]}, "output": "run",
    }  # fmt: skip
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe), "utf-8")
    code, _, err = alignkit_cli("check", tmp_path / "recipe.yaml")
    assert code == 2
    assert "evaluation.attacks: the data has neither a test nor a validation split" in err
    assert "add `test:` to `data:`" in err


# -- on its own --------------------------------------------------------------------------------------------------


def test_a_run_is_attacked_on_its_own_test_split(plain_run: Path, alignkit_cli: Cli) -> None:
    code, out, err = alignkit_cli("attack", plain_run, "--method", "deepwordbug", "--limit", 12)
    assert (code, err) == (0, "")
    assert "test against deepwordbug" in out
    assert "12 rows" in out
    for label in ("f1 ↑", "accuracy under attack ↑", "attack success ↓", "queries", "edits"):
        assert label in out
    assert "test against deepwordbug: inputs that broke it" in out
    assert "validation" not in out


def test_a_model_is_attacked_on_a_file_and_json_is_all_that_stdout_gets(
    plain_run: Path, ner_data: Path, tmp_path: Path, alignkit_cli: Cli
) -> None:
    code, out, err = alignkit_cli(
        "attack", plain_run / "model", "--data", ner_data / "dev.conll", "--json", "--replicates", 100,
        "--method", "typos", "--method", "pgd", "--set", "pgd.radii=[0.1,0.2]", "--set", "limit=6",
        "--output", tmp_path / "attempts.jsonl", "--plot", tmp_path / "curve.svg",
    )  # fmt: skip
    assert (code, err) == (0, "")
    document = json.loads(out)
    assert document["task"] == "ner"
    splits = ["test", "test against typos", "test against pgd 0.1", "test against pgd 0.2"]
    assert list(document["after"]) == splits
    assert {document["after"][split]["accuracy_under_attack"]["n"] for split in splits[1:]} == {6}
    assert document["after"]["test"]["f1"]["n"] == 6, "of the rows that were attacked, like the others"
    assert lines_of(tmp_path / "attempts.jsonl") == document["attempts"]
    svg = (tmp_path / "curve.svg").read_text("utf-8")
    minidom.parseString(svg)
    assert "pgd on test: accuracy under attack" in svg


def test_the_same_seed_gives_the_same_attempts(plain_run: Path, ner_data: Path, alignkit_cli: Cli) -> None:
    def attempts(*options: object) -> Any:
        data = ("--data", ner_data / "dev.conll")
        out = alignkit_cli("attack", plain_run, *data, "--method", "deepwordbug", "--json", *options)[1]
        return json.loads(out)["attempts"]

    first = attempts()
    assert attempts("--batch-size", 3) == first
    assert attempts("--seed", 1) != first


REFUSED: dict[str, tuple[list[str], list[str]]] = {
    "an attack that is not there": (["--method", "deepwordbgu"], ["deepwordbgu", "did you mean 'deepwordbug'?"]),
    "an adversary": (["--method", "fgm"], ["fgm"]),
    "a field of another attack": (
        ["--method", "deepwordbug", "--method", "pgd", "--set", "radii=[0.1]"],
        ["--method deepwordbug --set radii=[0.1]: unknown field", "set it of one alone"],
    ),
    "a field of an attack that is not made": (
        ["--method", "typos", "--method", "pgd", "--set", "hotflip.candidates=2"],
        ["--set hotflip.candidates=2: no --method hotflip whose field that is; add --method hotflip"],
    ),
    "a field of an attack that is not there": (
        ["--method", "typos", "--method", "pgd", "--set", "hotfilp.candidates=2"],
        ["--method pgd --set hotfilp.candidates=2: unknown field 'hotfilp'; NAME is one of typos, pgd"],
    ),
    "a field of an attack that is not made, beside a mistake": (
        ["--method", "pgd", "--set", "hotflip.candidates=2", "--set", "pgd.steps=0"],
        ["--set hotflip.candidates=2: no --method hotflip", "--set pgd.steps=0: 0; expected a number greater than 0"],
    ),
    "two limits": (
        ["--method", "typos", "--method", "pgd", "--limit", "5", "--set", "pgd.limit=3", "--set", "limit=4"],
        ["--limit 5: beside --set pgd.limit=3 and --set limit=4; expected one of them; take one out"],
    ),
    "a file that is not there, beside other mistakes": (
        ["--data", "nowhere.conll", "--method", "pgd", "--set", "pgd.steps=0"],
        ["nowhere.conll: no such file", "--set pgd.steps=0"],
    ),
    "fields that do not go together": (
        ["--method", "pgd", "--set", "step_size=0.01"],
        ["--set step_size=0.01: 10 steps of 0.01 radii do not reach the boundary; expected 0.1 or more"],
    ),
    "a radius without end": (["--method", "pgd", "--set", "radii=[.inf]"], ["radii=[.inf]: inf; expected a finite"]),
    "a negative seed": (["--method", "pgd", "--seed", "-1"], ["--seed"]),
    "a field of none": (["--method", "pgd", "--set", "pgd.radius=1"], ["radius", "did you mean 'radii'?"]),
    "a value that is none": (["--method", "pgd", "--set", "radii=[0.2,0.1]"], ["radii", "ascending"]),
    "an attack twice": (["--method", "pgd", "--method", "pgd"], ["--method pgd: named twice"]),
    "two mistakes": (["--method", "nothing", "--method", "pgd", "--set", "pgd.steps=0"], ["nothing", "steps"]),
    "a task that cannot be attacked so": (["--method", "gcg"], ["attack gcg", "task ner"]),
    "a folder that is not there": (["--method", "typos", "--output", "no/where.jsonl"], ["there is no folder"]),
    "a plot over the data": (
        ["--method", "pgd", "--plot", "DATA"],
        ["it is read, and would be overwritten", "a plot is drawn as SVG; expected a file that ends in .svg"],
    ),
    "several mistakes": (
        ["--method", "nothing", "--column", "x", "--output", "no/where.jsonl", "--plot", "curve.png"],
        ["no attack is called 'nothing'", "--column x: no field and column", "there is no folder", "--plot curve.png"],
    ),
    "no curve": (
        ["--method", "typos", "--plot", "x.svg", "--output", "x.jsonl"],
        ["--plot x.svg: no attack is measured at two radii or more", "there is no curve"],
    ),
    "one point": (["--method", "pgd", "--set", "radii=[1]", "--plot", "x.svg"], ["there is no curve"]),
    "no rows": (["--method", "typos", "--limit", "0"], ["limit"]),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_input_is_said_without_a_traceback(
    case: str, plain_run: Path, ner_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, alignkit_cli: Cli
) -> None:
    monkeypatch.chdir(tmp_path)
    options, words = REFUSED[case]
    data = str(ner_data / "dev.conll")
    options = [data if option == "DATA" else option for option in options]
    code, out, err = alignkit_cli("attack", plain_run, "--data", data, *options)
    assert code == 2, (out, err)
    assert "Traceback" not in out + err
    assert "Value" not in out  # before the work, not after it
    for word in words:
        assert word in err
    assert not list(tmp_path.iterdir())


def test_columns_are_those_of_a_file(plain_run: Path, alignkit_cli: Cli) -> None:
    code, _, err = alignkit_cli("attack", plain_run, "--method", "typos", "--column", "tokens=words")
    assert code == 2
    assert "--column: no file whose column that is; expected a file; name one with --data" in err


@pytest.mark.parametrize("name", ["recipe.yaml", "model/config.json", "test.conll"])
@pytest.mark.parametrize("data", [(), ("--data", "dev.conll")])
def test_what_is_read_of_a_run_is_not_overwritten(
    name: str, data: tuple[str, ...], plain_run: Path, ner_data: Path, alignkit_cli: Cli
) -> None:
    data = tuple(str(ner_data / word) if word.endswith("conll") else word for word in data)
    file = (ner_data if name.endswith("conll") else plain_run) / name
    before = file.read_bytes()
    code, out, err = alignkit_cli("attack", plain_run, *data, "--method", "typos", "--output", file)
    assert (code, out) == (2, "")
    assert f"{file}: it is read, and would be overwritten; expected another file" in err
    assert file.read_bytes() == before


def test_a_column_is_named_by_an_option(plain_run: Path, tmp_path: Path, alignkit_cli: Cli) -> None:
    (tmp_path / "rows.jsonl").write_text(json.dumps({"words": ["ada", "sings"], "tags": ["B-PER", "O"]}), "utf-8")
    code, _, err = alignkit_cli("attack", plain_run, "--data", tmp_path / "rows.jsonl", "--method", "typos")
    assert code == 2
    assert "no 'tokens'" in err
    assert "map it with `--column tokens=…`" in err


def test_attacks_take_the_same_rows_together_as_alone(plain_run: Path, alignkit_cli: Cli) -> None:
    def rows(*names: str) -> dict[str, list[int]]:
        methods = [word for name in names for word in ("--method", name)]
        sets = [word for name in names for word in ("--set", f"{name}.limit={limits[name]}")]
        document = json.loads(alignkit_cli("attack", plain_run, *methods, *sets, "--json", "--replicates", 100)[1])
        found: dict[str, list[int]] = {name: [] for name in names}
        for attempt in document["attempts"]:
            found[attempt["measured"].removeprefix("test against ")].append(attempt["row"])
        scored = document["after"]["test"]["f1"]["n"]
        assert scored == len({i * 24 // limits[name] for name in names for i in range(limits[name])})
        return found

    limits = {"typos": 10, "deepwordbug": 7}
    assert rows("typos", "deepwordbug") == rows("typos") | rows("deepwordbug")


def test_no_such_model(tmp_path: Path, alignkit_cli: Cli) -> None:
    code, _, err = alignkit_cli("attack", tmp_path / "nothing", "--method", "typos")
    assert code == 2
    assert "nothing" in err
