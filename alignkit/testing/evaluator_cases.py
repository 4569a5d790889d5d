"""Conformance of evaluators: rows that are validated, metrics that are functions of sums, a model that is as before."""

from __future__ import annotations

import json
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest

from alignkit.components import Evaluator
from alignkit.data.example import Example
from alignkit.errors import UsageError
from alignkit.evaluation import evaluators
from alignkit.evaluation.compare import Measured, compare, evaluate
from alignkit.evaluation.table import lines, table
from alignkit.testing.attack_cases import Subject, random_subject, tasks_of, trained_subject, watched
from alignkit.testing.component_cases import ComponentCases

NAME = "evaluator-under-test"


class EvaluatorCases(ComponentCases):
    """Of an evaluator: what is wrong with its rows is said before training; what it finds is paired, row by row.

    Its own rows are its `samples`. It is tried on each of the host's tasks that it does not refuse, with tiny models.
    """

    kind: ClassVar[str] = "evaluator"
    tasks: ClassVar[tuple[str, ...]] = ()
    """Names of the tasks that it is tried on; empty: all of the host's."""

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        if "asked" in metafunc.fixturenames:
            asked = tasks_of(self.tasks)
            metafunc.parametrize("asked", asked, ids=["-".join(filter(None, names)) for names in asked])

    @pytest.fixture
    def placed(self, component: Evaluator, tmp_path: Path) -> Evaluator:
        """The component with its samples in files."""
        return with_samples(component, tmp_path)

    @pytest.fixture
    def subject(self, placed: Evaluator, asked: tuple[str, str]) -> Subject:
        """A model that it may measure."""
        if list(evaluators.unfit([placed], random_subject(*asked).task)):
            pytest.skip("it refuses the task")
        return trained_subject(*asked)

    # -- its rows ----------------------------------------------------------------------------------------------

    def test_it_has_samples_of_its_rows(self, component: Evaluator) -> None:
        assert set(component.samples) == set(component.sources())
        assert all(len(rows) > 1 for rows in component.samples.values())
        if component.sources():
            assert type(component).parse is not Evaluator.parse, "say what a row is: parse()"
            assert component.example, "fields that say where rows come from have no default: write an `example`"

    def test_its_rows_say_where_they_come_from(self, placed: Evaluator, tmp_path: Path) -> None:
        for example in evaluators.read([placed], tmp_path).get(NAME, []):
            assert (example.split, example.row >= 0, example.line > 0) == (NAME, True, True)
            assert Path(example.source).name.partition(".")[0] in placed.samples
            assert all(isinstance(example[name], str | list) for name in example.inputs)

    def test_limit_holds_for_each_field(self, placed: Evaluator, tmp_path: Path) -> None:
        if not placed.sources():
            pytest.skip("it has no rows of its own")
        one = type(placed)(**{**placed.fields(), "limit": 1})
        one.name = NAME
        assert 1 <= len(evaluators.read([one], tmp_path)[NAME]) <= len(placed.samples)

    def test_mistakes_in_its_rows_are_said_with_file_and_line(self, placed: Evaluator, tmp_path: Path) -> None:
        """All of them, those of several files at once."""
        if not placed.sources():
            pytest.skip("it has no rows of its own")
        for name in placed.samples:
            (tmp_path / f"{name}.jsonl").write_text('{"somethng_else": 1}\n{"somethng_else": 2}\n', "utf-8")
        with pytest.raises(UsageError) as caught:
            evaluators.read([placed], tmp_path)
        for name in placed.samples:
            wrong = [m for m in caught.value.mistakes if f"{name}.jsonl" in m.where]
            assert {m.where.rpartition(":")[2] for m in wrong} >= {"1", "2"}
            assert all(m.found for m in wrong)

    def test_a_file_that_is_missing_is_a_mistake(self, component: Evaluator, tmp_path: Path) -> None:
        if not component.sources():
            pytest.skip("it has no rows of its own")
        component.name = NAME
        with pytest.raises(UsageError, match="no such file"):
            evaluators.read([component], tmp_path)

    # -- what it finds -----------------------------------------------------------------------------------------

    def test_it_serves_a_task_and_refuses_the_others_before_it_begins(self, placed: Evaluator, tmp_path: Path) -> None:
        subjects = [random_subject(*asked) for asked in tasks_of(self.tasks)]
        refused = [(s, mistakes) for s in subjects if (mistakes := list(evaluators.unfit([placed], s.task)))]
        assert len(refused) < len(subjects), "it refuses every task"
        rows = evaluators.read([placed], tmp_path)
        for subject, mistakes in refused:
            assert all(NAME in mistake.where and mistake.found for mistake in mistakes)
            with pytest.raises(UsageError, match=NAME):
                evaluate(subject.task, subject.model, subject.tokenizer, {"test": []}, evaluators=[placed], rows=rows)

    def test_each_row_gets_finite_statistics(self, placed: Evaluator, subject: Subject, tmp_path: Path) -> None:
        examples = self._examples(placed, subject, tmp_path)
        found = evaluators.evaluated(placed, self._asked(subject), examples)
        assert found.matrix.shape == (len(examples), len(found.names))
        assert found.names
        json.dumps(found.lines, ensure_ascii=False)

    def test_metrics_are_elementwise_functions_of_sums(
        self, placed: Evaluator, subject: Subject, tmp_path: Path
    ) -> None:
        """Sums of several resamples at a time give what each of them gives alone."""
        found = evaluators.evaluated(placed, self._asked(subject), self._examples(placed, subject, tmp_path))
        draws = np.random.default_rng(0).integers(0, len(found.matrix), (5, len(found.matrix)))
        sums = found.matrix[draws].sum(1)
        with np.errstate(all="ignore"):
            together = placed.metrics(dict(zip(found.names, sums.T, strict=True)))
            for row, one in enumerate(sums):
                for name, value in placed.metrics(dict(zip(found.names, one, strict=True))).items():
                    assert together[name][row] == pytest.approx(float(value), nan_ok=True)

    def test_what_it_declares_of_its_metrics_is_there(
        self, placed: Evaluator, subject: Subject, tmp_path: Path
    ) -> None:
        measured = self._measured(placed, subject, tmp_path)
        for split in measured.splits.values():
            assert set(placed.directions) <= set(split.metrics), "a direction of a metric that it does not give"
            assert set(placed.directions.values()) <= {-1, 0, 1}
            assert {name for name in placed.counted if not name.endswith("/")} <= set(split.metrics)
            assert set(split.counted.values()) <= set(split.names)

    def test_two_models_are_compared_row_by_row(self, placed: Evaluator, subject: Subject, tmp_path: Path) -> None:
        """In the shape of metrics.json, and in the tables that are made of it."""
        measured = self._measured(placed, subject, tmp_path)
        metrics = compare(measured, measured, subject.task, replicates=100)
        for split in measured.splits:
            for name, found in metrics["difference"][split].items():
                if found["value"] is not None:
                    assert (found["value"], found["low"], found["high"]) == (0.0, 0.0, 0.0), name
        json.dumps(metrics)
        assert {line.split for line in lines(metrics, "f1", True)} == set(measured.splits)
        table(metrics, subject.task)

    def test_who_else_is_measured_changes_nothing(self, placed: Evaluator, subject: Subject, tmp_path: Path) -> None:
        """In another order, and alone."""
        if placed.couples_rows:
            pytest.skip("it says that its result depends on the other rows")
        examples = self._examples(placed, subject, tmp_path)
        found = evaluators.evaluated(placed, self._asked(subject), examples)
        for places in ([i for i in reversed(range(len(examples))) if i % 2 == 0], [0], [1]):
            others = evaluators.evaluated(placed, self._asked(subject), [examples[i] for i in places])
            for row, place in enumerate(places):
                one = dict(zip(found.names, found.matrix[place], strict=True))
                other = dict(zip(others.names, others.matrix[row], strict=True))
                assert {**dict.fromkeys(one, 0.0), **other} == pytest.approx(one, rel=1e-3, abs=1e-4)

    def test_model_and_random_state_are_as_before(self, placed: Evaluator, subject: Subject, tmp_path: Path) -> None:
        examples = self._examples(placed, subject, tmp_path)
        with watched(subject.model) as changed:
            evaluators.evaluated(placed, self._asked(subject), examples)
        assert not changed

    @staticmethod
    def _asked(subject: Subject) -> evaluators.Subject:
        return evaluators.Subject(subject.task, subject.model, subject.tokenizer, batch_size=4)

    @staticmethod
    def _examples(placed: Evaluator, subject: Subject, base: Path) -> list[Example]:
        return evaluators.read([placed], base).get(NAME) or list(subject.examples)

    @staticmethod
    def _measured(placed: Evaluator, subject: Subject, base: Path) -> Measured:
        rows = evaluators.read([placed], base)
        splits = {} if rows else {"test": list(subject.examples)}
        found = evaluate(
            subject.task, subject.model, subject.tokenizer, splits, evaluators=[placed], rows=rows, batch_size=4
        )
        return Measured({name: split for name, split in found.splits.items() if name != "test"}, seen=found.seen)


def with_samples(component: Evaluator, folder: Path) -> Evaluator:
    """A component of the same fields whose rows are its samples, in files of the folder."""
    for name, rows in component.samples.items():
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")
    placed = type(component)(**{**component.fields(), **{name: f"{name}.jsonl" for name in component.samples}})
    placed.name = NAME
    return placed
