"""Entity tags: the spans that they mark, and how to mend them."""

from __future__ import annotations

from collections.abc import Iterable

Span = tuple[str, int, int]
"""(type, first word, word after the last)."""

PREFIXES = {"BIO": "BI", "BIOES": "BIES"}


def spans(tags: list[str], scheme: str) -> list[Span]:
    """The spans that are marked without fault, as seqeval's strict mode reads them (IOB2, IOBES); others are none.

    Example:
        >>> spans(["B-PER", "I-PER", "O", "I-LOC"], "BIO")
        [('PER', 0, 2)]
    """
    found: list[Span] = []
    start = 0
    while start < len(tags):
        prefix, kind = tags[start][0], tags[start][2:]
        end = start + 1
        if prefix == "B":
            while end < len(tags) and tags[end][2:] == kind and tags[end][0] in "IE" and tags[end - 1][0] in "BI":
                end += 1
            if scheme == "BIO" or tags[end - 1][0] == "E":
                found.append((kind, start, end))
        elif prefix == "S":
            found.append((kind, start, end))
        start = end
    return found


def marked(spans: Iterable[Span], words: int, scheme: str) -> list[str]:
    """A tag per word from spans that do not overlap.

    Example:
        >>> marked([("PER", 0, 2)], 3, "BIOES")
        ['B-PER', 'E-PER', 'O']
    """
    tags = ["O"] * words
    for kind, start, end in spans:
        tags[start:end] = [f"I-{kind}"] * (end - start)
        tags[start] = f"B-{kind}"
    return repaired(tags, scheme)


def repaired(tags: list[str], scheme: str) -> list[str]:
    """Tags in which every span is marked as the scheme demands; a span begins wherever a tag does not continue one.

    Example:
        >>> repaired(["I-PER", "I-PER", "O", "I-LOC"], "BIO")
        ['B-PER', 'I-PER', 'O', 'B-LOC']
    """
    found = list(tags)
    start = 0
    while start < len(tags):
        kind, end = tags[start][2:], start + 1
        if kind:
            while end < len(tags) and tags[end - 1][0] in "BI" and tags[end][0] in "IE" and tags[end][2:] == kind:
                end += 1
            marks = "B" + "I" * (end - start - 1)
            if scheme == "BIOES":
                marks = "S" if end - start == 1 else marks[:-1] + "E"
            found[start:end] = [f"{mark}-{kind}" for mark in marks]
        start = end
    return found
