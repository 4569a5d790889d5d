"""R-Drop's divergence against torch's own, its passes on tiny models, and what it leaves alone."""

from __future__ import annotations

import json

import pytest
import torch
from alignkit_constraints import RDrop
from alignkit_constraints.r_drop import bidirectional_kl
from torch.distributions import Categorical, kl_divergence
from torch.nn.functional import kl_div

from alignkit.compose import Composition
from alignkit.models import facts
from alignkit.plan import Setting, make_plan
from alignkit.preflight import plan_of
from alignkit.recipe import Recipe
from alignkit.tasks.chat import Chat
from alignkit.tasks.stock import StockTask
from alignkit.testing.models import tiny
from alignkit.testing.run_cases import base_model
from alignkit.testing.training import make_trainer, random_state, trained_weights

HEADS = ["bert-sequence-classification", "bert-token-classification", "llama-causal-lm", "t5", "bert-multiple-choice"]


def test_the_divergence_is_the_mean_of_both_directions():
    generator = torch.Generator().manual_seed(0)
    a, b = (Categorical(logits=torch.randn(7, 5, generator=generator, dtype=torch.float64)) for _ in range(2))
    expected = (kl_divergence(a, b) + kl_divergence(b, a)) / 2
    torch.testing.assert_close(bidirectional_kl(a.logits, b.logits), expected)


def scored(logits, labels, head):
    if head == "llama-causal-lm":
        logits, labels = logits[:, :-1], labels[:, 1:]
    return logits[labels != -100] if logits.dim() == 3 else logits


@pytest.mark.parametrize("head", HEADS)
def test_the_penalty_is_that_of_the_two_passes_that_were_made_and_both_have_its_gradient(head, make_step):
    model, _, batch = tiny(head, dropout=0.3)
    logits = []

    def keep(_module, _inputs, outputs):
        outputs.logits.retain_grad()
        logits.append(outputs.logits)

    model.register_forward_hook(keep)
    step = make_step(model, batch, [RDrop(weight=1e4)])
    step.loss().backward()
    assert len(logits) == 2
    log_p, log_q = (scored(one.detach(), batch["labels"], head).log_softmax(-1) for one in logits)
    both = kl_div(log_q, log_p, log_target=True, reduction="batchmean")
    both = (both + kl_div(log_p, log_q, log_target=True, reduction="batchmean")) / 2
    term = step.terms["r-drop"]
    assert term.mean.item() == pytest.approx(both.item(), rel=1e-3)
    assert term.mean > 1e-4
    p, q = log_p.exp(), log_q.exp()
    kl_pq, kl_qp = (p * (log_p - log_q)).sum(-1, keepdim=True), (q * (log_q - log_p)).sum(-1, keepdim=True)
    # d/d logits of (KL(p || q) + KL(q || p)) / 2: forward KL's gradient p - q, reverse KL's p (log p/q - KL)
    expected = (q * (log_q - log_p - kl_qp) + q - p) / 2 / len(q)
    torch.testing.assert_close(scored(logits[1].grad, batch["labels"], head), 1e4 * expected, rtol=1e-2, atol=1e-2)
    assert kl_pq.ge(0).all()
    assert logits[0].grad.abs().max() > 1


def test_in_evaluation_nothing_is_dropped_and_nothing_is_paid(make_step):
    model, _, batch = tiny("bert-token-classification", dropout=0.5)
    calls = []
    model.eval().register_forward_hook(lambda *_: calls.append(1))
    step = make_step(model, batch, [RDrop(weight=7.0)])
    with torch.no_grad():
        loss = step.loss()
    assert len(calls) == 1
    assert step.terms["r-drop"].mean == 0
    torch.testing.assert_close(loss, step.terms["objective"].mean, check_stride=False)


def test_each_pass_of_a_step_is_compared_with_masks_of_its_own(make_step):
    model, _, batch = tiny("bert-sequence-classification", dropout=0.3)
    logits = []
    model.register_forward_hook(lambda _module, _inputs, outputs: logits.append(outputs.logits.detach()))
    step = make_step(model, batch, [RDrop()])
    step.loss()
    step.loss(step.zeros())
    assert torch.equal(logits[0], logits[2])
    assert not torch.equal(logits[0], logits[1])
    assert not torch.equal(logits[1], logits[3])
    again = make_step(model, batch, [RDrop()])
    torch.manual_seed(99)
    again.loss()
    assert torch.equal(logits[5], logits[1])  # seeded by step and component, not by the global generators


def test_at_weight_0_training_is_the_plain_one_to_the_bit(tmp_path):
    weights, states = [], []
    for components in ([], [RDrop(weight=0.0)]):
        trainer = make_trainer("bert-token-classification", tmp_path, components, dropout=0.3, max_steps=3)
        torch.manual_seed(4)
        trainer.train()
        weights.append(trained_weights(trainer))
        states.append(random_state()[-1])
    assert torch.equal(*weights)
    assert states[0] == states[1]


def test_training_brings_the_passes_together(tmp_path):
    options = {"dropout": 0.2, "max_steps": 40, "learning_rate": 3e-3}
    gaps = {}
    for weight in (0.0, 30.0):
        trainer = make_trainer("bert-sequence-classification", tmp_path, [RDrop(weight=weight)], **options)
        torch.manual_seed(1)
        trainer.train()
        logged = [entry["penalty/r-drop"] for entry in trainer.state.log_history if "penalty/r-drop" in entry]
        gaps[weight] = sum(logged[-10:])
    assert gaps[30.0] < 0.5 * gaps[0.0]


# -- models without dropout --------------------------------------------------------------------------------------

NOTE = (
    "r-drop will be 0: the model has no dropout, so that its two passes are the same; set `head: {attention_dropout: "
    "0.1}` (a field of its config) or `peft: {method: lora, dropout: 0.1}`, or take it out"
)


@pytest.mark.parametrize(("dropout", "notes"), [(False, [NOTE]), (True, []), (None, [])])
def test_the_plan_says_what_is_known_of_dropout(dropout, notes):
    run = Composition([RDrop()], StockTask())
    plan = make_plan(run, Setting(run.task, run.components, run.objective, dropout=dropout))
    assert plan.notes == notes
    assert plan.factor == pytest.approx(2.0)


@pytest.mark.parametrize(
    ("dropout", "parts", "notes"),
    [
        (0.0, {}, [NOTE]),
        (0.0, {"peft": "lora"}, [NOTE]),
        (0.0, {"peft": {"method": "lora", "dropout": 0.1}}, []),
        (0.0, {"head": {"attention_dropout": 0.1}}, []),
        (0.1, {}, []),
    ],
)
def test_a_recipe_is_looked_through_for_dropout(dropout, parts, notes, tmp_path):
    model = base_model(tmp_path / "base", "AutoModelForCausalLM", dropout=dropout)
    (tmp_path / "rows.jsonl").write_text(json.dumps({"prompt": "hi", "completion": "ok"}), encoding="utf-8")
    recipe = Recipe(
        base=tmp_path, model=str(model), task="chat", data={"train": "rows.jsonl"}, constraints=["r-drop"], **parts
    )
    assert plan_of(recipe)[1].notes == notes


def test_a_config_that_gives_no_dropout_says_nothing_of_it(tmp_path):
    folder = base_model(tmp_path / "base", "AutoModelForCausalLM")
    assert facts(folder, Chat()).dropout is False
    config = json.loads((folder / "config.json").read_text("utf-8"))
    kept = {name: value for name, value in config.items() if "drop" not in name}
    (folder / "config.json").write_text(json.dumps(kept), encoding="utf-8")
    assert facts(folder, Chat()).dropout is None
