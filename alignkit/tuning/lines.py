"""A search as it goes: a line per trial, in columns.

Lines and not a table that is drawn anew, so that the bars of the trial that is running stay below them.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from alignkit.recipe.tuning import Choices, Range, label
from alignkit.tuning.trial import Trial

if TYPE_CHECKING:
    from alignkit.tuning.study import Study

NOTE = 60
"""Characters of a reason that are shown; all of it is in `trials.csv`."""


class Lines:
    """The head, then a line per trial, in order; says which is the best so far."""

    def __init__(self, study: Study):
        self._study, self._search = study, study.search
        self._names = short_names(self._search.space.domains)
        widest = {path: _width(domain) for path, domain in self._search.space.domains.items()}
        self._widths = {path: max(len(name), widest[path]) for path, name in self._names.items()}
        self._best: float | None = None

    def head(self) -> str:
        """What is searched and how, and the columns' titles."""
        study, search = self._study, self._search
        fields = f"{len(self._names)} field{'s' * (len(self._names) > 1)}"
        how = f"{study.total} trials" if study.combinations is None else f"all {study.total} combinations"
        pruned = "no pruning" if study.tune.pruner == "none" else f"{study.tune.pruner} pruning"
        wanted = f"{'highest' if search.greater_is_better else 'lowest'} validation {search.metric}"
        titles = [f"{self._names[path]:>{width}}" for path, width in self._widths.items()]
        columns = "  ".join([f"{'trial':>5}", f"{search.metric:>{self._score_width}} ", *titles, f"{'seconds':>7}"])
        return f"Search: {fields}, {how}, {pruned}; {wanted} wins\n\n{columns}"

    def of(self, trial: Trial) -> str:
        """A trial's score (of one that was pruned the last, in brackets), values, seconds, and what became of it."""
        last = trial.score if trial.score is not None else next(iter(trial.evaluations[-1:]), None)
        score = "– " if last is None else f"{number(last)} " if trial.score is not None else f"({number(last)})"
        values = [
            f"{shown(trial.values[path]) if path in trial.values else '–':>{width}}"
            for path, width in self._widths.items()
        ]
        cells = [f"{trial.number:>5}", f"{score:>{self._score_width + 1}}", *values, f"{trial.seconds:>7.1f}"]
        reason = trial.reason if len(trial.reason) <= NOTE else f"{trial.reason[: NOTE - 1]}…"
        failed = "failed: " if trial.state == "failed" else ""
        return "  ".join([*cells, "best so far" if self._is_best(trial) else failed + reason]).rstrip()

    @property
    def _score_width(self) -> int:
        return max(len(self._search.metric), 8)

    def _is_best(self, trial: Trial) -> bool:
        if trial.score is None:
            return False
        sign = 1 if self._search.greater_is_better else -1
        best = self._best is None or sign * trial.score > sign * self._best
        self._best = trial.score if best else self._best
        return best


def short_names(paths: Iterable[str]) -> dict[str, str]:
    """Each path's last part, or more of it where two would be called alike; of a number what it is in, too."""
    paths = list(paths)
    found = {}
    for path in paths:
        parts = path.split(".")
        tails = [".".join(parts[n:]) for n in reversed(range(len(parts)))]
        alone = [tail for tail in tails if sum(f".{other}".endswith(f".{tail}") for other in paths) == 1]
        found[path] = next((tail for tail in alone if not tail.split(".")[0].isdigit()), path)
    return found


def number(value: float) -> str:
    """A score: four decimals, or four digits where it is large."""
    return f"{value:.4f}" if abs(value) < 100 else f"{value:.4g}"


def shown(value: Any) -> str:
    """A value as a column shows it."""
    return f"{value:.3g}" if isinstance(value, float) else label(value)


def _width(domain: Range | Choices) -> int:
    return max(map(len, map(shown, domain))) if isinstance(domain, list) else 8
