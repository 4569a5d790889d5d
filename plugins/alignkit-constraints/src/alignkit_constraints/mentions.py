"""Copies of texts that mention somebody: what a constraint on persons needs where few texts have one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from numpy.random import Generator
from pydantic import AfterValidator, Field

from alignkit.components import Augmenter
from alignkit.data import Example
from alignkit.errors import Mistake, UsageError
from alignkit_constraints.swap_lists import read_list

if TYPE_CHECKING:
    from alignkit.plan import Setting

TASKS = ("text-classification", "prompted-classification")
"""Where a label is a whole text's, and stays when somebody is mentioned beside it."""

FRAMES = {
    "en": (
        "{person} said: {text}",
        '"{text}", {person} said.',
        "according to {person}: {text}",
        "{person} thinks: {text}",
        "{text} ({person} told us.)",
        "I asked {person}, who wrote: {text}",
        "I went there with {person}. {text}",
        "{text} I told {person} about it.",
    ),
    "zh": (
        "{person}说：{text}",
        "“{text}”，{person}说。",
        "据{person}说，{text}",
        "{person}认为，{text}",
        "{text}（{person}告诉我们。）",
        "我问了{person}，回答是：{text}",
        "我和{person}一起去的。{text}",
        "{text}我跟{person}说过。",
    ),
}
KIN = {
    "en": (
        *("my father", "my mother", "my brother", "my sister", "my son", "my daughter", "my husband", "my wife"),
        *("my uncle", "my aunt", "my grandfather", "my grandmother", "my nephew", "my niece", "my boyfriend"),
        *("my girlfriend", "this man", "this woman", "the boy", "the girl", "the waiter", "the waitress"),
    ),
    "zh": (
        *("我爸爸", "我妈妈", "我哥哥", "我姐姐", "我弟弟", "我妹妹", "我儿子", "我女儿", "我丈夫", "我妻子"),
        *("我爷爷", "我奶奶", "这个男人", "这个女人", "这位先生", "这位女士", "我男朋友", "我女朋友"),
    ),
}
"""Persons without a name, each with its counterpart."""


def framed(frame: str, person: str, text: str, cased: bool) -> str:
    """A text in a frame, which begins with a capital, or is in small letters altogether; the text stays as it is.

    Example:
        >>> framed("according to {person}: {text}", "my aunt", "Not bad.", cased=True)
        'According to my aunt: Not bad.'
    """
    around = frame.replace("{person}", person)
    around = around[0].upper() + around[1:] if cased else around.lower()
    return around.replace("{text}", text, 1)


def _whole(frames: tuple[str, ...] | None) -> tuple[str, ...] | None:
    for frame in frames or ():
        if frame.count("{person}") != 1 or frame.count("{text}") != 1:
            raise ValueError(f"{frame!r}: `{{person}}` and `{{text}}` are needed, each once")
    return frames


class Mentions(Augmenter):
    """Adds copies of training examples in which somebody is mentioned: who said so, who was there.

    For `counterfactual`, which learns from examples alone that hold a word of its lists: a text is set in a frame,
    "according to NAME: TEXT", with the text's own label. Person and frame are drawn anew for each copy. No paper's
    method; what it brings is measured in `benchmarks/bias.py`. By itself it need not narrow any gap.

    Where an example has several texts, the first is set in the frame; one without a text (a word list, messages) gets
    no copy. Frames are meant for labels that stay as they are when a person is named beside the text: sentiment,
    topic. Read a few copies before you trust it with another label.

    Asked about a single example, as in `evaluation: {under: [mentions]}`, it always answers, whatever the `share`.

    Raises:
        UsageError: a list that does not exist or cannot be read.

    Cost: none per step; the training split grows by `share`.

    Relations: `counterfactual` needs no labels of the counterparts and swaps what this puts in; lists of names and
    `cased` should be the same in both. `typos` hardens against slips of the keyboard.

    Example:
        >>> import numpy
        >>> row = Example({"text": "Not bad.", "label": "good"}, inputs=("text",))
        >>> made = Mentions(frames=["{person} said: {text}"], persons=["kin"])
        >>> made.augment_examples([row], numpy.random.default_rng(0))[0]["text"]
        'The boy said: Not bad.'
    """

    share: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Share of the training examples that get a copy, drawn one by one."""
    persons: list[Literal["names", "kin"] | Path] = Field(default=["names", "kin"], min_length=1)
    """Who is mentioned: `names`, those of `counterfactual`'s list; `kin`: "my aunt", "this man" …; or paths of swap
    lists, of which each word's first spelling is taken. Each of these is drawn equally often, then a person of it."""
    frames: Annotated[tuple[str, ...] | None, Field(min_length=1), AfterValidator(_whole)] = None
    """Frames of your own, each with `{person}` and `{text}`; None: eight of the language. A small letter at the
    beginning becomes a capital where the texts are `cased`."""
    language: Literal["en", "zh"] = "en"
    """Of the texts: which frames and lists are meant."""
    cased: bool = True
    """False, for texts without capitals: frames and persons are in small letters, too."""

    @cached_property
    def _persons(self) -> list[Sequence[str]]:
        return [self._read(name) for name in self.persons]

    def _read(self, name: str | Path) -> Sequence[str]:
        if name == "kin":
            return KIN[self.language]
        parts, mistakes = read_list(str(name), self.language)
        if mistakes:
            raise UsageError(*mistakes)
        return [cell[0] for part in parts for line in part.lines for cell in line]

    def check(self, setting: Setting) -> Iterable[Mistake]:
        """Labels are of whole texts, and the lists can be read."""
        name = setting.task.name
        if name not in TASKS:
            found = f"task {name}, whose labels are not of a whole text, or may change with who is mentioned"
            yield Mistake("augmenter mentions", found, f"task {' or '.join(TASKS)}", "take it out")
        for listed in self.persons:
            if listed != "kin":
                yield from read_list(str(listed), self.language)[1]

    def augment_examples(self, examples: list[Example], generator: Generator) -> list[Example]:
        frames = self.frames or FRAMES[self.language]
        made = []
        for example in examples:
            if len(examples) > 1 and generator.random() >= self.share:
                continue
            persons = self._persons[int(generator.integers(len(self._persons)))]
            person, frame = (words[int(generator.integers(len(words)))] for words in (persons, frames))
            if field := next((name for name in example.inputs if isinstance(example[name], str)), None):
                made.append(example.replace(**{field: framed(frame, person, example[field], self.cased)}))
        return made
