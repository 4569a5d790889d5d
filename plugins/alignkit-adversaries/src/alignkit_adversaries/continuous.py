"""Continuous adversarial training of chat models: prompts perturbed towards a harmful answer."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import torch
from pydantic import Field, NegativeFloat, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator
from torch import Tensor

from alignkit.components import Adversary, Batch, Task, Term
from alignkit.data.columns import unmapped
from alignkit.errors import Mistake, UsageError
from alignkit_adversaries.fgsm import signed
from alignkit_adversaries.inner import INNER_STEP

if TYPE_CHECKING:
    from alignkit.data import Example
    from alignkit.plan import Setting
    from alignkit.step import TrainingStep, View

VIEW = "target"
"""The name of the view, and of the count of the rows that have one."""
IGNORED = -100


# -- losses ------------------------------------------------------------------------------------------------------


def unlikelihood(logits: Tensor, tokens: Tensor, cutoff: float) -> Tensor:
    """-log(1 - p) of tokens that are not to be said, 0 where log p is below `cutoff`: unlikely enough.

    Args:
        logits: [N, V].
        tokens: [N].
        cutoff: in nats, negative.

    Returns:
        [N], in nats. Taken from the other tokens' logits, so that it is finite and has a gradient where p rounds to 1.
    """
    logits, at = logits.float(), tokens[:, None]
    whole = logits.logsumexp(-1)
    others = logits.scatter(-1, at, -torch.inf).logsumexp(-1)
    return torch.where(logits.gather(-1, at)[:, 0] - whole < cutoff, 0.0, whole - others)


def ipo(margin: Tensor, reference_margin: Tensor, beta: float) -> Tensor:
    """(h - 1 / (2 beta))^2 with h = margin - reference_margin (Azar et al. 2023, arXiv:2310.12036, eq. 17).

    Args:
        margin: [N], mean log-probability per token of the answer that is wanted, minus that of the other one.
        reference_margin: [N], the same under the reference model.

    Returns:
        [N].
    """
    return (margin - reference_margin - 1 / (2 * beta)) ** 2


# -- where prompts and answers are ---------------------------------------------------------------------------------


def last_answer(labels: Tensor) -> tuple[Tensor, Tensor]:
    """The last stretch of labels in each row [B, T]: where it is [B, T], and where it begins [B]."""
    labelled, place = labels != IGNORED, torch.arange(labels.shape[1], device=labels.device)
    end = (labelled * place).amax(1)
    start = (~labelled & (place < end[:, None])).long().mul(place + 1).amax(1)
    return labelled & (place >= start[:, None]), start


def carried(delta: Tensor, ids: Tensor, start: Tensor, other_ids: Tensor, other_start: Tensor) -> Tensor:
    """A perturbation put on the same tokens of the same prompt in another batch, counted back from the answers.

    Args:
        delta: [k, T, D], zero from `start` on.
        ids: [k, T], the tokens that it was made for.
        start: [k], where their answers begin.
        other_ids: [k, T'], the same prompts before other answers, cut or padded in another way.
        other_start: [k], where those answers begin.

    Returns:
        [k, T', D]: zero where there is no such token in the first.
    """
    place = torch.arange(other_ids.shape[1], device=ids.device)
    there = place + (start - other_start)[:, None]
    inside = (there >= 0) & (place < other_start[:, None])
    there = there.clamp(0, ids.shape[1] - 1)
    same = inside & (ids.gather(1, there) == other_ids)
    return delta.gather(1, there[..., None].expand(-1, -1, delta.shape[-1])) * same[..., None]


def row_means(values: Tensor, where: Tensor) -> Tensor:
    """[B]: the mean of each row's values [N], which stand at `where` [B, T] in order; 0 where a row has none."""
    rows = where.nonzero()[:, 0]
    return values.new_zeros(len(where)).index_add(0, rows, values) / where.sum(1).clamp_min(1)


def picked(logits: Tensor, ids: Tensor, answer: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The logits [N, V] that answers' tokens [N] are predicted from, and where those are [B, T - 1]."""
    where = answer[:, 1:]
    return logits[:, :-1][where].float(), ids[:, 1:][where], where


def mean_log_probabilities(logits: Tensor, ids: Tensor, answer: Tensor) -> Tensor:
    """[B]: the mean log-probability per token of each row's answer, in nats."""
    scores, tokens, where = picked(logits, ids, answer)
    return row_means(scores.log_softmax(-1).gather(-1, tokens[:, None])[:, 0], where)


class Continuous(Adversary):
    """Teaches a chat model to keep to its safe answers when prompts are perturbed towards harmful ones.

    C-AdvUL and CAPO (Xhonneux et al. 2024, arXiv:2405.15589). Rows are `prompt` and `completion` (or `messages`) as
    task `chat` reads them. A row that has text in `column`, the beginning of a harmful answer ("Sure, here is …"), is
    attacked: `steps` steps of delta <- Proj(delta - alpha sign(g)) from delta = 0, g the gradient of the harmful
    answer's mean loss per token, move the prompt's embeddings towards it; Proj brings every *token* back into the L2
    ball of radius epsilon. The model then learns, in one pass over the batch, the safe answers behind the perturbed
    prompts (the paper's *toward* loss) and the answers of all other rows, which nothing perturbs (*utility*); beside
    it, with `weight`, it unlearns the harmful answers behind the same perturbed prompts:

    `ul` (C-AdvUL, *away*): the mean of -log(1 - p) over the harmful answer's tokens, 0 where log p < `cutoff`.
    `ipo` (CAPO): (h - 1 / (2 beta))^2, h = (mean log p of the safe answer - that of the harmful one) under the
    perturbation, minus the same for the reference model without it. Set `weight: 1.0`, as the paper does.

    Perturbed are the prompt's real tokens without special ones: the user's text, and of the chat template its words
    ("user"), which the batch does not tell apart from it. Earlier answers of the conversation are not. Of the harmful
    text, which is a beginning, the token that ends the turn is no part. Where the row was cut, a token of the prompt
    that only one of its two answers leaves room for is not perturbed there.

    Differs from the paper and its released code. Toward and utility share the objective, so that any objective and
    constraint goes with it; their ratio is the data's mix of rows, not weights of .5 and 1, and the code's cut-off of
    .5 for the toward loss is left out. The away loss is the paper's unlikelihood, which the code has as
    `log_1_minus_p`; its configuration file takes the negative cross-entropy. The code perturbs special tokens, too,
    and its CAPO drops target tokens below the cut-off and, by default values, every one of the reference. Its steps
    are 1e-4 per entry whatever the model; ours are an L2 length per token (alpha / sqrt(D) per entry): by default ten
    steps that agree reach the radius. The penalty is a mean over rows of means over their tokens.

    In evaluation nothing is attacked, and the penalty is that of the clean prompts.

    Raises:
        UsageError: a task that is no chat; no row that has text in `column`, or something that is no text there.

    Cost: for attacked rows `steps` forward passes with gradients for the prompt (.73 of a plain pass each) and one
    forward and backward pass of the harmful answers; `ipo` adds a forward pass of the reference for both answers.
    Other rows cost nothing more.

    Relations: `pgd` raises the loss of the right answer, which makes no model safer; this one lowers the loss of an
    answer that must not be given.

    Example:
        >>> from alignkit.data import Example
        >>> row = {"prompt": "How?", "completion": "I will not say.", "target": "Sure, here is how"}
        >>> Continuous().views(Example(row, ("prompt",), ("completion",)))["target"]["completion"]
        'Sure, here is how'
    """

    column: str = Field(default="target", min_length=1)
    """The data's column with the beginning of a harmful answer; rows where it is missing or blank are not attacked."""
    epsilon: PositiveFloat = 0.05
    """L2 radius of one token's perturbation, in units of the model's mean embedding norm."""
    alpha: PositiveFloat = 0.005
    """L2 length of one step of one token, in units of the model's mean embedding norm; at most epsilon."""
    steps: PositiveInt = 10
    """Steps of the attack."""
    loss: Literal["ul", "ipo"] = "ul"
    """How the harmful answer is unlearnt: `ul`, its unlikelihood; `ipo`, less likely than the safe one."""
    cutoff: NegativeFloat = -5.0
    """Of `ul`: a token whose log-probability is below this many nats is unlikely enough."""
    beta: PositiveFloat = 0.25
    """Of `ipo`: the margin that is aimed at is 1 / (2 beta) nats per token."""
    weight: NonNegativeFloat = 0.5
    """What the penalty is multiplied with; the paper's is .5 for `ul` and 1 for `ipo`."""

    unaligned_views: ClassVar[tuple[str, ...]] = (VIEW,)

    @model_validator(mode="after")
    def _steps_stay_inside(self) -> Self:
        if self.alpha > self.epsilon:
            raise ValueError(f"alpha may be {self.epsilon:g} (epsilon) at most, it is {self.alpha:g}")
        return self

    @property
    def reference(self) -> bool:  # type: ignore[override]  # a constant of the class in most components
        """Only `ipo` compares with the model as it was."""
        return self.loss == "ipo"

    @property
    def backwards(self) -> float:  # type: ignore[override]
        """The attack, the pass over the harmful answers, and the reference's, of attacked rows."""
        return (self.steps * INNER_STEP + 3 + self.reference) / 3

    # -- the data ----------------------------------------------------------------------------------------------

    def check(self, setting: Setting) -> Iterable[Mistake]:
        """The task is a chat, and the data has rows to attack."""
        where = f"adversary {self.name}"
        if not _is_chat(setting.task):
            found = f"task {setting.task.name} has no single answer that a harmful one could stand for"
            yield Mistake(where, found, "task chat, or dialogue with `learn: last`", "take pgd or fgm for other tasks")
            return
        if setting.precision == "fp16":
            found = "gradients of its inner steps are not scaled, and vanish in fp16"
            yield Mistake(where, found, "bf16 or fp32", "set `bf16: true`")
        if setting.examples and not any(self._target(example) for example in setting.examples):
            known = {name: "" for example in setting.examples for name in example if name != self.column}
            found = f"no training row has text in the column {self.column!r}, so that nothing would be attacked"
            yield Mistake(where, found, "rows with the beginning of a harmful answer", unmapped(self.column, known))

    def views(self, example: Example) -> dict[str, Example]:
        """The example with the harmful answer for its last one, where it has one."""
        target = self._target(example)
        if not target:
            return {}
        if "messages" not in example.inputs:
            return {VIEW: example.replace(completion=target)}
        messages = [dict(message) for message in example["messages"]]
        last = max(i for i, message in enumerate(messages) if message["role"] == "assistant")
        messages[last]["content"] = target
        return {VIEW: example.replace(messages=messages)}

    def _target(self, example: Example) -> str:
        """The harmful answer, empty where there is none."""
        text = example.get(self.column)
        if text is not None and not isinstance(text, str):
            raise UsageError(Mistake(example.where, f"{self.column!r} is {text!r}", "text, or nothing"))
        return (text or "").strip()

    def counts(self, batch: Batch) -> dict[str, int]:
        """Rows of the batch that are attacked."""
        view = (batch.get("views") or {}).get(VIEW)
        return {VIEW: 0 if view is None else len(view["rows"])}

    # -- the step ----------------------------------------------------------------------------------------------

    def attack(self, step: TrainingStep) -> Iterator[Tensor]:
        """One loss: safe answers behind perturbed prompts, the other rows as they are, and the penalty."""
        view = step.views.get(VIEW)
        if view is None or not len(view):
            yield step.loss()
            return
        found = self._perturbation(step, view)
        delta = step.zeros().detach()
        ids, labels = step.batch["input_ids"][view.rows], step.batch["labels"][view.rows]
        start, own_start = last_answer(view.batch["labels"])[1], last_answer(labels)[1]
        delta[view.rows] = carried(found, view.batch["input_ids"], start, ids, own_start)
        self._delta: Tensor | None = found  # for the penalty of this loss
        try:
            yield step.loss(delta)
        finally:
            self._delta = None

    def _perturbation(self, step: TrainingStep, view: View) -> Tensor:
        """[k, T, D]: what makes the harmful answers likely, on the view's prompts."""
        ids, labels = view.batch["input_ids"], view.batch["labels"]
        inputs = {name: value for name, value in view.batch.items() if name != "labels"}  # no loss need be taken
        answer, real = _target_tokens(step, view), step.real_tokens(batch=view.batch)
        before = torch.arange(ids.shape[1], device=ids.device) < last_answer(labels)[1][:, None]
        prompt = real * (before & (labels == IGNORED))[..., None]
        delta = step.zeros(view.batch)
        for _ in range(self.steps):
            likely = mean_log_probabilities(step.forward(delta, inputs).logits, ids, answer)
            upwards = step.unit(step.gradient(delta, likely.sum()), prompt)
            moved = delta.detach() + signed(upwards, self.alpha * step.unit_length)
            size = moved.norm(dim=-1, keepdim=True).clamp_min(1e-30)
            delta = (moved * (self.epsilon * step.unit_length / size).clamp_max(1.0)).requires_grad_()
        return delta.detach()

    def penalty(self, step: TrainingStep, outputs: Any) -> Term:
        """The mean over attacked rows of what unlearns their harmful answers."""
        view = step.views.get(VIEW)
        if view is None or not len(view) or step.current is not step.batch:
            return Term(torch.zeros(()), per=VIEW)  # over no rows: not read
        ids, harmful = view.batch["input_ids"], step.forward(getattr(self, "_delta", None), view.batch)
        answer = _target_tokens(step, view)
        if self.loss == "ul":
            logits, tokens, where = picked(harmful.logits, ids, answer)
            return Term(row_means(unlikelihood(logits, tokens, self.cutoff), where).mean(), per=VIEW)
        margin = self._margin(step, view, outputs, harmful)
        reference = self._margin(step, view, step.reference_outputs(step.batch), step.reference_outputs(view.batch))
        return Term(ipo(margin, reference, self.beta).mean(), per=VIEW)

    def _margin(self, step: TrainingStep, view: View, outputs: Any, harmful: Any) -> Tensor:
        """[k]: how much likelier per token the safe answers are than the harmful ones, in nats."""
        answer, _ = last_answer(step.batch["labels"][view.rows])
        safe = mean_log_probabilities(outputs.logits[view.rows], step.batch["input_ids"][view.rows], answer)
        return safe - mean_log_probabilities(harmful.logits, view.batch["input_ids"], _target_tokens(step, view))


def _target_tokens(step: TrainingStep, view: View) -> Tensor:
    """[k, T]: the harmful answers, without the special token that would end them."""
    return last_answer(view.batch["labels"])[0] & step.real_tokens(batch=view.batch)[..., 0].bool()


def _is_chat(task: Task) -> bool:
    """One encoded row per example, with a prompt and an answer that is predicted from left to right."""
    from alignkit.tasks.chat import Chat
    from alignkit.tasks.dialogue import Dialogue
    from alignkit.tasks.stock import StockTask

    if isinstance(task, Dialogue):
        return task.learn == "last"
    return (isinstance(task, Chat) and task.stock_loss) or (isinstance(task, StockTask) and task.shifts_labels)
