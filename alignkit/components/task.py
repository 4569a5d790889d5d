"""The kind `task`: what a model is for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from alignkit.components.answers import Batch
from alignkit.components.component import Component
from alignkit.components.training import Objective
from alignkit.errors import Mistake, UsageError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from alignkit.data import Example
    from alignkit.data.read import Reader


class Task(Component, abstract=True):
    """What a model is for: the data's format, its encoding, the head, the metrics, the answers.

    The host calls, in this order: `unfold` and `parse` for every row of every file, `prepare` once, `take_model` and
    `head` before the model is loaded, `encode` for every example, `collate` for every batch; and for evaluation
    `infer` (by default `decode`), `join` where a long text has several windows, `statistics`, `metrics`.
    """

    kind: ClassVar[str] = "task"
    must_override: ClassVar[tuple[str, ...]] = ("parse", "encode", "collate", "decode", "statistics", "metrics")
    auto_class: ClassVar[str] = "AutoModel"
    """The transformers class that loads the model: `AutoModelForTokenClassification` …"""
    auto_classes: ClassVar[tuple[str, ...]] = ()
    """All that `take_model` may choose for `auto_class`; empty: `auto_class` alone."""
    peft_type: ClassVar[str] = ""
    """peft's name for the kind of head: `TOKEN_CLS`, `SEQ_CLS`, `CAUSAL_LM`, `SEQ_2_SEQ_LM`, `QUESTION_ANS`."""
    has_head: ClassVar[bool] = True
    """The task puts a head of its own on a plain encoder (fresh until trained)."""
    shifts_labels: ClassVar[bool] = False
    """The label at position t is predicted at t - 1 (causal language models)."""
    suffixes: ClassVar[tuple[str, ...]] = (".jsonl", ".json")
    """File suffixes that the task reads."""
    metric: ClassVar[str] = ""
    """The metric that ranks models."""
    greater_is_better: ClassVar[bool] = True
    decodes_outputs: ClassVar[bool] = True
    """A prediction follows from the outputs for its batch alone; no text is generated, nothing else is asked. May be a
    property."""
    generates: ClassVar[str] = ""
    """The field of an answer that holds the text which the model wrote; empty: it writes none. A task that generates
    does it by `alignkit.generation.generate`, and its `predict` hands its option `control` on to it."""
    windowed: ClassVar[bool] = False
    """`encode` may give several windows of one example, whose predictions `join` makes one of."""
    stock_loss: ClassVar[bool] = True
    """The model's own loss on its labels is what `supervised` minimises. Where it is False, the model is run by
    `forward`, and the objective makes a loss of the outputs."""
    needs_training_split: ClassVar[bool] = False
    """Looks at training examples when it predicts, too: a run's are then read again. May be a property."""
    hub_task: ClassVar[str] = ""
    """The hub's name for the task, in the model card; by default what `auto_class` is used for."""
    samples: ClassVar[tuple[dict[str, Any], ...]] = ()
    """Six rows or more as its files hold them, short, in lower-case English, each label among them: shown by
    `alignkit plugins NAME`, and what the conformance cases train tiny models on."""

    def default_objective(self) -> Objective:
        """What is minimised where nobody names an objective."""
        from alignkit.objectives.supervised import Supervised

        return Supervised()

    def unfold(self, row: dict[str, Any]) -> Iterable[tuple[str, dict[str, Any]]]:
        """The rows in one object of a file, each with its place in it (`question 56be`); by default it is the row."""
        return [("", row)]

    def readers(self) -> Mapping[str, Reader]:
        """By suffix, what reads files in another way than `alignkit.data.read` does (`.txt` as running text …)."""
        return {}

    def parse(self, fields: dict[str, Any], where: str) -> Example:
        """Validate one row. Raises UsageError that says where, what was found, what was expected."""
        raise NotImplementedError

    def prepare(self, splits: Mapping[str, list[Example]]) -> None:
        """See all splits once, before the model is loaded: label sets, unknown labels. Raises UsageError."""

    def head(self) -> dict[str, Any]:
        """Arguments of `from_pretrained` that shape the head: num_labels, id2label …"""
        return {}

    def adopt(self, config: Any) -> None:
        """Take the label set from a trained model's config, where there is no training split to take it from."""

    def take_model(self, config: Mapping[str, Any]) -> None:
        """Look at the model's config before it is loaded: `auto_class` and its kin may depend on it.

        Raises:
            UsageError: the task cannot use such a model.
        """

    def take_weights(self, model: Any, tokenizer: Any) -> None:
        """Look at the loaded model as it stands, before examples are encoded for it or scored by it."""

    def encode(self, example: Example, tokenizer: Any) -> dict[str, Any] | list[dict[str, Any]] | None:
        """One example as the model's inputs and labels, unpadded; None where nothing of it would be learnt.

        A `windowed` task may give several; all have the same keys. A key in `columns` is kept out of `collate`.
        """
        raise NotImplementedError

    def pack(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Encoded training rows put together into fewer; asked where no component looks at single rows.

        A row keeps `index` and `length`; the first example's index stands for all that share a row.
        """
        return rows

    def redraw(self, batch: Batch, columns: Mapping[str, Any], generator: torch.Generator) -> Batch:
        """A training batch with what is drawn anew at every step (masks); evaluation sees the batch as collated.

        A batch with views stays as it was collated, too: their labels align with its own.

        Args:
            columns: what the rows hold of the task's `columns`, a tensor or list per name.
            generator: seeded from (seed, optimizer step, micro-batch, rank), so a resumed run draws the same.
        """
        return batch

    def collate(self, features: list[dict[str, Any]], tokenizer: Any) -> Batch:
        """Pad encoded examples to one batch of tensors."""
        raise NotImplementedError

    def counts(self, batch: Batch) -> dict[str, int]:
        """How many of each unit a mean may be over: always `example`; `token` where labels are per token."""
        from alignkit.tasks.stock import label_counts

        return label_counts(batch, self.shifts_labels)

    def forward(self, model: Any, batch: Batch) -> Any:
        """The model's outputs for a batch as `collate` made it; by default all that it gives.

        Asked for evaluation and for the reference, and where `stock_loss` is False for training, too.
        """
        return model(**batch)

    def log_probabilities(self, outputs: Any, batch: Batch) -> tuple[Tensor, str]:
        """What the model predicts where it is scored: [N, ..., V] normalised over V, and the unit that N counts."""
        from alignkit.tasks.stock import head_logits, scored_log_probabilities

        return scored_log_probabilities(head_logits(outputs), batch, self.shifts_labels)

    def label_log_probabilities(self, outputs: Any, batch: Batch) -> Tensor:
        """[N]: the log-probability of the label, where a language model is scored; in the order of the above."""
        from alignkit.tasks.stock import label_log_probabilities

        return label_log_probabilities(outputs, batch, self.shifts_labels)

    def scored_hidden(self, outputs: Any, batch: Batch) -> Tensor:
        """[N, D]: of a causal language model's `hidden` [B, T, D] the states that predict its N scored labels."""
        from alignkit.tasks.stock import scored_hidden

        return scored_hidden(outputs.hidden, batch)

    def decode(self, outputs: Any, batch: Batch) -> list[dict[str, Any]]:
        """One prediction per row of the batch. `probabilities` (an array) is what gaps are measured on.

        Args:
            batch: as collated, and in `batch["columns"]` what its rows hold of the task's `columns`.
        """
        raise NotImplementedError

    def infer(self, model: Any, tokenizer: Any, batch: Batch, outputs: Any) -> list[dict[str, Any]]:
        """One prediction per row, for evaluation; tasks that generate override it.

        Args:
            model: unwrapped, in evaluation mode, on the batch's device.
            batch: as `decode` gets it.
            outputs: its outputs for the batch.
        """
        return self.decode(outputs, batch)

    def join(self, parts: list[dict[str, Any]]) -> dict[str, Any]:
        """The prediction for an example of those for its windows; a window may be there twice."""
        return parts[0]

    def statistics(self, example: Example, prediction: dict[str, Any]) -> dict[str, float]:
        """Additive statistics of one example, from which `metrics` computes: metrics are functions of their sums."""
        raise NotImplementedError

    def metrics(self, totals: Mapping[str, Any]) -> dict[str, Any]:
        """Metrics from summed statistics; elementwise, so that arrays [replicates] of sums give arrays of metrics."""
        raise NotImplementedError

    def score(self, example: Example, prediction: dict[str, Any]) -> float | None:
        """How right a prediction is, from 0 to 1 (nothing is wrong with it); None where the task cannot say."""
        return None

    def fixed_spans(self, example: Example) -> Mapping[str, list[tuple[int, int]]]:
        """What of the inputs an attack may not rewrite, as answers are compared with it word for word.

        Returns:
            By field spans (first, the one after the last): of a text in characters, of a word list in words.
        """
        return {}

    def kept_spans(self, example: Example) -> Mapping[str, list[tuple[int, int]]]:
        """What of the inputs an attack may not take away, as the labels are about it; spans as in `fixed_spans`.

        A field without spans says that there is nothing there this time: a sentence without entities.
        """
        return self.fixed_spans(example)

    def row_losses(self, outputs: Any, batch: Batch) -> Tensor:
        """[B]: the mean loss of each row's labels, in nats: what an attack on a single example drives up."""
        from alignkit.tasks.stock import row_losses

        return row_losses(outputs, batch, self.shifts_labels)

    def gap(self, one: dict[str, Any], other: dict[str, Any]) -> float:
        """How far two predictions for versions of one example lie apart: mean |p - p'| over what is predicted."""
        import numpy

        a, b = numpy.asarray(one["probabilities"]), numpy.asarray(other["probabilities"])
        n = min(len(a), len(b)) if a.ndim > 1 else None
        return float(numpy.abs(a[:n] - b[:n]).mean()) if a.size and b.size else 0.0

    def inputs(self, given: str | Mapping[str, Any]) -> Example:
        """An example without an answer, of a text or of the task's input fields, for `predict`."""
        raise NotImplementedError

    def answer(self, example: Example, prediction: dict[str, Any]) -> dict[str, Any]:
        """A prediction as `alignkit predict` prints it: JSON, complete in itself."""
        raise NotImplementedError

    def predict(
        self, model: Any, tokenizer: Any, examples: list[Example], batch_size: int = 16, **options: Any
    ) -> Iterator[dict[str, Any]]:
        """Answers for examples, in order. Tasks that generate override it, and say which options they take.

        Raises:
            UsageError: an option that the task does not have.
        """
        from alignkit.evaluation.score import predictions

        if options:
            raise UsageError(Mistake(", ".join(options), f"no option of task {self.name}", "batch_size alone"))
        for example, prediction in zip(
            examples, predictions(self, model, tokenizer, examples, batch_size), strict=True
        ):
            yield self.answer(example, prediction)
