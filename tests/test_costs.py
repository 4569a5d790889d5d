"""What components cost, measured beside a plain step."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import TrainingArguments

from alignkit import AlignTrainer, Constraint, Filter, Term, Verdict
from alignkit.costs import measure_costs, peak_memory
from alignkit.testing import models

HEAD = "bert-sequence-classification"


class Slow(Constraint):
    """A penalty that takes its time, and draws from the global random state."""

    def penalty(self, step, outputs):
        import time

        time.sleep(0.2)
        torch.rand(1)
        return Term(outputs.logits.square().mean())


class Nothing(Filter):
    """Costs nothing per step."""

    def filter_examples(self, examples):
        return [Verdict() for _ in examples]


@pytest.fixture
def trainer(tmp_path: Path) -> AlignTrainer:
    model, tokenizer, _ = models.tiny(HEAD, dropout=0.1)
    args = TrainingArguments(
        output_dir=str(tmp_path), per_device_train_batch_size=4, report_to="none", use_cpu=True, save_strategy="no"
    )
    return AlignTrainer(
        model=model,
        args=args,
        train_dataset=models.examples(HEAD, 16),
        processing_class=tokenizer,
        data_collator=lambda rows: models.collate(HEAD, rows),
        components=[Slow(), Nothing()],
    )


def test_a_component_alone_and_all_together_are_held_against_a_plain_step(trainer: AlignTrainer) -> None:
    found = measure_costs(trainer, batches=3)
    assert set(found) == {"plain", "slow", "all"}
    assert found["slow"] > found["plain"] + 100
    assert found["all"] > found["plain"] + 100


def test_measuring_leaves_weights_gradients_components_and_random_state_as_they_were(trainer: AlignTrainer) -> None:
    weights = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    composition, state = trainer.context.composition, torch.get_rng_state()
    measure_costs(trainer, batches=2)
    assert all(value.equal(weights[name]) for name, value in trainer.model.state_dict().items())
    assert all(parameter.grad is None for parameter in trainer.model.parameters())
    assert trainer.context.composition is composition
    assert torch.get_rng_state().equal(state)


def test_the_peak_is_that_of_this_process() -> None:
    before = peak_memory()["process"]
    held = torch.ones(64 * 2**20 // 4)
    assert peak_memory()["process"] >= max(before, held.nbytes)
    assert before > 50 * 2**20  # bytes, whatever unit the system counts in
