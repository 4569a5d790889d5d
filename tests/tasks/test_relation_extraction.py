"""Relation extraction: marks, windows round entities, and SemEval-2010 Task 8's official arithmetic."""

import random
import re
from collections import Counter

import numpy as np
import pytest
import torch

from alignkit.data.load import load
from alignkit.data.source import Data
from alignkit.errors import UsageError
from alignkit.tasks.relation_extraction import RelationExtraction
from alignkit.testing import tiny, tokenizer

TOKENIZER = tokenizer("bert-sequence-classification")
LABELS = [*(f"{r}({d})" for r in ("Cause-Effect", "Part-Whole", "Topic") for d in ("e1,e2", "e2,e1")), "Other"]
ROW = {"text": "the <e1> bad film </e1> was in <e2>rome</e2>.", "label": "Topic(e1,e2)"}


def parsed(text="<e1> a </e1> b <e2> c </e2>", label="Other", **fields):
    return RelationExtraction().parse({"text": text, "label": label, **fields}, "a.tsv:1")


def prepared(labels=LABELS, **fields):
    task = RelationExtraction(**fields)
    task.prepare({"train": [task.parse({**ROW, "label": label}, "a:1") for label in labels]})
    return task


def refused(do):
    with pytest.raises(UsageError) as caught:
        do()
    return [str(m) for m in caught.value.mistakes]


# -- scores ------------------------------------------------------------------------------------------------------


def official(gold, predicted):
    """The scorer's third evaluation, 9+1 ways with direction: confusion matrix first, then the relations of the key."""
    bare = lambda label: re.sub(r"\(e[12],e[12]\)$", "", label)  # noqa: E731  # as the scorer strips it
    matrix, proposed = Counter(), Counter()
    for g, p in zip(gold, predicted, strict=True):
        column = "WRONG_DIR" if bare(g) == bare(p) and g != p else bare(p)
        matrix[column, bare(g)] += 1
        proposed[column] += 1
    answered = Counter(map(bare, gold))
    scores, correct, claimed, asked = [], 0, 0, 0
    for relation in sorted(set(answered) - {"Other"}):
        right, given = matrix[relation, relation], proposed[relation] + matrix["WRONG_DIR", relation]
        precision = right / given if proposed[relation] else 0.0
        recall = right / answered[relation]
        scores.append(2 * precision * recall / (precision + recall) if precision + recall else 0.0)
        correct, claimed, asked = correct + right, claimed + given, asked + answered[relation]
    precision, recall = correct / claimed if claimed else 0.0, correct / asked
    micro = 2 * precision * recall / (precision + recall) if precision + recall else 0.0
    return sum(scores) / len(scores), micro


def measured(task, gold, predicted):
    pairs = zip(gold, predicted, strict=True)
    rows = [task.statistics(parsed(label=g), {"labels": [p]}) for g, p in pairs]
    return task.metrics({name: sum(row[name] for row in rows) for name in rows[0]})


def test_f1_is_the_official_scorers():
    chance, task = random.Random(0), prepared()
    for size in (1, 3, 8, 60, 400):
        for _ in range(20):
            gold = chance.choices(LABELS, k=size)
            if set(gold) == {"Other"}:
                continue
            predicted = [g if chance.random() < 0.4 else chance.choice(LABELS) for g in gold]
            found = measured(task, gold, predicted)
            assert (found["macro_f1"], found["micro_f1"]) == pytest.approx(official(gold, predicted))
            right = sum(g == p for g, p in zip(gold, predicted, strict=True))
            assert found["accuracy"] == pytest.approx(right / size)


def test_the_wrong_direction_is_wrong_and_counts_as_predicted():
    found = measured(prepared(), ["Topic(e1,e2)"] * 4, ["Topic(e1,e2)", "Topic(e2,e1)", "Other", "Part-Whole(e1,e2)"])
    assert found["f1/Topic"] == pytest.approx(2 * (1 / 2) * (1 / 4) / (1 / 2 + 1 / 4))
    assert "f1/Other" not in found
    assert found["accuracy"] == 0.25


def test_metrics_take_arrays_of_sums():
    task = prepared()
    rows = [task.statistics(parsed(label="Topic(e1,e2)"), {"labels": [p]}) for p in ("Topic(e1,e2)", "Other")]
    arrays = {name: np.array([rows[0][name] * 2, rows[1][name] * 2, 0.0]) for name in rows[0]}
    assert task.metrics(arrays)["macro_f1"].tolist() == [1.0, 0.0, 0.0]


def test_another_class_may_stand_for_no_relation_and_relations_may_be_undirected():
    task = prepared(["no_relation", "per:title", "org:city"], negative="no_relation")
    assert task.relations == ["org:city", "per:title"]
    assert refused(lambda: prepared(["other", "x", "y"])) == [
        "task.negative: no label 'Other', but 'other'; say `negative: other`"
    ]


def test_two_entities_may_have_several_relations():
    task = prepared(["Topic(e1,e2)|Part-Whole(e2,e1)", "Other"], separator="|")
    gold = task.parse({**ROW, "label": "Topic(e1,e2)|Part-Whole(e2,e1)"}, "a:1")
    found = task.statistics(gold, {"labels": ["Topic(e2,e1)", "Part-Whole(e2,e1)"]})
    assert (found["tp/Topic"], found["predicted/Topic"], found["tp/Part-Whole"], found["correct"]) == (0, 1, 1, 0)


# -- texts -------------------------------------------------------------------------------------------------------


def test_a_text_is_cut_at_its_entities():
    example = parsed(**ROW)
    assert [example[name] for name in example.inputs] == ["the ", "bad film", " was in ", "rome", "."]
    assert "text" not in example
    reverse = parsed("<e2>rome</e2> saw <e1> bob </e1>")
    assert (reverse["head"], reverse["tail"]) == ("bob", "rome")
    assert reverse.inputs == ("before", "tail", "between", "head", "after")
    spans = parsed("rome saw bob", head=[9, 12], tail=[0, 4])
    assert {**spans} == {**reverse}
    again = RelationExtraction().parse({**spans}, "memory row 0")
    assert (again, again.inputs) == (spans, spans.inputs)


def test_rewriting_words_leaves_the_marks_alone():
    task = prepared()
    example = task.parse(ROW, "a:1").map_words(lambda word: "e" if word == "rome" else word.upper())
    encoded = task.encode(example, TOKENIZER)
    assert TOKENIZER.decode(encoded["input_ids"]) == "[CLS] the [UNK] bad film [UNK] was in [UNK] e [UNK]. [SEP]"
    masked = task.parse(ROW, "a:1").map_text(lambda text: text.replace("bad film", "***"))
    assert masked["head"] == "***"
    assert masked["tail"] == "rome"


def test_mistakes_in_marks():
    task = RelationExtraction()

    def said(text):
        return refused(lambda: task.parse({"text": text, "label": "Other"}, "a.tsv:3"))

    expected = "expected <e1> … </e1> and <e2> … </e2>, each once"
    assert said("bob saw rome") == [
        f"a.tsv:3: no entity is marked; {expected}; or give `head` and `tail` as [start, end] in characters"
    ]
    assert said("<e1> bob </e1> <e1> saw <e2> rome") == [
        f"a.tsv:3: no </e2>; {expected}",
        f"a.tsv:3: <e1> more than once; {expected}",
    ]
    order = "expected one entity after the other, each opened first"
    assert said("<e1> bob <e2> saw </e1> rome </e2>") == [f"a.tsv:3: marks in the order <e1> <e2> </e1> </e2>; {order}"]
    assert said("</e1> bob <e1> saw <e2> rome </e2>") == [f"a.tsv:3: marks in the order </e1> <e1> <e2> </e2>; {order}"]
    assert said("<e1> </e1> saw <e2></e2>") == [
        "a.tsv:3: nothing between <e1> and </e1>; expected an entity",
        "a.tsv:3: nothing between <e2> and </e2>; expected an entity",
    ]


def test_mistakes_in_spans_and_fields():
    task = RelationExtraction()

    def said(**fields):
        return refused(lambda: task.parse({"text": "bob saw rome", "label": "Other", **fields}, "a.jsonl:3"))

    assert said(head=[0, 3]) == ["a.jsonl:3: no 'tail'; expected [start, end] in characters"]
    assert said(head=[0, 99], tail="rome") == [
        "a.jsonl:3: 'head' is [0, 99]; expected 0 <= start < end <= 12, the length of the text",
        "a.jsonl:3: 'tail' is 'rome'; expected [start, end] in characters",
    ]
    assert said(head=[3, 4], tail=[True, 3]) == [
        "a.jsonl:3: 'head' is [3, 4], where the text is blank; expected an entity",
        "a.jsonl:3: 'tail' is [True, 3]; expected [start, end] in characters",
    ]
    assert said(head=[0, 5], tail=[4, 9]) == [
        "a.jsonl:3: 'head' [0, 5] and 'tail' [4, 9] overlap; expected two entities"
    ]
    assert refused(lambda: task.parse({"sentence": "x", "relation": "y"}, "a.tsv:2")) == [
        "a.tsv:2: no 'text'; there is relation, sentence; map it with `columns: {text: …}`",
        "a.tsv:2: no 'label'; there is relation, sentence; map it with `columns: {label: …}`",
    ]
    assert refused(lambda: task.inputs({"before": "x", "head": "y"})) == [
        "input: no 'between'; expected a string",
        "input: no 'tail'; expected a string",
        "input: no 'after'; expected a string",
    ]


def test_all_mistakes_of_all_files_are_reported_with_their_lines(tmp_path):
    good = "<e1> bob </e1> saw <e2> rome </e2>"
    rows = ["relation\tsentence", f"Other\t{good}", f"Topic(e1,e2)\t{good}", "Other\tbob saw <e2> rome </e2>"]
    (tmp_path / "train.tsv").write_text("\n".join([*rows, f"\t{good}", f"Other\t{good}\tmore"]), encoding="utf-8")
    (tmp_path / "test.tsv").write_text("\n".join([rows[0], "Other\t<e1></e1> <e2> rome </e2>"]), encoding="utf-8")
    columns = {"text": "sentence", "label": "relation"}
    data = {s: {"path": f"{s}.tsv", "columns": columns} for s in ("train", "test")}
    assert refused(lambda: load(Data.model_validate(data), RelationExtraction(), tmp_path)) == [
        "train.tsv:6: 3 cells; expected 2, as in the header",
        "train.tsv:4: no <e1>, </e1>; expected <e1> … </e1> and <e2> … </e2>, each once",
        "train.tsv:5: 'label' is ''; expected a string, an integer or a list of strings",
        "test.tsv:2: nothing between <e1> and </e1>; expected an entity",
    ]
    (tmp_path / "train.tsv").write_text("\n".join(rows[:3]), encoding="utf-8")
    (tmp_path / "test.tsv").write_text("\n".join([rows[0], f"Topic(e2,e1)\t{good}"]), encoding="utf-8")
    assert refused(lambda: load(Data.model_validate(data), RelationExtraction(), tmp_path)) == [
        "test.tsv:2: label 'Topic(e2,e1)'; expected a label of the training data; did you mean 'Topic(e1,e2)'?"
    ]


# -- the model's side --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [16, 24, 40])
def test_both_entities_stay_in_a_text_that_is_too_long(limit):
    task = prepared(maximum_length=limit)
    filler = "the film was good and " * 30
    for text in (
        f"{filler}<e1> bob </e1> saw <e2> ada </e2> {filler}",
        f"<e1> bob </e1> {filler} <e2> ada </e2>",
        f"{filler}<e2> ada </e2> {filler} <e1> bob </e1> {filler}",
    ):
        ids = task.encode(task.inputs(text), TOKENIZER)["input_ids"]
        words = TOKENIZER.decode(ids)
        assert len(ids) <= limit
        assert len(ids) > limit - 6, "as much as there is room for"
        assert "[UNK] bob [UNK]" in words
        assert "[UNK] ada [UNK]" in words
    near = TOKENIZER.decode(
        task.encode(task.inputs(f"{filler}<e1> bob </e1> saw <e2> ada </e2> {filler}"), TOKENIZER)["input_ids"]
    )
    assert "good and [UNK] bob [UNK] saw [UNK] ada [UNK] the" in near
    giant = task.encode(task.inputs(f"<e1> {filler} </e1> saw <e2> ada </e2>"), TOKENIZER)
    assert len(giant["input_ids"]) == limit


def test_an_answer_says_what_was_asked():
    task = prepared([*LABELS[:2], "Other"])
    model, _, _ = tiny("bert-sequence-classification")
    rows = ["<e2>rome</e2>: <e1> bob </e1> lives there.", {"text": "bob saw rome", "head": [0, 3], "tail": [8, 12]}]
    with torch.random.fork_rng():
        answers = list(task.predict(model, TOKENIZER, [task.inputs(row) for row in rows]))
    assert [(a["text"], a["head"], a["tail"]) for a in answers] == [
        ("rome: bob lives there.", "bob", "rome"),
        ("bob saw rome", "bob", "rome"),
    ]
    assert list(answers[0]) == ["text", "head", "tail", "label", "scores"]
    assert set(answers[0]["scores"]) == {*LABELS[:2], "Other"}
