"""What tasks share whose answer is a text: their rows, both kinds of model, the loss, and generating."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, ClassVar

from pydantic import AfterValidator, PositiveInt

from alignkit.components import Batch, Task
from alignkit.data.columns import unmapped
from alignkit.data.example import Example
from alignkit.errors import Mistake, UsageError, nearest
from alignkit.tasks.conversation import Segment, completions, joined, tokenised
from alignkit.tasks.likelihood import loss_gap, loss_metrics, loss_statistics, losses
from alignkit.tasks.padding import pad
from alignkit.tasks.stock import IGNORED

CAUSAL = {"auto_class": "AutoModelForCausalLM", "peft_type": "CAUSAL_LM", "shifts_labels": True}
ENCODER_DECODER = {"auto_class": "AutoModelForSeq2SeqLM", "peft_type": "SEQ_2_SEQ_LM", "shifts_labels": False}
"""What a task of either kind of model declares."""
OPTIONS = ("max_new_tokens", "num_beams", "do_sample", "temperature", "top_k", "top_p")
"""What `predict` hands on to `model.generate`."""

_PLACEHOLDER = re.compile(r"\{(\w*)\}")


def placeholders(*others: str) -> AfterValidator:
    """A text with `{source}` in it, and what else may stand in braces."""

    def checked(prompt: str) -> str:
        named = _PLACEHOLDER.findall(prompt)
        known = ", ".join(f"{{{name}}}" for name in ("source", *others))
        if unknown := sorted({*named} - {"source", *others}):
            raise ValueError(f"no placeholder is called {{{unknown[0]}}}; there is {known}")
        if named.count("source") != 1:
            raise ValueError("it has to hold {source}, once")
        return prompt

    return AfterValidator(checked)


Prompt = Annotated[str, placeholders()]


class Generation(Task, abstract=True):
    """A text becomes another: `source` and `target`, on an encoder-decoder or on a causal language model.

    An encoder-decoder reads `prefix` and the source, and learns the target. A causal model reads `prompt`, through
    its tokenizer's chat template where there is one, and learns what follows it. Either learns the token that ends
    the text, and nothing of the source. Where a text is too long, its end goes; of a causal model's source also what
    would leave no room for the answer within the tokenizer's `model_max_length`.
    """

    prompt: Prompt = "{source}\n"
    """What a causal model is asked, with `{source}` in it."""
    prefix: str = ""
    """What an encoder-decoder reads before the source."""
    maximum_source_length: PositiveInt = 512
    """Longest source in tokens; for an encoder-decoder with its prefix and special tokens."""
    maximum_target_length: PositiveInt = 128
    """Longest target that is learnt, in tokens, its end included."""
    max_new_tokens: PositiveInt = 128
    """Longest text that is generated, in tokens."""
    num_beams: PositiveInt = 1
    """Beams of the search when generating; 1: greedy."""

    auto_class: ClassVar[str] = "AutoModelForSeq2SeqLM"
    decodes_outputs: ClassVar[bool] = False
    generates: ClassVar[str] = "target"
    auto_classes: ClassVar[tuple[str, ...]] = ("AutoModelForSeq2SeqLM", "AutoModelForCausalLM")
    peft_type: ClassVar[str] = "SEQ_2_SEQ_LM"
    has_head: ClassVar[bool] = False
    suffixes: ClassVar[tuple[str, ...]] = (".csv", ".tsv", ".jsonl", ".json")

    # -- data --------------------------------------------------------------------------------------------------

    def parse(self, fields: dict[str, Any], where: str) -> Example:
        """`target` may be a list, of which training takes the first and evaluation all; they stay as `references`."""
        found = dict(fields)
        if isinstance(fields.get("target"), list) and fields["target"]:
            found |= {"target": fields["target"][0], "references": fields["target"]}
        mistakes = [m for name in ("source", "target") for m in _wrong_text(found, name, where)]
        several = found.get("references") or []
        if not isinstance(several, list):
            mistakes.append(Mistake(where, f"'references' is {several!r}", "a list of texts"))
        elif wrong := [text for text in several if not isinstance(text, str) or not text.strip()]:
            mistakes.append(Mistake(where, f"{wrong[0]!r} among the references", "texts"))
        if mistakes:
            raise UsageError(*mistakes)
        return Example(found, inputs=("source",), targets=("target",))

    # -- the model's side --------------------------------------------------------------------------------------

    def take_model(self, config: Mapping[str, Any]) -> None:
        """Be a task of encoder-decoders or of causal models."""
        from alignkit.models.inspection import is_causal

        if not config.get("is_encoder_decoder") and not is_causal(config):
            expected = "an encoder-decoder (T5, BART) or a causal language model"
            raise UsageError(Mistake("model", f"{config.get('model_type', 'it')} cannot generate", expected))
        vars(self).update(ENCODER_DECODER if config.get("is_encoder_decoder") else CAUSAL)

    def encode(self, example: Example, tokenizer: Any) -> dict[str, Any] | None:
        target = example.get("target")
        if target is None:
            return None
        if self.shifts_labels:
            ids, labels = self._causal(example, tokenizer, target)
            return {"input_ids": ids, "labels": labels}
        limit = min(self.maximum_target_length, tokenizer.model_max_length)
        labels = tokenizer(text_target=target, truncation=True, max_length=limit)["input_ids"]
        if tokenizer.eos_token_id is not None and labels[-1:] != [tokenizer.eos_token_id]:
            labels = [*labels[: limit - 1], tokenizer.eos_token_id]
        return {"input_ids": self.prompt_ids(example, tokenizer), "labels": labels}

    def prompt_ids(self, example: Example, tokenizer: Any) -> list[int]:
        """What the model sees before it writes: the encoder's input, or a causal model's prompt."""
        if self.shifts_labels:
            return self._causal(example, tokenizer)[0]
        limit = min(self.maximum_source_length, tokenizer.model_max_length)
        encoded = tokenizer(self.filled(self.prefix) + example["source"], truncation=True, max_length=limit)
        ids: list[int] = encoded["input_ids"]
        return ids

    def asked(self, source: str) -> str:
        """The prompt with a source in it."""
        return self.filled(self.prompt, source)

    def filled(self, template: str, source: str = "") -> str:
        """A template with the source, and the task's own fields, in the places that name them."""
        known = {**self.fields(), "source": source}
        return _PLACEHOLDER.sub(lambda m: str(known.get(m[1], m[0])), template)

    def _causal(self, example: Example, tokenizer: Any, target: str = "") -> tuple[list[int], list[int]]:
        """Ids and labels of the prompt with the target, where there is one, after it."""
        context = tokenizer.model_max_length
        reserved = max(2, min(self.maximum_target_length, context // 4))
        source = _cut(example["source"], self.maximum_source_length, tokenizer)
        target = _cut(target, reserved - 1, tokenizer)
        ids, labels, completion = self._tokenised(source, target, tokenizer, example.where)
        over = len(ids) - completion + reserved - context
        if over > 0:
            source = _cut(source, max(len(_ids(source, tokenizer)) - over, 0), tokenizer)
            ids, labels, _ = self._tokenised(source, target, tokenizer, example.where)
        return ids, labels

    def _tokenised(self, source: str, target: str, tokenizer: Any, where: str) -> tuple[list[int], list[int], int]:
        asked = self.asked(source)
        if tokenizer.chat_template:
            answer = [{"role": "assistant", "content": target}] if target else []
            return tokenised([{"role": "user", "content": asked.strip()}, *answer], tokenizer, where)
        space = "" if asked[-1:].isspace() else " "
        return joined([Segment(asked, False), *([Segment(space + target, True)] if target else [])], tokenizer)

    def collate(self, features: list[dict[str, Any]], tokenizer: Any) -> Batch:
        if self.shifts_labels:
            return pad(features, tokenizer, side="right")
        batch = pad([{"input_ids": row["input_ids"]} for row in features], tokenizer, side="right")
        targets = pad([{"input_ids": row["labels"]} for row in features], tokenizer, side="right")
        batch["labels"] = targets["input_ids"].masked_fill(targets["attention_mask"] == 0, IGNORED)
        return batch

    def decode(self, outputs: Any, batch: Batch) -> list[dict[str, Any]]:
        """`nll`, the sum over the target's tokens in nats, and how many `tokens` they are."""
        return losses(outputs, batch, self.shifts_labels)

    def infer(self, model: Any, tokenizer: Any, batch: Batch, outputs: Any) -> list[dict[str, Any]]:
        """As `decode`, and the `target` that the model generates."""
        seen = batch["attention_mask"].bool()
        if self.shifts_labels:
            seen &= batch["labels"] == IGNORED
        prompts = [ids[kept].tolist() for ids, kept in zip(batch["input_ids"], seen, strict=True)]
        texts = self._generated(model, tokenizer, prompts)
        return [{**scored, "target": t} for scored, t in zip(self.decode(outputs, batch), texts, strict=True)]

    def _generated(self, model: Any, tokenizer: Any, prompts: list[list[int]], **options: Any) -> list[str]:
        from alignkit.evaluation.score import evaluating, to_device
        from alignkit.generation import generate

        options = {"do_sample": False, "num_beams": self.num_beams, "max_new_tokens": self.max_new_tokens} | options
        if self.shifts_labels:
            return completions(model, tokenizer, prompts, **options)
        batch = pad([{"input_ids": ids} for ids in prompts], tokenizer, side="right")
        with evaluating(model):
            generated = generate(model, to_device(batch, model), **options)
        return [text.strip() for text in tokenizer.batch_decode(generated, skip_special_tokens=True)]

    # -- scores ------------------------------------------------------------------------------------------------

    def statistics(self, example: Example, prediction: dict[str, Any]) -> dict[str, float]:
        return loss_statistics(prediction)

    def metrics(self, totals: Mapping[str, Any]) -> dict[str, Any]:
        return loss_metrics(totals)

    def gap(self, one: dict[str, Any], other: dict[str, Any]) -> float:
        """How far the mean losses of two versions of one example lie apart, in nats per token."""
        return loss_gap(one, other)

    # -- answers -----------------------------------------------------------------------------------------------

    def inputs(self, given: str | Mapping[str, Any]) -> Example:
        """A text, or `source`."""
        fields = {"source": given} if isinstance(given, str) else dict(given)
        if mistakes := list(_wrong_text(fields, "source", "input")):
            raise UsageError(*mistakes)
        return Example({"source": fields["source"]}, inputs=("source",))

    def answer(self, example: Example, prediction: dict[str, Any]) -> dict[str, Any]:
        """The `source`, and the `target` that the model wrote."""
        return {"source": example["source"], "target": prediction["target"]}

    def predict(
        self, model: Any, tokenizer: Any, examples: list[Example], batch_size: int = 16, **options: Any
    ) -> Iterator[dict[str, Any]]:
        """Generate a target for each source, by the task's own fields unless `options` say otherwise.

        Args:
            options: of `model.generate`: `max_new_tokens`, `num_beams`, `do_sample`, `temperature`, `top_k`, `top_p`;
                and `control`.
        """
        if unknown := [name for name in options if name not in (*OPTIONS, "control")]:
            found = "no option of this task"
            raise UsageError(*(Mistake(name, found, ", ".join(OPTIONS), nearest(name, OPTIONS)) for name in unknown))
        for start in range(0, len(examples), batch_size):
            part = examples[start : start + batch_size]
            texts = self._generated(model, tokenizer, [self.prompt_ids(e, tokenizer) for e in part], **options)
            for example, text in zip(part, texts, strict=True):
                yield self.answer(example, {"target": text})


def references(example: Example) -> list[str]:
    """All right answers of an example."""
    found: list[str] = example.get("references") or [example["target"]]
    return found


def _ids(text: str, tokenizer: Any) -> list[int]:
    found: list[int] = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    return found


def _cut(text: str, limit: int, tokenizer: Any) -> str:
    """The text up to its `limit`-th token."""
    offsets = tokenizer.is_fast
    encoded = tokenizer(text, add_special_tokens=False, verbose=False, return_offsets_mapping=offsets)
    if len(encoded["input_ids"]) <= limit:
        return text
    if offsets:
        return text[: encoded["offset_mapping"][limit][0]]
    return str(tokenizer.decode(encoded["input_ids"][:limit]))


def _wrong_text(fields: Mapping[str, Any], name: str, where: str) -> Iterator[Mistake]:
    if name not in fields:
        yield Mistake(where, f"no {name!r}", mend=unmapped(name, fields))
    elif not isinstance(fields[name], str):
        yield Mistake(where, f"{name!r} is {fields[name]!r}", "text")
    elif not fields[name].strip():
        yield Mistake(where, f"{name!r} is blank", "text")
