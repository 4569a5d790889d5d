"""One micro-batch on its way through the hook points: losses, perturbations, reference outputs, gradients.

    for loss in composition.attack(step):       # no adversary: just step.loss()
        backward(loss)                          # step.loss(delta) = objective + sum of weight * penalty

Everything here works without a Trainer: a `TrainingStep` needs a `StepContext`, a model and a batch.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from alignkit.dropout import Masks
from alignkit.errors import PluginError, UsageError
from alignkit.layers import hidden_layers, perturbed
from alignkit.models.adapters import cropped
from alignkit.reference_cache import serves
from alignkit.tasks.padding import attended

if TYPE_CHECKING:
    from alignkit.components import Batch, Task, Term
    from alignkit.compose import Composition
    from alignkit.data import Example
    from alignkit.reference import Reference
    from alignkit.reference_cache import ReferenceCache

OBJECTIVE = "objective"


@dataclass
class StepContext:
    """What stays the same from step to step; the trainer makes one per training."""

    task: Task
    composition: Composition
    forward: Callable[[nn.Module, Batch], Any]
    """Runs the model; `outputs.loss` is the stock Trainer's loss, a mean over this batch, where there are labels."""
    embedding: nn.Module
    """The layer whose output perturbations are added to; the encoder's in an encoder-decoder model."""
    unit_length: float = 1.0
    """The model's mean embedding norm: the unit of every radius."""
    special_ids: Sequence[int] = ()
    """Token ids that are never perturbed."""
    tokenizer: Any = None
    """The model's, where there is one: for methods that look at the tokens themselves."""
    reference: Reference | None = None
    reference_cache: ReferenceCache | None = None
    """What the reference said of labels before."""
    unwrap: Callable[[nn.Module], nn.Module] = lambda model: model
    mean_over_processes: Callable[[Tensor], Tensor] = lambda tensor: tensor
    seed: int = 0
    rank: int = 0
    processes: int = 1
    virtual_tokens: int = 0
    """Positions that prompt tuning puts before the text in the outputs."""
    examples: Sequence[Example] = ()
    """The training split, by row index."""


@dataclass
class View:
    """Another version of some rows of the batch (its demographic counterpart, the prompt with principles …)."""

    batch: Batch
    rows: Tensor
    """[k]: the rows of the main batch that the view's k rows belong to."""

    def __len__(self) -> int:
        return len(self.rows)


@dataclass
class LoggedTerm:
    """One term of the clean pass: its unweighted mean over the micro-batch, detached, its weight and its share."""

    mean: Tensor
    per: str
    count: int
    weight: float = 1.0
    share: float = 1.0


@dataclass
class Pass:
    """The forward pass being evaluated."""

    batch: Batch
    delta: Tensor | None


class TrainingStep:
    """One micro-batch. What a component may ask for is here; what it may change is nothing.

    Args:
        context: what stays the same between steps.
        model: the model as the trainer wraps it.
        inputs: what the collator made: the model's tensors, and `views`, `columns`, `index`.
        index: the optimizer step, from 0.
        micro: the micro-batch within the accumulation window, from 0.
        epoch: of the training so far, with its fraction.
        progress: the share of the training's optimizer steps that are done, from 0 to 1.
        counts: counts by name in this micro-batch; None: take them.
        window: counts by name over the whole accumulation window and all processes; None: this batch alone.
    """

    def __init__(
        self,
        context: StepContext,
        model: nn.Module,
        inputs: Mapping[str, Any],
        *,
        index: int = 0,
        micro: int = 0,
        epoch: float = 0.0,
        progress: float = 0.0,
        counts: Mapping[str, int] | None = None,
        window: Mapping[str, int] | None = None,
    ):
        self.context = context
        self.model = model
        self.batch: Batch = {k: v for k, v in inputs.items() if k not in ("views", "columns", "index")}
        self.views: dict[str, View] = {
            name: View({k: v for k, v in view.items() if k != "rows"}, view["rows"])
            for name, view in (inputs.get("views") or {}).items()
        }
        self._columns: Mapping[str, Any] = inputs.get("columns") or {}
        self.rows: list[int] = torch.as_tensor(inputs["index"]).tolist() if "index" in inputs else []
        """Positions of the batch's rows in the training set; empty where the caller did not say."""
        self.index, self.micro, self.epoch, self.progress = index, micro, epoch, progress
        self.counts = dict(counts) if counts is not None else context.composition.counts(context.task, inputs)
        self.window = dict(window) if window is not None else self.counts
        self.terms: dict[str, LoggedTerm] = {}
        """Each term of the clean pass, by component name; `objective` first."""
        self.total: Tensor | None = None
        """The clean pass's loss, detached."""
        self.nonfinite_gradients: int | Tensor = 0
        """Examples whose perturbation was skipped because its gradient was not finite."""
        self.keep_outputs = False
        self.outputs: Any = None
        """Of the latest evaluation, where somebody asked for them; logits are large, so otherwise they are let go."""
        self.owner = ""
        """The component that is being asked; kept by the composition."""
        self._generators: dict[str, torch.Generator] = {}
        self._row_generators: dict[tuple[str, int], torch.Generator] = {}
        self._masks = Masks(next(iter(self.batch.values())).device)
        self._pass: Pass | None = None
        self._running: Batch | None = None
        """What the model is being run on."""
        self._reference: dict[int, tuple[Batch, Any]] = {}

    # -- losses ------------------------------------------------------------------------------------------------

    def loss(self, delta: Tensor | None = None, batch: Batch | None = None) -> Tensor:
        """The training loss of one forward pass: objective plus weighted penalties on its outputs.

        Args:
            delta: [B, T, D] added to the embedding layer's output; None: nothing.
            batch: other inputs than the step's own (a method that swaps tokens).

        Returns:
            A scalar, normalised over the accumulation window and all processes. Each term is logged once per step,
            as the first call found it.
        """
        return self.evaluate(delta, batch)[0]

    def evaluate(self, delta: Tensor | None = None, batch: Batch | None = None) -> tuple[Tensor, Any]:
        """`loss` and the outputs it was taken on."""
        if self._pass is not None:
            raise PluginError("step.loss() was called inside penalty(): use step.forward() there")
        batch = self.batch if batch is None else batch
        same = self._same_but_tokens(batch)
        counts = self.counts if same else self.context.composition.counts(self.context.task, batch)
        self._pass = Pass(batch, delta)
        try:
            outputs = self._run(self.model, batch, delta)
            composition = self.context.composition
            terms = {OBJECTIVE: self._scaled(composition.objective.loss(self, outputs), outputs, counts, 1.0)}
            for component, term in composition.penalties(self, outputs):
                weight = composition.weight(component)
                terms[component.name] = self._scaled(term, outputs, counts, weight, component.name)
        finally:
            self._pass = None
        total = torch.stack([scaled for scaled, _ in terms.values()]).sum() if len(terms) > 1 else terms[OBJECTIVE][0]
        total = total / composition.normaliser if composition.normaliser != 1.0 else total
        if self.total is None:
            self.terms = {name: logged for name, (_, logged) in terms.items()}
            self.total = total.detach()
        self.outputs = outputs if self.keep_outputs else None
        return total, outputs

    def _same_but_tokens(self, batch: Batch) -> bool:
        """The step's own rows, at most with other tokens in them: what is counted of those is counted of these."""
        rest = (batch.keys() | self.batch.keys()) - {"input_ids"}
        return all(batch.get(name) is self.batch.get(name) for name in rest)

    def _scaled(
        self, term: Term, outputs: Any, counts: Mapping[str, int], weight: float, name: str = OBJECTIVE
    ) -> tuple[Tensor, LoggedTerm]:
        """A term's mean times its weight and the micro-batch's share of the window."""
        if term.per not in counts:
            found = f"the term of {name} is a mean per {term.per!r}, which nothing counts"
            raise PluginError(f"{found}; counted are {sorted(counts)}")
        count = counts[term.per]
        if count == 0:  # its mean may be 0/0: never read it, but keep every parameter in the graph
            tensors = (v for n, v in outputs.items() if n != "loss" and isinstance(v, Tensor) and v.is_floating_point())
            zero = torch.stack([v.sum() for v in tensors]).sum() * 0.0
            return zero, LoggedTerm(zero.detach(), term.per, 0, weight, 0.0)
        share = count * self.context.processes / max(self.window.get(term.per, count), 1)
        factor = weight * share
        scaled = term.mean if factor == 1.0 else term.mean * factor
        return scaled, LoggedTerm(term.mean.detach(), term.per, count, weight, share)

    def forward(
        self,
        delta: Tensor | None = None,
        batch: Batch | None = None,
        *,
        fresh_dropout: bool = False,
        weights: Mapping[str, Tensor] | None = None,
    ) -> Any:
        """Outputs of one more forward pass, differentiable; by default of the pass that is being evaluated.

        Args:
            delta: [B, T, D] added to the embedding layer's output, inside a penalty on top of what the pass being
                evaluated adds; where it requires a gradient, one can be taken in an evaluation, too.
            batch: other inputs.
            fresh_dropout: new dropout masks, from the asking component's own generator, instead of those that all
                passes of the step share (R-Drop).
            weights: by parameter name, what stands in for the model's own in this pass (an average, as a teacher).
                Nothing is written into the model, so graphs of other passes stay valid.

        Cost: a forward pass, and a backward pass where the result is trained on.
        """
        taken = torch.enable_grad() if delta is not None and delta.requires_grad else contextlib.nullcontext()
        with taken:
            if self._pass is not None and batch is None:
                own, batch = self._pass.delta, self._pass.batch
                delta = own if delta is None else delta if own is None else own + delta
            model = self.unwrapped
            return self._run(model, self.batch if batch is None else batch, delta, fresh_dropout, weights)

    def _run(
        self,
        model: nn.Module,
        batch: Batch,
        delta: Tensor | None,
        fresh_dropout: bool = False,
        weights: Mapping[str, Tensor] | None = None,
    ) -> Any:
        drawn: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
        if model.training:
            drawn = self._masks.fresh(self.generator) if fresh_dropout else self._masks.shared()
        self._running, before = batch, self._running
        try:
            hooked = perturbed(self.context.embedding, delta, always=self.context.composition.perturbs)
            with hooked, drawn:
                outputs = _called(self.context.forward, model, batch, weights)
        finally:
            self._running = before
        return cropped(outputs, batch["input_ids"].shape[-1], self.context.virtual_tokens)

    def log_probabilities(self, outputs: Any, batch: Batch | None = None) -> tuple[Tensor, str]:
        """[N, ..., V] where the task scores predictions, and the unit (`token`, `example`) that N counts.

        Args:
            outputs: a model's. Of a span head its two distributions over positions are one prediction [B, 2, T].
            batch: what they are outputs for; by default the batch of the pass that is being evaluated.
        """
        return self.context.task.log_probabilities(outputs, self._current(batch))

    def label_log_probabilities(self, outputs: Any, batch: Batch | None = None) -> Tensor:
        """[N], in nats: the log-probability of each label that a language model is scored on, row by row.

        Args:
            batch: what they are outputs for; by default the batch of the pass that is being evaluated.
        """
        return self.context.task.label_log_probabilities(outputs, self._current(batch))

    @property
    def current(self) -> Batch:
        """The batch of the pass that is being evaluated; outside of one the step's own."""
        return self._current(None)

    def _current(self, batch: Batch | None) -> Batch:
        """The batch that was named, or that of the pass being evaluated, or the step's own."""
        if batch is not None:
            return batch
        return self.batch if self._pass is None else self._pass.batch

    # -- gradients ---------------------------------------------------------------------------------------------

    def gradient(self, delta: Tensor, loss: Tensor | Callable[[], Tensor] | None = None) -> Tensor:
        """d loss / d delta (of delta's shape), and nothing else: parameters receive and need no gradient.

        Args:
            delta: a leaf that requires a gradient, such as `step.zeros()`.
            loss: what to ascend, or what makes it (`step.loss`, where `delta` is added elsewhere than to the
                embeddings); by default the training loss at `delta`. Either counts as a pass of the step's terms.

        Cost: about .73 of a forward-and-backward pass; where `loss` is a tensor, only its way back.
        """
        if isinstance(loss, Tensor):
            return torch.autograd.grad(loss, delta)[0]
        with torch.enable_grad(), self._unwrapped():
            return torch.autograd.grad(self.loss(delta) if loss is None else loss(), delta)[0]

    def parameter_gradient(self, batch: Batch | None = None) -> dict[str, Tensor]:
        """The training loss's gradient by parameter name, mean over processes; `.grad` stays as it is."""
        named = self.trained
        with self._unwrapped():
            grads = torch.autograd.grad(self.loss(batch=batch), list(named.values()), allow_unused=True)
        found = {n: g if g is not None else torch.zeros_like(p) for (n, p), g in zip(named.items(), grads, strict=True)}
        return {n: self.context.mean_over_processes(g) for n, g in found.items()}

    @contextlib.contextmanager
    def _unwrapped(self) -> Iterator[None]:
        """Losses on the module inside DDP's wrapper, whose reducer expects a backward pass for every forward."""
        wrapped, self.model = self.model, self.unwrapped
        try:
            yield
        finally:
            self.model = wrapped

    @contextlib.contextmanager
    def shifted(self, changes: Mapping[str, Tensor]) -> Iterator[None]:
        """Weights moved by `changes` (by parameter name), and always put back bit for bit."""
        named = dict(self.unwrapped.named_parameters())
        saved = {name: named[name].detach().clone() for name in changes}
        try:
            with torch.no_grad():
                for name, change in changes.items():
                    named[name].add_(change)
            torch.clear_autocast_cache()  # it holds the weights as they were cast before
            yield
        finally:
            with torch.no_grad():
                for name, value in saved.items():
                    named[name].copy_(value)
            torch.clear_autocast_cache()

    @contextlib.contextmanager
    def latent(self, layer: int, delta: Tensor | Callable[[Tensor], Tensor]) -> Iterator[None]:
        """Forward passes of the step's own batch inside see `delta` added to the output of a hidden layer.

        Other batches (views), and the reference where it is the same model, do not.

        Args:
            layer: 0 is the first, -1 the last; of an encoder-decoder model the encoder's.
            delta: of the shape of the layer's output [B, T, D], or what makes it of that output.
        """
        module = hidden_layers(self.unwrapped)[layer]
        with perturbed(module, delta, lambda: self._running is self.batch):
            yield

    # -- perturbations -----------------------------------------------------------------------------------------

    def zeros(self, batch: Batch | None = None) -> Tensor:
        """A perturbation of nothing, shaped like the embedding layer's output: [B, T, D] ([B*C, T, D] for choices).

        Args:
            batch: what it is to perturb (a view's batch …); by default the step's own.
        """
        ids = (self.batch if batch is None else batch)["input_ids"]
        shape = (ids.numel() // ids.shape[-1], ids.shape[-1], self._width)
        return torch.zeros(shape, device=ids.device, requires_grad=True)

    @property
    def _width(self) -> int:
        """D, of the embeddings' output."""
        weight = next(self.context.embedding.parameters())
        return int(getattr(self.context.embedding, "embedding_dim", weight.shape[-1]))

    def real_tokens(self, special: bool = False, batch: Batch | None = None) -> Tensor:
        """[B, T, 1]: 1 at real tokens, 0 at padding and, unless `special`, at special tokens."""
        batch = self.batch if batch is None else batch
        ids = batch["input_ids"]
        mask = attended(batch)
        if not special and self.context.special_ids:
            mask = mask & ~torch.isin(ids, torch.tensor(self.context.special_ids, device=ids.device))
        return mask.view(-1, ids.shape[-1], 1).float()

    @cached_property
    def mask(self) -> Tensor:
        """[B, T, 1]: 1 at real tokens, 0 at padding and special tokens."""
        return self.real_tokens()

    @property
    def unit_length(self) -> float:
        """The model's mean embedding norm: what a radius of 1 is."""
        return self.context.unit_length

    def unit(self, gradient: Tensor, mask: Tensor | None = None) -> Tensor:
        """The gradient's direction, per example as long as one mean embedding norm.

        Divides by the largest entry before it takes the norm, so that a gradient of 1e-25 has a direction too. An
        example whose gradient is zero or not finite gets zero; the latter are counted.

        Args:
            gradient: [B, T, D].
            mask: [B, T, 1] of what may be perturbed; by default real tokens.
        """
        masked = gradient.detach().float() * (self.mask if mask is None else mask)
        finite = masked.isfinite().all(-1).all(-1)
        self.nonfinite_gradients = self.nonfinite_gradients + (~finite).sum()  # on its device: nothing waits for it
        masked = torch.where(finite[:, None, None], masked, 0.0)
        masked = masked / masked.abs().amax((1, 2), keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
        norm = masked.norm(dim=(1, 2), keepdim=True)
        return masked * (self.context.unit_length / norm.clamp_min(0.5))  # a direction's norm is at least 1, or 0

    def project(self, delta: Tensor, radius: float, mask: Tensor | None = None) -> Tensor:
        """`delta` [B, T, D] brought back, per example, into the L2 ball of `radius` mean embedding norms."""
        masked = delta.detach() * (self.mask if mask is None else mask)
        norm = masked.norm(dim=(1, 2), keepdim=True)
        return masked * (radius * self.context.unit_length / norm.clamp_min(1e-30)).clamp_max(1.0)

    def noise(
        self, distribution: Literal["uniform", "normal"] = "uniform", mask: Tensor | None = None, width: int = 0
    ) -> Tensor:
        """[B, T, D] of independent draws at real tokens and 0 elsewhere, from each row's own generator.

        The generators are seeded from (seed, optimizer step, the row's place in the data, the asking component), so
        that a row's noise depends neither on which rows share its micro-batch nor on how they are padded, nor on how
        many processes there are. Where the caller did not say which rows these are, `generator` is drawn from.

        Args:
            distribution: `uniform` on [-1, 1), or `normal` with variance 1.
            mask: [B, T, 1] of where; by default real tokens.
            width: D; by default the embeddings'.
        """
        mask = self.mask if mask is None else mask
        places = mask[..., 0].bool().cpu()
        found = torch.zeros(*places.shape, width or self._width)
        per_row = len(places) // len(self.rows) if self.rows and len(places) % len(self.rows) == 0 else 0
        draw = torch.randn if distribution == "normal" else torch.rand
        for i, shown in enumerate(places):
            generator = self._row_generator(self.rows[i // per_row]) if per_row else self.generator
            found[i, shown] = draw(int(shown.sum()), found.shape[-1], generator=generator)
        if distribution == "uniform":
            found = 2 * found - places[..., None].float()
        return found.to(mask.device)

    def _row_generator(self, row: int) -> torch.Generator:
        """The asking component's own for one row of the data."""
        if (self.owner, row) not in self._row_generators:
            made = generator_at(self.context.seed, self.index, row, 0, f"{self.owner}/row")
            self._row_generators[self.owner, row] = made
        return self._row_generators[self.owner, row]

    # -- the model ---------------------------------------------------------------------------------------------

    @property
    def unwrapped(self) -> nn.Module:
        """The model without what the trainer wraps it in for several processes; peft's own wrapper stays."""
        return self.context.unwrap(self.model)

    @property
    def trained(self) -> dict[str, nn.Parameter]:
        """The parameters that are trained, by name."""
        return {name: parameter for name, parameter in self.unwrapped.named_parameters() if parameter.requires_grad}

    # -- what the host knows -----------------------------------------------------------------------------------

    def reference_outputs(self, batch: Batch | None = None) -> Any:
        """The frozen reference model's outputs for a batch, without gradient; computed once per step and batch.

        Args:
            batch: a view's …; by default that of the pass being evaluated.
        """
        if self.context.reference is None:
            raise PluginError("a component asked for reference outputs without declaring `reference = True`")
        batch = self._current(batch)
        if id(batch) not in self._reference:  # the batch is kept with its outputs, so that no other takes its id
            model = self.unwrapped
            outputs = self.context.reference.outputs(model, batch, self.context.task)
            self._reference[id(batch)] = (batch, outputs)
        return self._reference[id(batch)][1]

    def reference_label_log_probabilities(self, batch: Batch | None = None, cached: bool = True) -> Tensor:
        """[N], in nats: of each scored label under the frozen reference, row by row; from the cache where it is there.

        Args:
            batch: a view's …; by default that of the pass being evaluated.
            cached: False for rows that will hardly come again, which are not to fill the cache.
        """
        batch, cache = self._current(batch), self.context.reference_cache
        kept = cache.labels if cached and cache is not None and serves(batch) else None
        if kept is not None and (found := kept.get(batch)) is not None:
            return found
        with torch.no_grad():
            found = self.context.task.label_log_probabilities(self.reference_outputs(batch), batch)
        return found if kept is None else kept.put(batch, found)

    def reference_log_probabilities(self, batch: Batch | None = None) -> Tensor:
        """[N, ..., V]: what the frozen reference predicts where the task is scored, as `log_probabilities` has it.

        Where hidden states are cached, they are those in half precision, and the reference is asked once per row.

        Args:
            batch: a view's …; by default that of the pass being evaluated.
        """
        batch, cache = self._current(batch), self.context.reference_cache
        kept = cache.hidden if cache is not None and serves(batch) else None
        if kept is None:
            return self.log_probabilities(self.reference_outputs(batch), batch)[0]
        assert self.context.reference is not None  # the cache is its
        task, model = self.context.task, self.unwrapped
        with torch.no_grad():
            head, found = self.context.reference.head(model), kept.get(batch)
            if found is None:
                made = self.context.reference.hidden(model, batch) if task.stock_loss else self.reference_outputs(batch)
                found = kept.put(batch, task.scored_hidden(made, batch))
            return head.logits(found.to(head.weight.dtype)).log_softmax(-1)

    def column(self, name: str) -> Any:
        """A data column that the model does not take, one value per row: a tensor where all values are numbers."""
        if name not in self._columns:
            raise UsageError(
                f"the data has no column {name!r}, which a component reads; it has {sorted(self._columns) or 'none'}"
            )
        return self._columns[name]

    @property
    def examples(self) -> list[Example]:
        """The batch's rows as the data has them."""
        return [self.context.examples[i] for i in self.rows]

    @property
    def generator(self) -> torch.Generator:
        """The asking component's own, on the CPU, seeded from (seed, optimizer step, micro-batch, rank, its name).

        Resuming needs no saved state, and no component's draws depend on who else draws.
        """
        if self.owner not in self._generators:
            place = (self.context.seed, self.index, self.micro, self.context.rank)
            self._generators[self.owner] = generator_at(*place, self.owner)
        return self._generators[self.owner]


def generator_at(seed: int, index: int, micro: int, rank: int, owner: str) -> torch.Generator:
    """A generator on the CPU for who draws at one place of a training: nothing of it need be saved to resume."""
    key = "/".join(map(str, (seed, index, micro, rank, owner)))
    digest = hashlib.blake2b(key.encode(), digest_size=7).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "big"))


class _Called(nn.Module):
    """A model and how it is run, as one module."""

    def __init__(self, forward: Callable[[nn.Module, Batch], Any], model: nn.Module):
        super().__init__()
        self.run, self.model = forward, model

    def forward(self, batch: Batch) -> Any:
        return self.run(self.model, batch)


def _called(
    forward: Callable[[nn.Module, Batch], Any], model: nn.Module, batch: Batch, weights: Mapping[str, Tensor] | None
) -> Any:
    """The model's outputs, with other weights in the place of those that are named."""
    if not weights:
        return forward(model, batch)
    own = dict(model.named_parameters())
    taken = {f"model.{name}": value.to(own[name]) for name, value in weights.items()}
    return torch.func.functional_call(_Called(forward, model), taken, (batch,))
