"""The model card: `README.md` with the metadata that model hubs read."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from alignkit.evaluation.table import LEGEND
from alignkit.report.facts import RunFacts

CARD = "README.md"
HUB_TASKS = {
    "AutoModelForCausalLM": "text-generation",
    "AutoModelForMaskedLM": "fill-mask",
    "AutoModelForMultipleChoice": "multiple-choice",
    "AutoModelForQuestionAnswering": "question-answering",
    "AutoModelForSeq2SeqLM": "text2text-generation",
    "AutoModelForSequenceClassification": "text-classification",
    "AutoModelForTokenClassification": "token-classification",
}
"""What the hub calls the tasks of heads."""


def write_card(folder: Path | str, facts: RunFacts) -> Path:
    """Write the model card into a run's folder.

    Returns:
        Its path.
    """
    path = Path(folder) / CARD
    unfinished = path.with_name(f"{CARD}.tmp")
    unfinished.write_text(card(facts, Path(folder).resolve()), encoding="utf-8")
    os.replace(unfinished, path)
    return path


def card(facts: RunFacts, folder: Path) -> str:
    """The card of a run in `folder`, as text: YAML front matter, then Markdown."""
    import yaml

    front = yaml.safe_dump(metadata(facts, folder), sort_keys=False, allow_unicode=True)
    sections = [
        f"# {_cell(folder.name)}",
        f"{_code(_public(facts.model))}, aligned for {_code(facts.task)} with alignkit; {_aligned_with(facts)}.",
        "## Results",
        _results(facts),
        "## Intended use",
        f"The task {_code(facts.task)}, on text like that of the training data. For anything else, and before any "
        "decision about people, evaluate it on data of your own.",
        "## Training data",
        _training_data(facts),
        "## Limits",
        _limits(facts),
        *_notes(facts),
        "## Licence",
        f"{_code(facts.licence)}." if facts.licence else "Unknown: those of the base model and of the data apply.",
        "## Do it again",
        f"`recipe.yaml` beside this card is the whole recipe, with its seed and versions:\n\n```\n{facts.command}\n```",
    ]
    return f"---\n{front}---\n\n" + "\n\n".join(sections) + "\n"


def metadata(facts: RunFacts, folder: Path) -> dict[str, Any]:
    """The front matter, in the hub's words; the model is called as its folder is."""
    hub_task = facts.hub_task or HUB_TASKS.get(facts.auto_class, "other")
    found: dict[str, Any] = {
        "license": facts.licence or "unknown",
        "library_name": "transformers",
        "tags": ["alignkit"],
    }
    if hub_task != "other":
        found["pipeline_tag"] = hub_task
    if _is_hub_id(facts.model, folder):
        found["base_model"] = facts.model
    results = []
    for split, metrics in (facts.metrics.get("after") or {}).items():
        measured = [
            {"type": metric, "name": metric, "value": side["value"]}
            for metric, side in metrics.items()
            if side.get("value") is not None
        ]
        data = facts.sources.get(re.split(" (?:under|against|by) ", split)[0])
        if measured:
            name = f"{Path(data[0]).name} ({split})" if data else split
            dataset = {"type": Path(data[0]).stem if data else split, "name": name, "split": split}
            results.append({"task": {"type": hub_task, "name": facts.task}, "dataset": dataset, "metrics": measured})
    if results:
        found["model-index"] = [{"name": folder.name, "results": results}]
    return found


def _is_hub_id(model: str, folder: Path) -> bool:
    """The hub refuses a base model that is none of its own; a run such as `runs/plain` looks like one."""
    local = any((parent / model).exists() for parent in (Path.cwd(), *folder.parents))
    return bool(re.fullmatch(r"[\w-][\w.-]*(/[\w.-]+)?", model)) and not local


def _public(path: str) -> str:
    """A card is published: of an absolute path, the name alone."""
    return Path(path).name if Path(path).is_absolute() else path


def _aligned_with(facts: RunFacts) -> str:
    names = [_code(row["component"]) for row in facts.plan if row.get("kind") not in ("objective", "control")]
    controls = [_code(row["component"]) for row in facts.plan if row.get("kind") == "control"]
    used = f"its components were {', '.join(names)}" if names else "no alignment component was in use"
    return f"{used}; when alignkit asks it, it is under {', '.join(controls)}" if controls else used


def _results(facts: RunFacts) -> str:
    lines = facts.lines()
    if not lines:
        return "Nothing was measured."
    sides = {"before": "Before", "after": "After", "difference": "Change"} if facts.paired else {"after": "Value"}
    head = ["Rows", "Measurement", *sides.values(), *([""] if facts.paired else [])]
    table = [head, ["---"] * 2 + ["---:"] * len(sides) + ["---"] * facts.paired]
    for line in lines:
        values = [
            f"{line.value(side)} ({line.interval(side)})" if line.interval(side) else line.value(side) for side in sides
        ]
        table.append([_cell(line.split), _cell(line.label), *values, *([line.verdict] if facts.paired else [])])
    legend = LEGEND.replace("Small print under a number", "In brackets after a number")
    return "\n".join(f"| {' | '.join(row)} |" for row in table) + f"\n\n{legend}"


def _training_data(facts: RunFacts) -> str:
    sources = ", ".join(_code(_public(path)) for path in facts.sources.get("train", [])) or "unknown"
    counts = facts.sizes.get("train", {})
    words = {"loaded": "rows read", "kept": "kept by the filters", "augmented": "added by augmenters"}
    numbers = ", ".join(f"{counts[name]:,} {text}" for name, text in words.items() if name in counts)
    return f"{sources}: {numbers}." if numbers else f"{sources}."


def _limits(facts: RunFacts) -> str:
    limits = [
        "It was measured on the rows above only; intervals say how much those rows scatter, nothing of other data."
    ]
    worse = [f"{_cell(line.label)} on {_cell(line.split)}" for line in facts.lines() if line.verdict == "worse"]
    if worse:
        limits.append(f"Worse than before: {', '.join(worse)}.")
    if not facts.paired:
        limits.append("There is no measurement of the model before the run to compare with.")
    splits = facts.metrics.get("after") or {}
    if "validation" in splits and not any(split.startswith("test") for split in splits):
        limits.append("There was no test split: checkpoints may have been chosen on the rows that are reported.")
    return "\n".join(f"- {text}" for text in limits)


def _notes(facts: RunFacts) -> list[str]:
    """What the plan says of the components, and the run of what came of them."""
    return ["## Notes", "\n".join(f"- {_prose(text)}" for text in facts.warnings)] if facts.warnings else []


def _cell(value: Any) -> str:
    """Text for a Markdown table or paragraph: on one line, with nothing that Markdown or HTML would act on."""
    return _escaped(" ".join(str(value).split()))


def _escaped(text: str) -> str:
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_\[\]|])", r"\\\1", text)


def _prose(text: str) -> str:
    """Text with `code` in it: that as code, the rest as `_cell` has it."""
    parts = re.split(r"`([^`]+)`", " ".join(text.split()))
    return "".join(_code(part) if i % 2 else _escaped(part) for i, part in enumerate(parts))


def _code(value: Any) -> str:
    """Text as it is, on one line, as code."""
    text = " ".join(str(value).split())
    fence = "``" if "`" in text else "`"
    return f"{fence}{text}{fence}"
