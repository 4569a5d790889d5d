"""What may stand in a token's place: the pieces of a vocabulary by the part of a text that they can be."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

NEVER = 0
"""The class of what is no piece of a text, or not one that can be exchanged: special, added and reserved tokens,
rows of the embedding table that the tokenizer does not use, white space, bytes that are no whole character."""

_MARKS = ("Ġ", "▁", "##")
"""How pieces begin that begin a word (byte-level, SentencePiece) or go on with one (WordPiece)."""
_END = "</w>"
"""How pieces end that end a word, in vocabularies of older byte-pair encodings."""
_RESERVED = re.compile(r"\[[^\[\]\s]+\]|<[^<>\s]+>|madeupword\d+")
"""`[unused7]`, `<extra_id_0>`, `<0x0A>` …: what vocabularies hold without ever meaning text by it."""


def piece_classes(tokenizer: Any, size: int) -> Tensor:
    """[size]: a class for each id; a token replaced by another one of its class leaves words what they are.

    Two pieces are of one class where both begin a word or neither does (by the vocabulary's own mark: `##`, `Ġ`, `▁`,
    `</w>`), and both hold a letter or digit or neither does.

    Args:
        tokenizer: of transformers' kind.
        size: rows of the embedding table, which may be more than the tokenizer has tokens.

    Cost: one look at each token, some tenths of a second for a hundred thousand; keep the result.
    """
    import torch

    known = tokenizer.convert_ids_to_tokens(list(range(min(size, len(tokenizer)))))
    pieces: list[str] = [piece or "" for piece in known]
    mark = max(_MARKS, key=lambda mark: sum(piece.startswith(mark) for piece in pieces))
    begun = any(piece.startswith(mark) for piece in pieces)
    apart = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
    classes = torch.full((size,), NEVER)
    for token, piece in enumerate(pieces):
        if token in apart or _RESERVED.fullmatch(piece):
            continue
        text = tokenizer.convert_tokens_to_string([piece]).strip()
        text = text.removeprefix("##") if mark == "##" else text
        if text and "\N{REPLACEMENT CHARACTER}" not in text:
            marked = piece.startswith(mark) if begun else piece.endswith(_END)
            classes[token] = 1 + marked + 2 * any(letter.isalnum() for letter in text)
    return classes
