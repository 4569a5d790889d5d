"""Limits on penalties: which cannot be met, or mean nothing, before training; which were not met, after it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import combinations
from typing import TYPE_CHECKING, Any

from alignkit.components import Constraint, Weight
from alignkit.errors import Mistake

if TYPE_CHECKING:
    from alignkit.compose import Composition
    from alignkit.plan import Setting

TOLERANCE = 0.1
"""Share of a limit by which a mean may be above it."""


def called_bounds(composition: Composition) -> dict[str, tuple[str, float]]:
    """`bounds`, each with what it is called: a `limit`, a `target`."""
    return {name: (composition.weights[name].bound_field, bound) for name, bound in bounds(composition).items()}


def bounds(composition: Composition) -> dict[str, float]:
    """What penalties are held at, by the name of their component."""
    return {name: weight.bound for name, weight in composition.weights.items() if weight.bound is not None}


def conflicts(composition: Composition, setting: Setting) -> Iterator[Callable[[], Iterable[Mistake]]]:
    """Questions, each on its own, for limits that can never matter, whatever the training does."""
    bounded = _bounded(composition)
    for component, bound in bounded:
        yield partial(_too_high, component, bound, setting)
    yield partial(_twice, bounded)


def _too_high(component: Constraint, bound: float, setting: Setting) -> Iterator[Mistake]:
    highest = component.ceiling(setting)
    if highest is not None and bound >= highest:
        found = f"a limit of {bound:g}, which the penalty cannot exceed: it is {highest:.4g} at most"
        where = f"{component.kind} {component.name}"
        yield Mistake(where, found, f"a limit below {highest:.4g}", "or a number as its weight")


def _twice(bounded: Sequence[tuple[Constraint, float]]) -> Iterator[Mistake]:
    for (one, lower), (other, higher) in combinations(sorted(bounded, key=lambda pair: pair[1]), 2):
        if type(one) is type(other) and _measured(one) == _measured(other):
            found = f"the same penalty as {one.name}, which is held at {lower:g} already: {higher:g} can never matter"
            yield Mistake(f"{other.kind} {other.name}", found, "one limit for one penalty", "take one of them out")


def notes(composition: Composition, setting: Setting) -> Iterator[str]:
    """What may keep limits from being met, as far as that is known before training."""
    bounded = _bounded(composition)
    anchors = [(c, bound) for c, bound in bounded if c.anchored(setting)]
    moving = [(c, bound) for c, bound in bounded if not c.anchored(setting)]
    if anchors and moving:
        near = " and ".join(f"{c.name} (at most {bound:g})" for c, bound in anchors)
        far = " and ".join(f"{c.name} (at most {bound:g})" for c, bound in moving)
        yield (
            f"{near} is met by the model as it starts, {far} may not be until the model has left: whether both limits "
            "can be met is not known before training; where they cannot, neither may be, and the report says so"
        )
    elif len(moving) > 1:
        names = " and ".join(c.name for c, _ in moving)
        yield f"the limits of {names} share one loss: where they contradict each other, neither may be met"


def unmet(
    composition: Composition, history: Sequence[Mapping[str, Any]], floors: Mapping[str, float] | None = None
) -> list[str]:
    """What is to be said of limits that the last quarter of a training was above, with the likely reason and the mend.

    Args:
        history: as `TrainerState.log_history`.
        floors: what penalties were in the first step, where the model was the reference still: what dropout alone
            makes of them.
    """
    found = []
    for name, weight in composition.weights.items():
        costs = [(entry["step"], cost) for entry in history if (cost := entry.get(f"penalty/{name}")) is not None]
        if weight.bound is None or not costs:
            continue
        last = [cost for step, cost in costs if step > costs[-1][0] * 3 / 4]
        mean = sum(last) / len(last)
        if mean > weight.bound * (1 + TOLERANCE):
            found.append(
                f"{name}: {mean:.3g} on average over the last quarter of training, above its {weight.bound_field} of "
                f"{weight.bound:g}; {_reason(weight, costs, (floors or {}).get(name, 0.0))}"
            )
    return found


def _reason(weight: Weight, costs: Sequence[tuple[int, float]], floor: float) -> str:
    """Why costs, each with its step, stayed above the weight's bound."""
    assert weight.bound is not None
    if floor > weight.bound:
        return (
            f"dropout alone made {floor:.2g} of it in the first step, before anything was learnt: raise "
            f"`{weight.bound_field}` above that, or turn dropout off "
            "(`head: {hidden_dropout_prob: 0.0}`; the name is the model config's)"
        )
    long_enough = costs[-1][0] >= weight.settled
    if long_enough and weight.exhausted:
        return f"its weight is at its maximum, and no larger one would have met the limit: raise `{weight.bound_field}`"
    if long_enough and min(cost for _, cost in costs) > weight.bound:
        return (
            "it never was below: the limit may be less than what the model can reach, or than what its dropout makes "
            f"of it; raise `{weight.bound_field}`, or turn dropout off"
        )
    return (
        "the training was too short for its weight to find its value, or its learning rate fell too soon: train longer"
    )


def _bounded(composition: Composition) -> list[tuple[Constraint, float]]:
    by_name = bounds(composition)
    return [(c, by_name[c.name]) for c in composition.components if c.name in by_name and isinstance(c, Constraint)]


def _measured(component: Constraint) -> dict[str, Any]:
    """Everything that makes the penalty what it is."""
    return {name: value for name, value in component.fields().items() if name != "weight"}
