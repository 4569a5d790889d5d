"""The divergences against closed forms and torch.distributions; the constraint on tiny models."""

from __future__ import annotations

import math

import pytest
import torch
from alignkit_constraints import KLReference
from alignkit_constraints.kl_reference import jensen_shannon, reference_divergence
from torch.distributions import Bernoulli, Categorical, kl_divergence

from alignkit.divergence import kl
from alignkit.testing.models import tiny


def logits(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def entropy(p: torch.Tensor) -> torch.Tensor:
    return -(p * p.log()).sum(-1)


def test_kl_is_that_of_torch_distributions():
    a, b = logits(7, 11), logits(7, 11, seed=1)
    expected = kl_divergence(Categorical(logits=a), Categorical(logits=b))
    torch.testing.assert_close(kl(a.log_softmax(-1), b.log_softmax(-1)), expected)


def test_kl_adds_up_over_independent_labels():
    a, b = logits(5, 3), logits(5, 3, seed=1)
    expected = kl_divergence(Bernoulli(logits=a), Bernoulli(logits=b)).sum(-1)

    def pairs(x):
        return torch.stack([x, -x], -1).sigmoid().log()

    torch.testing.assert_close(kl(pairs(a), pairs(b)), expected)


def test_kl_of_two_coins():
    p, q = torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.25, 0.75]]).log()
    assert kl(p, q).item() == pytest.approx(0.5 * math.log(4 / 3))
    assert kl(q, p).item() == pytest.approx(0.25 * math.log(0.5) + 0.75 * math.log(1.5))


def test_jensen_shannon_is_the_entropy_gained_by_mixing_and_at_most_ln_2():
    p, q = logits(6, 9).softmax(-1), logits(6, 9, seed=1).softmax(-1)
    expected = entropy((p + q) / 2) - (entropy(p) + entropy(q)) / 2
    torch.testing.assert_close(jensen_shannon(p.log(), q.log()), expected)
    torch.testing.assert_close(jensen_shannon(q.log(), p.log()), expected)
    apart = torch.tensor([[60.0, 0.0], [0.0, 60.0]]).log_softmax(-1)
    assert jensen_shannon(apart[:1], apart[1:]).item() == pytest.approx(math.log(2))


def test_directions_are_named_from_the_reference():
    theta, reference = logits(4, 5), logits(4, 5, seed=1)
    p, q = Categorical(logits=theta), Categorical(logits=reference)
    log_theta, log_reference = theta.log_softmax(-1), reference.log_softmax(-1)
    forward = reference_divergence(log_theta, log_reference, "forward")
    reverse = reference_divergence(log_theta, log_reference, "reverse")
    torch.testing.assert_close(forward, kl_divergence(q, p))
    torch.testing.assert_close(reverse, kl_divergence(p, q))


def expected_gradient(estimator, theta: torch.Tensor, log_reference: torch.Tensor) -> torch.Tensor:
    """E over samples of the model, taken exactly, of an estimator's gradient; no gradient through the sampling."""
    leaf = theta.clone().requires_grad_(True)
    log_theta = leaf.log_softmax(-1)
    log_ratio = log_reference - log_theta
    return torch.autograd.grad((log_theta.exp().detach() * estimator(log_ratio)).sum(), leaf)[0]


def test_gradients_against_the_sampled_estimators():
    """k1 has no gradient in expectation, k2 reverse KL's, k3 forward KL's: the exact directions must agree."""
    theta, log_reference = logits(4, 6), logits(4, 6, seed=1).log_softmax(-1)

    def exact(direction):
        leaf = theta.clone().requires_grad_(True)
        return torch.autograd.grad(reference_divergence(leaf.log_softmax(-1), log_reference, direction).sum(), leaf)[0]

    k1 = expected_gradient(lambda r: -r, theta, log_reference)
    k2 = expected_gradient(lambda r: r.square() / 2, theta, log_reference)
    k3 = expected_gradient(lambda r: r.exp() - 1 - r, theta, log_reference)
    torch.testing.assert_close(k1, torch.zeros_like(k1), atol=1e-12, rtol=0)
    torch.testing.assert_close(exact("reverse"), k2)
    torch.testing.assert_close(exact("forward"), k3)
    torch.testing.assert_close(exact("forward"), theta.softmax(-1) - log_reference.exp())


@pytest.mark.parametrize("head", ["bert-sequence-classification", "bert-token-classification", "llama-causal-lm"])
@pytest.mark.parametrize("direction", ["forward", "reverse", "js"])
def test_the_penalty_is_zero_at_the_reference_and_the_mean_over_scored_positions_elsewhere(head, direction, make_step):
    model, _, batch = tiny(head)
    other = tiny(head, seed=1)[0]
    constraint = KLReference(direction=direction)

    same = make_step(model, batch, [constraint], reference=tiny(head)[0])
    same.loss()
    assert same.terms["kl-reference"].mean.item() == pytest.approx(0.0, abs=1e-6)

    step = make_step(model, batch, [constraint], reference=other)
    step.loss()
    labels = batch["labels"]
    with torch.no_grad():
        theta, reference = model(**batch).logits, other(**batch).logits
    if head == "llama-causal-lm":
        theta, reference, labels = theta[:, :-1], reference[:, :-1], labels[:, 1:]
    if labels.dim() == 2:
        theta, reference = theta[labels != -100], reference[labels != -100]
    p, q = Categorical(logits=theta.double()), Categorical(logits=reference.double())
    mixed = Categorical(probs=(p.probs + q.probs) / 2)
    expected = {
        "forward": kl_divergence(q, p),
        "reverse": kl_divergence(p, q),
        "js": mixed.entropy() - (p.entropy() + q.entropy()) / 2,
    }[direction]
    assert step.terms["kl-reference"].mean.item() == pytest.approx(expected.mean().item(), rel=1e-4)
    assert step.terms["kl-reference"].count == len(expected)


@pytest.mark.parametrize("head", ["bert-sequence-classification", "bert-token-classification", "llama-causal-lm"])
def test_four_batches_of_two_rows_give_the_gradient_of_one_of_eight(head, make_step):
    from alignkit.testing.models import collate, examples

    model, reference, rows = tiny(head)[0], tiny(head, seed=1)[0], examples(head, 8)
    constraint = KLReference(weight=3.0)

    def gradient(batches):
        steps = [make_step(model, collate(head, part), [constraint], reference=reference) for part in batches]
        window = {name: sum(step.counts[name] for step in steps) for name in steps[0].counts}
        model.zero_grad()
        for step in steps:
            step.window = window
            step.loss().backward()
        return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])

    whole, parts = gradient([rows]), gradient([rows[i : i + 2] for i in range(0, 8, 2)])
    assert (parts.norm() / whole.norm()).item() == pytest.approx(1.0, abs=1e-4)
    assert torch.cosine_similarity(parts, whole, dim=0).item() > 0.9999


def test_the_reference_gets_no_gradient_and_is_asked_once(make_step):
    model, _, batch = tiny("bert-token-classification")
    reference = tiny("bert-token-classification", seed=1)[0]
    calls = []
    reference.register_forward_hook(lambda *_: calls.append(1))
    step = make_step(model, batch, [KLReference()], reference=reference)
    step.loss().backward()
    step.loss(step.zeros()).backward()
    assert len(calls) == 1
    assert all(p.grad is None for p in reference.parameters())
