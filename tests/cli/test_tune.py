"""`alignkit tune`: what it prints, what its options mean, and how `check` and `train` take a `tune:` section."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

Ended = tuple[int, str, str]
Cli = Callable[..., Ended]

RECIPE = """\
model: {model}
task: ner
data: {{train: {data}/train.conll, validation: {data}/dev.conll}}
evaluation: {{replicates: 100}}
training: {{max_steps: 2, eval_strategy: "no", save_strategy: "no"}}
tune:
  search:
    training.learning_rate: [1.0e-3, 1.0e-4]
output: run
"""


@pytest.fixture
def recipe(tmp_path: Path, encoder: Path, ner_data: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "recipe.yaml"
    file.write_text(RECIPE.format(model=encoder, data=ner_data), "utf-8")
    return file


def test_it_prints_a_line_per_trial_the_best_values_and_where_things_are(recipe: Path, alignkit_cli: Cli) -> None:
    code, out, err = alignkit_cli(
        "tune", recipe.name, "--search", "training.warmup_steps={low: 0, high: 9}", "--trials", 2
    )
    assert (code, err) == (0, "")
    head, _, titles, first, second, *_ = out.splitlines()
    assert head == "Search: 2 fields, 2 trials, median pruning; highest validation f1 wins"
    assert titles.split() == ["trial", "f1", "learning_rate", "warmup_steps", "seconds"]
    assert first.split()[0] == "1"
    assert first.endswith("best so far")
    assert second.split()[0] == "2"
    assert "best value" in out
    assert out.endswith("run-tune/best.yaml  the best recipe\nrun-tune/best  its run\n")
    code, out, err = alignkit_cli(
        "tune", recipe.name, "--search", "training.warmup_steps={low: 0, high: 9}", "--resume", "--trials", 2, "--json"
    )
    assert (code, err) == (0, "")
    document = json.loads(out)
    assert set(document) == {"metric", "best", "metrics", "trials"}
    assert document["metrics"] == json.loads(Path("run-tune/best/metrics.json").read_text("utf-8"))
    assert [trial["number"] for trial in document["trials"]] == [1, 2]
    assert document["trials"][document["best"]["trial"] - 1]["score"] == document["best"]["score"]


def test_what_is_wrong_with_an_option_is_said_of_the_option(recipe: Path, alignkit_cli: Cli) -> None:
    before = sorted(recipe.parent.iterdir())
    code, out, err = alignkit_cli(
        "tune", recipe, "--search", "seed=3", "--search", "seed.x", "--set", "tune.pruner=medain"
    )
    assert (code, out) == (2, "")
    assert err.splitlines() == [
        "--search seed.x: no `=` in it; expected FIELD=VALUE",
        "--search seed=3: 3; expected a range {low: …, high: …} or a list of choices; write [3, …]",
        "--set tune.pruner=medain: 'medain'; expected 'median', 'hyperband' or 'none'",
    ]
    code, out, err = alignkit_cli("tune", recipe, "--metric", "f2", "--search", "training.learning_rat=[1, 2]")
    assert (code, out) == (2, "")
    assert err.splitlines() == [
        "--metric \"f2\": 'f2' is no metric of task ner that says which way is better; expected a metric; "
        "there is f1, f1/LOC, f1/PER, precision, recall",
        "--search training.learning_rat=[1, 2]: unknown field 'learning_rat'; did you mean 'learning_rate'?",
    ]
    assert sorted(recipe.parent.iterdir()) == before


def test_check_tries_the_space_and_train_ignores_it(recipe: Path, alignkit_cli: Cli) -> None:
    code, out, err = alignkit_cli("check", recipe)
    assert (code, err) == (0, "")
    assert out.endswith("Search\n  20 trials of training.learning_rate\n  best by validation f1\n")
    code, out, err = alignkit_cli("check", recipe, "--set", "tune.search.training.learning_rate=[1e-3, -1]")
    assert (code, out) == (2, "")
    assert err.endswith("=[1e-3, -1]: -1; expected 0 or more\n")
    code, out, err = alignkit_cli("train", recipe, "--json")
    assert (code, err) == (0, "")
    assert "tune:" in Path("run/recipe.yaml").read_text("utf-8")
    code, out, err = alignkit_cli("train", recipe, "--json", "--resume", "--set", "tune=null")
    assert (code, err) == (0, "")
