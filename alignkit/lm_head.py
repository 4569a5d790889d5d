"""A language model's output layer, evaluated only where a loss looks, and there in chunks.

A vocabulary of 50,000 makes the logits of a batch the largest tensor of a training step. `hidden_outputs` runs a model
without them; `LMHead` makes those that are asked for, some rows at a time, and never keeps them for the way back.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers.utils import ModelOutput

from alignkit.errors import Mistake, UsageError

CHUNK = 128
"""Rows of logits that are there at a time: 25 MB at a vocabulary of 49,152."""


@dataclass(frozen=True)
class LMHead:
    """The output layer of one forward pass: hidden states [N, D] to logits [N, V].

    Weights are taken as they stood in that pass, so that it stays right where they are swapped for it.
    """

    weight: Tensor
    """[V, D]."""
    bias: Tensor | None = None
    module: nn.Module | None = None
    """Where the layer is no plain linear one (it carries an adapter): what is called instead."""
    scale: float = 1.0
    """Logits are multiplied with it."""
    cap: float | None = None
    """Logits x are squashed to cap * tanh(x / cap)."""

    @classmethod
    def of(cls, model: nn.Module) -> LMHead:
        """The head of a transformers or peft model, as its config says that logits are made."""
        base = unwrapped(model)
        layer: Any = base.get_output_embeddings()
        config = base.config.get_text_config()
        scale = float(getattr(config, "logit_scale", None) or 1.0) / float(getattr(config, "logits_scaling", None) or 1)
        cap = getattr(config, "final_logit_softcapping", None)
        if type(layer) is nn.Linear:
            return cls(layer.weight, layer.bias, None, scale, cap)
        return cls(layer.weight, getattr(layer, "bias", None), layer, scale, cap)

    def without_adapter(self) -> LMHead:
        """The layer as it was before an adapter was put on it."""
        layer: Any = self.module
        layer = getattr(layer, "original_module", getattr(layer, "base_layer", None))
        return self if layer is None else replace(self, weight=layer.weight, bias=layer.bias, module=None)

    @property
    def frozen(self) -> bool:
        """No gradient is to reach it."""
        asked = self.module.parameters() if self.module is not None else (self.weight, self.bias)
        return not any(p is not None and p.requires_grad for p in asked)

    def logits(self, hidden: Tensor) -> Tensor:
        """[..., V] in float32 of hidden states [..., D]."""
        found = self.module(hidden) if self.module is not None else nn.functional.linear(hidden, self.weight, self.bias)
        return self._finished(found)

    def _finished(self, logits: Tensor) -> Tensor:
        logits = logits.float()
        if self.scale != 1.0:
            logits = logits * self.scale
        return logits if self.cap is None else self.cap * torch.tanh(logits / self.cap)

    def log_probabilities(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """[N]: log p(target) in nats for hidden states [N, D] and token ids [N]; differentiable, in chunks."""

        def of(logits: Tensor, targets: Tensor) -> Tensor:
            return -nn.functional.cross_entropy(logits, targets, reduction="none")

        return self.rowwise(of, hidden, targets)

    def rowwise(self, function: Callable[..., Tensor], hidden: Tensor, *beside: Tensor, chunk: int = CHUNK) -> Tensor:
        """[N]: a function of each row's logits, without all rows' logits in memory at once.

        With a frozen head the gradient for the hidden states is made in the same go, and no logits are made a second
        time; with a head in training each chunk is made again on the way back.

        Args:
            function: of float32 logits [n, V], and of n rows of each of `beside`, gives [n]; row by row.
            hidden: [N, D].
            beside: tensors [N, ...] that need no gradient.
        """
        if not len(hidden):
            return hidden.new_zeros(0, dtype=torch.float32) + hidden.sum() * 0.0
        if self.frozen:
            result: Tensor = _Frozen.apply(hidden, self, function, chunk, *beside)
            return result

        def part(hidden: Tensor, *beside: Tensor) -> Tensor:
            return function(self.logits(hidden), *beside)

        parts = zip(hidden.split(chunk), *(tensor.split(chunk) for tensor in beside), strict=True)
        if not torch.is_grad_enabled():
            return torch.cat([part(*rows) for rows in parts])
        checkpoint = torch.utils.checkpoint.checkpoint
        return torch.cat([checkpoint(part, *rows, use_reentrant=False) for rows in parts])


class _Frozen(torch.autograd.Function):
    """A row-wise function of a frozen head's logits; keeps its gradient [N, D] for the hidden states."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, head: LMHead, function: Callable[..., Tensor], chunk: int, *beside: Tensor
    ) -> Tensor:
        asked = ctx.needs_input_grad[0]
        values, gradients = [], []
        for part, *rows in zip(hidden.split(chunk), *(tensor.split(chunk) for tensor in beside), strict=True):
            if head.module is None:
                raw = nn.functional.linear(part, head.weight, head.bias)
                with torch.set_grad_enabled(asked):
                    leaf = raw.detach().requires_grad_(asked)
                    value = function(head._finished(leaf), *rows)
                if asked:
                    gradient = torch.autograd.grad(value, leaf, torch.ones_like(value))[0]
                    gradients.append((gradient.to(head.weight.dtype) @ head.weight).to(hidden.dtype))
            else:
                with torch.set_grad_enabled(asked):
                    leaf = part.detach().requires_grad_(asked)
                    value = function(head.logits(leaf), *rows)
                if asked:
                    gradients.append(torch.autograd.grad(value, leaf, torch.ones_like(value))[0])
            values.append(value.detach())
        if asked:
            ctx.save_for_backward(torch.cat(gradients))
        return torch.cat(values)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        (gradients,) = ctx.saved_tensors
        return (gradients * upstream[:, None].to(gradients.dtype), *[None] * (len(ctx.needs_input_grad) - 1))


def hidden_outputs(model: nn.Module, inputs: dict[str, Any]) -> ModelOutput:
    """`hidden` [B, T, D], the last layer's output after its norm, and the `head`; of logits the last position's alone.

    Args:
        model: a causal language model, wrapped for several processes or not.
        inputs: what its `forward` takes.
    """
    base = unwrapped(model)
    known = inspect.signature(type(base).forward).parameters
    fewer = {name: value for name, value in (("use_cache", False), ("logits_to_keep", 1)) if name in known}
    seen: dict[str, Tensor] = {}
    hooks = []
    for name, body in (("body", getattr(base, base.base_model_prefix)), ("decoder", base.get_decoder())):

        def keep(module: nn.Module, given: Any, outputs: Any, name: str = name) -> None:
            seen[name] = outputs[0]

        hooks += [body.register_forward_hook(keep)] if body is not base else []
    try:
        model(**inputs, **fewer)
    finally:
        for hook in hooks:
            hook.remove()
    hidden = seen["body"] if "body" in seen else seen["decoder"]  # some models go past their own body to its decoder
    return ModelOutput(hidden=hidden, head=LMHead.of(model))


@torch.no_grad()
def deviation(model: nn.Module) -> float:
    """How far the logits that `LMHead` makes lie from the model's own, relative to their size.

    0 but for rounding where the head is what it is taken for: a linear layer, with what configs say of it. Models that
    make logits in another way are told apart by this, at the cost of two forward passes of four tokens.

    Args:
        model: a causal language model, in evaluation mode.
    """
    base = unwrapped(model)
    ids = torch.arange(1, 5, device=next(base.parameters()).device)[None] % base.config.get_text_config().vocab_size
    expected = base(input_ids=ids).logits.float()
    outputs = hidden_outputs(base, {"input_ids": ids})
    return float((outputs.head.logits(outputs.hidden) - expected).norm() / expected.norm().clamp_min(1e-12))


DEVIATION = 1e-2
"""Relative deviation of logits above which a head is not what it is taken for; TF32 and half precision stay below."""


def refuse_other_heads(model: nn.Module, mend: str) -> None:
    """Raise UsageError where the model makes its logits in another way than `LMHead` does.

    Args:
        mend: what can be done instead.
    """
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        off = deviation(model)
    finally:
        for module, training in modes.items():
            module.training = training
    if not off < DEVIATION:
        kind = unwrapped(model).config.model_type
        found = f"{kind} makes logits in a way of its own: those made of its hidden states are off by {off:.0%}"
        raise UsageError(Mistake("model", found, "an output layer that is linear", mend))


def unwrapped(model: Any) -> Any:
    """The transformers model inside wrappers for several processes and inside peft's."""
    from accelerate.utils import extract_model_from_parallel

    model = extract_model_from_parallel(model)
    return model.get_base_model() if hasattr(model, "get_base_model") else model
