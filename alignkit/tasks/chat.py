"""Chat: a language model that answers, learnt from prompts and completions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

from pydantic import PositiveInt

from alignkit.components import Batch, Task
from alignkit.data.columns import unmapped
from alignkit.data.example import Example
from alignkit.errors import Mistake, UsageError, nearest
from alignkit.tasks.conversation import Message, completions, tokenised
from alignkit.tasks.likelihood import loss_gap, loss_metrics, loss_statistics, losses
from alignkit.tasks.padding import pad

ROLES = ("system", "user", "assistant", "tool")


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
    generates: ClassVar[str] = "completion"
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
            mistakes = list(wrong_messages(fields["messages"], where))
            inputs, targets = ["messages"], []
        else:
            inputs, targets = ["prompt"], ["completion"]
            mistakes = [m for name in ("prompt", "completion") for m in wrong_text(fields, name, where)]
        if mistakes := [*mistakes, *wrong_system(fields, where)]:
            raise UsageError(*mistakes)
        return Example(fields, inputs=(*(["system"] if fields.get("system") else []), *inputs), targets=tuple(targets))

    def messages(self, example: Example) -> list[Message]:
        """The whole conversation, the completion included where there is one."""
        system = example.get("system") or self.system
        if "messages" not in example.inputs:
            found = [{"role": "user", "content": example["prompt"]}]
            if example.get("completion"):
                found.append({"role": "assistant", "content": example["completion"]})
        else:
            found = [{"role": m["role"], "content": m["content"]} for m in example["messages"]]
        if system and found[0]["role"] != "system":
            found.insert(0, {"role": "system", "content": system})
        return found

    # -- the model's side --------------------------------------------------------------------------------------

    def take_model(self, config: Mapping[str, Any]) -> None:
        from alignkit.models.inspection import is_causal

        if config.get("is_encoder_decoder") or not is_causal(config):
            found = f"{config.get('model_type', 'it')} does not read from left to right only"
            raise UsageError(Mistake("model", found, "a causal language model"))

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
        return losses(outputs, batch, self.shifts_labels)

    # -- scores ------------------------------------------------------------------------------------------------

    def statistics(self, example: Example, prediction: dict[str, Any]) -> dict[str, float]:
        return loss_statistics(prediction)

    def metrics(self, totals: Mapping[str, Any]) -> dict[str, Any]:
        """`loss`, nats per learnt token, and `perplexity`, its exponential."""
        return loss_metrics(totals)

    def gap(self, one: dict[str, Any], other: dict[str, Any]) -> float:
        """How far the mean losses of two versions of one example lie apart, in nats per token."""
        return loss_gap(one, other)

    # -- answers -----------------------------------------------------------------------------------------------

    def inputs(self, given: str | Mapping[str, Any]) -> Example:
        """A question, or `prompt` with `system` where there is one, or `messages` that end with the user's."""
        fields = {"prompt": given} if isinstance(given, str) else dict(given)
        talk = "messages" in fields and "prompt" not in fields
        wrong = (
            wrong_messages(fields["messages"], "input", asks=True) if talk else wrong_text(fields, "prompt", "input")
        )
        if mistakes := [*wrong, *wrong_system(fields, "input")]:
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
        options = {"max_new_tokens": self.max_new_tokens, **options}
        for start in range(0, len(examples), batch_size):
            part = examples[start : start + batch_size]
            texts = completions(model, tokenizer, [self.prompt_ids(e, tokenizer) for e in part], **options)
            for example, text in zip(part, texts, strict=True):
                yield self.answer(example, {"completion": text})


# -- rows --------------------------------------------------------------------------------------------------------


def wrong_text(fields: Mapping[str, Any], name: str, where: str) -> Iterator[Mistake]:
    if name not in fields:
        yield Mistake(where, f"no {name!r}", "`prompt` and `completion`, or `messages`", unmapped(name, fields))
    elif not isinstance(fields[name], str):
        yield Mistake(where, f"{name!r} is {fields[name]!r}", "a string")
    elif not fields[name].strip():
        yield Mistake(where, f"{name!r} is blank", "text")


def wrong_system(fields: Mapping[str, Any], where: str) -> Iterator[Mistake]:
    system = fields.get("system")
    if system is not None and not isinstance(system, str):
        yield Mistake(where, f"'system' is {system!r}", "a string")


def wrong_messages(messages: Any, where: str, asks: bool = False) -> Iterator[Mistake]:
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
