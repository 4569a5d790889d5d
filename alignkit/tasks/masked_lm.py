"""Masked language modelling: words hidden, predicted from what stands on both sides."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, ClassVar

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from alignkit.components import Batch
from alignkit.data.example import Example
from alignkit.errors import Mistake, UsageError
from alignkit.tasks.ner import ratio
from alignkit.tasks.padding import attended
from alignkit.tasks.plain_text import PlainText
from alignkit.tasks.stock import IGNORED

MASK = "[MASK]"
"""What stands for a hidden word in texts to be filled, whatever the model's own mask token is."""
TRAINED = ("ForMaskedLM", "ForPreTraining", "WithLMHeadModel")
"""How the classes end that write a masked-language-model head into a checkpoint."""
CANDIDATES = 5

_UNSPACED = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]")


class MaskedLm(PlainText):
    """Pre-trains an encoder on plain text (Devlin et al. 2019, arXiv:1810.04805), with whole-word masking.

    Reads rows `text`, or `.txt` files. Of each row 15 % of the words are chosen, one at least; of their tokens 80 % are
    replaced by the mask, 10 % by any other token, 10 % stay, and all are to be predicted. Special tokens and unknown
    words are never chosen. In training, masks are drawn anew at every step (Liu et al. 2019, arXiv:1907.11692), but for
    batches that components have made views of; for evaluation they depend on the row's number and length alone, so
    that two models, and an example and its views, are scored on the same words. A Chinese or Japanese character is a
    word. A document that is too long becomes windows.

    A checkpoint without a masked-language-model head gets a new one; the embeddings are its last layer.

    Example:
        >>> MaskedLm(maximum_length=128, probability=0.15)
    """

    probability: Annotated[float, Field(gt=0, lt=1)] = 0.15
    """The share of words that are chosen."""
    whole_words: bool = True
    """Choose words, all tokens of them; otherwise single tokens."""

    auto_class: ClassVar[str] = "AutoModelForMaskedLM"
    columns: ClassVar[tuple[str, ...]] = ("window", "words")

    # -- the model's side --------------------------------------------------------------------------------------

    def take_model(self, config: Mapping[str, Any]) -> None:
        from alignkit.models.inspection import is_causal

        if config.get("is_encoder_decoder") or is_causal(config):
            found = f"{config.get('model_type', 'it')} is no encoder"
            raise UsageError(Mistake("model", found, "an encoder (BERT, RoBERTa …)", "for others there is causal-lm"))
        written = config.get("architectures") or []
        vars(self)["has_head"] = not any(name.endswith(TRAINED) for name in written)  # a bare encoder gets a new one
        super().take_model(config)

    def encode(self, example: Example, tokenizer: Any) -> list[dict[str, Any]]:
        self._take_tokenizer(tokenizer)
        found = []
        for number, (ids, words) in enumerate(self._windows(example["text"], tokenizer)):
            key = f"{example.row if example.row >= 0 else example['text']}/{number}"
            digest = hashlib.blake2b(key.encode(), digest_size=7).digest()
            drawn = torch.Generator().manual_seed(int.from_bytes(digest, "big"))
            masked, labels = self._masked(torch.tensor(ids), torch.tensor(words), drawn)
            found.append({"input_ids": masked.tolist(), "labels": labels.tolist(), "words": words, "window": number})
        return found

    def _take_tokenizer(self, tokenizer: Any) -> None:
        if tokenizer.mask_token_id is None or not tokenizer.is_fast:
            found = "it has no mask token" if tokenizer.is_fast else "it cannot say which tokens belong to a word"
            raise UsageError(Mistake("the model's tokenizer", found, "the tokenizer of an encoder"))
        if getattr(self, "_tokenizer", None) is not tokenizer:
            self._tokenizer = tokenizer
            special = set(tokenizer.all_special_ids)
            self._vocabulary = torch.tensor([i for i in range(len(tokenizer)) if i not in special])

    def _windows(self, text: str, tokenizer: Any) -> Iterator[tuple[list[int], list[int]]]:
        """Ids with special tokens, and the number of the word that each token belongs to, -1 for special ones."""
        encoding = tokenizer(
            text, truncation=True, max_length=self.limit(tokenizer), return_overflowing_tokens=True, verbose=False
        )
        special = set(tokenizer.all_special_ids)
        for window in encoding.encodings:
            tokens = zip(window.ids, window.word_ids, window.offsets, strict=True)
            known = [None if i in special or w is None else (w, text[o[0] : o[1]]) for i, w, o in tokens]
            yield window.ids, self._words(known)

    def _words(self, tokens: Sequence[tuple[int, str] | None]) -> list[int]:
        """Words numbered from 0 in the order of the tokens."""
        numbers, count = [], -1
        before: tuple[int, str] | None = None
        for token in tokens:
            if token is not None:
                same = self.whole_words and before is not None and before[0] == token[0]
                unspaced = before is not None and _UNSPACED.search(before[1] + token[1])
                count += not same or bool(unspaced)
            numbers.append(-1 if token is None else count)
            before = token
        return numbers

    def _masked(self, ids: Tensor, words: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """A row's ids [T] with some words hidden, and the labels [T]: what was there, -100 elsewhere."""
        count = int(words.max()) + 1
        if count == 0:
            return ids, torch.full_like(ids, IGNORED)
        drawn = torch.rand(count, generator=generator)
        chosen = (drawn <= max(self.probability, float(drawn.min())))[words.clamp_min(0)] & (words >= 0)
        fate = torch.rand(len(ids), generator=generator)
        others = self._vocabulary[torch.randint(len(self._vocabulary), (len(ids),), generator=generator)]
        replaced = torch.where(fate < 0.8, self._tokenizer.mask_token_id, torch.where(fate < 0.9, others, ids))
        return torch.where(chosen, replaced, ids), torch.where(chosen, ids, IGNORED)

    def redraw(self, batch: Batch, columns: Mapping[str, Any], generator: torch.Generator) -> Batch:
        """Other words hidden than those that the rows were encoded with."""
        if "words" not in columns:
            return batch
        device, there = batch["input_ids"].device, attended(batch).cpu()
        ids, labels = batch["input_ids"].cpu(), batch["labels"].cpu()
        whole = torch.where(labels != IGNORED, labels, ids)
        masked, learnt = whole.clone(), torch.full_like(labels, IGNORED)
        for row, words in enumerate(columns["words"]):
            at = there[row]
            masked[row, at], learnt[row, at] = self._masked(whole[row, at], torch.tensor(words), generator)
        return {**batch, "input_ids": masked.to(device), "labels": learnt.to(device)}

    def decode(self, outputs: Any, batch: Batch) -> list[dict[str, Any]]:
        """As of any language model, and how many tokens were predicted right."""
        right = (outputs.logits.argmax(-1) == batch["labels"]).sum(1).tolist()
        return [{**row, "correct": n} for row, n in zip(super().decode(outputs, batch), right, strict=True)]

    # -- scores and answers ------------------------------------------------------------------------------------

    def statistics(self, example: Example, prediction: dict[str, Any]) -> dict[str, float]:
        return super().statistics(example, prediction) | {"correct": float(prediction.get("correct", 0))}

    def metrics(self, totals: Mapping[str, Any]) -> dict[str, Any]:
        """`perplexity`, `loss` in nats per hidden token, and `accuracy`: hidden tokens that come first."""
        return super().metrics(totals) | {"accuracy": ratio(np.asarray(totals["correct"], float), totals["tokens"])}

    def predict(
        self, model: Any, tokenizer: Any, examples: list[Example], batch_size: int = 16, **options: Any
    ) -> Iterator[dict[str, Any]]:
        """The text with each `[MASK]` filled, and the five likeliest tokens for each with their probabilities."""
        from alignkit.evaluation.score import evaluating, to_device

        if options:
            raise UsageError(Mistake(", ".join(options), f"no option of task {self.name}", "batch_size alone"))
        self._take_tokenizer(tokenizer)
        limit = self.limit(tokenizer)
        for start in range(0, len(examples), batch_size):
            part = examples[start : start + batch_size]
            texts = [example["text"].replace(MASK, tokenizer.mask_token) for example in part]
            ids = tokenizer(texts, truncation=True, max_length=limit)["input_ids"]
            batch = self.collate([{"input_ids": row} for row in ids], tokenizer)
            with evaluating(model):
                logits = model(**to_device(batch, model)).logits.cpu()
            for example, row, scores in zip(part, ids, logits, strict=True):
                yield self.answer(example, self._filled(row, scores.float().softmax(-1), tokenizer))

    @staticmethod
    def _filled(ids: list[int], probabilities: Tensor, tokenizer: Any) -> dict[str, Any]:
        filled, masks = list(ids), []
        for place in [i for i, token in enumerate(ids) if token == tokenizer.mask_token_id]:
            best = probabilities[place].topk(CANDIDATES)
            filled[place] = int(best.indices[0])
            likely = zip(best.indices.tolist(), best.values.tolist(), strict=True)
            masks.append([{"token": tokenizer.decode([i]).strip(), "probability": round(p, 4)} for i, p in likely])
        return {"filled": tokenizer.decode(filled, skip_special_tokens=True), "masks": masks}
