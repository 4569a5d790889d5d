"""Evaluators in recipes and on the command line: what a run leaves of them, what is printed, what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

import alignkit

Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def calibrated(tmp_path_factory: pytest.TempPathFactory, plain_run: Path, ner_data: Path) -> Path:
    """The folder of a run that goes on from a trained model, the calibration of both measured. Read only."""
    recipe = alignkit.Recipe(
        model=str(plain_run),
        task="ner",
        data={"train": "train.conll", "validation": "dev.conll", "test": "test.conll"},
        evaluation={"evaluators": [{"use": "calibration", "bins": 5}], "replicates": 100},
        training={"max_steps": 3, "learning_rate": 1e-4, "per_device_train_batch_size": 8},
        output=str(tmp_path_factory.mktemp("runs") / "calibrated"),
        base=ner_data,
    )
    return alignkit.train(recipe).path


def test_a_runs_metrics_are_of_both_models_on_the_same_rows(calibrated: Path) -> None:
    metrics = json.loads((calibrated / "metrics.json").read_text("utf-8"))
    for side in ("before", "after", "difference"):
        assert set(metrics[side]) == {"validation", "test", "test by calibration"}
        assert list(metrics[side]["test by calibration"]) == ["ece", "brier", "confidence", "accuracy"]
    assert metrics["after"]["test by calibration"]["ece"]["n"] == 24
    assert "p" in metrics["difference"]["test by calibration"]["brier"]
    assert metrics["directions"]["test by calibration"] == {"ece": -1, "brier": -1, "confidence": 0, "accuracy": 1}
    lines = [json.loads(line) for line in (calibrated / "evaluations.jsonl").read_text("utf-8").splitlines()]
    assert len(lines) == 48
    assert all(0 < line["confidence"] <= 1 and line["right"] <= line.get("decisions", 1) for line in lines)


def test_report_and_card_show_it_with_its_directions(calibrated: Path) -> None:
    for name in ("report.html", "README.md"):
        text = (calibrated / name).read_text("utf-8")
        assert "test by calibration" in text
        assert "ece ↓" in text
        assert "brier ↓" in text


def test_the_resolved_recipe_has_it_and_loads_again(calibrated: Path) -> None:
    [written] = yaml.safe_load((calibrated / "recipe.yaml").read_text("utf-8"))["evaluation"]["evaluators"]
    assert written == {"use": "calibration", "limit": None, "bins": 5}
    [again] = alignkit.Recipe.load(calibrated / "recipe.yaml").evaluation.evaluators
    assert again.name == "calibration"


def test_the_schema_has_evaluators() -> None:
    schema = alignkit.Recipe.json_schema()
    shape = schema["properties"]["evaluation"]["properties"]["evaluators"]
    assert shape["items"] == {"$ref": "#/$defs/evaluator"}
    assert {"refusals", "calibration"} <= set(schema["$defs"]["evaluator"]["oneOf"][0]["enum"])


def test_evaluating_a_run_asks_its_evaluators_again(calibrated: Path, alignkit_cli: Cli) -> None:
    code, out, err = alignkit_cli("evaluate", calibrated, "--json", "--replicates", 100)
    assert (code, err) == (0, "")
    assert json.loads(out)["after"] == json.loads((calibrated / "metrics.json").read_text("utf-8"))["after"]


def test_an_evaluator_that_is_named_is_asked_alone(plain_run: Path, ner_data: Path, alignkit_cli: Cli) -> None:
    code, out, err = alignkit_cli("evaluate", plain_run, "--evaluator", "calibration", "--set", "bins=4", "--json")
    assert (code, err) == (0, "")
    found = json.loads(out)
    assert set(found["after"]) == {"test by calibration"}
    data = ("--data", ner_data / "dev.conll", "--set", "task.maximum_length=16")
    code, out, err = alignkit_cli("evaluate", plain_run, "--evaluator", "calibration", *data)
    assert (code, err) == (0, "")
    assert "test by calibration" in out
    assert "16 rows" in out


def test_data_that_is_named_is_shown_beside_evaluators_with_rows_of_their_own(
    tmp_path: Path, language_model: Path, alignkit_cli: Cli
) -> None:
    (tmp_path / "a.txt").write_text("who is ada ?\n", "utf-8")
    (tmp_path / "rows.jsonl").write_text('{"prompt": "where is ada ?", "completion": "in paris"}\n' * 3, "utf-8")
    code, out, err = alignkit_cli(
        "evaluate", language_model, "--task", "chat", "--evaluator", "perplexity",
        "--set", f"text={tmp_path / 'a.txt'}",
        "--data", tmp_path / "rows.jsonl", "--replicates", 100, "--json",
    )  # fmt: skip
    assert (code, err) == (0, "")
    found = json.loads(out)["after"]
    assert set(found) == {"test", "perplexity"}
    assert found["test"]["loss"]["n"] == 3


def test_answers_go_into_a_file(tmp_path: Path, language_model: Path, alignkit_cli: Cli) -> None:
    (tmp_path / "a.txt").write_text("who is ada ?\nwhere is rome ?\n", "utf-8")
    (tmp_path / "b.csv").write_text("question\nwas it good ?\n", "utf-8")
    code, out, err = alignkit_cli(
        "evaluate", language_model, "--task", "chat", "--evaluator", "refusals",
        "--set", f"harmful={tmp_path / 'a.txt'}", "--set", f"harmless={tmp_path / 'b.csv'}",
        "--set", "harmless.columns.prompt=question", "--set", "refusals.max_new_tokens=3",
        "--output", tmp_path / "answers.jsonl",
    )  # fmt: skip
    assert (code, err) == (0, "")
    assert "harmful refused ↑" in out
    assert "harmless refused ↓" in out
    assert f"{tmp_path / 'b.csv'}:2" in out
    lines = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text("utf-8").splitlines()]
    assert [line["prompt"] for line in lines] == ["who is ada ?", "where is rome ?", "was it good ?"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--evaluator", "calibratoin"], "no evaluator is called 'calibratoin'; did you mean 'calibration'?"),
        (
            ["--evaluator", "calibration", "--set", "bin=3"],
            "--set bin=3: no field of calibration; did you mean 'bins'?; the task's own: --set task.bin=3",
        ),
        (["--evaluator", "calibration", "--set", "bins=0"], "--set bins=0: 0; expected a number greater than 0"),
        (["--evaluator", "calibration", "--evaluator", "calibration"], "named twice; expected each evaluator once"),
        (["--evaluator", "refusals", "--set", "harmful=a.txt"], "--evaluator refusals harmless: missing"),
        (["--evaluator", "perplexity", "--set", "text=none.txt"], "none.txt: no such file"),
        (["--evaluator", "calibration", "--set", "calibration.bar=2"], "--set calibration.bar=2: unknown field"),
        (["--evaluator", "constraints/calibration", "--set", "calibration.bins=0"], "--set calibration.bins=0: 0;"),
        (
            ["--evaluator", "constraints/calibration", "--set", "constraints/calibration.bins=0"],
            "--set constraints/calibration.bins=0: 0;",
        ),
        (["--evaluator", "constraints/calibration", "--evaluator", "calibration"], "named twice"),
    ],
)
def test_mistakes_are_told(plain_run: Path, alignkit_cli: Cli, arguments: list[str], said: str) -> None:
    code, _, err = alignkit_cli("evaluate", plain_run, *arguments)
    assert code == 2
    assert said in err


def test_everything_that_is_wrong_is_found_before_training(
    tmp_path: Path, language_model: Path, alignkit_cli: Cli
) -> None:
    """Of the data and of the evaluators' rows alike."""
    (tmp_path / "chat.jsonl").write_text('{"prompt": "who ?", "completion": "bob"}\n{"prompt": "who ?"}\n', "utf-8")
    recipe = {
        "model": str(language_model), "task": "chat", "data": {"train": "chat.jsonl"}, "output": "run",
        "evaluation": {"evaluators": [{"use": "refusals", "harmful": "chat.jsonl", "harmless": "none.csv"}]},
    }  # fmt: skip
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe), "utf-8")
    for command in ("check", "train"):
        code, _, err = alignkit_cli(command, tmp_path / "recipe.yaml")
        assert code == 2
        assert "chat.jsonl:2: no 'completion'" in err
        assert "none.csv: no such file" in err
    assert not (tmp_path / "run").exists()


def test_an_evaluator_that_the_task_cannot_be_measured_by_is_refused_before_training(
    tmp_path: Path, language_model: Path, alignkit_cli: Cli
) -> None:
    (tmp_path / "chat.jsonl").write_text('{"prompt": "who ?", "completion": "bob"}\n', "utf-8")
    recipe = {
        "model": str(language_model), "task": "chat", "data": {"train": "chat.jsonl"}, "output": "run",
        "evaluation": {"evaluators": ["calibration"]},
    }  # fmt: skip
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe), "utf-8")
    code, _, err = alignkit_cli("check", tmp_path / "recipe.yaml")
    assert code == 2
    assert "evaluator calibration: task chat gives no probabilities of labels" in err
    assert "evaluator calibration: the data has neither a test nor a validation split" in err
