"""The divergences against closed forms and torch.distributions; the constraint on tiny models."""

from __future__ import annotations

import itertools
import json
import math

import pytest
import torch
from alignkit_constraints import KLReference
from alignkit_constraints.kl_reference import all_tokens
from alignkit_preference import Preference
from torch.distributions import Bernoulli, Categorical, kl_divergence

import alignkit
from alignkit.compose import Composition
from alignkit.divergence import jensen_shannon, kl, reference_divergence
from alignkit.errors import UsageError
from alignkit.plan import Setting
from alignkit.tasks.causal_lm import CausalLm
from alignkit.tasks.chat import Chat
from alignkit.tasks.dialogue import Dialogue
from alignkit.tasks.extractive_qa import ExtractiveQa
from alignkit.tasks.masked_lm import MaskedLm
from alignkit.tasks.multiple_choice import MultipleChoice
from alignkit.tasks.ner import Ner
from alignkit.tasks.prompted_classification import PromptedClassification
from alignkit.tasks.stock import StockTask
from alignkit.tasks.text_classification import TextClassification
from alignkit.testing import ConstraintCases
from alignkit.testing.models import collate, examples, tiny
from alignkit.testing.training import make_rows


def logits(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def entropy(p: torch.Tensor) -> torch.Tensor:
    return -(p * p.log()).sum(-1)


def test_kl_is_that_of_torch_distributions():
    a, b = logits(7, 11), logits(7, 11, seed=1)
    expected = kl_divergence(Categorical(logits=a), Categorical(logits=b))
    torch.testing.assert_close(kl(a.log_softmax(-1), b.log_softmax(-1)), expected)


def test_kl_adds_up_over_independent_labels():
    a, b = logits(5, 3), logits(5, 3, seed=1)
    expected = kl_divergence(Bernoulli(logits=a), Bernoulli(logits=b)).sum(-1)

    def pairs(x):
        return torch.stack([x, -x], -1).sigmoid().log()

    torch.testing.assert_close(kl(pairs(a), pairs(b)), expected)


def test_kl_of_two_coins():
    p, q = torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.25, 0.75]]).log()
    assert kl(p, q).item() == pytest.approx(0.5 * math.log(4 / 3))
    assert kl(q, p).item() == pytest.approx(0.25 * math.log(0.5) + 0.75 * math.log(1.5))


def test_jensen_shannon_is_the_entropy_gained_by_mixing_and_at_most_ln_2():
    p, q = logits(6, 9).softmax(-1), logits(6, 9, seed=1).softmax(-1)
    expected = entropy((p + q) / 2) - (entropy(p) + entropy(q)) / 2
    torch.testing.assert_close(jensen_shannon(p.log(), q.log()), expected)
    torch.testing.assert_close(jensen_shannon(q.log(), p.log()), expected)
    apart = torch.tensor([[60.0, 0.0], [0.0, 60.0]]).log_softmax(-1)
    assert jensen_shannon(apart[:1], apart[1:]).item() == pytest.approx(math.log(2))


def test_directions_are_named_from_the_reference():
    theta, reference = logits(4, 5), logits(4, 5, seed=1)
    p, q = Categorical(logits=theta), Categorical(logits=reference)
    log_theta, log_reference = theta.log_softmax(-1), reference.log_softmax(-1)
    forward = reference_divergence(log_theta, log_reference, "forward")
    reverse = reference_divergence(log_theta, log_reference, "reverse")
    torch.testing.assert_close(forward, kl_divergence(q, p))
    torch.testing.assert_close(reverse, kl_divergence(p, q))


def expected_gradient(estimator, theta: torch.Tensor, log_reference: torch.Tensor) -> torch.Tensor:
    """E over samples of the model, taken exactly, of an estimator's gradient; no gradient through the sampling."""
    leaf = theta.clone().requires_grad_(True)
    log_theta = leaf.log_softmax(-1)
    log_ratio = log_reference - log_theta
    return torch.autograd.grad((log_theta.exp().detach() * estimator(log_ratio)).sum(), leaf)[0]


def test_gradients_against_the_sampled_estimators():
    """k1 has no gradient in expectation, k2 reverse KL's, k3 forward KL's: the exact directions must agree."""
    theta, log_reference = logits(4, 6), logits(4, 6, seed=1).log_softmax(-1)

    def exact(direction):
        leaf = theta.clone().requires_grad_(True)
        return torch.autograd.grad(reference_divergence(leaf.log_softmax(-1), log_reference, direction).sum(), leaf)[0]

    k1 = expected_gradient(lambda r: -r, theta, log_reference)
    k2 = expected_gradient(lambda r: r.square() / 2, theta, log_reference)
    k3 = expected_gradient(lambda r: r.exp() - 1 - r, theta, log_reference)
    torch.testing.assert_close(k1, torch.zeros_like(k1), atol=1e-12, rtol=0)
    torch.testing.assert_close(exact("reverse"), k2)
    torch.testing.assert_close(exact("forward"), k3)
    torch.testing.assert_close(exact("forward"), theta.softmax(-1) - log_reference.exp())


@pytest.mark.parametrize("head", ["bert-sequence-classification", "bert-token-classification", "llama-causal-lm"])
@pytest.mark.parametrize("direction", ["forward", "reverse", "js"])
def test_the_penalty_is_zero_at_the_reference_and_the_mean_over_scored_positions_elsewhere(head, direction, make_step):
    model, _, batch = tiny(head)
    other = tiny(head, seed=1)[0]
    constraint = KLReference(direction=direction)

    same = make_step(model, batch, [constraint], reference=tiny(head)[0])
    same.loss()
    assert same.terms["kl-reference"].mean.item() == pytest.approx(0.0, abs=1e-6)

    step = make_step(model, batch, [constraint], reference=other)
    step.loss()
    labels = batch["labels"]
    with torch.no_grad():
        theta, reference = model(**batch).logits, other(**batch).logits
    if head == "llama-causal-lm":
        theta, reference, labels = theta[:, :-1], reference[:, :-1], labels[:, 1:]
    if labels.dim() == 2:
        theta, reference = theta[labels != -100], reference[labels != -100]
    p, q = Categorical(logits=theta.double()), Categorical(logits=reference.double())
    mixed = Categorical(probs=(p.probs + q.probs) / 2)
    expected = {
        "forward": kl_divergence(q, p),
        "reverse": kl_divergence(p, q),
        "js": mixed.entropy() - (p.entropy() + q.entropy()) / 2,
    }[direction]
    assert step.terms["kl-reference"].mean.item() == pytest.approx(expected.mean().item(), rel=1e-4)
    assert step.terms["kl-reference"].count == len(expected)


@pytest.mark.parametrize("head", ["bert-sequence-classification", "bert-token-classification", "llama-causal-lm"])
def test_four_batches_of_two_rows_give_the_gradient_of_one_of_eight(head, make_step):
    from alignkit.testing.models import collate, examples

    model, reference, rows = tiny(head)[0], tiny(head, seed=1)[0], examples(head, 8)
    constraint = KLReference(weight=3.0)

    def gradient(batches):
        steps = [make_step(model, collate(head, part), [constraint], reference=reference) for part in batches]
        window = {name: sum(step.counts[name] for step in steps) for name in steps[0].counts}
        model.zero_grad()
        for step in steps:
            step.window = window
            step.loss().backward()
        return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])

    whole, parts = gradient([rows]), gradient([rows[i : i + 2] for i in range(0, 8, 2)])
    assert (parts.norm() / whole.norm()).item() == pytest.approx(1.0, abs=1e-4)
    assert torch.cosine_similarity(parts, whole, dim=0).item() > 0.9999


def test_the_reference_gets_no_gradient_and_is_asked_once(make_step):
    model, _, batch = tiny("bert-token-classification")
    reference = tiny("bert-token-classification", seed=1)[0]
    calls = []
    reference.register_forward_hook(lambda *_: calls.append(1))
    step = make_step(model, batch, [KLReference()], reference=reference)
    step.loss().backward()
    step.loss(step.zeros()).backward()
    assert len(calls) == 1
    assert all(p.grad is None for p in reference.parameters())


@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_gradients_for_the_logits_are_those_of_the_closed_forms(direction):
    """Forward: p_theta - p_ref. Reverse: p_theta (log p_theta / p_ref - KL)."""
    theta, log_reference = logits(4, 6).requires_grad_(), logits(4, 6, seed=1).log_softmax(-1)
    reference_divergence(theta.log_softmax(-1), log_reference, direction).sum().backward()
    p, q = theta.detach().softmax(-1), log_reference.exp()
    ratio = p.log() - log_reference
    reverse = p * (ratio - (p * ratio).sum(-1, keepdim=True))
    torch.testing.assert_close(theta.grad, p - q if direction == "forward" else reverse)


# -- on all tokens -----------------------------------------------------------------------------------------------


def on_every_token(model, reference, rows, head):
    """One row at a time, unpadded: KL(p_ref || p_theta) where a token is predicted, [N]."""
    found = []
    for row in rows:
        with torch.no_grad():
            p, q = (m(**collate(head, [row])).logits.double()[0] for m in (model, reference))
        p, q = (p[:-1], q[:-1]) if head == "llama-causal-lm" else (p[1:], q[1:])
        found.append(kl_divergence(Categorical(logits=q), Categorical(logits=p)))
    return torch.cat(found)


@pytest.mark.parametrize("head", ["llama-causal-lm", "bert-masked-lm"])
def test_on_all_tokens_prompts_count_and_padding_does_not(head, make_step):
    model, reference, rows = tiny(head)[0], tiny(head, seed=1)[0], examples(head, 8)
    step = make_step(model, collate(head, rows), [KLReference(on="all")], reference=reference)
    step.loss()
    expected = on_every_token(model, reference, rows, head)
    term = step.terms["kl-reference"]
    assert term.count == len(expected) == sum(len(row["input_ids"]) - 1 for row in rows)
    assert term.count > step.counts["token"]
    assert term.per == "kl-reference"
    assert term.mean.item() == pytest.approx(expected.mean().item(), rel=1e-4)


def test_on_all_tokens_the_reference_is_asked_once_per_step(make_step):
    head = "llama-causal-lm"
    model, reference, batch = tiny(head)[0], tiny(head, seed=1)[0], collate(head, examples(head, 4))
    calls, constraint = [], KLReference(on="all")
    reference.register_forward_hook(lambda *_: calls.append(1))
    for _ in range(2):
        step = make_step(model, dict(batch), [constraint], reference=reference)
        step.loss().backward()
        step.loss(step.zeros()).backward()
    assert len(calls) == 2


def test_padding_on_the_left_is_not_what_a_first_token_is_predicted_from():
    batch = {"input_ids": torch.tensor([[0, 0, 7, 8], [5, 6, 7, 9]])}
    batch["attention_mask"] = (batch["input_ids"] != 0).long()
    assert all_tokens(batch).tolist() == [[-100, -100, -100, 8], [-100, 6, 7, 9]]


def test_in_packed_rows_no_text_begins_after_another():
    from alignkit.tasks.packing import separating_mask

    positions, real = torch.tensor([[0, 1, 2, 0, 1, 0, 0]]), torch.tensor([[1, 1, 1, 1, 1, 1, 0]])
    mask = separating_mask(positions, real, causal=True)
    batch = {"input_ids": torch.tensor([[4, 5, 6, 7, 8, 9, 0]]), "position_ids": positions, "attention_mask": mask}
    assert all_tokens(batch).tolist() == [[-100, 5, 6, -100, 8, -100, -100]]


def check_all(task):
    constraint = KLReference(on="all")
    run = Composition([constraint], task)
    return [str(mistake) for mistake in constraint.check(Setting(task, run.components, run.objective))]


def test_on_all_is_refused_where_a_task_does_not_predict_each_token():
    refused = [Ner(), TextClassification(), ExtractiveQa(), MultipleChoice(), StockTask()]
    for task in refused:
        (mistake,) = check_all(task)
        assert mistake == (
            f"constraint kl-reference: `on: all`, where task {task.name} does not predict each token of a text; "
            "expected a task of language models; set `on: scored`"
        )
    for task in (Chat(), Dialogue(), CausalLm(), MaskedLm(), PromptedClassification(), StockTask(shifts_labels=True)):
        assert check_all(task) == []
    assert KLReference().counts(collate("llama-causal-lm", examples("llama-causal-lm"))) == {}


# -- on marked rows ----------------------------------------------------------------------------------------------

MARKS = ["yes", "", None, "no", 1, False, "true", 0.0]
MARKED = (0, 4, 6)


def divergences(model, reference, batch):
    """KL(p_ref || p_theta) at each scored position of a batch, by torch's own distributions."""
    with torch.no_grad():
        p, q = model(**batch), reference(**batch)
    if "start_positions" in batch:
        both = zip((p.start_logits, p.end_logits), (q.start_logits, q.end_logits), strict=True)
        return sum(kl_divergence(Categorical(logits=b.double()), Categorical(logits=a.double())) for a, b in both)
    p, q, labels = p.logits.double(), q.logits.double(), batch["labels"]
    if type(model).__name__.endswith("CausalLM"):
        p, q, labels = p[:, :-1], q[:, :-1], labels[:, 1:]
    if labels.dim() == 2:
        p, q = p[labels != -100], q[labels != -100]
    return kl_divergence(Categorical(logits=q), Categorical(logits=p))


HEADS = [
    "bert-sequence-classification",
    "bert-token-classification",
    "llama-causal-lm",
    "t5",
    "bert-question-answering",
    "bert-multiple-choice",
]


@pytest.mark.parametrize("head", HEADS)
def test_the_penalty_is_the_mean_over_the_marked_rows(head, make_step):
    model, reference, rows = tiny(head)[0], tiny(head, seed=1)[0], examples(head, 8)
    inputs = {**collate(head, rows), "columns": {"benign": MARKS}}
    step = make_step(model, inputs, [KLReference(marked="benign")], reference=reference)
    step.loss()
    alone = [collate(head, [rows[i]]) for i in MARKED]  # each by itself, unpadded
    expected = torch.cat([divergences(model, reference, row) for row in alone])
    term = step.terms["kl-reference"]
    assert term.count == len(expected)
    assert term.mean.item() == pytest.approx(expected.mean().item(), rel=1e-4, abs=1e-7)


def test_a_collator_that_labels_the_first_token_too_counts_what_is_predicted(make_step):
    head = "llama-causal-lm"
    model, reference, batch = tiny(head)[0], tiny(head, seed=1)[0], dict(collate(head, examples(head, 8)))
    batch["labels"] = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    step = make_step(
        model, {**batch, "columns": {"benign": MARKS}}, [KLReference(marked="benign")], reference=reference
    )
    step.loss()
    expected = divergences(model, reference, {name: values[list(MARKED)] for name, values in batch.items()})
    assert step.terms["kl-reference"].count == len(expected)
    assert step.terms["kl-reference"].mean.item() == pytest.approx(expected.mean().item(), rel=1e-4)


@pytest.mark.parametrize("head", ["llama-causal-lm", "bert-masked-lm"])
def test_on_all_tokens_of_the_marked_rows(head, make_step):
    model, reference, rows = tiny(head)[0], tiny(head, seed=1)[0], examples(head, 8)
    inputs = {**collate(head, rows), "columns": {"benign": MARKS}}
    step = make_step(model, inputs, [KLReference(marked="benign", on="all")], reference=reference)
    step.loss()
    expected = on_every_token(model, reference, [rows[i] for i in MARKED], head)
    assert step.terms["kl-reference"].count == len(expected)
    assert step.terms["kl-reference"].mean.item() == pytest.approx(expected.mean().item(), rel=1e-4)


@pytest.mark.parametrize("on", ["scored", "all"])
def test_without_a_marked_row_there_is_no_penalty_and_the_reference_is_not_asked(on, make_step):
    head = "llama-causal-lm"
    model, reference, calls = tiny(head)[0], tiny(head, seed=1)[0], []
    reference.register_forward_hook(lambda *_: calls.append(1))
    inputs = {**collate(head, examples(head, 4)), "columns": {"benign": ["no"] * 4}}
    step = make_step(model, inputs, [KLReference(marked="benign", on=on, weight=100.0)], reference=reference)
    loss = step.loss()
    assert step.terms["kl-reference"].count == 0
    assert loss.item() == step.terms["objective"].mean.item()
    assert calls == []


def test_a_batch_without_the_column_is_refused_in_training_and_not_measured_in_validation(make_step):
    head = "llama-causal-lm"
    model, reference, batch = tiny(head)[0], tiny(head, seed=1)[0], collate(head, examples(head, 4))
    with pytest.raises(UsageError, match="the data has no column 'benign', which a component reads"):
        make_step(model.train(), batch, [KLReference(marked="benign")], reference=reference).loss()
    step = make_step(model.eval(), batch, [KLReference(marked="benign")], reference=reference)
    step.loss()
    assert step.terms["kl-reference"].count == 0


def test_rows_of_another_batch_are_not_taken_for_the_marked_ones(make_step):
    head = "llama-causal-lm"
    model, reference = tiny(head)[0], tiny(head, seed=1)[0]
    inputs = {**collate(head, examples(head, 8)), "columns": {"benign": MARKS}}
    step = make_step(model, inputs, [KLReference(marked="benign")], reference=reference)
    step.loss(batch=collate(head, examples(head, 2, seed=5)))
    assert step.terms["kl-reference"].count == 0
    other = {**step.batch, "input_ids": step.batch["input_ids"].flip(1)}  # the same rows with other tokens
    assert step.loss(batch=other).isfinite()


def test_refused_where_no_row_is_marked():
    constraint = KLReference(marked="harmles")
    run, rows = Composition([constraint], Chat()), [Chat().parse({"prompt": "a", "completion": "b", "harmless": 1}, "")]
    setting = Setting(run.task, run.components, run.objective, examples=rows)
    (mistake,) = constraint.check(setting)
    assert str(mistake) == (
        "constraint kl-reference: no training row says yes in the column 'harmles', so that it would apply to none; "
        "expected rows that do; did you mean 'harmless'?; map it with `columns: {harmles: …}`"
    )
    assert list(KLReference(marked="harmless").check(setting)) == []


class TestMarkedRows(ConstraintCases):
    """Logged, weighed, accumulated, resumed and trained beside LoRA, on every second row."""

    heads = ("llama-causal-lm", "bert-token-classification", "t5")

    @pytest.fixture
    def component(self):
        return KLReference(marked="benign")

    def rows(self, head, number, component):
        return [{**row, "benign": i % 2} for i, row in enumerate(make_rows(head, number))]


@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("task", [Chat, Preference])
def test_a_budget_hears_of_marked_rows_alone(task, cached, tmp_path, monkeypatch):
    """Under LoRA, the rows marked by a filter, one per step."""
    monkeypatch.setenv("ALIGNKIT_CACHE", str(tmp_path / "cache"))
    for part in tiny("llama-causal-lm")[:2]:
        part.save_pretrained(tmp_path / "base")
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in task.samples), "utf-8")
    recipe = alignkit.Recipe(
        base=tmp_path,
        model="base",
        task=task.__name__.lower(),
        data={"train": "rows.jsonl"},
        filters=[{"use": "lexicon", "words": ["where"], "of": "inputs", "action": "flag", "column": "benign"}],
        constraints=[{"use": "kl-reference", "marked": "benign", "weight": {"use": "budget", "limit": 0.05}}],
        peft="lora",
        cache_hidden_states=cached,
        training={"max_steps": 12, "per_device_train_batch_size": 1, "learning_rate": 1e-2, "logging_steps": 1},
        output="run",
    )
    run = alignkit.train(recipe)
    state = json.loads(next((run.path / "checkpoints").glob("*/trainer_state.json")).read_text("utf-8"))
    logged = [entry for entry in state["log_history"] if "loss" in entry]
    marked = sum("where" in row["prompt"] for row in task.samples)
    assert 0 < marked < len(task.samples)
    with_penalty = ["penalty/kl-reference" in entry for entry in logged]
    assert sum(with_penalty) == 2 * marked  # two epochs
    weights = [entry["weight/kl-reference"] for entry in logged]  # what the step was taken with
    moved = [before != after for before, after in itertools.pairwise(weights)]
    assert any(moved)
    assert not any(moved and not heard for moved, heard in zip(moved, with_penalty[:-1], strict=True))
