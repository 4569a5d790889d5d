"""Means of the loss's terms over many micro-batches, each weighed by what it is a mean over."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from alignkit.step import TrainingStep


class Meter:
    """Adds up a step's terms; stays on the device until it is read.

    A term's mean over a log interval or a split is sum(mean * count) / sum(count): right for micro-batches of
    unequal length, where the mean of means is not.
    """

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        """[2]: of the terms as they are, and times their weights, which may move from step to step."""
        self._counts: dict[str, int] = {}
        self.weights: dict[str, float] = {}
        """Each term's weight as last seen."""

    def __len__(self) -> int:
        return len(self._sums)

    def add(self, step: TrainingStep) -> None:
        for name, term in step.terms.items():
            value = term.mean.float() * term.count if term.count else term.mean.new_zeros((), dtype=torch.float32)
            both = torch.stack([value, value * term.weight])
            self._sums[name] = self._sums[name] + both if name in self._sums else both
            self._counts[name] = self._counts.get(name, 0) + term.count
            self.weights[name] = term.weight

    def take(self, reduce: Callable[[Tensor], Tensor] | None = None) -> dict[str, float]:
        """The means by name, and a fresh start.

        Args:
            reduce: sums a tensor over processes, where there are several.
        """
        return self.take_weighted(reduce)[0]

    def take_weighted(
        self, reduce: Callable[[Tensor], Tensor] | None = None
    ) -> tuple[dict[str, float], dict[str, float]]:
        """As `take`, the means, and those of the terms times their weights."""
        names = list(self._sums)
        if not names:
            return {}, {}
        counts = torch.tensor([float(self._counts[n]) for n in names], device=self._sums[names[0]].device)
        found = torch.cat([torch.stack([self._sums[n] for n in names], dim=1), counts[None]]).double()
        plain, weighted, counts = (reduce(found) if reduce is not None else found).tolist()
        self._sums, self._counts = {}, {}
        means, products = (
            {n: s / c for n, s, c in zip(names, sums, counts, strict=True) if c} for sums in (plain, weighted)
        )
        return means, products
