"""DPO with LoRA on a causal language model: alignkit beside TRL's own DPOTrainer, like for like.

    pip install trl==1.16.0
    python benchmarks/preference.py --model FOLDER [--shapes 256x64 64x256 ragged] [--steps 6] [--output FILE]

Each contender trains in a process of its own and stops after every optimizer step until it is its turn again, so that
one runs at a time. A round gives each one turn, in random order, on the same four pairs. Both have the same token ids,
adapter, initial weights, optimizer, schedule and clipping, fp32, no gradient checkpointing; that they are doing the
same is shown by their losses, step by step.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import random
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from alignkit_preference import DPO, Preference, shared_prompt
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, PrinterCallback, TrainerCallback, TrainingArguments

from alignkit import AlignTrainer
from alignkit.step import TrainingStep

PAIRS = 4
"""Per optimizer step."""
WARM_UP = 1
"""Rounds whose times are not counted: the first holds Adam's allocations."""
RATE = 2e-4
VARIANTS = {
    "trl": {"cached": False},
    "trl-precomputed": {"cached": True},
    "alignkit": {"cached": True, "micro": 1},
    "alignkit-whole": {"cached": True, "micro": PAIRS},
    "alignkit-separate": {"cached": True, "micro": 1, "shared": False},
    "alignkit-online": {"cached": False, "micro": 1},
}
USUAL = ("trl", "trl-precomputed", "alignkit", "alignkit-whole", "alignkit-online")
RATIOS = (
    ("trl-precomputed", "alignkit"),
    ("trl-precomputed", "alignkit-whole"),
    ("trl-precomputed", "alignkit-separate"),
    ("trl", "alignkit-online"),
    ("trl", "alignkit"),
)
"""(slower, faster): how many times the throughput, within a round. The first four are like for like."""
RETURNING = {"MALLOC_MMAP_THRESHOLD_": "1000000", "MALLOC_TRIM_THRESHOLD_": "1000000"}
"""Lets glibc give freed tensors back at once: otherwise the peak is mostly holes between what is kept."""

Pair = tuple[list[int], list[int], list[int]]


# -- the same pairs for all ----------------------------------------------------------------------------------------


def lengths(shape: str, number: int) -> Iterator[tuple[int, int, int]]:
    """Tokens of a prompt and of its two answers: `256x64`, or `ragged`, even on a logarithmic scale."""
    drawn = random.Random(shape)

    def between(low: int, high: int) -> int:
        return round(math.exp(drawn.uniform(math.log(low), math.log(high))))

    for _ in range(number):
        if shape == "ragged":
            yield between(16, 512), between(8, 256), between(8, 256)
        else:
            prompt, answer = map(int, shape.split("x"))
            yield prompt, answer, answer


def make_pairs(shape: str, number: int, tokenizer: Any) -> list[Pair]:
    """Random words that are a token each, so that text and ids say the same; answers end with the end of text."""
    words = [i for token, i in tokenizer.get_vocab().items() if re.fullmatch("Ġ[a-z]{3,}", token)]
    words.sort()
    drawn = random.Random(f"{shape} words")
    return [
        (
            drawn.choices(words, k=prompt),
            [*drawn.choices(words, k=chosen - 1), tokenizer.eos_token_id],
            [*drawn.choices(words, k=rejected - 1), tokenizer.eos_token_id],
        )
        for prompt, chosen, rejected in lengths(shape, number)
    ]


# -- one contender -------------------------------------------------------------------------------------------------


class TakeTurns(TrainerCallback):
    """Waits for a line on standard input before each step; says on a stream what the step before it took."""

    def __init__(self, said: Any):
        self.said, self.loss = said, 0.0
        self.wall = self.cpu = 0.0

    def start(self) -> None:
        sys.stdin.readline()
        self.loss, self.wall, self.cpu = 0.0, time.perf_counter(), time.process_time()

    def tell(self, **facts: Any) -> None:
        print(json.dumps(facts), file=self.said, flush=True)

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.tell(ready=True)
        self.start()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        wall, cpu = time.perf_counter() - self.wall, time.process_time() - self.cpu
        self.tell(wall=wall, cpu=cpu, loss=self.loss, peak=1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
        self.start()


def adapter() -> LoraConfig:
    return LoraConfig(r=16, lora_alpha=32, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM")


def initialise(model: Any) -> None:
    """The same weights of the adapter for all, drawn in the order of their names."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in sorted(model.named_parameters()):
            if "lora_A" in name:
                bound = weight.shape[1] ** -0.5
                weight.copy_((torch.rand(weight.shape, generator=generator) * 2 - 1) * bound)
            elif "lora_B" in name:
                weight.zero_()


def common(folder: str, steps: int) -> dict[str, Any]:
    return {
        "output_dir": folder, "max_steps": steps, "learning_rate": RATE, "max_grad_norm": 1.0, "use_cpu": True,
        "optim": "adamw_torch_fused", "weight_decay": 0.0, "lr_scheduler_type": "linear", "save_strategy": "no",
        "report_to": "none", "disable_tqdm": True, "logging_steps": 1, "train_sampling_strategy": "sequential",
        "bf16": False, "gradient_checkpointing": False,
    }  # fmt: skip


def trl_trainer(model: Any, tokenizer: Any, pairs: list[Pair], folder: str, turns: TakeTurns, cached: bool) -> Any:
    """TRL's, given the base model and the adapter's config; its reference is the model with the adapter off."""
    from trl import DPOConfig, DPOTrainer

    class Told(DPOTrainer):
        def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
            loss = super().compute_loss(*args, **kwargs)
            turns.loss += float(loss.detach())
            return loss

    names = ("prompt", "chosen", "rejected")
    ends = tokenizer.eos_token_id
    text = [
        {n: tokenizer.decode([i for i in ids if i != ends]) for n, ids in zip(names, p, strict=True)} for p in pairs
    ]
    steps = len(pairs) // PAIRS
    args = DPOConfig(
        **common(folder, steps), per_device_train_batch_size=PAIRS, precompute_ref_log_probs=cached, max_length=None
    )
    made = Told(
        model=model, args=args, train_dataset=Dataset.from_list(text), processing_class=tokenizer,
        peft_config=adapter(), callbacks=[turns],
    )  # fmt: skip
    for row, pair in zip(made.train_dataset, pairs, strict=True):
        assert tuple(row[f"{name}_ids"] for name in names) == pair, "the text's ids are others"
    return made


def own_trainer(
    model: Any, tokenizer: Any, pairs: list[Pair], folder: str, turns: TakeTurns, cached: bool, micro: int, shared: bool
) -> Any:
    """alignkit's; where the reference is cached, all of it has been computed before training, as TRL does it."""
    task = Preference(shared_prompt=shared)

    class Told(AlignTrainer):
        def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
            loss = super().compute_loss(*args, **kwargs)
            turns.loss += float(loss.detach())
            return loss

    args = TrainingArguments(
        **common(folder, len(pairs) // PAIRS), per_device_train_batch_size=micro, remove_unused_columns=False,
        gradient_accumulation_steps=PAIRS // micro,
    )  # fmt: skip
    rows = [{**shared_prompt.row(*pair), "index": i} for i, pair in enumerate(pairs)]
    made = Told(
        model=get_peft_model(model, adapter()), args=args, train_dataset=rows, processing_class=tokenizer,
        data_collator=lambda part: task.collate(part, tokenizer), task=task, objective=DPO(), callbacks=[turns],
        cache=Path(folder) if cached else None,
    )  # fmt: skip
    if cached:
        for row in rows:
            step = TrainingStep(made.context, made.model, made.data_collator([row]))
            step.reference_label_log_probabilities()
    return made


def contend(variant: str, given: argparse.Namespace) -> None:
    """One contender's training, from its loading to its end, with the lines that `Lane` reads."""
    said = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print goes elsewhere
    torch.set_num_threads(given.threads)
    tokenizer = AutoTokenizer.from_pretrained(given.model)
    model = AutoModelForCausalLM.from_pretrained(given.model, dtype=torch.float32)
    pairs = make_pairs(given.shapes[0], PAIRS * (given.steps + WARM_UP), tokenizer)
    turns, options = TakeTurns(said), VARIANTS[variant]
    with tempfile.TemporaryDirectory() as folder:
        began = time.process_time()
        if variant.startswith("trl"):
            made = trl_trainer(model, tokenizer, pairs, folder, turns, bool(options["cached"]))
        else:
            micro, shared = int(options["micro"]), bool(options.get("shared", True))
            made = own_trainer(model, tokenizer, pairs, folder, turns, bool(options["cached"]), micro, shared)
        initialise(made.model)
        made.remove_callback(PrinterCallback)
        turns.tell(setup=time.process_time() - began)
        made.train()
        files = len(list(Path(folder).rglob("labels/*.safetensors")))
        assert files == (options["cached"] and not variant.startswith("trl")), "the reference was asked in training"


class Lane:
    """A contender's process."""

    def __init__(self, variant: str, shape: str, given: argparse.Namespace):
        command = [sys.executable, __file__, "--model", given.model, "--shapes", shape, "--lane", variant]
        command += ["--steps", str(given.steps), "--threads", str(given.threads)]
        environment = {**os.environ, **RETURNING, "OMP_NUM_THREADS": str(given.threads)}
        self.variant = variant
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115  # open for as long as the process runs
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(
            command, stdin=pipe, stdout=pipe, stderr=self._errors, text=True, env=environment
        )
        self.setup = self.read()["setup"]
        self.read()

    def read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._errors.seek(0)
            raise RuntimeError(f"{self.variant} ended:\n{self._errors.read()[-4000:]}")
        return json.loads(line)

    def turn(self) -> dict[str, Any]:
        self._go_on()
        return self.read()

    def end(self) -> None:
        self._go_on()
        if self._process.wait():
            self.read()

    def _go_on(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()


# -- all of them ---------------------------------------------------------------------------------------------------


def measure(shape: str, given: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Of one shape, after every round that counts: by variant all steps' seconds, losses and peaks; and the ratios."""
    lanes = [Lane(variant, shape, given) for variant in given.variants]
    shuffle, rounds = random.Random(1), []
    for number in range(given.steps + WARM_UP):
        order = shuffle.sample(lanes, len(lanes))
        rounds.append({lane.variant: lane.turn() for lane in order})
        if number >= WARM_UP:
            yield {
                "steps": {
                    v: {what: [turn[v][what] for turn in rounds] for what in rounds[0][v]} for v in given.variants
                },
                "setup": {lane.variant: lane.setup for lane in lanes},
                "peak": {variant: took["peak"] for variant, took in rounds[-1].items()},
                "ratios": dict(compared(rounds)),
                "tokens": [sum(sizes) for sizes in lengths(shape, PAIRS * (given.steps + WARM_UP))],
            }
    for lane in lanes:
        lane.end()


def compared(rounds: list[dict[str, dict[str, float]]]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Of pairs of variants, how much the second one gains, and how far their losses lie apart."""
    last = rounds[-1]
    for slow, fast in RATIOS:
        if slow in last and fast in last:
            times = spread([turn[slow]["cpu"] / turn[fast]["cpu"] for turn in rounds[WARM_UP:]])
            memory = last[fast]["peak"] / last[slow]["peak"]
            loss = max(abs(turn[slow]["loss"] - turn[fast]["loss"]) for turn in rounds)
            yield f"{slow} / {fast}", {"throughput": times, "memory": memory, "loss": loss}


def spread(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "low": min(values), "high": max(values)}


def show(shape: str, found: dict[str, Any]) -> None:
    print(f"\n{shape}")
    for variant, took in found["steps"].items():
        cpu, wall = (statistics.median(took[clock][WARM_UP:]) for clock in ("cpu", "wall"))
        peak, setup = found["peak"][variant] / 1e9, found["setup"][variant]
        took = f"{cpu:8.2f} s cpu {wall:8.2f} s wall {peak:7.2f} GB   set-up {setup:7.1f} s cpu"
        print(f"  {variant:<20}{took}", flush=True)
    for name, ratio in found["ratios"].items():
        t = ratio["throughput"]
        said = f"{t['median']:.2f} ({t['low']:.2f}-{t['high']:.2f}) x throughput at {ratio['memory']:.2f} of the memory"
        print(f"  {name:<36}{said}, losses within {ratio['loss']:.1e}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder of a causal language model")
    parser.add_argument("--shapes", nargs="+", default=["256x64", "64x256", "ragged"], help="PROMPTxANSWER, or ragged")
    parser.add_argument("--variants", nargs="+", default=list(USUAL), choices=list(VARIANTS))
    parser.add_argument("--steps", type=int, default=6, help="rounds that count")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--lane", choices=list(VARIANTS), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.lane:
        contend(given.lane, given)
        return
    names = ("alignkit", "trl", "torch", "transformers", "peft")
    result: dict[str, Any] = {"threads": given.threads, "cores": os.cpu_count(), "machine": platform.machine()}
    result |= {"versions": {name: metadata.version(name) for name in names}, "load": [os.getloadavg()[0]], "shapes": {}}
    for shape in given.shapes:
        for found in measure(shape, given):
            result["shapes"][shape] = found
            result["load"].append(os.getloadavg()[0])
            if given.output:
                given.output.write_text(json.dumps(result, indent=1) + "\n", "utf-8")
            show(shape, found)


if __name__ == "__main__":
    main()
