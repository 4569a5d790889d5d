"""Extractive question answering: SQuAD's files, windows, and its official evaluation."""

import collections
import json
import random
import re
import string

import numpy as np
import pytest
import torch

from alignkit.data import prepare
from alignkit.data.example import Example
from alignkit.data.load import load
from alignkit.data.source import Data
from alignkit.errors import UsageError
from alignkit.evaluation.score import predictions
from alignkit.tasks import squad
from alignkit.tasks.extractive_qa import ExtractiveQa, best_spans
from alignkit.testing import tiny, tokenizer
from alignkit.trainer import AlignTrainer

TOKENIZER = tokenizer("bert-question-answering")
FILLER = "the film was good and she saw it . " * 12
LONG = {"question": "who lives in paris ?", "context": f"{FILLER}bob lives in paris . {FILLER}"}
LONG["answers"] = [{"text": "bob", "answer_start": len(FILLER)}]
ROW = {"question": "where?", "context": "ada went to rome", "answers": [{"text": "rome", "answer_start": 12}]}


def parsed(row, where="a.jsonl:1", **fields):
    return ExtractiveQa(**fields).parse(dict(row), where)


def refused(do):
    with pytest.raises(UsageError) as caught:
        do()
    return [str(m) for m in caught.value.mistakes]


# -- the official evaluation -------------------------------------------------------------------------------------


def reference(predicted, gold):
    """SQuAD 2.0's exact match and F1 as its paper and script define them, written anew."""

    def normal(text):
        text = "".join(c for c in text.lower() if c not in set(string.punctuation))
        return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())

    golds = [g for g in gold if normal(g)] or [""]
    scores = []
    for one in golds:
        a, b = normal(predicted).split(), normal(one).split()
        if not a or not b:
            scores.append((float(normal(one) == normal(predicted)), float(a == b)))
            continue
        same = sum((collections.Counter(a) & collections.Counter(b)).values())
        precision, recall = same / len(a), same / len(b)
        value = 2 * precision * recall / (precision + recall) if same else 0.0
        scores.append((float(normal(one) == normal(predicted)), value))
    return max(e for e, _ in scores), max(f for _, f in scores)


def test_scores_are_the_official_ones():
    chance = random.Random(0)
    pieces = ["The", "the", "a", "Denver", "Broncos", "denver,", "24–10", "U.S.", "an", "--", "10th", "Levi's", "(NFL)"]
    for _ in range(500):
        gold = [" ".join(chance.choices(pieces, k=chance.randint(1, 4))) for _ in range(chance.randint(0, 3))]
        predicted = chance.choice(["", *gold, " ".join(chance.choices(pieces, k=chance.randint(1, 4)))])
        assert (squad.exact(predicted, gold), squad.f1(predicted, gold)) == pytest.approx(reference(predicted, gold))


@pytest.mark.parametrize(
    ("predicted", "gold", "exact", "f1"),
    [
        ("the Denver Broncos!", ["Denver Broncos", "Broncos"], 1, 1),
        ("Santa Clara", ["Levi's Stadium", "Santa Clara, California"], 0, 0.8),
        ("10th and 11th centuries", ["in the 10th and 11th centuries"], 0, 8 / 9),
        ("France", [], 0, 0),
        ("", [], 1, 1),
        ("", ["France"], 0, 0),
        ("北京大学", ["北京大学。"], 1, 1),
        ("北京大学校", ["北京大学"], 0, 8 / 9),
        ("1998 年 5 月", ["1998年5月"], 1, 1),
    ],
)
def test_known_answers(predicted, gold, exact, f1):
    assert squad.exact(predicted, gold) == exact
    assert squad.f1(predicted, gold) == pytest.approx(f1)


def test_metrics_of_questions_with_and_without_answers():
    task = ExtractiveQa()
    none = {**ROW, "answers": []}
    examples = [parsed(ROW), parsed(ROW), parsed(none), parsed(none)]
    task.prepare({"test": examples})
    right, empty = {"start": 12, "end": 16}, {"start": 0, "end": 0}
    rows = [task.statistics(e, p) for e, p in zip(examples, (right, empty, right, empty), strict=True)]
    totals = {name: sum(row[name] for row in rows) for name in rows[0]}
    assert task.metrics(totals) == pytest.approx(
        {name: 0.5 for n in ("exact", "f1") for name in (n, f"{n}/answerable", f"{n}/unanswerable")}
    )
    answered = ExtractiveQa()
    answered.prepare({"test": examples[:2]})
    assert list(answered.metrics(answered.statistics(examples[0], right))) == ["exact", "f1"]
    assert answered.statistics(examples[0], {})["exact"] == 0.0


# -- rows --------------------------------------------------------------------------------------------------------


def nested(*articles):
    return {"version": "1.1", "data": list(articles)}


def article(context, *questions):
    return {"title": "T", "paragraphs": [{"context": context, "qas": list(questions)}]}


@pytest.mark.parametrize("indent", [None, 1])
def test_squads_files_are_read(indent, tmp_path):
    questions = [
        {"id": "q1", "question": "where?", "answers": ROW["answers"]},
        {"id": "q2", "question": "when?", "answers": [], "is_impossible": True},
        {"question": "who?", "answers": {"text": ["ada"], "answer_start": [0]}},
    ]
    (tmp_path / "a.json").write_text(json.dumps(nested(article(ROW["context"], *questions)), indent=indent), "utf-8")
    task = ExtractiveQa()
    found = load(Data(train="a.json"), task, tmp_path)["train"]
    assert [e["answers"] for e in found] == [ROW["answers"], [], [{"text": "ada", "answer_start": 0}]]
    assert (found[0]["question"], found[0]["context"], found[0].line) == ("where?", ROW["context"], 0)
    assert [e.where for e in found] == ["train row 0", "train row 1", "train row 2"]
    assert task.no_answer is True
    assert found[0].text == "where?\nada went to rome"
    sliced = load(Data.model_validate({"train": {"path": "a.json", "rows": "2:"}}), ExtractiveQa(), tmp_path)
    assert [e["question"] for e in sliced["train"]] == ["who?"]


def test_mistakes_of_a_file_are_reported_at_once_each_with_its_question(tmp_path):
    wrong = [
        {"id": "q1", "question": "where?", "answers": [{"text": "rome", "answer_start": 11}]},
        {
            "id": "q2",
            "question": " ",
            "answers": [{"text": "paris", "answer_start": -1}, {"text": " ", "answer_start": 3}],
        },
        {"id": "q3", "question": "x", "answers": "rome"},
        {"id": "q4", "question": "x", "answers": [], "is_impossible": False},
        {"question": "x"},
        {"id": "q6", "question": "x", "answers": {"text": ["rome"], "answer_start": []}},
        {"id": "q7", "question": "x", "answers": [{"text": "bob", "answer_start": 3}]},
    ]
    articles = (article(ROW["context"], *wrong), {"title": "no paragraphs"}, "no article")
    (tmp_path / "a.json").write_text(json.dumps(nested(*articles)), "utf-8")
    assert refused(lambda: load(Data(train="a.json"), ExtractiveQa(), tmp_path)) == [
        "a.json question q1: answer 'rome' with 'answer_start' 11, where there is ' rom'; it is at 12",
        "a.json question q2: 'question' is blank; expected text",
        """a.json question q3: 'answers' is 'rome'; expected a list of {"text", "answer_start"}""",
        "a.json question q4: 'is_impossible' is False, with 0 answers; expected true where there are none, else false",
        'a.json article 1 paragraph 1 question 5: no \'answers\'; expected a list of {"text", "answer_start"}; '
        "there is context, question; map it with `columns: {answers: …}`",
        "a.json question q6: 1 'text' and 0 'answer_start' in 'answers'; expected as many of each",
        "a.json question q7: answer 'bob' with 'answer_start' 3, where there is ' we'; the context does not have it",
        "a.json article 2 paragraph 1 question 1: no 'question'; there is title; map it with `columns: {question: …}`",
        "a.json article 2 paragraph 1 question 1: no 'context'; there is title; map it with `columns: {context: …}`",
        'a.json article 2 paragraph 1 question 1: no \'answers\'; expected a list of {"text", "answer_start"}; '
        "there is title; map it with `columns: {answers: …}`",
        "a.json article 3 paragraph 1 question 1: no 'question'; map it with `columns: {question: …}`",
        "a.json article 3 paragraph 1 question 1: no 'context'; map it with `columns: {context: …}`",
        'a.json article 3 paragraph 1 question 1: no \'answers\'; expected a list of {"text", "answer_start"}; '
        "map it with `columns: {answers: …}`",
    ]


def test_mistakes_in_lines():
    assert refused(lambda: parsed({**ROW, "answers": [{"text": "a", "answer_start": True}]}, "a.jsonl:7")) == [
        """a.jsonl:7: 'answers' is [{'text': 'a', 'answer_start': True}]; expected a list of {"text", "answer_start"}"""
    ]
    blank = {**ROW, "answers": [{"text": " ", "answer_start": 3}, {"text": "bob", "answer_start": 99}]}
    assert refused(lambda: parsed(blank, "a.jsonl:7")) == [
        "a.jsonl:7: the answer at 3 is blank; expected text",
        "a.jsonl:7: answer 'bob' with 'answer_start' 99, where there is ''; the context does not have it",
    ]
    assert parsed({**ROW, "answers": [], "is_impossible": True})["answers"] == []
    impossible = {"question": "x", "context": "y", "is_impossible": True}
    assert parsed(impossible)["answers"] == []
    task = ExtractiveQa(no_answer=False)
    assert refused(lambda: task.prepare({"train": [parsed(impossible)]})) == [
        "train row -1: no answer, and `no_answer: false` in the recipe; expected an answer"
    ]
    assert refused(lambda: task.inputs("where is rome?")) == [
        "input: a text alone; expected a question and its context; "
        'give rows: --input FILE.jsonl with {"question": …, "context": …}'
    ]
    assert refused(lambda: task.inputs({"question": "x"})) == [
        "input: no 'context'; there is question; map it with `columns: {context: …}`"
    ]


def test_whether_there_may_be_no_answer_is_found_in_the_training_data():
    none = parsed({**ROW, "answers": []})
    for splits, expected in (
        ({"train": [parsed(ROW), none]}, True),
        ({"train": [parsed(ROW)], "test": [none]}, False),
        ({"test": [none]}, True),
    ):
        task = ExtractiveQa()
        task.prepare(splits)
        assert task.no_answer is expected
        assert task.has_unanswerable
    told = ExtractiveQa(no_answer=True)
    told.prepare({"train": [parsed(ROW)]})
    assert told.no_answer


# -- windows -----------------------------------------------------------------------------------------------------


def test_a_long_context_is_read_in_windows():
    task = ExtractiveQa(maximum_length=40, stride=12)
    example = parsed(LONG)
    windows = task.encode(example, TOKENIZER)
    assert len(windows) > 5
    covered = {place for w in windows for start, end in w["offsets"] if start >= 0 for place in range(start, end)}
    assert covered == {i for i, c in enumerate(LONG["context"]) if c != " "}
    for window in windows:
        assert len(window["input_ids"]) == len(window["offsets"]) <= 40
        for token, (start, end) in zip(window["input_ids"], window["offsets"], strict=True):
            if start >= 0:
                assert TOKENIZER.convert_ids_to_tokens(token).removeprefix("##") == LONG["context"][start:end]
        first, last = window["start_positions"], window["end_positions"]
        text = LONG["context"][window["offsets"][first][0] : window["offsets"][last][1]]
        assert (first, last) == (0, 0) or text == "bob"
    held = [w for w in windows if w["start_positions"]]
    assert 1 <= len(held) < len(windows)
    answered = [any(LONG["context"][s:e] == "bob" for s, e in w["offsets"] if s >= 0) for w in windows]
    assert len(held) == sum(answered)


def test_a_question_that_is_too_long_leaves_room_for_the_context():
    task = ExtractiveQa(maximum_length=16, stride=128)
    windows = task.encode(parsed({**ROW, "question": "who went to rome and paris and " * 9}), TOKENIZER)
    assert all(len(w["input_ids"]) <= 16 for w in windows)
    assert any(w["start_positions"] for w in windows)


def test_an_answer_is_found_again_in_a_context_that_was_rewritten():
    task = ExtractiveQa()

    def labelled(example):
        (window,) = task.encode(example, TOKENIZER)
        first, last = window["start_positions"], window["end_positions"]
        return example["context"][window["offsets"][first][0] : window["offsets"][last][1]] if first else None

    row = {"question": "x", "context": "rome or rome", "answers": [{"text": "rome", "answer_start": 8}]}
    example = parsed(row)
    assert labelled(example) == "rome"
    moved = example.map_words(lambda word: "and" if word == "or" else word)
    assert labelled(moved) == "rome"
    (window,) = task.encode(moved, TOKENIZER)
    assert window["start_positions"] == len(window["input_ids"]) - 2, "the second of the two"
    lost = example.map_words(lambda word: word[::-1])
    assert task.encode(lost, TOKENIZER) is None, "nothing to learn"
    scored = Example(lost.fields, lost.inputs, split="test")
    assert task.encode(scored, TOKENIZER)[0]["start_positions"] == 0, "but still to be answered"
    second = [{"text": "ada", "answer_start": 0}, {"text": "rome", "answer_start": 0}]
    assert squad.find(second, "in rome") == (3, 7)


def test_best_spans_are_those_of_a_full_search():
    generator = np.random.default_rng(0)
    for length in (1, 2, 7, 30):
        start, end = generator.normal(size=(2, length))
        every = sorted((start[i] + end[j], i, j) for i in range(length) for j in range(i, min(i + 5, length)))[::-1]
        found = best_spans(start, end, longest=5, number=6)
        assert [(i, j) for _, i, j in found] == [(i, j) for _, i, j in every[:6]]
        assert [s for s, _, _ in found] == pytest.approx([s for s, _, _ in every[:6]])
    assert best_spans(np.zeros(0), np.zeros(0), 5, 5) == []


def outputs(task, windows, start, end):
    """The logits [windows, T] of a head that has these, by character of the context; -5 elsewhere."""
    batch = task.collate([{k: v for k, v in w.items() if k != "offsets"} for w in windows], TOKENIZER)
    logits = torch.full((2, *batch["input_ids"].shape), -5.0)
    for i, window in enumerate(windows):
        for t, (s, e) in enumerate(window["offsets"]):
            if s >= 0:
                logits[0, i, t], logits[1, i, t] = start.get(s, -5.0), end.get(e, -5.0)
    head = type("Outputs", (), {"start_logits": logits[0], "end_logits": logits[1]})()
    return head, {**batch, "columns": {"offsets": [w["offsets"] for w in windows]}}


def test_the_best_span_of_all_windows_is_the_answer():
    task = ExtractiveQa(maximum_length=40, stride=12, no_answer=True)
    example = task.inputs(LONG)
    at = len(FILLER)
    windows = task.encode(example, TOKENIZER)
    assert "start_positions" not in windows[0]
    head, batch = outputs(task, windows, {at: 3.0, 0: 2.0}, {at + 3: 3.0, 3: 2.0})
    parts = task.decode(head, batch)
    joined = task.join([*parts[::-1], parts[0]])
    assert task.answer(example, joined) == {
        "question": LONG["question"], "context": LONG["context"],
        "answer": "bob", "start": at, "end": at + 3, "score": pytest.approx(joined["score"], abs=1e-4),
    }  # fmt: skip
    assert joined == {**task.join(parts), "probabilities": joined["probabilities"]}
    assert task.answer(example, {**task.join([parts[0]])})["answer"] == "the"
    assert joined["score"] == pytest.approx(np.exp(6) / (np.exp(6) + np.exp(4) + 18 * np.exp(-2)), rel=0.05)


def test_no_answer_wins_by_the_threshold():
    example = parsed(ROW)
    for threshold, null, expected in ((0.0, 1.5, ""), (0.0, 0.5, "rome"), (1.0, 1.5, "rome"), (-1.0, 0.5, "")):
        task = ExtractiveQa(no_answer=True, threshold=threshold)
        windows = task.encode(example, TOKENIZER)
        head, batch = outputs(task, windows, {12: 0.5}, {16: 0.5})
        head.start_logits[0, 0] = null
        head.end_logits[0, 0] = 0.0
        (found,) = task.decode(head, batch)
        said = task.answer(task.inputs(ROW), found)
        assert said["answer"] == expected
        assert (said["start"] is None) == (not expected)
    always = ExtractiveQa(no_answer=False)
    assert always.answer(example, always.decode(head, batch)[0])["answer"] == "rome"


# -- through a model ---------------------------------------------------------------------------------------------


def test_training_and_scoring_agree_on_long_contexts(tmp_path):
    from transformers import TrainingArguments

    task = ExtractiveQa(maximum_length=40, stride=12)
    rows = [LONG, ROW, {**LONG, "answers": []}, {**ROW, "question": "who?"}]
    examples = [
        Example(parsed(row).fields, ("question", "context"), split="validation", row=i) for i, row in enumerate(rows)
    ]
    task.prepare({"train": examples})
    model, _, _ = tiny("bert-question-answering")
    dataset = prepare.encode(task, examples, TOKENIZER, columns=task.columns)
    assert len(dataset) > len(examples)
    arguments = TrainingArguments(
        output_dir=str(tmp_path), max_steps=2, per_device_train_batch_size=3, per_device_eval_batch_size=3,
        gradient_accumulation_steps=2, use_cpu=True, report_to="none", disable_tqdm=True, remove_unused_columns=False,
    )  # fmt: skip
    trainer = AlignTrainer(
        model=model, args=arguments, train_dataset=dataset, eval_dataset=dataset, processing_class=TOKENIZER,
        data_collator=lambda part: task.collate(part, TOKENIZER), task=task,
    )  # fmt: skip
    trainer.scored_examples = {"eval": examples}
    trainer.train()
    measured = trainer.evaluate()
    found = predictions(task, model, TOKENIZER, examples, batch_size=2)
    sums = [task.statistics(e, p) for e, p in zip(examples, found, strict=True)]
    expected = task.metrics({name: sum(row[name] for row in sums) for name in sums[0]})
    assert {f"eval_{name}": value for name, value in expected.items()}.items() <= measured.items()
    assert {"eval_f1/unanswerable", "eval_exact/answerable"} <= set(measured)
    for example, prediction in zip(examples, found, strict=True):
        said = task.answer(example, prediction)
        assert said["answer"] == (example["context"][said["start"] : said["end"]] if said["answer"] else "")


def test_padding_is_on_the_right_even_for_models_that_pad_on_the_left():
    task = ExtractiveQa()
    left = tokenizer("bert-question-answering")
    left.padding_side = "left"
    rows = [parsed(ROW), parsed({**ROW, "question": "where is ada and who is she ?"})]
    features = [{k: v for k, v in task.encode(e, left)[0].items() if k != "offsets"} for e in rows]
    batch = task.collate(features, left)
    assert batch["attention_mask"][0].tolist() == sorted(batch["attention_mask"][0].tolist(), reverse=True)
    for row, place in enumerate(batch["start_positions"].tolist()):
        assert left.convert_ids_to_tokens(int(batch["input_ids"][row, place])) == "rome"


def test_a_run_writes_down_that_there_may_be_no_answer_and_can_be_resumed(tmp_path):
    import alignkit
    from alignkit.recipe import Recipe
    from alignkit.run_folder import RECIPE, differing_fields
    from alignkit.testing.run_cases import base_model, carry_out

    base = base_model(tmp_path / "base", ExtractiveQa.auto_class)
    rows = [dict(row) for row in ExtractiveQa.samples]
    run = carry_out(tmp_path, base, ExtractiveQa(), rows)
    assert Recipe.load(run.path / RECIPE).task.no_answer is True
    data = {"train": str(tmp_path / "rows.jsonl"), "test": str(tmp_path / "rows.jsonl")}
    training = {"max_steps": 2, "per_device_train_batch_size": 4, "use_cpu": True, "report_to": "none"}
    asked = {"model": str(base), "data": data, "training": training, "evaluation": {"replicates": 20}}
    assert differing_fields(Recipe(task=ExtractiveQa(), **asked), run.path / RECIPE) == []
    assert differing_fields(Recipe(task=ExtractiveQa(no_answer=False), **asked), run.path / RECIPE) == ["task"]
    assert alignkit.load(run.path).task.no_answer is True
