"""Where a model comes from: its parent, its data, its recipe, by digest."""

from __future__ import annotations

import hashlib
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignkit.checkpoints import write_json
from alignkit.models import resolve
from alignkit.run_folder import MODEL, RECIPE

if TYPE_CHECKING:
    from alignkit.recipe import Recipe

LINEAGE = "lineage.json"


def write_lineage(folder: Path, recipe: Recipe, source: Path) -> None:
    """`lineage.json`: this run, the digests of what went into it, and its ancestors, youngest first."""
    parent = recipe.origin
    ancestors: list[Any] = []
    if (parent / LINEAGE).is_file():
        known = json.loads((parent / LINEAGE).read_text(encoding="utf-8"))
        ancestors = [{k: v for k, v in known.items() if k != "ancestors"}, *known.get("ancestors", [])]
    files = {s.path: recipe.resolve_path(s.path) for sources in recipe.data.splits().values() for s in sources}
    entry = {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "model": recipe.model if isinstance(recipe.model, str) else recipe.model.model_dump(),
        "model_sha256": _weights(source),
        "data_sha256": {name: digest(path) for name, path in files.items() if path.is_file()},
        "merged_sha256": {name: _weights(resolve(name, recipe.base)) for name in getattr(recipe.fusion, "members", [])},
        "recipe_sha256": digest(folder / RECIPE),
        "result_sha256": _weights(folder / MODEL),
        "ancestors": ancestors,
    }
    write_json(folder / LINEAGE, entry)


def _weights(folder: Path) -> dict[str, str]:
    return {path.name: digest(path) for path in sorted(folder.glob("*.safetensors"))}


def digest(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
