"""`model: {config: …, tokenizer: …}`: small models from scratch."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoTokenizer

import alignkit
from alignkit import models
from alignkit.errors import UsageError
from alignkit.models.scratch import Scratch, made
from alignkit.recipe import Recipe
from alignkit.tasks.masked_lm import MaskedLm
from alignkit.tasks.ner import Ner
from alignkit.testing import tokenizer

BERT = {
    "model_type": "bert",
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 40,
}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ALIGNKIT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_it_is_made_once_with_the_tokenizers_vocabulary_and_the_seeds_weights(encoder: Path, cache: Path):
    state = torch.random.get_rng_state()
    folder = made(Scratch(config=BERT, tokenizer=encoder.name), encoder.parent, seed=1)
    written = (folder / "model.safetensors").stat().st_mtime_ns
    again = made(Scratch(config=BERT, tokenizer=str(encoder)), ".", seed=1)
    assert folder == again
    assert written == (again / "model.safetensors").stat().st_mtime_ns
    other = made(Scratch(config=BERT, tokenizer=str(encoder)), ".", seed=2)
    wider = made(Scratch(config={**BERT, "hidden_size": 32}, tokenizer=str(encoder)), ".", seed=1)
    assert len({folder, other, wider}) == 3
    assert not list(cache.glob("scratch/.*"))
    assert torch.equal(state, torch.random.get_rng_state())
    words = AutoTokenizer.from_pretrained(folder)
    assert words.model_max_length == 40
    model = AutoModelForMaskedLM.from_pretrained(folder)
    assert model.config.vocab_size == len(words)
    assert model.config.pad_token_id == words.pad_token_id
    torch.manual_seed(1)
    drawn = AutoModelForMaskedLM.from_config(model.config).bert.embeddings.word_embeddings.weight
    assert torch.equal(model.bert.embeddings.word_embeddings.weight, drawn)


def test_its_head_is_that_of_its_pre_training(encoder: Path, language_model: Path):
    folder = made(Scratch(config=BERT, tokenizer=str(encoder)), ".", seed=1)
    assert not models.facts(folder, MaskedLm()).fresh_head
    assert models.facts(folder, Ner()).fresh_head
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    llama = Scratch(config={"model_type": "llama", **sizes}, tokenizer=str(language_model))
    assert AutoModelForCausalLM.from_pretrained(made(llama, ".", 1)).config.architectures == ["LlamaForCausalLM"]


def test_a_run_begins_with_it_and_says_so(encoder: Path, ner_data: Path, tmp_path: Path):
    recipe = Recipe(
        model={"config": BERT, "tokenizer": str(encoder)},
        task="ner",
        data={"train": "train.conll", "test": "test.conll"},
        training={"max_steps": 1, "use_cpu": True},
        evaluation={"replicates": 100},
        updater="replay",
        base=ner_data,
        output=str(tmp_path / "run"),
    )
    run = alignkit.train(recipe)
    assert run.model.config.hidden_size == 16
    written = yaml.safe_load((run.path / "recipe.yaml").read_text("utf-8"))
    assert written["model"] == {"config": BERT, "tokenizer": str(encoder)}
    assert Recipe.load(run.path / "recipe.yaml") == recipe
    assert json.loads((run.path / "lineage.json").read_text("utf-8"))["model"]["config"] == BERT
    assert "bert from scratch" in (run.path / "README.md").read_text("utf-8")
    assert "bert from scratch" in (run.path / "report.html").read_text("utf-8")
    assert repr(recipe) == "Recipe(model='bert from scratch', task='ner', 1 components)"


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (
            {"config": {**BERT, "hiden_size": 3, "zzz": 1}, "tokenizer": "x"},
            [
                "r.yaml:1 model.config.hiden_size: unknown field 'hiden_size'; expected a field of bert's config; "
                "did you mean 'hidden_size'?",
                "r.yaml:1 model.config.zzz: unknown field 'zzz'; expected a field of bert's config",
            ],
        ),
        (
            {"config": {"model_type": "brt"}, "tokenizer": "x"},
            ["r.yaml:1 model.config.model_type: 'brt'; expected a model type of transformers: bert"],
        ),
        ({"config": {}, "tokenizer": "x"}, ["r.yaml:1 model.config.model_type: missing; expected a model type"]),
        (
            {"confg": BERT, "tokenizer": "x"},
            ["r.yaml:1 model.confg: unknown field 'confg'; did you mean 'config'?"],
        ),
        (3, ["r.yaml:1 model: 3; expected a string, or a mapping with config"]),
    ],
)
def test_mistakes_in_a_recipe(model, expected, tmp_path, ner_data, alignkit_cli):
    recipe = {"model": model, "task": "ner", "data": {"train": str(ner_data / "train.conll")}, "seed": "x"}
    (tmp_path / "r.yaml").write_text(json.dumps(recipe), "utf-8")
    code, _, error = alignkit_cli("check", tmp_path / "r.yaml")
    assert code == 2
    said = error.replace(f"{tmp_path}/", "")
    assert [line for line in expected if line not in said] == []
    assert "r.yaml:1 seed: 'x'; expected an integer" in said


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"hidden_size": 17},
            "model.config: no bert can be made of it .ValueError: The hidden size .17. is not a multiple",
        ),
        ({"vocab_size": 5}, "vocab_size 5, where the tokenizer has 97 tokens"),
        ({"hidden_size": "wide"}, "model.config: no bert can be made of it"),
    ],
)
def test_configs_that_make_no_model(changes, message, encoder, cache):
    with pytest.raises(UsageError, match=message):
        made(Scratch(config={**BERT, **changes}, tokenizer=str(encoder)), ".", seed=1)
    assert list(cache.glob("scratch/*")) + list(cache.glob("scratch/.*")) == []


def test_a_folder_may_hold_a_tokenizer_alone(tmp_path):
    tokenizer("bert-masked-lm").save_pretrained(tmp_path / "words")
    folder = made(Scratch(config=BERT, tokenizer="words"), tmp_path, seed=1)
    assert AutoModelForMaskedLM.from_pretrained(folder).config.vocab_size == 97


def test_a_tokenizer_that_is_not_there():
    with pytest.raises(UsageError, match=r"model 'no/such': "):
        made(Scratch(config=BERT, tokenizer="no/such"), ".", seed=1)


def test_set_reaches_into_the_config(encoder, ner_data, tmp_path):
    file = tmp_path / "r.json"
    model = {"config": BERT, "tokenizer": str(encoder)}
    file.write_text(
        json.dumps({"model": model, "task": "ner", "data": {"train": str(ner_data / "train.conll")}}), "utf-8"
    )
    recipe = Recipe.load(file, overrides=["model.config.hidden_size=32"])
    assert recipe.model.config["hidden_size"] == 32
    schema = Recipe.json_schema()["properties"]["model"]["anyOf"]
    assert schema[0] == {"type": "string"}
    assert schema[1]["required"] == ["config", "tokenizer"]
