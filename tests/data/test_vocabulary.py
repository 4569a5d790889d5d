"""The note on data in a script that the model cannot read."""

import pytest
from datasets import Dataset

from alignkit.data.vocabulary import unknown_share, vocabulary_notes
from alignkit.testing import tokenizer

TOKENIZER = tokenizer("bert-masked-lm")


def encoded(*texts):
    return Dataset.from_list([{"input_ids": TOKENIZER(text)["input_ids"]} for text in texts])


def test_unknown_tokens_are_counted_without_special_ones():
    assert unknown_share(encoded("ada 北 京", "rome"), TOKENIZER) == pytest.approx(2 / 4)
    choices = Dataset.from_list([{"input_ids": [TOKENIZER("北")["input_ids"], TOKENIZER("ada saw")["input_ids"]]}])
    assert unknown_share(choices, TOKENIZER) == pytest.approx(1 / 3)
    assert unknown_share(Dataset.from_dict({"pixels": [1]}), TOKENIZER) == 0.0


def test_a_run_says_so_from_a_fifth_on():
    assert vocabulary_notes(encoded("ada saw rome and 北"), TOKENIZER) == []
    assert vocabulary_notes(encoded("ada 北 京", "rome"), TOKENIZER) == [
        "50% of the training data's tokens are [UNK], unknown to the model: its vocabulary lacks their script; take a "
        "model for this language"
    ]
