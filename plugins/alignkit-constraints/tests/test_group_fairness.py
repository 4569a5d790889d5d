"""Gaps between groups against fairlearn's (fixtures/fairlearn.json); what is refused; the penalty on tiny models."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from alignkit_constraints import GroupFairness
from alignkit_constraints.groups import codes, estimated, group_gaps, names_of

from alignkit.compose import Composition
from alignkit.data import Example
from alignkit.errors import UsageError
from alignkit.plan import Setting, make_plan
from alignkit.tasks.chat import Chat
from alignkit.tasks.multiple_choice import MultipleChoice
from alignkit.tasks.ner import Ner
from alignkit.tasks.prompted_classification import PromptedClassification
from alignkit.tasks.text_classification import TextClassification
from alignkit.testing.models import collate, examples, tiny
from alignkit.testing.training import make_rows, make_trainer

HEAD = "bert-sequence-classification"
CASES = json.loads(Path(__file__).with_name("fixtures").joinpath("fairlearn.json").read_text("utf-8"))["cases"]
CRITERIA = ("demographic-parity", "equalised-odds")


class Fixed(torch.nn.Module):
    """A classifier that says what it is told to."""

    def __init__(self, logits: torch.Tensor):
        super().__init__()
        self.logits, self.embedding = torch.nn.Parameter(logits), torch.nn.Embedding(2, 4)
        self.config = SimpleNamespace(is_encoder_decoder=False)

    def get_input_embeddings(self) -> torch.nn.Module:
        return self.embedding

    def forward(self, input_ids, labels):
        from transformers.modeling_outputs import SequenceClassifierOutput

        loss = self.logits.sum() * 0 + self.embedding(input_ids).sum() * 0
        return SequenceClassifierOutput(loss=loss, logits=self.logits)


def penalty(case, constraint, make_step, classes=()):
    """The constraint's term on a case's predictions."""
    labels = torch.tensor(case["labels"])
    labels = labels.float() if labels.dim() == 2 else labels
    inputs = {
        "input_ids": torch.ones(len(labels), 3, dtype=torch.long),
        "labels": labels,
        "columns": {"group": torch.tensor(case["groups"])},
    }
    step = make_step(Fixed(torch.tensor(case["logits"])), inputs, [constraint])
    step.context.task.labels = list(classes)
    step.loss()
    return step.terms["group-fairness"]


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize("reduction", ["maximum", "mean"])
def test_of_one_class_it_is_what_fairlearn_says(name, criterion, reduction, make_step):
    for c, expected in enumerate(CASES[name]["classes"]):
        constraint = GroupFairness(criterion=criterion, reduction=reduction, outcome=str(c))
        term = penalty(CASES[name], constraint, make_step, classes="012")
        assert term.mean.item() == pytest.approx(expected[f"{criterion} {reduction}"], abs=1e-6)
        assert term.count == len(CASES[name]["labels"])


@pytest.mark.parametrize("name", CASES)
def test_of_all_classes_it_is_the_largest_that_fairlearn_finds(name, make_step):
    case = CASES[name]
    found = {c: penalty(case, GroupFairness(criterion=c), make_step).mean.item() for c in CRITERIA}
    largest = {c: max(gaps[f"{c} maximum"] for gaps in case["classes"]) for c in CRITERIA}
    if case["classes among the rows of each label"]:
        largest["equalised-odds"] = max(case["classes among the rows of each label"])
    assert found == pytest.approx(largest, abs=1e-6)


@pytest.mark.parametrize("reduction", ["maximum", "mean"])
def test_its_gradient_is_that_of_finite_differences(reduction):
    generator = torch.Generator().manual_seed(0)
    p = torch.rand(12, 2, generator=generator, dtype=torch.float64).requires_grad_(True)
    groups = torch.tensor([0, 1, 2, -1] * 3)
    assert torch.autograd.gradcheck(lambda x: group_gaps(x, groups, reduction), p)


def test_rows_without_a_group_are_left_out():
    p, groups = torch.tensor([[0.9], [0.1], [0.5]]), torch.tensor([0, 1, -1])
    assert group_gaps(p, groups).tolist() == pytest.approx([0.8])
    assert group_gaps(p[[0, 2]], groups[[0, 2]]) is None
    assert group_gaps(p[:0], groups[:0]) is None


def test_values_are_groups_whatever_their_type():
    assert names_of(["b", None, "a", " ", "b"]) == ["b", None, "a", None, "b"]
    assert names_of(torch.tensor([3, 5, 3])) == ["3", "5", "3"]
    assert names_of([1.0, None, 2.0, float("nan")]) == ["1", None, "2", None]
    assert names_of(torch.tensor([True, False])) == ["True", "False"]
    assert codes(["b", None, "a"], ["a", "b"]).tolist() == [1, -1, 0]
    for odd in (torch.tensor([0.5, 1.0]), [["a"], ["b"]]):
        with pytest.raises(UsageError, match="expected a string or an integer"):
            names_of(odd)


def test_a_mean_has_the_value_of_before_and_the_gradient_of_now():
    sums = torch.tensor([[3.0], [1.0], [0.0]], requires_grad=True)
    rows, past_rows = torch.tensor([4.0, 2.0, 0.0]), torch.tensor([10.0, 0.0, 10.0])
    found = estimated(sums, rows, torch.tensor([[2.0], [0.0], [7.0]]), past_rows)
    assert found[:, 0].tolist() == pytest.approx([0.2, 0.5, 0.7])  # known, new, absent
    assert torch.autograd.grad(found.sum(), sums)[0][:, 0].tolist() == pytest.approx([1 / 4, 1 / 2, 0.0])


# -- what is remembered --------------------------------------------------------------------------------------------


def remembering(make_step, constraint, *batches):
    """The penalty of each of several optimizer steps, on classifiers that say what they are told to, with gradients."""
    terms, gradients = [], []
    for p, groups in batches:
        model = Fixed(torch.tensor([[1 - x, x] for x in p]).log())
        batch = {"input_ids": torch.ones(len(p), 3, dtype=torch.long), "labels": torch.tensor([0, 1] * (len(p) // 2))}
        step = make_step(model, {**batch, "columns": {"group": groups}}, [constraint])
        step.loss().backward()
        step.loss()  # another pass of the same step adds nothing to what is known
        constraint.after_step(step)
        terms.append(step.terms["group-fairness"].mean.item())
        gradients.append(model.logits.grad[:, 1])
    return terms, gradients


def test_groups_are_known_from_the_steps_before(make_step):
    constraint = GroupFairness(memory=0.5)
    first, second = ([0.9, 0.7, 0.2, 0.4], list("aabb")), ([0.1, 0.1, 0.6, 0.6, 0.5, 0.5], list("aabbcc"))
    terms, gradients = remembering(make_step, constraint, first, second, first)
    # a: .8, b: .3; then the same, c: .5; then a: (.5 1.6 + .2) / (.5 2 + 2), b: (.5 .6 + 1.2) / 3
    assert terms == pytest.approx([0.5, 0.5, 0.5 - 1 / 3], abs=1e-6)
    assert all(gradients[1][:2] > 0)  # a was ahead, so it is lowered, though it is behind here
    assert all(gradients[1][2:4] < 0)
    assert not gradients[1][4:].any()


def test_without_memory_each_micro_batch_stands_for_itself(make_step):
    constraint = GroupFairness(memory=0.0)
    batches = ([0.9, 0.7, 0.2, 0.4], list("aabb")), ([0.1, 0.1, 0.6, 0.6], list("aabb"))
    terms, gradients = remembering(make_step, constraint, *batches)
    assert terms == pytest.approx([0.5, 0.5])
    assert all(gradients[1][:2] < 0)
    assert constraint.state_dict() == {}


def test_what_is_remembered_survives_a_checkpoint(make_step, tmp_path):
    from alignkit.checkpoints import load_state, save_state

    batches = [([0.9, 0.7, 0.2, 0.4], list("aabb")), ([0.3, 0.1, 0.6, 0.6], list("ccab"))]
    one, other = GroupFairness(criterion="equalised-odds"), GroupFairness(criterion="equalised-odds")
    remembering(make_step, one, *batches)
    save_state(tmp_path / "state", one.state_dict())
    other.load_state_dict(load_state(tmp_path / "state"))
    assert remembering(make_step, one, *batches)[0] == remembering(make_step, other, *batches)[0]
    other.reset()
    assert other.state_dict() == {}


def test_rows_without_groups_before_any_is_known_teach_nothing(make_step):
    constraint, other = GroupFairness(), GroupFairness()
    rows = [0.9, 0.7, 0.2, 0.4], list("abab")
    remembering(make_step, constraint, ([0.9, 0.7], [None, ""]), rows)
    remembering(make_step, other, rows)
    assert constraint.state_dict()["names"] == ["a", "b"]
    torch.testing.assert_close(constraint.state_dict()["sums"], other.state_dict()["sums"])
    torch.testing.assert_close(constraint.state_dict()["rows"], other.state_dict()["rows"])


def test_accumulated_micro_batches_are_remembered_together(make_step):
    together, apart = GroupFairness(), GroupFairness()
    rows = [0.9, 0.7, 0.2, 0.4], list("abab")
    remembering(make_step, together, rows)
    for i in (0, 2):
        model = Fixed(torch.tensor([[1 - x, x] for x in rows[0][i : i + 2]]).log())
        batch = {"input_ids": torch.ones(2, 3, dtype=torch.long), "labels": torch.tensor([0, 1])}
        step = make_step(model, {**batch, "columns": {"group": rows[1][i : i + 2]}}, [apart])
        step.loss()
    apart.after_step(step)
    for name in ("sums", "rows"):
        torch.testing.assert_close(together.state_dict()[name], apart.state_dict()[name])


# -- the step ----------------------------------------------------------------------------------------------------


def inputs(groups: list, number: int = 8):
    return {**collate(HEAD, examples(HEAD, number)), "columns": {"group": groups}}


@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize("groups", [["a"] * 8, [None] * 8, ["a", None] * 4])
def test_one_group_adds_nothing(criterion, groups, make_step):
    model = tiny(HEAD)[0]
    step = make_step(model, inputs(groups), [GroupFairness(criterion=criterion, weight=100.0)])
    loss = step.loss()
    assert step.terms["group-fairness"].count == 0
    torch.testing.assert_close(loss, step.terms["objective"].mean, check_stride=False)


def test_under_equalised_odds_labels_that_one_group_has_add_nothing(make_step):
    model, batch = tiny(HEAD)[0], inputs([""] * 8)
    batch["columns"]["group"] = batch["labels"].tolist()  # every label has a group of its own
    parity, odds = (make_step(model, batch, [GroupFairness(criterion=c)]) for c in CRITERIA)
    parity.loss(), odds.loss()
    assert (parity.terms["group-fairness"].count, odds.terms["group-fairness"].count) == (8, 0)


@pytest.mark.parametrize("criterion", CRITERIA)
def test_training_on_it_closes_the_gap(criterion, make_step):
    model, batch = tiny(HEAD)[0], inputs(["a", "b"] * 4)
    optimizer, gaps = torch.optim.SGD(model.parameters(), lr=0.05), []
    for _ in range(40):
        step = make_step(model, batch, [GroupFairness(criterion=criterion, weight=5.0, reduction="mean")])
        optimizer.zero_grad()
        step.loss().backward()
        optimizer.step()
        gaps.append(step.terms["group-fairness"].mean.item())
    assert min(gaps) < 0.3 * gaps[0]


class Linear(Fixed):
    """A classifier of one number per row."""

    def __init__(self):
        super().__init__(torch.zeros(1))
        self.scale = torch.nn.Parameter(torch.tensor([0.0, 3.0]))

    def forward(self, input_ids, labels, x):
        outputs = super().forward(input_ids, labels)
        outputs.logits = x[:, None] * self.scale
        outputs.loss = torch.nn.functional.cross_entropy(outputs.logits, labels)
        return outputs


def test_chance_does_not_make_predictions_constant(make_step):
    """Eight groups that do not differ, two rows of each to a micro-batch, a large weight."""
    spread = {}
    for memory in (0.0, 0.9):
        model, constraint = Linear(), GroupFairness(weight=5.0, memory=memory)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
        generator = torch.Generator().manual_seed(0)
        for _ in range(150):
            labels = torch.randint(2, (16,), generator=generator)
            x = 2.0 * labels - 1 + 0.5 * torch.randn(16, generator=generator)
            batch = {"input_ids": torch.ones(16, 3, dtype=torch.long), "labels": labels, "x": x}
            step = make_step(model, {**batch, "columns": {"group": list("abcdefgh") * 2}}, [constraint])
            optimizer.zero_grad()
            step.loss().backward()
            optimizer.step()
            constraint.after_step(step)
        spread[memory] = abs(float((model.scale[1] - model.scale[0]).detach()))
    assert spread[0.0] < 0.6  # log-odds of a typical row: certain of nothing
    assert spread[0.9] > 2.0


def test_a_head_without_classes_is_refused(make_step):
    for head in ("bert-token-classification", "bert-multiple-choice", "bert-question-answering", "llama-causal-lm"):
        model, _, batch = tiny(head)
        step = make_step(model, {**batch, "columns": {"group": ["a", "b"] * 4}}, [GroupFairness()])
        with pytest.raises(UsageError, match="head does not give each example's classes a probability"):
            step.loss()


def test_a_column_that_the_data_lacks_stops_training_but_not_validation(tmp_path):
    with pytest.raises(UsageError, match="the data has no column 'group'"):
        make_trainer(HEAD, tmp_path, [GroupFairness()]).train()
    rows = [{**row, "group": "ab"[i % 2]} for i, row in enumerate(make_rows(HEAD, 8))]
    trainer = make_trainer(HEAD, tmp_path, [GroupFairness()], rows=rows, eval_rows=make_rows(HEAD, 4))
    trainer.train()
    assert "penalty/group-fairness" in trainer.state.log_history[0]
    assert "eval_penalty/group-fairness" not in trainer.evaluate()


# -- before training -----------------------------------------------------------------------------------------------


def refusals(rows, task=None, setting=None, **fields):
    """What the plan says of training rows of (group, label)."""
    task = task or TextClassification()
    made = [
        Example({"text": "t", "label": label, **({} if group == "absent" else {"group": group})}, ("text",), row=i)
        for i, (group, label) in enumerate(rows)
    ]
    if made and isinstance(task, TextClassification):
        task.prepare({"train": made})
    composition = Composition([GroupFairness(**fields)], task)
    try:
        known = {"examples": made, **(setting or {})}
        make_plan(composition, Setting(task, composition.components, composition.objective, **known))
    except UsageError as error:
        return [str(mistake) for mistake in error.mistakes]
    return []


GOOD = [("a", "0"), ("b", "0"), ("a", "1"), ("b", "1")]


def test_good_data_is_taken():
    for criterion in CRITERIA:
        assert refusals(GOOD, criterion=criterion, outcome="1") == []
        assert refusals([*GOOD, (None, "1"), ("", "0"), ("absent", "0")], criterion=criterion) == []
        assert refusals([(i, la) for i, la in [(0, "0"), (1, "0"), (0, "1"), (1.0, "1")]], criterion=criterion) == []


@pytest.mark.parametrize(
    ("rows", "fields", "expected"),
    [
        (
            GOOD,
            {"column": "groups"},
            "constraint group-fairness: the training data has no column 'groups'; did you mean 'group'?",
        ),
        (
            [("a", "0"), ("a", "1")],
            {},
            "constraint group-fairness: all rows with a group in 'group' are 'a'; expected two groups or more",
        ),
        (
            [(None, "0"), ("", "1")],
            {},
            "constraint group-fairness: no row has a group in the column 'group'; expected two groups or more",
        ),
        (
            [*GOOD, ("c", "1")],
            {},
            "train row 4: the group 'c' in 'group' is there once; expected two rows or more of each group; "
            "merge it with another, or leave it blank: no group",
        ),
        (
            [(0.5, "0"), (0.25, "1"), (1, "0")],
            {},
            "train row 0: 'group' is 0.5, and 1 more rows like it; expected a group: a string or an integer",
        ),
        ([*GOOD, (["a"], "1")], {}, "train row 4: 'group' is ['a']; expected a group: a string or an integer"),
        (GOOD, {"outcome": "2"}, "constraint group-fairness outcome: the data has no label '2'; expected a label; "
                                 "there is 0, 1"),
        (
            [("a", "0"), ("a", "0"), ("b", "1"), ("b", "1")],
            {"criterion": "equalised-odds"},
            "constraint group-fairness: no label has rows of two groups of 'group', so that nothing would be compared; "
            "expected a label that two groups have; take `criterion: demographic-parity`",
        ),
    ],
)  # fmt: skip
def test_bad_data_is_refused_before_training(rows, fields, expected):
    assert refusals(rows, **fields) == [expected]


def test_labels_are_no_groups():
    found = "constraint group-fairness: {!r} holds the labels themselves, and predictions are to differ between those"
    expected = "; expected a column that is not what the task predicts"
    assert refusals(GOOD, column="label") == [found.format("label") + expected]
    same = [(0, "0"), (1, "1"), (0, "0"), (1, "1"), (None, "1")]
    assert refusals(same) == [found.format("group") + expected]


def test_of_many_groups_that_are_there_once_three_are_named():
    often = [(name, la) for name in "abcdefghij" for la in "01"]
    found = refusals([*often, *((f"rare {i}", "0") for i in range(5))])
    assert len(found) == 4
    assert found[0].startswith("train row 20: the group 'rare 0' in 'group' is there once")
    assert found[-1] == "column 'group': 2 more groups are there once; expected two rows or more of each group"


def test_a_column_without_groups_is_named_once():
    assert refusals([(f"user {i}", str(i % 2)) for i in range(10)]) == [
        "constraint group-fairness: 'group' has 10 values, 10 of which are there once; expected a column of groups, "
        "each of many rows"
    ]


def test_small_micro_batches():
    assert refusals(GOOD, setting={"batch_size": 1}) == [
        "constraint group-fairness: micro-batches of one row have one group: nothing would be compared; expected "
        "`per_device_train_batch_size` of 2 or more, the larger the better"
    ]
    composition = Composition([GroupFairness()], TextClassification())
    made = [Example({"text": "t", "label": la, "group": g}, ("text",)) for g, la in GOOD]
    constraint = composition["group-fairness"]
    for size, said in ((7, 1), (8, 0), (None, 0)):
        setting = Setting(composition.task, [constraint], composition.objective, examples=made, batch_size=size)
        assert len(list(constraint.notes(setting))) == said


@pytest.mark.parametrize(
    "task", [Chat(), Ner(), MultipleChoice(), PromptedClassification()], ids=lambda t: type(t).__name__
)
def test_tasks_without_a_classification_head_are_refused(task):
    task.name = "it"
    assert refusals([], task) == [
        "constraint group-fairness: task it has no head that gives each example's classes a probability; "
        "expected task text-classification or relation-extraction"
    ]


def test_it_couples_rows_and_says_which_column_it_reads():
    constraint = GroupFairness(column="gender")
    assert constraint.couples_rows
    assert constraint.columns == Composition([constraint], TextClassification()).columns == ("gender",)
