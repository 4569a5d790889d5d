"""Groups that are treated alike: mean predictions compared between the groups of a data column."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from alignkit.components import Batch, Constraint, Term
from alignkit.data import Example
from alignkit.errors import Mistake, UsageError, nearest
from alignkit.tasks.classification import Classification, label_name, listed
from alignkit.tasks.stock import StockTask
from alignkit_constraints.groups import FORGOTTEN, codes, compared, estimated, gaps, group_sums, is_blank, names_of

if TYPE_CHECKING:
    from alignkit.plan import Setting
    from alignkit.step import TrainingStep

SHOWN = 3
"""Groups that a message names one by one."""
FEW = 4
"""Rows of a group in a micro-batch, on average, below which the plan says that they are few."""


class GroupFairness(Constraint):
    """Asks that groups named by a data column get the same predictions on average.

    `demographic-parity`: |E[p|a] - E[p|b]|, p the probability of a class and a, b two groups. `equalised-odds` (Hardt
    et al. 2016, arXiv:1610.02413): the same among the rows of each label by themselves, so that a group may have more
    of a label as long as those who have it, and those who do not, are treated alike. Both are differences in
    probability, from 0 to 1, of the model's soft predictions in place of its decisions; of hard ones they are what
    fairlearn calls `demographic_parity_difference` and `equalized_odds_difference`.

    More than two groups, classes or labels are reduced by `reduction`. `maximum`, fairlearn's `between_groups` and
    `worst_case`, is the largest difference between any two groups, of any class and label, and moves only that.
    `mean` is the mean over groups of the difference to the mean over all rows, and over classes and labels; with many
    groups it is the steadier one. Without `outcome` every class is compared; of two classes either gives the same.

    Rows whose group is missing or blank are not compared. A micro-batch whose rows have one group (under equalised
    odds: one group for every label) adds nothing.

    A micro-batch alone shows the gap badly: with n rows in each of two groups whose predictions have the standard
    deviation s, no gap at all looks like 1.1 s / sqrt(n) on average, and what lowers that is to predict the same for
    everybody. So the groups' means are remembered, decayed by `memory` at each optimizer step: how far they lie apart,
    and which is ahead, is taken from the steps before, and only the gradient from the micro-batch (value and gradient
    of a mean are those of different rows). Without `memory`, few rows of a group and a large weight end in constant
    predictions. In evaluation each batch stands for itself. Each process remembers what it saw. Large batches still
    help (`per_device_train_batch_size`). In an adversary's passes the perturbed predictions are compared.

    Raises:
        UsageError: before training: a column that is not there, or holds no categories; a single group, or one that
            is there once; micro-batches of one row; a label that the data does not have; a task that is no
            classification.

    Cost: no pass of its own. State: a sum and a number of rows for each group, class and label.

    Relations: `counterfactual` asks for the same prediction for each text and its counterpart, and needs no column;
    this one allows any differences that cancel out in a group, and finds those that no list of words knows.

    Example:
        >>> from alignkit_constraints.groups import group_gaps
        >>> p = torch.tensor([[0.9], [0.7], [0.2], [0.4]])
        >>> group_gaps(p, torch.tensor([0, 0, 1, 1]))
        tensor([0.5000])
        >>> GroupFairness(column="gender", criterion="equalised-odds").columns
        ('gender',)
    """

    column: str = Field(default="group", min_length=1)
    """The data's column that says which group a row is about: strings or integers; nothing or blank: no group."""
    criterion: Literal["demographic-parity", "equalised-odds"] = "demographic-parity"
    """`demographic-parity`: the same predictions for each group; `equalised-odds`: the same for each group among the
    rows of each label."""
    reduction: Literal["maximum", "mean"] = "maximum"
    """`maximum`: the largest difference between two groups; `mean`: the mean difference to all rows' mean."""
    outcome: str | None = None
    """The class whose probability is compared, by its label; nothing: every class."""

    memory: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """What an optimizer step leaves of what was known of the groups' means; 0: each micro-batch stands for itself."""

    couples_rows: ClassVar[bool] = True

    @property
    def columns(self) -> tuple[str, ...]:  # type: ignore[override]  # a constant of the class in most components
        """The column of the groups."""
        return (self.column,)

    # -- before training -----------------------------------------------------------------------------------------

    def check(self, setting: Setting) -> Iterable[Mistake]:
        """The task is a classification, and the training data has groups to compare."""
        where, task = f"constraint {self.name}", setting.task
        if not isinstance(task, StockTask) and not _has_classes(task):
            found = f"task {task.name} has no head that gives each example's classes a probability"
            yield Mistake(where, found, "task text-classification or relation-extraction")
            return
        if setting.batch_size == 1:
            found = "micro-batches of one row have one group: nothing would be compared"
            yield Mistake(where, found, "`per_device_train_batch_size` of 2 or more, the larger the better")
        rows, labels = setting.examples, getattr(task, "labels", [])  # rows first: the task has its labels from them
        if self.outcome is not None and self.outcome not in labels:
            found = f"the data has no label {self.outcome!r}"
            yield Mistake(f"{where} outcome", found, "a label", nearest(self.outcome, labels))
        if rows:
            yield from self._unfit(rows, where)

    def _unfit(self, examples: Sequence[Example], where: str) -> Iterator[Mistake]:
        """What keeps the column from being one of groups."""
        names = {name for example in examples for name in example}
        if self.column not in names:
            yield Mistake(where, f"the training data has no column {self.column!r}", "", nearest(self.column, names))
            return
        values = [(example, example.get(self.column)) for example in examples]
        if _are_labels(values):
            found = f"{self.column!r} holds the labels themselves, and predictions are to differ between those"
            yield Mistake(where, found, "a column that is not what the task predicts")
            return
        odd = [(e, value) for e, value in values if not is_blank(value) and label_name(value) is None]
        if odd:
            example, value = odd[0]
            more = f", and {len(odd) - 1} more rows like it" if len(odd) > 1 else ""
            yield Mistake(example.where, f"{self.column!r} is {value!r}{more}", "a group: a string or an integer")
            return
        members = Counter(name for _, value in values if (name := label_name(value)) is not None)
        if len(members) < 2:
            found = f"all rows with a group in {self.column!r} are {next(iter(members))!r}" if members else ""
            yield Mistake(where, found or f"no row has a group in the column {self.column!r}", "two groups or more")
            return
        yield from self._single_members(values, members)
        if self.criterion == "equalised-odds" and not _share_a_label(values):
            found = f"no label has rows of two groups of {self.column!r}, so that nothing would be compared"
            yield Mistake(where, found, "a label that two groups have", "take `criterion: demographic-parity`")

    def _single_members(self, values: list[tuple[Example, Any]], members: Counter[str]) -> Iterator[Mistake]:
        """Groups that are there once, whose mean would be one prediction."""
        once = [(example, name) for example, value in values if members[name := label_name(value) or ""] == 1]
        if len(once) > len(members) / 2:
            found = f"{self.column!r} has {len(members)} values, {len(once)} of which are there once"
            yield Mistake(f"constraint {self.name}", found, "a column of groups, each of many rows")
            return
        expected, mend = "two rows or more of each group", "merge it with another, or leave it blank: no group"
        for example, name in once[:SHOWN]:
            yield Mistake(example.where, f"the group {name!r} in {self.column!r} is there once", expected, mend)
        if len(once) > SHOWN:
            yield Mistake(f"column {self.column!r}", f"{len(once) - SHOWN} more groups are there once", expected)

    def notes(self, setting: Setting) -> Iterable[str]:
        """Micro-batches in which few rows of a group are to be expected."""
        members = {name for e in setting.examples if (name := label_name(e.get(self.column))) is not None}
        if setting.batch_size is not None and members and setting.batch_size < FEW * len(members):
            yield (
                f"{self.name} compares the {len(members)} groups of {self.column!r} within micro-batches of "
                f"{setting.batch_size} rows: few rows of each; a larger `per_device_train_batch_size` steadies it"
            )

    def ceiling(self, setting: Setting) -> float:
        """A difference of probabilities."""
        return 1.0

    # -- the step ------------------------------------------------------------------------------------------------

    def counts(self, batch: Batch) -> dict[str, int]:
        """Rows of the batch, where there is anything to compare in it."""
        values, labels = (batch.get("columns") or {}).get(self.column), batch.get("labels")
        if values is None or labels is None or not _per_example(labels):
            return {self.name: 0}
        names = names_of(values)
        groups = codes(names, sorted({name for name in names if name is not None})).to(labels.device)
        classes = labels.shape[-1] if labels.dim() == 2 else int(labels.max()) + 1
        # which number `outcome` has is not known here; rows of two groups nearly always share whether they have it
        criterion = self.criterion if self.outcome is None else "demographic-parity"
        parts = (groups[rows] for rows, _ in compared(criterion, labels, classes))
        several = any(len(part[part >= 0].unique()) > 1 for part in parts)
        return {self.name: len(labels) if several else 0}

    def penalty(self, step: TrainingStep, outputs: Any) -> Term:
        """The gap between the groups, as far as it is known, with the gradient of this micro-batch."""
        neutral = Term(torch.zeros(()), per=self.name)  # over no rows: not read
        if not step.model.training and not step.counts.get(self.name):
            return neutral  # a validation split need not have the column
        names, labels = names_of(step.column(self.column)), step.current.get("labels")
        if labels is None or not _per_example(labels) or step.current["input_ids"].dim() != 2:
            found = "the model's head does not give each example's classes a probability"
            raise UsageError(Mistake(f"constraint {self.name}", found, "a classification head"))
        if labels is not step.batch["labels"]:
            return neutral  # other rows than those whose groups are known
        log_p, _ = step.log_probabilities(outputs)
        p = log_p[..., 0].exp() if labels.is_floating_point() else log_p.exp()
        task: Any = step.context.task
        outcome = None if self.outcome is None else task.labels.index(self.outcome)
        remembers = step.model.training and self.memory > 0
        known = list(dict.fromkeys([*(self._names if remembers else ()), *(n for n in names if n is not None)]))
        groups, cells = codes(names, known).to(p.device), list(compared(self.criterion, labels, p.shape[1], outcome))
        each = [group_sums(p[rows], groups[rows], len(known)) for rows, _ in cells]
        sums, rows = (torch.stack(parts) for parts in zip(*each, strict=True))
        past = self._past(sums, rows) if remembers else (torch.zeros_like(sums), torch.zeros_like(rows))
        if remembers and step.total is None:  # once for each micro-batch, of its clean pass
            self._seen.append((known, sums.detach(), rows))
        return Term(self._gap(sums, rows, past, [classes for _, classes in cells]), per=self.name)

    def _gap(self, sums: Tensor, rows: Tensor, past: tuple[Tensor, Tensor], chosen: list[list[int]]) -> Tensor:
        """Of sums [K, G, C] over rows [K, G] of K comparisons, each of some classes, and of those before."""
        means = estimated(sums, rows, *past)
        overall = estimated(sums.sum(1), rows.sum(1), past[0].sum(1), past[1].sum(1))
        there = (rows > 0) | (past[1] > FORGOTTEN)
        found = [
            gaps(means[k][there[k]][:, classes], overall[k][classes], self.reduction)
            for k, classes in enumerate(chosen)
            if int(there[k].sum()) > 1
        ]
        together = torch.cat(found) if found else sums.sum().view(1) * 0.0
        return together.amax() if self.reduction == "maximum" else together.mean()

    # -- what is remembered --------------------------------------------------------------------------------------

    def __post_init__(self) -> None:
        self._names: list[str] = []
        """The groups that are remembered."""
        self._sums = self._rows = torch.zeros(0)
        """[K, G, C] sums of probabilities and [K, G] rows, decayed."""
        self._seen: list[tuple[list[str], Tensor, Tensor]] = []
        """Groups, sums and rows of the micro-batches since the last optimizer step."""

    def _past(self, sums: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """What is remembered, with room for the groups that are new."""
        found = torch.zeros_like(sums), torch.zeros_like(rows)
        if self._names:
            found[0][:, : len(self._names)] = self._sums.to(sums)
            found[1][:, : len(self._names)] = self._rows.to(rows)
        return found

    def after_step(self, step: TrainingStep) -> None:
        """Remember what the micro-batches of this optimizer step showed, and a little less of what was before."""
        for number, (names, sums, rows) in enumerate(self._seen):
            names = list(dict.fromkeys([*self._names, *names]))
            known = [names.index(name) for name in self._seen[number][0]]  # none, where no row has had a group yet
            places = torch.tensor(known, dtype=torch.long, device=sums.device)
            shape = (len(sums), len(names), sums.shape[-1])
            decay = self.memory if number == 0 else 1.0
            past = self._past(sums.new_zeros(shape), rows.new_zeros(shape[:2]))
            self._sums = (decay * past[0]).index_add(1, places, sums)
            self._rows = (decay * past[1]).index_add(1, places, rows)
            self._names = names
        self._seen = []

    def state_dict(self) -> dict[str, Any]:
        return {"names": self._names, "sums": self._sums, "rows": self._rows} if self._names else {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state:
            self._names, self._sums, self._rows = list(state["names"]), state["sums"], state["rows"]


def _per_example(labels: Tensor) -> bool:
    """One class per row, or a floating [N, C] of several."""
    return labels.dim() == 2 if labels.is_floating_point() else labels.dim() == 1


def _has_classes(task: Any) -> bool:
    return isinstance(task, Classification) and bool(task.peft_type == "SEQ_CLS")


def _are_labels(values: list[tuple[Example, Any]]) -> bool:
    """Each row's group is its label."""
    groups = [(value, example.get("label")) for example, value in values if not is_blank(value)]
    return bool(groups) and all(value == label or label_name(value) == label for value, label in groups)


def _share_a_label(values: list[tuple[Example, Any]]) -> bool:
    """Some label has rows of two groups."""
    found: dict[str, set[str]] = {}
    for example, value in values:
        if (name := label_name(value)) is not None and "label" in example:
            for label in listed(example["label"]) or [""]:
                found.setdefault(label, set()).add(name)
    return any(len(names) > 1 for names in found.values())
