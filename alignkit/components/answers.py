"""What components answer with, and are handed by the host."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from torch import Tensor

    from alignkit.data import Example


Batch = dict[str, Any]
"""Tensors by the names that the model's `forward` takes."""


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
    reached: bool = False
    """The example had the goal of an attack that has one of its own as it stands: neither broken nor survived."""
    measures: dict[str, float] = field(default_factory=dict)
    """What else was measured; the means over examples are reported."""
    said: tuple[dict[str, Any], dict[str, Any]] | None = None
    """For people, the same figures and texts of the example as it stands and of the attacked input, by name; None: what
    the task says of its predictions for the two."""


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
