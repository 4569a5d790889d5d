"""`alignkit evaluate` and `predict` without training: fields, demonstrations and columns from the command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

import alignkit

Cli = Callable[..., tuple[int, str, str]]
PROMPTED = ("--task", "prompted-classification", "--set", 'template="{text} it was {answer}"')
WORDS = ("--set", "verbalisers.0=bad", "--set", "verbalisers.1=good")


@pytest.fixture
def reviews(tmp_path: Path) -> Path:
    texts = ["she saw rome", "a very good film", "bob was bad", "it was a film", "ada in paris", "the film was bad"]
    rows = "".join(f"{text}\t{number % 2}\n" for number, text in enumerate(texts))
    (tmp_path / "reviews.tsv").write_text(f"sentence\tlabel\n{rows}", "utf-8")
    return tmp_path / "reviews.tsv"


@pytest.fixture(autouse=True)
def there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_a_model_classifies_without_training(language_model: Path, reviews: Path, alignkit_cli: Cli) -> None:
    found = []
    data = ("--data", reviews, "--column", "text=sentence", "--json", "--replicates", 100)
    for more in ((), ("--set", "calibrate=true"), ("--shots", 2, "--train", reviews)):
        code, out, err = alignkit_cli("evaluate", language_model, *PROMPTED, *WORDS, *data, *more)
        assert (code, err) == (0, "")
        found.append(json.loads(out))
        assert set(found[-1]["after"]["test"]) == {"accuracy", "macro_f1", "f1/0", "f1/1"}
        assert found[-1]["after"]["test"]["accuracy"]["n"] == 6
    assert found[0]["task"] == "prompted-classification"


def test_it_predicts_without_training(language_model: Path, reviews: Path, alignkit_cli: Cli) -> None:
    code, out, err = alignkit_cli("predict", language_model, *PROMPTED, *WORDS, "she was good", "a bad film")
    assert (code, err) == (0, "")
    answers = [json.loads(line) for line in out.splitlines()]
    assert [answer["text"] for answer in answers] == ["she was good", "a bad film"]
    assert all(set(answer["scores"]) == {"0", "1"} for answer in answers)
    task = alignkit.Recipe(
        model=str(language_model), task={"use": "prompted-classification", "template": "{text} it was {answer}",
        "verbalisers": {0: "bad", 1: "good"}}, data={"train": str(reviews)},
    ).task  # fmt: skip
    assert alignkit.load(language_model, task).predict(["she was good", "a bad film"]) == answers


def test_a_runs_own_task_is_changed_by_fields_and_shots(
    language_model: Path, reviews: Path, tmp_path: Path, alignkit_cli: Cli
) -> None:
    run = alignkit.train(
        alignkit.Recipe(
            model=str(language_model),
            task={"use": "prompted-classification", "verbalisers": {0: "bad", 1: "good"}},
            data={"train": {"path": str(reviews), "columns": {"text": "sentence"}},
                  "test": {"path": str(reviews), "columns": {"text": "sentence"}}},
            training={"max_steps": 1}, evaluation={"replicates": 100}, output=str(tmp_path / "run"),
        )
    )  # fmt: skip
    code, out, _ = alignkit_cli("evaluate", run.path, "--json", "--replicates", 100)
    assert code == 0
    assert json.loads(out)["after"] == run.metrics["after"]
    code, out, err = alignkit_cli("evaluate", run.path, "--json", "--shots", 1, "--set", "maximum_length=60")
    assert (code, err) == (0, "")
    code, _, err = alignkit_cli("evaluate", run.path, "--set", "tempate=x", "--shots", 2)
    assert code == 2
    assert err.startswith("--set tempate=x: unknown field 'tempate'; did you mean 'template'?")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--task", "text-classification", "--shots", 0), "--shots 0: task text-classification takes no demo"),
        (("--shots", 4), "--shots 4: no task whose field that is; expected a task; name it: --task NAME"),
        ((*PROMPTED, "--shots", 4), "it takes demonstrations from training rows, and there are none"),
        (("--task", "chat", "--train", "reviews.tsv"), "--train reviews.tsv: task chat looks at no training rows"),
        ((*PROMPTED, "--set", "shots=-1"), "--set shots=-1: -1; expected a number greater than or equal to 0"),
        ((*PROMPTED, "--set", "template={text} {answer}"), "is not YAML: "),
        ((*PROMPTED, "--set", "template=x"), "{answer} stands in it 0 times"),
        ((*PROMPTED, "--set", "verbalisers.1="), "a word or a list of words for every class"),
        ((*PROMPTED, "--set", "foo=1", "--set", "seed=x"), "--set foo=1: unknown field 'foo'"),
        ((*PROMPTED, "--column", "text"), "--column text: no field and column; expected FIELD=COLUMN"),
        ((*PROMPTED, "--column", "text=review"), "no column 'review' in 6 rows; there is label, sentence"),
        ((*PROMPTED, *WORDS, "--column", "text=sentence", "--set", "verbalisers.2=fine", "--shots", 1, "--train",
          "reviews.tsv"), "shots 1: 0 training rows of class '2'; expected 1 or more"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_said(
    arguments: tuple[object, ...], says: str, language_model: Path, reviews: Path, alignkit_cli: Cli
) -> None:
    code, out, err = alignkit_cli("evaluate", language_model, "--data", reviews, *arguments)
    assert (code, out) == (2, "")
    assert says in err
    assert "Traceback" not in err


def test_an_encoder_without_a_language_model_head_is_refused(encoder: Path, reviews: Path, alignkit_cli: Cli) -> None:
    code, _, err = alignkit_cli("evaluate", encoder, *PROMPTED, "--data", reviews)
    assert code == 2
    assert err == (
        "model BertModel: no trained language-model head; expected one, to score words with; pre-train it with task "
        "masked-lm, or train it with task text-classification\n"
    )
