"""Conformance by whole runs: updaters, which go from one run to the next, and tasks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar

import numpy
import pytest
import torch

import alignkit
from alignkit.components import Memory, Task, Updater
from alignkit.data import prepare
from alignkit.data.collate import StepCollator
from alignkit.data.example import Example
from alignkit.data.features import windows
from alignkit.errors import UsageError
from alignkit.evaluation.score import predictions
from alignkit.memory import load_memory, save_memory
from alignkit.models.saving import quiet
from alignkit.testing.component_cases import ComponentCases, TrainingCases
from alignkit.testing.models import tiny
from alignkit.testing.training import fresh, same

SENTENCES = (
    ("ada lives in rome", "B-PER O O B-LOC"),
    ("bob works in paris", "B-PER O O B-LOC"),
    ("she went to rome", "O O O B-LOC"),
    ("the film was good", "O O O O"),
    ("bob saw ada", "B-PER O B-PER"),
    ("he was not in paris", "O O O O B-LOC"),
)
BASES = {"AutoModelForCausalLM": "llama-causal-lm", "AutoModelForSeq2SeqLM": "t5"}
"""The tiny model that a task begins with, by its `auto_class`; an encoder for all others."""


def base_model(folder: Path, auto_class: str, dropout: float = 0.0) -> Path:
    """A tiny model without a head of the task's own, saved with its tokenizer."""
    model, tokenizer, _ = tiny(BASES.get(auto_class, "bert-masked-lm"), dropout=dropout)
    with quiet():
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return folder


def carry_out(folder: Path, model: Path, task: Any, rows: list[dict[str, Any]], **parts: Any) -> alignkit.Run:
    """A whole run of two steps on these rows, which it is also tested on."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    recipe = alignkit.Recipe(
        model=str(model),
        task=task,
        data={"train": str(file), "test": str(file)},
        training={"max_steps": 2, "per_device_train_batch_size": 4, "use_cpu": True, "report_to": "none"},
        evaluation={"replicates": 20},
        output=str(folder / "run"),
        **parts,
    )
    return alignkit.train(recipe)


class UpdaterCases(TrainingCases):
    """Of an updater: it begins with an empty memory, and what it remembers reaches the next run."""

    kind: ClassVar[str] = "updater"

    def task_rows(self) -> list[dict[str, Any]]:
        """Rows of named entities that the runs train on."""
        return [{"tokens": text.split(), "tags": tags.split()} for text, tags in SENTENCES]

    def test_a_second_run_goes_on_from_the_first(self, component: Updater, tmp_path: Path) -> None:
        base = base_model(tmp_path / "base", "AutoModelForTokenClassification")
        rows = self.task_rows()
        first = carry_out(tmp_path / "1", base, "ner", rows[:4], updater=component)
        remembered = self._memory(first)
        second = carry_out(tmp_path / "2", first.path, "ner", rows[4:], updater=fresh(component))
        for run in (first, second):
            assert all(p.isfinite().all() for p in run.model.parameters())
        if "consolidate" in component.hook_points:
            assert remembered.examples or remembered.tensors or remembered.facts
            assert self._memory(second)

    def test_its_memory_is_what_a_folder_holds(self, component: Updater, tmp_path: Path) -> None:
        if "consolidate" not in component.hook_points:
            pytest.skip("it remembers nothing")
        base = base_model(tmp_path / "base", "AutoModelForTokenClassification")
        memory = self._memory(carry_out(tmp_path / "1", base, "ner", self.task_rows(), updater=component))
        save_memory(tmp_path / "copy", memory)
        again = load_memory(tmp_path / "copy")
        assert (again.examples, again.facts) == (memory.examples, memory.facts)
        assert same(again.tensors, memory.tensors)

    def test_an_empty_memory_leaves_the_training_set_alone(self, component: Any) -> None:
        if "rehearse" not in component.hook_points:
            pytest.skip("it rehearses nothing")
        from datasets import Dataset

        dataset = Dataset.from_list([{"input_ids": [1, 2], "labels": [0, 1], "index": i} for i in range(3)])
        assert component.rehearse(dataset, Memory(), numpy.random.default_rng(0)).to_list() == dataset.to_list()

    @staticmethod
    def _memory(run: alignkit.Run) -> Memory:
        folders = list((run.path / "memory").glob("*"))
        return load_memory(folders[0]) if folders else Memory()


class TaskCases(ComponentCases):
    """Of a task: rows in, a batch, predictions, metrics out, on the task's own `samples`."""

    kind: ClassVar[str] = "task"
    auto_classes: ClassVar[tuple[str, ...]] = ("",)
    """The kinds of model that it is tried on; empty: the component's `auto_class`."""

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        if "auto_class" in metafunc.fixturenames:
            metafunc.parametrize("auto_class", self.auto_classes)

    @pytest.fixture
    def rows(self, component: Task) -> list[dict[str, Any]]:
        """Rows as the task's files hold them, of different lengths, every label among them."""
        assert len(component.samples) >= 6, "give the task six `samples` or more"
        return [dict(row) for row in component.samples]

    @pytest.fixture
    def base(self, component: Task, auto_class: str, tmp_path: Path) -> Path:
        """The folder of a tiny model that the task begins with."""
        return base_model(tmp_path / "base", auto_class or component.auto_class)

    @pytest.fixture
    def examples(self, component: Task, rows: list[dict[str, Any]]) -> list[Example]:
        found = [component.parse(dict(row), f"sample.jsonl:{i + 1}") for i, row in enumerate(rows)]
        component.prepare({"train": found})
        return found

    @pytest.fixture
    def loaded(self, component: Task, examples: list[Example], base: Path) -> tuple[Any, Any]:
        """A tiny model with the task's head, and its tokenizer."""
        from alignkit import models

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model, tokenizer = models.load(base, component)
        return model.eval(), tokenizer

    def test_rows_become_examples_with_text(self, component: Task, examples: list[Example]) -> None:
        for example in examples:
            assert example.inputs
            assert example.text.strip()
            assert set(example.inputs) | set(example.targets) <= set(example)

    def test_a_row_without_fields_is_refused_with_its_place(self, component: Task) -> None:
        with pytest.raises(UsageError, match=r"sample\.jsonl:7"):
            component.parse({}, "sample.jsonl:7")

    def test_examples_become_inputs_and_labels(
        self, component: Task, examples: list[Example], loaded: tuple[Any, Any]
    ) -> None:
        for example in examples:
            encoded = windows(component.encode(example, loaded[1]))
            assert encoded
            assert component.windowed or len(encoded) == 1
            assert all(row["input_ids"] for row in encoded)
            assert encoded == windows(component.encode(example, loaded[1]))

    def test_padding_changes_no_prediction(
        self, component: Task, examples: list[Example], loaded: tuple[Any, Any]
    ) -> None:
        model, tokenizer = loaded
        of, encoded = _encoded(component, examples, tokenizer)
        together = self._predicted(component, model, tokenizer, encoded)
        for example, row, prediction in zip(of, encoded, together, strict=True):
            (alone,) = self._predicted(component, model, tokenizer, [row])
            one, other = (component.statistics(example, p) for p in (alone, prediction))
            assert one == pytest.approx(other, rel=1e-4, abs=1e-5)
            assert component.gap(alone, prediction) == pytest.approx(0.0, abs=1e-4)

    def test_metrics_of_arrays_are_arrays_of_metrics(
        self, component: Task, examples: list[Example], loaded: tuple[Any, Any]
    ) -> None:
        model, tokenizer = loaded
        pairs = zip(examples, predictions(component, model, tokenizer, examples), strict=True)
        statistics = [component.statistics(example, prediction) for example, prediction in pairs]
        assert all(isinstance(value, float | int) for row in statistics for value in row.values())
        totals = [_summed(statistics[:half]) for half in (3, 4, len(statistics))]
        names = dict.fromkeys(name for total in totals for name in total)
        arrays = {name: numpy.array([total.get(name, 0.0) for total in totals]) for name in names}
        with numpy.errstate(all="ignore"):
            whole = component.metrics(arrays)
            each = [component.metrics({n: values[i] for n, values in arrays.items()}) for i in range(len(totals))]
        assert component.metric in whole
        for name, values in whole.items():
            assert numpy.shape(values) == (len(totals),)
            numpy.testing.assert_allclose(values, [one[name] for one in each], rtol=1e-9)

    def test_an_example_is_encoded_with_its_view(
        self, component: Task, examples: list[Example], loaded: tuple[Any, Any]
    ) -> None:
        _, tokenizer = loaded
        dataset = prepare.encode(component, examples, tokenizer, lambda e: {"mirror": e.map_words(lambda w: w[::-1])})
        rows = list(dataset)
        batch = StepCollator(lambda part: component.collate(part, tokenizer), component.columns)(rows)
        view = batch["views"]["mirror"]
        assert len(view["rows"]) == len(view["input_ids"])
        assert batch["index"].tolist() == [row["index"] for row in rows]
        counted, mirrored = component.counts(batch), component.counts({k: v for k, v in view.items() if k != "rows"})
        assert counted["example"] == len(rows) >= len(examples)
        if len(view["rows"]) == len(rows):
            assert counted == mirrored, "labels of an example and its view align word by word"

    def test_a_run_from_rows_to_answers(
        self, component: Task, rows: list[dict[str, Any]], base: Path, tmp_path: Path
    ) -> None:
        run = carry_out(tmp_path, base, component, rows)
        written = json.loads((run.path / "metrics.json").read_text(encoding="utf-8"))
        assert component.metric in written["after"]["test"]
        questions = [component.parse(dict(row), "sample.jsonl:1").fields for row in rows[:3]]
        answers = run.predict([dict(question) for question in questions])
        assert len(answers) == 3
        assert json.loads(json.dumps(answers)) == answers
        again = alignkit.load(run.path).predict([dict(question) for question in questions])
        assert again == answers, "a run that is loaded again answers as before"

    def test_two_trainings_draw_the_same(
        self, component: Task, rows: list[dict[str, Any]], base: Path, tmp_path: Path
    ) -> None:
        weights = []
        for number in (1, 2):
            run = carry_out(tmp_path / str(number), base, fresh(component), rows)
            weights.append(torch.cat([p.detach().flatten() for p in run.model.parameters()]))
        assert torch.equal(*weights)

    @staticmethod
    def _predicted(component: Task, model: Any, tokenizer: Any, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        batch = StepCollator(lambda part: component.collate(part, tokenizer), component.columns)(rows)
        inputs = {name: value for name, value in batch.items() if name != "columns"}
        with torch.inference_mode():
            return component.infer(model, tokenizer, batch, component.forward(model, inputs))


def _encoded(task: Task, examples: list[Example], tokenizer: Any) -> tuple[list[Example], list[dict[str, Any]]]:
    """Every window with the example that it is of."""
    pairs = [(example, row) for example in examples for row in windows(task.encode(example, tokenizer))]
    return [example for example, _ in pairs], [row for _, row in pairs]


def _summed(rows: list[dict[str, float]]) -> dict[str, float]:
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: sum(row.get(name, 0.0) for row in rows) for name in names}
