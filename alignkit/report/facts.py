"""What is known of a finished run: all that the report and the model card are made of."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from alignkit.evaluation.table import Line, lines


def _now() -> str:
    return datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z")


@dataclass(frozen=True)
class Dropped:
    """What one rule of one filter did."""

    component: str
    rule: str
    action: str
    count: int
    examples: list[Mapping[str, Any]]
    """The first lines of the audit."""


@dataclass(kw_only=True)
class RunFacts:
    """A run as the report and the card tell it. Only the recipe and the task are needed; the rest may be missing."""

    recipe: Mapping[str, Any]
    """Fully resolved, as `recipe.yaml` has it."""
    task: str
    metric: str = ""
    """The metric that ranks models; where it is not said, the first that was measured."""
    greater_is_better: bool = True
    auto_class: str = ""
    """The task's transformers class, `AutoModelForTokenClassification` …: says what the hub calls the task."""
    hub_task: str = ""
    """The hub's name for the task, where `auto_class` does not say it."""
    metrics: Mapping[str, Any] = field(default_factory=dict)
    """In the shape of `metrics.json`."""
    plan: list[dict[str, Any]] = field(default_factory=list)
    """Per component: phase, component, kind, does, needs, factor (predicted time of a step with it alone, in plain
    steps), measured (the same, measured), milliseconds (more per step than a plain one)."""
    plan_text: str = ""
    predicted: float | None = None
    """Predicted time of a step with all components, in plain steps."""
    milliseconds: Mapping[str, float] = field(default_factory=dict)
    """Measured time of a step: `plain`, and with `all` components."""
    history: list[dict[str, Any]] = field(default_factory=list)
    """`TrainerState.log_history`."""
    bounds: Mapping[str, tuple[str, float]] = field(default_factory=dict)
    """Component -> what its weight holds its penalty at: what that is called (`limit`), and its value."""
    normalised: bool = False
    """The training loss is divided by 1 + the weights of budgets."""
    audit: list[dict[str, Any]] = field(default_factory=list)
    """The lines of `audit.jsonl`."""
    sizes: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    """Per split: rows `loaded`, `kept`, `augmented`."""
    seconds: float | None = None
    peak_memory: Mapping[str, int] = field(default_factory=dict)
    """Bytes: `process`, `accelerator`."""
    versions: Mapping[str, str] = field(default_factory=dict)
    """Package -> version; by default what the recipe records."""
    attempts: list[dict[str, Any]] = field(default_factory=list)
    """The lines of `attacks.jsonl`."""
    seen: list[dict[str, Any]] = field(default_factory=list)
    """The lines of `evaluations.jsonl`."""
    warnings: list[str] = field(default_factory=list)
    """The plan's notes, and what was found out since."""
    fresh_head: bool = False
    """The model's head for this task was new, so there is no before."""
    licence: str = ""
    """Of the aligned model, as the hub abbreviates it (`apache-2.0`); unknown where nobody said."""
    command: str = "alignkit train recipe.yaml --output again"
    date: str = field(default_factory=_now)

    def __post_init__(self) -> None:
        self.versions = self.versions or self.recipe.get("versions") or {}
        measured = (metrics for splits in (self.metrics.get("after") or {},) for metrics in splits.values())
        self.metric = self.metric or next((name for metrics in measured for name in metrics), "")

    @property
    def model(self) -> str:
        """What the run started from."""
        model = self.recipe.get("model") or "unknown"
        return f"{model['config']['model_type']} from scratch" if isinstance(model, Mapping) else str(model)

    @property
    def short_model(self) -> str:
        """`model`; of an absolute path its last two parts."""
        return "/".join(Path(self.model).parts[-2:]) if Path(self.model).is_absolute() else self.model

    @property
    def seed(self) -> Any:
        return self.recipe.get("seed")

    @property
    def sources(self) -> dict[str, list[str]]:
        """Split -> the files and data sets that it was read from."""
        data = self.recipe.get("data") or {}
        found: dict[str, list[str]] = {}
        for split, value in data.items():
            named = isinstance(value, Mapping) and "path" not in value
            for name, sources in value.items() if named else [("", value)]:
                paths = [path for path in map(_path, sources if isinstance(sources, list) else [sources]) if path]
                if paths:
                    found[f"{split}/{name}" if name else str(split)] = paths
        return found

    @property
    def paired(self) -> bool:
        """There is a before to compare with."""
        return bool(self.metrics.get("difference"))

    def lines(self, headline: bool = True) -> list[Line]:
        """The metrics, test splits first: the main one and the gaps, or all."""
        return lines(self.metrics, self.metric, self.greater_is_better, headline)

    def broken(self, examples: int = 4) -> dict[str, list[dict[str, Any]]]:
        """By attacked split the first inputs that broke the aligned model, as they were and as they broke it."""
        found: dict[str, list[dict[str, Any]]] = {}
        for line in self.attempts:
            if line["model"] == "after" and line["broken"] and line["attacked"]:
                shown = found.setdefault(line["measured"], [])
                if len(shown) < examples:
                    shown.append(line)
        return found

    def looked_at(self, examples: int = 4) -> dict[str, list[list[tuple[str, str]]]]:
        """By evaluator some rows that it saw, at even distances, before and after: what to read, by name."""
        found: dict[str, list[list[tuple[str, str]]]] = {}
        by_row: dict[str, dict[tuple[Any, ...], dict[str, dict[str, Any]]]] = {}
        for line in self.seen:
            place = (line["split"], line["source"], line["row"], line.get("of"))
            by_row.setdefault(line["measured"], {}).setdefault(place, {})[line["model"]] = line
        for measured, rows in by_row.items():
            sides = list(rows.values())
            chosen = [sides[i * len(sides) // examples] for i in range(examples)] if len(sides) > examples else sides
            found[measured] = [list(_of_both(one)) for one in chosen]
        return found

    def dropped(self, examples: int = 3) -> list[Dropped]:
        """What the filters did, by rule, most frequent first, with the first few examples of each."""
        keys = [
            (str(line.get("component") or ""), str(line.get("rule") or ""), str(line.get("action") or "drop"))
            for line in self.audit
        ]
        shown: dict[tuple[str, str, str], list[Mapping[str, Any]]] = {key: [] for key in keys}
        for key, line in zip(keys, self.audit, strict=True):
            if len(shown[key]) < examples:
                shown[key].append(line)
        return [Dropped(*key, count, shown[key]) for key, count in Counter(keys).most_common()]


_PLACES = ("model", "measured", "split", "source", "row", "line")


def noted(line: Mapping[str, Any], longest: int = 600) -> Iterator[tuple[str, str]]:
    """What an evaluator noted of a row, for people: yes and no, short numbers, the beginnings of long texts."""
    for name, value in line.items():
        if name not in _PLACES:
            said = ("yes" if value else "no") if isinstance(value, bool) else value
            text = f"{said:.4g}" if isinstance(said, float) else "–" if said in (None, "") else str(said)
            yield name.replace("_", " "), text if len(text) <= longest else f"{text[:longest]} …"


def _of_both(sides: Mapping[str, Mapping[str, Any]]) -> Iterator[tuple[str, str]]:
    """What an evaluator noted of a row: once where it is the same of both models, otherwise of each."""
    found = {side: dict(noted(line)) for side, line in sides.items()}
    for name in dict.fromkeys(name for said in found.values() for name in said):
        values = {side: said.get(name, "–") for side, said in found.items()}
        if len(set(values.values())) == 1:
            yield name, next(iter(values.values()))
        else:
            yield from ((f"{name}, {side}", values[side]) for side in ("before", "after"))


def _path(source: Any) -> str:
    return str(source.get("path", "")) if isinstance(source, Mapping) else str(source or "")
