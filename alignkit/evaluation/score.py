"""A model's predictions for examples, and the metrics that they come to."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from alignkit.data.collate import StepCollator
from alignkit.data.features import length, windows
from alignkit.evaluation.bootstrap import Metrics
from alignkit.models.adapters import cropped, virtual_tokens

if TYPE_CHECKING:
    from alignkit.components import Task
    from alignkit.data import Example

LOGITS_PER_BATCH = 2**27
"""Bound on a language-model head's output in one batch (512 MiB in float32); long rows get smaller batches."""


def predictions(
    task: Task,
    model: nn.Module,
    tokenizer: Any,
    examples: list[Example],
    batch_size: int = 32,
    progress: bool = True,
) -> list[dict[str, Any]]:
    """What the model predicts for each example, as `task.decode` gives it, in the order of `examples`.

    Rows of like length share a batch. The model stays on its device, is in evaluation mode meanwhile and afterwards
    as it was. Under several processes each scores every so-many-th batch; the batches are those of one process, and
    every process gets all predictions.

    Returns:
        One dict per example; an empty one where `task.encode` has nothing to encode.
    """
    task.take_weights(model, tokenizer)
    encoded = [(row, f) for row, e in enumerate(examples) for f in windows(task.encode(e, tokenizer))]
    batches = length_batches([length(f) for _, f in encoded], batch_size, vocabulary(model))
    collated = StepCollator(functools.partial(task.collate, tokenizer=tokenizer), task.columns)
    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    rank, world = (torch.distributed.get_rank(), torch.distributed.get_world_size()) if distributed else (0, 1)
    found: dict[int, dict[str, Any]] = {}
    with evaluating(model):
        for start in _progress(range(0, len(batches), world), show=progress and rank == 0):
            # past the end a process repeats the last batch: sharded models need every process in every forward pass
            places = batches[min(start + rank, len(batches) - 1)]
            batch = to_device(collated([encoded[p][1] for p in places]), model)
            beside = {"columns": batch.pop("columns")} if "columns" in batch else {}
            answers = task.infer(model, tokenizer, {**batch, **beside}, _outputs(task, model, batch))
            found.update(zip(places, answers, strict=True))
    if world > 1:
        parts: list[Any] = [None] * world
        torch.distributed.all_gather_object(parts, found)
        found = {place: prediction for part in parts for place, prediction in part.items()}
    parts_of: dict[int, list[dict[str, Any]]] = {}
    for place, (row, _) in enumerate(encoded):
        parts_of.setdefault(row, []).append(found[place])
    joined = {row: task.join(parts) if task.windowed else parts[0] for row, parts in parts_of.items()}
    return [joined.get(row, {}) for row in range(len(examples))]


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients inside; each module's own mode put back afterwards."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        for module, training in modes.items():
            module.training = training


def to_device(batch: dict[str, Any], model: nn.Module) -> dict[str, Any]:
    """The batch with its tensors on the model's device."""
    device = next(model.parameters()).device
    return {name: value.to(device) if isinstance(value, Tensor) else value for name, value in batch.items()}


def statistics_matrix(
    task: Task, examples: list[Example], predictions: list[dict[str, Any]]
) -> tuple[list[str], np.ndarray]:
    """Every example's additive statistics.

    Returns:
        The K names in order of appearance, and a float64 array [N, K]; a statistic that an example lacks is 0.
    """
    rows = [task.statistics(e, p) for e, p in zip(examples, predictions, strict=True)]
    names = list(dict.fromkeys(name for row in rows for name in row))
    matrix = np.array([[row.get(name, 0.0) for name in names] for row in rows], dtype=np.float64)
    return names, matrix.reshape(len(rows), len(names))


def measure(task: Task, examples: list[Example], predictions: list[dict[str, Any]]) -> dict[str, float]:
    """The task's metrics on these examples; not a number where a metric is 0/0, empty where there are no examples."""
    names, matrix = statistics_matrix(task, examples, predictions)
    return metrics_of(task.metrics, names, matrix)


def metrics_of(metrics: Metrics, names: list[str], matrix: np.ndarray) -> dict[str, float]:
    """Metrics from a matrix of statistics [N, K]; empty where there are no rows."""
    if not len(matrix):
        return {}
    with np.errstate(all="ignore"):  # 0/0 is an answer here: not a number
        return {name: float(value) for name, value in metrics(dict(zip(names, matrix.sum(0), strict=True))).items()}


def gap(
    task: Task,
    examples: list[Example],
    predictions: list[dict[str, Any]],
    view_predictions: list[dict[str, Any] | None],
) -> np.ndarray:
    """How far each prediction lies from the one for the example's view: [N], not a number where either is missing."""
    pairs = zip(examples, predictions, view_predictions, strict=True)
    return np.array([task.gap(one, other) if one and other else np.nan for _, one, other in pairs], dtype=np.float64)


# -- batches -----------------------------------------------------------------------------------------------------


def vocabulary(model: nn.Module) -> int:
    """Logits per position of a language-model head; 0 for small heads."""
    head = getattr(model, "get_output_embeddings", lambda: None)()
    weight = getattr(head, "weight", None)
    return 0 if weight is None else int(weight.shape[0])


def length_batches(lengths: list[int], batch_size: int, vocabulary: int) -> list[list[int]]:
    """Places in `lengths`, longest first, in batches: one too large for memory fails at once and not after minutes."""
    batches: list[list[int]] = []
    room = 0
    for place in sorted(range(len(lengths)), key=lambda place: (-lengths[place], place)):
        if not batches or len(batches[-1]) >= room:
            batches.append([])
            room = max(1, min(batch_size, LOGITS_PER_BATCH // max(1, lengths[place] * vocabulary)))
        batches[-1].append(place)
    return batches


def _outputs(task: Task, model: nn.Module, batch: dict[str, Any]) -> Any:
    """The model's outputs; logits of virtual tokens that prompt tuning puts before the text are cut off."""
    return cropped(task.forward(model, batch), batch["input_ids"].shape[-1], virtual_tokens(model))


def _progress(steps: range, show: bool) -> Any:
    from tqdm.auto import tqdm

    return tqdm(steps, desc="scoring", unit="batch", leave=False, disable=None if show else True)
