"""Parameters that training is to leave alone."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any

from alignkit.errors import Mistake, UsageError, nearest

_EMBEDDINGS = {"embeddings", "embed_tokens", "embed_positions", "embedding", "shared", "wte", "wpe"}
_LAYERS = re.compile(r"layers\.(\d+)(?:-(\d+))?")


def freeze(model: Any, patterns: Iterable[str]) -> list[str]:
    """Parameters that a pattern names need no gradient any more.

    Args:
        model: a transformers model.
        patterns: `embeddings`; `layers.3` or `layers.0-3` (hidden layers from, to and including); a part of a
            parameter's dotted name (`encoder.layer.0`, `classifier`); or a regular expression for a whole name.

    Returns:
        The names of the parameters that were frozen.

    Raises:
        UsageError: a pattern that names nothing, or nothing left to train.
    """
    names = [name for name, _ in model.named_parameters()]
    mistakes, frozen = [], set()
    for pattern in patterns:
        try:
            found = set(_named(model, names, pattern))
        except UsageError as error:
            mistakes += error.mistakes
            continue
        frozen |= found
        if not found:
            mistakes.append(Mistake(f"freeze {pattern!r}", "it names no parameter", "", _mend(model, names, pattern)))
    if not mistakes and len(frozen) == len(names):
        mistakes.append(Mistake("freeze", "every parameter is frozen", "something to train", "freeze less"))
    if mistakes:
        raise UsageError(*mistakes)
    for name, parameter in model.named_parameters():
        if name in frozen:
            parameter.requires_grad_(False)
    return [name for name in names if name in frozen]


def _named(model: Any, names: list[str], pattern: str) -> Iterator[str]:
    layers = _LAYERS.fullmatch(pattern)
    if pattern == "embeddings":
        yield from (name for name in names if _EMBEDDINGS & set(name.split(".")))
    elif layers:
        first, last = int(layers[1]), int(layers[2] or layers[1])
        wanted = {id(p) for layer in _hidden_layers(model)[first : last + 1] for p in layer.parameters()}
        if last < len(_hidden_layers(model)):
            yield from (name for name, parameter in model.named_parameters() if id(parameter) in wanted)
    else:
        expression = _expression(pattern)
        yield from (name for name in names if f".{pattern}." in f".{name}." or expression.fullmatch(name))


def _hidden_layers(model: Any) -> Any:
    from alignkit.layers import hidden_layers

    return hidden_layers(model)


def _expression(pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except re.error as error:
        where = f"freeze {pattern!r}"
        raise UsageError(Mistake(where, f"not a regular expression ({error})", "a name or an expression")) from None


def _mend(model: Any, names: list[str], pattern: str) -> str:
    if _LAYERS.fullmatch(pattern):
        return f"the model's layers are layers.0-{len(_hidden_layers(model)) - 1}"
    parts = {".".join(name.split(".")[i:j]) for name in names for j in range(1, 5) for i in range(j)} - {""}
    guess = nearest(pattern, {"embeddings", *parts, *names})
    return guess if guess.startswith("did you mean") else nearest(pattern, {name.split(".")[0] for name in names})
