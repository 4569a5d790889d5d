"""`report.html`: one self-contained page for people, without scripts and without anything to fetch."""

from __future__ import annotations

import os
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignkit.evaluation.robustness import brief, sides
from alignkit.report.facts import RunFacts
from alignkit.report.plots import curves_plot, intervals_plot, radius_plot
from alignkit.report.weights_plot import weights_plot

if TYPE_CHECKING:
    from collections.abc import Mapping

REPORT = "report.html"


def write_report(folder: Path | str, facts: RunFacts) -> Path:
    """Write `report.html` into a run's folder.

    Returns:
        Its path.
    """
    path = Path(folder) / REPORT
    unfinished = path.with_name(f"{REPORT}.tmp")
    unfinished.write_text(render(facts), encoding="utf-8")
    os.replace(unfinished, path)
    return path


def render(facts: RunFacts) -> str:
    """The page as text. Everything that comes from the run is escaped; parts that a run lacks are left out."""
    from jinja2 import Environment
    from markupsafe import Markup

    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"duration": duration, "size": size, "scalar": scalar, "sides": sides, "brief": brief}
    here = files("alignkit.report")
    template = environment.from_string(here.joinpath("page.html").read_text(encoding="utf-8"))
    headline = facts.lines()
    return template.render(
        facts=facts,
        style=Markup(here.joinpath("page.css").read_text(encoding="utf-8")),
        headline=headline,
        gaps=any(line.metric.startswith("gap/") for line in headline),
        summary=summary(facts),
        intervals=Markup(intervals_plot(headline)),
        radii=Markup(radius_plot(facts.metrics, facts.metric)),
        broken=facts.broken(),
        looked_at=facts.looked_at(),
        curves=Markup(curves_plot(facts.history, facts.metric)),
        weights=Markup(weights_plot(facts.history, facts.bounds)),
        costs=[row for row in facts.plan if row.get("phase") == "every step" or row.get("milliseconds") is not None],
        widest=max((abs(row.get("milliseconds") or 0.0) for row in facts.plan), default=0.0),
        recipe=recipe_text(facts.recipe),
    )


def summary(facts: RunFacts) -> str:
    """One sentence: how many of the headline measurements got better, worse, or neither."""
    verdicts = [line.verdict for line in facts.lines() if line.verdict]
    if not verdicts:
        return ""
    counts = {name: verdicts.count(name) for name in ("better", "worse", "unclear")}
    words = {"better": "better", "worse": "worse", "unclear": "without a clear change"}
    parts = [f"{count} {words[name]}" for name, count in counts.items() if count]
    return f"Of {len(verdicts)} headline measurements: {', '.join(parts)}."


def recipe_text(recipe: Mapping[str, Any]) -> str:
    """The recipe as YAML."""
    import yaml

    return yaml.safe_dump(dict(recipe), sort_keys=False, allow_unicode=True, width=100)


def duration(seconds: float) -> str:
    """`48 s`, `3 min 20 s`, `2 h 05 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def size(count: int) -> str:
    """Bytes as `812 MiB` or `3.4 GiB`."""
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"


def scalar(value: Any) -> str:
    """A value of the audit: short numbers, other things as they are, a dash for nothing."""
    if value is None or value == "":
        return "–"
    return f"{value:.3g}" if isinstance(value, float) else str(value)
