"""The hook points of a run, and the record with which a plugin registers a component.

This module imports pluggy and nothing else, so that a plugin's declarations stay light.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pluggy

if TYPE_CHECKING:
    import numpy
    from datasets import Dataset
    from torch import Tensor

    from alignkit.components import Member, Memory, Score, Term, Verdict
    from alignkit.data import Example
    from alignkit.step import TrainingStep

PROJECT = "alignkit"
KINDS = (
    "filter",
    "augmenter",
    "constraint",
    "adversary",
    "averager",
    "fusion",
    "updater",
    "task",
    "objective",
    "weight",
    "attack",
    "evaluator",
    "control",
)

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@dataclass(frozen=True)
class Registration:
    """What a plugin says of one component, without importing it."""

    kind: str
    """One of `KINDS`."""
    name: str
    """Kebab-case, unique within its kind."""
    target: str
    """`package.module:Class`, imported only when somebody asks for it."""
    summary: str
    """One sentence, shown by `alignkit plugins`."""
    reference: str = ""
    """The paper or page that defines the method."""


class Catalogue:
    """Asked once per process, when plugins are discovered."""

    @hookspec
    def alignkit_components(self) -> Iterable[Registration]:
        """When plugins are discovered: yield one `Registration` per component. Import nothing heavy."""


class Run:
    """Asked during a run, of the components that the recipe composes. No defaults, no keyword-only parameters."""

    @hookspec
    def filter_examples(self, examples: list[Example]) -> list[Verdict]:
        """Before training, once per chunk of a split: one verdict per example. Drop wins; edits in recipe order."""

    @hookspec
    def augment_examples(self, examples: list[Example], generator: numpy.random.Generator) -> list[Example]:
        """After filtering, per chunk of the training split: new examples, added to those that are there.

        Also asked with one example at a time where a split is evaluated *under* the augmenter; the first answer
        takes the example's place.
        """

    @hookspec
    def views(self, example: Example) -> dict[str, Example]:
        """Before encoding, per example: other versions of it, by name; none where there is no other version."""

    @hookspec
    def rehearse(self, dataset: Dataset, memory: Memory, generator: numpy.random.Generator) -> Dataset:
        """After encoding, before training: the training set with what the updater remembers mixed in."""

    @hookspec
    def penalty(self, step: TrainingStep, outputs: Any) -> Term:
        """At every evaluation of the training loss, after its forward pass: what the constraint adds to it."""

    @hookspec
    def attack(self, step: TrainingStep) -> Iterator[Tensor]:
        """Once per micro-batch: yield the losses to train on; the host runs backward before it asks for the next."""

    @hookspec
    def adjust_gradients(self, step: TrainingStep) -> None:
        """At the accumulation boundary, when all gradients are there, before they are clipped."""

    @hookspec
    def after_step(self, step: TrainingStep) -> None:
        """After the optimizer has stepped."""

    @hookspec
    def average(self) -> Iterable[tuple[str, Tensor]]:
        """At evaluation and saving: the weights that stand in for the last ones, by parameter name."""

    @hookspec
    def fuse(self, members: list[Member], base: Member | None, score: Score | None) -> Iterable[tuple[str, Tensor]]:
        """After training, or from `alignkit fuse`: the fused weights, one tensor at a time."""

    @hookspec
    def combine_outputs(self, logits: Tensor) -> Tensor:
        """At prediction with an output ensemble: logits [M, B, ..., V] of M members to [B, ..., V]."""

    @hookspec
    def consolidate(self, steps: Iterable[TrainingStep], memory: Memory) -> Memory:
        """After training: what to remember. `steps`: evaluation mode, one row each, made as they are asked for."""


HOOK_POINTS = tuple(name for name, value in vars(Run).items() if getattr(value, f"{PROJECT}_spec", None) is not None)
