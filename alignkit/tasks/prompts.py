"""Prompts of templates: where an example's texts stand, and where its answer."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from typing import Any

from alignkit.data.example import Example
from alignkit.errors import Mistake, UsageError, nearest

TEXTS = ("text", "text_pair")
ANSWER = "answer"
Ids = tuple[int, ...]
BETWEEN = "\n\n"
"""What ends a demonstration."""

_PLACEHOLDER = re.compile(r"\{\{|\}\}|\{([^{}]*)\}")


class Template:
    r"""A text with the placeholders `{text}`, `{text_pair}` where there are pairs, and `{answer}`; `{{` is a brace.

    Spaces before the answer belong to it, as tokenizers of running text have it.

    Raises:
        ValueError: a placeholder that there is not, no place for the text, or not exactly one for the answer.

    Example:
        >>> Template("{text}\nIt was {answer}.").filled({"text": "Good fun."}, "great")
        'Good fun.\nIt was great.'
    """

    def __init__(self, source: str):
        names = [match[1] for match in _PLACEHOLDER.finditer(source) if match[1] is not None]
        for name in names:
            if name not in (*TEXTS, ANSWER):
                raise ValueError(f"no placeholder is called {{{name}}}; {nearest(name, (*TEXTS, ANSWER))}")
        if names.count(ANSWER) != 1:
            raise ValueError(f"{{{ANSWER}}} stands in it {names.count(ANSWER)} times; it must once")
        if "text" not in names:
            raise ValueError("it has no place for {text}")
        self.names = frozenset(names)
        head, self._tail = source.rstrip().split(f"{{{ANSWER}}}")
        self._head = head.rstrip(" ")
        self.space = head[len(self._head) :]
        """The spaces before the answer."""

    @property
    def answer_is_last(self) -> bool:
        """Nothing follows the answer."""
        return not self._tail

    @property
    def stub(self) -> str:
        """The template's own text before the answer, which the answer's first token may depend on."""
        return _PLACEHOLDER.sub(lambda m: "\0" if m[1] else m[0][0], self._head).rpartition("\0")[2]

    def before(self, fields: Mapping[str, Any]) -> str:
        """The prompt up to the answer and the spaces before it."""
        return _put(self._head, fields)

    def after(self, fields: Mapping[str, Any]) -> str:
        """The prompt from the end of the answer on."""
        return _put(self._tail, fields)

    def filled(self, fields: Mapping[str, Any], answer: str) -> str:
        """The whole prompt with its answer."""
        return f"{self.before(fields)}{self.space}{answer}{self.after(fields)}"


def _put(text: str, fields: Mapping[str, Any]) -> str:
    return _PLACEHOLDER.sub(lambda m: m[0][0] if m[1] is None else str(fields[m[1]]).strip(), text)


# -- tokens ------------------------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=8192)
def token_ids(tokenizer: Any, text: str) -> Ids:
    """The text's tokens, without special ones."""
    return tuple(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])  # texts are cut later


def answer_ids(tokenizer: Any, stub: str, answer: str) -> Ids:
    """The tokens that an answer has after a text which ends with `stub`."""
    before, whole = token_ids(tokenizer, stub), token_ids(tokenizer, stub + answer)
    return whole[len(before) :] if stub and whole[: len(before)] == before else token_ids(tokenizer, answer)


@functools.lru_cache(maxsize=8)
def ends(tokenizer: Any, masked: bool) -> tuple[Ids, Ids]:
    """Special tokens that a prompt begins with, and those that it ends with (masked language models' alone)."""
    special = tuple(tokenizer("")["input_ids"])
    if masked:
        return special[: (len(special) + 1) // 2], special[(len(special) + 1) // 2 :]
    bos = tokenizer.bos_token_id
    return ((bos,) if bos is not None and bos in special else ()), ()


def cut(template: Template, example: Example, tokenizer: Any, room: int) -> tuple[Ids, Ids]:
    """The tokens before and after the answer, the end of the longest text cut until they are no more than `room`.

    Raises:
        UsageError: the template alone is longer.
    """
    fields: dict[str, Any] = dict(example)
    while True:
        before, after = (token_ids(tokenizer, text) for text in (template.before(fields), template.after(fields)))
        if (excess := len(before) + len(after) - room) <= 0:
            return before, after
        longest = max(example.inputs, key=lambda name: len(fields[name]))
        if not fields[longest]:
            found = f"the template alone is {excess} tokens too long for it"
            raise UsageError(Mistake("maximum_length", found, "room for the text"))
        share = excess / (len(before) + len(after))
        fields[longest] = fields[longest][: -max(1, int(share * len(fields[longest])))]
