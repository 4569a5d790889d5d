"""Limits on penalties: refused and noted before training, logged, resumed and drawn in it, owned up to after it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from alignkit_constraints import (
    Adaptive,
    Bregman,
    Budget,
    Confidence,
    Counterfactual,
    GroupFairness,
    KLReference,
    PIDBudget,
    Warmup,
)
from transformers import TrainerCallback

import alignkit
from alignkit import limits
from alignkit.components import Component
from alignkit.compose import Composition
from alignkit.plan import Setting, make_plan
from alignkit.report.plots import curves_plot
from alignkit.report.weights_plot import weights_plot
from alignkit.tasks.ner import Ner
from alignkit.testing.training import make_trainer


def made(components: Sequence[Component], **known: Any) -> tuple[Composition, Setting]:
    composition = Composition(components, Ner())
    return composition, Setting(composition.task, composition.components, composition.objective, **known)


def refused(*components: Component) -> list[str]:
    return [str(mistake) for question in limits.conflicts(*made(components)) for mistake in question()]


def noted(*components: Component, **known: Any) -> list[str]:
    return list(limits.notes(*made(components, **known)))


# -- before training ---------------------------------------------------------------------------------------------


def test_a_limit_that_a_penalty_cannot_exceed_is_refused() -> None:
    (found,) = refused(KLReference(direction="js", weight=Budget(limit=0.7)))
    assert "constraint kl-reference" in found
    assert "a limit of 0.7, which the penalty cannot exceed: it is 0.6931 at most" in found
    assert refused(KLReference(direction="js", weight=Budget(limit=0.6))) == []
    assert refused(KLReference(direction="forward", weight=Budget(limit=0.7))) == []
    assert len(refused(Counterfactual(divergence="absolute", weight=PIDBudget(limit=1.0)))) == 1
    assert len(refused(GroupFairness(weight=Adaptive(target=1.5)))) == 1


def test_two_limits_on_one_penalty_are_refused() -> None:
    (found,) = refused(KLReference(weight=Budget(limit=0.1)), KLReference(weight=PIDBudget(limit=0.05)))
    assert "the same penalty as kl-reference-2, which is held at 0.05 already: 0.1 can never matter" in found
    other = KLReference(direction="reverse", weight=Budget(limit=0.05))
    assert refused(KLReference(weight=Budget(limit=0.1)), other) == []
    assert refused(KLReference(weight=0.1), KLReference(weight=Budget(limit=0.05))) == []


def test_limits_that_may_contradict_each_other_are_noted() -> None:
    near, far = KLReference(weight=Budget(limit=0.05)), Counterfactual(weight=Budget(limit=0.02))
    (note,) = noted(near, far)
    assert "kl-reference (at most 0.05) is met by the model as it starts" in note
    assert "counterfactual (at most 0.02) may not be until the model has left" in note
    (note,) = noted(Confidence(weight=Budget(limit=0.1)), Counterfactual(weight=Budget(limit=0.02)))
    assert note.startswith("the limits of confidence and counterfactual share one loss")
    (note,) = noted(KLReference(weight=Budget(limit=0.05)), Counterfactual(weight=Budget(limit=0.02)), reference="x")
    assert note.startswith("the limits of kl-reference and counterfactual share one loss")


def test_limits_that_the_model_meets_as_it_starts_can_all_be_met() -> None:
    one, other = KLReference(weight=Budget(limit=0.05)), KLReference(direction="reverse", weight=Budget(limit=0.02))
    assert noted(one, other) == []
    assert noted(KLReference(weight=Budget(limit=0.05)), Counterfactual(weight=Warmup())) == []
    assert noted(KLReference(weight=Budget(limit=0.05)), Bregman(weight=Budget(limit=0.01))) == []


def test_dropout_is_noted_where_it_costs() -> None:
    def noted(weight: Any, dropout: bool) -> list[str]:
        constraint = KLReference(weight=weight)
        return list(constraint.notes(made([constraint], dropout=dropout)[1]))

    (note,) = noted(Budget(limit=0.05), True)
    assert note.startswith("kl-reference: dropout alone makes this penalty more than 0")
    assert noted(Budget(limit=0.05), False) == noted(0.5, True) == []


# -- after training ----------------------------------------------------------------------------------------------


def unmet(weight: Any, costs: Sequence[float], floors: dict[str, float] | None = None) -> list[str]:
    composition, _ = made([KLReference(weight=weight)])
    history = [{"step": 10 * i, "penalty/kl-reference": c} for i, c in enumerate(costs, 1)]
    return limits.unmet(composition, history, floors)


def test_a_limit_that_was_not_met_is_said_with_a_reason() -> None:
    above = [0.0, 0.04, 0.2, 0.2, 0.2, 0.2, 0.07, 0.06]
    (said,) = unmet(Budget(limit=0.05), above)
    assert said.startswith("kl-reference: 0.065 on average over the last quarter of training, above its limit of 0.05;")
    assert "train longer" in said
    (said,) = unmet(Adaptive(target=0.05), above)
    assert "above its target of 0.05;" in said
    exhausted = Budget(limit=0.05, initial=5.0, maximum=5.0)
    assert "its weight is at its maximum" in unmet(exhausted, above)[0]
    assert "turn dropout off" in unmet(Budget(limit=0.03), [0.04] * 8)[0]
    known = unmet(Budget(limit=0.03), [0.04] * 8, {"kl-reference": 0.035})[0]
    assert "dropout alone made 0.035 of it in the first step" in known
    assert "raise `limit` above that" in known
    assert "dropout alone made" not in unmet(Budget(limit=0.03), [0.04] * 8, {"kl-reference": 0.02})[0]


def test_of_a_training_that_was_short_it_is_only_said_that_it_was() -> None:
    composition, _ = made([KLReference(weight=Budget(limit=0.05, initial=5.0, maximum=5.0, smoothing=0.9))])
    for last, said in ((3, "train longer"), (29, "train longer"), (30, "its weight is at its maximum")):
        history = [{"step": step, "penalty/kl-reference": 0.2} for step in range(1, last + 1)]
        assert said in limits.unmet(composition, history)[0]
    assert PIDBudget(limit=0.05, smoothing=0.9, delay=10).settled == 40


def test_the_plan_says_which_constraints_the_model_meets_as_it_starts() -> None:
    constraints = [KLReference(weight=Budget(limit=0.01)), Counterfactual(weight=Budget(limit=0.01))]
    assert set(make_plan(*made(constraints)).anchored) == {"kl-reference"}
    assert make_plan(*made(constraints, reference="other")).anchored == set()


def test_what_dropout_alone_makes_is_known_where_the_model_is_its_own_reference(tmp_path: Path) -> None:
    def trainer(folder: str, **options: Any) -> Any:
        return make_trainer(
            "bert-sequence-classification", tmp_path / folder, [KLReference(weight=Budget(limit=0.01))], max_steps=3,
            save_strategy="steps", save_steps=2, logging_steps=1, **options,
        )  # fmt: skip

    whole = trainer("whole")
    whole.train()
    assert whole.first_costs["kl-reference"] == pytest.approx(whole.state.log_history[0]["penalty/kl-reference"])
    resumed = trainer("whole")
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    assert resumed.first_costs == {}


def test_a_limit_that_was_met_is_not_spoken_of() -> None:
    assert unmet(Budget(limit=0.05), [0.5] * 6 + [0.05, 0.055]) == []
    assert unmet(Budget(limit=0.05), []) == []
    assert unmet(Warmup(), [9.0] * 8) == []
    assert unmet(0.5, [9.0] * 8) == []


# -- logged, resumed, drawn --------------------------------------------------------------------------------------


class Interrupt(TrainerCallback):
    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == 5:
            raise KeyboardInterrupt


@pytest.mark.parametrize(
    "make", [lambda: Budget(limit=0.01), lambda: PIDBudget(limit=0.01), lambda: Adaptive(target=0.01)]
)
def test_a_training_that_goes_on_has_the_multiplier_it_would_have_had(make: Callable[[], Any], tmp_path: Path) -> None:
    def trainer(folder: str, **options: Any) -> Any:
        return make_trainer(
            "bert-sequence-classification", tmp_path / folder, [KLReference(weight=make())], max_steps=8, save_steps=4,
            save_strategy="steps", learning_rate=1e-2, **options,
        )  # fmt: skip

    def multipliers(trainer: Any) -> list[float]:
        return [entry["weight/kl-reference"] for entry in trainer.state.log_history if "loss" in entry]

    whole = trainer("whole")
    whole.train()
    with pytest.raises(KeyboardInterrupt):
        trainer("parts", callbacks=[Interrupt()]).train()
    resumed = trainer("parts")
    resumed.train(resume_from_checkpoint=True)
    assert multipliers(resumed) == multipliers(whole)
    assert len(set(multipliers(whole))) == 8


HISTORY = [
    {"step": s, "loss": 1.0, "penalty/kl-reference": 0.01 * s, "weighted/kl-reference": 0.1, "weight/kl-reference": s}
    for s in range(1, 9)
]


def test_penalty_limit_and_multiplier_are_drawn_together_and_once() -> None:
    drawn = weights_plot(HISTORY, {"kl-reference": ("limit", 0.05)})
    for text in ("kl-reference penalty", "kl-reference weight", "limit 0.05"):
        assert text in drawn
    assert "limit" not in weights_plot(HISTORY, {})
    target = KLReference(weight=Adaptive(target=0.05))
    drawn = weights_plot(HISTORY, limits.called_bounds(made([target])[0]))
    assert "target 0.05" in drawn
    assert "limit" not in drawn
    assert "kl-reference" not in curves_plot(HISTORY, "f1")
    assert "Loss" in curves_plot(HISTORY, "f1")
    plain = [{k: v for k, v in entry.items() if not k.startswith("weight/")} for entry in HISTORY]
    assert weights_plot(plain, {}) == ""
    assert "kl-reference penalty" in curves_plot(plain, "f1")


@pytest.mark.parametrize("number", [1, 2, 4, 5])
def test_several_are_drawn_side_by_side(number: int) -> None:
    names = [f"constraint-{i}" for i in range(number)]
    history = [{"step": s} | {f"{k}/{n}": 0.1 * s for n in names for k in ("penalty", "weight")} for s in (1, 2, 3)]
    drawn = weights_plot(history, dict.fromkeys(names, ("limit", 0.2)))
    assert all(f"{name} weight" in drawn for name in names)
    assert drawn.count("limit 0.2") == number


def test_a_run_that_misses_its_limit_says_so(plain_run: Path, ner_data: Path, tmp_path: Path) -> None:
    said: list[str] = []
    recipe = alignkit.Recipe(
        model=str(plain_run),
        task="ner",
        data={"train": "test.conll", "validation": "dev.conll"},
        constraints=[{"use": "kl-reference", "weight": {"use": "budget", "limit": 1e-6, "maximum": 0.1}}],
        evaluation={"replicates": 100},
        training={"max_steps": 8, "learning_rate": 5e-3, "per_device_train_batch_size": 8, "logging_steps": 1},
        output=str(tmp_path / "run"),
        base=ner_data,
    )
    alignkit.train(recipe, say=said.append)
    text = re.compile(r"kl-reference: \S+ on average over the last quarter of training, above its limit of 1e-06")
    assert any(text.search(line) for line in said)
    report = (tmp_path / "run" / "report.html").read_text("utf-8")
    assert text.search(report)
    assert "limit 1e-06" in report
    assert "kl-reference weight" in report
    assert json.loads((tmp_path / "run" / "metrics.json").read_text("utf-8"))["task"] == "ner"
