"""All forward passes of a step share their dropout masks; the global generators do not notice who else goes forward."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from alignkit.components import Adversary, Constraint, Term
from alignkit.testing import make_trainer
from alignkit.testing.training import random_state

HEAD = "bert-sequence-classification"


class Twice(Adversary):
    """The loss twice, unperturbed."""

    passes = 2

    def attack(self, step: Any) -> Iterator[torch.Tensor]:
        yield step.loss()
        yield step.loss()


class Kinds(Constraint):
    """Compares the pass that is evaluated with one more forward pass of each kind."""

    def __post_init__(self) -> None:
        self.shared: list[float] = []
        self.fresh: list[float] = []

    def penalty(self, step: Any, outputs: Any) -> Term:
        for found, again in ((self.shared, step.forward()), (self.fresh, step.forward(fresh_dropout=True))):
            found.append(float((outputs.logits - again.logits).detach().abs().max()))
        return Term(outputs.logits.mean(), "example")


def test_passes_of_a_step_draw_the_same_masks(tmp_path: Path) -> None:
    losses: list[float] = []

    class Listening(Twice):
        def attack(self, step: Any) -> Iterator[torch.Tensor]:
            for loss in super().attack(step):
                losses.append(loss.item())
                yield loss

    make_trainer(HEAD, tmp_path, [Listening()], dropout=0.5, max_steps=3).train()
    assert losses[0::2] == losses[1::2]
    assert len(set(losses)) == 3


def test_fresh_masks_are_drawn_where_they_are_asked_for(tmp_path: Path) -> None:
    kinds = Kinds()
    trainer = make_trainer(HEAD, tmp_path, [kinds], dropout=0.5, max_steps=2)
    trainer._begin = lambda checkpoint: None  # type: ignore[method-assign]  # what it has seen is looked at afterwards
    trainer.train()
    assert kinds.shared == [0.0, 0.0]
    assert all(difference > 0 for difference in kinds.fresh)


def test_further_passes_leave_the_global_generators_where_the_first_one_left_them(tmp_path: Path) -> None:
    states = []
    for components in ([], [Twice()], [Kinds()]):
        trainer = make_trainer(HEAD, tmp_path, components, dropout=0.5, max_steps=2)
        torch.manual_seed(1)
        trainer.train()
        states.append(random_state()[-1])
    assert states[0] == states[1] == states[2]


class Overflows(Adversary):
    """One example's gradient is not finite."""

    passes = 1

    def attack(self, step: Any) -> Iterator[torch.Tensor]:
        gradient = torch.ones_like(step.zeros())
        gradient[0] = float("nan")
        moved = step.unit(gradient)
        assert moved[0].abs().sum() == 0
        assert moved[1].abs().sum() > 0
        yield step.loss(moved)


def test_perturbations_left_out_are_counted_in_the_log(tmp_path: Path) -> None:
    trainer = make_trainer(HEAD, tmp_path, [Overflows()], max_steps=4, logging_steps=2, gradient_accumulation_steps=1)
    trainer.train()
    logged = [entry["nonfinite_gradients"] for entry in trainer.state.log_history if "loss" in entry]
    assert logged == [2.0, 2.0]


@pytest.mark.parametrize("components", [[], [Twice()]])
def test_nothing_is_said_where_all_are_finite(components: list[Any], tmp_path: Path) -> None:
    trainer = make_trainer(HEAD, tmp_path, components)
    trainer.train()
    assert not any("nonfinite_gradients" in entry for entry in trainer.state.log_history)
