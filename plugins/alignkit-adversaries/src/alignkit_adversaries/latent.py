"""Latent adversarial training: perturbations of hidden states."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Annotated, Literal

import torch
from pydantic import AfterValidator, Field, PositiveFloat, PositiveInt

from alignkit.components import Adversary
from alignkit.errors import Mistake
from alignkit.layers import hidden_layers
from alignkit.plan import FORWARD
from alignkit_adversaries.inner import INNER_STEP, unscaled_inner_gradients

if TYPE_CHECKING:
    from torch import Tensor

    from alignkit.components import Batch
    from alignkit.plan import Setting
    from alignkit.step import TrainingStep

UNSCORED = -100
Share = Annotated[float, Field(gt=0.0, le=1.0)]


def some(layers: tuple[float, ...]) -> tuple[float, ...]:
    """The layers that were named, if any were."""
    if not layers:
        raise ValueError("no layer is named")
    return layers


def token_ascent(delta: Tensor, gradient: Tensor, lengths: Tensor, alpha: float, epsilon: float) -> Tensor:
    """One step of steepest ascent in which every token has a ball of its own.

    delta <- Proj(delta + alpha n g / |g|), with n a token's length, g its gradient and |.| the L2 norm of a token;
    Proj scales a token back to epsilon n. Divides by a token's largest entry before it takes the norm, so that tiny
    gradients have a direction, too; where the gradient is 0, a token stays where it is.

    Args:
        delta: [..., T, D].
        gradient: [..., T, D].
        lengths: [..., T, 1]: n; 0 where nothing may be perturbed.
        alpha: length of the step, as a share of n.
        epsilon: radius of the ball, as a share of n.

    Returns:
        [..., T, D].
    """
    largest = gradient.abs().amax(-1, keepdim=True)
    direction = gradient / torch.where(largest > 0, largest, 1.0)
    moved = delta + alpha * lengths * direction / direction.norm(dim=-1, keepdim=True).clamp_min(0.5)
    norm = moved.norm(dim=-1, keepdim=True)
    return moved * (epsilon * lengths / norm.clamp_min(torch.finfo(norm.dtype).tiny)).clamp_max(1.0)


def before_answers(batch: Batch) -> Tensor:
    """[B, T, 1]: 1 before a row's first scored label, 0 from there on; 1 everywhere where no label is scored.

    Args:
        batch: holds `labels` [B, T], -100 where they are not scored.
    """
    return ((batch["labels"] != UNSCORED).cumsum(-1) == 0)[..., None].float()


class _Hidden:
    """One layer's part of the perturbation: of the shape of the layer's output, which its first call shows."""

    delta: Tensor
    """[B, T, D]: what is added."""
    lengths: Tensor
    """[B, T, 1]: the L2 norms of the clean hidden states."""

    def __call__(self, output: Tensor) -> Tensor:
        if not hasattr(self, "delta"):
            self.lengths = output.detach().float().norm(dim=-1, keepdim=True)
            self.delta = torch.zeros_like(output, dtype=torch.float32, requires_grad=True)
        return self.delta

    @property
    def gradient(self) -> Tensor:
        """[B, T, D]: of the loss that the host went backward on."""
        assert self.delta.grad is not None, "the host did not run backward on the first loss"
        return self.delta.grad


class Latent(Adversary):
    """Trains on each example and on the worst nearby states of its hidden layers, which no input need lead to.

    Latent adversarial training, Casper et al. 2024, arXiv:2403.05030, with the per-token balls and the several layers
    of Sheshadri et al. 2024, arXiv:2407.15549: delta is added to the output of the chosen layers and ascends the
    training loss of whatever task it is (there that of a harmful completion), in all layers together. Per token and
    layer delta <- Proj(delta + alpha n g / |g|) from 0, with |.| a token's L2 norm, n that of its clean hidden state,
    and Proj back into the ball of radius epsilon n. Only gradients for delta are taken.

    n makes one epsilon suit every layer and model: hidden states are not of the embeddings' scale (on MiniLM 12 to 13
    by layer, against 1.07), and a residual stream's norm grows with depth. Sheshadri et al. give epsilon absolutely (6
    for Llama-3-8B, after layers 8, 16, 24 and 30 of 32 and at the embeddings) and take 16 steps of Adam, which knows no
    such scale; here a step has a length. Their attack is aimed at the prompt: `tokens: prompt`.

    With `clean` the model trains on the clean loss, too, whose backward pass gives the first of the `steps` gradients.
    Real tokens only: no padding, no special tokens, no virtual tokens of a prompt method. Of an encoder-decoder model
    the encoder's layers are meant. Neither views of an example nor a reference model see the perturbation.

    Cost: with `clean`, 2 forward and backward passes and steps - 1 inner ones, each a forward pass and the way back to
    the lowest layer chosen: 3.0 times a plain step at 3 steps in the middle of the model (MiniLM, CPU); without, 1
    pass, `steps` inner ones and a forward pass. Memory: 3 [B, T, D] per layer.

    Relations: `pgd` perturbs the embeddings, which inputs can reach; deeper layers stand for more abstract changes and
    cost less per step.

    Example:
        >>> Latent(layers=(0.25, 0.5, 0.75)).passes
        2
    """

    layers: Annotated[tuple[Share, ...], AfterValidator(some)] = (0.5,)
    """After which share of the layers, for models of any depth: 0.5 is the output of the 6th of 12, 1 of the last."""
    epsilon: PositiveFloat = 0.03
    """L2 radius of the perturbation of one token, as a share of the norm of its hidden state at that layer."""
    alpha: PositiveFloat = 0.015
    """Length of one step for each token, as a share of the norm of its hidden state."""
    steps: PositiveInt = 3
    """Gradient steps from the clean states to those that are trained on."""
    tokens: Literal["all", "prompt"] = "all"
    """`all`; or `prompt`: those before the first label that is scored, for causal language models."""
    clean: bool = True
    """Train on the clean loss as well; its gradient is the first step's."""

    @property
    def passes(self) -> int:  # type: ignore[override]  # a constant of the class in most adversaries
        """Losses that are trained on."""
        return 2 if self.clean else 1

    @property
    def inner(self) -> int:
        """Gradients that are taken with respect to the perturbation alone."""
        return self.steps - 1 if self.clean else self.steps

    @property
    def forwards(self) -> float:  # type: ignore[override]
        """What the inner steps cost, in forward passes: the way back ends at the lowest layer."""
        back = (INNER_STEP - FORWARD) * (1.0 - min(self.layers))
        return self.inner * (FORWARD + back) + (0.0 if self.clean else FORWARD)

    def check(self, setting: Setting) -> Iterable[Mistake]:
        """What inner gradients cannot go with; prompts, where there are none."""
        if self.inner:
            yield from unscaled_inner_gradients(self, setting)
        if self.tokens == "prompt" and not setting.task.shifts_labels:
            where, found = f"adversary {self.name}", "`tokens: prompt`, and the task has no prompt that labels follow"
            yield Mistake(where, found, "a causal language model's task", "set `tokens: all`")

    def attack(self, step: TrainingStep) -> Iterator[Tensor]:
        """The clean loss, unless it is left out, then the loss at the end of the ascent."""
        depth = len(hidden_layers(step.unwrapped))
        states = {place: _Hidden() for place in sorted({layer_at(share, depth) for share in self.layers})}
        with contextlib.ExitStack() as hooks:
            for place, state in states.items():
                hooks.enter_context(step.latent(place, state))
            if self.clean:
                yield step.loss()  # the host runs backward before it asks for the next
            else:
                with torch.no_grad():
                    step.forward()  # how large the states are
            parts = list(states.values())
            lengths = torch.stack([part.lengths for part in parts], 1) * self._mask(step, parts[0].lengths.shape[1])
            delta = torch.stack([part.delta for part in parts], 1).detach()
            if self.clean:
                delta = self._ascended(step, delta, torch.stack([part.gradient for part in parts], 1), lengths)
            for _ in range(self.inner):
                _put(parts, delta.requires_grad_())
                delta = self._ascended(step, delta, step.gradient(delta, step.loss), lengths)
            _put(parts, delta)
            yield step.loss()

    def _ascended(self, step: TrainingStep, delta: Tensor, gradient: Tensor, lengths: Tensor) -> Tensor:
        """One step further. Each [B, L, T, D] for L layers; `lengths` [B, L, T, 1]."""
        shown = (lengths > 0).float().flatten(1, 2)
        finite = step.unit(gradient.flatten(1, 2), shown).view_as(delta)  # nothing where an example's is not finite
        return token_ascent(delta.detach(), finite, lengths, self.alpha, self.epsilon)

    def _mask(self, step: TrainingStep, length: int) -> Tensor:
        """[B, 1, T, 1]: 1 where hidden states may be perturbed, of `length` T, which virtual tokens may add to."""
        mask = step.mask * before_answers(step.batch) if self.tokens == "prompt" else step.mask
        peft = getattr(step.unwrapped, "active_peft_config", None)
        longer = length - mask.shape[1]
        before = min(longer, getattr(peft, "num_virtual_tokens", 0))  # the rest is padding that the model adds behind
        return torch.nn.functional.pad(mask, (0, 0, before, longer - before))[:, None]


def layer_at(share: float, depth: int) -> int:
    """The layer whose output ends this share of the layers, from 0: half of 12 is layer 5, of 1 layer 0."""
    return max(int(share * depth + 0.5), 1) - 1


def _put(parts: list[_Hidden], delta: Tensor) -> None:
    """Perturb from now on by `delta` [B, L, T, D], layer by layer."""
    for part, own in zip(parts, delta.unbind(1), strict=True):
        part.delta = own
