"""Text classification: one label or several for a text or a pair of texts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

import numpy as np
import torch
from pydantic import Field, PositiveInt

from alignkit.components import Batch
from alignkit.data.example import Example
from alignkit.errors import Mistake, UsageError, nearest
from alignkit.tasks.classification import Classification, in_order, label_name, listed
from alignkit.tasks.padding import pad

SEVERAL = "multi_label_classification"
"""transformers' `problem_type` where a text may have several labels."""


class TextClassification(Classification):
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
    label_expected: ClassVar[str] = "a string, an integer or a list of strings"

    def __post_init__(self) -> None:
        self.labels: list[str] = []
        """The classes in the order of the head's outputs."""
        self.several = self.separator is not None
        """A text may have several labels."""

    # -- data --------------------------------------------------------------------------------------------------

    def _label(self, value: Any) -> str | list[str] | None:
        """The label as a string, several as a list, None where it is neither."""
        if isinstance(value, list) and all(isinstance(v, str | int) for v in value):
            return sorted({str(v) for v in value})
        name = value.strip() if isinstance(value, str) else label_name(value)
        if name is not None and self.separator is not None:
            return sorted({part.strip() for part in name.split(self.separator)} - {""})
        return name or None

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
        found = {label for e in source for label in listed(e["label"])}
        if not found <= set(self.labels) or not self.labels:
            self.labels = in_order(found)
        self._refuse_single_class(source)
        known = set(self.labels)
        unknown = [(e, label) for e in examples for label in listed(e["label"]) if label not in known]
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
