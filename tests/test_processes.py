"""Two gloo processes against one with twice the batch: the same rows go into the same optimizer step.

Run as a program, this file is one of the two processes, which go through all cases in one start.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from alignkit_adversaries import AWP, FGM, FGSM, PGD, R3F, SMART, VAT, FreeAT, FreeLB, Latent
from alignkit_constraints import KLReference

from alignkit.components import Component, Constraint, Term
from alignkit.costs import measure_costs
from alignkit.errors import UsageError
from alignkit.testing import make_rows, make_trainer, trained_weights
from alignkit.testing.training import short_collections

STEPS, ROWS = 3, 8


class Breaks(Constraint):
    """Not finite for one row of the data, which one process has."""

    def penalty(self, step: Any, outputs: Any) -> Term:
        bad = step.index == 1 and 11 in step.rows
        return Term(outputs.logits.mean() * (float("nan") if bad else 1.0), "example")


class Means(Constraint):
    """Asks all processes."""

    def penalty(self, step: Any, outputs: Any) -> Term:
        return Term(outputs.logits.mean() * step.context.mean_over_processes(outputs.logits.mean().detach()), "example")


BREAKING = ("bert-sequence-classification", "breaks", 1)
CASES = [
    ("bert-token-classification", "plain", 1),
    ("bert-token-classification", "fgm-and-kl", 2),
    ("llama-causal-lm", "fgm", 1),
    ("t5", "kl", 1),
    ("llama-causal-lm", "fgsm", 1),
    ("bert-multiple-choice", "pgd", 2),
    ("bert-token-classification", "freelb", 2),
    ("bert-sequence-classification", "free-at", 2),
    ("bert-token-classification", "awp", 1),
    ("bert-token-classification", "vat", 2),
    ("t5", "smart", 1),
    ("llama-causal-lm", "r3f", 2),
    ("bert-token-classification", "latent", 2),
]
"""Head, components, and how many micro-batches each of two processes accumulates."""


def train(folder: Path, head: str, which: str, processes: int, micro: int) -> dict[str, Any]:
    """Weights, logs and evaluation of one process, or the error that it stopped with."""
    made: dict[str, list[Component]] = {
        "fgm": [FGM(epsilon=0.5)],
        "kl": [KLReference(weight=0.5)],
        "breaks": [Breaks()],
    }
    made |= {"plain": [], "fgm-and-kl": [FGM(epsilon=0.5), KLReference(weight=0.5)]}
    made |= {"fgsm": [FGSM()], "pgd": [PGD(random_start=True)], "freelb": [FreeLB()], "free-at": [FreeAT(steps=2)]}
    made |= {"awp": [AWP(alpha=0.05, start=0)]}
    made |= {"vat": [VAT()], "smart": [SMART(momentum=0.5)], "r3f": [R3F()], "latent": [Latent(clean=False)]}
    trainer = make_trainer(
        head, folder, made[which], rows=make_rows(head, STEPS * ROWS), max_steps=STEPS,
        per_device_train_batch_size=ROWS // processes // micro, gradient_accumulation_steps=micro, optim="sgd",
        learning_rate=0.1, lr_scheduler_type="constant", eval_rows=make_rows(head, 8, seed=1),
        per_device_eval_batch_size=2,
        ddp_backend="gloo" if processes > 1 else None,
    )  # fmt: skip
    assert trainer.accelerator.num_processes == processes
    try:
        trainer.train()
    except UsageError as error:
        return {"error": str(error)}
    entries = [entry for entry in trainer.state.log_history if "loss" in entry]
    return {
        "weights": trained_weights(trainer),
        "logs": [{k: v for k, v in entry.items() if isinstance(v, float)} for entry in entries],
        "evaluated": [losses(trainer.evaluate(make_rows(head, number, seed=1))) for number in (8, 7, 5)],
    }


def replay(folder: Path, processes: int) -> list[list[int]]:
    """The rows that one process trained on, optimizer step by step: two epochs in random order, each batch twice."""
    head = "bert-sequence-classification"
    trainer = make_trainer(
        head, folder, [FreeAT(steps=2)], rows=make_rows(head, 2 * ROWS + 3), max_steps=8, learning_rate=0.0,
        per_device_train_batch_size=ROWS // processes // 2, gradient_accumulation_steps=2,
        train_sampling_strategy="random", ddp_backend="gloo" if processes > 1 else None,
    )  # fmt: skip
    seen: dict[int, list[int]] = {}
    made = trainer._next_step

    def noted(model: Any, inputs: Any) -> Any:
        step = made(model, inputs)
        seen.setdefault(step.index, []).extend(step.rows)
        return step

    trainer._next_step = noted  # type: ignore[method-assign]
    trainer.train()
    return list(seen.values())


def measured(folder: Path) -> list[str]:
    """What one of two processes has measured the costs of, after a training of both; the other is done."""
    head = "bert-sequence-classification"
    trainer = make_trainer(
        head, folder, [Means(), AWP(alpha=0.05, start=0)], rows=make_rows(head, 4 * ROWS), max_steps=2,
        per_device_train_batch_size=4, train_sampling_strategy="random", ddp_backend="gloo",
    )  # fmt: skip
    trainer.train()
    found = measure_costs(trainer) if trainer.accelerator.is_main_process else {}
    trainer.accelerator.wait_for_everyone()
    return list(found)


def losses(evaluated: dict[str, float]) -> dict[str, float]:
    return {k: v for k, v in evaluated.items() if "loss" in k or "penalty" in k}


def main(folder: Path) -> None:
    """One of two processes: all cases, one after another."""
    found: dict[Any, Any] = {case: train(folder, case[0], case[1], 2, case[2]) for case in [*CASES, BREAKING]}
    found["replayed"] = replay(folder, 2)
    found["costs"] = measured(folder)
    torch.save(found, folder / f"found-{os.environ['RANK']}.pt")
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> list[dict[Any, Any]]:
    """What each of two processes found, by case."""
    folder = tmp_path_factory.mktemp("processes")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {**os.environ, "OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    started = [
        subprocess.Popen(
            [sys.executable, __file__, str(folder)],
            env={**shared, "WORLD_SIZE": "2", "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        said = [process.communicate(timeout=180)[0] for process in started]
    finally:
        for process in started:
            process.kill()
    assert all(process.returncode == 0 for process in started), "\n".join(said)
    return [torch.load(folder / f"found-{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize(("head", "which", "micro"), CASES)
def test_two_processes_are_one_with_twice_the_batch(
    head: str, which: str, micro: int, both: list[dict[Any, Any]], tmp_path: Path
) -> None:
    with short_collections():
        one = train(tmp_path, head, which, 1, 1)
    first, second = (found[head, which, micro] for found in both)
    assert torch.equal(first["weights"], second["weights"])
    assert float((first["weights"] - one["weights"]).norm() / one["weights"].norm()) < 1e-5
    assert len(one["logs"]) == STEPS
    for alone, together in zip(one["logs"], first["logs"], strict=True):
        assert alone.keys() == together.keys()
        assert together == pytest.approx(alone, rel=1e-4, abs=1e-5)
    for alone, together in zip(one["evaluated"], first["evaluated"], strict=True):  # 7 and 5 rows fill no last batch
        assert together == pytest.approx(alone, rel=1e-4)


def test_both_processes_replay_their_own_rows_of_the_same_batches(both: list[dict[Any, Any]], tmp_path: Path) -> None:
    first, second = (found["replayed"] for found in both)
    with short_collections():
        alone = replay(tmp_path, 1)
    assert len(first) == len(second) == len(alone) == 8
    for mine, other, whole in zip(first, second, alone, strict=True):
        assert sorted(mine + other) == sorted(whole)
    for rows in (first, second):
        assert rows[::2] == rows[1::2], "a batch is trained on twice in a row"
        assert rows[:4] != rows[4:], "the second epoch has an order of its own"
    assert len({*alone[0], *alone[2]}) == 2 * ROWS


def test_all_processes_stop_where_one_of_them_is_not_finite(both: list[dict[Any, Any]]) -> None:
    errors = [found[BREAKING]["error"] for found in both]
    place = "optimizer step 1, micro-batch 0: the loss is not finite"
    assert errors[0].startswith(f"{place} (breaks; rows [8, 9, 10, 11] of the training set)")
    assert errors[1].startswith(f"{place} (on another process; rows [12, 13, 14, 15] of the training set)")


def test_one_process_measures_costs_without_the_others(both: list[dict[Any, Any]]) -> None:
    assert both[0]["costs"] == ["plain", "all", "means", "awp"]
    assert both[1]["costs"] == []


if __name__ == "__main__":
    main(Path(sys.argv[1]))
