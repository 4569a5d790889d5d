"""FGSM against the closed form of a logistic model, and against signs taken through `inputs_embeds`."""

from __future__ import annotations

import pytest
import torch
from alignkit_adversaries import FGSM
from alignkit_adversaries.fgsm import signed
from pydantic import ValidationError

from alignkit.testing.models import tiny

SPECIAL = (0, 2, 3)


def test_signs_move_a_token_by_the_length_and_what_has_no_gradient_by_nothing():
    gradient = torch.tensor([[[3.0, -1e-20, 0.5, -7.0], [0.0, 0.0, 0.0, 0.0], [0.0, 2.0, 0.0, 0.0]]])
    moved = signed(gradient, 3.0)
    assert moved[0, 0].tolist() == [1.5, -1.5, 1.5, -1.5]
    assert moved[0].norm(dim=-1).tolist() == [3.0, 0.0, 1.5]


@pytest.mark.parametrize("epsilon", [0.05, 0.7])
def test_losses_are_those_of_the_closed_form(epsilon, logistic, make_step, losses_of):
    clean, signs = losses_of(make_step(logistic.model, logistic.batch, [FGSM(epsilon=epsilon)]))
    assert clean == pytest.approx(logistic.loss(), rel=1e-5)
    assert signs == pytest.approx(logistic.loss(epsilon * logistic.unit_length * logistic.token_slope), rel=1e-5)


@pytest.mark.parametrize("head", ["bert-token-classification", "llama-causal-lm"])
def test_losses_and_gradients_are_those_of_the_definition(head, make_step, losses_of):
    model, _, batch = tiny(head)
    found = losses_of(make_step(model, batch, [FGSM(epsilon=0.2)]))
    gradients = {name: p.grad.clone() for name, p in model.named_parameters()}

    model.zero_grad()
    table = model.get_input_embeddings().weight
    rest = {name: value for name, value in batch.items() if name != "input_ids"}
    embeds = table[batch["input_ids"]].detach().requires_grad_(True)
    gradient = torch.autograd.grad(model(inputs_embeds=embeds, **rest).loss, embeds)[0]
    real = batch["attention_mask"].bool() & ~torch.isin(batch["input_ids"], torch.tensor(SPECIAL))
    rows = table.detach().norm(dim=-1)
    length = 0.2 * rows[rows > 0].mean() / table.shape[1] ** 0.5  # padding's row is zero
    delta = torch.where(real[..., None], gradient.sign() * length, 0.0)
    clean, signs = model(**batch).loss, model(inputs_embeds=table[batch["input_ids"]] + delta, **rest).loss
    (clean + signs).backward()
    assert found == pytest.approx([clean.item(), signs.item()], rel=1e-5)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad, rtol=1e-4, atol=1e-6, msg=name)


def test_each_real_token_is_moved_by_epsilon_embedding_norms(make_step, deltas_of):
    model, _, batch = tiny("bert-token-classification")
    step = make_step(model, batch, [FGSM(epsilon=0.5)])
    first, second = deltas_of(step)
    assert first.count_nonzero() == 0
    real = batch["attention_mask"].bool() & ~torch.isin(batch["input_ids"], torch.tensor(SPECIAL))
    torch.testing.assert_close(second.norm(dim=-1), 0.5 * step.unit_length * real.float())


@pytest.mark.parametrize("epsilon", [0.0, -1.0])
def test_epsilon_is_positive(epsilon):
    with pytest.raises(ValidationError, match="greater than 0"):
        FGSM(epsilon=epsilon)
