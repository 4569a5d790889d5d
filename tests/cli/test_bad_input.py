"""What users get wrong: exit code 2, a message that lets them mend it, no traceback, nothing written."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from alignkit.testing.run_cases import base_model

Ended = tuple[int, str, str]
Cli = Callable[..., Ended]

DATA = {"train": "train.conll", "validation": "dev.conll", "test": "test.conll"}


@pytest.fixture
def folder(tmp_path: Path, encoder: Path, ner_data: Path) -> Path:
    """A folder with data, a model and a recipe that would run."""
    for file in ner_data.iterdir():
        shutil.copy(file, tmp_path)
    shutil.copytree(encoder, tmp_path / "encoder")
    (tmp_path / "rows.csv").write_text("sentence,label\ngood film,a\nbad film,b\n", "utf-8")
    return tmp_path


def recipe(folder: Path, **fields: Any) -> Path:
    """A recipe file with some fields changed; None leaves one out."""
    values = {"model": "encoder", "task": "ner", "data": DATA, "training": {"max_steps": 1}, "output": "run", **fields}
    file = folder / "recipe.yaml"
    file.write_text(json.dumps({k: v for k, v in values.items() if v is not None}), "utf-8")  # JSON is YAML
    return file


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else b"" for p in folder.rglob("*")}


def refused(cli: Cli, folder: Path, *arguments: object, says: list[str]) -> None:
    """The command ends as a mistake of the user's, says these words, and leaves every file as it was."""
    before = snapshot(folder)
    code, out, err = cli(*arguments)
    assert code == 2, f"{code}\n{out}\n{err}"
    assert "Traceback" not in err
    assert "Traceback" not in out
    for words in says:
        assert words in err, err
    assert snapshot(folder) == before


# -- recipes -----------------------------------------------------------------------------------------------------

RECIPES: dict[str, tuple[dict[str, Any], list[str]]] = {
    "a field that is misspelt": ({"adversray": "fgm"}, ["adversray", "unknown field", "did you mean 'adversary'?"]),
    "a component that is misspelt": ({"adversary": "fmg"}, ["adversary", "did you mean 'fgm'?"]),
    "a component's field that is misspelt": (
        {"adversary": {"use": "fgm", "epsilonn": 1}},
        ["adversary.epsilonn", "did you mean 'epsilon'?"],
    ),
    "a value of another type": ({"seed": "many"}, ["seed", "'many'", "an integer"]),
    "a negative radius": ({"adversary": {"use": "fgm", "epsilon": -1}}, ["adversary.epsilon", "-1", "greater than 0"]),
    "a component by another writing of its name": ({"adversary": "FGM"}, ["adversary", "did you mean 'fgm'?"]),
    "a component that needs a field": (
        {"constraints": [{"use": "kl-reference", "weight": "budget"}]},
        ["constraints.0.weight.limit", "missing", "write {use: budget, limit: …}"],
    ),
    "a mapping where a list belongs": ({"filters": {"use": "length"}}, ["filters", "a list", "begin each item"]),
    "a path where a section belongs": ({"data": "train.conll"}, ["data", "a mapping", "write {train: 'train.conll'}"]),
    "a bare name where a list belongs": ({"filters": "length"}, ["filters", "a list", "write [length]"]),
    "a number where a list of them belongs": (
        {"adversary": {"use": "latent", "layers": 0.5}, "evaluation": {"attacks": [{"use": "pgd", "radii": 0.1}]}},
        [
            "adversary.layers: 0.5; expected a list; write [0.5]",
            "evaluation.attacks.0.radii: 0.1; expected a list; write [0.1]",
        ],
    ),
    "no model": ({"model": None}, ["model", "missing"]),
    "no output": ({"output": None}, ["output", "missing", "--output"]),
    "a training argument that alignkit owns": (
        {"training": {"output_dir": "x"}},
        ["training.output_dir", "alignkit sets it itself", "write `output:`"],
    ),
    "an unknown training argument": (
        {"training": {"learning_rat": 1e-3}},
        ["training.learning_rat", "did you mean 'learning_rate'?"],
    ),
    "a batch of nothing": (
        {"training": {"per_device_train_batch_size": 0, "learning_rate": -1}},
        ["training.per_device_train_batch_size", "1 or more", "training.learning_rate", "0 or more"],
    ),
    "a training argument at the top": ({"learning_rate": 1e-3}, ["learning_rate", "training.learning_rate"]),
    "what training arguments are called for short": (
        {"epochs": 3, "batch_size": 8, "lr": 1e-3, "lora": True},
        ["training.num_train_epochs", "training.per_device_train_batch_size", "training.learning_rate", "`peft: lora`"],
    ),
    "an adversary that begins after the end": (
        {"adversary": {"use": "awp", "start": 0.99}, "training": {"max_steps": 4}},
        ["adversary awp", "none of its 4 steps is left", "`start` at most 0.75"],
    ),
    "an adapter's module that is not there": (
        {"peft": {"method": "lora", "target_modules": ["q_proj"]}},
        ["peft.target_modules", "no module 'q_proj'", "query"],
    ),
    "an adapter's module beside a field that is not there": (
        {"peft": {"method": "lora", "rr": 8, "alpha": 0, "target_modules": ["quary"], "modules_to_save": "no"}},
        [
            "peft.rr: unknown field 'rr'; did you mean 'r'?",
            "peft.alpha: 0; expected a number greater than 0",
            "peft.modules_to_save: 'no'; expected a list",
            "peft.target_modules: no module 'quary'; did you mean 'query'?",
        ],
    ),
    "early stopping without validation": (
        {"early_stopping": {"patience": 1}, "data": {"train": "train.conll"}},
        ["early_stopping", "no validation split", "data.validation"],
    ),
    "early stopping without evaluation": (
        {"early_stopping": {"patience": 1}, "training": {"eval_strategy": "no"}},
        ["training.eval_strategy", "'no'", "epoch or steps"],
    ),
    "early stopping without the checkpoints of its evaluations": (
        {"early_stopping": {"patience": 1}, "training": {"eval_strategy": "steps", "save_strategy": "epoch"}},
        ["training.save_strategy", "'epoch'", "steps, as eval_strategy"],
    ),
    "a component by its name alone": ({"filters": [{"length": 3}]}, ["filters.0", "write {use: length, …}"]),
    "two of what there can be one": ({"adversary": ["fgm", "pgd"]}, ["adversary", "there can be one"]),
    "early stopping by a metric that is not measured": (
        {"early_stopping": {"patience": 1, "metric": "f2"}},
        ["early_stopping.metric", "'f2'", "there is f1, "],
    ),
    "a peft method that is not there": ({"peft": "lorra"}, ["peft", "'lorra'", "lora"]),
    "an option of another peft method": (
        {"peft": {"method": "lora", "num_virtual_tokens": 4}},
        ["peft", "num_virtual_tokens", "not an option of lora"],
    ),
    "peft and freezing": ({"peft": "lora", "freeze": ["embeddings"]}, ["freeze, peft", "both"]),
    "freezing what is not there": ({"freeze": ["embedings"]}, ["'embedings'", "no parameter", "embeddings"]),
    "freezing by patterns that are none": ({"freeze": ["[", "embedings"]}, ["freeze '['", "freeze 'embedings'"]),
    "a vocabulary of nothing": ({"head": {"vocab_size": 0}}, ["head: no bert can be made with it (IndexError"]),
    "heads that do not divide the width": (
        {"head": {"num_attention_heads": 7}},
        ["head: no bert can be made with it (ValueError", "a multiple of the number of attention heads"],
    ),
    "an activation that is not there": ({"head": {"hidden_act": "nope"}}, ["head: no bert", "KeyError: 'nope'"]),
    "a width that the weights do not have": (
        {"head": {"intermediate_size": 12}},
        ["head: a field under it changes the shape of bert.encoder.layer.0.intermediate.dense.bias"],
    ),
    "lists of what is only measured": (
        {"evaluation": {"gaps": [{"use": "counterfactual", "lists": ["nope.tsv"]}]}},
        ["nope.tsv"],
    ),
    "copies that the task cannot have": (
        {"evaluation": {"under": ["mentions"]}},
        ["recipe.yaml:1 augmenter mentions: task ner, whose labels are not of a whole text"],
    ),
    "freezing everything": ({"freeze": [".*"]}, ["every parameter is frozen"]),
    "a reference whose head was never trained": (
        {"constraints": ["kl-reference"]},
        ["constraint kl-reference", "never trained", "train it plainly first"],
    ),
    "a reference that is not there": (
        {"constraints": ["kl-reference"], "reference": "enkoder"},
        ["reference 'enkoder'", "encoder"],
    ),
    "two components that adjust one thing": (
        {"plugins": ["two.py"], "adversary": "fgm", "constraints": ["attacker"]},
        ["fgm", "attacker", "both implement attack"],
    ),
    "a plugin file that is not there": ({"plugins": ["none.py"]}, ["plugins", "none.py"]),
    "fusion members that are not there": (
        {"fusion": {"use": "linear", "members": ["runs/a", "runs/b"]}},
        ["fusion.members 'runs/a'", "fusion.members 'runs/b'", "no folder of that name"],
    ),
    "a fusion of nothing": ({"fusion": "linear"}, ["fusion.members", "none"]),
    "a model that is not there": ({"model": "encodr"}, ["model 'encodr'", "did you mean 'encoder'?"]),
    "a model that is a file": ({"model": "train.conll"}, ["model 'train.conll'", "a file", "a model folder"]),
    "an output that is a file": ({"output": "train.conll"}, ["train.conll", "is a file", "a folder"]),
    "an output under a file": ({"output": "train.conll/run"}, ["train.conll is a file", "a folder"]),
    "an output that holds something else": ({"output": "encoder"}, ["encoder", "not empty and holds no run"]),
    "an output that cannot be written": ({"output": "/proc/alignkit-run"}, ["/proc", "not writable"]),
    "a word list that is not there": (
        {"filters": [{"use": "lexicon", "words": "bad.txt"}]},
        ["bad.txt", "no such file", "one per line"],
    ),
    "a swap list that is not there": (
        {"constraints": [{"use": "counterfactual", "lists": ["gendr"]}]},
        ["gendr", "did you mean 'gender'?"],
    ),
    "filters that leave nothing": (
        {"filters": [{"use": "length", "minimum": 500}]},
        ["filters", "none of 64 training examples is left", "length minimum"],
    ),
    "the same component twice under one name": (
        {"filters": [{"use": "length", "name": "x"}, {"use": "duplicates", "name": "x"}]},
        ["filters.1.name", "'x' is taken"],
    ),
}

TWO = """
from alignkit import Constraint, Registration, Term, hookimpl

@hookimpl
def alignkit_components():
    yield Registration("constraint", "attacker", f"{__name__}:Attacker", "Attacks although it is a constraint.")

class Attacker(Constraint):
    def penalty(self, step, outputs): ...
    def attack(self, step):
        yield step.loss()
"""


@pytest.mark.parametrize("case", RECIPES)
def test_a_bad_recipe_is_refused(case: str, folder: Path, alignkit_cli: Cli) -> None:
    fields, says = RECIPES[case]
    (folder / "two.py").write_text(TWO, "utf-8")
    refused(alignkit_cli, folder, "train", recipe(folder, **fields), says=says)


def test_all_mistakes_are_said_at_once_with_their_lines(folder: Path, alignkit_cli: Cli) -> None:
    file = folder / "recipe.yaml"
    file.write_text("model: encoder\ntask: nerr\ndata: {train: train.conll}\nseed: x\noutput: run\n", "utf-8")
    refused(
        alignkit_cli, folder, "train", file, says=["recipe.yaml:2 task", "did you mean 'ner'?", "recipe.yaml:4 seed"]
    )


def test_mistakes_in_all_parts_are_said_at_once(folder: Path, alignkit_cli: Cli) -> None:
    (folder / "dev.conll").write_text("ada\tB-PER\n\nin\nrome\tB-LOC\tx\n", "utf-8")
    file = recipe(
        folder,
        seed="x",
        adversary={"use": "fgm", "epsilonn": 1},
        constraints=["kl-reference", {"use": "counterfactual", "lists": ["gendr"]}],
        fusion={"use": "linear", "members": ["runs/a"]},
        peft={"method": "lora", "target_modules": ["quary"]},
        head={"dropuot": 0.1},
        evaluation={
            "attacks": ["deepwordbug", "pdg"],
            "evaluators": [{"use": "refusals", "harmful": "a.csv", "harmless": "rows.csv"}],
        },
    )
    says = ["'x'; expected an integer", "did you mean 'epsilon'?", "did you mean 'pgd'?", "a.csv: no such file"]
    says += ["rows.csv:2", "dev.conll:3", "did you mean 'gender'?", "fusion.members 'runs/a'", "did you mean 'query'?"]
    says += ["'dropuot'", "never trained", "task ner answers no prompts"]
    refused(alignkit_cli, folder, "check", file, says=says)
    refused(alignkit_cli, folder, "train", file, "--output", folder / "encoder", says=[*says, "holds no run"])


def test_what_cannot_go_together_is_said_with_its_line(folder: Path, alignkit_cli: Cli) -> None:
    file = folder / "recipe.yaml"
    lines = ["model: encoder", "task: ner", "data: {train: train.conll, test: test.conll}", "constraints:"]
    lines += ["- r-drop", "- kl-reference", "evaluation:", "  evaluators:", "  - calibration", "  - use: refusals"]
    lines += ["    harmful: rows.csv", "    harmless: rows.csv", "freeze: [embedings]", "reference: nowhere/a"]
    file.write_text("\n".join(lines[:-1]), "utf-8")
    says = ["recipe.yaml:6 constraint kl-reference", "recipe.yaml:10 evaluator refusals", "recipe.yaml:13 freeze 'emb"]
    refused(alignkit_cli, folder, "check", file, says=says)
    lines[4], lines[8] = "- r-drpo", "  - calibratoin"
    file.write_text("\n".join(lines[:-1]), "utf-8")
    refused(alignkit_cli, folder, "check", file, says=["r-drop", "calibration", *says])
    file.write_text("\n".join([*lines[:4], "- kl-reference", lines[-1]]), "utf-8")
    refused(alignkit_cli, folder, "check", file, says=["recipe.yaml:6 reference 'nowhere/a'"])


def test_a_model_that_is_not_there_hides_no_row_and_no_component(folder: Path, alignkit_cli: Cli) -> None:
    (folder / "train.conll").write_text("ada\tPERSON\n", "utf-8")
    file = recipe(
        folder, model="encodr", objective="dpo", early_stopping={"patience": 1, "metric": "f2"}, freeze=["embedings"]
    )
    says = ["did you mean 'encoder'?", "tag 'PERSON'", "objective: dpo on task ner"]
    _, _, err = alignkit_cli("check", file)
    assert len(err.splitlines()) == len(says), err
    refused(alignkit_cli, folder, "check", file, says=says)


def test_a_model_that_is_not_there_hides_no_attack_that_the_task_does_not_allow(
    folder: Path, alignkit_cli: Cli
) -> None:
    file = recipe(folder, model="encodr", evaluation={"attacks": ["gcg"]})
    refused(alignkit_cli, folder, "check", file, says=["did you mean 'encoder'?", "attack gcg"])


def test_no_model_is_made_converted_or_fetched_before_a_mistake_is_told(
    folder: Path, alignkit_cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    asked = []

    def download(name: str, local_files_only: bool, **_: Any) -> str:
        asked.append((name, local_files_only))
        raise OSError("not in the cache")

    monkeypatch.setenv("ALIGNKIT_CACHE", str(folder / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    size = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    scratch = {"config": {"model_type": "bert", **size}, "tokenizer": "encoder"}
    (folder / "model.gguf").write_bytes(b"GGUF" + bytes(64))
    for model in (scratch, "model.gguf", "owner/name"):
        fields: dict[str, Any] = {"model": model, "reference": "owner/other", "constraints": ["kl-reference"]}
        for changed in ({"adversray": "fgm"}, {"data": {**DATA, "test": "none.conll"}}):
            before = snapshot(folder)
            file = recipe(folder, **fields, **changed)
            code, _, err = alignkit_cli("check", file)
            assert code == 2
            assert len(err.splitlines()) == 1, err
            assert "adversray" in err or "none.conll" in err
            assert snapshot(folder).keys() - before.keys() <= {"recipe.yaml"}
    assert set(asked) == {("owner/name", True), ("owner/other", True)}
    refused(alignkit_cli, folder, "check", recipe(folder, model="owner/name"), says=["the hub did not give it"])
    assert asked[-1] == ("owner/name", False)
    assert alignkit_cli("check", recipe(folder, model=scratch))[0] == 0
    assert (folder / "cache" / "scratch").is_dir()
    refused(
        alignkit_cli,
        folder,
        "check",
        recipe(folder, model=scratch, freeze=["embedings"], adversray="fgm"),
        says=["adversray", "'embedings'"],
    )


def test_files_are_looked_at_where_the_task_or_another_split_is_not_known(folder: Path, alignkit_cli: Cli) -> None:
    (folder / "dev.conll").write_text("ada\tPERSON\n", "utf-8")
    data = {"train": "trian.conll", "validation": "dev.conll", "tset": "test.conll"}
    says = ["'tset'", "trian.conll: no such file", "dev.conll:1: tag 'PERSON'", "did you mean 'encoder'?"]
    refused(alignkit_cli, folder, "check", recipe(folder, data=data, model="encodr"), says=says)
    code, _, err = alignkit_cli("check", recipe(folder, data={**DATA, "train": "trian.conll"}, task="nerr"))
    assert code == 2
    assert [line.partition("; ")[0].partition(" ")[2] for line in err.splitlines()] == [
        "task: no task is called 'nerr'",
        "no such file",
    ]


FOLLOWS: dict[str, tuple[dict[str, Any], str]] = {
    "a reference that is misspelt": ({"constraints": ["kl-reference"], "refrence": "encoder"}, "'refrence'"),
    "a reference component that is misspelt": (
        {"constraints": ["kl-refrence"], "cache_hidden_states": True, "task": "causal-lm", "data": {"train": "t.txt"}},
        "kl-refrence",
    ),
    "an adapter that is misspelt": ({"peft": "lorra", "freeze": ["embeddings"]}, "'lorra'"),
    "a section that is misspelt": ({"data": None, "dta": {"train": "train.conll"}}, "'dta'"),
    "a task that is misspelt": (
        {"task": "nerr", "constraints": ["kl-reference"], "peft": {"method": "lora", "target_modules": ["q"]}},
        "'nerr'",
    ),
    "an override that cannot be read": ({"model": "nowhere/a", "--set": "model=["}, "not YAML"),
    "a plugin that is not there": ({"plugins": ["none.py"], "constraints": ["attacker"]}, "none.py"),
    "a split that is misspelt": (
        {"data": {"train": "train.conll", "tset": "test.conll"}, "evaluation": {"attacks": ["pgd"]}},
        "'tset'",
    ),
    "labels that are not known": (
        {
            "task": "text-classification",
            "data": {"train": {"path": "rows.csv", "columns": {"text": "sentenc"}}},
            "constraints": [{"use": "group-fairness", "column": "dialect", "outcome": "a"}],
        },
        "'sentenc'",
    ),
    "a training argument at the top": (
        {
            "per_device_train_batch_size": 8,
            "training": {"per_device_train_batch_size": 1},
            "task": "text-classification",
            "data": {"train": {"path": "rows.csv", "columns": {"text": "sentence"}}},
            "constraints": [{"use": "group-fairness", "column": "sentence"}],
        },
        "'per_device_train_batch_size'",
    ),
}


@pytest.mark.parametrize("case", FOLLOWS)
def test_what_only_follows_from_a_mistake_is_not_said(
    case: str, folder: Path, language_model: Path, alignkit_cli: Cli
) -> None:
    fields, found = FOLLOWS[case]
    (folder / "t.txt").write_text("ada saw rome\n", "utf-8")
    model = {"model": str(language_model)} if fields.get("task") == "causal-lm" else {}
    fields, override = {**model, **fields}, ["--set", fields["--set"]] if "--set" in fields else []
    fields.pop("--set", None)
    code, _, err = alignkit_cli("check", recipe(folder, **fields), *override)
    assert code == 2
    assert found in err
    assert len(err.splitlines()) == 1, err


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", ["an empty file", "a mapping"]),
        (b"- a\n- b\n", ["['a', 'b']", "a mapping"]),
        (b"model: [\n", ["recipe.yaml:2", "not YAML"]),
        (b"model: a\ndata:\n\ttrain: a.conll\n", ["recipe.yaml:3", "not with tabs"]),
        (b"model: a\ntask:ner\nseed: 3\n", ["recipe.yaml:2", "a space after the colon"]),
        (b"model: a\nadversary: {use:fgm, epsilon:0.1}\n", ["recipe.yaml:2", "'use:fgm'", "a space after the colon"]),
        (b"model: a\n task: ner\n", ["recipe.yaml:2", "indent it as its neighbours are"]),
        (
            b"model: a\nmodel: b\ntask: ner\ndata: {train: train.conll}\n",
            ["recipe.yaml:2 model", "a second 'model'", "line 1"],
        ),
        (b"model: a\ntask: \xff\n", ["recipe.yaml:2", "0xff", "UTF-8"]),
    ],
    ids=[
        "empty",
        "a list",
        "not YAML",
        "tabs",
        "no space",
        "no space in braces",
        "indented",
        "a key twice",
        "not UTF-8",
    ],
)
def test_a_file_that_is_no_recipe_is_refused(content: bytes, says: list[str], folder: Path, alignkit_cli: Cli) -> None:
    (folder / "recipe.yaml").write_bytes(content)
    refused(alignkit_cli, folder, "train", folder / "recipe.yaml", says=["recipe.yaml", *says])


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("seed", ["--set seed", "no `=`", "FIELD=VALUE"]),
        ("adversary.epsilon=-1", ["--set adversary.epsilon=-1"]),
        ("sede=3", ["sede", "did you mean 'seed'?"]),
        ("filters.7.use=length", ["--set filters.7.use=length", "filters is a list of 0"]),
        ("seed=[", ["--set seed=[", "not YAML"]),
    ],
)
def test_a_bad_override_is_refused(override: str, says: list[str], folder: Path, alignkit_cli: Cli) -> None:
    file = recipe(folder, filters=[])
    refused(alignkit_cli, folder, "train", file, "--set", override, says=says)


def test_a_recipe_that_is_not_there_or_a_folder_is_refused(folder: Path, alignkit_cli: Cli) -> None:
    refused(alignkit_cli, folder, "train", folder / "none.yaml", says=["none.yaml", "no such file"])
    refused(alignkit_cli, folder, "train", folder, says=["a directory", "a recipe file"])


# -- models ------------------------------------------------------------------------------------------------------


def test_a_broken_model_is_refused(folder: Path, alignkit_cli: Cli) -> None:
    file, weights = recipe(folder), folder / "encoder" / "model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[: len(content) // 2])
    refused(alignkit_cli, folder, "train", file, says=["model 'encoder'", "model.safetensors cannot be read", "again"])
    weights.unlink()
    refused(alignkit_cli, folder, "train", file, says=["model 'encoder'", "no model.safetensors"])
    weights.write_bytes(content)
    for tokenizer in folder.glob("encoder/tokenizer*"):
        tokenizer.rename(folder / tokenizer.name)
    refused(alignkit_cli, folder, "train", file, says=["its tokenizer cannot be loaded", "save the tokenizer"])
    (folder / "encoder" / "config.json").unlink()
    refused(alignkit_cli, folder, "train", file, says=["model 'encoder'", "no config.json"])


# -- data --------------------------------------------------------------------------------------------------------

CONLL: dict[str, tuple[str, bytes, list[str]]] = {
    "a ragged row": ("train", b"ada\tB-PER\n\nin\nrome\tB-LOC\tx\n", ["train.conll:3", "1 column", "train.conll:4"]),
    "a tag of no scheme": ("train", b"ada\tPERSON\n", ["train.conll:1", "tag 'PERSON'", "B-TYPE"]),
    "a span that does not begin": ("train", b"ada\tI-PER\n", ["train.conll:1", "'I-PER'", "`repair: true`"]),
    "an unknown label in the test split": (
        "test",
        b"ada\tB-PER\nmonday\tB-DAY\n",
        ["test.conll:2", "tag 'B-DAY'", "a type of the training data"],
    ),
    "an empty split": ("dev", b"", ["dev.conll", "no rows"]),
    "no entity at all": ("train", b"ada\tO\nsaw\tO\n", ["train.conll", "every word is tagged O", "entities"]),
    "invalid UTF-8": ("train", b"ada\tB-PER\n\xff\tO\n", ["train.conll:2", "0xff", "UTF-8"]),
    "UTF-16": ("train", "ada\tB-PER\n".encode("utf-16"), ["train.conll:1", "UTF-16", "save the file as UTF-8"]),
}


@pytest.mark.parametrize("case", CONLL)
def test_a_bad_conll_file_is_refused(case: str, folder: Path, alignkit_cli: Cli) -> None:
    split, content, says = CONLL[case]
    (folder / f"{split}.conll").write_bytes(content)
    refused(alignkit_cli, folder, "train", recipe(folder), says=says)


ROWS: dict[str, tuple[str, Any, list[str]]] = {
    "no such file": ("ner", "trian.conll", ["trian.conll", "no such file", "did you mean 'train.conll'?"]),
    "a folder": ("ner", "encoder", ["encoder", "a directory", "a file"]),
    "a file of another kind": ("ner", "rows.csv", ["rows.csv", "unknown kind (.csv)", ".conll"]),
    "a label column that is missing": (
        "text-classification",
        {"path": "rows.csv", "columns": {"text": "sentence", "label": "lable"}},
        ["rows.csv:2", "no column 'lable'", "did you mean 'label'?"],
    ),
    "a label column that is missing beside another that is mapped": (
        "text-classification",
        {"path": "rows.csv", "columns": {"text": "sentence", "label": "sentiment"}},
        ["rows.csv:2", "no column 'sentiment' in 2 rows; there is label"],
    ),
    "columns that need a name": (
        "text-classification",
        "rows.csv",
        ["rows.csv:2", "no 'text'", "columns: {text: …}"],
    ),
    "one class": (
        "text-classification",
        {"path": "rows.csv", "columns": {"text": "sentence"}, "rows": ":1"},
        ["rows.csv", "every row has the label 'a'"],
    ),
    "a slice that is no slice": (
        "text-classification",
        {"path": "rows.csv", "rows": "1-3"},
        ["data.train.rows", "'1-3'", "'100:'"],
    ),
    "a slice with nothing in it": (
        "text-classification",
        {"path": "rows.csv", "columns": {"text": "sentence"}, "rows": "50:"},
        ["rows.csv", "no rows in the slice '50:'"],
    ),
}


@pytest.mark.parametrize("case", ROWS)
def test_data_that_cannot_be_used_is_refused(case: str, folder: Path, alignkit_cli: Cli) -> None:
    task, train, says = ROWS[case]
    refused(alignkit_cli, folder, "train", recipe(folder, task=task, data={"train": train}), says=says)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ('{"prompt": "hi"}\n', ["rows.jsonl:1", "no 'completion'"]),
        ('{"prompt": "hi", "completion": "ho"}\n{"prompt"\n', ["rows.jsonl:2", "not JSON"]),
        ('{"prompt": "hi", "prompt": "ha", "completion": "ho"}\n', ["rows.jsonl:1", "'prompt' twice"]),
        ('["hi", "ho"]\n', ["rows.jsonl:1", "a JSON list", "a JSON object"]),
        ('{"messages": [{"role": "user", "content": "hi"}]}\n', ["rows.jsonl:1", "assistant"]),
    ],
    ids=["no completion", "not JSON", "a key twice", "a list", "no answer"],
)
def test_bad_chat_rows_are_refused(
    content: str, says: list[str], folder: Path, language_model: Path, alignkit_cli: Cli
) -> None:
    (folder / "rows.jsonl").write_text(content, "utf-8")
    file = recipe(folder, model=str(language_model), task="chat", data={"train": "rows.jsonl"})
    refused(alignkit_cli, folder, "train", file, says=says)


# -- folders that hold something ---------------------------------------------------------------------------------


def test_a_finished_run_is_not_replaced_or_mixed_with_another(folder: Path, plain_run: Path, alignkit_cli: Cli) -> None:
    shutil.copytree(plain_run, folder / "run")
    file = recipe(folder)
    refused(alignkit_cli, folder, "train", file, says=["there is a run in it already", "--resume", "--overwrite"])
    refused(
        alignkit_cli, folder, "train", file, "--resume", says=["has another model, evaluation, training", "--overwrite"]
    )
    refused(alignkit_cli, folder, "train", file, "--resume", "--overwrite", says=["both"])


def test_what_a_run_reads_is_not_overwritten(folder: Path, plain_run: Path, alignkit_cli: Cli) -> None:
    shutil.copytree(plain_run, folder / "run")
    file = recipe(folder, model="run")
    refused(alignkit_cli, folder, "train", file, "--overwrite", says=["model", "would be deleted", "--output"])
    shutil.copy(folder / "train.conll", folder / "run")
    file = recipe(folder, data={"train": "run/train.conll"})
    refused(alignkit_cli, folder, "train", file, "--overwrite", says=["data", "would be deleted"])


def test_a_mistake_is_found_before_a_run_is_overwritten(folder: Path, plain_run: Path, alignkit_cli: Cli) -> None:
    shutil.copytree(plain_run, folder / "run")
    file = recipe(folder, freeze=["embedings"])
    refused(alignkit_cli, folder, "train", file, "--overwrite", says=["'embedings'"])


def test_a_memory_with_labels_that_the_new_data_lack_is_refused(
    folder: Path, plain_run: Path, alignkit_cli: Cli
) -> None:
    shutil.copytree(plain_run, folder / "before")
    remembered = {"tokens": ["ada", "saw", "monday"], "tags": ["B-PER", "O", "B-DAY"]}
    (folder / "before" / "memory" / "replay").mkdir(parents=True)
    (folder / "before" / "memory" / "replay" / "examples.jsonl").write_text(json.dumps(remembered) + "\n", "utf-8")
    file = recipe(folder, model="before", updater="replay")
    refused(alignkit_cli, folder, "train", file, says=["memory row 0", "tag 'B-DAY'", "updater replay"])
    (folder / "before" / "memory" / "replay" / "examples.jsonl").write_text("{", "utf-8")
    refused(alignkit_cli, folder, "train", file, says=["memory cannot be read"])


# -- other commands ----------------------------------------------------------------------------------------------


def test_predict_refuses_what_it_cannot_answer(folder: Path, plain_run: Path, alignkit_cli: Cli) -> None:
    texts, rows = folder / "texts.txt", folder / "rows.jsonl"
    texts.write_bytes(b"ada\n\xff\n")
    rows.write_text('{"text": "ada"}\n{"txt": "ada"}\n[1\n7\n', "utf-8")
    (folder / "empty.txt").write_text("\n", "utf-8")

    def predict(*arguments: object, says: list[str]) -> None:
        refused(alignkit_cli, folder, "predict", *arguments, says=says)

    predict(plain_run, says=["no text", "--input"])
    predict(folder / "data", "x", says=["does not exist"])
    predict(folder, "x", says=["no config.json"])
    predict(folder / "encoder", "x", says=["does not say which task", "--task"])
    both = base_model(folder / "t5", "AutoModelForSeq2SeqLM")
    predict(
        both, "x", says=["does not say which task", "summarization or translation", "name it: --task summarization"]
    )
    predict(folder / "encoder", "x", "--task", "translation", says=["bert cannot generate", "an encoder-decoder"])
    predict(folder / "encoder", "x", "--task", "ner", says=["no head that was trained for ner"])
    predict(plain_run, "x", "--task", "nerr", says=["did you mean 'ner'?"])
    predict(plain_run, "--input", folder / "none.txt", says=["none.txt", "no such file"])
    predict(plain_run, "--input", folder / "empty.txt", says=["empty.txt", "nothing in it"])
    predict(plain_run, "--input", folder / "rows.csv", says=["a .csv file", ".jsonl"])
    predict(plain_run, "--input", texts, says=["texts.txt:2", "0xff", "UTF-8"])
    predict(plain_run, "--input", rows, says=["rows.jsonl:3", "no JSON", "rows.jsonl:4", "an object or a string"])
    rows.write_text('{"text": "ada"}\n{"txt": "ada"}\n', "utf-8")
    predict(plain_run, "--input", rows, says=["text 2", "tokens"])
    predict(plain_run, "x", "--output", folder / "no" / "where", says=["there is no folder"])
    predict(plain_run, "x", "--output", folder / "encoder", says=["a folder", "a file to write"])
    predict(plain_run, "--input", folder / "train.conll", says=["a .conll file", ".txt"])


def test_evaluate_refuses_what_it_cannot_score(folder: Path, plain_run: Path, alignkit_cli: Cli) -> None:
    def evaluate(*arguments: object, says: list[str]) -> None:
        refused(alignkit_cli, folder, "evaluate", *arguments, says=says)

    (folder / "unlabelled.jsonl").write_text('{"tokens": ["ada"]}\n', "utf-8")
    (folder / "other.conll").write_text("monday\tB-DAY\n", "utf-8")
    evaluate(plain_run, "--data", folder / "unlabelled.jsonl", says=["unlabelled.jsonl:1", "no 'tags'"])
    evaluate(
        plain_run, "--data", folder / "other.conll", says=["other.conll:1", "B-DAY", "a type that the model knows"]
    )
    evaluate(plain_run, "--data", folder / "none.conll", says=["none.conll", "no such file"])
    evaluate(plain_run / "model", says=["a model has no data of its own", "--data"])
    evaluate(folder / "none", says=["does not exist"])
    shutil.copytree(plain_run, folder / "deep" / "er" / "run")
    evaluate(folder / "deep" / "er" / "run", says=["test.conll: no such file", "name a labelled file with --data"])


def test_fuse_refuses_what_cannot_be_one_model(folder: Path, plain_run: Path, alignkit_cli: Cli) -> None:
    def fuse(*arguments: object, says: list[str], method: str = "linear") -> None:
        refused(alignkit_cli, folder, "fuse", *arguments, "--method", method, says=says)

    output = ["--output", folder / "fused"]
    other = folder / "other"
    shutil.copytree(plain_run / "model", other)
    text = (other / "tokenizer.json").read_text("utf-8")
    (other / "tokenizer.json").write_text(text.replace('"paris"', '"patis"'), "utf-8")
    fuse(plain_run, other, *output, says=["tokenizers differ", "one tokenizer"])
    fuse(plain_run, folder / "encoder", *output, says=["architectures", "one architecture"])
    fuse(plain_run, *output, says=["1 model", "at least two"])
    fuse(plain_run, plain_run, *output, method="linaer", says=["--method linaer", "did you mean 'linear'?"])
    fuse(plain_run, plain_run, *output, "--weights", "1", says=["1 numbers", "2, one per model"])
    fuse(plain_run, plain_run, *output, "--weights", "1,x", says=["--weights 1,x", "numbers: 1,0.5,0.2"])
    fuse(plain_run, plain_run, *output, "--set", "normalize=true", says=["--set normalize=true", "'normalise'"])
    fuse(plain_run, plain_run, *output, "--set", "normalise=[", says=["--set normalise=[", "not YAML"])
    fuse(plain_run, other, "--output", other, says=["there is a model in it already", "--overwrite"])
    fuse(plain_run, other, "--output", other, "--overwrite", says=["one of the members"])
    fuse(plain_run, folder / "none", *output, says=["does not exist"])


def test_filter_refuses_to_lose_or_mislabel_data(folder: Path, alignkit_cli: Cli) -> None:
    file = recipe(folder, filters=["length"])
    train, out = folder / "train.conll", folder / "out.jsonl"

    def filtered(*arguments: object, says: list[str]) -> None:
        refused(alignkit_cli, folder, "filter", *arguments, "--recipe", file, says=says)

    filtered(train, "--output", train, says=["train.conll", "it is read, and would be overwritten"])
    filtered(train, "--output", file, says=["recipe.yaml", "would be overwritten"])
    filtered(train, "--output", out, "--audit", train, says=["train.conll", "would be overwritten"])
    filtered(train, "--output", out, "--audit", out, says=["named for two outputs"])
    filtered(train, "--output", folder / "no" / "out.jsonl", says=["there is no folder"])
    filtered(train, "--output", folder / "out.csv", says=["out.csv", ".jsonl"])
    filtered(folder / "none.conll", "--output", out, says=["none.conll", "no such file"])
    file = recipe(folder)
    filtered(train, "--output", out, says=["filters", "none", "add `filters: [length]`"])


def test_an_unknown_command_or_option_is_refused(folder: Path, alignkit_cli: Cli) -> None:
    refused(alignkit_cli, folder, "trian", says=["trian"])
    refused(alignkit_cli, folder, "train", recipe(folder), "--sett", "a=1", says=["--sett"])


def test_debug_shows_where_it_was_raised(folder: Path, alignkit_cli: Cli) -> None:
    code, _, err = alignkit_cli("--debug", "train", recipe(folder, seed="many"))
    assert code == 2
    assert "Traceback" in err
    assert "RecipeError" in err
