"""For authors of plugins: tiny models and data of every head, trainings on them, and conformance cases.

Nothing here needs a network. The conformance cases need pytest.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from alignkit.testing.conformance import (
        CASES,
        AdversaryCases,
        AttackCases,
        AugmenterCases,
        AveragerCases,
        ConstraintCases,
        ControlCases,
        EvaluatorCases,
        FilterCases,
        FusionCases,
        ObjectiveCases,
        TaskCases,
        UpdaterCases,
        WeightCases,
    )
    from alignkit.testing.models import HEADS, batch, collate, examples, tiny, tokenizer
    from alignkit.testing.training import gradient, make_rows, make_step, make_trainer, trained_weights

__all__ = [
    "CASES",
    "HEADS",
    "AdversaryCases",
    "AttackCases",
    "AugmenterCases",
    "AveragerCases",
    "ConstraintCases",
    "ControlCases",
    "EvaluatorCases",
    "FilterCases",
    "FusionCases",
    "ObjectiveCases",
    "TaskCases",
    "UpdaterCases",
    "WeightCases",
    "batch",
    "collate",
    "examples",
    "gradient",
    "make_rows",
    "make_step",
    "make_trainer",
    "tiny",
    "tokenizer",
    "trained_weights",
]

_OF_TRAINING = ("gradient", "make_rows", "make_step", "make_trainer", "trained_weights")


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    cases = name == "CASES" or name.endswith("Cases")
    module = "conformance" if cases else "training" if name in _OF_TRAINING else "models"
    return getattr(import_module(f"alignkit.testing.{module}"), name)
