"""The rows of the task `preference`, as data sets write them: texts, lists of messages, whole conversations."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from alignkit.data.columns import unmapped
from alignkit.errors import Mistake
from alignkit.tasks.chat import wrong_messages, wrong_text

ANSWERS = ("chosen", "rejected")


def said(answer: str | list[dict[str, Any]]) -> str:
    """An answer's text; of messages the last one's."""
    return str(answer[-1]["content"]) if isinstance(answer, list) else answer


def asked(fields: Mapping[str, Any]) -> str | list[dict[str, Any]]:
    """What both answers of a row without mistakes answer: a text, or messages."""
    found: str | list[dict[str, Any]] = fields["chosen"][:-1] if _whole(fields) else fields["prompt"]
    return found


def wrong_pair(fields: Mapping[str, Any], where: str) -> list[Mistake]:
    """What is wrong with a row."""
    mistakes = [m for name in ANSWERS for m in _wrong_answer(fields, name, where)]
    if not _whole(fields):
        talk = isinstance(fields["prompt"], list)
        mistakes += _wrong_prompt(fields["prompt"], where) if talk else wrong_text(fields, "prompt", where)
    elif not mistakes:
        mistakes += _wrong_conversations(fields, where)
    system = fields.get("system")
    if system is not None and not isinstance(system, str):
        mistakes.append(Mistake(where, f"'system' is {system!r}", "a string"))
    if mistakes:
        return mistakes
    if said(fields["chosen"]) == said(fields["rejected"]):
        mistakes.append(Mistake(where, "'chosen' and 'rejected' are the same", "two answers"))
    messages = asked(fields)
    if system and isinstance(messages, list) and messages[0]["role"] == "system":
        mistakes.append(Mistake(where, "'system' beside messages that begin with a system message", "one of the two"))
    return mistakes


def _whole(fields: Mapping[str, Any]) -> bool:
    """The answers are (meant as) whole conversations."""
    given = (fields.get(name) for name in ANSWERS)
    return "prompt" not in fields or any(isinstance(answer, list) and len(answer) > 1 for answer in given)


def _wrong_answer(fields: Mapping[str, Any], name: str, where: str) -> Iterator[Mistake]:
    answer = fields.get(name)
    if name not in fields:
        yield Mistake(where, f"no {name!r}", "`prompt`, `chosen` and `rejected`", unmapped(name, fields))
    elif not isinstance(answer, list):
        yield from wrong_text(fields, name, where)
    elif not answer or not isinstance(answer[-1], dict) or answer[-1].get("role") != "assistant":
        yield Mistake(where, f"{name!r} does not end with the assistant's message", "an answer")
    elif not isinstance(answer[-1].get("content"), str) or not answer[-1]["content"].strip():
        yield Mistake(where, f"{name!r} has the content {answer[-1].get('content')!r}", "text")


def _wrong_prompt(messages: list[Any], where: str) -> Iterator[Mistake]:
    """Of messages that are to be answered."""
    if not messages:
        yield Mistake(where, "'prompt' is []", "a text, or messages that end with the user's")
        return
    wrong = list(wrong_messages(messages, where, asks=True))
    yield from wrong
    if wrong:
        return
    if (role := messages[-1]["role"]) == "assistant":
        mend = "move what both answers begin with to the beginning of each"
        yield Mistake(where, "what is asked ends with the assistant's message", "the user's message last", mend)
    elif role == "system":
        yield Mistake(where, "what is asked ends with the system's message", "the user's message last")


def _wrong_conversations(fields: Mapping[str, Any], where: str) -> Iterator[Mistake]:
    """Two conversations that differ in their last message; a prompt beside them repeats the user's first one."""
    sides = [fields[name] for name in ANSWERS]
    whole = [isinstance(side, list) and len(side) > 1 for side in sides]
    if not any(whole):
        yield Mistake(where, "no 'prompt'", "`prompt`, or conversations as `chosen` and `rejected`")
    elif not all(whole):
        found = "one answer is a whole conversation, the other is not"
        yield Mistake(where, found, "two conversations, or a `prompt` with two answers")
    elif wrong := [m for side in sides for m in wrong_messages(side, where)]:
        yield from wrong[:1]
    elif sides[0][:-1] != sides[1][:-1]:
        yield Mistake(where, "the conversations differ before their last message", "the same up to there")
    elif "prompt" in fields and not _repeats(fields["prompt"], sides[0]):
        found = "conversations as answers beside a 'prompt' that is not the user's first message of them"
        yield Mistake(where, found, "the assistant's one message as each answer", "or leave `prompt` out")
    else:
        yield from _wrong_prompt(sides[0][:-1], where)


def _repeats(prompt: Any, conversation: list[dict[str, Any]]) -> bool:
    first = next((m["content"] for m in conversation if m["role"] == "user"), "")
    return isinstance(prompt, str) and prompt.strip() == first.strip()
