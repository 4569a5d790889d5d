"""What a method is: one class per method, of one kind, whose fields are its hyper-parameters.

Subclassing is all an author does. The base turns the class into a pydantic dataclass (keyword-only, unknown fields
refused, the string under a field is its description, instances compare by identity), marks the hook points that the
class implements for pluggy, and refuses at once what would otherwise be silent: no hook point implemented, a hook
point misspelt, a field without annotation.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal, dataclass_transform

from pydantic import ConfigDict, InstanceOf, NonNegativeFloat, PositiveInt
from pydantic.dataclasses import dataclass as pydantic_dataclass

from alignkit.errors import Mistake, PluginError, UsageError
from alignkit.hookspecs import HOOK_POINTS, hookimpl

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from alignkit.data import Example
    from alignkit.data.read import Reader
    from alignkit.data.source import Source
    from alignkit.evaluation.evaluators import Subject
    from alignkit.evaluation.victim import Victim
    from alignkit.generation import Generating, Processor
    from alignkit.plan import Setting
    from alignkit.step import TrainingStep

Batch = dict[str, Any]
"""Tensors by the names that the model's `forward` takes."""


# -- what components answer with ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Verdict:
    """What a filter says of one example."""

    action: Literal["keep", "drop", "edit"] = "keep"
    rule: str = ""
    """The rule that spoke: `maximum`, `exact`, a list's name …"""
    value: Any = None
    """What was measured."""
    threshold: Any = None
    """What it was held against."""
    survivor: int | None = None
    """Of a duplicate: the row that stays."""
    example: Example | None = None
    """Of an edit: the example as it is to be."""


KEEP = Verdict()


@dataclass
class Term:
    """An objective's or penalty's answer: its mean over this micro-batch, and over what the mean was taken."""

    mean: Tensor
    """A scalar, differentiable."""
    per: str = "example"
    """A count by name: `token`, `example`, or one that the task or the component counts in `counts(batch)`."""


@dataclass
class Memory:
    """What an updater carries from one run to the next; the host reads and writes it."""

    examples: list[dict[str, Any]] = field(default_factory=list)
    """Rows of data, as the task's files hold them."""
    tensors: dict[str, Tensor] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    """Anything JSON holds."""
    dataset: Any = None
    """`examples`, encoded by the task for this run's model; made by the host."""


@dataclass
class Attempt:
    """What an attack made of one example."""

    prediction: dict[str, Any]
    """The model's for the attacked input, as the task gives it."""
    example: Example | None = None
    """The attacked input; None where the text is as it was (a perturbation of the embeddings)."""
    queries: int = 0
    """Inputs that the model was asked about for this example, gradients included."""
    broken: bool | None = None
    """The attack reached its goal; None: where the prediction was right before and is not any more."""
    measures: dict[str, float] = field(default_factory=dict)
    """What else was measured; the means over examples are reported."""


@dataclass(frozen=True)
class Intervention:
    """What a control found, and did, at one answer: a line of the audit."""

    rule: str
    """The rule that spoke: `phrase`, `pattern`, a label, `layer 12` …"""
    value: Any = None
    """What was measured, or matched."""
    threshold: Any = None
    """What it was held against; of a control that steers, how strongly."""
    changed: str = ""
    """What is another thing now, in words; empty: nothing, it was looked at."""
    text: str | None = None
    """Of `reply` and `finish`: the answer from now on; None: as it is."""


@dataclass
class Measurement:
    """What an evaluator found of one row."""

    statistics: dict[str, float]
    """Additive: the metrics are functions of their sums over rows. A row may lack some, which are 0 then."""
    line: dict[str, Any] = field(default_factory=dict)
    """For people, in JSON: what was asked, what was answered …; empty: nothing worth keeping."""


class Member:
    """One model among those being fused, read lazily from memory-mapped safetensors.

    `name`, `weight`, `config` (a dict), `names` (parameter names), `shape(name)`, `tensor(name)`, `statistics`.
    """

    name: str
    weight: float
    config: Mapping[str, Any]
    statistics: Mapping[str, Any]

    @property
    def names(self) -> list[str]:
        raise NotImplementedError

    def shape(self, name: str) -> tuple[int, ...]:
        raise NotImplementedError

    def tensor(self, name: str) -> Tensor:
        raise NotImplementedError


Score = Callable[[Iterable[tuple[str, "Tensor"]]], float]
"""Evaluates a candidate's weights on the validation split: higher is better."""


# -- the base of all components ----------------------------------------------------------------------------------


@dataclass_transform(eq_default=False, kw_only_default=True)
class Component:
    """Base of every kind; subclass one of the kinds below instead."""

    kind: ClassVar[str] = ""
    name: str
    """Its name in the recipe; set by the composer, the class name in kebab-case until then."""

    hook_points: ClassVar[tuple[str, ...]] = ()
    """The hook points that the class implements (found at class creation)."""
    must_override: ClassVar[tuple[str, ...]] = ()
    """Methods of which a concrete class must supply every one (plain kinds)."""
    may_override: ClassVar[tuple[str, ...]] = ()
    """Methods of which a concrete class must supply one or more (plain kinds)."""
    columns: ClassVar[tuple[str, ...]] = ()
    """Data columns that the component reads and the model does not take; see `step.column(name)`. May be a property."""
    unaligned_views: ClassVar[tuple[str, ...]] = ()
    """Names of its views that have answers of their own: their labels need not be as many as the example's. May be a
    property."""
    couples_rows: ClassVar[bool] = False
    """The result depends on which rows share a batch."""
    passes: ClassVar[int] = 1
    """Adversaries: how many losses `attack` yields. May be a property."""
    replays: ClassVar[int] = 1
    """Optimizer steps in a row that train on one batch (Free-AT). May be a property."""
    reference: ClassVar[bool] = False
    """Needs the reference model's outputs once per step. May be a property."""
    forwards: ClassVar[float] = 0.0
    """Extra forward passes per step without a backward pass, as a share of a full one. May be a property."""
    backwards: ClassVar[float] = 0.0
    """Extra forward-and-backward passes per loss evaluation, as a share of a full one. May be a property."""
    perturbs: ClassVar[bool] = False
    """Takes gradients with respect to the embeddings' output."""
    needs_validation: ClassVar[bool] = False
    """Asks for scores on the validation split."""
    example: ClassVar[Mapping[str, Any]] = {}
    """The fields that have no default, as they might be set: what tests over the whole catalogue make it with."""

    def __init_subclass__(cls, abstract: bool = False, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        _refuse_unannotated_fields(cls)
        for name in HOOK_POINTS:
            if name in vars(cls):
                hookimpl(vars(cls)[name])
        cls.hook_points = tuple(n for n in HOOK_POINTS if getattr(getattr(cls, n, None), "alignkit_impl", None))
        if not abstract:
            _refuse_missing_methods(cls)
        config = ConfigDict(
            extra="forbid", use_attribute_docstrings=True, arbitrary_types_allowed=True, allow_inf_nan=False
        )
        try:
            pydantic_dataclass(cls, kw_only=True, eq=False, config=config)
        except (TypeError, ValueError) as error:  # a mutable default, a type that pydantic cannot validate
            raise PluginError(f"{cls.__module__}.{cls.__qualname__}: {error}") from error
        _inherit_descriptions(cls)

    def reset(self) -> None:
        """Forget everything but the fields, as if newly made. The host calls it when a training starts."""
        for name in [n for n in vars(self) if n not in self.fields() and n != "name"]:
            delattr(self, name)
        for value in self.fields().values():
            if isinstance(value, Component):
                value.reset()
        if hasattr(self, "__post_init__"):
            self.__post_init__()

    def fields(self) -> dict[str, Any]:
        """The hyper-parameters by name, as they are set."""
        return {name: getattr(self, name) for name in getattr(type(self), "__pydantic_fields__", {})}

    def state_dict(self) -> dict[str, Any]:
        """State that must survive a checkpoint: tensors and anything JSON holds, by name."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up a state that `state_dict` gave."""

    def counts(self, batch: Batch) -> dict[str, int]:
        """Counts of this component's own that its terms are means over, beside the task's `token` and `example`."""
        return {}

    def check(self, setting: Setting) -> Iterable[Mistake]:
        """Before any weight is loaded: what in the run it cannot go together with, and the mend."""
        return ()

    def notes(self, setting: Setting) -> Iterable[str]:
        """Before any weight is loaded, after every `check`: what the plan is to say of it in this run."""
        return ()


def component_name(cls: type) -> str:
    """`KLReference` -> `kl-reference`, `FGM` -> `fgm`; of an attack without its kind, `PGDAttack` -> `pgd`."""
    import re

    name = re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z0-9])(?=[A-Z][a-z])", "-", cls.__name__).lower()
    return name.removesuffix("-attack") if getattr(cls, "kind", "") == "attack" else name


def _refuse_unannotated_fields(cls: type) -> None:
    annotated = set(vars(cls).get("__annotations__", {}))
    for name, value in vars(cls).items():
        plain = not (callable(value) or isinstance(value, property | classmethod | staticmethod))
        declared = any(name in vars(base) or name in vars(base).get("__annotations__", {}) for base in cls.__mro__[1:])
        if plain and not name.startswith("_") and name not in annotated and not declared:
            raise PluginError(
                f"{cls.__module__}.{cls.__qualname__}.{name} has no annotation, so it would not be a field: "
                f"write `{name}: {type(value).__name__} = {value!r}`, or `{name}: ClassVar[...]` for a constant"
            )


def _refuse_missing_methods(cls: type[Component]) -> None:
    where = f"{cls.__module__}.{cls.__qualname__}"
    known = {*HOOK_POINTS, *(n for base in cls.__mro__[1:] for n in vars(base))}
    for name, value in vars(cls).items():
        if inspect.isfunction(value) and not name.startswith("_") and name not in known:
            close = difflib.get_close_matches(name, HOOK_POINTS, n=1, cutoff=0.8)
            if close:
                raise PluginError(f"{where}.{name} is no hook point: did you mean {close[0]!r}?")
    own = {name for base in cls.__mro__ if base.__module__ != __name__ for name in vars(base)}
    for name in cls.must_override:
        if name not in own:
            raise PluginError(f"{where} is of kind {cls.kind!r} and must implement {name}()")
    if cls.may_override and own.isdisjoint(cls.may_override):
        raise PluginError(f"{where} is of kind {cls.kind!r} and must implement {' or '.join(cls.may_override)}")
    if not (cls.must_override or cls.may_override or cls.hook_points):
        methods = [n for n, v in vars(cls).items() if inspect.isfunction(v) and not n.startswith("__")]
        raise PluginError(
            f"{where} is of kind {cls.kind!r} and implements no hook point: "
            f"expected one of {', '.join(HOOK_POINTS)}; its methods are {', '.join(methods) or 'none'}"
        )


def _inherit_descriptions(cls: type[Component]) -> None:
    """pydantic reads attribute docstrings from a class's own source only; fields keep their base's description."""
    for name, info in cls.__pydantic_fields__.items():  # type: ignore[attr-defined]  # set by the decorator
        for base in cls.__mro__[1:]:
            inherited = getattr(base, "__pydantic_fields__", {}).get(name)
            if info.description is None and inherited is not None:
                info.description = inherited.description


# -- kinds that hook into the run --------------------------------------------------------------------------------


class Filter(Component, abstract=True):
    """Decides which examples a run sees. Implements `filter_examples`."""

    kind: ClassVar[str] = "filter"

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
    exhausted: ClassVar[bool] = False
    """It cannot rise any further. May be a property."""

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


# -- plain kinds: exactly one of each per run --------------------------------------------------------------------


class Objective(Component, abstract=True):
    """What is minimised. Implements `loss`."""

    kind: ClassVar[str] = "objective"
    must_override: ClassVar[tuple[str, ...]] = ("loss",)
    tasks: ClassVar[tuple[str, ...]] = ()
    """Names of the tasks it serves; empty: all."""

    def loss(self, step: TrainingStep, outputs: Any) -> Term:
        """The training loss of one forward pass. `outputs.loss` is the stock Trainer's, where the batch has labels."""
        raise NotImplementedError


class Attack(Component, abstract=True):
    """Tries to make a finished model fail, example by example: how robust it is, measured. Implements `attempt`.

    Takes no part in training; that is an adversary's. `alignkit attack` and `evaluation: {attacks: [...]}` ask it.
    """

    kind: ClassVar[str] = "attack"
    must_override: ClassVar[tuple[str, ...]] = ("attempt",)
    directions: ClassVar[Mapping[str, int]] = {}
    """Of its measures: 1 where more is better for the model, -1 where less is, 0 where neither is; of those that are
    not in it their names decide."""
    needs_score: ClassVar[bool] = True
    """The task has to say which predictions are right. False for attacks that have a goal of their own. May be a
    property."""
    measures_task: ClassVar[bool] = True
    """The task's metrics are taken of its predictions, too, where the task scores them. False where they would say
    nothing (attacks that leave predictions as they are)."""

    limit: PositiveInt | None = 500
    """Rows of a split that are attacked, taken at even distances; None: all."""

    def check_task(self, task: Task) -> Iterable[Mistake]:
        """Before anything is attacked: what the task, for the model that it is to be put to, lacks for it."""
        return ()

    def attempt(self, victim: Victim, examples: list[Example]) -> Mapping[str, list[Attempt]]:
        """What the attack makes of each example, at each of its settings.

        Args:
            victim: the model, to ask for predictions, losses and gradients.
            examples: those whose predictions are not entirely wrong already; there may be none.

        Returns:
            By setting (`""` where there is one alone; radii …) one attempt per example, in order. What becomes of an
            example depends neither on the others nor on their order: draw from `victim.generator(name, example)`.
        """
        raise NotImplementedError


class Evaluator(Component, abstract=True):
    """Measures what a task's own metrics do not: safety, bias, calibration. Implements `measure` and `metrics`.

    Takes no part in training; `evaluation: {evaluators: [...]}` and `alignkit evaluate --evaluator NAME` ask it. Its
    rows are those of its fields that are `alignkit.data.source.Sources`; where it has none, those of the test splits.
    """

    kind: ClassVar[str] = "evaluator"
    must_override: ClassVar[tuple[str, ...]] = ("measure", "metrics")
    directions: ClassVar[Mapping[str, int]] = {}
    """Of its metrics that are shown first, in order: 1 where more is better, -1 where less is, 0 where neither is. The
    others are in `metrics.json` and among the details of the report. Empty: all are shown, and their names decide."""
    counted: ClassVar[Mapping[str, str]] = {}
    """Of a metric that is about some rows only: the statistic that is not 0 in those. Where names end with `/`, of all
    metrics that begin so: `{"score/": "rows/"}` says of `score/young` that its rows are those of `rows/young`."""
    suffixes: ClassVar[tuple[str, ...]] = (".txt", ".jsonl", ".json", ".csv", ".tsv")
    """File suffixes that it reads."""
    samples: ClassVar[Mapping[str, tuple[dict[str, Any], ...]]] = {}
    """By field the rows of a file as it might be, short, in lower-case English: what conformance cases try it on."""

    limit: PositiveInt | None = None
    """Rows of each of its fields, or of a split, that are looked at, at even distances; None: all."""

    def sources(self) -> dict[str, list[Source]]:
        """By field where its own rows come from."""
        from alignkit.data.source import Source

        return {
            name: value
            for name, value in self.fields().items()
            if isinstance(value, list) and value and all(isinstance(item, Source) for item in value)
        }

    def readers(self) -> Mapping[str, Reader]:
        """By suffix, what reads its files in another way than `alignkit.data.read`; of `.txt` each line is a `text`."""
        from alignkit.data.text import text_reader

        return {".txt": text_reader("line")}

    def parse(self, name: str, fields: dict[str, Any], where: str) -> Example:
        """Validate one row of the field `name`. Raises UsageError that says where, what was found, what was expected.

        The host says of the example where it comes from.
        """
        raise NotImplementedError

    def arrange(self, rows: Mapping[str, list[Example]]) -> list[Example]:
        """What is measured, of each field's rows; by default they follow one another. Raises UsageError."""
        return [example for own in rows.values() for example in own]

    def check_task(self, task: Task) -> Iterable[Mistake]:
        """Before anything is measured: what the task, for the model that is to be measured, lacks for it."""
        return ()

    def measure(self, subject: Subject, examples: list[Example]) -> list[Measurement]:
        """One measurement per example, in order.

        Args:
            subject: the model in evaluation mode, with its task and tokenizer; what it predicts, `subject.predict`.
            examples: its own rows as `arrange` gave them, or a split's. What is found of a row does not depend on the
                others, unless `couples_rows`.
        """
        raise NotImplementedError

    def metrics(self, totals: Mapping[str, Any]) -> dict[str, Any]:
        """Metrics from summed statistics; elementwise, so that arrays [replicates] of sums give arrays of metrics."""
        raise NotImplementedError


class Control(Component, abstract=True):
    """Controls what a finished model says, while it is asked. Implements `reply`, `steered` or `finish`.

    Takes no part in training: the model stays as it is. `controls: [...]` in a recipe, `alignkit predict --control` and
    `alignkit.load(...).controls` put it to use; there is none otherwise. Whatever it did is said beside the answer.
    """

    kind: ClassVar[str] = "control"
    may_override: ClassVar[tuple[str, ...]] = ("reply", "steered", "finish")

    def check_task(self, task: Task) -> Iterable[Mistake]:
        """Before the model is asked: what the task, which generates, lacks for it."""
        return ()

    def prepare(self, model: Any, tokenizer: Any, task: Task) -> None:
        """Before the first answer, and again for another model: load and measure what it needs. Leave model and random
        state as they are.

        What `state_dict` gives afterwards is kept with a run, and given back before `prepare` when the run is loaded.

        Raises:
            UsageError: it does not go with this model.
        """

    def reply(self, examples: list[Example]) -> list[Intervention]:
        """Before anything is generated: one intervention per example; its `text` is the answer, nobody else is asked.

        What becomes of an example depends neither on the others nor on their order.
        """
        raise NotImplementedError

    def steered(self, generating: Generating) -> AbstractContextManager[Processor | None]:
        """Around the generation of a batch: hooks on the model, and what changes the scores of the next token.

        Args:
            generating: the batch; `generating.note(row, intervention)` says what was done to a row's answer.

        Returns:
            A context manager; it gives a function of (ids [R, t], scores [R, V]) to scores, as transformers' logits
            processors are, or None.
        """
        raise NotImplementedError

    def finish(self, example: Example, text: str) -> Intervention | None:
        """When a text has been generated: look at it, and give another in its place where that is necessary."""
        raise NotImplementedError


class Task(Component, abstract=True):
    """What a model is for: the data's format, its encoding, the head, the metrics, the answers.

    The host calls, in this order: `unfold` and `parse` for every row of every file, `prepare` once, `take_model` and
    `head` before the model is loaded, `encode` for every example, `collate` for every batch; and for evaluation
    `infer` (by default `decode`), `join` where a long text has several windows, `statistics`, `metrics`.
    """

    kind: ClassVar[str] = "task"
    must_override: ClassVar[tuple[str, ...]] = ("parse", "encode", "collate", "decode", "statistics", "metrics")
    auto_class: ClassVar[str] = "AutoModel"
    """The transformers class that loads the model: `AutoModelForTokenClassification` …"""
    auto_classes: ClassVar[tuple[str, ...]] = ()
    """All that `take_model` may choose for `auto_class`; empty: `auto_class` alone."""
    peft_type: ClassVar[str] = ""
    """peft's name for the kind of head: `TOKEN_CLS`, `SEQ_CLS`, `CAUSAL_LM`, `SEQ_2_SEQ_LM`, `QUESTION_ANS`."""
    has_head: ClassVar[bool] = True
    """The task puts a head of its own on a plain encoder (fresh until trained)."""
    shifts_labels: ClassVar[bool] = False
    """The label at position t is predicted at t - 1 (causal language models)."""
    suffixes: ClassVar[tuple[str, ...]] = (".jsonl", ".json")
    """File suffixes that the task reads."""
    metric: ClassVar[str] = ""
    """The metric that ranks models."""
    greater_is_better: ClassVar[bool] = True
    decodes_outputs: ClassVar[bool] = True
    """A prediction follows from the outputs for its batch alone; no text is generated, nothing else is asked. May be a
    property."""
    generates: ClassVar[str] = ""
    """The field of an answer that holds the text which the model wrote; empty: it writes none. A task that generates
    does it by `alignkit.generation.generate`, and its `predict` hands its option `control` on to it."""
    windowed: ClassVar[bool] = False
    """`encode` may give several windows of one example, whose predictions `join` makes one of."""
    stock_loss: ClassVar[bool] = True
    """The model's own loss on its labels is what `supervised` minimises. Where it is False, the model is run by
    `forward`, and the objective makes a loss of the outputs."""
    needs_training_split: ClassVar[bool] = False
    """Looks at training examples when it predicts, too: a run's are then read again. May be a property."""
    hub_task: ClassVar[str] = ""
    """The hub's name for the task, in the model card; by default what `auto_class` is used for."""
    samples: ClassVar[tuple[dict[str, Any], ...]] = ()
    """Six rows or more as its files hold them, short, in lower-case English, each label among them: shown by
    `alignkit plugins NAME`, and what the conformance cases train tiny models on."""

    def default_objective(self) -> Objective:
        """What is minimised where nobody names an objective."""
        from alignkit.objectives.supervised import Supervised

        return Supervised()

    def unfold(self, row: dict[str, Any]) -> Iterable[tuple[str, dict[str, Any]]]:
        """The rows in one object of a file, each with its place in it (`question 56be`); by default it is the row."""
        return [("", row)]

    def readers(self) -> Mapping[str, Reader]:
        """By suffix, what reads files in another way than `alignkit.data.read` does (`.txt` as running text …)."""
        return {}

    def parse(self, fields: dict[str, Any], where: str) -> Example:
        """Validate one row. Raises UsageError that says where, what was found, what was expected."""
        raise NotImplementedError

    def prepare(self, splits: Mapping[str, list[Example]]) -> None:
        """See all splits once, before the model is loaded: label sets, unknown labels. Raises UsageError."""

    def head(self) -> dict[str, Any]:
        """Arguments of `from_pretrained` that shape the head: num_labels, id2label …"""
        return {}

    def adopt(self, config: Any) -> None:
        """Take the label set from a trained model's config, where there is no training split to take it from."""

    def take_model(self, config: Mapping[str, Any]) -> None:
        """Look at the model's config before it is loaded: `auto_class` and its kin may depend on it.

        Raises:
            UsageError: the task cannot use such a model.
        """

    def take_weights(self, model: Any, tokenizer: Any) -> None:
        """Look at the loaded model as it stands, before examples are encoded for it or scored by it."""

    def encode(self, example: Example, tokenizer: Any) -> dict[str, Any] | list[dict[str, Any]] | None:
        """One example as the model's inputs and labels, unpadded; None where nothing of it would be learnt.

        A `windowed` task may give several; all have the same keys. A key in `columns` is kept out of `collate`.
        """
        raise NotImplementedError

    def pack(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Encoded training rows put together into fewer; asked where no component looks at single rows.

        A row keeps `index` and `length`; the first example's index stands for all that share a row.
        """
        return rows

    def redraw(self, batch: Batch, columns: Mapping[str, Any], generator: torch.Generator) -> Batch:
        """A training batch with what is drawn anew at every step (masks); evaluation sees the batch as collated.

        A batch with views stays as it was collated, too: their labels align with its own.

        Args:
            columns: what the rows hold of the task's `columns`, a tensor or list per name.
            generator: seeded from (seed, optimizer step, micro-batch, rank), so a resumed run draws the same.
        """
        return batch

    def collate(self, features: list[dict[str, Any]], tokenizer: Any) -> Batch:
        """Pad encoded examples to one batch of tensors."""
        raise NotImplementedError

    def counts(self, batch: Batch) -> dict[str, int]:
        """How many of each unit a mean may be over: always `example`; `token` where labels are per token."""
        from alignkit.tasks.stock import label_counts

        return label_counts(batch, self.shifts_labels)

    def forward(self, model: Any, batch: Batch) -> Any:
        """The model's outputs for a batch as `collate` made it; by default all that it gives.

        Asked for evaluation and for the reference, and where `stock_loss` is False for training, too.
        """
        return model(**batch)

    def log_probabilities(self, outputs: Any, batch: Batch) -> tuple[Tensor, str]:
        """What the model predicts where it is scored: [N, ..., V] normalised over V, and the unit that N counts."""
        from alignkit.tasks.stock import head_logits, scored_log_probabilities

        return scored_log_probabilities(head_logits(outputs), batch, self.shifts_labels)

    def label_log_probabilities(self, outputs: Any, batch: Batch) -> Tensor:
        """[N]: the log-probability of the label, where a language model is scored; in the order of the above."""
        from alignkit.tasks.stock import label_log_probabilities

        return label_log_probabilities(outputs, batch, self.shifts_labels)

    def scored_hidden(self, outputs: Any, batch: Batch) -> Tensor:
        """[N, D]: of a causal language model's `hidden` [B, T, D] the states that predict its N scored labels."""
        from alignkit.tasks.stock import scored_hidden

        return scored_hidden(outputs.hidden, batch)

    def decode(self, outputs: Any, batch: Batch) -> list[dict[str, Any]]:
        """One prediction per row of the batch. `probabilities` (an array) is what gaps are measured on.

        Args:
            batch: as collated, and in `batch["columns"]` what its rows hold of the task's `columns`.
        """
        raise NotImplementedError

    def infer(self, model: Any, tokenizer: Any, batch: Batch, outputs: Any) -> list[dict[str, Any]]:
        """One prediction per row, for evaluation; tasks that generate override it.

        Args:
            model: unwrapped, in evaluation mode, on the batch's device.
            batch: as `decode` gets it.
            outputs: its outputs for the batch.
        """
        return self.decode(outputs, batch)

    def join(self, parts: list[dict[str, Any]]) -> dict[str, Any]:
        """The prediction for an example of those for its windows; a window may be there twice."""
        return parts[0]

    def statistics(self, example: Example, prediction: dict[str, Any]) -> dict[str, float]:
        """Additive statistics of one example, from which `metrics` computes: metrics are functions of their sums."""
        raise NotImplementedError

    def metrics(self, totals: Mapping[str, Any]) -> dict[str, Any]:
        """Metrics from summed statistics; elementwise, so that arrays [replicates] of sums give arrays of metrics."""
        raise NotImplementedError

    def score(self, example: Example, prediction: dict[str, Any]) -> float | None:
        """How right a prediction is, from 0 to 1 (nothing is wrong with it); None where the task cannot say."""
        return None

    def fixed_spans(self, example: Example) -> Mapping[str, list[tuple[int, int]]]:
        """What of the inputs an attack may not rewrite, as answers are compared with it word for word.

        Returns:
            By field spans (first, the one after the last): of a text in characters, of a word list in words.
        """
        return {}

    def kept_spans(self, example: Example) -> Mapping[str, list[tuple[int, int]]]:
        """What of the inputs an attack may not take away, as the labels are about it; spans as in `fixed_spans`.

        A field without spans says that there is nothing there this time: a sentence without entities.
        """
        return self.fixed_spans(example)

    def row_losses(self, outputs: Any, batch: Batch) -> Tensor:
        """[B]: the mean loss of each row's labels, in nats: what an attack on a single example drives up."""
        from alignkit.tasks.stock import row_losses

        return row_losses(outputs, batch, self.shifts_labels)

    def gap(self, one: dict[str, Any], other: dict[str, Any]) -> float:
        """How far two predictions for versions of one example lie apart: mean |p - p'| over what is predicted."""
        import numpy

        a, b = numpy.asarray(one["probabilities"]), numpy.asarray(other["probabilities"])
        n = min(len(a), len(b)) if a.ndim > 1 else None
        return float(numpy.abs(a[:n] - b[:n]).mean()) if a.size and b.size else 0.0

    def inputs(self, given: str | Mapping[str, Any]) -> Example:
        """An example without an answer, of a text or of the task's input fields, for `predict`."""
        raise NotImplementedError

    def answer(self, example: Example, prediction: dict[str, Any]) -> dict[str, Any]:
        """A prediction as `alignkit predict` prints it: JSON, complete in itself."""
        raise NotImplementedError

    def predict(
        self, model: Any, tokenizer: Any, examples: list[Example], batch_size: int = 16, **options: Any
    ) -> Iterator[dict[str, Any]]:
        """Answers for examples, in order. Tasks that generate override it, and say which options they take.

        Raises:
            UsageError: an option that the task does not have.
        """
        from alignkit.evaluation.score import predictions

        if options:
            raise UsageError(Mistake(", ".join(options), f"no option of task {self.name}", "batch_size alone"))
        for example, prediction in zip(
            examples, predictions(self, model, tokenizer, examples, batch_size), strict=True
        ):
            yield self.answer(example, prediction)


BASES: dict[str, type[Component]] = {
    c.kind: c
    for c in (
        *(Filter, Augmenter, Constraint, Adversary, Averager, Fusion, Updater),
        *(Task, Objective, Weight, Attack, Evaluator, Control),
    )
}
