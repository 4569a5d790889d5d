"""Text classification: one label or several for a text or a pair of texts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Any, ClassVar

import numpy as np
import torch
from pydantic import Field, PositiveInt

from alignkit.components import Batch, Task
from alignkit.data.columns import unmapped
from alignkit.data.example import Example
from alignkit.errors import Mistake, UsageError, nearest
from alignkit.tasks.ner import ratio
from alignkit.tasks.padding import pad

SEVERAL = "multi_label_classification"
"""transformers' `problem_type` where a text may have several labels."""


class TextClassification(Task):
    """Labels a text, or a pair of texts.

    Reads rows `text`, `text_pair` where there are pairs, and `label`: a string or an integer (`1.0` is `1`, JSON's
    `true` is `True`); a list of strings, or a string with `separator`, where a text may have several labels or none.
    The labels of the training data, sorted, are the classes. `macro_f1` is the mean over the classes that occur among
    gold or predicted labels, as scikit-learn takes it; with several labels `accuracy` counts texts whose labels are
    all right and none is wrong.

    Example:
        >>> TextClassification(separator="|")
    """

    separator: str | None = None
    """Several labels in one string are separated by it; None: each string is one label."""
    threshold: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """With several labels: the probability from which a label is predicted."""
    maximum_length: PositiveInt = 256
    """Longest input in tokens, special ones included; what is longer is cut, of a pair the longer text first."""

    auto_class: ClassVar[str] = "AutoModelForSequenceClassification"
    peft_type: ClassVar[str] = "SEQ_CLS"
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

    def __post_init__(self) -> None:
        self.labels: list[str] = []
        """The classes in the order of the head's outputs."""
        self.several = self.separator is not None
        """A text may have several labels."""

    # -- data --------------------------------------------------------------------------------------------------

    def parse(self, fields: dict[str, Any], where: str) -> Example:
        names = ("text", "text_pair") if fields.get("text_pair") is not None else ("text",)
        mistakes = list(_wrong_texts(fields, names, where))
        if "label" not in fields:
            mistakes.append(Mistake(where, "no 'label'", mend=unmapped("label", fields)))
        label = self._label(fields.get("label"))
        if "label" in fields and label is None:
            expected = "a string, an integer or a list of strings"
            mistakes.append(Mistake(where, f"'label' is {fields['label']!r}", expected))
        if mistakes:
            raise UsageError(*mistakes)
        return Example({**fields, "label": label}, inputs=names)

    def _label(self, value: Any) -> str | list[str] | None:
        """The label as a string, several as a list, None where it is neither."""
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, bool | int):
            value = str(value)
        if isinstance(value, str) and self.separator is not None:
            return sorted({part.strip() for part in value.split(self.separator)} - {""})
        if isinstance(value, str):
            return value.strip() or None
        if isinstance(value, list) and all(isinstance(v, str | int) for v in value):
            return sorted({str(v) for v in value})
        return None

    def prepare(self, splits: Mapping[str, list[Example]]) -> None:
        """Take the classes from the training split; classes of a trained model that has them all stay as they are."""
        examples = [e for split in splits.values() for e in split]
        lists = [e for e in examples if isinstance(e["label"], list)]
        if lists and len(lists) < len(examples):
            single = next(e for e in examples if not isinstance(e["label"], list))
            raise UsageError(
                Mistake(single.where, f"one label, where {lists[0].where} has a list", "the same in all rows")
            )
        if examples:
            self.several = bool(lists)
        source = splits.get("train") or ([] if self.labels else examples)
        found = {label for e in source for label in _listed(e["label"])}
        if not found <= set(self.labels) or not self.labels:
            self.labels = _in_order(found)
        self._refuse_single_class(source)
        known = set(self.labels)
        unknown = [(e, label) for e in examples for label in _listed(e["label"]) if label not in known]
        if unknown:
            expected = "a label of the training data" if splits.get("train") else "a label that the model knows"
            raise UsageError(*(Mistake(e.where, f"label {la!r}", expected, nearest(la, known)) for e, la in unknown))

    def _refuse_single_class(self, source: list[Example]) -> None:
        if source and len(self.labels) < (1 if self.several else 2):
            what = f"every row has the label {self.labels[0]!r}" if self.labels else "no row has a label"
            raise UsageError(Mistake(source[0].source or "train", what, "two classes or more"))

    def head(self) -> dict[str, Any]:
        return {
            "num_labels": len(self.labels),
            "id2label": dict(enumerate(self.labels)),
            "label2id": {label: i for i, label in enumerate(self.labels)},
            "problem_type": SEVERAL if self.several else "single_label_classification",
        }

    def adopt(self, config: Any) -> None:
        """Take the classes of a trained model, unless they lack classes of the data.

        transformers' placeholders for classes without names (`LABEL_0`) are taken only where no data says better.
        """
        labels = [config.id2label[i] for i in sorted(config.id2label)]
        placeholders = labels == [f"LABEL_{i}" for i in range(len(labels))]
        if not (placeholders and self.labels) and set(self.labels) <= set(labels):
            self.labels = labels
            self.several = self.several or getattr(config, "problem_type", None) == SEVERAL

    # -- the model's side --------------------------------------------------------------------------------------

    def encode(self, example: Example, tokenizer: Any) -> dict[str, Any] | None:
        limit = min(self.maximum_length, tokenizer.model_max_length)
        encoding = tokenizer(example["text"], example.get("text_pair"), truncation=True, max_length=limit)
        features = {name: value for name, value in encoding.items() if name != "attention_mask"}
        if (label := example.get("label")) is not None:
            several = [float(known in label) for known in self.labels] if self.several else []
            features["labels"] = several or self.labels.index(label)
        return features

    def collate(self, features: list[dict[str, Any]], tokenizer: Any) -> Batch:
        batch = pad([{k: v for k, v in row.items() if k != "labels"} for row in features], tokenizer)
        if "labels" in features[0]:
            batch["labels"] = torch.tensor([row["labels"] for row in features])
        return batch

    def decode(self, outputs: Any, batch: Batch) -> list[dict[str, Any]]:
        """`labels` predicted (exactly one, unless there may be several), and `probabilities` [classes]."""
        logits = outputs.logits.float()
        rows = (logits.sigmoid() if self.several else logits.softmax(-1)).cpu().numpy()
        chosen = [np.flatnonzero(p >= self.threshold) if self.several else [p.argmax()] for p in rows]
        return [{"labels": [self.labels[i] for i in c], "probabilities": p} for p, c in zip(rows, chosen, strict=True)]

    # -- scores ------------------------------------------------------------------------------------------------

    def statistics(self, example: Example, prediction: dict[str, Any]) -> dict[str, float]:
        gold, predicted = set(_listed(example["label"])), set(prediction.get("labels", ()))
        found = {"examples": 1.0, "correct": float(gold == predicted)}
        for label in self.labels:
            found[f"tp/{label}"] = float(label in gold and label in predicted)
            found[f"predicted/{label}"] = float(label in predicted)
            found[f"gold/{label}"] = float(label in gold)
        return found

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
        names = ("text", "text_pair") if fields.get("text_pair") is not None else ("text",)
        if mistakes := list(_wrong_texts(fields, names, "input")):
            raise UsageError(*mistakes)
        return Example({name: fields[name] for name in names}, inputs=names)

    def answer(self, example: Example, prediction: dict[str, Any]) -> dict[str, Any]:
        """The text, its `label` (with several `labels`), and every class's probability."""
        texts = {name: example[name] for name in example.inputs}
        labels = prediction["labels"]
        probabilities = zip(self.labels, prediction["probabilities"], strict=True)
        said = {"labels": labels} if self.several else {"label": labels[0]}
        return {**texts, **said, "scores": {label: round(float(p), 4) for label, p in probabilities}}


def _wrong_texts(fields: Mapping[str, Any], names: Iterable[str], where: str) -> Iterator[Mistake]:
    for name in names:
        if name not in fields:
            yield Mistake(where, f"no {name!r}", mend=unmapped(name, fields))
        elif not isinstance(fields[name], str):
            yield Mistake(where, f"{name!r} is {fields[name]!r}", "a string")
        elif not fields[name].strip():
            yield Mistake(where, f"{name!r} is blank", "text")


def _listed(label: str | list[str]) -> list[str]:
    return label if isinstance(label, list) else [label]


def _in_order(labels: Iterable[str]) -> list[str]:
    """Sorted; by value where all are numbers, so that 10 comes after 9."""
    found = set(labels)
    return sorted(found, key=int) if all(label.isascii() and label.isdecimal() for label in found) else sorted(found)
