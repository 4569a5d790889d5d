"""AlignTrainer with LoRA and with prompts: an adversary and a constraint on top, saved, loaded and resumed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from alignkit_adversaries import FGM
from alignkit_constraints import KLReference

from alignkit import models
from alignkit.components import Constraint, Term
from alignkit.errors import UsageError
from alignkit.models import Peft
from alignkit.models.adapters import virtual_tokens
from alignkit.step import TrainingStep
from alignkit.tasks.ner import Ner
from alignkit.testing import batch, make_trainer, tiny, trained_weights
from alignkit.testing.training import short_collections

LORA = Peft(method="lora", r=4)
PROMPT = Peft(method="prompt-tuning", num_virtual_tokens=4)
PREFIX = Peft(method="prefix-tuning", num_virtual_tokens=4)
CLASSES = {
    "bert-sequence-classification": "AutoModelForSequenceClassification",
    "bert-token-classification": "AutoModelForTokenClassification",
    "llama-causal-lm": "AutoModelForCausalLM",
    "t5": "AutoModelForSeq2SeqLM",
}
CASES = [
    *((head, LORA) for head in CLASSES),
    *((head, PROMPT) for head in CLASSES),
    ("bert-token-classification", PREFIX),
    ("llama-causal-lm", PREFIX),
]


@pytest.fixture(autouse=True, scope="module")
def fast() -> Iterator[None]:
    with short_collections():
        yield


def train(folder: Path, head: str, peft: Peft, resume: str | None = None, **options: Any) -> Any:
    """Four steps with dropout, an adversary, and a constraint to the model without its adapter."""
    settings = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "learning_rate": 0.01, "dropout": 0.1}
    trainer = make_trainer(
        head, folder, [FGM(epsilon=0.5), KLReference(weight=0.5)], peft=peft, **{**settings, **options}
    )
    transformers.set_seed(3)
    trainer.train(resume_from_checkpoint=resume)
    return trainer


@pytest.mark.parametrize(("head", "peft"), CASES, ids=lambda value: getattr(value, "method", value))
def test_an_adapter_is_trained_saved_and_resumed(head: str, peft: Peft, tmp_path: Path) -> None:
    trainer = train(tmp_path, head, peft)
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert all(torch.tensor([entry["loss"], entry["penalty/kl-reference"]]).isfinite().all() for entry in logs)
    assert logs[-1]["penalty/kl-reference"] > 1e-6, "the adapter has moved the model away from its base"

    base = tiny(head)[0].state_dict()
    kept = {name.replace(".base_layer", ""): p for name, p in trainer.model.get_base_model().named_parameters()}
    frozen = [name for name, p in kept.items() if not p.requires_grad and name in base]
    assert len(frozen) > 10
    assert all(torch.equal(kept[name], base[name]) for name in frozen)

    resumed = train(tmp_path / "resumed", head, peft, resume=str(tmp_path / "checkpoint-2"))
    assert torch.equal(trained_weights(trainer), trained_weights(resumed))


@pytest.mark.parametrize("head", CLASSES)
def test_a_saved_lora_model_needs_neither_alignkit_nor_peft(head: str, tmp_path: Path) -> None:
    trainer = train(tmp_path, head, LORA, save_strategy="no")
    models.save(trainer.model, trainer.processing_class, tmp_path / "model")
    loaded = getattr(transformers, CLASSES[head]).from_pretrained(tmp_path / "model")
    inputs = batch(head, seed=5)
    with torch.no_grad():
        expected, found = trainer.model.eval()(**inputs).logits, loaded.eval()(**inputs).logits
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_the_first_step_agrees_with_the_base_and_the_adapter_s_gradient_is_the_models(tmp_path: Path) -> None:
    """LoRA begins as the base: no divergence, and with the constraint alone no gradient."""
    head = "bert-token-classification"
    trainer = make_trainer(head, tmp_path, [KLReference()], peft=LORA)
    step = TrainingStep(trainer.context, trainer.model, batch(head))
    ours = step.log_probabilities(step.forward())[0]
    torch.testing.assert_close(ours, step.log_probabilities(step.reference_outputs())[0])
    step.loss()
    assert abs(float(step.terms["kl-reference"].mean)) < 1e-6


@pytest.mark.parametrize("peft", [PROMPT, PREFIX], ids=lambda peft: peft.method)
@pytest.mark.parametrize("head", ["bert-sequence-classification", "bert-token-classification", "llama-causal-lm"])
def test_the_reference_is_the_model_before_the_prompt_its_head_included(head: str, peft: Peft, tmp_path: Path) -> None:
    trainer = train(tmp_path, head, peft, save_strategy="no")
    inputs = batch(head)
    step = TrainingStep(trainer.context, trainer.model, inputs)
    trainable = [parameter.requires_grad for parameter in trainer.model.parameters()]
    found = step.reference_outputs().logits
    with torch.no_grad():
        expected = tiny(head)[0].eval()(**inputs).logits
    torch.testing.assert_close(found, expected)
    assert [parameter.requires_grad for parameter in trainer.model.parameters()] == trainable
    assert not torch.allclose(step.forward().logits, found, atol=1e-3)


@pytest.mark.parametrize("head", ["llama-causal-lm", "bert-token-classification"])
def test_outputs_of_a_prompted_model_are_those_of_the_text(head: str, tmp_path: Path) -> None:
    trainer = make_trainer(head, tmp_path, [KLReference()], peft=PROMPT)
    inputs = batch(head)
    assert virtual_tokens(trainer.model) == 4
    assert trainer.model(**inputs).logits.shape[1] == inputs["input_ids"].shape[1] + 4
    step = TrainingStep(trainer.context, trainer.model, inputs)
    assert step.forward().logits.shape[1] == inputs["input_ids"].shape[1]
    assert step.zeros().shape[1] == inputs["input_ids"].shape[1]


def test_an_encoder_s_prompt_crops_nothing_of_its_decoder(tmp_path: Path) -> None:
    trainer = make_trainer("t5", tmp_path, [KLReference()], peft=PROMPT)
    inputs = batch("t5")
    inputs["labels"] = torch.nn.functional.pad(inputs["labels"], (0, 9), value=7)
    assert inputs["labels"].shape[1] > inputs["input_ids"].shape[1]
    assert virtual_tokens(trainer.model) == 0
    step = TrainingStep(trainer.context, trainer.model, inputs)
    assert step.forward().logits.shape[1] == inputs["labels"].shape[1]
    assert step.loss().isfinite()


def test_reference_and_predictions_are_by_default_of_the_pass_that_is_evaluated(tmp_path: Path) -> None:
    """A method that swaps tokens evaluates the loss on a batch of its own."""
    head = "bert-token-classification"
    trainer = make_trainer(head, tmp_path, [KLReference()], peft=LORA)
    step = TrainingStep(trainer.context, trainer.model, batch(head))
    step.loss()
    step.loss(batch=batch(head, rows=3, seed=1))
    assert len(step._reference) == 2
    other = TrainingStep(trainer.context, trainer.model, batch(head, rows=3, seed=1))
    other.loss()
    assert abs(float(other.terms["kl-reference"].mean)) < 1e-6


def test_a_term_over_nothing_is_zero_on_a_head_without_logits(tmp_path: Path) -> None:
    class Nothing(Constraint):
        """Counts none of its units."""

        def counts(self, batch: Any) -> dict[str, int]:
            return {"nothing": 0}

        def penalty(self, step: Any, outputs: Any) -> Term:
            return Term(torch.tensor(float("nan")), "nothing")

    head = "bert-question-answering"
    trainer = make_trainer(head, tmp_path, [Nothing()])
    step = TrainingStep(trainer.context, trainer.model, batch(head))
    loss = step.loss()
    loss.backward()
    torch.testing.assert_close(loss.detach(), step.terms["objective"].mean)


def test_a_span_head_predicts_two_distributions_over_real_positions(tmp_path: Path) -> None:
    head = "bert-question-answering"
    trainer = make_trainer(head, tmp_path, [KLReference()])
    inputs = batch(head)
    step = TrainingStep(trainer.context, trainer.model, inputs)
    spans = SimpleNamespace(start_logits=torch.randn(8, 6), end_logits=torch.randn(8, 6))
    shown = torch.ones(8, 6, dtype=torch.long)
    shown[:, 4:] = 0
    found, unit = step.log_probabilities(spans, {**inputs, "attention_mask": shown})
    assert unit == "example"
    torch.testing.assert_close(found[:, 0, :4], spans.start_logits[:, :4].log_softmax(-1))
    torch.testing.assert_close(found[:, 1, :4], spans.end_logits[:, :4].log_softmax(-1))
    assert not found.exp()[..., 4:].any()


def test_what_may_be_frozen_of_a_saved_prompt_is_not_known_before_it_is_loaded(encoder: Path, tmp_path: Path) -> None:
    task = Ner()
    task.labels = ["O", "B-PER", "I-PER"]
    model, tokenizer = models.load(encoder, task, peft=Peft(method="p-tuning", num_virtual_tokens=2))
    models.save(model, tokenizer, tmp_path / "prompted")
    for freeze in (["prompt_encoder"], ["base_model"]):
        models.refuse_unfit(tmp_path / "prompted", task, None, freeze, {})
        models.load(tmp_path / "prompted", task, freeze=freeze)
    with pytest.raises(UsageError, match="'embedings'"):
        models.refuse_unfit(encoder, task, None, ["embedings"], {})
