"""SMART's search and both of its terms against closed forms, `inputs_embeds`, and two explicit models."""

from __future__ import annotations

import copy
from itertools import product

import numpy
import pytest
import torch
from alignkit_adversaries import SMART
from pydantic import ValidationError
from torch.nn.functional import kl_div

from alignkit.compose import Composition
from alignkit.errors import UsageError
from alignkit.models import Peft
from alignkit.models.adapters import adapted
from alignkit.plan import Setting, make_plan
from alignkit.tasks.stock import StockTask
from alignkit.testing.models import tiny
from alignkit.testing.step_cases import perturbations
from alignkit.testing.training import make_trainer, stock_task

HEADS = ["bert-sequence-classification", "bert-token-classification", "llama-causal-lm", "t5"]
IDS = torch.tensor([[2, 5, 6, 7, 3], [2, 8, 3, 0, 0], [9, 10, 11, 4, 0]])
BATCH = {"input_ids": IDS, "attention_mask": (IDS != 0).long(), "labels": torch.tensor([0, 1, 3])}


def symmetric(log_p, log_q):
    forward = kl_div(log_q, log_p, reduction="batchmean", log_target=True)
    return forward + kl_div(log_p, log_q, reduction="batchmean", log_target=True)


def search(model, batch, predictions, noise, unit, *, epsilon, alpha, steps, norm):
    """Where the search of the paper's algorithm 1 ends, row by row; `noise` is normal, 0 where nothing may move."""
    entry = unit / noise.shape[-1] ** 0.5
    log_p = predictions(model, batch).detach()

    def projected(one):
        if norm == "inf":
            return torch.minimum(torch.maximum(one, torch.tensor(-epsilon * entry)), torch.tensor(epsilon * entry))
        return one * min(1.0, float(epsilon * unit / one.norm()))

    delta = torch.stack([projected(0.03 * entry * one) for one in noise])
    shown = noise.abs().sum(-1, keepdim=True) > 0
    for _ in range(steps):
        delta.requires_grad_(True)
        gradient = torch.autograd.grad(symmetric(log_p, predictions(model, batch, delta)), delta)[0] * shown
        size = {"inf": lambda g: g.abs().max() / entry, 2: lambda g: g.norm() / unit}[norm]
        delta = torch.stack(
            [projected(one + alpha * g / size(g)) for one, g in zip(delta.detach(), gradient, strict=True)]
        )
    return delta


def drawn(model, batch, make_step):
    step = make_step(model, batch, [SMART()])
    step.owner = "smart"
    return step.noise("normal")


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize(
    "fields",
    [
        {"norm": "inf", "epsilon": 0.03, "alpha": 3.0, "steps": 1},
        {"norm": "inf", "epsilon": 0.1, "alpha": 0.05, "steps": 3},
        {"norm": 2, "epsilon": 0.3, "alpha": 0.2, "steps": 2},
    ],
    ids=["paper", "box", "ball"],
)
def test_smoothness_and_its_gradients_are_those_of_the_definition(head, fields, make_step, by_inputs_embeds):
    model, _, batch = tiny(head)
    step = make_step(model, batch, [SMART(**fields, bregman=0, weight=2.0)])
    with perturbations(step.context.embedding) as seen:
        step.loss().backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    model.zero_grad()
    delta = search(model, batch, by_inputs_embeds, drawn(model, batch, make_step), step.unit_length, **fields)
    penalty = symmetric(by_inputs_embeds(model, batch), by_inputs_embeds(model, batch, delta))
    (model(**batch).loss + 2.0 * penalty).backward()
    assert len(seen) == 2 + fields["steps"]
    torch.testing.assert_close(seen[-1], delta, rtol=1e-2, atol=2e-3)
    assert step.terms["smart"].mean.item() == pytest.approx(penalty.item(), rel=1e-3)
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(gradients[name], parameter.grad, rtol=1e-2, atol=1e-3, msg=name)


def curvature(model):
    """[B, D, D]: W' (diag(p) - p p') W at each row: symKL for a small shift s of the mean embedding is s' C s."""
    weight, p = model.head.weight.detach().double(), model(**BATCH).logits.detach().double().softmax(-1)
    return torch.einsum("cd,bce,ef->bdf", weight, torch.diag_embed(p) - p[:, :, None] * p[:, None], weight).numpy()


def shares(step):
    """[B]: how far the mean moves where every real token moves by 1."""
    return (step.mask.sum((1, 2)) / BATCH["attention_mask"].sum(1)).numpy()


def test_in_a_box_the_search_ends_in_a_corner_and_finds_the_quadratic_form_there(linear_softmax, make_step):
    """A convex function is largest in a corner; of all 32 of them a step from the one that was found leads nowhere."""
    model, epsilon = linear_softmax(classes=4), 1e-3
    step = make_step(model, BATCH, [SMART(epsilon=epsilon, noise=epsilon, alpha=1.0, steps=20, bregman=0)])
    with perturbations(step.context.embedding) as seen:
        step.loss()
    matrices, share, found = curvature(model), shares(step), []
    for row, matrix in enumerate(matrices):
        bound = epsilon * step.unit_length / 5**0.5
        token = seen[-1][row][step.mask[row, :, 0] > 0][0].double().numpy()
        numpy.testing.assert_allclose(numpy.abs(token), bound, rtol=1e-2)
        signs = numpy.sign(token)
        assert (numpy.sign(matrix @ signs) == signs).all()
        values = [numpy.array(corner) @ matrix @ numpy.array(corner) for corner in product((-1, 1), repeat=5)]
        own = signs @ matrix @ signs
        assert own >= 0.6 * max(values)
        found.append(own * (bound * share[row]) ** 2)
    assert step.terms["smart"].mean.item() == pytest.approx(numpy.mean(found), rel=2e-2)


def test_in_a_ball_the_search_ends_along_the_largest_eigenvalue(linear_softmax, make_step):
    model, epsilon = linear_softmax(classes=4), 0.02
    step = make_step(model, BATCH, [SMART(norm=2, epsilon=epsilon, alpha=0.01, steps=60, bregman=0)])
    step.loss()
    length = epsilon * step.unit_length * shares(step) / numpy.sqrt(step.mask.sum((1, 2)).numpy())
    expected = numpy.linalg.eigvalsh(curvature(model))[:, -1] * length**2
    assert step.terms["smart"].mean.item() == pytest.approx(expected.mean(), rel=2e-2)


# -- the Bregman term --------------------------------------------------------------------------------------------


def moved(model, seed=1):
    """What an optimizer step does, here at random; in place."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))


@pytest.mark.parametrize("head", HEADS)
def test_bregman_is_the_divergence_of_two_explicit_models(head, make_step, by_inputs_embeds):
    model, _, batch = tiny(head)
    component, momentum = SMART(bregman=3.0, momentum=0.75), 0.75
    average = copy.deepcopy(model)
    for seed in (1, 2):
        step = make_step(model, batch, [component])
        step.loss()
        moved(model, seed)
        component.after_step(step)
        with torch.no_grad():
            for own, parameter in zip(average.parameters(), model.parameters(), strict=True):
                own.copy_(momentum * own + (1 - momentum) * parameter)

    def term(bregman):
        model.zero_grad()
        component.bregman = bregman
        step = make_step(model, batch, [component])
        step.loss().backward()
        gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
        return step.terms["smart"].mean.item(), gradients

    (whole, with_it), (smoothness, without) = term(3.0), term(0.0)
    model.zero_grad()
    with torch.no_grad():
        log_average = by_inputs_embeds(average, batch)
    expected = symmetric(by_inputs_embeds(model, batch), log_average)
    expected.backward()
    assert expected > 1e-4
    assert whole - smoothness == pytest.approx(3.0 * expected.item(), rel=1e-3)
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            own = with_it[name] - without[name]
            torch.testing.assert_close(own, 3.0 * parameter.grad, rtol=1e-2, atol=2e-4, msg=name)
    assert all(p.grad is None for p in average.parameters())


def test_weights_are_as_they_were_and_graphs_stay_valid(make_step):
    """The average predicts between the forward and the backward pass of the model's own loss."""
    model, _, batch = tiny("bert-masked-lm")
    component = SMART()
    make_step(model, batch, [component]).loss()
    moved(model)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    pointers = {name: p.data_ptr() for name, p in model.named_parameters()}
    make_step(model, batch, [component]).loss().backward()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert {name: p.data_ptr() for name, p in model.named_parameters()} == pointers
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight


def test_under_dropout_the_model_is_as_near_to_itself_as_can_be(make_step):
    """Both predict under the same masks."""
    model, _, batch = tiny("bert-token-classification", dropout=0.3)
    component = SMART(bregman=1e6)
    terms = []
    for bregman in (1e6, 1e6, 0.0):
        component.bregman = bregman
        step = make_step(model, batch, [component])
        torch.manual_seed(5)
        step.loss()
        terms.append(step.terms["smart"].mean)
    assert torch.equal(terms[0], terms[1])
    assert torch.equal(terms[1], terms[2])


def test_only_what_is_trained_is_averaged(make_step):
    head = "bert-sequence-classification"
    model, _, batch = tiny(head)
    model = adapted(model, stock_task(head), Peft(method="lora", r=4))
    component = SMART()
    step = make_step(model, batch, [component])
    step.loss().backward()
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert {name.removeprefix("average.") for name in component.state_dict()} == trained
    assert all("lora_" in name or "classifier" in name for name in trained)
    moved(model)
    component.after_step(step)
    step = make_step(model, batch, [component])
    step.loss().backward()
    assert step.terms["smart"].mean > 0


def test_a_model_of_low_precision_has_its_average_in_single_precision(make_step):
    model, _, batch = tiny("llama-causal-lm")
    model.bfloat16()
    component = SMART(momentum=0.999)
    step = make_step(model, batch, [component])
    step.loss()
    start = {name: value.clone() for name, value in component.state_dict().items()}
    moved(model)
    component.after_step(step)
    state = component.state_dict()
    assert all(value.dtype == torch.float32 for value in state.values())
    assert all(not torch.equal(value, start[name]) for name, value in state.items())
    step = make_step(model, batch, [component])
    step.loss().backward()
    assert step.terms["smart"].mean.isfinite()


def test_no_average_is_kept_without_bregman_or_begun_by_an_evaluation(tmp_path):
    rows = {"eval_rows": [{"input_ids": [2, 9, 10, 3], "attention_mask": [1] * 4, "labels": 1}]}
    without, begun = SMART(bregman=0), SMART()
    trainer = make_trainer("bert-sequence-classification", tmp_path, [without])
    trainer.train()
    assert without.state_dict() == {}
    trainer = make_trainer("bert-sequence-classification", tmp_path, [begun], **rows)
    trainer.evaluate()
    assert begun.state_dict() == {}
    trainer.train()
    assert begun.state_dict()


def test_the_plan_counts_its_passes_and_its_state():
    def factor(component):
        composition = Composition([component], StockTask())
        setting = Setting(composition.task, composition.components, composition.objective)
        return make_plan(composition, setting)

    assert factor(SMART(bregman=0)).factor == pytest.approx(2.73)
    plan = factor(SMART(steps=2))
    assert plan.factor == pytest.approx(2 + 2 * 0.73 + 1 / 3)
    assert "state in checkpoints" in plan.rows[1].needs


def test_inner_gradients_do_not_go_with_fp16():
    composition = Composition([SMART()], StockTask())
    setting = Setting(composition.task, composition.components, composition.objective, precision="fp16")
    with pytest.raises(UsageError, match="gradients of its inner steps are not scaled, and vanish in fp16"):
        make_plan(composition, setting)


@pytest.mark.parametrize(
    ("fields", "message"),
    [({"momentum": 1.0}, "less than 1"), ({"norm": "1"}, "'inf' or 2"), ({"bregman": -1.0}, "greater than or equal")],
)
def test_fields_are_checked(fields, message):
    with pytest.raises(ValidationError, match=message):
        SMART(**fields)
