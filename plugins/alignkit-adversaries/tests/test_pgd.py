"""PGD against a closed form, torchattacks' PGDL2, and an ascent through `inputs_embeds` that shares no code with it."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from alignkit_adversaries import PGD
from pydantic import ValidationError
from torch import nn

from alignkit.compose import Composition
from alignkit.errors import UsageError
from alignkit.plan import Setting, make_plan
from alignkit.recipe import Recipe
from alignkit.tasks.stock import StockTask
from alignkit.testing.models import tiny

HEADS = ["bert-sequence-classification", "bert-token-classification", "llama-causal-lm", "t5", "bert-multiple-choice"]
SPECIAL = (0, 2, 3)
FROZEN = json.loads((Path(__file__).parent / "fixtures" / "torchattacks.json").read_text("utf-8"))


def ascend(model, batch, delta, epsilon, alpha, steps):
    """(unperturbed loss, perturbed loss, delta) after `steps` from `delta`, through the public `inputs_embeds`."""
    embedding = (model.get_encoder() if model.config.is_encoder_decoder else model).get_input_embeddings()
    ids, rest = batch["input_ids"], {name: value for name, value in batch.items() if name != "input_ids"}
    table = embedding.weight
    rows = table.detach().norm(dim=-1)
    unit = rows[rows > 0].mean()
    real = batch["attention_mask"].bool() & ~torch.isin(ids, torch.tensor(SPECIAL))

    def loss(delta):
        return model(inputs_embeds=table[ids] + delta, **rest).loss

    delta = (torch.zeros(*ids.shape, table.shape[1]) if delta is None else delta.view(*ids.shape, -1)).clone()
    for _ in range(steps):
        delta.requires_grad_(True)
        (gradient,) = torch.autograd.grad(loss(delta), delta)
        moved = []
        for one, g, shown in zip(
            delta.detach().flatten(0, -3), gradient.flatten(0, -3), real.flatten(0, -2), strict=True
        ):
            g = g * shown[:, None]
            one = one + alpha * unit * g / g.norm()
            moved.append(one * min(1.0, float(epsilon * unit / one.norm())))
        delta = torch.stack(moved).view(delta.shape)
    return loss(torch.zeros_like(delta)), loss(delta), delta.flatten(0, -3)


# -- against others ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("epsilon", "alpha", "steps"), [(1.0, 0.3, 3), (0.5, 0.3, 3), (0.2, 0.2, 1), (2.0, 0.1, 4)])
def test_losses_are_those_of_the_closed_form(epsilon, alpha, steps, logistic, make_step, losses_of):
    clean, last = losses_of(make_step(logistic.model, logistic.batch, [PGD(epsilon=epsilon, alpha=alpha, steps=steps)]))
    assert clean == pytest.approx(logistic.loss(), rel=1e-5)
    length = min(steps * alpha, epsilon) * logistic.unit_length
    assert last == pytest.approx(logistic.loss(length * logistic.slope), rel=1e-5)


class Tanh(nn.Module):
    """The model of fixtures/make_torchattacks.py."""

    def __init__(self, weights):
        super().__init__()
        self.config = SimpleNamespace(is_encoder_decoder=False)
        self.embedding = nn.Embedding.from_pretrained(torch.tensor(weights["table"]))
        self.hidden, self.head = (torch.tensor(weights[name]) for name in ("hidden", "head"))

    def get_input_embeddings(self):
        return self.embedding

    def forward(self, input_ids, attention_mask, labels):
        hidden = torch.tanh(self.embedding(input_ids) @ self.hidden.T)
        pooled = torch.stack([row[shown == 1].mean(0) for row, shown in zip(hidden, attention_mask, strict=True)])
        logits = pooled @ self.head.T
        return type("Outputs", (dict,), {"__getattr__": dict.get})(
            loss=nn.functional.cross_entropy(logits, labels), logits=logits
        )


@pytest.mark.parametrize("clean", [True, False])
@pytest.mark.parametrize("case", FROZEN["cases"], ids=lambda case: f"{case['steps']}-steps")
def test_perturbations_are_those_of_torchattacks(case, clean, make_step, deltas_of):
    model = Tanh(FROZEN["weights"])
    model.embedding.weight.requires_grad_(True)
    ids = torch.tensor(FROZEN["ids"])
    batch = {"input_ids": ids, "attention_mask": (ids != 0).long(), "labels": torch.tensor(FROZEN["labels"])}
    fields = {name: case[name] for name in ("epsilon", "alpha", "steps")}
    step = make_step(model, batch, [PGD(**fields, clean=clean)])
    assert step.unit_length == pytest.approx(FROZEN["unit_length"])
    *_, last = deltas_of(step)
    expected = torch.tensor(case["delta"])
    assert expected.norm() > 0.1
    torch.testing.assert_close(last, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("clean", [True, False])
@pytest.mark.parametrize("random_start", [True, False])
def test_losses_and_gradients_are_those_of_the_definition(head, clean, random_start, make_step, deltas_of):
    model, _, batch = tiny(head)
    fields = {"epsilon": 0.8, "alpha": 0.35, "steps": 3}
    step = make_step(model, batch, [PGD(**fields, clean=clean, random_start=random_start)])
    seen = deltas_of(step)
    assert len(seen) == {(True, True): 5, (True, False): 4, (False, True): 4, (False, False): 4}[clean, random_start]
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    model.zero_grad()
    start = seen[1 if clean else 0] if random_start else None
    plain, last, delta = ascend(model, batch, start, **fields)
    (plain + last if clean else last).backward()
    torch.testing.assert_close(seen[-1], delta, rtol=1e-3, atol=1e-4)
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(gradients[name], parameter.grad, rtol=1e-3, atol=1e-4, msg=name)
    assert step.total == pytest.approx(plain.item(), rel=1e-4) or (random_start and not clean)


# -- the perturbation --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("head", HEADS)
def test_no_point_of_the_ascent_leaves_the_ball_or_touches_what_is_no_real_token(head, make_step, deltas_of):
    model, _, batch = tiny(head)
    step = make_step(model, batch, [PGD(epsilon=0.5, alpha=0.4, steps=4, random_start=True)])
    hidden = (batch["attention_mask"] == 0) | torch.isin(batch["input_ids"], torch.tensor(SPECIAL))
    seen = deltas_of(step)
    for delta in seen:
        assert delta.flatten(1).norm(dim=1).max() <= 0.5 * step.unit_length * (1 + 1e-6)
        assert delta[hidden.view(delta.shape[:2])].count_nonzero() == 0
    torch.testing.assert_close(seen[-1].flatten(1).norm(dim=1), torch.full((len(seen[-1]),), 0.5 * step.unit_length))


def test_a_random_start_lies_inside_the_ball_at_its_usual_length(make_step, deltas_of):
    model, _, batch = tiny("bert-masked-lm")
    step = make_step(model, batch, [PGD(epsilon=1.0, clean=False, random_start=True)])
    lengths = deltas_of(step)[0].flatten(1).norm(dim=1) / step.unit_length
    torch.testing.assert_close(lengths, torch.full_like(lengths, 3**-0.5), rtol=0.15, atol=0)


def test_more_steps_find_a_higher_loss(make_step, losses_of):
    model, _, batch = tiny("bert-token-classification")
    found = [losses_of(make_step(model, batch, [PGD(epsilon=0.3, alpha=0.1, steps=k)]))[1] for k in (1, 2, 3)]
    assert found == sorted(found)


# -- what it refuses and costs -----------------------------------------------------------------------------------


def test_a_recipe_says_what_does_not_go_together_without_what_pydantic_was_given():
    with pytest.raises(UsageError) as caught:
        Recipe(model="m", task="ner", data={"train": "t"}, adversary={"use": "pgd", "alpha": 0.3}, output="o")
    assert str(caught.value).startswith("adversary: a step of alpha 0.3 is longer than the radius epsilon 0.1")


def test_a_step_longer_than_the_radius_is_refused_with_the_reason():
    with pytest.raises(
        ValidationError, match=r"alpha 0\.3 is longer than the radius epsilon 0\.2, and projection would"
    ):
        PGD(epsilon=0.2, alpha=0.3)
    with pytest.raises(UsageError, match=r"adversary: .*alpha may be 0\.2 at most"):
        Recipe(model="m", task="ner", data={"train": "t.conll"}, adversary={"use": "pgd", "epsilon": 0.2, "alpha": 0.3})
    assert PGD(epsilon=0.2, alpha=0.2).epsilon == 0.2


def setting(adversary, **known):
    composition = Composition([adversary], StockTask())
    return composition, Setting(composition.task, composition.components, composition.objective, **known)


def test_fp16_is_refused_where_there_are_inner_steps_and_bf16_is_not():
    with pytest.raises(UsageError, match=r"inner steps are not scaled.*; expected bf16 or fp32"):
        make_plan(*setting(PGD(), precision="fp16"))
    make_plan(*setting(PGD(), precision="bf16"))
    make_plan(*setting(PGD(steps=1), precision="fp16"))  # the host's own backward pass is scaled


@pytest.mark.parametrize(
    ("fields", "passes", "factor"),
    [
        ({}, 2, 2 + 2 * 0.73),
        ({"clean": False}, 1, 1 + 3 * 0.73),
        ({"random_start": True}, 2, 2 + 3 * 0.73),
        ({"steps": 1}, 2, 2),
    ],
)
def test_the_plan_knows_what_inner_steps_cost(fields, passes, factor):
    plan = make_plan(*setting(PGD(**fields)))
    assert plan.passes == passes
    assert plan.factor == pytest.approx(factor)


@pytest.mark.parametrize("field", ["epsilon", "alpha", "steps"])
def test_fields_are_positive(field):
    with pytest.raises(ValidationError, match="greater than 0"):
        PGD(**{field: 0})
