"""Multiple choice: the right one among several answers to a question, or among several endings of a text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import PositiveInt

from alignkit.components import Batch, Task
from alignkit.data.columns import unmapped
from alignkit.data.example import Example
from alignkit.errors import Mistake, UsageError, nearest
from alignkit.tasks.choices import CHOICE, choices_of, letter, number_of, split_lettered, wrong_choices
from alignkit.tasks.ner import ratio
from alignkit.tasks.padding import pad
from alignkit.tasks.stock import IGNORED, choices_there

WAYS: dict[str, dict[str, Any]] = {
    "head": {
        "auto_class": "AutoModelForMultipleChoice",
        "peft_type": "",
        "has_head": True,
        "shifts_labels": False,
        "decodes_outputs": True,
    },
    "likelihood": {
        "auto_class": "AutoModelForCausalLM",
        "peft_type": "CAUSAL_LM",
        "has_head": False,
        "shifts_labels": True,
        "decodes_outputs": False,
    },
}
"""What the task is for each kind of model."""


class MultipleChoice(Task):
    """Finds the right answer to a question among several; rows may differ in how many there are.

    Reads rows `question` (or `context`), `choices`, a list of strings (or a column for each, `choice_0`, `choice_1` …),
    and `label` (or `answer`): the right choice's number from 0, its letter, or its text.

    By head, each question with each of its choices goes through an encoder, whose head gives it a score (Radford et al.
    2018); choices that pad a row have no probability. By likelihood, a causal language model says how likely it finds
    each choice after the question (Brown et al. 2020, arXiv:2005.14165); trained is the right choice, token by token,
    and evaluation takes a forward pass per choice.

    Example:
        >>> MultipleChoice(by="likelihood", normalise="tokens")
    """

    by: Literal["head", "likelihood"] | None = None
    """A `head` on an encoder, or a causal model's `likelihood`; by default what the model can do."""
    normalise: Literal["none", "tokens", "characters"] = "none"
    """By likelihood: what a choice's log-probability is divided by, so that long choices are not at a disadvantage."""
    separator: str = " "
    """By likelihood: what stands between the question and a choice."""
    lettered: bool = False
    """The choices stand in the question, each on a line of its own at its end: `A. …`, `B. …`."""
    maximum_length: PositiveInt = 256
    """Longest question with a choice in tokens. By head the longer of the two is cut; by likelihood a question loses
    its beginning, a choice that takes more than half of the room its end."""

    auto_class: ClassVar[str] = "AutoModelForMultipleChoice"
    auto_classes: ClassVar[tuple[str, ...]] = tuple(way["auto_class"] for way in WAYS.values())
    suffixes: ClassVar[tuple[str, ...]] = (".jsonl", ".json", ".csv", ".tsv")
    metric: ClassVar[str] = "accuracy"
    hub_task: ClassVar[str] = "multiple-choice"
    columns: ClassVar[tuple[str, ...]] = ("choice_ids", "normaliser")
    samples: ClassVar[tuple[dict[str, Any], ...]] = (
        {"question": "ada went to", "choices": ["rome", "was", "the film was good"], "label": 0},
        {"question": "who saw the film ?", "choices": ["paris", "bob"], "label": "B"},
        {"question": "the film was", "choices": ["very good", "a paris", "bob he"], "label": "very good"},
        {"question": "where lives bob ?", "choices": ["good", "bad", "in rome", "fine"], "label": 2},
        {"question": "she was not", "choices": ["in", "bad"], "label": 1},
        {"question": "he", "choices": ["works in paris", "film bad the", "ada ada"], "label": "A"},
    )

    def __post_init__(self) -> None:
        self._way = self.by or "head"
        vars(self).update(WAYS[self._way])

    # -- data --------------------------------------------------------------------------------------------------

    def parse(self, fields: dict[str, Any], where: str) -> Example:
        example = self._asked(fields, where)
        name = "label" if "label" in fields else "answer"
        if name not in fields:
            expected = "the right choice's number, letter or text"
            raise UsageError(Mistake(where, "no 'label'", expected, unmapped("label", fields)))
        choices = choices_of(example)
        label = number_of(fields[name], choices)
        if label is None:
            letters = f"0 to {len(choices) - 1}, {letter(0)} to {letter(len(choices) - 1)}, or a choice's text"
            raise UsageError(
                Mistake(where, f"{name!r} is {fields[name]!r}", letters, nearest(str(fields[name]), choices))
            )
        return example.replace(label=label)

    def _asked(self, fields: Mapping[str, Any], where: str) -> Example:
        """A question and its choices, each in a field `choice_N`, so that whatever rewrites text rewrites them, too."""
        name = "question" if "question" in fields or "context" not in fields else "context"
        question, choices = fields.get(name), fields.get("choices")
        if self.lettered and choices is None and isinstance(question, str):
            question, choices = split_lettered(question)
        if choices is None:
            numbered = {int(m[1]): value for n, value in fields.items() if (m := CHOICE.fullmatch(n))}
            choices = [numbered[number] for number in sorted(numbered)]
        if mistakes := list(wrong_choices(name, question, choices, where, fields, self.lettered)):
            raise UsageError(*mistakes)
        named = {f"choice_{i}": choice for i, choice in enumerate(choices)}
        kept = {n: v for n, v in fields.items() if n not in ("choices", "answer") and not CHOICE.fullmatch(n)}
        return Example({**kept, name: question, **named}, inputs=(name, *named))

    # -- the model's side --------------------------------------------------------------------------------------

    def take_model(self, config: Mapping[str, Any]) -> None:
        from alignkit.models.inspection import is_causal

        causal = is_causal(config) and not config.get("is_encoder_decoder")
        self._way = self.by or ("likelihood" if causal else "head")
        if config.get("is_encoder_decoder") or causal != (self._way == "likelihood"):
            expected = "a causal language model" if self._way == "likelihood" else "an encoder"
            found = f"a {config.get('model_type', 'model')}, asked by {self._way}"
            raise UsageError(Mistake("model", found, expected, "take `by` out of the task" if self.by else ""))
        vars(self).update(WAYS[self._way])

    def encode(self, example: Example, tokenizer: Any) -> dict[str, Any]:
        choices, label = choices_of(example), example.get("label")
        limit = int(min(self.maximum_length, tokenizer.model_max_length))
        if self._way == "likelihood":
            return self._likelihood_features(example, choices, label, limit, tokenizer)
        question = [example[example.inputs[0]]] * len(choices)
        encoding = tokenizer(question, choices, truncation=True, max_length=limit)
        features = {name: value for name, value in encoding.items() if name != "attention_mask"}
        return features if label is None else {**features, "labels": label}

    def _likelihood_features(
        self, example: Example, choices: list[str], label: int | None, limit: int, tokenizer: Any
    ) -> dict[str, Any]:
        """The right choice after the question as a language model learns it; beside it all choices, to be scored."""
        opened = tokenizer.bos_token_id is not None and tokenizer.bos_token_id in tokenizer("")["input_ids"]
        bos = [tokenizer.bos_token_id] * opened
        asked = tokenizer(example[example.inputs[0]], add_special_tokens=False)["input_ids"]
        pieces = [tokenizer(self.separator + c, add_special_tokens=False)["input_ids"] for c in choices]
        longest = max(map(len, pieces))
        room = max(limit - len(bos) - longest, (limit - len(bos)) // 2)
        context = [*bos, *asked[-room:]]
        rows = [[*context, *piece[: limit - len(context)]] for piece in pieces]
        kept = [len(row) - len(context) for row in rows]
        divisors = {"none": [1] * len(rows), "tokens": kept, "characters": [len(c) for c in choices]}[self.normalise]
        right = rows[label or 0]
        return {
            "input_ids": right,
            "labels": [*[IGNORED] * len(context), *right[len(context) :]],
            "choice_ids": rows,
            "normaliser": divisors,
        }

    def collate(self, features: list[dict[str, Any]], tokenizer: Any) -> Batch:
        rows = [{name: value for name, value in row.items() if name not in self.columns} for row in features]
        return pad(rows, tokenizer, side="right") if self._way == "likelihood" else _nested(rows, tokenizer)

    def infer(self, model: Any, tokenizer: Any, batch: Batch, outputs: Any) -> list[dict[str, Any]]:
        """By likelihood each choice takes a forward pass of its own, a batch's worth at a time."""
        if self._way == "head":
            return self.decode(outputs, batch)
        columns, size = batch["columns"], len(batch["input_ids"])
        starts = [int((labels != IGNORED).nonzero()[0]) for labels in batch["labels"]]
        flat = [(ids, start) for rows, start in zip(columns["choice_ids"], starts, strict=True) for ids in rows]
        scores: list[float] = []
        for at in range(0, len(flat), size):
            scores += _log_likelihoods(model, tokenizer, flat[at : at + size])
        found, place = [], 0
        for divisors in columns["normaliser"]:
            own = np.array(scores[place : place + len(divisors)]) / np.asarray(divisors, float)
            found.append({"probabilities": np.exp(own - own.max()) / np.exp(own - own.max()).sum()})
            place += len(divisors)
        return found

    def decode(self, outputs: Any, batch: Batch) -> list[dict[str, Any]]:
        """`probabilities` of the choices [C]."""
        logits = outputs.logits.float().masked_fill(~choices_there(batch), float("-inf"))
        there = choices_there(batch)
        return [
            {"probabilities": p[t].cpu().numpy().astype(float)} for p, t in zip(logits.softmax(-1), there, strict=True)
        ]

    # -- scores ------------------------------------------------------------------------------------------------

    def statistics(self, example: Example, prediction: dict[str, Any]) -> dict[str, float]:
        probabilities = prediction.get("probabilities", np.full(len(choices_of(example)), np.nan))
        right = float(probabilities[example["label"]])
        best = np.isfinite(right) and int(np.argmax(probabilities)) == example["label"]
        return {"examples": 1.0, "correct": float(best), "nll": -float(np.log(max(right, 1e-300)))}

    def score(self, example: Example, prediction: dict[str, Any]) -> float:
        """1 where the right choice has the highest probability, else 0."""
        return self.statistics(example, prediction)["correct"]

    def fixed_spans(self, example: Example) -> Mapping[str, list[tuple[int, int]]]:
        """The choices."""
        return {name: [(0, len(example[name]))] for name in example.inputs[1:]}

    def metrics(self, totals: Mapping[str, Any]) -> dict[str, Any]:
        """`accuracy`, and `loss`: nats per example, of the right choice's probability among its row's choices."""
        return {
            "accuracy": ratio(totals["correct"], totals["examples"]),
            "loss": ratio(totals["nll"], totals["examples"]),
        }

    # -- answers -----------------------------------------------------------------------------------------------

    def inputs(self, given: str | Mapping[str, Any]) -> Example:
        """`question` and `choices`, or, where they are `lettered`, a text that ends with them."""
        fields = {"question": given} if isinstance(given, str) else dict(given)
        fields = {n: v for n, v in fields.items() if n in ("question", "context", "choices") or CHOICE.fullmatch(n)}
        return self._asked(fields, "input")

    def answer(self, example: Example, prediction: dict[str, Any]) -> dict[str, Any]:
        """The question, the chosen `answer`, and the probability of each choice."""
        name, choices = example.inputs[0], choices_of(example)
        probabilities = [round(float(p), 4) for p in prediction["probabilities"]]
        best = int(np.argmax(prediction["probabilities"]))
        return {
            name: example[name],
            "choices": choices,
            "label": best,
            "answer": choices[best],
            "probabilities": probabilities,
        }


# -- choices as tensors ------------------------------------------------------------------------------------------


def _nested(rows: list[dict[str, Any]], tokenizer: Any) -> Batch:
    """Rows of choices [C][T] as tensors [B, C, T]; where a row has fewer, choices without a token pad it."""
    most = max(len(row["input_ids"]) for row in rows)
    names = [name for name in rows[0] if name != "labels"]
    flat = [{name: row[name][i] if i < len(row[name]) else [] for name in names} for row in rows for i in range(most)]
    batch = {name: value.view(len(rows), most, -1) for name, value in pad(flat, tokenizer).items()}
    if "labels" in rows[0]:
        batch["labels"] = torch.tensor([row["labels"] for row in rows])
    return batch


def _log_likelihoods(model: Any, tokenizer: Any, rows: list[tuple[list[int], int]]) -> list[float]:
    """The log-probability of each row's ids from `start` on, given those before them."""
    from alignkit.evaluation.score import to_device
    from alignkit.models.adapters import cropped, virtual_tokens
    from alignkit.tasks.likelihood import losses

    features = [{"input_ids": ids, "labels": [*[IGNORED] * start, *ids[start:]]} for ids, start in rows]
    batch = to_device(pad(features, tokenizer, side="right"), model)
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    outputs = cropped(model(**inputs), batch["input_ids"].shape[1], virtual_tokens(model))
    return [-row["nll"] for row in losses(outputs, batch, shifts_labels=True)]
