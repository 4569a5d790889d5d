"""The words of an example that an attack may change or take away, and the example with that done."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from alignkit.data.edits import plain_words

if TYPE_CHECKING:
    from alignkit.components import Task
    from alignkit.data import Example

Spans = Mapping[str, list[tuple[int, int]]]
"""By field (first, the one after the last): of a text in characters, of a word list in words."""


@dataclass(frozen=True)
class Word:
    """A place in an example's inputs."""

    field: str
    item: int | None
    """Which word of a word list, or message, it is in; None: the field is one text."""
    start: int
    end: int
    """In characters of that text."""
    text: str


def words_in(
    example: Example,
    spans: Callable[[str], Iterable[tuple[int, int]]],
    without: Spans | None = None,
    fields: Collection[str] | None = None,
) -> list[Word]:
    """The words of an example's inputs in order; what assistants said in a conversation is no input.

    Args:
        spans: where the words of a text are.
        without: words that touch one of these places are left out.
        fields: those to look at; None: all inputs.
    """
    found = []
    for field, item, text in _texts(example):
        taken = (without or {}).get(field, [])
        for start, end in spans(text) if fields is None or field in fields else ():
            first, last = (start, end) if item is None else (item, item + 1)
            if not any(first < b and a < last for a, b in taken):
                found.append(Word(field, item, start, end, text[start:end]))
    return found


def editable(example: Example, without: Spans, least: int) -> list[Word]:
    """Words of `least` letters or more that can be misspelt: no addresses, mentions, numbers, marks, code.

    A word of a word list may hold several, as in `well-known`, or none.
    """
    return words_in(example, lambda text: plain_words(text, least), without)


def words_read(task: Task, tokenizer: Any, example: Example, words: list[Word]) -> list[Word]:
    """Those of the words that the model reads: of a text that is too long for it or the task it gets a part.

    A word is not read where whatever stands in its place leaves what the model gets as it was.

    Args:
        words: of `words_in` for this very example.

    Cost: no forward pass; the task encodes the example once for each word that is read, twice for each other.
    """
    whole = task.encode(example, tokenizer)

    def is_read(number: int) -> bool:
        others = (rewritten(example, words, {number: text}) for text in (stand_in(tokenizer), "a b"))
        return any(not _same(task.encode(other, tokenizer), whole) for other in others)

    return [word for number, word in enumerate(words) if is_read(number)]


def rewritten(example: Example, words: list[Word], texts: Mapping[int, str]) -> Example:
    """A copy with some of its words replaced.

    Args:
        words: of `words_in` for this very example.
        texts: what replaces a word, by its number.
    """
    places = defaultdict(list)
    for number, text in texts.items():
        places[words[number].field].append((words[number], text))
    return example.replace(**{field: _replaced(example[field], edits) for field, edits in places.items()})


def reduced(example: Example, words: list[Word], removed: Collection[int]) -> Example:
    """A copy without some of its words.

    A text loses the spaces around them; what a word list loses, every other list of its length loses at the same
    places, tags among them.

    Args:
        words: of `words_in` for this very example; of a word list whole words.
        removed: their numbers.
    """
    gone = [words[number] for number in removed]
    changed: dict[str, Any] = {}
    for field in dict.fromkeys(word.field for word in gone):
        value = example[field]
        here = [word for word in gone if word.field == field]
        if isinstance(value, list) and all(isinstance(item, str) for item in value):
            lost = {word.item for word in here}
            for name, other in example.items():
                if name == field or (isinstance(other, list) and len(other) == len(value)):
                    changed[name] = [item for i, item in enumerate(other) if i not in lost]
        else:
            kept = _replaced(value, [(word, " ") for word in here])
            changed[field] = _squeezed(kept)
    return example.replace(**changed)


def stand_in(tokenizer: Any) -> str:
    """What a word is replaced by to see how much it matters: the unknown token, else the mask, else nothing.

    The unknown token of many language models is the one that ends a text, which would say more than that.
    """
    ends = {getattr(tokenizer, f"{name}_token", None) for name in ("bos", "eos", "pad", "cls", "sep")}
    named = (getattr(tokenizer, f"{name}_token", None) for name in ("unk", "mask"))
    return next((token for token in named if token and token not in ends), "")


def _same(one: Any, other: Any) -> bool:
    """Two encodings are equal; of tensors, which have no single answer, they are not."""
    try:
        return bool(one == other)
    except (RuntimeError, ValueError):
        return False


def _texts(example: Example) -> Iterator[tuple[str, int | None, str]]:
    """(field, item, text) of every text of the inputs."""
    for name in example.inputs:
        value = example[name]
        if isinstance(value, str):
            yield name, None, value
        elif isinstance(value, list):
            for i, item in enumerate(value):
                if isinstance(item, str):
                    yield name, i, item
                elif item["role"] != "assistant":
                    yield name, i, item["content"]


def _replaced(value: Any, edits: list[tuple[Word, str]]) -> Any:
    """A field's value with the words replaced, the last first: those before it stay where they are."""
    for word, text in sorted(edits, key=lambda edit: (edit[0].item or 0, edit[0].start), reverse=True):
        if word.item is None:
            value = value[: word.start] + text + value[word.end :]
            continue
        item = value[word.item]
        content = item if isinstance(item, str) else item["content"]
        content = content[: word.start] + text + content[word.end :]
        new = content if isinstance(item, str) else {**item, "content": content}
        value = [*value[: word.item], new, *value[word.item + 1 :]]
    return value


def _squeezed(value: Any) -> Any:
    """Texts with single spaces, none at their ends."""
    if isinstance(value, str):
        return re.sub(r"\s+", " ", value).strip()
    return [{**message, "content": _squeezed(message["content"])} for message in value]
