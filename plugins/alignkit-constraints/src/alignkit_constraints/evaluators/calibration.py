"""Whether a classifier is as often right as it is sure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import PositiveInt

from alignkit.components import Evaluator, Measurement
from alignkit.data.audit import TEXT_LENGTH
from alignkit.errors import Mistake
from alignkit.tasks.classification import Classification
from alignkit.tasks.multiple_choice import MultipleChoice
from alignkit.tasks.ner import Ner

if TYPE_CHECKING:
    from alignkit.components import Task
    from alignkit.data.example import Example
    from alignkit.evaluation.evaluators import Subject

Floats = NDArray[np.float64]
Decisions = tuple[Floats, Floats]
"""Of one example: probabilities [n, C] of its n decisions, and the one-hot gold labels [n, C]."""


def equal_mass_edges(confidences: Floats, bins: int) -> Floats:
    """The inner edges of bins that hold equally many of the confidences: [bins - 1], in ascending order.

    Args:
        confidences: [N], from 0 to 1.
    """
    places = [len(confidences) * k // bins for k in range(1, bins)]
    return np.sort(confidences)[places] if len(confidences) else np.zeros(bins - 1)


def binned(confidences: Floats, right: Floats, edges: Floats) -> dict[str, float]:
    """By bin how many decisions fall into it, their confidences' sum, and how many are right.

    A confidence that is an edge belongs to the bin above it.

    Args:
        confidences: [n] of the predicted labels.
        right: [n], 1 where the predicted label is the gold one.
        edges: [bins - 1].
    """
    bins = np.searchsorted(edges, confidences, side="right")
    sums = {"confidence": confidences, "right": right, "decisions": np.ones_like(right)}
    return {f"{name} {k}": float(value[bins == k].sum()) for name, value in sums.items() for k in range(len(edges) + 1)}


def expected_calibration_error(totals: Mapping[str, Any], bins: int) -> Any:
    """sum_b |confidence_b - right_b| / sum_b decisions_b, of sums by bin as `binned` gives them."""
    apart = sum(np.abs(np.asarray(totals[f"confidence {k}"]) - totals[f"right {k}"]) for k in range(bins))
    return apart / sum(np.asarray(totals[f"decisions {k}"], float) for k in range(bins))


class Calibration(Evaluator):
    """Compares how sure a classifier is with how often it is right, on the test splits.

    Looks at the tasks' own predictions: of `text-classification`, `prompted-classification`, `relation-extraction` and
    `multiple-choice` one decision per row, of `ner` one per word, and of a text that may have several labels one per
    label, with two outcomes each.

    Metrics:

    - `ece`, the expected calibration error (Naeini et al. 2015): sum_b n_b/N |accuracy_b - confidence_b|, where the
      confidence is the probability of the predicted label. The bins hold equally many decisions (Nguyen & O'Connor
      2015, arXiv:1508.05154; Nixon et al. 2019, arXiv:1904.01685), `bins` of them, cut where this model's confidences
      on this split are; with equal widths nearly all decisions of a modern classifier share one bin. Equal confidences
      stay together.
    - `brier` (Brier 1950): the mean over decisions of sum_c (p_c - gold_c)^2, from 0 to 2; a proper score.
    - `confidence`, the mean probability of the predicted label, and `accuracy`, over decisions: sure more often than
      right is overconfident.

    `ece` is no mean over rows: the bins depend on all of them. Its interval resamples rows with the bins as they are.
    As a sum of absolute values it is biased upwards, and more so in resamples: on few rows (some 15 per bin) the
    interval may lie above the value itself. `brier` has no such bias; look at both.

    Cost: none beyond the predictions.

    Example:
        >>> Calibration(bins=10).directions["ece"]
        -1
    """

    bins: PositiveInt = 15
    """Bins of the expected calibration error, with equally many decisions each."""

    couples_rows: ClassVar[bool] = True
    directions: ClassVar[Mapping[str, int]] = {"ece": -1, "brier": -1, "confidence": 0, "accuracy": 1}

    def check_task(self, task: Task) -> Iterable[Mistake]:
        """A task whose predictions have a probability for each label."""
        if _decisions_of(task) is None:
            found = f"task {task.name} gives no probabilities of labels"
            yield Mistake(f"evaluator {self.name}", found, "a task that classifies")

    def measure(self, subject: Subject, examples: list[Example]) -> list[Measurement]:
        decide = _decisions_of(subject.task)
        assert decide is not None, "checked before"
        rows = [decide(example, p) for example, p in zip(examples, subject.predict(examples), strict=True)]
        confidences = [probabilities.max(-1, initial=0.0) for probabilities, _ in rows]
        edges = equal_mass_edges(np.concatenate([*confidences, np.zeros(0)]), self.bins)
        found = []
        for example, (probabilities, gold), confidence in zip(examples, rows, confidences, strict=True):
            predicted = probabilities.argmax(-1) if len(probabilities) else np.zeros(0, int)
            right = gold[np.arange(len(gold)), predicted]
            brier = float(((probabilities - gold) ** 2).sum())
            line: dict[str, Any] = {"text": example.text[:TEXT_LENGTH]} if len(right) else {}
            if len(right) == 1:
                line |= {"confidence": float(confidence[0]), "right": bool(right[0])}
            elif len(right):
                line |= {"confidence": float(confidence.mean()), "right": int(right.sum()), "decisions": len(right)}
            found.append(Measurement({**binned(confidence, right, edges), "brier": brier}, line))
        return found

    def metrics(self, totals: Mapping[str, Any]) -> dict[str, Any]:
        number, confidence, right = (
            sum(np.asarray(totals[f"{name} {k}"], float) for k in range(self.bins))
            for name in ("decisions", "confidence", "right")
        )
        return {
            "ece": expected_calibration_error(totals, self.bins),
            "brier": np.asarray(totals["brier"], float) / number,
            "confidence": confidence / number,
            "accuracy": right / number,
        }


# -- what is decided of an example ---------------------------------------------------------------------------------


def _decisions_of(task: Task) -> Callable[[Example, dict[str, Any]], Decisions] | None:
    """How to read decisions off an example and the task's prediction for it; None where there are none."""
    if isinstance(task, Ner):
        return lambda example, prediction: _one_per_word(example["tags"], prediction, task.labels)
    if isinstance(task, MultipleChoice):
        return lambda example, prediction: _one(example["label"], prediction)
    if isinstance(task, Classification):
        return lambda example, prediction: _labelled(task, example, prediction)
    return None


def _one(place: int, prediction: Mapping[str, Any]) -> Decisions:
    """One decision between labels, of which `place` is right."""
    if "probabilities" not in prediction:
        return _none()
    probabilities = np.asarray(prediction["probabilities"], float)
    return probabilities[None], np.eye(len(probabilities))[[place]]


def _labelled(task: Classification, example: Example, prediction: Mapping[str, Any]) -> Decisions:
    """One decision between the classes; where a text may have several, one for each between yes and no."""
    if "probabilities" not in prediction:
        return _none()
    if not task.several:
        return _one(task.labels.index(example["label"]), prediction)
    yes = np.asarray(prediction["probabilities"], float)
    gold = np.array([float(label in example["label"]) for label in task.labels])
    return np.stack([yes, 1 - yes], -1), np.stack([gold, 1 - gold], -1)


def _one_per_word(tags: list[str], prediction: Mapping[str, Any], labels: list[str]) -> Decisions:
    """A decision for each word that the model saw; of a text that was cut, its beginning."""
    if "probabilities" not in prediction:
        return _none()
    probabilities = np.asarray(prediction["probabilities"], float)
    return probabilities, np.eye(len(labels))[[labels.index(tag) for tag in tags[: len(probabilities)]]]


def _none() -> Decisions:
    return np.zeros((0, 1)), np.zeros((0, 1))
