"""Steps on tiny real models, made without a Trainer."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from alignkit import testing
from alignkit.step import TrainingStep

MakeStep = Callable[..., TrainingStep]


@pytest.fixture
def make_step() -> MakeStep:
    """`make_step(model, inputs, components, reference=None, window=None)`."""
    return testing.make_step
