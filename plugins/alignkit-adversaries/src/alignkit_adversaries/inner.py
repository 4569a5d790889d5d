"""Gradients for a perturbation alone, between the passes that are trained on: what they cost, and cannot go with."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from alignkit.errors import Mistake
from alignkit.plan import FORWARD, STEP

if TYPE_CHECKING:
    from alignkit.components import Component
    from alignkit.plan import Setting

INNER_STEP = 3 * 0.73
"""Forward passes that a step of an ascent costs: no gradients of parameters are made, which saves about a quarter."""


def inner_passes(number: int) -> float:
    """Forward and backward passes that so many gradients for a perturbation cost: none is made of parameters."""
    return number * INNER_STEP / (STEP / FORWARD)


def unscaled_inner_gradients(component: Component, setting: Setting) -> Iterator[Mistake]:
    """fp16 scales the training loss, and nothing else: gradients of inner steps would be flushed to zero."""
    if setting.precision == "fp16":
        where, found = f"adversary {component.name}", "gradients of its inner steps are not scaled, and vanish in fp16"
        yield Mistake(where, found, "bf16 or fp32", "set `bf16: true`, or use fgm")
