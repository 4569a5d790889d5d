"""Entities as character spans of a text: read, held against the text, turned into a tag per word."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from alignkit.errors import Mistake, UsageError
from alignkit.tasks.tags import marked
from alignkit.tasks.words import is_unspaced, words

Words = list[tuple[int, int]]
"""(first character, the one after the last) of each word."""

_ENTITIES = 'a list of {"start", "end", "type"}'
_CLUENER = "{type: {text: [[first, last], ...]}}, as CLUENER has it"


class Annotation(NamedTuple):
    """An entity of a text, as its row says."""

    start: int
    end: int
    """The character after the last."""
    kind: str
    surface: str | None
    """Its text, where the row says it."""
    where: str
    inclusive: bool = False
    """The row says the last character, and not the one after it."""


def is_annotated(fields: Mapping[str, Any]) -> bool:
    """The row has a text with character spans, and no words of its own."""
    spans = "entities" in fields or isinstance(fields.get("label"), dict)
    return spans and "text" in fields and "tokens" not in fields


def tagged(fields: Mapping[str, Any], where: str, scheme: str, repair: bool = False) -> dict[str, Any]:
    """The row with `tokens` and `tags` in place of its text and spans.

    Where a script without spaces is in the text, a run of letters is cut where an entity begins or ends in it
    (`vsNada`); elsewhere an entity that begins or ends within a word is a mistake.

    Args:
        fields: `text`, and `entities`, a list of `{"start", "end", "type" or "label"}` whose `end` is the character
            after the last, or `label` as CLUENER has it: `{type: {surface: [[first, last], ...]}}`.
        scheme: `BIO` or `BIOES`.
        repair: of entities that overlap keep the longest, of equals the first.

    Raises:
        UsageError: everything that is wrong with the row.
    """
    text = fields["text"]
    if not isinstance(text, str) or not text.strip():
        raise UsageError(Mistake(where, f"'text' is {text!r}", "text"))
    read = _entities(fields["entities"], where) if "entities" in fields else _cluener(fields["label"], where)
    mistakes: list[Mistake] = []
    found: list[Annotation] = []
    for item in read:
        checked = _placed(item, text) if isinstance(item, Annotation) else item
        if isinstance(checked, Mistake):
            mistakes.append(checked)
        else:
            found.append(checked)
    found = sorted({(a.start, a.end, a.kind): a for a in found}.values())
    if repair:
        found = _longest(found)
    mistakes += _overlaps(found)
    split = words(text)
    if is_unspaced(text):
        split = _cut(split, {place for a in found for place in (a.start, a.end)})
    mistakes += _within_words(found, split, text)
    if mistakes:
        raise UsageError(*mistakes)
    first, last = {start: i for i, (start, _) in enumerate(split)}, {end: i for i, (_, end) in enumerate(split)}
    spans = [(a.kind, first[a.start], last[a.end] + 1) for a in found]
    rest = {name: value for name, value in fields.items() if name not in ("text", "label", "entities")}
    return {**rest, "tokens": [text[a:b] for a, b in split], "tags": marked(spans, len(split), scheme)}


# -- formats -----------------------------------------------------------------------------------------------------


def _entities(given: Any, where: str) -> Iterator[Annotation | Mistake]:
    if not isinstance(given, list):
        yield Mistake(where, f"'entities' is {given!r}", _ENTITIES)
        return
    for number, entity in enumerate(given, 1):
        here = f"{where} entity {number}"
        fields: dict[str, Any] = entity if isinstance(entity, dict) else {}
        kind: Any = fields.get("type", fields.get("label"))
        start: Any = fields.get("start")
        end: Any = fields.get("end")
        if isinstance(kind, str) and kind.strip() and _is_place(start) and _is_place(end):
            yield Annotation(start, end, kind.strip(), fields.get("text"), here)
        else:
            yield Mistake(here, f"{entity!r}", '{"start": 0, "end": 3, "type": "PER"}')


def _cluener(given: Mapping[str, Any], where: str) -> Iterator[Annotation | Mistake]:
    for kind, surfaces in given.items():
        if not isinstance(surfaces, dict):
            yield Mistake(where, f"'label' holds {surfaces!r} for {kind!r}", _CLUENER)
            continue
        for surface, places in surfaces.items():
            here = f"{where} {kind} {surface!r}"
            for place in places if isinstance(places, list) and places else [places]:
                if isinstance(place, list) and len(place) == 2 and all(map(_is_place, place)):
                    yield Annotation(place[0], place[1] + 1, kind, surface, here, inclusive=True)
                else:
                    yield Mistake(here, f"{place!r}", _CLUENER)


def _is_place(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


# -- against the text --------------------------------------------------------------------------------------------


def _placed(span: Annotation, text: str) -> Annotation | Mistake:
    """The annotation without spaces at its ends, or what is wrong with its place."""
    shown = f"[{span.start}, {span.end - span.inclusive}]"
    if not 0 <= span.start < span.end <= len(text):
        return Mistake(span.where, f"{shown} in a text of {len(text)} characters", "a place in the text")
    found = text[span.start : span.end]
    if span.surface is not None and found != span.surface:
        mend = ""
        if isinstance(span.surface, str) and (at := text.find(span.surface)) >= 0 and span.surface:
            mend = f"it is at [{at}, {at + len(span.surface) - span.inclusive}]"
        return Mistake(span.where, f"at {shown} is {found!r}", repr(span.surface), mend)
    if not found.strip():
        return Mistake(span.where, f"nothing but spaces at {shown}", "an entity")
    before, after = len(found) - len(found.lstrip()), len(found) - len(found.rstrip())
    return span._replace(start=span.start + before, end=span.end - after)


def _longest(spans: list[Annotation]) -> list[Annotation]:
    """Of those that overlap the longest, of equals the first."""
    kept: list[Annotation] = []
    for span in sorted(spans, key=lambda a: (a.start - a.end, a.start)):
        if all(span.end <= other.start or other.end <= span.start for other in kept):
            kept.append(span)
    return sorted(kept)


def _overlaps(spans: list[Annotation]) -> Iterator[Mistake]:
    furthest: Annotation | None = None
    for span in spans:
        if furthest is not None and span.start < furthest.end:
            found = f"{span.kind} at [{span.start}, {span.end}] overlaps "
            found += f"{furthest.kind} at [{furthest.start}, {furthest.end}]"
            yield Mistake(span.where, found, "entities apart", "`repair: true` keeps the longest")
        furthest = span if furthest is None or span.end > furthest.end else furthest


def _cut(split: Words, places: set[int]) -> Words:
    """The words, cut at these places."""
    found: Words = []
    for start, end in split:
        edges = [start, *sorted(place for place in places if start < place < end), end]
        found += itertools.pairwise(edges)
    return found


def _within_words(spans: list[Annotation], split: Words, text: str) -> Iterator[Mistake]:
    for span in spans:
        for start, end in split:
            if start < span.start < end or start < span.end < end:
                found = f"{text[span.start : span.end]!r} begins or ends within the word {text[start:end]!r}"
                yield Mistake(span.where, found, "whole words")
                break
