"""Search: it finds what is better, ends what is worse, goes on where it was killed, and refuses what cannot be."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import alignkit
from alignkit import Recipe, UsageError
from alignkit.data.load import load as load_data
from alignkit.recipe.tuning import Tune, label
from alignkit.tuning.lines import short_names
from alignkit.tuning.search import best_of
from alignkit.tuning.space import Space, checked
from alignkit.tuning.study import mended
from alignkit.tuning.trial import Trial

RATE = "training.learning_rate"
SEARCH = {RATE: {"low": 1e-6, "high": 1e-2, "log": True}, "averaging": [None, "ema"]}


def fields(encoder: Path, ner_data: Path, output: Path, **changed: Any) -> dict[str, Any]:
    """A short recipe; `tune` among what is changed."""
    data = {name: str(ner_data / file) for name, file in (("train", "train.conll"), ("validation", "dev.conll"))}
    given = {
        "model": str(encoder),
        "task": "ner",
        "data": {**data, "test": str(ner_data / "test.conll")},
        "training": {"num_train_epochs": 2, "learning_rate": 5e-3, "per_device_train_batch_size": 8},
        "evaluation": {"replicates": 100},
        "output": str(output),
    }
    return {**given, **changed}


@pytest.fixture(scope="module")
def recipe(encoder: Path, ner_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    """Three trials over a learning rate and an averager."""
    output = tmp_path_factory.mktemp("tuning") / "run"
    return Recipe(**fields(encoder, ner_data, output, tune={"search": SEARCH, "trials": 3}))


@pytest.fixture(scope="module")
def tuned(recipe: Recipe) -> alignkit.Tuned:
    """Its search, done without an interruption."""
    return alignkit.tune(recipe)


# -- what a search does --------------------------------------------------------------------------------------------


def test_the_better_of_two_rates_wins_and_the_other_is_ended_early(
    encoder: Path, ner_data: Path, tmp_path: Path
) -> None:
    tune = {"search": {RATE: [1e-7, 5e-3]}, "startup": 1, "seed": 2, "trials": 9}
    said: list[str] = []
    found = alignkit.tune(Recipe(**fields(encoder, ner_data, tmp_path / "run", tune=tune)), say=said.append)
    assert found.path == tmp_path / "run-tune"
    assert said[0].startswith("Search: 1 field, all 2 combinations, median pruning; highest validation f1 wins")
    good, bad = found.trials  # in the order that seed 2 shuffles them into
    assert (good.values, good.state, len(good.evaluations)) == ({RATE: 5e-3}, "complete", 2)
    assert (bad.values, bad.state, bad.score, len(bad.evaluations)) == ({RATE: 1e-7}, "pruned", None, 1)
    assert bad.reason == "pruned after evaluation 1"
    assert bad.evaluations[0] < good.evaluations[0]
    assert found.best == good
    assert not (found.path / "trials" / "002" / "metrics.json").exists()
    assert "best so far" in said[1]
    assert said[2].endswith("pruned after evaluation 1")


def test_the_best_recipe_is_carried_out_in_full_and_answers(tuned: alignkit.Tuned, recipe: Recipe) -> None:
    assert (tuned.path / "best.yaml").is_file()
    best = Recipe.load(tuned.path / "best.yaml")
    assert best == tuned.best_recipe
    assert best.tune is None
    assert best.training["learning_rate"] == tuned.best.values[RATE]
    assert best.output == recipe.output
    assert "tune" not in best.resolved()
    assert tuned.metrics["after"]["validation"]["f1"]["value"] == tuned.best_value
    assert set(tuned.metrics["after"]) == {"validation", "test"}
    answer = alignkit.load(tuned.path / "best").predict(["ada lives in paris ."])[0]
    assert len(answer["tags"]) == 5


def test_trials_never_see_the_test_split_and_keep_no_model(tuned: alignkit.Tuned) -> None:
    folders = sorted((tuned.path / "trials").iterdir())
    assert [folder.name for folder in folders] == ["001", "002", "003"]
    for folder, trial in zip(folders, tuned.trials, strict=True):
        metrics = json.loads((folder / "metrics.json").read_text("utf-8"))
        assert set(metrics["after"]) == {"validation"}
        assert metrics["after"]["validation"]["f1"]["value"] == trial.score
        assert Recipe.load(folder / "recipe.yaml").data.test == {}
        assert not {"model", "checkpoints", "README.md"} & {path.name for path in folder.iterdir()}


def test_the_table_and_the_plot_are_whole(tuned: alignkit.Tuned) -> None:
    with (tuned.path / "trials.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["trial", "state", "f1", "averaging", RATE, "evaluations", "seconds", "reason"]
    assert [float(row["f1"]) for row in rows] == [trial.score for trial in tuned.trials]
    assert [row["averaging"] for row in rows] == [label(trial.values["averaging"]) for trial in tuned.trials]
    assert (tuned.path / "tune.png").read_bytes().startswith(b"\x89PNG")


def test_a_killed_search_goes_on_and_ends_with_the_same_trials(
    recipe: Recipe, tuned: alignkit.Tuned, tmp_path: Path
) -> None:
    file = tmp_path / "recipe.yaml"
    recipe.save(file)
    killed = tmp_path / "killed"
    call = [sys.executable, "-c", "from alignkit.cli import main; main()"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    with (tmp_path / "log").open("wb") as log:
        arguments = ["tune", str(file), "--output", str(killed)]
        process = subprocess.Popen([*call, *arguments], env=environment, stdout=log, stderr=log)
        deadline = time.monotonic() + 100
        while not (killed / "trials" / "002" / "recipe.yaml").exists() and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL, (tmp_path / "log").read_text("utf-8")
    with (killed / "study.journal").open("ab") as journal:
        journal.write(b'{"op_code": 5, "wor')  # as if it had been writing
    (killed / "study.journal.lock").symlink_to(killed / "study.journal")
    said: list[str] = []
    resumed = alignkit.tune(Recipe.load(file), output=killed, resume=True, say=said.append)
    assert [told(trial) for trial in resumed.trials] == [told(trial) for trial in tuned.trials]
    assert resumed.metrics["after"] == tuned.metrics["after"]


def told(trial: Trial) -> tuple[Any, ...]:
    """What two searches must agree on: everything but the clock."""
    return trial.number, trial.values, trial.state, trial.score, trial.evaluations, trial.reason


def test_more_trials_can_be_asked_for_and_nothing_else(
    recipe: Recipe, tuned: alignkit.Tuned, encoder: Path, ner_data: Path
) -> None:
    def again(**changed: Any) -> Recipe:
        return Recipe(**fields(encoder, ner_data, Path(str(recipe.output)), **changed))

    longer = alignkit.tune(again(tune={"search": SEARCH, "trials": 4}), resume=True)
    assert longer.trials[:3] == tuned.trials
    assert len(longer.trials) == 4
    for other, said in (
        (again(tune={"search": {RATE: [1e-3, 1e-4]}, "trials": 4}), "another tune.search;"),
        (again(tune={"search": SEARCH, "metric": "recall"}, seed=7), "another seed, tune.metric;"),
    ):
        with pytest.raises(UsageError, match=said):
            alignkit.tune(other, resume=True)
    with pytest.raises(UsageError, match="there is a search in it already"):
        alignkit.tune(recipe)


def test_a_trial_that_fails_says_why_and_the_search_goes_on(encoder: Path, ner_data: Path, tmp_path: Path) -> None:
    tune = {"search": {"filters": [[{"use": "length", "minimum": 99}], []]}, "seed": 2}
    training = {"max_steps": 1, "eval_strategy": "no"}
    given = fields(encoder, ner_data, tmp_path / "run", tune=tune, training=training)
    found = alignkit.tune(Recipe(**given))
    failed, done = sorted(found.trials, key=lambda trial: trial.state != "failed")
    assert (failed.state, failed.score) == ("failed", None)
    assert failed.reason.startswith("filters: none of 64 training examples is left; expected at least one")
    assert found.best == done
    tune["search"] = {"filters": [[{"use": "length", "minimum": n}] for n in (98, 99)]}
    with pytest.raises(UsageError, match=r"none of 2 trials was completed; expected at least one\nfilters: none of 64"):
        alignkit.tune(Recipe(**{**given, "output": str(tmp_path / "other")}))


# -- the space -----------------------------------------------------------------------------------------------------


def space(**search: Any) -> Space:
    return Space(Tune(search={name.replace("__", "."): domain for name, domain in search.items()}))


def test_fields_of_what_is_null_have_no_value() -> None:
    searched = space(adversary__epsilon=[0.1, 0.2], adversary=[None, "fgm"])
    assert list(searched.domains) == ["adversary", "adversary.epsilon"]
    found = searched.combinations(limit=3, seed=0)
    assert found is not None
    assert sorted(map(str, found)) == [
        "{'adversary': 'fgm', 'adversary.epsilon': 0.1}",
        "{'adversary': 'fgm', 'adversary.epsilon': 0.2}",
        "{'adversary': None}",
    ]
    assert searched.combinations(limit=2, seed=0) is None
    assert [values for path, values in searched.edges() if path == "adversary.epsilon"] == [
        {"adversary": "fgm", "adversary.epsilon": 0.1},
        {"adversary": "fgm", "adversary.epsilon": 0.2},
    ]


def test_integers_stay_integers_and_steps_are_kept() -> None:
    found = space(a={"low": 1, "high": 4}, b={"low": 0.0, "high": 0.3, "step": 0.1}).combinations(limit=16, seed=0)
    assert found is not None
    assert {values["a"] for values in found} == {1, 2, 3, 4}
    assert all(type(values["a"]) is int for values in found)
    assert sorted({round(values["b"], 9) for values in found}) == [0.0, 0.1, 0.2, 0.3]
    assert space(a={"low": 0, "high": 1.0}).combinations(limit=1000, seed=0) is None


def test_a_choice_is_told_from_others_by_its_label() -> None:
    choices = [1, 1.0, True, "1", None, "null", {"use": "fgm"}, "ema"]
    assert [label(choice) for choice in choices] == [
        "1",
        "1.0",
        "true",
        '"1"',
        "null",
        '"null"',
        '{"use": "fgm"}',
        "ema",
    ]
    searched = space(a=choices)
    for choice in choices:
        assert searched.values(searched.suggested({"a": choice})) == {"a": choice}


def test_short_names_tell_fields_apart() -> None:
    paths = ["training.learning_rate", "constraints.0.weight", "constraints.1.weight", "filters.0.maximum", "averaging"]
    assert list(short_names(paths).values()) == [
        "learning_rate",
        "constraints.0.weight",
        "constraints.1.weight",
        "maximum",
        "averaging",
    ]


def test_the_first_of_equals_is_best_and_lower_can_be_better() -> None:
    def trial(number: int, score: float | None) -> Trial:
        return Trial(number, {}, "complete" if score is not None else "failed", score, [], 1.0)

    trials = [trial(1, 0.5), trial(2, None), trial(3, 0.7), trial(4, 0.7), trial(5, 0.5)]
    assert best_of(trials, greater_is_better=True) == trials[2]
    assert best_of(trials, greater_is_better=False) == trials[0]
    assert best_of(trials[1:2], greater_is_better=True) is None


def test_a_journal_is_mended_once(tmp_path: Path) -> None:
    journal = tmp_path / "study.journal"
    mended(journal)
    journal.write_bytes(b'{"a":1}\n{"b":')
    mended(journal)
    mended(journal)
    assert journal.read_bytes() == b'{"a":1}\n'


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "a field that is not there": (
        {"search": {"training.learning_rat": [1, 2]}},
        "tune.search.training.learning_rat: unknown field 'learning_rat'; did you mean 'learning_rate'?",
    ),
    "an end that the field does not take": (
        {"search": {"training.learning_rate": {"low": -1.0, "high": 1.0}}},
        "tune.search.training.learning_rate: -1.0; expected 0 or more",
    ),
    "a component that is not there": (
        {"search": {"adversary": [None, "fgmm"], "adversary.epsilon": {"low": 0.1, "high": 1.0}}},
        "tune.search.adversary: no adversary is called 'fgmm'; did you mean 'fgm'?",
    ),
    "a field of a component": (
        {"search": {"adversary": [None, "fgm"], "adversary.epsilon": {"low": 0.0, "high": 1.0}}},
        "tune.search.adversary.epsilon: with adversary 'fgm': 0.0; expected a number greater than 0",
    ),
    "components that cannot go together with the model": (
        {"search": {"constraints": [[], ["kl-reference"]]}},
        "tune.search.constraints: ['kl-reference'] gives constraint kl-reference: the reference model's head for this "
        "task was never trained, so it has nothing to say; expected a model whose head is trained; train it plainly "
        "first and name that run as `model:`, or name a trained model as `reference:`",
    ),
    "a metric that is not measured": (
        {"search": {"seed": [1, 2]}, "metric": "f11"},
        "tune.metric: 'f11' is no metric of task ner that says which way is better; expected a metric; "
        "did you mean 'f1'?",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_space_is_refused_before_anything_is_tried(
    case: str, encoder: Path, ner_data: Path, tmp_path: Path
) -> None:
    tune, message = BAD[case]
    recipe = Recipe(**fields(encoder, ner_data, tmp_path / "run", tune=tune))
    with pytest.raises(UsageError) as caught:
        checked(recipe, load_data(recipe.data, recipe.task, recipe.base))
    assert str(caught.value) == message
    assert not list(tmp_path.iterdir())


def test_a_recipe_may_be_made_right_by_its_search(
    encoder: Path, ner_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Tried(Exception):
        pass

    def study(*given: Any) -> None:
        raise Tried

    monkeypatch.setattr("alignkit.tuning.search.Study", study)
    other = tmp_path / "other"
    shutil.copytree(encoder, other)

    def tune(search: dict[str, Any], **changed: Any) -> None:
        given = fields(encoder, ner_data, tmp_path / "run", tune={"search": search}, **changed)
        alignkit.tune(Recipe(**given))

    model = {"model": [str(encoder), str(other)], "seed": [1, 2]}
    for search, changed in (
        (model, {"model": "../placeholder"}),
        ({"freeze": [["embeddings"], []]}, {"freeze": ["embedings"]}),
        ({"adversary": [None, "fgm"], "adversary.epsilon": [0.1, 0.2]}, {"model": str(encoder)}),
    ):
        with pytest.raises(Tried):
            tune(search, **changed)
        shutil.rmtree(tmp_path / "run-tune")
    for search, changed, says in (
        (model, {"model": "../placeholder", "reference": "nowhere/a"}, "reference 'nowhere/a'"),
        ({**model, "seed": ["x", 2]}, {"model": "../placeholder"}, "tune.search.seed: 'x'; expected an integer"),
        ({**model, "seed": [2, "x"]}, {"model": "../placeholder"}, "tune.search.seed: 'x'; expected an integer"),
        ({"model": [str(encoder), "../none"]}, {"model": "../placeholder"}, "tune.search.model: '../none' gives model"),
    ):
        with pytest.raises(UsageError) as caught:
            tune(search, **changed)
        assert "placeholder" not in str(caught.value)
        assert str(caught.value).startswith(says)
        assert len(caught.value.mistakes) == 1


WRITTEN: dict[str, tuple[Any, str]] = {
    "nothing to search": ({}, "tune.search: {}; expected a mapping: FIELD: a range {low: …, high: …} or a list"),
    "a single value": (
        {"seed": 3},
        "tune.search.seed: 3; expected a range {low: …, high: …} or a list of choices; write [3, …]",
    ),
    "one choice": ({"seed": [3]}, "tune.search.seed: [3]; expected two choices or more; a single value belongs into"),
    "a choice twice": ({"seed": [3, 4, 3]}, "tune.search.seed: 3 twice; expected different choices"),
    "a range without an end": ({"seed": {"low": 1}}, "tune.search.seed.high: missing; expected the greatest value"),
    "a misspelt end": (
        {"seed": {"low": 1, "high": 2, "lgo": True}},
        "tune.search.seed.lgo: unknown field 'lgo'; did you",
    ),
    "text as an end": ({"seed": {"low": "1", "high": 2}}, "tune.search.seed.low: '1'; expected an integer or a number"),
    "ends the wrong way round": (
        {"seed": {"low": 2, "high": 2}},
        "tune.search.seed: {'low': 2, 'high': 2}; expected low < high",
    ),
    "the logarithm of 0": ({"a": {"low": 0, "high": 2, "log": True}}, "expected low > 0 where log is true"),
    "a step on a log scale": (
        {"a": {"low": 1, "high": 2, "log": True, "step": 1}},
        "expected no step where log is true",
    ),
    "a step between integers": (
        {"a": {"low": 1, "high": 2, "step": 0.5}},
        "expected an integer as the step of integers",
    ),
    "a path in pieces": (
        {"training": {"learning_rate": {"low": 1, "high": 2}}},
        "expected a range {low: …, high: …} or a list of choices; write the whole path: `training.learning_rate`",
    ),
    "the output": ({"output": ["a", "b"]}, "tune.search.output: output cannot be searched; every trial has a folder"),
    "what is scored on": ({"data.test": ["a", "b"]}, "data.test cannot be searched; trials never see it"),
    "the task": ({"task": ["ner", "chat"]}, "task cannot be searched; scores of different tasks cannot be compared"),
}


@pytest.mark.parametrize("case", WRITTEN)
def test_a_badly_written_space_is_refused_by_every_command(case: str, tmp_path: Path) -> None:
    search, message = WRITTEN[case]
    with pytest.raises(UsageError) as caught:
        Recipe(model="m", task="ner", data={"train": "a", "validation": "b"}, tune={"search": search})
    assert message in str(caught.value)
    assert len(caught.value.mistakes) == 1


def test_what_is_missing_is_said(
    encoder: Path, ner_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = fields(encoder, ner_data, tmp_path / "run", tune={"search": {"seed": [1, 2]}})
    data = {"train": given["data"]["train"]}
    cases = {
        "tune: missing; expected the fields to search; write `tune: {search:": {**given, "tune": None},
        "output: missing; expected a folder for the search": {**given, "output": None},
        "tune: there is no validation split that trials could be compared on; name one as `data.validation`": {
            **given,
            "data": data,
        },
    }
    for message, changed in cases.items():
        with pytest.raises(UsageError) as caught:
            alignkit.tune(Recipe(**changed))
        assert message in str(caught.value)
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(
        UsageError, match=r"optuna is not installed; expected optuna 4 or later; pip install 'alignkit\["
    ):
        alignkit.tune(Recipe(**given))
    assert not list(tmp_path.iterdir())


# -- recipes that are varied -----------------------------------------------------------------------------------------


def test_a_varied_recipe_is_the_same_but_for_its_values_and_shares_nothing(encoder: Path, ner_data: Path) -> None:
    from alignkit_adversaries import FGM

    adversary = FGM(epsilon=0.5)
    recipe = Recipe(**fields(encoder, ner_data, Path("run"), adversary=adversary, tune={"search": SEARCH}))
    varied = recipe.varied({"adversary.epsilon": 0.25, "constraints.0": "counterfactual", "tune": None})
    assert varied.adversary is not adversary
    assert (recipe.adversary.epsilon, varied.adversary.epsilon) == (0.5, 0.25)  # type: ignore[union-attr]
    assert [constraint.name for constraint in varied.constraints] == ["counterfactual"]
    assert (recipe.constraints, varied.tune) == ([], None)
    assert recipe.varied({}) == recipe
    with pytest.raises(UsageError, match=r"^adversary\.epsilon: -1; expected a number greater than 0\n.*seed: 'x'"):
        recipe.varied({"adversary.epsilon": -1, "seed": "x"})


def test_the_schema_and_the_resolved_recipe_know_the_section(recipe: Recipe, tmp_path: Path) -> None:
    section = Recipe.json_schema()["properties"]["tune"]["anyOf"][0]
    assert set(section["properties"]) == set(Tune.model_fields)
    assert recipe.resolved()["tune"]["search"][RATE] == {"low": 1e-6, "high": 1e-2, "log": True, "step": None}
    recipe.save(tmp_path / "saved.yaml")
    assert Recipe.load(tmp_path / "saved.yaml") == recipe
