"""A finished model as attacks see it: asked for predictions, losses and gradients, never changed."""

from __future__ import annotations

import functools
import hashlib
from collections import Counter
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from alignkit.components import Objective, Term
from alignkit.compose import Composition
from alignkit.data.collate import StepCollator
from alignkit.data.features import Features, length, windows
from alignkit.evaluation.score import length_batches, predictions, to_device, vocabulary
from alignkit.layers import input_embedding, mean_embedding_norm
from alignkit.models.adapters import virtual_tokens
from alignkit.step import StepContext, TrainingStep

if TYPE_CHECKING:
    from torch import Tensor, nn

    from alignkit.components import Attempt, Task
    from alignkit.data import Example

BATCHES_ENCODED = 32
"""How many batches' worth of examples are encoded at a time, so that thousands of candidates need little memory."""
DIGITS = 5
"""Decimals of a loss, in nats: two candidates that the model sees alike are equals, whatever shares their batches."""


@dataclass
class AttackedBatch:
    """Some examples as one batch that gradients can be taken of."""

    step: TrainingStep
    """In evaluation mode, of the objective alone: `step.gradient`, `step.forward`, `step.mask` …"""
    places: list[int]
    """[B]: which of the examples each row is (a part of): a long text has several windows."""
    windows: list[int]
    """[B]: which of its example's windows each row is."""
    columns: dict[str, Any]
    """What the rows hold of the task's own columns."""


@dataclass(frozen=True)
class Judged:
    """What the model makes of one example."""

    prediction: dict[str, Any]
    score: float
    """How right the prediction is for the example, from 0 to 1."""
    loss: float
    """The mean loss under the example's own labels, in nats, to five decimals."""
    queries: int
    """Inputs that the model was asked about: of a long text several windows."""


Search = Generator[list["Example"], list[Judged], "Attempt"]
"""An attack on one example: yields candidates, is sent what the model makes of each, returns the attempt."""


class Victim:
    """A model under attack, in evaluation mode; its parameters need no gradient meanwhile.

    Use it in a `with` statement: at the end the model is as it was.

    Args:
        batch_size: rows that the model is asked about at once.
        seed: of everything that an attack draws.
    """

    def __init__(self, task: Task, model: nn.Module, tokenizer: Any, batch_size: int = 32, seed: int = 0):
        self.task = task
        self.model = model
        self.tokenizer = tokenizer
        self.batch_size = batch_size
        self.seed = seed
        embedding = input_embedding(model)
        self._context = StepContext(
            task=task,
            composition=Composition([], task, None if task.stock_loss else _RowLosses()),
            forward=task.forward,
            embedding=embedding,
            unit_length=mean_embedding_norm(embedding),
            special_ids=tuple(getattr(tokenizer, "all_special_ids", ())),
            tokenizer=tokenizer,
            virtual_tokens=virtual_tokens(model),
        )
        self._before: list[tuple[Any, bool]] = []

    def __enter__(self) -> Victim:
        self._before = [(module, module.training) for module in self.model.modules()]
        self._before += [(parameter, parameter.requires_grad) for parameter in self.model.parameters()]
        self.model.eval()
        self.model.requires_grad_(False)
        self.task.take_weights(self.model, self.tokenizer)
        return self

    def __exit__(self, *_: Any) -> None:
        for part, before in self._before:
            if isinstance(part, torch.nn.Module):
                part.training = before
            else:
                part.requires_grad_(before)

    # -- asking ------------------------------------------------------------------------------------------------

    def predict(self, examples: list[Example]) -> list[dict[str, Any]]:
        """A prediction per example, as the task gives it."""
        return predictions(self.task, self.model, self.tokenizer, examples, self.batch_size, progress=False)

    def scores(self, examples: Sequence[Example], predicted: Sequence[dict[str, Any]]) -> list[float]:
        """How right each prediction is, from 0 to 1; an empty prediction is all wrong."""
        found = []
        for example, prediction in zip(examples, predicted, strict=True):
            score = self.task.score(example, prediction) if prediction else 0.0
            assert score is not None, "checked before the attack begins"
            found.append(float(score))
        return found

    def losses(self, examples: list[Example]) -> list[float]:
        """Each example's mean loss under its own labels, in nats: of windows the mean; 0 where there is none."""
        return [answers.loss for answers in self._asked(examples, decode=False)]

    def judged(self, examples: list[Example]) -> list[Judged]:
        """Prediction, score and loss of each example.

        Cost: a forward pass for each, and where the task decodes no outputs what it takes to predict as well.
        """
        answers = self._asked(examples, decode=self.task.decodes_outputs)
        if self.task.decodes_outputs:
            predicted = self.joined([[answer.parts[window] for window in sorted(answer.parts)] for answer in answers])
        else:
            predicted = self.predict(examples)
        scores = self.scores(examples, predicted)
        return [
            Judged(prediction, score, round(answer.loss, DIGITS), answer.windows)
            for prediction, score, answer in zip(predicted, scores, answers, strict=True)
        ]

    def together(self, searches: Sequence[Search]) -> list[Attempt]:
        """Carry out searches side by side, one for each example: what all of them ask at a time shares batches.

        Each attempt's `queries` are counted here.
        """
        attempts: dict[int, Attempt] = {}
        queries = [0] * len(searches)
        answers: dict[int, list[Judged] | None] = dict.fromkeys(range(len(searches)))
        while answers:
            asked: dict[int, list[Example]] = {}
            for place, answer in answers.items():
                try:
                    asked[place] = next(searches[place]) if answer is None else searches[place].send(answer)
                except StopIteration as end:
                    attempts[place] = end.value
            found = iter(self.judged([example for candidates in asked.values() for example in candidates]))
            answers = {place: [next(found) for _ in candidates] for place, candidates in asked.items()}
            for place, answer in answers.items():
                queries[place] += sum(judged.queries for judged in answer or ())
        for place, attempt in attempts.items():
            attempt.queries = queries[place]
        return [attempts[place] for place in range(len(searches))]

    def _asked(self, examples: list[Example], decode: bool) -> list[_Answers]:
        found = [_Answers() for _ in examples]
        with torch.no_grad():
            for batch in self.batches(examples):
                outputs = batch.step.forward()
                losses = self.task.row_losses(outputs, batch.step.batch).tolist()
                said = self.decoded(batch, outputs) if decode else [{}] * len(losses)
                for place, window, loss, prediction in zip(batch.places, batch.windows, losses, said, strict=True):
                    found[place].add(window, loss, prediction)
        return found

    # -- batches -----------------------------------------------------------------------------------------------

    def batches(self, examples: list[Example], batch_size: int | None = None) -> Iterator[AttackedBatch]:
        """The examples as batches of like length, to take gradients of; what does not fit the model is left out."""
        step = (batch_size or self.batch_size) * BATCHES_ENCODED
        for start in range(0, len(examples), step):
            rows = [
                (start + place, features)
                for place, example in enumerate(examples[start : start + step])
                for features in windows(self.task.encode(example, self.tokenizer))
            ]
            yield from self.batches_of(rows, batch_size)

    def batches_of(
        self, rows: Sequence[tuple[int, Features]], batch_size: int | None = None
    ) -> Iterator[AttackedBatch]:
        """Encoded rows as batches of like length, each with the place of the example that it is (a part of)."""
        collated = StepCollator(functools.partial(self.task.collate, tokenizer=self.tokenizer), self.task.columns)
        seen = Counter[int]()
        numbered = [(place, seen.update([place]) or seen[place] - 1, features) for place, features in rows]
        lengths = [length(features) for _, _, features in numbered]
        for chosen in length_batches(lengths, batch_size or self.batch_size, vocabulary(self.model)):
            places, numbers, features = zip(*(numbered[i] for i in chosen), strict=True)
            batch = to_device(collated(list(features)), self.model)
            columns = batch.pop("columns", {})
            yield AttackedBatch(TrainingStep(self._context, self.model, batch), list(places), list(numbers), columns)

    def decoded(self, batch: AttackedBatch, outputs: Any) -> list[dict[str, Any]]:
        """What the outputs for a batch predict for each of its rows."""
        columns = {"columns": batch.columns} if batch.columns else {}
        return self.task.decode(outputs, {**batch.step.batch, **columns})

    def joined(self, parts: Sequence[Sequence[dict[str, Any]]]) -> list[dict[str, Any]]:
        """One prediction per example of those for its windows; an empty one where there is none."""
        return [(self.task.join(list(p)) if self.task.windowed else p[0]) if p else {} for p in parts]

    # -- what it is made of ------------------------------------------------------------------------------------

    @property
    def embeddings(self) -> Tensor:
        """[V, D]: the input-embedding table."""
        return next(self._context.embedding.parameters()).detach()

    def embed(self, ids: Tensor) -> Tensor:
        """[n, D]: what the embedding layer gives for ids [n]; no hook that perturbs or adds noise takes part."""
        embedding: Any = self._context.embedding
        with torch.no_grad():
            found: Tensor = embedding.forward(ids)
        return found

    @property
    def special_ids(self) -> tuple[int, ...]:
        """Token ids that no attack touches."""
        return tuple(self._context.special_ids)

    @property
    def virtual_tokens(self) -> int:
        """Positions that prompt tuning puts before the text."""
        return self._context.virtual_tokens

    def generator(self, attack: str, example: Example) -> np.random.Generator:
        """What an attack draws from for an example: who else is attacked, and in which order, changes nothing."""
        key = f"{self.seed}/{attack}/{example.split}/{example.row}".encode()
        return np.random.default_rng(int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "big"))


class _RowLosses(Objective):
    """The task's own losses, of tasks whose objectives may ask more (a reference) than a finished model has."""

    def loss(self, step: TrainingStep, outputs: Any) -> Term:
        """The mean over rows."""
        return Term(step.context.task.row_losses(outputs, step.current).mean(), "example")


@dataclass
class _Answers:
    """What the model says of one example's windows."""

    total: float = 0.0
    windows: int = 0
    parts: dict[int, dict[str, Any]] = field(default_factory=dict)

    def add(self, window: int, loss: float, prediction: dict[str, Any]) -> None:
        self.total += loss
        self.windows += 1
        self.parts[window] = prediction

    @property
    def loss(self) -> float:
        return self.total / max(self.windows, 1)
