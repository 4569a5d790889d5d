"""R3F against the definition through `inputs_embeds`, and against a closed form for a linear-softmax model."""

from __future__ import annotations

import pytest
import torch
from alignkit_adversaries import R3F
from pydantic import ValidationError
from torch.nn.functional import kl_div

from alignkit.compose import Composition
from alignkit.plan import Setting, make_plan
from alignkit.tasks.stock import StockTask
from alignkit.testing.models import tiny
from alignkit.testing.step_cases import perturbations

HEADS = ["bert-sequence-classification", "bert-token-classification", "llama-causal-lm", "t5", "bert-multiple-choice"]


def drawn(model, batch, noise, make_step):
    step = make_step(model, batch, [R3F()])
    step.owner = "r3f"
    return step.noise(noise)


def symmetric(log_p, log_q):
    forward = kl_div(log_q, log_p, reduction="batchmean", log_target=True)
    return forward + kl_div(log_p, log_q, reduction="batchmean", log_target=True)


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("noise", ["uniform", "normal"])
def test_penalty_and_gradients_are_those_of_the_definition(head, noise, make_step, by_inputs_embeds):
    """Both predictions take part in the gradient."""
    model, _, batch = tiny(head)
    step = make_step(model, batch, [R3F(epsilon=0.5, noise=noise, weight=2.0)])
    step.loss().backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    model.zero_grad()
    delta = 0.5 * step.unit_length / 32**0.5 * drawn(model, batch, noise, make_step)
    penalty = symmetric(by_inputs_embeds(model, batch), by_inputs_embeds(model, batch, delta))
    (model(**batch).loss + 2.0 * penalty).backward()
    assert step.terms["r3f"].mean.item() == pytest.approx(penalty.item(), rel=1e-3)
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(gradients[name], parameter.grad, rtol=1e-3, atol=1e-5, msg=name)


def test_small_noise_gives_the_fisher_norm_of_the_mean_s_shift(linear_softmax, make_step):
    """symKL -> s' W' (diag(p) - p p') W s, for a shift s of the mean embedding; exact in single precision, too."""
    model, epsilon = linear_softmax(classes=4), 1e-4
    ids = torch.tensor([[2, 5, 6, 7, 3], [2, 8, 3, 0, 0], [9, 10, 11, 4, 0]])
    batch = {"input_ids": ids, "attention_mask": (ids != 0).long(), "labels": torch.tensor([0, 1, 3])}
    step = make_step(model, batch, [R3F(epsilon=epsilon)])
    step.loss()
    noise = epsilon * step.unit_length / 5**0.5 * drawn(model, batch, "uniform", make_step)
    shift = (noise.sum(1) / batch["attention_mask"].sum(1, keepdim=True)).double() @ model.head.weight.double().T
    p = model(**batch).logits.double().softmax(-1)
    expected = ((p * shift.square()).sum(-1) - (p * shift).sum(-1).square()).mean()
    assert expected < 1e-8
    assert step.terms["r3f"].mean.item() == pytest.approx(expected.item(), rel=0.05)


@pytest.mark.parametrize("noise", ["uniform", "normal"])
def test_a_token_s_noise_is_as_long_as_epsilon_says(noise, make_step):
    model, _, batch = tiny("bert-masked-lm")
    step = make_step(model, batch, [R3F(epsilon=0.3, noise=noise)])
    with perturbations(step.context.embedding) as seen:
        step.loss()
    shown = step.mask.squeeze(-1).bool()
    assert not seen[-1][~shown].any()
    lengths = seen[-1][shown].norm(dim=-1) / step.unit_length
    usual = 0.3 / 3**0.5 if noise == "uniform" else 0.3
    assert lengths.mean().item() == pytest.approx(usual, rel=0.05)
    if noise == "uniform":
        assert seen[-1].abs().max() <= 0.3 * step.unit_length / 32**0.5 * (1 + 1e-4)


def test_each_step_draws_anew(make_step):
    model, _, batch = tiny("bert-sequence-classification")
    first, again, other = (make_step(model, batch, [R3F()]) for _ in range(3))
    other.index = 1
    for step in (first, again, other):
        step.loss()
    assert torch.equal(first.terms["r3f"].mean, again.terms["r3f"].mean)
    assert not torch.equal(first.terms["r3f"].mean, other.terms["r3f"].mean)


def test_the_plan_counts_one_more_pass():
    composition = Composition([R3F()], StockTask())
    plan = make_plan(composition, Setting(composition.task, composition.components, composition.objective))
    assert (plan.passes, plan.factor) == (1, 2.0)


@pytest.mark.parametrize("fields", [{"epsilon": 0.0}, {"noise": "gaussian"}, {"weight": -1.0}])
def test_fields_are_checked(fields):
    with pytest.raises(ValidationError, match=r"greater than|'uniform' or 'normal'"):
        R3F(**fields)
