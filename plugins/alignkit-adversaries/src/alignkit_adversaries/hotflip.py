"""HotFlip: tokens replaced by those that raise the loss most, by its gradient."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from alignkit.components import Adversary
from alignkit.errors import Mistake, UsageError
from alignkit_adversaries.pieces import NEVER, piece_classes

if TYPE_CHECKING:
    from alignkit.plan import Setting
    from alignkit.step import TrainingStep

ROOM = 2**24
"""Entries of the largest table of scores, [N, part of the vocabulary], that is held at once: 64 MiB in float32."""


def best_replacements(
    gradient: Tensor, ids: Tensor, classes: Tensor, rows: Callable[[Tensor], Tensor], room: int = ROOM
) -> tuple[Tensor, Tensor]:
    """For each token w the token v != w of its class with the largest first-order gain (E_v - E_w) . g.

    Args:
        gradient: [N, D], dL/de at each token's embedding.
        ids: [N], the tokens.
        classes: [V], the class of each token of the vocabulary; a token is replaced by one of its own class alone.
        rows: gives the embeddings [n, D] of ids [n].
        room: entries of the largest table that is held at once; the vocabulary is searched in parts.

    Returns:
        The gains [N], -inf where the class holds no other token, and the replacements [N].
    """
    gain, found = gradient.new_full(ids.shape, -torch.inf), ids.clone()
    wanted = classes[ids]
    for part in (classes != NEVER).nonzero()[:, 0].split(max(room // max(len(ids), 1), 1)):
        scores = gradient @ rows(part).to(gradient.dtype).T
        scores.masked_fill_((classes[part] != wanted[:, None]) | (part == ids[:, None]), -torch.inf)
        best, at = scores.max(1)
        found = torch.where(best > gain, part[at], found)
        gain = torch.maximum(best, gain)
    return gain - (gradient * rows(ids).to(gradient.dtype)).sum(-1), found


def strongest(gain: Tensor, number: Tensor) -> Tensor:
    """[R, T]: true at the `number` [R] largest of each row's gains [R, T], of those that are positive."""
    order = gain.argsort(dim=1, descending=True, stable=True)
    rank = torch.empty_like(order).scatter_(1, order, torch.arange(gain.shape[1], device=gain.device).expand_as(order))
    return (rank < number[:, None]) & (gain > 0)


class HotFlip(Adversary):
    """Trains on each example and on a version of it in which some tokens are replaced by the worst ones there are.

    Ebrahimi et al. 2018, arXiv:1712.06751, with tokens in place of characters: replacing w by v at position t changes
    the loss by (E_v - E_w) . g_t to first order, where g [B, T, D] is the gradient at the embeddings' output
    in the clean pass and E_v what the embedding layer gives for v. Up to `share` of an example's tokens are replaced,
    those with the largest gains, each at most once and only where the gain is positive; the model trains on
    L(x) + L(x'). First-order gains of different positions add up, so that this greedy choice is the best one under
    the linear approximation; the paper's beam search looks at the loss itself and costs a forward pass per candidate.

    A token is replaced by one of its own kind alone: what begins a word by what begins one, what goes on with a word
    by what does, punctuation by punctuation; so words keep their number and labels stay on their words. Special,
    added, reserved and unused tokens and bytes that are no character are neither replaced nor put in. Nothing asks
    whether the new word means the same (the paper's experiments on words ask that, with word vectors): keep `share`
    small, for a flipped word may no longer bear its label.

    Where labels are the input's own tokens (language models), only positions without a label are replaced: the
    prompt of a chat, the words that masked language modelling leaves visible. In encoder-decoder models it is the
    encoder's input. What `kl-reference` compares with reads the replaced tokens, too.

    Raises:
        UsageError: no tokenizer to tell pieces apart with (`AlignTrainer(processing_class=...)`).

    Cost: two forward and backward passes per step, and the search, a product [N, D] x [D, V] with N the tokens that
    may be replaced: what a language-model head costs in a forward pass. 2.3 to 2.4 times a plain step on MiniLM, half
    of whose weights are its vocabulary (`fgm`: 2.1 to 2.2). At most 64 MiB of scores are held at once.

    Relations: `fgm` and `pgd` move embeddings where no token is; they are stronger and cheaper. This one trains on
    inputs that exist.

    Example:
        >>> HotFlip(share=0.1).passes
        2
    """

    share: Annotated[float, Field(gt=0, le=1)] = 0.15
    """How many of an example's tokens are replaced at most, as a share of those that may be; one always may."""

    passes: ClassVar[int] = 2
    forwards: ClassVar[float] = 0.5

    def check(self, setting: Setting) -> Iterable[Mistake]:
        """Plain language modelling has no position without a label."""
        from alignkit.tasks.causal_lm import CausalLm

        if isinstance(setting.task, CausalLm):
            yield Mistake(
                f"adversary {self.name}",
                f"every token of task {setting.task.name} is a label, so that none may be replaced",
                "a task whose labels are not its inputs, or with a prompt",
                "take fgm, which moves embeddings and leaves labels as they are",
            )

    def attack(self, step: TrainingStep) -> Iterator[Tensor]:
        """The clean loss, then the loss with the tokens that its gradient says are worst."""
        delta = step.zeros()
        yield step.loss(delta)
        assert delta.grad is not None, "the host did not run backward on the first loss"
        yield step.loss(batch={**step.batch, "input_ids": self.flipped(step, step.unit(delta.grad))})

    def flipped(self, step: TrainingStep, gradient: Tensor) -> Tensor:
        """The batch's `input_ids` with replacements.

        Args:
            gradient: [B, T, D], of any scale per example; zero where it was not finite.
        """
        ids = step.batch["input_ids"].reshape(gradient.shape[:2])
        embedding: Any = step.context.embedding
        classes = self._classes(step, len(embedding.weight)).to(ids.device)
        free = step.mask[..., 0].bool() & (classes[ids] != NEVER) & ~_labelled(step)
        with torch.no_grad():  # `forward` and not a call: no hook that perturbs or adds noise takes part
            gain, found = best_replacements(gradient[free], ids[free], classes, embedding.forward)
        gains = gradient.new_full(ids.shape, -torch.inf).masked_scatter_(free, gain)
        number = (self.share * free.sum(1)).long().clamp_min(1)
        replaced = ids.masked_scatter(free, found)
        return torch.where(strongest(gains, number), replaced, ids).view_as(step.batch["input_ids"])

    def _classes(self, step: TrainingStep, size: int) -> Tensor:
        """Of the vocabulary, taken once."""
        tokenizer = step.context.tokenizer
        if not hasattr(tokenizer, "convert_tokens_to_string"):
            found = "no tokenizer, without which words and pieces of words cannot be told apart"
            raise UsageError(
                Mistake(f"adversary {self.name}", found, "a tokenizer", "pass processing_class= to the trainer")
            )
        known = getattr(self, "_known", None)
        if known is None or known[0] is not tokenizer or len(known[1]) != size:
            known = self._known = (tokenizer, piece_classes(tokenizer, size))
        return known[1]


def _labelled(step: TrainingStep) -> Tensor:
    """[B, T]: tokens that are labels themselves; none but in language models."""
    from alignkit.tasks.stock import IGNORED

    ids, labels = step.batch["input_ids"], step.batch.get("labels")
    model: Any = step.unwrapped
    none = torch.zeros(step.mask.shape[:2], dtype=torch.bool, device=ids.device)
    if labels is None or labels.shape != none.shape or model.config.is_encoder_decoder:
        return none
    predicts = step.context.task.shifts_labels or model.get_output_embeddings() is not None
    return torch.ne(labels, IGNORED) if predicts else none
