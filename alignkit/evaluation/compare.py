"""A model measured on every split, under augmenters and across views; two measurements compared on the same rows."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from alignkit.errors import AlignkitError, UsageError
from alignkit.evaluation.bootstrap import Floats, Metrics, intervals, paired
from alignkit.evaluation.evaluators import BY, Subject, evaluated, unfit
from alignkit.evaluation.robustness import PREFIX, attack_metrics, attacked, refusals, rows_of, spread
from alignkit.evaluation.score import gap, metrics_of, predictions, statistics_matrix
from alignkit.evaluation.table import AGAINST, better_direction, table
from alignkit.evaluation.victim import Victim

if TYPE_CHECKING:
    from torch import nn

    from alignkit.components import Attack, Component, Control, Evaluator, Task
    from alignkit.data import Example

__all__ = ["Measured", "SplitMeasured", "compare", "evaluate", "rewritten", "table"]

Views = Callable[["Example"], Mapping[str, "Example"]]


@dataclass
class SplitMeasured:
    """One split, scored row by row, so that two models can be compared on the same rows."""

    names: list[str]
    """Of the K statistics."""
    matrix: Floats
    """[N, K]: the task's additive statistics per example."""
    gaps: dict[str, Floats] = field(default_factory=dict)
    """View -> [N]: how far the prediction for the view lies from the example's; not a number where there is none."""
    metrics: dict[str, float] = field(default_factory=dict)
    """The task's metrics, and `gap/VIEW` per view."""
    formula: Metrics | None = None
    """From sums of statistics to metrics, where it is not the task's alone."""
    directions: Mapping[str, int] = field(default_factory=dict)
    """Of metrics: whether more is better (1), worse (-1) or neither (0), where somebody says so."""
    counted: Mapping[str, str] = field(default_factory=dict)
    """Of a metric that is about some rows only: the statistic that is not 0 in those."""


@dataclass
class Measured:
    """What `evaluate` found of one model."""

    splits: dict[str, SplitMeasured] = field(default_factory=dict)
    attempts: list[dict[str, Any]] = field(default_factory=list)
    """Attacks on single examples to look at, as `attacks.jsonl` holds them."""
    seen: list[dict[str, Any]] = field(default_factory=list)
    """What evaluators saw of single rows, as `evaluations.jsonl` holds it."""
    controlled: list[str] = field(default_factory=list)
    """The splits whose answers were given under controls."""

    @property
    def metrics(self) -> dict[str, dict[str, float]]:
        """Split -> metric -> value."""
        return {name: split.metrics for name, split in self.splits.items()}


def evaluate(
    task: Task,
    model: nn.Module,
    tokenizer: Any,
    splits: Mapping[str, list[Example]],
    under: Sequence[Component] = (),
    gaps: list[str] | None = None,
    views: Views | None = None,
    attacks: Sequence[Attack] = (),
    evaluators: Sequence[Evaluator] = (),
    rows: Mapping[str, list[Example]] | None = None,
    controls: Sequence[Control] = (),
    attacked_alone: bool = False,
    batch_size: int = 32,
    seed: int = 0,
) -> Measured:
    """Score a model on every split, on the test splits as augmenters rewrite them, across views, under attack, and by
    evaluators.

    Args:
        splits: name -> examples: `validation`, `test`, `test/NAME`.
        under: augmenters; each adds `test under NAME` for every test split (the validation split where there is no
            test), with the same rewritten rows for every model that is scored with this seed.
        gaps: names of views; each adds the metric `gap/NAME`, the mean over the examples that have that view.
        views: an example's other versions, by name.
        attacks: each adds `test against NAME` (with its settings: `test against pgd 0.5`) for every test split.
        evaluators: each adds a split of its name, or `test by NAME` for every test split where it has no rows.
        rows: by evaluator its own rows, as `alignkit.evaluation.evaluators.read` gives them.
        controls: what the answers that evaluators ask for are under; nothing else is.
        attacked_alone: splits are scored on those rows that an attack takes; nothing but attacks is asked for.

    Raises:
        UsageError: an attack or an evaluator that the task cannot be put to.
    """
    if mistakes := [*refusals(attacks, task, tokenizer), *unfit(evaluators, task, splits=bool(splits))]:
        raise UsageError(*mistakes)
    measured, clean = Measured(), {}
    for name, examples in splits.items():
        scored = rows_of(attacks, len(examples)) if attacked_alone else list(range(len(examples)))
        chosen = [examples[row] for row in scored]
        predicted = predictions(task, model, tokenizer, chosen, batch_size)
        across = _gaps(task, model, tokenizer, chosen, predicted, gaps or [], views, batch_size)
        measured.splits[name] = _measured(task, chosen, predicted, across)
        by_row = dict(zip(scored, predicted, strict=True))
        clean[name] = [by_row.get(row, {}) for row in range(len(examples))]
    tests = [name for name in splits if name == "test" or name.startswith("test/")]
    tests = tests or [name for name in splits if name == "validation"]
    for augmenter in under:
        for name in tests:
            examples = rewritten(splits[name], augmenter, seed)
            predicted = predictions(task, model, tokenizer, examples, batch_size)
            measured.splits[f"{name} under {augmenter.name}"] = _measured(task, examples, predicted, {})
    for attack in attacks:
        victim = Victim(task, model, tokenizer, batch_size, seed)
        for name in tests:
            for setting, found in attacked(attack, victim, splits[name], clean[name]).items():
                split = f"{name}{AGAINST}{attack.name} {setting}".rstrip()
                formula = metrics_under_attack(task)
                metrics = metrics_of(formula, found.names, found.matrix)
                measured.splits[split] = SplitMeasured(
                    found.names, found.matrix, metrics=metrics, formula=formula, directions=attack.directions
                )
                measured.attempts += [{"measured": split, **line} for line in found.lines]
    known = {id(e): p for name in tests for e, p in zip(splits[name], clean[name], strict=True)}
    for evaluator in evaluators:
        subject = Subject(task, model, tokenizer, batch_size, known, controls)
        own = (rows or {}).get(evaluator.name)
        sets = {f"{name}{BY}{evaluator.name}": splits[name] for name in tests} if own is None else {evaluator.name: own}
        for split, examples in sets.items():
            measured.splits[split], lines = _by_evaluator(evaluator, subject, examples)
            measured.seen += [{"measured": split, **line} for line in lines]
            measured.controlled += [split] if subject.controlled else []
    return measured


def _by_evaluator(
    evaluator: Evaluator, subject: Subject, examples: list[Example]
) -> tuple[SplitMeasured, list[dict[str, Any]]]:
    """What an evaluator finds of a split or of its own rows, and what it saw of each of them."""
    if not evaluator.sources():
        examples = [examples[row] for row in spread(len(examples), evaluator.limit)]
    found = evaluated(evaluator, subject, examples)
    metrics = metrics_of(evaluator.metrics, found.names, found.matrix)
    directions = evaluator.directions or {name: better_direction(name, "", True) for name in metrics}
    split = SplitMeasured(
        found.names,
        found.matrix,
        metrics=metrics,
        formula=evaluator.metrics,
        directions=directions,
        counted=_counted(evaluator.counted, metrics),
    )
    return split, found.lines


def _counted(declared: Mapping[str, str], metrics: Mapping[str, float]) -> dict[str, str]:
    """The statistic behind each metric; a name that ends with `/` stands for all that begin with it."""
    found = {metric: statistic for metric, statistic in declared.items() if metric in metrics}
    for stem in (metric for metric in declared if metric.endswith("/")):
        found |= {name: declared[stem] + name.removeprefix(stem) for name in metrics if name.startswith(stem)}
    return found


def rewritten(examples: list[Example], augmenter: Any, seed: int) -> list[Example]:
    """Each example as the augmenter rewrites it, or as it is where the augmenter has no answer.

    The generator of an example depends on seed, augmenter, split and row alone: who else is scored changes nothing.
    """
    found = []
    for position, example in enumerate(examples):
        row = example.row if example.row >= 0 else position
        key = f"{seed}/{augmenter.name}/{example.split}/{row}".encode()
        generator = np.random.default_rng(int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "big"))
        found.append(next(iter(augmenter.augment_examples([example], generator)), example))
    return found


def _gaps(
    task: Task,
    model: nn.Module,
    tokenizer: Any,
    examples: list[Example],
    predicted: list[dict[str, Any]],
    gaps: list[str],
    views: Views | None,
    batch_size: int,
) -> dict[str, Floats]:
    versions = [views(example) if views and gaps else {} for example in examples]
    found = {}
    for name in gaps:
        rows = [row for row, version in enumerate(versions) if name in version]
        others: list[dict[str, Any] | None] = [None] * len(examples)
        seen = predictions(task, model, tokenizer, [versions[row][name] for row in rows], batch_size)
        for row, prediction in zip(rows, seen, strict=True):
            others[row] = prediction
        found[name] = gap(task, examples, predicted, others)
    return found


def _measured(
    task: Task, examples: list[Example], predicted: list[dict[str, Any]], gaps: dict[str, Floats]
) -> SplitMeasured:
    names, matrix = statistics_matrix(task, examples, predicted)
    means = {f"gap/{view}": float(np.nanmean(g)) if np.isfinite(g).any() else np.nan for view, g in gaps.items()}
    return SplitMeasured(names, matrix, gaps, {**metrics_of(task.metrics, names, matrix), **means})


# -- before against after ----------------------------------------------------------------------------------------


def compare(
    before: Measured | None, after: Measured, task: Task, replicates: int = 10_000, seed: int = 0
) -> dict[str, dict[str, dict[str, dict[str, Any]]]]:
    """Two measurements of the same rows, with 95 % intervals, in the shape of `metrics.json`.

    Args:
        before: None where there is nothing to compare with: the answer then has "after" only.

    Returns:
        {"before" | "after" | "difference": {split: {metric: {"value", "low", "high", "n"}}}}, differences with "p" too.
        A metric that is 0/0 has None for its value. `n` of `gap/VIEW` counts the examples that have the view. Where an
        attack or an evaluator says which way is better, "directions" has it: {split: {metric: 1 | 0 | -1}}.

    Raises:
        AlignkitError: the two were not measured on the same rows.
    """
    found: dict[str, dict[str, dict[str, dict[str, Any]]]] = {"after": {}}
    if before is not None:
        found = {"before": {}, "after": {}, "difference": {}}
    for name, new in after.splits.items():
        old = before.splits.get(name) if before is not None else None
        views = [view for view in new.gaps if old is None or view in old.gaps]
        metrics = _with_gaps(new.formula or task.metrics, views)
        names = list(dict.fromkeys([*(old.names if old else []), *new.names]))
        columns = [*names, *(f"gap/{view} {part}" for view in views for part in ("sum", "rows"))]
        matrix = _columns(new, names, views)
        if old is None:
            sides = {"after": intervals(metrics, matrix, columns, replicates, seed)}
        elif len(old.matrix) != len(new.matrix):
            raise AlignkitError(f"{name}: {len(old.matrix)} rows before and {len(new.matrix)} after cannot be paired")
        else:
            sides = paired(metrics, _columns(old, names, views), matrix, columns, replicates, seed)
        for side, values in sides.items():
            for view in views:
                if f"gap/{view}" in values:
                    values[f"gap/{view}"]["n"] = int(np.isfinite(new.gaps[view]).sum())
            for metric, statistic in new.counted.items():
                if metric in values and statistic in columns:
                    values[metric]["n"] = int((matrix[:, columns.index(statistic)] != 0).sum())
            found[side][name] = values
    said = {name: {m: d for m, d in s.directions.items() if m in s.metrics} for name, s in after.splits.items()}
    directions: dict[str, Any] = {name: of_metrics for name, of_metrics in said.items() if of_metrics}
    return {**found, **({"directions": directions} if directions else {})}


def _columns(split: SplitMeasured, names: list[str], views: list[str]) -> Floats:
    """[N, len(names) + 2 per view]: statistics, 0 where missing, then each view's gap and whether it is there."""
    own = {name: split.matrix[:, k] for k, name in enumerate(split.names)}
    columns = [own.get(name, np.zeros(len(split.matrix))) for name in names]
    for view in views:
        columns += [np.nan_to_num(split.gaps[view], nan=0.0), np.isfinite(split.gaps[view]).astype(np.float64)]
    return np.stack(columns, axis=1) if columns else np.zeros((len(split.matrix), 0))


def metrics_under_attack(task: Task) -> Metrics:
    """The task's metrics, where the attack asks for its predictions, and those of the attack."""

    def both(sums: Mapping[str, Any]) -> dict[str, Any]:
        own = {name: value for name, value in sums.items() if not name.startswith(PREFIX)}
        return {**(task.metrics(own) if own else {}), **attack_metrics(sums)}

    return both


def _with_gaps(metrics: Metrics, views: list[str]) -> Metrics:
    def both(sums: Mapping[str, Any]) -> dict[str, Any]:
        means = {f"gap/{view}": sums[f"gap/{view} sum"] / sums[f"gap/{view} rows"] for view in views}
        return {**metrics(sums), **means}

    return both
