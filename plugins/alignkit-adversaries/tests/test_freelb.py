"""FreeLB against a closed form, and against the paper's algorithm written out with `inputs_embeds`."""

from __future__ import annotations

import pytest
import torch
from alignkit_adversaries import FreeLB
from alignkit_adversaries.start import uniform_start
from pydantic import ValidationError

from alignkit.testing.models import tiny

HEADS = ["bert-sequence-classification", "bert-token-classification", "llama-causal-lm"]
SPECIAL = (0, 2, 3)


@pytest.mark.parametrize(("rate", "max_norm", "steps"), [(0.3, None, 3), (0.3, 0.4, 4), (0.1, 0.6, 1), (0.5, 10.0, 2)])
def test_losses_are_those_of_the_closed_form(rate, max_norm, steps, logistic, make_step, losses_of):
    adversary = FreeLB(learning_rate=rate, initial=0, max_norm=max_norm, steps=steps)
    lengths = [min(k * rate, max_norm or float("inf")) * logistic.unit_length for k in range(steps)]
    expected = [logistic.loss(length * logistic.slope) / steps for length in lengths]
    step = make_step(logistic.model, logistic.batch, [adversary])
    assert losses_of(step) == pytest.approx(expected, rel=1e-5)
    assert step.total == pytest.approx(logistic.loss(), rel=1e-5)  # logged: of the first pass, not divided


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("max_norm", [None, 0.6])
def test_gradients_are_those_of_the_papers_algorithm(head, max_norm, make_step, deltas_of):
    model, _, batch = tiny(head)
    step = make_step(model, batch, [FreeLB(learning_rate=0.2, initial=0.9, max_norm=max_norm, steps=3)])
    seen = deltas_of(step)
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    model.zero_grad()
    table = model.get_input_embeddings().weight
    rest = {name: value for name, value in batch.items() if name != "input_ids"}
    real = batch["attention_mask"].bool() & ~torch.isin(batch["input_ids"], torch.tensor(SPECIAL))
    delta = seen[0]
    for i in range(3):
        torch.testing.assert_close(seen[i], delta.detach(), rtol=1e-3, atol=1e-5)
        delta = delta.detach().requires_grad_(True)
        (model(inputs_embeds=table[batch["input_ids"]] + delta, **rest).loss / 3).backward()
        g = delta.grad * real[..., None]
        delta = delta.detach() + 0.2 * step.unit_length * g / g.norm(dim=(1, 2), keepdim=True)
        if max_norm is not None:
            norm = delta.norm(dim=(1, 2), keepdim=True)
            delta = torch.where(norm > max_norm * step.unit_length, delta * max_norm * step.unit_length / norm, delta)
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(gradients[name], parameter.grad, rtol=1e-3, atol=1e-5, msg=name)


def test_passes_that_hardly_move_give_the_plain_gradient(make_step, losses_of):
    model, _, batch = tiny("bert-token-classification")
    losses_of(make_step(model, batch, [FreeLB(learning_rate=1e-6, initial=0, steps=4)]))
    gradients = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    model(**batch).loss.backward()
    for found, parameter in zip(gradients, model.parameters(), strict=True):
        torch.testing.assert_close(found, parameter.grad, rtol=1e-4, atol=1e-5)


# -- the start ---------------------------------------------------------------------------------------------------


def test_a_start_is_uniform_and_never_longer_than_its_bound():
    mask = torch.zeros(2, 40, 1)
    mask[0], mask[1, :7] = 1, 1
    generator = torch.Generator().manual_seed(0)
    noise = (2 * torch.rand(2, 40, 25, generator=generator) - 1) * mask
    start = uniform_start(noise, mask, 3.0)
    entries = start[0].flatten() * 1000**0.5 / 3
    assert entries.abs().max() <= 1
    assert entries.mean() == pytest.approx(0, abs=0.05)
    assert entries.var() == pytest.approx(1 / 3, rel=0.05)
    assert start.norm(dim=(1, 2)).tolist() == pytest.approx([3 / 3**0.5] * 2, rel=0.1)
    assert start[1, 7:].count_nonzero() == 0
    assert uniform_start(noise, torch.zeros(2, 40, 1), 3.0).isfinite().all()


def test_a_start_outside_the_ball_is_projected(make_step, deltas_of):
    model, _, batch = tiny("bert-token-classification")
    step = make_step(model, batch, [FreeLB(initial=5.0, max_norm=0.5)])
    seen = deltas_of(step)
    torch.testing.assert_close(seen[0].norm(dim=(1, 2)), torch.full((8,), 0.5 * step.unit_length))
    assert max(float(delta.norm(dim=(1, 2)).max()) for delta in seen) <= 0.5 * step.unit_length * (1 + 1e-6)


def test_a_row_starts_alike_whatever_shares_its_batch(make_step, deltas_of):
    model, _, batch = tiny("bert-token-classification")
    batch = {**batch, "index": torch.arange(40, 48)}
    start = deltas_of(make_step(model, batch, [FreeLB()]))[0]
    turned = {name: value.flip(0) for name, value in batch.items()}
    assert torch.equal(deltas_of(make_step(model, turned, [FreeLB()]))[0].flip(0), start)
    assert start[0].norm() != start[1].norm()
    unknown = {name: value for name, value in batch.items() if name != "index"}
    assert deltas_of(make_step(model, unknown, [FreeLB()]))[0].norm() > 0


@pytest.mark.parametrize("special", [True, False])
def test_special_tokens_are_perturbed_where_that_is_asked_for_and_padding_never(special, make_step, deltas_of):
    model, _, batch = tiny("bert-token-classification")
    is_special = torch.isin(batch["input_ids"], torch.tensor(SPECIAL)) & (batch["attention_mask"] == 1)
    for delta in deltas_of(make_step(model, batch, [FreeLB(perturb_special=special)])):
        assert (delta[is_special].count_nonzero() > 0) == special
        assert delta[batch["attention_mask"] == 0].count_nonzero() == 0


# -- fields ------------------------------------------------------------------------------------------------------


def test_it_takes_as_many_passes_as_steps():
    assert [FreeLB(steps=steps).passes for steps in (1, 2, 3)] == [1, 2, 3]


@pytest.mark.parametrize("fields", [{"learning_rate": 0}, {"initial": -1}, {"max_norm": 0}, {"steps": 0}])
def test_fields_are_in_range(fields):
    with pytest.raises(ValidationError, match="greater than"):
        FreeLB(**fields)
