"""`steering`: against loops without cache, padding and batches, and closed forms."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from alignkit_constraints import ForbiddenPhrases, Steering
from alignkit_constraints.controls.reader import Reader
from alignkit_constraints.controls.steering import combined

from alignkit.aligned import Aligned, find_task
from alignkit.components import Control
from alignkit.errors import UsageError
from alignkit.generation import Controlled, refusals
from alignkit.testing import tiny

SOURCES = ["ada", "the film was very good and she saw it", "who is he ?", "bob lives in paris", "rome"]
LENGTH = 10


def saved(folder: Path, head: str, seed: int) -> Path:
    model, tokenizer, _ = tiny(head, seed=seed)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def numbers(scores: torch.Tensor) -> numpy.ndarray:
    """Log-probabilities, by numpy and in float64."""
    x = scores.detach().double().numpy()
    return x - x.max(-1, keepdims=True) - numpy.log(numpy.exp(x - x.max(-1, keepdims=True)).sum(-1, keepdims=True))


# -- the scores --------------------------------------------------------------------------------------------------


def test_scores_are_base_and_the_difference() -> None:
    base, expert, anti = torch.randn(3, 4, 11, generator=torch.Generator().manual_seed(0)).unbind(0)
    expected = numbers(base) + 0.7 * (numbers(expert) - numbers(anti))
    expected -= numpy.log(numpy.exp(expected).sum(-1, keepdims=True))
    numpy.testing.assert_allclose(combined(base, expert, anti, 0.7).numpy(), expected, atol=1e-5)


def test_an_expert_at_one_against_the_base_is_the_expert() -> None:
    base, expert = torch.randn(2, 4, 11, generator=torch.Generator().manual_seed(0)).unbind(0)
    numpy.testing.assert_allclose(combined(base, expert, None, 1.0).numpy(), numbers(expert), atol=1e-5)
    numpy.testing.assert_allclose(combined(base, expert, None, 0.0).numpy(), numbers(base), atol=1e-5)


def test_what_is_ruled_out_stays_so_and_missing_columns_stay_as_they_are() -> None:
    base, expert = torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(0)).unbind(0)
    base[:, 2] = -torch.inf
    made = combined(base, expert[:, :6], None, 2.0)
    assert made[:, 2].isneginf().all()
    assert made.exp().sum(-1) == pytest.approx([1.0] * 3, abs=1e-5)
    odds = (made[:, 6] - made[:, 7]) - (base[:, 6] - base[:, 7])
    assert odds.abs().max() < 1e-5


# -- reading along -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("head", ["llama-causal-lm", "t5", "bart"])
def test_a_reader_says_what_a_whole_pass_says_wherever_beams_go(head: str, beams: int) -> None:
    model, tokenizer, _ = tiny(head, seed=2)
    model.eval()
    generator = torch.Generator().manual_seed(0)
    prompts = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in SOURCES[:3]]
    side = "right" if model.config.is_encoder_decoder else "left"
    batch = tokenizer.pad({"input_ids": prompts}, padding_side=side, return_tensors="pt")
    reader = Reader(model, batch["input_ids"], batch["attention_mask"])
    ids = batch["input_ids"]
    if model.config.is_encoder_decoder:
        ids = torch.full((3, 1), model.config.decoder_start_token_id)
    rows = ids.repeat_interleave(beams, dim=0)
    written = rows.shape[1]
    calls = []
    model.register_forward_pre_hook(
        lambda _m, _a, kwargs: calls.append(kwargs.get("input_ids", kwargs.get("decoder_input_ids")).shape[1]),
        with_kwargs=True,
    )
    with torch.no_grad():
        for _ in range(6):
            found = reader(rows)
            kept = calls[:]
            for r, row in enumerate(rows):
                prompt = torch.tensor([prompts[r // beams]])
                if model.config.is_encoder_decoder:
                    alone = model(input_ids=prompt, decoder_input_ids=row[None]).logits[0, -1]
                else:
                    alone = model(input_ids=torch.cat([prompt, row[None, written:]], dim=1)).logits[0, -1]
                assert torch.allclose(found[r], alone, atol=1e-4)
            calls[:] = kept
            moved = torch.randint(beams, (3, beams), generator=generator) + beams * torch.arange(3)[:, None]
            new = torch.randint(7, 50, (len(rows), 1), generator=generator)
            rows = torch.cat([rows[moved.flatten()], new], dim=1)
        assert calls == [written, 1, 1, 1, 1, 1], "a token at a time"
        reader(rows[:, :-3])  # no continuation: read anew
        assert calls[-1] == rows.shape[1] - 3


KINDS = [
    ("llama-causal-lm", "chat"),
    ("llama-causal-lm", "translation"),
    ("t5", "translation"),
    ("bart", "summarization"),
]


# -- generation --------------------------------------------------------------------------------------------------


def by_hand(task: Any, models: dict[str, Any], tokenizer: Any, text: str, alpha: float, length: int) -> str:
    """Greedy decoding of one text without cache, padding or batch."""
    prompt = torch.tensor([task.prompt_ids(task.inputs(text), tokenizer)])
    encoder_decoder = models["base"].config.is_encoder_decoder
    ids: list[int] = [models["base"].config.decoder_start_token_id] if encoder_decoder else []
    start = len(ids)
    with torch.no_grad():
        while len(ids) < length + start and tokenizer.eos_token_id not in ids[start:]:
            said = {}
            for name, model in models.items():
                if encoder_decoder:
                    logits = model(input_ids=prompt, decoder_input_ids=torch.tensor([ids])).logits
                else:
                    logits = model(torch.cat([prompt, torch.tensor([ids], dtype=torch.long)], dim=1)).logits
                said[name] = logits[0, -1].double().log_softmax(-1)
            scores = said["base"] + alpha * (said["expert"] - said.get("anti", said["base"]))
            last = len(ids) == length + start - 1
            forced = models["base"].generation_config.forced_eos_token_id if last else None
            ids.append(int(scores.argmax()) if forced is None else forced)
    ids = ids[start:]
    ids = ids[: ids.index(tokenizer.eos_token_id)] if tokenizer.eos_token_id in ids else ids
    return str(tokenizer.decode(ids, skip_special_tokens=True)).strip()


@pytest.mark.parametrize("anti", [True, False])
@pytest.mark.parametrize(("head", "task"), KINDS)
def test_batches_say_what_a_loop_without_cache_says(head: str, task: str, anti: bool, tmp_path: Path) -> None:
    model, tokenizer, _ = tiny(head)
    folders = {name: saved(tmp_path / name, head, seed) for name, seed in (("expert", 1), ("anti", 2))}
    fields = {"expert": folders["expert"], **({"anti": folders["anti"]} if anti else {}), "alpha": 1.5}
    chosen = find_task(task)
    chosen.take_model(model.config.to_dict())
    aligned = Aligned(chosen, model.eval(), tokenizer, controls=[Steering(**fields)])
    answers = aligned.predict(SOURCES, max_new_tokens=LENGTH, batch_size=5)
    seeds = {"expert": 1, **({"anti": 2} if anti else {})}
    models = {"base": model, **{name: tiny(head, seed=seed)[0].eval() for name, seed in seeds.items()}}
    expected = [by_hand(chosen, models, tokenizer, text, 1.5, LENGTH) for text in SOURCES]
    assert [answer[chosen.generates] for answer in answers] == expected
    plain = Aligned(chosen, model, tokenizer).predict(SOURCES, max_new_tokens=LENGTH)
    assert [answer[chosen.generates] for answer in plain] != expected


def answers_of(controls: list[Control], model: Any, tokenizer: Any, **options: Any) -> list[dict[str, Any]]:
    found = Aligned(find_task("chat"), model, tokenizer, controls=controls).predict(
        SOURCES, max_new_tokens=LENGTH, **options
    )
    return [{name: value for name, value in answer.items() if name != "controls"} for answer in found]


@pytest.mark.parametrize("options", [{}, {"num_beams": 3}])
def test_the_base_as_its_own_expert_and_alpha_0_change_nothing(options: dict[str, Any], tmp_path: Path) -> None:
    model, tokenizer, _ = tiny("llama-causal-lm")
    same, other = saved(tmp_path / "same", "llama-causal-lm", 0), saved(tmp_path / "other", "llama-causal-lm", 1)
    plain = answers_of([], model, tokenizer, **options)
    audit: list[dict[str, Any]] = []
    assert answers_of([Steering(expert=same, alpha=3.0)], model, tokenizer, **options) == plain
    off = Steering(expert=other, alpha=0.0)
    assert answers_of([off], model, tokenizer, audit=audit, **options) == plain
    assert audit == []
    assert not hasattr(off, "_models"), "nothing is loaded for nothing"


def test_alpha_1_against_the_base_says_what_the_expert_says(tmp_path: Path) -> None:
    model, tokenizer, _ = tiny("llama-causal-lm")
    expert = tiny("llama-causal-lm", seed=1)[0]
    steered = answers_of([Steering(expert=saved(tmp_path / "e", "llama-causal-lm", 1))], model, tokenizer)
    assert steered == answers_of([], expert, tokenizer)


def test_the_audit_counts_steps_at_which_another_token_was_the_likeliest(tmp_path: Path) -> None:
    model, tokenizer, _ = tiny("llama-causal-lm")
    control = Steering(expert=saved(tmp_path / "polite", "llama-causal-lm", 1), alpha=4.0)
    answers = Aligned(find_task("chat"), model, tokenizer, controls=[control]).predict(SOURCES, max_new_tokens=LENGTH)
    records = [record for answer in answers for record in answer["controls"]]
    assert len(records) == len(SOURCES)
    for record in records:
        assert (record["control"], record["rule"], record["threshold"]) == ("steering", "polite - base", 4.0)
        assert record["changed"].startswith(f"another token was the likeliest at {record['value']} of ")


def test_other_controls_keep_what_they_promise_before_and_after_it(tmp_path: Path) -> None:
    model, tokenizer, _ = tiny("llama-causal-lm")
    folder = saved(tmp_path / "e", "llama-causal-lm", 1)
    for turned in (False, True):
        controls: list[Control] = [Steering(expert=folder), ForbiddenPhrases(phrases=["a", "e", "o"])]
        for answer in answers_of(controls[::-1] if turned else controls, model, tokenizer):
            assert not set("aeo") & set(answer["completion"])
            assert answer["completion"]


def test_other_vocabularies_are_refused(tmp_path: Path) -> None:
    model, tokenizer, _ = tiny("llama-causal-lm")
    folder = saved(tmp_path / "other", "llama-causal-lm", 1)
    text = (folder / "tokenizer.json").read_text("utf-8")
    (folder / "tokenizer.json").write_text(text.replace('"rome"', '"oslo"'), "utf-8")
    with pytest.raises(
        UsageError, match=r"control steering expert: .*other has another vocabulary: 2 tokens differ, 'oslo'"
    ):
        Controlled([Steering(expert=folder)], find_task("chat"), model, tokenizer)


def test_a_second_models_vocabulary_is_held_against_the_expert_too(tmp_path: Path) -> None:
    model, tokenizer, _ = tiny("llama-causal-lm")
    control = Steering(expert=saved(tmp_path / "expert", "llama-causal-lm", 1))
    Controlled([control], find_task("chat"), model, tokenizer)
    folder = saved(tmp_path / "other", "llama-causal-lm", 1)
    text = (folder / "tokenizer.json").read_text("utf-8")
    (folder / "tokenizer.json").write_text(text.replace('"rome"', '"oslo"'), "utf-8")
    other = type(tokenizer).from_pretrained(folder)
    with pytest.raises(UsageError, match=r"expert has another vocabulary: 2 tokens differ, 'oslo'"):
        Controlled([control], find_task("chat"), model, other)


def test_experts_of_another_kind_are_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    folder = saved(tmp_path / "t5", "t5", 1)
    for control, expected in (
        (Steering(expert=folder), "control steering expert: model: t5 does not read from left to right only"),
        (Steering(expert="base", anti=tmp_path / "none"), "none does not exist"),
    ):
        assert expected in "\n".join(map(str, refusals([control], find_task("chat"))))
    with pytest.raises(UsageError, match="expert and anti-expert are both base"):
        Steering(expert="base")


def test_an_encoder_decoder_does_not_steer_a_causal_model(tmp_path: Path) -> None:
    model, tokenizer, _ = tiny("llama-causal-lm")
    task = copy.copy(find_task("translation"))
    task.take_model(model.config.to_dict())
    with pytest.raises(UsageError, match="is an encoder-decoder; expected a causal model"):
        Controlled([Steering(expert=saved(tmp_path / "t5", "t5", 1))], task, model, tokenizer)
