"""Principles put before examples, completions aligned, and the penalty on tiny models against closed forms."""

from __future__ import annotations

import json
from dataclasses import replace

import alignkit_constraints.kl_ethics
import pytest
import torch
from alignkit_constraints import KLEthics
from alignkit_constraints.kl_ethics import paired
from alignkit_constraints.marks import is_marked
from alignkit_constraints.principles import read_principles, with_principles
from pydantic import ValidationError
from torch.distributions import Categorical, kl_divergence

import alignkit
from alignkit.compose import Composition
from alignkit.data import Example
from alignkit.data.prepare import encode
from alignkit.errors import UsageError
from alignkit.models import Peft
from alignkit.plan import Setting, make_plan
from alignkit.step import TrainingStep
from alignkit.tasks.chat import Chat
from alignkit.tasks.dialogue import Dialogue
from alignkit.tasks.text_classification import TextClassification
from alignkit.testing.models import collate, examples, tiny, tokenizer
from alignkit.testing.run_cases import base_model
from alignkit.testing.training import make_trainer

HEAD = "llama-causal-lm"
SHORT = "she was good .\nhe was fine ."
SEEN = "she was good. he was fine."


def example(**fields):
    known = ("system", "prompt", "messages", "text", "source", "tokens")
    return Example(fields, inputs=tuple(name for name in known if fields.get(name)))


def turn(role, content):
    return {"role": role, "content": content}


@pytest.fixture
def short(tmp_path):
    """A file of principles that a tiny tokenizer makes nine tokens of."""
    path = tmp_path / "short.txt"
    path.write_text(f"# ours\n{SHORT}\n", encoding="utf-8")
    return path


# -- principles --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("language", "words"), [("en", ("helpful", "privacy")), ("zh", ("有帮助", "隐私"))])
def test_shipped_principles_are_a_text_without_its_header(language, words):
    text, mistakes = read_principles(language)
    assert not mistakes
    assert all(word in text for word in words)
    lines = text.splitlines()
    assert 8 <= len(lines) <= 12
    assert all(line.startswith("- ") for line in lines[1:])
    assert "#" not in text
    assert len(text) < 1500


def test_mistakes_in_principles(tmp_path):
    empty, latin = tmp_path / "empty.txt", tmp_path / "latin.txt"
    empty.write_text("# a header alone\n\n", encoding="utf-8")
    latin.write_bytes(b"caf\xe9")
    expected = {
        "enn": "principles enn: no such file; expected en or zh, or a text file; did you mean 'en'?",
        str(empty): f"principles {empty}: the file has no text; expected one principle or more",
        str(latin): f"principles {latin}: no UTF-8 at byte 3; expected UTF-8 text; save the file as UTF-8",
    }
    for name, message in expected.items():
        assert [str(mistake) for mistake in read_principles(name)[1]] == [message]
        with pytest.raises(UsageError) as caught:
            KLEthics(principles=name).views(example(prompt="Hi"))
        assert str(caught.value) == message


@pytest.mark.parametrize(
    ("row", "default", "place", "expected"),
    [
        (example(prompt="Hi"), "", "system", "P"),
        (example(prompt="Hi"), "Own.", "system", "P\n\nOwn."),
        (example(prompt="Hi", system="Mine."), "Own.", "system", "P\n\nMine."),
        (example(messages=[turn("user", "Hi")]), "Own.", "messages", [turn("system", "P\n\nOwn."), turn("user", "Hi")]),
        (
            example(messages=[turn("system", "S."), turn("user", "Hi")], system="Mine."),
            "Own.",
            "messages",
            [turn("system", "P\n\nS."), turn("user", "Hi")],
        ),
        (example(prompt=[turn("user", "Hi")]), "", "prompt", [turn("system", "P"), turn("user", "Hi")]),
    ],
)
def test_principles_stand_before_the_system_message_that_the_task_would_take(row, default, place, expected):
    before = json.dumps(dict(row))
    view = with_principles(row, "P", default)
    assert view[place] == expected
    assert {name: view[name] for name in row if name not in (place, "system")} == {
        name: row[name] for name in row if name not in (place, "system")
    }
    assert json.dumps(dict(row)) == before


@pytest.mark.parametrize("row", [example(text="a film"), example(source="ein Film"), example(tokens=["a", "film"])])
def test_no_place_for_principles(row):
    assert with_principles(row, "P") is None
    assert KLEthics().views(row) == {}


@pytest.mark.parametrize("task", [Chat(system="be good"), Dialogue(system="be good")])
def test_the_view_is_what_the_task_itself_makes_of_the_whole_system_message(task, short):
    """As the task encodes it, the prompt with principles ends as the one without them."""
    rows = [task.parse(dict(row), "row") for row in task.samples]
    text = tokenizer(HEAD)
    constraint, _ = planned(task, rows, principles=short)
    for row in rows:
        view = constraint.views(row)["kl-ethics"]
        plain, longer = (one if isinstance(one, list) else [one] for one in map_encode(task, (row, view), text))
        own = row.get("system") or task.system
        for one, other in zip(plain, longer, strict=True):
            shown = text.decode(other["input_ids"])
            assert f"{SEEN} {own}" in shown
            assert shown.replace(f"{SEEN} ", "") == text.decode(one["input_ids"])
            assert [i for i in other["labels"] if i != -100] == [i for i in one["labels"] if i != -100]


def map_encode(task, rows, text):
    return [task.encode(row, text) for row in rows]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        *((value, True) for value in (True, 1, 0.5, "yes", "1", "true", "harmful", [1])),
        *((value, False) for value in (False, 0, None, "", " ", "0", "False", "no", "None", "null", [])),
        (float("nan"), False),
    ],
)
def test_what_marks_a_row(value, expected):
    assert is_marked(value) is expected
    views = KLEthics(marked="harmful").views(example(prompt="Hi", harmful=value))
    assert bool(views) is expected


def test_a_row_without_the_column_is_not_marked():
    assert KLEthics(marked="harmful").views(example(prompt="Hi")) == {}


def test_the_view_bears_the_components_name():
    constraint = KLEthics()
    constraint.name = "in-chinese"
    assert set(constraint.views(example(prompt="Hi"))) == {"in-chinese"} == set(constraint.unaligned_views)


# -- alignment ---------------------------------------------------------------------------------------------------


def in_words(labels, other_labels, rows):
    """The definition, in loops."""
    numbers, found = {}, ([], [])
    for which, batch in enumerate((labels, other_labels)):
        n = 0
        for row, line in enumerate(batch):
            for place, label in enumerate(line[1:]):
                if label != -100:
                    numbers[which, row, place], n = n, n + 1
    for other, row in enumerate(rows):
        places = [
            [place for place, label in enumerate(line[1:]) if label != -100]
            for line in (labels[row], other_labels[other])
        ]
        pairs = list(zip(*places, strict=False))
        if all(labels[row][a + 1] == other_labels[other][b + 1] for a, b in pairs):
            found[0].extend(numbers[0, row, a] for a, _ in pairs)
            found[1].extend(numbers[1, other, b] for _, b in pairs)
    return found


def test_predictions_are_paired_as_the_definition_says():
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        labels = torch.randint(5, 8, (5, 7), generator=generator)
        labels[torch.rand(5, 7, generator=generator) < 0.5] = -100
        rows = torch.randperm(5, generator=generator)[:3]
        others = torch.full((3, 9), -100)
        for other, row in enumerate(rows.tolist()):
            kept = labels[row][labels[row] != -100][1:4]  # cut, or with another beginning, so that some are left out
            if torch.rand((), generator=generator) < 0.7:
                kept = labels[row, 1:][labels[row, 1:] != -100][: int(torch.randint(0, 6, (), generator=generator))]
            others[other, 9 - len(kept) :] = kept
        found = [index.tolist() for index in paired(labels, others, rows)]
        assert found == list(in_words(labels.tolist(), others.tolist(), rows.tolist()))


def test_nothing_to_pair():
    nothing = torch.full((2, 3), -100)
    assert [len(index) for index in paired(nothing, nothing, torch.tensor([0, 1]))] == [0, 0]


# -- the penalty -------------------------------------------------------------------------------------------------

BEFORE = [20, 31, 42, 9]


def longer(row, cut=0, other=False):
    """The row with more before it; its completion cut by some tokens, or another one."""
    kept = slice(0, len(row["input_ids"]) - cut)
    ids, labels = [*BEFORE, *row["input_ids"][kept]], [*[-100] * 4, *row["labels"][kept]]
    if other:
        first = next(i for i, label in enumerate(labels) if label != -100)
        ids[first] = labels[first] = labels[first] % 40 + 10
    return {"input_ids": ids, "attention_mask": [1] * len(ids), "labels": labels}


ROWS, CUT, OTHER = [1, 3, 4, 6], 3, 6


def batch(rows, viewed=ROWS):
    views = [longer(rows[row], cut=row == CUT, other=row == OTHER) for row in viewed]
    found = {"kl-ethics": {**collate(HEAD, views), "rows": torch.tensor(viewed)}} if viewed else {}
    return {**collate(HEAD, rows), "views": found}


def divergences(model, reference, rows, direction="forward"):
    """One row at a time, unpadded, position by position."""
    found = []
    for row in ROWS:
        if row == OTHER:
            continue
        view = longer(rows[row], cut=row == CUT)
        with torch.no_grad():
            own = model(**collate(HEAD, [rows[row]])).logits.double()[0]
            theirs = reference(**collate(HEAD, [view])).logits.double()[0]
        for place, label in enumerate(view["labels"]):
            if label != -100:
                p, q = Categorical(logits=theirs[place - 1]), Categorical(logits=own[place - 1 - len(BEFORE)])
                both = kl_divergence(p, q), kl_divergence(q, p)
                mixed = Categorical(probs=(p.probs + q.probs) / 2)
                js = mixed.entropy() - (p.entropy() + q.entropy()) / 2
                found.append({"forward": both[0], "reverse": both[1], "js": js}[direction])
    return torch.stack(found)


@pytest.mark.parametrize("direction", ["forward", "reverse", "js"])
def test_the_penalty_compares_token_by_token_what_both_versions_have(direction, make_step):
    model, reference, rows = tiny(HEAD)[0], tiny(HEAD, seed=1)[0], examples(HEAD, 8)
    step = make_step(model, batch(rows), [KLEthics(direction=direction)], reference=reference)
    step.loss()
    expected = divergences(model, reference, rows, direction)
    term = step.terms["kl-ethics"]
    assert term.count == len(expected) > 8
    assert term.per == "kl-ethics"
    assert term.mean.item() == pytest.approx(expected.mean().item(), rel=1e-4)


def test_the_gradient_reaches_the_model_through_its_own_prompt_alone(make_step):
    model, reference, rows = tiny(HEAD)[0], tiny(HEAD, seed=1)[0], examples(HEAD, 8)
    asked = []
    reference.register_forward_hook(lambda module, *_: asked.append((module.training, torch.is_grad_enabled())))
    step = make_step(model, batch(rows), [KLEthics()], reference=reference)
    step.loss().backward()
    step.loss(step.zeros()).backward()
    assert asked == [(False, False)]
    assert all(p.grad is None for p in reference.parameters())
    unused = sorted({*BEFORE} - {i for row in rows for i in row["input_ids"]})
    gradient = model.get_input_embeddings().weight.grad
    assert unused
    assert not gradient[unused].any()
    assert gradient.any()


def test_where_no_row_has_a_view_there_is_no_penalty(make_step):
    model, rows = tiny(HEAD)[0], examples(HEAD, 4)
    for viewed in ([], [0]):
        inputs = batch(rows, viewed)
        if viewed:
            inputs["views"]["kl-ethics"]["labels"][0] = -100  # truncation left nothing of the completion
        step = make_step(model, inputs, [KLEthics(weight=100.0)], reference=tiny(HEAD, seed=1)[0])
        loss = step.loss()
        assert step.terms["kl-ethics"].count == 0
        torch.testing.assert_close(loss, step.terms["objective"].mean, check_stride=False)


def test_rows_of_another_batch_are_not_compared_with_views_of_this_one(make_step):
    model, rows = tiny(HEAD)[0], examples(HEAD, 8)
    step = make_step(model, batch(rows), [KLEthics()], reference=tiny(HEAD, seed=1)[0])
    step.loss(batch=collate(HEAD, examples(HEAD, 2, seed=5)))
    assert step.terms["kl-ethics"].count == 0


def test_the_reference_is_the_model_without_its_adapter_in_evaluation_mode(tmp_path):
    """After some training, so that the adapter is something to switch off."""
    rows = examples(HEAD, 8)
    own = [{**row, "index": i} for i, row in enumerate(rows)]
    for row in ROWS:
        own[row]["views"] = {"kl-ethics": longer(rows[row], cut=row == CUT, other=row == OTHER)}
    trainer = make_trainer(HEAD, tmp_path, [KLEthics()], rows=own, peft=Peft(method="lora", r=4), learning_rate=0.05)
    trainer.train()
    model = trainer.model.train()
    step = TrainingStep(trainer.context, model, trainer.data_collator(own))
    step.loss()
    expected = divergences(model, tiny(HEAD)[0].eval(), rows)
    with model.disable_adapter():
        apart = divergences(model, tiny(HEAD)[0].eval(), rows)
    assert step.terms["kl-ethics"].mean.item() == pytest.approx(expected.mean().item(), rel=1e-3)
    assert abs(expected.mean() - apart.mean()) > 1e-3
    assert model.training


def test_training_takes_the_principles_up(tmp_path):
    rows = [{**row, "index": i, "views": {"kl-ethics": longer(row)}} for i, row in enumerate(examples(HEAD, 4))]
    options = {"max_steps": 40, "learning_rate": 0.02, "peft": Peft(method="lora", r=8)}
    trainer = make_trainer(HEAD, tmp_path, [KLEthics(weight=50.0)], rows=rows, **options)
    trainer.train()
    gaps = [entry["penalty/kl-ethics"] for entry in trainer.state.log_history if "penalty/kl-ethics" in entry]
    assert gaps[-1] < 0.3 * gaps[0]


# -- the plan ----------------------------------------------------------------------------------------------------


def planned(task, rows, plain=False, **fields):
    constraint = KLEthics(**fields)
    run = Composition([constraint], task)
    setting = Setting(task, run.components, run.objective, examples=rows, tokenizer=lambda: tokenizer(HEAD))
    return constraint, make_plan(run, replace(setting, tokenizer=None) if plain else setting)


def refused(task, rows, **fields):
    with pytest.raises(UsageError) as caught:
        planned(task, rows, **fields)
    return str(caught.value)


CHATS = [Chat().parse(dict(row), "row") for row in Chat.samples]


def test_refused_where_rows_are_no_conversations():
    rows = [example(text="a film"), example(text="bad")]
    expected = (
        "constraint kl-ethics: rows of task text-classification have no prompt or messages that principles could stand "
        "before; expected a task of conversations (chat, dialogue …); take kl-reference for others"
    )
    assert refused(TextClassification(), rows) == expected
    assert refused(TextClassification(), []) == expected
    assert "rows of task chat have no prompt" in refused(Chat(), rows)


def test_refused_where_no_row_is_marked():
    rows = [row.replace(harmfull=0) for row in CHATS]
    assert refused(Chat(), rows, marked="harmful") == (
        "constraint kl-ethics: no training row says yes in the column 'harmful', so that it would apply to none; "
        "expected rows that do; did you mean 'harmfull'?; map it with `columns: {harmful: …}`"
    )


def test_refused_where_truncation_would_cut_the_principles(short):
    assert refused(Chat(maximum_length=16), CHATS, principles=short) == (
        "constraint kl-ethics: the principles are 8 tokens, for which no row that was looked at has room; expected "
        "room for the principles and the conversation; raise `task.maximum_length` (it is 16), or shorten the "
        "principles"
    )
    planned(Chat(maximum_length=16), CHATS, principles=short, plain=True)  # nothing can be said without a tokenizer


def test_rows_without_room_have_no_view_and_are_counted(short):
    task, text = Chat(maximum_length=28), tokenizer(HEAD)
    constraint, plan = planned(task, CHATS, principles=short)
    viewed = [row for row in CHATS if constraint.views(row)]
    assert 0 < len(viewed) < len(CHATS)
    left = len(CHATS) - len(viewed)
    note = f"kl-ethics: {left} of 6 rows have no room for the principles; raise `task.maximum_length` (it is 28)"
    assert plan.notes == [note]
    dataset = encode(task, CHATS, text, lambda row: constraint.views(row), unaligned=constraint.unaligned_views)
    for row in dataset:
        if row["views"]:
            shown = text.decode(row["views"]["kl-ethics"]["input_ids"])
            assert SEEN in shown
    assert sum(row["views"] is not None for row in dataset) == len(viewed)


def test_a_long_completion_is_compared_as_far_as_the_view_goes(short):
    """`chat` cuts the end of a completion that takes more than half of the room."""
    task = Chat(maximum_length=48)
    row = Chat().parse({"prompt": "hi", "completion": "it was good . " * 12}, "row")
    constraint, plan = planned(task, [row], principles=short)
    assert plan.notes == []
    text = tokenizer(HEAD)
    plain, view = (task.encode(one, text) for one in (row, constraint.views(row)["kl-ethics"]))
    scored = [sum(label != -100 for label in one["labels"]) for one in (plain, view)]
    assert scored[1] < scored[0]
    own, other = paired(*(torch.tensor([one["labels"]]) for one in (plain, view)), torch.tensor([0]))
    assert own.tolist() == other.tolist() == list(range(scored[1]))


def test_a_second_component_with_other_principles(short):
    components = [KLEthics(), KLEthics(principles=short)]
    run = Composition(components, Chat())
    views = run.views(CHATS[0])
    assert set(views) == {"kl-ethics", "kl-ethics-2"}
    assert views["kl-ethics-2"]["system"] == SHORT


def test_directions_are_those_there_are():
    with pytest.raises(ValidationError, match="'forward', 'reverse' or 'js'"):
        KLEthics(direction="backward")


def test_a_run_from_a_recipe(tmp_path, short):
    """Chat rows of which some are marked, LoRA, the task's own system message, validated."""
    model = base_model(tmp_path / "base", "AutoModelForCausalLM")
    rows = [{**row, "harmful": i % 2} for i, row in enumerate(Chat.samples)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    recipe = alignkit.Recipe(
        base=tmp_path,
        model=str(model),
        task={"use": "chat", "system": "be good"},
        data={"train": "rows.jsonl", "validation": "rows.jsonl"},
        constraints=[{"use": "kl-ethics", "principles": str(short), "marked": "harmful"}],
        peft="lora",
        training={"max_steps": 3, "per_device_train_batch_size": 3, "learning_rate": 1e-2, "use_cpu": True},
        evaluation={"replicates": 20},
        output="run",
    )
    run = alignkit.train(recipe)
    state = json.loads(next((run.path / "checkpoints").glob("*/trainer_state.json")).read_text("utf-8"))
    logged = [entry for entry in state["log_history"] if "eval_penalty/kl-ethics" in entry]
    assert logged
    assert 0 < logged[-1]["eval_penalty/kl-ethics"] < 5


def test_a_limit_that_js_cannot_reach_is_no_limit():
    constraint, _ = planned(Chat(), [], direction="js")
    assert constraint.ceiling(constraint._setting) == pytest.approx(0.6931, abs=1e-4)
    assert KLEthics().ceiling(constraint._setting) is None


def test_the_sample_is_spread_over_the_rows(monkeypatch, short):
    monkeypatch.setattr(alignkit_constraints.kl_ethics, "SAMPLED", 3)
    rows = [Chat().parse({"prompt": "hi", "completion": "ok"}, "row")] * 6 + CHATS[2:3] * 6
    constraint, _ = planned(Chat(), rows, principles=short)
    setting = constraint._setting
    sample = constraint._sample(setting)
    assert len(sample) == 3
    assert {view["prompt"] for view in sample} == {"hi", CHATS[2]["prompt"]}
