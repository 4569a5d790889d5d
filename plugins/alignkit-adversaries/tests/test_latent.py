"""Latent perturbations against an encoder taken apart by hand, and what they leave alone."""

from __future__ import annotations

import contextlib

import pytest
import torch
from alignkit_adversaries import Latent
from alignkit_adversaries.latent import before_answers, layer_at, token_ascent
from alignkit_constraints import Counterfactual, KLReference
from pydantic import ValidationError
from torch.nn.functional import cross_entropy

from alignkit.compose import Composition
from alignkit.errors import UsageError
from alignkit.layers import hidden_layers
from alignkit.models import Peft
from alignkit.models.adapters import adapted
from alignkit.plan import Setting, make_plan
from alignkit.reference import Reference
from alignkit.tasks.stock import StockTask
from alignkit.testing.models import HEADS, tiny
from alignkit.testing.training import gradient, make_rows, stock_task

SPECIAL = (0, 2, 3)


def attack(step):
    losses = []
    for loss in step.context.composition.attack(step):
        loss.backward()
        losses.append(loss.item())
    return losses


def real_tokens(batch):
    ids = batch["input_ids"]
    real = batch["attention_mask"].bool() & ~torch.isin(ids, torch.tensor(SPECIAL))
    return real.view(-1, ids.shape[-1], 1)


class Split:
    """A tiny BERT for token classification, run layer by layer."""

    def __init__(self, model, batch):
        self.model, self.batch = model, batch
        attended = batch["attention_mask"].bool()
        self.mask = attended[:, None, None, :].expand(-1, 1, attended.shape[1], -1)

    def hidden(self, upto, start=0, states=None):
        """States after layers `start` to `upto`, both included."""
        states = self.model.bert.embeddings(self.batch["input_ids"]) if states is None else states
        for layer in self.model.bert.encoder.layer[start : upto + 1]:
            states = layer(states, self.mask)
        return states

    def loss(self, deltas):
        """With `deltas` by layer added to what that layer gives."""
        states = None
        for place in range(len(self.model.bert.encoder.layer)):
            states = self.hidden(place, place, states) + deltas.get(place, 0.0)
        logits = self.model.classifier(states)
        return cross_entropy(logits.flatten(0, 1), self.batch["labels"].flatten())


@pytest.mark.parametrize("clean", [True, False])
@pytest.mark.parametrize("shares", [(0.5,), (0.5, 1.0)])
def test_losses_and_gradients_are_those_of_an_encoder_taken_apart(shares, clean, make_step):
    model, _, batch = tiny("bert-token-classification")
    fields = {"layers": shares, "epsilon": 0.2, "alpha": 0.15, "steps": 3, "clean": clean}
    losses = attack(make_step(model, batch, [Latent(**fields)]))
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    model.zero_grad()
    split, places = Split(model, batch), [layer_at(share, 2) for share in shares]
    norms = {place: split.hidden(place).detach().norm(dim=-1) for place in places}
    deltas = {place: torch.zeros(*batch["input_ids"].shape, 32) for place in places}
    for _ in range(3):
        for delta in deltas.values():
            delta.requires_grad_(True)
        found = torch.autograd.grad(split.loss(deltas), list(deltas.values()))
        for (place, delta), g in zip(list(deltas.items()), found, strict=True):
            moved = delta.detach().clone()
            for row, token in real_tokens(batch).squeeze(-1).nonzero().tolist():
                own, size = g[row, token], norms[place][row, token]
                one = moved[row, token] + 0.15 * size * own / own.norm()
                moved[row, token] = one * min(1.0, float(0.2 * size / one.norm()))
            deltas[place] = moved
    plain, last = split.loss({}), split.loss(deltas)
    torch.testing.assert_close(plain, model(**batch).loss)
    (plain + last if clean else last).backward()
    assert losses == pytest.approx([plain.item(), last.item()] if clean else [last.item()], rel=1e-4)
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(gradients[name], parameter.grad, rtol=1e-3, atol=1e-4, msg=name)


# -- what is perturbed -------------------------------------------------------------------------------------------


def last_perturbation(step, place):
    """[B, T, D]: what the last pass of an attack adds to a layer's output, and that output in the first pass."""
    layer = hidden_layers(step.unwrapped)[place]
    with watched(layer) as outputs:
        attack(step)
    clean, (own, changed) = outputs[0][0], outputs[-1]
    return changed - own, clean


@contextlib.contextmanager
def watched(layer):
    """(output as computed, output as the next layer is given it) of every call: hooks run in the order of their age."""
    outputs: list[list[torch.Tensor]] = []
    handles: list = []

    def states(output):
        return (output[0] if isinstance(output, tuple) else output).detach().clone()

    def computed(_module, _inputs, output):
        outputs.append([states(output)])

    def given(_module, _inputs, output):
        outputs[-1].append(states(output))
        handles.pop().remove()

    def call(module, _inputs):
        handles.append(module.register_forward_hook(given))

    kept = [layer.register_forward_hook(computed), layer.register_forward_pre_hook(call)]
    try:
        yield outputs
    finally:
        for handle in (*kept, *handles):
            handle.remove()


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("peft", [None, "lora"])
def test_on_every_head_real_tokens_move_within_their_own_radius(head, peft, make_step):
    model, _, batch = tiny(head)
    if peft:
        model = adapted(model, stock_task(head), Peft(method="lora", r=4))
    step = make_step(model, batch, [Latent(epsilon=0.1, alpha=0.08, steps=3)])
    delta, clean = last_perturbation(step, 0)
    real = real_tokens(batch)
    lengths = delta.norm(dim=-1, keepdim=True) / clean.norm(dim=-1, keepdim=True)
    assert not lengths[~real].any()
    assert lengths[real].max() <= 0.1 * (1 + 1e-3)
    assert (lengths[real] > 0.05).float().mean() > 0.9


def test_only_the_prompt_is_perturbed_where_that_is_asked_for(make_step):
    model, _, batch = tiny("llama-causal-lm")
    step = make_step(model, batch, [Latent(tokens="prompt")])
    delta, _ = last_perturbation(step, 0)
    touched = delta.any(-1)
    for row, labels in enumerate(batch["labels"].tolist()):
        prompt = next(i for i, label in enumerate(labels) if label != -100)
        assert touched[row, :prompt].all()
        assert not touched[row, prompt:].any()


def test_a_prompt_ends_where_the_first_answer_begins():
    labels = torch.tensor([[-100, -100, 5, -100, 6], [-100] * 5, [5, 6, 7, 8, 9]])
    found = before_answers({"labels": labels}).squeeze(-1)
    assert found.tolist() == [[1, 1, 0, 0, 0], [1, 1, 1, 1, 1], [0, 0, 0, 0, 0]]


def test_virtual_tokens_before_the_text_are_left_alone(make_step):
    head = "bert-token-classification"
    model, _, batch = tiny(head)
    model = adapted(model, stock_task(head), Peft(method="prompt-tuning", num_virtual_tokens=3))
    step = make_step(model, batch, [Latent()])
    step.context.virtual_tokens = 3
    delta, _ = last_perturbation(step, 0)
    assert delta.shape[1] == 3 + batch["input_ids"].shape[1]
    touched = delta.any(-1)
    assert not touched[:, :3].any()
    assert torch.equal(touched[:, 3:], real_tokens(batch).squeeze(-1))


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_a_step_s_length_does_not_depend_on_the_gradient_s(scale):
    generator = torch.Generator().manual_seed(0)
    g = torch.randn(2, 3, 4, 8, generator=generator)
    lengths = torch.rand(2, 3, 4, 1, generator=generator)
    g[0, 0, 0], lengths[1, 1, 1] = 0.0, 0.0
    found = token_ascent(torch.zeros_like(g), scale * g, lengths, alpha=0.3, epsilon=0.5)
    expected = 0.3 * lengths * g / g.norm(dim=-1, keepdim=True).clamp_min(1e-9)
    torch.testing.assert_close(found, expected)
    again = token_ascent(found, scale * g, lengths, alpha=0.3, epsilon=0.5)
    torch.testing.assert_close(again, expected * 0.5 / 0.3)


def test_layers_are_shares_of_any_depth():
    assert [layer_at(share, 12) for share in (0.01, 0.25, 0.5, 1.0)] == [0, 2, 5, 11]
    assert [layer_at(share, 1) for share in (0.5, 1.0)] == [0, 0]
    assert layer_at(0.7, 10) == 6


def test_shares_that_mean_one_layer_perturb_it_once(make_step):
    model, _, batch = tiny("bert-token-classification")
    once, twice = (attack(make_step(model, batch, [Latent(layers=layers)])) for layers in ((0.5,), (0.4, 0.5)))
    assert once == twice


# -- beside other parts ------------------------------------------------------------------------------------------


def test_neither_the_reference_nor_a_view_is_perturbed(make_step):
    """The reference is the model itself without its adapter, and a view's batch may be as large as the step's."""
    head = "bert-token-classification"
    model, _, batch = tiny(head)
    model = adapted(model, stock_task(head), Peft(method="lora", r=4))
    inputs = {**batch, "views": {"counterfactual": {**batch, "rows": torch.arange(8)}}}
    step = make_step(model, inputs, [Latent(clean=False, epsilon=0.3), Counterfactual(lists=["gender"]), KLReference()])
    step.context.reference = Reference.adapter()
    with model.disable_adapter(), torch.no_grad():
        plain = model(**batch).logits
    attack(step)
    torch.testing.assert_close(step.reference_outputs().logits, plain)
    assert step.terms["counterfactual"].mean.item() == pytest.approx(0.0, abs=1e-6)  # as logged: the clean pass

    moved = []
    with step.latent(0, torch.ones(8, batch["input_ids"].shape[1], 32)):
        step.loss()
        moved.append(step.forward().logits)
        moved.append(step.forward(batch=step.views["counterfactual"].batch).logits)
    clean = step.forward().logits
    assert not torch.allclose(moved[0], clean, atol=1e-3)
    torch.testing.assert_close(moved[1], clean)


@pytest.mark.parametrize("head", ["bert-token-classification", "llama-causal-lm", "t5"])
@pytest.mark.parametrize("clean", [True, False])
def test_gradient_checkpointing_changes_nothing(head, clean, tmp_path):
    rows = make_rows(head, 8)
    fields = {"layers": (0.5, 1.0), "clean": clean}
    plain = gradient(head, tmp_path, [Latent(**fields)], rows=rows)
    checkpointed = gradient(head, tmp_path, [Latent(**fields)], rows=rows, gradient_checkpointing=True)
    assert plain.norm() > 0
    torch.testing.assert_close(checkpointed, plain, rtol=1e-4, atol=1e-6)


def test_reentrant_gradient_checkpointing_is_refused(tmp_path):
    options = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": True}}
    with pytest.raises(UsageError, match="do not pass reentrant gradient checkpointing"):
        gradient("bert-token-classification", tmp_path, [Latent()], **options)


def test_it_works_where_everything_below_is_frozen(make_step):
    model, _, batch = tiny("bert-token-classification")
    model.bert.embeddings.requires_grad_(False)
    model.bert.encoder.layer[0].requires_grad_(False)
    clean, last = attack(make_step(model, batch, [Latent()]))
    assert last > clean


def test_a_small_step_raises_the_loss_and_leaves_weights_and_gradients_alone(make_step):
    model, _, batch = tiny("llama-causal-lm")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    step = make_step(model, batch, [Latent(epsilon=0.02, alpha=0.01, clean=False)])
    for loss in step.context.composition.attack(step):
        assert loss > model(**batch).loss
        assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_row_whose_gradient_is_no_number_is_not_moved_and_is_counted(make_step):
    model, _, batch = tiny("bert-sequence-classification")

    def broken(_module, _inputs, output):
        if output.requires_grad:
            output.register_hook(lambda g: torch.where(torch.arange(8)[:, None, None] == 2, float("nan"), g))

    model.bert.encoder.layer[1].register_forward_hook(broken)
    step = make_step(model, batch, [Latent(clean=False, steps=1)])
    delta, _ = last_perturbation(step, 0)
    assert int(step.nonfinite_gradients) == 1
    assert [bool(row.any()) for row in delta] == [i != 2 for i in range(8)]


def test_a_model_without_a_list_of_layers_is_told_so(make_step):
    model, _, batch = tiny("bert-sequence-classification")
    model.config.num_hidden_layers = 7
    with pytest.raises(UsageError, match="BertForSequenceClassification has no list of 7 hidden layers"):
        attack(make_step(model, batch, [Latent()]))


# -- the plan ----------------------------------------------------------------------------------------------------


def planned(component, **setting):
    task = setting.pop("task", StockTask())
    composition = Composition([component], task)
    return make_plan(composition, Setting(task, composition.components, composition.objective, **setting))


def test_the_plan_counts_the_way_back_to_the_lowest_layer():
    assert planned(Latent(steps=1)).factor == 2.0
    assert planned(Latent(layers=(0.5, 1.0))).factor == pytest.approx(2 + 2 * (1 + 0.5 * 1.19) / 3)
    assert planned(Latent(clean=False)).factor == pytest.approx(1 + (1 + 3 * (1 + 0.5 * 1.19)) / 3)


def test_what_cannot_go_together_is_said_before_training():
    with pytest.raises(UsageError, match="gradients of its inner steps are not scaled, and vanish in fp16"):
        planned(Latent(), precision="fp16")
    planned(Latent(steps=1), precision="fp16")
    with pytest.raises(UsageError, match="the task has no prompt that labels follow"):
        planned(Latent(tokens="prompt"))
    planned(Latent(tokens="prompt"), task=StockTask(shifts_labels=True))


@pytest.mark.parametrize(
    "fields", [{"layers": ()}, {"layers": (0.0,)}, {"layers": (1.5,)}, {"epsilon": 0.0}, {"steps": 0}]
)
def test_fields_are_checked(fields):
    with pytest.raises(ValidationError, match=r"no layer is named|greater than 0|less than or equal to 1"):
        Latent(**fields)
