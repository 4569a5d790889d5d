"""The missing entropy against torch.distributions and closed forms; the constraint on tiny models."""

from __future__ import annotations

import math

import pytest
import torch
from alignkit_constraints import Budget, Confidence
from alignkit_constraints.confidence import missing_entropy
from pydantic import ValidationError
from torch.distributions import Bernoulli, Categorical, kl_divergence

from alignkit.compose import Composition
from alignkit.errors import UsageError
from alignkit.plan import Setting, make_plan
from alignkit.tasks.chat import Chat
from alignkit.tasks.text_classification import TextClassification
from alignkit.testing.models import batch, tiny


def logits(*shape: int, scale: float = 1.0) -> torch.Tensor:
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_it_is_the_divergence_from_uniform():
    scores = logits(7, 11)
    expected = kl_divergence(Categorical(logits=scores), Categorical(logits=torch.zeros_like(scores)))
    torch.testing.assert_close(missing_entropy(scores.log_softmax(-1)), expected)


def test_independent_labels_add_up():
    scores = logits(5, 3)
    pairs = torch.stack([scores, -scores], -1).sigmoid().log()
    expected = (math.log(2) - Bernoulli(logits=scores).entropy()).sum(-1)
    torch.testing.assert_close(missing_entropy(pairs), expected)


def test_what_is_masked_out_is_not_possible():
    scores, there = logits(6, 9), torch.arange(9) < 4
    expected = math.log(4) - Categorical(logits=scores[:, :4]).entropy()
    for least in (torch.finfo(torch.float64).min, -math.inf):
        leaf = scores.clone().requires_grad_(True)
        found = missing_entropy(leaf.masked_fill(~there, least).log_softmax(-1))
        torch.testing.assert_close(found, expected)
        assert torch.autograd.grad(found.sum(), leaf)[0].isfinite().all()


def test_a_prediction_above_the_threshold_is_left_alone():
    log_p = torch.tensor([[0.5, 0.5], [0.8, 0.2], [0.99, 0.01]], dtype=torch.float64).log().requires_grad_(True)
    entropy = Categorical(logits=log_p.detach()).entropy()
    found = missing_entropy(log_p, 0.5)
    assert found.tolist() == pytest.approx([0.0, 0.0, 0.5 * math.log(2) - entropy[2].item()])
    gradient = torch.autograd.grad(found.sum(), log_p)[0]
    assert not gradient[:2].any()
    assert gradient[2].all()


def test_its_gradient_is_that_of_the_negative_entropy():
    scores = logits(4, 6).requires_grad_(True)
    found = torch.autograd.grad(missing_entropy(scores.log_softmax(-1)).sum(), scores)[0]
    p = scores.detach().softmax(-1)
    surprise = -p.log() - (-p * p.log()).sum(-1, keepdim=True)
    torch.testing.assert_close(found, -p * surprise)  # dH/dz_i = p_i (-log p_i - H), Pereyra et al. 2017, section 3


def test_certain_predictions_give_finite_numbers():
    scores = torch.tensor([[0.0, 500.0, -500.0]], requires_grad=True)
    found = missing_entropy(scores.log_softmax(-1))
    assert found.item() == pytest.approx(math.log(3))
    assert torch.autograd.grad(found.sum(), scores)[0].isfinite().all()


@pytest.mark.parametrize(
    ("head", "unit"),
    [("bert-sequence-classification", "example"), ("bert-token-classification", "token"), ("llama-causal-lm", "token")],
)
def test_the_penalty_is_the_mean_over_scored_positions(head, unit, make_step):
    model, _, inputs = tiny(head)
    step = make_step(model, inputs, [Confidence(weight=1.0)])
    step.loss()
    with torch.no_grad():
        scores, labels = model(**inputs).logits.double(), inputs["labels"]
    if head == "llama-causal-lm":
        scores, labels = scores[:, :-1], labels[:, 1:]
    scored = scores if labels.dim() == 1 else scores[labels != -100]
    expected = math.log(scored.shape[-1]) - Categorical(logits=scored).entropy()
    term = step.terms["confidence"]
    assert (term.per, term.count) == (unit, len(expected))
    assert term.mean.item() == pytest.approx(expected.mean().item(), rel=1e-4)


def test_several_labels_and_spans_and_choices(make_step):
    for head in ("bert-question-answering", "bert-multiple-choice", "bert-sequence-classification"):
        model, _, inputs = tiny(head)
        if head.endswith("sequence-classification"):
            inputs["labels"] = torch.nn.functional.one_hot(inputs["labels"], 3).float()
            model.config.problem_type = "multi_label_classification"
        step = make_step(model, inputs, [Confidence()])
        step.loss().backward()
        assert 0 < step.terms["confidence"].mean < 10
        assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_training_on_it_makes_predictions_less_certain(make_step):
    entropies = {}
    for weight in (0.0, 2.0):
        model, inputs = tiny("bert-sequence-classification")[0], batch("bert-sequence-classification")
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(40):
            optimizer.zero_grad()
            make_step(model, inputs, [Confidence(weight=weight)]).loss().backward()
            optimizer.step()
        entropies[weight] = Categorical(logits=model(**inputs).logits).entropy().mean().item()
    assert entropies[2.0] > entropies[0.0] + 0.1


def test_fields():
    assert isinstance(Confidence(weight=Budget(limit=0.5)).weight, Budget)
    for threshold in (0.0, 1.1):
        with pytest.raises(ValidationError, match="threshold"):
            Confidence(threshold=threshold)


def test_a_limit_that_it_cannot_exceed_is_refused():
    task = TextClassification()
    rows = [task.parse({"text": "t", "label": label}, "row") for label in ("a", "b", "c", "c")]

    def highest(task, rows, **fields):
        composition = Composition([Confidence(**fields)], task)
        setting = Setting(task, composition.components, composition.objective, examples=rows)
        return composition["confidence"].ceiling(setting), composition, setting

    assert highest(task, [])[0] is None
    assert highest(Chat(), rows)[0] is None
    task.prepare({"train": rows})
    assert highest(task, rows, threshold=0.5)[0] == pytest.approx(0.5 * math.log(3))
    with pytest.raises(UsageError, match=r"a limit of 0\.6, which the penalty cannot exceed: it is 0\.5493 at most"):
        make_plan(*highest(task, rows, threshold=0.5, weight=Budget(limit=0.6))[1:])
    task = TextClassification()
    rows = [task.parse({"text": "t", "label": labels}, "row") for labels in (["a", "b"], ["c"], [])]
    task.prepare({"train": rows})
    assert highest(task, rows)[0] == pytest.approx(3 * math.log(2))


@pytest.mark.parametrize("kind", ["bert-sequence-classification", "bert-token-classification"])
def test_it_is_never_above_its_ceiling(kind, make_step):
    model, inputs = tiny(kind)[0], batch(kind)
    with torch.no_grad():
        model.classifier.bias[0] = 50.0
    step = make_step(model, inputs, [Confidence()])
    step.loss()
    assert step.terms["confidence"].mean.item() == pytest.approx(math.log(model.config.num_labels), rel=1e-3)
