"""The same answer whoever a text is about: predictions compared with those for a demographic counterpart."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from alignkit.components import Batch, Constraint, Term
from alignkit.data import Example
from alignkit.divergence import kl
from alignkit.errors import Mistake, UsageError
from alignkit_constraints.kl_reference import jensen_shannon
from alignkit_constraints.swaps import read_pairs, swapped, swapper

if TYPE_CHECKING:
    from alignkit.plan import Setting
    from alignkit.step import TrainingStep


def prediction_gap(log_p: Tensor, log_q: Tensor, divergence: str) -> Tensor:
    """How far two predictions for versions of one text lie apart; differentiable in both.

    Args:
        log_p: [N, ..., V] log-probabilities for the text, normalised over V.
        log_q: [N, ..., V] for its counterpart, position by position.
        divergence: `kl`: KL(p || q) in nats; `symmetric-kl`: (KL(p || q) + KL(q || p)) / 2; `js`: Jensen-Shannon;
            `absolute`: total variation, sum_v |p - q| / 2, from 0 to 1.

    Returns:
        [N].
    """
    if divergence == "kl":
        return kl(log_p, log_q)
    if divergence == "symmetric-kl":
        return (kl(log_p, log_q) + kl(log_q, log_p)) / 2
    if divergence == "js":
        return jensen_shannon(log_p, log_q)
    return (log_p.exp() - log_q.exp()).abs().flatten(1).sum(1) / 2


class Counterfactual(Constraint):
    """Asks for the same predictions when gendered words, names, or words of your own lists are swapped.

    Counterfactual logit pairing (Garg et al. 2019, arXiv:1809.10610) with a divergence of the distributions in place
    of the difference of the logits. Each example whose inputs hold a word of the lists gets a view, the text with
    all of them swapped at once; the penalty is the mean over those examples of the divergence between the two
    predictions, itself a mean over the example's scored positions. Gradients flow through both predictions.

    Targets (completions) and labels stay as they are. Word lists (NER) keep their number of words; positions are
    compared word by word, and where truncation cut one of the two shorter, only those that both have. In an
    adversary's passes the example is perturbed, its counterpart is not.

    Two components with different lists need names of their own. A swap list knows no grammar: English "her" becomes
    "his" even where "him" is meant; read a sample of the views before you trust a list.

    Raises:
        UsageError: a list that does not exist or cannot be read.

    Cost: at each loss one forward and backward pass of the rows that have a view (0 to 1 of a plain one).

    Relations: `kl-reference` compares with another model instead of another text. Augmenting with swapped examples
    needs labels and costs rows; this needs no label of the counterpart.

    Example:
        >>> example = Example({"text": "He won."}, inputs=("text",))
        >>> Counterfactual(lists=["gender"]).views(example)["counterfactual"]["text"]
        'She won.'
    """

    lists: list[Literal["gender", "names"] | Path] = Field(default=["gender", "names"], min_length=1)
    """`gender`, `names`, or paths of your own lists: UTF-8, two words per line separated by a tab."""
    language: Literal["en", "zh"] = "en"
    """The texts' language: which lists are meant, and whether words are separated by spaces."""
    divergence: Literal["kl", "symmetric-kl", "js", "absolute"] = "symmetric-kl"
    """`kl`: KL(example || counterpart); `symmetric-kl`: mean of both directions; `js`; `absolute`: total variation."""

    backwards: ClassVar[float] = 1.0

    @property
    def _own_name(self) -> str:
        return getattr(self, "name", "counterfactual")

    @cached_property
    def _swap(self) -> Callable[[str], str]:
        read = [read_pairs(str(name), self.language) for name in self.lists]
        if mistakes := [mistake for _, found in read for mistake in found]:
            raise UsageError(*mistakes)
        return swapper([pair for pairs, _ in read for pair in pairs], self.language)

    def check(self, setting: Setting) -> Iterable[Mistake]:
        """Lists that cannot be read."""
        return [mistake for name in self.lists for mistake in read_pairs(str(name), self.language)[1]]

    def views(self, example: Example) -> dict[str, Example]:
        """The example's counterpart under the component's name, where it has one."""
        other = swapped(example, self._swap, self.language)
        return {} if other is None else {self._own_name: other}

    def counts(self, batch: Batch) -> dict[str, int]:
        """Rows of the batch that have a counterpart."""
        view = (batch.get("views") or {}).get(self._own_name)
        return {self._own_name: 0 if view is None else len(view["rows"])}

    def penalty(self, step: TrainingStep, outputs: Any) -> Term:
        """The mean gap between rows and their counterparts."""
        view = step.views.get(self._own_name)
        if view is None or len(view) == 0:
            return Term(torch.zeros(()), per=self._own_name)  # over no rows: not read
        counterpart = step.forward(batch=view.batch)
        gaps = []
        for position, row in enumerate(view.rows.tolist()):
            log_p = _predictions(step, outputs, step.batch, row)
            log_q = _predictions(step, counterpart, view.batch, position)
            both = min(len(log_p), len(log_q))
            width = min(log_p.shape[-1], log_q.shape[-1])  # a span's positions: what is longer is padding
            gap = prediction_gap(log_p[:both, ..., :width], log_q[:both, ..., :width], self.divergence)
            gaps.append(gap.sum() / max(both, 1))
        return Term(torch.stack(gaps).mean(), per=self._own_name)


def _predictions(step: TrainingStep, outputs: Any, batch: Batch, row: int) -> Tensor:
    """Log-probabilities [N, ..., V] of one row of the batch, N its scored positions."""
    rows = len(batch["input_ids"])
    inputs, answers = (
        {k: v[row : row + 1] if isinstance(v, Tensor) and v.dim() and len(v) == rows else v for k, v in values.items()}
        for values in (batch, outputs)
    )
    return step.log_probabilities(SimpleNamespace(**answers), inputs)[0]
