"""Generating texts, under controls where there are any: what they answer, steer and look at, and the record of it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from alignkit.checkpoints import load_state, save_state
from alignkit.components import Control, Intervention, Task
from alignkit.compose import name_apart
from alignkit.data.audit import TEXT_LENGTH
from alignkit.errors import Mistake, PluginError, UsageError
from alignkit.models.adapters import virtual_tokens

if TYPE_CHECKING:
    from alignkit.data import Example

Processor = Callable[[Tensor, Tensor], Tensor]
"""Of ids so far [R, t] and scores of the next token [R, V]: the scores as they are to be; as in transformers."""
Record = dict[str, Any]
"""A line of the audit: `control`, `rule`, `value`, `threshold`, `changed`."""


def generate(model: Any, batch: Mapping[str, Tensor], *, control: Controlling | None = None, **options: Any) -> Tensor:
    """`model.generate` on a batch of prompts; tasks generate by it, so that controls reach them all.

    Args:
        batch: `input_ids` and `attention_mask`, on the model's device.
        control: as `Task.predict` is given it; None: nobody controls anything.
        options: of `model.generate`.

    Returns:
        Ids [B, T], as `model.generate` gives them.
    """
    if control is None:
        found: Tensor = model.generate(**batch, **options)
        return found
    return control.generate(model, batch, options)


def refusals(controls: Sequence[Control], task: Task) -> Iterator[Mistake]:
    """Controls that the task cannot be under, each with the reason and the mend."""
    name_apart(controls)
    for control in controls:
        if task.generates:
            yield from control.check_task(task)
        else:
            found = f"task {task.name} generates no text that could be controlled"
            expected = f"a task that does: {', '.join(_generating())}"
            yield Mistake(f"control {control.name}", found, expected, "take it out of `controls`")


def _generating() -> list[str]:
    from alignkit.catalogue import default_catalogue

    catalogue = default_catalogue()
    tasks: dict[str, Any] = {name: catalogue.load_class(e) for name, e in catalogue.entries()["task"].items()}
    return [name for name, task in tasks.items() if task.generates]


# -- a batch on its way ------------------------------------------------------------------------------------------


@dataclass
class Generating:
    """A batch on its way through `model.generate`, as one control sees it."""

    task: Task
    model: Any
    tokenizer: Any
    examples: list[Example]
    """Of the B rows."""
    input_ids: Tensor
    """[B, T]: the prompts, padded on the left; of an encoder-decoder what its encoder reads, padded on the right."""
    attention_mask: Tensor
    """[B, T]: 0 where there is padding."""
    beams: int = 1
    """Rows of the scores for each row of the batch: rows of one example follow one another."""
    sampled: bool = False
    """Tokens are drawn, and not the likeliest ones taken."""
    interventions: list[list[Intervention]] = field(default_factory=list)

    def note(self, row: int, intervention: Intervention) -> None:
        """Say what was done to the answer of a row of the batch, or looked at."""
        self.interventions[row].append(intervention)

    @property
    def written(self) -> int:
        """Where an answer begins in the ids that a processor is given."""
        return 1 if self.model.config.is_encoder_decoder else self.input_ids.shape[1]

    def running(self, ids: Tensor) -> Tensor:
        """[R]: rows whose answer has not ended yet, by the last of their ids [R, t]; a batch goes on until all have."""
        if ids.shape[1] <= self.written:
            return torch.ones(len(ids), dtype=torch.bool, device=ids.device)
        special = torch.tensor(self.tokenizer.all_special_ids, device=ids.device)
        return ~torch.isin(ids[:, -1], special[special != self.tokenizer.bos_token_id])


@dataclass
class Controlling:
    """What `Task.predict` is given as `control`: the controls of one batch of examples, and what they did to each."""

    task: Task
    tokenizer: Any
    controls: Sequence[Control]
    examples: list[Example]
    records: list[list[Record]]

    def generate(self, model: Any, batch: Mapping[str, Tensor], options: dict[str, Any]) -> Tensor:
        """`model.generate` with every control around it, their processors in the order of the controls."""
        from transformers import LogitsProcessorList

        ids = batch["input_ids"]
        if len(ids) != len(self.examples):
            found = f"task {self.task.name} generates {len(ids)} rows where {len(self.examples)} were asked for"
            raise PluginError(f"{found}: `predict` has to put all examples that it is given into one batch")
        processors = list(options.pop("logits_processor", ()))
        seen = []
        with contextlib.ExitStack() as around:
            for control in _those(self.controls, "steered"):
                seen.append((control, self._seen_by(model, batch, options)))
                processor = around.enter_context(control.steered(seen[-1][1]))
                processors += [] if processor is None else [processor]
            found = model.generate(**batch, logits_processor=LogitsProcessorList(processors), **options)
        for control, generating in seen:
            for records, interventions in zip(self.records, generating.interventions, strict=True):
                records += [recorded(control, one) for one in interventions]
        return found

    def _seen_by(self, model: Any, batch: Mapping[str, Tensor], options: Mapping[str, Any]) -> Generating:
        default = model.generation_config
        return Generating(
            self.task,
            model,
            self.tokenizer,
            self.examples,
            batch["input_ids"],
            batch["attention_mask"],
            beams=options.get("num_beams") or default.num_beams or 1,
            sampled=bool(options.get("do_sample", default.do_sample)),
            interventions=[[] for _ in self.examples],
        )


# -- a model under controls --------------------------------------------------------------------------------------


class Controlled:
    """A model under controls: its answers, with what was done to them.

    Args:
        controls: in this order they are asked for replies, change scores, and look at texts.
        states: the folder in which a run keeps what its controls have prepared.

    Raises:
        UsageError: everything that is wrong with the controls, for this task and this model.
    """

    def __init__(
        self, controls: Sequence[Control], task: Task, model: Any, tokenizer: Any, states: Path | None = None
    ) -> None:
        if mistakes := list(refusals(controls, task)):
            raise UsageError(*mistakes)
        self.controls, self.task, self.model, self.tokenizer = list(controls), task, model, tokenizer
        with torch.random.fork_rng(devices=[]):
            for control in controls:
                if states is not None and (state := load_state(states / control.name)):
                    control.load_state_dict(state)
                control.prepare(model, tokenizer, task)

    def save(self, states: Path) -> None:
        """Keep what the controls have prepared."""
        for control in self.controls:
            if state := control.state_dict():
                states.mkdir(parents=True, exist_ok=True)
                save_state(states / control.name, state)

    def answers(
        self, examples: list[Example], batch_size: int = 16, audit: list[Record] | None = None, **options: Any
    ) -> Iterator[dict[str, Any]]:
        """Answers in order; where a control did something, `controls` says what.

        Args:
            audit: everything that a control did or looked at is appended, with the example's number as `row` and the
                beginning of its `text`.
            options: of the task's `predict`.
        """
        size = 1 if virtual_tokens(self.model) else batch_size  # prompts of one length alone share a batch then
        for start in range(0, len(examples), size):
            part = examples[start : start + size]
            for row, (answer, records) in enumerate(self._answered(part, options), start):
                if audit is not None:
                    text = part[row - start].text[:TEXT_LENGTH]
                    audit += [{"row": row, **record, "text": text} for record in records]
                done = [record for record in records if record["changed"]]
                yield {**answer, "controls": done} if done else answer

    def _answered(
        self, examples: list[Example], options: Mapping[str, Any]
    ) -> list[tuple[dict[str, Any], list[Record]]]:
        records: list[list[Record]] = [[] for _ in examples]
        answers = self._replies(examples, records)
        left = [row for row in range(len(examples)) if row not in answers]
        if left:
            asked = [examples[row] for row in left]
            control = Controlling(self.task, self.tokenizer, self.controls, asked, [records[row] for row in left])
            said = self.task.predict(self.model, self.tokenizer, asked, len(asked), control=control, **options)
            for row, answer in zip(left, said, strict=True):
                answers[row] = self._finished(examples[row], answer, records[row])
        return [(answers[row], records[row]) for row in range(len(examples))]

    def _replies(self, examples: list[Example], records: list[list[Record]]) -> dict[int, dict[str, Any]]:
        """The answers that controls give themselves, by row."""
        answers: dict[int, dict[str, Any]] = {}
        for control in _those(self.controls, "reply"):
            left = [row for row in range(len(examples)) if row not in answers]
            replies = control.reply([examples[row] for row in left]) if left else []
            if len(replies) != len(left):
                raise PluginError(f"control {control.name}: {len(replies)} replies to {len(left)} examples")
            for row, reply in zip(left, replies, strict=True):
                records[row].append(recorded(control, reply, "answered"))
                if reply.text is not None:
                    answers[row] = self.task.answer(examples[row], {self.task.generates: reply.text})
        return answers

    def _finished(self, example: Example, answer: dict[str, Any], records: list[Record]) -> dict[str, Any]:
        for control in _those(self.controls, "finish"):
            looked = control.finish(example, answer[self.task.generates])
            if looked is not None:
                records.append(recorded(control, looked, "the text"))
                answer = answer if looked.text is None else {**answer, self.task.generates: looked.text}
        return answer


def recorded(control: Control, intervention: Intervention, changed: str = "") -> Record:
    """A line of the audit.

    Args:
        changed: what is said where the intervention gives a text and does not say what it changed.
    """
    found = asdict(intervention)
    given = found.pop("text") is not None
    return {"control": control.name, **found, "changed": found["changed"] or (changed if given else "")}


def _those(controls: Iterable[Control], method: str) -> list[Control]:
    """The controls that implement a method."""
    return [control for control in controls if getattr(type(control), method) is not getattr(Control, method)]
