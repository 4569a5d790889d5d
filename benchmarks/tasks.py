"""The recipes of docs/recipes carried out on real data: one line of figures per recipe and seed.

    python benchmarks/tasks.py --base FOLDER [--recipes semeval2010 squad …] [--seeds 1 2 3] [--set K=V …]

FOLDER is what the paths in the recipes are relative to (it holds `data/`). Each line of the output is one run: recipe,
what `--set` changed, seed, every metric on each split that was evaluated, before (where the head was trained) and
after, with its 95 % interval, rows, and seconds of training alone. What evaluators saw of each row, such as the
answers whose refusals they counted, is kept in a folder beside the output, `OUTPUT-answers`, a file per run; `--runs`
keeps the runs themselves.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import tempfile
import zlib
from pathlib import Path
from typing import Any

import alignkit
from alignkit.run_folder import EVALUATIONS

RECIPES = Path(__file__).parent.parent / "docs" / "recipes"
LONGEST_NAME = 150
"""Characters of a run's name."""


def carried_out(
    name: str, base: Path, seed: int, changes: list[str], answers: Path, runs: Path | None = None
) -> dict[str, Any]:
    """One run of a recipe.

    Args:
        name: of the recipe.
        base: what its paths are relative to.
        seed: of the run.
        changes: `K=V`.
        answers: the folder for what evaluators saw.
        runs: the folder to keep the run in; None: it is not kept.
    """
    stem = re.sub(r"[^\w.=-]+", "_", "-".join([name, *changes, str(seed)]))
    if len(stem) > LONGEST_NAME:
        stem = f"{stem[:LONGEST_NAME]}-{zlib.crc32(stem.encode()):08x}"
    with tempfile.TemporaryDirectory() as passing:
        folder = (runs.resolve() / stem) if runs is not None else Path(passing) / "run"
        own = [f"base={base.resolve()}", f"seed={seed}", f"output={folder}"]
        recipe = alignkit.Recipe.load(RECIPES / f"{name}.yaml", [*changes, *own])
        run = alignkit.train(recipe)
        scores: dict[str, Any] = {side: run.metrics[side] for side in ("before", "after") if side in run.metrics}
        line = {"recipe": name, "set": changes, "seed": seed, "metric": recipe.task.metric, **scores}
        if (seen := folder / EVALUATIONS).exists():
            answers.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(seen, answers / f"{stem}.jsonl")
        return {**line, "seconds": round(run.seconds, 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, required=True)
    parser.add_argument("--recipes", nargs="+", default=sorted(path.stem for path in RECIPES.glob("*.yaml")))
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--set", dest="changes", nargs="+", default=[], metavar="K=V")
    parser.add_argument("--output", type=Path, default=Path("tasks.jsonl"))
    parser.add_argument("--runs", type=Path, help="a folder to keep the runs in")
    given = parser.parse_args()
    answers = given.output.with_name(f"{given.output.stem}-answers")
    for name in given.recipes:
        for seed in given.seeds:
            line = carried_out(name, given.base, seed, given.changes, answers, given.runs)
            with given.output.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
            print(line, flush=True)


if __name__ == "__main__":
    main()
