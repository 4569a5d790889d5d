"""Calibration error and Brier score against scikit-learn and by hand, and what counts as one decision."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from alignkit_constraints import Calibration
from alignkit_constraints.evaluators.calibration import binned, equal_mass_edges, expected_calibration_error
from sklearn.calibration import calibration_curve
from sklearn.metrics import brier_score_loss

from alignkit.components import Task
from alignkit.data import Example
from alignkit.tasks.chat import Chat
from alignkit.tasks.multiple_choice import MultipleChoice
from alignkit.tasks.ner import Ner
from alignkit.tasks.text_classification import TextClassification


def measured(task: Task, examples: list[Example], predicted: list[dict[str, Any]], bins: int = 15) -> dict[str, float]:
    calibration = Calibration(bins=bins)
    subject: Any = SimpleNamespace(task=task, predict=lambda asked: predicted[: len(asked)])
    found = calibration.measure(subject, examples)
    names = {name for one in found for name in one.statistics}
    totals = {name: sum(one.statistics.get(name, 0.0) for one in found) for name in names}
    return {name: float(value) for name, value in calibration.metrics(totals).items()}


def classified(labels: list[str], probabilities: Any, classes: tuple[str, ...] = ("a", "b", "c")) -> Any:
    task = TextClassification()
    task.labels = list(classes)
    rows = [Example({"text": "x", "label": label}, inputs=("text",)) for label in labels]
    said = [{"labels": [classes[int(p.argmax())]], "probabilities": p} for p in np.asarray(probabilities)]
    return task, rows, said


def test_the_error_is_scikit_learns_over_quantile_bins():
    """15 bins of 40 decisions each: all weigh the same, so that the mean of the distances is the error."""
    generator = np.random.default_rng(1)
    p = generator.dirichlet((1, 1, 1), 600)
    labels = [str("abc"[i]) for i in generator.integers(0, 3, 600)]
    found = measured(*classified(labels, p))
    right = np.array([label == "abc"[i] for label, i in zip(labels, p.argmax(1), strict=True)])
    shares, confidences = calibration_curve(right, p.max(1), n_bins=15, strategy="quantile")
    assert found["ece"] == pytest.approx(np.abs(shares - confidences).mean(), abs=1e-12)
    assert found["confidence"] == pytest.approx(p.max(1).mean())
    assert found["accuracy"] == pytest.approx(right.mean())


def test_the_brier_score_is_scikit_learns():
    generator = np.random.default_rng(2)
    p = generator.dirichlet((1, 1, 1), 50)
    labels = [str("abc"[i]) for i in generator.integers(0, 3, 50)]
    expected = brier_score_loss(labels, p, labels=["a", "b", "c"], scale_by_half=False)
    assert measured(*classified(labels, p))["brier"] == pytest.approx(expected)


def test_by_hand():
    """Two bins: .6 and .7, of which one is right; .8 and .9, both right: (|1.3 - 1| + |1.7 - 2|) / 4."""
    p = [[0.6, 0.4], [0.3, 0.7], [0.8, 0.2], [0.1, 0.9]]
    found = measured(*classified(["a", "a", "a", "b"], p, ("a", "b")), bins=2)
    assert found["ece"] == pytest.approx(0.15)
    assert found["brier"] == pytest.approx((2 * 0.16 + 2 * 0.49 + 2 * 0.04 + 2 * 0.01) / 4)


def test_bins_hold_equally_many_and_equal_confidences_stay_together():
    confidences = np.array([0.5, 0.9, 0.6, 0.8, 0.7, 1.0])
    edges = equal_mass_edges(confidences, 3)
    assert edges.tolist() == [0.7, 0.9]
    sums = binned(confidences, np.ones(6), edges)
    assert [sums[f"decisions {k}"] for k in range(3)] == [2, 2, 2]
    same = np.full(4, 0.75)
    sums = binned(same, np.array([1.0, 0, 1, 1]), equal_mass_edges(same, 3))
    assert sorted(sums[f"decisions {k}"] for k in range(3)) == [0, 0, 4]
    assert expected_calibration_error(sums, 3) == 0


def test_a_decision_of_a_text_with_several_labels_is_one_of_two_outcomes():
    task = TextClassification()
    task.labels, task.several = ["a", "b"], True
    rows = [Example({"text": "x", "label": ["a"]}, inputs=("text",))]
    found = measured(task, rows, [{"labels": ["a"], "probabilities": np.array([0.9, 0.3])}], bins=1)
    assert found["confidence"] == pytest.approx((0.9 + 0.7) / 2)
    assert found["accuracy"] == 1
    assert found["brier"] == pytest.approx((2 * 0.01 + 2 * 0.09) / 2)


def test_a_decision_of_a_sentence_is_a_word_that_the_model_saw():
    task = Ner()
    task.labels = ["O", "B-PER"]
    rows = [Example({"tokens": ["ada", "went", "off"], "tags": ["B-PER", "O", "O"]}, inputs=("tokens",))] * 2
    seen = {"tags": ["B-PER", "B-PER"], "probabilities": np.array([[0.2, 0.8], [0.4, 0.6]])}
    found = measured(task, rows, [seen, {}], bins=1)  # the first was cut, of the second nothing was left
    assert found["accuracy"] == 0.5
    assert found["ece"] == pytest.approx(abs(0.7 - 0.5))


def test_choices_may_differ_in_number():
    task, rows = MultipleChoice(), [Example({"label": 0}), Example({"label": 2})]
    found = measured(task, rows, [{"probabilities": np.array(p)} for p in ([0.7, 0.3], [0.2, 0.2, 0.6])], bins=1)
    assert found["accuracy"] == 1
    assert found["confidence"] == pytest.approx(0.65)


def test_tasks_without_probabilities_are_refused():
    task = Chat()
    task.name = "chat"
    [mistake] = Calibration().check_task(task)
    assert str(mistake) == (
        "evaluator calibration: task chat gives no probabilities of labels; expected a task that classifies"
    )
