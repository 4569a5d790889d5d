from types import SimpleNamespace

import pytest
import torch

from alignkit.weight_average import WeightAverage


def step(weight):
    """All that an average looks at of a step."""
    return SimpleNamespace(trained={"w": weight})


def test_it_is_the_sum_of_past_weights_that_the_recursion_unrolls_to():
    generator = torch.Generator().manual_seed(0)
    values = [torch.randn(3, 2, generator=generator) for _ in range(5)]
    average = WeightAverage()
    average.begin(step(values[0]))
    for value in values[1:]:
        average.follow(step(value.double()), 0.75)
    shares = [0.75**4, *(0.25 * 0.75 ** (4 - t) for t in range(1, 5))]
    torch.testing.assert_close(average.weights["w"], sum(s * v for s, v in zip(shares, values, strict=True)))
    assert sum(shares) == pytest.approx(1.0)


def test_small_steps_are_not_lost_in_half_precision():
    average = WeightAverage()
    average.begin(step(torch.zeros(3)))
    for _ in range(1000):
        average.follow(step(torch.full((3,), 1.0, dtype=torch.bfloat16)), 0.999)
    torch.testing.assert_close(average.weights["w"], torch.full((3,), 1 - 0.999**1000), rtol=1e-3, atol=0)


def test_what_has_not_begun_follows_nothing_and_is_false():
    average = WeightAverage()
    average.follow(step(torch.ones(2)), 0.9)
    assert not average
    assert average.state_dict() == {}


def test_a_copy_goes_on_from_the_state():
    average, copy = WeightAverage(), WeightAverage()
    average.begin(step(torch.arange(3.0)))
    copy.load_state_dict({"updates": 4, **average.state_dict()})
    for each in (average, copy):
        each.follow(step(torch.ones(3)), 0.5)
    torch.testing.assert_close(copy.weights["w"], torch.tensor([0.5, 1.0, 1.5]))
    torch.testing.assert_close(average.weights["w"], copy.weights["w"])
