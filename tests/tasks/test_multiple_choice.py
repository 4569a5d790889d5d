"""Multiple choice, by head and by likelihood: scores against closed forms, labels in their forms, ragged rows."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

import alignkit
from alignkit import models
from alignkit.errors import UsageError
from alignkit.evaluation.score import measure, predictions
from alignkit.tasks.multiple_choice import MultipleChoice
from alignkit.testing import make_step

ROWS = (
    {"question": "where lives bob ?", "choices": ["good", "he lives in paris", "in rome"], "label": 2},
    {"question": "she was not", "choices": ["in a film", "bad"], "label": 1},
)


def examples(task, rows=ROWS):
    return [task.parse(dict(row), f"a.jsonl:{i}") for i, row in enumerate(rows, 1)]


@pytest.fixture
def by_head(encoder):
    task = MultipleChoice()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model, words = models.load(encoder, task)
        torch.nn.init.normal_(model.classifier.weight)
    return task, model.eval(), words


@pytest.mark.parametrize("label", [1, "1", 1.0, "B", "bad"])
def test_a_label_is_a_number_a_letter_or_a_text(label):
    (example,) = examples(MultipleChoice(), [{**ROWS[1], "label": label}])
    assert example["label"] == 1
    assert example.inputs == ("question", "choice_0", "choice_1")
    assert example.map_words(str.upper)["choice_0"] == "IN A FILM"


def test_files_may_have_a_column_for_each_choice():
    row = {"context": "she", "choice_0": "was", "choice_1": "saw", "answer": "A"}
    assert MultipleChoice().parse(row, "a:1").fields == {
        "context": "she",
        "choice_0": "was",
        "choice_1": "saw",
        "label": 0,
    }


def test_lettered_choices_at_the_end_of_a_question():
    task = MultipleChoice(lettered=True)
    (example,) = examples(task, [{"question": "Who?\nA. Then what?\n\nA. Ada.\nB. Nobody,\nC.  bob", "answer": "B"}])
    assert [example[name] for name in example.inputs] == ["Who?\nA. Then what?", "Ada.", "Nobody,", "bob"]
    assert example["label"] == 1
    with pytest.raises(UsageError, match=r"a:1: no choices; expected a last line for each, `A. …`, `B. …`"):
        task.parse({"question": "Who?\n\nB. Bob", "answer": "B"}, "a:1")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"question": "q", "choices": ["a", "b"]}, "a:1: no 'label'; expected the right choice's number, letter"),
        ({"question": "q", "choices": ["a", "b"], "label": 2}, "'label' is 2; expected 0 to 1, A to B, or a choice's"),
        ({"question": "q", "choices": ["a", "b"], "label": True}, "'label' is True"),
        ({"question": "q", "choices": ["a"], "label": 0}, "'choices' is ..a..; expected a list of 2 to 26 strings"),
        ({"question": "q", "choices": ["a", " "], "label": 0}, "the choice ' '; expected text"),
        ({"question": " ", "choices": ["a", "b"], "label": 0}, "'question' is ' '; expected text"),
        ({"questions": "q", "label": 0}, "no 'question'; did you mean 'questions'.*\n.*no choices; expected"),
    ],
)
def test_wrong_rows(row, message):
    with pytest.raises(UsageError, match=message):
        MultipleChoice().parse(row, "a:1")


def test_choices_that_pad_a_row_have_no_part_in_anything(by_head):
    task, model, words = by_head
    encoded = [task.encode(example, words) for example in examples(task)]
    batch = task.collate(encoded, words)
    assert batch["input_ids"].shape[:2] == (2, 3)
    alone = [model(**task.collate([row], words)).logits[0] for row in encoded]
    step = make_step(model, batch, task=task, special_ids=())
    expected = (
        sum(torch.nn.functional.cross_entropy(a, torch.tensor(r["label"])) for a, r in zip(alone, ROWS, strict=True))
        / 2
    )
    assert step.loss().item() == pytest.approx(float(expected), rel=1e-5)
    assert abs(model(**batch).loss.item() - float(expected)) > 1e-3, "the stock loss counts them"
    assert step.zeros().shape[:2] == (6, batch["input_ids"].shape[2])
    assert step.real_tokens(special=True).sum(1).flatten().tolist()[5] == 0.0
    found = predictions(task, model, words, examples(task))
    for one, logits in zip(found, alone, strict=True):
        np.testing.assert_allclose(one["probabilities"], logits.detach().softmax(-1), rtol=1e-4)
    measured = measure(task, examples(task), found)
    assert measured["loss"] == pytest.approx(float(expected), rel=1e-4)


@pytest.mark.parametrize("normalise", ["none", "tokens", "characters"])
def test_likelihood_is_the_sum_over_a_choices_tokens(language_model: Path, normalise):
    task = MultipleChoice(normalise=normalise)
    model, words = models.load(language_model, task)
    assert task.auto_class == "AutoModelForCausalLM"
    rows = examples(task)
    for row, found in zip(ROWS, predictions(task, model, words, rows, batch_size=2), strict=True):
        scores = []
        for choice in row["choices"]:
            context, answer = (
                words(text, add_special_tokens=False)["input_ids"] for text in (row["question"], f" {choice}")
            )
            with torch.inference_mode():
                logits = model.eval()(torch.tensor([context + answer])).logits[0].log_softmax(-1)
            score = sum(float(logits[len(context) - 1 + i, token]) for i, token in enumerate(answer))
            scores.append(score / {"none": 1, "tokens": len(answer), "characters": len(choice)}[normalise])
        expected = np.exp(scores) / np.exp(scores).sum()
        np.testing.assert_allclose(found["probabilities"], expected, rtol=1e-4)


def test_the_right_choice_alone_is_learnt_by_likelihood(language_model):
    task = MultipleChoice()
    _, words = models.load(language_model, task)
    features = task.encode(examples(task)[1], words)
    learnt = [token for token in features["labels"] if token != -100]
    assert words.decode(learnt) == "bad"
    assert len(features["choice_ids"]) == 2
    long = task.parse({"question": "film " * 500, "choices": ["a b", "b"], "label": 0}, "a:1")
    assert len(task.encode(long, words)["input_ids"]) == 64


def test_questions_are_answered(by_head):
    task, model, words = by_head
    question = {"question": "who ?", "choices": ["ada", "bob", "paris"]}
    (answer,) = task.predict(model, words, [task.inputs(question)])
    assert answer["answer"] == question["choices"][answer["label"]]
    assert math.isclose(sum(answer["probabilities"]), 1.0, abs_tol=1e-3)
    with pytest.raises(UsageError, match=r"no choices"):
        task.inputs("who ?")


def test_the_model_decides_unless_the_recipe_does(encoder, language_model):
    with pytest.raises(
        UsageError, match=r"model: a bert, asked by likelihood; expected a causal language model; take `by`"
    ):
        models.facts(encoder, MultipleChoice(by="likelihood"))
    with pytest.raises(UsageError, match=r"model: a llama, asked by head; expected an encoder"):
        models.facts(language_model, MultipleChoice(by="head"))


@pytest.mark.parametrize("way", ["head", "likelihood"])
def test_with_lora_and_an_adversary(way, encoder, language_model, tmp_path):
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS * 3), "utf-8")
    run = alignkit.train(
        alignkit.Recipe(
            model=str(encoder if way == "head" else language_model),
            task="multiple-choice",
            adversary="fgm",
            data={"train": "a.jsonl", "validation": "a.jsonl"},
            peft={"method": "lora", "r": 2},
            base=tmp_path,
            training={"max_steps": 2, "use_cpu": True},
            evaluation={"replicates": 100},
            output=str(tmp_path / "run"),
        )
    )
    assert 0 <= run.metrics["after"]["validation"]["accuracy"]["value"] <= 1
    question = [{"question": "who ?", "choices": ["ada", "bob"]}]
    assert alignkit.load(run.path).predict(question) == run.predict(question)
