from collections import Counter
from pathlib import Path
from typing import Any

import numpy
import pytest
from alignkit_constraints import Counterfactual, Mentions
from alignkit_constraints.mentions import FRAMES, KIN, framed
from pydantic import ValidationError

from alignkit.compose import Composition
from alignkit.data import Example
from alignkit.errors import UsageError
from alignkit.plan import Setting
from alignkit.tasks.ner import Ner
from alignkit.tasks.relation_extraction import RelationExtraction
from alignkit.tasks.text_classification import TextClassification

TEXT = "Not bad {at all} $1."


def rows(number: int = 200, text: str = TEXT, **more: str) -> list[Example]:
    inputs = tuple(name for name in ("text", "text_pair") if name == "text" or name in more)
    return [Example({"text": text, "label": str(i % 2), **more}, inputs=inputs, row=i) for i in range(number)]


def copies(component: Mentions, examples: list[Example], seed: int = 0) -> list[Example]:
    return component.augment_examples(examples, numpy.random.default_rng(seed))


def refusals(task: Any, component: Mentions) -> list[str]:
    composition = Composition([component], task)
    return [str(mistake) for mistake in component.check(Setting(task, composition.components, composition.objective))]


@pytest.mark.parametrize("language", ["en", "zh"])
def test_a_copy_holds_the_whole_text_a_person_and_the_label(language: str) -> None:
    examples = rows()
    made = copies(Mentions(share=1.0, language=language), examples)
    assert len(made) == len(examples)
    for example, copy in zip(examples, made, strict=True):
        assert TEXT in copy["text"]
        assert len(copy["text"]) > len(TEXT)
        assert {name: copy[name] for name in copy if name != "text"} == {"label": example["label"]}
        assert (copy.inputs, copy.row) == (example.inputs, example.row)


@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize("persons", [["names"], ["kin"], ["names", "kin"]])
def test_counterfactual_finds_everybody_who_is_mentioned(language: str, persons: list[Any]) -> None:
    constraint = Counterfactual(language=language)
    for copy in copies(Mentions(share=1.0, persons=persons, language=language), rows(400, "好。")):
        (view,) = constraint.views(copy).values()
        assert view["text"] != copy["text"]
        assert "好。" in view["text"]


def test_in_small_letters_counterfactual_finds_them_where_it_is_told_so() -> None:
    made = copies(Mentions(share=1.0, cased=False), rows(400, "fine ."))
    assert all(copy["text"] == copy["text"].lower() for copy in made)
    assert all(Counterfactual(cased=False).views(copy) for copy in made)


def test_frames_begin_with_a_capital_and_leave_the_text_alone() -> None:
    assert framed("{person} said: {text}", "my aunt", "iPhone", cased=True) == "My aunt said: iPhone"
    assert framed("{text} (As {person} Said.)", "Ann", "iPhone", cased=True) == "iPhone (As Ann Said.)"
    assert framed("{text} (As {person} Said.)", "Ann", "iPhone", cased=False) == "iPhone (as ann said.)"
    assert framed("{person}: {text}", "Ann", "{person} {text}", cased=True) == "Ann: {person} {text}"


def test_share_is_the_share_of_examples_and_each_is_asked_alone() -> None:
    assert 60 <= len(copies(Mentions(share=0.4), rows(200))) <= 100
    assert all(len(copies(Mentions(share=0.01), rows(1), seed)) == 1 for seed in range(20))


def test_lists_are_drawn_equally_often_and_frames_too() -> None:
    made = Counter(copy["text"] for copy in copies(Mentions(share=1.0), rows(4000, "x")))
    kin = sum(n for text, n in made.items() if any(word in text.lower() for word in KIN["en"]))
    assert 1800 < kin < 2200
    for frame in FRAMES["en"]:
        begins, ends = (part.lower() for part in frame.replace("{text}", "x").split("{person}"))
        found = sum(n for t, n in made.items() if t.lower().startswith(begins) and t.lower().endswith(ends))
        assert 380 < found < 620, frame


def test_a_list_and_frames_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "people.tsv").write_text("Ada|Ada L.\tAlan\n", "utf-8")
    component = Mentions(persons=[tmp_path / "people.tsv"], frames=["so says {person}: {text}"], share=1.0)
    assert {copy["text"] for copy in copies(component, rows(50, "x"))} == {"So says Ada: x", "So says Alan: x"}


@pytest.mark.parametrize("frame", ["{text}", "{person}", "{person} {person} {text}", "{name}: {text}"])
def test_a_frame_without_person_or_text_is_refused(frame: str) -> None:
    with pytest.raises(ValidationError, match="are needed, each once"):
        Mentions(frames=[frame])


def test_of_a_pair_the_first_text_is_framed_and_what_is_no_text_gets_no_copy() -> None:
    (copy,) = copies(Mentions(), rows(1, "x", text_pair="y"))
    assert copy["text"] != "x"
    assert copy["text_pair"] == "y"
    words = Example({"tokens": ["a", "b"], "tags": ["O", "O"]}, inputs=("tokens",))
    chat = Example({"messages": [{"role": "user", "content": "Hello?"}]}, inputs=("messages",))
    assert copies(Mentions(share=1.0), [words, chat]) == []


def test_labels_that_are_not_of_a_whole_text_are_refused() -> None:
    assert refusals(TextClassification(), Mentions()) == []
    for task in (Ner(), RelationExtraction()):
        (found,) = refusals(task, Mentions())
        assert "whose labels are not of a whole text" in found
        assert "task text-classification or prompted-classification" in found


def test_a_list_that_is_not_there_is_a_mistake_of_the_recipe() -> None:
    (found,) = refusals(TextClassification(), Mentions(persons=["kin", Path("name.tsv")]))
    assert "no such list or file" in found
    with pytest.raises(UsageError, match="no such list or file"):
        copies(Mentions(persons=[Path("name.tsv")]), rows(3))
