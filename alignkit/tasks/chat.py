"""Chat: a language model that answers, learnt from prompts and completions."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from pydantic import PositiveInt

from alignkit.components import Batch, Task
from alignkit.data.columns import unmapped
from alignkit.data.example import Example
from alignkit.errors import Mistake, UsageError, nearest
from alignkit.tasks.padding import pad, padding_id
from alignkit.tasks.stock import IGNORED

Message = dict[str, str]

ROLES = ("system", "user", "assistant", "tool")
PLAIN = {"system": "{}\n", "user": "User: {}\n", "assistant": "Assistant: {}", "tool": "Tool: {}\n"}
"""How a message looks to a model without a chat template; each answer is followed by the end-of-text token."""


class Segment(NamedTuple):
    """A stretch of a conversation that is tokenised by itself."""

    text: str
    learnt: bool


class Chat(Task):
    """Teaches a causal language model to answer; the loss is on the answers alone.

    Reads rows `prompt` and `completion`, with `system` where there is one, or `messages`, a list of
    `{"role", "content"}` that ends with the assistant's. Conversations go through the tokenizer's chat template. A
    model without one sees `User: …` and `Assistant: …`, one message per line, a system message as it stands.

    The tokens before a completion are exactly those that the model sees when it generates: a completion is tokenised
    by itself and put after them. The token that ends a turn is learnt with it, and added where the template has none.
    Where a row is too long, the beginning of the conversation goes first, and of a completion that takes more than
    half of the room, the end.

    Example:
        >>> Chat(maximum_length=1024, system="Answer briefly.")
    """

    maximum_length: PositiveInt = 512
    """Longest conversation in tokens."""
    max_new_tokens: PositiveInt = 128
    """Longest answer in tokens, when generating."""
    system: str = ""
    """The system message of rows that have none of their own; empty: none."""

    auto_class: ClassVar[str] = "AutoModelForCausalLM"
    peft_type: ClassVar[str] = "CAUSAL_LM"
    has_head: ClassVar[bool] = False
    shifts_labels: ClassVar[bool] = True
    suffixes: ClassVar[tuple[str, ...]] = (".jsonl", ".json", ".csv", ".tsv")
    metric: ClassVar[str] = "perplexity"
    greater_is_better: ClassVar[bool] = False
    samples: ClassVar[tuple[dict[str, Any], ...]] = (
        {"prompt": "where is ada ?", "completion": "in rome"},
        {"prompt": "who was it ?", "completion": "bob"},
        {"prompt": "what was the film ?", "completion": "it was a very good film"},
        {"prompt": "hi", "completion": "what ?"},
        {"prompt": "where lives bob ?", "completion": "he lives in paris"},
        {"prompt": "is she in rome ?", "completion": "she is not"},
    )

    # -- data --------------------------------------------------------------------------------------------------

    def parse(self, fields: dict[str, Any], where: str) -> Example:
        if "messages" in fields and "prompt" not in fields:
            mistakes = list(_wrong_messages(fields["messages"], where))
            inputs, targets = ["messages"], []
        else:
            inputs, targets = ["prompt"], ["completion"]
            mistakes = [m for name in ("prompt", "completion") for m in _wrong_text(fields, name, where)]
        system = fields.get("system")
        if system is not None and not isinstance(system, str):
            mistakes.append(Mistake(where, f"'system' is {system!r}", "a string"))
        if mistakes:
            raise UsageError(*mistakes)
        return Example(fields, inputs=(*(["system"] if system else []), *inputs), targets=tuple(targets))

    def messages(self, example: Example) -> list[Message]:
        """The whole conversation, the completion included where there is one."""
        system = example.get("system") or self.system
        if "prompt" in example:
            found = [{"role": "user", "content": example["prompt"]}]
            if example.get("completion"):
                found.append({"role": "assistant", "content": example["completion"]})
        else:
            found = [{"role": m["role"], "content": m["content"]} for m in example["messages"]]
        if system and found[0]["role"] != "system":
            found.insert(0, {"role": "system", "content": system})
        return found

    # -- the model's side --------------------------------------------------------------------------------------

    def encode(self, example: Example, tokenizer: Any) -> dict[str, list[int] | int] | None:
        messages = self.messages(example)
        if messages[-1]["role"] != "assistant":
            return None
        ids, labels, completion = tokenised(messages, tokenizer, example.where)
        kept = self._kept(ids, completion, tokenizer)
        return {"input_ids": [ids[i] for i in kept], "labels": [labels[i] for i in kept]}

    def prompt_ids(self, example: Example, tokenizer: Any) -> list[int]:
        """What the model sees before it gives the last answer."""
        messages = self.messages(example)
        asked = messages[:-1] if messages[-1]["role"] == "assistant" else messages
        ids, _, _ = tokenised(asked, tokenizer, example.where)
        return [ids[i] for i in self._kept(ids, 0, tokenizer)]

    def _kept(self, ids: list[int], completion: int, tokenizer: Any) -> list[int]:
        """Positions that stay: the opening token, the end of the context, the beginning of the last completion."""
        room, context = self.maximum_length, len(ids) - completion
        keep = min(context, max(room - completion, room // 2))
        opening = int(keep < context and ids[0] == tokenizer.bos_token_id)
        return [*range(opening), *range(context - keep + opening, context + min(completion, room - keep))]

    def collate(self, features: list[dict[str, Any]], tokenizer: Any) -> Batch:
        return pad(features, tokenizer, side="right")

    def decode(self, outputs: Any, batch: Batch) -> list[dict[str, Any]]:
        """`nll`, the sum over the row's learnt tokens in nats, and how many `tokens` they are."""
        labels = batch["labels"][:, 1:]
        scored = labels != IGNORED
        logits = outputs.logits[:, :-1][scored].float()
        losses = torch.zeros(labels.shape, dtype=torch.float64, device=logits.device)
        losses[scored] = torch.nn.functional.cross_entropy(logits, labels[scored], reduction="none").double()
        return [
            {"nll": nll, "tokens": tokens}
            for nll, tokens in zip(losses.sum(1).tolist(), scored.sum(1).tolist(), strict=True)
        ]

    # -- scores ------------------------------------------------------------------------------------------------

    def statistics(self, example: Example, prediction: dict[str, Any]) -> dict[str, float]:
        return {"nll": float(prediction.get("nll", 0.0)), "tokens": float(prediction.get("tokens", 0))}

    def metrics(self, totals: Mapping[str, Any]) -> dict[str, Any]:
        """`loss`, nats per learnt token, and `perplexity`, its exponential."""
        loss = np.asarray(totals["nll"], float) / np.asarray(totals["tokens"], float)
        return {"perplexity": np.exp(np.minimum(loss, 700.0)), "loss": loss}

    def gap(self, one: dict[str, Any], other: dict[str, Any]) -> float:
        """How far the mean losses of two versions of one example lie apart, in nats per token."""
        return abs(one["nll"] / max(one["tokens"], 1) - other["nll"] / max(other["tokens"], 1))

    # -- answers -----------------------------------------------------------------------------------------------

    def inputs(self, given: str | Mapping[str, Any]) -> Example:
        """A question, or `prompt` with `system` where there is one, or `messages` that end with the user's."""
        fields = {"prompt": given} if isinstance(given, str) else dict(given)
        talk = "messages" in fields and "prompt" not in fields
        wrong = (
            _wrong_messages(fields["messages"], "input", asks=True) if talk else _wrong_text(fields, "prompt", "input")
        )
        if mistakes := list(wrong):
            raise UsageError(*mistakes)
        asked = "messages" if talk else "prompt"
        names = ("system", asked) if fields.get("system") else (asked,)
        return Example({name: fields[name] for name in names}, inputs=names)

    def answer(self, example: Example, prediction: dict[str, Any]) -> dict[str, Any]:
        """What was asked, and the `completion`, or the loss of the one that the example has."""
        asked = {name: example[name] for name in ("system", "prompt", "messages") if name in example}
        return asked | dict(prediction)

    def predict(
        self, model: Any, tokenizer: Any, examples: list[Example], batch_size: int = 16, **options: Any
    ) -> Iterator[dict[str, Any]]:
        """Generate an answer to each example's last question, greedily unless `options` say otherwise.

        Args:
            options: of `model.generate`: `max_new_tokens`, `do_sample`, `temperature` …
        """
        from alignkit.evaluation.score import evaluating, to_device

        ends = _end_ids(model, tokenizer)
        options = {"do_sample": False, "max_new_tokens": self.max_new_tokens, "eos_token_id": ends or None, **options}
        for start in range(0, len(examples), batch_size):
            part = examples[start : start + batch_size]
            batch = pad([{"input_ids": self.prompt_ids(e, tokenizer)} for e in part], tokenizer, side="left")
            with evaluating(model):
                generated = model.generate(**to_device(batch, model), pad_token_id=padding_id(tokenizer), **options)
            for example, row in zip(part, generated[:, batch["input_ids"].shape[1] :].tolist(), strict=True):
                end = next((i for i, token in enumerate(row) if token in ends), len(row))
                text = tokenizer.decode(row[:end], skip_special_tokens=True)
                yield self.answer(example, {"completion": text.strip()})


# -- conversations as tokens -------------------------------------------------------------------------------------


def tokenised(messages: list[Message], tokenizer: Any, where: str) -> tuple[list[int], list[int], int]:
    """A conversation's ids, its labels (-100 outside the answers), and how many ids the answer at its end has.

    Where the last message is not the assistant's, the ids end with what asks the model for its answer.
    """
    ids: list[int] = []
    if not tokenizer.chat_template and tokenizer.bos_token_id in tokenizer("")["input_ids"]:
        ids = [tokenizer.bos_token_id]
    labels = [IGNORED] * len(ids)
    completion = 0
    for segment in segments(messages, tokenizer, where):
        piece = tokenizer(segment.text, add_special_tokens=False)["input_ids"]
        if segment.learnt and piece[-1:] and piece[-1] not in _turn_ends(tokenizer):
            piece = [*piece, *(() if tokenizer.eos_token_id is None else (tokenizer.eos_token_id,))]
        ids += piece
        labels += piece if segment.learnt else [IGNORED] * len(piece)
        completion = len(piece) if segment.learnt else 0
    return ids, labels, completion


def segments(messages: list[Message], tokenizer: Any, where: str = "") -> list[Segment]:
    """A conversation in stretches of context and of answers, each answer with what ends its turn.

    What the template puts after the end of a turn (a line break) belongs to the context that follows. A template
    that writes earlier turns differently once later ones are there leaves only the last answer to be learnt.
    """
    found: list[Segment] = []
    done = ""
    for i, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        before = _rendered(messages[:i], tokenizer, where, ask=True)
        whole = _rendered(messages[: i + 1], tokenizer, where, ask=False)
        if not before.startswith(done):
            found, done = [], ""
        answer = whole[len(before) :] if whole.startswith(before) else _from(message["content"].strip(), whole)
        answer = answer.rstrip()
        found += [Segment(before[len(done) :], False), Segment(answer, True)]
        done = before + answer
    if messages[-1]["role"] != "assistant":
        before = _rendered(messages, tokenizer, where, ask=True)
        found, done = (found, done) if before.startswith(done) else ([], "")
        found.append(Segment(before[len(done) :], False))
    return found


def _from(answer: str, whole: str) -> str:
    """The answer with what follows it, where a template does not begin its turn as it asks for one."""
    _, found, rest = whole.rpartition(answer)
    return f"{answer}{rest}" if found else answer


def _rendered(messages: list[Message], tokenizer: Any, where: str, ask: bool) -> str:
    if not tokenizer.chat_template:
        turns = {**PLAIN, "assistant": f"{PLAIN['assistant']}{tokenizer.eos_token or ''}\n"}
        text = "".join(turns[m["role"]].format(m["content"]) for m in messages)
        return text + PLAIN["assistant"].partition(" ")[0] if ask else text
    from jinja2 import TemplateError

    try:
        return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=ask))
    except TemplateError as error:
        raise UsageError(Mistake(where, f"the model's chat template refuses the conversation: {error}")) from error


@functools.lru_cache(maxsize=4)
def _turn_ends(tokenizer: Any) -> frozenset[int]:
    """Ids that end a turn where they are the last of it: any special token, but for the one of unknown text."""
    special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special} - {tokenizer.unk_token_id}
    return frozenset(special | {tokenizer.eos_token_id} - {None})


def _end_ids(model: Any, tokenizer: Any) -> list[int]:
    """Ids at which generating stops: the tokenizer's, the model's own, and the one that ends the template's turns."""
    configured = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    turn = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    last = tokenised(turn, tokenizer, "")[0][-1]
    found = {tokenizer.eos_token_id, *(configured if isinstance(configured, list) else [configured])}
    return sorted((found | ({last} & _turn_ends(tokenizer))) - {None})


# -- rows --------------------------------------------------------------------------------------------------------


def _wrong_text(fields: Mapping[str, Any], name: str, where: str) -> Iterator[Mistake]:
    if name not in fields:
        yield Mistake(where, f"no {name!r}", "`prompt` and `completion`, or `messages`", unmapped(name, fields))
    elif not isinstance(fields[name], str):
        yield Mistake(where, f"{name!r} is {fields[name]!r}", "a string")
    elif not fields[name].strip():
        yield Mistake(where, f"{name!r} is blank", "text")


def _wrong_messages(messages: Any, where: str, asks: bool = False) -> Iterator[Mistake]:
    if not isinstance(messages, list) or not messages:
        yield Mistake(where, f"'messages' is {messages!r}", 'a list of {"role", "content"}')
        return
    for number, message in enumerate(messages, 1):
        here = f"{where} message {number}"
        role, content = (message.get("role"), message.get("content")) if isinstance(message, dict) else (None, None)
        if role not in ROLES:
            yield Mistake(here, f"the role {role!r}", " or ".join(map(repr, ROLES)), nearest(str(role), ROLES))
        elif not isinstance(content, str) or not content.strip():
            yield Mistake(here, f"the content {content!r}", "text")
        elif role == "assistant" and number == 1:
            yield Mistake(here, "an answer to nothing", "a message of the system or the user first")
        elif role != "assistant" and number == len(messages) and not asks:
            yield Mistake(here, f"the last message is the {role}'s", "the assistant's, which is what is learnt")
