"""Whole runs on tiny models, plain and aligned with everything at once: what they leave, and whether it is true."""

from __future__ import annotations

import json
import os
import random
import re
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

import alignkit
from alignkit import run_folder
from alignkit.errors import UsageError
from alignkit.recipe import Recipe

SPLITS = {"train": "train", "validation": "dev", "test": "test"}
COMPONENTS = (
    "length duplicates lexicon typos kl-reference counterfactual fgm ema replay linear".split()  # noqa: SIM905
)
ALIGNED = """
model: {model}
task: ner
data: {{train: new.conll, validation: dev.conll, test: test.conll}}
filters: [{{use: length, minimum: 5, maximum: 60}}, duplicates, {{use: lexicon, words: words.txt, action: mask}}]
augmenters: [typos]
constraints:
  - {{use: kl-reference, weight: {{use: budget, limit: 0.001}}}}
  - {{use: counterfactual, weight: {{use: warmup, steps: 5}}}}
adversary: {{use: fgm, epsilon: 0.5}}
averaging: {{use: ema, decay: 0.5}}
fusion: {{use: linear, members: [{model}], weights: [3, 1]}}
updater: {{use: replay, size: 20}}
evaluation: {{under: [typos], gaps: [counterfactual], replicates: 200}}
early_stopping: {{patience: 1}}
training: {{num_train_epochs: 2, learning_rate: 1.0e-3, logging_steps: 1}}
output: aligned
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, ner_data: Path, plain_run: Path) -> Path:
    """Where the aligned run's recipe and data are."""
    folder = tmp_path_factory.mktemp("whole")
    for split in ("dev", "test"):
        (folder / f"{split}.conll").write_bytes((ner_data / f"{split}.conll").read_bytes())
    blocks = (ner_data / "train.conll").read_text("utf-8").strip().split("\n\n")[:24]
    short = "ada\tB-PER\n.\tO"  # too short; and the first sentence a second time
    (folder / "new.conll").write_text("\n\n".join([*blocks, short, blocks[0]]) + "\n", "utf-8")
    (folder / "words.txt").write_text("film\n", "utf-8")
    (folder / "recipe.yaml").write_text(ALIGNED.format(model=plain_run), "utf-8")
    return folder


@pytest.fixture(scope="module")
def said() -> list[str]:
    return []


@pytest.fixture(scope="module")
def aligned(folder: Path, said: list[str]) -> alignkit.Run:
    return alignkit.train(folder / "recipe.yaml", say=said.append)


def read(path: Path) -> Any:
    return json.loads(path.read_text("utf-8"))


# -- what is in the folder ---------------------------------------------------------------------------------------


def test_a_run_leaves_what_the_design_says(aligned: alignkit.Run, plain_run: Path) -> None:
    left = {path.name for path in aligned.path.iterdir()}
    everywhere = {"model", "recipe.yaml", "metrics.json", "report.html", "README.md", "audit.jsonl", "checkpoints"}
    assert left == everywhere | {"memory", "lineage.json"}
    assert {path.name for path in plain_run.iterdir()} == everywhere | {"lineage.json"}
    assert not [path for path in aligned.path.rglob("*") if path.name.endswith((".tmp", ".old", ".fused"))]


def test_metrics_say_before_after_and_difference(aligned: alignkit.Run, plain_run: Path) -> None:
    plain, metrics = read(plain_run / "metrics.json"), read(aligned.path / "metrics.json")
    assert metrics == aligned.metrics
    assert "before" not in plain  # nothing to compare a fresh head with
    assert (metrics["task"], metrics["seeds"]) == ("ner", [42])
    assert metrics["seconds"] > aligned.seconds > 0
    splits = {"validation", "test", "test under typos"}
    for side in ("before", "after", "difference"):
        assert set(metrics[side]) == splits
        found = metrics[side]["test"]
        assert {"f1", "precision", "recall", "f1/PER", "f1/LOC", "gap/counterfactual"} == set(found)
        assert {"value", "low", "high", "n"} <= set(found["f1"])
        assert found["f1"]["low"] <= found["f1"]["value"] <= found["f1"]["high"]
        assert found["f1"]["n"] == 24
    for split in splits:  # the plain run measured the same model on the same rows
        if split != "test under typos":
            assert metrics["before"][split]["f1"]["value"] == plain["after"][split]["f1"]["value"]
    one, other = metrics["before"]["test"]["f1"]["value"], metrics["after"]["test"]["f1"]["value"]
    assert metrics["difference"]["test"]["f1"]["value"] == pytest.approx(other - one)


def test_metrics_and_lineage_are_json_that_any_reader_takes(aligned: alignkit.Run) -> None:
    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    for name in ("metrics.json", "lineage.json"):
        json.loads((aligned.path / name).read_text("utf-8"), parse_constant=refuse)


def test_the_audit_says_what_was_dropped_and_edited(aligned: alignkit.Run, folder: Path) -> None:
    lines = [json.loads(line) for line in (aligned.path / "audit.jsonl").read_text("utf-8").splitlines()]
    dropped = {line["row"]: line for line in lines if line["action"] == "drop"}
    assert dropped[24]["component"] == "length"
    assert (dropped[24]["rule"], dropped[24]["value"], dropped[24]["threshold"]) == ("minimum", 2, 5)
    assert (dropped[25]["component"], dropped[25]["survivor"]) == ("duplicates", 0)
    sentences = (folder / "new.conll").read_text("utf-8").strip().split("\n\n")
    with_film = {number for number, block in enumerate(sentences) if "film\t" in block}
    masked = {line["row"] for line in lines if line["action"] == "edit"}
    assert masked == with_film - set(dropped)
    for line in lines:
        assert line["source"] == "new.conll"
        assert (folder / "new.conll").read_text("utf-8").splitlines()[line["line"] - 1].split("\t")[0] in line["text"]


def test_report_card_and_plan_name_every_component(aligned: alignkit.Run, said: list[str]) -> None:
    report, card = (aligned.path / "report.html").read_text("utf-8"), (aligned.path / "README.md").read_text("utf-8")
    for name in COMPONENTS:
        assert name in report
        assert name in said[0]
        assert name in card
    assert "budget" in report
    assert "warmup" in report
    assert not re.findall(r"""(?:src|href)=["'](?!#|data:)""", report)  # nothing to fetch
    assert yaml.safe_load(card.split("---")[1])["model-index"]


def test_lineage_holds_ancestors_and_digests(aligned: alignkit.Run, plain_run: Path) -> None:
    import hashlib

    def sha256(path: Path) -> str:
        return hashlib.sha256(path.read_bytes()).hexdigest()

    lineage = read(aligned.path / "lineage.json")
    weights = plain_run / "model" / "model.safetensors"
    assert lineage["model"] == str(plain_run)
    assert lineage["model_sha256"] == {"model.safetensors": sha256(weights)}
    assert lineage["merged_sha256"] == {str(plain_run): {"model.safetensors": sha256(weights)}}
    assert lineage["result_sha256"] == {"model.safetensors": sha256(aligned.path / "model" / "model.safetensors")}
    assert lineage["recipe_sha256"] == sha256(aligned.path / "recipe.yaml")
    assert set(lineage["data_sha256"]) == {"new.conll", "dev.conll", "test.conll"}
    (ancestor,) = lineage["ancestors"]
    assert ancestor["result_sha256"] == lineage["model_sha256"]
    assert "ancestors" not in ancestor


# -- whether it is true ------------------------------------------------------------------------------------------


def test_every_component_acted(aligned: alignkit.Run, plain_run: Path) -> None:
    checkpoint = max(aligned.path.glob("checkpoints/checkpoint-*"), key=lambda p: int(p.name.split("-")[1]))
    history = read(checkpoint / "trainer_state.json")["log_history"]
    logged = {name for entry in history for name in entry}
    assert {"penalty/kl-reference", "weighted/counterfactual", "eval_penalty/kl-reference", "eval_f1"} <= logged
    states = {path.name for path in (checkpoint / "components").iterdir()}
    assert {"ema.safetensors", "kl-reference.weight.json", "counterfactual.weight.json"} <= states
    memory = (aligned.path / "memory" / "replay" / "examples.jsonl").read_text("utf-8").splitlines()
    assert len(memory) == 20
    assert any("***" in line for line in memory)  # as the filters left them


def test_the_saved_model_is_the_weighted_mean_that_was_evaluated(aligned: alignkit.Run, plain_run: Path) -> None:
    from safetensors.torch import load_file

    saved = load_file(aligned.path / "model" / "model.safetensors")
    start = load_file(plain_run / "model" / "model.safetensors")
    live = aligned.model.state_dict()
    assert all(live[name].equal(value) for name, value in saved.items())
    best = read(max(aligned.path.glob("checkpoints/*/trainer_state.json"), key=lambda p: p.stat().st_mtime))
    average = load_file(Path(best["best_model_checkpoint"]) / "components" / "ema.safetensors")
    for name, value in average.items():
        name = name.removeprefix("average.")
        assert saved[name].allclose(0.75 * value + 0.25 * start[name], atol=1e-6), name


def test_a_run_again_from_its_own_recipe_gives_the_same_bytes(aligned: alignkit.Run, tmp_path: Path) -> None:
    recipe = Recipe.load(aligned.path / "recipe.yaml")
    assert recipe == Recipe.load(aligned.path.parent / "recipe.yaml")
    again = alignkit.train(Recipe.load(aligned.path / "recipe.yaml", overrides=[f"output={tmp_path / 'again'}"]))
    for name in ("model/model.safetensors", "audit.jsonl", "memory/replay/examples.jsonl"):
        assert (again.path / name).read_bytes() == (aligned.path / name).read_bytes()
    assert {**again.metrics, "seconds": 0} == {**aligned.metrics, "seconds": 0}


def test_the_next_run_rehearses_what_this_one_remembered(aligned: alignkit.Run, ner_data: Path, tmp_path: Path) -> None:
    recipe = Recipe(
        model=str(aligned.path),
        task="ner",
        data={"train": {"path": "train.conll", "rows": "30:40"}, "test": "test.conll"},
        updater={"use": "replay", "size": 20, "share": 0.5},
        evaluation={"replicates": 100},
        training={"num_train_epochs": 1, "per_device_train_batch_size": 1},
        output=str(tmp_path / "next"),
        base=ner_data,
    )
    run = alignkit.train(recipe)
    state = read(next(run.path.glob("checkpoints/*/trainer_state.json")))
    assert state["global_step"] == 10 + 5  # half as many rehearsed rows as new ones
    before, after = (read(path / "memory" / "replay" / "state.json")["facts"] for path in (aligned.path, run.path))
    assert after["seen"] == before["seen"] + 10  # a rehearsed row is not counted a second time
    assert len(read(run.path / "lineage.json")["ancestors"]) == 2


# -- the other tasks, LoRA, and scores by other libraries --------------------------------------------------------


def rows(numbers: range) -> str:
    """Films and what is said of them, as JSON lines."""
    found = []
    for number in numbers:
        draw = random.Random(number)
        label = draw.choice(["good", "bad"])
        words = draw.sample(["the", "film", "she", "saw", "ada", "bob", "in", "paris", "was", "very"], 6)
        found.append(json.dumps({"text": " ".join([*words, label]), "label": label}))
    return "\n".join(found) + "\n"


@pytest.fixture(scope="module")
def classified(tmp_path_factory: pytest.TempPathFactory, encoder: Path) -> alignkit.Run:
    """A plain run, then LoRA on its model with constraints, an adversary, an average and a fusion."""
    folder = tmp_path_factory.mktemp("classified")
    (folder / "train.jsonl").write_text(rows(range(64)), "utf-8")
    (folder / "dev.jsonl").write_text(rows(range(100, 116)), "utf-8")
    (folder / "test.jsonl").write_text(rows(range(200, 224)), "utf-8")
    common: dict[str, Any] = {
        "task": "text-classification",
        "data": {"train": "train.jsonl", "validation": "dev.jsonl", "test": {"films": "test.jsonl"}},
        "evaluation": {"replicates": 100},
        "base": folder,
    }
    training = {"num_train_epochs": 2, "learning_rate": 3e-3}
    alignkit.train(Recipe(model=str(encoder), training=training, output="plain", **common))
    aligned = Recipe(
        model="plain",
        peft={"method": "lora", "r": 4},
        constraints=["counterfactual", {"use": "kl-reference", "weight": 0.1}],
        adversary="fgm",
        averaging="ema",
        fusion={"use": "linear", "members": ["plain"]},
        updater="replay",
        training={**training, "num_train_epochs": 1, "gradient_accumulation_steps": 2},
        output="aligned",
        **common,
    )
    return alignkit.train(aligned)


@pytest.fixture(scope="module")
def chatting(tmp_path_factory: pytest.TempPathFactory, language_model: Path) -> alignkit.Run:
    folder = tmp_path_factory.mktemp("chatting")
    for name, numbers in (("train", range(16)), ("test", range(20, 28))):
        lines = []
        for number in numbers:
            place = random.Random(number).choice(["paris", "rome"])
            lines.append(json.dumps({"prompt": f"where is {place} ?", "completion": f"{place} is very good ."}))
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n", "utf-8")
    recipe = Recipe(
        model=str(language_model),
        task="chat",
        data={"train": "train.jsonl", "test": "test.jsonl"},
        constraints=["kl-reference"],
        adversary="fgm",
        peft="lora",
        evaluation={"replicates": 100},
        training={"num_train_epochs": 2, "learning_rate": 1e-2, "per_device_train_batch_size": 4},
        output="run",
        base=folder,
    )
    return alignkit.train(recipe)


def test_scores_are_those_of_other_libraries_where_alignkit_is_not_installed(
    aligned: alignkit.Run, plain_run: Path, classified: alignkit.Run, chatting: alignkit.Run, folder: Path
) -> None:
    asked = [
        ["ner", plain_run / "model", folder / "test.conll"],
        ["ner", aligned.path / "model", folder / "test.conll"],
        ["text-classification", classified.path / "model", classified.path.parent / "test.jsonl"],
        ["chat", chatting.path / "model", chatting.path.parent / "test.jsonl"],
    ]
    script = Path(__file__).with_name("independent_evaluation.py")
    called = [sys.executable, str(script), json.dumps(asked, default=str)]
    ended = subprocess.run(called, capture_output=True, text=True, timeout=120, cwd=folder)
    assert ended.returncode == 0, ended.stderr
    plain, aligned_scores, films, answers = json.loads(ended.stdout.splitlines()[-1])
    assert plain["f1"] == pytest.approx(aligned.metrics["before"]["test"]["f1"]["value"], abs=1e-9)
    assert plain["f1"] > 0.2  # there was something to measure
    assert aligned_scores["f1"] == pytest.approx(aligned.metrics["after"]["test"]["f1"]["value"], abs=1e-9)
    measured = classified.metrics["after"]["test/films"]
    assert films == {name: pytest.approx(measured[name]["value"], abs=1e-9) for name in films}
    assert answers["perplexity"] == pytest.approx(chatting.metrics["after"]["test"]["perplexity"]["value"], rel=1e-4)


def test_a_language_model_is_compared_with_itself_before(chatting: alignkit.Run) -> None:
    before, after = (chatting.metrics[side]["test"]["perplexity"]["value"] for side in ("before", "after"))
    assert after < before
    (answer,) = alignkit.load(chatting.path).predict(["where is rome ?"], max_new_tokens=4)
    assert isinstance(answer["completion"], str)


def test_a_run_answers_as_its_folder_does(aligned: alignkit.Run, classified: alignkit.Run) -> None:
    texts = ["ada lives in paris .", "she saw rome ."]
    loaded = alignkit.load(aligned.path)
    assert loaded.predict(texts) == aligned.predict(texts)
    assert [answer["tokens"] for answer in loaded.predict(texts)] == [text.split() for text in texts]
    (answer,) = classified.predict([{"text": "the film was good"}])
    assert answer["label"] in ("good", "bad")
    assert sum(answer["scores"].values()) == pytest.approx(1, abs=1e-3)


# -- several processes, and several runs -------------------------------------------------------------------------


def test_two_processes_carry_out_one_run(plain_run: Path, ner_data: Path, tmp_path: Path) -> None:
    """Everything on, with the batch halved: the same scores as one process, and one folder."""
    recipe = {
        "model": str(plain_run), "task": "ner", "seed": 5,
        "data": {split: str(ner_data / f"{name}.conll") for split, name in SPLITS.items()},
        "constraints": ["kl-reference", "counterfactual"], "adversary": "fgm", "updater": "replay",
        "averaging": {"use": "ema", "decay": 0.5}, "fusion": {"use": "linear", "members": [str(plain_run)]},
        "evaluation": {"under": ["typos"], "gaps": ["counterfactual"], "replicates": 50},
        "training": {"max_steps": 4, "eval_steps": 2, "eval_strategy": "steps", "learning_rate": 1e-3,
                     "train_sampling_strategy": "sequential", "optim": "sgd", "use_cpu": True, "ddp_backend": "gloo"},
    }  # fmt: skip
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {**os.environ, "OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    command = [sys.executable, "-m", "alignkit", "train"]
    started = []
    for rank, size in ((0, 4), (1, 4), (None, 8)):
        file = tmp_path / f"{size}.yaml"
        training = {**recipe["training"], "per_device_train_batch_size": size, "per_device_eval_batch_size": size}
        if rank is None:
            del training["ddp_backend"]
        file.write_text(yaml.safe_dump({**recipe, "training": training, "output": str(tmp_path / f"run-{size}")}))
        world = {"WORLD_SIZE": "2", "RANK": str(rank), "LOCAL_RANK": str(rank)} if rank is not None else {}
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        started.append(subprocess.Popen([*command, str(file)], env={**shared, **world}, **options))
    said = [process.communicate(timeout=240)[0] for process in started]
    assert [process.returncode for process in started] == [0, 0, 0], "\n".join(said)
    two, one = (json.loads((tmp_path / f"run-{size}" / "metrics.json").read_text("utf-8")) for size in (4, 8))
    for side in ("before", "after"):
        for split, metrics in one[side].items():
            found = {name: cell["value"] for name, cell in two[side][split].items()}
            assert found == pytest.approx({name: cell["value"] for name, cell in metrics.items()}, abs=1e-5)
    logged = [
        json.loads(
            (max((tmp_path / f"run-{size}" / "checkpoints").iterdir()) / "trainer_state.json").read_text("utf-8")
        )
        for size in (4, 8)
    ]
    for together, alone in zip(*(state["log_history"] for state in logged), strict=True):
        losses = {name: value for name, value in alone.items() if "loss" in name or "penalty" in name}
        assert {name: together[name] for name in losses} == pytest.approx(losses, rel=1e-2, abs=1e-5)  # dropout


def test_a_folder_takes_one_run_at_a_time(plain_run: Path, ner_data: Path, tmp_path: Path) -> None:
    from alignkit import run_folder

    recipe = Recipe(
        model=str(plain_run), task="ner", data={"train": "train.conll"}, output=str(tmp_path / "run"), base=ner_data
    )
    with run_folder.reserved(recipe), pytest.raises(UsageError, match="another process is writing a run into it"):
        alignkit.train(recipe)
    assert not (tmp_path / "run").exists()


# -- what a run refuses before it trains -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ({"filters": [{"use": "lexicon", "words": "run/own.txt"}]}, "filter lexicon words"),
        ({"constraints": [{"use": "counterfactual", "lists": ["names", "run/own.txt"]}]}, "constraint counterfactual"),
        ({"controls": [{"use": "refusal-policy", "phrases": "run/own.txt"}]}, "control refusal-policy phrases"),
        (
            {"evaluation": {"evaluators": [{"use": "refusals", "harmful": "run/own.txt", "harmless": "other.txt"}]}},
            "evaluator refusals harmful",
        ),
    ],
)
def test_overwrite_deletes_nothing_that_a_component_reads(parts: Any, said: str, encoder: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    recipe = Recipe(model=str(encoder), task="ner", data={"train": "train.conll"}, output="run", base=tmp_path, **parts)
    run.mkdir()
    recipe.save(run / "recipe.yaml")
    (run / "own.txt").write_text("rome\tparis\n", "utf-8")
    with pytest.raises(UsageError, match=rf"output .*: {said}.* is in it, and would be deleted"):
        alignkit.train(recipe, overwrite=True)
    assert (run / "own.txt").is_file()
    (run / "own.txt").unlink()
    assert run_folder.checked(recipe, resume=False, overwrite=True) == run


def test_rows_that_a_prompt_leaves_no_positions_for_are_refused(language_model: Path, tmp_path: Path) -> None:
    """`chat` goes by its `maximum_length` alone."""
    words = "the film was good and the actor was fine " * 8
    row = json.dumps({"prompt": "how was it ?", "completion": words})
    (tmp_path / "train.jsonl").write_text(row + "\n", "utf-8")
    fields = {
        "model": str(language_model),
        "task": {"use": "chat", "maximum_length": 60},
        "data": {"train": "train.jsonl"},
        "peft": {"method": "prompt-tuning", "num_virtual_tokens": 10},
        "training": {"max_steps": 1},
        "output": str(tmp_path / "run"),
        "base": tmp_path,
    }
    with pytest.raises(UsageError) as e:
        alignkit.train(Recipe(**fields))
    assert str(e.value) == (
        "data.train: a row of 60 tokens; expected 54 at most, which is what the model and the virtual tokens before "
        "the text have room for; set the task's `maximum_length: 54`, or fewer `num_virtual_tokens` under `peft:`"
    )
    assert not (tmp_path / "run").exists()
    assert alignkit.train(Recipe(**fields | {"task": {"use": "chat", "maximum_length": 54}}))


def test_a_model_in_which_nothing_is_trained_is_refused(plain_run: Path, ner_data: Path, tmp_path: Path) -> None:
    from alignkit.models import load, save
    from alignkit.models.adapters import Peft
    from alignkit.tasks.ner import Ner

    task = Ner()
    model, tokenizer = load(plain_run / "model", task, peft=Peft(method="prompt-tuning", num_virtual_tokens=2))
    save(model, tokenizer, tmp_path / "prompted")
    recipe = Recipe(
        model=str(tmp_path / "prompted"),
        task="ner",
        data={"train": "train.conll"},
        output=str(tmp_path / "run"),
        base=ner_data,
    )
    with pytest.raises(alignkit.UsageError, match="nothing in it requires a gradient; expected something to train"):
        alignkit.train(recipe)
    assert not (tmp_path / "run").exists()


def test_a_task_that_takes_no_labels_from_the_data_is_refused(encoder: Path, ner_data: Path, tmp_path: Path) -> None:
    from alignkit.tasks.ner import Ner

    class Forgetful(Ner):
        """Named entities, but nobody is shown the data."""

        def prepare(self, splits: Any) -> None:
            self.labels = []

    recipe = Recipe(
        model=str(encoder),
        task=Forgetful(),
        data={"train": "train.conll"},
        output=str(tmp_path / "run"),
        base=ner_data,
    )
    with pytest.raises(alignkit.UsageError, match=r"2 outputs, where task forgetful knows 0 labels; .* prepare\(\)"):
        alignkit.train(recipe)
    assert not (tmp_path / "run").exists()
