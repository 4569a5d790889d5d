"""The same answer whoever a text is about: predictions compared with those for a demographic counterpart."""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from pydantic import Field, NonNegativeInt
from torch import Tensor

from alignkit.components import Batch, Constraint, Term
from alignkit.data import Example
from alignkit.divergence import jensen_shannon, kl
from alignkit.errors import Mistake, UsageError
from alignkit_constraints.kl_reference import predicts_one
from alignkit_constraints.swap_lists import read_list
from alignkit_constraints.swaps import Swapper, swapped

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
    """Asks for the same predictions when gendered words, names, nationalities, or words of your own are swapped.

    Counterfactual logit pairing (Garg et al. 2019, arXiv:1809.10610) with a divergence of the distributions in place
    of the difference of the logits. Each example whose inputs hold a word of the lists gets a view, the text with
    all of them swapped at once; the penalty is the mean over those examples of the divergence between the two
    predictions, itself a mean over the example's scored positions. Gradients flow through both predictions.

    Targets (completions) and labels stay as they are. Word lists (NER) keep their number of words; positions are
    compared word by word, and where truncation cut one of the two shorter, only those that both have. In an
    adversary's passes the example is perturbed, its counterpart is not.

    Gendered words come in pairs. A name gives way to one of the other column of `names`, of any line, a nationality to
    any other one in the same form (country, adjective, person, people). Which one depends on `seed` and the example's
    text alone, and is one and the same step down the list for all words of an example, so that two people stay two.

    English grammar is kept as far as lists and a few rules do: `her` becomes `his` before what looks like a noun, else
    `him`, `his` likewise `her` or `hers`; `a` and `an` follow the new word. Chinese counterparts are as long as the
    words they replace, which labels by character need. Read a sample of the views before you trust a list. Two
    components with different lists need names of their own.

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

    lists: list[Literal["gender", "names", "nationality"] | Path] = Field(default=["gender", "names"], min_length=1)
    """`gender`, `names`, `nationality`, or paths of your own lists: UTF-8, two words or more per line, separated by
    tabs; those of a line stand for one another, or, below a line `#swap: lines`, those of a column."""
    language: Literal["en", "zh"] = "en"
    """The texts' language: which lists are meant, and whether words are separated by spaces."""
    cased: bool = True
    """False, for texts without capitals: names and nationalities are found in small letters, too (`turkey`)."""
    seed: NonNegativeInt = 0
    """Another one chooses other counterparts where a list has several."""
    divergence: Literal["kl", "symmetric-kl", "js", "absolute"] = "symmetric-kl"
    """`kl`: KL(example || counterpart); `symmetric-kl`: mean of both directions; `js`; `absolute`: total variation."""

    backwards: ClassVar[float] = 1.0

    @cached_property
    def _swap(self) -> Swapper:
        read = [read_list(str(name), self.language) for name in self.lists]
        if mistakes := [mistake for _, found in read for mistake in found]:
            raise UsageError(*mistakes)
        return Swapper([part for parts, _ in read for part in parts], self.language, self.cased)

    def check(self, setting: Setting) -> Iterable[Mistake]:
        """Lists that cannot be read."""
        return [mistake for name in self.lists for mistake in read_list(str(name), self.language)[1]]

    def notes(self, setting: Setting) -> Iterable[str]:
        """Rows of which none has a counterpart, so that it would be met whatever the model does."""
        rows, added = setting.examples, any(component.kind == "augmenter" for component in setting.components)
        if rows and not added and not any(map(self.views, rows)):
            yield (
                f"{self.name} does nothing: none of {len(rows)} training rows has a word of its lists; look at "
                "`lists`, `language` and, for texts without capitals, `cased`, or add rows that have some by the "
                "augmenter `mentions`"
            )

    def ceiling(self, setting: Setting) -> float | None:
        """1 for `absolute`, ln 2 for `js`, where there is one distribution per token or example."""
        return {"absolute": 1.0, "js": math.log(2)}.get(self.divergence) if predicts_one(setting) else None

    def views(self, example: Example) -> dict[str, Example]:
        """The example's counterpart under the component's name, where it has one."""
        other = swapped(example, self._swap, self.seed)
        return {} if other is None else {self.name: other}

    def counts(self, batch: Batch) -> dict[str, int]:
        """Rows of the batch that have a counterpart."""
        view = (batch.get("views") or {}).get(self.name)
        return {self.name: 0 if view is None else len(view["rows"])}

    def penalty(self, step: TrainingStep, outputs: Any) -> Term:
        """The mean gap between rows and their counterparts."""
        view = step.views.get(self.name)
        if view is None or len(view) == 0:
            return Term(torch.zeros(()), per=self.name)  # over no rows: not read
        counterpart = step.forward(batch=view.batch)
        gaps = []
        for position, row in enumerate(view.rows.tolist()):
            log_p = _predictions(step, outputs, step.batch, row)
            log_q = _predictions(step, counterpart, view.batch, position)
            both = min(len(log_p), len(log_q))
            width = min(log_p.shape[-1], log_q.shape[-1])  # a span's positions: what is longer is padding
            gap = prediction_gap(log_p[:both, ..., :width], log_q[:both, ..., :width], self.divergence)
            gaps.append(gap.sum() / max(both, 1))
        return Term(torch.stack(gaps).mean(), per=self.name)


def _predictions(step: TrainingStep, outputs: Any, batch: Batch, row: int) -> Tensor:
    """Log-probabilities [N, ..., V] of one row of the batch, N its scored positions."""
    rows = len(batch["input_ids"])
    inputs, answers = (
        {k: v[row : row + 1] if isinstance(v, Tensor) and v.dim() and len(v) == rows else v for k, v in values.items()}
        for values in (batch, outputs)
    )
    return step.log_probabilities(SimpleNamespace(**answers), inputs)[0]
