"""The conformance cases of controls against controls that break a promise: each is caught by the case made for it."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from alignkit.components import Control, Intervention
from alignkit.generation import Generating, Processor
from alignkit.testing import ControlCases
from alignkit.testing.attack_cases import Subject, random_subject


class Steady(Control):
    """Makes a token less likely, and says so."""

    token: int = 30
    """Its id."""
    says: bool = True
    """It says what it did."""

    def offset(self, generating: Generating) -> float:
        return 5.0

    @contextlib.contextmanager
    def steered(self, generating: Generating) -> Iterator[Processor]:
        by = self.offset(generating)

        def change(ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            scores = scores.clone()
            scores[:, self.token :] -= by
            return scores

        yield change
        if self.says:
            for row in range(len(generating.examples)):
                generating.note(row, Intervention("token", self.token, by, "its score was lowered"))


class Silent(Steady):
    """Says nothing of it."""

    says: bool = False
    """It says what it did."""


class Crowded(Steady):
    """Lowers it by as much as there are rows."""

    def offset(self, generating: Generating) -> float:
        return float(len(generating.examples))


class Restless(Steady):
    """Draws from the global random state."""

    def offset(self, generating: Generating) -> float:
        return 5.0 + 0.0 * float(torch.rand(()))


class Careless(Steady):
    """Leaves a hook behind when something breaks."""

    @contextlib.contextmanager
    def steered(self, generating: Generating) -> Iterator[Processor]:
        handle = generating.model.register_forward_hook(lambda *_: None)
        with super().steered(generating) as processor:
            yield processor
        handle.remove()


class Forgetful(Steady):
    """Keeps something else than what it goes by."""

    def prepare(self, model: Any, tokenizer: Any, task: Any) -> None:
        self.by = getattr(self, "by", 0.0) + 5.0

    def offset(self, generating: Generating) -> float:
        return self.by

    def state_dict(self) -> dict[str, Any]:
        return {"by": self.by}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.by = state["by"]


CASES = {
    "each_text_has_an_answer_and_a_record_of_what_was_done": Silent,
    "who_else_is_asked_changes_nothing": Crowded,
    "model_and_random_state_are_as_before": Restless,
    "the_model_is_as_before_when_something_breaks": Careless,
    "what_it_prepared_is_kept": Forgetful,
}


@pytest.fixture
def subject() -> Subject:
    """A tiny model of its own, that a control may spoil."""
    shared = random_subject("chat", "AutoModelForCausalLM")
    return replace(shared, model=copy.deepcopy(shared.model))


@pytest.mark.parametrize("case", CASES)
def test_a_broken_promise_of_a_control_is_found(case: str, subject: Subject, tmp_path: Path) -> None:
    tested = getattr(ControlCases(), f"test_{case}")
    more = [tmp_path] if case == "what_it_prepared_is_kept" else []
    for number, made in enumerate((Steady(), CASES[case]())):
        made.name = "control-under-test"
        if number == 0:
            tested(made, subject, *more)
        else:
            with pytest.raises(AssertionError):
                tested(made, subject, *more)
