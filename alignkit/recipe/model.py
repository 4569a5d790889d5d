"""The recipe: what to run."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    InstanceOf,
    PrivateAttr,
    ValidationError,
    ValidationInfo,
    field_validator,
)

from alignkit.catalogue import Catalogue, default_catalogue
from alignkit.components import (
    Adversary,
    Augmenter,
    Averager,
    Component,
    Constraint,
    Control,
    Filter,
    Fusion,
    Objective,
    Task,
    Updater,
)
from alignkit.data.source import Data
from alignkit.errors import Mistake
from alignkit.models.adapters import Peft
from alignkit.models.location import resolve
from alignkit.models.scratch import Scratch
from alignkit.recipe import file, training, written
from alignkit.recipe.errors import Place, Problem, Problems, line_of, locate, problems_of, raised, shown, sound_items
from alignkit.recipe.evaluation import Evaluation
from alignkit.recipe.known import known_of, problems_in
from alignkit.recipe.parts import Making, each, every, make, making_of
from alignkit.recipe.training import EarlyStopping
from alignkit.recipe.tuning import Tune
from alignkit.sections import note

if TYPE_CHECKING:
    from transformers import TrainingArguments

COMPONENTS = {
    "filters": "filter",
    "augmenters": "augmenter",
    "constraints": "constraint",
    "adversary": "adversary",
    "averaging": "averager",
    "fusion": "fusion",
    "updater": "updater",
}
"""The fields that hold components which hook into the run, in recipe order, and their kinds."""


class Recipe(BaseModel):
    """What to run. A recipe file's fields are this class's; components are names, mappings or instances.

    Args:
        base: the folder that relative paths are relative to; a recipe file's own.

    Raises:
        UsageError: everything that is wrong with it, at once.
        PluginError: a component's plugin is broken, and nothing else is wrong.

    Example:
        >>> Recipe(model="runs/plain", task="ner", data={"train": "train.conll"}).seed
        42
    """

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    plugins: list[str] = []
    """Local plugin files: trusted code, run as it is, never fetched."""
    model: str | Scratch
    """A hub id, a model's folder, a run's folder, a .gguf file, or, from scratch, a config and a tokenizer."""
    task: InstanceOf[Task]
    """What the model is for."""
    objective: InstanceOf[Objective] = Field(default=None, validate_default=True)
    """What is minimised; by default what the task says, mostly `supervised`."""
    data: Data
    """Where the splits come from."""
    filters: list[InstanceOf[Filter]] = []
    """Which examples the run sees."""
    augmenters: list[InstanceOf[Augmenter]] = []
    """New training examples."""
    constraints: list[InstanceOf[Constraint]] = []
    """What the model may not drift from."""
    adversary: InstanceOf[Adversary] | None = None
    """What the model is hardened against."""
    averaging: InstanceOf[Averager] | None = None
    """Averages of the weights, during training."""
    fusion: InstanceOf[Fusion] | None = None
    """One model of several, after training."""
    updater: InstanceOf[Updater] | None = None
    """Learning on without forgetting."""
    controls: list[InstanceOf[Control]] = []
    """What controls the finished model's answers when it is asked; training and evaluation do without."""
    evaluation: Evaluation = Evaluation()
    """What is measured beside the clean splits."""
    peft: Peft | None = None
    """A parameter-efficient method: {method: lora, r: 16}; all weights are trained where it is missing."""
    freeze: list[str] = []
    """Parts of the model that are not trained: embeddings, layers.0-3, or patterns of parameter names."""
    head: dict[str, Any] = {}
    """The head that the task puts on the model: its `dropout`, or any field of the model's config."""
    reference: str | None = None
    """The model whose outputs constraints compare with; by default the model as it was before training."""
    cache_hidden_states: bool = False
    """Keep the reference's hidden states on disk, in half precision, so that constraints on a language model's whole
    distributions ask it once per row and not at every step: two bytes per scored token and dimension."""
    early_stopping: EarlyStopping | None = None
    """Stop when the validation split no longer gets better."""
    training: dict[str, Any] = {}
    """Any field of transformers.TrainingArguments."""
    tune: Tune | None = None
    """What `alignkit tune` searches; `alignkit train` ignores it."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 42
    """Of everything random."""
    output: str | None = None
    """The run's folder."""

    _base: Path = PrivateAttr(default=Path())
    _catalogue: Catalogue = PrivateAttr()
    _given: dict[str, Any] = PrivateAttr(default_factory=dict)
    """The fields as they were written or passed."""
    _lines: Mapping[Place, str] = PrivateAttr(default_factory=dict)
    """Where fields stand: `recipe.yaml:12`."""
    _root: str = PrivateAttr(default="")
    """The recipe's file."""
    _made: list[Component] | None = PrivateAttr(default=None)
    """Where there are mistakes, the components that could be made."""
    _sound: Mapping[Place, Mapping[int, Any]] = PrivateAttr(default_factory=dict)
    """Of lists with mistakes in them the other items, by number."""

    def __init__(self, *, base: str | Path = ".", **fields: Any):
        self._validate(fields, Path(base), {}, [], "", strict=False)

    @classmethod
    def load(cls, path: str | Path, overrides: Iterable[str] = (), strict: bool = False) -> Recipe:
        """Read a recipe file: .yaml, .toml or .json.

        Args:
            path: the file.
            overrides: `adversary.epsilon=0.3`, as `--set` takes them.
            strict: every plugin that cannot be loaded is an error.
        """
        path = Path(path)
        fields, lines, mistakes = file.read(path)
        mistakes += file.override(fields, overrides, lines)
        base = path.parent / str(fields.pop("base", "."))
        recipe = cls.__new__(cls)
        recipe._validate(fields, base, lines, mistakes, str(path), strict)
        return recipe

    def _validate(
        self,
        fields: dict[str, Any],
        base: Path,
        lines: Mapping[Place, str],
        mistakes: file.Placed,
        root: str,
        strict: bool,
    ) -> None:
        fields = dict(fields)
        written_by = fields.pop("versions", None)
        making = Making(Path(os.path.abspath(base)), default_catalogue(strict).copy())
        making.lacks_plugins = "plugins" in fields  # until they are loaded
        problems: list[Problem] = []
        items: dict[Place, dict[int, Any]] = {}
        try:
            self.__pydantic_validator__.validate_python(fields, self_instance=self, context=making)
        except ValidationError as error:
            problems, items = problems_in(Recipe, error, fields), sound_items(error)
        if problems or mistakes:
            wrong = [*(problem.place for problem in problems), *(place for place, _ in mistakes)]
            known = known_of(Recipe, fields, making, wrong, items)
            known._settle(fields, making, lines, root)
            raise raised(problems, [mistake for _, mistake in mistakes], lines, root, known)
        self._settle(fields, making, lines, root)
        written.note_versions(written_by, self, making.catalogue)

    def _settle(self, fields: dict[str, Any], making: Making, lines: Mapping[Place, str], root: str) -> None:
        self._base, self._catalogue = making.base, making.catalogue
        self._given, self._lines, self._root = fields, lines, root

    # -- validation --------------------------------------------------------------------------------------------

    @field_validator("plugins")
    @classmethod
    def _plugins(cls, value: list[str], info: ValidationInfo) -> list[str]:
        making = making_of(info)
        each(value, lambda path: making.catalogue.load_file(making.base / Path(path).expanduser()))
        making.lacks_plugins = False
        return value

    @field_validator("model", mode="before")
    @classmethod
    def _model(cls, value: Any) -> Any:
        if isinstance(value, str | Scratch):
            return value
        if not isinstance(value, Mapping):
            raise Problems([Problem((), shown(value), "a string, or a mapping with config and tokenizer")])
        try:
            scratch = Scratch.model_validate(value)
        except ValidationError as error:
            raise Problems(problems_of(error, value, lambda _: Scratch.model_fields, lambda _: "")) from error
        wrong = [Problem(("config", name), *said) for name, said in scratch.mistakes()]
        if wrong:
            raise Problems(wrong)
        return scratch

    @field_validator("task", "objective", mode="before")
    @classmethod
    def _plain(cls, value: Any, info: ValidationInfo) -> Any:
        if value is None and info.field_name == "objective":
            value = info.data["task"].default_objective() if "task" in info.data else "alignkit/supervised"
        return make(str(info.field_name), value, making_of(info))

    @field_validator("filters", "augmenters", "constraints", mode="before")
    @classmethod
    def _several(cls, value: Any, info: ValidationInfo) -> Any:
        return every(COMPONENTS[str(info.field_name)], value, making_of(info), making_of(info).names)

    @field_validator("controls", mode="before")
    @classmethod
    def _controls(cls, value: Any, info: ValidationInfo) -> Any:
        return every("control", value, making_of(info), {})

    @field_validator("adversary", "averaging", "fusion", "updater", mode="before")
    @classmethod
    def _one(cls, value: Any, info: ValidationInfo) -> Any:
        kind = COMPONENTS[str(info.field_name)]
        return None if value is None else make(kind, value, making_of(info), making_of(info).names)

    @field_validator("peft", mode="before")
    @classmethod
    def _peft(cls, value: Any) -> Any:
        return {"method": value} if isinstance(value, str) else value

    @field_validator("early_stopping")
    @classmethod
    def _early_stopping(cls, value: EarlyStopping | None, info: ValidationInfo) -> EarlyStopping | None:
        if value and "data" in info.data and not info.data["data"].validation:
            found = "there is no validation split that it could look at"
            raise Problems([Problem((), found, mend="name one as `data.validation`")])
        return value

    @field_validator("training")
    @classmethod
    def _training(cls, value: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
        data = info.data.get("data")
        validation, stopping = bool(data is None or data.validation), bool(info.data.get("early_stopping"))
        values, problems = training.checked(value, validation, early_stopping=stopping)
        if problems:
            raise Problems(problems)
        return values

    _note = field_validator("*")(note)

    # -- what it says ------------------------------------------------------------------------------------------

    @property
    def base(self) -> Path:
        """The folder that relative paths are relative to."""
        return self._base

    @property
    def catalogue(self) -> Catalogue:
        """What its names stand for: what is installed, and what its own plugin files hold."""
        return self._catalogue

    def source(self, make: bool = True) -> Path:
        """The folder of the model that the run starts from; one from scratch is made at the first call.

        Args:
            make: where it is not there yet, make, convert or fetch it; `Unsettled` otherwise.

        Raises:
            UsageError: there is no such model, or none can be made.
        """
        if isinstance(self.model, str):
            return resolve(self.model, self._base, make)
        from alignkit.models.scratch import made

        return made(self.model, self._base, self.seed, make)

    @property
    def origin(self) -> Path:
        """Where the model that the run starts from is kept: where it is a run, that run's folder."""
        return self.resolve_path(self.model) if isinstance(self.model, str) else self.source()

    def resolve_path(self, name: str | Path) -> Path:
        """A path that the recipe names, relative to its folder where it is not absolute."""
        return self._base / Path(name).expanduser()

    def components(self) -> list[Component]:
        """The components that hook into the run, in recipe order."""
        values = [getattr(self, name) for name in COMPONENTS]
        return [c for value in values for c in (value if isinstance(value, list) else [value]) if c is not None]

    def made(self) -> list[Component]:
        """The same of a recipe with mistakes, as far as they could be made."""
        return self.components() if self._made is None else self._made

    def where(self, *place: str | int) -> str:
        """Where a field stands, for messages: `recipe.yaml:12 adversary.epsilon`."""
        return locate(place, self._lines, self._root)

    def placed(self, mistake: Mistake) -> Mistake:
        """A mistake at a field, or of a component, as `constraint kl-reference`, with the line where that stands."""
        words = mistake.where.split(" ")
        lists = {kind: name for name, kind in COMPONENTS.items()}
        dotted = tuple(int(p) if p.isdigit() else p for p in words[0].rstrip(",").split("."))
        named = (place for place, c in self._all() if words[:2] == [c.kind, c.name])
        place = next(named, (lists[words[0]],) if words[0] in lists else dotted)
        line = line_of(place, self._lines, self._root) if place[0] in type(self).model_fields else ""
        if line.startswith("--set output="):  # what `--output` stands for
            return mistake
        return replace(mistake, where=f"{line} {mistake.where}".strip())

    def _all(self) -> Iterator[tuple[Place, Component]]:
        """Every component that is known, with its place."""
        known: dict[Place, Any] = {(name,): value for name, value in self.__dict__.items()}
        if (measured := self.__dict__.get("evaluation")) is not None:
            known |= {("evaluation", name): value for name, value in measured.__dict__.items()}
        for place, value in {**known, **self._sound}.items():
            items = dict(enumerate(value)) if isinstance(value, list) else value
            if isinstance(items, Mapping):
                yield from (((*place, n), item) for n, item in items.items() if isinstance(item, Component))
            elif isinstance(items, Component):
                yield place, items

    def varied(self, values: Mapping[str, Any]) -> Recipe:
        """The same recipe with other values at dotted paths: `{"adversary.epsilon": 0.3}`. Components are made anew.

        Raises:
            UsageError: everything that is wrong with it then, at `adversary.epsilon`, without file and line.
        """
        fields = written.plain(self._given, self._catalogue, self._base)
        put = ((path, file.put(fields, path, value, {})) for path, value in values.items())
        wrong: file.Placed = [((path.partition(".")[0],), found) for path, found in put if found]
        recipe = Recipe.__new__(Recipe)
        recipe._validate(fields, self._base, {}, wrong, "", strict=False)
        return recipe

    def training_arguments(self, output_dir: str | Path) -> TrainingArguments:
        """The recipe's training arguments over `RECIPE_DEFAULTS`, and those that alignkit sets itself."""
        import torch
        from transformers import TrainingArguments

        ours: dict[str, Any] = {"output_dir": str(output_dir), "seed": self.seed, "remove_unused_columns": False}
        if self.early_stopping:
            metric = self.early_stopping.metric or self.task.metric or "loss"
            ours |= {"load_best_model_at_end": True, "metric_for_best_model": metric}
            ours["restore_callback_states_from_checkpoint"] = True  # the patience that is used up
            if metric == self.task.metric:
                ours["greater_is_better"] = self.task.greater_is_better
        accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        machine = {"dataloader_pin_memory": accelerator is not None and accelerator.type != "mps"}
        return TrainingArguments(**machine | training.merged(self.training, bool(self.data.validation)) | ours)

    def resolved(self) -> dict[str, Any]:
        """The recipe with every default written out, and the versions of what it runs on."""
        return written.resolved(self, self._catalogue)

    def save(self, path: str | Path) -> None:
        """Write the resolved recipe; relative paths in it keep their meaning through its `base:`."""
        path = Path(path)
        base = os.path.relpath(self._base, path.parent)
        values = self.resolved()
        values = {**({"base": Path(base).as_posix()} if base != "." else {}), **values}
        temporary = path.with_name(path.name + ".tmp")
        temporary.write_text(file.dump(values), "utf-8")
        os.replace(temporary, path)

    @classmethod
    def json_schema(cls) -> dict[str, Any]:
        """The JSON schema of recipe files, for editors: with every registered component's own fields."""
        from alignkit.recipe.schema import schema

        return schema(cls)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Recipe):
            return NotImplemented
        mine, others = self.resolved(), other.resolved()
        return self._base == other._base and {**mine, "versions": 0} == {**others, "versions": 0}

    def __repr__(self) -> str:
        return f"Recipe(model={str(self.model)!r}, task={self.task.name!r}, {len(self.components())} components)"
