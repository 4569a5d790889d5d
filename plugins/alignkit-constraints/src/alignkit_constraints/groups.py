"""Rows in groups: which there are, what is compared between them, and how far their means lie apart."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from alignkit.errors import Mistake, UsageError
from alignkit.tasks.classification import label_name

NONE = -1
"""The code of a row that belongs to no group."""
FORGOTTEN = 1e-3
"""Rows, after decay, below which nothing is known of a group any more."""


def names_of(values: Tensor | Sequence[Any]) -> list[str | None]:
    """A column's values as names of groups; None where there is none.

    Raises:
        UsageError: a value that is no category.
    """
    found = values.tolist() if isinstance(values, Tensor) else list(values)
    if odd := [value for value in found if not is_blank(value) and label_name(value) is None]:
        raise UsageError(Mistake("", f"a group is {odd[0]!r}", "a string or an integer"))
    return [label_name(value) for value in found]


def codes(names: Sequence[str | None], known: Sequence[str]) -> Tensor:
    """[N]: each row's group as its place among those known, -1 where it has none."""
    places = {name: code for code, name in enumerate(known)}
    return torch.tensor([NONE if name is None else places[name] for name in names], dtype=torch.long)


def is_blank(value: Any) -> bool:
    """No group: nothing, not a number, or a text without anything in it."""
    return value is None or value != value or (isinstance(value, str) and not value.strip())


def compared(
    criterion: str, labels: Tensor, classes: int, outcome: int | None = None
) -> Iterator[tuple[Tensor, list[int]]]:
    """The rows among which groups are compared, and the classes whose probabilities are.

    Args:
        criterion: `demographic-parity`: all rows; `equalised-odds`: those of each label by themselves.
        labels: [N] of integers, or floating [N, C] where a row may have several labels.
        classes: C.
        outcome: the class that is compared; None: each.

    Yields:
        [N] of booleans, and numbers of classes; as often for any labels. Under equalised odds all classes among the
        rows of each label; where one class is asked for, or a row may have several, that class among the rows that
        have it and those that do not.
    """
    chosen = list(range(classes)) if outcome is None else [outcome]
    if criterion == "demographic-parity":
        yield torch.ones(len(labels), dtype=torch.bool, device=labels.device), chosen
    elif labels.dim() == 1 and outcome is None:
        for label in range(classes):
            yield labels == label, chosen
    else:
        for c in chosen:
            has = labels[:, c] > 0.5 if labels.dim() == 2 else labels == c
            yield from ((has, [c]), (~has, [c]))


def group_sums(p: Tensor, groups: Tensor, number: int) -> tuple[Tensor, Tensor]:
    """[G, C] and [G]: the sums of probabilities p [N, C] over the rows of each of `number` groups, and their rows."""
    there = groups != NONE
    p, groups = p[there], groups[there]
    rows = groups.bincount(minlength=number).to(p.dtype)
    return p.new_zeros(number, p.shape[1]).index_add(0, groups, p), rows


def estimated(sums: Tensor, rows: Tensor, past_sums: Tensor, past_rows: Tensor) -> Tensor:
    """Means [..., C] as they were before, with the gradient of those that are seen now.

    Where a mean is known from before, its value does not depend on what is seen now: which of two groups is ahead
    is no matter of the chance that brought these rows together. Where nothing is known, it is what is seen.

    Args:
        sums: [..., C], of the rows that are seen.
        rows: [...], how many they are.
        past_sums: [..., C], of the rows before.
        past_rows: [...], how many those are.
    """
    own = sums / rows.clamp_min(1.0)[..., None]
    past = past_sums / past_rows.clamp_min(FORGOTTEN)[..., None]
    value = torch.where(past_rows[..., None] > FORGOTTEN, past, own.detach())
    return value + torch.where(rows[..., None] > 0, own - own.detach(), 0.0)


def gaps(means: Tensor, overall: Tensor, reduction: str) -> Tensor:
    """[C]: how far groups whose means are [G, C] lie apart.

    Args:
        overall: [C], the mean over the rows of all groups.
        reduction: `maximum`: the largest difference between two groups, max_a E[p|a] - min_a E[p|a]; `mean`: the
            mean over groups of |E[p|a] - E[p]|.
    """
    if reduction == "maximum":
        return means.amax(0) - means.amin(0)
    return (means - overall).abs().mean(0)


def group_gaps(p: Tensor, groups: Tensor, reduction: str = "maximum") -> Tensor | None:
    """How far groups lie apart in the mean of what is predicted for them; differentiable in p.

    Args:
        p: [N, C] probabilities.
        groups: [N] each row's group as a number from 0, or -1: in none, and left out.
        reduction: as in `gaps`.

    Returns:
        [C], from 0 to 1; None where the rows belong to one group, or to none.
    """
    sums, rows = group_sums(p, groups, int(groups.max()) + 1 if len(groups) else 0)
    there = rows > 0
    if int(there.sum()) < 2:
        return None
    return gaps(sums[there] / rows[there][:, None], sums.sum(0) / rows.sum(), reduction)
