"""The plan: what a run will do and cost, and what cannot go together."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from alignkit_constraints import Counterfactual, KLEthics, KLReference
from transformers import TrainerCallback

import alignkit
from alignkit import Recipe, UsageError
from alignkit.checking import checked
from alignkit.components import Augmenter
from alignkit.compose import Composition
from alignkit.data import Example
from alignkit.plan import SAMPLED, Plan, Setting, make_plan
from alignkit.preflight import plan_of
from alignkit.tasks.chat import Chat
from alignkit.tasks.stock import StockTask


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


def test_a_component_whose_views_the_reference_reads_asks_it_once_more() -> None:
    """The pass over the rows themselves is shared; of these, half are marked."""
    rows = [
        Example({"prompt": "where ?", "completion": "in rome", "harmful": x}, inputs=("prompt",)) for x in ("", "y")
    ]
    task = Chat()
    kept, taught = KLReference(), KLEthics(marked="harmful")
    for constraints, passes in (([kept, KLReference(direction="js")], 1), ([taught], 0.5), ([kept, taught], 1.5)):
        composition = Composition(constraints, task)
        setting = Setting(task, composition.components, composition.objective, examples=rows)
        assert make_plan(composition, setting).factor == pytest.approx(1 + passes / 3)


def test_views_are_counted_in_the_rows_that_augmenters_make(encoder: Path, tmp_path: Path) -> None:
    lines = [f"{'he ' if number % 5 == 0 else ''}was film {number}\t{'ab'[number % 2]}" for number in range(80)]
    (tmp_path / "rows.tsv").write_text("\n".join(["text\tlabel", *lines]) + "\n", "utf-8")
    recipe = Recipe(
        model=str(encoder),
        task="text-classification",
        data={"train": "rows.tsv", "test": {"path": "rows.tsv", "rows": ":4"}},
        augmenters=[{"use": "mentions", "cased": False}],
        constraints=[{"use": "counterfactual", "cased": False}],
        training={"max_steps": 1, "use_cpu": True},
        evaluation={"replicates": 10},
        output="run",
        base=tmp_path,
    )
    trained: list[Any] = []

    class Rows(TrainerCallback):
        def on_train_begin(self, *_: Any, train_dataloader: Any, **__: Any) -> None:
            trained.extend(train_dataloader.dataset)

    plan = checked(recipe).plan
    alignkit.train(recipe, callbacks=[Rows()])
    share = sum(row["views"] is not None for row in trained) / len(trained)
    assert plan.factor == pytest.approx(1 + share)
    assert share > 0.4  # one row in five before
    growth = len(trained) / 80
    assert plan.notes == [f"with what augmenters add, an epoch takes about {growth:.2g} times the steps of a plain one"]


def test_of_a_large_split_augmenters_are_asked_about_a_sample() -> None:
    asked: list[int] = []

    class Doubled(Augmenter):
        """Every example once more, with somebody in it."""

        def augment_examples(self, examples: list[Example], generator: Any) -> list[Example]:
            asked.append(len(examples))
            return [example.replace(text="he was") for example in examples]

    rows = [Example({"text": "was"}, inputs=("text",)) for _ in range(5000)]
    composition = Composition([Doubled(), Counterfactual()], StockTask())
    setting = Setting(composition.task, composition.components, composition.objective, examples=rows)
    plan = make_plan(composition, setting)
    assert asked == [SAMPLED]
    assert plan.factor == pytest.approx(1.5)
    assert plan.notes == ["with what augmenters add, an epoch takes about 2 times the steps of a plain one"]


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
            constraints=["kl-reference"],
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
