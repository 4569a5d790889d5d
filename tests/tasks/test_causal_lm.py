"""Causal language modelling: plain text as windows, each token learnt once, and texts continued."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import alignkit
from alignkit import models
from alignkit.aligned import Aligned
from alignkit.data.load import load as load_data
from alignkit.data.source import Source
from alignkit.errors import UsageError
from alignkit.evaluation.score import measure, predictions
from alignkit.tasks.causal_lm import CausalLm
from alignkit.testing import tokenizer

WORDS = tokenizer("llama-causal-lm")
EOS = WORDS.eos_token_id


def test_every_token_but_the_first_is_learnt_exactly_once():
    task = CausalLm(maximum_length=8)
    example = task.inputs("ada saw bob and he saw her and they went to paris to see a film")
    ids = WORDS(example["text"])["input_ids"] + [EOS]
    rows = task.encode(example, WORDS)
    assert all(len(row["input_ids"]) <= 8 for row in rows)
    assert [label for row in rows for label in row["labels"] if label != -100] == ids[1:]
    assert all(row["labels"][0] == -100 for row in rows)
    assert [row["window"] for row in rows] == list(range(len(rows)))
    assert task.encode(task.inputs("a"), WORDS)[0]["labels"] == [-100, EOS]


def test_a_document_is_scored_as_its_windows_are(language_model: Path):
    task = CausalLm(maximum_length=8)
    model, words = models.load(language_model, task)
    example = task.inputs("ada saw bob and he saw her and they went to paris to see a film")
    nll, tokens = 0.0, 0
    with torch.inference_mode():
        for row in task.encode(example, words):
            ids = torch.tensor([row["input_ids"]])
            logits = model.eval()(ids).logits[0, :-1].log_softmax(-1)
            nll -= float(logits.gather(1, ids[0, 1:, None]).sum())
            tokens += len(row["input_ids"]) - 1
    (prediction,) = predictions(task, model, words, [example], batch_size=2)
    assert prediction == {"nll": pytest.approx(nll, rel=1e-5), "tokens": tokens}
    assert measure(task, [example], [prediction])["loss"] == pytest.approx(nll / tokens, rel=1e-5)
    twice = [{"nll": 2.0, "tokens": 3, "window": 0}, {"nll": 1.0, "tokens": 2, "window": 1}]
    assert task.join([*twice, twice[0]]) == {"nll": 3.0, "tokens": 5}


def test_texts_are_continued(language_model: Path):
    task = CausalLm(max_new_tokens=4)
    model, words = models.load(language_model, task)
    short, _ = Aligned(task, model, words).predict(["ada went", "she saw a film in paris and"])
    ids = torch.tensor([words("ada went")["input_ids"]])
    with torch.inference_mode():
        alone = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=4, do_sample=False)[
            0, ids.shape[1] :
        ]
    end = alone.tolist().index(EOS) if EOS in alone else 4
    assert short == {"text": "ada went", "continuation": words.decode(alone[:end], skip_special_tokens=True)}


@pytest.mark.parametrize(
    ("documents", "expected"),
    [
        ("line", [("ada went", 2), ("to rome", 3), ("bob", 6)]),
        ("paragraph", [("ada went\nto rome", 2), ("bob", 6)]),
        ("file", [("ada went\nto rome\n\n \nbob", 2)]),
    ],
)
def test_text_files_hold_documents(documents, expected, tmp_path):
    (tmp_path / "a.txt").write_text("\nada went\r\nto rome\n\n \nbob\n", "utf-8")
    task = CausalLm(documents=documents)
    examples = load_data({"train": [Source(path="a.txt")]}, task, tmp_path)["train"]
    assert [(e["text"], e.line) for e in examples] == expected


def test_wrong_rows_are_reported_with_their_lines(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "ada"}\n{"texts": "bob"}\n{"text": 3}\n{"text": " "}\n', "utf-8")
    (tmp_path / "b.txt").write_text("\n \n", "utf-8")
    with pytest.raises(UsageError) as caught:
        load_data({"train": [Source(path="a.jsonl"), Source(path="b.txt")]}, CausalLm(), tmp_path)
    assert [str(mistake) for mistake in caught.value.mistakes] == [
        "a.jsonl:2: no 'text'; did you mean 'texts'?; map it with `columns: {text: …}`",
        "a.jsonl:3: 'text' is 3; expected text",
        "a.jsonl:4: 'text' is blank; expected text",
        "b.txt: no rows",
    ]


def test_encoders_are_refused(encoder: Path):
    with pytest.raises(UsageError, match=r"model: bert does not read from left to right only; .* there is masked-lm"):
        models.facts(encoder, CausalLm())


@pytest.mark.parametrize("peft", [None, {"method": "prompt-tuning", "num_virtual_tokens": 3}])
def test_short_documents_share_rows_in_training_where_the_model_keeps_them_apart(
    peft, language_model, tmp_path, monkeypatch
):
    from alignkit.trainer import AlignTrainer

    seen = []
    trained = AlignTrainer.train
    monkeypatch.setattr(AlignTrainer, "train", lambda self, *a, **k: (seen.append(self), trained(self, *a, **k))[1])
    (tmp_path / "a.txt").write_text("ada went to rome\nbob saw paris\n" * 4, "utf-8")
    run = alignkit.train(
        alignkit.Recipe(
            model=str(language_model),
            task={"use": "causal-lm", "maximum_length": 16},
            peft=peft,
            data={"train": "a.txt", "test": "a.txt"},
            training={"max_steps": 1, "use_cpu": True},
            evaluation={"replicates": 100},
            adversary="fgm",
            output=str(tmp_path / "run"),
            base=tmp_path,
        )
    )
    assert len(seen[0].train_dataset) == (3 if peft is None else 8)
    assert run.metrics["after"]["test"]["loss"]["n"] == 8
