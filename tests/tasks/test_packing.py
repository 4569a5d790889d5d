"""Packed rows: the logits of every text are those of the text alone, for each kind of model that is packed for."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM

from alignkit.tasks.causal_lm import CausalLm
from alignkit.tasks.masked_lm import MaskedLm
from alignkit.tasks.packing import CAUSAL, MASKED, collated, first_position, packed
from alignkit.testing import make_step, tiny, tokenizer

TEXTS = ("the film was good", "ada lives in rome and bob in paris", "she saw it", "he")
SIZES = {
    "vocab_size": 97,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 5,
    "eos_token_id": 6,
    "head_dim": 8,
    "embedding_size": 32,
    "dim": 32,
    "hidden_dim": 64,
    "n_layers": 2,
    "n_heads": 4,
    "word_embed_proj_dim": 32,
}


def small(kind, attention):
    """A random model of a kind, of some 30,000 parameters."""
    known = AutoConfig.for_model(kind)
    names = {*known.to_dict(), *known.attribute_map}
    config = AutoConfig.for_model(kind, **{name: size for name, size in SIZES.items() if name in names})
    auto = AutoModelForCausalLM if kind in CAUSAL else AutoModelForMaskedLM
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = auto.from_config(config, attn_implementation=attention).eval()
        for parameter in model.parameters():
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, std=0.1)
    return model, config.to_dict()


def rows(causal):
    task = CausalLm() if causal else MaskedLm(probability=1e-9)
    words = tokenizer("llama-causal-lm" if causal else "bert-masked-lm")
    encoded = [row for text in TEXTS for row in task.encode(task.inputs(text), words)]
    for row in encoded:  # what was hidden does not matter here
        row["input_ids"] = [max(token, 7) if token not in (2, 3, 6) else token for token in row["input_ids"]]
    return encoded, words


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("kind", sorted(CAUSAL | MASKED))
def test_a_packed_text_has_the_logits_of_the_text_alone(kind, attention):
    model, config = small(kind, attention)
    encoded, words = rows(kind in CAUSAL)
    first = first_position(config, 32)
    together = packed(encoded, 16, first)
    assert 1 < len(together) < len(encoded)
    batch = collated([{n: row[n] for n in ("input_ids", "position_ids")} for row in together], words, kind in CAUSAL)
    assert batch["attention_mask"].shape == (len(together), 1, *batch["input_ids"].shape[1:] * 2)
    with torch.inference_mode():
        found = model(**batch).logits
        for row, ids, positions in zip(found, batch["input_ids"], batch["position_ids"], strict=True):
            starts = [i for i, p in enumerate(positions.tolist()) if p == first and (i == 0 or ids[i] != 0)]
            for start in starts:
                text = next(
                    e["input_ids"] for e in encoded if ids[start:].tolist()[: len(e["input_ids"])] == e["input_ids"]
                )
                alone = model(torch.tensor([text])).logits[0]
                assert float(alone.std()) > 0.01
                torch.testing.assert_close(row[start : start + len(text)], alone, atol=1e-5, rtol=1e-5)


def test_rows_are_filled_and_nothing_is_lost():
    encoded, _ = rows(causal=True)
    found = packed([{**row, "index": i, "length": len(row["input_ids"])} for i, row in enumerate(encoded)], 16, 0)
    assert sorted(token for row in found for token in row["input_ids"]) == sorted(
        token for row in encoded for token in row["input_ids"]
    )
    assert all(row["length"] == len(row["input_ids"]) == len(row["position_ids"]) <= 16 for row in found)
    assert [row["index"] for row in found] == sorted(row["index"] for row in found)
    for row in found:  # no text's first token is learnt from the text before it
        assert [row["labels"][i] for i, p in enumerate(row["position_ids"]) if p == 0] == [-100] * row[
            "position_ids"
        ].count(0)
    long = packed([{"input_ids": [7] * 20, "labels": [7] * 20}, {"input_ids": [8], "labels": [8]}], 16, 0)
    assert [len(row["input_ids"]) for row in long] == [20, 1]


def test_words_of_different_texts_stay_different():
    found = packed(
        [
            {"input_ids": [2, 9, 10, 3], "labels": [-100] * 4, "words": [-1, 0, 0, -1]},
            {"input_ids": [9], "labels": [9], "words": [0]},
        ],
        16,
        0,
    )
    assert found[0]["words"] == [-1, 0, 0, -1, 1]


@pytest.mark.parametrize("config", [{"model_type": "bloom"}, {"model_type": "mistral", "sliding_window": 16}, {}])
def test_other_models_are_not_packed_for(config):
    task = CausalLm()
    assert first_position(config, 32) is None
    task._first_position = first_position(config, 32)
    encoded, _ = rows(causal=True)
    assert task.pack(encoded) is encoded


def test_perturbations_leave_padding_alone_in_packed_batches():
    model, words, _ = tiny("bert-masked-lm")
    task = MaskedLm(maximum_length=16)
    task.take_model(model.config.to_dict())
    encoded = [row for text in TEXTS for row in task.encode(task.inputs(text), words)]
    batch = task.collate(task.pack(encoded), words)
    step = make_step(model, batch, task=task, special_ids=words.all_special_ids)
    assert torch.equal(step.real_tokens(special=True)[..., 0].bool(), batch["input_ids"] != 0)
    assert step.real_tokens().sum() < step.real_tokens(special=True).sum()
    delta = step.zeros()
    gradient = step.gradient(delta)
    assert gradient[batch["input_ids"] == 0].abs().max() == 0.0
    assert step.unit(gradient).abs().sum() > 0
