"""The recipes of docs/recipes carried out on real data: one line of figures per recipe and seed.

    python benchmarks/tasks.py --base FOLDER [--recipes semeval2010 squad …] [--seeds 1 2 3] [--set K=V …]

FOLDER is what the paths in the recipes are relative to (it holds `data/`). Each line of the output is one run: recipe,
what `--set` changed, seed, every metric on each split that was evaluated, before (where the head was trained) and
after, with its 95 % interval, rows, and seconds of training alone.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import alignkit

RECIPES = Path(__file__).parent.parent / "docs" / "recipes"


def carried_out(name: str, base: Path, seed: int, changes: list[str]) -> dict[str, Any]:
    """One run of a recipe, without its folder."""
    with tempfile.TemporaryDirectory() as folder:
        own = [f"base={base.resolve()}", f"seed={seed}", f"output={folder}/run"]
        recipe = alignkit.Recipe.load(RECIPES / f"{name}.yaml", [*changes, *own])
        run = alignkit.train(recipe)
        scores = {side: run.metrics[side] for side in ("before", "after") if side in run.metrics}
        line = {"recipe": name, "set": changes, "seed": seed, "metric": recipe.task.metric, **scores}
        return {**line, "seconds": round(run.seconds, 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, required=True)
    parser.add_argument("--recipes", nargs="+", default=sorted(path.stem for path in RECIPES.glob("*.yaml")))
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--set", dest="changes", nargs="+", default=[], metavar="K=V")
    parser.add_argument("--output", type=Path, default=Path("tasks.jsonl"))
    given = parser.parse_args()
    for name in given.recipes:
        for seed in given.seeds:
            line = carried_out(name, given.base, seed, given.changes)
            with given.output.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
            print(line, flush=True)


if __name__ == "__main__":
    main()
