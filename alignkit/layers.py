"""Finding a model's layers, and adding perturbations to what they give."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from alignkit.errors import PluginError, UsageError


@contextlib.contextmanager
def perturbed(
    layer: nn.Module,
    delta: Tensor | Callable[[Tensor], Tensor] | None,
    applies: Callable[[], bool] = lambda: True,
    always: bool = False,
) -> Iterator[None]:
    """Forward passes inside see `delta` added to the layer's output; an error if the layer was never called.

    Args:
        delta: of the output's shape, or what makes it of the output.
        applies: asked at every call of the layer.
        always: hook the layer for nothing, too. A compiled model does not notice that a hook is there which was not
            when its graph was made, but it does notice what the hook adds.
    """
    if delta is None and not always:
        yield
        return
    fired = False

    def add(_module: nn.Module, _inputs: Any, output: Any) -> Any:
        nonlocal fired
        if delta is None or not applies():
            return None
        first = output[0] if isinstance(output, tuple) else output
        added = delta(first) if callable(delta) else delta
        if first.shape != added.shape:
            raise PluginError(f"a perturbation has shape {list(added.shape)}, the layer's output {list(first.shape)}")
        fired = True
        changed = first + added.to(first.dtype)
        return (changed, *output[1:]) if isinstance(output, tuple) else changed

    handle = layer.register_forward_hook(add)
    try:
        yield
    finally:
        handle.remove()
    if not fired and delta is not None:
        raise PluginError(f"{type(layer).__name__} was not called in the forward pass: the perturbation had no effect")


def input_embedding(model: nn.Module) -> nn.Module:
    """The layer that turns the input's ids into embeddings: the encoder's own in an encoder-decoder model."""
    base = _base(model)
    if getattr(base.config, "is_encoder_decoder", False):
        base = base.get_encoder()
    return base.get_input_embeddings()


def mean_embedding_norm(embedding: Any) -> float:
    """Mean L2 norm of what the layer gives for a token, scaled as it scales; zeros (padding) are left out."""
    with torch.no_grad():  # `forward` and not a call: hooks that add noise (NEFTune) are no part of an embedding
        ids = torch.arange(len(embedding.weight), device=embedding.weight.device)
        norms = torch.cat([embedding.forward(part).float().norm(dim=-1) for part in ids.split(16384)])
    return float(norms[norms > 0].mean())


def _base(model: Any) -> Any:
    """The model inside a peft wrapper."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def hidden_layers(model: nn.Module) -> nn.ModuleList:
    """The stack of hidden layers, the encoder's of an encoder-decoder: the list of modules as long as the config says.

    Raises:
        UsageError: there is no such list, as where all layers share one module.
    """
    base = _base(model)
    depth = getattr(base.config, "num_hidden_layers", None)
    stack = base.get_encoder() if getattr(base.config, "is_encoder_decoder", False) else base
    for module in stack.modules():
        if isinstance(module, nn.ModuleList) and len(module) == depth:
            return module
    raise UsageError(f"{type(base).__name__} has no list of {depth} hidden layers that could be perturbed")
