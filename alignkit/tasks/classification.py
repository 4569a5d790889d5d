"""What tasks that label whole texts share: rows, metrics, answers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, ClassVar

import numpy as np

from alignkit.components import Task
from alignkit.data.columns import unmapped
from alignkit.data.example import Example
from alignkit.errors import Mistake, UsageError
from alignkit.tasks.ner import ratio


class Classification(Task, abstract=True):
    """Rows `text`, `text_pair` where there are pairs, and `label`; accuracy and F1."""

    suffixes: ClassVar[tuple[str, ...]] = (".csv", ".tsv", ".jsonl", ".json")
    metric: ClassVar[str] = "macro_f1"
    samples: ClassVar[tuple[dict[str, Any], ...]] = (
        {"text": "a good film", "label": "good"},
        {"text": "it was very bad", "label": "bad"},
        {"text": "the film was not good", "label": "bad"},
        {"text": "good", "label": "good"},
        {"text": "she went to rome and saw a film", "label": "none"},
        {"text": "bob lives in paris", "label": "none"},
    )
    label_expected: ClassVar[str] = "a string or an integer"

    def __post_init__(self) -> None:
        self.labels: list[str] = []
        """The classes."""
        self.several = False
        """A text may have several labels."""

    def parse(self, fields: dict[str, Any], where: str) -> Example:
        names = text_names(fields)
        mistakes = list(wrong_texts(fields, names, where))
        if "label" not in fields:
            mistakes.append(Mistake(where, "no 'label'", mend=unmapped("label", fields)))
        label = self._label(fields.get("label"))
        if "label" in fields and label is None:
            mistakes.append(Mistake(where, f"'label' is {fields['label']!r}", self.label_expected))
        if mistakes:
            raise UsageError(*mistakes)
        return Example({**fields, "label": label}, inputs=names)

    def _label(self, value: Any) -> str | list[str] | None:
        """The label as a string, None where it is none."""
        return label_name(value)

    # -- scores ------------------------------------------------------------------------------------------------

    def statistics(self, example: Example, prediction: dict[str, Any]) -> dict[str, float]:
        gold, predicted = set(listed(example["label"])), set(prediction.get("labels", ()))
        found = {"examples": 1.0, "correct": float(gold == predicted)}
        for label in self.labels:
            found[f"tp/{label}"] = float(label in gold and label in predicted)
            found[f"predicted/{label}"] = float(label in predicted)
            found[f"gold/{label}"] = float(label in gold)
        return found

    def score(self, example: Example, prediction: dict[str, Any]) -> float:
        """1 where all labels are right and none is wrong, else 0."""
        return self.statistics(example, prediction)["correct"]

    def metrics(self, totals: Mapping[str, Any]) -> dict[str, Any]:
        """`accuracy`, `macro_f1`, with several labels `micro_f1`, and `f1/LABEL`."""
        labels = [name.partition("/")[2] for name in totals if name.startswith("gold/")]
        tp, predicted, gold = (
            np.stack([np.asarray(totals[f"{what}/{label}"], float) for label in labels])
            for what in ("tp", "predicted", "gold")
        )
        f1 = ratio(2 * tp, predicted + gold)
        found = {
            "accuracy": ratio(totals["correct"], totals["examples"]),
            "macro_f1": ratio(f1.sum(0), (predicted + gold > 0).sum(0)),
        }
        if self.several:
            found["micro_f1"] = ratio(2 * tp.sum(0), (predicted + gold).sum(0))
        return found | {f"f1/{label}": score for label, score in zip(labels, f1, strict=True)}

    # -- answers -----------------------------------------------------------------------------------------------

    def inputs(self, given: str | Mapping[str, Any]) -> Example:
        """A text, or `text` and `text_pair`."""
        fields = {"text": given} if isinstance(given, str) else dict(given)
        names = text_names(fields)
        if mistakes := list(wrong_texts(fields, names, "input")):
            raise UsageError(*mistakes)
        return Example({name: fields[name] for name in names}, inputs=names)

    def answer(self, example: Example, prediction: dict[str, Any]) -> dict[str, Any]:
        """The text, its `label` (with several `labels`), and every class's probability."""
        texts = {name: example[name] for name in example.inputs}
        labels = prediction["labels"]
        probabilities = zip(self.labels, prediction["probabilities"], strict=True)
        said = {"labels": labels} if self.several else {"label": labels[0]}
        return {**texts, **said, "scores": {label: round(float(p), 4) for label, p in probabilities}}


def text_names(fields: Mapping[str, Any]) -> tuple[str, ...]:
    """The fields of a row that hold its texts."""
    return ("text", "text_pair") if fields.get("text_pair") is not None else ("text",)


def wrong_texts(fields: Mapping[str, Any], names: Iterable[str], where: str) -> Iterator[Mistake]:
    """What is wrong with a row's texts."""
    for name in names:
        if name not in fields:
            yield Mistake(where, f"no {name!r}", mend=unmapped(name, fields))
        elif not isinstance(fields[name], str):
            yield Mistake(where, f"{name!r} is {fields[name]!r}", "a string")
        elif not fields[name].strip():
            yield Mistake(where, f"{name!r} is blank", "text")


def label_name(value: Any) -> str | None:
    """A label as a string, `1.0` as `1`; None where it is neither a string nor an integer."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool | int):
        value = str(value)
    return (value.strip() or None) if isinstance(value, str) else None


def listed(label: str | list[str]) -> list[str]:
    """One label or several as a list."""
    return label if isinstance(label, list) else [label]


def in_order(labels: Iterable[str]) -> list[str]:
    """Sorted; by value where all are numbers, so that 10 comes after 9."""
    found = set(labels)
    return sorted(found, key=int) if all(label.isascii() and label.isdecimal() for label in found) else sorted(found)
