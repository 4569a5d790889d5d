"""The losses without a reference, by closed forms; they are held to TRL's in `test_trl.py`."""

from __future__ import annotations

import pytest
import torch
from alignkit_preference import CPO, ORPO, SimPO
from alignkit_preference.orpo import log1mexp, orpo_losses
from alignkit_preference.simpo import simpo_losses


def test_log1mexp_is_exact_at_both_ends():
    x = torch.tensor([-1e-4, -0.1, -0.69, -0.70, -5.0, -30.0])
    torch.testing.assert_close(log1mexp(x), torch.log1p(-x.double().exp()).float(), rtol=1e-6, atol=0)
    assert log1mexp(torch.tensor(-40.0)).item() == pytest.approx(-4.248354e-18, rel=1e-5)


def test_certain_answers_have_finite_odds_and_gradients():
    chosen = torch.tensor([0.0, -900.0, 0.0], requires_grad=True)
    rejected = torch.tensor([-900.0, 0.0, 0.0], requires_grad=True)
    losses = orpo_losses(chosen, rejected, torch.ones(3), torch.ones(3))
    assert losses.isfinite().all()
    assert all(g.isfinite().all() for g in torch.autograd.grad(losses.sum(), [chosen, rejected]))


def test_odds_are_of_probabilities_per_token():
    p, q = torch.tensor([0.4, 0.9]).double(), torch.tensor([0.3, 0.95]).double()
    losses = orpo_losses(3 * p.log(), 5 * q.log(), torch.tensor([3, 3]), torch.tensor([5, 5]))
    ratio = (p / (1 - p)) / (q / (1 - q))
    torch.testing.assert_close(losses, -(ratio / (1 + ratio)).log())


def test_simpo_is_even_at_its_margin():
    tokens = torch.tensor([2, 7])
    losses = simpo_losses(tokens * -1.0, 3 * tokens * -1.25, tokens, 3 * tokens, beta=2.0, gamma=0.5)
    torch.testing.assert_close(losses, torch.full((2,), 2.0).log())


@pytest.mark.parametrize("objective", [ORPO(), SimPO(), CPO()], ids=lambda o: type(o).__name__)
def test_none_asks_a_reference(objective, make_pair_step):
    step = make_pair_step(objective)
    step.context.reference = None
    step.loss().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in step.model.parameters())
