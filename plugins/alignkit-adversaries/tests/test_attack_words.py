"""Which words attacks may touch, and what examples are with some of them changed."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from alignkit_adversaries.attacks.words import editable, reduced, rewritten, stand_in, words_in, words_read

from alignkit.data import Example
from alignkit.tasks.extractive_qa import ExtractiveQa
from alignkit.tasks.multiple_choice import MultipleChoice
from alignkit.tasks.ner import Ner
from alignkit.tasks.words import words
from alignkit.testing import tokenizer


def test_words_are_changed_where_they_stand_in_every_kind_of_input():
    row = Example(
        {
            "text": "plain words here",
            "tokens": ["some-more", "Words"],
            "messages": [
                {"role": "user", "content": "asks this"},
                {"role": "assistant", "content": "says that"},
                {"role": "user", "content": "more please"},
            ],
            "label": "plain words here",
        },
        inputs=("text", "tokens", "messages"),
    )
    found = editable(row, {}, 4)
    assert [word.text for word in found] == [
        "plain", "words", "here", "some", "more", "Words", "asks", "this", "more", "please",
    ]  # fmt: skip
    new = rewritten(row, found, {0: "P", 1: "WORDSWORDS", 3: "S", 4: "", 5: "w", 7: "T", 9: "!"})
    assert new["text"] == "P WORDSWORDS here"
    assert new["tokens"] == ["S-", "w"]
    assert [m["content"] for m in new["messages"]] == ["asks T", "says that", "more !"]
    assert new["label"] == row["label"]
    assert rewritten(row, found, {}) == row
    assert row["tokens"] == ["some-more", "Words"]


@pytest.mark.parametrize("text", ["film great awful good", "good good good good", "film unknown good  film"])
def test_of_a_text_that_is_too_long_some_words_are_not_read(text, victim_of, example_of):
    victim, row = victim_of(dict.fromkeys(("film", "great", "good", "awful"), 1.0)), example_of(text)
    found = words_in(row, words)
    for length in (1, 3, 64):  # an unknown word that is cut off after would be one whatever it is
        victim.task.maximum_length = length
        read = words_read(victim.task, victim.tokenizer, row, found)
        assert read == [word for word in found if len(text[: word.start].split()) < length]


def test_words_that_are_not_read_of_a_word_list_are_told(example_of):
    task = Ner()
    task.labels = ["O"]
    row = Example({"tokens": ["the", "film", "was", "good"], "tags": ["O"] * 4}, inputs=("tokens",))
    known = tokenizer()
    found = words_in(row, lambda text: [(0, len(text))])
    for length, number in ((4, 2), (5, 3), (64, 4)):  # [CLS] and [SEP] are two
        task.maximum_length = length
        assert [word.text for word in words_read(task, known, row, found)] == row["tokens"][:number]


def test_answers_in_a_context_are_left_alone_wherever_they_stand():
    context = "Norman Norton met Norman in Normandy, at Norman-Cross"
    row = Example(
        {"question": "Whom did Norton meet?", "context": context, "answers": [{"text": "Norman", "answer_start": 18}]},
        inputs=("question", "context"),
    )
    found = editable(row, ExtractiveQa().fixed_spans(row), 4)
    assert [(word.field, word.text) for word in found] == [
        ("question", "Whom"), ("question", "Norton"), ("question", "meet"),
        ("context", "Norton"), ("context", "Normandy"), ("context", "Cross"),
    ]  # fmt: skip


def test_an_answer_that_is_a_part_of_a_word_keeps_the_word():
    row = Example(
        {"question": "Which?", "context": "The seventeenth", "answers": [{"text": "seventeen", "answer_start": 4}]},
        inputs=("question", "context"),
    )
    assert [word.text for word in editable(row, ExtractiveQa().fixed_spans(row), 3)] == ["Which", "The"]


def test_choices_are_left_alone():
    row = MultipleChoice().parse({"question": "Where lives Ada?", "choices": ["Rome", "Paris"], "label": 1}, "x:1")
    assert {word.field for word in editable(row, MultipleChoice().fixed_spans(row), 4)} == {"question"}


def test_what_is_taken_out_leaves_single_spaces_and_takes_its_tags_along():
    row = Example({"text": "it is , in fact ,  good\nto see", "label": "1"}, inputs=("text",))
    found = words_in(row, words)
    gone = [i for i, word in enumerate(found) if word.text in (",", "fact", "good")]
    assert reduced(row, found, gone)["text"] == "it is in to see"
    tagged = Example(
        {"tokens": ["a", "b", "c"], "tags": ["O", "B-X", "O"], "ids": (1, 2), "n": [1]}, inputs=("tokens",)
    )
    found = words_in(tagged, lambda text: [(0, len(text))])
    assert reduced(tagged, found, [0, 2]).fields == {"tokens": ["b"], "tags": ["B-X"], "ids": (1, 2), "n": [1]}


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        ({"unk": "[UNK]", "pad": "[PAD]", "mask": "[MASK]"}, "[UNK]"),
        ({"unk": "<|endoftext|>", "eos": "<|endoftext|>"}, ""),
        ({"unk": None, "eos": "</s>", "mask": "<mask>"}, "<mask>"),
        ({"unk": "<unk>", "bos": "<s>", "eos": "</s>", "pad": "<unk>"}, ""),
    ],
)
def test_what_stands_in_for_a_word_says_nothing_else(tokens, expected):
    assert stand_in(SimpleNamespace(**{f"{name}_token": token for name, token in tokens.items()})) == expected


def test_the_unknown_token_is_read_as_such():
    found = tokenizer("bert-token-classification")
    assert found.unk_token_id in found(f"ada {stand_in(found)} rome")["input_ids"]
