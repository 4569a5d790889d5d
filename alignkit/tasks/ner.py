"""Named-entity recognition: one tag per word."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import PurePath
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import PositiveInt

from alignkit.components import Batch, Task
from alignkit.data.columns import unmapped
from alignkit.data.example import Example
from alignkit.data.read import TOKEN_COLUMNS
from alignkit.errors import Mistake, UsageError, nearest
from alignkit.tasks.annotations import is_annotated, tagged
from alignkit.tasks.padding import pad
from alignkit.tasks.stock import IGNORED
from alignkit.tasks.tags import PREFIXES, repaired, spans
from alignkit.tasks.words import joined, spaced, words


class Ner(Task):
    """Tags words with entity types; scored by exact spans, as seqeval does in strict mode.

    Reads files of one word per line (the word in the first column, its tag in the last), JSON lines
    `{"tokens": [...], "tags": [...]}`, hub data sets, and texts with character spans: `entities`, each with `start`,
    `end` (the character after the last) and `type`, or CLUENER's `label` (whose end is the last character). A word's
    label sits on its first sub-word. Words beyond the maximum length are predicted `O`, and counted as such.

    Example:
        >>> Ner(scheme="BIOES", repair=True)
    """

    scheme: Literal["BIO", "BIOES"] = "BIO"
    """How tags mark spans: `BIO` begins each with B-; `BIOES` also ends it with E- and marks a single word with S-."""
    repair: bool = False
    """Mend tags that the scheme does not allow where they stand (an I- that begins a span becomes B-), and of character
    spans that overlap keep the longest."""
    maximum_length: PositiveInt = 256
    """Longest input in tokens, special ones included; what is longer is cut."""

    auto_class: ClassVar[str] = "AutoModelForTokenClassification"
    peft_type: ClassVar[str] = "TOKEN_CLS"
    suffixes: ClassVar[tuple[str, ...]] = (*TOKEN_COLUMNS, ".jsonl", ".json")
    metric: ClassVar[str] = "f1"
    samples: ClassVar[tuple[dict[str, Any], ...]] = tuple(
        {"tokens": text.split(), "tags": tags.split()}
        for text, tags in (
            ("ada lives in rome", "B-PER O O B-LOC"),
            ("bob", "B-PER"),
            ("the film was very good .", "O O O O O O"),
            ("ada bob went to paris", "B-PER I-PER O O B-LOC"),
            ("in rome", "O B-LOC"),
            ("she saw bob in the film", "O O B-PER O O O"),
        )
    )

    def __post_init__(self) -> None:
        self.labels: list[str] = []
        """The tags in the order of the head's outputs."""

    @property
    def types(self) -> list[str]:
        """Entity types in the order of the labels."""
        return list(dict.fromkeys(label[2:] for label in self.labels if label != "O"))

    # -- data --------------------------------------------------------------------------------------------------

    def parse(self, fields: dict[str, Any], where: str) -> Example:
        if is_annotated(fields):
            return Example(tagged(fields, where, self.scheme, self.repair), inputs=("tokens",))
        mistakes = [*_misshapen(fields, "tokens", where), *_misshapen(fields, "tags", where)]
        if not mistakes:
            tokens, tags = fields["tokens"], fields["tags"]
            mistakes += [
                Mistake(_at(where, i), "a blank word", "text") for i, token in enumerate(tokens) if not token.strip(" ")
            ]
            if len(tokens) != len(tags):
                mistakes.append(Mistake(where, f"{len(tokens)} tokens and {len(tags)} tags", "one tag per token"))
            else:
                mistakes += self._invalid(tags, where)
        if mistakes:
            raise UsageError(*mistakes)
        if self.repair:
            fields = {**fields, "tags": repaired(fields["tags"], self.scheme)}
        return Example(fields, inputs=("tokens",))

    def _invalid(self, tags: list[str], where: str) -> Iterator[Mistake]:
        prefixes = PREFIXES[self.scheme]
        malformed = [i for i, tag in enumerate(tags) if tag != "O" and not re.fullmatch(rf"[{prefixes}]-.+", tag)]
        for i in malformed:
            bioes = self.scheme == "BIO" and re.fullmatch("[ES]-.+", tags[i])
            expected = ", ".join(["O", *(f"{p}-TYPE" for p in prefixes)])
            yield Mistake(_at(where, i), f"tag {tags[i]!r}", expected, "say `scheme: BIOES`" if bioes else "")
        if malformed or self.repair:
            return
        for i, (tag, mended) in enumerate(zip(tags, repaired(tags, self.scheme), strict=True)):
            if tag != mended:
                before = f"after {tags[i - 1]!r}" if i else "at the beginning"
                after = f"before {tags[i + 1]!r}" if i + 1 < len(tags) else "at the end"
                found = f"tag {tag!r} {before if tag[0] in 'IE' else after}"
                yield Mistake(_at(where, i), found, repr(mended), "`repair: true` mends all such tags")

    def prepare(self, splits: Mapping[str, list[Example]]) -> None:
        """Take the types from the training split; labels of a trained model that has these types stay as they are."""
        source = splits.get("train") or ([] if self.labels else [e for split in splits.values() for e in split])
        found = sorted({tag[2:] for example in source for tag in example["tags"] if tag != "O"})
        if not set(found) <= set(self.types) or not self.labels:
            self.labels = ["O", *(f"{prefix}-{kind}" for kind in found for prefix in PREFIXES[self.scheme])]
        if len(self.labels) == 1:
            mend = "the tag is the last column" if source and source[0].line else ""
            raise UsageError(
                Mistake(source[0].source if source else "train", "every word is tagged O", "entities", mend)
            )
        known = set(self.labels)
        unknown = [
            (e, i) for split in splits.values() for e in split for i, t in enumerate(e["tags"]) if t not in known
        ]
        if unknown:
            expected = "a type of the training data" if splits.get("train") else "a type that the model knows"
            raise UsageError(
                *(
                    Mistake(_at(e.where, i), f"tag {e['tags'][i]!r}", expected, nearest(e["tags"][i][2:], self.types))
                    for e, i in unknown
                )
            )

    def head(self) -> dict[str, Any]:
        return {
            "num_labels": len(self.labels),
            "id2label": dict(enumerate(self.labels)),
            "label2id": {label: i for i, label in enumerate(self.labels)},
        }

    def adopt(self, config: Any) -> None:
        """Take the labels of a trained model, unless they are no tags of the scheme or lack types of the data."""
        labels = [config.id2label[i] for i in sorted(config.id2label)]
        tags = all(re.fullmatch(rf"O|[{PREFIXES[self.scheme]}]-.+", label) for label in labels)
        if tags and "O" in labels and set(self.labels) <= set(labels):
            self.labels = labels

    # -- the model's side --------------------------------------------------------------------------------------

    def encode(self, example: Example, tokenizer: Any) -> dict[str, list[int] | int] | None:
        if not tokenizer.is_fast:
            raise UsageError(
                f"{type(tokenizer).__name__} cannot say which word a token belongs to: use a fast tokenizer"
            )
        words = spaced(example["tokens"], tokenizer)
        limit = min(self.maximum_length, tokenizer.model_max_length)
        encoding = tokenizer(words, is_split_into_words=True, truncation=True, max_length=limit)
        if lost := [i for i in set(range(len(words))) - set(encoding.word_ids()) if not tokenizer.tokenize(words[i])]:
            # every word needs a token of its own, or the predictions would shift by one word
            for i in lost:
                words[i] = tokenizer.unk_token or "."
            encoding = tokenizer(words, is_split_into_words=True, truncation=True, max_length=limit)
        ids = {label: i for i, label in enumerate(self.labels)}
        tags = example.get("tags") or ["O"] * len(words)
        features = {name: value for name, value in encoding.items() if name != "attention_mask"}
        word_ids = encoding.word_ids()
        features["labels"] = [
            IGNORED if word is None or word == before else ids[tags[word]]
            for word, before in zip(word_ids, [None, *word_ids[:-1]], strict=True)
        ]
        return features

    def collate(self, features: list[dict[str, Any]], tokenizer: Any) -> Batch:
        return pad(features, tokenizer)

    def decode(self, outputs: Any, batch: Batch) -> list[dict[str, Any]]:
        """`tags` of the words that were not cut, and `probabilities` [words, labels]."""
        probabilities = outputs.logits.float().softmax(-1).cpu().numpy()
        scored = (batch["labels"] != IGNORED).cpu().numpy()
        rows = [p[mask] for p, mask in zip(probabilities, scored, strict=True)]
        return [{"tags": [self.labels[i] for i in p.argmax(-1)], "probabilities": p} for p in rows]

    # -- scores ------------------------------------------------------------------------------------------------

    def statistics(self, example: Example, prediction: dict[str, Any]) -> dict[str, float]:
        gold = set(spans(example["tags"], self.scheme))
        predicted = set(spans(_whole(prediction, len(example["tags"])), self.scheme))
        found = {f"{what}/{kind}": 0.0 for kind in self.types for what in ("tp", "predicted", "gold")}
        for what, counted in (("tp", gold & predicted), ("predicted", predicted), ("gold", gold)):
            for kind, _, _ in counted:
                found[f"{what}/{kind}"] += 1.0
        return found

    def score(self, example: Example, prediction: dict[str, Any]) -> float:
        """F1 of the sentence's entities; 1 where there are none and none is predicted."""
        found = self.statistics(example, prediction)
        tp, predicted, gold = (
            sum(v for name, v in found.items() if name.startswith(f"{what}/")) for what in ("tp", "predicted", "gold")
        )
        return 2 * tp / (predicted + gold) if predicted + gold else 1.0

    def kept_spans(self, example: Example) -> Mapping[str, list[tuple[int, int]]]:
        """The words of entities."""
        return {"tokens": [(i, i + 1) for i, tag in enumerate(example["tags"]) if tag != "O"]}

    def metrics(self, totals: Mapping[str, Any]) -> dict[str, Any]:
        """`precision`, `recall` and `f1` over all types, and `f1/TYPE`; 0 where seqeval says 0."""
        kinds = [name.partition("/")[2] for name in totals if name.startswith("gold/")]
        tp, predicted, gold = (sum(totals[f"{what}/{kind}"] for kind in kinds) for what in ("tp", "predicted", "gold"))
        return {
            "precision": ratio(tp, predicted),
            "recall": ratio(tp, gold),
            "f1": ratio(2 * tp, predicted + gold),
            **{
                f"f1/{kind}": ratio(2 * totals[f"tp/{kind}"], totals[f"predicted/{kind}"] + totals[f"gold/{kind}"])
                for kind in kinds
            },
        }

    # -- answers -----------------------------------------------------------------------------------------------

    def inputs(self, given: str | Mapping[str, Any]) -> Example:
        """A text's words, split as the CoNLL and WNUT corpora are, Chinese by the character; or `tokens` as given."""
        fields: dict[str, Any] = {"text": given} if isinstance(given, str) else dict(given)
        if "tokens" not in fields and isinstance(fields.get("text"), str):
            fields["tokens"] = [fields["text"][start:end] for start, end in words(fields["text"])]
        if mistakes := [m for m in _misshapen(fields, "tokens", "input") if fields.get("tokens") != []]:
            raise UsageError(*mistakes)
        return Example({"tokens": fields["tokens"]}, inputs=("tokens",))

    def answer(self, example: Example, prediction: dict[str, Any]) -> dict[str, Any]:
        """`tokens`, `tags`, and `entities` with text, type, first word, word after the last, mean probability."""
        tokens = example["tokens"]
        tags = _whole(prediction, len(tokens))
        scores = np.asarray(prediction.get("probabilities", np.zeros((0, 1)))).max(-1, initial=0.0)
        entities = [
            {
                "text": joined(tokens[start:end]),
                "type": kind,
                "start": start,
                "end": end,
                "score": round(float(scores[start:end].mean()), 4),
            }
            for kind, start, end in spans(tags, self.scheme)
        ]
        return {"tokens": tokens, "tags": tags, "entities": entities}


def ratio(part: Any, whole: Any) -> Any:
    """part / whole, and 0 where whole is 0; elementwise."""
    part, whole = np.asarray(part, float), np.asarray(whole, float)
    return np.divide(part, whole, out=np.zeros(np.broadcast(part, whole).shape), where=whole != 0)[()]


# -- rows --------------------------------------------------------------------------------------------------------


def _misshapen(fields: Mapping[str, Any], name: str, where: str) -> Iterator[Mistake]:
    value = fields.get(name)
    if name not in fields:
        yield Mistake(where, f"no {name!r}", f"a list of {name}", unmapped(name, fields))
    elif not isinstance(value, list) or not all(isinstance(v, str) for v in value):
        yield Mistake(where, f"{name!r} is {_shortened(value)}", f"a list of {name}, each a string")
    elif not value:
        yield Mistake(where, f"no {name}", "one or more")


def _shortened(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:59]}…"


def _at(where: str, word: int) -> str:
    """The word's own line where the file has one word per line."""
    source, _, line = where.rpartition(":")
    if line.isdecimal() and PurePath(source).suffix.lower() in TOKEN_COLUMNS:
        return f"{source}:{int(line) + word}"
    return f"{where} word {word + 1}"


def _whole(prediction: Mapping[str, Any], words: int) -> list[str]:
    """A tag per word: `O` for those that were cut."""
    tags = list(prediction.get("tags", ()))
    return tags + ["O"] * (words - len(tags))
