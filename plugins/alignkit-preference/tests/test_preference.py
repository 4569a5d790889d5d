"""The task `preference`: its rows, their encoding, its scores, a training."""

import json

import numpy as np
import pytest
import torch
from alignkit_constraints import KLReference
from alignkit_preference import DPO
from alignkit_preference.preference import Preference
from torch.distributions import Categorical, kl_divergence

import alignkit
from alignkit.errors import UsageError
from alignkit.testing.models import tiny

ROW = {"prompt": "where is ada ?", "chosen": "in rome", "rejected": "she is bad"}


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    """References are cached in a folder of the test's own."""
    monkeypatch.setenv("ALIGNKIT_CACHE", str(tmp_path / "cache"))


def tokenizer():
    return tiny("llama-causal-lm")[1]


def encoded(fields, **options):
    task = Preference(**options)
    return task.encode(task.parse(fields, "row 1"), tokenizer())


def talk(*said):
    """A row of two conversations that differ in their last message."""
    messages = [{"role": role, "content": content} for role, content in said]
    return {"chosen": messages, "rejected": [*messages[:-1], {"role": "assistant", "content": "other"}]}


def words(features, part):
    ids = [i for i, a in zip(features["input_ids"], features["answer"], strict=True) if a == part]
    return tokenizer().convert_ids_to_tokens(ids)


def test_a_row_is_the_prompt_and_both_answers_with_their_ends():
    features = encoded(ROW)
    assert words(features, 0) == ["[BOS]", "user", ":", "where", "is", "ada", "?", "[EOS]", "[BOS]", "assistant", ":"]
    assert words(features, 1) == ["in", "rome", "[EOS]"]
    assert words(features, 2) == ["she", "is", "bad", "[EOS]"]


@pytest.mark.parametrize(
    "fields",
    [
        {**ROW, "prompt": [{"role": "user", "content": "where is ada ?"}]},
        {**ROW, "chosen": [{"role": "assistant", "content": "in rome"}]},
        {
            name: [{"role": "user", "content": ROW["prompt"]}, {"role": "assistant", "content": ROW[name]}]
            for name in ("chosen", "rejected")
        },
        {
            **ROW,
            **{
                name: [{"role": "user", "content": ROW["prompt"]}, {"role": "assistant", "content": ROW[name]}]
                for name in ("chosen", "rejected")
            },
        },
    ],
    ids=["messages as prompt", "message as answer", "conversations", "conversations beside their prompt"],
)
def test_messages_are_the_same_row(fields):
    assert encoded(fields) == encoded(ROW)


def test_a_system_message_comes_first():
    assert words(encoded({**ROW, "system": "be good"}, system="be bad"), 0)[:5] == ["[BOS]", "system", ":", "b", "##e"]


def test_of_a_long_row_the_beginning_of_the_prompt_goes_and_then_the_ends_of_answers():
    whole, cut = encoded(ROW), encoded(ROW, maximum_length=10)
    assert words(cut, 1) == words(whole, 1)
    assert words(cut, 0)[0] == "[BOS]"
    assert words(cut, 0)[1:] == words(whole, 0)[-5:]
    short = encoded(ROW, maximum_length=4)
    assert [len(words(short, part)) for part in (0, 1, 2)] == [2, 2, 2]


@pytest.mark.parametrize(
    ("fields", "length"),
    [
        ({**ROW, "rejected": "in  rome"}, 512),
        ({**ROW, "rejected": "in rome and paris"}, 4),
        (ROW, 1),
    ],
    ids=["the same tokens", "cut to the same tokens", "no room"],
)
def test_answers_that_do_not_differ_are_left_out(fields, length):
    assert encoded(fields, maximum_length=length) is None


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"prompt": "a", "chosen": "b"}, "no 'rejected'"),
        ({"prompt": "a", "chosen": "b", "rejected": "b"}, "'chosen' and 'rejected' are the same"),
        ({"prompt": "a", "chosen": "b", "rejected": " "}, "'rejected' is blank"),
        ({"prompt": 3, "chosen": "b", "rejected": "c"}, "'prompt' is 3"),
        ({"chosen": "b", "rejected": "c"}, "no 'prompt'"),
        (
            {"prompt": "a", "chosen": [{"role": "user", "content": "b"}], "rejected": "c"},
            "does not end with the assistant's",
        ),
        ({"prompt": "a", "chosen": "b", "rejected": "c", "system": 1}, "'system' is 1"),
        (
            {n: [{"role": "user", "content": n}, {"role": "assistant", "content": n}] for n in ("chosen", "rejected")},
            "the conversations differ before their last message",
        ),
        (
            {**talk(("user", "a"), ("assistant", "b")), "prompt": "c"},
            r"not the user's first message.*leave `prompt` out",
        ),
        (
            {**talk(("user", "a"), ("assistant", "b")), "prompt": "a", "rejected": "c"},
            "one answer is a whole conversation",
        ),
        (
            {
                "prompt": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}],
                "chosen": "c",
                "rejected": "d",
            },
            r"ends with the assistant's message.*move what both answers begin with",
        ),
        (talk(("user", "a"), ("assistant", "b"), ("assistant", "c")), "ends with the assistant's message"),
        (
            {"prompt": [{"role": "system", "content": "a"}], "chosen": "c", "rejected": "d"},
            "ends with the system's message; expected the user's message last",
        ),
        ({"prompt": [], "chosen": "c", "rejected": "d"}, r"'prompt' is \[\]"),
        ({**talk(("system", "a"), ("user", "b"), ("assistant", "c")), "system": "d"}, "'system' beside messages"),
    ],
)
def test_rows_that_cannot_be_read(fields, said):
    with pytest.raises(UsageError, match=said):
        Preference().parse(fields, "row 1")


def test_scores():
    task = Preference()
    example = task.parse(ROW, "row 1")
    pair = {"chosen": -6.0, "rejected": -4.0, "chosen_tokens": 3, "rejected_tokens": 1}
    other = {"chosen": -1.0, "rejected": -4.0, "chosen_tokens": 1, "rejected_tokens": 2}
    totals = {}
    for prediction in (pair, other):
        for name, value in task.statistics(example, prediction).items():
            totals[name] = totals.get(name, 0.0) + value
    found = task.metrics(totals)
    assert (found["accuracy"], found["accuracy_per_token"], found["margin"]) == (0.5, 1.0, 0.5)
    assert found["perplexity"] == pytest.approx(np.exp(7 / 4))
    assert [task.score(example, p) for p in (pair, other)] == [0.0, 1.0]


def write(folder):
    model, tokens, _ = tiny("llama-causal-lm")
    model.save_pretrained(folder / "base")
    tokens.save_pretrained(folder / "base")
    lines = "\n".join(json.dumps(row) for row in Preference.samples)
    (folder / "rows.jsonl").write_text(lines, "utf-8")


def train(folder, name, **more):
    training = {"max_steps": 12, "per_device_train_batch_size": 3, "learning_rate": 3e-3, "use_cpu": True}
    recipe = alignkit.Recipe(
        model="base", data={"train": "rows.jsonl", "validation": "rows.jsonl"}, base=folder,
        output=name, training=training, **{"task": "preference", **more},
    )  # fmt: skip
    return alignkit.train(recipe)


@pytest.mark.parametrize("peft", [None, {"method": "lora", "r": 4}])
@pytest.mark.parametrize("shared", [True, False])
def test_training_widens_the_margin(tmp_path, peft, shared):
    write(tmp_path)
    run = train(tmp_path, "run", peft=peft, **({} if shared else {"reference": "base"}))
    before, after = (run.metrics[side]["validation"]["margin"]["value"] for side in ("before", "after"))
    assert after > before + 0.5
    assert run.predict(["hi"])[0]["completion"] is not None


@pytest.mark.parametrize("method", ["prompt-tuning", "prefix-tuning"])
def test_separate_answers_can_have_virtual_tokens_before_them(tmp_path, method):
    write(tmp_path)
    peft = {"method": method, "num_virtual_tokens": 4}
    with pytest.raises(UsageError, match=r"answers that share a prompt.*shared_prompt: false"):
        train(tmp_path, "shared", peft=peft)
    run = train(tmp_path, "run", peft=peft, task=Preference(shared_prompt=False))
    before, after = (run.metrics[side]["validation"]["margin"]["value"] for side in ("before", "after"))
    assert after != before
    assert run.predict(["hi"])[0]["completion"] is not None


def test_the_reference_is_asked_once_per_row(tmp_path, monkeypatch):
    from alignkit.reference import Reference

    asked = []
    outputs = Reference.outputs
    monkeypatch.setattr(Reference, "outputs", lambda *given: asked.append(len(given[2]["labels"])) or outputs(*given))
    write(tmp_path)
    first = train(tmp_path, "one")
    assert sum(asked) == 6  # rows, of 12 steps of 3
    asked.clear()
    again = train(tmp_path, "two")
    assert asked == []
    assert first.metrics["after"] == again.metrics["after"]


def test_what_is_asked_before_training_is_kept_for_it(tmp_path, monkeypatch):
    from alignkit_preference import DPO, shared_prompt
    from transformers import TrainingArguments

    from alignkit import AlignTrainer
    from alignkit.reference import Reference
    from alignkit.step import TrainingStep

    model, words, _ = tiny("llama-causal-lm")
    task = Preference()
    rows = [shared_prompt.row([7, 8, 9 + i], [11, 12], [13, 14, 6]) for i in range(3)]
    args = TrainingArguments(
        output_dir=str(tmp_path / "run"), max_steps=3, per_device_train_batch_size=1, use_cpu=True, report_to="none",
        save_strategy="no", remove_unused_columns=False,
    )  # fmt: skip
    trainer = AlignTrainer(
        model=model, args=args, train_dataset=rows, processing_class=words, task=task, objective=DPO(),
        data_collator=lambda part: task.collate(part, words), cache=tmp_path / "cache",
    )  # fmt: skip
    for row in rows:
        TrainingStep(trainer.context, trainer.model, task.collate([row], words)).reference_label_log_probabilities()
    monkeypatch.setattr(Reference, "outputs", lambda *_: pytest.fail("asked again"))
    trainer.train()


@pytest.mark.parametrize("shared", [True, False])
def test_a_constraint_on_marked_pairs_looks_at_both_their_answers(shared, make_pair_step):
    number, marked = len(make_pair_step(DPO()).batch["labels"]), (0, 2)
    marks = ["yes" if i in marked else "no" for i in range(number)]
    step = make_pair_step(DPO(), shared=shared, components=(KLReference(marked="benign"),), columns={"benign": marks})
    step.loss()
    found = []
    for i in marked:
        alone = make_pair_step(DPO(), rows=slice(i, i + 1), components=(KLReference(),))
        with torch.no_grad():
            log_theta, _ = alone.log_probabilities(alone.forward())
        p, q = Categorical(logits=log_theta), Categorical(logits=alone.reference_log_probabilities())
        found.append(kl_divergence(q, p))
    expected, term = torch.cat(found), step.terms["kl-reference"]
    assert term.count == len(expected) == sum(int((step.batch["labels"][i] != -100).sum()) for i in marked)
    assert term.mean.item() == pytest.approx(expected.mean().item(), rel=1e-4)
