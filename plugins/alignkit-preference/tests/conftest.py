"""Steps on the pairs and models of the fixtures, made without a Trainer."""

from __future__ import annotations

import functools
import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from alignkit_preference import Preference, shared_prompt

from alignkit.components import Component, Objective
from alignkit.step import TrainingStep
from alignkit.testing import make_step

FIXTURES = Path(__file__).parent / "fixtures"
TOKENIZER: Any = SimpleNamespace(pad_token_id=0, eos_token_id=1, padding_side="right")


@functools.cache
def frozen() -> dict[str, Any]:
    """What TRL's trainers made of the pairs."""
    return json.loads((FIXTURES / "trl_1_16.json").read_text("utf-8"))


@functools.cache
def script() -> Any:
    """The script that made it, as a module: it says how its models are made."""
    spec = importlib.util.spec_from_file_location("make_trl_fixtures", FIXTURES / "make_trl_fixtures.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def model_of(which: str) -> Any:
    """The `policy` or the `reference`, as TRL had it."""
    model = script().make_model(which)
    total = float(sum(p.detach().double().abs().sum() for p in model.parameters()))
    assert total == pytest.approx(frozen()["checksum"][which], rel=1e-9), "torch draws other numbers than it did"
    return model


def rows_of(pairs: str) -> list[dict[str, Any]]:
    """The fixtures' pairs as features, with their place in the data."""
    rows = [shared_prompt.row(p["prompt"], p["chosen"], p["rejected"]) for p in frozen()["pairs"][pairs]]
    return [{**row, "index": i} for i, row in enumerate(rows)]


MakeStep = Callable[..., TrainingStep]


@pytest.fixture
def make_pair_step() -> MakeStep:
    """`make_pair_step(objective, pairs="ragged", rows=slice(None), shared=True, components=(), columns=None, …)`."""

    def make(
        objective: Objective,
        pairs: str = "ragged",
        rows: slice = slice(None),
        *,
        shared: bool = True,
        exchanged: bool = False,
        components: tuple[Component, ...] = (),
        model: Any = None,
        columns: dict[str, Any] | None = None,
        **options: Any,
    ) -> TrainingStep:
        task = Preference(shared_prompt=shared)
        policy, reference = ("reference", "policy") if exchanged else ("policy", "reference")
        model = model_of(policy).train() if model is None else model
        features = [{name: v for name, v in row.items() if name != "index"} for row in rows_of(pairs)[rows]]
        return make_step(
            model,
            {**task.collate(features, TOKENIZER), **({"columns": columns} if columns else {})},
            components,
            task=task,
            objective=objective,
            reference=model_of(reference),
            tokenizer=TOKENIZER,
            special_ids=(),
            **options,
        )

    return make
