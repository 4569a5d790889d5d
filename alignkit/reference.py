"""The model that another one may not drift from: its outputs, without gradient, in evaluation mode."""

from __future__ import annotations

import contextlib
import copy
import inspect
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from alignkit.errors import PluginError
from alignkit.lm_head import LMHead, hidden_outputs

if TYPE_CHECKING:
    from alignkit.components import Batch, Task

_ANSWERS = ("labels", "start_positions", "end_positions")


class Reference:
    """Frozen outputs to compare a model's with: those of the model without its adapter, or of a second model.

    `Reference.adapter()` needs no memory. It gives back exactly the model that the adapter was put on, its head
    included: with a head that is trained beside the adapter, the *original* head answers, which says something only
    if it was trained before. Otherwise take `Reference.copy(model)`, or `Reference.of(other)`.

    Cost: one forward pass without gradient per call.

    Example:
        >>> reference = Reference.copy(model)
        >>> reference.outputs(model, batch).logits.requires_grad
        False
    """

    def __init__(self, model: nn.Module | None = None):
        self.model = model
        """The second model; None: the trained model itself, its adapter switched off."""

    @classmethod
    def adapter(cls) -> Reference:
        """The model itself with its adapter (LoRA or a prompt) switched off; the model must be a `peft.PeftModel`."""
        return cls()

    @classmethod
    def copy(cls, model: nn.Module) -> Reference:
        """The model as it is now, copied and frozen; hooks are not copied. `model` is unwrapped (no DDP around it)."""
        return cls.of(_without_hooks(copy.deepcopy(model)))

    @classmethod
    def of(cls, model: nn.Module) -> Reference:
        """Another model, which is frozen and put into evaluation mode."""
        return cls(model.requires_grad_(False).eval())

    def outputs(self, model: nn.Module, batch: Batch, task: Task | None = None) -> Any:
        """The reference's outputs for a batch; no loss is computed.

        Args:
            model: the trained model, unwrapped. Its training flags, gradients and adapters are left as they were.
            batch: the model's inputs; labels serve an encoder-decoder model as the decoder's inputs.
            task: says how the model is run, where it has no loss of its own.
        """
        with self._asked(model, batch) as plain:
            outputs = plain(**_inputs(plain, batch)) if task is None or task.stock_loss else task.forward(plain, batch)
            if self.model is None and "head" in outputs:  # an adapter on the head is off only in here
                outputs["head"] = outputs["head"].without_adapter()
            return outputs

    def hidden(self, model: nn.Module, batch: Batch) -> Any:
        """The reference's last hidden states for a batch: `hidden` [B, T, D]; of a causal language model."""
        with self._asked(model, batch) as plain:
            return hidden_outputs(plain, {name: value for name, value in batch.items() if name not in _ANSWERS})

    @contextlib.contextmanager
    def _asked(self, model: nn.Module, batch: Batch) -> Iterator[nn.Module]:
        """The module that answers for a batch, where the batch is; without gradient inside."""
        with torch.no_grad():
            if self.model is None:
                with without_adapter(model) as plain:
                    yield plain
                return
            device = next(iter(batch.values())).device
            if next(self.model.parameters()).device != device:
                self.model.to(device)
            yield self.model

    def head(self, model: nn.Module) -> LMHead:
        """What makes logits of the reference's hidden states."""
        return LMHead.of(self.model) if self.model is not None else LMHead.of(model).without_adapter()


@contextlib.contextmanager
def without_adapter(model: Any) -> Iterator[nn.Module]:
    """Gives the module whose forward passes inside are those of the model without its adapter, in evaluation mode.

    Every module's training flag and every parameter's `requires_grad` is put back as it was: peft's own way of
    switching on again makes all of an adapter trainable.
    """
    if not hasattr(model, "disable_adapter"):
        raise PluginError(f"{type(model).__name__} has no adapter to switch off: take a copy as the reference")
    training = [(module, module.training) for module in model.modules()]
    trainable = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    model.eval()
    try:
        prompted = model.active_peft_config.is_prompt_learning
        with _prompt_off(model) if prompted else model.disable_adapter():
            yield model.base_model if prompted else model
    finally:
        for module, flag in training:
            module.training = flag
        for parameter, flag in trainable:
            parameter.requires_grad_(flag)


@contextlib.contextmanager
def _prompt_off(model: Any) -> Iterator[None]:
    """The heads that are trained beside a prompt as they were; peft leaves them on, and asks each for `generate`."""
    from peft.utils.other import ModulesToSaveWrapper

    heads = [module for module in model.modules() if isinstance(module, ModulesToSaveWrapper)]
    for head in heads:
        head.enable_adapters(False)
    try:
        yield
    finally:
        for head in heads:
            head.enable_adapters(True)


def _inputs(model: Any, batch: Batch) -> Batch:
    """The batch without its answers, which are only there for a loss, and without a cache for generation."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    inputs = {name: value for name, value in batch.items() if name not in _ANSWERS}
    shift = getattr(base, "prepare_decoder_input_ids_from_labels", None)
    if shift is not None and "labels" in batch and "decoder_input_ids" not in batch:
        inputs["decoder_input_ids"] = shift(labels=batch["labels"])
    if "use_cache" in inspect.signature(type(base).forward).parameters:
        inputs.setdefault("use_cache", False)
    return inputs


def _without_hooks(model: nn.Module) -> nn.Module:
    for module in model.modules():
        for name in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks"):
            getattr(module, name).clear()
    return model
