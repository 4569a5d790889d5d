"""The adaptive coefficient against the paper's recursion by hand."""

from __future__ import annotations

import pytest
from alignkit_constraints import Adaptive
from pydantic import ValidationError


def test_it_follows_a_trace_by_hand():
    weight = Adaptive(target=0.1, initial=1.0, gain=0.5)
    # cost   error           clipped   weight
    # .3     2               .2        1.1
    # .11    .1              .1        1.1 * 1.05 = 1.155
    # .1     0               0         1.155
    # .09   -.1             -.1        1.155 * .95 = 1.09725
    # 0     -1              -.2        1.09725 * .9 = .987525
    for cost, expected in ((0.3, 1.1), (0.11, 1.155), (0.1, 1.155), (0.09, 1.09725), (0.0, 0.987525)):
        weight.observe(cost)
        assert weight.value() == pytest.approx(expected)


def test_it_moves_by_two_per_cent_at_most_by_default():
    weight = Adaptive(target=1e-3)
    for _ in range(100):
        weight.observe(50.0)
    assert weight.value() == pytest.approx(1.02**100)


def test_it_stays_between_its_ends():
    weight = Adaptive(target=1.0, gain=1.0, minimum=0.5, maximum=2.0)
    for cost, end in ((9.0, 2.0), (0.0, 0.5)):
        for _ in range(20):
            weight.observe(cost)
        assert weight.value() == end
        assert weight.exhausted == (end == 2.0)


def test_state_survives_and_reset_forgets():
    weight, resumed = Adaptive(target=0.1), Adaptive(target=0.1)
    for cost in (0.5, 0.05, 0.2):
        weight.observe(cost)
    resumed.load_state_dict(weight.state_dict())
    assert resumed.value() == weight.value() != 1.0
    weight.reset()
    assert weight.value() == 1.0


def test_a_target_is_above_0():
    with pytest.raises(ValidationError, match="greater than 0"):
        Adaptive(target=0.0)


def test_its_ends_are_in_order():
    with pytest.raises(ValidationError, match="a minimum of 10 above the maximum, 1"):
        Adaptive(target=0.1, minimum=10.0, maximum=1.0)
