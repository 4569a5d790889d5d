"""Training tiny models in tests: real runs of `AlignTrainer`, a tenth of a second each.

trained = make_trainer("t5", tmp_path, [MyConstraint()])
trained.train()
"""

from __future__ import annotations

import contextlib
import copy
import gc
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignkit.components import Component
from alignkit.testing.models import VOCABULARY, Row, collate, examples, tiny, tokenizer

if TYPE_CHECKING:
    from torch import Tensor

    from alignkit.components import Batch, Task
    from alignkit.models import Peft
    from alignkit.step import TrainingStep
    from alignkit.tasks.stock import StockTask
    from alignkit.trainer import AlignTrainer

PEFT_TYPES = {
    "sequence-classification": "SEQ_CLS",
    "token-classification": "TOKEN_CLS",
    "causal-lm": "CAUSAL_LM",
    "question-answering": "QUESTION_ANS",
    "": "SEQ_2_SEQ_LM",
}
"""What peft calls the kinds of head, by the end of a tiny model's name."""


def make_step(
    model: Any,
    inputs: Batch,
    components: Sequence[Component] = (),
    *,
    task: Task | None = None,
    objective: Any = None,
    reference: Any = None,
    tokenizer: Any = None,
    special_ids: Sequence[int] = (0, 2, 3),
    **known: Any,
) -> TrainingStep:
    """A step on one batch without a trainer: for looking at one loss, penalty or perturbation by itself.

    Args:
        model: as it is to be looked at, in training mode or not.
        inputs: what `collate` makes.
        components: the methods that hook into the step.
        task: by default one that takes the batch as it is.
        objective: by default the task's.
        reference: another model to be the reference; frozen and put into evaluation mode.
        tokenizer: for components that look into it.
        special_ids: token ids that are not perturbed.
        known: what else `TrainingStep` takes (`window`, `columns` …).
    """
    from alignkit.compose import Composition
    from alignkit.layers import input_embedding, mean_embedding_norm
    from alignkit.reference import Reference
    from alignkit.step import StepContext, TrainingStep
    from alignkit.tasks.stock import StockTask

    task = task or StockTask(shifts_labels=type(model).__name__.endswith("ForCausalLM"))
    embedding = input_embedding(model)
    context = StepContext(
        task=task,
        composition=Composition(components, task, objective),
        forward=task.forward,
        embedding=embedding,
        unit_length=mean_embedding_norm(embedding),
        special_ids=tuple(special_ids),
        tokenizer=tokenizer,
        reference=None if reference is None else Reference.of(reference),
    )
    return TrainingStep(context, model, inputs, **known)


def make_trainer(
    head: str,
    folder: Path,
    components: Sequence[Component] = (),
    *,
    rows: Sequence[Row] | None = None,
    peft: Peft | None = None,
    dropout: float = 0.0,
    objective: Any = None,
    task: Task | None = None,
    eval_rows: Sequence[Row] | None = None,
    callbacks: Sequence[Any] = (),
    **arguments: Any,
) -> AlignTrainer:
    """An `AlignTrainer` of a tiny model on rows of token ids, in the order of the rows.

    Args:
        head: one of `HEADS`.
        folder: for checkpoints.
        components: the methods that hook into the training.
        rows: by default eight random ones, with the components' views.
        peft: an adapter instead of full fine-tuning.
        dropout: of the model; with it, seed the global generators before you train.
        task: what the model is trained for, in the place of the head's plain labels; give its `task_rows` as `rows`.
        arguments: any of transformers.TrainingArguments; by default two steps of four rows on the CPU.

    Where a component needs a reference, it is another random model under full fine-tuning and the model without its
    adapter under peft: the model itself would agree with itself at the first step.
    """
    from transformers import TrainingArguments

    from alignkit.models.adapters import adapted
    from alignkit.trainer import AlignTrainer

    own = task
    task = stock_task(head) if own is None else own
    model, tokenizer, _ = tiny(head, dropout=dropout)
    if peft is not None:
        import torch

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = adapted(model, task, peft)
    asks = any(c.reference for c in (*components, *([objective] if objective else [])))
    settings: dict[str, Any] = {"max_steps": 2, "per_device_train_batch_size": 4, "learning_rate": 1e-3, "seed": 3}
    settings |= {"save_strategy": "no", "report_to": "none", "use_cpu": True, "disable_tqdm": True, "logging_steps": 1}
    settings |= {"train_sampling_strategy": "sequential", "remove_unused_columns": own is None, **arguments}
    trainer = AlignTrainer(
        model=model,
        args=TrainingArguments(output_dir=str(folder), **settings),
        train_dataset=list(make_rows(head, 8, components) if rows is None else rows),
        eval_dataset=None if eval_rows is None else list(eval_rows),
        processing_class=tokenizer,
        data_collator=lambda part: collate(head, part) if own is None else own.collate(part, tokenizer),
        components=list(components),
        task=task,
        objective=objective,
        reference=tiny(head, seed=1)[0] if asks and peft is None else None,
        callbacks=list(callbacks),
    )
    _silence(trainer)
    return trainer


def gradient(
    head: str,
    folder: Path,
    components: Sequence[Component] = (),
    *,
    size: int = 8,
    accumulation: int = 1,
    **options: Any,
) -> Tensor:
    """The gradient of the first optimizer step over `size` * `accumulation` rows, all trained parameters in one vector.

    Plain gradient descent at rate 1 without clipping: the difference of the weights.
    """
    trainer = make_trainer(
        head, folder, components, max_steps=1, per_device_train_batch_size=size,
        gradient_accumulation_steps=accumulation, optim="sgd", learning_rate=1.0, lr_scheduler_type="constant",
        max_grad_norm=0.0, **options,
    )  # fmt: skip
    before = trained_weights(trainer)
    trainer.train()
    return before - trained_weights(trainer)


def trained_weights(trainer: AlignTrainer) -> Tensor:
    """A copy of all trained parameters in one vector."""
    import torch

    model: Any = trainer.accelerator.unwrap_model(trainer.model)
    return torch.cat([p.detach().flatten() for p in model.parameters() if p.requires_grad]).clone()


def make_rows(head: str, number: int, components: Sequence[Component] = (), seed: int = 0) -> list[Row]:
    """Random rows with their `index`, and in `views` what components make of them, word for word."""
    from alignkit.compose import Composition
    from alignkit.data.example import Example

    composition = Composition([copy.copy(c) for c in components], stock_task(head))
    rows = [{**row, "index": i} for i, row in enumerate(examples(head, number, seed))]
    if not composition.has_views:
        return rows
    for i, row in enumerate(rows):
        words = [VOCABULARY[token] for token in _flat(row["input_ids"])]
        views = composition.views(Example({"tokens": words}, inputs=("tokens",), row=i))
        row["views"] = {name: _viewed(row, view["tokens"]) for name, view in views.items()} or None
    return rows


def task_rows(task: Task, head: str, number: int) -> list[Row]:
    """The task's samples in turn, encoded for a tiny model, with their `index`."""
    from alignkit.data.features import windows

    tokens = tokenizer(head)
    found = [row for given in task.samples for row in windows(task.encode(task.parse(dict(given), ""), tokens))]
    return [{**found[i % len(found)], "index": i} for i in range(number)]


def stock_task(head: str) -> StockTask:
    """What `AlignTrainer` takes a plain head for, with what peft needs to know of it."""
    from alignkit.tasks.stock import StockTask

    kind = head.partition("-")[2]
    own = {"peft_type": PEFT_TYPES.get(kind, ""), "has_head": kind not in ("", "causal-lm", "masked-lm")}
    made: StockTask = type("Stock", (StockTask,), own)(shifts_labels=kind == "causal-lm")
    return made


def fresh(component: Any) -> Any:
    """A new component with the same fields."""
    fields = {n: fresh(v) if isinstance(v, Component) else copy.deepcopy(v) for n, v in component.fields().items()}
    return type(component)(**fields)


@contextlib.contextmanager
def short_collections() -> Iterator[None]:
    """Trainings inside start fast: the Trainer collects garbage first, here not among all that was imported."""
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def random_state() -> tuple[Any, ...]:
    """The state of the global generators of Python, numpy and torch."""
    import numpy
    import torch

    legacy: Any = numpy.random.get_state()
    return random.getstate(), legacy[1].tolist(), legacy[2], torch.get_rng_state().tolist()


def same(one: Any, other: Any) -> bool:
    """Equal to the last bit: tensors, and anything JSON holds."""
    import torch

    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same(one[name], other[name]) for name in one)
    return bool(one == other)


def _flat(ids: list[Any]) -> list[int]:
    return [token for line in ids for token in line] if isinstance(ids[0], list) else ids


def _viewed(row: Row, words: list[str]) -> Row:
    """The row with other words, as many as before; words that the vocabulary lacks are unknown ones."""
    known = {word: i for i, word in enumerate(VOCABULARY)}
    ids = iter([known.get(word, known["[UNK]"]) for word in words])
    nested = isinstance(row["input_ids"][0], list)
    changed = [[next(ids) for _ in line] for line in row["input_ids"]] if nested else list(ids)
    return {**{k: v for k, v in row.items() if k not in ("index", "views")}, "input_ids": changed}


def _silence(trainer: AlignTrainer) -> None:
    """No dictionaries on stdout."""
    from transformers import PrinterCallback

    trainer.remove_callback(PrinterCallback)
