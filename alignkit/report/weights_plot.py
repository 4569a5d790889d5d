"""Penalties whose weights change, and these weights beneath them, over the training."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from alignkit.report.plots import INK, curve_of, draw_curves, drawing


def weights_plot(history: Sequence[dict[str, Any]], bounds: Mapping[str, tuple[str, float]]) -> str:
    """Each penalty whose weight is a component, with what it is held at as a line, and its weight beneath it.

    Args:
        history: as `TrainerState.log_history`.
        bounds: component -> what the bound is called (`limit`), and its value.

    Returns:
        An `<svg>` element; empty where no weight was logged.
    """
    logged = dict.fromkeys(name for entry in history for name in entry if name.startswith("weight/"))
    names = [name.removeprefix("weight/") for name in logged if curve_of(history, name)]
    if not names:
        return ""
    columns = 2 if len(names) in (2, 4) else min(len(names), 3)
    rows = math.ceil(len(names) / columns)
    with drawing(9.6, 4.3 * rows) as (figure, svg):
        grid = figure.subplots(2 * rows, columns, squeeze=False, height_ratios=[3, 2] * rows)
        for place in range(rows * columns):
            row, column = divmod(place, columns)
            over, under = grid[2 * row, column], grid[2 * row + 1, column]
            if place >= len(names):
                over.set_axis_off()
                under.set_axis_off()
                continue
            name = names[place]
            sides = {"training": f"penalty/{name}", "validation": f"eval_penalty/{name}"}
            found = {label: curve for label, of in sides.items() if (curve := curve_of(history, of))}
            draw_curves(over, f"{name} penalty", found, columns)
            over.set_xlabel("")
            if name in bounds:
                called, bound = bounds[name]
                over.axhline(bound, color=INK, linewidth=0.9, linestyle=(0, (5, 3)))
                over.text(
                    1.0,
                    1.03,
                    f"– – {called} {bound:g}",
                    transform=over.transAxes,
                    ha="right",
                    va="bottom",
                    fontsize=8.5,
                )
            over.set_ylim(bottom=min(0.0, over.get_ylim()[0]))
            draw_curves(under, f"{name} weight", {"training": curve_of(history, f"weight/{name}")}, columns)
            under.set_xlim(over.get_xlim())
    return svg("Penalties whose weights change, and their weights")
