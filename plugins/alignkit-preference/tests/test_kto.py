"""KTO's mismatched pairs; its loss is held to TRL's in `test_trl.py`."""

from __future__ import annotations

import pytest
import torch
from alignkit_preference import KTO, Preference, shared_prompt
from alignkit_preference.kto import kto_losses, mismatched

from alignkit.compose import Composition
from alignkit.errors import UsageError
from alignkit.plan import Setting, make_plan

PAIRS = [([7, 8, 9, 30], [11, 12], [13, 14, 15, 6]), ([20], [21, 22, 23, 24, 6], [25]), ([9, 9, 12], [6], [40, 41, 6])]


class Padding:
    pad_token_id = 11  # a token that is text, too


@pytest.mark.parametrize("shared", [True, False])
def test_prompts_get_the_answers_of_the_row_before(shared):
    batch = Preference(shared_prompt=shared).collate([shared_prompt.row(*pair) for pair in PAIRS], Padding())
    expected = [shared_prompt.row(PAIRS[i][0], *PAIRS[i - 1][1:]) for i in range(3)]
    assert mismatched(batch, longest=512) == expected


def test_prompts_that_would_be_too_long_lose_their_beginning():
    batch = Preference().collate([shared_prompt.row(*pair) for pair in PAIRS], Padding())
    found = mismatched(batch, longest=6)
    assert [row["position_ids"] for row in found] != [row["position_ids"] for row in mismatched(batch, longest=512)]
    assert all(max(row["position_ids"]) < 6 for row in found)
    assert found[0] == shared_prompt.row(PAIRS[0][0][-3:], *PAIRS[2][1:])
    assert found[2] == shared_prompt.row(PAIRS[2][0][-1:], PAIRS[1][1][:5], PAIRS[1][2])


def test_drift_is_never_below_zero_and_zero_for_a_pair_alone(make_pair_step):
    """The policy's mean log-ratio of mismatched pairs is negative; the reference's, exchanged, is TRL's .196."""
    objective = KTO()
    for exchanged, rows, expected in ((False, 5, 0.0), (True, 5, 0.19572), (True, 1, 0.0)):
        step = make_pair_step(objective, rows=slice(rows), exchanged=exchanged)
        assert objective._drift(step, rows).item() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("rows", [1, 5])
def test_a_process_with_a_pair_alone_takes_part_all_the_same(rows, make_pair_step):
    """Otherwise the other one, here with three pairs whose mean log-ratio is .5, would wait for it for ever."""
    step, asked = make_pair_step(KTO(), rows=slice(rows), exchanged=True), []

    def two_processes(own):
        asked.append(own)
        return (own + torch.tensor([3 * 0.5, 3.0])) / 2

    step.context.mean_over_processes = two_processes
    expected = 0.5 if rows == 1 else (5 * 0.19572 + 3 * 0.5) / 8
    assert step.context.composition.objective._drift(step, rows).item() == pytest.approx(expected, abs=1e-5)
    assert len(asked) == 1


def test_what_the_reference_says_of_mismatched_pairs_is_not_kept(make_pair_step, monkeypatch):
    step, asked = make_pair_step(KTO()), []
    ask = type(step).reference_label_log_probabilities

    def noted(step, batch=None, cached=True):
        asked.append((batch is step.batch, cached))
        return ask(step, batch, cached)

    monkeypatch.setattr(type(step), "reference_label_log_probabilities", noted)
    step.loss()
    assert sorted(asked) == [(False, False), (True, True)]


def test_weights_are_of_good_and_of_bad_answers():
    r = torch.tensor([0.3, -1.0])
    both = kto_losses(r, -r, 0.2, 0.5, 1.0, 1.0)
    good, bad = kto_losses(r, -r, 0.2, 0.5, 2.0, 0.0), kto_losses(r, -r, 0.2, 0.5, 0.0, 2.0)
    torch.testing.assert_close((good + bad) / 2, both)
    torch.testing.assert_close(good, 1 - torch.sigmoid(0.5 * (r - 0.2)))
    torch.testing.assert_close(bad, 1 - torch.sigmoid(0.5 * (0.2 + r)))


def test_one_pair_per_micro_batch_is_refused_and_accumulation_mentioned():
    composition = Composition([], Preference(), KTO())
    parts = (composition.task, [], composition.objective)
    with pytest.raises(UsageError, match=r"per_device_train_batch_size is 1.*apo-zero"):
        make_plan(composition, Setting(*parts, batch_size=1))
    plan = make_plan(composition, Setting(*parts, batch_size=4, accumulation=2))
    assert any("kto depends on which rows share a batch" in note for note in plan.notes)
    assert plan.factor == pytest.approx(2.0)  # two passes over mismatched pairs, and the reference's
