"""A steering vector: what tells two kinds of texts apart in a hidden layer, added while the model answers."""

from __future__ import annotations

import contextlib
import hashlib
import json
import weakref
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from alignkit.components import Control, Intervention
from alignkit.errors import Mistake, UsageError
from alignkit.layers import perturbed
from alignkit.models.adapters import virtual_tokens

if TYPE_CHECKING:
    from alignkit.components import Task
    from alignkit.generation import Generating

SHIPPED = Path(__file__).parent / "pairs"


class Pair(NamedTuple):
    """Two texts that differ in one thing."""

    positive: str
    """What there is to be more of."""
    negative: str
    prompt: str = ""
    """What both answer; empty: they are texts by themselves."""


def direction(positive: Sequence[Tensor], negative: Sequence[Tensor]) -> tuple[Tensor, float]:
    """The difference of the mean hidden states of two kinds of texts.

    Args:
        positive, negative: a text each [T, D]: its hidden states where it counts.

    Returns:
        [D], mean over texts of (mean over tokens); and the mean L2 norm of all the hidden states.
    """
    means = [torch.stack([text.float().mean(0) for text in texts]).mean(0) for texts in (positive, negative)]
    norms = torch.cat([text.float().norm(dim=-1) for text in (*positive, *negative)])
    return means[0] - means[1], float(norms.mean())


class SteeringVector(Control):
    """Adds a direction to the output of a hidden layer at each token of the answer.

    Contrastive activation addition (Panickssery et al. 2023, arXiv:2312.06681): the mean difference of a layer's hidden
    states over pairs of texts, one of which has what is wanted and the other not, is added at every position from the
    one on that the answer's first token is predicted from. Two things differ from the paper. The length is
    `alpha` times the layer's mean hidden norm over the tokens of the pairs, and not a multiple of the raw difference,
    so that one alpha means the same at every layer. Hidden states are taken over all tokens of an answer; the paper's
    pairs differ in their last token, a letter, for which there is `tokens: last`.

    `pairs` are JSON lines with `positive`, `negative` and, where both answer one, the `prompt`. Answers to a prompt are
    read through the chat template, so that they are seen as they will be written. Of texts without a prompt the first
    token does not count: it is an outlier in most models. Shipped are `refusal` (declining, against complying) and
    `refusal-zh`, `cheerful` (against gloomy), made for alignkit and small; they show the format more than they settle
    anything.

    On an encoder-decoder the decoder's layers are steered, and its encoder reads the prompt. The vector is kept with a
    run (`controls/NAME.safetensors`), and computed anew where the pairs, the fields or the model are others.

    Errors: pairs that cannot be read, a layer that the model has not, pairs that do not differ.

    Cost: two forward passes per pair, once; nothing per token.

    Relations: `steering` needs a second model and no pairs. Too large an alpha breaks the language before it changes
    the behaviour: look at the answers, and go up in steps of 0.1.

    Example:
        >>> SteeringVector(pairs="refusal", layer=12, alpha=0.2).tokens
        'all'
    """

    pairs: Path | Literal["refusal", "refusal-zh", "cheerful"] = "refusal"
    """Path of JSON lines with `positive` and `negative`, and `prompt` where there is one; or pairs that are shipped."""
    layer: int | None = None
    """Number of the layer, from 0; from -1 on down it counts from the last. None: the middle one."""
    alpha: float = 0.2
    """Length of what is added, in units of the layer's mean hidden norm; 0: nothing, below 0: the other way."""
    tokens: Literal["all", "last"] = "all"
    """The tokens of an answer whose hidden states count: their mean, or the last alone."""

    def check_task(self, task: Task) -> Iterable[Mistake]:
        """The pairs can be read."""
        try:
            self._pairs()
        except UsageError as error:
            return error.mistakes
        return ()

    def prepare(self, model: Any, tokenizer: Any, task: Task) -> None:
        if not self.alpha:
            return
        key = self._key()
        made: dict[str, Any] = getattr(self, "_made", {})
        of: weakref.ref[Any] | None = getattr(self, "_of", None)  # None: kept with a run, whose model this is
        if made.get("key") == key and (of is None or of() is model):
            self._of: weakref.ref[Any] | None = weakref.ref(model)
            return
        layer = self._layer(model)
        sides = self._hidden(model, tokenizer, layer)
        vector, norm = direction(*sides)
        if not float(vector.norm()):
            found = "positive and negative texts are the same to the model"
            raise UsageError(Mistake(f"{self._where} pairs", found, "texts that differ"))
        self._made: dict[str, Any] = {"vector": vector.cpu(), "norm": norm, "key": key}
        self._of = weakref.ref(model)

    def state_dict(self) -> dict[str, Any]:
        return dict(getattr(self, "_made", {}))

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._made, self._of = dict(state), None

    @contextlib.contextmanager
    def steered(self, generating: Generating) -> Iterator[None]:
        if not self.alpha:
            yield None
            return
        if self._of is None or self._of() is not generating.model:  # it has been prepared for another one since
            self.prepare(generating.model, generating.tokenizer, generating.task)
        layers = decoder_layers(generating.model)
        number = self._layer(generating.model)
        unit = self._made["vector"] / self._made["vector"].norm()
        added = (self.alpha * self._made["norm"] * unit).to(next(generating.model.parameters()).device)
        prompt = generating.written
        if not generating.model.config.is_encoder_decoder:
            prompt += virtual_tokens(generating.model)
        with perturbed(layers[number], lambda hidden: _from_answer(hidden, added, prompt)):
            yield None
        what = self.pairs if isinstance(self.pairs, str) else self.pairs.name
        for row in range(len(generating.examples)):
            changed = f"layer {number} of {len(layers)} was moved at every token of the answer"
            generating.note(row, Intervention(what, round(float(added.norm()), 4), self.alpha, changed))

    # -- the vector --------------------------------------------------------------------------------------------

    @property
    def _where(self) -> str:
        return f"control {self.name}"

    def _layer(self, model: Any) -> int:
        """The number of the layer, from 0."""
        depth = len(decoder_layers(model))
        number = depth // 2 if self.layer is None else self.layer + depth * (self.layer < 0)
        if not 0 <= number < depth:
            found = f"{self.layer}, where the model has {depth} layers"
            raise UsageError(Mistake(f"{self._where} layer", found, f"{-depth} to {depth - 1}"))
        return number

    def _pairs(self) -> list[Pair]:
        return read_pairs(self.pairs if isinstance(self.pairs, Path) else SHIPPED / f"{self.pairs}.jsonl")

    def _key(self) -> str:
        """What the vector depends on beside the model."""
        told = json.dumps([self._pairs(), self.layer, self.tokens], ensure_ascii=False)
        return hashlib.blake2b(told.encode(), digest_size=8).hexdigest()

    def _hidden(self, model: Any, tokenizer: Any, layer: int) -> tuple[list[Tensor], list[Tensor]]:
        """Of positive and negative texts the layer's hidden states where they count, [T, D] each."""
        from alignkit.evaluation.score import evaluating

        with evaluating(model), _outputs_of(decoder_layers(model)[layer]) as seen:
            for pair in self._pairs():
                for text in (pair.positive, pair.negative):
                    inputs, counted = _read(pair.prompt, text, model, tokenizer)
                    model(**inputs)
                    kept = seen[-1][0][-len(counted) :][counted]  # virtual tokens stand before the text
                    seen[-1] = kept[-1:] if self.tokens == "last" else kept
        return seen[::2], seen[1::2]


def decoder_layers(model: Any) -> nn.ModuleList:
    """The stack of layers that writes: of an encoder-decoder the decoder's.

    Raises:
        UsageError: the model keeps its layers in no list.
    """
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    stack = base.get_decoder() if base.config.is_encoder_decoder else base
    for module in stack.modules():
        if isinstance(module, nn.ModuleList):
            return module
    raise UsageError(
        Mistake("control steering-vector", f"{type(base).__name__} has no list of layers", "another model")
    )


def read_pairs(path: Path) -> list[Pair]:
    """Pairs of a file of JSON lines.

    Raises:
        UsageError: everything that is wrong with it.
    """
    expected = 'JSON lines {"positive": …, "negative": …}, with "prompt" where there is one'
    shipped = ", ".join(sorted(file.stem for file in SHIPPED.glob("*.jsonl")))
    try:
        lines = path.read_text("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        found = "no such file" if isinstance(error, FileNotFoundError) else str(error)
        raise UsageError(Mistake(str(path), found, expected, f"shipped are {shipped}")) from None
    pairs, mistakes = [], []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            pair = Pair(row["positive"], row["negative"], row.get("prompt") or "")
            sound = all(isinstance(text, str) for text in pair) and pair.positive.strip() and pair.negative.strip()
        except (ValueError, KeyError, TypeError, AttributeError):
            sound = False
        if sound:
            pairs.append(pair)
        else:
            mistakes.append(Mistake(f"{path}:{number}", line[:80], expected))
    if not pairs and not mistakes:
        mistakes.append(Mistake(str(path), "no pairs", expected))
    if mistakes:
        raise UsageError(*mistakes)
    return pairs


def _read(prompt: str, text: str, model: Any, tokenizer: Any) -> tuple[dict[str, Tensor], Tensor]:
    """The model's inputs for a text, and which of the positions [T] are the answer's."""
    from alignkit.tasks.conversation import tokenised

    device = next(model.parameters()).device
    if model.config.is_encoder_decoder:
        ids = [model.config.decoder_start_token_id, *tokenizer(text_target=text)["input_ids"]]
        inputs = {"input_ids": tokenizer(prompt)["input_ids"] or [tokenizer.eos_token_id], "decoder_input_ids": ids}
        counted = [False] + [True] * (len(ids) - 1)
    elif prompt:
        talk = [{"role": "user", "content": prompt}, {"role": "assistant", "content": text}]
        ids, labels, _ = tokenised(talk, tokenizer, "pairs")
        inputs, counted = {"input_ids": ids}, [label >= 0 for label in labels]
    else:
        ids = tokenizer(text)["input_ids"]
        inputs, counted = {"input_ids": ids}, [len(ids) == 1, *[True] * (len(ids) - 1)]
    tensors = {name: torch.tensor([values], device=device) for name, values in inputs.items()}
    return {**tensors, "attention_mask": torch.ones_like(tensors["input_ids"])}, torch.tensor(counted, device=device)


@contextlib.contextmanager
def _outputs_of(layer: nn.Module) -> Iterator[list[Tensor]]:
    """What the layer gives at each call inside, [B, T, D]."""
    seen: list[Tensor] = []
    handle = layer.register_forward_hook(
        lambda _module, _inputs, output: seen.append(output[0] if isinstance(output, tuple) else output)
    )
    try:
        yield seen
    finally:
        handle.remove()


def _from_answer(hidden: Tensor, added: Tensor, prompt: int) -> Tensor:
    """What is added to a layer's output [B, t, D]: nothing before the prompt's last position, the first token's origin.

    With a cache the first pass has the prompt, and each of the others a token; without one all of them have everything.
    """
    first = max(prompt - 1, 0) if hidden.shape[1] >= prompt else 0
    delta = torch.zeros_like(hidden)
    delta[:, first:] = added.to(hidden.dtype)
    return delta
