"""Predictions come in order, leave the model as it was, and do not depend on batches or processes."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from alignkit.evaluation.score import gap, length_batches, measure, predictions, statistics_matrix


def one_by_one(task, model, examples):
    """The oracle: a plain loop, one row at a time."""
    model.eval()
    found = []
    for example in examples:
        encoded = task.encode(example, None)
        if encoded is None:
            found.append({})
            continue
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([encoded["input_ids"]])).logits
        found.append({"probabilities": logits.softmax(-1)[0].numpy()})
    return found


@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_predictions_are_those_of_a_plain_loop_in_the_order_of_the_examples(task, model, examples, batch_size):
    expected = one_by_one(task, model, examples)
    model.train()
    found = predictions(task, model, None, examples, batch_size)
    assert [bool(p) for p in found] == [bool(p) for p in expected]
    assert found[7] == {}
    for one, other in zip(found, expected, strict=True):
        if other:
            np.testing.assert_allclose(one["probabilities"], other["probabilities"], atol=1e-6)


def test_every_module_keeps_its_own_mode_and_random_state_is_untouched(task, model, examples):
    model.train()
    model.bert.embeddings.eval()
    modes = [module.training for module in model.modules()]
    state = torch.get_rng_state()
    predictions(task, model, None, examples)
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training


def test_modes_come_back_after_a_failure(task, model, examples):
    model.train()
    longer_than_the_model_reads = examples[0].replace(text="w " * 2000)
    with pytest.raises((RuntimeError, IndexError)):
        predictions(task, model, None, [longer_than_the_model_reads])
    assert all(module.training for module in model.modules())


def test_no_examples_no_predictions(task, model):
    assert predictions(task, model, None, []) == []
    assert measure(task, [], []) == {}


def test_statistics_of_an_empty_prediction_count(task, model, examples):
    found = predictions(task, model, None, examples)
    names, matrix = statistics_matrix(task, examples, found)
    assert names == ["rows", "right", "said", "hit"]
    assert matrix.shape == (24, 4)
    assert matrix[7].tolist() == [1, 0, 0, 0]
    right = sum(
        bool(p) and int(np.argmax(p["probabilities"])) == e["label"] for e, p in zip(examples, found, strict=True)
    )
    assert measure(task, examples, found)["accuracy"] == right / 24


def test_zero_over_zero_is_not_a_number_and_no_error(task, examples):
    assert np.isnan(measure(task, examples, [{}] * 24)["precision"])


def test_a_statistic_that_some_examples_lack_is_zero_there(examples):
    class Sparse:
        def statistics(self, example, prediction):
            return {prediction["name"]: 2.0}

    names, matrix = statistics_matrix(Sparse(), examples[:2], [{"name": "b"}, {"name": "a"}])
    assert names == ["b", "a"]
    assert matrix.tolist() == [[2, 0], [0, 2]]


def test_gap_is_missing_where_either_prediction_is(task, examples):
    def said(p):
        return {"probabilities": np.array([p, 1 - p])}

    found = gap(task, examples[:4], [said(0.5), said(0.5), {}, said(0.1)], [said(0.7), None, said(0.1), {}])
    assert found[0] == pytest.approx(0.2)
    assert np.isnan(found[1:]).all()


def test_batches_hold_rows_of_like_length_and_are_bounded_by_their_logits():
    assert length_batches({0: 3, 1: 9, 2: 5, 3: 9}, 2, 0) == [[1, 3], [2, 0]]
    assert length_batches({0: 1024, 1: 1024, 2: 2}, 32, 2**17) == [[0], [1], [2]]
    assert max(map(len, length_batches(dict.fromkeys(range(64), 256), 32, 2**15))) == 16


SCRIPT = """
import sys, torch
torch.distributed.init_process_group("gloo")
sys.path.insert(0, sys.argv[1])
import conftest
from alignkit.evaluation.score import predictions
task, examples = conftest.Topic(), conftest.examples.__wrapped__()
found = predictions(task, conftest.bag.__wrapped__(), None, examples, 4)
flat = [p["probabilities"].tolist() if p else [] for p in found]
with open(sys.argv[2] + str(torch.distributed.get_rank()), "w") as file:
    file.write(repr(flat))
torch.distributed.barrier()
torch.distributed.destroy_process_group()
"""


def test_two_processes_give_each_what_one_gives(task, bag, examples, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    path = os.pathsep.join(filter(None, sys.path))
    base = {**os.environ, "PYTHONPATH": path, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    command = [sys.executable, str(script), str(Path(__file__).parent), str(tmp_path / "rank")]
    started = [subprocess.Popen(command, env={**base, "RANK": str(rank)}) for rank in range(2)]
    assert [process.wait(300) for process in started] == [0, 0]
    alone = repr([p["probabilities"].tolist() if p else [] for p in predictions(task, bag, None, examples, 4)])
    assert [(tmp_path / f"rank{rank}").read_text() for rank in range(2)] == [alone] * 2
