"""Budgets against traces computed by hand."""

from __future__ import annotations

import pytest
import torch
from alignkit_constraints import Budget, KLReference, PIDBudget
from pydantic import ValidationError

from alignkit.testing.models import tiny


def test_the_multiplier_follows_a_trace_by_hand():
    weight = Budget(limit=0.1, initial=1.0, rate=0.5, damping=2.0, smoothing=0.5)
    assert weight.value() == pytest.approx(1.0)
    # cost   d = cost / .1 - 1   mu = max(0, mu + .5 d)   D = (D + d) / 2   lambda = max(0, mu + 2 D) / .1
    #                            .1                       0
    # .3      2                  1.1                      1                 (1.1 + 2) / .1 = 31
    # .1      0                  1.1                       .5               (1.1 + 1) / .1 = 21
    # .05    -.5                  .85                      0                 .85 / .1 = 8.5
    # 0      -1                   .35                     -.5               max(0, .35 - 1) = 0
    # 0      -1                  max(0, -.15) = 0         -.75              0
    # .2      1                   .5                       .125             (.5 + .25) / .1 = 7.5
    for cost, expected in ((0.3, 31.0), (0.1, 21.0), (0.05, 8.5), (0.0, 0.0), (0.0, 0.0), (0.2, 7.5)):
        weight.observe(cost)
        assert weight.value() == pytest.approx(expected)


def test_undamped_it_is_the_projected_ascent_that_autograd_finds():
    weight, mu = Budget(limit=0.2, initial=2.0, rate=0.1, damping=0.0), torch.tensor(0.4, requires_grad=True)
    optimizer = torch.optim.SGD([mu], lr=0.1, maximize=True)
    for cost in (0.9, 0.1, 0.4, 0.0, 0.0, 0.0, 0.3):
        optimizer.zero_grad()
        (mu * (cost / 0.2 - 1)).backward()
        optimizer.step()
        with torch.no_grad():
            mu.clamp_(min=0.0)
        weight.observe(cost)
        assert weight.value() == pytest.approx(mu.item() / 0.2, rel=1e-5)


def test_what_it_does_depends_on_the_cost_in_limits_alone():
    one, thousandth = Budget(limit=1.0), Budget(limit=1e-3)
    for cost in (0.2, 3.0, 1.5, 1.0, 0.7, 0.0):
        one.observe(cost)
        thousandth.observe(cost * 1e-3)
        assert one.value() == pytest.approx(thousandth.value() * 1e-3)


@pytest.mark.parametrize("kind", [Budget, PIDBudget])
def test_it_is_clamped_and_comes_back(kind):
    weight = kind(limit=0.1, maximum=4.0)
    assert not weight.exhausted
    for _ in range(10):
        weight.observe(5.0)
    assert weight.value() == 4.0
    assert weight.exhausted
    for _ in range(200):
        weight.observe(0.0)
    assert weight.value() == 0.0


def test_pid_follows_a_trace_by_hand():
    weight = PIDBudget(limit=0.1, proportional=2.0, integral=0.5, derivative=4.0, smoothing=0.5, delay=2)
    # cost   c   d     I      P       EMA(c)   delayed   D       lambda = (2 P + I + 4 D) / .1
    # .5     5   4    2       2       5        5         0       (4 + 2) / .1 = 60
    # .3     3   2    3       2       4        5         0       (4 + 3) / .1 = 70
    # .0     0  -1    2.5     .5      2        5         0       (1 + 2.5) / .1 = 35
    # .0     0  -1    2      -.25     1        4         0       (-.5 + 2) / .1 = 15
    # .6     6   5    4.5    2.375    3.5      2         1.5     (4.75 + 4.5 + 6) / .1 = 152.5
    for cost, expected in ((0.5, 60.0), (0.3, 70.0), (0.0, 35.0), (0.0, 15.0), (0.6, 152.5)):
        weight.observe(cost)
        assert weight.value() == pytest.approx(expected)


def test_pid_takes_a_cost_that_stays_below_the_limit_for_no_rise():
    weight = PIDBudget(limit=0.05)
    for _ in range(30):
        weight.observe(0.045)
        assert weight.value() == 0.0


def test_pid_answers_to_a_rise_below_the_limit():
    gains = {"proportional": 0.0, "integral": 0.0}
    weight = PIDBudget(limit=1.0, **gains)
    weight.observe(0.1)
    weight.observe(0.5)
    assert weight.value() > 0
    for _ in range(200):
        weight.observe(0.5)
    assert weight.value() == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("make", [lambda: Budget(limit=0.1), lambda: PIDBudget(limit=0.1)])
def test_state_survives_and_reset_forgets(make):
    weight, resumed = make(), make()
    start = weight.value()
    for cost in (0.5, 0.2, 0.7):
        weight.observe(cost)
    resumed.load_state_dict(weight.state_dict())
    assert resumed.value() == weight.value()
    weight.observe(0.3)
    resumed.observe(0.3)
    assert resumed.value() == weight.value() != start
    weight.reset()
    assert weight.value() == start


@pytest.mark.parametrize("kind", [Budget, PIDBudget])
def test_a_budget_needs_a_limit_above_0(kind):
    with pytest.raises(ValidationError, match="limit"):
        kind()
    for limit in (0.0, -0.1):
        with pytest.raises(ValidationError, match="greater than 0"):
            kind(limit=limit)


def test_the_loss_is_divided_by_one_plus_the_multiplier(make_step):
    model, _, batch = tiny("bert-token-classification")
    reference = tiny("bert-token-classification", seed=1)[0]
    step = make_step(model, batch, [KLReference(weight=Budget(limit=0.1, initial=3.0))], reference=reference)
    total = step.loss()
    objective, penalty = step.terms["objective"].mean, step.terms["kl-reference"].mean
    torch.testing.assert_close(total, (objective + 3.0 * penalty) / 4.0)


@pytest.mark.parametrize("kind", [Budget, PIDBudget])
@pytest.mark.parametrize("limit", [0.02, 0.1])
def test_it_holds_the_divergence_at_its_limit(make_step, kind, limit):
    model, _, batch = tiny("bert-sequence-classification")
    reference = tiny("bert-sequence-classification")[0]
    weight = kind(limit=limit)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2)
    costs = []
    for _ in range(200):
        step = make_step(model, batch, [KLReference(weight=weight)], reference=reference)
        optimizer.zero_grad()
        step.loss().backward()
        optimizer.step()
        costs.append(step.terms["kl-reference"].mean.item())
        weight.observe(costs[-1])
    assert sum(costs[-50:]) / 50 == pytest.approx(limit, rel=0.1)
