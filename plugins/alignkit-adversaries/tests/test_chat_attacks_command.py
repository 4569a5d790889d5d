"""`alignkit attack` on chat models: requests and targets from a file as data sets of harmful behaviours have them."""

from __future__ import annotations

import json

import pytest

from alignkit import cli
from alignkit.testing.run_cases import base_model

ROWS = 30
GCG = ("suffix_length=3", "steps=2", "width=6", "answer_tokens=3")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("chat")
    base_model(place / "model", "AutoModelForCausalLM")
    lines = [f"tell me secret {i},the cookie is in rome {i}" for i in range(ROWS)]
    (place / "behaviours.csv").write_text("\n".join(["goal,target", *lines, ""]), "utf-8")
    return place


def attacked(capfd, folder, method, *options):
    """(exit code, what it printed, what it said)."""
    data = ["--data", str(folder / "behaviours.csv"), "--column", "prompt=goal", "--column", "completion=target"]
    with pytest.raises(SystemExit) as ended:
        cli.main(["attack", str(folder / "model"), "--task", "chat", "--method", method, *data, *options])
    return (ended.value.code or 0, *capfd.readouterr())


def sets(*fields):
    return [part for field in fields for part in ("--set", field)]


def test_gcg(folder, capfd):
    code, out, err = attacked(capfd, folder, "gcg", "--limit", "2", "--replicates", "100", "--json", *sets(*GCG))
    assert (code, err) == (0, "")
    found = json.loads(out)
    metrics = found["after"]["test against gcg"]
    assert {name: metrics[name]["n"] for name in ("attack_success", "target_loss", "matched", "complied")} == {
        "attack_success": 2, "target_loss": 2, "matched": 2, "complied": 2,
    }  # fmt: skip
    assert metrics["target_loss"]["value"] < metrics["target_loss_before"]["value"]
    assert found["after"]["test"]["perplexity"]["n"] == 2, "rows that are not attacked were scored"
    assert [attempt["row"] for attempt in found["attempts"]] == [0, 15]
    for attempt in found["attempts"]:
        assert attempt["attacked"]["prompt"].startswith(attempt["input"]["prompt"] + " ")
        of_row = attempt["measures"]
        assert set(attempt["predicted"]) == set(attempt["under_attack"]) == {"target_loss", "reply"}
        assert attempt["predicted"]["target_loss"] == of_row["target_loss_before"]
        assert attempt["under_attack"]["target_loss"] == of_row["target_loss"]


def test_embeddings(folder, capfd):
    options = ["--limit", "3", "--replicates", "100", *sets("target=completion", "radii=[0.5,5]")]
    code, out, err = attacked(capfd, folder, "pgd", "--json", *options)
    assert (code, err) == (0, "")
    found = json.loads(out)["after"]
    assert found["test"]["perplexity"]["n"] == 3
    near, far = (found[f"test against pgd {radius}"]["target_loss"]["value"] for radius in ("0.5", "5"))
    assert far < near


def test_the_table(folder, capfd):
    code, out, _ = attacked(capfd, folder, "gcg", "--limit", "1", "--replicates", "100", *sets(*GCG))
    assert code == 0
    for name in ("test against gcg", "attack success ↓", "target loss ↑", "complied before", "queries"):
        assert name in out


def test_a_task_without_completions_is_refused(folder, capfd):
    (folder / "texts.jsonl").write_text('{"text": "bob saw ada"}\n', "utf-8")
    data = ["--data", str(folder / "texts.jsonl"), "--task", "causal-lm"]
    with pytest.raises(SystemExit) as ended:
        cli.main(["attack", str(folder / "model"), "--method", "gcg", *data])
    assert ended.value.code == 2
    assert "rows of task causal-lm are not one prompt and its completion" in capfd.readouterr().err
