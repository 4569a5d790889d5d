"""The `evaluation:` section: what is measured beside the clean splits."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, InstanceOf, PositiveInt, ValidationInfo, field_validator

from alignkit.components import Attack, Augmenter, Component, Evaluator
from alignkit.recipe.parts import each, every, making_of, with_views
from alignkit.sections import note


class Evaluation(BaseModel):
    """What is measured beside the clean splits."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    under: list[InstanceOf[Augmenter]] = []
    """Augmenters: the test split as each of them rewrites it."""
    gaps: list[InstanceOf[Component]] = []
    """Components with `views`: the difference between an example and its view. The name of one of the recipe's own
    constraints or updaters, or a component that takes no part in training."""
    attacks: list[InstanceOf[Attack]] = []
    """Attacks on the test split (the validation split where there is no test): what breaks, before and after."""
    evaluators: list[InstanceOf[Evaluator]] = []
    """What the task's own metrics do not say, before and after: refusals, calibration, bias …"""
    replicates: PositiveInt = 10_000
    """Resamples of a bootstrap interval."""

    @field_validator("under", "attacks", "evaluators", mode="before")
    @classmethod
    def _several(cls, value: Any, info: ValidationInfo) -> Any:
        kinds = {"under": "augmenter", "attacks": "attack", "evaluators": "evaluator"}
        return every(kinds[str(info.field_name)], value, making_of(info), {})

    @field_validator("gaps", mode="before")
    @classmethod
    def _gaps(cls, value: Any, info: ValidationInfo) -> Any:
        making = making_of(info)
        return each(value, lambda item: with_views(item, making))

    _note = field_validator("*")(note)
