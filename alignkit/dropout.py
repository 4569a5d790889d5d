"""Dropout masks that all forward passes of a step share."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor


class Masks:
    """Lets every forward pass of a step draw the masks that its first one drew.

    A perturbed pass then differs from the clean one by the perturbation alone: an ascent follows one function instead
    of another at every inner step (FreeLB, Zhu et al. 2020, section 3.3), and the divergence of a pass from itself is
    0. The global generators end where the first pass left them, whatever follows it.

    Args:
        device: the model's; its generator is kept beside the CPU's.
    """

    def __init__(self, device: torch.device):
        self._device = device
        self._states: tuple[Tensor, Tensor | None] | None = None

    @contextlib.contextmanager
    def shared(self) -> Iterator[None]:
        """A forward pass inside draws what the first one did."""
        if self._states is None:
            self._states = self._current()
            yield
            return
        after = self._current()
        self._put(self._states)
        try:
            yield
        finally:
            self._put(after)

    @contextlib.contextmanager
    def fresh(self, generator: torch.Generator) -> Iterator[None]:
        """A forward pass inside draws masks of its own, seeded from `generator`; the global generators stay."""
        before = self._current()
        seed = int(torch.randint(2**62, (1,), generator=generator))
        torch.default_generator.manual_seed(seed)
        if before[1] is not None:
            torch.get_device_module(self._device).manual_seed(seed)
        try:
            yield
        finally:
            self._put(before)

    def _current(self) -> tuple[Tensor, Tensor | None]:
        own = None if self._device.type == "cpu" else torch.get_device_module(self._device).get_rng_state(*self._which)
        return torch.get_rng_state(), own

    def _put(self, states: tuple[Tensor, Tensor | None]) -> None:
        torch.set_rng_state(states[0])
        if states[1] is not None:
            torch.get_device_module(self._device).set_rng_state(states[1], *self._which)

    @property
    def _which(self) -> tuple[torch.device, ...]:
        return () if self._device.type == "mps" else (self._device,)  # of which there is one
