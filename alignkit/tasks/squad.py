"""SQuAD's files, the answers in them, and how its official evaluation compares answers."""

from __future__ import annotations

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from alignkit.data.columns import unmapped
from alignkit.errors import Mistake, UsageError

Span = tuple[int, int]
"""(first character, character after the last) of a context."""

_UNSPACED = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_CHARACTER_OR_WORD = re.compile(rf"[{_UNSPACED}]|[^\s{_UNSPACED}]+")
_ASCII_PUNCTUATION = str.maketrans("", "", string.punctuation)


# -- comparing answers -------------------------------------------------------------------------------------------


def words(answer: str) -> list[str]:
    """An answer's words as the official evaluation of SQuAD 1.1 and 2.0 compares them (Rajpurkar et al. 2016, 2018).

    Lower case, without ASCII punctuation and articles. In an answer with Chinese or Japanese characters each of these
    is a word, and punctuation of all scripts is left out (as MLQA does; SQuAD's script would take it for one word).

    Example:
        >>> words("The Denver Broncos!")
        ['denver', 'broncos']
    """
    text = answer.lower().translate(_ASCII_PUNCTUATION)
    if re.search(f"[{_UNSPACED}]", text):
        text = "".join(c for c in text if not unicodedata.category(c).startswith("P"))
        return _CHARACTER_OR_WORD.findall(text)
    return re.sub(r"\b(a|an|the)\b", " ", text).split()


def exact(predicted: str, gold: Iterable[str]) -> float:
    """1 where a prediction says what one of the gold answers says, else 0; no gold answer is an empty one."""
    return max(float(words(predicted) == answer) for answer in _answers(gold))


def f1(predicted: str, gold: Iterable[str]) -> float:
    """F1 of the words that a prediction shares with a gold answer, the best of them; no gold answer is an empty one."""
    return max(_f1(words(predicted), answer) for answer in _answers(gold))


def _answers(gold: Iterable[str]) -> list[list[str]]:
    return list(filter(None, map(words, gold))) or [[]]


def _f1(predicted: list[str], gold: list[str]) -> float:
    if not predicted or not gold:
        return float(predicted == gold)
    shared = sum((Counter(predicted) & Counter(gold)).values())
    return 2 * shared / (len(predicted) + len(gold))


# -- files -------------------------------------------------------------------------------------------------------


def questions(row: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The questions of a SQuAD file, `data` > `paragraphs` > `qas`, each with its context; any other row as it is.

    What has another shape is given as it stands, so that whoever validates rows finds what is missing.

    Yields:
        (place, fields): the place is `question ID`, or `article 1 paragraph 2 question 3`.
    """
    if not isinstance(row.get("data"), list):
        yield "", row
        return
    for a, article in enumerate(row["data"], 1):
        for p, paragraph in enumerate(_inside(article, "paragraphs"), 1):
            context = {"context": paragraph["context"]} if "context" in paragraph else {}
            for q, question in enumerate(_inside(paragraph, "qas"), 1):
                number = f"article {a} paragraph {p} question {q}"
                yield f"question {question['id']}" if "id" in question else number, {**context, **question}


def _inside(outer: Any, name: str) -> list[Mapping[str, Any]]:
    """The objects in a list of an object; where there is no such list, the object itself."""
    found = outer.get(name) if isinstance(outer, Mapping) else None
    inner = found if isinstance(found, list) else [outer]
    return [item if isinstance(item, Mapping) else {} for item in inner]


# -- answers in their contexts -----------------------------------------------------------------------------------


def read_answers(fields: Mapping[str, Any], where: str) -> list[dict[str, Any]]:
    """A row's answers as a list of `text` and `answer_start`.

    Raises:
        UsageError: they have another shape.
    """
    given = fields.get("answers")
    if "answers" not in fields and fields.get("is_impossible") is True:
        return []
    if "answers" not in fields:
        raise UsageError(
            Mistake(where, "no 'answers'", 'a list of {"text", "answer_start"}', unmapped("answers", fields))
        )
    if isinstance(given, Mapping) and all(isinstance(given.get(n), list) for n in ("text", "answer_start")):
        if len(given["text"]) != len(given["answer_start"]):
            found = f"{len(given['text'])} 'text' and {len(given['answer_start'])} 'answer_start' in 'answers'"
            raise UsageError(Mistake(where, found, "as many of each"))
        pairs = zip(given["text"], given["answer_start"], strict=True)
        given = [{"text": text, "answer_start": start} for text, start in pairs]
    if not isinstance(given, list) or not all(_is_answer(item) for item in given):
        raise UsageError(Mistake(where, f"'answers' is {given!r:.60}", 'a list of {"text", "answer_start"}'))
    return [{name: item[name] for name in ("text", "answer_start")} for item in given]


def _is_answer(item: Any) -> bool:
    shape = isinstance(item, Mapping) and isinstance(item.get("text"), str)
    return shape and type(item.get("answer_start")) is int


def misplaced(answers: list[dict[str, Any]], context: str, where: str) -> Iterator[Mistake]:
    """Answers that are blank, or not where they are said to be."""
    for text, start in ((answer["text"], answer["answer_start"]) for answer in answers):
        if not text.strip():
            yield Mistake(where, f"the answer at {start} is blank", "text")
        elif start < 0 or not context.startswith(text, start):
            places = _occurrences(text, context)
            nearest = min(places, key=lambda place: abs(place - start)) if places else None
            mend = "the context does not have it" if nearest is None else f"it is at {nearest}"
            there = f"{context[max(start, 0) : max(start, 0) + len(text)]!r:.60}"
            yield Mistake(where, f"answer {text!r:.60} with 'answer_start' {start}, where there is {there}", mend=mend)


def find(answers: list[dict[str, Any]], context: str) -> Span | None:
    """Where the first answer is; in a context that was rewritten, of one that is still there, the nearest place."""
    for text, start in ((answer["text"], answer["answer_start"]) for answer in answers):
        places = [start] if context.startswith(text, start) else _occurrences(text, context)
        if places:
            place = min(places, key=lambda place: abs(place - start))
            first = place + len(text) - len(text.lstrip())
            return first, first + len(text.strip())
    return None


def places(text: str, context: str) -> list[Span]:
    """Where a text without the spaces around it stands in a context, not as a part of other words."""
    text = text.strip()
    bare = [(place, place + len(text)) for place in _occurrences(text, context)]
    return [(start, end) for start, end in bare if not (_splits(context, start) or _splits(context, end))]


def _splits(text: str, place: int) -> bool:
    """A place between two characters of one word; of scripts without spaces each character is one."""
    around = text[max(place - 1, 0) : place + 1]
    return 0 < place < len(text) and around.isalnum() and not re.search(f"[{_UNSPACED}]", around)


def _occurrences(text: str, context: str) -> list[int]:
    places, place = [], context.find(text)
    while place >= 0:
        places.append(place)
        place = context.find(text, place + 1)
    return places
