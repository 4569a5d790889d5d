"""Questions with several answers as rows of data: their choices, and which of them a label means."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from alignkit.data.columns import unmapped
from alignkit.data.example import Example
from alignkit.errors import Mistake

CHOICE = re.compile(r"choice_(\d+)")
"""The columns of files with a column for each choice."""
_LETTERED = re.compile(r"([A-Z])[.)] +(\S.*)")


def choices_of(example: Example) -> list[str]:
    return [example[name] for name in example.inputs[1:]]


def split_lettered(question: str) -> tuple[str, list[str] | None]:
    """A question and the lettered choices at its end, `A` to the last, a line each; None where there are none."""
    lines = question.rstrip().split("\n")
    found: list[str] = []
    while lines and (match := _LETTERED.fullmatch(lines[-1].strip())):
        found.insert(0, match[2])
        letter = match[1]
        lines.pop()
        if letter == "A":
            break
    whole = bool(found) and letter == "A"
    return ("\n".join(lines).strip(), found) if whole else (question, None)


def number_of(label: Any, choices: list[str]) -> int | None:
    """Which choice a label means: text first, as `A` may be a choice's own, then number, then letter."""
    if isinstance(label, str) and choices.count(label) == 1:
        return choices.index(label)
    text = str(int(label)) if isinstance(label, float) and label.is_integer() else str(label).strip()
    if isinstance(label, bool) or not isinstance(label, str | int | float):
        return None
    if text.isascii() and text.isdecimal():
        number = int(text)
    else:
        number = ord(text) - ord("A") if re.fullmatch("[A-Z]", text) else -1
    return number if 0 <= number < len(choices) else None


def letter(number: int) -> str:
    return chr(ord("A") + number)


def wrong_choices(
    name: str, question: Any, choices: Any, where: str, fields: Mapping[str, Any], lettered: bool
) -> Iterator[Mistake]:
    if question is None:
        yield Mistake(where, f"no {name!r}", mend=unmapped(name, fields))
    elif not isinstance(question, str) or not question.strip():
        yield Mistake(where, f"{name!r} is {question!r}", "text")
    if not choices:
        expected = "a last line for each, `A. …`, `B. …`" if lettered else "`choices`, or `choice_0`, `choice_1` …"
        mend = unmapped("choices", fields) if not lettered else ""
        yield Mistake(where, "no choices", expected, mend)
    elif not isinstance(choices, list) or len(choices) < 2 or len(choices) > 26:
        yield Mistake(where, f"'choices' is {choices!r}"[:120], "a list of 2 to 26 strings")
    else:
        wrong = [choice for choice in choices if not isinstance(choice, str) or not choice.strip()]
        yield from (Mistake(where, f"the choice {choice!r}", "text") for choice in wrong)
