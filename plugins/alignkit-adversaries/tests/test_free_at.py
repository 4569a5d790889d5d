"""Free-AT against a closed form, and against the paper's algorithm written out as a training loop."""

from __future__ import annotations

import pytest
import torch
from alignkit_adversaries import FreeAT
from pydantic import ValidationError

from alignkit.compose import Composition
from alignkit.errors import UsageError
from alignkit.plan import Setting, make_plan
from alignkit.tasks.stock import StockTask
from alignkit.testing import collate, make_rows, make_trainer, tiny, trained_weights
from alignkit.testing.training import short_collections

SPECIAL = (0, 2, 3)


def replay(make_step, model, batch, adversary, times, rows=(0, 1, 2)):
    """The losses of `times` optimizer steps on one batch, at weights that stay."""
    found = []
    for index in range(times):
        step = make_step(model, {**batch, "index": torch.tensor(rows)}, [adversary])
        step.index = index
        for loss in step.context.composition.attack(step):
            loss.backward()
            found.append(loss.item())
    return found


def test_losses_are_those_of_the_closed_form(logistic, make_step):
    found = replay(make_step, logistic.model, logistic.batch, FreeAT(epsilon=0.4, steps=3), 3)
    perturbed = logistic.loss(0.4 * logistic.unit_length * logistic.slope)
    assert found == pytest.approx([logistic.loss(), perturbed, perturbed], rel=1e-5)


def test_new_rows_start_at_zero(logistic, make_step):
    adversary = FreeAT(epsilon=0.4)
    replay(make_step, logistic.model, logistic.batch, adversary, 2)
    assert replay(make_step, logistic.model, logistic.batch, adversary, 1, (3, 4, 5)) == pytest.approx(
        [logistic.loss()]
    )
    shorter = {name: value[:, :4] if value.ndim == 2 else value for name, value in logistic.batch.items()}
    replay(make_step, logistic.model, shorter, adversary, 1, (3, 4, 5))  # the rows again, padded otherwise
    assert adversary._kept[0][1].shape[1] == 4


def test_the_same_rows_in_the_next_epoch_start_at_zero(logistic, make_step):
    found = replay(make_step, logistic.model, logistic.batch, FreeAT(epsilon=0.4, steps=2), 4)
    perturbed = logistic.loss(0.4 * logistic.unit_length * logistic.slope)
    assert found == pytest.approx([logistic.loss(), perturbed] * 2, rel=1e-5)


def test_without_row_numbers_the_optimizer_step_says_when_a_batch_is_new(logistic, make_step):
    adversary, found = FreeAT(epsilon=0.4, steps=2), []
    for index in range(4):
        step = make_step(logistic.model, logistic.batch, [adversary])
        step.index = index
        for loss in step.context.composition.attack(step):
            loss.backward()
            found.append(loss.item())
    perturbed = logistic.loss(0.4 * logistic.unit_length * logistic.slope)
    assert found == pytest.approx([logistic.loss(), perturbed] * 2, rel=1e-5)


def test_its_state_goes_on_where_it_was_and_another_process_starts_at_zero(logistic, make_step):
    first, second, other = FreeAT(epsilon=0.4), FreeAT(epsilon=0.4), FreeAT(epsilon=0.4)
    replay(make_step, logistic.model, logistic.batch, first, 1)
    second.load_state_dict(first.state_dict())
    other.load_state_dict(first.state_dict())
    went_on = replay(make_step, logistic.model, logistic.batch, first, 1)
    assert replay(make_step, logistic.model, logistic.batch, second, 1) == went_on
    assert replay(make_step, logistic.model, logistic.batch, other, 1, (3, 4, 5)) == pytest.approx([logistic.loss()])


@pytest.mark.parametrize("micro", [1, 2])
def test_a_training_is_the_papers_algorithm(micro, tmp_path):
    head, rate, epsilon, times = "bert-token-classification", 0.3, 0.7, 3
    rows = make_rows(head, 8)
    with short_collections():
        trainer = make_trainer(
            head, tmp_path, [FreeAT(epsilon=epsilon, steps=times)], rows=rows, max_steps=2 * times, optim="sgd",
            per_device_train_batch_size=4 // micro, gradient_accumulation_steps=micro, learning_rate=rate,
            lr_scheduler_type="constant", max_grad_norm=0.0,
        )  # fmt: skip
        trainer.train()

    model, _, _ = tiny(head)
    table = model.get_input_embeddings().weight
    unit = table.detach().norm(dim=-1)[1:].mean()  # padding's row is zero
    for block in (rows[:4], rows[4:]):
        batch = collate(head, [{k: v for k, v in row.items() if k != "index"} for row in block])
        rest = {name: value for name, value in batch.items() if name != "input_ids"}
        real = batch["attention_mask"].bool() & ~torch.isin(batch["input_ids"], torch.tensor(SPECIAL))
        delta = torch.zeros(*batch["input_ids"].shape, table.shape[1])
        for _ in range(times):
            delta.requires_grad_(True)
            model.zero_grad()
            model(inputs_embeds=table[batch["input_ids"]] + delta, **rest).loss.backward()
            g = delta.grad * real[..., None]
            delta = delta.detach() + epsilon * unit * g / g.norm(dim=(1, 2), keepdim=True)
            norm = delta.norm(dim=(1, 2), keepdim=True)
            delta = torch.where(norm > epsilon * unit, delta * epsilon * unit / norm, delta)
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter -= rate * parameter.grad
    expected = torch.cat([p.detach().flatten() for p in model.parameters()])
    before = torch.cat([p.detach().flatten() for p in tiny(head)[0].parameters()])
    found = trained_weights(trainer)
    assert float((found - expected).norm() / (expected - before).norm()) < 1e-4


def test_its_first_step_on_a_batch_is_clean_and_the_next_are_perturbed(tmp_path, deltas_of):
    with short_collections():
        trainer = make_trainer("llama-causal-lm", tmp_path, [FreeAT(steps=2)], max_steps=4, learning_rate=0.0)
        trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[1] > losses[0]
    assert losses[3] > losses[2]


def test_a_data_set_without_length_is_refused(tmp_path):
    from transformers import TrainingArguments

    from alignkit import AlignTrainer

    model, tokenizer, _ = tiny("bert-token-classification")
    arguments = TrainingArguments(output_dir=str(tmp_path), max_steps=1, use_cpu=True, report_to="none")
    endless = type("Endless", (torch.utils.data.IterableDataset,), {"__iter__": lambda self: iter(())})()
    with pytest.raises(UsageError) as refused:
        AlignTrainer(
            model=model, args=arguments, train_dataset=endless, processing_class=tokenizer, components=[FreeAT()]
        )
    assert str(refused.value) == (
        "train_dataset: the data set has no length, so that its batches cannot be repeated; expected one with a "
        "length; pass a data set that has rows by number, or leave out free-at"
    )


def test_the_plan_says_that_an_epoch_is_longer():
    composition = Composition([FreeAT(steps=4)], StockTask())
    plan = make_plan(composition, Setting(composition.task, composition.components, composition.objective))
    assert (plan.passes, plan.factor) == (1, 1.0)
    assert "each batch is trained on 4 times in a row: an epoch takes 4 times the steps of a plain one" in plan.notes


@pytest.mark.parametrize("field", ["epsilon", "steps"])
def test_fields_are_positive(field):
    with pytest.raises(ValidationError, match="greater than 0"):
        FreeAT(**{field: 0})
