"""Length bounds in words or characters."""

from __future__ import annotations

import re
from typing import Literal

from pydantic import NonNegativeInt

from alignkit.components import KEEP, Filter, Verdict
from alignkit.data import Example
from alignkit.data.scripts import CJK
from alignkit_filters.texts import Of, Text, texts

_WORD = re.compile(rf"[{CJK}]|[^\W_{CJK}]+(?:['’][^\W_{CJK}]+)*")


def count_words(text: Text) -> int:
    """Words of a text: runs of letters and digits, each Chinese or Japanese character by itself.

    A word list counts as it is.

    Example:
        >>> count_words("我们 don't know."), count_words(["New", "York", "."])
        (4, 3)
    """
    return len(text) if isinstance(text, list) else len(_WORD.findall(text))


def count_characters(text: Text) -> int:
    """Characters (code points) of a text; the words of a word list are joined by one space each."""
    return len(" ".join(text)) if isinstance(text, list) else len(text)


class Length(Filter):
    """Drops examples shorter than `minimum` or longer than `maximum`.

    The verdict's rule is the bound that was broken, its value the length, its threshold the bound. Lengths of several
    text fields add up.

    Errors: a `minimum` above `maximum` is refused when the recipe is read.

    Cost: one regular expression over the text; no forward passes.

    Relations: bounds are in words because tokens depend on the model; what exceeds the model's context is cut by the
    task. See `lexicon` for what a text says and `duplicates` for what was said before.

    Example:
        >>> short = Example({"text": "Too short."}, inputs=("text",))
        >>> verdict = Length(minimum=3).filter_examples([short])[0]
        >>> verdict.action, verdict.rule, verdict.value, verdict.threshold
        ('drop', 'minimum', 2, 3)
    """

    minimum: NonNegativeInt = 1
    """Fewest words (or characters) that stay; the default drops empty examples."""
    maximum: NonNegativeInt | None = None
    """Most words (or characters) that stay; no bound where it is missing."""
    unit: Literal["words", "characters"] = "words"
    """What is counted. Each Chinese or Japanese character is a word; a word list is counted as it is."""
    of: Of = "all"
    """The text that counts: `inputs`, or `all`: completions and assistant turns as well."""

    def __post_init__(self) -> None:
        if self.maximum is not None and self.minimum > self.maximum:
            raise ValueError(f"minimum ({self.minimum}) is above maximum ({self.maximum}): no example could stay")

    def filter_examples(self, examples: list[Example]) -> list[Verdict]:
        return [self._verdict(example) for example in examples]

    def _verdict(self, example: Example) -> Verdict:
        count = count_words if self.unit == "words" else count_characters
        length = sum(map(count, texts(example, self.of)))
        if length < self.minimum:
            return Verdict("drop", rule="minimum", value=length, threshold=self.minimum)
        if self.maximum is not None and length > self.maximum:
            return Verdict("drop", rule="maximum", value=length, threshold=self.maximum)
        return KEEP
