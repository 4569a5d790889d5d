"""Steps on tiny real models, made without a Trainer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import numpy
import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast
from transformers.utils import ModelOutput

from alignkit import testing
from alignkit.data import Example
from alignkit.evaluation.victim import Victim
from alignkit.step import TrainingStep
from alignkit.tasks.text_classification import TextClassification

MakeStep = Callable[..., TrainingStep]


@pytest.fixture
def make_step() -> MakeStep:
    """`make_step(model, inputs, components, reference=None, window=None)`."""
    return testing.make_step


class LinearSoftmax(nn.Module):
    """softmax(W mean(e) + b) over the tokens that are attended to: small enough for losses in closed form."""

    def __init__(self, vocabulary: int = 12, width: int = 5, classes: int = 2, seed: int = 0):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.config = SimpleNamespace(is_encoder_decoder=False)
        self.embedding = nn.Embedding.from_pretrained(torch.randn(vocabulary, width, generator=generator), False)
        self.head = nn.Linear(width, classes)
        with torch.no_grad():
            self.head.weight.copy_(torch.randn(classes, width, generator=generator))
            self.head.bias.copy_(torch.randn(classes, generator=generator))
        self.broken: int | None = None
        """A row whose gradient is not a number."""

    def get_input_embeddings(self) -> nn.Module:
        return self.embedding

    def forward(self, input_ids: Any, attention_mask: Any, labels: Any) -> Any:
        embedded = self.embedding(input_ids)
        if self.broken is not None and embedded.requires_grad:
            rows = torch.arange(len(input_ids)) == self.broken
            embedded.register_hook(lambda g: torch.where(rows[:, None, None], float("nan"), g))
        mask = attention_mask[..., None].float()
        logits = self.head((embedded * mask).sum(1) / mask.sum(1))
        return ModelOutput(loss=nn.functional.cross_entropy(logits, labels), logits=logits)


class Logistic:
    """A `LinearSoftmax` of two classes, a batch with padding and special tokens, and its losses in closed form.

    The loss of an example is log(1 + exp(-m)) with the margin m = (w_y - w_other) mean(e) + b_y - b_other, so its
    gradient has one direction wherever it is taken: a perturbation of length r along it lowers the margin by
    r |w_y - w_other| sqrt(R) / L, where R of the L tokens are perturbed.
    """

    def __init__(self) -> None:
        self.model = LinearSoftmax()
        ids = torch.tensor([[2, 5, 6, 7, 3], [2, 8, 3, 0, 0], [9, 10, 11, 4, 0]])
        self.batch = {"input_ids": ids, "attention_mask": (ids != 0).long(), "labels": torch.tensor([0, 1, 1])}
        table = self.model.embedding.weight.detach().double().numpy()
        self.unit_length = float(numpy.linalg.norm(table, axis=1).mean())
        weight, bias = (p.detach().double().numpy() for p in (self.model.head.weight, self.model.head.bias))
        labels, attended = self.batch["labels"].numpy(), (ids != 0).numpy()
        mean = numpy.stack([table[row[seen]].mean(0) for row, seen in zip(ids.numpy(), attended, strict=True)])
        direction = weight[labels] - weight[1 - labels]
        self.margins = (direction * mean).sum(1) + bias[labels] - bias[1 - labels]
        real = (attended & ~numpy.isin(ids.numpy(), (0, 2, 3))).sum(1)
        self.slope = numpy.linalg.norm(direction, axis=1) * numpy.sqrt(real) / attended.sum(1)
        """How far the margin falls with each unit of an example's L2 norm."""
        self.token_slope = numpy.abs(direction).sum(1) / numpy.sqrt(direction.shape[1]) * real / attended.sum(1)
        """… with each unit of every token's L2 norm, along the sign."""

    def loss(self, fall: Any = 0.0) -> float:
        """The mean loss where margins have fallen by `fall`, one number or one per example."""
        return float(numpy.log1p(numpy.exp(fall - self.margins)).mean())


@pytest.fixture
def logistic() -> Logistic:
    return Logistic()


@pytest.fixture
def losses_of() -> Callable[[TrainingStep], list[float]]:
    """The losses that a step trains on; backward after each, as the host does it."""

    def losses(step: TrainingStep) -> list[float]:
        found = []
        for loss in step.context.composition.attack(step):
            loss.backward()
            found.append(loss.item())
        return found

    return losses


@pytest.fixture
def deltas_of() -> Callable[[TrainingStep], list[torch.Tensor]]:
    """The perturbations that the model sees in a step, evaluation by evaluation."""

    def deltas(step: TrainingStep) -> list[torch.Tensor]:
        seen: list[torch.Tensor] = []
        evaluate = step.evaluate

        def watched(delta: Any = None, batch: Any = None) -> Any:
            seen.append(delta.detach().clone())
            return evaluate(delta, batch)

        step.evaluate = watched  # type: ignore[method-assign]
        for loss in step.context.composition.attack(step):
            loss.backward()
        return seen

    return deltas


@pytest.fixture
def linear_softmax() -> Callable[..., LinearSoftmax]:
    """`linear_softmax(vocabulary, width, classes, seed)`."""
    return LinearSoftmax


@pytest.fixture
def by_inputs_embeds() -> Callable[..., torch.Tensor]:
    """`by_inputs_embeds(model, batch, delta)`: log-probabilities [N, V] where labels count, perturbed by `delta`.

    Through the public `inputs_embeds` and labels alone, so that it shares no code with the host.
    """

    def predictions(model: Any, batch: Mapping[str, Any], delta: Any = 0.0) -> torch.Tensor:
        table = (model.get_encoder() if model.config.is_encoder_decoder else model).get_input_embeddings().weight
        rest = {name: value for name, value in batch.items() if name != "input_ids"}
        embeds = table[batch["input_ids"]]
        logits = model(
            inputs_embeds=embeds + (delta.view(embeds.shape) if torch.is_tensor(delta) else delta), **rest
        ).logits
        labels = batch["labels"]
        if type(model).__name__.endswith("ForCausalLM"):
            logits, labels = logits[:, :-1], labels[:, 1:]
        return (logits if labels.dim() == 1 else logits[labels != -100]).log_softmax(-1)

    return predictions


class Votes(nn.Module):
    """The logit of class `1` is the sum of its words' votes and a bias, that of class `0` is zero."""

    config = SimpleNamespace(is_encoder_decoder=False)

    def __init__(self, votes: list[float], bias: float):
        super().__init__()
        self.table = nn.Embedding(len(votes), 2)
        self.bias = bias
        self.calls = 0
        with torch.no_grad():
            self.table.weight.copy_(torch.tensor([[0.0, vote] for vote in votes]))

    def get_input_embeddings(self) -> nn.Module:
        return self.table

    def forward(self, input_ids: Tensor, attention_mask: Tensor, **_: Any) -> SimpleNamespace:
        self.calls += 1
        summed = (self.table(input_ids) * attention_mask[..., None]).sum(1)
        return SimpleNamespace(logits=summed + torch.tensor([0.0, self.bias]))


def _victim_of(votes: dict[str, float], bias: float = 0.0, batch_size: int = 8) -> Victim:
    """A victim that knows these words; all others are unknown, and vote for nobody."""
    words = ["[PAD]", "[UNK]", *votes]
    backend = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    backend.pre_tokenizer = WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]", pad_token="[PAD]")
    task = TextClassification()
    task.prepare({"train": [_example(str(label), str(label)) for label in (0, 1)]})
    return Victim(task, Votes([0.0, 0.0, *votes.values()], bias), tokenizer, batch_size)


def _example(text: str, label: str = "1", row: int = 0, **fields: Any) -> Example:
    return Example({"text": text, "label": label, **fields}, inputs=("text",), split="test", row=row)


@pytest.fixture
def victim_of() -> Callable[..., Victim]:
    """`victim_of({word: vote}, bias, batch_size)`: a victim whose every answer is known on paper."""
    return _victim_of


@pytest.fixture
def example_of() -> Callable[..., Example]:
    """`example_of(text, label="1", row=0)`."""
    return _example
