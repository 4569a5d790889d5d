"""DeepWordBug against a classifier whose greedy search can be done by hand."""

from __future__ import annotations

import string

import numpy
import pytest
from alignkit_adversaries import DeepwordbugAttack
from alignkit_adversaries.attacks.deepwordbug import OPERATIONS, slips

VOTES = {"great": 3.0, "good": 2.0, "fine": 1.2, "film": 0.0, "awful": -1.0}
TEXT = "film great awful good fine"  # 5.2


def changed(before, after):
    """The words that are not what they were."""
    pairs = zip(before["text"].split(), (after or before)["text"].split(), strict=True)
    return [one for one, other in pairs if one != other]


def attempt_at(victim, *rows, **fields):
    with victim:
        return DeepwordbugAttack(**fields).attempt(victim, list(rows))[""]


def distance(one, other):
    """Levenshtein's, by the table."""
    row = list(range(len(other) + 1))
    for i, a in enumerate(one, 1):
        row, above = [i], row
        for j, b in enumerate(other, 1):
            row.append(min(row[-1] + 1, above[j] + 1, above[j - 1] + (a != b)))
    return row[-1]


@pytest.mark.parametrize(
    ("bias", "edited"),
    [(-5.0, ["great"]), (-1.0, ["great", "good"]), (0.5, ["great", "good", "fine"])],
)
def test_words_are_misspelt_in_the_order_in_which_they_matter_until_it_breaks(bias, edited, victim_of, example_of):
    """A misspelt word votes for nobody: 5.2 + bias - 3.0 - 2.0 - 1.2 goes below 0 at the last of them."""
    row = example_of(TEXT)
    (attempt,) = attempt_at(victim_of(VOTES, bias), row)
    broken = 5.2 + bias - sum(VOTES[word] for word in edited) < 0
    assert attempt.prediction["labels"] == ["0" if broken else "1"]
    assert sorted(changed(row, attempt.example)) == sorted(edited)
    spent = sum(map(distance, row["text"].split(), attempt.example["text"].split()))
    assert attempt.measures == ({"edits": spent} if broken else {})
    tried = edited if broken else list(VOTES)
    assert attempt.queries == 1 + len(VOTES) + 4 * len(tried)
    assert "awful" not in changed(row, attempt.example), "what raises no loss is not kept"


def test_the_edit_distance_is_bounded(victim_of, example_of):
    row = example_of(TEXT)
    for most in (1, 2, 3):
        (attempt,) = attempt_at(victim_of(VOTES, 0.5), row, maximum_edits=most)
        assert 1 <= sum(map(distance, row["text"].split(), attempt.example["text"].split())) <= most
        assert attempt.measures == {}
    (swapped,) = attempt_at(victim_of(VOTES), row, maximum_edits=1, operations=("swap",))
    assert swapped.example is None, "a swap is a distance of two"


def test_of_the_spellings_the_one_that_breaks_it_is_taken_and_else_the_one_with_the_highest_loss(victim_of, example_of):
    """`good` swapped is `godo`, `ogod` or, the letters being the same, never `good`: known words with votes."""
    votes = {"good": 1.0, "ogod": 2.0, "godo": 2.0}
    row = example_of("good")
    (attempt,) = attempt_at(victim_of(votes, -0.5), row)
    assert attempt.example["text"] not in votes
    (kept,) = attempt_at(victim_of(votes, -0.5), row, operations=("swap",))
    assert kept.example is None, "it would raise the vote"


def test_other_words_than_plain_ones_are_left_alone(victim_of, example_of):
    row = example_of("@great #good https://good.com/fine great1 bad 很好 <e1> good_fine {film} fine.good ok")
    (attempt,) = attempt_at(victim_of({}, 1.0), row)
    assert (attempt.example, attempt.queries, attempt.prediction["labels"]) == (None, 1, ["1"])


def test_short_words_are_edited_where_that_is_wished(victim_of, example_of):
    row = example_of("bad it a")
    assert attempt_at(victim_of({"bad": 1.0}), row)[0].example is None
    (attempt,) = attempt_at(victim_of({"bad": 1.0}, -0.5), row, minimum_length=2)
    assert changed(row, attempt.example) == ["bad"]


def test_parts_of_a_word_are_words(victim_of, example_of):
    row = example_of("well-known great", row=1)
    (attempt,) = attempt_at(victim_of({"well-known": 3.0, "great": 1.0}, -2.0), row)
    (new,) = [word for word in attempt.example["text"].split() if word != "great"]
    assert new.count("-") == 1
    assert distance("well-known", new) <= 2


def test_rows_share_batches(victim_of, example_of):
    victim = victim_of(VOTES, -1.0, batch_size=100)
    rows = [example_of(TEXT, row=i) for i in range(6)]
    attempts = attempt_at(victim, *rows)
    assert victim.model.calls == 1 + 1 + 2, "clean, without each word, and two words tried: for all rows together"
    assert len({attempt.example["text"] for attempt in attempts}) > 1, "each row draws for itself"
    assert {attempt.queries for attempt in attempts} == {14}


@pytest.mark.parametrize("operation", OPERATIONS)
def test_an_edit_is_one_edit(operation):
    edit, length = OPERATIONS[operation]
    for seed in range(50):
        generator = numpy.random.default_rng(seed)
        for word in ("word", "Keyboard", "aa", "straße", "слово"):
            new = edit(word, generator)
            if (operation, word) == ("swap", "aa"):
                assert new == word
                continue
            assert 1 <= distance(word, new) <= length
            assert len(new) - len(word) == {"swap": 0, "substitute": 0, "delete": -1, "insert": 1}[operation]
            if operation == "swap":
                assert sorted(new) == sorted(word)


def test_every_place_and_letter_is_drawn_and_case_is_kept():
    found = {op: {OPERATIONS[op][0]("Abc", numpy.random.default_rng(s)) for s in range(4000)} for op in OPERATIONS}
    assert found["swap"] == {"bAc", "Acb"}
    assert found["delete"] == {"bc", "Ac", "Ab"}
    lower = string.ascii_lowercase
    assert found["substitute"] == {
        *(f"{x.upper()}bc" for x in lower if x != "a"),
        *(f"A{x}c" for x in lower if x != "b"),
        *(f"Ab{x}" for x in lower if x != "c"),
    }
    assert found["insert"] == {
        *(f"{x.upper()}Abc" for x in lower),
        *(f"A{x.upper()}bc" for x in lower),
        *(f"Ab{x}c" for x in lower),
        *(f"Abc{x}" for x in lower),
    }


def test_spellings_are_other_spellings_each_once():
    for seed in range(30):
        found = slips("aaaa", ("swap", "delete", "delete"), numpy.random.default_rng(seed))
        assert found == {"aaa": 1}


def test_words_that_the_model_does_not_read_cost_nothing(victim_of, example_of):
    victim = victim_of(VOTES, 0.7)
    victim.task.maximum_length = 2
    whole, cut = example_of(f"film great {'awful good ' * 50}"), example_of("film great")
    long, short = attempt_at(victim, whole, cut)
    assert long.queries == short.queries
    assert long.example["text"].split()[2:] == whole["text"].split()[2:]
    assert long.example["text"].split()[:2] == short.example["text"].split()
