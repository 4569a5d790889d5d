"""Does pre-training pay? A small BERT fine-tuned on few labels, from scratch and after masked-language modelling.

    python benchmarks/pretraining.py --data FOLDER [--seeds 1 2 3] [--labels 200] [--epochs 10] [--output FILE]

FOLDER is AG News' (`train.csv`, `test.csv` with label, title, description). A WordPiece vocabulary of 4,000 is learnt
on the text of `train.csv`. For each seed one model is made from a config, the same for both: one is fine-tuned at once,
the other first pre-trained on that text, whose labels it does not read. Prints a table and writes all figures to FILE.
"""

from __future__ import annotations

import argparse
import csv
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from tokenizers import BertWordPieceTokenizer
from transformers import BertTokenizerFast

import alignkit

CONFIG = {
    "model_type": "bert",
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 256,
    "max_position_embeddings": 128,
}
TEXT = {"text": "{title}. {description}"}


def source(data: Path, name: str, **rows: str) -> dict[str, Any]:
    return {"path": str(data / f"{name}.csv"), "columns": TEXT, **rows}


def learn_tokenizer(data: Path, folder: Path) -> str:
    with (data / "train.csv").open(encoding="utf-8", newline="") as file:
        texts = [f"{row['title']}. {row['description']}" for row in csv.DictReader(file)]
    learnt = BertWordPieceTokenizer()
    learnt.train_from_iterator(texts, vocab_size=4000, min_frequency=2, show_progress=False)
    learnt.save(str(folder / "learnt.json"))
    BertTokenizerFast(tokenizer_file=str(folder / "learnt.json")).save_pretrained(folder / "tokenizer")
    return str(folder / "tokenizer")


def pretrain(data: Path, tokenizer: str, folder: Path, seed: int, epochs: float) -> alignkit.Run:
    return alignkit.train(
        alignkit.Recipe(
            model={"config": CONFIG, "tokenizer": tokenizer},
            task={"use": "masked-lm", "maximum_length": 128},
            data={"train": source(data, "train"), "test": source(data, "test")},
            training={
                "num_train_epochs": epochs,
                "learning_rate": 2e-3,
                "warmup_steps": 0.1,
                "per_device_train_batch_size": 8,
            },
            evaluation={"replicates": 1000},
            seed=seed,
            output=str(folder),
        )
    )


def fine_tune(model: Any, data: Path, folder: Path, seed: int, labels: int) -> alignkit.Run:
    return alignkit.train(
        alignkit.Recipe(
            model=model,
            task={"use": "text-classification", "maximum_length": 96},
            data={"train": source(data, "train", rows=f":{labels}"), "test": source(data, "test")},
            training={"num_train_epochs": 15, "learning_rate": 5e-4, "per_device_train_batch_size": 16},
            evaluation={"replicates": 1000},
            seed=seed,
            output=str(folder),
        )
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--labels", type=int, default=200)
    parser.add_argument("--epochs", type=float, default=10)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    data, found = options.data.resolve(), []
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = learn_tokenizer(data, Path(folder))
        for seed in options.seeds:
            begun, runs = time.time(), Path(folder) / str(seed)
            plain = {"config": CONFIG, "tokenizer": tokenizer}
            pretrained = pretrain(data, tokenizer, runs / "pretrained", seed, options.epochs)
            for start, model in (("scratch", plain), ("pretrained", str(pretrained.path))):
                run = fine_tune(model, data, runs / start / "tuned", seed, options.labels)
                scores = {name: run.metrics["after"]["test"][name]["value"] for name in ("accuracy", "macro_f1")}
                found.append({"seed": seed, "start": start, **scores, "seconds": round(run.seconds, 1)})
                print(json.dumps(found[-1]), flush=True)
            perplexity = [pretrained.metrics[side]["test"]["perplexity"]["value"] for side in ("before", "after")]
            told = f"perplexity {perplexity[0]:,.0f} -> {perplexity[1]:,.0f}"
            print(f"seed {seed}: pre-training {pretrained.seconds:.0f} s, {told}; {time.time() - begun:.0f} s in all")
    print("\n| start | accuracy | macro-F1 |\n|---|---:|---:|")
    for start in ("scratch", "pretrained"):
        rows = [row for row in found if row["start"] == start]
        cells = [_cell([row[name] for row in rows]) for name in ("accuracy", "macro_f1")]
        print(f"| {start} | {' | '.join(cells)} |")
    if options.output:
        options.output.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


def _cell(values: list[float]) -> str:
    spread = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.3f}{spread}"


if __name__ == "__main__":
    main()
