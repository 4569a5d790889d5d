"""EMA against the weighted sum that it stands for."""

from __future__ import annotations

import pytest
import torch
from alignkit_fusion import EMA
from alignkit_fusion.ema import decay_at
from pydantic import ValidationError

from alignkit.testing.models import tiny


def walk(model, steps, after):
    """Random weights, one set after the other; what they were, in float64."""
    generator, history = torch.Generator().manual_seed(0), []
    for _ in range(steps):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=generator).to(parameter.dtype), alpha=0.1)
        history.append({name: p.detach().double().clone() for name, p in model.named_parameters()})
        after()
    return history


def weighted(history, decays):
    """The average as a sum over the history: each set of weights times what later decays leave of its share."""
    shares = [1.0] + [1 - d for d in decays]
    for i, decay in enumerate(decays):
        shares[: i + 1] = [share * decay for share in shares[: i + 1]]
    assert sum(shares) == pytest.approx(1.0)
    return {name: sum(s * h[name] for s, h in zip(shares, history, strict=True)) for name in history[0]}


@pytest.mark.parametrize(("warm_up", "decays"), [(False, [0.9] * 5), (True, [1 / 10, 2 / 11, 3 / 12, 4 / 13, 5 / 14])])
def test_it_is_the_exponentially_weighted_mean_of_the_history(warm_up, decays, make_step):
    model, _, batch = tiny("bert-token-classification")
    averager = EMA(decay=0.9, warm_up=warm_up)
    step = make_step(model, batch, [averager])
    expected = weighted(walk(model, 6, lambda: averager.after_step(step)), decays)
    found = dict(averager.average())
    assert set(found) == set(expected)
    for name, value in found.items():
        assert value.dtype == torch.float32
        torch.testing.assert_close(value.double(), expected[name], rtol=1e-4, atol=1e-6)


def test_the_warm_up_ends_at_the_decay():
    assert decay_at(0, 0.999, True) == 0.1
    assert decay_at(10**6, 0.999, True) == 0.999
    assert decay_at(0, 0.999, False) == 0.999


def test_only_what_is_trained_is_averaged(make_step):
    model, _, batch = tiny("bert-token-classification")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith("classifier"))
    averager = EMA()
    averager.after_step(make_step(model, batch, [averager]))
    assert [name for name, _ in averager.average()] == ["classifier.weight", "classifier.bias"]


def test_nothing_stands_in_before_the_first_step():
    assert list(EMA().average()) == []


def test_state_survives_and_reset_forgets(make_step):
    model, _, batch = tiny("bert-token-classification")
    averager, resumed = EMA(decay=0.9), EMA(decay=0.9)
    step = make_step(model, batch, [averager])
    walk(model, 3, lambda: averager.after_step(step))
    resumed.load_state_dict({k: v.clone() if hasattr(v, "clone") else v for k, v in averager.state_dict().items()})
    walk(model, 3, lambda: (averager.after_step(step), resumed.after_step(step)))
    for (name, one), (other_name, other) in zip(averager.average(), resumed.average(), strict=True):
        assert name == other_name
        assert torch.equal(one, other)
    averager.reset()
    assert list(averager.average()) == []
    assert averager.decay == 0.9


def test_the_model_is_left_alone(make_step):
    model, _, batch = tiny("bert-token-classification")
    averager = EMA(decay=0.5)
    step = make_step(model, batch, [averager])
    history = walk(model, 3, lambda: averager.after_step(step))
    assert all(torch.equal(p.detach().double(), history[-1][name]) for name, p in model.named_parameters())


@pytest.mark.parametrize("decay", [0.0, 1.0, 1.5])
def test_the_decay_lies_between_0_and_1(decay):
    with pytest.raises(ValidationError):
        EMA(decay=decay)
