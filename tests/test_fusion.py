"""Fusing folders: what comes out loads, what cannot be fused is refused, and memory stays small."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForTokenClassification, AutoTokenizer

from alignkit.components import Fusion
from alignkit.errors import PluginError, UsageError
from alignkit.fusion import SafetensorsMember, fuse_folders, tokenizer_difference, write_weights
from alignkit.testing.models import tiny, tokenizer

HEAD = "bert-token-classification"


class Mean(Fusion):
    """The plain mean: written here, so that the host's tests need no plugin."""

    def fuse(self, members, base, score) -> Iterator[tuple[str, Tensor]]:
        for name in members[0].names:
            yield name, torch.stack([m.tensor(name).float() for m in members]).mean(0)


def save(folder: Path, head: str = HEAD, seed: int = 0, **options) -> Path:
    model = tiny(head)[0]
    if seed:  # a fine-tuned relative, not a stranger
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.02)
    model.save_pretrained(folder, **options)
    tokenizer(head).save_pretrained(folder)
    return folder


def change(file: Path, **values) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def test_the_result_loads_and_holds_the_mean(tmp_path):
    a, b = save(tmp_path / "a"), save(tmp_path / "b", seed=1)
    out = fuse_folders(Mean(), [a, b], output=tmp_path / "out")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b", "out"]
    fused, one, other = (AutoModelForTokenClassification.from_pretrained(p).state_dict() for p in (out, a, b))
    for name, value in fused.items():
        torch.testing.assert_close(value, (one[name] + other[name]) / 2)
    assert (
        AutoTokenizer.from_pretrained(out)("she saw paris")["input_ids"]
        == tokenizer(HEAD)("she saw paris")["input_ids"]
    )


def test_shards_in_shards_out(tmp_path):
    a = save(tmp_path / "a", max_shard_size="20KB")
    b = save(tmp_path / "b", seed=1)
    assert (a / "model.safetensors.index.json").is_file()
    out = fuse_folders(Mean(), [a, b], output=tmp_path / "out", shard_bytes=30_000)
    shards = sorted(p.name for p in out.glob("*.safetensors"))
    assert len(shards) > 2
    assert shards[0] == f"model-00001-of-{len(shards):05d}.safetensors"
    index = json.loads((out / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"].values()) == set(shards)
    assert index["metadata"]["total_size"] == sum(t.nbytes for s in shards for t in load_file(out / s).values())
    fused, one, other = (AutoModelForTokenClassification.from_pretrained(p).state_dict() for p in (out, a, b))
    assert all(torch.allclose(fused[name], (one[name] + other[name]) / 2) for name in fused)


def test_tied_weights_stay_tied(tmp_path):
    a, b = save(tmp_path / "a", "llama-causal-lm"), save(tmp_path / "b", "llama-causal-lm", seed=1)
    out = fuse_folders(Mean(), [a, b], output=tmp_path / "out")
    model = AutoModelForCausalLM.from_pretrained(out)
    tied = bool(json.loads((a / "config.json").read_text()).get("tie_word_embeddings"))
    assert (model.lm_head.weight is model.get_input_embeddings().weight) == tied


def test_types_are_those_of_the_first_member(tmp_path):
    a = save(tmp_path / "a")
    AutoModelForTokenClassification.from_pretrained(a, dtype=torch.bfloat16).save_pretrained(tmp_path / "half")
    tokenizer(HEAD).save_pretrained(tmp_path / "half")
    for first, other, dtype in (("a", "half", torch.float32), ("half", "a", torch.bfloat16)):
        out = fuse_folders(Mean(), [tmp_path / first, tmp_path / other], output=tmp_path / f"out-{first}")
        assert {t.dtype for t in load_file(out / "model.safetensors").values()} == {dtype}


def test_a_run_is_named_by_its_folder(tmp_path):
    save(tmp_path / "runs" / "a" / "model")
    b = save(tmp_path / "b", seed=1)
    out = fuse_folders(Mean(), [tmp_path / "runs" / "a", str(b)], output=tmp_path / "out")
    assert AutoModelForTokenClassification.from_pretrained(out).config.id2label


def test_members_give_weights_config_and_tensors(tmp_path):
    seen = []

    class Look(Fusion):
        def fuse(self, members, base, score):
            seen.extend([[m.weight for m in members], base.name, score(iter(())), members[0].config["model_type"]])
            return ((name, members[0].tensor(name)) for name in members[0].names)

    a, b = save(tmp_path / "a"), save(tmp_path / "b", seed=1)
    fuse_folders(Look(), [a, b], output=tmp_path / "out", weights=[3, 1], base=a, score=lambda weights: 0.5)
    assert seen == [[3, 1], str(a), 0.5, "bert"]
    member = SafetensorsMember(a)
    assert member.shape("classifier.weight") == tuple(member.tensor("classifier.weight").shape)


def test_another_model_is_replaced_and_anything_else_is_not(tmp_path):
    a, b = save(tmp_path / "a"), save(tmp_path / "b", seed=1)
    out = save(tmp_path / "out", seed=2)
    fuse_folders(Mean(), [a, b], output=out)
    assert torch.allclose(
        load_file(out / "model.safetensors")["classifier.bias"],
        (load_file(a / "model.safetensors")["classifier.bias"] + load_file(b / "model.safetensors")["classifier.bias"])
        / 2,
    )
    letters = tmp_path / "letters"
    letters.mkdir()
    (letters / "mother.txt").write_text("dear")
    with pytest.raises(
        UsageError, match="letters: a folder that holds something else than a model; expected a new folder"
    ):
        fuse_folders(Mean(), [a, b], output=letters)
    for place in (a, tmp_path):
        with pytest.raises(UsageError, match="it is, or holds, one of the members; expected another folder"):
            fuse_folders(Mean(), [a, b], output=place)
    assert (letters / "mother.txt").read_text() == "dear"


# -- what is refused ---------------------------------------------------------------------------------------------


def refusals(*args, **kwargs) -> list[str]:
    with pytest.raises(UsageError) as caught:
        fuse_folders(*args, **kwargs)
    return str(caught.value).splitlines()


def test_members_that_are_no_models_are_named_all_at_once(tmp_path):
    a = save(tmp_path / "a")
    (tmp_path / "pickled").mkdir()
    shutil.copy(a / "config.json", tmp_path / "pickled")
    torch.save({}, tmp_path / "pickled" / "pytorch_model.bin")
    found = refusals(Mean(), [a, tmp_path / "gone", tmp_path / "pickled"], output=tmp_path / "out", weights=[1, 2])
    assert found[0] == "weights: 2; expected 3, one for each member"
    assert f"{tmp_path / 'gone'} does not exist" in found[1]
    assert "pickled weights are not read" in found[2]
    assert not (tmp_path / "out").exists()


def test_every_difference_is_named_at_once(tmp_path):
    a, b = save(tmp_path / "a"), save(tmp_path / "b")
    labels = json.loads((b / "config.json").read_text())["id2label"]
    change(b / "config.json", id2label={**labels, "3": "B-ORG"}, num_attention_heads=2)
    parsed = json.loads((b / "tokenizer.json").read_text())
    vocabulary = parsed["model"]["vocab"]
    vocabulary["paris"], vocabulary["rome"] = vocabulary["rome"], vocabulary["paris"]
    (b / "tokenizer.json").write_text(json.dumps(parsed))
    paris, rome, all_tokens = vocabulary["rome"], vocabulary["paris"], len(vocabulary)
    assert refusals(Mean(), [a, b], output=tmp_path / "out") == [
        f"{a} and {b}: num_attention_heads 4 and 2; expected one architecture",
        f"{a} and {b}: labels differ: number 3 is 'B-LOC' and 'B-ORG'; expected the same labels; "
        "train them with one label set, in one order",
        f"{a} and {b}: tokenizers differ: 2 of {all_tokens} tokens, 'paris' is number {paris} and number {rome}; "
        "expected one tokenizer; fuse models that share a tokenizer",
    ]


def test_another_architecture_is_refused(tmp_path):
    a, b = save(tmp_path / "a"), save(tmp_path / "b", "bert-sequence-classification")
    found = refusals(Mean(), [a, b], output=tmp_path / "out")
    assert (
        f"{a} and {b}: architectures ['BertForTokenClassification'] and ['BertForSequenceClassification']" in found[0]
    )
    assert "labels differ: 5 and 3 (" in found[1]
    assert any(line.startswith("classifier.weight: [5, 32] in") for line in found)


def test_added_tokens_and_normalizers_are_compared(tmp_path):
    one, other = tokenizer(HEAD), tokenizer(HEAD)
    other.add_tokens(["<extra>"])
    one.save_pretrained(tmp_path / "one")
    other.save_pretrained(tmp_path / "other")
    assert "'<extra>' is missing and number" in tokenizer_difference(tmp_path / "one", tmp_path / "other")
    shutil.copytree(tmp_path / "one", tmp_path / "cased")
    change(tmp_path / "cased" / "tokenizer.json", normalizer=None)
    assert tokenizer_difference(tmp_path / "one", tmp_path / "cased") == "their normalizers"
    assert tokenizer_difference(tmp_path / "one", tmp_path / "one") == ""


def test_heads_that_have_nothing_in_common_are_warned_of(tmp_path):
    model = tiny("bert-sequence-classification")[0]
    model.classifier = torch.nn.Linear(32, 40)
    model.config.num_labels = model.num_labels = 40
    for folder in ("a", "b"):
        torch.nn.init.normal_(model.classifier.weight, generator=torch.Generator().manual_seed(ord(folder)))
        model.save_pretrained(tmp_path / folder)
    with pytest.warns(UserWarning, match=r"classifier.weight of .*b has nothing in common with .*a's: heads that were"):
        fuse_folders(Mean(), [tmp_path / "a", tmp_path / "b"], output=tmp_path / "out")


def test_an_ensemble_of_outputs_cannot_make_a_folder(tmp_path):
    class Vote(Fusion):
        def combine_outputs(self, logits):
            return logits.mean(0)

    assert refusals(Vote(), [save(tmp_path / "a")], output=tmp_path / "out") == [
        "fusion vote: it combines outputs, not weights; expected a fusion that implements fuse()"
    ]


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda name, tensor: [("nonsense", tensor)], "fusion wrong gave nonsense, but .* has no such tensor"),
        (lambda name, tensor: [(name, tensor)] * 2, "fusion wrong gave .*, twice"),
        (lambda name, tensor: [(name, tensor[None])], r"fusion wrong gave .* as \[1, .*\], not \["),
        (lambda name, tensor: [], r"fusion wrong left out .* \(\d+ tensors\)"),
    ],
)
def test_a_component_that_gives_something_else_is_named(tmp_path, answer, message):
    class Wrong(Fusion):
        def fuse(self, members, base, score):
            return (pair for name in members[0].names for pair in answer(name, members[0].tensor(name)))

    a = save(tmp_path / "a")
    with pytest.raises(PluginError, match=message):
        fuse_folders(Wrong(), [a], output=tmp_path / "out")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a"]


def test_weights_that_are_not_finite_are_not_written(tmp_path):
    class Infinite(Fusion):
        def fuse(self, members, base, score):
            return ((name, members[0].tensor(name) / 0) for name in members[0].names)

    with pytest.raises(UsageError, match="not finite; expected finite weights; check the members"):
        fuse_folders(Infinite(), [save(tmp_path / "a")], output=tmp_path / "out")
    assert not (tmp_path / "out").exists()


# -- memory ------------------------------------------------------------------------------------------------------

_FUSE = """
import sys
from pathlib import Path
import torch
from alignkit.components import Fusion
from alignkit.fusion import fuse_folders

class Mean(Fusion):
    def fuse(self, members, base, score):
        for name in members[0].names:
            yield name, (members[0].tensor(name) + members[1].tensor(name)) / 2

def private():
    fields = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines() if ":" in line)
    return int(fields["RssAnon"].split()[0]) * 1024

most, before = 0, private()

class Watched(Mean):
    def fuse(self, members, base, score):
        global most
        for pair in super().fuse(members, base, score):
            most = max(most, private())
            yield pair

folder = Path(sys.argv[1])
fuse_folders(Watched(), [folder / "a", folder / "b"], output=folder / "out", shard_bytes=8 * 2**20)
print(most - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc to see anonymous memory")
def test_memory_stays_at_a_shard_and_a_few_tensors(tmp_path):
    """160 MB of weights in 40 tensors of 4 MB: anonymous memory (mapped files aside) grows by less than half of one."""
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        write_weights(tmp_path / folder, ((f"layer.{i}", torch.full((1024, 1024), float(i))) for i in range(40)))
        (tmp_path / folder / "config.json").write_text('{"model_type": "bert"}')
    run = [sys.executable, "-c", _FUSE, str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(run, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 80 * 2**20
    assert len(list((tmp_path / "out").glob("model-*.safetensors"))) == 20
