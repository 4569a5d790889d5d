"""The plan: which component does what, what it needs and costs, and what cannot go together, before weights load."""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignkit import limits
from alignkit.components import Component, Constraint, Objective, Task
from alignkit.errors import Mistake, UsageError
from alignkit.findings import UNSETTLED, Findings, Unsettled

if TYPE_CHECKING:
    from alignkit.compose import Composition
    from alignkit.data import Example
    from alignkit.recipe import Recipe

SAMPLED = 200
"""Examples, at even distances, that are looked at to see how many have views."""

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
    reentrant_checkpointing: bool = False
    validation: bool = True
    """There is a validation split."""
    examples: Sequence[Example] = ()
    """The training split, where the data has been read; before that, the task may not know its labels."""
    dropout: bool | None = None
    """The model, or its adapter, has a dropout probability above 0; None: not known."""
    tokenizer: Callable[[], Any] | None = None
    """Loads the model's tokenizer, for a check that has to count tokens."""

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
    _hear_conflicts(composition, setting, findings)
    findings.refuse()
    return _plan(composition, setting)


def _plan(composition: Composition, setting: Setting) -> Plan:
    backwards = {c.name: float(c.backwards) * _share_with_views(c, setting.examples) for c in composition.components}
    rows = [_row(c, backwards.get(c.name, 0.0)) for c in (composition.objective, *composition.components)]
    rows.sort(key=lambda r: list(dict.fromkeys(PHASES.values())).index(r.phase))
    per_loss = 1.0 + sum(backwards.values())
    extra = sum(float(c.forwards) for c in (composition.objective, *composition.components))
    extra += FORWARD if composition.needs_reference else 0.0
    factor = composition.passes * per_loss + extra / STEP
    anchored = {c.name for c in composition.components if isinstance(c, Constraint) and c.anchored(setting)}
    return Plan(rows, composition.passes, factor, list(_notes(composition, setting)), anchored)


def conflicts(composition: Composition, setting: Setting) -> Iterator[Callable[[], Iterable[Mistake]]]:
    """Questions, each on its own, for what cannot go together, with the reason and the mend."""
    yield partial(_of_another_task, setting)
    yield lambda: setting.task.check(setting)
    yield lambda: setting.objective.check(setting)
    for component in composition.components:
        yield partial(_unfit, component, setting)
        yield partial(component.check, setting)
    yield from limits.conflicts(composition, setting)


def _hear_conflicts(composition: Composition, setting: Setting, findings: Findings) -> None:
    for question in conflicts(composition, setting):
        findings.hear(question)


def _of_another_task(setting: Setting) -> Iterator[Mistake]:
    objective, task = setting.objective, getattr(setting.task, "name", setting.task.kind)
    if objective.tasks and task not in objective.tasks:
        yield Mistake("objective", f"{objective.name} on task {task}", f"task {' or '.join(objective.tasks)}")


def _unfit(component: Component, setting: Setting) -> Iterator[Mistake]:
    """What a component's own declarations say that it cannot go with; what hangs on the data comes last."""
    where = f"{component.kind} {component.name}"
    if "combine_outputs" in component.hook_points and "fuse" not in component.hook_points:
        found = "it combines the predictions of several models, and no command keeps several"
        yield Mistake(where, found, "a fusion that implements fuse()")
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
        yield Mistake(where, "it chooses by scores and there is no validation split", "data.validation")
    if component.reference and setting.reference is None and setting.fresh_head:
        yield Mistake(
            where,
            "the reference model's head for this task was never trained, so it has nothing to say",
            "a model whose head is trained",
            "train it plainly first and name that run as `model:`, or name a trained model as `reference:`",
        )


def _share_with_views(component: Component, examples: Sequence[Example]) -> float:
    """How many examples a component that looks at views has any for: what it runs again is no more than those."""
    make: Any = getattr(component, "views", None)
    if "views" not in component.hook_points or not examples:
        return 1.0
    sample = examples[:: -(-len(examples) // SAMPLED)]
    return sum(bool(make(example)) for example in sample) / len(sample)


def _row(component: Component, backwards: float) -> Row:
    does = inspect.cleandoc(type(component).__doc__ or "").split("\n\n")[0].replace("\n", " ")
    needs = []
    if component.reference:
        needs.append("reference outputs once per step")
    if component.perturbs:
        needs.append("gradients for the embeddings' output")
    if "views" in component.hook_points:
        needs.append("a second version of each example")
    if component.columns:
        needs.append("columns " + ", ".join(component.columns))
    if type(component).state_dict is not Component.state_dict:
        needs.append("state in checkpoints")
    alone = component.passes * (1.0 + backwards) + (float(component.forwards) + component.reference) / STEP
    phase = PHASES.get(component.kind, "every step")
    return Row(phase, component.name, component.kind, does, tuple(needs), alone)


def _notes(composition: Composition, setting: Setting) -> Iterable[str]:
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


def plan_of(recipe: Recipe, examples: Sequence[Example] = ()) -> tuple[Composition, Plan]:
    """Compose a recipe and plan it; reads the model's config and weight names, loads no weights.

    Args:
        examples: the training split, to see how many of them have views, and the columns that components need.

    Raises:
        UsageError: conflicts, or a model, reference or fusion member that cannot be found or does not fit.
    """
    return planned(recipe, lambda: examples, Findings())


def planned(recipe: Recipe, examples: Callable[[], Sequence[Example]], findings: Findings) -> tuple[Composition, Plan]:
    """As `plan_of`, of a recipe, or of what is known of one in which there are mistakes.

    Each question is asked on its own: one that finds a mistake, or hangs on one, keeps no other from being asked.

    Args:
        recipe: what is known of it.
        examples: gives the training split.
        findings: what was found wrong before; that, too, is raised.
    """
    from alignkit import models
    from alignkit.compose import Composition
    from alignkit.evaluation.evaluators import unfit
    from alignkit.evaluation.robustness import refusals
    from alignkit.generation import refusals as uncontrollable

    source = findings.once(lambda: recipe.source(make=not findings.mistakes))
    facts = findings.once(lambda: models.facts(source(), recipe.task))

    def fresh() -> bool:
        if not facts().fresh_head:
            examples()  # hangs on them: without its labels, a task takes any head of its kind for its own
        return facts().fresh_head

    def task() -> Task:
        if type(recipe.task).take_model is not Task.take_model:
            facts()  # by which it knows the model
        return recipe.task

    tokenizer = findings.once(lambda: models.load_tokenizer(source(), task()))
    objective = findings.ask(lambda: recipe.objective)
    composition = findings.once(
        lambda: Composition(recipe.made(), recipe.task, None if objective is UNSETTLED else objective)
    )
    findings.ask(source)
    findings.ask(facts)
    loaded = findings.ask(tokenizer)
    findings.hear(lambda: _unmergeable(recipe, composition()))
    findings.hear(
        lambda: _unfusable(recipe, composition(), lambda: [] if fresh() else [source()], not findings.mistakes)
    )
    findings.hear(lambda: _no_reference(recipe, make=not findings.mistakes))
    wrong_head = findings.ask(lambda: models.head_arguments(source(), task(), recipe.head)) is UNSETTLED
    head = {} if wrong_head else recipe.head
    findings.ask(lambda: models.refuse_unfit(source(), task(), recipe.peft, recipe.freeze, head))
    findings.hear(lambda: refusals(recipe.evaluation.attacks, task(), None if loaded is UNSETTLED else loaded))
    findings.hear(lambda: _nothing_to_attack(recipe))
    findings.hear(lambda: _without_effect(recipe))
    findings.hear(lambda: uncontrollable(recipe.controls, task()))
    findings.hear(lambda: unfit(recipe.evaluation.evaluators, task(), _is_measured(recipe)))
    known: dict[str, Any] = {
        "task": findings.ask(task),
        "objective": objective,
        "fresh_head": findings.ask(fresh),
        "examples": findings.ask(examples),
        "dropout": findings.ask(lambda: _sets_dropout(recipe) or facts().dropout),
        "tokenizer": tokenizer,
        **_settings(recipe, findings),
    }
    setting = Setting(**known)
    findings.ask(lambda: _hear_conflicts(composition(), setting, findings))
    for component in _only_measured(recipe, findings):
        # on other splits: what the rows of the training split lack for it does not matter
        findings.hear(partial(component.check, Setting(**known | {"examples": ()})))
    findings.refuse()
    return composition(), _with_controls(_plan(composition(), setting), recipe.controls)


def _settings(recipe: Recipe, findings: Findings) -> dict[str, Any]:
    """The fields of a setting that the recipe alone says, each on its own."""
    from alignkit.recipe.training import RECIPE_DEFAULTS

    def checkpointing() -> Mapping[str, Any]:
        named = ("gradient_checkpointing_kwargs", "activation_checkpointing_kwargs")
        return next((recipe.training[name] for name in named if recipe.training.get(name)), {})

    said: dict[str, Callable[[], Any]] = {
        "components": recipe.components,
        "peft": lambda: recipe.peft.method if recipe.peft else None,
        "precision": lambda: next((name for name in ("fp16", "bf16") if recipe.training.get(name)), "fp32"),
        "reference": lambda: recipe.reference,
        "accumulation": lambda: int(recipe.training.get("gradient_accumulation_steps", 1)),
        "batch_size": lambda: int((RECIPE_DEFAULTS | recipe.training)["per_device_train_batch_size"]),
        "reentrant_checkpointing": lambda: bool(checkpointing().get("use_reentrant", False)),
        "validation": lambda: recipe.data.validation is not None,
    }
    return {name: findings.ask(value) for name, value in said.items()}


def _only_measured(recipe: Recipe, findings: Findings) -> list[Component]:
    """The components that take part in the evaluation and not in training."""
    found: list[Component] = []
    for asked in (lambda: recipe.evaluation.under, lambda: recipe.evaluation.gaps):
        components: Any = findings.ask(asked)
        found += [] if components is UNSETTLED else components
    trained = {id(component) for component in recipe.made()}
    return [component for component in found if id(component) not in trained]


def _sets_dropout(recipe: Recipe) -> bool:
    """The recipe itself gives the model, or its adapter, a dropout probability above 0."""
    own = [v for name, v in recipe.head.items() if "drop" in name and isinstance(v, int | float)]
    return any(value > 0 for value in [*own, recipe.peft.dropout if recipe.peft else 0.0])


def _with_controls(plan: Plan, controls: Sequence[Component]) -> Plan:
    """The plan with what is done when the finished model is asked."""
    if not controls:
        return plan
    rows = [replace(_row(control, 0.0), needs=()) for control in controls]
    note = "controls are on when alignkit asks the model (`alignkit predict`), and off in all that is measured before "
    return replace(plan, rows=[*plan.rows, *rows], notes=[*plan.notes, f"{note}and after"])


def _no_reference(recipe: Recipe, make: bool) -> Iterator[Mistake]:
    from alignkit import models

    try:
        if recipe.reference is not None:
            models.resolve(recipe.reference, recipe.base, make)
    except UsageError as error:
        yield from (replace(mistake, where=f"reference {recipe.reference!r}") for mistake in error.mistakes)


def _is_measured(recipe: Recipe) -> bool:
    """There is a split to measure on."""
    return bool(recipe.data.validation or recipe.data.test)


def _nothing_to_attack(recipe: Recipe) -> Iterator[Mistake]:
    if recipe.evaluation.attacks and not _is_measured(recipe):
        found = "the data has neither a test nor a validation split, so that no row would be attacked"
        yield Mistake("evaluation.attacks", found, "a split to attack", "add `test:` to `data:`")


def _without_effect(recipe: Recipe) -> Iterator[Mistake]:
    """What the recipe asks for and the task would pass over in silence."""
    if recipe.cache_hidden_states and not recipe.task.shifts_labels:
        found = f"the model of task {recipe.task.name} is no causal language model"
        yield Mistake("cache_hidden_states", found, "false", "take it out")
    elif recipe.cache_hidden_states and not any(c.reference for c in recipe.components()):
        found = "no component compares with the reference's distributions"
        yield Mistake("cache_hidden_states", found, "one that does, such as kl-reference", "take it out")
    if recipe.training.get("label_smoothing_factor") and not recipe.task.stock_loss:
        found = f"task {recipe.task.name} has no loss on labels that could be smoothed"
        yield Mistake("training.label_smoothing_factor", found, "0", "see the objective's own `label_smoothing`")


def _unmergeable(recipe: Recipe, composition: Composition) -> Iterator[Mistake]:
    if composition.fusion is not None and recipe.peft is not None and recipe.peft.method != "lora":
        found = f"a model with {recipe.peft.method} cannot be merged"
        yield Mistake(f"fusion {composition.fusion.name}", found, "lora, or all weights trained")


def _unfusable(
    recipe: Recipe, composition: Composition, trained: Callable[[], list[Path]], make: bool
) -> Iterator[Mistake]:
    """What would keep the fusion after training from happening.

    Args:
        trained: gives the folder of the model that is trained, where its head is there already.
        make: members that have to be fetched or converted are; otherwise nothing is said of them.
    """
    from alignkit import models
    from alignkit.fusion import incompatibilities, open_members

    component = composition.fusion
    if component is None:
        return
    if "fuse" not in component.hook_points:
        found = "it combines outputs, not weights"
        yield Mistake(f"fusion {component.name}", found, "a fusion of weights in a recipe")
    names = getattr(component, "members", None)
    if names is not None and not names:
        yield Mistake("fusion.members", "none", "runs or models to merge the trained one with")
    folders = []
    for name in names or ():
        try:
            folders.append(models.resolve(name, recipe.base, make))
        except UsageError as error:
            yield from (replace(mistake, where=f"fusion.members {name!r}") for mistake in error.mistakes)
        except Unsettled:
            continue  # not made yet
    if names and (folders := [*trained(), *folders]):
        yield from incompatibilities(open_members(folders))
