"""What holds of every component, and of every one that takes part in training."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy
import pytest
import torch
from pydantic import ValidationError

from alignkit.components import BASES, Component
from alignkit.errors import UsageError
from alignkit.models import Peft
from alignkit.testing.models import HEADS, Row
from alignkit.testing.training import (
    fresh,
    gradient,
    make_rows,
    make_trainer,
    random_state,
    same,
    short_collections,
    trained_weights,
)

if TYPE_CHECKING:
    from alignkit.trainer import AlignTrainer

ADAPTED = ("bert-sequence-classification", "bert-token-classification", "llama-causal-lm", "t5")


class ComponentCases:
    """Subclass the cases of a component's kind, and give the component:

    class TestFGM(AdversaryCases):
        @pytest.fixture
        def component(self):
            return FGM(epsilon=0.1)
    """

    kind: ClassVar[str] = ""

    @pytest.fixture
    def component(self) -> Any:
        """The component under test; a case that needs several makes them from its fields."""
        raise NotImplementedError(f"{type(self).__name__} needs a fixture `component` that returns an instance")

    def test_it_is_of_its_kind_and_documented(self, component: Component) -> None:
        cls: Any = type(component)
        assert isinstance(component, BASES[self.kind])
        assert cls.__doc__
        assert not cls.__doc__.startswith(f"{cls.__name__}("), "a dataclass's own docstring says nothing"
        undocumented = [name for name, field in cls.__pydantic_fields__.items() if not field.description]
        assert not undocumented, "write a string under each field"
        assert cls.must_override or cls.may_override or component.hook_points

    def test_instances_compare_by_identity(self, component: Component) -> None:
        other = fresh(component)
        assert component != other
        assert component == component
        assert len({component, other}) == 2

    def test_unknown_fields_are_refused(self, component: Component) -> None:
        make: Any = type(component)
        with pytest.raises(ValidationError, match="no_such_field"):
            make(**component.fields(), no_such_field=1)

    def test_it_can_be_made_again_from_its_fields(self, component: Component) -> None:
        assert _plain(fresh(component)) == _plain(component)

    def test_defaults_are_valid(self, component: Component) -> None:
        make: Any = type(component)
        required = {n: f for n, f in make.__pydantic_fields__.items() if f.is_required()}
        made = make(**{name: getattr(component, name) for name in required})
        assert _plain(fresh(made)) == _plain(made)

    def test_its_state_is_what_a_checkpoint_holds(self, component: Component, tmp_path: Path) -> None:
        from alignkit.checkpoints import load_state, save_state

        state = component.state_dict()
        save_state(tmp_path / "state", state)
        assert same(load_state(tmp_path / "state"), state)


class TrainingCases(ComponentCases):
    """Cases of a component that takes part in training: on all heads, accumulated, adapted, resumed."""

    heads: ClassVar[tuple[str, ...]] = tuple(HEADS)
    """The heads that the component serves; those that its `check` refuses are skipped."""
    dropout: ClassVar[float] = 0.1
    """Of the models that are resumed."""

    @pytest.fixture(autouse=True, scope="class")
    @staticmethod
    def _short_collections() -> Iterator[None]:
        with short_collections():
            yield

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        heads = {"head": tuple(HEADS), "adapted_head": ADAPTED}
        for name in heads.keys() & set(metafunc.fixturenames):
            metafunc.parametrize(name, [head for head in heads[name] if head in self.heads])

    def rows(self, head: str, number: int, component: Component) -> list[Row]:
        """Rows to train on; override it where the component reads columns or views of its own kind."""
        return make_rows(head, number, [component])

    def arguments(self, component: Any) -> dict[str, Any]:
        """How the component enters `make_trainer`."""
        return {"components": [component]}

    def plain(self, component: Any) -> dict[str, Any]:
        """What `make_trainer` gets where the component is left out."""
        return {}

    def trainer(self, component: Any, head: str, folder: Path, **options: Any) -> AlignTrainer:
        """A trainer with the component in it; skips where it refuses the head."""
        arguments = {"rows": self.rows(head, 8, component), **self.arguments(component), **options}
        try:
            return make_trainer(head, folder, **arguments)
        except UsageError as refusal:
            pytest.skip(str(refusal))

    def gradient(self, component: Any, head: str, folder: Path, **options: Any) -> torch.Tensor:
        """The first optimizer step's gradient over eight rows, with the component."""
        self.trainer(component, head, folder)
        arguments = {"rows": self.rows(head, 8, component), **self.arguments(component), **options}
        return gradient(head, folder, **arguments)

    def test_it_serves_a_head(self, component: Any, tmp_path: Path) -> None:
        for head in self.heads:
            try:
                make_trainer(head, tmp_path, rows=self.rows(head, 8, component), **self.arguments(component))
                return
            except UsageError as refusal:
                last = refusal
        raise AssertionError(f"it refuses every head, the last because: {last}")

    def test_it_trains(self, component: Any, head: str, tmp_path: Path) -> None:
        trainer = self.trainer(component, head, tmp_path)
        before = trained_weights(trainer)
        trainer.train()
        assert_trained(trainer, before)

    def test_it_trains_an_adapter(self, component: Any, adapted_head: str, tmp_path: Path) -> None:
        trainer = self.trainer(component, adapted_head, tmp_path, peft=Peft(method="lora", r=4))
        before, frozen = trained_weights(trainer), _frozen(trainer)
        trainer.train()
        assert_trained(trainer, before)
        assert same(frozen, _frozen(trainer)), "weights that are not trained must not change"

    def test_accumulated_micro_batches_are_one_large_batch(self, component: Any, head: str, tmp_path: Path) -> None:
        """4 x 2 rows accumulated give the gradient of 1 x 8: rows of different lengths, no dropout."""
        if component.couples_rows:
            pytest.skip("it says that its result depends on which rows share a batch")
        one = self.gradient(component, head, tmp_path)
        four = self.gradient(fresh(component), head, tmp_path, size=2, accumulation=4)
        assert one.norm() > 0
        assert float(four.norm() / one.norm()) == pytest.approx(1.0, abs=1e-3)
        assert torch.cosine_similarity(one.double(), four.double(), dim=0) > 0.9999

    def test_a_resumed_training_ends_with_the_same_bytes(self, component: Any, tmp_path: Path) -> None:
        options: dict[str, Any] = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "dropout": self.dropout}
        whole = self._train(component, tmp_path, **options)
        checkpoint = str(tmp_path / "checkpoint-2")
        resumed = self._train(fresh(component), tmp_path / "resumed", checkpoint, **options)
        assert torch.equal(trained_weights(whole), trained_weights(resumed))
        states = [{name: c.state_dict() for name, c in t.composition.stateful().items()} for t in (whole, resumed)]
        assert same(*states), "state that is not in state_dict() is lost when a training is resumed"

    def test_a_second_training_starts_afresh(self, component: Any, tmp_path: Path) -> None:
        first, second = (self._train(component, tmp_path, dropout=self.dropout) for _ in range(2))
        assert torch.equal(trained_weights(first), trained_weights(second))

    def test_the_global_random_state_is_left_alone(self, component: Any, tmp_path: Path) -> None:
        head, states = self.heads[0], []
        for arguments in (self.plain(component), self.arguments(component)):
            trainer = make_trainer(head, tmp_path, rows=self.rows(head, 8, component), **arguments)
            _seed()
            trainer.train()
            states.append(random_state())
        assert states[0] == states[1]

    def _train(self, component: Any, folder: Path, resume: str | None = None, **options: Any) -> AlignTrainer:
        trainer = self.trainer(component, self.heads[0], folder, **options)
        _seed()
        trainer.train(resume_from_checkpoint=resume)
        return trainer


def assert_trained(trainer: AlignTrainer, before: torch.Tensor) -> None:
    """The weights have changed; they and everything that was logged are finite."""
    after = trained_weights(trainer)
    assert after.isfinite().all()
    assert not torch.equal(before, after)
    logged = [(n, v) for entry in trainer.state.log_history for n, v in entry.items() if isinstance(v, float)]
    assert any(name == "loss" for name, _ in logged)
    assert not [(name, value) for name, value in logged if not numpy.isfinite(value)]


def _frozen(trainer: AlignTrainer) -> dict[str, torch.Tensor]:
    model: Any = trainer.model
    return {n: p.detach().clone() for n, p in model.named_parameters() if not p.requires_grad}


def _seed() -> None:
    from transformers import set_seed

    set_seed(3)


def _plain(component: Component) -> dict[str, Any]:
    """The fields, those of components within included."""
    return {
        name: (type(value), _plain(value)) if isinstance(value, Component) else value
        for name, value in component.fields().items()
    }
