"""Does a component keep its promises? Cases that a plugin's author subclasses, one class for each kind.

    from alignkit.testing import AdversaryCases

    class TestFGM(AdversaryCases):
        @pytest.fixture
        def component(self):
            return FGM(epsilon=0.1)

pytest collects the cases with the subclass. Everything runs for real: `AlignTrainer` on tiny models of every head, and
whole runs where a component needs them; a component takes from one to some fifteen seconds.
"""

from __future__ import annotations

import pytest

for _module in (
    "component_cases",
    "step_cases",
    "data_cases",
    "weights_cases",
    "run_cases",
    "attack_cases",
    "evaluator_cases",
    "control_cases",
):
    pytest.register_assert_rewrite(f"alignkit.testing.{_module}")  # a failing case then shows its values

from alignkit.testing.attack_cases import AttackCases  # noqa: E402  # after the registration
from alignkit.testing.component_cases import ComponentCases, TrainingCases  # noqa: E402
from alignkit.testing.control_cases import ControlCases  # noqa: E402
from alignkit.testing.data_cases import AugmenterCases, FilterCases  # noqa: E402
from alignkit.testing.evaluator_cases import EvaluatorCases  # noqa: E402
from alignkit.testing.run_cases import TaskCases, UpdaterCases  # noqa: E402
from alignkit.testing.step_cases import AdversaryCases, ConstraintCases, ObjectiveCases, WeightCases  # noqa: E402
from alignkit.testing.weights_cases import AveragerCases, FusionCases  # noqa: E402

CASES: dict[str, type[ComponentCases]] = {
    cases.kind: cases
    for cases in (
        FilterCases,
        AugmenterCases,
        ConstraintCases,
        AdversaryCases,
        AveragerCases,
        FusionCases,
        UpdaterCases,
        TaskCases,
        ObjectiveCases,
        WeightCases,
        AttackCases,
        EvaluatorCases,
        ControlCases,
    )
}
"""The cases of each kind."""

__all__ = [
    "CASES",
    "AdversaryCases",
    "AttackCases",
    "AugmenterCases",
    "AveragerCases",
    "ComponentCases",
    "ConstraintCases",
    "ControlCases",
    "EvaluatorCases",
    "FilterCases",
    "FusionCases",
    "ObjectiveCases",
    "TaskCases",
    "TrainingCases",
    "UpdaterCases",
    "WeightCases",
]
