"""Kinds that take part in making a model: its data, its loss, its adversaries, its weights."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import InstanceOf, NonNegativeFloat

from alignkit.components.answers import Member, Memory, Score, Term, Verdict
from alignkit.components.component import Component

if TYPE_CHECKING:
    from torch import Tensor

    from alignkit.data import Example
    from alignkit.plan import Setting
    from alignkit.step import TrainingStep


class Filter(Component, abstract=True):
    """Decides which examples a run sees. Implements `filter_examples`."""

    kind: ClassVar[str] = "filter"
    writes: ClassVar[tuple[str, ...]] = ()
    """Columns that it writes into rows that stay, for other components to read: the plan asks it for them. May be a
    property."""

    if TYPE_CHECKING:

        def filter_examples(self, examples: list[Example]) -> list[Verdict]: ...


class Augmenter(Component, abstract=True):
    """Makes new training examples. Implements `augment_examples`."""

    kind: ClassVar[str] = "augmenter"

    if TYPE_CHECKING:

        def augment_examples(self, examples: list[Example], generator: Any) -> list[Example]: ...


class Weight(Component, abstract=True):
    """What a penalty is multiplied with, where a number does not do. Implements `value`."""

    kind: ClassVar[str] = "weight"
    must_override: ClassVar[tuple[str, ...]] = ("value",)
    normalises: ClassVar[bool] = False
    """The host divides the total loss by 1 + the sum of such weights (Lagrange multipliers)."""
    bound: ClassVar[float | None] = None
    """What the weight holds its penalty at, or below, in the penalty's unit: a line in the report. May be a
    property."""
    bound_field: ClassVar[str] = "limit"
    """The field that sets the bound, by which it is called."""
    exhausted: ClassVar[bool] = False
    """It cannot rise any further. May be a property."""
    settled: ClassVar[int] = 1
    """Optimizer steps after which it hardly depends on where it began. May be a property."""

    def begin(self, steps: int) -> None:
        """When a training starts or goes on: how many optimizer steps it has in all."""

    def value(self) -> float:
        """The multiplier as it stands."""
        raise NotImplementedError

    def observe(self, cost: float) -> None:
        """After each optimizer step: the clean mean of the constraint's penalty over the step, all processes."""


class Constraint(Component, abstract=True):
    """What a model may not drift from. Implements `penalty`, with `views` where it compares examples."""

    kind: ClassVar[str] = "constraint"

    weight: NonNegativeFloat | InstanceOf[Weight] = 1.0
    """What the penalty is multiplied with: a number, or a weight such as `{use: budget, limit: 0.05}`."""

    def ceiling(self, setting: Setting) -> float | None:
        """What the penalty cannot exceed in this run, in its unit; None: nothing that is known."""
        return None

    def anchored(self, setting: Setting) -> bool:
        """The penalty is 0 for the model as training finds it, dropout aside."""
        return False

    if TYPE_CHECKING:

        def penalty(self, step: TrainingStep, outputs: Any) -> Term: ...


class Adversary(Component, abstract=True):
    """What a model is hardened against. Implements `attack`, or `penalty` where the method adds a term to the loss."""

    kind: ClassVar[str] = "adversary"
    perturbs: ClassVar[bool] = True

    if TYPE_CHECKING:

        def attack(self, step: TrainingStep) -> Iterator[Tensor]: ...

        def penalty(self, step: TrainingStep, outputs: Any) -> Term: ...


class Averager(Component, abstract=True):
    """Averages weights while training runs. Implements `after_step` and `average`."""

    kind: ClassVar[str] = "averager"

    if TYPE_CHECKING:

        def average(self) -> Iterable[tuple[str, Tensor]]: ...


class Fusion(Component, abstract=True):
    """Makes one model of several. Implements `fuse` (weights) or `combine_outputs` (predictions)."""

    kind: ClassVar[str] = "fusion"

    if TYPE_CHECKING:

        def fuse(
            self, members: list[Member], base: Member | None, score: Score | None
        ) -> Iterable[tuple[str, Tensor]]: ...


class Updater(Component, abstract=True):
    """Lets a model keep learning without forgetting. Implements `rehearse`, `penalty`, `consolidate` …"""

    kind: ClassVar[str] = "updater"

    if TYPE_CHECKING:

        def rehearse(self, dataset: Any, memory: Memory, generator: Any) -> Any: ...

        def consolidate(self, steps: Iterable[TrainingStep], memory: Memory) -> Memory: ...


class Objective(Component, abstract=True):
    """What is minimised. Implements `loss`."""

    kind: ClassVar[str] = "objective"
    must_override: ClassVar[tuple[str, ...]] = ("loss",)
    tasks: ClassVar[tuple[str, ...]] = ()
    """Names of the tasks it serves; empty: all."""

    def loss(self, step: TrainingStep, outputs: Any) -> Term:
        """The training loss of one forward pass. `outputs.loss` is the stock Trainer's, where the batch has labels."""
        raise NotImplementedError
