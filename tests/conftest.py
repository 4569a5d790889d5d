"""Temporary plugin distributions, found by importlib.metadata as installed ones are; tiny models and data as files."""

from __future__ import annotations

import importlib
import random
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import alignkit.catalogue as catalogue

Install = Callable[..., None]


@pytest.fixture(autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """What references say is cached in a folder of the tests' own."""
    monkeypatch.setenv("ALIGNKIT_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """`install("acme-plugin", code, point="acme", version="1.0", methods="...")`: a module, and one of its methods."""
    site = tmp_path / "site"
    site.mkdir()
    monkeypatch.syspath_prepend(str(site))
    modules: list[str] = []
    points: list[str] = []
    catalogue._installed.cache_clear()

    def put(distribution: str, code: str, *, point: str = "", version: str = "1.0", methods: str = "") -> None:
        module = distribution.replace("-", "_")
        modules.extend([module, f"{module}_methods"])
        (site / f"{module}.py").write_text(code, "utf-8")
        (site / f"{module}_methods.py").write_text(methods, "utf-8")
        info = site / f"{module}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n", "utf-8")
        (info / "entry_points.txt").write_text(f"[alignkit]\n{point or module} = {module}\n", "utf-8")
        importlib.invalidate_caches()
        points.append(point or module)
        monkeypatch.setenv(catalogue.LIMIT, ",".join(points))  # nothing else that this machine has

    yield put
    catalogue._installed.cache_clear()
    for module in modules:
        sys.modules.pop(module, None)


@pytest.fixture(scope="session")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny BERT that has no head, and its tokenizer. Read only."""
    return _saved(tmp_path_factory.mktemp("models") / "encoder", "bert-masked-lm", dropout=0.1)


@pytest.fixture(scope="session")
def language_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny causal language model and its tokenizer. Read only."""
    return _saved(tmp_path_factory.mktemp("models") / "language-model", "llama-causal-lm", dropout=0.0)


def _saved(folder: Path, head: str, dropout: float) -> Path:
    from alignkit.models.saving import quiet
    from alignkit.testing import models

    model, tokenizer, _ = models.tiny(head, dropout=dropout)
    with quiet():
        getattr(model, "bert", model).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def ner_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with train.conll (64 sentences), dev.conll (16) and test.conll (24) that a tiny model can learn."""
    folder = tmp_path_factory.mktemp("data")
    for name, rows in (("train", range(64)), ("dev", range(200, 216)), ("test", range(300, 324))):
        blocks = ["\n".join(f"{word}\t{tag}" for word, tag in sentence(row)) for row in rows]
        (folder / f"{name}.conll").write_text("\n\n".join(blocks) + "\n", "utf-8")
    return folder


@pytest.fixture(scope="session")
def plain_run(tmp_path_factory: pytest.TempPathFactory, encoder: Path, ner_data: Path) -> Path:
    """The folder of a plain run: named-entity recognition, some of it learnt. Read only."""
    import alignkit

    recipe = alignkit.Recipe(
        model=str(encoder),
        task="ner",
        data={"train": "train.conll", "validation": "dev.conll", "test": "test.conll"},
        evaluation={"under": ["typos"], "gaps": ["counterfactual"], "replicates": 200},
        training={"num_train_epochs": 4, "learning_rate": 5e-3, "per_device_train_batch_size": 8},
        output=str(tmp_path_factory.mktemp("runs") / "plain"),
        base=ner_data,
    )
    return alignkit.train(recipe).path


Ended = tuple[int, str, str]
"""Exit code, stdout, stderr."""


@pytest.fixture
def alignkit_cli(capfd: pytest.CaptureFixture[str]) -> Callable[..., Ended]:
    """Runs a command in this process."""
    from alignkit import cli

    def ended(*arguments: object) -> Ended:
        capfd.readouterr()
        with pytest.raises(SystemExit) as caught:
            cli.main([str(argument) for argument in arguments])
        return (caught.value.code or 0, *capfd.readouterr())  # type: ignore[return-value]  # click gives integers

    return ended


def sentence(number: int) -> list[tuple[str, str]]:
    """`ada lives in paris .` and the like, by number; different ones for different numbers below 1,000."""
    draw = random.Random(number)
    person, place = draw.choice(["ada", "bob"]), draw.choice(["paris", "rome"])
    verb = draw.choice([["lives", "in"], ["works", "in"], ["went", "to"], ["saw"]])
    words = [(person, "B-PER")]
    if draw.random() < 0.4:
        words += [("bob" if person == "ada" else "ada", "I-PER")]
    words += [*((word, "O") for word in verb), (place, "B-LOC"), (".", "O")]
    extra = draw.sample(["she", "he", "was", "good", "bad", "film", "the", "very"], draw.randrange(1, 6))
    return [*((word, "O") for word in extra), *words]
