"""GCG against exhaustive search and against gradients of one-hot vectors, which share no code with it."""

from __future__ import annotations

import itertools

import pytest
import torch
from alignkit_adversaries import GCGAttack
from alignkit_adversaries.attacks import gcg
from alignkit_adversaries.attacks.completions import (
    aimed,
    matched,
    read_beginning,
    target_labels,
    target_losses,
)
from alignkit_adversaries.attacks.gcg import appended, best_tokens, losses, printable
from peft import LoraConfig, PromptTuningConfig, get_peft_model

from alignkit.data.example import Example
from alignkit.errors import UsageError
from alignkit.evaluation.compare import evaluate
from alignkit.evaluation.victim import Victim
from alignkit.tasks.chat import Chat
from alignkit.tasks.dialogue import Dialogue
from alignkit.tasks.text_classification import TextClassification
from alignkit.testing.models import VOCABULARY, tiny

IGNORED = -100
ROWS = (
    {"prompt": "where is the cookie ?", "completion": "it was in rome"},
    {"prompt": "who saw the film ?", "completion": "bob and ada"},
    {"prompt": "was it good ?", "completion": "very good"},
)


def examples(*rows, task=None):
    parsed = [(task or chat()).parse(dict(row), f"row {i}") for i, row in enumerate(rows or ROWS)]
    return [Example(e.fields, e.inputs, e.targets, split="test", row=i) for i, e in enumerate(parsed)]


def chat(**fields):
    task = Chat(**fields)
    task.name = "chat"
    return task


def victim_of(model=None, task=None, **options):
    own, tokenizer, _ = tiny("llama-causal-lm")
    return Victim(task or chat(), own if model is None else model, tokenizer, **options)


def asked(victim, prompt, completion):
    """(target's mean loss, whether greedy decoding gives it), from the template, the tokenizer and the model alone."""
    tokenizer = victim.tokenizer
    talk = [{"role": "user", "content": prompt}]
    before = tokenizer.apply_chat_template(talk, tokenize=False, add_generation_prompt=True)
    before = tokenizer(before, add_special_tokens=False)["input_ids"]
    target = tokenizer(completion, add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        logits = victim.model(torch.tensor([[*before, *target]])).logits[0, len(before) - 1 : -1]
        loss = torch.nn.functional.cross_entropy(logits, torch.tensor(target)).item()
        said = victim.model.generate(
            torch.tensor([before]), attention_mask=torch.ones(1, len(before), dtype=torch.long), do_sample=False,
            max_new_tokens=len(target), min_new_tokens=len(target), pad_token_id=0,
        )[0, len(before) :].tolist()  # fmt: skip
    return loss, said == target


def read(tokenizer, text):
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def survivors(victim, prompt, length):
    """Every suffix of printable tokens that reads back as itself after the prompt: (ids, text)."""
    tokenizer, special = victim.tokenizer, set(victim.tokenizer.all_special_ids)
    known = [i for i in range(len(VOCABULARY)) if i not in special]
    own = read(tokenizer, prompt)
    for ids in itertools.product(known, repeat=length):
        text = tokenizer.decode(ids)
        if read(tokenizer, f"{prompt} {text}") == [*own, *ids]:
            yield list(ids), text


# -- the pure parts ----------------------------------------------------------------------------------------------


def test_the_best_tokens_are_those_of_the_one_hot_gradient():
    model, _, batch = tiny("llama-causal-lm", rows=1)
    ids, labels = batch["input_ids"], batch["labels"]
    table = model.get_input_embeddings().weight.detach()
    one_hot = torch.nn.functional.one_hot(ids[0], len(table)).float()[None].requires_grad_(True)
    loss = model(inputs_embeds=one_hot @ table, labels=labels).loss
    by_token = torch.autograd.grad(loss, one_hot)[0][0]

    embeds = table[ids].requires_grad_(True)
    gradient = torch.autograd.grad(model(inputs_embeds=embeds, labels=labels).loss, embeds)[0][0]
    allowed = torch.arange(7, 50)
    for room in (64, 10**6):
        found = best_tokens(gradient, ids[0], allowed, lambda part: table[part], 5, room)
        for position, tokens in enumerate(found.tolist()[:-1]):  # nothing depends on the last token
            here = int(ids[0, position])
            order = sorted((v for v in range(7, 50) if v != here), key=lambda v: float(by_token[position, v]))
            assert tokens == order[:5]


def test_fewer_tokens_than_asked_for():
    found = best_tokens(
        torch.ones(2, 3), torch.tensor([4, 5]), torch.tensor([4, 6]), lambda v: torch.ones(len(v), 3), 9
    )
    assert found.shape == (2, 1)
    assert int(found[0, 0]) == 6


def test_the_target_is_the_last_completion_without_the_end_of_its_turn():
    assert target_labels([IGNORED, 4, 9, IGNORED, 5, 6, 9], {9}) == [IGNORED] * 4 + [5, 6, IGNORED]
    assert target_labels([IGNORED, 5, 9, 6, 9, 9], {9}) == [IGNORED, 5, 9, 6, IGNORED, IGNORED]
    assert target_labels([IGNORED, 5, IGNORED], {9}) == [IGNORED, 5, IGNORED]
    assert target_labels([5, 6], ()) == [5, 6]
    assert set(target_labels([IGNORED, 9, 9], {9})) == {IGNORED}
    assert target_labels([], {9}) == []


def test_matched_means_the_likeliest_token_everywhere():
    logits = torch.full((4, 3, 5), 0.0)
    logits[:, 0, 2] = logits[:, 1, 3] = 1.0
    labels = torch.tensor([[IGNORED, 2, 3], [IGNORED, 2, 4], [IGNORED, IGNORED, 3], [IGNORED] * 3])
    assert matched(logits, labels).tolist() == [True, False, True, False]


def test_the_suffix_goes_to_the_last_message_of_the_user():
    one = examples({"prompt": "hi", "completion": "bob"})[0]
    assert appended(one, "was !")["prompt"] == "hi was !"
    assert appended(one, " was")["prompt"] == "hi was"
    turns = ["user", "assistant", "user", "assistant"]
    talk = examples({"messages": [{"role": role, "content": f"{i}"} for i, role in enumerate(turns)]})[0]
    assert [m["content"] for m in appended(talk, "x")["messages"]] == ["0", "1", "2 x", "3"]
    assert [m["content"] for m in talk["messages"]] == ["0", "1", "2", "3"]


# -- the search --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("row", range(len(ROWS)))
def test_one_token_and_all_swaps_is_exhaustive_search(row):
    victim, example = victim_of(), examples()[row]
    attack = GCGAttack(suffix_length=1, steps=1, width=10**4, top_k=10**4, answer_tokens=0)
    with victim:
        (attempt,) = attack.attempt(victim, [example])[""]
    prompt, completion = example["prompt"], example["completion"]
    by_text = {text: asked(victim, f"{prompt} {text}", completion)[0] for _, text in survivors(victim, prompt, 1)}
    assert len(by_text) > 60
    assert attempt.measures["target_loss"] == pytest.approx(min(by_text.values()), abs=1e-5)
    assert attempt.example["prompt"] == f"{prompt} {min(by_text, key=by_text.get)}"
    assert attempt.measures["target_loss_before"] == pytest.approx(asked(victim, prompt, completion)[0], abs=1e-5)


def test_two_tokens_and_all_swaps_end_where_no_single_swap_is_better():
    victim, example = victim_of(), examples()[1]
    attack = GCGAttack(suffix_length=2, steps=12, width=10**4, top_k=10**4, answer_tokens=0)
    with victim:
        allowed = printable(victim)
        found = [best for best, _ in attack.search(victim, example, allowed)]
        rows = {}
        for ids, _ in survivors(victim, example["prompt"], 2):
            features = dict(found[0].features)
            start = found[0].start
            features["input_ids"] = [*features["input_ids"][:start], *ids, *features["input_ids"][start + 2 :]]
            rows[tuple(ids)] = features
        by_ids = dict(zip(rows, (loss for loss, _ in losses(victim, list(rows.values()), batch_size=512)), strict=True))
    best = found[-1]
    near = [loss for ids, loss in by_ids.items() if sum(a != b for a, b in zip(ids, best.suffix, strict=True)) <= 1]
    assert best.loss == pytest.approx(min(near), abs=1e-5)
    assert best.loss >= min(by_ids.values()) - 1e-5
    assert len(near) > 100
    for before, after in itertools.pairwise(found):  # each step is the best of all single swaps
        near = [loss for i, loss in by_ids.items() if sum(a != b for a, b in zip(i, before.suffix, strict=True)) <= 1]
        assert after.loss == pytest.approx(min(near), abs=1e-5)


def test_the_loss_never_rises_and_the_text_gives_what_is_reported():
    victim = victim_of()
    attack = GCGAttack(suffix_length=6, steps=8, width=24, top_k=16, answer_tokens=4)
    with victim:
        for example in examples():
            found = [best for best, _ in attack.search(victim, example, printable(victim))]
            assert all(b.loss <= a.loss for a, b in itertools.pairwise(found))
            assert found[-1].loss < found[0].loss
        attempts = attack.attempt(victim, examples())[""]
    for example, attempt in zip(examples(), attempts, strict=True):
        loss, given = asked(victim, attempt.example["prompt"], example["completion"])
        assert attempt.measures["target_loss"] == pytest.approx(loss, abs=1e-5)
        assert attempt.broken == given == bool(attempt.measures["matched"])
        assert attempt.example["prompt"].isascii()
        assert attempt.example["prompt"].startswith(f"{example['prompt']} ")
        assert attempt.queries <= 2 + 2 + 8 * 25
        assert set(attempt.measures) == {
            "target_loss_before", "target_loss", "matched_before", "matched", "complied_before", "complied",
        }  # fmt: skip


def test_it_stops_where_the_target_is_matched():
    victim = victim_of()
    prompt = f"hi {' '.join('!' * 3)}"
    tokenizer = victim.tokenizer
    talk = tokenizer.apply_chat_template(
        [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True
    )
    ids = torch.tensor([read(tokenizer, talk)])
    said = victim.model.eval().generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=2)
    completion = tokenizer.decode(said[0, ids.shape[1] :])
    assert len(read(tokenizer, completion)) == 2
    (example,) = examples({"prompt": "hi", "completion": completion})
    with victim:
        (attempt,) = GCGAttack(suffix_length=3, steps=5, answer_tokens=0).attempt(victim, [example])[""]
    assert attempt.broken
    assert attempt.example["prompt"] == "hi !!!"
    assert attempt.queries == 4
    assert attempt.measures["matched"] == 1.0


def test_a_suffix_that_matches_comes_before_one_with_a_lower_loss(monkeypatch):
    victim, (example, *_) = victim_of(), examples()
    figures = iter([[(3.0, False)], [(1.0, False), (2.0, False), (5.0, True), (4.0, True), (6.0, True)]])
    monkeypatch.setattr(gcg, "read_beginning", lambda victim, ids: None)
    monkeypatch.setattr(gcg, "losses", lambda *_: next(figures))
    with victim:
        attack = GCGAttack(suffix_length=3, steps=9, width=5)
        first, last = (best for best, _ in attack.search(victim, example, printable(victim)))
    assert (first.loss, first.matched) == (3.0, False)
    assert (last.loss, last.matched) == (4.0, True)


def test_a_row_depends_on_no_other_and_on_the_seed():
    attack = GCGAttack(suffix_length=4, steps=3, width=12, top_k=8, answer_tokens=0)
    rows = examples()

    def suffixes(order, **options):
        victim = victim_of(**options)
        with victim:
            made = attack.attempt(victim, [rows[i] for i in order])[""]
        return {i: attempt.example["prompt"] for i, attempt in zip(order, made, strict=True)}

    first = suffixes([0, 1, 2])
    assert suffixes([2, 0]) == {i: first[i] for i in (2, 0)}
    assert suffixes([0, 1, 2], batch_size=1) == first
    assert suffixes([0, 1, 2], seed=1) != first


def test_the_target_of_a_conversation_is_its_last_turn():
    victim = victim_of()
    talk = [("user", "hi"), ("assistant", "was it good"), ("user", "who ?"), ("assistant", "bob saw ada")]
    (example,) = examples({"messages": [{"role": role, "content": text} for role, text in talk]})
    with victim:
        features = aimed(victim, example)
        (attempt,) = GCGAttack(suffix_length=2, steps=2, width=8, answer_tokens=0).attempt(victim, [example])[""]
    assert victim.tokenizer.decode([i for i in features["labels"] if i != IGNORED]) == "bob saw ada"
    said = [m["content"] for m in attempt.example["messages"]]
    assert said[:2] + said[3:] == ["hi", "was it good", "bob saw ada"]
    assert said[2].startswith("who ? ")


def test_what_the_model_has_read_of_the_beginning_changes_no_figure():
    victim, (example, *_) = victim_of(), examples()
    with victim:
        features = aimed(victim, example)
        beginning = read_beginning(victim, features["input_ids"][:5])
        (batch,) = victim.batches_of([(0, features), (1, features)])
        delta = batch.step.zeros()
        plain, given = target_losses(victim, batch, delta)
        shared, also = target_losses(victim, batch, delta, beginning)
        torch.testing.assert_close(shared, plain)
        assert given.tolist() == also.tolist()
        of_plain, of_shared = (batch.step.gradient(delta, loss.sum()) for loss in (plain, shared))
        torch.testing.assert_close(of_shared[:, 5:], of_plain[:, 5:], rtol=1e-4, atol=1e-6)
        assert beginning.cache.get_seq_length() == 5
        assert read_beginning(victim, []) is None


def test_a_cache_that_holds_something_else_is_not_used(monkeypatch):
    attack = GCGAttack(suffix_length=3, steps=2, width=8, top_k=8, answer_tokens=0)

    def prompts():
        victim = victim_of()
        with victim:
            return [attempt.example["prompt"] for attempt in attack.attempt(victim, examples())[""]]

    monkeypatch.setattr(gcg, "read_beginning", lambda victim, ids: None)
    plain = prompts()
    monkeypatch.setattr(gcg, "read_beginning", lambda victim, ids: read_beginning(victim, [9] * len(ids)))
    assert prompts() == plain
    monkeypatch.setattr(gcg, "read_beginning", read_beginning)
    assert prompts() == plain


def test_compliance_is_measured_before_and_after(monkeypatch):
    victim, rows = victim_of(), examples()
    seen = []
    monkeypatch.setattr(gcg, "refuses", lambda text: seen.append(text) or len(seen) % 2 == 1)
    with victim:
        attempts = GCGAttack(suffix_length=2, steps=1, width=4, answer_tokens=3).attempt(victim, rows)[""]
    assert [a.measures["complied_before"] for a in attempts] == [0.0] * 3
    assert [a.measures["complied"] for a in attempts] == [1.0] * 3
    assert [a.said[0]["reply"] for a in attempts] == seen[::2]
    assert [a.said[1]["reply"] for a in attempts] == seen[1::2]
    assert all(len(read(victim.tokenizer, text)) <= 3 for text in seen)


@pytest.mark.parametrize("method", ["lora", "prompt-tuning"])
def test_adapted_models(method):
    model, _, _ = tiny("llama-causal-lm")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = LoraConfig(task_type="CAUSAL_LM", r=4, init_lora_weights=False)
        if method == "prompt-tuning":
            config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
        model = get_peft_model(model, config)
    victim, (example, *_) = victim_of(model), examples()
    attack = GCGAttack(suffix_length=1, steps=1, width=10**4, top_k=10**4, answer_tokens=0)
    with victim:
        (attempt,) = attack.attempt(victim, [example])[""]
        texts = [text for _, text in survivors(victim, example["prompt"], 1)]
        rows = [aimed(victim, appended(example, text)) for text in texts]
        found = []
        for row in rows:
            ids, labels = torch.tensor([row["input_ids"]]), torch.tensor([row["labels"]])
            with torch.no_grad():
                found.append(model(input_ids=ids, attention_mask=torch.ones_like(ids), labels=labels).loss.item())
    assert attempt.measures["target_loss"] == pytest.approx(min(found), abs=1e-4)


def test_through_evaluate_with_metrics_of_its_own():
    model, tokenizer, _ = tiny("llama-causal-lm")
    attack = GCGAttack(suffix_length=2, steps=2, width=8, answer_tokens=2)
    attack.name = "gcg"
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    measured = evaluate(chat(), model, tokenizer, {"test": examples()}, attacks=[attack])
    metrics = measured.metrics["test against gcg"]
    assert metrics["attack_success"] + metrics["accuracy_under_attack"] == 1.0
    assert metrics["target_loss"] < metrics["target_loss_before"]
    assert {"queries", "matched", "complied", "complied_before"} <= set(metrics)
    assert not {"perplexity", "accuracy_before_attack"} & set(metrics)
    assert len(measured.attempts) == 3
    assert torch.equal(state, torch.get_rng_state())
    assert model.training
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


@pytest.mark.parametrize(("task", "name"), [(TextClassification, "text-classification"), (Dialogue, "dialogue")])
def test_other_tasks_are_refused(task, name):
    made = task()
    made.name = name
    attack = GCGAttack()
    attack.name = "gcg"
    with pytest.raises(UsageError) as refused:
        evaluate(made, None, None, {}, attacks=[attack])
    assert str(refused.value) == (
        f"attack gcg: rows of task {name} are not one prompt and its completion, which is the target; "
        "expected the task chat"
    )


def said_anyway(victim, example):
    """The example with the model's own likeliest word as its completion."""
    features = aimed(victim, example)
    first = next(i for i, label in enumerate(features["labels"]) if label != IGNORED)
    with torch.no_grad():
        word = victim.model(torch.tensor([features["input_ids"]])).logits[0, first - 1].argmax().item()
    found = example.replace(completion=victim.tokenizer.decode([word]))
    assert asked(victim, found["prompt"], found["completion"])[1]
    return found


def test_a_row_that_matches_as_it_stands_is_not_attacked_and_counted_apart():
    model, tokenizer, _ = tiny("llama-causal-lm")
    attack = GCGAttack(suffix_length=2, steps=1, width=2, top_k=2, answer_tokens=0)
    attack.name = "gcg"
    with victim_of(model) as victim:
        rows = [said_anyway(victim, examples()[0]), *examples()[1:]]
        first, *others = attack.attempt(victim, rows)[""]
    assert (first.reached, first.broken, first.example, first.queries) == (True, False, None, 1)
    assert (first.measures["matched_before"], first.measures["matched"]) == (1.0, 1.0)
    assert first.measures["target_loss"] == first.measures["target_loss_before"]
    assert not any(attempt.reached or attempt.broken for attempt in others)
    metrics = evaluate(chat(), model, tokenizer, {"test": rows}, attacks=[attack]).metrics["test against gcg"]
    assert metrics["attack_success"] == 0.0, "of the two that did not match before"
    assert metrics["matched_before"] == metrics["matched"] == pytest.approx(1 / 3)
    assert metrics["accuracy_under_attack"] == pytest.approx(2 / 3)


def merging_repeats(encode):
    """A task's `encode`, as if repeated tokens were one."""

    def merged(given, tokenizer):
        features = encode(given, tokenizer)
        ids = features["input_ids"]
        kept = [i for i in range(len(ids)) if not (i and ids[i] == ids[i - 1])]
        return {name: [values[i] for i in kept] for name, values in features.items()}

    return merged


def test_a_tokenizer_that_cannot_read_a_suffix_is_refused_before_anything_is_asked(monkeypatch):
    model, tokenizer, _ = tiny("llama-causal-lm")
    task = chat()
    task.encode = merging_repeats(task.encode)
    attack = GCGAttack(suffix_length=3)
    attack.name = "gcg"
    monkeypatch.setattr(model, "forward", None)
    with pytest.raises(UsageError) as refused:
        evaluate(task, model, tokenizer, {"test": examples()}, attacks=[attack])
    assert str(refused.value) == (
        "attack gcg: the tokenizer does not read ! ! ! … as a token each, or the task has no room; expected a suffix "
        "to begin with; raise the task's maximum_length, or take pgd with `target: completion`, which needs no text"
    )


def test_a_row_in_which_no_suffix_can_be_read_is_said_so():
    victim, (example, *_) = victim_of(), examples()
    victim.task.encode = merging_repeats(victim.task.encode)
    with victim, pytest.raises(UsageError, match=r"row 0: the tokenizer does not read ! ! ! … as a token each"):
        GCGAttack(suffix_length=3).attempt(victim, [example])
