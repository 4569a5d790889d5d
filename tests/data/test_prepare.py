"""Filtering, augmenting, encoding, collating."""

import json

import numpy as np
import pytest
import torch

from alignkit.components import KEEP, Verdict
from alignkit.data.audit import write_lines
from alignkit.data.collate import StepCollator
from alignkit.data.example import Example
from alignkit.data.prepare import augment, encode, filter_examples
from alignkit.errors import PluginError
from alignkit.tasks.ner import Ner
from alignkit.tasks.text_classification import TextClassification
from alignkit.testing import tokenizer

TOKENIZER = tokenizer("bert-token-classification")


def examples(number=5, **fields):
    return [
        Example({"text": f"text {i}", "label": "ab"[i % 2], **fields}, ("text",), source="a.csv", row=i, line=i + 2)
        for i in range(number)
    ]


def drop_odd(found):
    return [Verdict("drop", "odd", value=np.int64(e.row), threshold=0) if e.row % 2 else KEEP for e in found]


def shout(found):
    return [Verdict("edit", "loud", example=Example({"text": e["text"].upper()}, ("text",))) for e in found]


def test_filters_see_what_those_before_them_left(tmp_path):
    seen = []

    def spy(found):
        seen.append([e["text"] for e in found])
        return [KEEP] * len(found)

    kept, audit = filter_examples([("odd", drop_odd), ("shout", shout), ("spy", spy)], examples(), chunk=3)
    assert seen == [["TEXT 0", "TEXT 2"], ["TEXT 4"]]
    assert [(e["text"], e.source, e.row, e.line) for e in kept] == [
        ("TEXT 0", "a.csv", 0, 2), ("TEXT 2", "a.csv", 2, 4), ("TEXT 4", "a.csv", 4, 6),
    ]  # fmt: skip
    write_lines(tmp_path / "audit.jsonl", audit)
    lines = [json.loads(line) for line in (tmp_path / "audit.jsonl").read_text().splitlines()]
    assert len(lines) == 5
    assert lines[0] == {
        "split": "train", "source": "a.csv", "line": 3, "row": 1, "component": "odd", "rule": "odd", "action": "drop",
        "value": 1, "threshold": 0, "survivor": None, "text": "text 1",
    }  # fmt: skip
    assert [path.name for path in tmp_path.iterdir()] == ["audit.jsonl"]


def test_a_flagged_example_stays_and_is_in_the_audit():
    def flag(found):
        return [Verdict("keep", "words", value=["text"]) if e.row == 1 else KEEP for e in found]

    kept, audit = filter_examples([("lexicon", flag)], examples(3))
    assert [e.row for e in kept] == [0, 1, 2]
    assert [(line["row"], line["action"], line["rule"], line["value"]) for line in audit] == [
        (1, "keep", "words", ["text"])
    ]


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda e: None, "answered with NoneType; expected a list of Verdict"),
        (lambda e: [True] * len(e), "answered with a list that holds bool; expected a list of Ver"),
        (lambda e: [KEEP], "gave 1 verdicts for 5 examples"),
        (lambda e: [Verdict("edit")] * 5, "said edit of a.csv:2 without an example"),
    ],
)
def test_a_filter_that_answers_something_else_is_named(answer, message):
    with pytest.raises(PluginError, match=rf"^odd\.filter_examples \(.*test_prepare\) {message}"):
        filter_examples([("odd", answer)], examples())


def test_augmenters_do_not_depend_on_each_other():
    def noise(found, generator):
        return [e.replace(text=f"{e['text']} {generator.integers(1000)}") for e in found[:1]]

    state = np.random.get_state()[1].copy()
    both = augment([("one", noise), ("two", noise)], examples(), seed=1, chunk=3)
    alone = augment([("two", noise)], examples(), seed=1, chunk=3)
    assert [e.origin for e in both] == [""] * 5 + ["one"] * 2 + ["two"] * 2
    assert both[:5] == examples()
    assert [e["text"] for e in both[7:]] == [e["text"] for e in alone[5:]]
    assert [e["text"] for e in both[7:]] != [e["text"] for e in augment([("two", noise)], examples(), 2, 3)[5:]]
    assert len({e["text"].split()[-1] for e in both[5:]}) > 1
    assert (np.random.get_state()[1] == state).all()
    with pytest.raises(PluginError, match=r"^one\.augment_examples \(.*test_prepare\) answered with NoneType"):
        augment([("one", lambda e, g: None)], examples(), 1)


def ner(maximum_length=16):
    task = Ner(maximum_length=maximum_length)
    rows = [
        (["ada", "saw", "paris"], ["B-PER", "O", "B-LOC"]),
        (["rome"], ["B-LOC"]),
        (["bob", "lives"], ["B-PER", "O"]),
    ]
    found = [Example({"tokens": t, "tags": g, "score": i / 2}, ("tokens",), row=i) for i, (t, g) in enumerate(rows)]
    task.prepare({"train": found})
    return task, found


def swapped(example):
    return {"swap": example.map_words(lambda w: "zebras" if w == "ada" else w)} if "ada" in example["tokens"] else {}


def test_encoded_rows_carry_index_length_columns_and_views():
    task, found = ner()
    dataset = encode(task, found, TOKENIZER, swapped, columns=["score", "absent"])
    assert dataset.column_names == ["input_ids", "token_type_ids", "labels", "index", "length", "score", "views"]
    assert dataset["index"] == [0, 1, 2]
    assert dataset["length"] == [len(ids) for ids in dataset["input_ids"]]
    assert dataset[1]["views"] is None
    view = dataset[0]["views"]["swap"]
    assert [label for label in view["labels"] if label != -100] == [lab for lab in dataset[0]["labels"] if lab != -100]
    assert "views" not in encode(task, found, TOKENIZER).column_names
    assert "views" not in encode(task, found, TOKENIZER, lambda e: {}).column_names
    assert len(encode(task, [], TOKENIZER)) == 0


def test_a_view_that_was_truncated_elsewhere_is_dropped():
    task, found = ner(maximum_length=7)  # "zebras" takes six tokens, so the view's other words are cut
    assert encode(task, found[:1], TOKENIZER).num_rows == 1
    assert "views" not in encode(task, found[:1], TOKENIZER, swapped).column_names


def test_a_view_with_an_answer_of_its_own_stays():
    task, found = ner(maximum_length=7)
    (row,) = encode(task, found[:1], TOKENIZER, swapped, unaligned=["swap"])
    assert len(row["views"]["swap"]["labels"]) == 7
    assert "views" not in encode(task, found[:1], TOKENIZER, swapped, unaligned=["other"]).column_names


def test_columns_with_names_of_encoded_ones_are_refused():
    task, found = ner()
    with pytest.raises(PluginError, match="reads the data column 'length', a name that the encoded rows use"):
        encode(task, found, TOKENIZER, columns=["length"])


def test_step_collator_keeps_apart_what_the_model_does_not_take():
    task, found = ner()
    dataset = encode(task, [e.replace(who=f"w{e.row}") for e in found], TOKENIZER, swapped, columns=["score", "who"])
    collate = StepCollator(lambda rows: task.collate(rows, TOKENIZER), ["score", "who"])
    batch = collate([dataset[2], dataset[0], dataset[1]])
    assert list(batch) == ["input_ids", "token_type_ids", "labels", "attention_mask", "index", "views", "columns"]
    assert batch["index"].tolist() == [2, 0, 1]
    assert batch["columns"]["score"].tolist() == [1.0, 0.0, 0.5]
    assert batch["columns"]["who"] == ["w2", "w0", "w1"]
    view = batch["views"]["swap"]
    assert view["rows"].tolist() == [1]
    assert view["rows"].dtype == torch.long
    counted = view["labels"][view["labels"] != -100]
    assert torch.equal(counted, batch["labels"][1][batch["labels"][1] != -100])
    assert "views" not in collate([dataset[1]])


def test_step_collator_works_with_a_stock_collator_and_bare_rows():
    from transformers import DataCollatorWithPadding

    rows = [{"input_ids": [2, 9, 3], "length": 3, "labels": 1}, {"input_ids": [2, 3], "length": 2, "labels": 0}]
    batch = StepCollator(DataCollatorWithPadding(TOKENIZER))(rows)
    assert sorted(batch) == ["attention_mask", "input_ids", "labels"]


def test_encoding_keeps_several_labels_per_example():
    task = TextClassification(separator="|")
    found = [task.parse({"text": "good film", "label": label}, "a:1") for label in ("x|y", "", "y")]
    task.prepare({"train": found})
    dataset = encode(task, found, TOKENIZER, lambda e: {"same": e})
    assert dataset["labels"] == [[1.0, 1.0], [0.0, 0.0], [0.0, 1.0]]
    batch = StepCollator(lambda rows: task.collate(rows, TOKENIZER))(list(dataset))
    assert batch["labels"].dtype == torch.float32
    assert batch["views"]["same"]["labels"].shape == (3, 2)
