"""Every mistake at once: independent questions, and what hangs on a mistake."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from alignkit.components import Component, Constraint, Term
from alignkit.compose import Composition
from alignkit.errors import Mistake, UsageError
from alignkit.findings import UNSETTLED, Findings, Unsettled
from alignkit.plan import Setting, make_plan
from alignkit.tasks.ner import Ner

ONE, TWO = Mistake("one", "wrong"), Mistake("two", "wrong")


def refuse() -> int:
    raise UsageError(ONE, TWO)


def test_what_several_ask_for_is_made_once_and_its_mistakes_are_told_once() -> None:
    findings, asked = Findings(), []

    def make() -> int:
        asked.append(1)
        return refuse()

    value = findings.once(make)
    for _ in range(3):
        findings.hear(lambda: [Mistake("three", f"{value()}")])
        assert findings.ask(value) is UNSETTLED
    assert (asked, findings.mistakes) == ([1], [ONE, TWO])


def test_a_question_is_heard_up_to_where_it_hangs_on_another() -> None:
    findings = Findings([TWO])
    value = findings.once(refuse)

    def question() -> Iterator[Mistake]:
        yield Mistake("three", "wrong")
        yield Mistake("four", str(value()))

    findings.hear(question)
    assert [mistake.where for mistake in findings.mistakes] == ["two", "three", "one", "two"]
    with pytest.raises(UsageError) as caught:
        findings.refuse()
    assert [mistake.where for mistake in caught.value.mistakes] == ["two", "three", "one"]


def test_without_mistakes_nothing_is_refused() -> None:
    findings = Findings()
    assert findings.once(lambda: 3)() == 3
    findings.refuse()


class Picky(Constraint):
    """Objects to everything that it looks at."""

    def check(self, setting: Setting) -> Iterator[Mistake]:
        yield Mistake("picky", f"precision {setting.precision}")
        yield Mistake("picky", f"peft {setting.peft}")
        yield Mistake("picky", f"batches of {setting.batch_size}")

    def penalty(self, step: Any, outputs: Any) -> Term:
        raise NotImplementedError


def test_a_field_of_the_setting_with_a_mistake_ends_the_check_that_asks_for_it() -> None:
    components: list[Component] = [Picky()]
    composition = Composition(components, Ner())
    setting = Setting(composition.task, composition.components, composition.objective, peft=UNSETTLED)
    with pytest.raises(Unsettled):
        _ = setting.peft
    with pytest.raises(UsageError) as caught:
        make_plan(composition, setting)
    assert [mistake.found for mistake in caught.value.mistakes] == ["precision fp32"]
    known = Setting(composition.task, composition.components, composition.objective)
    with pytest.raises(UsageError) as caught:
        make_plan(composition, replace(known, batch_size=4))
    assert [m.found for m in caught.value.mistakes] == ["precision fp32", "peft None", "batches of 4"]
