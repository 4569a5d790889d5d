"""What each component costs, measured: the same micro-batches with and without it, interleaved."""

from __future__ import annotations

import resource
import statistics
import sys
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from alignkit.compose import Composition
from alignkit.step import TrainingStep

if TYPE_CHECKING:
    from alignkit.trainer import AlignTrainer

PLAIN, ALL = "plain", "all"
IN_A_STEP = {"penalty", "attack", "adjust_gradients", "after_step"}


def measure_costs(trainer: AlignTrainer, batches: int = 4, budget: float = 8.0) -> dict[str, float]:
    """Median milliseconds of a micro-batch: `plain`, with each component alone by name, and with `all` of them.

    Forward and backward passes and `after_step`, without the optimizer's step. Runs after training, in one process of
    several: it leaves gradients at zero, weights as they were and the global random state as it was. Empty where no
    component hooks into the step.

    Args:
        batches: micro-batches to measure on, at most.
        budget: seconds after which no further micro-batch is begun.
    """
    composition = trainer.composition
    hooking = [c for c in composition.components if set(c.hook_points) & IN_A_STEP]
    if not hooking:
        return {}
    variants = {PLAIN: Composition([], trainer.task, composition.objective), ALL: composition}
    variants |= {c.name: Composition([c], trainer.task, composition.objective) for c in hooking}
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    end = time.monotonic() + budget
    with torch.random.fork_rng():
        for inputs, _ in zip(trainer.get_train_dataloader(), range(batches), strict=False):
            if time.monotonic() > end:
                break
            for name, variant in variants.items():
                seconds[name].append(_time(trainer, variant, trainer._prepare_inputs(inputs)))
    trainer.model.zero_grad(set_to_none=True)
    return {name: 1000 * statistics.median(times) for name, times in seconds.items() if times}


def _time(trainer: AlignTrainer, composition: Composition, inputs: Any) -> float:
    # other processes do not measure: nobody would answer one that asks for their mean
    context = replace(trainer.context, composition=composition, mean_over_processes=lambda mean: mean, processes=1)
    trainer.model.train()
    _synchronize()
    start = time.perf_counter()
    step = TrainingStep(context, trainer.model, inputs, progress=1.0)  # what begins late has begun
    for loss in composition.attack(step):
        with trainer.compute_loss_context_manager():
            loss.backward()
    composition.after_step(step)
    _synchronize()
    trainer.model.zero_grad(set_to_none=True)
    return time.perf_counter() - start


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def peak_memory() -> dict[str, int]:
    """Bytes at the run's peak so far: `process` (resident), and `accelerator` where there is one."""
    unit = 1 if sys.platform == "darwin" else 1024
    found = {"process": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit}
    if torch.cuda.is_available():
        found["accelerator"] = torch.cuda.max_memory_allocated()
    return found
