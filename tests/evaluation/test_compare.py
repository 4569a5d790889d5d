"""Splits under augmenters and across views, the shape of metrics.json, and the table in the terminal."""

from __future__ import annotations

import copy
import io
import json

import numpy as np
import pytest
import torch
from rich.console import Console

from alignkit.errors import AlignkitError
from alignkit.evaluation.compare import compare, evaluate, rewritten, table
from alignkit.evaluation.score import measure, predictions
from alignkit.evaluation.table import better_direction, lines


def mirrored(example):
    """A view of the texts with more than one word: the same backwards."""
    words = example["text"].split()
    return {"mirror": example.replace(text=" ".join(reversed(words)))} if len(words) > 1 else {}


@pytest.fixture
def other(model):
    changed = copy.deepcopy(model)
    with torch.no_grad():
        changed.classifier.weight.neg_()
    return changed


def test_splits_are_scored_clean_under_augmenters_and_across_views(task, model, examples, shout):
    splits = {"validation": examples[:6], "test": examples, "test/short": examples[3:12]}
    found = evaluate(task, model, None, splits, [shout], ["mirror", "absent"], mirrored)
    assert list(found.splits) == ["validation", "test", "test/short", "test under shout", "test/short under shout"]
    plain = measure(task, examples, predictions(task, model, None, examples))
    assert {m: found.metrics["test"][m] for m in plain} == plain
    gaps = found.splits["test"].gaps["mirror"]
    assert np.isfinite(gaps).tolist() == [len(e["text"].split()) > 1 for e in examples]
    assert found.metrics["test"]["gap/mirror"] == pytest.approx(np.nanmean(gaps))
    assert found.metrics["test"]["gap/mirror"] > 0
    assert np.isnan(found.metrics["test"]["gap/absent"])
    assert found.splits["test under shout"].gaps == {}


def test_validation_is_rewritten_where_there_is_no_test(task, model, examples, shout):
    assert list(evaluate(task, model, None, {"validation": examples}, [shout]).splits) == [
        "validation",
        "validation under shout",
    ]


def test_a_row_is_rewritten_alike_whoever_else_is_there(examples, shout):
    everybody = rewritten(examples, shout, seed=1)
    assert rewritten(examples[4:9], shout, seed=1) == everybody[4:9]
    assert rewritten(examples, shout, seed=2) != everybody
    short = [i for i, e in enumerate(examples) if len(e.words) < 3]
    assert short
    assert all(everybody[i] is examples[i] for i in short)
    assert len({e["text"].split()[-1] for e in everybody if e["text"].isupper()}) > 5, "each row has its own generator"


def test_comparison_has_the_shape_of_metrics_json(task, model, other, examples, shout):
    splits = {"test": examples}
    before = evaluate(task, model, None, splits, [shout], ["mirror", "absent"], mirrored)
    after = evaluate(task, other, None, splits, [shout], ["mirror", "absent"], mirrored)
    found = compare(before, after, task, replicates=200)
    json.dumps(found, allow_nan=False)
    assert list(found) == ["before", "after", "difference"]
    for side, measured in (("before", before), ("after", after)):
        for split, metrics in measured.metrics.items():
            for name, value in metrics.items():
                interval = found[side][split][name]
                assert set(interval) == {"value", "low", "high", "n"}
                assert interval["value"] == (pytest.approx(value) if np.isfinite(value) else None)
    change = found["difference"]["test"]["gap/mirror"]
    assert set(change) == {"value", "low", "high", "n", "p"}
    assert change["n"] == sum(len(e["text"].split()) > 1 for e in examples)
    assert found["after"]["test"]["gap/absent"] == {"value": None, "low": None, "high": None, "n": 0}
    accuracy = {side: found[side]["test"]["accuracy"]["value"] for side in found}
    assert accuracy["difference"] == pytest.approx(accuracy["after"] - accuracy["before"])


def test_without_before_there_is_only_after(task, model, examples):
    found = compare(None, evaluate(task, model, None, {"test": examples, "validation": []}), task, replicates=50)
    assert list(found) == ["after"]
    assert found["after"]["validation"] == {}


def test_statistics_that_only_one_model_has_are_zero_in_the_other(task, model, examples):
    before, after = (evaluate(task, model, None, {"test": examples}) for _ in range(2))
    after.splits["test"].names += ["extra"]
    after.splits["test"].matrix = np.hstack([after.splits["test"].matrix, np.ones((24, 1))])
    found = compare(before, after, task, replicates=50)
    assert found["before"]["test"]["accuracy"] == found["after"]["test"]["accuracy"]


def test_other_rows_cannot_be_compared(task, model, examples):
    before, after = (evaluate(task, model, None, {"test": rows}) for rows in (examples, examples[:9]))
    with pytest.raises(AlignkitError, match="test: 24 rows before and 9 after cannot be paired"):
        compare(before, after, task)


@pytest.mark.parametrize(
    ("metric", "direction"),
    [("loss", -1), ("gap/gender", -1), ("perplexity", -1), ("f1/PER", 1), ("recall", 1), ("length", 0), ("score", -1)],
)
def test_which_way_is_better(metric, direction):
    assert better_direction(metric, main="score", greater_is_better=False) == direction


def side(value, low, high, **more):
    return {"value": value, "low": low, "high": high, "n": 1287, **more}


METRICS = {
    "before": {
        "validation": {"accuracy": side(0.5, 0.4, 0.6)},
        "test": {
            "loss": side(1, 1, 1),
            "accuracy": side(0.482, 0.46, 0.501),
            "gap/counterfactual": side(0.02, 0.01, 0.03),
        },
        "test under typos": {"accuracy": side(0.31, 0.28, 0.34)},
    },
    "after": {
        "validation": {"accuracy": side(0.5, 0.4, 0.6)},
        "test": {
            "loss": side(1, 1, 1),
            "accuracy": side(0.47, 0.45, 0.49),
            "gap/counterfactual": side(0.01, 0.0, 0.02),
        },
        "test under typos": {"accuracy": side(0.38, 0.35, 0.41)},
    },
    "difference": {
        "validation": {"accuracy": side(0.0, -0.01, 0.01, p=1.0)},
        "test": {
            "accuracy": side(-0.012, -0.02, -0.004, p=0.01),
            "gap/counterfactual": side(-0.01, -0.015, -0.005, p=0.001),
        },
        "test under typos": {"accuracy": side(0.07, 0.05, 0.09, p=0.001)},
    },
}


def shown(renderable, width):
    console = Console(width=width, file=io.StringIO())
    console.print(renderable)
    return console.file.getvalue()


def test_verdicts_follow_each_metrics_own_direction():
    found = {(line.split, line.metric): line.verdict for line in lines(METRICS, "accuracy", True)}
    assert found == {
        ("test", "accuracy"): "worse",
        ("test", "gap/counterfactual"): "better",
        ("test under typos", "accuracy"): "better",
        ("validation", "accuracy"): "unclear",
    }
    assert len(lines(METRICS, "accuracy", True, headline=False)) == 5


def test_the_tasks_metrics_have_one_name_with_and_without_an_attack():
    one = {"value": 0.5, "low": 0.4, "high": 0.6, "n": 10}
    of_task = {"accuracy": one, "macro_f1": one}
    attacked = {**of_task, "accuracy_before_attack": one, "accuracy_under_attack": one, "words_left": one}
    found = lines({"after": {"test": of_task, "test against x": attacked}}, "macro_f1", True)
    assert [(line.split, line.label) for line in found] == [
        ("test", "macro_f1 ↑"),
        ("test against x", "macro_f1 ↑"),
        ("test against x", "accuracy under attack ↑"),
        ("test against x", "words left"),
    ]


@pytest.mark.parametrize("width", [80, 100])
def test_table_fits_and_says_better_or_worse(task, width):
    text = shown(table(METRICS, task), width)
    assert max(map(len, text.splitlines())) <= width
    assert text.index("test  ") < text.index("test under typos  ") < text.index("validation")
    assert text.count("1,287 rows") == 3
    row = next(line for line in text.splitlines() if "accuracy ↑" in line)
    assert row.split()[-6:] == ["↑", "0.482", "0.470", "-0.012", "✗", "worse"]
    assert "0.460–0.501" in text
    assert "-0.020 to -0.004" in text
    assert "…" not in text


def test_table_without_before_has_one_value(task):
    text = shown(table({"after": METRICS["after"]}, task), 80)
    assert "Value" in text
    assert "Change" not in text
    assert "better" not in text.split("Small print")[0]
