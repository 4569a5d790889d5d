"""What a method is: one class per method, of one kind, whose fields are its hyper-parameters.

Subclassing is all an author does. The base turns the class into a pydantic dataclass (keyword-only, unknown fields
refused, the string under a field is its description, instances compare by identity), marks the hook points that the
class implements for pluggy, and refuses at once what would otherwise be silent: no hook point implemented, a hook
point misspelt, a field without annotation.
"""

from __future__ import annotations

from alignkit.components.answers import (
    KEEP,
    Attempt,
    Batch,
    Intervention,
    Measurement,
    Member,
    Memory,
    Score,
    Term,
    Verdict,
)
from alignkit.components.attack import Attack
from alignkit.components.component import Component, component_name
from alignkit.components.control import Control
from alignkit.components.evaluator import Evaluator
from alignkit.components.task import Task
from alignkit.components.training import (
    Adversary,
    Augmenter,
    Averager,
    Constraint,
    Filter,
    Fusion,
    Objective,
    Updater,
    Weight,
)

BASES: dict[str, type[Component]] = {
    c.kind: c
    for c in (
        *(Filter, Augmenter, Constraint, Adversary, Averager, Fusion, Updater),
        *(Task, Objective, Weight, Attack, Evaluator, Control),
    )
}
"""By kind the base class that an author subclasses."""

__all__ = [
    "BASES",
    "KEEP",
    "Adversary",
    "Attack",
    "Attempt",
    "Augmenter",
    "Averager",
    "Batch",
    "Component",
    "Constraint",
    "Control",
    "Evaluator",
    "Filter",
    "Fusion",
    "Intervention",
    "Measurement",
    "Member",
    "Memory",
    "Objective",
    "Score",
    "Task",
    "Term",
    "Updater",
    "Verdict",
    "Weight",
    "component_name",
]
