"""Conformance of attacks: on every task that they serve the model stays as it was, and labels fit what they made."""

from __future__ import annotations

import contextlib
import copy
import functools
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from alignkit.catalogue import default_catalogue
from alignkit.components import Attack, Attempt, Task
from alignkit.data.collate import StepCollator
from alignkit.data.example import Example
from alignkit.data.features import windows
from alignkit.errors import UsageError
from alignkit.evaluation.compare import evaluate
from alignkit.evaluation.robustness import refusals
from alignkit.evaluation.victim import Victim
from alignkit.testing.component_cases import ComponentCases
from alignkit.testing.run_cases import base_model
from alignkit.testing.step_cases import perturbations
from alignkit.testing.training import random_state, same

STEPS, LEARNING_RATE = 60, 5e-3
"""Of the training after which tiny models are right on most samples."""


@dataclass(frozen=True)
class Subject:
    """A tiny model that has learnt a task's samples."""

    task: Task
    model: Any
    tokenizer: Any
    examples: tuple[Example, ...]

    def victim(self) -> Victim:
        return Victim(self.task, self.model, self.tokenizer, batch_size=4, seed=3)


@dataclass(frozen=True)
class Tried:
    """What an attack made of a subject's examples."""

    examples: list[Example]
    made: dict[str, list[Attempt]]
    perturbed: list[tuple[Tensor, Tensor]]
    """Of each call of the embeddings: ids [B, T], and what was added to the output [B, T, D]."""
    changed: list[str]
    """What of the model and of the global random state was another thing afterwards."""


class AttackCases(ComponentCases):
    """Of an attack: an attempt for each example, whoever else is attacked; labels that fit; a model that is as before.

    It is tried on each of the host's tasks that it does not refuse, with tiny models that have learnt the samples.
    """

    kind: ClassVar[str] = "attack"
    tasks: ClassVar[tuple[str, ...]] = ()
    """Names of the tasks that it is tried on; empty: all of the host's."""

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        if "asked" in metafunc.fixturenames:
            asked = tasks_of(self.tasks)
            metafunc.parametrize("asked", asked, ids=["-".join(filter(None, names)) for names in asked])

    @pytest.fixture
    def subject(self, component: Attack, asked: tuple[str, str]) -> Subject:
        """A model that the attack may be put to."""
        if list(refusals([component], random_subject(*asked).task)):
            pytest.skip("it refuses the task")
        return trained_subject(*asked)

    def test_it_serves_a_task_and_refuses_the_others_before_it_begins(self, component: Attack) -> None:
        component.name = "attack-under-test"
        subjects = [random_subject(*asked) for asked in tasks_of(self.tasks)]
        refused = [(s, mistakes) for s in subjects if (mistakes := list(refusals([component], s.task)))]
        assert len(refused) < len(subjects), "it refuses every task"
        for subject, mistakes in refused:
            assert all("attack-under-test" in mistake.where and mistake.found for mistake in mistakes)
            with pytest.raises(UsageError, match="attack-under-test"):
                evaluate(subject.task, subject.model, subject.tokenizer, {"test": []}, attacks=[component])

    def test_each_example_gets_an_attempt(self, component: Attack, subject: Subject) -> None:
        tried = self._tried(component, subject)
        assert tried.made
        for attempts in tried.made.values():
            assert len(attempts) == len(tried.examples)
            for example, attempt in zip(tried.examples, attempts, strict=True):
                assert attempt.queries > 0, "count what the model was asked"
                assert all(isinstance(value, float | int) for value in attempt.measures.values())
                if component.needs_score and component.measures_task:
                    subject.task.statistics(attempt.example or example, attempt.prediction)

    def test_no_examples_have_no_attempts(self, component: Attack, subject: Subject) -> None:
        with subject.victim() as victim:
            made = component.attempt(victim, [])
        assert made == {setting: [] for setting in self._tried(component, subject).made}

    def test_model_and_random_state_are_as_before(self, component: Attack, subject: Subject) -> None:
        assert not self._tried(component, subject).changed

    def test_the_model_is_as_before_when_something_breaks(self, component: Attack, subject: Subject) -> None:
        examples = self._tried(component, subject).examples
        for calls in (0, 2):
            expected = contextlib.suppress(Broken)
            with (
                watched(subject.model) as changed,
                expected,
                subject.victim() as victim,
                breaking(subject.model, calls),
            ):
                component.attempt(victim, examples)
            assert not changed

    def test_who_else_is_attacked_changes_nothing(self, component: Attack, subject: Subject) -> None:
        """Alone, and in another order."""
        tried = self._tried(component, subject)
        places = [i for i in reversed(range(len(tried.examples))) if i % 2 == 0]
        with subject.victim() as victim:
            made = component.attempt(victim, [tried.examples[i] for i in places])
        for setting, attempts in tried.made.items():
            for place, other in zip(places, made[setting], strict=True):
                one = attempts[place]
                assert other.example == one.example or _fields(other) == _fields(one)
                assert (other.queries, other.broken) == (one.queries, one.broken)
                assert other.measures == pytest.approx(one.measures, rel=1e-3, abs=1e-4)
                assert bool(other.prediction) == bool(one.prediction)
                if one.prediction:
                    assert subject.task.gap(one.prediction, other.prediction) == pytest.approx(0.0, abs=1e-3)

    def test_labels_fit_what_it_made(self, component: Attack, subject: Subject) -> None:
        tried = self._tried(component, subject)
        for attempts in tried.made.values():
            for example, attempt in zip(tried.examples, attempts, strict=True):
                if attempt.example is not None:
                    _assert_aligned(subject, example, attempt.example)

    def test_special_tokens_and_padding_are_not_perturbed(self, component: Attack, subject: Subject) -> None:
        special = torch.tensor(subject.tokenizer.all_special_ids)
        for ids, delta in self._tried(component, subject).perturbed:
            assert delta.isfinite().all()
            assert not delta.masked_select(torch.isin(ids, special)[..., None]).any()

    def _tried(self, component: Attack, subject: Subject) -> Tried:
        """What the attack makes of all examples that it would be put to, carried out once."""
        key = (type(component), repr(component.fields()), id(subject))
        if key not in _TRIED:
            _TRIED[key] = _attempted(component, subject)
        return _TRIED[key]


_TRIED: dict[Any, Tried] = {}


def _attempted(component: Attack, subject: Subject) -> Tried:
    victim, examples = subject.victim(), list(subject.examples)
    if component.needs_score:
        scores = victim.scores(examples, victim.predict(examples))
        examples = [example for example, score in zip(examples, scores, strict=True) if score > 0]
        assert examples, "nothing to attack: the tiny model has learnt none of the task's samples"
    ids: list[Tensor] = []
    embedding = victim._context.embedding
    with watched(subject.model) as changed:
        noted = embedding.register_forward_pre_hook(lambda _, inputs: ids.append(inputs[0].detach().clone()))
        with perturbations(embedding) as added, victim:
            made = dict(component.attempt(victim, examples))
        noted.remove()
    flat = [(i.view(-1, i.shape[-1]), d.view(-1, *d.shape[-2:])) for i, d in zip(ids, added, strict=True)]
    return Tried(examples, made, flat, changed)


# -- subjects ----------------------------------------------------------------------------------------------------


def tasks_of(names: tuple[str, ...]) -> list[tuple[str, str]]:
    """The host's tasks, with each kind of model that they take."""
    catalogue = default_catalogue()
    found = []
    for name, entry in catalogue.entries()["task"].items():
        task: Any = catalogue.load_class(entry)
        if name in names or (not names and entry.distribution == "alignkit"):
            found += [(name, auto_class) for auto_class in task.auto_classes or (task.auto_class,)]
    return found


@functools.cache
def random_subject(name: str, auto_class: str) -> Subject:
    """A tiny random model for a task, and the task's samples."""
    from alignkit import models

    catalogue = default_catalogue()
    cls: Any = catalogue.load_class(catalogue.find("task", name))
    task = cls()
    task.name = name
    examples = [task.parse(dict(row), f"sample.jsonl:{i + 1}") for i, row in enumerate(task.samples)]
    task.prepare({"train": examples})
    with tempfile.TemporaryDirectory() as folder, torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model, tokenizer = models.load(base_model(Path(folder) / "base", auto_class), task)
    placed = tuple(replace(example, split="test", row=i) for i, example in enumerate(examples))
    return Subject(task, model.train(), tokenizer, placed)


@functools.cache
def trained_subject(name: str, auto_class: str) -> Subject:
    """The same, after it has learnt them."""
    subject = random_subject(name, auto_class)
    task, tokenizer, model = subject.task, subject.tokenizer, copy.deepcopy(subject.model)
    rows = [features for example in subject.examples for features in windows(task.encode(example, tokenizer))]
    batch = StepCollator(lambda part: task.collate(part, tokenizer), task.columns)(rows)
    batch.pop("columns", None)
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)
    for _ in range(STEPS):
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return replace(subject, model=model)


# -- what is looked at -------------------------------------------------------------------------------------------


class Broken(Exception):
    """What is raised in the middle of an attack."""


@contextlib.contextmanager
def breaking(model: nn.Module, calls: int) -> Iterator[None]:
    """The model breaks after so many forward passes."""
    left = [calls]

    def count(*_: Any) -> None:
        if not left[0]:
            raise Broken
        left[0] -= 1

    handle = model.register_forward_pre_hook(count)
    try:
        yield
    finally:
        handle.remove()


@contextlib.contextmanager
def watched(model: nn.Module) -> Iterator[list[str]]:
    """What of the model and of the global random state is another thing at the end than at the beginning."""
    before, changed = _state(model), list[str]()
    yield changed
    changed += [name for name, value in _state(model).items() if not same(value, before[name])]


def _state(model: nn.Module) -> dict[str, Any]:
    return {
        "weights": {name: value.detach().clone() for name, value in model.state_dict().items()},
        "modes": [module.training for module in model.modules()],
        "requires_grad": [parameter.requires_grad for parameter in model.parameters()],
        "gradients": [parameter.grad is None for parameter in model.parameters()],
        "hooks": [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()],
        "random state": random_state(),
    }


def _fields(attempt: Attempt) -> Any:
    return None if attempt.example is None else attempt.example.fields


def _assert_aligned(subject: Subject, before: Example, after: Example) -> None:
    """The same kind of example, its labels as before; of word lists that were shortened tags were left out alike."""
    assert (after.inputs, after.targets, after.split, after.row) == (
        before.inputs,
        before.targets,
        before.split,
        before.row,
    )
    assert set(after) == set(before)
    lists = {name: len(before[name]) for name in before.inputs if _is_words(before[name])}
    for name, value in before.items():
        assert type(after[name]) is type(value)
        if isinstance(value, list) and len(value) in lists.values():
            of = next(other for other, length in lists.items() if length == len(value))
            assert len(after[name]) == len(after[of]), f"{name} and {of} were of one length"
        elif name not in before.inputs:
            assert after[name] == value, f"the field {name!r} is no input, and has changed"
    for name, spans in subject.task.fixed_spans(before).items():
        for start, end in spans:
            assert _slice(before[name], start, end) in after[name], "answers stay as they are"
    kept, there = (sum(map(len, subject.task.kept_spans(e).values())) for e in (before, after))
    assert kept == there or subject.task.fixed_spans(before), "what the labels are about stays"
    encoded = [windows(subject.task.encode(example, subject.tokenizer)) for example in (before, after)]
    assert bool(encoded[0]) == bool(encoded[1])


def _slice(value: Any, start: int, end: int) -> Any:
    return value[start:end] if isinstance(value, str) else value[start]


def _is_words(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)
