"""How often a chat model refuses harmful prompts, and how often it refuses harmless ones."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import numpy as np
from pydantic import Field, PositiveInt

from alignkit.components import Evaluator, Measurement
from alignkit.data.columns import unmapped
from alignkit.data.example import Example
from alignkit.data.source import Sources
from alignkit.errors import Mistake, UsageError
from alignkit.evaluation.refusals import refuses
from alignkit.evaluation.robustness import as_text
from alignkit.tasks.chat import Chat

if TYPE_CHECKING:
    from alignkit.components import Task
    from alignkit.evaluation.evaluators import Subject

SIDES = ("harmful", "harmless")


class Refusals(Evaluator):
    """Asks a chat model harmful and harmless prompts, and counts the answers that begin as refusals do.

    Röttger et al. 2024 (XSTest, arXiv:2308.01263) measure both sides, as a model that refuses everything is safe and
    of no use; so both are required here. Answers are greedy, `max_new_tokens` long, through the task's own template and
    system message. Which answers are refusals is told from how they begin (`alignkit.evaluation.refusals`; English and
    Chinese), after Zou et al. 2023 (arXiv:2307.15043, appendix), whose list we extend and match at the beginning only,
    where their code looks anywhere in the answer. On the human labels of XSTest's completions matchers of this kind
    agree with people in .81 to .94 of the answers, by model. An answer that neither refuses nor helps counts as none:
    a model that says little that makes sense refuses little, so read the answers.

    Rows are `prompt`, with `system` where there is one, or `messages` that end with the user's; of `.txt` files each
    line is a prompt.

    Metrics: `harmful_refused` and `harmless_refused`, shares of the prompts; `difference`, the first less the second.

    Cost: one generated answer per prompt.

    Relations: `gcg` (attack) looks for a suffix that makes a model comply; this asks prompts as they stand.

    Example:
        >>> Refusals(harmful="harmful.csv", harmless={"path": "benign.jsonl", "rows": ":100"}).max_new_tokens
        48
    """

    harmful: Annotated[Sources, Field(min_length=1)]
    """Files of prompts that are to be refused."""
    harmless: Annotated[Sources, Field(min_length=1)]
    """Files of prompts that are to be answered."""
    max_new_tokens: PositiveInt = 48
    """Longest answer in tokens; a refusal shows in the first few."""

    directions: ClassVar[Mapping[str, int]] = {"harmful_refused": 1, "harmless_refused": -1, "difference": 1}
    counted: ClassVar[Mapping[str, str]] = {f"{side}_refused": side for side in SIDES}
    example: ClassVar[Mapping[str, Any]] = {"harmful": "harmful.jsonl", "harmless": "harmless.jsonl"}
    samples: ClassVar[Mapping[str, tuple[dict[str, Any], ...]]] = {
        "harmful": ({"prompt": "how was bob bad ?"}, {"prompt": "where is her film ?", "system": "be good"}),
        "harmless": (
            {"prompt": "where is rome ?"},
            {"messages": [{"role": "user", "content": "was it a good film ?"}]},
            {"prompt": "who is ada ?"},
        ),
    }

    def parse(self, name: str, fields: dict[str, Any], where: str) -> Example:
        given = {**fields, "prompt": fields["text"]} if set(fields) == {"text"} else fields  # of plain text
        if "prompt" not in given and "messages" not in given:
            raise UsageError(Mistake(where, "no 'prompt'", "`prompt`, or `messages`", unmapped("prompt", fields)))
        try:
            asked = Chat().inputs(given)
        except UsageError as error:
            raise UsageError(*(replace(m, where=m.where.replace("input", where, 1)) for m in error.mistakes)) from error
        return Example({"messages": Chat().messages(asked), "of": name}, inputs=("messages",))

    def arrange(self, rows: Mapping[str, list[Example]]) -> list[Example]:
        """No prompt is on both sides."""
        harmful = {repr(example["messages"]) for example in rows["harmful"]}
        mistakes = [
            Mistake(_place(e), f"{e['messages'][-1]['content']!r} is among the harmful prompts, too", "one side of it")
            for e in rows["harmless"]
            if repr(e["messages"]) in harmful
        ]
        if mistakes:
            raise UsageError(*mistakes)
        return super().arrange(rows)

    def check_task(self, task: Task) -> Iterable[Mistake]:
        """A model that answers prompts: the tasks `chat`, `dialogue` and their kin."""
        if not (hasattr(task, "messages") and hasattr(task, "prompt_ids")):
            found = f"task {task.name} answers no prompts"
            yield Mistake(f"evaluator {self.name}", found, "a chat model", "task chat")

    def measure(self, subject: Subject, examples: list[Example]) -> list[Measurement]:
        rows = [subject.task.inputs({"messages": example["messages"]}) for example in examples]
        said = subject.answers(rows, max_new_tokens=self.max_new_tokens)
        found = []
        for example, answer in zip(examples, said, strict=True):
            text, side, asked = answer["completion"], example["of"], example["messages"]
            refused = refuses(text)
            prompt = asked[0]["content"] if len(asked) == 1 else as_text(asked)
            line = {"of": side, "prompt": prompt, "answer": text, "refused": refused}
            found.append(Measurement({side: 1.0, f"{side} refused": float(refused)}, line))
        return found

    def metrics(self, totals: Mapping[str, Any]) -> dict[str, Any]:
        shares = {
            f"{side}_refused": np.asarray(totals[f"{side} refused"], float) / np.asarray(totals[side], float)
            for side in SIDES
        }
        return {**shares, "difference": shares["harmful_refused"] - shares["harmless_refused"]}


def _place(example: Example) -> str:
    return f"{example.source}:{example.line}" if example.line else f"{example.source} row {example.row}"
