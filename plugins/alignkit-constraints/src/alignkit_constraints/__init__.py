"""Constraints and their weights: what a model may not drift from."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from alignkit_constraints.adaptive import Adaptive
    from alignkit_constraints.bregman import Bregman
    from alignkit_constraints.budget import Budget
    from alignkit_constraints.confidence import Confidence
    from alignkit_constraints.controls.forbidden_phrases import ForbiddenPhrases
    from alignkit_constraints.controls.refusal_policy import RefusalPolicy
    from alignkit_constraints.controls.steering import Steering
    from alignkit_constraints.controls.steering_vector import SteeringVector
    from alignkit_constraints.cosine import Cosine
    from alignkit_constraints.counterfactual import Counterfactual
    from alignkit_constraints.evaluators.calibration import Calibration
    from alignkit_constraints.evaluators.likelihood_preference import LikelihoodPreference
    from alignkit_constraints.evaluators.perplexity import Perplexity
    from alignkit_constraints.evaluators.refusals import Refusals
    from alignkit_constraints.evaluators.winobias import WinoBias
    from alignkit_constraints.group_fairness import GroupFairness
    from alignkit_constraints.kl_ethics import KLEthics
    from alignkit_constraints.kl_reference import KLReference
    from alignkit_constraints.mentions import Mentions
    from alignkit_constraints.pid_budget import PIDBudget
    from alignkit_constraints.r_drop import RDrop
    from alignkit_constraints.unlikelihood import Unlikelihood
    from alignkit_constraints.warmup import Warmup

_MODULES = {
    "Adaptive": "adaptive",
    "Bregman": "bregman",
    "Budget": "budget",
    "Calibration": "evaluators.calibration",
    "Confidence": "confidence",
    "Cosine": "cosine",
    "Counterfactual": "counterfactual",
    "ForbiddenPhrases": "controls.forbidden_phrases",
    "GroupFairness": "group_fairness",
    "KLEthics": "kl_ethics",
    "KLReference": "kl_reference",
    "LikelihoodPreference": "evaluators.likelihood_preference",
    "Mentions": "mentions",
    "PIDBudget": "pid_budget",
    "Perplexity": "evaluators.perplexity",
    "RDrop": "r_drop",
    "RefusalPolicy": "controls.refusal_policy",
    "Refusals": "evaluators.refusals",
    "Steering": "controls.steering",
    "SteeringVector": "controls.steering_vector",
    "Unlikelihood": "unlikelihood",
    "Warmup": "warmup",
    "WinoBias": "evaluators.winobias",
}

__all__ = [
    "Adaptive",
    "Bregman",
    "Budget",
    "Calibration",
    "Confidence",
    "Cosine",
    "Counterfactual",
    "ForbiddenPhrases",
    "GroupFairness",
    "KLEthics",
    "KLReference",
    "LikelihoodPreference",
    "Mentions",
    "PIDBudget",
    "Perplexity",
    "RDrop",
    "RefusalPolicy",
    "Refusals",
    "Steering",
    "SteeringVector",
    "Unlikelihood",
    "Warmup",
    "WinoBias",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
