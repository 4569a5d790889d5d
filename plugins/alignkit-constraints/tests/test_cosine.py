"""The cosine over a whole training against its closed form."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from alignkit_constraints import Confidence, Cosine

from alignkit.testing.training import make_trainer


def test_it_is_half_a_period_over_the_whole_training():
    weight = Cosine(start=2.0, end=1.0)
    weight.begin(8)
    for step in range(9):
        assert weight.value() == pytest.approx(1.0 + 0.5 * (1 + math.cos(math.pi * step / 8)))
        weight.observe(0.3)
    assert weight.value() == pytest.approx(1.0)  # and stays there


def test_before_a_training_it_is_where_it_starts():
    assert Cosine(start=0.5, end=2.0).value() == 0.5


def test_the_trainer_says_how_long_it_takes(tmp_path: Path):
    trainer = make_trainer(
        "bert-sequence-classification", tmp_path, [Confidence(weight=Cosine(start=1.0, end=0.0))], num_train_epochs=2.0,
        max_steps=-1,
    )  # fmt: skip
    trainer.train()
    logged = [entry["weight/confidence"] for entry in trainer.state.log_history if "loss" in entry]
    assert logged == pytest.approx([(1 + math.cos(math.pi * step / 4)) / 2 for step in range(4)])
    penalties = [(e["penalty/confidence"], e["weighted/confidence"]) for e in trainer.state.log_history if "loss" in e]
    used = [weighted / penalty for penalty, weighted in penalties]
    assert used == pytest.approx(logged)  # what the steps before it left


def test_state_survives_and_reset_forgets():
    weight, resumed = Cosine(), Cosine()
    weight.begin(10)
    for _ in range(3):
        weight.observe(0.0)
    resumed.load_state_dict(weight.state_dict())
    resumed.begin(10)
    assert resumed.value() == weight.value() != 1.0
    weight.reset()
    assert weight.value() == 1.0
