"""What a recipe's `reference:` may be: the model that the trained one is compared with, token by token."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from alignkit.checking import checked
from alignkit.errors import UsageError
from alignkit.models.adapters import Peft
from alignkit.models.likeness import other_vocabulary
from alignkit.recipe import Recipe
from alignkit.testing import models
from alignkit.testing.run_cases import base_model

CHAT = [{"prompt": "where is ada ?", "completion": "in rome"}, {"prompt": "who was it ?", "completion": "bob"}]


@pytest.fixture
def folder(tmp_path: Path, language_model: Path) -> Path:
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, CHAT)), "utf-8")
    (tmp_path / "rows.csv").write_text("text,label\ngood film,a\nbad film,b\n", "utf-8")
    return tmp_path


def saved(folder: Path, head: str, seed: int = 1, labels: list[str] | None = None, rows: int = 0) -> str:
    """A tiny model in a folder, with other labels, or with more rows in its embeddings."""
    model, tokenizer, _ = models.tiny(head, seed)
    if labels:
        model.config.id2label = dict(enumerate(labels))
        model.config.label2id = {label: i for i, label in enumerate(labels)}
        model.classifier = type(model.classifier)(model.classifier.in_features, len(labels))
    if rows:
        model.resize_token_embeddings(rows)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def with_another_token(folder: Path) -> None:
    text = (folder / "tokenizer.json").read_text("utf-8")
    (folder / "tokenizer.json").write_text(text.replace('"rome"', '"oslo"'), "utf-8")


def exchanged(folder: Path) -> None:
    """The same tokens, two of them with each other's ids."""
    text = (folder / "tokenizer.json").read_text("utf-8")
    text = text.replace('"rome"', '"@@x"').replace('"paris"', '"rome"').replace('"@@x"', '"paris"')
    (folder / "tokenizer.json").write_text(text, "utf-8")


def wrong(folder: Path, **fields: Any) -> list[str]:
    """What is said of a recipe's reference."""
    try:
        checked(Recipe(base=folder, **{"constraints": ["kl-reference"], **fields}))
    except UsageError as error:
        return [str(mistake) for mistake in error.mistakes]
    return []


def of_chat(folder: Path, reference: str, **fields: Any) -> list[str]:
    model = saved(folder / "model", "llama-causal-lm", 0)
    given = {"task": "chat", "data": {"train": "rows.jsonl"}, "reference": reference, **fields}
    return wrong(folder, model=model, **given)


def of_classes(folder: Path, reference: str, model: str = "", **fields: Any) -> list[str]:
    model = model or saved(folder / "model", "bert-sequence-classification", labels=["a", "b"])
    data = {"train": "rows.csv"}
    return wrong(folder, model=model, task="text-classification", data=data, reference=reference, **fields)


# -- tokens ------------------------------------------------------------------------------------------------------


def test_one_with_the_same_tokens_is_taken(folder: Path) -> None:
    assert of_chat(folder, saved(folder / "other", "llama-causal-lm")) == []


def test_another_vocabulary_is_refused(folder: Path) -> None:
    other = saved(folder / "other", "llama-causal-lm")
    with_another_token(folder / "other")
    said = f"reference {other!r}: it has another vocabulary: 2 tokens differ, 'oslo' is "
    (found,) = of_chat(folder, other)
    assert found.startswith(said)
    assert found.endswith("expected the model's, where it is not in it; take a model of its family")


def test_an_objectives_reference_is_held_against_the_model_too(folder: Path) -> None:
    pairs = [{"prompt": "hi", "chosen": "what ?", "rejected": "bob"}]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, pairs)), "utf-8")
    other = saved(folder / "other", "llama-causal-lm", rows=len(models.tokenizer("llama-causal-lm")) + 8)
    dpo = {"constraints": [], "task": "preference", "objective": "dpo"}
    assert of_chat(folder, other, **dpo) == [], "probabilities of single tokens are compared, whatever else there is"
    with_another_token(folder / "other")
    assert "another vocabulary" in of_chat(folder, other, **dpo)[0]
    free = {**dpo, "objective": {"use": "dpo", "reference_free": True}}
    assert "neither the objective nor a component" in of_chat(folder, other, **free)[0]


def test_the_same_tokens_with_other_ids_are_refused(folder: Path) -> None:
    other = saved(folder / "other", "llama-causal-lm")
    exchanged(folder / "other")
    assert "another vocabulary: 2 tokens differ, 'paris' is " in of_chat(folder, other)[0]
    own, others = {"in": 0, "rome": 1, "paris": 2}, {"in": 0, "rome": 2, "paris": 1}
    assert other_vocabulary("reference", "it", own, own) is None
    found = other_vocabulary("reference", "it", own, others)
    assert found is not None
    assert found.found == "it has another vocabulary: 2 tokens differ, 'paris' is 1"
    assert found.expected == "the model's, where it is 2"


def test_a_classifiers_tokens_are_compared_too(folder: Path) -> None:
    other = saved(folder / "other", "bert-sequence-classification", labels=["a", "b"])
    assert of_classes(folder, other) == []
    with_another_token(folder / "other")
    assert "another vocabulary" in of_classes(folder, other)[0]


def test_more_probabilities_than_the_models_are_refused_where_all_are_compared(folder: Path) -> None:
    own = len(models.tokenizer("llama-causal-lm"))
    other = saved(folder / "other", "llama-causal-lm", rows=own + 8)
    (found,) = of_chat(folder, other)
    said = f"it gives each token {own + 8} probabilities; expected {own}, as the model does"
    assert found == f"reference {other!r}: {said}"


# -- kinds and heads ---------------------------------------------------------------------------------------------


def test_one_of_another_kind_is_named_as_the_reference(folder: Path) -> None:
    other = saved(folder / "other", "t5")
    (found,) = of_chat(folder, other)
    assert found == f"reference {other!r}: t5 does not read from left to right only; expected a causal language model"
    model = saved(folder / "summariser", "llama-causal-lm")
    (folder / "pairs.jsonl").write_text('{"text": "ada lives in rome", "summary": "ada"}\n', "utf-8")
    data = {"train": {"path": "pairs.jsonl", "columns": {"source": "text", "target": "summary"}}}
    (found,) = wrong(folder, model=model, task="summarization", data=data, reference=other)
    said = "a t5, which is asked by AutoModelForSeq2SeqLM; expected AutoModelForCausalLM"
    assert found == f"reference {other!r}: {said}"


def test_one_without_a_head_is_refused(folder: Path) -> None:
    other = str(base_model(folder / "other", "AutoModelForSequenceClassification"))
    (found,) = of_classes(folder, other)
    said = "BertForMaskedLM has no head that was trained for text-classification; expected a model trained for the task"
    assert found == f"reference {other!r}: {said}; train it first, and name that run"


@pytest.mark.parametrize("labels", [["b", "a"], ["a", "b", "c"], ["x", "y"]])
def test_other_labels_and_another_order_are_refused(folder: Path, labels: list[str]) -> None:
    other = saved(folder / "other", "bert-sequence-classification", labels=labels)
    (found,) = of_classes(folder, other)
    said = f"reference {other!r}: its head is for the labels {', '.join(labels)}; expected the model's: a, b; "
    assert found == f"{said}train it on the same data"


def test_the_order_is_the_models_own_not_the_datas(folder: Path) -> None:
    labels = ["b", "a"]
    model = saved(folder / "turned", "bert-sequence-classification", labels=labels)
    assert of_classes(folder, saved(folder / "other", "bert-sequence-classification", labels=labels), model) == []
    sorted_ = saved(folder / "sorted", "bert-sequence-classification", labels=["a", "b"])
    assert "expected the model's: b, a" in of_classes(folder, sorted_, model)[0]
    bare = str(base_model(folder / "bare", "AutoModelForSequenceClassification"))
    assert of_classes(folder, sorted_, bare) == []


def test_a_prompt_is_refused(folder: Path) -> None:
    from alignkit.aligned import find_task
    from alignkit.models import load, save

    saved(folder / "other", "llama-causal-lm")
    peft = Peft(method="prompt-tuning", num_virtual_tokens=2)
    save(*load(folder / "other", find_task("chat"), peft=peft), folder / "prompted")
    (found,) = of_chat(folder, str(folder / "prompted"))
    assert "it has a trained prompt, which stands before the text; expected a whole model" in found


def test_one_that_nothing_compares_with_is_refused(folder: Path) -> None:
    other = saved(folder / "other", "llama-causal-lm")
    (found,) = of_chat(folder, other, constraints=[])
    said = "neither the objective nor a component compares with it; expected one that does, such as kl-reference"
    assert found == f"reference {other!r}: {said}; take it out"
