"""Extractive question answering: the span of a context that answers a question."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Any, ClassVar

import numpy as np
import torch
from pydantic import Field, NonNegativeInt, PositiveInt

from alignkit.components import Batch, Task
from alignkit.data.example import Example
from alignkit.errors import Mistake, UsageError
from alignkit.tasks import squad
from alignkit.tasks.classification import wrong_texts
from alignkit.tasks.ner import ratio
from alignkit.tasks.padding import pad

KINDS = ("answerable", "unanswerable")
OUTSIDE = (-1, -1)
"""The offsets of a token that is not the context's."""


class ExtractiveQa(Task):
    """Answers a question with a span of its context, or with nothing where the context does not say.

    Reads SQuAD's files (v1.1 and v2.0) and rows `question`, `context`, `answers`: a list of `{"text", "answer_start"}`
    (in characters), or one object of lists as the hub has it; none where the question cannot be answered. A context
    that is too long is read in overlapping windows; in training, a window without the answer points at position 0.
    What rewrites a context moves the answer: it is looked for again, the occurrence nearest to where it was; a
    training row without it is left out. `exact` and `f1` are those of SQuAD's official evaluation, of which Chinese
    and Japanese characters count as words.

    Example:
        >>> ExtractiveQa(maximum_length=512, stride=128)
    """

    maximum_length: Annotated[int, Field(ge=16)] = 384
    """Longest input in tokens: question (at most half of it), window of the context and special tokens."""
    stride: NonNegativeInt = 128
    """Tokens that neighbouring windows of a context share; at most half a window."""
    maximum_answer: PositiveInt = 30
    """Longest answer that is predicted, in tokens."""
    n_best: PositiveInt = 20
    """How many of the likeliest spans an answer's probability is taken over."""
    no_answer: bool | None = None
    """Questions may have no answer; None: they may where the training data has such questions."""
    threshold: float = 0.0
    """With `no_answer`: by how much the score of none (a sum of two logits) must exceed that of the best span."""

    auto_class: ClassVar[str] = "AutoModelForQuestionAnswering"
    peft_type: ClassVar[str] = "QUESTION_ANS"
    hub_task: ClassVar[str] = "question-answering"
    suffixes: ClassVar[tuple[str, ...]] = (".json", ".jsonl")
    metric: ClassVar[str] = "f1"
    windowed: ClassVar[bool] = True
    columns: ClassVar[tuple[str, ...]] = ("offsets",)
    samples: ClassVar[tuple[dict[str, Any], ...]] = tuple(
        {
            "question": question,
            "context": context,
            "answers": [{"text": answer, "answer_start": context.index(answer)}] if answer else [],
        }
        for question, context, answer in (
            ("where is ada ?", "ada works in rome .", "rome"),
            ("who works in rome ?", "ada works in rome .", "ada"),
            ("who lives in paris ?", "the film was good and bob lives in paris .", "bob"),
            ("what was good ?", "the film was good and bob lives in paris .", "the film"),
            ("what was bad ?", "she saw a bad film and a good film .", "a bad film"),
            ("where is bob ?", "she saw a bad film and a good film .", ""),
        )
    )

    def __post_init__(self) -> None:
        self.labels = ["start", "end"]
        """The head's two outputs, as a trained model's config calls them."""
        self.has_unanswerable = bool(self.no_answer)
        """There are questions without an answer among those that are scored."""

    # -- data --------------------------------------------------------------------------------------------------

    def unfold(self, row: dict[str, Any]) -> Iterable[tuple[str, dict[str, Any]]]:
        return squad.questions(row)

    def parse(self, fields: dict[str, Any], where: str) -> Example:
        mistakes = list(wrong_texts(fields, ("question", "context"), where))
        try:
            answers = squad.read_answers(fields, where)
        except UsageError as error:
            mistakes += error.mistakes
        else:
            if not mistakes:
                mistakes += squad.misplaced(answers, fields["context"], where)
            if bool(answers) == fields.get("is_impossible", not answers):
                found = f"'is_impossible' is {fields['is_impossible']!r}, with {len(answers)} answers"
                mistakes.append(Mistake(where, found, "true where there are none, else false"))
        if mistakes:
            raise UsageError(*mistakes)
        return Example({**fields, "answers": answers}, inputs=("question", "context"))

    def prepare(self, splits: Mapping[str, list[Example]]) -> None:
        """Find out whether questions may have no answer, where the recipe does not say."""
        unanswered = {name: [e for e in split if not e["answers"]] for name, split in splits.items()}
        self.has_unanswerable = any(unanswered.values())
        deciding = unanswered["train"] if splits.get("train") else [e for found in unanswered.values() for e in found]
        if self.no_answer is None:
            self.no_answer = bool(deciding)
        if not self.no_answer and unanswered.get("train"):
            found, expected = "no answer, and `no_answer: false` in the recipe", "an answer"
            raise UsageError(*(Mistake(e.where, found, expected) for e in unanswered["train"]))

    def head(self) -> dict[str, Any]:
        return {
            "num_labels": len(self.labels),
            "id2label": dict(enumerate(self.labels)),
            "label2id": {label: i for i, label in enumerate(self.labels)},
        }

    def adopt(self, config: Any) -> None:
        """Take the names of a trained model's two outputs, whatever they are."""
        labels = [config.id2label[i] for i in sorted(config.id2label)]
        if len(labels) == len(self.labels):
            self.labels = labels

    # -- the model's side --------------------------------------------------------------------------------------

    def encode(self, example: Example, tokenizer: Any) -> list[dict[str, Any]] | None:
        if not tokenizer.is_fast:
            raise UsageError(f"{type(tokenizer).__name__} cannot say where in a text a token is: use a fast tokenizer")
        answers = example.get("answers")
        span = squad.find(answers, example["context"]) if answers else None
        if answers and span is None and example.split == "train":
            return None
        encoding = self._windows(example, tokenizer)
        found = []
        for number, pairs in enumerate(encoding.pop("offset_mapping")):
            sides = encoding.sequence_ids(number)
            offsets = [pair if side == 1 else OUTSIDE for pair, side in zip(pairs, sides, strict=True)]
            features = {n: values[number] for n, values in encoding.items() if n in tokenizer.model_input_names}
            features.pop("attention_mask", None)
            if answers is not None:
                features["start_positions"], features["end_positions"] = _positions(offsets, span)
            found.append({**features, "offsets": [list(pair) for pair in offsets]})
        return found

    def _windows(self, example: Example, tokenizer: Any) -> Any:
        """The question with each window of the context."""
        limit = min(self.maximum_length, tokenizer.model_max_length)
        question, asked = example["question"], []
        if question:
            cut = {"add_special_tokens": False, "truncation": True, "max_length": limit // 2}
            asked = tokenizer(question, return_offsets_mapping=True, **cut)["offset_mapping"]
        room = limit - len(asked) - tokenizer.num_special_tokens_to_add(pair=True)
        return tokenizer(
            question[: asked[-1][1]] if asked else question,
            example["context"],
            truncation="only_second",
            max_length=limit,
            stride=min(self.stride, room // 2),
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
        )

    def collate(self, features: list[dict[str, Any]], tokenizer: Any) -> Batch:
        places = ("start_positions", "end_positions")
        # on the right whatever the tokenizer says: positions are counted from the left
        batch = pad([{k: v for k, v in row.items() if k not in places} for row in features], tokenizer, side="right")
        return batch | {name: torch.tensor([row[name] for row in features]) for name in places if name in features[0]}

    def decode(self, outputs: Any, batch: Batch) -> list[dict[str, Any]]:
        """`start` and `end` in characters of the context (both 0: no answer) and their probability, `score`.

        `spans` are the best (sum of logits, start, end), `null` is the score of no answer: what `join` goes by.
        """
        logits = (outputs.start_logits.float().cpu().numpy(), outputs.end_logits.float().cpu().numpy())
        found = []
        for start, end, pairs in zip(*logits, batch["columns"]["offsets"], strict=True):
            offsets = np.asarray(pairs)
            inside = np.flatnonzero(offsets[:, 0] >= 0)
            best = best_spans(start[inside], end[inside], self.maximum_answer, self.n_best)
            spans = [(score, int(offsets[inside[i], 0]), int(offsets[inside[j], 1])) for score, i, j in best]
            found.append(self._settled(spans, float(start[0] + end[0])))
        return found

    def join(self, parts: list[dict[str, Any]]) -> dict[str, Any]:
        """The best spans of all windows; there is no answer where there is none in any of them."""
        best: dict[squad.Span, float] = {}
        for score, start, end in (span for part in parts for span in part["spans"]):
            best[start, end] = max(score, best.get((start, end), score))
        return self._settled([(score, *span) for span, score in best.items()], min(part["null"] for part in parts))

    def _settled(self, spans: list[tuple[float, int, int]], null: float) -> dict[str, Any]:
        spans = sorted(spans, key=lambda span: (-span[0], span[1:]))[: self.n_best]
        scores = np.array([score for score, _, _ in spans] + [null] * bool(self.no_answer or not spans))
        probabilities = np.exp(scores - scores.max())
        probabilities /= probabilities.sum()
        none = not spans or bool(self.no_answer and null - spans[0][0] > self.threshold)
        _, start, end = (null, 0, 0) if none else spans[0]
        chosen = probabilities[[-1 if none else 0]]
        return {
            "start": start,
            "end": end,
            "score": float(chosen[0]),
            "spans": spans,
            "null": null,
            "probabilities": chosen,
        }

    # -- scores ------------------------------------------------------------------------------------------------

    def statistics(self, example: Example, prediction: dict[str, Any]) -> dict[str, float]:
        gold = [answer["text"] for answer in example["answers"]]
        text = _text(example, prediction)[0]
        found = {"examples": 1.0, "exact": squad.exact(text, gold), "f1": squad.f1(text, gold)}
        if not self.has_unanswerable:
            return found
        own = {kind: kind == KINDS[not gold] for kind in KINDS}
        return found | {f"{name}/{kind}": value * mine for kind, mine in own.items() for name, value in found.items()}

    def score(self, example: Example, prediction: dict[str, Any]) -> float:
        """F1 of the answer's words; 1 where it is one of the gold answers, as SQuAD's scorer compares them."""
        return max(self.statistics(example, prediction)[name] for name in ("exact", "f1"))

    def fixed_spans(self, example: Example) -> Mapping[str, list[tuple[int, int]]]:
        """The gold answers, wherever else they stand in the context, too."""
        found = set()
        for text, start in ((answer["text"], answer["answer_start"]) for answer in example["answers"]):
            found |= {(start, start + len(text)), *squad.places(text, example["context"])}
        return {"context": sorted(found)}

    def metrics(self, totals: Mapping[str, Any]) -> dict[str, Any]:
        """`exact` and `f1`; where there are questions without an answer, also of those with and without one alone."""
        kinds = [kind for kind in ("", *(f"/{kind}" for kind in KINDS)) if f"examples{kind}" in totals]
        return {
            f"{name}{kind}": ratio(totals[f"{name}{kind}"], totals[f"examples{kind}"])
            for kind in kinds
            for name in ("exact", "f1")
        }

    # -- answers -----------------------------------------------------------------------------------------------

    def inputs(self, given: str | Mapping[str, Any]) -> Example:
        """`question` and `context`; an `id` goes with the answer."""
        if isinstance(given, str):
            mend = 'give rows: --input FILE.jsonl with {"question": …, "context": …}'
            raise UsageError(Mistake("input", "a text alone", "a question and its context", mend))
        if mistakes := list(wrong_texts(given, ("question", "context"), "input")):
            raise UsageError(*mistakes)
        fields = {name: given[name] for name in ("id", "question", "context") if name in given}
        return Example(fields, inputs=("question", "context"))

    def answer(self, example: Example, prediction: dict[str, Any]) -> dict[str, Any]:
        """The row with its `answer`, where in the context it starts and ends, and its probability.

        No answer is an empty one that starts and ends nowhere.
        """
        text, start = _text(example, prediction)
        place = {"start": start, "end": start + len(text)} if text else {"start": None, "end": None}
        return {**example, "answer": text, **place, "score": round(prediction["score"], 4)}


def best_spans(start: np.ndarray, end: np.ndarray, longest: int, number: int) -> list[tuple[float, int, int]]:
    """The spans of highest start + end score.

    Args:
        start, end: [T] scores of the positions.
        longest: positions in a span, at most.
        number: how many spans, at most.

    Returns:
        (score, first position, last position), best first.
    """
    if not len(start):
        return []
    longest = min(longest, len(start))
    ends = np.lib.stride_tricks.sliding_window_view(np.pad(end, (0, longest - 1), constant_values=-np.inf), longest)
    scores = (start[:, None] + ends).ravel()  # of the spans from i to i + d at i * longest + d
    best = np.argsort(-scores, kind="stable")[:number]
    return [(float(scores[k]), int(k // longest), int(k // longest + k % longest)) for k in best if scores[k] > -np.inf]


def _text(example: Example, prediction: Mapping[str, Any]) -> tuple[str, int]:
    """The answer that is predicted, an exact slice of the context, and where it starts."""
    text = example["context"][prediction.get("start", 0) : prediction.get("end", 0)]
    return text.strip(), prediction.get("start", 0) + len(text) - len(text.lstrip())


def _positions(offsets: list[squad.Span], span: squad.Span | None) -> tuple[int, int]:
    """The first and last token of a span; 0 and 0 where there is none, or not the whole of it in the window."""
    inside = [t for t, pair in enumerate(offsets) if pair != OUTSIDE]
    if span is None or not inside or offsets[inside[0]][0] > span[0] or offsets[inside[-1]][1] < span[1]:
        return 0, 0
    first = next(t for t in inside if offsets[t][1] > span[0])
    last = next(t for t in reversed(inside) if offsets[t][0] < span[1])
    return (first, last) if first <= last else (0, 0)
