"""The attack `typos` against every typo there is, tried one by one."""

from __future__ import annotations

import pytest
from alignkit_adversaries import TyposAttack

from alignkit.data.edits import drops, substitutions, swaps

VOTES = {"great": 3.0, "good": 2.0, "fine": 1.2, "film": 0.0, "awful": -1.0}
TEXT = "film great awful good fine"  # 5.2


def changed(before, after):
    """The words that are not what they were."""
    pairs = zip(before["text"].split(), (after or before)["text"].split(), strict=True)
    return [one for one, other in pairs if one != other]


def attempt_at(victim, *rows, **fields):
    with victim:
        return TyposAttack(**fields).attempt(victim, list(rows))[""]


def test_the_worst_slip_of_all_is_found(victim_of, example_of):
    """`fien` alone is a known word that votes against; every other slip takes a vote away."""
    votes = {**VOTES, "fien": -4.0, "graet": -0.5}
    row = example_of(TEXT)
    (attempt,) = attempt_at(victim_of(votes, 0.1), row, candidates=None)
    assert attempt.example is not None
    assert changed(row, attempt.example) == ["great"], "3.5 less: fien is no inner swap, as the last letter stays"
    assert "graet" in attempt.example["text"]
    assert attempt.prediction["labels"] == ["1"]
    assert attempt.measures == {}


@pytest.mark.parametrize(
    ("edits", "expected"), [(1, ["great"]), (2, ["great", "good"]), (3, ["great", "good", "fine"])]
)
def test_words_are_misspelt_one_after_the_other_the_worst_first(edits, expected, victim_of, example_of):
    """5.2 + 0.7 - 3.0 - 2.0 stays above 0, less 1.2 does not."""
    row = example_of(TEXT)
    (attempt,) = attempt_at(victim_of(VOTES, 0.7), row, edits=edits, candidates=None)
    assert sorted(changed(row, attempt.example)) == sorted(expected)
    broken = edits == 3
    assert attempt.prediction["labels"] == ["0" if broken else "1"]
    assert attempt.measures == ({"edits": 3.0} if broken else {})


def test_it_ends_where_no_slip_raises_the_loss(victim_of, example_of):
    row = example_of("awful")
    (attempt,) = attempt_at(victim_of({"awful": -1.0}, 2.0), row, edits=5, candidates=None)
    assert attempt.example is None
    slips = [*swaps("awful"), *drops("awful")]
    (fewer,) = attempt_at(victim_of({"awful": -1.0}, 2.0), row, candidates=None, operations=("swap", "drop"))
    assert fewer.queries == 1 + len(set(slips))


def test_it_ends_soon_after_the_prediction_breaks(victim_of, example_of):
    """Any slip breaks it: one lot of slips is tried, and not all of them."""
    (attempt,) = attempt_at(victim_of({"extraordinary": 1.0}, -0.5), example_of("extraordinary"), candidates=None)
    assert attempt.prediction["labels"] == ["0"]
    assert attempt.queries == 1 + 32


def test_candidates_are_drawn(victim_of, example_of):
    row = example_of("extraordinary", row=3)
    (attempt,) = attempt_at(victim_of({"extraordinary": 1.0}), row, candidates=7)
    assert attempt.queries == 1 + 7
    rows = [example_of("extraordinary", row=i) for i in range(20)]
    attempts = attempt_at(victim_of({"extraordinary": 1.0}), *rows, candidates=1)
    texts = {attempt.example["text"] for attempt in attempts}
    assert len(texts) > 10


def test_first_and_last_letters_and_short_words_stay(victim_of, example_of):
    row = example_of("fine bad @good 很好 abcd")
    (attempt,) = attempt_at(victim_of({"fine": 1.0, "bad": 5.0}), row, candidates=None, operations=("substitute",))
    new = attempt.example["text"].split()[0]
    assert new in substitutions("fine")
    assert (new[0], new[-1]) == ("f", "e")
    assert attempt.queries == 1 + len({*substitutions("fine"), *substitutions("abcd")})


def test_words_that_the_model_does_not_read_cost_nothing(victim_of, example_of):
    victim = victim_of(VOTES, 0.7)
    victim.task.maximum_length = 2
    whole, cut = example_of(f"film great {'awful good ' * 50}"), example_of("film great")
    long, short = attempt_at(victim, whole, cut)
    assert long.queries == short.queries
    assert long.example["text"].split()[2:] == whole["text"].split()[2:]
    assert long.example["text"].split()[:2] == short.example["text"].split()
