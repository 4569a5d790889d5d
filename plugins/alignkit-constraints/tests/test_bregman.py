"""The averages against the recursion written out, the penalty against two explicit models."""

from __future__ import annotations

import copy

import pytest
import torch
from alignkit_constraints import Bregman
from pydantic import ValidationError
from torch.distributions import Categorical, kl_divergence

from alignkit.compose import Composition
from alignkit.models import Peft
from alignkit.models.adapters import adapted
from alignkit.plan import Setting, make_plan
from alignkit.tasks.stock import StockTask
from alignkit.testing.models import tiny
from alignkit.testing.training import make_trainer, stock_task

HEADS = ["bert-sequence-classification", "bert-token-classification", "llama-causal-lm", "t5"]


def moved(model, seed=1):
    """What an optimizer step does, here at random; in place."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))


def distributions(model, batch, head):
    logits, labels = model(**batch).logits.double(), batch["labels"]
    if head == "llama-causal-lm":
        logits, labels = logits[:, :-1], labels[:, 1:]
    return Categorical(logits=logits[labels != -100] if logits.dim() == 3 else logits)


@pytest.mark.parametrize("head", HEADS)
def test_the_penalty_is_the_divergence_of_two_explicit_models(head, make_step):
    model, _, batch = tiny(head)
    component, momentum = Bregman(momentum=0.75), 0.75
    average = copy.deepcopy(model)
    for seed in (1, 2):
        step = make_step(model, batch, [component])
        step.loss()
        if seed == 1:
            assert step.terms["bregman"].mean == 0
        moved(model, seed)
        component.after_step(step)
        with torch.no_grad():
            for own, parameter in zip(average.parameters(), model.parameters(), strict=True):
                own.copy_(momentum * own + (1 - momentum) * parameter)

    def gradients():
        return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    model.zero_grad()
    step = make_step(model, batch, [component])
    step.loss().backward()
    found = gradients()
    model.zero_grad()
    with torch.no_grad():
        q = distributions(average, batch, head)
    p = distributions(model, batch, head)
    expected = (kl_divergence(p, q) + kl_divergence(q, p)).mean()
    (model(**batch).loss + expected).backward()
    assert expected > 1e-4
    assert step.terms["bregman"].mean.item() == pytest.approx(expected.item(), rel=1e-3)
    for name, gradient in gradients().items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-3, atol=1e-5, msg=name)
    assert all(p.grad is None for p in average.parameters())


def test_weights_are_as_they_were_and_tied_ones_stay_tied(make_step):
    model, _, batch = tiny("bert-masked-lm")
    component = Bregman()
    make_step(model, batch, [component]).loss()
    moved(model)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    make_step(model, batch, [component]).loss().backward()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight


def test_under_dropout_a_model_is_as_near_to_itself_as_can_be(make_step):
    """Both predict under the same masks."""
    model, _, batch = tiny("bert-token-classification", dropout=0.3)
    component = Bregman()
    for _ in range(2):
        step = make_step(model, batch, [component])
        step.loss()
        assert step.terms["bregman"].mean == 0


def test_only_what_is_trained_is_averaged_in_single_precision(make_step):
    head = "bert-sequence-classification"
    model, _, batch = tiny(head)
    model = adapted(model, stock_task(head), Peft(method="lora", r=4)).bfloat16()
    component = Bregman(momentum=0.999)
    step = make_step(model, batch, [component])
    step.loss().backward()
    start = {name: value.clone() for name, value in component.state_dict().items()}
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert {name.removeprefix("average.") for name in start} == trained
    assert all("lora_" in name or "classifier" in name for name in trained)
    moved(model)
    component.after_step(step)
    state = component.state_dict()
    assert all(value.dtype == torch.float32 for value in state.values())
    assert all(not torch.equal(value, start[name]) for name, value in state.items())
    step = make_step(model, batch, [component])
    step.loss().backward()
    assert step.terms["bregman"].mean.isfinite()
    assert step.terms["bregman"].mean > 0


def test_an_evaluation_begins_no_average(tmp_path):
    rows = [{"input_ids": [2, 9, 10, 3], "attention_mask": [1] * 4, "labels": 1}]
    component = Bregman()
    trainer = make_trainer("bert-sequence-classification", tmp_path, [component], eval_rows=rows)
    assert trainer.evaluate()["eval_penalty/bregman"] == 0
    assert component.state_dict() == {}
    trainer.train()
    assert component.state_dict()
    assert trainer.evaluate()["eval_penalty/bregman"] > 0


def test_it_slows_predictions_down(tmp_path):
    """As plain training goes, the model's predictions leave those of a second ago faster."""
    gaps = {}
    for weight in (0.0, 100.0):
        options = {"max_steps": 20, "learning_rate": 3e-3}
        trainer = make_trainer("bert-token-classification", tmp_path, [Bregman(momentum=0.9, weight=weight)], **options)
        trainer.train()
        logged = [entry["penalty/bregman"] for entry in trainer.state.log_history if "penalty/bregman" in entry]
        assert logged[0] == 0
        gaps[weight] = sum(logged)
    assert gaps[100.0] < 0.2 * gaps[0.0]


def test_the_plan_counts_its_pass_and_its_state():
    run = Composition([Bregman()], StockTask())
    plan = make_plan(run, Setting(run.task, run.components, run.objective))
    assert plan.factor == pytest.approx(4 / 3)
    assert "state in checkpoints" in plan.rows[1].needs


def test_momentum_is_below_1():
    with pytest.raises(ValidationError, match="less than 1"):
        Bregman(momentum=1.0)
