"""Preference: which of two answers to a prompt is the better one."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from alignkit.components import Batch, Objective
from alignkit.data.example import Example
from alignkit.errors import Mistake, UsageError
from alignkit.lm_head import hidden_outputs, refuse_other_heads, unwrapped
from alignkit.tasks.chat import Chat
from alignkit.tasks.conversation import Message, tokenised
from alignkit.tasks.packing import first_position
from alignkit_preference import shared_prompt
from alignkit_preference.rows import ANSWERS, asked, said, wrong_pair

if TYPE_CHECKING:
    from alignkit.plan import Setting
    from alignkit.step import TrainingStep

CLOSE = 1e-2
"""Relative deviation of hidden states above which a model does not keep two answers apart."""

_probed: weakref.WeakKeyDictionary[Any, tuple[str, bool]] = weakref.WeakKeyDictionary()
"""Models that were looked at: under which attention implementation, and whether answers shared a prompt."""


@dataclass(frozen=True)
class Answers:
    """How likely a model finds the two answers of each pair, in nats."""

    chosen: Tensor
    """[B]: sums of the tokens' log-probabilities."""
    rejected: Tensor
    chosen_tokens: Tensor
    """[B]: how many tokens they are, the end of the turn included."""
    rejected_tokens: Tensor


class Preference(Chat):
    """Teaches a causal language model to prefer one answer to another.

    Reads rows `prompt`, `chosen` and `rejected`, with `system` where there is one. The prompt is a text or a list of
    messages that ends with the user's; answers are texts, or lists with the assistant's one message. Without a
    `prompt`, `chosen` and `rejected` are whole conversations that differ in their last message alone; a `prompt` that
    repeats the user's first message of them is fine, too.

    Answers are tokenised as in the task `chat`, with the token that ends a turn. A row is too long where the prompt
    with the longer answer is: then the beginning of the prompt goes first, and of answers that take more than half of
    the room, the end. Pairs whose answers are the same tokens, or are cut to the same, are left out. What is minimised
    is an objective's: `dpo` where the recipe names none.

    With `shared_prompt` both answers are in one row, and the prompt is computed once; without it each has a sequence
    of its own. Either way the same numbers come out. The vocabulary's logits are made at the answers' tokens alone.

    Raises:
        UsageError: a kind of model that is not known to keep two answers in one row apart, or that was found not to
            (an attention implementation that overlooks the mask).

    Example:
        >>> Preference(maximum_length=1024, shared_prompt=False).shared_prompt
        False
    """

    shared_prompt: bool = True
    """Both answers in one row, the prompt computed once; False: one sequence each."""

    suffixes: ClassVar[tuple[str, ...]] = (".jsonl", ".json", ".csv", ".tsv")
    stock_loss: ClassVar[bool] = False
    metric: ClassVar[str] = "accuracy"
    greater_is_better: ClassVar[bool] = True
    hub_task: ClassVar[str] = "text-generation"
    samples: ClassVar[tuple[dict[str, Any], ...]] = (
        {"prompt": "where is ada ?", "chosen": "in rome", "rejected": "she is bad"},
        {"prompt": "who was it ?", "chosen": "bob", "rejected": "what ?"},
        {"prompt": "what was the film ?", "chosen": "it was a very good film", "rejected": "film"},
        {"prompt": "hi", "chosen": "what ?", "rejected": "a bad bad film"},
        {"prompt": "where lives bob ?", "chosen": "he lives in paris", "rejected": "who"},
        {"prompt": "is she in rome ?", "chosen": "she is not", "rejected": "it was not a film"},
    )

    def default_objective(self) -> Objective:
        from alignkit_preference.dpo import DPO

        return DPO()

    def check(self, setting: Setting) -> Iterable[Mistake]:
        """Virtual tokens, which the mask of a shared prompt does not know."""
        if self.shared_prompt and setting.peft not in (None, "lora"):
            found = f"{setting.peft} puts its tokens where two answers that share a prompt cannot see them"
            yield Mistake("peft.method", found, "lora, or all weights trained", "or set `shared_prompt: false`")

    # -- data --------------------------------------------------------------------------------------------------

    def parse(self, fields: dict[str, Any], where: str) -> Example:
        """Messages become texts where there is only one; the prompt alone is what other components rewrite."""
        if mistakes := wrong_pair(fields, where):
            raise UsageError(*mistakes)
        question = asked(fields)
        name = "messages" if isinstance(question, list) else "prompt"
        rest = {key: value for key, value in fields.items() if key != "prompt"}
        answers = {key: said(fields[key]) for key in ANSWERS}
        inputs = (*(["system"] if fields.get("system") else []), name)
        return Example({**rest, name: question, **answers}, inputs=inputs, targets=ANSWERS)

    # -- the model's side --------------------------------------------------------------------------------------

    def take_model(self, config: Mapping[str, Any]) -> None:
        super().take_model(config)
        if self.shared_prompt and first_position(config, self.maximum_length) is None:
            found = f"{config.get('model_type', 'it')} is not known to keep two answers in one row apart"
            raise UsageError(Mistake("task.shared_prompt", found, "", "set `shared_prompt: false`"))

    def take_weights(self, model: Any, tokenizer: Any) -> None:
        """Look once whether its logits are what they are taken for, and whether two answers are kept apart."""
        base = unwrapped(model)
        looked_at = (str(base.config._attn_implementation), self.shared_prompt)
        if _probed.get(base) == looked_at:
            return
        refuse_other_heads(base, "take another model")
        if self.shared_prompt:
            _refuse_mixing(base)
        _probed[base] = looked_at

    def encode(self, example: Example, tokenizer: Any) -> dict[str, Any] | None:
        if "chosen" not in example or "rejected" not in example:
            return None
        context = self.messages(example)
        (prompt, chosen), (other, rejected) = (
            self._tokens(context, example[name], tokenizer, example.where) for name in ANSWERS
        )
        if prompt != other:
            found = "the chat template writes the prompt in another way before one answer than before the other"
            mend = "give the tokenizer a template that writes a turn without looking at the next, or leave the row out"
            raise UsageError(Mistake(example.where, found, "one prompt before both", mend))
        longest = max(len(chosen), len(rejected))
        kept = self._kept([*prompt, *[0] * longest], longest, tokenizer)
        room = sum(i >= len(prompt) for i in kept)
        if chosen[:room] == rejected[:room]:  # none is the better one, or there is room for neither
            return None
        return shared_prompt.row([prompt[i] for i in kept if i < len(prompt)], chosen[:room], rejected[:room])

    @staticmethod
    def _tokens(context: list[Message], answer: str, tokenizer: Any, where: str) -> tuple[list[int], list[int]]:
        """The ids of what comes before an answer, and of the answer with the end of its turn."""
        ids, _, size = tokenised([*context, {"role": "assistant", "content": answer}], tokenizer, where)
        return ids[: len(ids) - size], ids[len(ids) - size :]

    def collate(self, features: list[dict[str, Any]], tokenizer: Any) -> Batch:
        make = shared_prompt.collated if self.shared_prompt else shared_prompt.separated
        return make(features, tokenizer)

    def forward(self, model: Any, batch: Batch) -> Any:
        """`hidden` [B, T, D] ([2 B, T, D] of separate answers) and the `head`; no logits."""
        with shared_prompt.prepared(model, batch) as inputs:
            outputs = hidden_outputs(model, inputs)
        hidden = outputs["hidden"][:, -batch["input_ids"].shape[-1] :]  # virtual tokens stand before the text
        outputs["hidden"] = hidden.reshape(len(batch["labels"]), -1, hidden.shape[-1])
        return outputs

    def counts(self, batch: Batch) -> dict[str, int]:
        """`example`: pairs; `token`: tokens of both answers; `chosen`: those of the chosen ones."""
        scored = batch["labels"] != -100
        chosen = scored & (batch["answer"] == shared_prompt.CHOSEN)
        return {"example": len(scored), "token": int(scored.sum()), "chosen": int(chosen.sum())}

    def scored_hidden(self, outputs: Any, batch: Batch) -> Tensor:
        """[N, D]: what predicts the tokens of both answers."""
        return shared_prompt.scored_hidden(outputs.hidden, batch)

    def log_probabilities(self, outputs: Any, batch: Batch) -> tuple[Tensor, str]:
        """[N, V] at every token of both answers."""
        return outputs.head.logits(self.scored_hidden(outputs, batch)).log_softmax(-1), "token"

    def label_log_probabilities(self, outputs: Any, batch: Batch) -> Tensor:
        """[N]: of every token of both answers, made in chunks."""
        targets = batch["labels"][batch["labels"] != -100]
        found: Tensor = outputs.head.log_probabilities(self.scored_hidden(outputs, batch), targets)
        return found

    def row_losses(self, outputs: Any, batch: Batch) -> Tensor:
        """[B]: how much likelier the rejected answer is than the chosen one, in nats, softly cut off at 0."""
        found = self._answers(self.label_log_probabilities(outputs, batch), batch)
        return torch.nn.functional.softplus(found.rejected - found.chosen)

    # -- for objectives ----------------------------------------------------------------------------------------

    def answers(self, step: TrainingStep, outputs: Any, batch: Batch | None = None) -> Answers:
        """How likely the model finds each answer, differentiable.

        Args:
            batch: what `outputs` are for; by default the batch of the pass that is being evaluated.
        """
        batch = step.current if batch is None else batch
        return self._answers(step.label_log_probabilities(outputs, batch), batch)

    def reference_answers(self, step: TrainingStep, batch: Batch | None = None) -> Answers:
        """How likely the frozen reference finds each answer; what it says of a `batch` of other rows is not kept."""
        cached, batch = batch is None, step.current if batch is None else batch
        return self._answers(step.reference_label_log_probabilities(batch, cached=cached), batch)

    @staticmethod
    def _answers(log_p: Tensor, batch: Batch) -> Answers:
        sums, tokens = shared_prompt.answer_sums(log_p, batch)
        return Answers(*sums.unbind(1), *tokens.unbind(1))

    # -- scores ------------------------------------------------------------------------------------------------

    def decode(self, outputs: Any, batch: Batch) -> list[dict[str, Any]]:
        """Per pair `chosen` and `rejected`, sums of log-probabilities in nats, and how many tokens they are."""
        found = self._answers(self.label_log_probabilities(outputs, batch), batch)
        values = (found.chosen, found.rejected, found.chosen_tokens, found.rejected_tokens)
        names = ("chosen", "rejected", "chosen_tokens", "rejected_tokens")
        return [dict(zip(names, pair, strict=True)) for pair in zip(*(v.tolist() for v in values), strict=True)]

    def statistics(self, example: Example, prediction: dict[str, Any]) -> dict[str, float]:
        if not prediction:
            return {"pairs": 0.0}
        chosen, rejected = prediction["chosen"], prediction["rejected"]
        sizes = max(prediction["chosen_tokens"], 1), max(prediction["rejected_tokens"], 1)
        return {
            "pairs": 1.0,
            "right": float(chosen > rejected),
            "right_per_token": float(chosen / sizes[0] > rejected / sizes[1]),
            "margin": chosen - rejected,
            "nll": -chosen,
            "tokens": float(prediction["chosen_tokens"]),
        }

    def metrics(self, totals: Mapping[str, Any]) -> dict[str, Any]:
        """`accuracy`: pairs whose chosen answer is the likelier one, by sums of log-probabilities, and
        `accuracy_per_token`, by means; `margin`: the mean difference of the sums, in nats (its change over a training
        is the mean of DPO's implicit reward margin, divided by beta); `perplexity` of the chosen answers.
        """
        pairs, tokens = np.asarray(totals["pairs"], float), np.asarray(totals.get("tokens", 0.0), float)
        right, each = np.asarray(totals.get("right", 0.0)), np.asarray(totals.get("right_per_token", 0.0))
        return {
            "accuracy": right / pairs,
            "accuracy_per_token": each / pairs,
            "margin": np.asarray(totals.get("margin", 0.0)) / pairs,
            "perplexity": np.exp(np.minimum(np.asarray(totals.get("nll", 0.0)) / tokens, 700.0)),
        }

    def score(self, example: Example, prediction: dict[str, Any]) -> float | None:
        """1 where the chosen answer is the likelier one."""
        return float(prediction["chosen"] > prediction["rejected"])

    def gap(self, one: dict[str, Any], other: dict[str, Any]) -> float:
        """How far the margins of two versions of one pair lie apart, in nats."""
        return float(abs((one["chosen"] - one["rejected"]) - (other["chosen"] - other["rejected"])))

    def answer(self, example: Example, prediction: dict[str, Any]) -> dict[str, Any]:
        """What was asked, and the `completion`; or, of a pair, how likely each answer is."""
        asked = {name: example[name] for name in example.inputs}
        return asked | dict(prediction)


def _refuse_mixing(base: Any) -> None:
    """Raise UsageError where an answer is not what it would be in a sequence of its own."""
    from alignkit.evaluation.score import evaluating

    with evaluating(base):
        off = shared_prompt.deviation(base, [(7 * i + 3) % base.config.vocab_size for i in range(7)])
    if not off < CLOSE:
        found = f"under {base.config._attn_implementation} attention, answers that share a prompt change by {off:.0%}"
        mend = "load it with `attn_implementation` sdpa or eager, or set `shared_prompt: false`"
        raise UsageError(Mistake("task.shared_prompt", found, "a model that looks where the mask says", mend))
