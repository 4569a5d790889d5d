"""Projected gradient descent on the embeddings of a finished model, over a grid of radii."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field, PositiveFloat, PositiveInt

from alignkit.components import Attack, Attempt, Task
from alignkit.errors import Mistake, UsageError
from alignkit_adversaries.attacks.completions import aimed, needs_completions, prompt_mask, target_losses

if TYPE_CHECKING:
    from torch import Tensor

    from alignkit.data import Example
    from alignkit.evaluation.victim import AttackedBatch, Victim
    from alignkit.step import TrainingStep


class PGDAttack(Attack):
    """Perturbs the embeddings of each example within growing radii, and sees how many predictions are still right.

    Madry et al. 2018, arXiv:1706.06083, with the L2 ball of `pgd`, the adversary: delta <- Proj_r(delta + alpha g/|g|),
    per example, on real tokens only (no special tokens, no padding), from 0. Each step's perturbation is tried, and
    what counts at a radius is the worst of them all and of the smaller radii that were measured: a larger ball holds
    the smaller one. `target` says what the attack is after:

    - `loss`: the gradient of the example's own loss is ascended; broken is a prediction that was right and is not any
      more.
    - `completion`, for the task chat (Schwinn et al. 2024, arXiv:2402.09063): the loss of the row's last completion,
      which is what the attacker wants to hear, is descended on the tokens of the prompt: the real ones before it,
      those of the system message and the template's own words among them. Broken is a row whose completion is, at
      some step, the likeliest token at each of its positions, which is what greedy decoding gives (`matched`). A row
      of which that is true as it stands (`matched_before`) is counted neither as broken nor as survived. The token
      that ends the turn is no part of the target. The radius bounds the L2 norm of the whole prompt's perturbation,
      where `continuous`, the adversary, bounds each token's: n tokens moved by r each have the norm r sqrt(n). Measured
      beside it are the target's mean loss in nats per token without a perturbation (`target_loss_before`) and the
      lowest so far (`target_loss`).

    An attack on embeddings is stronger than any text could be: the perturbed point is no sequence of words. It
    compares models with one another, and says little of what a typist could do; for that `deepwordbug` and `typos`,
    and of language models `gcg`.

    Cost: per example and radius `steps` gradients and one forward pass.

    Example:
        >>> PGDAttack(radii=(0.1, 0.2)).steps
        10
        >>> PGDAttack(target="completion").needs_score
        False
    """

    radii: Annotated[tuple[PositiveFloat, ...], Field(min_length=1)] = (0.05, 0.1, 0.2, 0.4)
    """L2 radii of one example's perturbation, in units of the model's mean embedding norm, ascending."""
    steps: PositiveInt = 10
    """Gradient steps at each radius."""
    step_size: PositiveFloat = 0.25
    """Length of a step, as a share of the radius; above 1 / `steps`, so that the boundary can be reached."""
    target: Literal["loss", "completion"] = "loss"
    """Drive the `loss` of the right answer up; or, of a chat model, drive that of the row's `completion` down."""

    directions: ClassVar[Mapping[str, int]] = {
        "target_loss_before": 1,
        "target_loss": 1,
        "matched_before": -1,
        "matched": -1,
    }

    def __post_init__(self) -> None:
        mistakes = []
        if list(self.radii) != sorted(self.radii) or len(set(map(_setting, self.radii))) < len(self.radii):
            mistakes.append(Mistake("radii", f"{list(self.radii)}", "ascending radii, each once, to six digits"))
        if self.step_size * self.steps < 1:
            found = f"{self.steps} steps of {self.step_size:g} radii do not reach the boundary"
            mistakes.append(Mistake("step_size", found, f"{1 / self.steps:g} or more"))
        if mistakes:
            raise UsageError(*mistakes)

    @property
    def needs_score(self) -> bool:  # type: ignore[override]  # here it depends on a field
        return self.target == "loss"

    def check_task(self, task: Task) -> Iterable[Mistake]:
        """A prediction that follows from one forward pass, or a completion to be after."""
        name = self.name
        aimless = list(needs_completions(name, task))
        if self.target == "completion":
            yield from aimless
        elif type(task).score is Task.score and not aimless:
            found = f"task {task.name} does not say which predictions are right"
            yield Mistake(f"attack {name}", found, "a completion to be after", "set `target: completion`")
        elif not task.decodes_outputs:
            found = f"task {task.name} asks the model more than once for a prediction"
            yield Mistake(f"attack {name}", found, "a task that predicts from one forward pass")

    def attempt(self, victim: Victim, examples: list[Example]) -> Mapping[str, list[Attempt]]:
        """One setting per radius, named by it."""
        attempts = self._losses_up if self.target == "loss" else self._completions_out
        return {_setting(radius): found for radius, found in zip(self.radii, attempts(victim, examples), strict=True)}

    # -- the right answer's loss up ----------------------------------------------------------------------------

    def _losses_up(self, victim: Victim, examples: list[Example]) -> Iterator[list[Attempt]]:
        lowest: list[tuple[float, dict[str, Any]]] = [(float("inf"), {})] * len(examples)
        queries = [0] * len(examples)
        for radius in self.radii:
            for place, (score, prediction, asked) in enumerate(self._within(victim, examples, radius)):
                queries[place] += asked
                if score < lowest[place][0]:
                    lowest[place] = (score, prediction)
            yield [Attempt(p, queries=asked) for (_, p), asked in zip(lowest, queries, strict=True)]

    def _within(
        self, victim: Victim, examples: list[Example], radius: float
    ) -> Iterator[tuple[float, dict[str, Any], int]]:
        """Per example: the lowest score of all steps, the prediction that has it first, and what was asked for it."""
        parts: list[list[list[dict[str, Any]]]] = [[] for _ in examples]
        for batch in victim.batches(examples):
            steps = self._predictions(victim, batch, radius)
            for row, place in enumerate(batch.places):
                parts[place].append([step[row] for step in steps])
        for example, windows in zip(examples, parts, strict=True):
            by_step = [victim.joined([list(answers)])[0] for answers in zip(*windows, strict=True)]
            scores = victim.scores([example] * len(by_step), by_step)
            lowest = min(range(len(scores)), key=lambda k: (scores[k], k), default=None)
            if lowest is None:  # nothing of it fits the model
                yield 0.0, {}, 0
            else:
                yield scores[lowest], by_step[lowest], (self.steps + 1) * len(windows)

    def _predictions(self, victim: Victim, batch: AttackedBatch, radius: float) -> list[list[dict[str, Any]]]:
        """For each step what is predicted for each row; the pass that gives a gradient gives the outputs, too."""
        step, found = batch.step, []
        delta = step.zeros()
        for taken in range(self.steps):
            with torch.enable_grad():
                loss, outputs = step.evaluate(delta)
            gradient = step.gradient(delta, loss)
            if taken:  # before the first step nothing is perturbed
                found.append(victim.decoded(batch, _detached(outputs)))
            delta = moved(step, delta, gradient, self.step_size * radius, radius)
        with torch.no_grad():
            found.append(victim.decoded(batch, step.forward(delta)))
        return found

    # -- the completion out ------------------------------------------------------------------------------------

    def _completions_out(self, victim: Victim, examples: list[Example]) -> Iterator[list[Attempt]]:
        rows = [(place, features) for place, e in enumerate(examples) if (features := aimed(victim, e))]
        made = [Attempt({}, broken=False) for _ in examples]
        for place, features in rows:
            tokens = sum(label >= 0 for label in features["labels"])
            made[place] = Attempt({"nll": float("inf"), "tokens": tokens}, broken=False)
        for radius in self.radii:
            for batch in victim.batches_of(rows):
                for losses, given in self._descent(victim, batch, radius):
                    for place, loss, whole in zip(batch.places, losses, given, strict=True):
                        _tried(made[place], loss, whole)
            yield [replace(a, prediction=dict(a.prediction), measures=dict(a.measures)) for a in made]

    def _descent(self, victim: Victim, batch: AttackedBatch, radius: float) -> Iterator[tuple[list[float], list[bool]]]:
        """At 0 and after each step: the loss of each row's target, and whether the model gives it."""
        step, mask = batch.step, prompt_mask(batch)
        delta = step.zeros()
        for _ in range(self.steps):
            with torch.enable_grad():
                losses, given = target_losses(victim, batch, delta)
                gradient = step.gradient(delta, losses.sum())
            yield losses.tolist(), given.tolist()
            delta = moved(step, delta, -gradient, self.step_size * radius, radius, mask)
        with torch.no_grad():
            losses, given = target_losses(victim, batch, delta.detach())
        yield losses.tolist(), given.tolist()


def _setting(radius: float) -> str:
    """What a radius is called."""
    return f"{radius:g}"


def moved(
    step: TrainingStep, delta: Tensor, direction: Tensor, length: float, radius: float, mask: Tensor | None = None
) -> Tensor:
    """`delta` [B, T, D] moved by `length` along a direction and brought back into the ball of `radius`; a leaf.

    Args:
        direction: [B, T, D], of any scale per example.
        mask: [B, T, 1] of what may be perturbed; by default real tokens.
    """
    there = delta.detach() + length * step.unit(direction, mask)
    return step.project(there, radius, mask).requires_grad_(True)


def _tried(attempt: Attempt, loss: float, given: bool) -> None:
    """One point more that was tried for a row; the first of all is the row as it stands."""
    attempt.reached |= given and not attempt.queries
    attempt.queries += 1
    attempt.broken = (bool(attempt.broken) or given) and not attempt.reached
    attempt.measures.setdefault("target_loss_before", loss)
    attempt.measures |= {"matched_before": float(attempt.reached), "matched": float(attempt.reached or attempt.broken)}
    attempt.measures["target_loss"] = lowest = min(loss, attempt.measures.get("target_loss", loss))
    attempt.prediction["nll"] = lowest * attempt.prediction["tokens"]
    attempt.said = {"target_loss": attempt.measures["target_loss_before"]}, {"target_loss": lowest}


def _detached(outputs: Any) -> Any:
    """Outputs that a gradient was taken of, as numbers."""
    return SimpleNamespace(**{name: v.detach() if isinstance(v, torch.Tensor) else v for name, v in outputs.items()})
