"""What is said when a loss or a gradient is not finite."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from alignkit.errors import Mistake, UsageError

if TYPE_CHECKING:
    from alignkit.step import TrainingStep

STANDS = "; the last checkpoint stands"


def nonfinite_loss(step: TrainingStep, here: bool, kept: bool) -> UsageError:
    """Names the terms, the step and the rows.

    Args:
        here: it is this process's own loss.
        kept: there is a checkpoint.
    """
    named = [name for name, term in step.terms.items() if term.count and not term.mean.isfinite()]
    elsewhere = "under the perturbation" if here else "on another process"
    rows = f"rows {step.rows} of the training set" if step.rows else "its rows are unknown"
    return UsageError(
        Mistake(
            f"optimizer step {step.index}, micro-batch {step.micro}",
            f"the loss is not finite ({', '.join(named) or elsewhere}; {rows})",
            "a finite loss",
            "look at these rows, or lower the learning rate, the component's weight or its radius" + STANDS * kept,
        )
    )


def nonfinite_gradient(model: nn.Module, index: int, step: TrainingStep | None, kept: bool) -> UsageError:
    """Names the parameters, the optimizer step and the rows of its last micro-batch; `kept` as above."""
    bad = [n for n, p in model.named_parameters() if p.grad is not None and not p.grad.isfinite().all()]
    rows = step.rows if step is not None else []
    return UsageError(
        Mistake(
            f"optimizer step {index}",
            f"the gradient is not finite ({len(bad)} parameters, first {bad[:1]}; last rows {rows})",
            "a finite gradient",
            "lower the learning rate or the component's weight" + STANDS * kept,
        )
    )
