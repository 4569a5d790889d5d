"""What a checkpoint holds beside the Trainer's own files: the components' state, and the marker that makes it count."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from alignkit.errors import Mistake, UsageError

if TYPE_CHECKING:
    from alignkit.components import Component
    from alignkit.compose import Composition

MARKER = "alignkit.json"
"""Written last: a checkpoint without it was interrupted and does not count."""
COMPONENTS = "components"


def begin(folder: Path) -> None:
    """A checkpoint is about to be written here: what stands here does not count any more."""
    (folder / MARKER).unlink(missing_ok=True)


def complete(folder: Path, composition: Composition, facts: dict[str, Any]) -> None:
    """Write the components' state, then the marker."""
    (folder / COMPONENTS).mkdir(parents=True, exist_ok=True)
    for name, component in composition.stateful().items():
        if state := component.state_dict():
            save_state(folder / COMPONENTS / name, state)
    write_json(folder / MARKER, {**facts, "components": list(composition.stateful())})


def find(output: str | Path, resume: str | bool | None) -> Path | None:
    """The checkpoint to resume from: the newest complete one for True, the named one for a path.

    Raises:
        UsageError: there is none, or the named one is incomplete.
    """
    if resume is None or resume is False:
        return None
    if resume is True:
        found = newest(output)
        if found is None:
            others = len(list(Path(output).glob("checkpoint-*")))
            but = f"; {others} without {MARKER} are interrupted ones, or the stock Trainer's" if others else ""
            raise UsageError(
                Mistake(str(output), f"no complete checkpoint{but}", "a checkpoint", "start without resuming")
            )
        return found
    folder = Path(resume)
    if not (folder / MARKER).is_file():
        raise UsageError(
            Mistake(
                str(folder),
                f"no {MARKER} in it: its writing was interrupted, or it is no checkpoint of alignkit's",
                "a complete checkpoint",
                "name another, or resume from the newest complete one with `True`",
            )
        )
    return folder


def newest(output: str | Path) -> Path | None:
    """The complete checkpoint with the highest step in a folder."""
    folders = [p for p in Path(output).glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", p.name)]
    complete = [p for p in folders if (p / MARKER).is_file()]
    return max(complete, key=lambda p: int(p.name.split("-")[1]), default=None)


def relocate(folder: Path) -> None:
    """Where a run's folder was moved, its checkpoints still name the best one by its old path: mend that."""
    file = folder / "trainer_state.json"
    state = json.loads(file.read_text(encoding="utf-8"))
    best = state.get("best_model_checkpoint")
    here = folder.parent / Path(best).name if best else folder
    if best and here.is_dir() and here.resolve() != Path(best).resolve():  # another run may stand where it was
        write_json(file, {**state, "best_model_checkpoint": str(here)})


def has_ended(folder: Path) -> bool:
    """The training was over when this checkpoint was written: all steps done, or stopped early."""
    state = json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))
    stopped = state["stateful_callbacks"].get("TrainerControl", {}).get("args", {}).get("should_training_stop", False)
    return bool(stopped or state["global_step"] >= state["max_steps"])


def load_components(folder: Path, composition: Composition) -> dict[str, Any]:
    """Give every component the state it had; the facts that were kept beside it.

    Raises:
        UsageError: the training that wrote the checkpoint had other components.
    """
    facts: dict[str, Any] = json.loads((folder / MARKER).read_text(encoding="utf-8"))
    before, now = facts.get("components", []), list(composition.stateful())
    if sorted(before) != sorted(now):
        found = f"it was written with {', '.join(before)}"
        raise UsageError(Mistake(str(folder), found, ", ".join(now), "resume with the same, or start without resuming"))
    for name, component in composition.stateful().items():
        if state := load_state(folder / COMPONENTS / name):
            component.load_state_dict(state)
    return facts


def load_component(folder: Path, component: Component) -> None:
    """Give one component the state it had in a checkpoint."""
    component.load_state_dict(load_state(folder / COMPONENTS / component.name))


def save_state(stem: Path, state: dict[str, Any]) -> None:
    """A component's state as STEM.safetensors (tensors) and STEM.json (the rest), each written whole."""
    tensors = {k: v.detach().cpu().contiguous() for k, v in state.items() if isinstance(v, Tensor)}
    if tensors:
        unfinished = stem.with_name(f"{stem.name}.safetensors.tmp")
        save_file(tensors, unfinished)
        os.replace(unfinished, stem.with_name(f"{stem.name}.safetensors"))
    else:
        stem.with_name(f"{stem.name}.safetensors").unlink(missing_ok=True)  # of an earlier state
    write_json(stem.with_name(f"{stem.name}.json"), {k: v for k, v in state.items() if not isinstance(v, Tensor)})


def load_state(stem: Path) -> dict[str, Any]:
    """What `save_state` wrote; empty where there is nothing."""
    tensors, rest = stem.with_name(f"{stem.name}.safetensors"), stem.with_name(f"{stem.name}.json")
    state: dict[str, Any] = json.loads(rest.read_text(encoding="utf-8")) if rest.is_file() else {}
    return state | (load_file(tensors) if tensors.is_file() else {})


def write_json(path: Path, value: Any) -> None:
    """JSON, written whole."""
    unfinished = path.with_name(f"{path.name}.tmp")
    unfinished.write_text(json.dumps(value, indent=2, ensure_ascii=False, default=str) + "\n", encoding="utf-8")
    os.replace(unfinished, path)
