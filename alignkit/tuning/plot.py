"""`tune.png`: how the search went, and each field against the score."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignkit.recipe.tuning import Choices, Range, label
from alignkit.report.plots import BLUE, GREY, INK, ORANGE, STYLE
from alignkit.tuning.lines import number, short_names

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from alignkit.tuning.space import Search
    from alignkit.tuning.trial import Trial

COLUMNS = 3
LOOKS: dict[str, dict[str, Any]] = {
    "complete": {"marker": "o", "s": 34, "color": BLUE, "edgecolors": "white", "linewidths": 0.8, "zorder": 3},
    "pruned": {"marker": "x", "s": 28, "color": GREY, "linewidths": 1.4, "zorder": 2},
    "best": {"marker": "o", "s": 80, "color": ORANGE, "edgecolors": "white", "linewidths": 1.0, "zorder": 4},
}
"""Shape and colour both tell them apart."""


def save_plot(path: Path, search: Search, trials: Sequence[Trial]) -> None:
    """Draw a search: score over trials with the best so far, then a panel per field; pruned trials are crosses.

    A pruned trial stands at its last evaluation. Failed ones have no score: they are ticks at the foot of the first
    panel.
    """
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    names = short_names(search.space.domains)
    rows = math.ceil(len(names) / COLUMNS)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9.6, 2.9 + 2.4 * rows), layout=ConstrainedLayoutEngine(h_pad=0.12, w_pad=0.1))
        FigureCanvasAgg(figure)
        grid = figure.add_gridspec(rows + 1, COLUMNS, height_ratios=[1.15, *[1.0] * rows])
        top = figure.add_subplot(grid[0, :])
        points = _points(search, trials)
        _history(top, search, trials, points)
        for n, (field, domain) in enumerate(search.space.domains.items()):
            axes = figure.add_subplot(grid[1 + n // COLUMNS, n % COLUMNS], sharey=top)
            _panel(axes, names[field], field, domain, points)
            if n % COLUMNS == 0:
                axes.set_ylabel(search.metric)
            else:
                axes.tick_params(labelleft=False)
        unfinished = path.with_name(f"{path.name}.tmp")
        figure.savefig(unfinished, format="png", dpi=150, facecolor="white")
    os.replace(unfinished, path)


def _points(search: Search, trials: Sequence[Trial]) -> list[tuple[Trial, float, str]]:
    """(trial, what it is drawn at, how it looks), the best last."""
    from alignkit.tuning.search import best_of

    best = best_of(list(trials), search.greater_is_better)
    found = []
    for trial in trials:
        score = trial.score if trial.score is not None else next(iter(trial.evaluations[-1:]), None)
        if trial.state != "failed" and score is not None and math.isfinite(score):
            found.append((trial, score, "best" if trial is best else trial.state))
    return sorted(found, key=lambda point: point[2] == "best")


def _history(axes: Axes, search: Search, trials: Sequence[Trial], points: list[tuple[Trial, float, str]]) -> None:
    scored = [(trial.number, trial.score) for trial in trials if trial.score is not None]
    if scored:
        numbers, scores = zip(*scored, strict=True)
        so_far = list(accumulate(scores, max if search.greater_is_better else min))
        end = max(len(trials), 1)
        axes.step([*numbers, end], [*so_far, so_far[-1]], where="post", color=ORANGE, linewidth=1.3, alpha=0.75)
    for trial, score, look in points:
        axes.scatter(trial.number, score, **LOOKS[look])
        if look == "best":
            title = f"Best validation {search.metric}: {number(score)}, trial {trial.number} of {len(trials)}"
            axes.set_title(title, pad=20)
    failed = [trial.number for trial in trials if trial.state == "failed"]
    axes.scatter(failed, [0.03] * len(failed), transform=axes.get_xaxis_transform(), marker="|", s=60, color=INK)
    _legend(axes, {look for _, _, look in points}, bool(scored), bool(failed))
    axes.set_xlim(0.4, len(trials) + 0.6)
    axes.locator_params(axis="x", nbins=15, integer=True, min_n_ticks=1)
    axes.set_xlabel("trial")
    axes.set_ylabel(search.metric)
    _grid(axes)


def _legend(axes: Axes, looks: set[str], scored: bool, failed: bool) -> None:
    """Words above the panel in the colours of what they name."""
    words = [("● completed", BLUE, "complete" in looks), ("● best", ORANGE, "best" in looks)]
    words += [("— best so far", ORANGE, scored), ("× pruned, at its last evaluation", GREY, "pruned" in looks)]
    words += [("| failed", INK, failed)]
    x = 0.0
    for word, colour, there in words:
        if there:
            axes.text(x, 1.04, word, transform=axes.transAxes, color=colour, va="bottom", fontsize=8.5)
            x += 0.02 + 0.0085 * len(word)


def _panel(axes: Axes, name: str, field: str, domain: Range | Choices, points: list[tuple[Trial, float, str]]) -> None:
    """One field against the score. Choices stand side by side; trials without the field are left out."""
    for trial, score, look in points:
        if field in trial.values:
            axes.scatter(_place(domain, trial.values[field], trial.number), score, **LOOKS[look])
    if isinstance(domain, list):
        names = [text if len(text := label(choice)) <= 16 else f"{text[:15]}…" for choice in domain]
        axes.set_xticks(range(len(domain)), names)
        axes.set_xlim(-0.5, len(domain) - 0.5)
    elif domain.log:
        _log_scale(axes, domain)
    else:
        margin = 0.06 * (domain.high - domain.low)
        axes.set_xlim(domain.low - margin, domain.high + margin)
        axes.locator_params(axis="x", nbins=5, integer=domain.integers)
    axes.set_title(name)
    _grid(axes)


def _log_scale(axes: Axes, domain: Range) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    decades = math.log10(domain.high / domain.low)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=[1] if decades >= 2 else [1, 3] if decades >= 1 else [1, 2, 3, 5, 7]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:.3g}".replace("e-0", "e-")))
    axes.xaxis.set_minor_formatter(NullFormatter())
    margin = 10 ** (0.06 * decades)
    axes.set_xlim(domain.low / margin, domain.high * margin)


def _place(domain: Range | Choices, value: Any, trial: int) -> float:
    """Where a value stands; trials with the same choice a little beside each other, always alike."""
    if not isinstance(domain, list):
        return float(value)
    choice = [label(one) for one in domain].index(label(value))
    return choice + 0.24 * ((trial * 0.618034) % 1.0 - 0.5)


def _grid(axes: Axes) -> None:
    axes.grid(axis="y", color="#e6e8eb", linewidth=0.7)
    axes.set_axisbelow(True)
