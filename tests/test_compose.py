"""Who is asked, in which order, and what of the answers is refused."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from alignkit.components import (
    Adversary,
    Augmenter,
    Averager,
    Constraint,
    Filter,
    Fusion,
    Term,
    Updater,
    Verdict,
    Weight,
)
from alignkit.compose import Composition
from alignkit.data import Example
from alignkit.errors import PluginError, UsageError
from alignkit.plan import Setting, make_plan
from alignkit.tasks.stock import StockTask
from alignkit.testing import make_trainer


class First(Filter):
    """Keeps everything."""

    def filter_examples(self, examples: Any) -> Any:
        return [Verdict() for _ in examples]


class Second(First):
    """Keeps everything, too."""

    def filter_examples(self, examples: Any) -> Any:
        return [Verdict() for _ in examples]


class One(Constraint):
    """A penalty of one."""

    def penalty(self, step: Any, outputs: Any) -> Any:
        return Term(torch.ones(()))


class Attack(Adversary):
    """Two clean passes."""

    passes = 2

    def attack(self, step: Any) -> Any:
        yield step.loss()
        yield step.loss()


class Other(Attack):
    """Another."""

    def attack(self, step: Any) -> Any:
        yield step.loss()
        yield step.loss()


class Multiplier(Weight):
    """A Lagrange multiplier of three."""

    normalises = True

    def value(self) -> float:
        return 3.0


def compose(*components: Any) -> Composition:
    return Composition(components, StockTask())


def plan(*components: Any, **setting: Any) -> Any:
    composition = compose(*components)
    return make_plan(composition, Setting(composition.task, composition.components, composition.objective, **setting))


def test_components_are_asked_in_recipe_order() -> None:
    assert [name for name, _ in compose(First(), Second()).filters] == ["first", "second"]
    assert [name for name, _ in compose(Second(), First()).filters] == ["second", "first"]


def test_names_are_unique_and_a_given_one_stays() -> None:
    named = One()
    named.name = "mine"
    assert [c.name for c in compose(One(), named, One(), One()).components] == ["one", "mine", "one-2", "one-3"]


def test_two_components_for_a_single_hook_point_are_refused() -> None:
    with pytest.raises(UsageError, match="attack and other both implement attack; expected one component that does"):
        compose(Attack(), Other())


def test_a_wrong_signature_names_the_component() -> None:
    class Wrong(Constraint):
        """Asks for what nobody gives."""

        def penalty(self, step: Any, outputs: Any, labels: Any) -> Any: ...

    with pytest.raises(
        PluginError, match=r"(?s)constraint 'wrong' .*'labels'. are declared in the hookimpl but can not be found"
    ):
        compose(Wrong())


@pytest.mark.parametrize(
    ("answer", "found"),
    [(1.0, "float"), (Term(torch.ones(3)), r"\[3\]"), (None, "NoneType")],
)
def test_a_penalty_that_is_no_scalar_term_names_the_component(answer: Any, found: str) -> None:
    class Odd(Constraint):
        """Answers oddly."""

        def penalty(self, step: Any, outputs: Any) -> Any:
            return answer

    with pytest.raises(PluginError, match=rf"constraint 'odd' .*gave.*{found}.*expected a Term"):
        list(compose(Odd()).penalties(SimpleNamespace(owner=""), None))


def test_an_attack_that_is_no_generator_names_the_component() -> None:
    class Flat(Adversary):
        """Returns its loss."""

        def attack(self, step: Any) -> Any:
            return torch.ones(())

    with pytest.raises(PluginError, match="gave Tensor, expected a generator"):
        list(compose(Flat()).attack(SimpleNamespace(owner="")))


def test_an_exception_keeps_its_type_and_names_the_component() -> None:
    class Broken(Constraint):
        """Has a defect."""

        def penalty(self, step: Any, outputs: Any) -> Any:
            raise KeyError("labels")

    with pytest.raises(KeyError) as caught:
        list(compose(Broken()).penalties(SimpleNamespace(owner=""), None))
    assert caught.value.__notes__ == [f"in penalty of constraint 'broken' ({__name__}.{Broken.__qualname__})"]


def test_what_the_step_refuses_names_the_component_that_asked(tmp_path: Path) -> None:
    class Misshapen(Adversary):
        """A perturbation of one row for all."""

        def attack(self, step: Any) -> Any:
            yield step.loss(step.zeros()[:1])

    class Uncounted(Constraint):
        """A mean over what nobody counts."""

        def penalty(self, step: Any, outputs: Any) -> Any:
            return Term(outputs.logits.mean(), "sentence")

    with pytest.raises(PluginError, match=r"adversary 'misshapen' .*\.attack: a perturbation has shape \[1, "):
        make_trainer("bert-token-classification", tmp_path, [Misshapen()], max_steps=1).train()
    with pytest.raises(PluginError, match="the term of uncounted is a mean per 'sentence', which nothing counts"):
        make_trainer("bert-token-classification", tmp_path, [Uncounted()], max_steps=1).train()


def test_a_fusion_of_outputs_alone_is_refused_before_training() -> None:
    class Vote(Fusion):
        """The mean of the logits."""

        def combine_outputs(self, logits: Any) -> Any:
            return logits.mean(0)

    with pytest.raises(UsageError, match="fusion vote: it combines the predictions of several models"):
        plan(Vote())


def test_views_are_united_and_a_clash_is_an_error() -> None:
    class Upper(Constraint):
        """The example in capitals."""

        def views(self, example: Any) -> Any:
            return {"upper": example.map_words(str.upper)}

    example = Example({"text": "a b"}, inputs=("text",))
    assert compose(Upper()).views(example)["upper"]["text"] == "A B"
    with pytest.raises(UsageError, match="the view 'upper' of upper-2 is made by another component too"):
        compose(Upper(), Upper()).views(example)


def test_own_counts_stand_beside_the_tasks() -> None:
    class Pairs(Constraint):
        """Counts pairs."""

        def counts(self, batch: Any) -> Any:
            return {"pair": 2}

        def penalty(self, step: Any, outputs: Any) -> Any: ...

    batch = {"labels": torch.tensor([[1, -100], [2, 3]])}
    composition = compose(Pairs())
    assert composition.counts(composition.task, batch) == {"example": 2, "token": 3, "pair": 2}


def test_multipliers_normalise_the_total() -> None:
    assert compose(One(weight=Multiplier())).normaliser == 4.0
    assert compose(One(weight=2.0)).normaliser == 1.0


def test_state_is_kept_by_name_weights_too() -> None:
    assert sorted(compose(One(weight=Multiplier())).stateful()) == ["objective", "one", "one.weight"]


def test_the_plan_predicts_from_what_components_declare() -> None:
    class Reference(Constraint):
        """Compares with the reference."""

        reference = True

        def penalty(self, step: Any, outputs: Any) -> Any: ...

    class Twice(Constraint):
        """Runs half the batch again."""

        backwards = 0.5

        def penalty(self, step: Any, outputs: Any) -> Any: ...

    made = plan(Reference(), Twice(), Attack())
    assert made.factor == pytest.approx(2 * 1.5 + 1 / 3)
    assert {row.component: round(row.factor, 2) for row in made.rows if row.factor > 1} == {
        "reference": 1.33,
        "twice": 1.5,
        "attack": 2.0,
    }
    text = made.render()
    assert "predicted: a step takes 2 passes and about 3.33 x the time of a plain one" in text
    assert max(map(len, text.splitlines())) <= 100


def test_the_plan_refuses_all_conflicts_at_once_with_reason_and_mend() -> None:
    class Reference(Constraint):
        """Compares with the reference."""

        reference = True

        def penalty(self, step: Any, outputs: Any) -> Any: ...

    with pytest.raises(UsageError) as caught:
        plan(Reference(), Attack(), fresh_head=True, reentrant_checkpointing=True)
    assert len(caught.value.mistakes) == 2
    assert "name a trained model as `reference:`" in str(caught.value)
    assert "use_reentrant: false" in str(caught.value)
    assert plan(Reference(), fresh_head=True, reference="runs/plain").rows


def test_coupled_rows_are_mentioned_under_accumulation() -> None:
    class Coupled(Constraint):
        """Looks at its batch."""

        couples_rows = True

        def penalty(self, step: Any, outputs: Any) -> Any: ...

    assert "coupled depends on which rows share a batch" in plan(Coupled(), accumulation=4).render()
    assert plan(Coupled()).notes == []


def test_each_kind_is_found_by_what_it_answers() -> None:
    class Average(Averager):
        """An average."""

        def average(self) -> Any: ...

    class Remember(Updater):
        """Remembers."""

        def consolidate(self, steps: Any, memory: Any) -> Any: ...

    class More(Augmenter):
        """More."""

        def augment_examples(self, examples: Any, generator: Any) -> Any: ...

    composition = compose(More(), Average(), Remember())
    assert composition.averager is composition["average"]
    assert composition.updater is composition["remember"]
    assert [name for name, _ in composition.augmenters] == ["more"]
    assert (composition.fusion, composition.passes) == (None, 1)


def test_what_is_no_instance_of_its_own_is_refused_all_at_once() -> None:
    one, shared = One(), Multiplier()
    with pytest.raises(UsageError) as caught:
        compose(one, One, "one", one, One(weight=shared), One(weight=shared))
    assert [str(mistake) for mistake in caught.value.mistakes] == [
        "components.1: the class One; expected an instance; write One()",
        "components.2: 'one', a str; expected a component; a recipe takes names; here, make an instance",
        "components.3: the same One as in components.0; expected an instance of its own",
        "components.5: the same Multiplier as in components.4; expected an instance of its own",
    ]
