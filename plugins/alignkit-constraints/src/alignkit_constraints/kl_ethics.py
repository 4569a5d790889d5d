"""Principles taken up into the weights: answers without them like the reference's answers with them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor

from alignkit.components import Batch, Constraint, Term
from alignkit.data import Example
from alignkit.data.features import windows
from alignkit.divergence import reference_divergence
from alignkit.errors import Mistake, UsageError
from alignkit.tasks.stock import IGNORED
from alignkit_constraints.marks import is_marked, nothing_marked
from alignkit_constraints.principles import read_principles, with_principles

if TYPE_CHECKING:
    from alignkit.plan import Setting
    from alignkit.step import TrainingStep

SAMPLED = 100
"""Examples, at even distances, of which the plan looks whether there is room for the principles."""


def paired(labels: Tensor, other_labels: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Which predictions of two batches are about the same token of the same completion, whatever precedes it.

    The n-th label that counts in a row belongs with the n-th in the other version of the row, as far as both go: one
    of them may be cut shorter. A row whose labels differ before that is left out, as the two completions are not the
    same.

    Args:
        labels: [B, T]; -100 where nothing is predicted. The label at t is predicted at t - 1.
        other_labels: [k, T'], of other versions of some rows.
        rows: [k], the rows of the first that they are versions of.

    Returns:
        Two index vectors [N], into the predictions of the first and of the second batch, row by row.
    """
    tokens, counts = _to_the_left(labels[:, 1:])
    other_tokens, other_counts = _to_the_left(other_labels[:, 1:])
    first, other_first = counts.cumsum(0) - counts, other_counts.cumsum(0) - other_counts
    width = min(tokens.shape[1], other_tokens.shape[1])
    place = torch.arange(width, device=labels.device)
    both = place < torch.minimum(counts[rows], other_counts)[:, None]
    same = ((tokens[rows, :width] == other_tokens[:, :width]) | ~both).all(1)
    compared = both & same[:, None]
    return (first[rows, None] + place)[compared], (other_first[:, None] + place)[compared]


def _to_the_left(labels: Tensor) -> tuple[Tensor, Tensor]:
    """Each row's labels that count, in order, followed by the others; and how many count."""
    counted = labels != IGNORED
    order = counted.int().argsort(dim=1, descending=True, stable=True)
    return labels.gather(1, order), counted.sum(1)


class KLEthics(Constraint):
    """Teaches a model to answer without a list of principles as its reference answers with them.

    Context distillation (Askell et al. 2021, arXiv:2112.00861, section 2): KL(p_ref(.|principles, x) ||
    p_theta(.|x)) at each token of the completions, teacher-forced, exact over the vocabulary, in nats per token. Each
    example gets a view in which the principles stand before its system message, or are one where it has none; the
    view is encoded by the task and read by the reference alone, the example by the model as always. Completions are
    the data's: what the principles are to change must be there to be seen, prompts that call for them and the answers
    that they call for.

    The reference is the model with its adapter switched off, a frozen copy, or the model that `reference:` names, in
    evaluation mode. Completions are aligned token by token from their beginnings, as far as truncation leaves both;
    where their tokens differ (the task `dialogue` cut the two into other stretches), the row is left out. An example to
    which the principles leave no room (truncation would cut them first) has no view. A chat template's own default
    system message is not seen beside the principles. In an adversary's passes the model sees the perturbation and the
    reference does not.

    Differs from the paper: the texts are the data's conversations and their completions alone are compared; the prompt
    is a list of principles, not conversations that show them. It works as well as the reference follows its system
    message: a model that ignores it has nothing to teach. The principles that come with the package are ours; read
    them.

    Raises:
        UsageError: a task whose rows have no prompt or messages; principles that cannot be read, or that
            `maximum_length` has no room for; a column to go by that says yes nowhere.

    Cost: one forward pass of the reference per step over examples with views, each longer by the principles (some 200
    tokens), or once per row where its hidden states are cached; [N, V] for both predictions. No further backward pass.

    Relations: `kl-reference` holds on to the reference without principles, and can be used beside it, with a column of
    its own that marks the other rows. `weight: {use: budget, limit: 0.5}` says how near is near enough.

    Example:
        >>> row = Example({"prompt": "Hi", "completion": "Hello."}, inputs=("prompt",), targets=("completion",))
        >>> KLEthics().views(row)["kl-ethics"]["system"].splitlines()[0]
        'You are a helpful assistant, and you keep to these principles:'
    """

    principles: Literal["en", "zh"] | Path = "en"
    """`en` or `zh`, the lists that come with the package, or the path of a UTF-8 text file (`#` begins a comment)."""
    marked: str = ""
    """The column that says which rows it applies to (anything but empty, 0, false, no); empty: to all."""
    direction: Literal["forward", "reverse", "js"] = "forward"
    """`forward`: KL(p_ref || p_theta), distillation; `reverse`: KL(p_theta || p_ref); `js`: Jensen-Shannon."""

    reference: ClassVar[bool] = True

    def __post_init__(self) -> None:
        self._setting: Setting | None = None

    @property
    def unaligned_views(self) -> tuple[str, ...]:  # type: ignore[override]  # a constant of the class in most components
        """A view's completion may be cut shorter than the example's."""
        return (self.name,)

    @cached_property
    def _text(self) -> str:
        text, mistakes = read_principles(str(self.principles))
        if mistakes:
            raise UsageError(*mistakes)
        return text

    # -- the plan ----------------------------------------------------------------------------------------------

    def check(self, setting: Setting) -> Iterable[Mistake]:
        """Principles that can be read, rows that they can be put before, and room for them."""
        where, task = f"constraint {self.name}", setting.task.name
        self._setting = setting  # views know by it what the task's own system message is, and what it would cut
        text, mistakes = read_principles(str(self.principles))
        yield from mistakes
        if mistakes:
            return
        rows = setting.examples
        if not setting.task.shifts_labels or (rows and all(with_principles(row, text) is None for row in rows)):
            found = f"rows of task {task} have no prompt or messages that principles could stand before"
            yield Mistake(where, found, "a task of conversations (chat, dialogue …)", "take kl-reference for others")
        elif unmarked := list(nothing_marked(self.marked, rows, where)):
            yield from unmarked
        elif (sample := self._sample(setting)) and not any(map(self._fits, sample)):
            assert setting.tokenizer is not None  # there is no sample without one
            needed = len(_ids(text, setting.tokenizer()))
            found = f"the principles are {needed} tokens, for which no row that was looked at has room"
            limit = getattr(setting.task, "maximum_length", None)
            mend = f"raise `task.maximum_length` (it is {limit}), or shorten the principles" if limit else ""
            yield Mistake(where, found, "room for the principles and the conversation", mend)

    def ceiling(self, setting: Setting) -> float | None:
        """ln 2 for `js`."""
        return math.log(2) if self.direction == "js" else None

    def notes(self, setting: Setting) -> Iterable[str]:
        """How many rows it does not apply to for want of room."""
        sample = self._sample(setting)
        if left := sum(not self._fits(view) for view in sample):
            limit = getattr(setting.task, "maximum_length", None)
            longer = f"; raise `task.maximum_length` (it is {limit})" if limit else ""
            yield f"{self.name}: {left} of {len(sample)} rows have no room for the principles{longer}"

    def _sample(self, setting: Setting) -> list[Example]:
        """Views of some training rows, if there is a tokenizer to measure them with."""
        if setting.tokenizer is None:
            return []
        views = [view for row in setting.examples if (view := self._view(row)) is not None]
        return views[:: max(1, -(-len(views) // SAMPLED))]

    # -- the data ----------------------------------------------------------------------------------------------

    def views(self, example: Example) -> dict[str, Example]:
        """The example with the principles under the component's name, where it applies and they fit."""
        view = self._view(example)
        return {self.name: view} if view is not None and self._fits(view) else {}

    def _view(self, example: Example) -> Example | None:
        if self.marked and not is_marked(example.get(self.marked)):
            return None
        default = getattr(self._setting.task, "system", "") if self._setting is not None else ""
        return with_principles(example, self._text, default)

    def _fits(self, view: Example) -> bool:
        """As the task encodes it, it holds the principles in full; yes, where there is no tokenizer to see with."""
        known = self._setting
        if known is None or known.tokenizer is None:
            return True
        tokenizer = known.tokenizer()
        wanted = _spaceless(_ids(self._text, tokenizer), tokenizer)
        encoded = windows(known.task.encode(view, tokenizer))
        return all(wanted in _spaceless(window["input_ids"], tokenizer) for window in encoded)

    def counts(self, batch: Batch) -> dict[str, int]:
        """Tokens of the batch that are compared."""
        view = (batch.get("views") or {}).get(self.name)
        own = () if view is None else paired(batch["labels"], view["labels"], view["rows"])[0]
        return {self.name: len(own)}

    # -- the step ----------------------------------------------------------------------------------------------

    def penalty(self, step: TrainingStep, outputs: Any) -> Term:
        """The mean divergence over the tokens that are compared."""
        view = step.views.get(self.name)
        if view is None or step.current.get("labels") is not step.batch.get("labels"):
            return Term(torch.zeros(()), per=self.name)  # over no tokens: not read
        own, with_them = paired(step.batch["labels"], view.batch["labels"], view.rows)
        log_theta, _ = step.log_probabilities(outputs)
        log_reference = step.reference_log_probabilities(view.batch)
        gaps = reference_divergence(log_theta[own], log_reference[with_them], self.direction)
        return Term(gaps.mean(), per=self.name)


def _ids(text: str, tokenizer: Any) -> list[int]:
    found: list[int] = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    return found


def _spaceless(ids: list[int], tokenizer: Any) -> str:
    """The text of ids without its spaces: which tokens a text has at its ends depends on what is beside it."""
    return "".join(tokenizer.decode(ids).split())
