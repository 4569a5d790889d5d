"""Forbidden phrases: the model cannot write them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from alignkit.components import Control, Intervention
from alignkit.errors import Mistake, UsageError
from alignkit_constraints.controls.phrases import Phrases, listed, read_phrases
from alignkit_constraints.controls.vocabulary import Completions, token_bytes

if TYPE_CHECKING:
    from alignkit.components import Task
    from alignkit.data import Example
    from alignkit.generation import Generating, Processor

NOTED = 0.01
"""Probability of the next token from which on it is worth a line in the audit that it was ruled out."""


class ForbiddenPhrases(Control):
    """Makes phrases impossible to write: no token may complete one, in whatever tokens it is written.

    At each step the tokens that would complete a phrase after the text so far get the score -inf. What a token adds to
    the text is compared, in bytes, and not ids: transformers' `bad_words_ids` rules out the ids that it is given, which
    a model writes around by another case, a leading space or other pieces of the same word. White space in a phrase is
    any white space in the text. The promise is on the text: it is looked at once more when it is there, and cut before
    a phrase that got through (of letters outside ASCII only the forms in lower and upper case and with capitals are
    ruled out step by step; pieces of a WordPiece vocabulary join in ways that only the whole text shows).

    The prompt may hold the phrase; a phrase that begins in the prompt and ends in the answer is none. What is not
    promised: other spellings (`b0mb`), other words for the same thing, other Unicode characters that look alike.

    With `whole_words`, `ass` leaves `class` alone. Chinese, Japanese, Thai and other scripts without spaces have no
    words to be within: their phrases count anywhere. A word that begins with the phrase as a token of its own (`ass` +
    `ay`) is not written either, since the text may end there.

    The audit says of each phrase at how many steps its completion was the likeliest token (under sampling: had a
    probability of 0.01 or more), and what the probability was at most.

    Cost: no forward pass; per row and step a few look-ups, and once a pass over the vocabulary (about a second for
    50,000 tokens).

    Relations: `unlikelihood` trains the phrases away and promises nothing; `refusal-policy` looks at what is asked.

    Example:
        >>> ForbiddenPhrases(phrases=("as an AI", "作为人工智能")).ignore_case
        True
    """

    example: ClassVar[Mapping[str, Any]] = {"phrases": ("rome", "a film")}

    phrases: Path | tuple[str, ...]
    """Path of a UTF-8 file with one phrase per line (`# ` starts a comment), or a list of the phrases themselves."""
    whole_words: bool = False
    """A phrase does not count within a longer word."""
    ignore_case: bool = True
    """`A BOMB` is `a bomb`."""

    def __post_init__(self) -> None:
        if not isinstance(self.phrases, Path):
            self._phrases()

    def check_task(self, task: Task) -> Iterable[Mistake]:
        """The list can be read."""
        try:
            self._phrases()
        except UsageError as error:
            return error.mistakes
        return ()

    def prepare(self, model: Any, tokenizer: Any, task: Task) -> None:
        self._found = self._phrases()
        self._tokens = token_bytes(tokenizer)
        self._completions = Completions(self._tokens, self._found)

    @contextlib.contextmanager
    def steered(self, generating: Generating) -> Iterator[Processor]:
        ruled_out = _RuledOut(self._tokens, self._completions, generating)
        yield ruled_out
        for row, phrases in enumerate(ruled_out.seen):
            for phrase, (steps, likely) in phrases.items():
                changed = f"ruled out at {steps} step{'s' * (steps != 1)} (probability up to {likely:.2f})"
                found = Intervention(self._rule, phrase, changed=changed if steps else "")
                generating.note(row, found)

    def finish(self, example: Example, text: str) -> Intervention | None:
        found = self._found.first(text)
        if found is None:
            return None
        cut = text[: found.start].rstrip()
        return Intervention(self._rule, found.phrase, changed="the text was cut before it", text=cut)

    @property
    def _rule(self) -> str:
        return listed(self.phrases, "phrases")

    def _phrases(self) -> Phrases:
        return Phrases(read_phrases(self.phrases, "phrases"), self.whole_words, self.ignore_case)


class _RuledOut:
    """The scores of one batch without the tokens that would complete a phrase, and what of them was likely."""

    def __init__(self, tokens: list[bytes], completions: Completions, generating: Generating) -> None:
        self._tokens, self._completions, self._generating = tokens, completions, generating
        self._ids: dict[int, Tensor] = {}
        self.seen: list[dict[str, tuple[int, float]]] = [{} for _ in generating.examples]
        """Of each row by phrase: at how many steps its completion would have been written, and how likely it was."""

    def __call__(self, ids: Tensor, scores: Tensor) -> Tensor:
        rows, running = ids[:, self._generating.written :].tolist(), self._generating.running(ids).tolist()
        scores = scores.clone()
        noted: dict[int, dict[str, tuple[bool, float]]] = {}
        for r, row in enumerate(rows):
            parts = self._completions.after(self._end(row))
            if not parts or not running[r]:
                continue
            forbidden = torch.cat([self._as_ids(part, ids.device) for part in parts])
            most = scores[r].softmax(-1)[forbidden].max(0)
            likely, token = float(most.values), int(forbidden[most.indices])
            if likely >= NOTED:
                phrase = next(part[token] for part in parts if token in part)
                written = self._generating.sampled or token == int(scores[r].argmax())
                of_row = noted.setdefault(r // self._generating.beams, {})
                before = of_row.get(phrase, (False, 0.0))
                of_row[phrase] = (written or before[0], max(likely, before[1]))
            scores[r, forbidden] = -torch.inf
        self._count(noted)
        return scores

    def _count(self, noted: Mapping[int, Mapping[str, tuple[bool, float]]]) -> None:
        """One step more, in which this was noted of rows and phrases."""
        for row, phrases in noted.items():
            for phrase, (written, likely) in phrases.items():
                steps, most = self.seen[row].get(phrase, (0, 0.0))
                self.seen[row][phrase] = (steps + written, max(most, likely))

    def _end(self, row: list[int]) -> bytes:
        """The end of what has been written, long enough to see the beginning of a phrase in it."""
        pieces: list[bytes] = []
        length = 0
        for token in reversed(row):
            if length > 2 * self._completions.longest + 8:
                break
            pieces.append(self._tokens[token] if token < len(self._tokens) else b"")
            length += len(self._completions.folded(pieces[-1]))
        return b"".join(reversed(pieces))

    def _as_ids(self, part: dict[int, str], device: torch.device) -> Tensor:
        if id(part) not in self._ids:
            self._ids[id(part)] = torch.tensor(list(part), device=device)
        return self._ids[id(part)]
