"""Batches that are trained on several times in a row."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from alignkit_adversaries import FreeAT
from torch.utils.data import RandomSampler, SequentialSampler

from alignkit.data.sampler import Replayed, SeededLengthGroupedSampler
from alignkit.testing import make_rows, make_trainer, trained_weights
from alignkit.testing.training import same, short_collections

HEAD = "bert-token-classification"


@pytest.fixture(autouse=True)
def _short_collections() -> Iterator[None]:
    with short_collections():
        yield


def random_order(rows: int, block: int, times: int, seed: int = 0) -> Replayed:
    return Replayed(RandomSampler(range(rows)), block, times, seed)


def test_each_block_of_rows_comes_several_times_in_a_row() -> None:
    sampler = Replayed(SequentialSampler(range(6)), 3, 2, 0)
    assert list(sampler) == [0, 1, 2, 0, 1, 2, 3, 4, 5, 3, 4, 5]
    assert len(sampler) == 12


@pytest.mark.parametrize(
    ("rows", "block", "times"), [(12, 4, 3), (14, 4, 3), (3, 4, 2), (1, 4, 2), (5, 5, 1), (7, 1, 2)]
)
def test_its_length_is_the_number_of_rows_that_it_gives(rows: int, block: int, times: int) -> None:
    sampler = random_order(rows, block, times)
    assert len(list(sampler)) == len(sampler) == times * block * max(rows // block, 1)


def test_what_does_not_fill_a_block_is_left_out_and_too_few_rows_go_round() -> None:
    assert list(Replayed(SequentialSampler(range(5)), 2, 2, 0)) == [0, 1, 0, 1, 2, 3, 2, 3]
    assert list(Replayed(SequentialSampler(range(3)), 8, 2, 0)) == [0, 1, 2, 0, 1, 2, 0, 1] * 2


def test_a_random_order_depends_on_seed_and_epoch_alone() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = list(random_order(20, 4, 2))
    torch.manual_seed(1)
    assert list(random_order(20, 4, 2)) == first
    assert sorted(first) == sorted([*range(20)] * 2)
    assert list(random_order(20, 4, 2, seed=1)) != first
    sampler = random_order(20, 4, 2)
    sampler.set_epoch(1)
    assert list(sampler) != first
    sampler.set_epoch(0)
    assert list(sampler) == first
    torch.manual_seed(0)
    list(random_order(20, 4, 2))
    assert torch.equal(before, torch.get_rng_state())


def test_an_order_by_length_gets_its_epoch_too() -> None:
    inner = SeededLengthGroupedSampler(4, lengths=[i % 7 for i in range(40)], seed=3)
    sampler = Replayed(inner, 4, 2, 3)
    first = list(sampler)
    sampler.set_epoch(1)
    assert list(sampler) != first
    assert inner.epoch == 1


@pytest.mark.parametrize("micro", [1, 2])
def test_a_trainer_trains_on_each_batch_several_times_in_a_row(micro: int, tmp_path: Path) -> None:
    trainer = training(tmp_path, micro)
    seen: dict[int, list[int]] = {}
    made = trainer._next_step

    def noted(model: Any, inputs: Any) -> Any:
        step = made(model, inputs)
        seen.setdefault(step.index, []).extend(step.rows)
        return step

    trainer._next_step = noted
    trainer.train()
    steps = list(seen.values())
    assert len(steps) == 12, "two epochs of two batches, each three times"
    assert steps[0::3] == steps[1::3] == steps[2::3]
    assert all(len(set(rows)) == 4 for rows in steps)
    assert steps[0:6:3] != steps[6:12:3], "epochs have orders of their own"
    assert not set(steps[0]) & set(steps[3])


@pytest.mark.parametrize("strategy", ["random", "group_by_length"])
@pytest.mark.parametrize("stop", [2, 8], ids=["first-epoch", "second-epoch"])
def test_a_training_that_was_stopped_within_a_replay_ends_with_the_same_bytes(
    strategy: str, stop: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"save_strategy": "steps", "save_steps": stop, "dropout": 0.1, "train_sampling_strategy": strategy}
    whole = training(tmp_path, 2, **options)
    torch.manual_seed(0)
    whole.train()
    resumed = training(tmp_path / "resumed", 2, **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{stop}"))
    assert torch.equal(trained_weights(whole), trained_weights(resumed))
    assert same(*(t.composition["free-at"].state_dict() for t in (whole, resumed)))
    monkeypatch.setattr(FreeAT, "load_state_dict", lambda self, state: None)
    fresh = training(tmp_path / "fresh", 2, **options)
    fresh.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{stop}"))
    assert not torch.equal(trained_weights(whole), trained_weights(fresh)), "the perturbation in progress matters"


def training(folder: Path, micro: int, **options: Any) -> Any:
    """Two epochs of nine rows in random order, four rows to a batch, each batch three times."""
    settings = {"max_steps": -1, "num_train_epochs": 2, "train_sampling_strategy": "random", **options}
    return make_trainer(
        HEAD, folder, [FreeAT(steps=3)], rows=make_rows(HEAD, 9), per_device_train_batch_size=4 // micro,
        gradient_accumulation_steps=micro, **settings,
    )  # fmt: skip
