"""`steering-vector`: against hidden states as transformers gives them, and loops without cache, padding and batches."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from alignkit_constraints import SteeringVector
from alignkit_constraints.controls.steering_vector import SHIPPED, decoder_layers, direction, read_pairs
from torch import Tensor

from alignkit.aligned import Aligned, find_task
from alignkit.errors import UsageError
from alignkit.generation import Controlled
from alignkit.testing import tiny

PAIRS = [
    {"prompt": "where is ada ?", "positive": "she is in rome", "negative": "where is she ?"},
    {"prompt": "was it good ?", "positive": "it was very good and fine", "negative": "bad"},
    {"positive": "the film was fine", "negative": "bob was not in paris"},
]
TEXTS = ["ada", "the film was very good and she saw it", "who is he ?", "rome"]
LENGTH = 8


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    file = tmp_path / "pairs.jsonl"
    file.write_text("\n".join(json.dumps(pair) for pair in PAIRS) + "\n\n", "utf-8")
    return file


def prepared(control: SteeringVector, model: Any, tokenizer: Any, task: Any = None) -> SteeringVector:
    control.prepare(model, tokenizer, task or find_task("chat"))
    return control


# -- the direction -----------------------------------------------------------------------------------------------


def test_the_direction_is_a_difference_of_means_of_means() -> None:
    positive = [torch.tensor([[1.0, 0.0], [3.0, 0.0]]), torch.tensor([[0.0, 4.0]])]
    negative = [torch.tensor([[0.0, 0.0]]), torch.tensor([[2.0, 0.0], [0.0, 2.0]])]
    vector, norm = direction(positive, negative)
    assert vector.tolist() == [(2 + 0) / 2 - (0 + 1) / 2, (0 + 4) / 2 - (0 + 1) / 2]
    assert norm == pytest.approx((1 + 3 + 4 + 0 + 2 + 2) / 6)


@pytest.mark.parametrize("tokens", ["all", "last"])
def test_it_is_that_of_the_hidden_states_that_transformers_gives(tokens: Any, pairs: Path) -> None:
    model, tokenizer, _ = tiny("llama-causal-lm")
    control = prepared(SteeringVector(pairs=pairs, layer=0, tokens=tokens), model, tokenizer)
    assert model.training, "as before"
    sides: dict[str, list[Tensor]] = {"positive": [], "negative": []}
    norms = []
    for pair in PAIRS:
        for side, means in sides.items():
            if "prompt" in pair:
                before = f"[BOS]user : {pair['prompt']}[EOS][BOS]assistant : "
                prompt = tokenizer(before, add_special_tokens=False)["input_ids"]
                answer = tokenizer(pair[side] + "[EOS]", add_special_tokens=False)["input_ids"]
            else:
                first, *answer = tokenizer(pair[side])["input_ids"]
                prompt = [first]
            with torch.no_grad():
                states = model.eval()(torch.tensor([[*prompt, *answer]]), output_hidden_states=True).hidden_states
            counted = states[1][0, len(prompt) :]  # after the layer with the number 0
            counted = counted[-1:] if tokens == "last" else counted
            means.append(counted.mean(0))
            norms += counted.norm(dim=-1).tolist()
    expected = torch.stack(sides["positive"]).mean(0) - torch.stack(sides["negative"]).mean(0)
    state = control.state_dict()
    assert torch.allclose(state["vector"], expected, atol=1e-5)
    assert state["norm"] == pytest.approx(sum(norms) / len(norms), rel=1e-5)


# -- generation --------------------------------------------------------------------------------------------------


def by_hand(task: Any, model: Any, tokenizer: Any, text: str, added: Tensor) -> str:
    """Greedy decoding of one text without cache, padding or batch; the answer's positions of layer 0 are moved."""
    prompt = task.prompt_ids(task.inputs(text), tokenizer)
    encoder_decoder = model.config.is_encoder_decoder
    ids = [model.config.decoder_start_token_id] if encoder_decoder else list(prompt)
    first = len(ids)

    def move(_module: Any, _inputs: Any, output: Any) -> Any:
        hidden = (output[0] if isinstance(output, tuple) else output).clone()
        hidden[0, first - 1 :] += added
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

    handle = decoder_layers(model)[0].register_forward_hook(move)
    with torch.no_grad():
        while len(ids) < first + LENGTH and tokenizer.eos_token_id not in ids[first:]:
            given = torch.tensor([ids])
            inputs = (
                {"input_ids": torch.tensor([prompt]), "decoder_input_ids": given}
                if encoder_decoder
                else {"input_ids": given}
            )
            forced = model.generation_config.forced_eos_token_id if len(ids) == first + LENGTH - 1 else None
            ids.append(int(model(**inputs, use_cache=False).logits[0, -1].argmax()) if forced is None else forced)
    handle.remove()
    said = ids[first:]
    said = said[: said.index(tokenizer.eos_token_id)] if tokenizer.eos_token_id in said else said
    return str(tokenizer.decode(said, skip_special_tokens=True)).strip()


@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize(
    ("head", "task"), [("llama-causal-lm", "chat"), ("t5", "translation"), ("bart", "summarization")]
)
def test_batches_say_what_a_loop_without_cache_says(head: str, task: str, use_cache: bool, pairs: Path) -> None:
    model, tokenizer, _ = tiny(head)
    model.eval()
    model.generation_config.use_cache = use_cache
    chosen = find_task(task)
    chosen.take_model(model.config.to_dict())
    control = SteeringVector(pairs=pairs, layer=0, alpha=1.5)
    answers = Aligned(chosen, model, tokenizer, controls=[control]).predict(TEXTS, max_new_tokens=LENGTH, batch_size=4)
    state = control.state_dict()
    added = 1.5 * state["norm"] * state["vector"] / state["vector"].norm()
    assert float(added.norm()) == pytest.approx(1.5 * state["norm"], rel=1e-5), "alpha is in units of the hidden norm"
    expected = [by_hand(chosen, model, tokenizer, text, added) for text in TEXTS]
    assert [answer[chosen.generates] for answer in answers] == expected
    plain = Aligned(chosen, model, tokenizer).predict(TEXTS, max_new_tokens=LENGTH)
    assert [answer[chosen.generates] for answer in plain] != expected


def test_alpha_0_is_off(pairs: Path) -> None:
    model, tokenizer, _ = tiny("llama-causal-lm")
    off, audit = SteeringVector(pairs=pairs, alpha=0.0), list[dict[str, Any]]()
    options: dict[str, Any] = {"max_new_tokens": LENGTH}
    plain = Aligned(find_task("chat"), model, tokenizer).predict(TEXTS, **options)
    assert Aligned(find_task("chat"), model, tokenizer, controls=[off]).predict(TEXTS, audit=audit, **options) == plain
    assert audit == []
    assert off.state_dict() == {}


def test_a_kept_vector_is_used_unless_what_it_depends_on_is_another(pairs: Path, tmp_path: Path) -> None:
    model, tokenizer, _ = tiny("llama-causal-lm")
    task = find_task("chat")
    Controlled([SteeringVector(pairs=pairs, layer=0)], task, model, tokenizer).save(tmp_path / "controls")
    assert {path.name for path in (tmp_path / "controls").iterdir()} == {
        "steering-vector.safetensors",
        "steering-vector.json",
    }
    other = tiny("llama-causal-lm", seed=5)[0]  # whose hidden states are not asked for
    kept = SteeringVector(pairs=pairs, layer=0, alpha=1.0)
    Controlled([kept], task, other, tokenizer, tmp_path / "controls")
    first = prepared(SteeringVector(pairs=pairs, layer=0), model, tokenizer).state_dict()
    assert torch.equal(kept.state_dict()["vector"], first["vector"])
    anew = SteeringVector(pairs=pairs, layer=0, tokens="last")
    Controlled([anew], task, other, tokenizer, tmp_path / "controls")
    expected = prepared(SteeringVector(pairs=pairs, layer=0, tokens="last"), other, tokenizer).state_dict()
    assert torch.equal(anew.state_dict()["vector"], expected["vector"])


def test_a_second_model_has_a_vector_of_its_own(pairs: Path) -> None:
    first, tokenizer, _ = tiny("llama-causal-lm")
    second = tiny("llama-causal-lm", seed=5)[0]
    shared = SteeringVector(pairs=pairs, layer=0, alpha=1.0)
    found = {}
    for model in (first, second):
        found[model] = Aligned(find_task("chat"), model, tokenizer, controls=[shared])
        found[model].predict(TEXTS[:1], max_new_tokens=2)
        expected = prepared(SteeringVector(pairs=pairs, layer=0), model, tokenizer).state_dict()["vector"]
        assert torch.equal(shared.state_dict()["vector"], expected)
    found[first].predict(TEXTS[:1], max_new_tokens=2)
    expected = prepared(SteeringVector(pairs=pairs, layer=0), first, tokenizer).state_dict()["vector"]
    assert torch.equal(shared.state_dict()["vector"], expected), "when the first is asked again"


# -- pairs -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", sorted(SHIPPED.glob("*.jsonl")), ids=lambda file: file.stem)
def test_shipped_pairs_are_whole(file: Path) -> None:
    pairs = read_pairs(file)
    assert len(pairs) >= 12
    assert len({pair.prompt for pair in pairs}) == len(pairs)
    assert all(pair.positive != pair.negative for pair in pairs)
    assert SteeringVector(pairs=file.stem).pairs == file.stem  # type: ignore[arg-type]  # each is a word of the field


def test_mistakes_say_what_and_where(tmp_path: Path) -> None:
    model, tokenizer, _ = tiny("llama-causal-lm")
    file = tmp_path / "pairs.jsonl"
    file.write_text('{"positive": "a", "negative": "b"}\n{"positive": "a"}\nno\n', "utf-8")
    wrong = "\n".join(map(str, SteeringVector(pairs=file).check_task(find_task("chat"))))
    assert 'pairs.jsonl:2: {"positive": "a"}; expected JSON lines' in wrong
    assert "pairs.jsonl:3: no;" in wrong
    assert "no such file" in str(next(iter(SteeringVector(pairs=tmp_path / "none").check_task(find_task("chat")))))
    with pytest.raises(UsageError, match="control steering-vector layer: 7, where the model has 2 layers; expected -2"):
        Controlled([SteeringVector(layer=7)], find_task("chat"), model, tokenizer)
    file.write_text('{"positive": "a film", "negative": "a  film"}\n', "utf-8")
    with pytest.raises(UsageError, match="the same to the model"):
        Controlled([SteeringVector(pairs=file)], find_task("chat"), model, tokenizer)
