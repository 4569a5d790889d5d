"""Words of running text, in scripts with spaces and without, and how tokenizers see them."""

from __future__ import annotations

import functools
import re
from typing import Any

HAN_KANA = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
"""Scripts without spaces, as what stands between brackets in a regular expression."""
_WORD = re.compile(
    rf"""(?:https?://|www\.)[^\s{HAN_KANA}]+      # addresses
    | [@\#]\w+                                     # mentions and topics
    | [{HAN_KANA}]                                # scripts without spaces: one character is one word
    | (?:[^\W\d_]\.){{2,}}                         # U.S.
    | ['\u2019](?:s|re|ve|ll|d|m|t)\b                   # clitics stand alone
    | (?:(?![{HAN_KANA}])\w)+(?:[-.,:/&](?:(?![{HAN_KANA}])\w)+)*
    | \.{{2,}} | \S""",
    re.VERBOSE | re.IGNORECASE,
)


def words(text: str) -> list[tuple[int, int]]:
    """Where each word begins and ends, split as the CoNLL and WNUT corpora are; Chinese and Japanese by the character.

    Example:
        >>> [text[a:b] for text in ["Ada's 北京"] for a, b in words(text)]
        ['Ada', "'s", '北', '京']
    """
    return [match.span() for match in _WORD.finditer(text)]


def is_unspaced(text: str) -> bool:
    """Some of it is in a script without spaces."""
    return bool(re.search(f"[{HAN_KANA}]", text))


def _has_no_spaces(word: str) -> bool:
    return bool(re.match(f"[{HAN_KANA}]", word))


def joined(tokens: list[str]) -> str:
    """Words as text: with spaces, but for scripts without."""
    text = tokens[0]
    for token in tokens[1:]:
        text += token if _has_no_spaces(text[-1]) and _has_no_spaces(token) else f" {token}"
    return text


def spaced(tokens: list[str], tokenizer: Any) -> list[str]:
    """The words as the tokenizer knows them from running text."""
    if not _words_carry_space(tokenizer):
        return list(tokens)
    return [f" {token}" if i and not _has_no_spaces(token) else token for i, token in enumerate(tokens)]


@functools.lru_cache(maxsize=4)
def _words_carry_space(tokenizer: Any) -> bool:
    """Byte-level tokenizers keep the space as part of the word, and lose it in a list of words."""
    split = tokenizer(["a", "a"], is_split_into_words=True, add_special_tokens=False)["input_ids"]
    return bool(split != tokenizer("a a", add_special_tokens=False)["input_ids"])
