"""Metrics for people: which lines matter, whether a change is for the better, and a table for the terminal."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text

    from alignkit.components import Task

BEFORE, ACCURACY, SUCCESS = "accuracy_before_attack", "accuracy_under_attack", "attack_success"
"""What was right of all rows, what survived of them, and what broke of those that were right."""
QUERIES = "queries"
"""Inputs that the model was asked about, per row. An attack's metrics come last of a split's, in this order, and after
them whatever else it measures."""
AGAINST = " against "
"""Between a split's name and an attack's: `test against pgd 0.5`."""
HIGHER = {"accuracy", "auc", "bleu", "exact", "f1", "map", "mcc", "ndcg", "precision", "recall", "reward", "rouge"}
LOWER = {"brier", "ece", "error", "gap", "loss", "nll", "perplexity", "success", "toxicity"}
"""Words in a metric's name that say which way is better, where the task does not."""

LEGEND = "Small print under a number: its 95 % interval, by resampling the rows. ↑ higher is better, ↓ lower is better."
VERDICTS = " better, worse: the change's interval leaves out 0; unclear: it does not."
WIDTH = 78
"""Columns of a table for the terminal."""


@dataclass(frozen=True)
class Line:
    """One metric on one split: before, after and the difference, each {"value", "low", "high", "n"} or empty."""

    split: str
    metric: str
    direction: int
    """1: higher is better, -1: lower is better, 0: nobody knows."""
    before: Mapping[str, Any]
    after: Mapping[str, Any]
    difference: Mapping[str, Any]
    spelt: bool = False
    """An attack or an evaluator has named it, in words that are joined by `_`."""
    of_split: int = 0
    """Rows of the split; the metric may be about some of them only."""

    @property
    def label(self) -> str:
        """`f1 ↑`, `counterfactual gap ↓`."""
        name = f"{self.metric.removeprefix('gap/')} gap" if self.metric.startswith("gap/") else self.metric
        name = name.replace("_", " ") if self.spelt else name
        return name + {1: " ↑", -1: " ↓", 0: ""}[self.direction]

    @property
    def rows(self) -> int:
        """How many rows it is about."""
        return max(found.get("n") or 0 for found in (self.before, self.after))

    @property
    def verdict(self) -> str:
        """`better` or `worse` where the interval of the difference leaves out 0, `unclear` where it does not."""
        low, high = self.difference.get("low"), self.difference.get("high")
        if low is None or high is None or not self.direction:
            return ""
        if low <= 0 <= high:
            return "unclear"
        return "better" if (low > 0) == (self.direction > 0) else "worse"

    @property
    def digits(self) -> int:
        """Decimals with which all numbers of the line are written."""
        size = max(
            (abs(side["value"]) for side in (self.before, self.after) if side.get("value") is not None), default=0
        )
        bounds = ((100, 1), (10, 2), (0.01, 3), (0.001, 4))
        return next((digits for bound, digits in bounds if size >= bound), 5 if size else 3)

    def number(self, value: float | None, sign: str = "") -> str:
        """A number of this line; a dash where there is none."""
        return "–" if value is None else f"{value:{sign},.{self.digits}f}"

    def value(self, side: str) -> str:
        """The value `before`, `after`, or the `difference` with its sign."""
        return self.number(getattr(self, side).get("value"), "+" if side == "difference" else "")

    def interval(self, side: str) -> str:
        """`0.460–0.501`, of a difference `-0.020 to -0.004`; empty where there is none."""
        found, sign = getattr(self, side), "+" if side == "difference" else ""
        if found.get("low") is None or found.get("high") is None:
            return ""
        return f"{self.number(found['low'], sign)}{' to ' if sign else '–'}{self.number(found['high'], sign)}"


def better_direction(metric: str, main: str, greater_is_better: bool) -> int:
    """1 where more of a metric is better, -1 where less is, 0 where its name does not tell."""
    if metric == main:
        return 1 if greater_is_better else -1
    words = set(re.split(r"[^a-z0-9]+", metric.lower()))
    return -1 if words & LOWER else 1 if words & HIGHER else 0


def lines(
    metrics: Mapping[str, Any], main: str, greater_is_better: bool, headline: bool = True, queries: bool = False
) -> list[Line]:
    """The lines of a `metrics.json`, those of the validation split last.

    Args:
        main: the metric that ranks models.
        headline: only that metric, the gaps, of attacks what survived and what they measure, and of evaluators what
            they show first; otherwise all.
        queries: of attacks the queries, too, and what was right before.
    """
    found = []
    splits = {**metrics.get("before", {}), **metrics.get("after", {})}
    for split in sorted(splits, key=lambda name: name == "validation" or name.startswith("validation ")):
        before, after, difference = (metrics.get(side, {}).get(split, {}) for side in ("before", "after", "difference"))
        names = list(dict.fromkeys([*after, *before]))
        declared = metrics.get("directions", {}).get(split, {})
        rows = max((one.get("n") or 0 for one in (*before.values(), *after.values())), default=0)
        order, shown = _ordered(names, declared, main, queries)
        named = {*names[_own(names) :]} if ACCURACY in names else {*names} if declared else set()
        for name in order:
            if not headline or name in shown or name.startswith("gap/"):
                direction = declared.get(name, better_direction(name, main, greater_is_better))
                values = (before.get(name, {}), after.get(name, {}), difference.get(name, {}))
                found.append(Line(split, name, direction, *values, spelt=name in named, of_split=rows))
    return found


def _ordered(names: list[str], declared: Mapping[str, int], main: str, queries: bool) -> tuple[list[str], set[str]]:
    """A split's metrics in the order in which they are shown, and those that belong to the headline."""
    if declared and ACCURACY not in names:  # an evaluator's
        first = [name for name in declared if name in names]
        return [*first, *(name for name in names if name not in declared)], set(first)
    order = sorted(names, key=lambda name: (name != main, not name.startswith("gap/")))
    return order, {main, *(name for name in names[_own(names) :] if queries or name not in (BEFORE, QUERIES))}


def _own(names: list[str]) -> int:
    """Where an attack's own metrics begin, after those of the task."""
    return next((names.index(name) for name in (BEFORE, ACCURACY) if name in names), len(names))


def table(metrics: Mapping[str, Any], task: Task, queries: bool = False) -> Table:
    """The main metric and the gaps before and after, each with its interval, for a terminal of 80 columns.

    Args:
        metrics: in the shape of `metrics.json`, as `compare` gives it; without "before" the table has one value each.
        task: says which metric is the main one and which way is better.
        queries: of attacks the queries, too, and what was right before.
    """
    from rich import box
    from rich.padding import Padding
    from rich.table import Table
    from rich.text import Text

    paired = "difference" in metrics
    caption = LEGEND + VERDICTS * paired
    result = Table(box=box.SIMPLE_HEAD, pad_edge=False, caption=caption, caption_justify="left", min_width=WIDTH)
    result.add_column("", ratio=1)
    sides = {"before": "Before", "after": "After", "difference": "Change"} if paired else {"after": "Value"}
    for title in sides.values():
        result.add_column(title, justify="right", no_wrap=True)
    if paired:
        result.add_column("", no_wrap=True)
    styles = {
        "better": ("✓ better", "green"),
        "worse": ("✗ worse", "red"),
        "unclear": ("= unclear", "dim"),
        "": ("", ""),
    }
    split = None
    for line in lines(metrics, task.metric, task.greater_is_better, queries=queries):
        if line.split != split:
            if split is not None:
                result.add_section()
            split = line.split
            result.add_row(Text(split, style="bold"), Text(f"{line.of_split:,} rows", style="dim"))
        cells = [Text.assemble(line.value(side), "\n", (line.interval(side), "dim")) for side in sides]
        result.add_row(Padding(_named(line), (0, 0, 0, 2)), *cells, *([Text(*styles[line.verdict])] if paired else []))
    return result


def _named(line: Line) -> Text:
    """A metric's name, and under it how many rows it is about where that is not all of them."""
    from rich.text import Text

    return Text.assemble(line.label, (f"\n{line.rows:,} rows" if line.rows != line.of_split else "", "dim"))
