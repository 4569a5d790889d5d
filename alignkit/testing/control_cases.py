"""Conformance of controls: whatever generates can be under them, and only what they do is another thing then."""

from __future__ import annotations

import contextlib
import copy
import json
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from alignkit.aligned import Aligned
from alignkit.catalogue import default_catalogue
from alignkit.checkpoints import load_state
from alignkit.components import Control
from alignkit.errors import UsageError
from alignkit.generation import Controlled, refusals
from alignkit.testing.attack_cases import Broken, Subject, breaking, random_subject, tasks_of, watched
from alignkit.testing.component_cases import ComponentCases
from alignkit.testing.training import fresh

LENGTH = 6
"""Tokens of an answer."""
RECORD = {"control", "rule", "value", "threshold", "changed"}


class ControlCases(ComponentCases):
    """Of a control: an answer per example, whoever else is asked; a record of what it did; a model that is as before.

    It is tried on each task of the host's that generates, with tiny random models.
    """

    kind: ClassVar[str] = "control"

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        if "asked" in metafunc.fixturenames:
            asked = generating_tasks()
            metafunc.parametrize("asked", asked, ids=["-".join(names) for names in asked])

    def for_model(self, component: Any, auto_class: str, folder: Path) -> Control:
        """The component as it goes with a tiny model of this kind; override it where its fields name other models.

        Args:
            folder: an empty one, to save such models to.
        """
        made: Control = fresh(component)
        return made

    @pytest.fixture
    def control(self, component: Control, asked: tuple[str, str], tmp_path: Path) -> Control:
        made = self.for_model(component, asked[1], tmp_path)
        made.name = "control-under-test"
        return made

    @pytest.fixture
    def subject(self, asked: tuple[str, str], control: Control) -> Subject:
        subject = random_subject(*asked)
        if list(refusals([control], subject.task)):
            pytest.skip("it refuses the task")
        return subject

    def test_it_refuses_tasks_that_generate_nothing_and_serves_another(
        self, component: Control, tmp_path: Path
    ) -> None:
        served = 0
        for number, (name, auto_class) in enumerate(generating_tasks()):
            control = self.for_model(component, auto_class, tmp_path / str(number))
            served += not list(refusals([control], random_subject(name, auto_class).task))
        assert served, "it refuses every task that generates"
        tagger = random_subject("ner", "AutoModelForTokenClassification")
        component.name = "control-under-test"
        with pytest.raises(UsageError, match=r"control control-under-test: task ner generates no text.*take it out"):
            Controlled([component], tagger.task, tagger.model, tagger.tokenizer)

    def test_each_text_has_an_answer_and_a_record_of_what_was_done(self, control: Control, subject: Subject) -> None:
        audit: list[dict[str, Any]] = []
        answers = _answers(subject, [control], audit=audit)
        plain = _answers(subject, [])
        assert json.loads(json.dumps(answers, default=float)) == answers
        for row, (answer, other) in enumerate(zip(answers, plain, strict=True)):
            records = [line for line in audit if line["row"] == row]
            assert all(set(line) == RECORD | {"row", "text"} for line in records)
            assert all(line["control"] == "control-under-test" and line["rule"] for line in records)
            done = [{name: line[name] for name in RECORD} for line in records if line["changed"]]
            assert answer.get("controls", []) == done
            if not done:
                assert answer == other, "it changed an answer and did not say so"

    def test_who_else_is_asked_changes_nothing(self, control: Control, subject: Subject) -> None:
        together, alone = (_answers(subject, [control], batch_size=size) for size in (6, 1))
        backwards = _answers(subject, [control], turned=True)
        assert together == alone
        assert together == backwards[::-1]

    def test_beams_and_sampling_go_with_it(self, control: Control, subject: Subject) -> None:
        beams = [_answers(subject, [control], batch_size=size, num_beams=3) for size in (6, 1)]
        field = subject.task.generates
        assert [answer[field] for answer in beams[0]] == [answer[field] for answer in beams[1]]
        drawn = []
        for _ in range(2):
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                drawn.append(_answers(subject, [control], do_sample=True))
        assert drawn[0] == drawn[1]

    def test_model_and_random_state_are_as_before(self, control: Control, subject: Subject) -> None:
        with watched(subject.model) as changed:
            _answers(subject, [control])
        assert not changed

    def test_the_model_is_as_before_when_something_breaks(self, control: Control, subject: Subject) -> None:
        controlled = Controlled([control], subject.task, subject.model, subject.tokenizer)
        for calls in (0, 2):
            expected = contextlib.suppress(Broken)
            with watched(subject.model) as changed, expected, breaking(subject.model, calls):
                list(controlled.answers(_inputs(subject), max_new_tokens=LENGTH))
            assert not changed

    def test_what_it_prepared_is_kept(self, control: Control, subject: Subject, tmp_path: Path) -> None:
        first = Controlled([control], subject.task, subject.model, subject.tokenizer)
        first.save(tmp_path / "controls")
        again = fresh(control)
        again.name = control.name
        second = Controlled([again], subject.task, subject.model, subject.tokenizer, tmp_path / "controls")
        assert bool(control.state_dict()) == bool(load_state(tmp_path / "controls" / control.name))
        options: dict[str, Any] = {"max_new_tokens": LENGTH}
        said = [list(controlled.answers(_inputs(subject), **options)) for controlled in (first, second)]
        assert said[0] == said[1]


def generating_tasks() -> list[tuple[str, str]]:
    """The host's tasks that generate, with each kind of model that they take."""
    catalogue = default_catalogue()
    tasks: dict[str, Any] = {name: catalogue.load_class(e) for name, e in catalogue.entries()["task"].items()}
    return [asked for asked in tasks_of(()) if tasks[asked[0]].generates]


def _inputs(subject: Subject) -> list[Any]:
    return [subject.task.inputs(_question(example)) for example in subject.examples]


def _question(example: Any) -> dict[str, Any]:
    """A sample without its answer."""
    fields = {name: copy.copy(example[name]) for name in example.inputs}
    if fields.get("messages") and fields["messages"][-1]["role"] == "assistant":
        fields["messages"] = fields["messages"][:-1]
    return fields


def _answers(
    subject: Subject, controls: list[Control], turned: bool = False, audit: list[Any] | None = None, **options: Any
) -> list[dict[str, Any]]:
    aligned = Aligned(subject.task, subject.model, subject.tokenizer, controls=controls)
    texts = [_question(example) for example in subject.examples]
    options = {"max_new_tokens": LENGTH, **options}
    return aligned.predict(texts[::-1] if turned else texts, audit=audit, **options)
