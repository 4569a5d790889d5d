"""The trainer: transformers' own, with hook points.

    per micro-batch:
        step = TrainingStep(model, batch)
        for loss in adversary.attack(step)      # no adversary: just step.loss()
            backward(loss)                      # step.loss(delta) = objective + sum of weight * penalty
        updater.adjust_gradients(step)          # at the accumulation boundary, before clipping
        optimizer.step()
        after_step(step)                        # averagers (EMA, SWA), updaters (SI), weights (multipliers)

Data preparation before it and fusion, consolidation, evaluation and the report after it are `alignkit/run.py`'s.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import gather_object
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback, TrainerState
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import EvalLoopOutput, TrainOutput, rotate_checkpoints
from transformers.utils import ModelOutput

from alignkit import checkpoints
from alignkit.components import Component, Objective, Task
from alignkit.compose import Composition
from alignkit.data import prepare
from alignkit.data.collate import StepCollator, batch_rows, first_rows
from alignkit.data.sampler import Replayed, SeededLengthGroupedSampler
from alignkit.errors import Mistake, UsageError
from alignkit.finite import nonfinite_gradient, nonfinite_loss
from alignkit.layers import input_embedding, mean_embedding_norm
from alignkit.lm_head import refuse_other_heads
from alignkit.meter import Meter
from alignkit.models.adapters import virtual_tokens
from alignkit.plan import Setting, make_plan
from alignkit.reference import Reference
from alignkit.reference_cache import ReferenceCache
from alignkit.step import OBJECTIVE, StepContext, TrainingStep, generator_at
from alignkit.tasks.stock import StockTask

if TYPE_CHECKING:
    from alignkit.data import Example

EXTRAS = ("views", "columns", "index")
"""What the collator adds to a batch beside the model's own inputs."""


class AlignTrainer(Trainer):
    """`transformers.Trainer` with components; everything that people know from the Trainer keeps working.

    Args:
        components: the methods that hook into the training, in recipe order.
        task: what the model is for; None: a plain head, whose labels say what is scored.
        objective: what is minimised; None: what the task says, mostly the stock loss.
        reference: the model that `step.reference_outputs()` comes from; None: this one, as it is when training
            starts (its base, where it has an adapter).
        fresh_head: the model's head was never trained, so that it is no reference.
        cache: a folder that keeps what references say of labels from run to run; None: they are asked at every step.
        cache_hidden_states: keep a reference's hidden states there, too, for constraints on whole distributions.

    Raises:
        UsageError: components that cannot go together, each with the reason and the mend.

    Example:
        trainer = AlignTrainer(model=model, args=args, train_dataset=data, processing_class=tokenizer,
                               components=[FGM(epsilon=0.1), KLReference(weight=0.1), EMA(decay=0.999)])
        trainer.train()
    """

    loss_is_scaled_for_ga = True  # terms are normalised over the whole accumulation window, in step.py

    def __init__(
        self,
        *args: Any,
        components: Sequence[Component] = (),
        task: Task | None = None,
        objective: Objective | None = None,
        reference: nn.Module | None = None,
        fresh_head: bool = False,
        cache: Path | None = None,
        cache_hidden_states: bool = False,
        **kwargs: Any,
    ):
        super().__init__(*args, **kwargs)
        self.args.average_tokens_across_devices = False  # the window's counts are over all processes already
        self.task = task if task is not None else StockTask(shifts_labels=self._loss_shifts_labels)
        self.composition = Composition(components, self.task, objective)
        self.plan = make_plan(self.composition, self._setting(fresh_head, reference))
        self.data_collator: Any = StepCollator(self.data_collator, self.composition.columns)
        self.step: TrainingStep | None = None
        self.examples: Sequence[Example] = ()
        """The training split by row index, for components that look at the data itself."""
        self.scored_examples: dict[str, Sequence[Example]] = {}
        """Evaluation splits by metric prefix (`eval`, `eval_NAME`): what the task's metrics are taken on."""
        self._scoring: Sequence[Example] = ()
        self._statistics: dict[int, dict[str, float]] = {}
        self._windows: dict[int, list[dict[str, Any]]] = {}
        """Predictions for the windows of long rows, until all of a row's are there."""
        self._reference_model = reference
        self._cache, self._cache_hidden = cache, cache_hidden_states
        self._context: StepContext | None = None
        self._passes: Iterator[Tensor] | None = None
        self._drawn = 0
        """Losses of the step that were trained on so far."""
        self._skipped: int | Tensor = 0
        """Perturbations of examples that were left out because their gradient was not finite, since the last log."""
        self._window: tuple[list[dict[str, int]], dict[str, int]] = ([], {})
        self._logged, self._evaluated, self._stepped = Meter(), Meter(), Meter()
        self.first_costs: dict[str, float] = {}
        """Each weighted constraint's mean over the first optimizer step, of the model as it was found; empty where
        training goes on from a checkpoint."""
        self.add_callback(_AfterStep(self))

    # -- a step ------------------------------------------------------------------------------------------------

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        step = self.step = self._next_step(model, self._prepare_inputs(inputs))
        self._drawn = 0
        with contextlib.closing(self.composition.attack(step)) as self._passes:
            for left in reversed(range(self.composition.passes)):
                with self.local(model) if left else contextlib.nullcontext():
                    super().training_step(model, inputs)  # compute_loss, below, gives the next pass's loss
                self._refuse_foreign_loss(self.composition.passes - left)
            for _ in self._passes:  # the method tidies up behind its last loss
                pass
        self._passes = None
        self._logged.add(step)
        self._skipped += step.nonfinite_gradients
        self._stepped.add(step)
        if self.accelerator.sync_gradients:
            self.composition.adjust_gradients(step)
        assert step.total is not None  # attack() yields at least one loss
        return step.total

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        if self._passes is not None and self.step is not None:
            self.step.keep_outputs = return_outputs
            loss = next(self._passes)
            self._drawn += 1
            self._refuse_nonfinite(self.step, loss)
            return (loss, self.step.outputs) if return_outputs else loss
        step = TrainingStep(self.context, model, inputs)
        loss, outputs = step.evaluate()
        self._measure(step, model, inputs)
        self._score(step, outputs, inputs.get("columns"))
        return (loss, outputs) if return_outputs else loss

    def _measure(self, step: TrainingStep, model: nn.Module, inputs: dict[str, Any]) -> None:
        """Add an evaluation batch's terms, without the rows that only fill the last batch of several processes."""
        state, rows = self.accelerator.gradient_state, batch_rows(inputs)
        if self.accelerator.num_processes > 1 and state.end_of_dataloader and state.remainder > 0:
            real = min(max(state.remainder - self.accelerator.process_index * rows, 0), rows)
            if real < rows:  # every process goes forward once more, those without a real row too
                step = TrainingStep(self.context, model, first_rows(inputs, max(real, 1)))
                step.evaluate()
            if real == 0:
                step.terms = {name: replace(term, count=0) for name, term in step.terms.items()}
        self._evaluated.add(step)

    def _refuse_foreign_loss(self, expected: int) -> None:
        """A subclass whose `compute_loss` makes a loss of its own would train without any component, unnoticed."""
        if self._drawn != expected:
            raise UsageError(
                Mistake(
                    f"{type(self).__name__}.compute_loss",
                    "it does not ask AlignTrainer's, so components and accumulation would have no effect",
                    "super().compute_loss(...)",
                    "call it, pass compute_loss_func=, or write an Objective",
                )
            )

    def _next_step(self, model: nn.Module, inputs: Mapping[str, Any]) -> TrainingStep:
        counts, window = self._window
        micro = self.current_gradient_accumulation_steps - len(counts) if counts else 0
        done, epoch = self.state.global_step, self.state.epoch or 0.0
        known: dict[str, Any] = {"index": done, "epoch": epoch, "progress": done / max(self.state.max_steps, 1)}
        if counts:
            known |= {"counts": counts.pop(0), "window": window}
        return TrainingStep(self.context, model, inputs, micro=micro, **known)

    def get_batch_samples(self, epoch_iterator: Iterator[Any], num_batches: int, device: Any) -> tuple[list[Any], Any]:
        """The window's micro-batches, counted over the whole window and all processes before the first forward."""
        batches, items = super().get_batch_samples(epoch_iterator, num_batches, device)
        batches = [self._redrawn(batch, micro) for micro, batch in enumerate(batches)]
        counts = [self.composition.counts(self.task, batch) for batch in batches]
        names = sorted({name for count in counts for name in count})
        window = {name: sum(count.get(name, 0) for count in counts) for name in names}
        if self.accelerator.num_processes > 1 and names:
            total = self.accelerator.reduce(torch.tensor(list(window.values()), device=device), reduction="sum")
            window = dict(zip(names, total.tolist(), strict=True))
        self._window = (counts, window)
        return batches, items

    def _redrawn(self, inputs: dict[str, Any], micro: int) -> dict[str, Any]:
        """A micro-batch with what its task draws anew at every step, in the same place on every machine."""
        if type(self.task).redraw is Task.redraw or inputs.get("views"):  # labels of views align with those encoded
            return inputs
        place = (self.args.seed, self.state.global_step, micro, self.args.process_index)
        drawn = generator_at(*place, self.task.name)
        batch = {name: value for name, value in inputs.items() if name not in EXTRAS}
        beside = {name: inputs[name] for name in EXTRAS if name in inputs}
        return {**self.task.redraw(batch, inputs.get("columns") or {}, drawn), **beside}

    @contextlib.contextmanager
    def local(self, model: nn.Module) -> Iterator[None]:
        """Backward passes inside stay on this process: another one follows before the gradients are complete."""
        state = self.accelerator.gradient_state
        before = state.sync_gradients
        state._set_sync_gradients(False)
        try:
            with self.accelerator.no_sync(model):
                yield
        finally:
            state._set_sync_gradients(before)

    def after_step(self) -> None:
        """Right after the optimizer: what components keep up with the weights, and what multipliers observe."""
        if self.step is None or self.accelerator.optimizer_step_was_skipped:
            return
        self.composition.after_step(self.step)
        if self.composition.weights:
            costs = self._stepped.take(self._sum_over_processes)
            if self.state.global_step == 0:
                self.first_costs = dict(costs)
            for name, weight in self.composition.weights.items():
                if name in costs:
                    weight.observe(costs[name])
        self._stepped = Meter()

    # -- what a step needs -------------------------------------------------------------------------------------

    @property
    def context(self) -> StepContext:
        """What stays the same from step to step; made when it is first asked for, and anew for each training."""
        if self._context is None:
            self._context = self._make_context()
        return self._context

    def _make_context(self, unit_length: float | None = None) -> StepContext:
        model = self.accelerator.unwrap_model(self.model)
        embedding = input_embedding(model)
        if unit_length is None:
            unit_length = mean_embedding_norm(embedding) if self.composition.perturbs else 1.0
        reference = self._make_reference(model) if self.composition.needs_reference else None
        return StepContext(
            task=self.task,
            composition=self.composition,
            forward=self._forward,
            embedding=embedding,
            unit_length=unit_length,
            special_ids=tuple(getattr(self.processing_class, "all_special_ids", ())),
            tokenizer=self.processing_class,
            reference=reference,
            reference_cache=self._make_cache(model, reference),
            unwrap=self.accelerator.unwrap_model,
            mean_over_processes=lambda tensor: self.accelerator.reduce(tensor, reduction="mean"),
            seed=self.args.seed,
            rank=self.args.process_index,
            processes=self.accelerator.num_processes,
            virtual_tokens=virtual_tokens(model),
            examples=self.examples,
        )

    def _make_reference(self, model: nn.Module) -> Reference:
        if self._reference_model is not None:
            return Reference.of(self._reference_model.to(self.args.device))
        return Reference.adapter() if hasattr(model, "disable_adapter") else Reference.copy(model)

    def _make_cache(self, model: nn.Module, reference: Reference | None) -> ReferenceCache | None:
        if self._cache is None or reference is None or not self.task.shifts_labels:
            return None
        precision = "bf16" if self.args.bf16 else "fp16" if self.args.fp16 else "fp32"
        asked = reference.model if reference.model is not None else model
        if self._cache_hidden:
            refuse_other_heads(asked, "take `cache_hidden_states` out")
        return ReferenceCache(self._cache, asked, precision, self._cache_hidden)

    def _keep_references(self) -> None:
        """Write what the reference was asked so far."""
        if self._context is not None and self._context.reference_cache is not None:
            self._context.reference_cache.flush()

    def _forward(self, model: nn.Module, batch: dict[str, Any]) -> Any:
        """The model's outputs, with the stock loss (label smoothing, `compute_loss_func` …) where there are labels."""
        if not self.task.stock_loss:
            return self.task.forward(model, batch)
        inputs = dict(batch)
        if all(inputs.get(name) is None for name in self.label_names):
            return model(**inputs)
        if self.label_smoother is not None or self.compute_loss_func is not None:
            # the stock loss takes the labels away, of which an encoder-decoder makes what its decoder reads
            make = getattr(self.accelerator.unwrap_model(model), "prepare_decoder_input_ids_from_labels", None)
            if make is not None and inputs.get("decoder_input_ids") is None:
                inputs["decoder_input_ids"] = make(labels=inputs["labels"])
        items = self._get_num_items_in_batch([inputs], self.args.device)
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True, num_items_in_batch=items)
        if not isinstance(outputs, ModelOutput):
            named = outputs if isinstance(outputs, dict) else {"logits": outputs[1] if len(outputs) > 1 else None}
            outputs = ModelOutput(**named)
        outputs["loss"] = loss
        return outputs

    def _setting(self, fresh_head: bool, reference: nn.Module | None) -> Setting:
        if self.model_init is not None and self.composition.components:
            found = "the model would be made anew when training starts, after components have looked at it"
            raise UsageError(Mistake("model_init", found, "model=...", "make the model and pass it"))
        if self.args.n_gpu > 1 and self.composition.components:
            raise UsageError(
                Mistake("", f"{self.args.n_gpu} GPUs in one process", "one process per GPU", "use `accelerate launch`")
            )
        sized = self.train_dataset is None or hasattr(self.train_dataset, "__len__")
        if self.composition.replays > 1 and not sized:
            found = "the data set has no length, so that its batches cannot be repeated"
            replaying = ", ".join(c.name for c in self.composition.components if c.replays > 1)
            mend = f"pass a data set that has rows by number, or leave out {replaying}"
            raise UsageError(Mistake("train_dataset", found, "one with a length", mend))
        peft = getattr(self.model, "active_peft_config", None)
        checkpointing = dict(self.args.activation_checkpointing_kwargs or {})
        if self.args.activation_checkpointing:
            self.args.activation_checkpointing_kwargs = {"use_reentrant": False} | checkpointing
        return Setting(
            task=self.task,
            components=self.composition.components,
            objective=self.composition.objective,
            peft=str(peft.peft_type.value).lower() if peft is not None else None,
            precision="fp16" if self.args.fp16 else "bf16" if self.args.bf16 else "fp32",
            fresh_head=fresh_head,
            reference=type(reference).__name__ if reference is not None else None,
            accumulation=self.args.gradient_accumulation_steps,
            batch_size=self.args.per_device_train_batch_size,
            reentrant_checkpointing=bool(checkpointing.get("use_reentrant", False)),
            validation=self.eval_dataset is not None,
            tokenizer=(lambda: self.processing_class) if self.processing_class is not None else None,
        )

    # -- data --------------------------------------------------------------------------------------------------

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        wanted = ("views", "index", *self.composition.columns)
        self._signature_columns += [name for name in wanted if name not in self._signature_columns]

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        """The Trainer's; grouping by length is seeded by epoch, so that a resumed run sees the same order."""
        sampler = super()._get_train_sampler(train_dataset)
        if sampler is None:
            return None
        seed = self.args.data_seed if self.args.data_seed is not None else self.args.seed
        if self.args.train_sampling_strategy == "group_by_length":
            sampler = SeededLengthGroupedSampler(sampler.batch_size, lengths=sampler.lengths, seed=seed)
        if self.composition.replays > 1:
            block = self._train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size
            sampler = Replayed(sampler, block, self.composition.replays, seed)
        return sampler

    # -- finite or stop ----------------------------------------------------------------------------------------

    def _refuse_nonfinite(self, step: TrainingStep, loss: Tensor) -> None:
        """Stop before the optimizer sees a loss that is not finite; all processes agree."""
        bad = (~loss.detach().isfinite()).any()
        if self._anywhere(bad):
            raise nonfinite_loss(step, here=bool(bad), kept=self._has_checkpoint())

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        scaled = getattr(self.accelerator, "scaler", None) is not None  # fp16 overflows are the scaler's business
        if not scaled and self._anywhere(~torch.as_tensor(norm).isfinite().all()):
            raise nonfinite_gradient(model, self.state.global_step, self.step, kept=self._has_checkpoint())
        return norm

    def _has_checkpoint(self) -> bool:
        return checkpoints.newest(self.args.output_dir) is not None

    def _anywhere(self, flag: Tensor) -> bool:
        if self.accelerator.num_processes > 1:
            flag = self.accelerator.reduce(flag.to(self.args.device).float(), reduction="sum")
        return bool(flag)

    # -- logs and evaluation -----------------------------------------------------------------------------------

    def _sum_over_processes(self, tensor: Tensor) -> Tensor:
        return self.accelerator.reduce(tensor, reduction="sum") if self.accelerator.num_processes > 1 else tensor

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Training logs gain every penalty, unweighted (`penalty/NAME`) and weighted (`weighted/NAME`).

        A weight that is a component is logged as the last step used it, as `weight/NAME`.
        """
        if "loss" in logs and len(self._logged) > 1:
            used = self._logged.weights
            means, weighted = self._logged.take_weighted(self._sum_over_processes)
            logs["objective"] = means.pop(OBJECTIVE, float("nan"))
            for name, mean in means.items():
                logs[f"penalty/{name}"] = mean
                logs[f"weighted/{name}"] = weighted[name]
            logs |= {f"weight/{name}": used[name] for name in self.composition.weights if name in used}
        elif "loss" in logs:
            self._logged = Meter()
        if "loss" in logs and self.composition.components:
            skipped = self._sum_over_processes(torch.as_tensor(self._skipped, device=self.args.device))
            self._skipped = 0
            logs |= {"nonfinite_gradients": float(skipped)} if skipped else {}
        super().log(logs, start_time)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        with self.averaged():
            return super().evaluate(*args, **kwargs)

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> EvalLoopOutput:
        """The stock loop; the loss and every penalty are means over all tokens (or rows), not of batches' means."""
        prefix = kwargs.get("metric_key_prefix", "eval")
        self._evaluated, self._statistics, self._windows = Meter(), {}, {}
        self._scoring = self.scored_examples.get(prefix, ())
        self.task.take_weights(self.accelerator.unwrap_model(self.model), self.processing_class)
        output = super().evaluation_loop(*args, **kwargs)
        for name, mean in self._evaluated.take(self._sum_over_processes).items():
            output.metrics[f"{prefix}_loss" if name == OBJECTIVE else f"{prefix}_penalty/{name}"] = mean
        output.metrics.update({f"{prefix}_{name}": float(value) for name, value in self._scores().items()})
        return output

    def _score(self, step: TrainingStep, outputs: Any, columns: Mapping[str, Any] | None) -> None:
        """Keep each row's statistics; a row that padding of the last batch repeats counts once."""
        if self._scoring and step.rows:
            model = self.accelerator.unwrap_model(step.model)
            batch = {**step.batch, "columns": columns} if columns else step.batch
            answers = self.task.infer(model, self.processing_class, batch, outputs)
            for row, answer in zip(step.rows, answers, strict=True):
                if self.task.windowed:
                    self._windows.setdefault(row, []).append(answer)
                else:
                    self._statistics[row] = self.task.statistics(self._scoring[row], answer)

    def _scores(self) -> dict[str, float]:
        """The task's metrics over the split that was just evaluated, on all processes."""
        found, windows = self._statistics, self._windows
        if self.accelerator.num_processes > 1:
            found = {row: value for part in gather_object([found]) for row, value in part.items()}
            gathered = gather_object([windows])
            windows = {row: [p for part in gathered for p in part.get(row, ())] for part in gathered for row in part}
        for row, parts in windows.items():
            found[row] = self.task.statistics(self._scoring[row], self.task.join(parts))
        totals: Counter[str] = Counter()
        for value in found.values():
            totals.update(value)
        return self.task.metrics(totals) if found else {}

    def prediction_step(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        if any(inputs.get(name) is None for name in self.label_names):  # no loss: straight into the model
            inputs = {name: value for name, value in inputs.items() if name not in EXTRAS}
        return super().prediction_step(model, inputs, *args, **kwargs)

    @contextlib.contextmanager
    def averaged(self) -> Iterator[None]:
        """The averager's weights stand in for the last ones while training goes on; without an averager nothing."""
        averager = self.composition.averager
        if averager is None or not self.is_in_train:
            yield
            return
        saved = self._put(averager.average())
        try:
            yield
        finally:
            self._put(saved.items())

    def _put(self, weights: Any) -> dict[str, Tensor]:
        """Copy weights into the model by name; gives what was there."""
        named = dict(self.accelerator.unwrap_model(self.model).named_parameters())
        before: dict[str, Tensor] = {}
        with torch.no_grad():
            for name, value in weights:
                before[name] = named[name].detach().clone()
                named[name].copy_(value)
        return before

    # -- training, saving, resuming ----------------------------------------------------------------------------

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> TrainOutput:
        """As the Trainer's; components start afresh, or where the checkpoint left them.

        `resume_from_checkpoint=True` takes the newest complete checkpoint of the output folder.
        """
        folder = checkpoints.find(self.args.output_dir, resume_from_checkpoint)
        if not self.examples and self.is_world_process_zero():  # of examples, the plan says who has none
            prepare.warn_of_missing_views(self.composition.components, self.train_dataset)
        self._begin(folder)
        try:
            result = super().train(str(folder) if folder is not None else None, *args, **kwargs)
        finally:
            self.step = self._passes = None
            self.is_in_train = False
            self._keep_references()
        if self.composition.averager is not None:
            self._put(self.composition.averager.average())
        return result

    def restore(self, checkpoint: Path) -> None:
        """Be as a training was that ended with this checkpoint: its weights, or the best, or the average; its history.

        `train` would go on: the Trainer takes at least one step before it looks whether it was done.
        """
        self._begin(checkpoint)
        self._load_from_checkpoint(str(checkpoint))
        self.state = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME))
        if self.args.load_best_model_at_end and self.state.best_model_checkpoint is not None:
            self._load_best_model()
        if self.composition.averager is not None:
            self._put(self.composition.averager.average())

    def _begin(self, checkpoint: Path | None) -> None:
        """Components as newly made, or as a checkpoint has them; the reference is the model as it stands."""
        self.composition.reset()
        facts = {}
        if checkpoint is not None:
            if self.args.should_save:
                checkpoints.relocate(checkpoint)
            self.accelerator.wait_for_everyone()
            facts = checkpoints.load_components(checkpoint, self.composition)
        self._keep_references()
        self._context = None  # with the reference of a training before: two copies at once would be one too many
        self._context = self._make_context(facts.get("unit_length"))
        self._logged, self._stepped, self._skipped = Meter(), Meter(), 0
        self.first_costs = {}

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """A checkpoint keeps the last weights, to go on from; any other saving takes the averager's."""
        with contextlib.nullcontext() if _internal_call else self.averaged():
            super().save_model(output_dir, _internal_call)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """The Trainer's checkpoint, then the components' state, then the marker that makes it count; rotation last."""
        run_dir = self._get_output_dir(trial=trial)
        folder = Path(run_dir) / f"checkpoint-{self.state.global_step}"
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        try:
            if self.args.should_save:
                checkpoints.begin(folder)
            super()._save_checkpoint(model, trial)
        finally:
            self.args.save_total_limit = limit
        if self.args.should_save:
            checkpoints.complete(folder, self.composition, {"unit_length": self.context.unit_length})
            rotate_checkpoints(
                output_dir=run_dir,
                save_total_limit=limit,
                best_model_checkpoint=self.state.best_model_checkpoint,
                use_mtime=True,
            )
        self.accelerator.wait_for_everyone()  # the best checkpoint may be loaded next, by every process

    def _load_best_model(self) -> None:
        super()._load_best_model()
        if self.composition.averager is not None:  # the best score was the average's
            checkpoints.load_component(Path(self.state.best_model_checkpoint), self.composition.averager)


class _AfterStep(TrainerCallback):
    """Asks `after_step` between the optimizer's step and the zeroing of gradients; tells weights how long it takes."""

    def __init__(self, trainer: AlignTrainer):
        self._trainer = trainer

    def on_train_begin(self, args: Any, state: TrainerState, *_: Any, **__: Any) -> None:
        for weight in self._trainer.composition.weights.values():
            weight.begin(state.max_steps)

    def on_optimizer_step(self, *_: Any, **__: Any) -> None:
        self._trainer.after_step()
