"""Conformance of what shapes the data: filters and augmenters."""

from __future__ import annotations

import copy
from typing import Any, ClassVar

import numpy
import pytest

from alignkit.components import Augmenter, Filter
from alignkit.data import prepare
from alignkit.data.example import Example
from alignkit.testing.component_cases import ComponentCases
from alignkit.testing.training import fresh, random_state

TEXTS = (
    "She wrote to Bob, who lives in Rome.",
    "Der Zug nach Zürich fährt um acht.",
    "他在北京的一家公司工作。",
    "a",
    "A film that is very good, and very long; and then some more of it.",
    "She wrote to Bob, who lives in Rome.",
    "visit https://example.org or mail ada@example.org 12345",
    "naïve café",
    "THE END!!!",
    "one two three four five six seven eight nine ten",
)


def sample_examples() -> list[Example]:
    """Texts, labelled words and conversations, with a duplicate, in three languages, long and short."""
    texts = [Example({"text": text, "label": str(i % 2)}, inputs=("text",)) for i, text in enumerate(TEXTS)]
    tagged = [
        Example({"tokens": words, "tags": ["O"] * (len(words) - 1) + ["B-PER"]}, inputs=("tokens",))
        for words in map(str.split, TEXTS)
    ]
    talk = [
        Example({"prompt": text, "completion": f"You said: {text}"}, inputs=("prompt",), targets=("completion",))
        for text in TEXTS
    ]
    messages = [
        [{"role": "user", "content": text}, {"role": "assistant", "content": f"You said: {text}"}] for text in TEXTS[:4]
    ]
    chats = [Example({"messages": conversation}, inputs=("messages",)) for conversation in messages]
    found = [*texts, *tagged, *talk, *chats]
    return [
        Example(e.fields, e.inputs, e.targets, source="sample.jsonl", row=i, line=i + 1) for i, e in enumerate(found)
    ]


class DataCases(ComponentCases):
    """What filters and augmenters have in common."""

    def examples(self) -> list[Example]:
        """The examples that the component is asked about; override it where it needs fields of its own."""
        return sample_examples()

    @pytest.fixture(autouse=True)
    def _random_state_stays(self) -> Any:
        before = random_state()
        yield
        assert before == random_state(), "take randomness from the generator that is handed in"


class FilterCases(DataCases):
    """Of a filter: one verdict per example, the same whatever the chunks, and nothing but verdicts."""

    kind: ClassVar[str] = "filter"

    def judged(self, component: Filter, chunk: int = prepare.CHUNK) -> tuple[list[Example], list[dict[str, Any]]]:
        """What a new filter of the same fields leaves of the examples, and the audit."""
        filters = [("filter", fresh(component).filter_examples)]
        return prepare.filter_examples(filters, self.examples(), chunk=chunk)

    def test_each_example_gets_a_verdict(self, component: Filter) -> None:
        examples = self.examples()
        verdicts = component.filter_examples(examples)
        assert len(verdicts) == len(examples)
        for verdict in verdicts:
            assert verdict.action in ("keep", "drop", "edit")
            assert verdict.action == "keep" or verdict.rule, "the audit names the rule of every drop and edit"
            assert (verdict.example is not None) == (verdict.action == "edit")

    def test_examples_stay_as_they_are(self, component: Filter) -> None:
        examples = self.examples()
        before = copy.deepcopy(examples)
        component.filter_examples(examples)
        assert examples == before

    def test_no_examples_are_no_verdicts(self, component: Filter) -> None:
        assert component.filter_examples([]) == []

    @pytest.mark.parametrize("chunk", [1, 3])
    def test_chunks_do_not_matter(self, component: Filter, chunk: int) -> None:
        whole, audit = self.judged(component)
        kept, lines = self.judged(component, chunk)
        assert kept == whole
        assert sorted(lines, key=_place) == sorted(audit, key=_place)

    def test_columns_that_it_writes_are_declared(self, component: Filter) -> None:
        before = {name for example in self.examples() for name in example}
        kept, _ = self.judged(component)
        assert {name for example in kept for name in example} - before <= {*component.writes}

    def test_it_is_deterministic(self, component: Filter) -> None:
        assert self.judged(component) == self.judged(component)

    def test_reset_forgets(self, component: Filter) -> None:
        first = component.filter_examples(self.examples())
        component.reset()
        assert component.filter_examples(self.examples()) == first


class AugmenterCases(DataCases):
    """Of an augmenter: new examples, the same for the same seed, with labels that still fit."""

    kind: ClassVar[str] = "augmenter"

    def made(self, component: Augmenter, seed: int = 0, chunk: int = prepare.CHUNK) -> list[Example]:
        """What a new augmenter of the same fields adds to the examples."""
        examples = self.examples()
        return prepare.augment([("augmenter", fresh(component).augment_examples)], examples, seed, chunk)[
            len(examples) :
        ]

    def test_it_makes_examples(self, component: Augmenter) -> None:
        made = self.made(component)
        assert made
        assert all(example.origin == "augmenter" for example in made)

    def test_the_same_seed_gives_the_same_answer(self, component: Augmenter) -> None:
        assert [e.fields for e in self.made(component)] == [e.fields for e in self.made(component)]

    def test_originals_stay_as_they_are(self, component: Augmenter) -> None:
        examples = self.examples()
        before = copy.deepcopy(examples)
        component.augment_examples(examples, numpy.random.default_rng(0))
        assert examples == before

    def test_no_examples_make_none(self, component: Augmenter) -> None:
        assert component.augment_examples([], numpy.random.default_rng(0)) == []

    def test_labels_still_fit(self, component: Augmenter) -> None:
        """One example at a time, as a split is evaluated under an augmenter."""
        generator = numpy.random.default_rng(0)
        for example in self.examples():
            for new in component.augment_examples([example], generator):
                assert (new.inputs, new.targets) == (example.inputs, example.targets)
                for name in set(example) - set(example.inputs):
                    assert new[name] == example[name], f"the field {name!r} is no input, and has changed"
                for name in example.inputs:
                    assert type(new[name]) is type(example[name])
                    if isinstance(example[name], list):
                        assert len(new[name]) == len(example[name]), "as many words as there are labels"


def _place(line: dict[str, Any]) -> tuple[Any, ...]:
    return line["row"], line["rule"]
