"""`alignkit check`: all mistakes of recipe and data together, the plan at the end, the schema."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from alignkit import cli

Ended = tuple[int, str, str]

RECIPE = """\
model: plain
task: ner
data: {train: train.conll, validation: dev.conll}
"""
CONLL = "Anna B-PER\nlives O\nin O\nRome B-LOC\n\nBo B-PER\nleft O\n"


@pytest.fixture
def check(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Ended]:
    """Writes a recipe and its data, and checks it: exit code, stdout, stderr without the folder."""
    monkeypatch.setenv("ALIGNKIT_PLUGINS", "")
    (tmp_path / "train.conll").write_text(CONLL)
    (tmp_path / "dev.conll").write_text(CONLL)

    def ended(recipe: str, *arguments: str) -> Ended:
        (tmp_path / "recipe.yaml").write_text(recipe)
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            cli.main(["check", str(tmp_path / "recipe.yaml"), *arguments])
        out, err = capsys.readouterr()
        return int(caught.value.code or 0), out, err.replace(f"{tmp_path}/", "")

    return ended


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    """A tiny encoder with a tokenizer, as `model:` names it."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "Anna", "lives", "in", "Rome"]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]")
    fast.save_pretrained(tmp_path / "plain")
    size = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    BertModel(BertConfig(vocab_size=len(words), **size)).save_pretrained(tmp_path / "plain")
    return tmp_path / "plain"


def test_a_sound_recipe_ends_with_its_plan(check: Callable[..., Ended], plain: Path) -> None:
    code, out, err = check(RECIPE)
    assert (code, err) == (0, "")
    assert out.startswith("Plan\n")
    assert "supervised" in out


def test_mistakes_of_recipe_and_data_come_together(check: Callable[..., Ended], plain: Path, tmp_path: Path) -> None:
    (tmp_path / "dev.conll").write_text("Anna B-PER\nlives\n")
    code, out, err = check(RECIPE + "seed: x\nadversery: fgm\n")
    assert (code, out) == (2, "")
    assert err.splitlines()[:2] == [
        "recipe.yaml:4 seed: 'x'; expected an integer",
        "recipe.yaml:5 adversery: unknown field 'adversery'; did you mean 'adversary'?",
    ]
    assert "dev.conll:2" in err.splitlines()[2]
    assert "Traceback" not in err


def test_missing_data_and_a_missing_model_are_the_users_to_mend(check: Callable[..., Ended], tmp_path: Path) -> None:
    code, _, err = check(RECIPE.replace("train.conll", "none.conll"))
    assert code == 2
    assert "none.conll" in err
    code, _, err = check(RECIPE)
    assert code == 2
    assert "plain" in err


def test_overrides_are_checked_too(check: Callable[..., Ended], plain: Path) -> None:
    code, _, err = check(RECIPE, "--set", "seed=x", "--set", "training.learning_rte=1")
    assert code == 2
    assert err.splitlines() == [
        "--set training.learning_rte=1: unknown field 'learning_rte'; did you mean 'learning_rate'?",
        "--set seed=x: 'x'; expected an integer",
    ]


def test_the_schema_is_one_json_document(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALIGNKIT_PLUGINS", "")
    with pytest.raises(SystemExit) as caught:
        cli.main(["check", "--schema"])
    assert not caught.value.code
    assert json.loads(capsys.readouterr().out)["title"] == "alignkit recipe"


def test_a_check_needs_a_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["check"])
    assert caught.value.code == 2
    assert capsys.readouterr().err == "alignkit check: no recipe; expected the path of a recipe; or --schema\n"
