"""What a reference says of rows is asked once and kept: keys, files, precision, and the same training."""

import json

import pytest
import torch

import alignkit
from alignkit.errors import UsageError
from alignkit.reference import Reference
from alignkit.reference_cache import ReferenceCache, RowCache, fingerprint, row_keys, serves
from alignkit.tasks.chat import Chat
from alignkit.testing.models import batch, collate, examples, tiny

HEAD = "llama-causal-lm"


def test_a_rows_key_depends_on_what_is_read_and_not_on_its_company():
    rows = examples(HEAD, 4)
    together = row_keys(collate(HEAD, rows))
    assert together == [key for row in rows for key in row_keys(collate(HEAD, [row]))]
    assert len(set(together)) == 4
    unlearnt = {**rows[0], "labels": [-100, *rows[0]["labels"][1:-1], -100]}
    other = {**rows[0], "input_ids": [*rows[0]["input_ids"][:-1], 9]}
    assert len({together[0], row_keys(collate(HEAD, [unlearnt]))[0], row_keys(collate(HEAD, [other]))[0]}) == 3


@pytest.mark.parametrize(("dtype", "shape"), [(torch.float32, ()), (torch.float16, (5,))])
def test_values_come_back_from_memory_and_from_files(tmp_path, dtype, shape):
    whole = batch(HEAD, rows=4)
    total = int((whole["labels"][:, 1:] != -100).sum())
    values = torch.randn(total, *shape)
    cache = RowCache(tmp_path, dtype)
    assert cache.get(whole) is None
    assert torch.equal(cache.put(whole, values), values.to(dtype))
    assert torch.equal(cache.get(whole), values.to(dtype))
    cache.flush()
    assert [file.suffix for file in tmp_path.iterdir()] == [".safetensors"]
    again = RowCache(tmp_path, dtype)
    assert len(again) == 4
    assert torch.equal(again.get(whole), values.to(dtype))
    cache.put(whole, values)  # known already
    cache.flush()
    assert len(list(tmp_path.iterdir())) == 1
    last = collate(HEAD, examples(HEAD, 4)[3:])
    assert torch.equal(again.get(last), values.to(dtype)[-int((last["labels"][:, 1:] != -100).sum()) :])


def test_models_have_folders_of_their_own(tmp_path):
    one, other = tiny(HEAD)[0], tiny(HEAD, seed=1)[0]
    known = {fingerprint(one, "fp32"), fingerprint(other, "fp32"), fingerprint(one, "bf16")}
    assert len(known) == 3
    assert fingerprint(tiny(HEAD)[0], "fp32") in known
    assert ReferenceCache(tmp_path, one).hidden is None


def test_an_adapter_is_no_part_of_the_key():
    from peft import LoraConfig, get_peft_model

    keys = []
    for scale in (True, False):
        model = tiny(HEAD)[0]
        lora = LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"], init_lora_weights=scale)
        keys.append(fingerprint(get_peft_model(model, lora), "fp32"))
    assert keys[0] == keys[1]


@pytest.mark.parametrize("head", ["bert-sequence-classification", "bert-question-answering", "t5"])
def test_heads_that_it_does_not_serve(head):
    assert not serves(batch(head))


def write(folder):
    model, tokenizer, _ = tiny(HEAD)
    model.save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    (folder / "rows.jsonl").write_text("\n".join(json.dumps(row) for row in Chat.samples), "utf-8")


def train(folder, name, **more):
    training = {"max_steps": 8, "per_device_train_batch_size": 3, "learning_rate": 3e-3, "use_cpu": True}
    return alignkit.train(
        alignkit.Recipe(
            model="base", task="chat", data={"train": "rows.jsonl", "test": "rows.jsonl"}, base=folder, output=name,
            training=training, constraints=[{"use": "kl-reference", "weight": 1.0}], **more,
        )
    )  # fmt: skip


@pytest.mark.parametrize("peft", [None, {"method": "lora", "r": 4}])
def test_cached_hidden_states_give_the_same_training(tmp_path, monkeypatch, peft):
    monkeypatch.setenv("ALIGNKIT_CACHE", str(tmp_path / "cache"))
    asked = {"outputs": 0, "hidden": 0}
    for name in asked:
        ask = getattr(Reference, name)

        def counted(*given, name=name, ask=ask):
            asked[name] += len(given[2]["labels"])
            return ask(*given)

        monkeypatch.setattr(Reference, name, counted)
    write(tmp_path)
    plain = train(tmp_path, "plain", peft=peft)
    assert asked.pop("outputs") >= 24
    asked["outputs"] = 0
    cached = train(tmp_path, "cached", peft=peft, cache_hidden_states=True)
    assert asked == {"hidden": 6, "outputs": 0}
    again = train(tmp_path, "again", peft=peft, cache_hidden_states=True)
    assert asked == {"hidden": 6, "outputs": 0}
    losses = [run.metrics["after"]["test"]["loss"]["value"] for run in (plain, cached, again)]
    assert losses[1] == losses[2]
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)


def test_what_the_config_says_is_part_of_the_key():
    model = tiny(HEAD)[0]
    before = fingerprint(model, "fp32")
    model.config.rms_norm_eps = 1.0
    assert fingerprint(model, "fp32") != before


@pytest.mark.parametrize("content", [b"", b"garbage", b"\x08\0\0\0\0\0\0\0{}      "])
def test_a_file_that_cannot_be_read_is_passed_over(tmp_path, caplog, content):
    (tmp_path / "broken.safetensors").write_bytes(content)
    cache = RowCache(tmp_path)
    assert len(cache) == 0
    assert "broken.safetensors cannot be read" in caplog.text


def test_a_folder_that_cannot_be_written_costs_the_cache_and_not_the_run(tmp_path, caplog):
    (tmp_path / "file").write_text("in the way")
    cache = RowCache(tmp_path / "file")
    whole = batch(HEAD, rows=2)
    cache.put(whole, torch.zeros(int((whole["labels"][:, 1:] != -100).sum())))
    cache.flush()
    cache.flush()
    assert caplog.text.count("is not kept") == 1
    assert cache.get(whole) is not None


@pytest.mark.parametrize(
    ("task", "parts", "said"),
    [
        ("text-classification", {"constraints": ["kl-reference"]}, "is no causal language model"),
        ("chat", {}, "no component compares with the reference's distributions"),
    ],
)
def test_where_it_would_do_nothing_it_is_refused(tmp_path, task, parts, said):
    head = HEAD if task == "chat" else "bert-sequence-classification"
    model, tokenizer, _ = tiny(head)
    model.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    rows = (
        Chat.samples
        if task == "chat"
        else [{"text": "a film", "label": x} for x in ("negative", "neutral", "positive")]
    )
    (tmp_path / "rows.jsonl").write_text("\n".join(json.dumps(row) for row in rows), "utf-8")
    recipe = alignkit.Recipe(
        model="base",
        task=task,
        data={"train": "rows.jsonl"},
        base=tmp_path,
        output="run",
        cache_hidden_states=True,
        **parts,
    )
    with pytest.raises(UsageError, match=said):
        alignkit.train(recipe)
