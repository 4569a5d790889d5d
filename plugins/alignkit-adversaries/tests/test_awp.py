"""AWP against a closed form, and against a copy of the model whose weights were moved."""

from __future__ import annotations

import copy

import numpy
import pytest
import torch
from alignkit_adversaries import AWP
from alignkit_adversaries.awp import weight_perturbation
from pydantic import ValidationError

from alignkit.compose import Composition
from alignkit.errors import UsageError
from alignkit.plan import Setting, make_plan
from alignkit.tasks.stock import StockTask
from alignkit.testing import gradient, make_rows, make_trainer, tiny
from alignkit.testing.training import short_collections

HEADS = ["bert-sequence-classification", "llama-causal-lm", "t5", "bert-multiple-choice"]


def closed_form(weight, g, alpha, epsilon):
    weight, g = weight.detach().double().numpy(), g.double().numpy()
    norm = numpy.linalg.norm(g)
    v = alpha * g / norm * numpy.linalg.norm(weight) if norm else numpy.zeros_like(g)
    return torch.tensor(numpy.clip(v, -epsilon * numpy.abs(weight), epsilon * numpy.abs(weight))).float()


@pytest.mark.parametrize(("alpha", "epsilon"), [(0.005, 0.2), (1.0, 0.01), (0.1, 1e9)])
@pytest.mark.parametrize("scale", [1e-25, 1.0, 1e20])
def test_a_perturbation_is_that_of_the_closed_form(alpha, epsilon, scale):
    generator = torch.Generator().manual_seed(0)
    weight, g = torch.randn(7, 5, generator=generator), torch.randn(7, 5, generator=generator)
    found = weight_perturbation(weight, g * scale, alpha, epsilon)
    torch.testing.assert_close(found, closed_form(weight, g, alpha, epsilon))
    assert (found.abs() <= epsilon * weight.abs() * (1 + 1e-6)).all()
    assert found.norm() <= alpha * weight.norm() * (1 + 1e-6)


def test_a_weight_or_a_gradient_of_zero_is_not_moved():
    assert weight_perturbation(torch.zeros(3, 2), torch.ones(3, 2), 1.0, 0.5).count_nonzero() == 0
    assert weight_perturbation(torch.ones(3, 2), torch.zeros(3, 2), 1.0, 0.5).count_nonzero() == 0


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize(
    "fields", [{"alpha": 0.05, "epsilon": 0.2}, {"alpha": 1.0, "epsilon": 0.02}], ids=["paper", "text"]
)
def test_the_gradient_is_that_at_the_moved_weights(head, fields, make_step, losses_of):
    model, _, batch = tiny(head)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    step = make_step(model, batch, [AWP(start=0, **fields)])
    (found,) = losses_of(step)
    assert all(torch.equal(before[name], p) for name, p in model.named_parameters())

    other = copy.deepcopy(model)
    other.zero_grad()
    clean = other(**batch).loss
    clean.backward()
    with torch.no_grad():
        for p in other.parameters():
            if p.ndim >= 2:
                p += closed_form(p, p.grad, fields["alpha"], fields.get("epsilon", 0.2))
    other.zero_grad()
    moved = other(**batch).loss
    moved.backward()
    assert found == pytest.approx(moved.item(), rel=1e-4)
    assert found > clean.item()
    assert step.total == pytest.approx(clean.item(), rel=1e-5)
    for (name, p), q in zip(model.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-3, atol=1e-5, msg=name)


def test_only_matrices_that_are_trained_move(make_step):
    model, _, batch = tiny("bert-token-classification")
    model.get_input_embeddings().requires_grad_(False)
    step = make_step(model, batch, [AWP(alpha=0.1, start=0)])
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for _ in step.context.composition.attack(step):
        moved = {name for name, p in model.named_parameters() if not torch.equal(before[name], p)}
    trained = {name for name, p in model.named_parameters() if p.requires_grad and p.ndim >= 2}
    assert moved == {name for name in trained if before[name].norm() > 0}
    assert "bert.embeddings.word_embeddings.weight" not in moved
    assert not any(name.endswith("bias") or "LayerNorm" in name for name in moved)


def test_before_its_start_it_trains_plainly(make_step, losses_of):
    model, _, batch = tiny("bert-token-classification")
    plain = model(**batch).loss.item()
    step = make_step(model, batch, [AWP(alpha=0.1, start=0.5)])
    assert losses_of(step) == pytest.approx([plain])
    step.progress, step.total = 0.5, None
    assert losses_of(step)[0] > plain + 1e-3


def test_it_begins_after_its_share_of_the_training(tmp_path, monkeypatch):
    perturbed = []
    monkeypatch.setattr(AWP, "_changes", lambda self, step: perturbed.append(step.index) or {})
    with short_collections():
        make_trainer("bert-token-classification", tmp_path, [AWP(start=0.5)], max_steps=6).train()
    assert perturbed == [3, 4, 5]


def test_a_gradient_that_is_not_finite_moves_nothing_and_is_counted(logistic, make_step):
    logistic.model.broken = 1
    step = make_step(logistic.model, logistic.batch, [AWP(alpha=0.1, start=0)])
    before = {name: p.detach().clone() for name, p in logistic.model.named_parameters()}
    losses = step.context.composition.attack(step)
    assert next(losses).item() == pytest.approx(logistic.loss(), rel=1e-5)
    assert all(torch.equal(before[name], p) for name, p in logistic.model.named_parameters())
    assert step.nonfinite_gradients == 3
    losses.close()


@pytest.mark.parametrize("outer", [True, False], ids=["outer-autocast", "inner-autocast"])
def test_bf16_sees_the_moved_weights(outer, make_step, losses_of):
    """Autocast keeps the weights that it has cast, those of before the move, too."""
    model, _, batch = tiny("bert-token-classification")
    plain = model(**batch).loss.item()
    step = make_step(model, batch, [AWP(alpha=0.1, start=0)])
    (fp32,) = losses_of(step)
    autocast = torch.autocast("cpu", dtype=torch.bfloat16)
    if not outer:
        model.forward = autocast(model.forward)
    step = make_step(model, batch, [AWP(alpha=0.1, start=0)])
    with autocast if outer else torch.autocast("cpu", enabled=False):
        (loss,) = [loss.item() for loss in step.context.composition.attack(step)]
    assert loss - plain == pytest.approx(fp32 - plain, rel=0.1)


def test_accumulated_micro_batches_move_the_weights_each_its_own_way(tmp_path):
    head, found = "bert-token-classification", {}
    with short_collections():
        for alpha in (1e-6, 0.02):
            one = gradient(head, tmp_path, [AWP(alpha=alpha, start=0)], rows=make_rows(head, 8))
            micro = {"rows": make_rows(head, 8), "size": 2, "accumulation": 4}
            four = gradient(head, tmp_path, [AWP(alpha=alpha, start=0)], **micro)
            found[alpha] = float((one - four).norm() / one.norm())
    assert found[1e-6] < 1e-3 < 0.05 < found[0.02]


def test_what_its_own_gradient_cannot_go_with_is_refused():
    composition = Composition([AWP(start=0)], StockTask())
    parts = (composition.task, composition.components, composition.objective)
    with pytest.raises(UsageError, match="is not scaled, and vanishes in fp16; expected bf16 or fp32"):
        make_plan(composition, Setting(*parts, precision="fp16"))
    with pytest.raises(UsageError, match="does not pass reentrant gradient checkpointing"):
        make_plan(composition, Setting(*parts, reentrant_checkpointing=True))
    plan = make_plan(composition, Setting(*parts, precision="bf16", accumulation=2))
    assert plan.factor == pytest.approx(2 + 1 / 3)
    assert any("depends on which rows share a batch" in note for note in plan.notes)
    composition = Composition([AWP(start=0.25)], StockTask())
    plan = make_plan(composition, Setting(composition.task, composition.components, composition.objective))
    assert plan.factor == pytest.approx(1 + 0.75 * 4 / 3)


def test_a_training_that_ends_before_it_begins_is_refused():
    composition = Composition([AWP(start=0.76)], StockTask())
    parts = (composition.task, composition.components, composition.objective)
    with pytest.raises(UsageError) as e:
        make_plan(composition, Setting(*parts, steps=4))
    assert str(e.value) == (
        "adversary awp: it begins after 0.76 of the training, when none of its 4 steps is left; "
        "expected `start` at most 0.75; lower `start`, or raise `training.max_steps`"
    )
    make_plan(composition, Setting(*parts, steps=5))
    make_plan(composition, Setting(*parts))
    composition = Composition([AWP(start=0.75)], StockTask())
    make_plan(composition, Setting(composition.task, composition.components, composition.objective, steps=4))


def test_non_finite_gradients_are_logged(tmp_path):
    with short_collections():
        trainer = make_trainer("bert-token-classification", tmp_path, [AWP()])
        made = trainer._next_step

        def counted(*arguments):
            step = made(*arguments)
            step.nonfinite_gradients = torch.tensor(2)
            return step

        trainer._next_step = counted
        trainer.train()
    assert [e["nonfinite_gradients"] for e in trainer.state.log_history if "loss" in e] == [2.0, 2.0]


@pytest.mark.parametrize("fields", [{"alpha": 0}, {"epsilon": 0}, {"start": -1}, {"start": 1.0}])
def test_fields_are_in_range(fields):
    with pytest.raises(ValidationError, match=r"greater than|less than 1"):
        AWP(**fields)
