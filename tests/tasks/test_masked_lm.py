"""Masked language modelling: how masks fall, that they are reproducible, and pre-training before fine-tuning."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForMaskedLM, BertModel

import alignkit
from alignkit import models
from alignkit.aligned import Aligned
from alignkit.data.collate import StepCollator
from alignkit.errors import UsageError
from alignkit.evaluation.score import measure, predictions
from alignkit.models.saving import quiet
from alignkit.step import generator_at
from alignkit.tasks.masked_lm import MaskedLm
from alignkit.testing import tiny, tokenizer
from alignkit.testing.models import VOCABULARY

WORDS = tokenizer("bert-masked-lm")
MASK = WORDS.mask_token_id


def long_text(number, length=400):
    return " ".join(random.Random(number).choices(["ada", "bob", "film", "paris", "zebra", "good", "x"], k=length))


def whole(features):
    return [
        label if label != -100 else token
        for token, label in zip(features["input_ids"], features["labels"], strict=True)
    ]


def batch_of(task, rows):
    return StepCollator(lambda part: task.collate(part, WORDS), task.columns)(rows)


def test_masks_fall_as_devlin_et_al_say():
    task = MaskedLm(maximum_length=64)
    rows = [row for n in range(40) for row in task.encode(task.inputs(long_text(n)), WORDS)]
    tokens = hidden = masked = kept = 0
    for row in rows:
        assert row["input_ids"][0] == WORDS.cls_token_id
        assert row["input_ids"][-1] == WORDS.sep_token_id
        original = whole(row)
        assert not {
            i for i, label in enumerate(row["labels"]) if label != -100 and original[i] in WORDS.all_special_ids
        }
        tokens += sum(word >= 0 for word in row["words"])
        for given, label in zip(row["input_ids"], row["labels"], strict=True):
            if label != -100:
                hidden, masked, kept = hidden + 1, masked + (given == MASK), kept + (given == label)
                assert given == MASK or given not in WORDS.all_special_ids
    assert tokens > 20_000
    assert hidden / tokens == pytest.approx(0.15, abs=0.01)
    assert masked / hidden == pytest.approx(0.80, abs=0.02)
    assert kept / hidden == pytest.approx(0.10 + 0.10 / (len(VOCABULARY) - 7), abs=0.02)


@pytest.mark.parametrize("whole_words", [True, False])
def test_all_pieces_of_a_word_are_hidden_or_none(whole_words):
    task = MaskedLm(maximum_length=64, whole_words=whole_words)
    split = 0
    for n in range(10):
        for row in task.encode(task.inputs(long_text(n, 8)), WORDS):
            by_word = {}
            for word, label in zip(row["words"], row["labels"], strict=True):
                by_word.setdefault(word, set()).add(label != -100)
            split += sum(len(states) > 1 for word, states in by_word.items() if word >= 0)
            pieces = WORDS.convert_ids_to_tokens(whole(row))
            if whole_words:
                assert [w for w in row["words"] if w >= 0] == sorted(w for w in row["words"] if w >= 0)
                assert len({w for w in row["words"] if w >= 0}) == sum(not p.startswith(("##", "[")) for p in pieces)
            else:
                assert len({w for w in row["words"] if w >= 0}) == sum(not p.startswith("[") for p in pieces)
    assert split == 0


def test_a_chinese_character_is_a_word():
    task = MaskedLm()
    assert task._words([None, (0, "北"), (0, "京"), (1, "zeb"), (1, "ra"), None]) == [-1, 0, 1, 2, 2, -1]


def test_evaluation_hides_the_same_words_every_time_and_in_views():
    task = MaskedLm()
    one = task.parse({"text": "bob saw a film in paris , it was good"}, "a:1")
    assert task.encode(one, WORDS) == MaskedLm().encode(one, WORDS)
    from dataclasses import replace

    rows = [replace(one, row=n) for n in range(8)]
    assert len({json.dumps(task.encode(row, WORDS)) for row in rows}) > 1
    for row in rows:
        view = row.map_words(lambda w: {"bob": "ada", "paris": "rome"}.get(w, w))
        hidden = [[label != -100 for label in task.encode(e, WORDS)[0]["labels"]] for e in (row, view)]
        assert hidden[0] == hidden[1]


def test_masks_are_drawn_anew_from_the_step_alone():
    task = MaskedLm(maximum_length=32)
    task.take_model(tiny("bert-masked-lm")[0].config.to_dict())
    rows = [row for n in range(3) for row in task.encode(task.inputs(long_text(n, 10)), WORDS)]
    for found in (rows, task.pack(rows)):
        batch = batch_of(task, found)
        columns = batch.pop("columns")
        drawn = [task.redraw(dict(batch), columns, generator_at(1, step, 0, 0, "masked-lm")) for step in (5, 5, 6)]
        assert torch.equal(drawn[0]["labels"], drawn[1]["labels"])
        assert torch.equal(drawn[0]["input_ids"], drawn[1]["input_ids"])
        assert not torch.equal(drawn[0]["labels"], drawn[2]["labels"])
        originals = [torch.where(b["labels"] == -100, b["input_ids"], b["labels"]) for b in (batch, *drawn)]
        assert all(torch.equal(originals[0], other) for other in originals[1:])
        assert all((b["labels"] != -100).any(1).all() for b in drawn)


def test_metrics_are_those_of_the_models_own_loss(encoder: Path):
    task = MaskedLm(maximum_length=24)
    model, words = models.load(encoder, task)
    examples = [task.inputs(long_text(n, 40)) for n in range(3)]
    found = measure(task, examples, predictions(task, model, words, examples))
    batch = task.collate([row for e in examples for row in task.encode(e, words)], words)
    with torch.inference_mode():
        outputs = model.eval()(**batch)
    scored = batch["labels"] != -100
    assert found["loss"] == pytest.approx(float(outputs.loss), rel=1e-5)
    assert found["perplexity"] == pytest.approx(float(outputs.loss.exp()), rel=1e-5)
    right = (outputs.logits.argmax(-1) == batch["labels"])[scored].float().mean()
    assert found["accuracy"] == pytest.approx(float(right))
    windows = task.decode(outputs, {**batch, "columns": {"window": [0, 1, 2, 0, 1, 2, 0, 1, 2][: len(scored)]}})
    assert task.join([*windows[:2], windows[1]]) == task.join(windows[:2])


def test_masks_in_a_text_are_filled(encoder: Path):
    task = MaskedLm()
    model, words = models.load(encoder, task)
    with torch.inference_mode():
        model.cls.predictions.bias[words.convert_tokens_to_ids("good")] = 50.0
    answers = Aligned(task, model, words).predict(["the [MASK] was [MASK] .", "bob"])
    assert answers[0]["filled"] == "the good was good."
    assert [len(mask) for mask in answers[0]["masks"]] == [5, 5]
    assert answers[0]["masks"][1][0] == {"token": "good", "probability": pytest.approx(1.0, abs=1e-3)}
    assert answers[1] == {"text": "bob", "filled": "bob", "masks": []}


def test_models_that_cannot_fill_gaps_are_refused(language_model: Path):
    with pytest.raises(UsageError, match=r"llama is no encoder; expected an encoder .BERT, RoBERTa ….; .* causal-lm"):
        models.facts(language_model, MaskedLm())
    with pytest.raises(UsageError, match=r"the model's tokenizer: it has no mask token"):
        MaskedLm().encode(MaskedLm().inputs("ada"), tokenizer("llama-causal-lm"))


# -- whole runs --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    folder = tmp_path_factory.mktemp("text")
    (folder / "text.txt").write_text("".join(long_text(n, 8) + "\n" for n in range(40)), "utf-8")
    return folder


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    """A folder with a tiny BERT as encoders are published: without a language-model head."""
    folder = tmp_path_factory.mktemp("bare") / "bert"
    with torch.random.fork_rng(devices=[]), quiet():
        torch.manual_seed(0)
        BertModel(tiny("bert-masked-lm", dropout=0.1)[0].config).save_pretrained(folder)
        WORDS.save_pretrained(folder)
    return folder


def pretrain(folder, text, model, **changes):
    return alignkit.Recipe(
        model=str(model),
        task={"use": "masked-lm", "maximum_length": 32},
        data={"train": "text.txt", "test": "text.txt"},
        training={
            "max_steps": 4,
            "save_strategy": "steps",
            "save_steps": 2,
            "per_device_train_batch_size": 2,
            "use_cpu": True,
        },
        evaluation={"replicates": 100},
        output=str(folder),
        base=text,
        **changes,
    )


def test_pre_training_a_bare_encoder_then_fine_tuning_it(text, bare, tmp_path, ner_data):
    facts = models.facts(bare, MaskedLm())
    assert facts.fresh_head
    run = alignkit.train(pretrain(tmp_path / "pre", text, bare, adversary="fgm"))
    assert "before" not in run.metrics or not run.metrics["before"]
    assert not models.facts(run.path / "model", MaskedLm()).fresh_head
    assert AutoModelForMaskedLM.from_pretrained(run.path / "model").config.architectures == ["BertForMaskedLM"]
    tuned = alignkit.train(
        alignkit.Recipe(
            model=str(run.path),
            task="ner",
            data={"train": "train.conll", "test": "test.conll"},
            base=ner_data,
            training={"max_steps": 1, "use_cpu": True, "learning_rate": 0.0},
            evaluation={"replicates": 100},
            output=str(tmp_path / "tuned"),
        )
    )
    pretrained, used = run.model.bert.state_dict(), tuned.model.bert.state_dict()
    assert pretrained.keys() == used.keys()
    assert all(torch.equal(pretrained[name], used[name]) for name in pretrained)


def test_lora_trains_a_new_head_with_its_adapter_and_can_be_loaded(text, bare, tmp_path):
    run = alignkit.train(pretrain(tmp_path / "lora", text, bare, peft={"method": "lora", "r": 2}))
    again = alignkit.load(run.path)
    question = ["the [MASK] was good"]
    assert again.predict(question)[0]["masks"][0][0]["token"] == run.predict(question)[0]["masks"][0][0]["token"]


def test_a_resumed_run_gives_the_same_bytes(text, encoder, tmp_path):
    whole_run = alignkit.train(pretrain(tmp_path / "a", text, encoder))
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    for name in ("checkpoints/checkpoint-4", "model"):
        shutil.rmtree(tmp_path / "b" / name)
    resumed = alignkit.train(pretrain(tmp_path / "b", text, encoder), resume=True)
    weights = [(run.path / "model" / "model.safetensors").read_bytes() for run in (whole_run, resumed)]
    assert weights[0] == weights[1]
