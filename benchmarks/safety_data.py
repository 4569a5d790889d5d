"""What the recipes docs/recipes/safe-*.yaml train on beside the data sets: rows of which MODEL writes a part.

    python benchmarks/safety_data.py --base FOLDER --model MODEL [--benign 60] [--tokens 48]

FOLDER/data holds `safe_responses/`, `do_not_answer/`, `dolly_benign/` and `trec/`, and `advbench/` and `strongreject/`,
which the recipes are tested on; it gets three files.

`refusals.jsonl`: harmful requests and how to refuse them. From `safe_responses/` they have safe answers, but for the
seven whose "safe answer" complies (an answer is taken for a refusal by how it begins). All of these are commands
("Teach how to …"); those that can be turned into a question ("How can I …?") are there in that form as well, with the
same answer. Requests of `do_not_answer/` that ask for something and have a word of harm in them have no answers: theirs
is `REFUSAL`, the sentence with which most of the safe answers begin. What shares half of its words with a prompt that
the recipes are tested on is left out.

`own.jsonl`: short harmless requests, some of which sound harmful (docs/recipes/data/harmless-requests.txt), and
questions of TREC, with what MODEL itself answers. All benign instructions of the data have a passage to read: a model
that learns to refuse and sees no others refuses whatever has none. So neither the length of a request nor its form
tells whether it is to be refused.

`pairs.jsonl`, for safe-preference: for each row of `refusals.jsonl` the rejected answer is what MODEL itself says,
greedily; requests that it refuses already are left out. For each benign instruction and each row of `own.jsonl` the
answer is chosen, and the rejected one is the safe answer to some harmful request.
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
SAFE = "adv_training_behaviors_safe_responses_longer.csv"
TESTED = slice(260, None)
"""AdvBench's second half."""
QUESTIONS = 120
"""Of TREC: half of them ask for a manner."""
REFUSAL = "I cannot fulfill your request."
ASKS = re.compile(r"(How (can|do|would|to)|What|I want|Where|Can you|Help|Write|Give|Teach|Create|Tell)\b")
HARM = re.compile(
    r"\b(hack\w*|malware|virus|trojan|worm|botnet|keylogger|phish\w*|counterfeit\w*|weapon\w*|bombs?|poison\w*"
    r"|traffick\w*|smuggl\w*|fraud\w*|steal\w*|stol\w+|terror\w*|blackmail\w*|groom\w*|undetect\w*|illegal\w*|suicide"
    r"|self-harm\w*|harass\w*|bull(y|ies|ying)|launder\w*|sabotag\w*|evade|evading|rob|kidnap\w*|ransom\w*|rap(e|ing)"
    r"|murder\w*|scams?|scamming|fake|getting caught|without their consent|racist|sexist|hateful|offensive"
    r"|misinformation|defam\w*|pirate)\b",
    re.IGNORECASE,
)
NEAR = 0.5
"""Of two requests' words, the share that both have (Jaccard)."""
TO_DO = re.compile(r"\b(?:how|ways?|plan|guide|tactics?|strategy|technique|method) to (?P<what>(?!the\b).+)$")
DOING = re.compile(r"\b(?:for|of|on|to) (?P<what>(?:[a-z]+ly )?(?!evening|during)[a-z]{2,}ing\b.+)$")
FORMS = ("How would I go about {}?", "What is a good way of {}?", "What are some methods of {}?")


def main() -> None:
    given = arguments()
    data = given.base / "data"
    model = alignkit.load(given.model, task="chat")

    def answers(requests: list[str], tokens: int) -> list[str]:
        return [row["completion"] for row in model.predict(requests, max_new_tokens=tokens)]

    answered = [(r["Behavior"], r["Safe_Response"]) for r in table(data / "safe_responses" / SAFE)]
    safe = [(request, answer) for request, answer in answered if refuses(answer)]
    questions = [(asked, answer) for n, (r, answer) in enumerate(safe) if (asked := as_question(r, n)) is not None]
    tested = [row["goal"] for row in table(data / "advbench/harmful_behaviors.csv")][TESTED]
    tested += [row["forbidden_prompt"] for row in table(data / "strongreject/strongreject_dataset.csv")]
    asked = [json.loads(line)["prompt"] for line in lines(data / "do_not_answer/prompts.jsonl")]
    more = [(r, REFUSAL) for r in asked if ASKS.match(r) and HARM.search(r)]
    refused = [(r, answer) for r, answer in safe + questions + more if nearness(r, tested) < NEAR]
    print(
        f"{len(safe)} of {len(answered)} safe answers refuse, {len(questions)} of these requests become questions, "
        f"{len(more)} more have no answer; {len(refused)} of all are not near a prompt that is tested on"
    )
    write(data / "refusals.jsonl", ({"prompt": r, "completion": a, "harmful": "yes"} for r, a in refused))

    harmless = [*lines(REQUESTS), *of_trec(data / "trec/train.tsv")]
    said = [whole_sentences(text) for text in answers(harmless, 64)]
    own = [(r, text) for r, text in zip(harmless, said, strict=True) if sensible(text) and not refuses(text)]
    print(f"{len(own)} of {len(harmless)} harmless requests are answered")
    write(data / "own.jsonl", ({"prompt": r, "completion": text, "harmless": "yes"} for r, text in own))

    said = answers([request for request, _ in refused], given.tokens)
    pairs = [
        {"prompt": request, "chosen": answer, "rejected": text, "harmful": "yes"}
        for (request, answer), text in zip(refused, said, strict=True)
        if text and not refuses(text)
    ]
    print(f"{len(pairs)} of {len(refused)} harmful requests are answered")
    rows = [json.loads(line) for line in lines(data / "dolly_benign/instructions.jsonl")[: given.benign]]
    benign = [(f"{row['instruction']}\n{row['context']}".strip(), row["response"]) for row in rows]
    draw = random.Random(given.seed)
    pairs += [
        {"prompt": request, "chosen": answer, "rejected": draw.choice(safe)[1], "harmful": ""}
        for request, answer in benign + own
    ]
    write(data / "pairs.jsonl", pairs)


def as_question(request: str, form: int) -> str | None:
    """What a command asks for, as a question.

    Example:
        >>> as_question("Outline steps for hacking billboards", 1), as_question("Teach how to pick a lock", 0)
        ('What is a good way of hacking billboards?', 'How can I pick a lock?')
    """
    found = [match for pattern in (TO_DO, DOING) if (match := pattern.search(request))]
    if not found:
        return None
    first = min(found, key=lambda match: match.start())
    return f"How can I {first['what']}?" if first.re is TO_DO else FORMS[form % len(FORMS)].format(first["what"])


def of_trec(path: Path) -> list[str]:
    """TREC's first questions for a manner and its first others, without the spaces before their punctuation."""
    rows = table(path, "\t")
    kinds = [[row["text"] for row in rows if (row["fine"] == "DESC:manner") == manner] for manner in (True, False)]
    return [re.sub(r" ([?.,!]|'s\b)", r"\1", text) for texts in kinds for text in texts[: QUESTIONS // 2]]


def nearness(request: str, others: Iterable[str]) -> float:
    """The largest Jaccard similarity of the request's words with another's."""
    words = set(re.findall(r"\w+", request.lower()))
    sets = (set(re.findall(r"\w+", other.lower())) for other in others)
    return max(len(words & other) / len(words | other) for other in sets)


def whole_sentences(text: str) -> str:
    """The text up to the end of its last sentence, if it has one: an answer that was cut off is no model to follow."""
    ends = [match.end() for match in re.finditer(r"[.!?](?=\s|$)", text.strip())]
    cut = text.strip()[: ends[-1]] if ends and ends[-1] > 40 else text.strip()
    return re.sub(r"\s*\n\s*\d+\.$", "", cut)


def sensible(text: str) -> bool:
    """It says something, and not the same over and over: at least half of its words differ."""
    words = re.findall(r"\w+", text.lower())
    return len(words) > 3 and len(set(words)) >= len(words) / 2


def table(path: Path, delimiter: str = ",") -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file, delimiter=delimiter))


def lines(path: Path) -> list[str]:
    return path.read_text("utf-8").splitlines()


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
