"""Continuous adversarial training against attacks and losses written out with `inputs_embeds`, row by row."""

from __future__ import annotations

import contextlib
import copy
import math
from typing import Any

import pytest
import torch
from alignkit_adversaries import Continuous
from alignkit_adversaries.continuous import carried, ipo, last_answer, row_means, unlikelihood
from pydantic import ValidationError

from alignkit.compose import Composition
from alignkit.data.collate import StepCollator
from alignkit.data.prepare import encode
from alignkit.errors import UsageError
from alignkit.plan import Setting, make_plan
from alignkit.reference import Reference
from alignkit.tasks.chat import Chat
from alignkit.tasks.dialogue import Dialogue
from alignkit.tasks.ner import Ner
from alignkit.tasks.stock import StockTask
from alignkit.testing import CASES
from alignkit.testing.models import collate, examples, tiny
from alignkit.testing.training import make_rows

IGNORED = -100
SPECIAL, EOS = (0, 2, 3, 5, 6), 6
PROMPTS = [[5, 20, 21, 22], [5, 30, 31], [33, 5, 34, 35, 36, 37], [40, 41], [42, 43, 44]]
SAFE = [[50, 51, 6], [52, 53, 54, 55, 6], [56, 6], [57, 58, 59, 6], [60, 6]]
HARMFUL: list[list[int] | None] = [[70, 71, 72, 73, 6], None, [74, 75, 6], [76, 6], None]


def encoded(prompt, answer):
    ids, labels = [*prompt, *answer], [*[IGNORED] * len(prompt), *answer]
    return {"input_ids": ids, "attention_mask": [1] * len(ids), "labels": labels}


def inputs(harmful=HARMFUL, rows=range(5)):
    """Rows as the host collates them, with the view of those that have a harmful answer."""
    made = []
    for i in rows:
        row = {**encoded(PROMPTS[i], SAFE[i]), "index": i}
        if harmful[i] is not None:
            row["views"] = {"target": encoded(PROMPTS[i], harmful[i])}
        made.append(row)
    return StepCollator(lambda part: collate("llama-causal-lm", part))(made)


def prepared(component, make_step, model=None, batch=None, reference=None):
    model = tiny("llama-causal-lm")[0] if model is None else model
    step = make_step(model, inputs() if batch is None else batch, [component], reference=reference)
    step.context.special_ids = SPECIAL
    return step


def attacked(step):
    """(the loss, what is added to the main batch, what is added to the view's in the penalty), after backward."""
    seen, evaluate, forward = {}, step.evaluate, step.forward

    def watched(delta=None, batch=None):
        seen["main"] = delta
        return evaluate(delta, batch)

    def watched_forward(delta=None, batch=None, **options):
        seen["view"] = delta
        return forward(delta, batch, **options)

    step.evaluate, step.forward = watched, watched_forward
    (loss,) = [(loss, loss.backward())[0] for loss in step.context.composition.attack(step)]
    return loss.item(), seen["main"], seen["view"]


# -- written out, one row at a time ------------------------------------------------------------------------------


def log_probabilities(model, prompt, answer, delta):
    """Of each of the answer's tokens, behind a prompt with a perturbation [len(prompt), D]."""
    table = model.get_input_embeddings().weight
    embeds = torch.cat([table[prompt] + delta, table[answer]])
    logits = model(inputs_embeds=embeds[None]).logits[0, len(prompt) - 1 : -1]
    return logits.log_softmax(-1)[torch.arange(len(answer)), answer]


def by_hand(model, prompt, harmful, epsilon, alpha, steps):
    """The perturbation [len(prompt), D] that the attack finds, without padding or other rows."""
    table = model.get_input_embeddings().weight.detach()
    unit = table[table.norm(dim=-1) > 0].norm(dim=-1).mean()  # padding is zero
    shown = torch.tensor([token not in SPECIAL for token in prompt])[:, None]
    delta = torch.zeros(len(prompt), table.shape[1])
    for _ in range(steps):
        leaf = delta.clone().requires_grad_()
        loss = -log_probabilities(model, prompt, [token for token in harmful if token != EOS], leaf).mean()
        (gradient,) = torch.autograd.grad(loss, leaf)
        delta = delta - alpha * unit / math.sqrt(table.shape[1]) * gradient.sign() * shown
        for t, row in enumerate(delta):
            if row.norm() > epsilon * unit:
                delta[t] = row / row.norm() * epsilon * unit
    return delta


def losses_by_hand(model, reference, loss, deltas, cutoff=-5.0, beta=0.25):
    """(the objective, the penalty) under perturbations of the attacked rows' prompts."""
    nothing = [torch.zeros(len(prompt), 1) for prompt in PROMPTS]
    moved = [nothing[i] if delta is None else delta for i, delta in enumerate(deltas)]
    said = [log_probabilities(model, PROMPTS[i], SAFE[i], moved[i]) for i in range(5)]
    objective = -torch.cat(said).mean()
    penalties = []
    for i, harmful in enumerate(HARMFUL):
        if harmful is None:
            continue
        words = harmful[:-1]
        other = log_probabilities(model, PROMPTS[i], words, moved[i])
        if loss == "ul":
            penalties.append(torch.where(other < cutoff, 0.0, -torch.log1p(-other.exp())).mean())
        else:
            with torch.no_grad():
                before = log_probabilities(reference, PROMPTS[i], SAFE[i], nothing[i]).mean()
                before = before - log_probabilities(reference, PROMPTS[i], words, nothing[i]).mean()
            penalties.append((said[i].mean() - other.mean() - before - 1 / (2 * beta)) ** 2)
    return objective, torch.stack(penalties).mean()


@pytest.mark.parametrize("loss", ["ul", "ipo"])
def test_perturbations_loss_and_gradients_are_those_of_the_definition(loss, make_step):
    model, reference = tiny("llama-causal-lm")[0], tiny("llama-causal-lm", seed=1)[0].eval()
    fields = {"epsilon": 0.3, "alpha": 0.1, "steps": 4}
    step = prepared(Continuous(loss=loss, weight=0.7, **fields), make_step, model, reference=reference)
    total, main, view = attacked(step)
    gradients = {name: p.grad.clone() for name, p in model.named_parameters()}

    deltas = [None if h is None else by_hand(model, PROMPTS[i], h, **fields) for i, h in enumerate(HARMFUL)]
    for place, row in enumerate(step.views["target"].rows.tolist()):
        found = deltas[row]
        for given in (main[row], view[place]):
            torch.testing.assert_close(given[: len(found)], found, rtol=1e-4, atol=1e-6)
            assert given[len(found) :].count_nonzero() == 0
    for row, harmful in enumerate(HARMFUL):
        assert harmful is not None or main[row].count_nonzero() == 0

    model.zero_grad()
    objective, penalty = losses_by_hand(model, reference, loss, deltas)
    (objective + 0.7 * penalty).backward()
    assert step.terms["objective"].mean.item() == pytest.approx(objective.item(), rel=1e-5)
    assert step.terms["continuous"].mean.item() == pytest.approx(penalty.item(), rel=1e-4)
    assert total == pytest.approx((objective + 0.7 * penalty).item(), rel=1e-5)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad, rtol=1e-3, atol=1e-6, msg=name)


def test_the_harmful_answer_becomes_likelier_under_the_perturbation(make_step):
    model = tiny("llama-causal-lm")[0]
    _, main, _ = attacked(prepared(Continuous(epsilon=1.0, alpha=0.1), make_step, model))
    for row, harmful in enumerate(HARMFUL):
        if harmful is not None:
            moved, prompt = main[row, : len(PROMPTS[row])], PROMPTS[row]
            clean = log_probabilities(model, prompt, harmful[:-1], torch.zeros_like(moved)).mean()
            assert log_probabilities(model, prompt, harmful[:-1], moved).mean() > clean


@pytest.mark.parametrize(("epsilon", "alpha", "steps"), [(0.05, 0.005, 10), (0.2, 0.2, 3), (1.0, 0.3, 5)])
def test_a_token_moves_no_further_than_epsilon(epsilon, alpha, steps, make_step):
    step = prepared(Continuous(epsilon=epsilon, alpha=alpha, steps=steps), make_step)
    _, main, view = attacked(step)
    for delta in (main, view):
        sizes = delta.norm(dim=-1) / step.unit_length
        assert sizes.max() <= epsilon * (1 + 1e-5)
        assert sizes.max() > epsilon * 0.3


# -- losses in closed form -----------------------------------------------------------------------------------------


def test_unlikelihood_is_minus_log_one_minus_p_above_the_cutoff():
    logits = torch.randn(50, 7, generator=torch.Generator().manual_seed(0)) * 4
    tokens = torch.arange(50) % 7
    p = logits.double().softmax(-1)[torch.arange(50), tokens]
    expected = torch.where(p.log() < -2.0, 0.0, -(1 - p).log())
    assert (expected == 0).any()
    assert (expected > 0).any()
    torch.testing.assert_close(unlikelihood(logits, tokens, -2.0).double(), expected, rtol=1e-4, atol=1e-5)


def test_unlikelihood_is_finite_and_has_a_gradient_where_p_rounds_to_one():
    logits = torch.tensor([[60.0, 0.0, 0.0]], requires_grad=True)
    loss = unlikelihood(logits, torch.tensor([0]), -5.0).sum()
    assert loss.item() == pytest.approx(60.0 - math.log(2))
    loss.backward()
    torch.testing.assert_close(logits.grad, torch.tensor([[1.0, -0.5, -0.5]]))


def test_what_is_unlikely_enough_gives_no_gradient():
    logits = torch.tensor([[-9.0, 0.0], [0.0, 0.0]], requires_grad=True)
    unlikelihood(logits, torch.tensor([0, 0]), -5.0).sum().backward()
    assert logits.grad[0].count_nonzero() == 0
    assert logits.grad[1].count_nonzero() == 2


def test_ipo_aims_at_a_margin():
    margin, before = torch.tensor([3.0, 1.0, -1.0]), torch.tensor([1.0, 1.0, 1.0])
    assert ipo(margin, before, 0.25).tolist() == [0.0, 4.0, 16.0]


def test_means_are_per_row():
    where = torch.tensor([[True, False, True], [False, False, False], [False, True, False]])
    assert row_means(torch.tensor([1.0, 2.0, 5.0]), where).tolist() == [1.5, 0.0, 5.0]


# -- which rows, which tokens ----------------------------------------------------------------------------------------


def test_rows_without_a_harmful_answer_train_as_ever_and_cost_nothing(make_step):
    model = tiny("llama-causal-lm")[0]
    batch = inputs([None] * 5)
    assert "views" not in batch
    calls = []
    handle = model.register_forward_hook(lambda *_: calls.append(1))
    step = prepared(Continuous(), make_step, model, batch)
    (loss,) = step.context.composition.attack(step)
    handle.remove()
    assert loss.item() == pytest.approx(model(**step.batch).loss.item(), rel=1e-6)
    assert len(calls) == 1


def test_other_rows_of_a_batch_keep_their_loss(make_step):
    """The utility rows' share of the loss, whatever is attacked beside them."""
    model, seen = tiny("llama-causal-lm")[0], []
    step = prepared(Continuous(epsilon=1.0, alpha=0.5, weight=0.0), make_step, model)
    step.keep_outputs = True
    attacked(step)
    clean = model(**step.batch).logits
    for row, harmful in enumerate(HARMFUL):
        seen.append(torch.allclose(step.outputs.logits[row], clean[row], atol=1e-6))
        assert seen[-1] == (harmful is None)


def test_a_row_is_attacked_alike_whatever_shares_its_batch(make_step):
    component = Continuous(epsilon=0.3, alpha=0.1)
    _, together, _ = attacked(prepared(component, make_step))
    for row in (0, 2, 3):
        _, alone, _ = attacked(prepared(component, make_step, batch=inputs(rows=[row])))
        torch.testing.assert_close(alone[0], together[row, : alone.shape[1]], rtol=1e-4, atol=1e-6)


def test_padding_on_the_left_changes_nothing(make_step):
    component, right = Continuous(epsilon=0.3, alpha=0.1), inputs()
    left = {
        **right,
        **_left(right),
        "views": {"target": {**right["views"]["target"], **_left(right["views"]["target"])}},
    }
    (one, main, view), (other, main_left, view_left) = (
        attacked(prepared(component, make_step, batch=batch)) for batch in (right, left)
    )
    assert one == pytest.approx(other, rel=1e-4)
    for given, moved, batch in ((main, main_left, right), (view, view_left, right["views"]["target"])):
        for row, length in enumerate(batch["attention_mask"].sum(1).tolist()):
            torch.testing.assert_close(moved[row, -length:], given[row, :length], rtol=1e-3, atol=1e-5)


def _left(batch):
    found = {name: batch[name].clone() for name in ("input_ids", "attention_mask", "labels")}
    for row, length in enumerate(batch["attention_mask"].sum(1).tolist()):
        for values in found.values():
            values[row] = values[row].roll(values.shape[1] - length)
    return found


def test_a_perturbation_is_carried_to_the_same_tokens_counted_from_the_answer():
    delta = torch.arange(1.0, 5.0).view(1, 4, 1) * torch.tensor([[[1.0], [1.0], [1.0], [0.0]]])
    ids, start = torch.tensor([[7, 8, 9, 1]]), torch.tensor([3])
    whole = carried(delta, ids, start, torch.tensor([[0, 7, 8, 9, 2, 2]]), torch.tensor([4]))
    assert whole.flatten().tolist() == [0, 1, 2, 3, 0, 0]
    cut = carried(delta, ids, start, torch.tensor([[8, 9, 2, 2, 2]]), torch.tensor([2]))
    assert cut.flatten().tolist() == [2, 3, 0, 0, 0]
    longer = carried(delta, ids, start, torch.tensor([[6, 6, 7, 8, 9, 2]]), torch.tensor([5]))
    assert longer.flatten().tolist() == [0, 0, 1, 2, 3, 0]
    opened = carried(delta, ids, start, torch.tensor([[5, 8, 9, 2, 2]]), torch.tensor([3]))
    assert opened.flatten().tolist() == [0, 2, 3, 0, 0]  # another token in the place of the first


def test_of_a_conversation_the_last_answer_counts():
    labels = torch.tensor(
        [[-100, 5, 6, -100, -100, 7, 8], [-100, 4, 4, 4, -100, -100, -100], [3, 3, -100, -100, 9, 9, 9]]
    )
    where, start = last_answer(labels)
    assert start.tolist() == [5, 1, 4]
    assert where.long().tolist() == [[0, 0, 0, 0, 0, 1, 1], [0, 1, 1, 1, 0, 0, 0], [0, 0, 0, 0, 1, 1, 1]]


def test_earlier_answers_of_a_conversation_are_not_perturbed(make_step):
    said = {"input_ids": [20, 21, 30, 31, 22, 23], "labels": [-100, -100, 30, 31, -100, -100]}
    rows = []
    for answer in ([50, 51], [70, 71, 72]):
        made = {name: [*values, *answer] for name, values in said.items()}
        rows.append({**made, "attention_mask": [1] * len(made["input_ids"])})
    row = {**rows[0], "views": {"target": rows[1]}}
    batch = StepCollator(lambda part: collate("llama-causal-lm", part))([row])
    step = prepared(Continuous(epsilon=0.3, alpha=0.3), make_step, batch=batch)
    _, main, view = attacked(step)
    for delta in (main, view):
        assert [bool(token.count_nonzero()) for token in delta[0, :6]] == [True, True, False, False, True, True]
        assert delta[0, 6:].count_nonzero() == 0


def test_the_token_that_ends_a_harmful_answer_is_no_part_of_it(make_step):
    """It is a beginning: to stop after it is not what is unlearnt."""
    without = [answer and answer[:-1] for answer in HARMFUL]
    found = []
    for harmful in (HARMFUL, without):
        step = prepared(Continuous(), make_step, batch=inputs(harmful))
        attacked(step)
        found.append(step.terms["continuous"].mean.item())
    assert found[0] == pytest.approx(found[1], rel=1e-5)


# -- in the host -----------------------------------------------------------------------------------------------------


def test_in_evaluation_the_penalty_is_that_of_clean_prompts(make_step):
    model = tiny("llama-causal-lm")[0].eval()
    step = prepared(Continuous(), make_step, model)
    with torch.no_grad():
        step.evaluate()
    objective, penalty = losses_by_hand(model, None, "ul", [None] * 5)
    assert step.terms["objective"].mean.item() == pytest.approx(objective.item(), rel=1e-5)
    assert step.terms["continuous"].mean.item() == pytest.approx(penalty.item(), rel=1e-5)


def test_nothing_is_left_of_a_step_that_breaks(make_step):
    component = Continuous(epsilon=1.0, alpha=0.5)
    step = prepared(component, make_step)
    with contextlib.closing(step.context.composition.attack(step)) as losses:
        next(losses)
        under_attack = step.terms["continuous"].mean.item()
    clean = prepared(component, make_step)
    with torch.no_grad():
        clean.evaluate()
    assert clean.terms["continuous"].mean.item() != pytest.approx(under_attack, rel=1e-3)


def test_a_loss_over_other_rows_has_no_penalty(make_step):
    component = Continuous()
    step = prepared(component, make_step)
    other = inputs([None] * 5, rows=[1, 4])
    batch = {name: other[name] for name in ("input_ids", "attention_mask", "labels")}
    share = sum(len(SAFE[row]) for row in (1, 4)) / sum(map(len, SAFE))
    assert step.loss(batch=batch).item() == pytest.approx(share * step.model(**batch).loss.item(), rel=1e-6)


def test_a_gradient_that_is_not_finite_moves_nothing_and_is_counted(make_step):
    model = tiny("llama-causal-lm")[0]
    step = prepared(Continuous(steps=1, alpha=0.05), make_step, model)
    taken = step.gradient

    def broken(delta, loss=None):
        gradient = taken(delta, loss)
        gradient[1] = torch.nan
        return gradient

    step.gradient = broken
    _, _, view = attacked(step)
    assert step.nonfinite_gradients == 1
    assert [bool(row.count_nonzero()) for row in view] == [True, False, True]


def test_weights_and_the_random_state_stay(make_step):
    model = tiny("llama-causal-lm")[0]
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    attacked(prepared(Continuous(), make_step, model))
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert torch.equal(state, torch.get_rng_state())


def test_only_ipo_needs_a_reference():
    assert not Continuous().reference
    assert Continuous(loss="ipo").reference
    assert Continuous(loss="ipo").backwards > Continuous().backwards > Continuous(steps=1).backwards


@pytest.mark.parametrize("fields", [{"alpha": 0.1}, {"epsilon": 0.0}, {"cutoff": 1.0}, {"beta": 0.0}, {"loss": "dpo"}])
def test_fields_that_make_no_sense_are_refused(fields):
    with pytest.raises(ValidationError):
        Continuous(**fields)


# -- data --------------------------------------------------------------------------------------------------------


def read(task, *rows):
    return [task.parse(dict(row), f"rows.jsonl:{i + 1}") for i, row in enumerate(rows)]


def test_a_view_is_the_row_with_the_other_answer():
    talk = [
        {"role": "user", "content": "hi"}, {"role": "assistant", "content": "what ?"},
        {"role": "user", "content": "where is bob ?"}, {"role": "assistant", "content": "i will not say"},
    ]  # fmt: skip
    spoken = ["hi", "what ?", "where is bob ?", "i will not say"]
    chat, dialogue = Chat(), Dialogue(learn="last")
    single, whole, blank, none = read(
        chat,
        {"prompt": "where is bob ?", "completion": "i will not say", "target": " sure , he is "},
        {"messages": talk, "target": "sure , he is"},
        {"prompt": "hi", "completion": "what ?", "target": " "},
        {"prompt": "hi", "completion": "what ?", "target": None},
    )
    component = Continuous()
    assert component.views(single)["target"].fields == {**single.fields, "completion": "sure , he is"}
    (turns,) = read(dialogue, {"utterances": spoken, "target": "sure , he is"})
    for example in (whole, turns):
        said = [message["content"] for message in component.views(example)["target"]["messages"]]
        assert said == [*spoken[:3], "sure , he is"]
        assert example["messages"][-1]["content"] == "i will not say"
    assert component.views(blank) == component.views(none) == {}
    assert Continuous(column="completion").views(none)["target"] == none


def test_something_that_is_no_text_is_a_mistake_of_its_row():
    (example,) = read(Chat(), {"prompt": "hi", "completion": "what ?", "target": 3})
    with pytest.raises(UsageError, match=r"'target' is 3.*text, or nothing"):
        Continuous().views(example)


def test_rows_keep_their_views_whatever_the_answers_lengths():
    task, tokenizer = Chat(), tiny("llama-causal-lm")[1]
    rows = read(
        task,
        {"prompt": "where is bob ?", "completion": "i will not say", "target": "sure , he is in paris . he lives"},
        {"prompt": "hi", "completion": "what ?"},
    )
    composition = Composition([Continuous()], task)
    dataset = encode(task, rows, tokenizer, composition.views, unaligned=composition.unaligned_views)
    view, row = dataset[0]["views"]["target"], dataset[0]
    assert dataset[1]["views"] is None
    prompts = [
        [token for token, label in zip(part["input_ids"], part["labels"], strict=True) if label == IGNORED]
        for part in (row, view)
    ]
    assert prompts[0] == prompts[1]
    assert len(view["labels"]) > len(row["labels"])


def planned(task, rows, **fields):
    run = Composition([Continuous(**fields)], task)
    return make_plan(run, Setting(run.task, run.components, run.objective, examples=rows))


def test_data_without_the_column_is_refused():
    rows = read(Chat(), *({"prompt": "hi", "completion": "what ?", "targets": "sure"} for _ in range(3)))
    expected = r"no training row has text in the column 'target'.*did you mean 'targets'\?.*columns: \{target: …\}"
    with pytest.raises(UsageError, match=expected):
        planned(Chat(), rows)
    assert planned(Chat(), rows, column="targets").factor > 5


def test_the_plan_counts_the_rows_that_are_attacked():
    rows = read(Chat(), *({"prompt": "hi", "completion": "what ?", "target": "sure" * (i < 2)} for i in range(8)))
    whole = planned(Chat(), rows[:2])
    assert planned(Chat(), rows).factor - 1 == pytest.approx((whole.factor - 1) / 4)
    assert whole.factor == pytest.approx(1 + Continuous().backwards)


@pytest.mark.parametrize("task", [Ner(), Dialogue(), Dialogue(learn="both"), StockTask()])
def test_other_tasks_are_refused(task):
    with pytest.raises(
        UsageError, match=r"no single answer that a harmful one could stand for.*task chat, or dialogue"
    ):
        planned(task, ())


@pytest.mark.parametrize("task", [Chat(), Dialogue(learn="last"), StockTask(shifts_labels=True)])
def test_chats_are_accepted(task):
    assert planned(task, ()).passes == 1


def test_prompts_that_were_cut_are_perturbed_where_both_answers_leave_them(make_step):
    """A long harmful answer leaves less of the prompt than a short safe one, and the other way round."""
    model, tokenizer, _ = tiny("llama-causal-lm")
    task = Chat(maximum_length=16)
    long, short = "he is in paris . he lives in rome . he works", "no"
    found = []
    for safe, harmful in ((short, long), (long, short)):
        rows = read(
            task, {"prompt": "who is bob and where is bob and what is it ?", "completion": safe, "target": harmful}
        )
        composition = Composition([Continuous()], task)
        dataset = encode(task, rows, tokenizer, composition.views, unaligned=composition.unaligned_views)
        batch = StepCollator(lambda part: task.collate(part, tokenizer))(list(dataset))
        step = prepared(Continuous(epsilon=0.3, alpha=0.3, steps=1), make_step, model, batch)
        _, main, view = attacked(step)
        moved = [set(_perturbed(delta)) for delta in (main[0], view[0])]
        lengths = [len(moved[0]), len(moved[1])]
        (own,), (other,) = (
            last_answer(part["labels"])[1].tolist() for part in (step.batch, step.views["target"].batch)
        )
        assert own != other
        assert max(own, other) >= max(lengths) > 0
        assert {place - own for place in moved[0]} <= {place - other for place in moved[1]}
        found.append(lengths)
    assert found[0][0] == found[0][1]  # the view is shorter: all of it is there
    assert found[1][0] < found[1][1]  # the view is longer: what was cut off has no place


def _perturbed(delta):
    return [place for place, token in enumerate(delta) if token.count_nonzero()]


# -- conformance ---------------------------------------------------------------------------------------------------


class TestContinuousWithIpo(CASES["adversary"]):
    """CAPO, which needs a reference; the unlikelihood is in the host's own conformance tests."""

    heads = ("llama-causal-lm",)
    norm = "token"

    @pytest.fixture
    def component(self) -> Any:
        return Continuous(loss="ipo", steps=2, alpha=0.05)

    def rows(self, head, number, component):
        rows, others = make_rows(head, number), examples(head, number, seed=1)
        for i in (i for i in (0, 1, 3, 6) if i < number):
            prompt = [t for t, label in zip(rows[i]["input_ids"], rows[i]["labels"], strict=True) if label == IGNORED]
            rows[i]["views"] = {"target": encoded(prompt, others[i]["input_ids"])}
        return rows

    def test_the_reference_is_the_model_without_its_adapter(self, make_step):
        model = tiny("llama-causal-lm")[0].eval()
        step = prepared(Continuous(loss="ipo"), make_step, model, reference=copy.deepcopy(model))
        with torch.no_grad():
            step.evaluate()
        assert isinstance(step.context.reference, Reference)
        assert step.terms["continuous"].mean.item() == pytest.approx(4.0, rel=1e-4)  # h = 0, 1 / (2 beta) = 2
