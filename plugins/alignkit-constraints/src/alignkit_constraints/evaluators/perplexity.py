"""How likely a language model finds a text, before and after: whether it still writes as it did."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

from alignkit.components import Evaluator, Measurement
from alignkit.data.audit import TEXT_LENGTH
from alignkit.data.example import Example
from alignkit.data.read import Reader
from alignkit.data.source import Sources
from alignkit.data.text import Documents, text_reader
from alignkit.errors import Mistake
from alignkit.evaluation.score import predictions
from alignkit.tasks.causal_lm import CausalLm
from alignkit.tasks.likelihood import loss_metrics, loss_statistics
from alignkit.tasks.masked_lm import MaskedLm
from alignkit_constraints.evaluators.likelihood import no_language_model

if TYPE_CHECKING:
    from alignkit.components import Task
    from alignkit.evaluation.evaluators import Subject
    from alignkit.tasks.plain_text import PlainText


class Perplexity(Evaluator):
    """Measures a language model's perplexity on text, as it stands: whether alignment has cost it its language.

    exp of the mean negative log-likelihood per token, over all tokens of all documents. A causal model predicts each
    token from those before it, as in the task `causal-lm`: the opening token is not predicted, the end-of-text token
    is, and a document longer than `maximum_length` becomes windows that overlap in one token. A masked model predicts
    the words that the task `masked-lm` hides for evaluation, the same for every model. Neither goes through a chat
    template: to score the answers of a conversation, name them as a test split of the task `chat`, whose metric is
    their perplexity.

    Metrics: `perplexity`; among the details `loss`, nats per token, a change of which by d multiplies the perplexity
    by exp(d). Perplexities of models whose tokenizers differ cannot be compared.

    Cost: one forward pass per window.

    Relations: `kl-reference` (constraint) bounds what this measures on the training data.

    Example:
        >>> Perplexity(text={"path": "benign.jsonl", "columns": {"text": "{instruction} {response}"}}).maximum_length
        256
    """

    text: Annotated[Sources, Field(min_length=1)]
    """Files of text: rows `text`, or `.txt`."""
    maximum_length: Annotated[int, Field(ge=8)] = 256
    """Longest window in tokens."""
    documents: Documents = "line"
    """Of a `.txt` file: what one document is, a `line`, a `paragraph` (blank lines end it), or the whole `file`."""

    directions: ClassVar[Mapping[str, int]] = {"perplexity": -1}
    example: ClassVar[Mapping[str, Any]] = {"text": "benign.txt"}
    samples: ClassVar[Mapping[str, tuple[dict[str, Any], ...]]] = {
        "text": (
            {"text": "ada lives in rome and works in paris"},
            {"text": "the film was very good"},
            {"text": "bob saw her . he was fine , and they went to the film ."},
        )
    }

    def readers(self) -> Mapping[str, Reader]:
        return {".txt": text_reader(self.documents)}

    def parse(self, name: str, fields: dict[str, Any], where: str) -> Example:
        return CausalLm().parse(fields, where)

    def check_task(self, task: Task) -> Iterable[Mistake]:
        """A language model, causal or masked."""
        return no_language_model(f"evaluator {self.name}", task)

    def measure(self, subject: Subject, examples: list[Example]) -> list[Measurement]:
        cls: type[PlainText] = CausalLm if subject.task.auto_class == "AutoModelForCausalLM" else MaskedLm
        task = cls(maximum_length=self.maximum_length)
        found = predictions(task, subject.model, subject.tokenizer, examples, subject.batch_size, progress=False)
        return [
            Measurement(sums := loss_statistics(prediction), _line(example, sums))
            for example, prediction in zip(examples, found, strict=True)
        ]

    def metrics(self, totals: Mapping[str, Any]) -> dict[str, Any]:
        return loss_metrics(totals)


def _line(example: Example, sums: Mapping[str, float]) -> dict[str, Any]:
    """The beginning of a document, its loss in nats per token, and of how many tokens that is the mean."""
    tokens = int(sums["tokens"])
    return {"text": example.text[:TEXT_LENGTH], "loss": sums["nll"] / tokens if tokens else None, "tokens": tokens}
