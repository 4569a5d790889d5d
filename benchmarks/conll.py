"""CoNLL-2003 NER: alignkit without components against transformers.Trainer written out, same seeds, strict F1.

    python benchmarks/conll.py --data FOLDER --model FOLDER [--epochs 3] [--seeds 1 2 3] [--limit N] [--output FILE]

FOLDER holds `train.txt` and `dev.txt` (token, POS, chunk, BIO2 tag). Each line of the output is one training: who,
seed, strict F1 on the development split, seconds of training alone. The two alternate, seed by seed; `--who` takes one
of them alone.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from seqeval.metrics import f1_score
from seqeval.scheme import IOB2
from transformers import (
    AutoModelForTokenClassification,
    AutoTokenizer,
    DataCollatorForTokenClassification,
    Trainer,
    TrainingArguments,
    set_seed,
)


def read(path: Path) -> list[tuple[list[str], list[str]]]:
    sentences = []
    for block in path.read_text(encoding="utf-8").split("\n\n"):
        rows = [line.split(" ") for line in block.split("\n") if line and not line.startswith("-DOCSTART-")]
        if rows:
            sentences.append(([r[0] for r in rows], [r[-1] for r in rows]))
    return sentences


def stock(data: Path, model: str, seed: int, epochs: float, limit: int | None) -> dict[str, Any]:
    """What the usual example script does."""
    train, dev = read(data / "train.txt")[:limit], read(data / "dev.txt")
    labels = sorted({tag for _, tags in train for tag in tags})
    tokenizer = AutoTokenizer.from_pretrained(model)

    def encode(sentences: list[tuple[list[str], list[str]]]) -> Dataset:
        words = [words for words, _ in sentences]
        encoded = tokenizer(words, is_split_into_words=True, truncation=True, max_length=256)
        rows = []
        for i, (_, tags) in enumerate(sentences):
            previous, row = None, []
            for word in encoded.word_ids(i):
                row.append(-100 if word is None or word == previous else labels.index(tags[word]))
                previous = word
            rows.append(row)
        return Dataset.from_dict({**encoded, "labels": rows})

    def score(prediction: Any) -> dict[str, float]:
        found = np.argmax(prediction.predictions, -1)
        truth = [[labels[t] for t in row if t != -100] for row in prediction.label_ids]
        guess = [
            [labels[g] for g, t in zip(guesses, row, strict=True) if t != -100]
            for guesses, row in zip(found, prediction.label_ids, strict=True)
        ]
        return {"f1": f1_score(truth, guess, mode="strict", scheme=IOB2)}

    set_seed(seed)
    network = AutoModelForTokenClassification.from_pretrained(model, num_labels=len(labels))
    with tempfile.TemporaryDirectory() as folder:
        args = TrainingArguments(
            output_dir=folder, seed=seed, num_train_epochs=epochs, learning_rate=5e-5, per_device_train_batch_size=16,
            per_device_eval_batch_size=32, save_strategy="no", report_to="none", disable_tqdm=True,
        )  # fmt: skip
        trainer = Trainer(
            model=network, args=args, train_dataset=encode(train), eval_dataset=encode(dev),
            data_collator=DataCollatorForTokenClassification(tokenizer), compute_metrics=score,
        )  # fmt: skip
        seconds = trainer.train().metrics["train_runtime"]
        return {"f1": trainer.evaluate()["eval_f1"], "seconds": seconds}


def ours(data: Path, model: str, seed: int, epochs: float, limit: int | None) -> dict[str, Any]:
    """The same as an alignkit recipe with its defaults."""
    import alignkit

    with tempfile.TemporaryDirectory() as folder:
        rows = f":{limit}" if limit else ":"
        recipe = alignkit.Recipe(
            model=model,
            task="ner",
            data={"train": {"path": str(data / "train.txt"), "rows": rows}, "test": str(data / "dev.txt")},
            training={"num_train_epochs": epochs, "save_strategy": "no"},
            seed=seed,
            output=f"{folder}/run",
        )
        run = alignkit.train(recipe)
        return {"f1": run.metrics["after"]["test"]["f1"]["value"], "seconds": run.seconds}


SIDES = {"transformers.Trainer": stock, "alignkit": ours}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--epochs", type=float, default=3)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--limit", type=int, help="train on the first N sentences only")
    parser.add_argument("--who", nargs="+", choices=SIDES, default=list(SIDES))
    parser.add_argument("--output", type=Path, default=Path("conll.jsonl"))
    given = parser.parse_args()
    for seed in given.seeds:
        for who in given.who:
            found = SIDES[who](given.data, given.model, seed, given.epochs, given.limit)
            line = {"who": who, "seed": seed, "epochs": given.epochs, "limit": given.limit, **found}
            with given.output.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
            print(line, flush=True)


if __name__ == "__main__":
    main()
