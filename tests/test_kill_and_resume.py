"""A run that was killed and resumed ends with the same bytes; `kill_and_resume.py` does it at length."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path
from types import ModuleType

import pytest

import alignkit
from alignkit.errors import UsageError

Ended = tuple[int, str, str]


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("kill_and_resume", Path(__file__).with_name("kill_and_resume.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def alone(script: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that nobody killed; its checkpoints are all there."""
    folder = tmp_path_factory.mktemp("resume")
    recipe = alignkit.Recipe.load(script.prepare(folder), overrides=[f"output={folder / 'alone'}"])
    alignkit.train(recipe)
    return folder / "alone"


def test_three_killed_and_resumed_processes_give_the_same_bytes(script: ModuleType, alone: Path) -> None:
    assert script.trial(alone.parent, kills=3, seed=2) == []


@pytest.fixture
def killed(alone: Path, tmp_path: Path) -> Path:
    """The run as a kill right after its last checkpoint would have left it."""
    folder = tmp_path / "killed"
    shutil.copytree(alone, folder)
    for rest in ("model", "memory"):
        shutil.rmtree(folder / rest)
    for rest in ("metrics.json", "report.html", "README.md", "lineage.json"):
        (folder / rest).unlink()
    return folder


def resume(alone: Path, folder: Path) -> list[str]:
    """Resume in this process; what the run said."""
    said: list[str] = []
    recipe = alignkit.Recipe.load(alone.parent / "recipe.yaml", overrides=[f"output={folder}"])
    alignkit.train(recipe, resume=True, say=said.append)
    return said


def newest(folder: Path) -> Path:
    return max(folder.glob("checkpoints/checkpoint-*"), key=lambda p: int(p.name.split("-")[1]))


def test_a_checkpoint_without_its_marker_does_not_count(script: ModuleType, alone: Path, killed: Path) -> None:
    last = newest(killed)
    (last / "alignkit.json").unlink()  # killed between the components' state and the marker
    shutil.rmtree(last / "components")  # … and between the model and the components' state
    (killed / ".model.77.tmp").mkdir()  # … and while the model was saved
    said = resume(alone, killed)
    assert f"resuming from {newest_but(last, alone)}" in said
    assert script.differences(alone, killed) == []
    assert not list(killed.glob(".model*"))


def newest_but(last: Path, folder: Path) -> str:
    """The newest checkpoint but the last."""
    names = {p.name for p in folder.glob("checkpoints/checkpoint-*")} - {last.name}
    return max(names, key=lambda name: int(name.split("-")[1]))


def test_a_finished_training_is_only_written_again(script: ModuleType, alone: Path, killed: Path) -> None:
    before = {path.name for path in killed.glob("checkpoints/*")}
    assert "resuming from checkpoint-24" in resume(alone, killed)
    assert {path.name for path in killed.glob("checkpoints/*")} == before
    assert script.differences(alone, killed) == []


def test_patience_that_is_used_up_stays_used_up(script: ModuleType, alone: Path, tmp_path: Path) -> None:
    """Nothing gets better: evaluations after 4, 8 and 12 steps, and the run stops; wherever it was killed."""
    changes = ["early_stopping.patience=2", "training.learning_rate=1e-30", f"output={tmp_path / 'stopped'}"]
    recipe = alignkit.Recipe.load(alone.parent / "recipe.yaml", overrides=changes)
    alignkit.train(recipe)
    assert newest(tmp_path / "stopped").name == "checkpoint-12"
    shutil.copytree(tmp_path / "stopped", tmp_path / "before")
    alignkit.train(recipe, resume=True)  # killed after the last checkpoint
    assert newest(tmp_path / "stopped").name == "checkpoint-12"
    assert script.differences(tmp_path / "before", tmp_path / "stopped") == []
    shutil.rmtree(tmp_path / "stopped" / "checkpoints" / "checkpoint-12")  # killed before it
    alignkit.train(recipe, resume=True)
    assert newest(tmp_path / "stopped").name == "checkpoint-12"
    assert script.differences(tmp_path / "before", tmp_path / "stopped") == []


def test_a_moved_run_finds_its_best_checkpoint(script: ModuleType, alone: Path, tmp_path: Path) -> None:
    """It was killed between two checkpoints, of which the first was the best, and moved; another is where it was."""
    changes = ["training.learning_rate=1e-30", f"output={tmp_path / 'there'}"]
    recipe = alignkit.Recipe.load(alone.parent / "recipe.yaml", overrides=changes)
    alignkit.train(recipe)
    shutil.copytree(tmp_path / "there", tmp_path / "before")
    best = json.loads((newest(tmp_path / "there") / "trainer_state.json").read_text("utf-8"))["best_model_checkpoint"]
    assert Path(best) != newest(tmp_path / "there")
    (tmp_path / "there").rename(tmp_path / "here")
    shutil.rmtree(newest(tmp_path / "here"))
    shutil.copytree(tmp_path / "here", tmp_path / "there")
    (Path(best) / "model.safetensors").write_bytes(b"of another run")
    moved = alignkit.Recipe.load(alone.parent / "recipe.yaml", overrides=[changes[0], f"output={tmp_path / 'here'}"])
    alignkit.train(moved, resume=True)
    assert script.differences(tmp_path / "before", tmp_path / "here") == []


def test_without_a_checkpoint_it_says_so_and_starts_from_scratch(script: ModuleType, alone: Path, killed: Path) -> None:
    shutil.rmtree(killed / "checkpoints")
    assert "no complete checkpoint: starting from scratch" in resume(alone, killed)
    assert script.differences(alone, killed) == []


def test_a_component_with_other_fields_is_another_run(alone: Path, killed: Path) -> None:
    recipe = alignkit.Recipe.load(
        alone.parent / "recipe.yaml", overrides=[f"output={killed}", "averaging.decay=0.5", "seed=4"]
    )
    with pytest.raises(UsageError, match="the run in it has another averaging, seed; expected the same recipe"):
        alignkit.train(recipe, resume=True)
    assert not (killed / "model").exists()
