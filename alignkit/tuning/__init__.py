"""Hyper-parameter search over any field of a recipe, on optuna.

transformers' own `hyperparameter_search` makes the model anew by `model_init`, after components have looked at it, and
knows fields of `TrainingArguments` alone. Here every trial is a run of its own, so any field can change, a component as
well as a learning rate.
"""

from alignkit.tuning.search import Tuned, tune
from alignkit.tuning.trial import Trial

__all__ = ["Trial", "Tuned", "tune"]
