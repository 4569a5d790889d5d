"""What attacks ask a task: how right a prediction is, and which places of the inputs stay as they are."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from alignkit.data import Example
from alignkit.tasks import squad
from alignkit.tasks.extractive_qa import ExtractiveQa
from alignkit.tasks.masked_lm import MaskedLm
from alignkit.tasks.multiple_choice import MultipleChoice
from alignkit.tasks.ner import Ner
from alignkit.tasks.relation_extraction import RelationExtraction
from alignkit.tasks.text_classification import TextClassification


def qa(context: str, *answers: tuple[str, int]) -> Example:
    given = [{"text": text, "answer_start": start} for text, start in answers]
    return Example({"question": "who ?", "context": context, "answers": given}, inputs=("question", "context"))


def tagged(tags: str) -> Example:
    return Example({"tokens": ["w"] * len(tags.split()), "tags": tags.split()}, inputs=("tokens",))


# -- how right ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("gold", "predicted", "score"),
    [
        ("B-PER I-PER O B-LOC", "B-PER I-PER O B-LOC", 1.0),
        ("B-PER I-PER O B-LOC", "B-PER I-PER O O", 2 / 3),
        ("B-PER I-PER O B-LOC", "B-PER O O B-LOC", 1 / 2),
        ("B-PER I-PER O B-LOC", "B-LOC I-LOC O B-PER", 0.0),
        ("O O", "O O", 1.0),
        ("O O", "B-PER O", 0.0),
        ("B-PER O", "O O", 0.0),
    ],
)
def test_a_sentences_score_is_the_f1_of_its_entities(gold: str, predicted: str, score: float) -> None:
    task = Ner()
    task.prepare({"train": [tagged("B-PER I-PER B-LOC O")]})
    assert task.score(tagged(gold), {"tags": predicted.split()}) == pytest.approx(score)


def test_an_answers_score_is_one_where_it_is_a_gold_answer() -> None:
    task, row = ExtractiveQa(), qa("the old Rome burnt", ("Rome", 8), ("the old Rome", 0))
    found = [
        task.score(row, {"start": start, "end": end}) for start, end in ((8, 12), (0, 12), (4, 12), (0, 3), (0, 0))
    ]
    assert found == [1.0, 1.0, 1.0, 0.0, 0.0]
    assert task.score(qa("it rains"), {"start": 0, "end": 0}) == 1.0


def test_a_labels_score_is_all_or_nothing() -> None:
    task: Any = TextClassification()
    row = Example({"text": "x", "label": ["a", "b"]}, inputs=("text",))
    task.labels, task.several = ["a", "b", "c"], True
    found = [task.score(row, {"labels": labels}) for labels in (["b", "a"], ["a"], ["a", "b", "c"], [])]
    assert found == [1.0, 0.0, 0.0, 0.0]
    choice = MultipleChoice()
    asked = choice.parse({"question": "who ?", "choices": ["ada", "bob"], "label": 0}, "x:1")
    assert [choice.score(asked, {"probabilities": np.array(p)}) for p in ([0.6, 0.4], [0.4, 0.6])] == [1.0, 0.0]


def test_of_a_text_that_is_modelled_nothing_is_right_or_wrong() -> None:
    assert MaskedLm().score(Example({"text": "x"}, inputs=("text",)), {"nll": 1.0, "tokens": 1}) is None


# -- places that stay --------------------------------------------------------------------------------------------


def test_answers_stay_wherever_they_stand_as_words() -> None:
    row = qa("Rome, not Romeo: in Rome 1899-Rome", ("Rome", 20))
    assert ExtractiveQa().fixed_spans(row) == {"context": [(0, 4), (20, 24), (30, 34)]}
    assert ExtractiveQa().kept_spans(row) == ExtractiveQa().fixed_spans(row)
    several = qa("a b c", ("b", 2), ("b c", 2))
    assert ExtractiveQa().fixed_spans(several) == {"context": [(2, 3), (2, 5)]}
    assert ExtractiveQa().fixed_spans(qa("it rains")) == {"context": []}


def test_an_answer_stays_where_it_was_found_though_it_is_a_part_of_a_word() -> None:
    assert ExtractiveQa().fixed_spans(qa("seventeenth of seventeen", ("seventeen", 0))) == {
        "context": [(0, 9), (15, 24)]
    }


def test_scripts_without_spaces_have_no_parts_of_words() -> None:
    assert squad.places("北京", "在北京的北京人") == [(1, 3), (4, 6)]
    assert squad.places(" Rome ", "Rome") == [(0, 4)]


def test_entities_stay_though_they_may_be_misspelt() -> None:
    row = tagged("B-PER I-PER O B-LOC")
    assert Ner().fixed_spans(row) == {}
    assert Ner().kept_spans(row) == {"tokens": [(0, 1), (1, 2), (3, 4)]}
    assert Ner().kept_spans(tagged("O O")) == {"tokens": []}
    relation = RelationExtraction().parse({"text": "a <e1> bad film </e1> in <e2> Rome </e2>", "label": "In"}, "x:1")
    assert RelationExtraction().fixed_spans(relation) == {}
    assert RelationExtraction().kept_spans(relation) == {"head": [(0, 8)], "tail": [(0, 4)]}


def test_choices_stay() -> None:
    row = MultipleChoice().parse({"question": "who ?", "choices": ["ada", "bob b"], "label": 0}, "x:1")
    assert MultipleChoice().fixed_spans(row) == {"choice_0": [(0, 3)], "choice_1": [(0, 5)]}
    assert TextClassification().kept_spans(Example({"text": "x", "label": "a"}, inputs=("text",))) == {}
