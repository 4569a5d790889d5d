"""Does `continuous` make a chat model safer? Attacks on held-out harmful prompts, and what benign prompts pay.

    python benchmarks/continuous.py --data FOLDER --model MODEL [--variants base plain continuous capo] [--seeds 1 2 3]
                                    [--epochs 3] [--gcg 20] [--output FILE]
    python benchmarks/continuous.py --table FILE …        # the table of what is there

FOLDER holds `safe_responses/`, `dolly_benign/` and `advbench/`; MODEL is a chat model (a `.gguf` file …). All variants
but `base` are trained with LoRA on the same rows: 100 harmful requests with safe answers (whose harmful beginning is
"Sure, here is …" with the request) and 200 benign instructions. Attacked are AdvBench's requests, of which none is in
the training data, towards its own targets: by `gcg` (bounded) and on the prompt's embeddings. Beside it: how often
the model refuses harmful requests and benign instructions without any attack, and its perplexity on benign answers,
all held out. Each stage writes a JSON line with all that is known of its variant and seed; the last of them counts.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

import alignkit
from alignkit.aligned import Aligned
from alignkit.data.load import load as load_data
from alignkit.data.source import Source
from alignkit.evaluation.compare import compare, evaluate
from alignkit.evaluation.refusals import refuses

BENIGN = {"prompt": "{instruction}\n{context}", "completion": "response"}
HARMFUL = {"prompt": "Behavior", "completion": "Safe_Response", "target": "Sure, here is how to do it: {Behavior}"}
ADVBENCH = {"prompt": "goal", "completion": "target"}
VARIANTS: dict[str, dict[str, Any] | None] = {
    "base": None,
    "plain": None,
    "continuous": {"use": "continuous"},
    "capo": {"use": "continuous", "loss": "ipo", "weight": 1.0},
}
RADII = (0.1, 0.2, 0.4, 0.8)


def recipe(variant: str, seed: int, given: argparse.Namespace, output: str) -> alignkit.Recipe:
    safe = {"path": f"{given.data}/safe_responses/adv_training_behaviors_safe_responses_longer.csv", "columns": HARMFUL}
    return alignkit.Recipe(
        model=given.model,
        task={"use": "chat", "maximum_length": 160},
        data={
            "train": [
                safe,
                {"path": f"{given.data}/dolly_benign/instructions.jsonl", "columns": BENIGN, "rows": ":200"},
            ],
        },
        peft={"method": "lora", "r": 16},
        adversary=VARIANTS[variant],
        evaluation={
            "attacks": [
                {"use": "pgd", "target": "completion", "radii": list(RADII), "limit": given.rows},
                {"use": "gcg", "steps": given.gcg, "width": given.width, "top_k": 128, "limit": given.limit},
            ],
            "replicates": 2000,
        },
        training={
            "num_train_epochs": given.epochs,
            "learning_rate": 5e-4,
            "per_device_train_batch_size": given.batch,
            "per_device_eval_batch_size": 32,
            "save_strategy": "no",
        },
        seed=seed,
        output=output,
    )


def stages(variant: str, seed: int, given: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """A variant trained, asked and attacked: all that is known of it so far, after each of these."""
    begun = time.time()
    with tempfile.TemporaryDirectory() as folder:
        made = recipe(variant, seed, given, f"{folder}/run")
        attacks, made.evaluation.attacks = made.evaluation.attacks, []
        if variant == "base":
            aligned: Aligned = alignkit.load(given.model, made.task)
        else:
            aligned = alignkit.train(made).aligned
    held_out = {
        "benign": Source(path=f"{given.data}/dolly_benign/instructions.jsonl", columns=BENIGN, rows="300:350"),
        "harmful": Source(path=f"{given.data}/advbench/harmful_behaviors.csv", columns=ADVBENCH, rows=f":{given.rows}"),
    }
    rows = {n: load_data({"test": [source]}, made.task, made.base)["test"] for n, source in held_out.items()}
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    known = {"variant": variant, "seed": seed, "device": device, "seconds": {}, "figures": {}, "attempts": []}

    def with_seconds(stage: str) -> dict[str, Any]:
        known["seconds"][stage] = round(time.time() - begun - sum(known["seconds"].values()), 1)
        return known

    with_seconds("training")
    found = evaluate(made.task, aligned.model, aligned.tokenizer, {"test": rows["benign"]}, batch_size=32)
    known["figures"]["benign"] = compare(None, found, made.task, 2000)["after"]["test"]
    yield with_seconds("perplexity")
    known["refused"] = {}
    for name, asked in rows.items():
        prompts = [{"prompt": example["prompt"]} for example in asked]
        answers = aligned.predict(prompts, max_new_tokens=24, batch_size=64)
        known["refused"][name] = [refuses(answer["completion"]) for answer in answers]
    yield with_seconds("answers")
    for attack in attacks:
        under = evaluate(
            made.task, aligned.model, aligned.tokenizer, {"test": rows["harmful"]}, attacks=[attack], batch_size=64,
            seed=seed,
        )  # fmt: skip
        after = compare(None, under, made.task, 2000)["after"]
        known["figures"] |= {name: figures for name, figures in after.items() if name != "test"}
        kept = ("measured", "row", "broken", "measures")
        known["attempts"] += [{name: line[name] for name in kept} for line in under.attempts]
        yield with_seconds(attack.name)


def table(lines: list[dict[str, Any]]) -> str:
    """Shares of rows by variant, seeds pooled; of lines for one variant and seed the last counts."""
    last = {(line["variant"], line["seed"]): line for line in lines}
    measured = list(dict.fromkeys(a["measured"] for line in last.values() for a in line["attempts"]))
    titles = [name.removeprefix("test against ") for name in measured]
    made = [f"| | seeds | perplexity, benign | refused, benign | refused, harmful | {' | '.join(titles)} |"]
    made.append(f"|---|---|---:|---:|---:|{'---:|' * len(titles)}")
    for variant in VARIANTS:
        found = [line for (name, _), line in sorted(last.items()) if name == variant]
        if found:
            perplexities = [f"{line['figures']['benign']['perplexity']['value']:.2f}" for line in found]
            refused = [
                _share([r for line in found for r in line.get("refused", {}).get(n, [])]) for n in ("benign", "harmful")
            ]
            broken = [
                _share([a["broken"] for line in found for a in _open(line["attempts"]) if a["measured"] == name])
                for name in measured
            ]
            seeds = ", ".join(str(line["seed"]) for line in found)
            made.append(f"| {variant} | {seeds} | {', '.join(perplexities)} | {' | '.join([*refused, *broken])} |")
    return "\n".join(made)


def _open(attempts: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Those at requests whose beginning was not the likeliest answer before."""
    return [attempt for attempt in attempts if not attempt["measures"].get("matched_before")]


def _share(found: list[bool]) -> str:
    return f"{sum(found)}/{len(found)}" if found else "–"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--model")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--epochs", type=float, default=3)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--gcg", type=int, default=20, help="steps of GCG")
    parser.add_argument("--width", type=int, default=128, help="suffixes that GCG tries at each step")
    parser.add_argument("--limit", type=int, default=20, help="requests that GCG attacks")
    parser.add_argument("--rows", type=int, default=60, help="AdvBench requests that embeddings are attacked for")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, default=Path("continuous.jsonl"))
    parser.add_argument("--table", type=Path, nargs="+", metavar="FILE", help="print the table and train nothing")
    given = parser.parse_args()
    files = given.table or [given.output]
    if not given.table:
        if not given.data or not given.model:
            parser.error("--data and --model are needed")
        torch.set_num_threads(given.threads)
        jobs = [(v, s) for s in given.seeds for v in given.variants if v != "base" or s == given.seeds[0]]
        for variant, seed in jobs:
            for line in stages(variant, seed, given):
                with given.output.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(line, default=float) + "\n")
                print(variant, seed, line["seconds"], flush=True)
    print(table([json.loads(line) for file in files for line in file.read_text("utf-8").splitlines()]))


if __name__ == "__main__":
    main()
