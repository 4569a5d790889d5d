"""The penalty on tiny models against closed forms; lists and swapped text are in test_swaps.py."""

from __future__ import annotations

import pytest
import torch
from alignkit_constraints import Counterfactual, Mentions
from alignkit_constraints.counterfactual import prediction_gap
from torch.distributions import Categorical, kl_divergence

from alignkit.compose import Composition
from alignkit.data import Example
from alignkit.plan import Setting, make_plan
from alignkit.tasks.text_classification import TextClassification
from alignkit.testing.models import collate, examples, tiny


def test_gaps_against_closed_forms():
    generator = torch.Generator().manual_seed(0)
    a, b = (Categorical(logits=torch.randn(6, 4, generator=generator, dtype=torch.float64)) for _ in range(2))
    log_p, log_q = a.probs.log(), b.probs.log()
    torch.testing.assert_close(prediction_gap(log_p, log_q, "kl"), kl_divergence(a, b))
    both = (kl_divergence(a, b) + kl_divergence(b, a)) / 2
    torch.testing.assert_close(prediction_gap(log_p, log_q, "symmetric-kl"), both)
    larger = (a.probs - b.probs).clamp_min(0).sum(-1)  # total variation: what one has more of than the other
    torch.testing.assert_close(prediction_gap(log_p, log_q, "absolute"), larger)


def paired(head: str, rows: list[int], number: int = 8):
    """A batch and, for some of its rows, views: other rows with as many labels that count in the same places."""
    main, spare = examples(head, number), examples(head, number, seed=1)
    others = []
    for row in rows:
        ids = spare[row]["input_ids"]
        changed = [ids[i % len(ids)] if i else first for i, first in enumerate(main[row]["input_ids"])]
        others.append({**main[row], "input_ids": changed})
    return main, others


def inputs(head: str, main: list, others: list, rows: list[int]):
    views = {"counterfactual": {**collate(head, others), "rows": torch.tensor(rows)}} if rows else {}
    return {**collate(head, main), "views": views}


HEADS = ["bert-sequence-classification", "bert-token-classification", "llama-causal-lm"]


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("divergence", ["symmetric-kl", "absolute"])
def test_the_penalty_is_the_mean_over_rows_of_the_mean_over_positions(head, divergence, make_step):
    rows = [1, 4, 6]
    model = tiny(head)[0]
    main, others = paired(head, rows)
    step = make_step(model, inputs(head, main, others, rows), [Counterfactual(divergence=divergence)])
    step.loss()
    term, gaps = step.terms["counterfactual"], []
    for row, other in zip(rows, others, strict=True):
        with torch.no_grad():  # one row at a time, unpadded
            p, q = (model(**collate(head, [one])).logits.double()[0] for one in (main[row], other))
        if head != "bert-sequence-classification":
            scored = torch.tensor(main[row]["labels"]) != -100
            shift = head == "llama-causal-lm"
            p, q = (x[:-1][scored[1:]] if shift else x[scored] for x in (p, q))
        a, b = Categorical(logits=p), Categorical(logits=q)
        if divergence == "absolute":
            gaps.append((a.probs - b.probs).abs().sum(-1).div(2).mean())
        else:
            gaps.append(((kl_divergence(a, b) + kl_divergence(b, a)) / 2).mean())
    assert term.count == 3
    assert term.per == "counterfactual"
    assert term.mean.item() == pytest.approx(torch.stack(gaps).mean().item(), rel=1e-4)


@pytest.mark.parametrize("head", HEADS)
def test_four_batches_of_two_rows_give_the_gradient_of_one_of_eight(head, make_step):
    rows = [0, 1, 2, 5]  # two, one, one and none to a batch of two
    model = tiny(head)[0]
    main, others = paired(head, rows)

    def gradient(size):
        steps = []
        for start in range(0, 8, size):
            here = [i for i, row in enumerate(rows) if start <= row < start + size]
            batch = inputs(head, main[start : start + size], [others[i] for i in here], [rows[i] - start for i in here])
            steps.append(make_step(model, batch, [Counterfactual(weight=5.0)]))
        window = {name: sum(step.counts.get(name, 0) for step in steps) for name in steps[0].counts}
        model.zero_grad()
        for step in steps:
            step.window = window
            step.loss().backward()
        return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])

    whole, parts = gradient(8), gradient(2)
    assert (parts.norm() / whole.norm()).item() == pytest.approx(1.0, abs=1e-4)
    assert torch.cosine_similarity(parts, whole, dim=0).item() > 0.9999


def test_a_view_that_was_cut_shorter_is_compared_as_far_as_it_goes(make_step):
    head = "bert-token-classification"
    model, main = tiny(head)[0], examples(head, 2)
    cut = {k: v[:-2] for k, v in main[0].items()}
    step = make_step(model, inputs(head, main, [cut], [0]), [Counterfactual()])
    assert step.loss().isfinite()


def test_no_view_no_penalty(make_step):
    head = "bert-token-classification"
    model, main = tiny(head)[0], examples(head, 2)
    step = make_step(model, inputs(head, main, [], []), [Counterfactual(weight=100.0)])
    loss = step.loss()
    assert step.terms["counterfactual"].count == 0
    torch.testing.assert_close(loss, step.terms["objective"].mean, check_stride=False)


def test_training_on_the_penalty_closes_the_gap(make_step):
    head, rows = "bert-token-classification", [0, 1, 2, 3]
    model = tiny(head)[0]
    main, others = paired(head, rows)
    batch = inputs(head, main, others, rows)
    optimizer, gaps = torch.optim.SGD(model.parameters(), lr=0.1), []
    for _ in range(30):
        step = make_step(model, batch, [Counterfactual(weight=10.0)])
        optimizer.zero_grad()
        step.loss().backward()
        optimizer.step()
        gaps.append(step.terms["counterfactual"].mean.item())
    assert gaps[-1] < 0.2 * gaps[0]


@pytest.mark.parametrize(
    ("text", "others", "noted"), [("they won", [], True), ("he won", [], False), ("they won", [Mentions()], False)]
)
def test_rows_of_which_none_has_a_counterpart_are_noted(text, others, noted):
    rows = [Example({"text": words, "label": "good"}, inputs=("text",)) for words in ("a film", text)]
    task = TextClassification()
    composition = Composition([Counterfactual(), *others], task)
    plan = make_plan(composition, Setting(task, composition.components, composition.objective, examples=rows))
    assert any("counterfactual does nothing: none of 2 training rows" in note for note in plan.notes) is noted
