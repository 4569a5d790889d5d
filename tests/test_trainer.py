"""AlignTrainer against transformers.Trainer, and against itself with larger batches."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import PositiveFloat
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertForTokenClassification,
    LlamaConfig,
    LlamaForCausalLM,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    default_data_collator,
    set_seed,
)

from alignkit.components import Adversary, Averager, Constraint, Term, Weight
from alignkit.errors import PluginError, UsageError
from alignkit.trainer import AlignTrainer

WIDTH = 12


class Sharp(Adversary):
    """One gradient-normalised step, as FGM."""

    epsilon: PositiveFloat = 1.0
    passes = 2

    def attack(self, step: Any) -> Any:
        delta = step.zeros()
        yield step.loss(delta)
        yield step.loss(self.epsilon * step.unit(delta.grad))


class Stay(Constraint):
    """Mean squared distance of the scored log-probabilities from the reference's."""

    reference = True

    def penalty(self, step: Any, outputs: Any) -> Term:
        ours, unit = step.log_probabilities(outputs)
        theirs, _ = step.log_probabilities(step.reference_outputs())
        return Term((ours.exp() - theirs.exp()).square().sum(-1).mean(), unit)


class Mean(Averager):
    """The plain mean of all weights since the start."""

    def __post_init__(self) -> None:
        self._count, self._sums = 0, {}

    def after_step(self, step: Any) -> None:
        self._count += 1
        for name, value in step.model.named_parameters():
            self._sums[name] = self._sums.get(name, 0) + value.detach()

    def average(self) -> Any:
        return [(name, total / self._count) for name, total in self._sums.items()]

    def state_dict(self) -> dict[str, Any]:
        return {"count": self._count, **self._sums}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._count = state.pop("count")
        self._sums = state


class Ramp(Weight):
    """Grows by one with every observation."""

    def __post_init__(self) -> None:
        self.costs: list[float] = []

    def value(self) -> float:
        return float(len(self.costs))

    def observe(self, cost: float) -> None:
        self.costs.append(cost)

    def state_dict(self) -> dict[str, Any]:
        return {"costs": self.costs}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.costs = state["costs"]


def make_model(head: str, dropout: float = 0.1) -> nn.Module:
    torch.manual_seed(0)
    sizes = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    sizes |= {"intermediate_size": 32}
    if head == "causal":
        return LlamaForCausalLM(LlamaConfig(**sizes, attention_dropout=dropout))
    drop = {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout, "num_labels": 3}
    cls = BertForTokenClassification if head == "token" else BertForSequenceClassification
    return cls(BertConfig(**sizes, **drop))


def make_rows(head: str, n: int = 48) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    rows = []
    for i in range(n):
        length = int(torch.randint(3, WIDTH, (1,), generator=generator))
        ids = torch.randint(1, 50, (WIDTH,), generator=generator)
        real = torch.arange(WIDTH) < length
        ids[~real] = 0
        labels = ids.clone() if head == "causal" else torch.randint(0, 3, (WIDTH,), generator=generator)
        labels[~real] = -100
        label = torch.tensor(i % 3) if head == "sequence" else labels
        rows.append({"input_ids": ids, "attention_mask": real.long(), "labels": label, "index": torch.tensor(i)})
    return rows


def run(cls: type[Trainer], folder: Path, head: str, *, resume: Any = None, **options: Any) -> Trainer:
    extra = {k: options.pop(k) for k in ("components", "callbacks", "eval_dataset") if k in options}
    rows, dropout = options.pop("rows", None), options.pop("dropout", 0.1)
    settings = {"max_steps": 20, "per_device_train_batch_size": 4, "learning_rate": 1e-3, "logging_steps": 5}
    settings |= {"save_strategy": "no", "report_to": "none", "use_cpu": True, "seed": 3, "disable_tqdm": True}
    args = TrainingArguments(output_dir=str(folder), **(settings | options))
    trainer = cls(
        model=make_model(head, dropout),
        args=args,
        train_dataset=make_rows(head) if rows is None else rows,
        data_collator=default_data_collator,
        **extra,
    )
    set_seed(3)
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def weights(trainer: Trainer) -> Tensor:
    return torch.cat([p.detach().flatten() for p in trainer.model.parameters()])


@pytest.mark.parametrize("extra", [{}, {"label_smoothing_factor": 0.1}, {"neftune_noise_alpha": 5.0}])
@pytest.mark.parametrize("head", ["token", "sequence", "causal"])
def test_without_components_equals_the_stock_trainer_bit_for_bit(head: str, extra: dict, tmp_path: Path) -> None:
    stock, ours = (run(cls, tmp_path, head, **extra) for cls in (Trainer, AlignTrainer))
    assert torch.equal(weights(stock), weights(ours))
    pairs = zip(stock.state.log_history[:-1], ours.state.log_history[:-1], strict=True)
    assert all(a["loss"] == b["loss"] and a["grad_norm"] == b["grad_norm"] for a, b in pairs)


def gradient(folder: Path, head: str, rows: int, accumulation: int, components: list[Any]) -> Tensor:
    """The first step's gradient; SGD at rate 1 without clipping makes it the weights' difference."""
    trainer = run(
        AlignTrainer, folder, head, max_steps=1, per_device_train_batch_size=rows, dropout=0.0,
        gradient_accumulation_steps=accumulation, optim="sgd", learning_rate=1.0, lr_scheduler_type="constant",
        max_grad_norm=0.0, components=components, train_sampling_strategy="sequential",
    )  # fmt: skip
    return torch.cat([p.flatten() for p in make_model(head, 0.0).parameters()]).detach() - weights(trainer)


@pytest.mark.parametrize("component", [None, Sharp, Stay])
@pytest.mark.parametrize("head", ["token", "sequence", "causal"])
def test_accumulated_micro_batches_give_the_large_batchs_gradient(head: str, component: Any, tmp_path: Path) -> None:
    made = [component()] if component else []
    one, four = gradient(tmp_path, head, 8, 1, made), gradient(tmp_path, head, 2, 4, made)
    assert one.norm() > 0
    assert four.norm() / one.norm() == pytest.approx(1.0, abs=1e-3)
    assert torch.cosine_similarity(one, four, dim=0) > 0.9999


def test_a_micro_batch_without_scored_tokens_adds_nothing(tmp_path: Path) -> None:
    rows = make_rows("token", 8)
    for row in rows[:2]:
        row["labels"] = torch.full_like(row["labels"], -100)
    options = {"rows": rows, "dropout": 0.0, "max_steps": 1, "train_sampling_strategy": "sequential"}
    options |= {"optim": "sgd", "learning_rate": 1.0, "max_grad_norm": 0.0}
    one = run(AlignTrainer, tmp_path, "token", per_device_train_batch_size=8, **options)
    four = run(AlignTrainer, tmp_path, "token", per_device_train_batch_size=2, gradient_accumulation_steps=4, **options)
    torch.testing.assert_close(weights(one), weights(four), atol=1e-5, rtol=1e-4)


def test_terms_are_logged_unweighted_and_weighted_and_validated(tmp_path: Path) -> None:
    trainer = run(
        AlignTrainer, tmp_path, "token", components=[Stay(weight=0.5)], eval_dataset=make_rows("token", 9),
        eval_strategy="steps", eval_steps=20, per_device_eval_batch_size=4,
    )  # fmt: skip
    last = [entry for entry in trainer.state.log_history if "loss" in entry][-1]
    assert last["penalty/stay"] > 0
    assert last["weighted/stay"] == pytest.approx(0.5 * last["penalty/stay"])
    assert last["loss"] == pytest.approx(last["objective"] + last["weighted/stay"], rel=1e-2)
    evaluated = next(entry for entry in trainer.state.log_history if "eval_loss" in entry)
    assert evaluated["eval_penalty/stay"] > 0
    # the mean over all tokens, not of batches' means
    rows = make_rows("token", 9)
    batch = {k: torch.stack([r[k] for r in rows]) for k in ("input_ids", "attention_mask", "labels")}
    trainer.model.eval()
    with torch.no_grad():
        assert evaluated["eval_loss"] == pytest.approx(float(trainer.model(**batch).loss), rel=1e-5)


def test_a_weight_that_moves_is_logged_as_it_was_used(tmp_path: Path) -> None:
    logs = {}
    for every in (1, 4):
        trainer = run(
            AlignTrainer, tmp_path, "sequence", components=[Stay(weight=Ramp())], max_steps=4, logging_steps=every
        )
        logs[every] = [entry for entry in trainer.state.log_history if "loss" in entry]
    single, (together,) = logs[1], logs[4]
    assert [entry["weight/stay"] for entry in single] == [0.0, 1.0, 2.0, 3.0]
    for entry in single:
        assert entry["weighted/stay"] == pytest.approx(entry["weight/stay"] * entry["penalty/stay"])
    assert together["weight/stay"] == 3.0
    for name in ("penalty/stay", "weighted/stay"):  # rows of one number: means of means
        assert together[name] == pytest.approx(sum(entry[name] for entry in single) / 4)
    assert together["weighted/stay"] != pytest.approx(3.0 * together["penalty/stay"])


class Turned(Constraint):
    """Compares rows with their turned versions."""

    used: bool = True

    @property
    def makes_views(self) -> bool:
        return self.used

    def views(self, example: Any) -> dict[str, Any]:
        return {}

    def penalty(self, step: Any, outputs: Any) -> Term:
        return Term(outputs.logits.mean() * 0.0, "example")


def test_rows_without_views_are_spoken_of_once_per_component(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    from datasets import Dataset

    plain = make_rows("sequence")
    with_views = [{**row, "views": None} for row in plain]
    makes, idle = [Turned(), Turned(), Stay()], [Turned(used=False)]
    first = "constraint turned has no other version of any row to look at: the rows of train_dataset have no `views`"
    for rows, components, said in (
        (plain, makes, 2),
        (Dataset.from_list([{k: v.tolist() for k, v in row.items()} for row in plain]), makes, 2),
        (plain, idle, 0),
        (with_views, makes, 0),
        (plain[:1] + with_views[1:], makes, 0),
    ):
        caplog.clear()
        trainer = AlignTrainer(
            model=make_model("sequence"),
            args=TrainingArguments(output_dir=str(tmp_path), max_steps=2, report_to="none", use_cpu=True),
            train_dataset=rows,
            data_collator=default_data_collator,
            components=components,
        )
        trainer.train()
        found = [record.getMessage() for record in caplog.records if record.name == "alignkit.data.prepare"]
        assert len(found) == said, found
        assert not found or found[0].startswith(first)


def test_a_loss_that_is_not_finite_stops_before_the_optimizer(tmp_path: Path) -> None:
    class Broken(Constraint):
        """NaN from the third step on."""

        def penalty(self, step: Any, outputs: Any) -> Term:
            return Term(outputs.logits.mean() * (float("nan") if step.index >= 2 else 1.0), "example")

    seen: list[Tensor] = []

    class Watch(TrainerCallback):
        def on_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
            seen.append(torch.cat([p.detach().flatten() for p in model.parameters()]))

    with pytest.raises(UsageError, match=r"optimizer step 2, micro-batch 0: the loss is not finite \(broken; rows \["):
        run(AlignTrainer, tmp_path, "token", components=[Broken()], callbacks=[Watch()])
    assert len(seen) == 2
    assert all(s.isfinite().all() for s in seen)


@pytest.mark.parametrize("save", ["no", "steps"])
def test_a_checkpoint_is_said_to_stand_where_there_is_one(save: str, tmp_path: Path) -> None:
    class Broken(Constraint):
        """NaN from the second step on."""

        def penalty(self, step: Any, outputs: Any) -> Term:
            return Term(outputs.logits.mean() * (float("nan") if step.index else 1.0), "example")

    class Steep(Constraint):
        """0 throughout, with a gradient that is not finite from the second step on."""

        def penalty(self, step: Any, outputs: Any) -> Term:
            nothing = outputs.logits.mean() * 0.0
            return Term(nothing.sqrt() if step.index else nothing, "example")

    for name, broken in (("loss", Broken()), ("gradient", Steep())):
        with pytest.raises(UsageError, match=f"the {name} is not finite") as e:
            run(AlignTrainer, tmp_path / name, "token", components=[broken], save_strategy=save, save_steps=1)
        assert ("the last checkpoint stands" in str(e.value)) == (save == "steps")


def test_an_averager_stands_in_at_evaluation_and_at_the_end(tmp_path: Path) -> None:
    scored: list[Tensor] = []

    class Look(TrainerCallback):
        def on_prediction_step(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
            scored.append(torch.cat([p.detach().flatten() for p in model.parameters()]))

    averager = Mean()
    trainer = run(
        AlignTrainer, tmp_path, "token", components=[averager], eval_dataset=make_rows("token", 4),
        eval_strategy="steps", eval_steps=20, callbacks=[Look()],
    )  # fmt: skip
    mean = torch.cat([v.flatten() for _, v in averager.average()])
    assert torch.equal(weights(trainer), mean)
    assert torch.equal(scored[-1], mean)
    plain = run(AlignTrainer, tmp_path, "token")
    assert not torch.equal(weights(plain), mean)


def test_the_best_checkpoint_is_reloaded_as_it_was_scored(tmp_path: Path) -> None:
    trainer = run(
        AlignTrainer, tmp_path, "token", components=[Mean()], eval_dataset=make_rows("token", 8),
        eval_strategy="steps", eval_steps=5, save_strategy="steps", save_steps=5, load_best_model_at_end=True,
        metric_for_best_model="loss", greater_is_better=True,
    )  # fmt: skip
    assert trainer.state.best_global_step < 20, "by the highest loss the last checkpoint is not the best"
    assert trainer.evaluate()["eval_loss"] == pytest.approx(trainer.state.best_metric, rel=1e-5)


@pytest.mark.parametrize("step", [5, 10])
@pytest.mark.parametrize("grouping", ["random", "group_by_length"])
def test_a_resumed_run_ends_with_the_same_bytes(step: int, grouping: str, tmp_path: Path) -> None:
    def components() -> list[Any]:
        return [Sharp(), Stay(weight=Ramp()), Mean()]

    options = {"save_strategy": "steps", "save_steps": 5, "gradient_accumulation_steps": 2}
    options |= {"train_sampling_strategy": grouping}
    whole = run(AlignTrainer, tmp_path / "whole", "token", components=components(), **options)
    resumed = run(
        AlignTrainer, tmp_path / "again", "token", components=components(), **options,
        resume=str(tmp_path / "whole" / f"checkpoint-{step}"),
    )  # fmt: skip
    assert torch.equal(weights(whole), weights(resumed))
    assert whole.composition["stay"].weight.costs == resumed.composition["stay"].weight.costs


def test_an_interrupted_checkpoint_does_not_count(tmp_path: Path) -> None:
    options = {"save_strategy": "steps", "save_steps": 5}
    whole = run(AlignTrainer, tmp_path, "token", components=[Mean()], **options)
    (tmp_path / "checkpoint-20" / "alignkit.json").unlink()
    (tmp_path / "checkpoint-900").mkdir()
    resumed = run(AlignTrainer, tmp_path, "token", components=[Mean()], resume=True, **options)
    assert resumed._initial_global_step == 15
    assert torch.equal(weights(whole), weights(resumed))
    with pytest.raises(UsageError, match="its writing was interrupted"):
        run(AlignTrainer, tmp_path, "token", components=[Mean()], resume=str(tmp_path / "checkpoint-900"))


def test_a_second_training_starts_components_afresh(tmp_path: Path) -> None:
    trainer = run(AlignTrainer, tmp_path, "token", components=[Stay(weight=Ramp())])
    assert len(trainer.composition["stay"].weight.costs) == 20
    trainer.train()
    assert len(trainer.composition["stay"].weight.costs) == 20


@pytest.mark.parametrize(("yielded", "message"), [(1, "yielded 1 losses, but its passes = 2"), (3, "yielded more")])
def test_a_wrong_number_of_passes_names_the_adversary(yielded: int, message: str, tmp_path: Path) -> None:
    class Odd(Adversary):
        """Yields another number of losses than it says."""

        passes = 2

        def attack(self, step: Any) -> Any:
            for _ in range(yielded):
                yield step.loss()

    with pytest.raises(PluginError, match=message):
        run(AlignTrainer, tmp_path, "token", components=[Odd()])


def test_an_adversary_is_closed_when_training_breaks(tmp_path: Path) -> None:
    closed = []

    class Tidy(Adversary):
        """Breaks in its second pass."""

        passes = 2

        def attack(self, step: Any) -> Any:
            try:
                yield step.loss()
                yield step.loss() * math.nan
            finally:
                closed.append(True)

    with pytest.raises(UsageError, match="under the perturbation"):
        run(AlignTrainer, tmp_path, "token", components=[Tidy()])
    assert closed == [True]


def test_rotation_keeps_complete_checkpoints(tmp_path: Path) -> None:
    run(AlignTrainer, tmp_path, "token", components=[Mean()], save_strategy="steps", save_steps=5, save_total_limit=2)
    assert sorted(p.name for p in tmp_path.glob("checkpoint-*")) == ["checkpoint-15", "checkpoint-20"]
    facts = json.loads((tmp_path / "checkpoint-20" / "alignkit.json").read_text())
    assert facts == {"unit_length": 1.0, "components": ["mean", "objective"]}


def test_components_leave_the_global_random_state_alone(tmp_path: Path) -> None:
    states = []
    for components in ([], [Sharp(), Stay(), Mean()]):
        run(AlignTrainer, tmp_path, "token", components=components, dropout=0.0, max_steps=3)
        states.append(torch.random.get_rng_state())
    assert torch.equal(*states)


def test_a_subclass_that_makes_its_own_loss_is_refused(tmp_path: Path) -> None:
    class Own(AlignTrainer):
        def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **_: Any) -> Any:
            return model(input_ids=inputs["input_ids"], labels=inputs["labels"]).loss

    with pytest.raises(UsageError, match=r"Own\.compute_loss: it does not ask AlignTrainer's"):
        run(Own, tmp_path, "token", components=[Stay()])


def test_a_subclass_may_look_at_the_outputs(tmp_path: Path) -> None:
    class Looking(AlignTrainer):
        def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **options: Any) -> Any:
            loss, outputs = super().compute_loss(model, inputs, return_outputs=True, **options)
            assert outputs.logits.shape[0] == len(inputs["labels"])
            return (loss, outputs) if return_outputs else loss

    looking, plain = (run(cls, tmp_path, "token", components=[Sharp()]) for cls in (Looking, AlignTrainer))
    assert torch.equal(weights(looking), weights(plain))


def test_resuming_with_other_components_is_refused(tmp_path: Path) -> None:
    run(AlignTrainer, tmp_path, "token", components=[Mean()], save_strategy="steps", save_steps=10)
    with pytest.raises(UsageError, match="it was written with mean, objective; expected stay, objective"):
        run(AlignTrainer, tmp_path, "token", components=[Stay()], resume=True)


def test_model_init_beside_components_is_refused(tmp_path: Path) -> None:
    args = TrainingArguments(output_dir=str(tmp_path), report_to="none", use_cpu=True)
    with pytest.raises(UsageError, match="model_init: the model would be made anew"):
        AlignTrainer(model_init=lambda: make_model("token"), args=args, components=[Stay()])
