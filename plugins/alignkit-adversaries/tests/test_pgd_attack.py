"""PGD as an attack, against the same ascent and descent written out on `inputs_embeds`."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from alignkit_adversaries import PGDAttack
from alignkit_adversaries.attacks.completions import aimed, prompt_mask
from peft import LoraConfig, get_peft_model

from alignkit.data.example import Example
from alignkit.errors import UsageError
from alignkit.evaluation.compare import evaluate
from alignkit.evaluation.victim import Victim
from alignkit.recipe import Recipe
from alignkit.tasks.causal_lm import CausalLm
from alignkit.tasks.chat import Chat
from alignkit.tasks.prompted_classification import PromptedClassification
from alignkit.tasks.text_classification import TextClassification
from alignkit.testing.models import CLASSES, tiny
from alignkit.testing.step_cases import perturbations

IGNORED = -100
TALKS = (
    {"prompt": "where is the cookie ?", "completion": "it was in rome"},
    {"prompt": "who saw the very good film ?", "completion": "bob and ada"},
    {"prompt": "was it good ?", "completion": "very good"},
)
TEXTS = ("a good film", "it was very bad", "she went to rome and saw a film", "bob", "the film was not good")


def named(component, name):
    component.name = name
    return component


def talks():
    task = named(Chat(), "chat")
    parsed = [task.parse(dict(row), "row") for row in TALKS]
    return task, [Example(e.fields, e.inputs, e.targets, split="test", row=i) for i, e in enumerate(parsed)]


def chat_victim(model=None, batch_size=32):
    own, tokenizer, _ = tiny("llama-causal-lm")
    task, rows = talks()
    return Victim(task, own if model is None else model, tokenizer, batch_size), rows


def classified():
    """A victim that classifies texts, and those whose label is what it predicts."""
    model, tokenizer, _ = tiny("bert-sequence-classification")
    task = named(TextClassification(), "text-classification")
    task.labels = list(CLASSES)
    rows = [
        Example({"text": t, "label": CLASSES[0]}, inputs=("text",), split="test", row=i) for i, t in enumerate(TEXTS)
    ]
    victim = Victim(task, model, tokenizer)
    with victim:
        said = victim.predict(rows)
    return victim, [row.replace(label=p["labels"][0]) for row, p in zip(rows, said, strict=True)]


def real(victim, ids):
    return ~torch.isin(ids, torch.tensor(victim.tokenizer.all_special_ids))


def unit(model):
    rows = model.get_input_embeddings().weight.detach().norm(dim=-1)
    return rows[rows > 0].mean()


def by_inputs_embeds(victim, ids, free, loss_of, radius, steps, step_size, sign):
    """The points of the attack on one row: (loss, logits) before the first and after each step."""
    model = victim.model
    table, length = model.get_input_embeddings().weight.detach(), radius * unit(model)
    delta, found = torch.zeros(1, ids.shape[1], table.shape[1]), []
    for _ in range(steps + 1):
        delta = delta.detach().requires_grad_(True)
        logits = model(inputs_embeds=table[ids] + delta, attention_mask=torch.ones_like(ids)).logits
        loss = loss_of(logits)
        found.append((loss.item(), logits.detach()))
        gradient = torch.autograd.grad(loss, delta)[0] * free[..., None]
        delta = delta.detach() + sign * step_size * length * gradient / gradient.norm()
        if delta.norm() > length:
            delta = delta * (length / delta.norm())
    return found


@pytest.mark.parametrize("steps", [2, 5])
def test_what_counts_is_the_worst_prediction_of_all_steps(steps):
    victim, rows = classified()
    attack = PGDAttack(radii=(0.3, 1.5), steps=steps, step_size=0.5)
    with victim:
        attempts = attack.attempt(victim, rows)
        for place, row in enumerate(rows):
            encoded = torch.tensor([victim.tokenizer(row["text"])["input_ids"]])
            label, broken = CLASSES.index(row["label"]), False
            for radius in attack.radii:
                points = by_inputs_embeds(
                    victim, encoded, real(victim, encoded),
                    lambda logits, y=label: torch.nn.functional.cross_entropy(logits, torch.tensor([y])),
                    radius, steps, 0.5, 1.0,
                )  # fmt: skip
                broken |= any(int(logits.argmax()) != label for _, logits in points[1:])
                attempt = attempts[f"{radius:g}"][place]
                assert (victim.task.score(row, attempt.prediction) < 1) == broken
        assert [a.queries for a in attempts["0.3"]] == [steps + 1] * len(rows)
        assert [a.queries for a in attempts["1.5"]] == [2 * (steps + 1)] * len(rows)
    broken = [victim.task.score(r, a.prediction) for r, a in zip(rows, attempts["1.5"], strict=True)]
    assert 0.0 in broken


@pytest.mark.parametrize("batch_size", [1, 32])
def test_the_completion_is_descended_on_the_prompt(batch_size):
    victim, rows = chat_victim(batch_size=batch_size)
    attack = PGDAttack(target="completion", radii=(0.5, 2.0), steps=4, step_size=0.5)
    with victim:
        attempts = attack.attempt(victim, rows)
        for place, row in enumerate(rows):
            features = aimed(victim, row)
            ids, labels = torch.tensor([features["input_ids"]]), torch.tensor(features["labels"])
            first = int((labels != IGNORED).nonzero()[0])
            free = real(victim, ids) & (torch.arange(ids.shape[1]) < first)
            wanted = labels[labels != IGNORED]
            there = slice(first - 1, first - 1 + len(wanted))
            points, given = [], []
            for radius in attack.radii:
                found = by_inputs_embeds(
                    victim, ids, free,
                    lambda logits, there=there, wanted=wanted: torch.nn.functional.cross_entropy(
                        logits[0, there], wanted
                    ),
                    radius, 4, 0.5, -1.0,
                )  # fmt: skip
                points += [loss for loss, _ in found]
                given += [torch.equal(logits[0, there].argmax(-1), wanted) for _, logits in found]
                attempt = attempts[f"{radius:g}"][place]
                assert attempt.measures["target_loss"] == pytest.approx(min(points), rel=1e-4)
                assert attempt.measures["target_loss_before"] == pytest.approx(points[0], rel=1e-4)
                assert attempt.prediction["nll"] == pytest.approx(min(points) * len(wanted), rel=1e-4)
                assert attempt.said == tuple(
                    {"target_loss": attempt.measures[name]} for name in ("target_loss_before", "target_loss")
                )
                assert attempt.broken == (any(given) and not given[0])
                assert attempt.reached == given[0] == bool(attempt.measures["matched_before"])
                assert bool(attempt.measures["matched"]) == any(given)
                assert attempt.example is None
            assert attempt.queries == 2 * 5


def test_a_row_that_the_model_completes_anyway_is_counted_apart():
    victim, rows = chat_victim()
    with victim:
        features = aimed(victim, rows[0])
        ids, labels = torch.tensor([features["input_ids"]]), torch.tensor(features["labels"])
        first = int((labels != IGNORED).nonzero()[0])
        said = victim.model(ids).logits[0, first - 1].argmax().item()
        word = victim.tokenizer.decode([said])
        easy = rows[0].replace(completion=word)
        assert aimed(victim, easy)["labels"][first] == said, "another word is its likeliest one"
        attempts = PGDAttack(target="completion", radii=(0.01, 30.0), steps=40, step_size=0.1).attempt(
            victim, [easy, rows[1]]
        )
    for attempt, other in zip(attempts["0.01"], attempts["30"], strict=True):
        assert (attempt.reached, attempt.measures["matched_before"]) == (other.reached, float(other.reached))
    assert [(a.reached, a.broken, a.measures["matched"]) for a in attempts["30"]] == [
        (True, False, 1.0),
        (False, True, 1.0),
    ]


def test_a_large_radius_gets_the_completion_out():
    victim, rows = chat_victim()
    with victim:
        attempts = PGDAttack(target="completion", radii=(0.01, 30.0), steps=40, step_size=0.1).attempt(victim, rows)
    assert not any(a.broken for a in attempts["0.01"])
    assert all(a.broken for a in attempts["30"])
    for near, far in zip(attempts["0.01"], attempts["30"], strict=True):
        assert far.measures["target_loss"] < near.measures["target_loss"] <= near.measures["target_loss_before"]


def test_only_real_tokens_of_the_prompt_are_moved_within_the_radius():
    victim, rows = chat_victim()
    with victim:
        (batch,) = victim.batches_of([(i, aimed(victim, row)) for i, row in enumerate(rows)])
        with perturbations(victim._context.embedding) as seen:
            PGDAttack(target="completion", radii=(0.7,), steps=3, step_size=1.0).attempt(victim, rows)
        free = prompt_mask(batch)[..., 0].bool()
    labels, ids = batch.step.batch["labels"], batch.step.batch["input_ids"]
    for row in range(len(ids)):
        first = int((labels[row] != IGNORED).nonzero()[0])
        assert free[row].tolist() == [
            t < first and int(i) not in victim.tokenizer.all_special_ids for t, i in enumerate(ids[row])
        ]
    length = 0.7 * unit(victim.model)
    assert len(seen) == 4
    for delta in seen:
        assert not delta[~free].any()
        assert float(delta.norm(dim=(1, 2)).max()) <= length * (1 + 1e-4)
    assert float(seen[-1].norm(dim=(1, 2)).min()) >= length * (1 - 1e-3)


def test_loras_are_attacked_too():
    model, _, _ = tiny("llama-causal-lm")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", r=4, init_lora_weights=False))
    (plain, rows), (adapted, _) = chat_victim(), chat_victim(model)
    found = []
    for victim in (plain, adapted):
        with victim:
            found.append(PGDAttack(target="completion", radii=(2.0,)).attempt(victim, rows)["2"])
    for one, other in zip(*found, strict=True):
        assert other.measures["target_loss"] < other.measures["target_loss_before"]
        assert one.measures["target_loss_before"] != other.measures["target_loss_before"]


def test_through_evaluate():
    model, tokenizer, _ = tiny("llama-causal-lm")
    task, rows = talks()
    attack = named(PGDAttack(target="completion", radii=(0.1, 3.0)), "pgd")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = evaluate(task, model, tokenizer, {"test": rows}, attacks=[attack]).metrics
    for radius in ("0.1", "3"):
        metrics = found[f"test against pgd {radius}"]
        assert metrics["target_loss"] < metrics["target_loss_before"]
        assert metrics["queries"] == (11 if radius == "0.1" else 22)
        assert "perplexity" not in metrics
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(p.requires_grad for p in model.parameters())


def test_what_is_scored_depends_on_the_target():
    assert PGDAttack().needs_score
    assert not PGDAttack(target="completion").needs_score


@pytest.mark.parametrize(
    ("task", "attack", "reason"),
    [
        (CausalLm(), PGDAttack(target="completion"), "rows of task x are not one prompt and its completion"),
        (Chat(), PGDAttack(), "task x does not say which predictions are right; .*; set `target: completion`"),
        (CausalLm(), PGDAttack(), "task x does not say which predictions are right; expected a task that does"),
        (PromptedClassification(), PGDAttack(), "task x asks the model more than once for a prediction"),
    ],
)
def test_tasks_that_do_not_go_with_it(task, attack, reason):
    with pytest.raises(UsageError, match=f"attack pgd: {reason}"):
        evaluate(named(task, "x"), None, None, {}, attacks=[named(attack, "pgd")])


def test_radii_ascend_and_steps_reach_the_boundary():
    with pytest.raises(UsageError, match="radii: "):
        PGDAttack(radii=(0.2, 0.1))
    with pytest.raises(UsageError, match=r"2 steps of 0\.25 radii do not reach the boundary"):
        PGDAttack(steps=2)


@pytest.mark.parametrize(
    ("fields", "mistakes"),
    [
        ({"steps": 2}, ["step_size: 2 steps of 0.25 radii do not reach the boundary; expected 0.5 or more"]),
        ({"radii": [0.2, 0.1], "steps": 2}, [
            "radii: [0.2, 0.1]; expected ascending radii, each once, to six digits",
            "step_size: 2 steps of 0.25 radii do not reach the boundary; expected 0.5 or more",
        ]),
        ({"radii": [0.1, 0.10000001]}, [
            "radii: [0.1, 0.10000001]; expected ascending radii, each once, to six digits",
        ]),
        ({"radii": []}, ["radii: []; expected at least one"]),
        ({"radii": [-1, math.inf]}, ["radii.0: -1; expected a number greater than 0",
                                     "radii.1: inf; expected a finite number"]),
    ],
)  # fmt: skip
def test_a_recipe_names_the_field_that_is_wrong(fields, mistakes):
    attacks = [{"use": "pgd", **fields}]
    with pytest.raises(UsageError) as caught:
        Recipe(model="m", task="ner", data={"train": "t"}, evaluation={"attacks": attacks}, output="o")
    assert [str(mistake) for mistake in caught.value.mistakes] == [f"evaluation.attacks.0.{m}" for m in mistakes]


def test_a_larger_radius_never_leaves_more():
    victim, rows = classified()
    with victim:
        attempts = PGDAttack(radii=(0.1, 0.5, 1.0, 2.0)).attempt(victim, rows)
    scores = [
        [victim.task.score(r, a.prediction) for r, a in zip(rows, made, strict=True)] for made in attempts.values()
    ]
    assert all(a >= b for small, large in itertools.pairwise(scores) for a, b in zip(small, large, strict=True))
