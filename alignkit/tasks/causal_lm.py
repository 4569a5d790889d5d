"""Causal language modelling: every token predicted from those before it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

from pydantic import PositiveInt

from alignkit.data.example import Example
from alignkit.errors import Mistake, UsageError
from alignkit.tasks.padding import pad, padding_id
from alignkit.tasks.plain_text import PlainText
from alignkit.tasks.stock import IGNORED


class CausalLm(PlainText):
    """Pre-trains a language model that reads from left to right (Radford et al. 2018) on plain text.

    Reads rows `text`, or `.txt` files. A document is its tokens, with the tokenizer's opening token where it sets one,
    and the end-of-text token, which is learnt. A document that is too long becomes windows that overlap in one token,
    so that every token but the document's first is learnt exactly once; across windows and across documents nothing
    is seen. The first token of a document is never learnt from another document.

    Example:
        >>> CausalLm(maximum_length=512, documents="paragraph")
    """

    max_new_tokens: PositiveInt = 64
    """Longest continuation in tokens, when generating."""

    auto_class: ClassVar[str] = "AutoModelForCausalLM"
    peft_type: ClassVar[str] = "CAUSAL_LM"
    shifts_labels: ClassVar[bool] = True
    generates: ClassVar[str] = "continuation"

    def take_model(self, config: Mapping[str, Any]) -> None:
        from alignkit.models.inspection import is_causal

        if config.get("is_encoder_decoder") or not is_causal(config):
            found = f"{config.get('model_type', 'it')} does not read from left to right only"
            raise UsageError(Mistake("model", found, "a causal language model", "for encoders there is masked-lm"))
        super().take_model(config)

    def encode(self, example: Example, tokenizer: Any) -> list[dict[str, Any]]:
        ids = self._ids(example, tokenizer)
        ids += [tokenizer.eos_token_id] * (tokenizer.eos_token_id is not None)
        limit = self.limit(tokenizer)
        parts = [ids[start : start + limit] for start in range(0, len(ids) - 1, limit - 1)]
        return [
            {"input_ids": part, "labels": [IGNORED, *part[1:]], "window": number} for number, part in enumerate(parts)
        ]

    @staticmethod
    def _ids(example: Example, tokenizer: Any) -> list[int]:
        ids = tokenizer(example["text"], add_special_tokens=False, verbose=False)["input_ids"]
        opened = tokenizer.bos_token_id is not None and tokenizer.bos_token_id in tokenizer("")["input_ids"]
        return [tokenizer.bos_token_id, *ids] if opened else list(ids)

    def predict(
        self, model: Any, tokenizer: Any, examples: list[Example], batch_size: int = 16, **options: Any
    ) -> Iterator[dict[str, Any]]:
        """Continue each text, greedily unless `options` say otherwise: `continuation` is what comes after it.

        Args:
            options: of `model.generate`: `max_new_tokens`, `do_sample`, `temperature` …
        """
        from alignkit.evaluation.score import evaluating, to_device
        from alignkit.generation import generate

        options = {"do_sample": False, "max_new_tokens": self.max_new_tokens, **options}
        for start in range(0, len(examples), batch_size):
            part = examples[start : start + batch_size]
            rows = [self._ids(example, tokenizer)[-self.limit(tokenizer) :] for example in part]
            batch = pad([{"input_ids": ids} for ids in rows], tokenizer, side="left")
            with evaluating(model):
                generated = generate(
                    model,
                    to_device(batch, model),
                    pad_token_id=padding_id(tokenizer),
                    eos_token_id=tokenizer.eos_token_id,
                    **options,
                )
            for example, row in zip(part, generated[:, batch["input_ids"].shape[1] :].tolist(), strict=True):
                end = row.index(tokenizer.eos_token_id) if tokenizer.eos_token_id in row else len(row)
                text = tokenizer.decode(row[:end], skip_special_tokens=True)
                yield self.answer(example, {"continuation": text})
