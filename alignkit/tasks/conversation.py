"""Conversations as a language model reads them: in tokens, what of them is learnt, and what the model says next."""

from __future__ import annotations

import functools
import warnings
from typing import Any, NamedTuple

from alignkit.errors import Mistake, UsageError
from alignkit.models.adapters import virtual_tokens
from alignkit.tasks.padding import pad, padding_id
from alignkit.tasks.stock import IGNORED

Message = dict[str, str]

PLAIN = {"system": "{}\n", "user": "User: {}\n", "assistant": "Assistant: {}", "tool": "Tool: {}\n"}
"""How a message looks to a model without a chat template; each answer is followed by the end-of-text token."""


class Segment(NamedTuple):
    """A stretch of a conversation that is tokenised by itself."""

    text: str
    learnt: bool


def tokenised(messages: list[Message], tokenizer: Any, where: str) -> tuple[list[int], list[int], int]:
    """A conversation's ids, its labels (-100 outside the answers), and how many ids the answer at its end has.

    Where the last message is not the assistant's, the ids end with what asks the model for its answer.
    """
    return joined(segments(messages, tokenizer, where), tokenizer)


def joined(stretches: list[Segment], tokenizer: Any) -> tuple[list[int], list[int], int]:
    """The ids of stretches of text one after another, each tokenised by itself; as `tokenised` gives them."""
    ids: list[int] = []
    if not tokenizer.chat_template and tokenizer.bos_token_id in tokenizer("")["input_ids"]:
        ids = [tokenizer.bos_token_id]
    labels = [IGNORED] * len(ids)
    completion = 0
    for segment in stretches:
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
        if message["role"] != "assistant" or i == 0:  # a template has no way to ask for the first word
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


# -- what the model says -----------------------------------------------------------------------------------------


def completions(model: Any, tokenizer: Any, prompts: list[list[int]], **options: Any) -> list[str]:
    """What a causal model says after each prompt, up to the end of its turn; greedily unless `options` say otherwise.

    Args:
        prompts: ids, which are padded on the left. Where virtual tokens stand before the text, peft drops the
            positions that make up for padding, so that prompts of one length alone share a batch.
        options: of `model.generate`, and `control`, as `Task.predict` is given it.
    """
    from alignkit.evaluation.score import evaluating

    options = {"do_sample": False, "eos_token_id": _end_ids(model, tokenizer) or None, **options}
    lengths = [len(ids) if virtual_tokens(model) else 0 for ids in prompts]
    found: dict[int, str] = {}
    with evaluating(model), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Position ids are not supported")
        for length in dict.fromkeys(lengths):
            rows = [row for row, other in enumerate(lengths) if other == length]
            said = _completions(model, tokenizer, [prompts[row] for row in rows], options)
            found.update(zip(rows, said, strict=True))
    return [found[row] for row in range(len(prompts))]


def _completions(model: Any, tokenizer: Any, prompts: list[list[int]], options: dict[str, Any]) -> list[str]:
    from alignkit.evaluation.score import to_device
    from alignkit.generation import generate

    batch = to_device(pad([{"input_ids": ids} for ids in prompts], tokenizer, side="left"), model)
    generated = generate(model, batch, pad_token_id=padding_id(tokenizer), **options)
    ends = options["eos_token_id"] or ()
    found = []
    for row in generated[:, batch["input_ids"].shape[1] :].tolist():
        end = next((i for i, token in enumerate(row) if token in ends), len(row))
        found.append(tokenizer.decode(row[:end], skip_special_tokens=True).strip())
    return found


def _end_ids(model: Any, tokenizer: Any) -> list[int]:
    """Ids at which generating stops: the tokenizer's, the model's own, and the one that ends the template's turns."""
    configured = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    turn = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    last = tokenised(turn, tokenizer, "")[0][-1]
    found = {tokenizer.eos_token_id, *(configured if isinstance(configured, list) else [configured])}
    return sorted((found | ({last} & _turn_ends(tokenizer))) - {None})
