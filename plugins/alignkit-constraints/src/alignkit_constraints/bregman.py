"""Bregman proximal point: steps that do not change predictions much."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import torch
from pydantic import Field

from alignkit.components import Constraint, Term
from alignkit.divergence import symmetric_kl
from alignkit.plan import FORWARD, STEP
from alignkit.weight_average import WeightAverage

if TYPE_CHECKING:
    from alignkit.plan import Setting
    from alignkit.step import TrainingStep


class Bregman(Constraint):
    """Keeps predictions near those of an average of the model's own past weights.

    The momentum Bregman proximal point method, the second part of SMART (Jiang et al. 2020, arXiv:1911.03437, section
    2.2): KL(p_theta || p_average) + KL(p_average || p_theta), the mean over scored positions, in nats per token (per
    example where the task predicts once per example), where average <- momentum * average + (1 - momentum) * weights
    after each optimizer step, from the weights before the first one. The model's predictions have a gradient, the
    average's have none. A trust region that moves along: how far the model gets is not bounded, how fast is.

    The paper's mu is `weight` (1 in its experiments). Its momentum is 0.99 for the first tenth of the steps and 0.999
    then; here it is one number. The average predicts under the dropout masks of the model's own pass, so that the
    penalty is 0 where the weights are the same; in evaluation mode it would also pull what the masks leave towards the
    whole, which is another regulariser (`r-drop`'s). In an adversary's passes both see the perturbation.

    Only trained parameters are averaged (the adapter's under LoRA), in float32 whatever the model's precision.

    Cost: one forward pass per loss, in validation, too, and one over the weights per step: 1.4 times a plain step
    (MiniLM, CPU). Memory: 4 bytes per trained parameter, and while the average predicts a copy in the model's precision
    where that is lower. State: the average.

    Relations: the adversary `smart` has this term beside its own; `kl-reference` holds on to the model that training
    began with; the averager `ema` trains as ever, and evaluates and saves the average instead.

    Example:
        >>> Bregman(momentum=0.999, weight=0.5).momentum
        0.999
    """

    momentum: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.99
    """Share of the average that stays at each optimizer step: it looks back over about 1 / (1 - momentum) steps. 0:
    the weights before the last step."""

    backwards: ClassVar[float] = FORWARD / STEP

    def anchored(self, setting: Setting) -> bool:
        """The average begins as the model."""
        return True

    def __post_init__(self) -> None:
        self._average = WeightAverage()

    def penalty(self, step: TrainingStep, outputs: Any) -> Term:
        """The mean divergence from the averaged model; 0 before the first optimizer step, when it is the model."""
        log_p, unit = step.log_probabilities(outputs)
        if not self._average:
            if step.model.training:
                self._average.begin(step)
            return Term(log_p.new_zeros(()), per=unit)
        with torch.no_grad():
            log_average, _ = step.log_probabilities(step.forward(weights=self._average.weights))
        return Term(symmetric_kl(log_p, log_average).mean(), per=unit)

    def after_step(self, step: TrainingStep) -> None:
        """Take up the weights as the optimizer left them."""
        self._average.follow(step, self.momentum)

    def state_dict(self) -> dict[str, Any]:
        return self._average.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._average.load_state_dict(state)
