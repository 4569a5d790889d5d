"""Input reduction against a classifier of which it is known how few words it needs."""

from __future__ import annotations

import pytest
from alignkit_adversaries import InputReductionAttack
from alignkit_adversaries.attacks.input_reduction import shortened

from alignkit.data import Example
from alignkit.tasks.extractive_qa import ExtractiveQa
from alignkit.tasks.multiple_choice import MultipleChoice
from alignkit.tasks.ner import Ner
from alignkit.tasks.relation_extraction import RelationExtraction
from alignkit.tasks.text_classification import TextClassification

VOTES = {"great": 3.0, "good": 2.0, "fine": 1.2, "film": 0.1, "awful": -1.0}
TEXT = "film great awful good fine ."


def attempt_at(victim, *rows, **fields):
    with victim:
        return InputReductionAttack(**fields).attempt(victim, list(rows))[""]


@pytest.mark.parametrize(
    ("bias", "left"),
    [(0.0, "great"), (-2.5, "great"), (-4.0, "great good"), (-5.1, "great good fine"), (-6.25, "film great good fine")],
)
@pytest.mark.parametrize("candidates", [1, 10])
def test_what_is_left_is_the_fewest_words_that_carry_the_vote(bias, left, candidates, victim_of, example_of):
    """Votes add up, so the greedy way is the best: the words that vote most, as long as their sum is above -bias."""
    text = TEXT if bias > -5.2 else TEXT.replace("awful", "[UNK]")
    (attempt,) = attempt_at(victim_of(VOTES, bias), example_of(text), candidates=candidates)
    assert attempt.example["text"] == left
    assert attempt.prediction["labels"] == ["1"]
    number = len(left.split())
    words = 8 if "[UNK]" in text else 6  # brackets are words of their own
    assert attempt.measures == {"words_left": number, "share_left": pytest.approx(number / words)}
    assert attempt.broken == (number <= 1)


def test_every_word_is_tried_before_it_ends(victim_of, example_of):
    """With one candidate a round: the last round tries that one, and then all others."""
    (attempt,) = attempt_at(victim_of(VOTES, -4.0), example_of("great good fine"), candidates=1)
    # clean; all three, fine goes; one and the other of the two, both of which have to stay
    assert attempt.queries == 1 + 3 + 2
    assert attempt.example["text"] == "great good"


def test_what_may_be_left_is_a_field(victim_of, example_of):
    rows = [example_of(TEXT)]
    assert [attempt_at(victim_of(VOTES, -4.0), *rows, nonsense=n)[0].broken for n in (1, 2, 3)] == [False, True, True]


def test_a_row_that_is_wrong_or_short_is_left_alone(victim_of, example_of):
    wrong, short = attempt_at(victim_of(VOTES), example_of("awful film"), example_of("great"))
    assert (wrong.example, wrong.broken, wrong.measures, wrong.queries) == (None, False, {}, 1)
    assert (short.example, short.broken, short.queries) == (None, False, 1)
    assert short.measures == {"words_left": 1.0, "share_left": 1.0}


def test_tags_go_with_their_words_and_entities_stay():
    task = Ner()
    row = Example(
        {"tokens": ["Ada", "Lovelace", "lives", "in", "Rome"], "tags": ["B-PER", "I-PER", "O", "O", "B-LOC"],
         "pos": ["N", "N", "V", "P", "N"], "id": 7},
        inputs=("tokens",),
    )  # fmt: skip
    words, least = shortened(task, row)
    assert ([word.text for word in words], least) == (["lives", "in"], 0)


def test_where_nothing_is_to_be_found_nothing_is_proved():
    row = Example({"tokens": ["it", "rains"], "tags": ["O", "O"]}, inputs=("tokens",))
    assert shortened(Ner(), row) == ([], 0)
    asked = Example({"question": "who ?", "context": "it rains", "answers": []}, inputs=("question", "context"))
    assert shortened(ExtractiveQa(), asked) == ([], 0)


def test_what_is_shortened_of_each_kind_of_row(example_of):
    answers = [{"text": "Rome", "answer_start": 9}]
    qa = Example(
        {"question": "where is it ?", "context": "it is in Rome", "answers": answers}, inputs=("question", "context")
    )
    pair = Example({"text": "a man sleeps", "text_pair": "he rests", "label": "1"}, inputs=("text", "text_pair"))
    choices = MultipleChoice().parse({"question": "who saw it ?", "choices": ["bob", "ada"], "label": 0}, "x:1")
    relation = RelationExtraction().parse({"text": "the <e1> cat </e1> sat on <e2> mats </e2>", "label": "On"}, "x:1")
    for task, row, expected, least in (
        (ExtractiveQa(), qa, ["where", "is", "it", "?"], 1),
        (TextClassification(), pair, ["he", "rests"], 1),
        (MultipleChoice(), choices, ["who", "saw", "it", "?"], 1),
        (RelationExtraction(), relation, ["the", "sat", "on"], 0),
        (TextClassification(), example_of("很好 ok"), ["很", "好", "ok"], 1),
    ):
        words, stays = shortened(task, row)
        assert ([word.text for word in words], stays) == (expected, least)


def test_words_that_the_model_does_not_read_are_not_counted(victim_of, example_of):
    victim = victim_of(VOTES)
    victim.task.maximum_length = 3
    long, short = attempt_at(victim, example_of(f"film great good {'awful ' * 50}"), example_of("film great good"))
    assert long.example["text"] == short.example["text"] == "great"
    assert long.measures == short.measures == {"words_left": 1, "share_left": pytest.approx(1 / 3)}
    assert long.queries == short.queries
