"""Direct Preference Optimization and the losses that have grown from it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import torch
from pydantic import Field, NonNegativeFloat, PositiveFloat, model_validator
from torch import Tensor
from torch.nn.functional import logsigmoid

from alignkit.components import Objective, Term
from alignkit_preference.pairs import cloning, pair_task

if TYPE_CHECKING:
    from alignkit.step import TrainingStep

LARGEST_EXPONENT = 40.0
"""The square of its exponential is finite in fp32 and bf16."""

ON_MARGINS = ("sigmoid", "sigmoid-norm", "hinge", "ipo", "robust", "exo-pair", "discopop")
"""Losses of the difference of two scores, in which an f-divergence's normaliser cancels."""
SMOOTHED = ("sigmoid", "sigmoid-norm", "robust", "exo-pair")
"""Losses that know of labels that are wrong."""
AVERAGED = ("ipo", "sigmoid-norm")
"""Losses of scores per token."""


def f_scores(log_ratios: Tensor, f_divergence: str, alpha: float = 0.5) -> Tensor:
    """f'(u) of the ratio u = pi / pi_ref: what f-DPO (Wang et al. 2023, arXiv:2309.16240) puts in the place of log u.

    Args:
        log_ratios: [B], log u.
        f_divergence: `reverse-kl`: log u; `forward-kl`: 1 - 1/u; `js`: log (2u / (1 + u)); `alpha`:
            (u^(alpha - 1) - 1) / (alpha - 1), which is reverse KL's at alpha 1 and forward KL's at alpha 0.
        alpha: of the alpha-divergence.

    Returns:
        [B].
    """
    if f_divergence == "js":
        return math.log(2) + logsigmoid(log_ratios)
    exponent = {"reverse-kl": 0.0, "forward-kl": -1.0, "alpha": alpha - 1.0}[f_divergence]
    if abs(exponent) < 1e-6:
        return log_ratios
    return torch.expm1((exponent * log_ratios).clamp_max(LARGEST_EXPONENT)) / exponent


def margin_losses(margins: Tensor, loss_type: str, beta: float, label_smoothing: float, tau: float) -> Tensor:
    """Losses of how much further the chosen answer has risen above the reference than the rejected one.

    Args:
        margins: [B], h.
        loss_type: one of `ON_MARGINS`.
        beta: what margins are multiplied with; of `ipo` tau, whose inverse's half is the margin aimed at.
        label_smoothing: the probability that a pair is the wrong way round.
        tau: temperature of `discopop`.

    Returns:
        [B].
    """
    wrong, scaled = label_smoothing, beta * margins
    if loss_type == "hinge":
        return torch.relu(1 - scaled)
    if loss_type == "ipo":
        return (margins - 1 / (2 * beta)).square()
    if loss_type == "discopop":
        share = torch.sigmoid(scaled / tau)
        return -logsigmoid(scaled) * (1 - share) + torch.exp((-scaled).clamp_max(LARGEST_EXPONENT)) * share
    right, reverse = logsigmoid(scaled), logsigmoid(-scaled)
    if loss_type == "exo-pair":  # KL of the model's preference from the smoothed label's
        return right.exp() * (right - math.log1p(-wrong)) + reverse.exp() * (reverse - math.log(wrong))
    if loss_type == "robust":
        return (-(1 - wrong) * right + wrong * reverse) / (1 - 2 * wrong)
    return -(1 - wrong) * right - wrong * reverse


def ratio_losses(chosen: Tensor, rejected: Tensor, loss_type: str, beta: float) -> Tensor:
    """Losses that say of each answer by itself where it is to go.

    Args:
        chosen: [B], log (pi / pi_ref) of the chosen answers.
        rejected: [B], of the rejected ones.
        loss_type: any but `ON_MARGINS`.
        beta: what log-ratios are multiplied with; `sppo-hard` aims at +- 1 / (2 beta).

    Returns:
        [B].
    """
    up, down = beta * chosen, beta * rejected
    if loss_type == "nca-pair":
        return -logsigmoid(up) - (logsigmoid(-up) + logsigmoid(-down)) / 2
    if loss_type == "bco-pair":
        return -logsigmoid(up) - logsigmoid(-down)
    if loss_type == "sppo-hard":
        return (chosen - 0.5 / beta).square() + (rejected + 0.5 / beta).square()
    if loss_type == "apo-zero":
        return torch.sigmoid(-up) + torch.sigmoid(down)
    return torch.sigmoid(up) + torch.sigmoid(down - up)  # apo-down


def dpo_losses(
    chosen: Tensor,
    rejected: Tensor,
    chosen_tokens: Tensor,
    rejected_tokens: Tensor,
    *,
    loss_type: str = "sigmoid",
    beta: float = 0.1,
    label_smoothing: float = 0.0,
    f_divergence: str = "reverse-kl",
    alpha: float = 0.5,
    tau: float = 0.05,
) -> Tensor:
    """One loss per pair.

    Args:
        chosen: [B], sums over an answer's tokens of log pi - log pi_ref, of the chosen answers.
        rejected: [B], of the rejected ones.
        chosen_tokens: [B], tokens of the chosen answers.
        rejected_tokens: [B].

    Returns:
        [B].
    """
    if loss_type not in ON_MARGINS:
        return ratio_losses(chosen, rejected, loss_type, beta)
    up, down = f_scores(chosen, f_divergence, alpha), f_scores(rejected, f_divergence, alpha)
    if loss_type in AVERAGED:
        up, down = up / chosen_tokens.clamp_min(1), down / rejected_tokens.clamp_min(1)
    return margin_losses(up - down, loss_type, beta, label_smoothing, tau)


class DPO(Objective):
    """Prefers chosen answers to rejected ones, by how far each has moved from a frozen reference: no reward model.

    Rafailov et al. 2023, arXiv:2305.18290, eq. 7: -log sigmoid(beta h), where h = (log pi - log pi_ref)(chosen) - (log
    pi - log pi_ref)(rejected), sums over an answer's tokens. `loss_type` takes others of the family:

    - `hinge`: relu(1 - beta h), as SLiC-HF (Zhao et al. 2023, arXiv:2305.10425);
    - `ipo`: (h - 1 / (2 beta))^2 (Azar et al. 2023, arXiv:2310.12036, eq. 17), h of means per token: under the
      sums that the paper writes the aim would depend on the answers' lengths, and its authors averaged, too;
    - `robust`: unbiased where a share `label_smoothing` of the pairs is the wrong way round (Chowdhury et al. 2024,
      arXiv:2403.00409), `sigmoid` with `label_smoothing` the conservative, biased one;
    - `exo-pair`: reverse KL from smoothed labels (Ji et al. 2024, arXiv:2402.00856, eq. 16), which suggests .001;
    - `sigmoid-norm`: h of means per token (Lambert et al. 2024, arXiv:2411.15124); wants a beta near 5;
    - `discopop`: found by search (Lu et al. 2024, arXiv:2406.08414, eq. 5), with its temperature `tau`;
    - `nca-pair` (Chen et al. 2024, arXiv:2402.05369), `bco-pair` (Jung et al. 2024, arXiv:2404.04656, without its
      running mean), `sppo-hard` (Wu et al. 2024, arXiv:2405.00675, eq. 4.7), `apo-zero` and `apo-down` (D'Oosterlinck
      et al. 2024, arXiv:2408.06266, eq. 7-8): they pin both answers to the reference, not only their difference.

    `f_divergence` replaces the log-ratio by f' of the ratio (Wang et al. 2023, arXiv:2309.16240) in losses on h. All
    follows TRL 1.16, to which the tests hold it, but for three things. TRL takes `label_smoothing` with `sigmoid` and
    ignores it. Exponents, of f-divergences and of `discopop`, are 40 at most here; its bounds are higher, where it has
    any. Its `aot` losses, which sort a batch, are left out: with one pair per micro-batch they are `sigmoid`.

    Cost: log-probabilities of the reference, once per pair and training (they are cached with the data).

    Relations: `simpo`, `orpo` and `cpo` need no reference; `kto` weighs good and bad answers apart. Where chosen
    answers become less likely, too, `cloning` holds them up, and so does `apo-zero`.

    Example:
        >>> DPO(loss_type="ipo", beta=0.2).reference
        True
    """

    loss_type: Literal[
        "sigmoid", "hinge", "ipo", "robust", "exo-pair", "nca-pair", "bco-pair", "sppo-hard", "apo-zero", "apo-down",
        "discopop", "sigmoid-norm",
    ] = "sigmoid"  # fmt: skip
    """Which of the losses."""
    beta: PositiveFloat = 0.1
    """How strongly the reference holds: the inverse of how far answers may move from it, per nat. Of `ipo` and
    `sppo-hard`, the margin aimed at is 1 / (2 beta) nats."""
    label_smoothing: float = Field(default=0.0, ge=0.0, lt=0.5)
    """The share of pairs that may be the wrong way round; of `sigmoid`, `sigmoid-norm`, `robust` and `exo-pair`."""
    f_divergence: Literal["reverse-kl", "forward-kl", "js", "alpha"] = "reverse-kl"
    """What keeps the model near the reference; others than `reverse-kl` with losses on h alone."""
    alpha: float = 0.5
    """Of the alpha-divergence: reverse KL at 1, forward KL at 0."""
    tau: PositiveFloat = 0.05
    """Of `discopop`: the temperature at which it goes from one loss to the other."""
    cloning: NonNegativeFloat = 0.0
    """Weight of the chosen answers' cross-entropy, in nats per token, that is added (Pang et al. 2024,
    arXiv:2404.19733)."""
    reference_free: bool = False
    """Leave the reference out, as if it found all answers equally likely."""

    tasks: ClassVar[tuple[str, ...]] = ("preference",)

    @model_validator(mode="after")
    def _fields_go_together(self) -> Self:
        if self.label_smoothing and self.loss_type not in SMOOTHED:
            known = ", ".join(SMOOTHED)
            raise ValueError(f"loss_type {self.loss_type} has no label_smoothing: expected 0, or one of {known}")
        if self.loss_type == "exo-pair" and not self.label_smoothing:
            raise ValueError("loss_type exo-pair needs a label_smoothing above 0; its paper suggests 0.001")
        if self.f_divergence != "reverse-kl" and self.loss_type not in ON_MARGINS:
            raise ValueError(
                f"loss_type {self.loss_type} is no function of the margin, so that the normaliser of f_divergence "
                f"{self.f_divergence} does not cancel: expected reverse-kl, or one of {', '.join(ON_MARGINS)}"
            )
        return self

    @property
    def reference(self) -> bool:  # type: ignore[override]  # a constant of the class in most components
        """Whether answers are compared with the reference's."""
        return not self.reference_free

    def loss(self, step: TrainingStep, outputs: Any) -> Term:
        """The mean over pairs."""
        task = pair_task(step)
        answers = task.answers(step, outputs)
        chosen, rejected = answers.chosen, answers.rejected
        if not self.reference_free:
            frozen = task.reference_answers(step)
            chosen, rejected = chosen - frozen.chosen, rejected - frozen.rejected
        losses = dpo_losses(
            chosen,
            rejected,
            answers.chosen_tokens,
            answers.rejected_tokens,
            loss_type=self.loss_type,
            beta=self.beta,
            label_smoothing=self.label_smoothing,
            f_divergence=self.f_divergence,
            alpha=self.alpha,
            tau=self.tau,
        )
        if self.cloning:
            losses = losses + self.cloning * cloning(step, answers)
        return Term(losses.mean(), "example")
