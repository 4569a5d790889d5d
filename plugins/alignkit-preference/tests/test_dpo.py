"""What of DPO's losses follows from closed forms, and what does not go together."""

from __future__ import annotations

import math

import pytest
import torch
from alignkit_preference import CPO, DPO
from alignkit_preference.dpo import ON_MARGINS, SMOOTHED, dpo_losses, f_scores
from pydantic import ValidationError
from torch.nn.functional import binary_cross_entropy_with_logits

RATIOS = torch.tensor([-3.0, -0.4, 0.0, 0.2, 2.5], dtype=torch.float64)
TOKENS = torch.tensor([1, 2, 3, 4, 5])
LOSSES = DPO.__pydantic_fields__["loss_type"].annotation.__args__


def made(loss_type: str, **fields) -> DPO:
    return DPO(loss_type=loss_type, **{"label_smoothing": 0.01 if loss_type == "exo-pair" else 0.0} | fields)


@pytest.mark.parametrize(
    ("f_divergence", "f"),
    [
        ("reverse-kl", lambda u: u * u.log() - u),  # f' is log u
        ("forward-kl", lambda u: u - u.log()),
        ("js", lambda u: u * u.log() - (u + 1) * ((u + 1) / 2).log()),
        ("alpha", lambda u: (u**0.3 / 0.3 - u) / (0.3 - 1)),
    ],
)
def test_scores_are_the_derivative_of_f(f_divergence, f):
    u = RATIOS.exp().requires_grad_(True)
    expected = torch.autograd.grad(f(u).sum(), u)[0]
    torch.testing.assert_close(f_scores(RATIOS, f_divergence, alpha=0.3), expected)


def test_the_alpha_divergence_ends_at_both_kls():
    torch.testing.assert_close(f_scores(RATIOS, "alpha", alpha=0.0), f_scores(RATIOS, "forward-kl"))
    torch.testing.assert_close(f_scores(RATIOS, "alpha", alpha=1.0), RATIOS)
    torch.testing.assert_close(f_scores(RATIOS, "alpha", alpha=1 - 1e-5), RATIOS, rtol=1e-4, atol=1e-4)


def test_a_smoothed_label_is_a_soft_one():
    found = dpo_losses(RATIOS, RATIOS.flip(0), TOKENS, TOKENS, beta=0.7, label_smoothing=0.2)
    logits, labels = 0.7 * (RATIOS - RATIOS.flip(0)), torch.full_like(RATIOS, 0.8)
    torch.testing.assert_close(found, binary_cross_entropy_with_logits(logits, labels, reduction="none"))


def test_robust_is_unbiased_under_flipped_pairs():
    """Its mean over pairs of which a share is the wrong way round is the plain loss of pairs that are right."""
    options = {"loss_type": "robust", "beta": 0.5, "label_smoothing": 0.3}
    right = dpo_losses(RATIOS, RATIOS.flip(0), TOKENS, TOKENS, **options)
    wrong = dpo_losses(RATIOS.flip(0), RATIOS, TOKENS, TOKENS, **options)
    plain = dpo_losses(RATIOS, RATIOS.flip(0), TOKENS, TOKENS, beta=0.5)
    torch.testing.assert_close(0.7 * right + 0.3 * wrong, plain)


@pytest.mark.parametrize("beta", [0.1, 0.8])
def test_ipo_aims_at_a_margin_per_token(beta):
    chosen = TOKENS * (RATIOS + 1 / (2 * beta))
    losses = dpo_losses(chosen, 2 * TOKENS * RATIOS, TOKENS, 2 * TOKENS, loss_type="ipo", beta=beta)
    torch.testing.assert_close(losses, torch.zeros_like(losses))


def test_exo_is_zero_where_the_model_prefers_as_the_label_says():
    margin = torch.tensor([math.log(0.9 / 0.1)])
    loss = dpo_losses(margin, 0 * margin, TOKENS[:1], TOKENS[:1], loss_type="exo-pair", beta=1.0, label_smoothing=0.1)
    assert loss.item() == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("loss_type", [name for name in LOSSES if name != "discopop"])  # which has a hump near 0
def test_a_larger_margin_never_costs_more_before_it_is_reached(loss_type):
    objective = made(loss_type, beta=0.1)
    fields = {n: v for n, v in objective.fields().items() if n not in ("cloning", "reference_free")}
    rejected = torch.zeros(3, dtype=torch.float64)
    if loss_type == "apo-down":  # which moves both answers down, the rejected one further
        losses = dpo_losses(rejected, torch.tensor([1.0, 0.0, -1.0]).double(), TOKENS[:3], TOKENS[:3], **fields)
    else:
        losses = dpo_losses(torch.tensor([-1.0, 0.0, 1.0]).double(), rejected, TOKENS[:1], TOKENS[:1], **fields)
    assert (losses.diff() < 0).all()


@pytest.mark.parametrize("loss_type", LOSSES)
@pytest.mark.parametrize("f_divergence", ["reverse-kl", "forward-kl", "js", "alpha"])
def test_losses_and_gradients_stay_finite_far_from_the_reference(loss_type, f_divergence):
    if f_divergence != "reverse-kl" and loss_type not in ON_MARGINS:
        pytest.skip("refused")
    fields = made(loss_type, f_divergence=f_divergence).fields()
    fields = {n: v for n, v in fields.items() if n not in ("cloning", "reference_free")}
    chosen = torch.tensor([-500.0, 500.0, -500.0, 500.0], requires_grad=True)
    rejected = torch.tensor([500.0, -500.0, -500.0, 500.0], requires_grad=True)
    losses = dpo_losses(chosen, rejected, TOKENS[:4], TOKENS[:4], **fields)
    assert losses.isfinite().all()
    assert all(g.isfinite().all() for g in torch.autograd.grad(losses.sum(), [chosen, rejected]))


def test_without_a_reference_it_is_cpo(make_pair_step):
    free = make_pair_step(DPO(reference_free=True, cloning=0.7, beta=0.3))
    assert not free.context.composition.needs_reference
    assert free.loss().item() == pytest.approx(make_pair_step(CPO(cloning=0.7, beta=0.3)).loss().item(), rel=1e-6)


def test_cloning_is_a_mean_per_token_however_pairs_are_spread(make_pair_step):
    objective = CPO(cloning=1.0, beta=1e-9)  # the preference is a constant, log 2

    def losses(*parts):
        steps = [make_pair_step(objective, rows=slice(*part)) for part in parts]
        window = {name: sum(step.counts[name] for step in steps) for name in steps[0].counts}
        for step in steps:
            step.window = window
        return sum(step.loss().item() for step in steps)

    whole = make_pair_step(objective)
    labels, outputs = whole.batch, whole.forward()
    chosen = (labels["answer"] == 1)[labels["labels"] != -100]
    expected = -whole.label_log_probabilities(outputs)[chosen].mean().item() + math.log(2)
    assert whole.loss().item() == pytest.approx(expected, rel=1e-6)
    assert losses((0, 1), (1, 3), (3, 5)) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"loss_type": "hinge", "label_smoothing": 0.1}, "loss_type hinge has no label_smoothing"),
        ({"loss_type": "exo-pair"}, "exo-pair needs a label_smoothing above 0; its paper suggests 0.001"),
        ({"loss_type": "nca-pair", "f_divergence": "js"}, "the normaliser of f_divergence js does not cancel"),
        ({"label_smoothing": 0.5}, "less than 0.5"),
        ({"beta": 0.0}, "greater than 0"),
    ],
)
def test_fields_that_do_not_go_together_are_refused(fields, said):
    with pytest.raises(ValidationError, match=said):
        DPO(**fields)


@pytest.mark.parametrize("loss_type", SMOOTHED)
def test_smoothing_changes_the_losses_that_take_it(loss_type):
    one, other = (
        dpo_losses(RATIOS, RATIOS - 1, TOKENS, TOKENS, loss_type=loss_type, label_smoothing=s) for s in (0.01, 0.2)
    )
    assert not torch.allclose(one, other)
