"""A workplace with the files that the documentation's examples name, and a real run in it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import alignkit
from alignkit.testing import tiny

DOCS = Path(__file__).parents[2] / "docs"
SENTENCES = (
    "ada/B-PER went/O to/O rome/B-LOC ./O",
    "bob/B-PER lives/O in/O paris/B-LOC ./O",
    "she/O saw/O ada/B-PER in/O paris/B-LOC ./O",
    "he/O went/O to/O rome/B-LOC ./O",
)
FILES = {
    "reviews.csv": "review,stars\nA fine film.,5\nVery bad.,1\nGood and fine.,5\nA bad one.,1\n",
    "more.jsonl": '{"text": "It was good.", "label": "5"}\n',
    "topics.csv": "text,label\nGood film.,good|film\nBad film.,film\n",
    "instructions.jsonl": '{"instruction": "Where is Ada?", "context": "She went to Rome.", "response": "In Rome."}\n',
    "relations.tsv": "label\ttext\nIn(e1,e2)\t<e1> Ada </e1> in <e2> Rome </e2>\nOther\t<e1> he </e1> <e2> her </e2>\n",
    "questions.json": '{"data": [{"paragraphs": [{"context": "Ada in Rome.", "qas": [{"id": "1", "question": "Where?", '
    '"answers": [{"text": "Rome", "answer_start": 7}]}]}]}]}',
    "answers.jsonl": '{"prompt": "Where is Bob?", "completion": "In Paris."}\n',
    "refusals.jsonl": '{"prompt": "Where does he live?", "completion": "He lives in Rome."}\n',
    "terms.txt": "rome\n",
    "pairs.tsv": "source\ttarget\nWhere is Ada?\tAda is where?\nBob lives in Paris.\tIn Paris lives Bob.\n",
    "summaries.jsonl": '{"source": "Ada went to Rome. She saw a film.", "target": ["Ada saw a film.", "A film."]}\n',
    "pairs.jsonl": '{"prompt": "Where is Ada?", "chosen": "She is in Rome.", "rejected": "Who cares?"}\n',
    "talks.jsonl": '{"utterances": ["Where is Ada?", "In Rome.", "And Bob?", "He lives in Paris."]}\n',
    "text.txt": "Ada went to Rome.\nBob lives in Paris.\n\nThe film was good.\n",
    "choices.jsonl": '{"question": "Where is Bob?", "choices": ["In Rome.", "In Paris."], "label": 1}\n',
}
MODELS = {
    "tagger": "bert-token-classification",
    "classifier": "bert-sequence-classification",
    "stars": "bert-sequence-classification",
    "encoder": "bert-masked-lm",
    "chat": "llama-causal-lm",
    "t5": "t5",
}
"""Folder under `models/` -> the tiny model's head."""
LABELS = {"stars": ("1", "3", "5")}
"""Those that are trained on other labels than the tiny model's."""

PLAIN = {
    "model": "models/tagger",
    "task": "ner",
    "data": {"train": "train.conll", "validation": "dev.conll", "test": "test.conll"},
    "filters": ["duplicates"],
    "updater": "replay",
    "averaging": "ema",
    "evaluation": {"under": ["typos"], "gaps": ["counterfactual"], "replicates": 100},
    "training": {"num_train_epochs": 1},
    "output": "runs/plain",
}


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The workplace, made once: data, tiny models, `runs/plain`."""
    folder = tmp_path_factory.mktemp("workplace")
    text = "\n".join("\n".join(pair.replace("/", "\t") for pair in s.split()) + "\n" for s in SENTENCES * 3)
    for name in ("train.conll", "dev.conll", "test.conll"):
        (folder / name).write_text(text, "utf-8")
    for name, content in FILES.items():
        (folder / name).write_text(content, "utf-8")
    for name, head in MODELS.items():
        model, tokenizer, _ = tiny(head)
        if name in LABELS:
            model.config.id2label = dict(enumerate(LABELS[name]))
            model.config.label2id = {label: i for i, label in enumerate(LABELS[name])}
        for part in (model, tokenizer):
            part.save_pretrained(folder / "models" / name)
    alignkit.train(alignkit.Recipe(base=folder, **PLAIN))
    for name in ("monday", "a", "b", "hardened"):
        shutil.copytree(folder / "runs" / "plain", folder / "runs" / name)
    return folder


@pytest.fixture
def workplace(prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it to work in, which is the current folder."""
    folder = tmp_path / "workplace"
    shutil.copytree(prepared, folder)
    monkeypatch.chdir(folder)
    return folder
