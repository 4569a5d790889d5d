"""Every task x every component x {all weights, LoRA}: two steps, saved, resumed, asked. Made from the catalogue."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import alignkit
from alignkit.catalogue import Entry, default_catalogue
from alignkit.recipe import Recipe
from alignkit.testing.run_cases import base_model
from alignkit.testing.training import short_collections

SECTIONS = {
    "filter": "filters",
    "augmenter": "augmenters",
    "constraint": "constraints",
    "adversary": "adversary",
    "averager": "averaging",
    "fusion": "fusion",
    "updater": "updater",
    "objective": "objective",
}
SEVERAL = ("filters", "augmenters", "constraints")
REFUSED: dict[tuple[str, str], str] = {
    ("causal-lm", "hotflip"): "every token of task causal-lm is a label",
}
"""(task, component) -> words of the reason: what cannot go together, and is said before any weight is loaded."""
FIELDS = {"kl-ethics": {"principles": "principles.txt"}}
"""component -> what it is given beside its defaults: principles that a tiny tokenizer makes few tokens of."""
COLUMNS = {("chat", "continuous"): {"target": "{completion} ."}}
"""(task, component) -> the columns that a component reads beside the task's, made of those that the samples have."""


def entries(kind: str) -> list[Entry]:
    return [e for e in default_catalogue().entries()[kind].values() if e.distribution.startswith("alignkit")]


def loaded(entry: Entry) -> Any:
    return default_catalogue().load_class(entry)


TASKS = [
    (entry.name, auto_class)
    for entry in entries("task")
    for auto_class in loaded(entry).auto_classes or (loaded(entry).auto_class,)
]
REFUSED |= {(task, "continuous"): "has no single answer that a harmful" for task, _ in TASKS if task != "chat"}
REFUSED |= {
    (task, entry.name): f"{entry.name} on task {task}"
    for entry in entries("objective")
    for task, _ in TASKS
    if loaded(entry).tasks and task not in loaded(entry).tasks
}
CLASSIFYING = ("text-classification", "relation-extraction")
REFUSED |= {(task, "group-fairness"): "has no head that gives" for task, _ in TASKS if task not in CLASSIFYING}
LABELLED = ("text-classification", "prompted-classification")
REFUSED |= {(task, "mentions"): "whose labels are not of a whole text" for task, _ in TASKS if task not in LABELLED}
WRITING = ("chat", "dialogue", "causal-lm", "translation", "summarization", "preference")
REFUSED |= {(task, "unlikelihood"): "does not write text" for task, _ in TASKS if task not in WRITING}
REFUSED |= {(task, "supervised"): "has no loss on labels" for task, _ in TASKS if task == "preference"}
TALKING = ("chat", "dialogue", "preference")
REFUSED |= {(task, "kl-ethics"): "have no prompt or messages" for task, _ in TASKS if task not in TALKING}
COMPONENTS = [(kind, entry.name) for kind in (*SECTIONS, "weight") for entry in entries(kind)]


@pytest.fixture(autouse=True)
def _without_reports(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The report is not what is tried here, and takes longer than the rest."""
    monkeypatch.setattr("alignkit.run._report", lambda *_: None)
    with short_collections():
        yield


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """(task, auto class) -> the folder of a run whose head has been trained, with its data beside it."""
    made: dict[tuple[str, str], Path] = {}

    def folder(task: str, auto_class: str) -> Path:
        if (task, auto_class) not in made:
            place = tmp_path_factory.mktemp("matrix")
            samples = loaded(default_catalogue().find("task", task)).samples
            rows = [{**row, "group": "ab"[i % 2]} for i, row in enumerate(samples)]
            text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            (place / "rows.jsonl").write_text(text, "utf-8")
            (place / "principles.txt").write_text("be good .\n", "utf-8")
            base = base_model(place / "base", auto_class)
            alignkit.train(recipe(place, task, model=str(base), output="plain"))
            made[task, auto_class] = place
        return made[task, auto_class]

    return folder


def recipe(place: Path, task: str, columns: dict[str, str] | None = None, **parts: Any) -> Recipe:
    return Recipe(
        base=place,
        task=task,
        data={"train": {"path": "rows.jsonl", "columns": columns or {}}},
        training={
            "max_steps": 2, "save_strategy": "steps", "save_steps": 1, "per_device_train_batch_size": 3,
            "learning_rate": 1e-3, "use_cpu": True,
        },
        **{"model": "plain", **parts},
    )  # fmt: skip


def part(kind: str, name: str) -> dict[str, Any]:
    """The section of a recipe that puts the component to use."""
    entry = default_catalogue().find(kind, name)
    use = {"use": name, **loaded(entry).example, **FIELDS.get(name, {})}
    if kind == "weight":
        return {"constraints": [{"use": "kl-reference", "weight": use}]}
    if "members" in loaded(entry).__pydantic_fields__:
        use["members"] = ["plain"]
    section = SECTIONS[kind]
    return {section: [use] if section in SEVERAL else use}


def weights(folder: Path) -> bytes:
    return b"".join(file.read_bytes() for file in sorted((folder / "model").glob("*.safetensors")))


@pytest.mark.parametrize("peft", [None, "lora"], ids=["full", "lora"])
@pytest.mark.parametrize(("kind", "name"), COMPONENTS, ids=[f"{kind}-{name}" for kind, name in COMPONENTS])
@pytest.mark.parametrize(("task", "auto_class"), TASKS, ids=[f"{t}-{c.removeprefix('AutoModel')}" for t, c in TASKS])
def test_two_steps_saved_resumed_and_asked(
    task: str, auto_class: str, kind: str, name: str, peft: str | None, trained: Any, tmp_path: Path
) -> None:
    place = trained(task, auto_class)
    columns = COLUMNS.get((task, name))
    made = recipe(place, task, columns, peft=peft, output=str(tmp_path / "run"), **part(kind, name))
    if reason := REFUSED.get((task, name)):
        with pytest.raises(alignkit.UsageError, match=reason):
            alignkit.train(made)
        assert not (tmp_path / "run").exists()
        return
    run = alignkit.train(made)
    assert all(p.isfinite().all() for p in run.model.parameters())
    whole = weights(run.path)
    assert whole != weights(place / "plain")
    shutil.rmtree(run.path / "model")
    shutil.rmtree(run.path / "checkpoints" / "checkpoint-2")  # killed after the first step
    again = recipe(place, task, columns, peft=peft, output=str(tmp_path / "run"), **part(kind, name))
    resumed = alignkit.train(again, resume=True)
    assert weights(resumed.path) == whole
    first = [dict(row) for row in loaded(default_catalogue().find("task", task)).samples[:2]]
    asked = alignkit.load(run.path)
    with torch.random.fork_rng(devices=[]):
        answers = asked.predict(first)
    assert len(answers) == 2
    assert json.loads(json.dumps(answers, default=float))
