"""The plan: which component does what, what it needs and costs, and what cannot go together, before weights load."""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

from alignkit import limits
from alignkit.components import Component, Constraint, Objective, Task
from alignkit.errors import Mistake
from alignkit.findings import UNSETTLED, Findings, Unsettled

if TYPE_CHECKING:
    from alignkit.components import Control
    from alignkit.compose import Composition
    from alignkit.data import Example

SAMPLED = 200
"""Examples, at even distances, that are looked at to see what augmenters make of them and how many have views."""

FORWARD, STEP = 1.0, 3.0
"""A backward pass costs about two forward passes: a step is three."""

PHASES = {
    "filter": "data",
    "augmenter": "data",
    "objective": "every step",
    "constraint": "every step",
    "adversary": "every step",
    "averager": "every step",
    "updater": "around training",
    "fusion": "after training",
    "control": "when it is asked",
}


@dataclass(frozen=True)
class Setting:
    """What a run is made of, as far as it is known before weights are loaded; what `Component.check` looks at.

    A field in which there is a mistake raises `Unsettled` when it is asked for, and so ends the check that asks: it is
    told where it is, and nothing that only follows from it.
    """

    task: Task
    components: list[Component]
    objective: Objective
    peft: str | None = None
    """The peft method, `lora` …; None: full fine-tuning."""
    precision: str = "fp32"
    """`fp32`, `bf16` or `fp16`."""
    fresh_head: bool = False
    """The model's head for this task has not been trained yet."""
    reference: str | None = None
    """The model that `reference:` names."""
    accumulation: int = 1
    batch_size: int | None = None
    """Rows of a micro-batch; None: not known."""
    steps: int | None = None
    """Optimizer steps, as `max_steps` says; None: they follow from the data."""
    reentrant_checkpointing: bool = False
    validation: bool = True
    """There is a validation split."""
    examples: Sequence[Example] = ()
    """The training split, where the data has been read, with the columns that filters write; before that, the task may
    not know its labels."""
    dropout: bool | None = None
    """The model, or its adapter, has a dropout probability above 0; None: not known."""
    tokenizer: Callable[[], Any] | None = None
    """Loads the model's tokenizer, for a check that has to count tokens."""
    seed: int = 0
    """Of what augmenters draw."""

    def __getattribute__(self, name: str) -> Any:
        value = super().__getattribute__(name)
        if value is UNSETTLED:
            raise Unsettled(name)
        return value


@dataclass(frozen=True)
class Row:
    """One component's line in the plan."""

    phase: str
    component: str
    kind: str
    does: str
    needs: tuple[str, ...]
    factor: float
    """Predicted time of a step with this component alone, in plain steps; 1.0 where it costs nothing per step."""


@dataclass(frozen=True)
class Plan:
    """What a run will do and what a step of it will cost."""

    rows: list[Row]
    passes: int
    factor: float
    """Predicted time of a step with all components, in plain steps."""
    notes: list[str] = field(default_factory=list)
    anchored: Collection[str] = ()
    """Constraints that the model meets as training finds it, dropout aside."""

    def as_dicts(self, milliseconds: dict[str, float]) -> list[dict[str, Any]]:
        """The rows for the report; `measured` is the factor found by `costs.measure_costs`, where it was."""
        plain = milliseconds.get("plain")
        return [
            asdict(row)
            | {
                "milliseconds": milliseconds[row.component] - plain
                if plain and row.component in milliseconds
                else None,
                "measured": milliseconds[row.component] / plain if plain and row.component in milliseconds else None,
            }
            for row in self.rows
        ]

    def render(self) -> str:
        """The plan as text of at most 100 columns."""
        lines = ["Plan"]
        width = max([len(r.component) for r in self.rows], default=0)
        for phase in dict.fromkeys(r.phase for r in self.rows):
            lines.append(f"  {phase}")
            for row in (r for r in self.rows if r.phase == phase):
                cost = f"x {row.factor:.2f}" if row.factor > 1 else ""
                said = textwrap.wrap(row.does, 84 - width)
                said += textwrap.wrap(f"needs {', '.join(row.needs)}", 84 - width) if row.needs else []
                for name, text, end in zip_longest([row.component], said, [cost], fillvalue=""):
                    lines.append(f"    {name:<{width}}  {text:<{84 - width}} {end:>7}".rstrip())
        passes = "1 pass" if self.passes == 1 else f"{self.passes} passes"
        lines.append(f"  predicted: a step takes {passes} and about {self.factor:.2f} x the time of a plain one")
        return "\n".join(lines + [f"  note: {note}" for note in self.notes])


def make_plan(composition: Composition, setting: Setting) -> Plan:
    """The plan of a composed run.

    Raises:
        UsageError: everything that cannot go together, each with the reason and the mend.
    """
    findings = Findings()
    findings.hear_all(conflicts(composition, setting))
    findings.refuse()
    return predicted(composition, setting)


def predicted(composition: Composition, setting: Setting, controls: Sequence[Control] = ()) -> Plan:
    """The plan of a run whose parts do go together.

    Args:
        controls: what is on when the finished model is asked.
    """
    examples, growth = _augmented(composition, setting)
    backwards = {c.name: float(c.backwards) * _share_with_views(c, examples) for c in composition.components}
    rows = [_row(c, backwards.get(c.name, 0.0)) for c in (composition.objective, *composition.components)]
    rows.sort(key=lambda r: list(dict.fromkeys(PHASES.values())).index(r.phase))
    rows += [replace(_row(control, 0.0), needs=()) for control in controls]
    per_loss = 1.0 + sum(backwards.values())
    extra = sum(float(c.forwards) for c in (composition.objective, *composition.components))
    extra += FORWARD * _asked_of_the_reference(composition, examples)
    factor = composition.passes * per_loss + extra / STEP
    anchored = {c.name for c in composition.components if isinstance(c, Constraint) and c.anchored(setting)}
    return Plan(rows, composition.passes, factor, list(_notes(composition, setting, growth, controls)), anchored)


def conflicts(composition: Composition, setting: Setting) -> Iterator[Callable[[], Iterable[Mistake]]]:
    """Questions, each on its own, for what cannot go together, with the reason and the mend."""
    yield partial(_of_another_task, setting)
    yield lambda: setting.task.check(setting)
    yield lambda: setting.objective.check(setting)
    for component in composition.components:
        yield partial(_unfit, component, setting)
        yield partial(component.check, setting)
    yield from limits.conflicts(composition, setting)


def _of_another_task(setting: Setting) -> Iterator[Mistake]:
    objective, task = setting.objective, setting.task.name
    if objective.tasks and task not in objective.tasks:
        known = " or ".join(objective.tasks)
        mend = "name one of these as `task:`, or take the objective out, so that the task's own is used"
        yield Mistake("objective", f"{objective.name} on task {task}", f"task {known}", mend)


def _unfit(component: Component, setting: Setting) -> Iterator[Mistake]:
    """What a component's own declarations say that it cannot go with; what hangs on the data comes last."""
    where = f"{component.kind} {component.name}"
    if "combine_outputs" in component.hook_points and "fuse" not in component.hook_points:
        found = "it combines the predictions of several models, and no command keeps several"
        yield Mistake(where, found, "a fusion that implements fuse()", "name one that merges weights, or take it out")
    if component.perturbs and setting.reentrant_checkpointing:
        yield Mistake(
            where,
            "gradients for a perturbation do not pass reentrant gradient checkpointing",
            "use_reentrant: false",
            "take `use_reentrant: true` out of the checkpointing settings",
        )
    if "adjust_gradients" in component.hook_points and setting.precision == "fp16":
        yield Mistake(
            where, "gradients are scaled under fp16 when it would adjust them", "bf16 or fp32", "set `bf16: true`"
        )
    if component.needs_validation and not setting.validation:
        found = "it chooses by scores and there is no validation split"
        yield Mistake(where, found, "data.validation", "add `validation:` to `data:`")
    if component.reference and setting.reference is None and setting.fresh_head:
        yield Mistake(
            where,
            "the reference model's head for this task was never trained, so it has nothing to say",
            "a model whose head is trained",
            "train it plainly first and name that run as `model:`, or name a trained model as `reference:`",
        )


def _augmented(composition: Composition, setting: Setting) -> tuple[Sequence[Example], float]:
    """A sample of the rows that training will see, and how many it will see for each of the split's.

    Of a split of `SAMPLED` rows or fewer they are the very rows, as long as no filter drops any: filters, which may
    take long and remember what they have seen, are not asked.
    """
    from alignkit.data import prepare

    if not setting.examples:
        return (), 1.0
    sample = setting.examples[:: -(-len(setting.examples) // SAMPLED)]
    rows = prepare.augment(composition.augmenters, sample, setting.seed)
    return rows, len(rows) / len(sample)


def _share_with_views(component: Component, examples: Sequence[Example]) -> float:
    """How many examples a component that looks at views has any for: what it runs again is no more than those."""
    make: Any = getattr(component, "views", None)
    if "views" not in component.hook_points or not examples:
        return 1.0
    return sum(bool(make(example)) for example in examples) / len(examples)


def _asked_of_the_reference(composition: Composition, examples: Sequence[Example]) -> float:
    """The reference's forward passes per step: one that all share, and one over each component's own views."""
    asking = [c for c in (composition.objective, *composition.components) if c.reference]
    on_views = [c for c in asking if "views" in c.hook_points]
    return float(len(asking) > len(on_views)) + sum(_share_with_views(c, examples) for c in on_views)


def _row(component: Component, backwards: float) -> Row:
    does = inspect.cleandoc(type(component).__doc__ or "").split("\n\n")[0].replace("\n", " ")
    needs = []
    if component.reference:
        needs.append("reference outputs, once per step at most")
    if component.perturbs:
        needs.append("gradients for the embeddings' output")
    if "views" in component.hook_points and component.makes_views:
        needs.append("a second version of each example")
    if component.columns:
        needs.append("columns " + ", ".join(component.columns))
    if type(component).state_dict is not Component.state_dict:
        needs.append("state in checkpoints")
    alone = component.passes * (1.0 + backwards) + (float(component.forwards) + component.reference) / STEP
    phase = PHASES.get(component.kind, "every step")
    return Row(phase, component.name, component.kind, does, tuple(needs), alone)


def _notes(composition: Composition, setting: Setting, growth: float, controls: Sequence[Control]) -> Iterable[str]:
    if growth >= 1.05:  # less would read as 1
        yield f"with what augmenters add, an epoch takes about {growth:.2g} times the steps of a plain one"
    if composition.replays > 1:
        n = composition.replays
        yield f"each batch is trained on {n} times in a row: an epoch takes {n} times the steps of a plain one"
    for component in (composition.objective, *composition.components):
        if component.couples_rows and setting.accumulation > 1:
            yield (
                f"{component.name} depends on which rows share a batch: {setting.accumulation} accumulated "
                "micro-batches are not the same as one large batch"
            )
        yield from component.notes(setting)
    yield from limits.notes(composition, setting)
    if controls:
        yield (
            "controls are on when alignkit asks the model (`alignkit predict`), and off in all that is measured before "
            "and after"
        )
