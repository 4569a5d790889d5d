"""Does pre-training pay? A small BERT fine-tuned on few labels, from scratch and after masked-language modelling.

    python benchmarks/pretraining.py --data FOLDER [--texts ag_news xsum …] [--seeds 1 2 3] [--labels 200 1000]
                                     [--steps 3000] [--layers 2] [--width 128] [--starts scratch] [--output FILE]
    python benchmarks/pretraining.py --table FILE …       # the table of what is there

FOLDER holds `ag_news/` and whatever else of `TEXTS` is read. A WordPiece vocabulary of 6,000 is learnt on the texts.
For each seed one model is made from a config, the same for both starts: one is fine-tuned at once on AG News, the other
first pre-trained on the texts, of which AG News' are those to train on, without their labels. Each figure is written
to FILE as soon as it is there, one JSON line for each. Each start is fine-tuned at every rate of `--tuning`; the table
has the one that is best on AG News' `dev.csv`, and figures of its `test.csv`.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import json
import re
import statistics
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from tokenizers import BertWordPieceTokenizer
from transformers import BertTokenizerFast

import alignkit

WORDS = 80
"""Of a passage at most: longer texts are cut into even parts."""
EPOCHS = {200: 15, 1000: 10}
"""Of fine-tuning by the number of labels; 10 where it is not named."""
SPLITS = ("dev", "test")


# -- texts -------------------------------------------------------------------------------------------------------


def fields(path: Path, template: str) -> Iterator[str]:
    """A text of each row of a `.csv`, `.tsv` or `.jsonl` file."""
    with path.open(encoding="utf-8", newline="") as file:
        if path.suffix == ".jsonl":
            rows: Any = map(json.loads, file)
        elif path.suffix == ".tsv":
            rows = csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
        else:
            rows = csv.DictReader(file)
        for row in rows:
            yield template.format_map({k: " ".join(v) if isinstance(v, list) else v for k, v in row.items()})


def conll(path: Path) -> Iterator[str]:
    """The documents of a CoNLL file, or all of it where it does not say where they begin."""
    words: list[str] = []
    for line in path.read_text("utf-8").splitlines():
        if line.startswith("-DOCSTART-"):
            yield " ".join(words)
            words = []
        elif line.strip():
            words.append(line.split()[0])
    yield " ".join(words)


def squad(path: Path) -> Iterator[str]:
    for article in json.loads(path.read_text("utf-8"))["data"]:
        yield from (paragraph["context"] for paragraph in article["paragraphs"])


TEXTS: dict[str, Callable[[Path], Iterable[str]]] = {
    "ag_news": lambda data: fields(data / "ag_news/train.csv", "{title}. {description}"),
    "xsum": lambda data: fields(data / "xsum/train.jsonl", "{document} {summary}"),
    "conll2003": lambda data: conll(data / "conll2003/train.txt"),
    "crossner": lambda data: itertools.chain(*map(conll, sorted((data / "crossner").glob("*/*.txt")))),
    "squad": lambda data: squad(data / "squad_subset/train.json"),
    "semeval2010": lambda data: [" ".join(fields(data / "semeval2010_task8/train.tsv", "{sentence}"))],
    "dolly": lambda data: fields(data / "dolly_benign/instructions.jsonl", "{instruction} {context} {response}"),
    "dialogsum": lambda data: fields(data / "dialogsum/train.jsonl", "{dialogue}"),
    "dailydialog": lambda data: fields(data / "dailydialog/train.jsonl", "{utterances}"),
}
"""Single sentences, SemEval's, are put together: rows of like length make a faster step."""
_MARKS = re.compile(r"</?e\d> ?|#Person\d#: ")


def passages(text: str) -> Iterator[str]:
    words = _MARKS.sub("", text).split()
    parts = -(-len(words) // WORDS)
    for part in range(parts):
        yield " ".join(words[len(words) * part // parts : len(words) * (part + 1) // parts])


def write_texts(data: Path, names: list[str], file: Path) -> int:
    found = [passage for name in names for text in TEXTS[name](data) for passage in passages(text)]
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in found), encoding="utf-8")
    return len(found)


def learn_tokenizer(texts: Path, folder: Path) -> str:
    learnt = BertWordPieceTokenizer()
    with texts.open(encoding="utf-8") as file:
        learnt.train_from_iterator(
            (json.loads(line)["text"] for line in file), vocab_size=6000, min_frequency=2, show_progress=False
        )
    learnt.save(str(folder / "learnt.json"))
    BertTokenizerFast(tokenizer_file=str(folder / "learnt.json")).save_pretrained(folder / "tokenizer")
    return str(folder / "tokenizer")


# -- models ------------------------------------------------------------------------------------------------------


def config(given: argparse.Namespace) -> dict[str, Any]:
    return {
        "model_type": "bert",
        "hidden_size": given.width,
        "num_hidden_layers": given.layers,
        "num_attention_heads": given.width // 32,
        "intermediate_size": 4 * given.width,
        "max_position_embeddings": 128,
        "initializer_range": given.initial,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    }


def ag_news(data: Path, name: str, **rows: str) -> dict[str, Any]:
    return {"path": str(data / f"ag_news/{name}.csv"), "columns": {"text": "{title}. {description}"}, **rows}


def pretrain(model: Any, texts: Path, folder: Path, seed: int, given: argparse.Namespace) -> alignkit.Run:
    return alignkit.train(
        alignkit.Recipe(
            model=model,
            task={"use": "masked-lm", "maximum_length": 128, "probability": given.probability, "packed": False},
            data={"train": {"path": str(texts)}, "test": ag_news(given.data, "test")},
            training={
                "max_steps": given.steps,
                "learning_rate": given.rate,
                "warmup_steps": 0.06,
                "weight_decay": 0.01,
                "per_device_train_batch_size": given.batch,
                "save_strategy": "no",
                "logging_steps": 100,
            },
            evaluation={"replicates": 1000},
            seed=seed,
            output=str(folder),
        )
    )


def fine_tune(model: Any, folder: Path, seed: int, labels: int, rate: float, given: argparse.Namespace) -> alignkit.Run:
    return alignkit.train(
        alignkit.Recipe(
            model=model,
            head={"dropout": 0.1},
            task={"use": "text-classification", "maximum_length": 96},
            data={
                "train": ag_news(given.data, "train", rows=f":{labels}"),
                "test": {name: ag_news(given.data, name) for name in SPLITS},
            },
            training={
                "num_train_epochs": EPOCHS.get(labels, 10),
                "learning_rate": rate,
                "warmup_steps": 0.1,
                "per_device_train_batch_size": 16,
                "save_strategy": "no",
            },
            evaluation={"replicates": 1000},
            seed=seed,
            output=str(folder),
        )
    )


def figures(
    seed: int, given: argparse.Namespace, tokenizer: str, texts: Path, folder: Path
) -> Iterator[dict[str, Any]]:
    """Everything that is measured with one seed."""
    fresh = {"config": config(given), "tokenizer": tokenizer}
    for start in given.starts:
        model: Any = fresh
        if start == "pretrained":
            run = pretrain(fresh, texts, folder / "pretrained", seed, given)
            sides = {side: run.metrics[side]["test"] for side in ("before", "after")}
            perplexities = [sides[side]["perplexity"]["value"] for side in sides]
            hits = sides["after"]["accuracy"]["value"]
            yield {"start": "pre-training", "perplexity": perplexities, "hits": hits, "seconds": round(run.seconds, 1)}
            model = str(run.path)
        for rate, labels in itertools.product(given.tuning, given.labels):
            run = fine_tune(model, folder / f"{start}-{labels}-{rate:g}", seed, labels, rate, given)
            after = {name: run.metrics["after"][f"test/{name}"] for name in SPLITS}
            scores = {f"{n} {m}": after[n][m]["value"] for n in SPLITS for m in ("accuracy", "macro_f1")}
            yield {"start": start, "labels": labels, "rate": rate, **scores, "seconds": round(run.seconds, 1)}


def table(lines: list[dict[str, Any]]) -> str:
    """A row for each start, with the learning rate whose mean accuracy on `dev.csv` is highest over its seeds."""
    made = [
        "| model, texts | labels | start | rate | seeds | accuracy | macro-F1 |",
        "|---|---:|---|---|---|---:|---:|",
    ]
    groups: dict[tuple[Any, ...], dict[float, list[dict[str, Any]]]] = {}
    for line in sorted(lines, key=lambda line: line["seed"]):
        if "labels" in line:
            rates = groups.setdefault((line["settings"], line["labels"], line["start"]), {})
            rates.setdefault(line["rate"], []).append(line)
    for (settings, labels, start), rates in sorted(groups.items()):
        complete = {r: f for r, f in rates.items() if len(f) == max(map(len, rates.values()))}
        rate, found = max(complete.items(), key=lambda item: statistics.mean(line["dev accuracy"] for line in item[1]))
        seeds = ", ".join(str(line["seed"]) for line in found)
        cells = [_cell([line[f"test {name}"] for line in found]) for name in ("accuracy", "macro_f1")]
        made.append(f"| {settings} | {labels} | {start} | {rate:g} | {seeds} | {' | '.join(cells)} |")
    return "\n".join(made)


def _cell(values: list[float]) -> str:
    spread = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
    return f"{', '.join(f'{value:.3f}' for value in values)}; {statistics.mean(values):.3f}{spread}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--texts", nargs="+", choices=TEXTS, default=list(TEXTS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--starts", nargs="+", choices=["scratch", "pretrained"], default=["scratch", "pretrained"])
    parser.add_argument("--labels", type=int, nargs="+", default=[200, 1000])
    parser.add_argument("--tuning", type=float, nargs="+", default=[5e-4, 1e-3], help="learning rates of fine-tuning")
    parser.add_argument("--steps", type=int, default=3000, help="of pre-training")
    parser.add_argument("--batch", type=int, default=64, help="passages in a step of pre-training")
    parser.add_argument("--rate", type=float, default=2e-3, help="learning rate of pre-training")
    parser.add_argument("--probability", type=float, default=0.3, help="share of words that are hidden")
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--initial", type=float, default=0.05, help="standard deviation of the first weights")
    parser.add_argument("--output", type=Path, default=Path("pretraining.jsonl"))
    parser.add_argument("--table", type=Path, nargs="+", metavar="FILE", help="print the table and train nothing")
    given = parser.parse_args()
    files = given.table or [given.output]
    if not given.table:
        if not given.data:
            parser.error("--data is needed")
        given.data = given.data.resolve()
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            passed = write_texts(given.data, given.texts, folder / "texts.jsonl")
            tokenizer = learn_tokenizer(folder / "texts.jsonl", folder)
            asked = {n: getattr(given, n) for n in ("steps", "batch", "rate", "probability", "initial", "texts")}
            device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
            settings = f"{given.layers} x {given.width}, {passed:,} passages"
            for seed in given.seeds:
                for found in figures(seed, given, tokenizer, folder / "texts.jsonl", folder / str(seed)):
                    line = {"settings": settings, "seed": seed, **found, "device": device, "asked": asked}
                    with given.output.open("a", encoding="utf-8") as file:
                        file.write(json.dumps(line) + "\n")
                    print(line, flush=True)
    print(table([json.loads(line) for file in files for line in file.read_text("utf-8").splitlines()]))


if __name__ == "__main__":
    main()
