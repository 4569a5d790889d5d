"""A model with its tokenizer and its task, ready to answer."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignkit import models
from alignkit.catalogue import default_catalogue
from alignkit.components import Control, Task
from alignkit.errors import Mistake, UsageError
from alignkit.kept import controls_of
from alignkit.models.inspection import read_config
from alignkit.run_folder import CONTROLS, RECIPE

if TYPE_CHECKING:
    from alignkit.generation import Controlled, Record
    from alignkit.recipe import Recipe

HEADS = {
    "ForTokenClassification": "ner",
    "ForSequenceClassification": "text-classification",
    "ForCausalLM": "chat",
    "LMHeadModel": "chat",
}
"""How the class that wrote a checkpoint ends -> the task that its head is for, where several tasks share the head."""
ENDINGS = {"ForSeq2SeqLM": "ForConditionalGeneration"}
"""How an auto class ends -> how the classes end that it stands for, where it is not the same."""


@dataclass
class Aligned:
    """What `alignkit.load` gives."""

    task: Task
    model: Any
    tokenizer: Any
    path: Path | None = None
    controls: list[Control] = field(default_factory=list)
    """What controls its answers; a run's own are those of its recipe. Put others here, or none."""
    _controlled: Controlled | None = field(default=None, init=False, repr=False, compare=False)
    _prepared: list[tuple[Control, str]] = field(default_factory=list, init=False, repr=False, compare=False)
    """Which controls are prepared, and with which fields."""

    def predict(
        self, texts: Iterable[str | Mapping[str, Any]], *, audit: list[Record] | None = None, **options: Any
    ) -> list[dict[str, Any]]:
        """One answer per text, in order; where a control did something to it, `controls` says what.

        Args:
            texts: strings, or rows with the task's fields (`{"text": …, "text_pair": …}`, `{"messages": …}`).
            audit: a list to which everything is appended that the controls did or looked at, with the `row` and the
                beginning of its `text`.
            options: the task's own (`batch_size`; for chat `max_new_tokens` …).

        Raises:
            UsageError: every text that the task cannot read; controls that do not go with the task or the model.
        """
        return list(self.answers(texts, audit=audit, **options))

    def answers(
        self, texts: Iterable[str | Mapping[str, Any]], *, audit: list[Record] | None = None, **options: Any
    ) -> Iterator[dict[str, Any]]:
        """As `predict`, one answer at a time."""
        examples, mistakes = [], []
        for number, text in enumerate(texts, 1):
            try:
                examples.append(self.task.inputs(text))
            except UsageError as error:
                mistakes += [replace(mistake, where=f"text {number}") for mistake in error.mistakes]
        if mistakes:
            raise UsageError(*mistakes)
        if self.controls:
            yield from self.controlled().answers(examples, audit=audit, **options)
        else:
            yield from self.task.predict(self.model, self.tokenizer, examples, **options)

    def controlled(self) -> Controlled:
        """The model under its controls, which are prepared for it when they are first needed, and when one is changed.

        Raises:
            UsageError: controls that do not go with the task or the model.
        """
        from alignkit.generation import Controlled

        known, now = self._controlled, [(control, repr(control.fields())) for control in self.controls]
        if known is None or known.model is not self.model or self._prepared != now:
            before = dict(self._prepared)
            for control, fields in now:
                if before.get(control, fields) != fields:
                    control.reset()
            kept = known is None or known.model is self.model  # what a run keeps is for its own model
            states = self.path / CONTROLS if self.path is not None and kept else None
            known = Controlled(self.controls, self.task, self.model, self.tokenizer, states)
            self._controlled, self._prepared = known, now
        return known


def load(path: str | Path, task: Task | str | None = None, controls: Iterable[Control | str] | None = None) -> Aligned:
    """A run folder or a model folder as something with `predict`, on the accelerator where there is one.

    Args:
        path: a run (its recipe names the task), a model folder, `package:NAME`, a `.gguf` file or a hub id.
        task: the task of a model that is no run; by default what its head is for.
        controls: what controls its answers; by default, of a run with the task of its recipe, that recipe's controls.

    Raises:
        UsageError: there is no model, its head does not say what it is for, or was never trained for the task.
    """
    import torch

    source = models.resolve(str(path))
    recipe_file = Path(path).expanduser() / RECIPE
    chosen = find_task(task) if isinstance(task, str) else task
    wanted = [] if controls is None else _controls(controls)
    if chosen is None and recipe_file.is_file():
        recipe = _recipe_of_run(recipe_file)
        chosen, wanted = recipe.task, controls_of(recipe, recipe_file.parent) if controls is None else wanted
    elif chosen is None:
        chosen = _task_of(source, str(path))
    facts = models.facts(source, chosen)
    if facts.fresh_head:
        found = f"{facts.architecture or 'it'} has no head that was trained for {chosen.name}"
        mend = "train it first: `alignkit train RECIPE` with it as `model:`"
        raise UsageError(Mistake(f"model {str(path)!r}", found, "a model trained for the task", mend))
    model, tokenizer = models.load(source, chosen)
    if torch.accelerator.is_available():
        model.to(torch.accelerator.current_accelerator())
    return Aligned(chosen, model, tokenizer, Path(path), list(wanted))


def find_task(name: str) -> Task:
    """A registered task with its default fields.

    Raises:
        UsageError: there is no such task.
    """
    catalogue = default_catalogue()
    cls: Any = catalogue.load_class(catalogue.find("task", name))
    task: Task = cls()
    task.name = name
    return task


def _controls(given: Iterable[Control | str]) -> list[Control]:
    """Controls, those that are named made with their default fields.

    Raises:
        UsageError: everything that is wrong with them.
    """
    from alignkit.recipe.errors import Problems
    from alignkit.recipe.parts import Making, every

    listed = list(given) if isinstance(given, Iterable) and not isinstance(given, str | Mapping) else given
    try:
        found: list[Any] = every("control", listed, Making(Path.cwd(), default_catalogue()), {})
    except Problems as error:
        problems = ((".".join(map(str, ("controls", *p.place))), p) for p in error.problems)
        raise UsageError(*(Mistake(where, p.found, p.expected, p.mend) for where, p in problems)) from error
    return found


def show_training_split(recipe: Recipe) -> None:
    """Let a recipe's task see the training split that the recipe names, where it looks at it when it predicts."""
    from alignkit.data.load import load as load_data

    if recipe.task.needs_training_split:
        load_data({"train": recipe.data.splits()["train"]}, recipe.task, recipe.base)


def _recipe_of_run(recipe_file: Path) -> Recipe:
    from alignkit.recipe import Recipe

    recipe = Recipe.load(recipe_file)
    show_training_split(recipe)
    return recipe


def _task_of(source: Path, name: str) -> Task:
    """The task that a model's head is for, by the class that its config names."""
    architecture = next(iter(read_config(source).get("architectures") or []), "")
    shared = next((task for suffix, task in HEADS.items() if architecture.endswith(suffix)), None)
    names = (
        [shared] if shared else [task for task in default_catalogue().entries()["task"] if _serves(task, architecture)]
    )
    if len(names) != 1:
        found = "its head does not say which task it is for"
        mend = "name it: --task" + (f" {names[0]}" if names else "")
        raise UsageError(Mistake(f"model {name!r}", found, " or ".join(names) or "a task", mend))
    return find_task(names[0])


def _serves(task: str, architecture: str) -> bool:
    """The task loads models by a transformers class whose own classes are called like this one."""
    catalogue = default_catalogue()
    cls: Any = catalogue.load_class(catalogue.find("task", task))
    suffixes = [kind.removeprefix("AutoModel") for kind in cls.auto_classes or (cls.auto_class,)]
    return any(suffix and architecture.endswith(ENDINGS.get(suffix, suffix)) for suffix in suffixes)
