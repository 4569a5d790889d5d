"""Dialogue: conversations of several turns, cut between turns and never within one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Literal

from alignkit.components import Batch
from alignkit.data.columns import unmapped
from alignkit.data.example import Example
from alignkit.errors import Mistake, UsageError, nearest
from alignkit.tasks.chat import Chat, wrong_system
from alignkit.tasks.conversation import Message, tokenised
from alignkit.tasks.stock import IGNORED

Row = dict[str, Any]

OTHER = {"user": "assistant", "assistant": "user"}
SPEAKERS = (*OTHER, "system")


class Dialogue(Chat):
    """Teaches a causal language model to go on with a conversation.

    Reads rows `utterances`, a list of strings by two speakers who take turns, or `messages`, a list of
    `{"role", "content"}` in which user and assistant take turns, with `system` where there is one. The model is given
    the assistant's part, which is the second speaker's, and goes through its chat template as in the task `chat`.

    Where a conversation is longer than `maximum_length`, it becomes several stretches of whole turns, each with the
    system message and beginning with the user's turn; every learnt turn is in exactly one. Only where a single pair
    of turns is too long is it cut, as `chat` cuts. A first turn that nothing precedes is never learnt.

    Example:
        >>> Dialogue(learn="both", maximum_length=256)
    """

    learn: Literal["second", "last", "both"] = "second"
    """Whose turns are learnt: all of the second speaker's (the assistant's), the last turn alone whoever says it, or
    both speakers', each of whom the model plays once."""

    suffixes: ClassVar[tuple[str, ...]] = (".jsonl", ".json")
    windowed: ClassVar[bool] = True
    columns: ClassVar[tuple[str, ...]] = ("window",)
    hub_task: ClassVar[str] = "text-generation"
    samples: ClassVar[tuple[dict[str, Any], ...]] = (
        {"utterances": ["where is ada ?", "in rome .", "who was in rome ?", "bob ."]},
        {"utterances": ["was it good ?", "very good !"]},
        {"utterances": ["who is he ?", "he is bob .", "where lives bob ?", "in paris .", "where is paris ?"]},
        {"utterances": ["a film ?", "it was bad .", "was it ?", "it was ."]},
        {"messages": [{"role": "user", "content": "is she bob ?"}, {"role": "assistant", "content": "she is ada ."}]},
        {"utterances": ["they saw her .", "where ?", "in a film .", "what was the film ?"], "system": "be good"},
    )

    # -- data --------------------------------------------------------------------------------------------------

    def parse(self, fields: dict[str, Any], where: str) -> Example:
        """Utterances become `messages`, whose user's turns alone are what other components rewrite."""
        if "messages" in fields:
            mistakes = list(_wrong_messages(fields["messages"], where))
        elif "utterances" in fields:
            mistakes = list(_wrong_utterances(fields["utterances"], where))
        else:
            expected = "`utterances`, or `messages`"
            mistakes = [Mistake(where, "no 'utterances'", expected, unmapped("utterances", fields))]
        if mistakes := [*mistakes, *wrong_system(fields, where)]:
            raise UsageError(*mistakes)
        spoken = fields.get("utterances") or []
        last = "assistant" if self.learn == "last" or len(spoken) % 2 == 0 else "user"
        messages = fields.get("messages") or _alternating(spoken, last)
        kept = {name: value for name, value in fields.items() if name != "utterances"}
        inputs = ("system", "messages") if fields.get("system") else ("messages",)
        return Example({**kept, "messages": messages}, inputs=inputs)

    # -- the model's side --------------------------------------------------------------------------------------

    def encode(self, example: Example, tokenizer: Any) -> list[Row] | None:  # type: ignore[override]  # several windows
        messages = self.messages(example)
        sides = [messages, [{**m, "role": OTHER.get(m["role"], m["role"])} for m in messages]]
        used = sides if self.learn == "both" else sides[:1]
        rows = [row for side in used for row in self._windows(side, tokenizer, example.where)]
        return [{**row, "window": number} for number, row in enumerate(rows)] or None

    def _windows(self, messages: list[Message], tokenizer: Any, where: str) -> list[Row]:
        """Stretches of whole turns, first to last, that together learn every turn of the assistant's once."""
        head, turns = _apart(messages)
        answers = [i for i, turn in enumerate(turns) if turn["role"] == "assistant" and (i or head)]
        found: list[Row] = []
        while answers:
            end = answers[-1] + 1
            start, (ids, labels, completion) = self._fitting(head, turns[:end], tokenizer, where)
            kept = self._kept(ids, completion, tokenizer)
            if self.learn == "last":
                labels = [*[IGNORED] * (len(ids) - completion), *labels[len(ids) - completion :]]
            found.append({"input_ids": [ids[i] for i in kept], "labels": [labels[i] for i in kept]})
            answers = [] if self.learn == "last" else [i for i in answers if i < start]
        return found[::-1]

    def _fitting(
        self, head: list[Message], turns: list[Message], tokenizer: Any, where: str
    ) -> tuple[int, tuple[list[int], list[int], int]]:
        """The first turn from which on all fit into `maximum_length`, of the user's where any is left out; the ids."""
        begins = [0, *(i for i, turn in enumerate(turns) if i and turn["role"] == "user")]
        for start in begins:
            made = tokenised([*head, *turns[start:]], tokenizer, where)
            if len(made[0]) <= self.maximum_length:
                break
        return start, made

    def prompt_ids(self, example: Example, tokenizer: Any) -> list[int]:
        """What the model sees before it gives the last answer: as many whole turns as fit."""
        head, turns = _apart(self.messages(example))
        asked = turns[:-1] if turns[-1]["role"] == "assistant" else turns
        _, (ids, _, _) = self._fitting(head, asked, tokenizer, example.where)
        return [ids[i] for i in self._kept(ids, 0, tokenizer)]

    def decode(self, outputs: Any, batch: Batch) -> list[dict[str, Any]]:
        """As `chat`, with the number of the `window`."""
        rows = zip(super().decode(outputs, batch), batch["columns"]["window"].tolist(), strict=True)
        return [{**row, "window": number} for row, number in rows]

    def join(self, parts: list[dict[str, Any]]) -> dict[str, Any]:
        """The sums over an example's windows."""
        each = {part["window"]: part for part in parts}.values()
        return {name: sum(part[name] for part in each) for name in ("nll", "tokens")}

    # -- answers -----------------------------------------------------------------------------------------------

    def inputs(self, given: str | Mapping[str, Any]) -> Example:
        """What one speaker says, or `utterances` that the model goes on with, or `messages`."""
        fields: dict[str, Any] = {"utterances": [given]} if isinstance(given, str) else dict(given)
        if "messages" in fields:
            wrong = _wrong_messages(fields["messages"], "input", asks=True)
        else:
            wrong = _wrong_utterances(fields.get("utterances"), "input", asks=True)
        if mistakes := [*wrong, *wrong_system(fields, "input")]:
            raise UsageError(*mistakes)
        if "messages" not in fields:
            fields["messages"] = _alternating(fields["utterances"], "user")
        names = [name for name in ("system", "messages", "utterances") if fields.get(name)]
        return Example({name: fields[name] for name in names}, inputs=tuple(n for n in names if n != "utterances"))

    def answer(self, example: Example, prediction: dict[str, Any]) -> dict[str, Any]:
        """The `utterances` or `messages` so far, and the `completion`."""
        asked = "utterances" if "utterances" in example else "messages"
        system = {"system": example["system"]} if "system" in example else {}
        return {**system, asked: example[asked], **prediction}


def _alternating(utterances: list[str], last: str) -> list[Message]:
    """Two speakers' utterances as messages, the last of which has this role."""
    backwards = [last if i % 2 == 0 else OTHER[last] for i in range(len(utterances))]
    return [{"role": r, "content": text} for r, text in zip(reversed(backwards), utterances, strict=True)]


def _apart(messages: list[Message]) -> tuple[list[Message], list[Message]]:
    """The system message, if there is one, and the turns."""
    head = messages[:1] if messages[0]["role"] == "system" else []
    return head, messages[len(head) :]


# -- rows --------------------------------------------------------------------------------------------------------


def _wrong_utterances(utterances: Any, where: str, asks: bool = False) -> Iterator[Mistake]:
    if not isinstance(utterances, list):
        yield Mistake(where, f"'utterances' is {utterances!r}", "a list of strings")
        return
    for number, text in enumerate(utterances, 1):
        if not isinstance(text, str) or not text.strip():
            yield Mistake(f"{where} turn {number}", f"{text!r}", "text")
    yield from _too_few(len(utterances), where, asks)


def _wrong_messages(messages: Any, where: str, asks: bool = False) -> Iterator[Mistake]:
    if not isinstance(messages, list) or not all(isinstance(m, dict) for m in messages):
        yield Mistake(where, f"'messages' is {messages!r}", 'a list of {"role", "content"}')
        return
    before = None
    for number, message in enumerate(messages, 1):
        here, role, content = f"{where} message {number}", message.get("role"), message.get("content")
        if role not in SPEAKERS:
            yield Mistake(here, f"the role {role!r}", " or ".join(map(repr, SPEAKERS)), nearest(str(role), SPEAKERS))
        elif not isinstance(content, str) or not content.strip():
            yield Mistake(here, f"the content {content!r}", "text")
        if role == "system" and number > 1:
            yield Mistake(here, "a system message between turns", "one, before all turns")
        elif role == before and role in OTHER:
            yield Mistake(here, f"the {role} speaks twice in a row", "turns", "join the two, or drop the row")
        before = role
    yield from _too_few(sum(m.get("role") != "system" for m in messages), where, asks)
    if not asks and {m.get("role") for m in messages} <= {"system", "user"}:
        yield Mistake(where, "no turn of the assistant's", "one, which is what is learnt")


def _too_few(turns: int, where: str, asks: bool) -> Iterator[Mistake]:
    least = 1 if asks else 2
    if turns < least:
        yield Mistake(where, f"{turns} turn{'s' * (turns != 1)}", "one or more" if asks else "two or more")
