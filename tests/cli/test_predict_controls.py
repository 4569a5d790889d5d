"""`alignkit predict` under controls: named on the command line, a run's own, left out, audited, refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import alignkit

Cli = Callable[..., tuple[int, str, str]]
TEXTS = ["where is ada ?", "rome", "who is he ?"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, language_model: Path) -> Path:
    """A run with a control. Read only."""
    folder = tmp_path_factory.mktemp("runs")
    (folder / "rows.jsonl").write_text('{"prompt": "where is ada ?", "completion": "in paris"}\n' * 4, "utf-8")
    recipe = alignkit.Recipe(
        model=str(language_model),
        task="chat",
        data={"train": "rows.jsonl", "test": "rows.jsonl"},
        controls=[{"use": "refusal-policy", "phrases": ["rome"]}],
        training={"max_steps": 1, "report_to": "none", "use_cpu": True, "disable_tqdm": True},
        evaluation={"replicates": 20},
        output="run",
        base=folder,
    )
    return alignkit.train(recipe).path


def answered(out: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.splitlines()]


def test_a_model_is_put_under_controls_by_name(language_model: Path, tmp_path: Path, alignkit_cli: Cli) -> None:
    audit = tmp_path / "audit.jsonl"
    code, out, err = alignkit_cli(
        "predict", language_model, *TEXTS, "--max-new-tokens", 5, "--audit", audit,
        "--control", "refusal-policy", "--set", "refusal-policy.phrases=[rome]", "--set", "refusal-policy.answer=No.",
        "--control", "forbidden-phrases", "--set", "forbidden-phrases.phrases=[a, e]",
    )  # fmt: skip
    assert (code, err) == (0, "")
    answers = answered(out)
    assert answers[1]["completion"] == "No."
    assert answers[1]["controls"][0]["control"] == "refusal-policy"
    assert not any(set("ae") & set(answer["completion"]) for answer in answers)
    lines = answered(audit.read_text("utf-8"))
    assert {"row", "text", "control", "rule", "value", "threshold", "changed"} == set(lines[0])
    decisions = [line for line in lines if line["control"] == "refusal-policy"]
    assert [(line["row"], bool(line["changed"])) for line in decisions] == [(0, False), (1, True), (2, False)]
    assert [line["text"] for line in decisions] == TEXTS


def test_a_runs_own_are_on_until_they_are_left_out(run: Path, alignkit_cli: Cli) -> None:
    code, out, err = alignkit_cli("predict", run, *TEXTS, "--max-new-tokens", 5)
    assert (code, err) == (0, "")
    assert answered(out) == alignkit.load(run).predict(TEXTS, max_new_tokens=5)
    assert answered(out)[1]["controls"][0]["value"] == "rome"
    plain = answered(alignkit_cli("predict", run, *TEXTS, "--max-new-tokens", 5, "--no-controls")[1])
    assert not any("controls" in answer for answer in plain)
    assert plain[0] == answered(out)[0]


def test_fields_of_a_runs_own_are_set_by_its_name_and_the_tasks_beside_them(run: Path, alignkit_cli: Cli) -> None:
    options = ["--set", "refusal-policy.phrases=[he]", "--set", "max_new_tokens=3", "--control", "steering-vector"]
    code, out, err = alignkit_cli("predict", run, *TEXTS, *options, "--set", "steering-vector.layer=0")
    assert (code, err) == (0, "")
    answers = answered(out)
    assert [[record["control"] for record in answer["controls"]] for answer in answers] == [
        ["steering-vector"],
        ["steering-vector"],
        ["refusal-policy"],
    ]
    assert "layer 0 of 2" in answers[0]["controls"][0]["changed"]


def test_a_run_that_is_moved_is_controlled_as_before(language_model: Path, tmp_path: Path, alignkit_cli: Cli) -> None:
    work = tmp_path / "work" / "here"
    (work / "lists").mkdir(parents=True)
    shutil.copytree(language_model, work / "lm")
    (work / "rows.jsonl").write_text('{"prompt": "where is ada ?", "completion": "in paris"}\n' * 4, "utf-8")
    (work / "lists" / "phrases.txt").write_text("rome\n", "utf-8")
    (work / "lists" / "words.txt").write_text("e\n", "utf-8")
    recipe = alignkit.Recipe(
        model="lm",
        task="chat",
        data={"train": "rows.jsonl", "test": "rows.jsonl"},
        controls=[
            {"use": "refusal-policy", "phrases": "lists/phrases.txt"},
            {"use": "forbidden-phrases", "phrases": "lists/words.txt"},
            {"use": "steering", "expert": "lm", "alpha": 2.0},
        ],
        training={"max_steps": 1, "report_to": "none", "use_cpu": True, "disable_tqdm": True},
        evaluation={"replicates": 20},
        output="run",
        base=work,
    )
    run = alignkit.train(recipe).path
    assert recipe.controls[0].fields()["phrases"] == work / "lists" / "phrases.txt"
    ask = ["--max-new-tokens", 4]
    before = answered(alignkit_cli("predict", run, *TEXTS, *ask)[1])
    assert [record["rule"] for record in before[1]["controls"]] == ["phrases.txt"]
    (work / "lists" / "phrases.txt").write_text("ada\n", "utf-8")  # of a later recipe
    assert answered(alignkit_cli("predict", run, *TEXTS, *ask)[1]) == before
    others = ["--set", f"refusal-policy.phrases={work / 'lists' / 'phrases.txt'}"]
    assert answered(alignkit_cli("predict", run, *TEXTS, *ask, *others)[1])[0]["controls"][0]["value"] == "ada"
    moved = tmp_path / "elsewhere" / "deep" / "down" / "run"
    moved.parent.mkdir(parents=True)
    run.rename(moved)
    (work / "lists" / "words.txt").unlink()
    assert answered(alignkit_cli("predict", moved, *TEXTS, *ask)[1]) == before
    assert alignkit.load(moved).predict(TEXTS, max_new_tokens=4) == before
    assert answered(alignkit_cli("predict", moved, *TEXTS, *ask, *others)[1])[0]["controls"][0]["value"] == "ada"
    shutil.rmtree(work / "lm")
    code, _, err = alignkit_cli("predict", moved, *TEXTS, *ask)
    assert code == 2
    mend = "name another by --set steering.expert=PATH, or leave the run's controls out"
    assert (
        err == f"control steering expert: {work / 'lm'} does not exist; expected what the run was made with; {mend}\n"
    )
    assert alignkit_cli("predict", moved, "ada", "--max-new-tokens", 1, "--no-controls")[0] == 0


def test_paths_start_from_where_the_user_is(
    run: Path, tmp_path: Path, alignkit_cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here.txt").write_text("ada\n", "utf-8")
    for options in (
        ["--set", "refusal-policy.phrases=here.txt"],
        ["--no-controls", "--control", "refusal-policy", "--set", "refusal-policy.phrases=here.txt"],
    ):
        code, out, err = alignkit_cli("predict", run, *TEXTS, "--max-new-tokens", 3, *options)
        assert (code, err) == (0, "")
        assert [record["value"] for record in answered(out)[0]["controls"]] == ["ada"]
        assert "controls" not in answered(out)[1]


def test_what_is_no_field_of_the_task_is_said_with_all_else(run: Path, plain_run: Path, alignkit_cli: Cli) -> None:
    options = ["--set", "foo.bar=1", "--set", "refusal-policy.phrase=a", "--control", "steerin"]
    code, _, err = alignkit_cli("predict", run, "ada", *options)
    assert code == 2
    assert [line.partition(": ")[0] for line in err.splitlines()] == [
        "--set refusal-policy.phrase=a",
        "--control steerin",
        "--set foo.bar=1",
    ]
    code, _, err = alignkit_cli("predict", plain_run / "model", "ada", "--task", "ner", *options[:2], *options[4:])
    assert code == 2
    assert "--set foo.bar=1: unknown field 'foo'" in err
    assert "did you mean 'steering'" in err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--control", "refusal-policy"], "--control refusal-policy: the run has a control of that name, which is on"),
        (["--control", "steerin"], "did you mean 'steering'"),
        (["--control", "steering-vector", "--control", "steering-vector"], "--control steering-vector: named twice"),
        (["--set", "refusal-policy.phrase=[a]"], "--set refusal-policy.phrase=[a]: unknown field"),
        (
            ["--control", "steering-vector", "--set", "steering-vector.alpa=1"],
            "--set steering-vector.alpa=1: unknown field",
        ),
        (
            ["--no-controls", "--set", "refusal-policy.phrases=[a]"],
            "control refusal-policy is not on; expected a control that is; name it: --control refusal-policy",
        ),
        (["--control", "forbidden-phrases"], "phrases"),
        (
            ["--set", "refusal-policy.name=mine", "--set", "refusal-policy.use=vocabulary"],
            "--set refusal-policy.name=mine: a control keeps its name, by which a run finds the files that it keeps "
            "for it; expected a field of refusal-policy; take it out",
        ),
    ],
)
def test_mistakes_name_the_option(run: Path, options: list[str], said: str, alignkit_cli: Cli) -> None:
    code, out, err = alignkit_cli("predict", run, "ada", *options)
    assert (code, out) == (2, "")
    assert said in err
    assert "controls.0" not in err


def test_a_task_that_generates_nothing_is_no_place_for_them(plain_run: Path, alignkit_cli: Cli) -> None:
    code, out, err = alignkit_cli("predict", plain_run, "ada", "--control", "steering-vector")
    assert (code, out) == (2, "")
    assert "control steering-vector: task ner generates no text that could be controlled" in err


def test_evaluators_ask_under_controls_where_it_is_said(run: Path, tmp_path: Path, alignkit_cli: Cli) -> None:
    for name, text in (("harmful", "rome\nto rome"), ("harmless", "ada\nbob")):
        (tmp_path / f"{name}.txt").write_text(text, "utf-8")
    options = ["--evaluator", "refusals", "--set", f"refusals.harmful={tmp_path / 'harmful.txt'}",
               "--set", f"refusals.harmless={tmp_path / 'harmless.txt'}", "--json", "--replicates", 100]  # fmt: skip
    found = {}
    for on in (True, False):
        code, out, err = alignkit_cli("evaluate", run, *options, *(["--controls"] if on else []))
        assert (code, err) == (0, "")
        found[on] = json.loads(out)
    assert found[True]["controls"] == {"after": ["refusal-policy"]}
    assert "controls" not in found[False]
    refused = {on: metrics["after"]["refusals"]["harmful_refused"]["value"] for on, metrics in found.items()}
    assert refused == {True: 1.0, False: 0.0}
    text = ["--evaluator", "perplexity", "--set", f"text={tmp_path / 'harmless.txt'}", "--replicates", 100]
    code, out, err = alignkit_cli("evaluate", run, *text, "--controls", "--json")
    assert (code, json.loads(out)["controls"]) == (0, {"after": []})
    assert (
        "no evaluator asked for answers: controls were not used"
        in alignkit_cli("evaluate", run, *text, "--controls")[1]
    )
    code, _, err = alignkit_cli("evaluate", run, "--controls")
    assert code == 2
    assert "--controls: controls are on for answers that evaluators ask for, and none is named" in err
    code, _, err = alignkit_cli("evaluate", run.parent / "run" / "model", *options, "--controls")
    assert code == 2
    assert "has no controls" in err
