"""What each token of a vocabulary adds to a text, in bytes, and which tokens would complete a phrase."""

from __future__ import annotations

import bisect
import json
import re
from collections.abc import Iterator
from typing import Any

from alignkit_constraints.controls.phrases import Phrases, joins

_SPACES = re.compile(rb"[ \t\n\r\f\v]+")
_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def token_bytes(tokenizer: Any) -> list[bytes]:
    """For each id the bytes that it adds to a text: none for special tokens, parts of characters where it is one.

    A byte-level vocabulary is read byte by byte; of others a token is what it adds when it is decoded after a word.
    """
    pieces = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    decoder = _decoder(tokenizer)
    special = set(tokenizer.all_special_ids)
    if "ByteLevel" in decoder:
        alphabet = byte_alphabet()
        added = tokenizer.get_added_vocab()
        made = [_from_alphabet(piece, alphabet, piece in added) for piece in pieces]
    else:
        made = _in_context(tokenizer, len(pieces))
        if "ByteFallback" in decoder:
            bytes_of = [_BYTE.fullmatch(piece or "") for piece in pieces]
            made = [bytes.fromhex(byte[1]) if byte else text for byte, text in zip(bytes_of, made, strict=True)]
    return [b"" if i in special else text for i, text in enumerate(made)]


def byte_alphabet() -> dict[str, int]:
    """The character that stands for each byte in a byte-level vocabulary (Radford et al. 2019) -> the byte.

    Bytes that print stand for themselves, all others for the characters from 256 on.
    """
    printed = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    others = [byte for byte in range(256) if byte not in printed]
    return {chr(byte): byte for byte in printed} | {chr(256 + n): byte for n, byte in enumerate(others)}


def _from_alphabet(piece: str | None, alphabet: dict[str, int], added: bool) -> bytes:
    if piece is None:
        return b""
    if added or any(character not in alphabet for character in piece):
        return piece.encode()
    return bytes(alphabet[character] for character in piece)


def _decoder(tokenizer: Any) -> str:
    """What turns tokens into text, as the tokenizers library writes it; empty where there is none."""
    backend: Any = getattr(tokenizer, "backend_tokenizer", None)
    return json.dumps(json.loads(backend.to_str()).get("decoder")) if hasattr(backend, "to_str") else ""


def _in_context(tokenizer: Any, size: int) -> list[bytes]:
    anchor = tokenizer("a", add_special_tokens=False)["input_ids"][-1:]
    before = tokenizer.decode(anchor, skip_special_tokens=True)
    texts = tokenizer.batch_decode([[*anchor, i] for i in range(size)], skip_special_tokens=True)
    return [text[len(before) :].encode() if text.startswith(before) else text.encode() for text in texts]


# -- tokens that complete a phrase -------------------------------------------------------------------------------


class Completions:
    """Which tokens would complete a phrase after a text, in whatever tokens the text is written.

    Works on bytes, with runs of white space as one space and ASCII letters in lower case, so that parts of characters,
    leading spaces and every way to cut a phrase into tokens are covered by one rule: a token is forbidden if the text
    so far ends with the beginning of a phrase (possibly an empty one) and the token begins with the rest of it, or has
    the whole phrase in it. Of letters outside ASCII the lower, upper and capitalised forms of the phrase are known.

    With whole words, a token is forbidden only if a word begins where the phrase does and ends where it does. A token
    that ends with the phrase counts: the next one might end the word.

    Args:
        vocabulary: what each id adds to a text, as `token_bytes` gives it.

    Example:
        >>> Completions([b"a", b" bo", b"mb", b"mbing"], Phrases(["bomb"])).after(b"a bo")
        [{2: 'bomb', 3: 'bomb'}]
    """

    def __init__(self, vocabulary: list[bytes], phrases: Phrases) -> None:
        self._phrases = phrases
        tokens = sorted((self.folded(text), i) for i, text in enumerate(vocabulary) if text)
        self._texts, self._ids = [text for text, _ in tokens], [i for _, i in tokens]
        self._forms = {form: phrase for phrase in phrases.phrases for form in self._forms_of(phrase)}
        self._begun: dict[bytes, list[bytes]] = {b"": list(self._forms)}
        for form in self._forms:
            for k in range(1, len(form)):
                self._begun.setdefault(form[:k], []).append(form)
        self.longest = max(map(len, self._forms))
        """Bytes of the longest phrase."""
        self._within = dict(self._tokens_with_phrases())
        self._known: dict[tuple[bytes, bool], dict[int, str]] = {}

    def after(self, text: bytes) -> list[dict[int, str]]:
        """The tokens that would complete a phrase after a text, each with the phrase, in several parts.

        A part is the same object whenever it is the same.

        Args:
            text: its end suffices, `longest` bytes and a character more; white space and case as it comes.
        """
        tail = self.folded(text)
        found = [self._within]
        for length in range(min(self.longest, len(tail) + 1)):
            rest, begun = tail[: len(tail) - length], tail[len(tail) - length :]
            if begun in self._begun:
                found.append(self._completing(begun, self._phrases.whole_words and joins(_last(rest))))
        return [part for part in found if part]

    def folded(self, text: bytes) -> bytes:
        """Runs of white space as one space; ASCII in lower case, where case is ignored."""
        return _SPACES.sub(b" ", text.lower() if self._phrases.ignore_case else text)

    def _forms_of(self, phrase: str) -> set[bytes]:
        forms = {phrase}
        if self._phrases.ignore_case:
            forms |= {phrase.lower(), phrase.upper(), phrase.title(), phrase.capitalize()}
        return {self.folded(form.encode()) for form in forms}

    def _completing(self, begun: bytes, in_word: bool) -> dict[int, str]:
        """Tokens that begin with what is left of a phrase; in a word, of those phrases that need not begin one."""
        key = (begun, in_word)
        if key not in self._known:
            forms = [form for form in self._begun[begun] if not (in_word and joins(_first(form)))]
            self._known[key] = dict(self._tokens_from(forms, len(begun)))
        return self._known[key]

    def _tokens_from(self, forms: list[bytes], k: int) -> Iterator[tuple[int, str]]:
        for form in forms:
            rests = [form[k:]]
            if form[:k].endswith(b" "):
                rests.append(b" " + form[k:])  # one more space after a space is the same space
            for rest in rests:
                for place in range(bisect.bisect_left(self._texts, rest), len(self._texts)):
                    if not self._texts[place].startswith(rest):
                        break
                    if self._ends(form, self._texts[place][len(rest) :]):
                        yield self._ids[place], self._forms[form]

    def _tokens_with_phrases(self) -> Iterator[tuple[int, str]]:
        """Tokens that have a whole phrase in them, after their first byte."""
        for text, i in zip(self._texts, self._ids, strict=True):
            for start in range(1, len(text)):
                for end in range(start + 1, min(len(text), start + self.longest) + 1):
                    form = text[start:end]
                    if form in self._forms and self._begins(text[:start], form) and self._ends(form, text[end:]):
                        yield i, self._forms[form]

    def _begins(self, before: bytes, form: bytes) -> bool:
        """A phrase after this text begins a word, or need not."""
        return not (self._phrases.whole_words and joins(_last(before)) and joins(_first(form)))

    def _ends(self, form: bytes, after: bytes) -> bool:
        """A phrase before this text ends a word, or need not."""
        return not (self._phrases.whole_words and joins(_first(after)) and joins(_last(form)))


def _first(text: bytes) -> str:
    """The first character; nothing where there is none, or only a part of one."""
    return text[:4].decode(errors="ignore")[:1]


def _last(text: bytes) -> str:
    return text[-4:].decode(errors="ignore")[-1:]
