"""Which training examples a prompt shows before the text that it asks about."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from alignkit.data.example import Example


def drawn(pool: Sequence[Example], labels: Sequence[str], shots: int, seed: int) -> list[list[Example]]:
    """Per class a few of its examples, by chance: one more than are shown, in place of a row that asks itself."""
    generator = np.random.default_rng(seed)
    found = []
    for label in labels:
        rows = [e for e in pool if e["label"] == label]
        found.append([rows[i] for i in generator.permutation(len(rows))[: shots + 1]])
    return found


def shown(per_class: Sequence[Sequence[Example]], example: Example, shots: int, seed: int) -> list[Example]:
    """The demonstrations of an example in the order in which it sees them, never itself among them."""
    found = [e for rows in per_class for e in [row for row in rows if not same(row, example)][:shots]]
    return [found[i] for i in np.random.default_rng(seed).permutation(len(found))]


def same(one: Example, other: Example) -> bool:
    """They are one row of the data, as it is or rewritten, or have the same texts."""
    place = one.row >= 0 and (one.split, one.source, one.row) == (other.split, other.source, other.row)
    return place or all(one.get(name) == other.get(name) for name in ("text", "text_pair"))


class Nearest:
    """Looks for the examples whose texts are nearest to a text.

    A text is the mean of its tokens' input embeddings, less the mean of all texts of the pool; near is a high cosine.

    Args:
        pool: examples to choose from.
        ids: their tokens, none empty.
        embeddings: [V, D], the model's input embeddings.
    """

    def __init__(self, pool: Sequence[Example], ids: Sequence[Sequence[int]], embeddings: Tensor):
        self.pool = pool
        self._embeddings = embeddings
        means = torch.stack([self._mean(row) for row in ids])
        self._centre = means.mean(0)
        self._pool = torch.nn.functional.normalize(means - self._centre, dim=-1)

    def __call__(self, example: Example, ids: Sequence[int], labels: Sequence[str], shots: int) -> list[Example]:
        """Of each class the nearest, the nearest of all last, next to the text that is asked about."""
        query = torch.nn.functional.normalize(self._mean(ids) - self._centre, dim=-1)
        near = (self._pool @ query).argsort(descending=True, stable=True).tolist()
        left = dict.fromkeys(labels, shots)
        found: list[Example] = []
        for row in (self.pool[i] for i in near):
            if left.get(row["label"], 0) and not same(row, example):
                left[row["label"]] -= 1
                found.append(row)
            if not any(left.values()):
                break
        return found[::-1]

    def _mean(self, ids: Sequence[int]) -> Tensor:
        index: Any = torch.tensor(ids, device=self._embeddings.device)
        return self._embeddings[index].float().mean(0).cpu()
