"""A second model that reads along while another one generates, its cache in step with what is written."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor


class Reader:
    """What a model says of the next token, after the same prompts and what another model has written so far.

    Each call costs one forward pass of one token per row, the first one that of the prompts. The rows of a prompt's
    beams may change places between two calls: the cache follows them. Where the ids are no continuation of those seen
    before, everything is read anew.

    Args:
        model: a causal language model, or an encoder-decoder.
        input_ids: [B, T], as `model.generate` was given them: padded on the left; of an encoder-decoder the encoder's.
        attention_mask: [B, T].
    """

    def __init__(self, model: Any, input_ids: Tensor, attention_mask: Tensor) -> None:
        self._model, self._mask = model, attention_mask
        self._taken = inspect.signature(model.forward).parameters
        self._seen: Tensor | None = None
        self._cache: Any = None
        self._encoded: Any = None
        if model.config.is_encoder_decoder:
            self._encoded = model.get_encoder()(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state

    def __call__(self, ids: Tensor) -> Tensor:
        """Logits [R, V] of the token after `ids` [R, t], of which R / B rows in a row belong to each prompt."""
        beams = len(ids) // len(self._mask)
        new = 1 if self._follows(ids, beams) else ids.shape[1]
        outputs = self._model(**self._inputs(ids, new, self._mask.repeat_interleave(beams, dim=0), beams))
        self._seen, self._cache = ids, getattr(outputs, "past_key_values", None)
        logits: Tensor = outputs.logits[:, -1]
        return logits

    def _follows(self, ids: Tensor, beams: int) -> bool:
        """The ids are those seen before and one more; the cache then has their rows in their places."""
        seen = self._seen
        if seen is None or not hasattr(self._cache, "reorder_cache") or ids.shape != (len(seen), seen.shape[1] + 1):
            self._cache = None
            return False
        if torch.equal(ids[:, :-1], seen):
            return True
        prompts = torch.arange(len(ids), device=ids.device) // beams
        same = (ids[:, None, :-1] == seen[None]).all(-1) & (prompts[:, None] == prompts[None])
        if not bool(same.any(-1).all()):
            self._cache = None
            return False
        self._cache.reorder_cache(same.int().argmax(-1))
        return True

    def _inputs(self, ids: Tensor, new: int, mask: Tensor, beams: int) -> dict[str, Any]:
        """The last `new` ids as the model takes them."""
        given: dict[str, Any] = {"past_key_values": self._cache, "use_cache": True}
        if self._encoded is not None:
            from transformers.modeling_outputs import BaseModelOutput

            encoded = BaseModelOutput(last_hidden_state=self._encoded.repeat_interleave(beams, dim=0))
            return {**given, "encoder_outputs": encoded, "attention_mask": mask, "decoder_input_ids": ids[:, -new:]}
        written = mask.new_ones(len(ids), ids.shape[1] - mask.shape[1])
        whole = torch.cat([mask, written], dim=1)
        if "position_ids" in self._taken:
            given["position_ids"] = (whole.cumsum(-1) - 1).clamp(min=0)[:, -new:]
        if "logits_to_keep" in self._taken:
            given["logits_to_keep"] = 1
        return {**given, "input_ids": ids[:, -new:], "attention_mask": whole}
