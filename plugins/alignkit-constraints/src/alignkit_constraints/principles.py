"""Principles as a text, and examples with them at the beginning of what the model reads."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from alignkit.data import Example
from alignkit.errors import Mistake, nearest

SHIPPED = ("en", "zh")
"""Languages of the principles that come with this package."""
CONVERSATIONS = ("messages", "prompt")
"""Input fields that a model answers to: a text, or a list of messages."""


def read_principles(name: str) -> tuple[str, list[Mistake]]:
    """The text of shipped principles or of a user's file, and what is wrong with it.

    Args:
        name: `en`, `zh`, or the path of a UTF-8 text file; lines that begin with `#` are left out.
    """
    where = f"principles {name}"
    if name in SHIPPED:
        text = resources.files(__package__).joinpath("principles", f"{name}.txt").read_text(encoding="utf-8")
    else:
        path = Path(name)
        if not path.is_file():
            mend = nearest(path.name, SHIPPED)
            return "", [Mistake(where, "no such file", f"{' or '.join(SHIPPED)}, or a text file", mend)]
        try:
            text = path.read_text(encoding="utf-8-sig")
        except UnicodeDecodeError as error:
            return "", [Mistake(where, f"no UTF-8 at byte {error.start}", "UTF-8 text", "save the file as UTF-8")]
    kept = "\n".join(line for line in text.splitlines() if not line.startswith("#")).strip()
    return kept, [] if kept else [Mistake(where, "the file has no text", "one principle or more")]


def with_principles(example: Example, principles: str, default: str = "") -> Example | None:
    """The example with the principles before its system message, or as one; None where there is no place for one.

    Args:
        example: with an input `messages` or `prompt`, a text or a list of messages, and maybe a field `system`.
        principles: the text.
        default: the task's own system message, for rows that have none.
    """
    place = next((name for name in CONVERSATIONS if name in example.inputs and example[name]), None)
    if place is None:
        return None
    said, own = example[place], example.get("system") or default
    if isinstance(said, str):
        return example.replace(system=_joined(principles, own))
    own, rest = (said[0]["content"], said[1:]) if said[0]["role"] == "system" else (own, said)
    return example.replace(**{place: [{"role": "system", "content": _joined(principles, own)}, *rest]})


def _joined(principles: str, own: str) -> str:
    return f"{principles}\n\n{own}" if own else principles
