"""Relation extraction: the relation between two entities that are marked in a text."""

from __future__ import annotations

import bisect
import re
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import numpy as np

from alignkit.data.columns import unmapped
from alignkit.data.example import Example
from alignkit.errors import Mistake, UsageError
from alignkit.tasks.classification import listed, wrong_texts
from alignkit.tasks.ner import ratio
from alignkit.tasks.text_classification import TextClassification

MARKERS = ("<e1>", "</e1>", "<e2>", "</e2>")
PARTS = ("before", "head", "between", "tail", "after")
"""The fields of a text that was cut at its entities; where the tail comes first the two change places."""
TAIL_FIRST = ("before", "tail", "between", "head", "after")

_DIRECTION = re.compile(r"\((?:e1,e2|e2,e1)\)$")
_SIGNS = {"head": "@", "tail": "#"}
"""What encloses an entity in the model's input: punctuation that every vocabulary has (Zhou and Chen 2021)."""


class RelationExtraction(TextClassification):
    """Labels the relation between a head (e1) and a tail (e2) entity of a text.

    Reads rows `label` and `text`, in which `<e1> … </e1>` and `<e2> … </e2>` enclose the entities; or a text without
    marks, with `head` and `tail` as `[start, end]` in characters. A label `Cause-Effect(e2,e1)` is a relation and its
    direction, any other a relation without one. Several relations between two entities are a list, or one string with
    `separator`. The text is kept cut at its entities (`before`, `head`, `between`, `tail`, `after`), so that whatever
    rewrites words leaves the marks alone. The model sees `@ head @` and `# tail #` (Zhou and Chen 2021,
    arXiv:2102.01373, without entity types); of a longer text what lies near the entities.

    `macro_f1` is that of SemEval-2010 Task 8's official scorer, with directionality (Hendrickx et al. 2010): the mean
    over the relations in the gold labels, without `negative`. A relation in the wrong direction is wrong, and counts
    as predicted for both precision and recall.

    Example:
        >>> RelationExtraction(negative="no_relation")
    """

    negative: str = "Other"
    """The label that stands for no relation: a class like any other, but left out of the F1 scores."""

    samples: ClassVar[tuple[dict[str, Any], ...]] = (
        {"text": "<e1> bob </e1> lives in <e2> paris </e2>", "label": "Lives-In(e1,e2)"},
        {"text": "<e1> rome </e1> is where <e2> ada </e2> lives", "label": "Lives-In(e2,e1)"},
        {"text": "<e1> ada </e1> works in <e2> rome </e2> .", "label": "Works-In(e1,e2)"},
        {"text": "in <e1> paris </e1> <e2> bob </e2> works", "label": "Works-In(e2,e1)"},
        {"text": "<e1> bob </e1> saw a film in <e2> rome </e2>", "label": "Other"},
        {"text": "<e1> ada </e1> and <e2> bob </e2> saw the bad film", "label": "Other"},
    )

    # -- data --------------------------------------------------------------------------------------------------

    def parse(self, fields: dict[str, Any], where: str) -> Example:
        mistakes = list(_wrong_entities(fields, where))
        if "label" not in fields:
            mistakes.append(Mistake(where, "no 'label'", mend=unmapped("label", fields)))
        label = self._label(fields.get("label"))
        if "label" in fields and label is None:
            mistakes.append(Mistake(where, f"'label' is {fields['label']!r}", self.label_expected))
        if mistakes:
            raise UsageError(*mistakes)
        rest = {name: value for name, value in fields.items() if name != "text"}
        return _example({**rest, **_cut(fields), "label": label})

    def prepare(self, splits: Mapping[str, list[Example]]) -> None:
        super().prepare(splits)
        wrong_case = [la for la in self.labels if la != self.negative and la.casefold() == self.negative.casefold()]
        if wrong_case and self.negative not in self.labels:
            found = f"no label {self.negative!r}, but {wrong_case[0]!r}"
            raise UsageError(Mistake("task.negative", found, mend=f"say `negative: {wrong_case[0]}`"))

    @property
    def relations(self) -> list[str]:
        """The relations that are scored, without their directions, in the order of the labels."""
        return list(dict.fromkeys(_relation(label) for label in self.labels if label != self.negative))

    # -- the model's side --------------------------------------------------------------------------------------

    def encode(self, example: Example, tokenizer: Any) -> dict[str, Any] | None:
        limit = min(self.maximum_length, tokenizer.model_max_length)

        def too_long(characters: int) -> bool:
            return len(tokenizer(_marked(example, characters), verbose=False)["input_ids"]) > limit

        longest = max(len(example[name]) for name in ("before", "between", "after"))
        kept = longest if not too_long(longest) else bisect.bisect_left(range(longest), True, key=too_long) - 1
        text = {"text": _marked(example, max(kept, 0))}
        return super().encode(Example({**text, "label": example.get("label")}), tokenizer)

    # -- scores ------------------------------------------------------------------------------------------------

    def statistics(self, example: Example, prediction: dict[str, Any]) -> dict[str, float]:
        gold, predicted = set(listed(example["label"])), set(prediction.get("labels", ()))
        found = {"examples": 1.0, "correct": float(gold == predicted)}
        counted = {"tp": gold & predicted, "predicted": predicted, "gold": gold}
        for relation in self.relations:
            for what, labels in counted.items():
                found[f"{what}/{relation}"] = float(sum(_relation(label) == relation for label in labels))
        return found

    def kept_spans(self, example: Example) -> Mapping[str, list[tuple[int, int]]]:
        """Both entities."""
        return {name: [(0, len(example[name]))] for name in ("head", "tail")}

    def metrics(self, totals: Mapping[str, Any]) -> dict[str, Any]:
        """`accuracy` of labels, direction included; `macro_f1`, `micro_f1`, `f1/RELATION` as the official scorer's."""
        relations = [name.partition("/")[2] for name in totals if name.startswith("gold/")]
        tp, predicted, gold = (
            np.stack([np.asarray(totals[f"{what}/{relation}"], float) for relation in relations])
            for what in ("tp", "predicted", "gold")
        )
        occurs = gold > 0  # the scorer goes through the relations of the key alone
        f1 = ratio(2 * tp, predicted + gold)
        return {
            "accuracy": ratio(totals["correct"], totals["examples"]),
            "macro_f1": ratio((f1 * occurs).sum(0), occurs.sum(0)),
            "micro_f1": ratio(2 * tp.sum(0), ((predicted + gold) * occurs).sum(0)),
            **{f"f1/{relation}": score for relation, score in zip(relations, f1, strict=True)},
        }

    # -- answers -----------------------------------------------------------------------------------------------

    def inputs(self, given: str | Mapping[str, Any]) -> Example:
        """A text with marked entities, or a row as the files hold them."""
        fields = {"text": given} if isinstance(given, str) else dict(given)
        if mistakes := list(_wrong_entities(fields, "input")):
            raise UsageError(*mistakes)
        return _example(_cut(fields))

    def answer(self, example: Example, prediction: dict[str, Any]) -> dict[str, Any]:
        """The text, its `head` and `tail`, the `label` (with several `labels`), and every class's probability."""
        said = super().answer(example, prediction)
        texts = {"text": "".join(example[n] for n in example.inputs), "head": example["head"], "tail": example["tail"]}
        return texts | {name: value for name, value in said.items() if name not in PARTS}


def _relation(label: str) -> str:
    return _DIRECTION.sub("", label)


# -- texts that are cut at their entities ------------------------------------------------------------------------


def _example(fields: Mapping[str, Any]) -> Example:
    return Example(fields, inputs=TAIL_FIRST if fields["tail_first"] else PARTS)


def _wrong_entities(fields: Mapping[str, Any], where: str) -> Iterator[Mistake]:
    """What is wrong with a row's text and entities."""
    if "before" in fields:  # cut already
        yield from (Mistake(where, f"no {n!r}", "a string") for n in PARTS if not isinstance(fields.get(n), str))
        return
    if wrong := list(wrong_texts(fields, ("text",), where)):
        yield from wrong
    elif "head" in fields or "tail" in fields:
        yield from _wrong_spans(fields, where)
    else:
        yield from _wrong_markers(fields["text"], where)


def _wrong_markers(text: str, where: str) -> Iterator[Mistake]:
    expected = "<e1> … </e1> and <e2> … </e2>, each once"
    missing = [marker for marker in MARKERS if marker not in text]
    repeated = [marker for marker in MARKERS if text.count(marker) > 1]
    if len(missing) == len(MARKERS):
        yield Mistake(where, "no entity is marked", expected, "or give `head` and `tail` as [start, end] in characters")
        return
    if missing:
        yield Mistake(where, f"no {', '.join(missing)}", expected)
    if repeated:
        yield Mistake(where, f"{', '.join(repeated)} more than once", expected)
    if missing or repeated:
        return
    order = sorted(MARKERS, key=text.index)
    if order not in ([*MARKERS], [*MARKERS[2:], *MARKERS[:2]]):
        yield Mistake(where, f"marks in the order {' '.join(order)}", "one entity after the other, each opened first")
        return
    for number in "12":
        if not text.partition(f"<e{number}>")[2].partition(f"</e{number}>")[0].strip():
            yield Mistake(where, f"nothing between <e{number}> and </e{number}>", "an entity")


def _wrong_spans(fields: Mapping[str, Any], where: str) -> Iterator[Mistake]:
    text: str = fields["text"]
    right: list[Any] = []
    for name in ("head", "tail"):
        span: Any = fields.get(name)
        if name not in fields:
            yield Mistake(where, f"no {name!r}", "[start, end] in characters")
        elif not isinstance(span, list | tuple) or [type(value) for value in span] != [int, int]:
            yield Mistake(where, f"{name!r} is {span!r}", "[start, end] in characters")
        elif not 0 <= span[0] < span[1] <= len(text):
            yield Mistake(where, f"{name!r} is {span!r}", f"0 <= start < end <= {len(text)}, the length of the text")
        elif not text[span[0] : span[1]].strip():
            yield Mistake(where, f"{name!r} is {span!r}, where the text is blank", "an entity")
        else:
            right.append(span)
    if len(right) == 2 and min(right[0][1], right[1][1]) > max(right[0][0], right[1][0]):
        yield Mistake(where, f"'head' {right[0]!r} and 'tail' {right[1]!r} overlap", "two entities")


def _cut(fields: Mapping[str, Any]) -> dict[str, Any]:
    """A valid row's text in five parts."""
    if "before" in fields:
        return {**{name: fields[name] for name in PARTS}, "tail_first": bool(fields.get("tail_first"))}
    text = fields["text"]
    if "head" in fields:
        (start, end), (other, last) = sorted((list(fields["head"]), list(fields["tail"])))
        parts = [text[:start], text[start:end], text[end:other], text[other:last], text[last:]]
        tail_first = fields["tail"][0] < fields["head"][0]
    else:
        parts = re.split("</?e[12]>", text)
        tail_first = text.index("<e2>") < text.index("<e1>")
        parts = [parts[0], parts[1].strip(), parts[2], parts[3].strip(), parts[4]]
    return {**dict(zip(TAIL_FIRST if tail_first else PARTS, parts, strict=True)), "tail_first": tail_first}


def _marked(example: Example, characters: int) -> str:
    """The text with its entities marked; of what lies beside an entity at most so many characters."""
    before, first, between, second, after = example.inputs
    middle = example[between]
    if len(middle) > 2 * characters:
        middle = f"{middle[:characters]} … {middle[len(middle) - characters :]}"
    start = max(len(example[before]) - characters, 0)
    one, other = (f"{_SIGNS[name]} {example[name]} {_SIGNS[name]}" for name in (first, second))
    parts = (example[before][start:], one, middle, other, example[after][:characters])
    return " ".join(filter(None, (part.strip() for part in parts)))
