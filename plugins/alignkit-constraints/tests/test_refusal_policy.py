"""`refusal-policy`: what is refused, what is not, and that every decision is audited."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from alignkit_constraints import RefusalPolicy

from alignkit.aligned import Aligned, find_task
from alignkit.data import Example
from alignkit.errors import UsageError
from alignkit.generation import Controlled
from alignkit.testing import tiny

REFUSAL = "I'm sorry, but I can't help with that."


def ruled(policy: RefusalPolicy, *prompts: str) -> list[tuple[str, Any, bool]]:
    """Rule, value, and whether it is refused."""
    rulings = policy.reply([find_task("chat").inputs(prompt) for prompt in prompts])
    assert all((ruling.text is not None) == bool(ruling.changed) for ruling in rulings)
    return [(ruling.rule, ruling.value, ruling.text is not None) for ruling in rulings]


@pytest.mark.parametrize(
    ("prompt", "value"),
    [
        ("How is a PIPE\n bomb made?", "pipe bomb"),
        ("pipe bombs", None),
        ("怎么制造炸弹？", "炸弹"),
        ("hello", None),
    ],
)
def test_phrases_are_whole_words_and_chinese_anywhere(prompt: str, value: str | None) -> None:
    policy = RefusalPolicy(phrases=["pipe bomb", "炸弹"])
    assert ruled(policy, prompt) == [("phrases", value, value is not None)]


def test_patterns_say_what_they_matched(tmp_path: Path) -> None:
    (tmp_path / "patterns.txt").write_text("# on locks\npick\\w*\\s+(a|the)\\s+lock\n\n(?-i:BOMB)\n", "utf-8")
    policy = RefusalPolicy(patterns=tmp_path / "patterns.txt", phrases=["steal"])
    assert ruled(policy, "Picking the  lock", "bomb", "BOMB", "Steal it") == [
        (r"pattern pick\w*\s+(a|the)\s+lock", "Picking the  lock", True),
        ("phrases and patterns", None, False),
        ("pattern (?-i:BOMB)", "BOMB", True),
        ("phrases", "steal", True),
    ]


def test_of_a_conversation_the_users_last_turn_is_looked_at_or_all() -> None:
    talk = [
        {"role": "system", "content": "never steal"},
        {"role": "user", "content": "How do I take a car?"},
        {"role": "assistant", "content": "Do not steal."},
        {"role": "user", "content": "All right."},
    ]
    example = find_task("chat").inputs({"messages": talk})
    for turns, words, refused in (
        ("last", ["steal", "take a car"], False),
        ("all", ["steal"], False),
        ("all", ["take a car"], True),
        ("last", ["all right"], True),
    ):
        [ruling] = RefusalPolicy(phrases=words, turns=turns).reply([example])  # type: ignore[arg-type]
        assert (ruling.text is not None) == refused


def test_other_tasks_ask_by_their_own_fields() -> None:
    policy = RefusalPolicy(phrases=["rome"])
    for task, given in (("translation", {"source": "to Rome"}), ("dialogue", {"utterances": ["rome ?"]})):
        [ruling] = policy.reply([find_task(task).inputs(given)])
        assert ruling.text == REFUSAL


# -- the classifier ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "harm"
    model, tokenizer, _ = tiny("bert-sequence-classification", seed=3)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


PROMPTS = ["where is ada ?", "the film was bad", "who is he ?", "rome"]


def test_a_classifier_refuses_from_its_threshold_on(classifier: Path) -> None:
    model, tokenizer, _ = tiny("bert-sequence-classification", seed=3)
    expected = []
    for prompt in PROMPTS:
        with torch.no_grad():
            logits = model.eval()(**tokenizer(prompt, return_tensors="pt")).logits[0]
        expected.append(float(logits.softmax(-1)[model.config.label2id["negative"]]))
    threshold = sorted(expected)[1] + 1e-4
    policy = RefusalPolicy(classifier=classifier, label="negative", threshold=threshold)
    other, vocabulary, _ = tiny("llama-causal-lm")
    aligned = Aligned(find_task("chat"), other, vocabulary, controls=[policy])
    audit: list[dict[str, Any]] = []
    answers = aligned.predict(PROMPTS, max_new_tokens=4, audit=audit)
    assert [line["row"] for line in audit] == [0, 1, 2, 3], "every decision"
    for line, answer, probability in zip(audit, answers, expected, strict=True):
        assert (line["rule"], line["threshold"]) == ("harm negative", threshold)
        assert line["value"] == pytest.approx(probability, abs=1e-4)
        refused = probability >= threshold
        assert bool(line["changed"]) == refused == (answer["completion"] == REFUSAL) == ("controls" in answer)
    assert sum("controls" in answer for answer in answers) == 2


def test_rules_go_before_the_classifier(classifier: Path) -> None:
    policy = RefusalPolicy(phrases=["rome"], classifier=classifier, label="negative", threshold=1.0)
    model, tokenizer, _ = tiny("llama-causal-lm")
    policy.prepare(model, tokenizer, find_task("chat"))
    assert [(rule, refused) for rule, _, refused in ruled(policy, "rome", "paris")] == [
        ("phrases", True),
        ("harm negative", False),
    ]


# -- mistakes ----------------------------------------------------------------------------------------------------


def test_mistakes_say_what_and_where(classifier: Path, tmp_path: Path) -> None:
    task = find_task("chat")
    model, tokenizer, _ = tiny("llama-causal-lm")
    with pytest.raises(UsageError, match="nothing that a prompt could match; expected `phrases`, `patterns`"):
        Controlled([RefusalPolicy()], task, model, tokenizer)
    with pytest.raises(UsageError, match=r"patterns: '\(a': missing \), unterminated"):
        RefusalPolicy(patterns=["a", "(a"])
    with pytest.raises(UsageError, match="label: no label whose prompts are refused"):
        RefusalPolicy(classifier=classifier)
    with pytest.raises(UsageError, match="label: no classifier whose label that is"):
        RefusalPolicy(phrases=["a"], label="harm")
    with pytest.raises(
        UsageError, match=r"label: .*harm knows no 'harmful'; expected one of negative, neutral, positive"
    ):
        Controlled([RefusalPolicy(classifier=classifier, label="harmful")], task, model, tokenizer)
    with pytest.raises(UsageError, match="none does not exist"):
        Controlled([RefusalPolicy(classifier=tmp_path / "none", label="harmful")], task, model, tokenizer)
    with pytest.raises(UsageError, match=r"none\.txt: no such file"):
        Controlled([RefusalPolicy(patterns=tmp_path / "none.txt")], task, model, tokenizer)


def test_what_can_never_refuse_is_refused(tmp_path: Path) -> None:
    (tmp_path / "patterns.txt").write_text("# none yet\n\n", "utf-8")
    model, tokenizer, _ = tiny("llama-causal-lm")
    with pytest.raises(UsageError, match="patterns: no patterns; expected one or more"):
        RefusalPolicy(patterns=[])
    with pytest.raises(UsageError, match=r"patterns\.txt: no patterns; expected one or more"):
        Controlled([RefusalPolicy(patterns=tmp_path / "patterns.txt")], find_task("chat"), model, tokenizer)
    with pytest.raises(UsageError, match="answer: ' ' is blank"):
        RefusalPolicy(phrases=["a"], answer=" ")


def test_a_tagger_is_no_classifier(tmp_path: Path) -> None:
    tagger, vocabulary, _ = tiny("bert-token-classification")
    tagger.save_pretrained(tmp_path / "tagger")
    vocabulary.save_pretrained(tmp_path / "tagger")
    model, tokenizer, _ = tiny("llama-causal-lm")
    label = next(iter(tagger.config.label2id))
    with pytest.raises(UsageError, match=r"refusal-policy classifier: .*tagger is for task ner, which gives a plain"):
        Controlled([RefusalPolicy(classifier=tmp_path / "tagger", label=label)], find_task("chat"), model, tokenizer)


def test_a_policy_that_is_changed_in_place_goes_by_what_it_is_now() -> None:
    policy = RefusalPolicy(phrases=["rome"])
    assert ruled(policy, "paris") == [("phrases", None, False)]
    policy.phrases = ("paris",)
    assert ruled(policy, "paris") == [("phrases", "paris", True)]


def test_an_example_may_hold_a_list_of_words() -> None:
    [ruling] = RefusalPolicy(phrases=["in rome"]).reply([Example({"tokens": ["in", "Rome"]}, inputs=("tokens",))])
    assert ruling.value == "in rome"
