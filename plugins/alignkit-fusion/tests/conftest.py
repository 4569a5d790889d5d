"""Steps on tiny real models, made without a Trainer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest

from alignkit.components import Component
from alignkit.compose import Composition
from alignkit.layers import input_embedding, mean_embedding_norm
from alignkit.reference import Reference
from alignkit.step import StepContext, TrainingStep
from alignkit.tasks.stock import StockTask

MakeStep = Callable[..., TrainingStep]


@pytest.fixture
def make_step() -> MakeStep:
    """`make_step(model, inputs, components, reference=None, window=None)`."""

    def make(
        model: Any,
        inputs: Mapping[str, Any],
        components: Sequence[Component],
        *,
        reference: Any = None,
        window: Mapping[str, int] | None = None,
    ) -> TrainingStep:
        task = StockTask(shifts_labels=type(model).__name__.endswith("ForCausalLM"))
        embedding = input_embedding(model)
        context = StepContext(
            task=task,
            composition=Composition(components, task),
            forward=lambda model, batch: model(**batch),
            embedding=embedding,
            unit_length=mean_embedding_norm(embedding),
            special_ids=(0, 2, 3),
            reference=None if reference is None else Reference.of(reference),
        )
        return TrainingStep(context, model, inputs, window=window)

    return make
