"""What the recipes docs/recipes/safe-*.yaml train on beside the data sets: rows of which MODEL writes a half.

    python benchmarks/safety_pairs.py --base FOLDER --model MODEL [--benign 60] [--tokens 48]

FOLDER/data holds `safe_responses/`, `dolly_benign/` and `trec/`, and gets two files.

`pairs.jsonl`, for safe-preference: for each of 100 harmful requests the chosen answer is the safe one, and the rejected
one what MODEL itself answers, greedily. Requests that it refuses already are left out, and so are the seven whose "safe
answer" complies: an answer is taken for a refusal by how it begins. For each benign instruction the chosen answer is
the data's, and the rejected one the safe answer to some harmful request.

`own.jsonl`, for safe-principles: short harmless requests (docs/recipes/data/harmless-requests.txt, and questions for a
manner from TREC) with what MODEL itself answers, so that a model that learns to refuse goes on answering them. All
benign instructions have a passage to read; a model that sees no others learns to refuse whatever has none.
"""

from __future__ import annotations

import argparse
import csv
import json
import random
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import alignkit
from alignkit.evaluation.refusals import refuses

REQUESTS = Path(__file__).parent.parent / "docs/recipes/data/harmless-requests.txt"
QUESTIONS = 40
"""Of TREC."""


def main() -> None:
    given = arguments()
    data = given.base / "data"
    model = alignkit.load(given.model, task="chat")

    def answers(requests: list[str], tokens: int) -> list[str]:
        return [row["completion"] for row in model.predict(requests, max_new_tokens=tokens)]

    with (data / "safe_responses/adv_training_behaviors_safe_responses_longer.csv").open(
        newline="", encoding="utf-8"
    ) as file:
        answered = [(row["Behavior"], row["Safe_Response"]) for row in csv.DictReader(file)]
    safe = [(request, answer) for request, answer in answered if refuses(answer)]
    print(f"{len(safe)} of {len(answered)} safe answers refuse")
    own = answers([request for request, _ in safe], given.tokens)
    pairs = [
        {"prompt": request, "chosen": answer, "rejected": said, "harmful": "yes"}
        for (request, answer), said in zip(safe, own, strict=True)
        if said and not refuses(said)
    ]
    print(f"{len(pairs)} of these harmful requests are answered")
    draw = random.Random(given.seed)
    lines = (data / "dolly_benign/instructions.jsonl").read_text("utf-8").splitlines()
    for row in map(json.loads, lines[: given.benign]):
        prompt = f"{row['instruction']}\n{row['context']}".strip()
        pairs.append({"prompt": prompt, "chosen": row["response"], "rejected": draw.choice(safe)[1], "harmful": ""})
    write(data / "pairs.jsonl", pairs)

    requests = [*REQUESTS.read_text("utf-8").splitlines(), *questions(data / "trec/train.tsv")]
    said = [whole_sentences(text) for text in answers(requests, 64)]
    kept = [
        {"prompt": r, "completion": text} for r, text in zip(requests, said, strict=True) if text and not refuses(text)
    ]
    print(f"{len(kept)} of {len(requests)} harmless requests are answered")
    write(data / "own.jsonl", kept)


def questions(path: Path) -> list[str]:
    """TREC's first questions for a manner, without the spaces before its punctuation."""
    with path.open(newline="", encoding="utf-8") as file:
        manner = [row["text"] for row in csv.DictReader(file, delimiter="\t") if row["fine"] == "DESC:manner"]
    return [re.sub(r" ([?.,!]|'s\b)", r"\1", text) for text in manner[:QUESTIONS]]


def whole_sentences(text: str) -> str:
    """The text up to the end of its last sentence, if it has one: an answer that was cut off is no model to follow."""
    ends = [match.end() for match in re.finditer(r"[.!?](?=\s|$)", text.strip())]
    cut = text.strip()[: ends[-1]] if ends and ends[-1] > 40 else text.strip()
    return re.sub(r"\s*\n\s*\d+\.$", "", cut)


def write(path: Path, rows: Iterable[Mapping[str, str]]) -> None:
    temporary = path.with_suffix(".tmp")
    temporary.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    temporary.replace(path)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--benign", type=int, default=60)
    parser.add_argument("--tokens", type=int, default=48, help="how long a rejected answer of MODEL is")
    parser.add_argument("--seed", type=int, default=1)
    return parser.parse_args()


if __name__ == "__main__":
    main()
