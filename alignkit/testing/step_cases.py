"""Conformance of what enters the training loss: constraints, adversaries, objectives, weights."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest
import torch
from torch import Tensor, nn

from alignkit.components import Component, Constraint, Term, Weight
from alignkit.step import TrainingStep
from alignkit.testing.component_cases import TrainingCases
from alignkit.testing.models import Row
from alignkit.testing.training import fresh, make_rows, same, task_rows


class PenaltyCases(TrainingCases):
    """Of what adds a term to the loss, if it does: it is logged and validated, and enters the loss with its weight."""

    def test_it_is_logged_and_validated(self, component: Any, tmp_path: Path) -> None:
        _skip_without_penalty(component)
        head = self.heads[0]
        trainer = self.trainer(component, head, tmp_path, eval_rows=self.rows(head, 5, component))
        trainer.train()
        named = next(entry for entry in trainer.state.log_history if "loss" in entry)
        assert f"penalty/{component.name}" in named
        evaluated = trainer.evaluate()[f"eval_penalty/{component.name}"]
        assert evaluated == trainer.evaluate()[f"eval_penalty/{component.name}"]

    def test_its_weight_multiplies_its_gradient(self, component: Any, tmp_path: Path) -> None:
        _skip_without_penalty(component)
        head, weighed = self.heads[0], {}
        for weight in (0.0, 1.0, 3.0):
            component.weight = weight
            weighed[weight] = self.gradient(component, head, tmp_path)
        own, tripled = weighed[1.0] - weighed[0.0], weighed[3.0] - weighed[0.0]
        torch.testing.assert_close(tripled, 3 * own, rtol=1e-3, atol=1e-3 * max(float(own.abs().max()), 1e-3))
        if "attack" not in component.hook_points:  # whose losses are others than the plain one at any weight
            plain = self.gradient(component, head, tmp_path, components=[])
            torch.testing.assert_close(weighed[0.0], plain, rtol=1e-4, atol=1e-6)


def _skip_without_penalty(component: Component) -> None:
    if "penalty" not in component.hook_points:
        pytest.skip("it adds no term to the loss")


class ConstraintCases(PenaltyCases):
    """Of a constraint: its penalty is logged and validated, and enters the loss with its weight."""

    kind: ClassVar[str] = "constraint"


class AdversaryCases(PenaltyCases):
    """Of an adversary: as many losses as it says, weights as they were, perturbations on real tokens, in the radius.

    One whose method is a penalty on the outputs has one loss, in which its passes are hidden; they are looked at, too.
    """

    kind: ClassVar[str] = "adversary"
    norm: ClassVar[Literal["example", "token", "largest"]] = "example"
    """What the radius bounds: the L2 norm of an example's perturbation, of a token's, or its largest entry."""

    def radius(self, component: Any) -> float | None:
        """The bound in mean embedding norms; by default the field `epsilon`. None: none."""
        return getattr(component, "epsilon", None)

    def test_it_yields_as_many_losses_as_it_says_and_leaves_weights_alone(
        self, component: Any, head: str, tmp_path: Path
    ) -> None:
        step = self._step(component, head, tmp_path)
        before = _copied(step.model)
        yielded = 0
        for loss in step.context.composition.attack(step):
            loss.backward()
            yielded += 1
        assert yielded == component.passes
        assert same(before, _copied(step.model))

    def test_weights_are_put_back_when_training_breaks(self, component: Any, tmp_path: Path) -> None:
        for broken in range(component.passes):
            step = self._step(fresh(component), self.heads[0], tmp_path)
            before = _copied(step.model)
            with contextlib.closing(step.context.composition.attack(step)) as losses:
                for _ in range(broken + 1):
                    next(losses).backward()
            assert same(before, _copied(step.model))

    def test_weights_stay_at_a_learning_rate_of_zero(self, component: Any, tmp_path: Path) -> None:
        trainer = self.trainer(component, self.heads[0], tmp_path, learning_rate=0.0)
        before = _copied(trainer.model)
        trainer.train()
        assert same(before, _copied(trainer.model))

    def test_only_real_tokens_are_perturbed_within_the_radius(self, component: Any, head: str, tmp_path: Path) -> None:
        step = self._step(component, head, tmp_path)
        with perturbations(step.context.embedding) as seen:
            for loss in step.context.composition.attack(step):
                loss.backward()
        special = bool(getattr(component, "perturb_special", False))
        batches = [*(view.batch for view in step.views.values()), step.batch]
        masks = [step.real_tokens(special, batch).bool() for batch in batches]
        assert masks[-1].any()
        assert not masks[-1].all()
        shown = {mask.shape[:2]: mask for mask in masks}
        for delta in seen:
            assert delta.shape[:2] in shown
            assert delta.isfinite().all()
            assert not delta.masked_select(~shown[delta.shape[:2]]).any(), "padding or special tokens are perturbed"
            self._assert_within(delta / step.context.unit_length, self.radius(component))

    def _assert_within(self, delta: Tensor, radius: float | None) -> None:
        if radius is not None and delta.numel():
            sizes = {"example": delta.flatten(1).norm(dim=1), "token": delta.norm(dim=-1), "largest": delta.abs()}
            assert float(sizes[self.norm].max()) <= radius * (1 + 1e-4) + 1e-5

    def _step(self, component: Any, head: str, folder: Path) -> TrainingStep:
        trainer = self.trainer(component, head, folder)
        inputs = trainer._prepare_inputs(trainer.data_collator(trainer.train_dataset))
        return TrainingStep(trainer.context, trainer.model.train(), inputs)


@contextlib.contextmanager
def perturbations(embedding: nn.Module) -> Iterator[list[Tensor]]:
    """What is added to the layer's output in each of its calls inside."""
    seen: list[Tensor] = []
    outputs: list[Tensor] = []

    def clean(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
        outputs.append(output.detach().clone())

    def last(_module: nn.Module, _inputs: Any) -> None:
        def changed(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
            handles.pop().remove()
            seen.append(output.detach() - outputs.pop())

        handles.append(
            embedding.register_forward_hook(changed)
        )  # after any hook that is there when the layer is called

    first, before = embedding.register_forward_hook(clean), embedding.register_forward_pre_hook(last)
    handles: list[Any] = []
    try:
        yield seen
    finally:
        for handle in (first, before, *handles):
            handle.remove()


class ObjectiveCases(TrainingCases):
    """Of an objective: it is what a model is trained on.

    One that serves certain tasks is tried on the first of them; name in `heads` the tiny models that the task takes.
    """

    kind: ClassVar[str] = "objective"

    def arguments(self, component: Any) -> dict[str, Any]:
        return {"objective": component, **self.plain(component)}

    def plain(self, component: Any) -> dict[str, Any]:
        from alignkit.catalogue import default_catalogue

        named: tuple[str, ...] = component.tasks
        return {"task": default_catalogue().load_class(default_catalogue().find("task", named[0]))()} if named else {}

    def rows(self, head: str, number: int, component: Component) -> list[Row]:
        task = self.plain(component).get("task")
        return make_rows(head, number) if task is None else task_rows(task, head, number)


class Nearness(Constraint):
    """The mean squared logit: something that a weight can be put on."""

    def penalty(self, step: TrainingStep, outputs: Any) -> Term:
        return Term(outputs.logits.square().sum(-1).mean(), "example")


class WeightCases(TrainingCases):
    """Of a weight: a finite number that is not negative, whatever it observes; its state is all it remembers."""

    kind: ClassVar[str] = "weight"
    heads: ClassVar[tuple[str, ...]] = ("bert-sequence-classification",)
    costs: ClassVar[tuple[float, ...]] = (0.0, 0.5, 100.0, 0.0, 1e-6, 3.0)
    """What it observes, step by step."""

    def arguments(self, component: Any) -> dict[str, Any]:
        return {"components": [Nearness(weight=component)]}

    def rows(self, head: str, number: int, component: Component) -> list[Row]:
        return make_rows(head, number)

    def test_it_is_finite_and_not_negative(self, component: Weight) -> None:
        values = [component.value()]
        for cost in self.costs:
            component.observe(cost)
            values.append(component.value())
        assert all(isinstance(value, float) for value in values)
        assert all(0.0 <= value < float("inf") for value in values)

    def test_it_goes_on_from_its_state(self, component: Weight, tmp_path: Path) -> None:
        from alignkit.checkpoints import load_state, save_state

        for cost in self.costs:
            component.observe(cost)
        save_state(tmp_path / "weight", component.state_dict())
        other = fresh(component)
        if state := load_state(tmp_path / "weight"):
            other.load_state_dict(state)
        for cost in self.costs:
            assert other.value() == component.value()
            component.observe(cost)
            other.observe(cost)
        component.reset()
        assert component.value() == fresh(component).value()


def _copied(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}
