"""Pairs for docs/recipes/safe-preference.yaml: what a chat model is to prefer, half of it of its own making.

    python benchmarks/safety_pairs.py --base FOLDER --model MODEL [--benign 240] [--output FOLDER/data/pairs.jsonl]

FOLDER/data holds `safe_responses/` and `dolly_benign/`. For each of 100 harmful requests the chosen answer is the safe
one, and the rejected one what MODEL itself answers, greedily; requests that it refuses already are left out. For each
benign instruction the chosen answer is the data's, and the rejected one the safe answer to some harmful request.
"""

from __future__ import annotations

import argparse
import csv
import json
import random
from pathlib import Path

import alignkit
from alignkit.evaluation.refusals import refuses


def main() -> None:
    given = arguments()
    data = given.base / "data"
    with (data / "safe_responses/adv_training_behaviors_safe_responses_longer.csv").open(
        newline="", encoding="utf-8"
    ) as file:
        safe = [(row["Behavior"], row["Safe_Response"]) for row in csv.DictReader(file)]
    lines = (data / "dolly_benign/instructions.jsonl").read_text("utf-8").splitlines()
    benign = [json.loads(line) for line in lines[: given.benign]]
    model = alignkit.load(given.model, task="chat")
    own = [row["completion"] for row in model.predict([request for request, _ in safe], max_new_tokens=96)]
    pairs = [
        {"prompt": request, "chosen": answer, "rejected": said, "harmful": "yes"}
        for (request, answer), said in zip(safe, own, strict=True)
        if said and not refuses(said)
    ]
    print(f"{len(pairs)} of {len(safe)} harmful requests are answered")
    draw = random.Random(given.seed)
    for row in benign:
        prompt = f"{row['instruction']}\n{row['context']}".strip()
        pairs.append({"prompt": prompt, "chosen": row["response"], "rejected": draw.choice(safe)[1], "harmful": ""})
    output = given.output or data / "pairs.jsonl"
    temporary = output.with_suffix(".tmp")
    temporary.write_text("".join(json.dumps(pair, ensure_ascii=False) + "\n" for pair in pairs), "utf-8")
    temporary.replace(output)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--benign", type=int, default=240)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--output", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    main()
