"""Facts as a run of `alignkit demo` gives them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from alignkit.evaluation.bootstrap import paired
from alignkit.report import RunFacts


def _f1(sums: Any) -> dict[str, Any]:
    return {"f1": 2 * sums["tp"] / (sums["said"] + sums["there"]), "f1/person": sums["tp"] / sums["there"]}


def _metrics() -> dict[str, Any]:
    generator = np.random.default_rng(5)
    found: dict[str, Any] = {"before": {}, "after": {}, "difference": {}}
    for split, rows, old, new in (
        ("validation", 1009, 0.47, 0.475),
        ("test", 1287, 0.42, 0.41),
        ("test under typos", 1287, 0.27, 0.36),
    ):
        there = generator.poisson(0.8, rows).astype(float)
        first = generator.binomial(there.astype(int), old)
        second = np.where(
            generator.random(rows) < 0.75, first, generator.binomial(there.astype(int), new + 3 * (new - old))
        )
        before, after = (np.stack([hits, hits + generator.poisson(0.3, rows), there], 1) for hits in (first, second))
        sides = paired(_f1, before.astype(float), after.astype(float), ["tp", "said", "there"], 500)
        for side, values in sides.items():
            found[side][split] = values
    shifts = {"before": (0.031, 0.026, 0.037), "after": (0.012, 0.009, 0.015), "difference": (-0.019, -0.023, -0.014)}
    for side, (value, low, high) in shifts.items():
        gap = {"value": value, "low": low, "high": high, "n": 402} | ({"p": 0.0002} if side == "difference" else {})
        found[side]["test"]["gap/counterfactual"] = gap
    return found


def _history() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for step in range(10, 601, 10):
        fall = math.exp(-step / 180)
        logs = {"loss": 0.3 + 0.9 * fall + 0.03 * math.sin(step), "grad_norm": 1.0, "learning_rate": 5e-5}
        logs["objective"] = logs["loss"] - 0.02
        logs["penalty/kl-reference"] = 0.05 * (1 - fall) + 0.002 * math.sin(step * 1.7)
        logs["weighted/kl-reference"] = logs["penalty/kl-reference"] / 10
        logs["penalty/counterfactual"] = 0.03 * fall + 0.006
        found.append({**logs, "epoch": step / 200, "step": step})
        if step % 200 == 0:
            scores = {"eval_loss": 0.4 + 0.5 * fall, "eval_f1": 0.48 - 0.3 * fall, "eval_runtime": 2.0}
            found.append({**scores, "eval_penalty/kl-reference": 0.04, "epoch": step / 200, "step": step})
    return [*found, {"train_runtime": 90.0, "train_loss": 0.5, "step": 600, "epoch": 3.0}]


def _row(
    phase: str, kind: str, component: str, does: str, *numbers: float, needs: tuple[str, ...] = ()
) -> dict[str, Any]:
    factor, measured, milliseconds = numbers or (1.0, None, None)
    named = {"phase": phase, "kind": kind, "component": component, "does": does, "needs": needs}
    return {**named, "factor": factor, "measured": measured, "milliseconds": milliseconds}


PLAN = [
    _row("data", "filter", "length", "Drops examples that are too short or too long."),
    _row("data", "augmenter", "typos", "Adds misspelt copies of examples."),
    _row("every step", "objective", "supervised", "The labels' cross-entropy, as the stock Trainer computes it."),
    _row(
        "every step",
        "constraint",
        "kl-reference",
        "Keeps the model's predictions close to those of the model that it started from.",
        1.33,
        1.41,
        17.2,
        needs=("reference outputs, once per step at most",),
    ),
    _row("every step", "constraint", "counterfactual", "Same predictions for swapped names.", 1.5, 1.38, 15.9),
    _row("every step", "adversary", "fgm", "One gradient-normalised step on the embeddings.", 2.0, 2.06, 44.5),
    _row("every step", "averager", "ema", "An exponential moving average of the weights.", 1.0, 1.01, 0.4),
]


@pytest.fixture
def facts() -> RunFacts:
    line = {"split": "train", "source": "wnut17.conll", "action": "drop", "survivor": None}
    return RunFacts(
        recipe={
            "model": "runs/plain",
            "task": {"use": "ner", "scheme": "bio"},
            "data": {
                "train": [{"path": "wnut17.conll", "columns": {}}],
                "validation": [{"path": "dev.conll"}],
                "test": {"": [{"path": "test.conll"}]},
            },
            "filters": [{"use": "length", "maximum": 200}, {"use": "duplicates"}],
            "adversary": {"use": "fgm", "epsilon": 0.5},
            "seed": 13,
            "output": "runs/aligned",
            "versions": {"alignkit": "0.1.0", "torch": "2.13.0", "transformers": "5.23.0"},
        },
        task="ner",
        metric="f1",
        auto_class="AutoModelForTokenClassification",
        metrics=_metrics(),
        plan=PLAN,
        plan_text="Plan\n  data\n    length  Drops examples.\n  every step\n    fgm  x2.00",
        predicted=2.83,
        milliseconds={"plain": 42.1, "all": 121.7},
        history=_history(),
        audit=[
            *({**line, "line": n, "row": n, "component": "duplicates", "rule": "exact", "survivor": 3,
               "text": f"RT @user{n}: win a phone now"} for n in range(40, 52)),
            {**line, "line": 812, "row": 61, "component": "length", "rule": "maximum", "value": 231, "threshold": 200,
             "text": "Lorem ipsum " * 12},
            {**line, "line": 9, "row": 2, "component": "lexicon", "rule": "handles", "action": "edit", "value": "@bob",
             "text": "thanks @bob!"},
        ],
        sizes={
            "train": {"loaded": 3394, "kept": 3381, "augmented": 676},
            "validation": {"loaded": 1009, "kept": 1009, "augmented": 0},
            "test": {"loaded": 1287, "kept": 1287, "augmented": 0},
        },
        seconds=203.4,
        peak_memory={"process": 1_450_000_000},
        date="2025-06-01 12:00 UTC",
    )  # fmt: skip
