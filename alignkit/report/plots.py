"""Plots as SVG text that goes straight into a page: no global matplotlib state, text stays text, safe colours."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from alignkit.evaluation.table import ACCURACY, AGAINST, BEFORE, Line

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SIDES = ("before", "after")
BLUE, ORANGE, GREY, INK = "#0072B2", "#D55E00", "#8a8f98", "#24292f"
"""Okabe and Ito's blue and vermilion are told apart with any colour vision."""
VERDICTS = {"better": BLUE, "worse": ORANGE, "unclear": GREY, "": GREY}
STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "alignkit",
    "text.parse_math": False,
    "font.family": ["sans-serif"],
    "font.size": 9,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": "#c8ccd2",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
    "xtick.color": "#57606a",
    "ytick.color": "#57606a",
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
}
BOOKKEEPING = re.compile(
    r"^(epoch|step|loss|objective|learning_rate|grad_norm|total_flos|train_.*|eval_.*|weight(ed)?/.*)$"
)
"""Logged numbers that do not get a curve of their own."""
MAXIMUM_CURVES = 12


def intervals_plot(lines: Sequence[Line]) -> str:
    """Each line's difference with its interval against 0, a panel per metric; without a before, the values.

    Metrics of which nobody knows which way is better are left out.

    Returns:
        An `<svg>` element; empty where no line has an interval.
    """
    side = "difference" if any(line.difference.get("low") is not None for line in lines) else "after"
    shown = [line for line in lines if line.direction and getattr(line, side).get("low") is not None]
    metrics = {line.label: [one for one in shown if one.metric == line.metric] for line in shown}
    if not metrics:
        return ""
    rows = [len(panel) for panel in metrics.values()]
    with drawing(9.6, 0.5 + sum(0.36 * n + 0.75 for n in rows)) as (figure, svg):
        grid = figure.subplots(len(rows), 1, squeeze=False, gridspec_kw={"height_ratios": [n + 0.6 for n in rows]})
        for axes, (label, panel) in zip(grid[:, 0], metrics.items(), strict=True):
            _panel(axes, label, panel, side)
    return svg(
        "Change of each metric with its 95 % interval" if side == "difference" else "Metrics with 95 % intervals"
    )


def _panel(axes: Axes, label: str, panel: list[Line], side: str) -> None:
    for y, line in enumerate(panel):
        found = getattr(line, side)
        colour = VERDICTS[line.verdict] if side == "difference" else BLUE
        axes.plot([found["low"], found["high"]], [y, y], color=colour, linewidth=2.2, solid_capstyle="round")
        if found["value"] is not None:
            axes.plot([found["value"]], [y], "o", color=colour, markersize=6, markeredgecolor="white")
        text = f"{line.value(side)}  {line.verdict}"
        axes.text(1.015, y, text, transform=axes.get_yaxis_transform(), va="center", color=colour, fontweight="bold")
    axes.set_yticks(range(len(panel)), [line.split for line in panel])
    axes.set_ylim(len(panel) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.margins(x=0.08)
    if side == "difference":
        axes.axvline(0, color=INK, linewidth=0.9)
        low, high = axes.get_xlim()
        reach = max(-low, high)
        axes.set_xlim(min(low, -0.25 * reach), max(high, 0.25 * reach))
        _shade_better(axes, panel[0].direction)
    axes.set_title(f"Change in {label}" if side == "difference" else label)
    axes.locator_params(axis="x", nbins=7)


def _shade_better(axes: Axes, direction: int) -> None:
    """The side of 0 on which a change is for the better, tinted."""
    if direction:
        axes.axvspan(0, axes.get_xlim()[direction > 0], color=BLUE, alpha=0.07, linewidth=0)
        axes.text(1.0, 1.02, "tinted side: better", transform=axes.transAxes, ha="right", va="bottom", color=BLUE)


def curves_plot(history: Sequence[dict[str, Any]], metric: str) -> str:
    """Losses, the validation metric and every penalty over the training steps, a panel each.

    A penalty whose weight changes is left out: `weights_plot` shows the two together.

    Args:
        history: as `TrainerState.log_history`.
        metric: the main metric, logged as `eval_METRIC`.

    Returns:
        An `<svg>` element; empty where nothing was logged.
    """
    names = [name for entry in history for name in entry]
    panels = {
        "Loss": {"training": "loss", "objective": "objective", "validation": "eval_loss"},
        f"Validation {metric}": {"": f"eval_{metric}"},
        **{
            _title(name): {"training": name, "validation": f"eval_{name}"}
            for name in dict.fromkeys(names)
            if not BOOKKEEPING.match(name) and name != "weights" and name.replace("penalty/", "weight/") not in names
        },
    }
    curves = {
        title: {label: curve for label, name in wanted.items() if (curve := curve_of(history, name))}
        for title, wanted in panels.items()
    }
    curves = dict([(title, found) for title, found in curves.items() if found][:MAXIMUM_CURVES])
    if not curves:
        return ""
    columns = {1: 1, 2: 2, 4: 2}.get(len(curves), 3)
    rows = math.ceil(len(curves) / columns)
    with drawing(9.6, 2.35 * rows) as (figure, svg):
        grid = figure.subplots(rows, columns, squeeze=False).ravel()
        for axes, (title, found) in zip(grid, curves.items(), strict=False):
            draw_curves(axes, title, found, columns)
        for axes in grid[len(curves) :]:
            axes.set_axis_off()
    return svg("Training curves")


def radius_plot(metrics: Mapping[str, Any], metric: str) -> str:
    """Accuracy under attack and the main metric over the radius, a panel for each attack that has several.

    Args:
        metrics: in the shape of `metrics.json`; splits `test against pgd 0.5` are points of a curve.
        metric: the task's main metric.

    Returns:
        An `<svg>` element; empty where no attack was measured at two radii or more.
    """
    panels = [
        (f"{_split(stem)}: {name.replace('_', ' ')}", curves)
        for stem in dict.fromkeys(stem for side in SIDES for stem in _radii(metrics.get(side, {})))
        for name in (ACCURACY, metric)
        if (curves := {side: points for side in SIDES if len(points := _points(metrics.get(side, {}), stem, name)) > 1})
    ]
    if not panels:
        return ""
    columns = min(len(panels), 2)
    rows = math.ceil(len(panels) / columns)
    with drawing(9.6, 2.7 * rows) as (figure, svg):
        grid = figure.subplots(rows, columns, squeeze=False).ravel()
        for axes, (title, curves) in zip(grid, panels, strict=False):
            _draw_radii(axes, title, curves, both=len(curves) > 1)
        for axes in grid[len(panels) :]:
            axes.set_axis_off()
    return svg("What is left under attacks of growing radius")


def is_radius(setting: str) -> bool:
    """An attack's setting is a number, so that there is a curve over several of them."""
    return bool(re.fullmatch(r"\d+(\.\d+)?(e[-+]?\d+)?", setting))


def _split(stem: str) -> str:
    split, _, attack = stem.partition(AGAINST)
    return f"{attack} on {split}"


def _radii(splits: Mapping[str, Any]) -> dict[str, dict[float, Mapping[str, Any]]]:
    """`test against pgd` -> radius -> metrics."""
    found: dict[str, dict[float, Mapping[str, Any]]] = {}
    for name, metrics in splits.items():
        stem, _, setting = name.rpartition(" ")
        if AGAINST in stem and is_radius(setting):
            found.setdefault(stem, {})[float(setting)] = metrics
    return found


def _points(splits: Mapping[str, Any], stem: str, name: str) -> list[tuple[float, float, float, float]]:
    """(radius, value, low, high) in order; at 0 what it was without an attack, where that is known of the same rows."""
    by_radius = _radii(splits).get(stem, {})
    found = [(radius, metrics[name]) for radius, metrics in sorted(by_radius.items()) if name in metrics]
    if len(found) > 1:
        first = by_radius[found[0][0]]
        clean = first.get(BEFORE) if name == ACCURACY else splits.get(stem.partition(AGAINST)[0], {}).get(name)
        if clean is not None and clean["n"] == found[0][1]["n"]:
            found.insert(0, (0.0, clean))
    return [(r, m["value"], m["low"], m["high"]) for r, m in found if m["value"] is not None and m["low"] is not None]


def _draw_radii(axes: Axes, title: str, curves: dict[str, list[tuple[float, float, float, float]]], both: bool) -> None:
    for side, points in curves.items():
        colour = ORANGE if side == "before" and both else BLUE
        radii, values, low, high = zip(*points, strict=True)
        axes.fill_between(radii, low, high, color=colour, alpha=0.13, linewidth=0)
        axes.plot(radii, values, "-o", color=colour, linewidth=1.6, markersize=3.5)
    axes.set_title(title, pad=18 if both else 6)
    for x, (side, colour) in zip((0.0, 0.16), (("before", ORANGE), ("after", BLUE)), strict=True):
        if both:
            axes.text(x, 1.03, side, transform=axes.transAxes, color=colour, va="bottom", fontsize=8.5)
    axes.set_xlabel("radius, in mean embedding norms")
    axes.set_ylim(bottom=0)
    axes.grid(axis="y", color="#e6e8eb", linewidth=0.7)
    axes.set_axisbelow(True)


def _title(name: str) -> str:
    kind, _, component = name.partition("/")
    return f"{component} {kind}" if component else name


def curve_of(history: Sequence[dict[str, Any]], name: str) -> list[tuple[float, float]]:
    """What was logged of a number: (step, value)."""
    return [(e["step"], e[name]) for e in history if _is_number(e.get("step")) and _is_number(e.get(name))]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def draw_curves(axes: Axes, title: str, curves: dict[str, list[tuple[float, float]]], columns: int) -> None:
    """Curves over the steps in a panel of its own.

    Args:
        curves: `training`, `objective`, `validation`, or of one curve alone the empty name -> points.
        columns: panels beside each other.
    """
    looks = {"training": (BLUE, "-"), "objective": (GREY, "--"), "validation": (ORANGE, "-"), "": (ORANGE, "-")}
    for label, points in curves.items():
        colour, dashes = looks[label]
        marker = "o" if len(points) < 30 and label in ("validation", "") else None
        axes.plot(*zip(*points, strict=True), dashes, color=colour, linewidth=1.6, marker=marker, markersize=3.5)
        if len(points) == 1 and marker is None:
            axes.plot(*points[0], "o", color=colour, markersize=3.5)
    axes.set_title(title, pad=18 if len(curves) > 1 else 6)
    x = 0.0
    for label in curves if len(curves) > 1 else ():
        colour, dashes = looks[label]
        axes.text(x, 1.03, label, transform=axes.transAxes, color=colour, va="bottom", fontsize=8.5)
        x += (0.03 + 0.016 * len(label)) * columns
    axes.set_xlabel("step")
    axes.grid(axis="y", color="#e6e8eb", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.locator_params(axis="y", nbins=5)
    axes.locator_params(axis="x", nbins=5, integer=True, min_n_ticks=1)
    axes.ticklabel_format(useOffset=False)


@contextmanager
def drawing(width: float, height: float) -> Iterator[tuple[Figure, Any]]:
    """A figure to draw on, and a function that gives its SVG once the block is over."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    drawn = io.StringIO()

    def svg(title: str) -> str:
        """The element alone, as wide as its place allows, without the prologue that a file would have."""
        element = drawn.getvalue()[drawn.getvalue().index("<svg") :]
        element = re.sub(r"<metadata>.*?</metadata>", "", element, flags=re.DOTALL)
        element = re.sub(r'\sid="[\w.]+_\d+"', "", element)  # names that nothing refers to and every figure repeats
        head, _, rest = element.partition(">")
        head = re.sub(r'\s(width|height)="[^"]*"', "", head)
        return f'{head} role="img" aria-label="{title}">{rest}'

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width, height), layout=ConstrainedLayoutEngine(h_pad=0.1))
        FigureCanvasSVG(figure)
        yield figure, svg
        figure.savefig(drawn, format="svg", transparent=True, metadata={"Date": None})
