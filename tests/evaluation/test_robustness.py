"""What attacks come to: survivors, successes and queries by hand, on rows that were wrong, partly right and right."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from alignkit import models
from alignkit.components import Attack, Attempt
from alignkit.data import Example
from alignkit.errors import PluginError, UsageError
from alignkit.evaluation import robustness
from alignkit.evaluation.compare import SplitMeasured, compare, evaluate, metrics_under_attack
from alignkit.evaluation.robustness import attack_metrics, attacked, brief, refusals, said, sides, spread
from alignkit.evaluation.score import predictions
from alignkit.evaluation.table import lines
from alignkit.evaluation.victim import Victim
from alignkit.tasks.chat import Chat
from alignkit.tasks.extractive_qa import ExtractiveQa
from alignkit.tasks.multiple_choice import MultipleChoice
from alignkit.tasks.ner import Ner
from alignkit.tasks.text_classification import TextClassification
from alignkit.testing.run_cases import base_model

Tags = list[str]


class Scripted(Attack):
    """Makes of each row what it was told to."""

    limit: int | None = None
    """Rows."""

    def __post_init__(self) -> None:
        self.script: dict[int, Attempt] = {}
        self.asked: list[list[int]] = []

    def attempt(self, victim: Any, examples: list[Example]) -> Any:
        self.asked.append([example.row for example in examples])
        return {"": [self.script[example.row] for example in examples]}


class Aimless(Scripted):
    """Has a goal of its own."""

    needs_score: ClassVar[bool] = False


class Keeping(Scripted):
    """Leaves predictions as they are."""

    measures_task: ClassVar[bool] = False


GOLD = ["B-PER O B-LOC", "O O O", "B-PER O B-LOC", "B-PER I-PER O", "B-LOC O O", "O O O"]
CLEAN = [
    "B-PER O B-LOC",  # right
    "O O O",  # right: there is nothing
    "B-PER O O",  # partly right
    "B-LOC O O",  # wrong
    "B-LOC O O",  # right
    "B-PER O O",  # wrong: something where there is nothing
]


@pytest.fixture
def tagged(tmp_path: Any) -> tuple[Victim, list[Example], list[dict[str, Any]]]:
    """Sentences, and what a model is said to have predicted for them."""
    task = Ner()
    rows = [{"tokens": ["ada", "saw", "rome"], "tags": tags.split()} for tags in GOLD]
    examples = [Example(fields, inputs=("tokens",), split="test", row=i) for i, fields in enumerate(rows)]
    task.prepare({"train": examples})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model, tokenizer = models.load(base_model(tmp_path / "base", task.auto_class), task)
    return Victim(task, model, tokenizer), examples, [predicted(tags) for tags in CLEAN]


def predicted(tags: str) -> dict[str, Any]:
    return {"tags": tags.split(), "probabilities": np.eye(5)[:3]}


def scripted(*attempts: tuple[int, Attempt], of: type[Scripted] = Scripted) -> Scripted:
    attack = of()
    attack.script = dict(attempts)
    attack.name = "scripted"
    return attack


def metrics_of(found: Any) -> dict[str, Any]:
    sums = dict(zip(found.names, found.matrix.sum(0), strict=True))
    return attack_metrics(sums)


# -- figures by hand ---------------------------------------------------------------------------------------------


def test_rows_that_were_wrong_are_not_attacked_and_have_not_survived(tagged):
    victim, examples, clean = tagged
    attack = scripted(
        (0, Attempt(predicted("B-PER O O"), queries=10, measures={"edits": 4.0})),  # broken: one entity is lost
        (1, Attempt(predicted("O O O"), queries=4)),  # survives
        (2, Attempt(predicted("O O O"), queries=2)),  # was partly right, and is wrong now
        (4, Attempt(predicted("B-LOC O O"), queries=8, measures={"edits": 2.0})),  # survives
    )
    found = attacked(attack, victim, examples, clean)[""]
    assert attack.asked == [[0, 1, 2, 4]]
    figures = metrics_of(found)
    assert figures["accuracy_under_attack"] == pytest.approx(2 / 6)  # rows 1 and 4 of six
    assert figures["attack_success"] == pytest.approx(1 / 3)  # row 0, of rows 0, 1 and 4
    assert figures["queries"] == pytest.approx(24 / 4)  # over those that were attacked
    assert figures["edits"] == pytest.approx(3.0)  # over those that it was measured of
    sums = dict(zip(found.names, found.matrix.sum(0), strict=True))
    own = {name: value for name, value in sums.items() if not name.startswith("attack/")}
    # gold has 3 persons and 3 places; predicted under attack are rows 0: PER; 3: LOC; 4: LOC; 5: PER
    assert victim.task.metrics(own)["f1"] == pytest.approx(2 * 2 / (4 + 6))
    assert [(line["row"], line["broken"]) for line in found.lines] == [(0, True), (1, False), (2, False), (4, False)]


def test_an_attack_may_say_itself_that_it_reached_its_goal(tagged):
    victim, examples, clean = tagged
    attack = scripted(
        (0, Attempt(clean[0], broken=True)), (1, Attempt(predicted("B-PER O O"), broken=False)),
        (2, Attempt(clean[2], broken=True)), (4, Attempt(clean[4])),
        of=Keeping,
    )  # fmt: skip
    found = attacked(attack, victim, examples, clean)[""]
    figures = metrics_of(found)
    assert figures["attack_success"] == pytest.approx(1 / 3), "a row that was partly right was not there to be broken"
    assert figures["accuracy_under_attack"] == pytest.approx(2 / 6)
    assert all(name.startswith("attack/") for name in found.names), "the task's metrics would say nothing"


def test_an_attack_with_a_goal_of_its_own_is_put_to_every_row(tagged):
    victim, examples, clean = tagged
    attack = scripted(*((i, Attempt({}, broken=i < 2, measures={"loss": float(i)})) for i in range(6)), of=Aimless)
    figures = metrics_of(attacked(attack, victim, examples, clean)[""])
    assert figures["attack_success"] == pytest.approx(2 / 6)
    assert figures["accuracy_under_attack"] == pytest.approx(4 / 6)
    assert figures["loss"] == pytest.approx(2.5)


def test_rows_that_had_reached_the_goal_before_are_neither_broken_nor_survivors(tagged):
    victim, examples, clean = tagged
    script = {i: Attempt({}, broken=i < 3, reached=i == 0) for i in range(6)}  # row 0 had reached it, 1 and 2 do
    found = attacked(scripted(*script.items(), of=Aimless), victim, examples, clean)[""]
    figures = metrics_of(found)
    assert figures["attack_success"] == pytest.approx(2 / 5)
    assert figures["accuracy_under_attack"] == pytest.approx(3 / 6)
    assert [line["broken"] for line in found.lines] == [False, True, True, False, False, False]


def test_where_all_had_reached_the_goal_before_the_success_is_not_a_number(tagged):
    victim, examples, clean = tagged
    attack = scripted(*((i, Attempt({}, reached=True)) for i in range(6)), of=Aimless)
    figures = metrics_of(attacked(attack, victim, examples, clean)[""])
    assert np.isnan(figures["attack_success"])
    assert figures["accuracy_under_attack"] == 0.0


def test_of_no_rows_that_were_right_the_success_is_not_a_number(tagged):
    victim, examples, _ = tagged
    attack = scripted()
    found = attacked(attack, victim, examples[:1], [predicted("O O O")])[""]
    assert attack.asked == [[]], "asked, so that its settings are known"
    figures = metrics_of(found)
    assert figures["accuracy_under_attack"] == 0.0
    assert np.isnan(figures["attack_success"])
    assert np.isnan(figures["queries"])


def test_rows_come_in_parts_and_in_order(tagged, monkeypatch):
    victim, examples, clean = tagged
    monkeypatch.setattr(robustness, "ROWS", 3)
    attack = scripted(*((i, Attempt(clean[i], queries=i + 1)) for i in range(6)))
    found = attacked(attack, victim, examples, clean)[""]
    assert attack.asked == [[0, 1, 2], [4]]
    column = found.names.index("attack/queries")
    assert found.matrix[:, column].tolist() == [1, 2, 3, 0, 5, 0]


def test_a_measure_may_not_be_called_as_the_hosts_are(tagged):
    victim, examples, clean = tagged

    class Overwriting(Scripted):
        """Measures what the host reports."""

        def attempt(self, victim, examples):
            return {"": [Attempt({}, measures={"queries": 0.0}) for _ in examples]}

    with pytest.raises(PluginError, match="its measure 'queries' is the host's"):
        attacked(scripted(of=Overwriting), victim, examples, clean)


def test_an_attempt_for_each_example_is_expected(tagged):
    victim, examples, clean = tagged

    class Short(Scripted):
        """Makes too few."""

        def attempt(self, victim, examples):
            return {"": [Attempt({})]}

    with pytest.raises(PluginError, match=r"attack 'scripted' \(.*Short\): 1 attempts at 4 examples"):
        attacked(scripted(of=Short), victim, examples, clean)


def test_a_limit_takes_rows_at_even_distances(tagged):
    assert spread(10, 4) == [0, 2, 5, 7]
    assert spread(3, 4) == spread(3, None) == [0, 1, 2]
    victim, examples, clean = tagged
    attack = scripted((0, Attempt(clean[0])), (2, Attempt(clean[2])), (4, Attempt(clean[4])))
    attack.limit = 3
    assert len(attacked(attack, victim, examples, clean)[""].matrix) == 3
    assert attack.asked == [[0, 2, 4]]


def test_an_answer_is_read_in_the_context_that_was_attacked(tmp_path):
    """Letters were put in before the answer, so it stands three characters further on."""
    task = ExtractiveQa()
    fields = {"question": "where ?", "context": "ada works in rome", "answers": [{"text": "rome", "answer_start": 13}]}
    example = Example(fields, inputs=("question", "context"), split="test", row=0)
    task.prepare({"train": [example]})
    model, tokenizer = models.load(base_model(tmp_path / "base", task.auto_class), task)
    changed = example.replace(context="adaxxx works in rome")
    prediction = {"start": 16, "end": 20, "score": 1.0}
    attack = scripted((0, Attempt(prediction, changed)))
    found = attacked(attack, Victim(task, model, tokenizer), [example], [{"start": 13, "end": 17, "score": 1.0}])[""]
    assert metrics_of(found)["accuracy_under_attack"] == 1.0
    assert found.matrix[:, found.names.index("exact")].tolist() == [1.0]
    (line,) = found.lines
    assert brief(line["under_attack"]) == brief(line["predicted"]) == "rome"
    assert line["attacked"] == {"question": "where ?", "context": "adaxxx works in rome"}


def test_what_an_attack_says_of_both_sides_takes_the_place_of_the_tasks_answers(tagged):
    victim, examples, clean = tagged
    own = {"target_loss": 6.0}, {"target_loss": 5.0}
    (line, *_) = attacked(scripted((0, Attempt(clean[0], said=own))), victim, examples[:1], clean[:1])[""].lines
    assert (line["predicted"], line["under_attack"]) == own


def test_before_and_after_are_paired_though_each_was_attacked_in_its_own_way(tagged):
    victim, examples, clean = tagged
    task = victim.task

    class Both(Scripted):
        """One script for each model."""

    def measured(script, predictions):
        found = attacked(scripted(*script, of=Both), victim, examples, predictions)[""]
        return type("M", (), {"splits": {"test against scripted": found_split(found)}})()

    def found_split(found):
        return SplitMeasured(found.names, found.matrix, formula=metrics_under_attack(task))

    other = examples[0].replace(tokens=["ada", "saw", "rmoe"])
    before = measured(
        [(0, Attempt(predicted("O O O"), other, 3)), (1, Attempt(predicted("B-PER O O"), queries=2)),
         (2, Attempt(clean[2])), (4, Attempt(predicted("O O O"), measures={"edits": 1.0}))], clean,
    )  # fmt: skip
    gold = [predicted(tags) for tags in GOLD]
    after = measured([(i, Attempt(gold[i], queries=9)) for i in range(6)], gold)
    found = compare(before, after, task, replicates=200)
    split = {side: found[side]["test against scripted"] for side in ("before", "after", "difference")}
    assert split["before"]["accuracy_under_attack"]["value"] == 0.0
    assert split["after"]["accuracy_under_attack"]["value"] == 1.0
    difference = split["difference"]["accuracy_under_attack"]
    assert (difference["value"], difference["low"], difference["high"], difference["n"]) == (1.0, 1.0, 1.0, 6)
    assert split["difference"]["attack_success"]["value"] == -1.0
    assert split["after"]["queries"]["value"] == 9.0
    assert split["before"]["queries"]["value"] == pytest.approx(5 / 4)
    assert "edits" not in split["after"] or split["after"]["edits"]["value"] is None
    rows = lines(found, "f1", True)
    assert {line.metric: line.verdict for line in rows if line.metric == "attack_success"} == {
        "attack_success": "better"
    }


# -- whole evaluations -------------------------------------------------------------------------------------------


class Shout(Attack):
    """Says everything again in a language of its own, once and twice."""

    def attempt(self, victim, examples):
        def twice(n):
            changed = [example.map_text(lambda text: " ".join([text[::-1]] * n)) for example in examples]
            predicted = victim.predict(changed)
            return [Attempt(p, e, queries=n) for e, p in zip(changed, predicted, strict=True)]

        return {"1": twice(1), "2": twice(2)}


def test_an_evaluation_has_a_split_for_each_setting_of_each_attack(tagged):
    victim, examples, _ = tagged
    arguments = (victim.task, victim.model, victim.tokenizer)
    splits = {"validation": examples[:2], "test": examples, "test/other": examples[3:]}
    measured = evaluate(*arguments, splits, attacks=[Shout(), Shout(limit=2)])
    names = [name for name in measured.splits if " against " in name]
    assert names == [
        f"{split} against {attack} {n}"
        for attack in ("shout", "shout-2")
        for split in ("test", "test/other")
        for n in "12"
    ]
    assert len(measured.splits["test against shout 1"].matrix) == 6
    assert len(measured.splits["test against shout-2 2"].matrix) == 2
    again = evaluate(*arguments, splits, attacks=[Shout(), Shout(limit=2)])
    assert str(again.metrics) == str(measured.metrics)
    alone = evaluate(*arguments, {"validation": examples}, attacks=[Shout()])
    assert "validation against shout 1" in alone.splits
    predicted = predictions(*arguments, examples)
    right = [victim.task.score(e, p) == 1.0 for e, p in zip(examples, predicted, strict=True)]
    found = measured.metrics["test against shout 1"]
    assert found["accuracy_under_attack"] <= sum(right) / 6
    assert set(found) >= {"f1", "precision", "accuracy_under_attack", "attack_success", "queries"}
    for line in measured.attempts:
        assert line["measured"] in names
        assert line["attacked"] != line["input"]


def test_what_a_task_cannot_be_put_to_is_said_before_anything_is_asked():
    attack = scripted()
    chat = Chat()
    chat.name = "chat"
    (mistake,) = refusals([attack], chat)
    assert (mistake.where, mistake.found) == ("attack scripted", "task chat does not say which predictions are right")
    with pytest.raises(UsageError, match="attack scripted: task chat does not say"):
        evaluate(chat, None, None, {"test": []}, attacks=[attack])
    assert not list(refusals([scripted(of=Aimless)], chat))


# -- for people --------------------------------------------------------------------------------------------------


def test_two_versions_of_a_text_are_told_apart_word_by_word():
    before, after = sides("she wrote to bob", "she worte to bobby now")
    assert before == [("she", False), ("wrote", True), ("to", False), ("bob", True)]
    assert after == [("she", False), ("worte", True), ("to", False), ("bobby now", True)]
    assert sides(["a", "b"], ["a", "b"]) == ([("a b", False)], [("a b", False)])
    assert sides("take it out", "it")[1] == [("it", False)]
    messages = [{"role": "user", "content": "hi"}]
    assert sides(messages, messages)[0] == [("user: hi", False)]


def test_what_both_have_is_cut_where_it_is_long():
    words = [f"w{i}" for i in range(60)]
    changed = [*words[:20], "x", *words[21:50], "y", *words[51:]]
    before, _ = sides(words, changed, around=3)
    assert [text for text, _ in before] == [
        "… w17 w18 w19", "w20", "w21 w22 w23 … w47 w48 w49", "w50", "w51 w52 w53 …",
    ]  # fmt: skip


def test_predictions_are_said_in_a_line():
    ner, text, choice = Ner(), TextClassification(), MultipleChoice()
    ner.labels, text.labels = ["O", "B-PER"], ["bad", "good"]
    tagged = Example({"tokens": ["ada", "sings"], "tags": ["B-PER", "O"]}, inputs=("tokens",))
    found = said(ner, tagged, {"tags": ["B-PER", "O"], "probabilities": np.eye(2)})
    assert list(found) == ["entities"]
    assert brief(found) == "ada (PER)"
    assert brief(said(ner, tagged, {"tags": ["O", "O"], "probabilities": np.eye(2)})) == "no entities"
    row = Example({"text": "fine", "label": "bad"}, inputs=("text",))
    assert said(text, row, {"labels": ["good"], "probabilities": [0.1, 0.9]}) == {"label": "good"}
    text.several = True
    assert brief(said(text, row, {"labels": [], "probabilities": [0.1, 0.2]})) == "none"
    asked = choice.parse({"question": "who ?", "choices": ["ada", "bob"], "label": 0}, "x:1")
    assert brief(said(choice, asked, {"probabilities": [0.2, 0.8]})) == "bob"
    assert brief({"answer": ""}) == "no answer"
    assert brief({"target_loss": 5.6213, "reply": "in\nrome"}) == "target_loss 5.621, in rome"
    assert brief(None) == "nothing"
    assert said(text, row, {}) is None
