"""`head:`: dropout in front of a task's head, and other fields of the model's config."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import DistilBertConfig, DistilBertForMaskedLM

import alignkit
from alignkit import models
from alignkit.errors import UsageError
from alignkit.models.saving import quiet
from alignkit.tasks.chat import Chat
from alignkit.tasks.ner import Ner
from alignkit.tasks.text_classification import TextClassification
from alignkit.testing import tokenizer


def classification():
    task = TextClassification()
    task.prepare({"train": [task.parse({"text": "x", "label": label}, "a:1") for label in "ab"]})
    return task


@pytest.fixture(scope="module")
def distilbert(tmp_path_factory):
    folder = tmp_path_factory.mktemp("distilbert")
    config = DistilBertConfig(vocab_size=97, dim=32, hidden_dim=64, n_layers=1, n_heads=2, max_position_embeddings=64)
    with torch.random.fork_rng(devices=[]), quiet():
        DistilBertForMaskedLM(config).save_pretrained(folder)
        tokenizer("bert-masked-lm").save_pretrained(folder)
    return folder


def test_dropout_is_in_the_module(encoder: Path, distilbert: Path):
    model, _ = models.load(encoder, classification(), head={"dropout": 0.37})
    assert model.dropout.p == 0.37
    assert model.bert.embeddings.dropout.p == 0.1
    model, _ = models.load(distilbert, classification(), head={"dropout": 0.37})
    assert model.dropout.p == 0.37
    model, _ = models.load(encoder, classification(), head={"hidden_dropout_prob": 0.21})
    assert model.bert.embeddings.dropout.p == 0.21


def test_a_run_keeps_it(encoder: Path, ner_data: Path, tmp_path: Path):
    run = alignkit.train(
        alignkit.Recipe(
            model=str(encoder),
            task="ner",
            head={"dropout": 0.37},
            data={"train": "train.conll", "test": "test.conll"},
            training={"max_steps": 1, "use_cpu": True},
            evaluation={"replicates": 100},
            base=ner_data,
            output=str(tmp_path / "run"),
        )
    )
    assert run.model.dropout.p == 0.37
    assert json.loads((run.path / "model" / "config.json").read_text("utf-8"))["classifier_dropout"] == 0.37
    assert models.load(run.path / "model", Ner())[0].dropout.p == 0.37
    assert alignkit.Recipe.load(run.path / "recipe.yaml").head == {"dropout": 0.37}


@pytest.mark.parametrize(
    ("head", "messages"),
    [
        (
            {"hidden": 256},
            [
                "head.hidden: bert has no field for the width of its head; expected a field of its config; "
                "there is attention_probs_dropout_prob, classifier_dropout, hidden_dropout_prob"
            ],
        ),
        (
            {"classifier_dropot": 0.1, "num_labels": 3},
            [
                "head.classifier_dropot: bert has no field 'classifier_dropot'; expected a field of its config; "
                "did you mean 'classifier_dropout'?",
                "head.num_labels: the labels of the data set it; take it out",
            ],
        ),
        ({"dropout": 1.5}, ["head.dropout: 1.5; expected a number from 0 to 1, below 1"]),
        ({"dropout": "much"}, ["head.dropout: 'much'; expected a number from 0 to 1, below 1"]),
        ({"hidden_act": 3}, ["head: bert does not take it"]),
        (
            {"num_hidden_layers": -1, "num_attention_heads": -2, "layer_norm_eps": float("nan")},
            [
                "head.num_hidden_layers: -1; expected a number from 0 on; the model's own is 2",
                "head.num_attention_heads: -2; expected a number from 0 on; the model's own is 4",
                "head.layer_norm_eps: nan; expected a number from 0 on; the model's own is 1e-12",
            ],
        ),
        (
            {"num_hidden_layers": 0},
            ["head: a field under it takes all 2 layers of bert.encoder.layer away; expected a model with layers; "],
        ),
    ],
)
def test_what_the_model_has_not_is_refused(head, messages, encoder, ner_data, tmp_path, alignkit_cli):
    recipe = {"model": str(encoder), "task": "ner", "data": {"train": str(ner_data / "train.conll")}, "head": head}
    (tmp_path / "r.json").write_text(json.dumps(recipe), "utf-8")
    code, _, error = alignkit_cli("check", tmp_path / "r.json")
    assert code == 2
    assert [message for message in messages if message not in error] == []
    assert len(error.strip().splitlines()) == len(messages)


def test_a_model_without_dropout_before_its_head(language_model: Path, distilbert: Path):
    with pytest.raises(
        UsageError, match=r"head.dropout: llama has no field for the dropout of its head; .* attention_dropout"
    ):
        models.load(language_model, classification(), head={"dropout": 0.2})
    chat = Chat()
    chat.name = "chat"
    with pytest.raises(UsageError, match=r"head.dropout: task chat puts no head of its own on the model"):
        models.load(language_model, chat, head={"dropout": 0.2})
    with pytest.raises(UsageError, match=r"head.dropout: distilbert has no field for the dropout of its head"):
        models.load(distilbert, Ner(), head={"dropout": 0.2})
