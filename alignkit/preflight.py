"""From a recipe to its plan before weights are loaded: its model, its parts, its settings, each asked on its own."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignkit import models
from alignkit.components import Task
from alignkit.compose import Composition
from alignkit.data import prepare
from alignkit.errors import Mistake, UsageError
from alignkit.findings import UNSETTLED, Findings, Unsettled
from alignkit.models.likeness import unlike
from alignkit.plan import Plan, Setting, conflicts, predicted

if TYPE_CHECKING:
    from alignkit.components import Component
    from alignkit.data import Example
    from alignkit.models import Peft
    from alignkit.recipe import Recipe

Questions = Iterator[Callable[[], Iterable[Mistake]]]


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
    known = _Known(recipe, examples, findings)
    for part in (known.source, known.facts, known.tokenizer):
        findings.ask(part)
    findings.hear_all(_questions(known))
    fields = known.fields()
    setting = Setting(**fields)
    findings.ask(lambda: findings.hear_all(conflicts(known.composition(), setting)))
    for component in known.only_measured():
        # on other splits: what the rows of the training split lack for it does not matter
        findings.hear(partial(component.check, Setting(**fields | {"examples": ()})))
    findings.refuse()
    return known.composition(), predicted(known.composition(), setting, recipe.controls)


class _Known:
    """What is known of a recipe's parts: a part is looked for when it is first asked for.

    One in which there is a mistake is told once; whoever asks for it then is `Unsettled`.
    """

    def __init__(self, recipe: Recipe, examples: Callable[[], Sequence[Example]], findings: Findings):
        self.recipe, self.examples, self.findings = recipe, examples, findings
        self.source = findings.once(lambda: recipe.source(make=self.sound))
        self.facts = findings.once(lambda: models.facts(self.source(), recipe.task))
        self.tokenizer = findings.once(lambda: models.load_tokenizer(self.source(), self.task(), self.peft()))
        self.objective = findings.ask(lambda: recipe.objective)
        self.composition = findings.once(self._composed)

    def _composed(self) -> Composition:
        objective = None if self.objective is UNSETTLED else self.objective
        return Composition(self.recipe.made(), self.recipe.task, objective)

    @property
    def sound(self) -> bool:
        """Nothing wrong was found so far: what has to be fetched, converted or made may be."""
        return not self.findings.mistakes

    def task(self) -> Task:
        if type(self.recipe.task).take_model is not Task.take_model:
            self.facts()  # by which it knows the model
        return self.recipe.task

    def peft(self) -> Peft | None:
        """The recipe's, where nothing is wrong with it."""
        found = self.findings.ask(lambda: self.recipe.peft)
        return None if found is UNSETTLED else found

    def fresh_head(self) -> bool:
        if not self.facts().fresh_head:
            self.examples()  # hangs on them: without its labels, a task takes any head of its kind for its own
        return self.facts().fresh_head

    def trained(self) -> list[Path]:
        """The folder of the model that is trained, where its head is there already."""
        return [] if self.fresh_head() else [self.source()]

    def dropout(self) -> bool | None:
        """As `Setting.dropout`: the recipe itself may give the model, or its adapter, one."""
        recipe = self.recipe
        own = [v for name, v in recipe.head.items() if "drop" in name and isinstance(v, int | float)]
        given = any(value > 0 for value in [*own, recipe.peft.dropout if recipe.peft else 0.0])
        return given or self.facts().dropout

    def marked(self) -> Sequence[Example]:
        """The training split with the columns that filters write, which others read; other filters are not asked."""
        writing = [component for component in self.recipe.filters if component.writes]
        if not writing:
            return self.examples()
        if mistakes := list(prepare.written_over(writing, self.examples())):
            raise UsageError(*mistakes)
        kept, _ = prepare.filter_examples([(f.name, f.filter_examples) for f in writing], self.examples())
        for component in writing:
            component.reset()
        return kept

    def checkpointing(self) -> Mapping[str, Any]:
        training = self.recipe.training
        named = ("gradient_checkpointing_kwargs", "activation_checkpointing_kwargs")
        return next((training[name] for name in named if training.get(name)), {})

    def is_measured(self) -> bool:
        """There is a split to measure on."""
        return bool(self.recipe.data.validation or self.recipe.data.test)

    def only_measured(self) -> list[Component]:
        """The components that take part in the evaluation and not in training."""
        evaluation: tuple[Callable[[], Any], ...] = (
            lambda: self.recipe.evaluation.under,
            lambda: self.recipe.evaluation.gaps,
        )
        asked = [found for part in evaluation if (found := self.findings.ask(part)) is not UNSETTLED]
        trained = {id(component) for component in self.recipe.made()}
        return [component for part in asked for component in part if id(component) not in trained]

    def fields(self) -> dict[str, Any]:
        """The fields of the run's `Setting`, each asked for on its own."""
        from alignkit.recipe.training import RECIPE_DEFAULTS

        recipe = self.recipe
        asked: dict[str, Callable[[], Any]] = {
            "task": self.task,
            "components": recipe.components,
            "fresh_head": self.fresh_head,
            "examples": self.marked,
            "dropout": self.dropout,
            "peft": lambda: recipe.peft.method if recipe.peft else None,
            "precision": lambda: next((name for name in ("fp16", "bf16") if recipe.training.get(name)), "fp32"),
            "reference": lambda: recipe.reference,
            "accumulation": lambda: int(recipe.training.get("gradient_accumulation_steps", 1)),
            "batch_size": lambda: int((RECIPE_DEFAULTS | recipe.training)["per_device_train_batch_size"]),
            "steps": lambda: max(int(recipe.training.get("max_steps", 0)), 0) or None,
            "reentrant_checkpointing": lambda: bool(self.checkpointing().get("use_reentrant", False)),
            "validation": lambda: recipe.data.validation is not None,
            "seed": lambda: recipe.seed,
        }
        known = {name: self.findings.ask(value) for name, value in asked.items()}
        return known | {"objective": self.objective, "tokenizer": self.tokenizer}


# -- what is asked -------------------------------------------------------------------------------------------------


def _questions(known: _Known) -> Questions:
    """What a recipe may ask for that its model, its task or its data does not allow."""
    from alignkit.evaluation.evaluators import unfit
    from alignkit.evaluation.robustness import refusals
    from alignkit.generation import refusals as uncontrollable

    recipe = known.recipe
    yield lambda: _unmergeable(recipe, known.composition())
    yield lambda: _unfusable(known)
    yield lambda: _unfit_reference(known)
    yield lambda: _unloadable(known)
    tokenizer = known.findings.ask(known.tokenizer)
    loaded = None if tokenizer is UNSETTLED else tokenizer
    yield lambda: refusals(recipe.evaluation.attacks, known.task(), loaded)
    yield lambda: _nothing_to_attack(known)
    yield lambda: _no_hidden_states(recipe)
    yield lambda: _nothing_to_smooth(recipe)
    yield lambda: uncontrollable(recipe.controls, known.task())
    yield lambda: unfit(recipe.evaluation.evaluators, known.task(), known.is_measured())


def _unloadable(known: _Known) -> Iterable[Mistake]:
    """What `models.load` would refuse."""
    recipe, ask = known.recipe, known.findings.ask
    wrong = ask(lambda: models.head_arguments(known.source(), known.task(), recipe.head)) is UNSETTLED
    models.refuse_unfit(known.source(), known.task(), recipe.peft, recipe.freeze, {} if wrong else recipe.head)
    return ()


def _unfit_reference(known: _Known) -> Iterator[Mistake]:
    """A reference that is not there, that nothing looks at, or that cannot be compared with the model."""
    name = known.recipe.reference
    if name is None:
        return
    where = f"reference {name!r}"
    if known.findings.ask(lambda: _compares(known)) is False:
        found = "neither the objective nor a component compares with it"
        yield Mistake(where, found, "one that does, such as kl-reference", "take it out")
        return
    try:
        folder = models.resolve(name, known.recipe.base, known.sound)
    except UsageError as error:
        yield from (replace(mistake, where=where) for mistake in error.mistakes)
        return
    known.fresh_head()  # the task knows its labels then
    distributions = any(component.reference for component in known.recipe.made())
    yield from unlike(where, folder, known.task(), known.source(), known.tokenizer(), distributions)


def _compares(known: _Known) -> bool:
    """The objective or a component asks the reference; `Unsettled` where one that may could not be made."""
    composition = known.composition()
    if not composition.needs_reference:
        known.recipe.components()
        if known.objective is UNSETTLED:
            raise Unsettled("objective")
    return composition.needs_reference


def _nothing_to_attack(known: _Known) -> Iterator[Mistake]:
    if known.recipe.evaluation.attacks and not known.is_measured():
        found = "the data has neither a test nor a validation split, so that no row would be attacked"
        yield Mistake("evaluation.attacks", found, "a split to attack", "add `test:` to `data:`")


def _no_hidden_states(recipe: Recipe) -> Iterator[Mistake]:
    """The task, or every component, would pass over `cache_hidden_states` in silence."""
    if not recipe.cache_hidden_states:
        return
    if not recipe.task.shifts_labels:
        found = f"the model of task {recipe.task.name} is no causal language model"
        yield Mistake("cache_hidden_states", found, "false", "take it out")
    elif not any(component.reference for component in recipe.components()):
        found = "no component compares with the reference's distributions"
        yield Mistake("cache_hidden_states", found, "one that does, such as kl-reference", "take it out")


def _nothing_to_smooth(recipe: Recipe) -> Iterator[Mistake]:
    """The task would pass over `label_smoothing_factor` in silence."""
    if recipe.training.get("label_smoothing_factor") and not recipe.task.stock_loss:
        found = f"task {recipe.task.name} has no loss on labels that could be smoothed"
        mend = "take it out; some objectives have a `label_smoothing` of their own"
        yield Mistake("training.label_smoothing_factor", found, "0", mend)


def _unmergeable(recipe: Recipe, composition: Composition) -> Iterator[Mistake]:
    if composition.fusion is not None and recipe.peft is not None and recipe.peft.method != "lora":
        where, found = f"fusion {composition.fusion.name}", f"a model with {recipe.peft.method} cannot be merged"
        yield Mistake(where, found, "lora, or all weights trained", "write `peft: lora`, or take `peft:` or it out")


def _unfusable(known: _Known) -> Iterator[Mistake]:
    """What would keep the fusion after training from happening.

    Members that have to be fetched or converted are, while nothing is wrong; otherwise nothing is said of them.
    """
    from alignkit.fusion import incompatibilities, open_members

    names = getattr(known.composition().fusion, "members", None)
    if names is not None and not names:
        mend = "name them: `members: [runs/other]`"
        yield Mistake("fusion.members", "none", "runs or models to merge the trained one with", mend)
    folders = []
    for name in names or ():
        try:
            folders.append(models.resolve(name, known.recipe.base, known.sound))
        except UsageError as error:
            yield from (replace(mistake, where=f"fusion.members {name!r}") for mistake in error.mistakes)
        except Unsettled:
            continue  # not made yet
    if names and (folders := [*known.trained(), *folders]):
        yield from incompatibilities(open_members(folders))
