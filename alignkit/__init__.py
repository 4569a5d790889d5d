"""alignkit: align language models; every plugin composes with every other, on every task.

Importing this package imports neither torch nor transformers; public names are imported when they are asked for.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from alignkit.aligned import Aligned, load
    from alignkit.catalogue import registered as catalogue
    from alignkit.components import (
        KEEP,
        Adversary,
        Attack,
        Attempt,
        Augmenter,
        Averager,
        Component,
        Constraint,
        Control,
        Evaluator,
        Filter,
        Fusion,
        Intervention,
        Measurement,
        Memory,
        Objective,
        Task,
        Term,
        Updater,
        Verdict,
        Weight,
    )
    from alignkit.data.example import Example
    from alignkit.errors import AlignkitError, Mistake, PluginError, UsageError
    from alignkit.hookspecs import Registration, hookimpl
    from alignkit.recipe import Recipe
    from alignkit.run import Run, train
    from alignkit.step import TrainingStep
    from alignkit.trainer import AlignTrainer
    from alignkit.tuning import Tuned, tune

__version__ = "0.1.0"

_HOMES = {
    "alignkit.aligned": "Aligned load",
    "alignkit.components": "Adversary Attack Attempt Augmenter Averager Component Constraint Control Evaluator Filter"
    " Fusion Intervention KEEP Measurement Memory Objective Task Term Updater Verdict Weight",
    "alignkit.data.example": "Example",
    "alignkit.errors": "AlignkitError Mistake PluginError UsageError",
    "alignkit.hookspecs": "Registration hookimpl",
    "alignkit.recipe": "Recipe",
    "alignkit.run": "Run train",
    "alignkit.step": "TrainingStep",
    "alignkit.trainer": "AlignTrainer",
    "alignkit.tuning": "Tuned tune",
}
_HOME = {name: module for module, names in _HOMES.items() for name in names.split()}

__all__ = [
    "KEEP",
    "Adversary",
    "AlignTrainer",
    "Aligned",
    "AlignkitError",
    "Attack",
    "Attempt",
    "Augmenter",
    "Averager",
    "Component",
    "Constraint",
    "Control",
    "Evaluator",
    "Example",
    "Filter",
    "Fusion",
    "Intervention",
    "Measurement",
    "Memory",
    "Mistake",
    "Objective",
    "PluginError",
    "Recipe",
    "Registration",
    "Run",
    "Task",
    "Term",
    "TrainingStep",
    "Tuned",
    "Updater",
    "UsageError",
    "Verdict",
    "Weight",
    "__version__",
    "catalogue",
    "hookimpl",
    "load",
    "train",
    "tune",
]


def __getattr__(name: str) -> Any:  # Any: whatever the module defines under that name
    if name == "catalogue":
        return import_module("alignkit.catalogue")  # a module that can be called
    if name not in _HOME:
        raise AttributeError(f"module 'alignkit' has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_HOME[name]), name)
    return value


def __dir__() -> list[str]:
    return __all__
