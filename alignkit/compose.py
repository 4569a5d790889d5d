"""From components to a run: one pluggy manager behind typed methods that know each answer's owner."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterator, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import pluggy

from alignkit import hookspecs
from alignkit.components import Component, Objective, Task, Term, Weight
from alignkit.errors import AlignkitError, Mistake, PluginError, UsageError

if TYPE_CHECKING:
    from torch import Tensor

    from alignkit.components import Averager, Batch, Fusion, Updater
    from alignkit.data import Example
    from alignkit.step import TrainingStep

SINGLE = ("rehearse", "attack", "average", "fuse", "combine_outputs", "consolidate")
"""Hook points that one component of a run may answer."""


def name_apart(components: Sequence[Component]) -> None:
    """Give of those with one name all but the first a number."""
    taken: set[str] = set()
    for component in components:
        stem = name = component.name
        while name in taken:
            name = f"{stem}-{sum(t.startswith(stem) for t in taken) + 1}"
        taken.add(name)
        component.name = name


class Composition:
    """The components of one run, asked hook point by hook point; each answer comes with its owner and is checked.

    Args:
        components: those that hook into the run, in recipe order.
        task: what the model is for.
        objective: what is minimised; by default what the task says, mostly the stock Trainer's loss.

    Raises:
        UsageError: two components that both answer a hook point for one.
        PluginError: a component whose hook points pluggy does not accept.
    """

    def __init__(self, components: Sequence[Component], task: Task, objective: Objective | None = None):
        self.components = list(components)
        if mistakes := list(_no_instances(self.components)):
            raise UsageError(*mistakes)
        self.task = task
        self.objective = objective if objective is not None else task.default_objective()
        name_apart(self.components)
        self._pm = pluggy.PluginManager(hookspecs.PROJECT)
        self._pm.add_hookspecs(hookspecs.Run)
        for component in reversed(self.components):  # pluggy asks the last registered first
            try:
                self._pm.register(component, name=component.name)
            except pluggy.PluginValidationError as error:
                raise PluginError(f"{_describe(component)}: {error}") from error
        for point in SINGLE:
            owners = [owner for owner, _ in self._implementations(point)]
            if len(owners) > 1:
                names = " and ".join(owner.name for owner in owners)
                raise UsageError(
                    Mistake("", f"{names} both implement {point}", "one component that does", "take one of them out")
                )

    def __getitem__(self, name: str) -> Component:
        return next(c for c in self.components if c.name == name)

    def _implementations(self, point: str) -> list[tuple[Component, Any]]:
        """(owner, bound method) in recipe order; calling through the hook would forget who answered."""
        return [(impl.plugin, impl.function) for impl in reversed(getattr(self._pm.hook, point).get_hookimpls())]

    def _one(self, point: str) -> tuple[Any, Any]:
        found = self._implementations(point)
        return found[0] if found else (None, None)

    def reset(self) -> None:
        """Every component as newly made."""
        for component in (*self.components, self.objective):
            component.reset()

    # -- data --------------------------------------------------------------------------------------------------

    @cached_property
    def filters(self) -> list[tuple[str, Any]]:
        """(name, `filter_examples`) in recipe order."""
        return [(owner.name, ask) for owner, ask in self._implementations("filter_examples")]

    @cached_property
    def augmenters(self) -> list[tuple[str, Any]]:
        """(name, `augment_examples`) in recipe order."""
        return [(owner.name, ask) for owner, ask in self._implementations("augment_examples")]

    def views(self, example: Example) -> dict[str, Example]:
        """Other versions of an example, by name; two components that give one name are an error."""
        found: dict[str, Example] = {}
        for owner, ask in self._implementations("views"):
            with _blaming(owner, "views"):
                made = ask(example)
            if not isinstance(made, Mapping):
                raise PluginError(f"{_describe(owner)}.views gave {type(made).__name__}, expected a dict of examples")
            if clash := set(found) & set(made):
                raise UsageError(f"the view {sorted(clash)[0]!r} of {owner.name} is made by another component too")
            found |= made
        return found

    @cached_property
    def has_views(self) -> bool:
        return bool(self._implementations("views"))

    @cached_property
    def unaligned_views(self) -> tuple[str, ...]:
        """Names of views that have answers of their own."""
        return tuple(name for component in self.components for name in component.unaligned_views)

    @cached_property
    def columns(self) -> tuple[str, ...]:
        """Data columns that components, or the task itself, read and the model does not take."""
        return tuple(dict.fromkeys(name for c in (*self.components, self.objective, self.task) for name in c.columns))

    @property
    def rows_may_be_packed(self) -> bool:
        """No component looks at single rows of the data: their views, their columns, or at rows to keep."""
        return not (self.has_views or self.updater or set(self.columns) - set(self.task.columns))

    def counts(self, task: Task, inputs: Mapping[str, Any]) -> dict[str, int]:
        """Everything that a mean may be over in this micro-batch: the task's units and the components' own."""
        batch: Batch = {k: v for k, v in inputs.items() if k not in ("views", "columns", "index")}
        of_task = task.counts(batch)
        found = dict(of_task)
        for component in self._counting:
            own = component.counts({**inputs, "counts": of_task})
            if clash := set(found) & set(own):
                raise PluginError(f"{_describe(component)}: its count {sorted(clash)[0]!r} exists already")
            found |= own
        return found

    @cached_property
    def _counting(self) -> list[Component]:
        own = (*self.components, self.objective)
        return [c for c in own if type(c).counts is not Component.counts]

    # -- the training loss -------------------------------------------------------------------------------------

    def penalties(self, step: TrainingStep, outputs: Any) -> Iterator[tuple[Component, Term]]:
        """(owner, term) of every penalty on these outputs."""
        for owner, ask in self._penalties:
            asked, step.owner = step.owner, owner.name
            with _blaming(owner, "penalty"):
                term = ask(step, outputs)
            step.owner = asked
            if not isinstance(term, Term) or getattr(term.mean, "ndim", None) != 0:
                found = list(term.mean.shape) if isinstance(term, Term) and hasattr(term.mean, "shape") else type(term)
                raise PluginError(f"{_describe(owner)}.penalty gave {found}, expected a Term whose mean is a scalar")
            yield owner, term

    @cached_property
    def _penalties(self) -> list[tuple[Component, Any]]:
        return self._implementations("penalty")

    @staticmethod
    def weight(component: Component) -> float:
        """What a component's penalty is multiplied with, as it stands."""
        weight = getattr(component, "weight", 1.0)
        return weight.value() if isinstance(weight, Weight) else float(weight)

    @cached_property
    def weights(self) -> dict[str, Weight]:
        """Weights that are components themselves, by the name of the constraint they belong to."""
        return {c.name: w for c in self.components if isinstance(w := getattr(c, "weight", None), Weight)}

    @property
    def normaliser(self) -> float:
        """1 + the sum of Lagrange multipliers: what the total loss is divided by."""
        return 1.0 + sum(w.value() for w in self.weights.values() if w.normalises)

    @cached_property
    def passes(self) -> int:
        """Losses that are trained on per micro-batch."""
        owner, _ = self._one("attack")
        return int(owner.passes) if owner else 1

    @property
    def replays(self) -> int:
        """Optimizer steps in a row that train on one batch."""
        return max((int(c.replays) for c in self.components), default=1)

    def attack(self, step: TrainingStep) -> Generator[Tensor, None, None]:
        """The losses to train on, in turn; without an adversary the clean one. Close it, whatever happens."""
        owner, ask = self._one("attack")
        if ask is None:
            yield step.loss()
            return
        step.owner = owner.name
        losses, yielded = ask(step), 0
        if not hasattr(losses, "close"):
            raise PluginError(f"{_describe(owner)}.attack gave {type(losses).__name__}, expected a generator")
        try:
            while True:
                with _blaming(owner, "attack"):
                    loss = next(losses, None)
                if loss is None:
                    break
                yielded += 1
                if getattr(loss, "ndim", None) != 0 or not loss.requires_grad:
                    found = type(loss).__name__ if getattr(loss, "ndim", None) != 0 else "a detached one"
                    raise PluginError(f"{_describe(owner)}.attack yielded no differentiable scalar tensor: {found}")
                if yielded > self.passes:
                    raise PluginError(f"{_describe(owner)}.attack yielded more losses than its passes = {self.passes}")
                yield loss
        finally:
            losses.close()
        if yielded < self.passes:
            raise PluginError(f"{_describe(owner)}.attack yielded {yielded} losses, but its passes = {self.passes}")

    @cached_property
    def adjusts_gradients(self) -> bool:
        return bool(self._implementations("adjust_gradients"))

    def adjust_gradients(self, step: TrainingStep) -> None:
        for owner, ask in self._implementations("adjust_gradients"):
            step.owner = owner.name
            with _blaming(owner, "adjust_gradients"):
                ask(step)

    def after_step(self, step: TrainingStep) -> None:
        for owner, ask in self._after_step:
            step.owner = owner.name
            with _blaming(owner, "after_step"):
                ask(step)

    @cached_property
    def _after_step(self) -> list[tuple[Component, Any]]:
        return self._implementations("after_step")

    # -- around and after training -----------------------------------------------------------------------------

    @property
    def averager(self) -> Averager | None:
        return self._one("average")[0]

    @property
    def fusion(self) -> Fusion | None:
        return self._one("fuse")[0] or self._one("combine_outputs")[0]

    @property
    def updater(self) -> Updater | None:
        return self._one("consolidate")[0] or self._one("rehearse")[0]

    @property
    def needs_reference(self) -> bool:
        return any(c.reference for c in (*self.components, self.objective))

    @property
    def perturbs(self) -> bool:
        return any(c.perturbs for c in self.components)

    def stateful(self) -> dict[str, Component]:
        """Everything that may carry state through a checkpoint, by name; a constraint's weight is `NAME.weight`."""
        found: dict[str, Component] = {c.name: c for c in self.components} | {"objective": self.objective}
        return found | {f"{name}.weight": weight for name, weight in self.weights.items()}


def _no_instances(components: Sequence[Any]) -> Iterator[Mistake]:
    """What is no component of its own: a class, a name, the same instance a second time, a shared weight."""
    seen: dict[int, int] = {}
    for i, component in enumerate(components):
        where, cls = f"components.{i}", getattr(component, "__name__", type(component).__name__)
        if isinstance(component, type):
            yield Mistake(where, f"the class {cls}", "an instance", f"write {cls}()")
        elif not isinstance(component, Component):
            yield Mistake(
                where, f"{component!r}, a {cls}", "a component", "a recipe takes names; here, make an instance"
            )
        else:
            weight = getattr(component, "weight", None)
            for part in (component, weight if isinstance(weight, Weight) else None):
                if part is not None and id(part) in seen:
                    found = f"the same {type(part).__name__} as in components.{seen[id(part)]}"
                    yield Mistake(where, found, "an instance of its own")
                elif part is not None:
                    seen[id(part)] = i


@contextlib.contextmanager
def _blaming(owner: Component, point: str) -> Iterator[None]:
    """An exception that a component lets out keeps its type (running out of memory is handled by it), and is named."""
    try:
        yield
    except PluginError as error:
        described = _describe(owner)
        if described in str(error):
            raise
        raise PluginError(f"{described}.{point}: {error}") from error
    except AlignkitError:
        raise
    except Exception as error:
        error.add_note(f"in {point} of {_describe(owner)}")
        raise


def _describe(component: Component) -> str:
    return f"{component.kind} {component.name!r} ({type(component).__module__}.{type(component).__qualname__})"
