"""A model under attack: asked in batches, and as it was when all is over."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from alignkit_adversaries import GCGAttack, PGDAttack
from alignkit_preference import Preference

from alignkit import models
from alignkit.components import Attempt
from alignkit.data import Example
from alignkit.evaluation.victim import Victim
from alignkit.tasks.extractive_qa import ExtractiveQa
from alignkit.tasks.ner import Ner
from alignkit.testing.models import tiny
from alignkit.testing.run_cases import base_model


@pytest.fixture
def ner(tmp_path):
    task = Ner()
    examples = [task.parse(dict(row), f"x:{i}") for i, row in enumerate(task.samples)]
    task.prepare({"train": examples})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model, tokenizer = models.load(base_model(tmp_path / "base", task.auto_class), task)
    return Victim(task, model, tokenizer, batch_size=4), examples


# -- asking ------------------------------------------------------------------------------------------------------


def test_examples_are_judged_as_they_are_alone(ner):
    victim, examples = ner
    many = examples * 40  # more than are encoded at a time
    with victim:
        found = victim.judged(many)
        for example, judged in zip(examples, found, strict=False):
            (alone,) = victim.judged([example])
            assert judged.prediction["tags"] == alone.prediction["tags"] == victim.predict([example])[0]["tags"]
            assert judged.score == alone.score == victim.task.score(example, alone.prediction)
            assert judged.loss == pytest.approx(alone.loss, abs=1e-4)
            assert judged.loss == pytest.approx(victim.losses([example])[0], abs=1e-5)
            assert judged.queries == 1
    assert [judged.score for judged in found] == [judged.score for judged in found[: len(examples)]] * 40
    assert victim.judged([]) == victim.losses([]) == victim.predict([]) == []


def test_windows_of_a_long_text_are_one_example(tmp_path):
    task = ExtractiveQa(maximum_length=16, stride=2)
    context = "ada works in rome and bob lives in paris and the film was good and she was not in rome ."
    row = {"question": "who is in paris ?", "context": context, "answers": [{"text": "bob", "answer_start": 22}]}
    example = task.parse(row, "x:1")
    task.prepare({"train": [example]})
    model, tokenizer = models.load(base_model(tmp_path / "base", task.auto_class), task)
    with Victim(task, model, tokenizer, batch_size=2) as victim:
        batches = list(victim.batches([example]))
        (judged,) = victim.judged([example])
        assert judged.queries == sum(len(batch.places) for batch in batches) > 2
        assert sorted(number for batch in batches for number in batch.windows) == list(range(judged.queries))
        (expected,) = victim.predict([example])
        for name in ("start", "end", "null"):
            assert judged.prediction[name] == pytest.approx(expected[name], rel=1e-4)
        losses = [task.row_losses(b.step.forward(), b.step.batch).detach() for b in batches]
        assert judged.loss == pytest.approx(float(torch.cat(losses).mean()), abs=1e-4)


def test_searches_side_by_side_share_batches_and_are_counted(ner):
    victim, examples = ner
    calls: list[int] = []
    handle = victim.model.register_forward_pre_hook(
        lambda _, __, given: calls.append(len(given["input_ids"])), with_kwargs=True
    )

    def search(example: Example, rounds: int) -> Any:
        seen = []
        for _ in range(rounds):
            (judged,) = yield [example]
            seen.append(judged.score)
            assert (yield []) == []
        return Attempt({"seen": seen}, queries=99)

    with victim:
        attempts = victim.together([search(e, n) for e, n in zip(examples, (3, 0, 1, 1, 1, 2), strict=True)])
    handle.remove()
    assert [len(attempt.prediction["seen"]) for attempt in attempts] == [3, 0, 1, 1, 1, 2]
    assert [attempt.queries for attempt in attempts] == [3, 0, 1, 1, 1, 2]
    assert calls == [4, 1, 2, 1], "five at first, four in a batch; then the two that go on, then one"
    assert victim.together([]) == []


def test_what_does_not_fit_the_model_is_all_wrong_and_cost_nothing(ner, monkeypatch):
    victim, examples = ner
    encode = victim.task.encode
    monkeypatch.setattr(victim.task, "encode", lambda e, t: None if e is examples[1] else encode(e, t))
    with victim:
        found = victim.judged(examples[:3])
    assert (found[1].prediction, found[1].score, found[1].loss, found[1].queries) == ({}, 0.0, 0.0, 0)
    assert found[2].queries == 1


# -- before and after --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("breaks", [False, True])
def test_the_model_is_as_it_was(ner, breaks):
    victim, _ = ner
    victim.model.train()
    victim.model.bert.encoder.eval()
    frozen = next(victim.model.parameters()).requires_grad_(False)
    modes = [module.training for module in victim.model.modules()]
    try:
        with victim:
            assert not any(module.training for module in victim.model.modules())
            assert not any(parameter.requires_grad for parameter in victim.model.parameters())
            if breaks:
                raise KeyError
    except KeyError:
        assert breaks
    assert [module.training for module in victim.model.modules()] == modes
    assert [p.requires_grad for p in victim.model.parameters()] == [p is not frozen for p in victim.model.parameters()]


def test_what_is_drawn_depends_on_seed_attack_and_row_alone(ner):
    victim, examples = ner
    first = victim.generator("typos", examples[0]).integers(10**9)
    victim.generator("typos", examples[1]).integers(10**9, size=7)
    assert victim.generator("typos", examples[0].replace(tokens=["other"])).integers(10**9) == first
    others = [
        victim.generator("other", examples[0]),
        Victim(victim.task, victim.model, victim.tokenizer, seed=1).generator("typos", examples[0]),
        victim.generator("typos", Example({}, split="test", row=0)),
        victim.generator("typos", Example({}, split="train", row=1)),
    ]
    assert first not in [generator.integers(10**9) for generator in others]


def test_gradients_can_be_taken_of_a_victims_batches(ner):
    victim, examples = ner
    with victim:
        (batch, rest) = victim.batches(examples)
        assert sorted([*batch.places, *rest.places]) == list(range(len(examples)))
        gradient = batch.step.gradient(batch.step.zeros())
    assert gradient.shape == (4, batch.step.batch["input_ids"].shape[1], 32)
    assert float(gradient.norm()) > 0
    assert all(parameter.grad is None for parameter in victim.model.parameters())
    assert victim.embeddings.shape == (len(victim.tokenizer), 32)
    assert victim.tokenizer.pad_token_id in victim.special_ids


@pytest.mark.parametrize("shared", [True, False])
def test_attacks_need_no_reference(shared):
    model, tokens, _ = tiny("llama-causal-lm")
    task = Preference(shared_prompt=shared)
    task.name = "preference"
    rows = [task.parse(dict(row), "row") for row in task.samples]
    with Victim(task, model, tokens, batch_size=3) as victim:
        (batch,) = victim.batches(rows[:3])
        expected = torch.tensor(victim.losses(rows)[:3])
        loss = batch.step.loss()
        torch.testing.assert_close(loss.detach(), expected.mean(), rtol=1e-5, atol=1e-6)
        attempts = PGDAttack(radii=(0.1, 2.0), steps=4).attempt(victim, rows)
        plain = victim.predict(rows)
    assert all(attempt.prediction["chosen"] != p["chosen"] for attempt, p in zip(attempts["2"], plain, strict=True))
    margins = [[p["chosen"] - p["rejected"] for p in found] for found in (plain, [a.prediction for a in attempts["2"]])]
    assert sum(margins[1]) < sum(margins[0])
    assert "rows of task preference are not one prompt and its completion" in str(*GCGAttack().check_task(task))
    assert list(PGDAttack(target="completion").check_task(task))
