"""Steering by an expert and an anti-expert: their difference is added to what the model says of the next token."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor

from alignkit.components import Control, Intervention
from alignkit.errors import Mistake, UsageError
from alignkit.models.likeness import other_vocabulary
from alignkit_constraints.controls.reader import Reader

if TYPE_CHECKING:
    from alignkit.components import Task
    from alignkit.generation import Generating, Processor

Expert = Path | Literal["base"]


def combined(base: Tensor, expert: Tensor | None, anti: Tensor | None, alpha: float) -> Tensor:
    """base + alpha (expert - anti), normalised.

    Args:
        base: [R, V] scores of the next token; what is ruled out (-inf) stays so.
        expert, anti: [R, W] logits, of the first W tokens where W < V; None: the base.

    Returns:
        [R, V] log-probabilities.
    """
    known = base.log_softmax(-1)
    sides = [known if side is None else side.float().log_softmax(-1) for side in (expert, anti)]
    width = min(side.shape[-1] for side in (known, *sides))
    steered = known.clone()
    steered[:, :width] += alpha * (sides[0] - sides[1] if width == known.shape[-1] else _apart(sides, width))
    return torch.where(known.isneginf(), known, steered).log_softmax(-1)


def _apart(sides: list[Tensor], width: int) -> Tensor:
    return sides[0][:, :width] - sides[1][:, :width]


class Steering(Control):
    """Adds the difference of two experts to the scores of each next token: base + alpha (expert - anti-expert).

    DExperts (Liu et al. 2021, arXiv:2105.03023, eq. 1); with a tuned and an untuned small model it is proxy tuning (Liu
    et al. 2024, arXiv:2401.08565). Logits are compared as log-probabilities, which changes nothing but a constant per
    row. Unlike the released code of DExperts the base is not cut to its likeliest tokens (top-p 0.9) first: under
    sampling set `top_p` of the generation, and keep alpha small. Each expert reads along with a cache of its own; it
    sees the prompt as the model does, chat template included.

    `base` for one of the two is the model itself: `anti: base` adds alpha (expert - base), so that alpha = 1 is the
    expert; `expert: base` takes an anti-expert alone away. The base is what is left of its scores after the options of
    the generation that come first (a repetition penalty, tokens that are ruled out).

    The audit says at how many steps another token became the likeliest.

    Errors: experts need the model's vocabulary, token by token; another one is refused.

    Cost: per token one forward pass of each expert (of none where alpha is 0), and their memory.

    Relations: `steering-vector` needs pairs of texts and no second model. What an expert knows can be trained in
    instead, with `kl-reference` to it, at no cost per token.

    Example:
        >>> Steering(expert=Path("runs/polite"), alpha=0.5).anti
        'base'
    """

    example: ClassVar[Mapping[str, Any]] = {"expert": "expert"}

    expert: Expert
    """What to be more like: a run, a model folder or a `.gguf` file with the model's vocabulary; or `base`."""
    anti: Expert = "base"
    """What to be less like: the same."""
    alpha: float = 1.0
    """How much of the difference is added; 0: nothing."""

    def __post_init__(self) -> None:
        if self.expert == self.anti:
            found = f"expert and anti-expert are both {self.expert}"
            raise UsageError(Mistake("anti", found, "two different models"))

    def check_task(self, task: Task) -> Iterable[Mistake]:
        """There are such models, of the task's kind."""
        from alignkit.models import resolve

        for side, path in self._experts():
            try:
                resolve(str(path))
                copy.copy(task).take_model(_config(path))
            except UsageError as error:
                yield from (
                    Mistake(f"{self._where} {side}: {m.where}", m.found, m.expected, m.mend) for m in error.mistakes
                )

    def prepare(self, model: Any, tokenizer: Any, task: Task) -> None:
        if not self.alpha:
            return
        known: dict[Path, Any] = getattr(self, "_known", {})
        experts = self._experts()
        self._known = {path: known.get(path) or _loaded(path, task) for _, path in experts}
        for side, path in experts:
            self._refuse_unlike(side, path, model, tokenizer)
        device = next(model.parameters()).device
        self._models = {side: self._known[path][0].to(device).eval() for side, path in experts}

    @contextlib.contextmanager
    def steered(self, generating: Generating) -> Iterator[Processor | None]:
        if not self.alpha:
            yield None
            return
        steps = torch.zeros(2, len(generating.examples), dtype=torch.long)
        readers = {
            side: Reader(expert, generating.input_ids, generating.attention_mask)
            for side, expert in self._models.items()
        }

        def steer(ids: Tensor, scores: Tensor) -> Tensor:
            expert, anti = (readers[side](ids) if side in readers else None for side in ("expert", "anti"))
            made = combined(scores.float(), expert, anti, self.alpha)
            running = generating.running(ids)
            other = (made.argmax(-1) != scores.argmax(-1)) & running
            for place, rows in enumerate((other, running)):
                steps[place] += rows.view(-1, generating.beams).any(-1).long().cpu()
            return made.to(scores.dtype)

        yield steer
        for row, (other, all_steps) in enumerate(steps.T.tolist()):
            changed = f"another token was the likeliest at {other} of {all_steps} steps" if other else ""
            generating.note(row, Intervention(self._rule, other, self.alpha, changed))

    # -- experts -----------------------------------------------------------------------------------------------

    @property
    def _where(self) -> str:
        return f"control {self.name}"

    @property
    def _rule(self) -> str:
        return " - ".join(side if isinstance(side, str) else side.name for side in (self.expert, self.anti))

    def _experts(self) -> list[tuple[str, Path]]:
        both = (("expert", self.expert), ("anti", self.anti))
        return [(side, path) for side, path in both if isinstance(path, Path)]

    def _refuse_unlike(self, side: str, path: Path, model: Any, tokenizer: Any) -> None:
        """An expert that does not go with this model."""
        expert, vocabulary = self._known[path]
        where = f"{self._where} {side}"
        if hasattr(expert, "peft_config"):
            raise UsageError(Mistake(where, f"{path} has a trained prompt, which is no expert", "a whole model"))
        if expert.config.is_encoder_decoder != model.config.is_encoder_decoder:
            kinds = ["an encoder-decoder" if m.config.is_encoder_decoder else "a causal model" for m in (expert, model)]
            raise UsageError(Mistake(where, f"{path} is {kinds[0]}", kinds[1]))
        if mistake := other_vocabulary(where, str(path), tokenizer.get_vocab(), vocabulary):
            raise UsageError(mistake)


def _loaded(path: Path, task: Task) -> tuple[Any, Mapping[str, int]]:
    """An expert, and its vocabulary."""
    from alignkit import models

    expert, tokenizer = models.load(models.resolve(str(path)), copy.copy(task))
    return expert, tokenizer.get_vocab()


def _config(path: Path) -> Mapping[str, Any]:
    from alignkit.models import resolve
    from alignkit.models.inspection import read_config

    return read_config(resolve(str(path)))
