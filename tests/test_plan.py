"""The plan: what a run will do and cost, and what cannot go together."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from alignkit import Recipe, UsageError
from alignkit.plan import Plan, plan_of


@pytest.fixture
def planned(plain_run: Path, ner_data: Path) -> Callable[..., Plan]:
    """The plan of a recipe on a trained model, with some fields."""

    def plan(**fields: Any) -> Plan:
        data = {"train": "train.conll", "validation": "dev.conll"}
        recipe = Recipe(**{"model": str(plain_run), "task": "ner", "data": data, "base": ner_data, **fields})
        from alignkit.data.load import load

        return plan_of(recipe, examples=load(recipe.data, recipe.task, recipe.base)["train"])[1]

    return plan


def test_without_components_a_step_is_a_plain_step(planned: Callable[..., Plan]) -> None:
    plan = planned()
    assert (plan.passes, plan.factor) == (1, 1.0)
    assert [row.component for row in plan.rows] == ["supervised"]
    assert "a step takes 1 pass and about 1.00 x the time of a plain one" in plan.render()


def test_costs_add_up_as_the_components_declare_them(planned: Callable[..., Plan]) -> None:
    plan = planned(adversary="fgm", constraints=["kl-reference"], filters=["length"], averaging="ema")
    assert plan.passes == 2
    assert plan.factor == pytest.approx(2 + 1 / 3)  # two passes, and one forward pass of the reference
    alone = {row.component: row.factor for row in plan.rows}
    assert alone["fgm"] == 2.0
    assert alone["kl-reference"] == pytest.approx(4 / 3)
    assert alone["ema"] == 1.0


def test_views_cost_the_share_of_rows_that_have_one(planned: Callable[..., Plan], tmp_path: Path) -> None:
    (tmp_path / "swaps.tsv").write_text("paris\trome\n", "utf-8")
    everywhere = planned(constraints=[{"use": "counterfactual", "lists": [str(tmp_path / "swaps.tsv")]}])
    assert everywhere.factor == pytest.approx(2.0)
    (tmp_path / "swaps.tsv").write_text("nowhere\tnever\n", "utf-8")
    nowhere = planned(constraints=[{"use": "counterfactual", "lists": [str(tmp_path / "swaps.tsv")]}])
    assert nowhere.factor == pytest.approx(1.0)


def test_a_plan_fits_a_terminal_and_names_phases_in_order(planned: Callable[..., Plan], plain_run: Path) -> None:
    text = planned(
        filters=["duplicates"],
        adversary="fgm",
        updater="replay",
        fusion={"use": "linear", "members": [str(plain_run)]},
    ).render()
    assert max(map(len, text.splitlines())) <= 100
    places = [text.index(phase) for phase in ("\n  data\n", "\n  every step\n", "\n  around training\n")]
    assert sorted(places) == places
    assert text.index("\n  after training\n") > places[-1]


def test_everything_that_cannot_go_together_is_said_at_once(planned: Callable[..., Plan]) -> None:
    with pytest.raises(UsageError) as caught:
        planned(
            adversary="fgm",
            fusion={"use": "linear", "members": ["nowhere/a", "nowhere/b"]},
            reference="nowhere/c",
            peft={"method": "prompt-tuning"},
        )
    places = [mistake.where for mistake in caught.value.mistakes]
    assert places == [
        "fusion linear",
        "fusion.members 'nowhere/a'",
        "fusion.members 'nowhere/b'",
        "reference 'nowhere/c'",
    ]


def test_what_only_takes_part_in_the_evaluation_is_asked_too(planned: Callable[..., Plan], tmp_path: Path) -> None:
    under = [{"use": "mentions", "persons": [str(tmp_path / "nope.tsv")]}]
    with pytest.raises(UsageError) as caught:
        planned(evaluation={"under": under})
    assert [mistake.where for mistake in caught.value.mistakes] == [
        "augmenter mentions",
        f"swap list {tmp_path / 'nope.tsv'}",
    ]
    with pytest.raises(UsageError, match=r"nope\.tsv"):
        planned(evaluation={"gaps": [{"use": "counterfactual", "lists": [str(tmp_path / "nope.tsv")]}]})
    planned(evaluation={"under": ["typos"], "gaps": ["counterfactual"]}, constraints=["counterfactual"])


def test_weights_of_a_fusion_are_one_more_than_its_members(planned: Callable[..., Plan], plain_run: Path) -> None:
    fusion = {"use": "linear", "members": [str(plain_run)], "weights": [1.0]}
    with pytest.raises(UsageError, match=r"fusion.weights: 1 weights; expected 2: the trained model's, then one"):
        planned(fusion=fusion)
    with pytest.raises(UsageError, match="sum to 0"):
        planned(fusion={**fusion, "weights": [1.0, -1.0]})


def test_perturbations_refuse_reentrant_checkpointing(planned: Callable[..., Plan]) -> None:
    training = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": True}}
    with pytest.raises(UsageError, match=r"adversary fgm: .* do not pass reentrant .*; expected use_reentrant: false"):
        planned(adversary="fgm", training=training)


def test_members_for_other_labels_are_refused_before_training(
    planned: Callable[..., Plan], plain_run: Path, tmp_path: Path
) -> None:
    import shutil

    shutil.copytree(plain_run / "model", tmp_path / "other")
    config = tmp_path / "other" / "config.json"
    config.write_text(config.read_text("utf-8").replace("B-LOC", "B-GPE"), "utf-8")
    with pytest.raises(UsageError, match="labels differ: number 1 is 'B-LOC' and 'B-GPE'"):
        planned(fusion={"use": "linear", "members": [str(tmp_path / "other")]})
