"""Batches of rows of like length, in an order that resuming reproduces."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import torch
from torch.utils.data import RandomSampler, Sampler
from transformers.trainer_pt_utils import LengthGroupedSampler


class SeededLengthGroupedSampler(LengthGroupedSampler):
    """transformers' grouping by length with an order that depends on (seed, epoch) alone.

    The stock sampler draws from the global generator, so a run that is resumed in the middle of an epoch sees
    another order than one that was not interrupted.
    """

    def __init__(self, batch_size: int, lengths: list[int], seed: int):
        super().__init__(batch_size, lengths=lengths, generator=torch.Generator())
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        self.generator.manual_seed((self.seed << 20) + self.epoch)
        return super().__iter__()


class Replayed(Sampler[int]):
    """Each block of rows several times in a row, for adversaries that train on a batch again and again (Free-AT).

    Args:
        sampler: the order of the rows; a random one is seeded by (seed, epoch).
        block: rows that one optimizer step takes on all processes together; what is left over at an epoch's end is
            left out. Fewer rows than a block go round until they fill it.
        times: how often.
    """

    def __init__(self, sampler: Sampler[int], block: int, times: int, seed: int):
        self.sampler, self.block, self.times, self.seed, self.epoch = sampler, block, times, seed, 0

    def __len__(self) -> int:
        return self.times * max(len(self.sampler) // self.block, 1) * self.block  # type: ignore[arg-type]  # samplers of data sets have a length

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch
        if hasattr(self.sampler, "set_epoch"):
            self.sampler.set_epoch(epoch)

    def __iter__(self) -> Iterator[int]:
        if isinstance(self.sampler, RandomSampler):
            self.sampler.generator = torch.Generator().manual_seed((self.seed << 20) + self.epoch)
        rows = list(self.sampler)
        if len(rows) < self.block:
            rows = list(itertools.islice(itertools.cycle(rows), self.block))
        for start in range(0, len(rows) - self.block + 1, self.block):
            yield from rows[start : start + self.block] * self.times
