"""Does `continuous` make a chat model safer? Attacks on held-out harmful prompts, and what benign prompts pay.

    python benchmarks/continuous.py --data FOLDER --model MODEL [--variants base plain continuous capo] [--seeds 1 2 3]
                                    [--epochs 2] [--gcg 20] [--output FILE]

FOLDER holds `safe_responses/`, `dolly_benign/` and `advbench/`; MODEL is a chat model (a `.gguf` file …). All variants
but `base` are trained with LoRA on the same rows: 100 harmful requests with safe answers (whose harmful beginning is
"Sure, here is …" with the request) and 200 benign instructions. Attacked are AdvBench's requests, of which none is in
the training data, towards its own targets: by `gcg` (bounded) and on the prompt's embeddings. Beside it: how often
the model refuses harmful requests and benign instructions without any attack, and its perplexity on benign answers,
all held out. One JSON line per variant and seed.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from alignkit_adversaries.refusals import refuses

import alignkit
from alignkit.aligned import Aligned
from alignkit.data.load import load as load_data
from alignkit.evaluation.compare import compare, evaluate

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
    safe = {"path": "safe_responses/adv_training_behaviors_safe_responses_longer.csv", "columns": HARMFUL}
    return alignkit.Recipe(
        base=given.data.resolve(),
        model=str(given.model),
        task={"use": "chat", "maximum_length": 160},
        data={
            "train": [safe, {"path": "dolly_benign/instructions.jsonl", "columns": BENIGN, "rows": ":200"}],
            "test": {
                "benign": {"path": "dolly_benign/instructions.jsonl", "columns": BENIGN, "rows": "300:350"},
                "harmful": {"path": "advbench/harmful_behaviors.csv", "columns": ADVBENCH, "rows": f":{given.rows}"},
            },
        },
        peft={"method": "lora", "r": 16},
        adversary=VARIANTS[variant],
        evaluation={
            "attacks": [
                {"use": "gcg", "steps": given.gcg, "width": 128, "top_k": 128, "limit": given.limit},
                {"use": "pgd", "target": "completion", "radii": list(RADII), "limit": given.rows},
            ],
            "replicates": 2000,
        },
        training={
            "num_train_epochs": given.epochs,
            "learning_rate": 5e-4,
            "per_device_train_batch_size": 8,
            "per_device_eval_batch_size": 16,
            "save_strategy": "no",
        },
        seed=seed,
        output=output,
    )


def measured(variant: str, seed: int, given: argparse.Namespace) -> dict[str, Any]:
    """A variant trained, attacked, and asked."""
    torch.set_num_threads(given.threads)
    with tempfile.TemporaryDirectory() as folder:
        made = recipe(variant, seed, given, f"{folder}/run")
        attacks, made.evaluation.attacks = made.evaluation.attacks, []
        seconds: dict[str, float] = {}
        if variant == "base":
            aligned: Aligned = alignkit.load(given.model, made.task)
        else:
            run = alignkit.train(made)
            aligned, seconds["training"] = run.aligned, run.seconds
        begun = time.time()
        splits = load_data({"test": made.data.test["benign"]}, made.task, made.base)
        harmful = load_data({"test": made.data.test["harmful"]}, made.task, made.base)
        found = evaluate(made.task, aligned.model, aligned.tokenizer, splits, batch_size=16)
        under = evaluate(
            made.task, aligned.model, aligned.tokenizer, harmful, attacks=attacks, batch_size=16, seed=seed
        )
        after = {
            name: compare(None, m, made.task, 2000)["after"] for name, m in (("benign", found), ("harmful", under))
        }
        figures = {"benign": after["benign"]["test"]} | {n: f for n, f in after["harmful"].items() if n != "test"}
        asked = {"benign": splits["test"], "harmful": harmful["test"]}
        said = {
            name: aligned.predict([{"prompt": e["prompt"]} for e in rows], max_new_tokens=24, batch_size=16)
            for name, rows in asked.items()
        }
        seconds["measuring"] = time.time() - begun
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    return {
        "variant": variant,
        "seed": seed,
        "device": device,
        "seconds": {name: round(value, 1) for name, value in seconds.items()},
        "refused": {name: [refuses(answer["completion"]) for answer in answers] for name, answers in said.items()},
        "figures": figures,
        "attempts": [{k: line[k] for k in ("measured", "row", "broken", "measures")} for line in under.attempts],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--epochs", type=float, default=2)
    parser.add_argument("--gcg", type=int, default=20, help="steps of GCG")
    parser.add_argument("--limit", type=int, default=20, help="prompts that GCG attacks")
    parser.add_argument("--rows", type=int, default=60, help="AdvBench requests that embeddings are attacked for")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, default=Path("continuous.jsonl"))
    given = parser.parse_args()
    for seed in given.seeds:
        for variant in given.variants:
            if variant == "base" and seed != given.seeds[0]:
                continue
            line = measured(variant, seed, given)
            with given.output.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line, default=float) + "\n")
            shares = {name: sum(found) / len(found) for name, found in line["refused"].items()}
            print(variant, seed, line["seconds"], "refused", shares, flush=True)


if __name__ == "__main__":
    main()
