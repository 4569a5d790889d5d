"""What a model is not to say: the unlikelihood of forbidden phrases and of rejected answers."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from alignkit.components import Constraint, Task, Term
from alignkit.data import Example
from alignkit.data.columns import unmapped
from alignkit.data.features import windows
from alignkit.data.load import abridged
from alignkit.errors import Mistake, UsageError
from alignkit.tasks.classification import Classification
from alignkit.tasks.multiple_choice import MultipleChoice
from alignkit.tasks.stock import IGNORED, StockTask
from alignkit_constraints.controls.phrases import read_phrases
from alignkit_constraints.spellings import Table, beginnings, completions, forbidden, texts

REJECTED = "rejected"
"""The column that is looked at where nothing else is said."""
SAMPLED = 1000
"""Training rows, at even distances, in which the beginnings of phrases are looked for."""
SHOWN = 5
"""Phrases that a note names one by one."""

if TYPE_CHECKING:
    from alignkit.plan import Setting
    from alignkit.step import TrainingStep

# -- losses ------------------------------------------------------------------------------------------------------


def unlikelihood(log_p: Tensor, positions: Tensor, tokens: Tensor) -> Tensor:
    """-log(1 - p(token)) at each position, finite and with a gradient where p rounds to 1.

    Below p = 1/2 it is -log1p(-p); above, where 1 - p loses its digits, the other tokens' probabilities are summed.

    Args:
        log_p: [N, V] log-probabilities, normalised over V.
        positions: [M], of N.
        tokens: [M], of V: what is not to be said there.

    Returns:
        [M], in nats.
    """
    at = log_p[positions, tokens]
    likely = at > -math.log(2)
    rest = log_p[positions[likely]].scatter(1, tokens[likely][:, None], -torch.inf).logsumexp(-1)
    complement = torch.log1p(-at.masked_fill(likely, -torch.inf).exp())
    return -complement.masked_scatter(likely, rest)


# -- what is forbidden -------------------------------------------------------------------------------------------


def rejected(
    labels: Sequence[Sequence[int]], wanted: Sequence[Sequence[int]], special: Iterable[int], first: int
) -> tuple[list[int], list[int]]:
    """The tokens of rejected answers, from where they part with the answers that are wanted.

    Args:
        labels: k rows of the rejected answers' labels, -100 where nothing is scored.
        wanted: k rows of the labels of the same examples with the answers that are wanted.
        special: tokens that are never rejected, such as the end of a turn.
        first: the first position that is scored: 1 where the label at t is predicted at t - 1, else 0.

    Returns:
        Positions, numbered row by row among the scored ones, and tokens.
    """
    positions, tokens, number = [], [], 0
    kept = set(special)
    for row, other in zip(labels, wanted, strict=True):
        start, answer = last_answer(row)
        same = _alike(answer, last_answer(other)[1])
        for t in (t for t in range(first, len(row)) if row[t] != IGNORED):
            if t >= start + same and row[t] not in kept:
                positions.append(number)
                tokens.append(row[t])
            number += 1
    return positions, tokens


def last_answer(labels: Sequence[int]) -> tuple[int, list[int]]:
    """Where the last stretch of labels begins, and its tokens."""
    end = max((t + 1 for t, label in enumerate(labels) if label != IGNORED), default=0)
    start = max((t + 1 for t, label in enumerate(labels[:end]) if label == IGNORED), default=0)
    return start, list(labels[start:end])


def _alike(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens two answers begin with alike."""
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def _texts(
    ids: Sequence[Sequence[int]], scored: Sequence[Sequence[bool]], positions: Sequence[Sequence[int]] | None
) -> tuple[Sequence[Sequence[int]], Sequence[Sequence[bool]]]:
    """Texts and what of them is scored; without positions each row is one."""
    return (ids, scored) if positions is None else texts(ids, scored, positions)


class Unlikelihood(Constraint):
    """Teaches a language model what not to say: forbidden phrases, and answers that the data rejects.

    Unlikelihood training (Welleck et al. 2019, arXiv:1908.04319, eq. 3 and 5): -sum_c log(1 - p(c | what stands
    before)) over the tokens c that are forbidden at a position, added to the likelihood of the data with `weight`,
    the paper's alpha. The paper's c are the tokens of the context, against repetition; here they come from two places:

    Forbidden `phrases`: at each scored position the token that would complete a phrase, given the tokens before it
    (the prompt's too). A phrase of one token is forbidden everywhere; one of several only behind its beginning, so
    that it counts for nothing where no row has that beginning. A phrase is looked for as the tokenizer spells it at
    the beginning of a text, after a space and after a quotation mark; case matters. Where the data itself has a
    phrase, likelihood and unlikelihood pull in two directions: filter such rows out (`lexicon`).

    Rejected answers: a row that has text in `column` is run once more with it in the place of its last answer (of a
    chat its completion or last message, of a translation or summary its target). Its tokens are forbidden from the
    first on that differs from the answer which is wanted: what both begin with is to be said. Special tokens, such
    as the end of a turn, are not forbidden.

    The penalty is the sum of both over the micro-batch, divided by the number of tokens that the model is scored on:
    nats per scored token, as the paper's (its code sums both losses and divides by the same number; it also clamps
    1 - p at 1e-5, which stops the gradient where it is needed most, and excludes the right token from c). In an
    adversary's passes the rows are perturbed, rejected answers are not.

    Raises:
        UsageError: before training: a task that does not write from left to right, nothing that is forbidden, a file
            that cannot be read, a phrase that the vocabulary has no tokens for.

    Cost: phrases: a look at each scored token, no pass of their own. Rejected answers: at each loss one forward and
    backward pass of the rows that have one. Rows of `causal-lm` are not packed, as each might have one.

    Relations: `dpo` and its kin weigh a rejected answer against a reference model and stop where the margin is wide;
    this goes on until its tokens are impossible, and needs no reference. The control `forbidden-phrases` makes phrases
    impossible while text is generated, and leaves the model as it is. `continuous` unlearns answers behind perturbed
    prompts.

    Example:
        >>> log_p = torch.tensor([[0.5, 0.25, 0.25]]).log()
        >>> unlikelihood(log_p, torch.tensor([0]), torch.tensor([1])).exp()  # 1 / (1 - 1/4)
        tensor([1.3333])
        >>> forbidden([[7, 3, 5]], [[False, True, True]], {(7, 3): frozenset({9})})
        ([1], [9])
    """

    example: ClassVar[Mapping[str, Any]] = {"phrases": ("bob",)}

    phrases: Path | tuple[str, ...] = ()
    """Phrases that are not to be said, or the path of a UTF-8 file with one on each line (`# ` starts a comment)."""
    column: Annotated[str, Field(min_length=1)] | None = None
    """The data's column with an answer that is not to be given; rows where it is missing or blank have none. By default
    `rejected` where there are no phrases, and no column where there are."""

    backwards: ClassVar[float] = 1.0

    @property
    def _column(self) -> str:
        """The column of rejected answers; empty: none is looked at."""
        return self.column or ("" if self.phrases else REJECTED)

    @property
    def unaligned_views(self) -> tuple[str, ...]:  # type: ignore[override]  # a constant of the class in most components
        """A rejected answer need not be as long as the one that is wanted."""
        return (self.name,)

    @property
    def makes_views(self) -> bool:  # type: ignore[override]  # a constant of the class in most components
        """Rejected answers are looked at."""
        return bool(self._column)

    # -- the data ------------------------------------------------------------------------------------------------

    def check(self, setting: Setting) -> Iterable[Mistake]:
        """The task writes from left to right, and something is forbidden."""
        where = f"constraint {self.name}"
        if not _writes(setting.task):
            found = f"task {setting.task.name} does not write text from left to right"
            expected = "a task of causal or encoder-decoder models that write: chat, dialogue, causal-lm, translation …"
            yield Mistake(where, found, expected)
            return
        try:
            if self._phrases and setting.tokenizer is not None:
                completions(self._phrases, setting.tokenizer())
        except UsageError as error:
            yield from error.mistakes
            return
        texts = [(e, e.get(self._column)) for e in setting.examples]
        odd = [(e, text) for e, text in texts if text is not None and not isinstance(text, str)]
        if odd:
            yield from abridged((self._odd(e, text) for e, text in odd), f"column {self._column!r}")
        elif texts and self._column and not any(self.views(e) for e, _ in texts):
            found = f"no training row with an answer that it could stand for has text in the column {self._column!r}"
            known = {name: "" for example, _ in texts for name in example}
            mend = unmapped(self._column, known) if all(text is None for _, text in texts) else ""
            yield Mistake(where, found, "rows with rejected answers, or `phrases`", mend)

    def notes(self, setting: Setting) -> Iterable[str]:
        """Phrases of which no row has the beginning, so that nothing is learnt of them."""
        if not self._phrases or setting.tokenizer is None or not setting.examples:
            return
        tokenizer, sample = setting.tokenizer(), setting.examples[:: -(-len(setting.examples) // SAMPLED)]
        table, seen = beginnings(self._phrases, tokenizer), set[int]()
        for row in (row for example in sample for row in windows(setting.task.encode(example, tokenizer))):
            read = row["input_ids"] if setting.task.shifts_labels else row["labels"]
            scored = [t >= setting.task.shifts_labels and label != IGNORED for t, label in enumerate(row["labels"])]
            places = [row["position_ids"]] if "position_ids" in row else None
            seen |= {*forbidden(*_texts([read], [scored], places), table)[1]}
        never = [repr(phrase) for number, phrase in enumerate(self._phrases) if number not in seen]
        if never:
            named = ", ".join(never[:SHOWN]) + (f" and {len(never) - SHOWN} more" if len(never) > SHOWN else "")
            yield (
                f"{self.name} learns nothing of {named}: a phrase of several tokens is forbidden behind all but "
                f"the last of them, which none of {len(sample)} training rows has before a token that is learnt"
            )

    def _odd(self, example: Example, found: Any) -> Mistake:
        return Mistake(example.where, f"{self._column!r} is {found!r}", "the text of an answer, or nothing")

    def views(self, example: Example) -> dict[str, Example]:
        """The example with the rejected answer for its last one, where it has one."""
        text = example.get(self._column)
        if text is not None and not isinstance(text, str):
            raise UsageError(self._odd(example, text))
        if not (text and text.strip()):
            return {}
        for name in ("completion", "target"):
            if name in example.targets:
                return {self.name: example.replace(**{name: text})}
        messages = list(example["messages"]) if "messages" in example.inputs else []
        if not messages or messages[-1]["role"] != "assistant":
            return {}
        return {self.name: example.replace(messages=[*messages[:-1], {**messages[-1], "content": text}])}

    # -- the step ------------------------------------------------------------------------------------------------

    @functools.cached_property
    def _phrases(self) -> list[str]:
        return read_phrases(self.phrases, "phrases") if self.phrases else []

    def _table(self, step: TrainingStep) -> Table:
        """The phrases in the model's tokens; kept, as the tokenizer stays the same."""
        if not hasattr(self, "_known"):
            if step.context.tokenizer is None:
                mend = "pass `processing_class=tokenizer`"
                raise UsageError(Mistake(f"constraint {self.name}", "phrases, and no tokenizer", "", mend))
            self._known = completions(self._phrases, step.context.tokenizer)
        return self._known

    def penalty(self, step: TrainingStep, outputs: Any) -> Term:
        """The unlikelihood of what is forbidden, per scored token."""
        batch, shifts = step.current, int(step.context.task.shifts_labels)
        log_p, unit = step.log_probabilities(outputs)
        config = getattr(step.unwrapped, "config", None)
        if unit != "token" or not (shifts or getattr(config, "is_encoder_decoder", False)):
            found = "the model's head does not write text from left to right"
            raise UsageError(Mistake(f"constraint {self.name}", found, "a causal or encoder-decoder language model"))
        total = log_p.new_zeros(())
        if self._phrases:
            scored = batch["labels"] != IGNORED
            scored[:, :shifts] = False
            read = batch["input_ids"].reshape(scored.shape) if shifts else batch["labels"]
            places = batch["position_ids"].reshape(scored.shape).tolist() if "position_ids" in batch else None
            pairs = forbidden(*_texts(read.tolist(), scored.tolist(), places), self._table(step))
            total = total + _summed(log_p, *pairs)
        view = step.views.get(self.name)
        if view is not None and len(view) and batch.get("labels") is step.batch.get("labels"):
            log_q, _ = step.log_probabilities(step.forward(batch=view.batch), view.batch)
            wanted, special = batch["labels"][view.rows].tolist(), step.context.special_ids
            total = total + _summed(log_q, *rejected(view.batch["labels"].tolist(), wanted, special, shifts))
        return Term(total / max(len(log_p), 1), per=unit)


def _summed(log_p: Tensor, positions: list[int], tokens: list[int]) -> Tensor:
    """The unlikelihood of all pairs, differentiable also where there are none."""
    at, what = (torch.tensor(values, dtype=torch.long, device=log_p.device) for values in (positions, tokens))
    return unlikelihood(log_p, at, what).sum()


def _writes(task: Task) -> bool:
    """A causal or an encoder-decoder model's task whose answers are free text."""
    if isinstance(task, Classification | MultipleChoice):
        return False
    return isinstance(task, StockTask) or bool(task.shifts_labels) or task.peft_type == "SEQ_2_SEQ_LM"
