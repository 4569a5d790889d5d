"""Evaluators asked by the host: rows read and validated, splits looked at, statistics made into paired metrics."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from pydantic import Field

import alignkit
from alignkit.checking import checked
from alignkit.components import Evaluator, Measurement, Task
from alignkit.data import Example
from alignkit.data.source import Sources
from alignkit.errors import Mistake, PluginError, UsageError
from alignkit.evaluation import evaluators
from alignkit.evaluation.compare import compare, evaluate
from alignkit.evaluation.table import lines, table
from alignkit.tasks.ner import Ner
from alignkit.testing import tiny


class Words(Evaluator):
    """Counts the words of its rows that the model would have to read."""

    texts: Sources = Field(default_factory=list)
    """Files of texts."""
    others: Sources = Field(default_factory=list)
    """More of them."""

    directions: ClassVar[dict[str, int]] = {"words": -1}
    counted: ClassVar[dict[str, str]] = {"words": "rows of texts"}

    def parse(self, name: str, fields: dict[str, Any], where: str) -> Example:
        if "text" not in fields:
            raise UsageError(Mistake(where, "no 'text'"))
        return Example({"text": fields["text"], "of": name}, inputs=("text",))

    def measure(self, subject: evaluators.Subject, examples: list[Example]) -> list[Measurement]:
        return [
            Measurement(
                {"words": float(len(e["text"].split())), "rows": 1.0, f"rows of {e['of']}": 1.0}, {"text": e["text"]}
            )
            for e in examples
        ]

    def metrics(self, totals: Any) -> dict[str, Any]:
        return {"words": totals["words"] / totals["rows"], "texts_read": totals["rows"]}


class Sure(Evaluator):
    """How sure the task's predictions are."""

    def measure(self, subject: evaluators.Subject, examples: list[Example]) -> list[Measurement]:
        return [Measurement({"sure": p["sure"], "rows": 1.0}) for p in subject.predict(examples)]

    def metrics(self, totals: Any) -> dict[str, Any]:
        return {"sureness": totals["sure"] / totals["rows"]}


class Refusing(Sure):
    """Serves no task."""

    def check_task(self, task: Task) -> Any:
        yield Mistake(f"evaluator {self.name}", f"task {task.name} will not do")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "a.txt").write_text("one two\n\nthree\nfour five six\n", "utf-8")
    (tmp_path / "b.jsonl").write_text('{"body": "seven"}\n{"body": "eight nine"}\n', "utf-8")
    return tmp_path


@pytest.fixture
def ner(folder: Path) -> tuple[Task, Any]:
    model, tokenizer, _ = tiny("bert-token-classification")
    task = Ner()
    task.name, task.labels = "ner", ["O", "B-PER"]
    return task, (model, tokenizer)


# -- rows --------------------------------------------------------------------------------------------------------


def test_rows_know_where_they_stand(folder):
    texts = ["a.txt", {"path": "b.jsonl", "columns": {"text": "body"}}]
    [rows] = evaluators.read([Words(texts=texts)], folder).values()
    assert [(row.split, row.source, row.row, row.line, row["text"]) for row in rows] == [
        ("words", "a.txt", 0, 1, "one two"),
        ("words", "a.txt", 1, 3, "three"),
        ("words", "a.txt", 2, 4, "four five six"),
        ("words", "b.jsonl", 3, 1, "seven"),
        ("words", "b.jsonl", 4, 2, "eight nine"),
    ]


def test_slices_and_limits(folder):
    words = Words(texts={"path": "a.txt", "rows": "1:"}, others="a.txt", limit=2)
    [rows] = evaluators.read([words], folder).values()
    assert [(row["of"], row["text"]) for row in rows] == [
        ("texts", "three"), ("texts", "four five six"), ("others", "one two"), ("others", "three")
    ]  # fmt: skip


def test_mistakes_of_all_files_are_told_at_once(folder):
    both = [Words(texts=["none.txt", "b.jsonl"]), Words(texts={"path": "a.txt", "columns": {"text": "txt"}})]
    with pytest.raises(UsageError) as caught:
        evaluators.read(both, folder)
    assert list(map(str, caught.value.mistakes)) == [
        "none.txt: no such file; did you mean 'a.txt'?",
        "b.jsonl:1: no 'text'",
        "b.jsonl:2: no 'text'",
        "a.txt:1: no column 'txt' in 3 rows; did you mean 'text'?",
    ]


def test_mistakes_of_data_and_of_evaluators_are_told_at_once(folder):
    (folder / "train.jsonl").write_text('{"tokens": ["a"]}\n', "utf-8")
    recipe = alignkit.Recipe(
        model="m",
        task="ner",
        data={"train": "train.jsonl", "test": "train.jsonl"},
        evaluation={"evaluators": [Words(texts="none.txt")]},
        base=folder,
    )
    with pytest.raises(UsageError, match=r"(?s)train.jsonl:1: .*none.txt: no such file"):
        checked(recipe)


def test_a_recipes_files_are_relative_to_it_and_written_back(folder):
    recipe = alignkit.Recipe(
        model="m", task="ner", data={"train": "t.jsonl"}, evaluation={"evaluators": [Words(texts="a.txt")]}, base=folder
    )
    [written] = recipe.resolved()["evaluation"]["evaluators"]
    assert written["texts"] == [{"path": "a.txt", "columns": {}, "rows": None, "split": None}]
    assert len(evaluators.read(recipe.evaluation.evaluators, recipe.base)["words"]) == 3


# -- measuring ---------------------------------------------------------------------------------------------------


def test_own_rows_are_a_split_of_the_evaluators_name(folder, ner):
    task, model = ner
    words = Words(texts="a.txt", others={"path": "b.jsonl", "columns": {"text": "body"}})
    rows = evaluators.read([words], folder)
    measured = evaluate(task, *model, {}, evaluators=[words], rows=rows)
    assert measured.metrics == {"words": {"words": pytest.approx(9 / 5), "texts_read": 5.0}}
    assert [line["text"] for line in measured.seen] == ["one two", "three", "four five six", "seven", "eight nine"]
    assert measured.seen[1] == {
        "measured": "words", "split": "words", "source": "a.txt", "row": 1, "line": 3, "text": "three"
    }  # fmt: skip
    metrics = compare(measured, measured, task, replicates=100)
    assert metrics["directions"] == {"words": {"words": -1}}
    assert metrics["after"]["words"]["words"]["n"] == 3  # those that it is about
    assert metrics["after"]["words"]["texts_read"]["n"] == 5
    assert metrics["difference"]["words"]["words"]["value"] == 0


def test_what_is_declared_is_shown_first_and_the_rest_among_the_details(folder, ner):
    task, model = ner
    words = Words(texts="a.txt")
    rows = evaluators.read([words], folder)
    metrics = compare(None, evaluate(task, *model, {}, evaluators=[words], rows=rows), task, replicates=100)
    assert [(line.label, line.direction) for line in lines(metrics, "f1", True)] == [("words ↓", -1)]
    assert [line.label for line in lines(metrics, "f1", True, headline=False)] == ["words ↓", "texts read"]
    assert table(metrics, task).row_count == 2


def test_without_rows_of_its_own_it_looks_at_the_test_splits(ner, monkeypatch):
    task, model = ner
    rows = [Example({"tokens": ["ada"], "tags": ["O"]}, inputs=("tokens",), row=i) for i in range(4)]
    said = {"probabilities": np.eye(2)[:1], "tags": ["O"], "sure": 0.75}
    asked = []

    def predicted(task: Any, model: Any, tokenizer: Any, examples: Any, *_: Any, **__: Any) -> Any:
        asked.append(len(examples))
        return [said] * len(examples)

    monkeypatch.setattr("alignkit.evaluation.compare.predictions", predicted)
    splits = {"validation": rows[:1], "test/a": rows[1:], "test/b": rows[:2]}
    measured = evaluate(task, *model, splits, evaluators=[Sure(limit=2)])
    assert set(measured.splits) == {*splits, "test/a by sure", "test/b by sure"}
    assert measured.metrics["test/a by sure"] == {"sureness": 0.75}
    assert len(measured.splits["test/a by sure"].matrix) == 2
    assert asked == [1, 3, 2]  # what the splits are scored by is not predicted again
    only = evaluate(task, *model, {"validation": rows}, evaluators=[Sure()])
    assert set(only.splits) == {"validation", "validation by sure"}


def test_two_of_a_kind_are_told_apart(folder, ner):
    task, model = ner
    both = [Words(texts="a.txt"), Words(texts="a.txt")]
    rows = evaluators.read(both, folder)
    assert list(evaluate(task, *model, {}, evaluators=both, rows=rows).splits) == ["words", "words-2"]


@pytest.mark.parametrize(
    ("made", "splits", "said"),
    [
        (Refusing(), True, "evaluator refusing: task ner will not do"),
        (Sure(), False, "evaluator sure: the data has neither a test nor a validation split"),
    ],
)
def test_what_does_not_go_together_is_refused_before(ner, made, splits, said):
    task, model = ner
    given = {"test": [Example({"tokens": ["ada"], "tags": ["O"]}, inputs=("tokens",))]} if splits else {}
    with pytest.raises(UsageError, match=said):
        evaluate(task, *model, given, evaluators=[made])


def test_a_name_that_is_a_splits_is_refused(folder, ner):
    words = Words(texts="a.txt")
    words.name = "test"
    [mistake] = evaluators.unfit([words], ner[0])
    assert "its results would be called as a split is" in str(mistake)


@pytest.mark.parametrize(
    ("found", "said"),
    [
        ([Measurement({"rows": 1.0})], r"evaluator 'broken' \(.*Broken\): 1 measurements of 3 rows"),
        ([Measurement({"words": float("nan")})] * 3, "the statistic 'words' of row 0 is not finite"),
        ([{"words": 1.0}] * 3, "3 measurements of 3 rows"),
    ],
)
def test_an_evaluator_that_breaks_its_promise_is_named(folder, ner, found, said):
    class Broken(Words):
        """Answers what it was told to."""

        def measure(self, subject: Any, examples: Any) -> Any:
            return found

    task, model = ner
    broken = Broken(texts="a.txt")
    rows = evaluators.read([broken], folder)
    with pytest.raises(PluginError, match=said):
        evaluate(task, *model, {}, evaluators=[broken], rows=rows)


def test_the_model_is_in_evaluation_mode_and_afterwards_as_it_was(folder, ner):
    task, (model, tokenizer) = ner
    seen = []

    class Looking(Words):
        """Notes the mode of the model."""

        def measure(self, subject: Any, examples: Any) -> Any:
            seen.append(subject.model.training)
            return super().measure(subject, examples)

    looking = Looking(texts="a.txt")
    rows = evaluators.read([looking], folder)
    model.train()
    evaluate(task, model, tokenizer, {}, evaluators=[looking], rows=rows)
    assert seen == [False]
    assert model.training
