"""The divergences against torch.distributions and F.kl_div, in value and gradient, and at small distances."""

from __future__ import annotations

import pytest
import torch
from torch.distributions import Bernoulli, Categorical, kl_divergence
from torch.nn.functional import kl_div

from alignkit.divergence import kl, symmetric_kl


def logits(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def both(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """The sum of the two directions with torch's own function, whose arguments are the other way round."""
    log_p, log_q = a.log_softmax(-1), b.log_softmax(-1)
    forward = kl_div(log_q, log_p, reduction="none", log_target=True)
    return (forward + kl_div(log_p, log_q, reduction="none", log_target=True)).sum(-1)


def test_values_are_those_of_torch_distributions():
    a, b = logits(7, 11), logits(7, 11, seed=1)
    p, q = Categorical(logits=a), Categorical(logits=b)
    torch.testing.assert_close(kl(a.log_softmax(-1), b.log_softmax(-1)), kl_divergence(p, q))
    expected = kl_divergence(p, q) + kl_divergence(q, p)
    torch.testing.assert_close(symmetric_kl(a.log_softmax(-1), b.log_softmax(-1)), expected)


def test_independent_labels_add_up():
    a, b = logits(5, 3), logits(5, 3, seed=1)
    p, q = Bernoulli(logits=a), Bernoulli(logits=b)
    pairs = [torch.nn.functional.logsigmoid(torch.stack([x, -x], -1)) for x in (a, b)]
    torch.testing.assert_close(kl(*pairs), kl_divergence(p, q).sum(-1))
    torch.testing.assert_close(symmetric_kl(*pairs), (kl_divergence(p, q) + kl_divergence(q, p)).sum(-1))


def gradients(divergence, a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, ...]:
    one, other = a.clone().requires_grad_(True), b.clone().requires_grad_(True)
    return torch.autograd.grad(divergence(one, other).sum(), [one, other], allow_unused=True)


def of_logits(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return symmetric_kl(a.log_softmax(-1), b.log_softmax(-1))


def test_symmetric_means_that_both_sides_have_their_whole_gradient():
    a, b = logits(6, 5), logits(6, 5, seed=1)
    for found, expected in zip(gradients(of_logits, a, b), gradients(both, a, b), strict=True):
        torch.testing.assert_close(found, expected)


def test_each_kl_with_its_first_side_detached_has_the_value_and_half_of_the_gradient():
    """The trap: near each other, where both second-order halves are equal."""

    def detached(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        log_p, log_q = a.log_softmax(-1), b.log_softmax(-1)
        return kl(log_p.detach(), log_q) + kl(log_q.detach(), log_p)

    a = logits(6, 5)
    b = a + 1e-4 * logits(6, 5, seed=1)
    torch.testing.assert_close(detached(a, b), of_logits(a, b))
    for half, whole in zip(gradients(detached, a, b), gradients(of_logits, a, b), strict=True):
        torch.testing.assert_close(2 * half, whole, rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize("distance", [1e-2, 1e-3, 1e-4])
def test_it_is_exact_between_near_predictions_in_single_precision(distance):
    a = logits(50, 30)
    b = a + distance * logits(50, 30, seed=1)
    exact = both(a, b).mean()
    log_p, log_q = a.float().log_softmax(-1), b.float().log_softmax(-1)
    found = symmetric_kl(log_p, log_q)
    assert (found >= 0).all()
    assert found.mean().item() == pytest.approx(exact.item(), rel=2e-6 / distance)


def test_what_has_no_probability_adds_nothing():
    """Choices that pad a row: the most negative number in both."""
    a = torch.tensor([[0.3, 1.0, torch.finfo(torch.float32).min]])
    b = torch.tensor([[0.9, 0.2, torch.finfo(torch.float32).min]], requires_grad=True)
    for divergence in (kl, symmetric_kl):
        found = divergence(a.log_softmax(-1), b.log_softmax(-1))
        torch.testing.assert_close(found, divergence(a[:, :2].log_softmax(-1), b[:, :2].log_softmax(-1)))
        assert torch.autograd.grad(found.sum(), b)[0].isfinite().all()
