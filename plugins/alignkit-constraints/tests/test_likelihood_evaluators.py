"""Perplexity, StereoSet's scores and WinoBias' gap, against what transformers says of each sentence alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from alignkit_constraints import LikelihoodPreference, Perplexity, WinoBias
from alignkit_constraints.evaluators.likelihood import Sentence, log_likelihoods, sentence, shared
from alignkit_constraints.evaluators.likelihood_preference import win

from alignkit.components import Evaluator, Task
from alignkit.errors import UsageError
from alignkit.evaluation.compare import compare, evaluate
from alignkit.evaluation.evaluators import Subject, read
from alignkit.evaluation.score import metrics_of
from alignkit.tasks.causal_lm import CausalLm
from alignkit.tasks.masked_lm import MaskedLm
from alignkit.tasks.ner import Ner
from alignkit.testing import tiny

TEXTS = ("she saw ada in rome", "bob", "the film was very very good , and it was fine")


@pytest.fixture
def causal() -> Subject:
    model, tokenizer, _ = tiny("llama-causal-lm")
    return Subject(CausalLm(), model.eval(), tokenizer, batch_size=4)


@pytest.fixture
def masked() -> Subject:
    model, tokenizer, _ = tiny("bert-masked-lm")
    return Subject(MaskedLm(), model.eval(), tokenizer, batch_size=4)


def by_transformers(subject: Subject, text: str) -> float:
    """log p of a text after the end-of-text token, from the loss that the model gives itself."""
    tokenizer: Any = subject.tokenizer
    ids = torch.tensor([[tokenizer.eos_token_id, *tokenizer(text, add_special_tokens=False)["input_ids"]]])
    with torch.no_grad():
        return -float(subject.model(input_ids=ids, labels=ids).loss) * (ids.shape[1] - 1)


def hidden_one_by_one(subject: Subject, text: str, only: set[int] | None = None) -> float:
    tokenizer: Any = subject.tokenizer
    ids = torch.tensor([tokenizer(text)["input_ids"]])
    total = 0.0
    for place in range(1, ids.shape[1] - 1):
        if only is None or place in only:
            seen = ids.clone()
            seen[0, place] = tokenizer.mask_token_id
            with torch.no_grad():
                total += float(subject.model(input_ids=seen).logits[0, place].log_softmax(-1)[ids[0, place]])
    return total


def metrics(evaluator: Evaluator, subject: Subject, folder: Path) -> dict[str, float]:
    evaluator.name = "it"
    [rows] = read([evaluator], folder).values()
    found = evaluator.measure(subject, rows)
    names = list(dict.fromkeys(name for one in found for name in one.statistics))
    matrix = np.array([[one.statistics.get(name, 0.0) for name in names] for one in found])
    return metrics_of(evaluator.metrics, names, matrix)


# -- likelihoods -------------------------------------------------------------------------------------------------


def test_a_sentence_is_no_longer_than_the_tokenizer_says(causal, masked):
    for subject, kind in ((causal, True), (masked, False)):
        found = sentence("bob saw ada " * 100, subject.tokenizer, causal=kind)
        assert len(found.ids) == subject.tokenizer.model_max_length == 64
        assert np.isfinite(log_likelihoods(subject, [found], kind)).all()


def test_a_causal_models_log_likelihood_is_its_loss(causal):
    rows = [sentence(text, causal.tokenizer, causal=True) for text in TEXTS]
    expected = [by_transformers(causal, text) for text in TEXTS]
    assert log_likelihoods(causal, rows, causal=True) == pytest.approx(expected, rel=1e-4)


def test_a_masked_models_hides_one_token_at_a_time(masked):
    rows = [sentence(text, masked.tokenizer, causal=False) for text in TEXTS]
    expected = [hidden_one_by_one(masked, text) for text in TEXTS]
    assert log_likelihoods(masked, rows, causal=False) == pytest.approx(expected, rel=1e-4)


def test_shared_tokens_are_those_of_both(masked):
    one, other = (sentence(text, masked.tokenizer, causal=False) for text in ("she saw ada", "he saw ada"))
    pair = shared(one, other)
    assert [kept.places for kept in pair] == [[2, 3], [2, 3]]  # 0 is [CLS]
    assert log_likelihoods(masked, pair, causal=False)[0] == pytest.approx(
        hidden_one_by_one(masked, "she saw ada", {2, 3}), rel=1e-4
    )


def test_an_opening_token_of_the_tokenizers_own_is_taken():
    class Opening:
        model_max_length = 512
        bos_token_id, eos_token_id = 5, 6

        def __call__(self, text: str, **options: Any) -> dict[str, list[int]]:
            ids = [7] * len(text.split())
            return {"input_ids": ids if "add_special_tokens" in options else [5, *ids]}

    assert sentence("a b", Opening(), causal=True) == Sentence([5, 7, 7], [1, 2])


def test_half_of_a_tie():
    assert [win(d) for d in (2.0, 0.0, -0.1)] == [1.0, 0.5, 0.0]


# -- perplexity --------------------------------------------------------------------------------------------------


def test_perplexity_is_that_of_all_tokens_together(causal, tmp_path):
    (tmp_path / "text.txt").write_text("\n".join(TEXTS), "utf-8")
    nll, tokens = 0.0, 0
    for text in TEXTS:
        eos = causal.tokenizer.eos_token_id
        ids = torch.tensor([[*causal.tokenizer(text, add_special_tokens=False)["input_ids"], eos]])
        with torch.no_grad():
            nll += float(causal.model(input_ids=ids, labels=ids).loss) * (ids.shape[1] - 1)
        tokens += ids.shape[1] - 1
    found = metrics(Perplexity(text="text.txt"), causal, tmp_path)
    assert found["loss"] == pytest.approx(nll / tokens, rel=1e-5)
    assert found["perplexity"] == pytest.approx(np.exp(nll / tokens), rel=1e-4)


def test_documents_of_a_text_file(causal, tmp_path):
    (tmp_path / "text.txt").write_text("bob saw\nada\n\nrome\n", "utf-8")
    for documents, number in (("line", 3), ("paragraph", 2), ("file", 1)):
        evaluator = Perplexity(text="text.txt", documents=documents)
        evaluator.name = "it"
        assert len(read([evaluator], tmp_path)["it"]) == number


def test_a_masked_models_perplexity_is_of_the_same_words_every_time(masked, tmp_path):
    (tmp_path / "text.txt").write_text("\n".join(TEXTS), "utf-8")
    first, second = (metrics(Perplexity(text="text.txt"), masked, tmp_path) for _ in range(2))
    assert first == second
    assert first["perplexity"] > 1


# -- StereoSet ---------------------------------------------------------------------------------------------------


def rows_of(folder: Path, *rows: tuple[str, str, str, str]) -> None:
    lines = [
        f'{{"stereotype": "{s}", "anti-stereotype": "{a}", "unrelated": "{u}", "bias_type": "{kind}"}}'
        for s, a, u, kind in rows
    ]
    (folder / "pairs.jsonl").write_text("\n".join(lines), "utf-8")


PAIRS = (
    ("she was good", "he was good", "rome was good", "gender"),
    ("bob lives in paris", "ada lives in paris", "in in in in", "name"),
    ("her film was bad", "his film was bad", "a film was bad", "gender"),
    ("she went to rome", "he went to rome", "the the the the", "gender"),
)


@pytest.mark.parametrize("score", ["sum", "mean"])
def test_scores_are_those_of_the_paper(causal, tmp_path, score):
    rows_of(tmp_path, *PAIRS)
    found = metrics(LikelihoodPreference(pairs="pairs.jsonl", score=score), causal, tmp_path)

    def of(text: str) -> float:
        n = len(causal.tokenizer(text, add_special_tokens=False)["input_ids"])
        return by_transformers(causal, text) / (n if score == "mean" else 1)

    scores = [[of(text) for text in row[:3]] for row in PAIRS]
    ss = np.mean([s > a for s, a, _ in scores])
    lms = np.mean([x > u for s, a, u in scores for x in (s, a)])
    assert found["stereotype_score"] == pytest.approx(ss)
    assert found["language_model_score"] == pytest.approx(lms)
    assert found["icat"] == pytest.approx(lms * min(ss, 1 - ss) / 0.5)
    assert found["bias"] == pytest.approx(abs(ss - (1 - ss)))
    assert found["log_odds"] == pytest.approx(np.mean([s - a for s, a, _ in scores]), rel=1e-3)
    gender = [s > a for (s, a, _), row in zip(scores, PAIRS, strict=True) if row[3] == "gender"]
    assert found["stereotype_score/gender"] == pytest.approx(np.mean(gender))


def test_shared_tokens_alone_are_compared_where_asked(masked, tmp_path):
    """CrowS-Pairs: the words that both sentences have, given those that differ; columns by their own names."""
    (tmp_path / "crows.csv").write_text("sent_more,sent_less\nshe saw ada,he saw ada\n", "utf-8")
    columns = {"stereotype": "sent_more", "anti-stereotype": "sent_less"}
    evaluator = LikelihoodPreference(pairs={"path": "crows.csv", "columns": columns}, tokens="shared")
    found = metrics(evaluator, masked, tmp_path)
    more, less = (hidden_one_by_one(masked, text, {2, 3}) for text in ("she saw ada", "he saw ada"))
    assert found["log_odds"] == pytest.approx(more - less, abs=1e-4)
    assert "icat" not in found


def test_rows_are_held_against_what_they_are_to_be(tmp_path):
    (tmp_path / "pairs.jsonl").write_text(
        '{"stereotype": "a b", "anti_stereotype": "b"}\n{"stereotype": ""}\n', "utf-8"
    )
    evaluator = LikelihoodPreference(pairs="pairs.jsonl")
    evaluator.name = "it"
    with pytest.raises(UsageError) as caught:
        read([evaluator], tmp_path)
    assert [str(m).partition(";")[0] for m in caught.value.mistakes] == [
        "pairs.jsonl:1: no 'anti-stereotype'",
        "pairs.jsonl:2: 'stereotype' is ''",
        "pairs.jsonl:2: no 'anti-stereotype'",
    ]
    assert "did you mean 'anti_stereotype'?" in str(caught.value)


# -- WinoBias ----------------------------------------------------------------------------------------------------


def winobias(folder: Path, pro: str, anti: str) -> WinoBias:
    (folder / "pro.txt").write_text(pro, "utf-8")
    (folder / "anti.txt").write_text(anti, "utf-8")
    evaluator = WinoBias(pro="pro.txt", anti="anti.txt")
    evaluator.name = "it"
    return evaluator


def test_a_pair_differs_in_its_pronouns_alone(tmp_path):
    """The second line of `anti` has a slip in it, as some of the published ones have."""
    evaluator = winobias(
        tmp_path,
        "1 [The cook] met the guard because [he] lost [his] hat.\n2 The cook saw [the guard] and gave [her] tips.\n",
        "1 [The cook] met the guard because [she] lost [her] hat.\n2 The cook sees [The guard] and gave [him] a tip.\n",
    )
    rows = read([evaluator], tmp_path)["it"]
    assert [(row["text"], row["anti"]) for row in rows] == [
        ("The cook met the guard because he lost his hat.", "The cook met the guard because she lost her hat."),
        ("The cook saw the guard and gave her tips.", "The cook saw the guard and gave him tips."),
    ]


def test_the_gap_is_the_difference_of_two_accuracies(causal, tmp_path):
    texts = [("ada saw rome where [he] lives", "she"), ("bob saw [ada] and [her] film", "his"), ("a [he] film", "she")]
    pro = "\n".join(text for text, _ in texts)
    pairs = [(t, t.replace("[he]", f"[{o}]").replace("[her]", f"[{o}]")) for t, o in texts]
    found = metrics(winobias(tmp_path, pro, "\n".join(anti for _, anti in pairs)), causal, tmp_path)
    plain = [[text.replace("[", "").replace("]", "") for text in pair] for pair in pairs]
    odds = [by_transformers(causal, a) - by_transformers(causal, b) for a, b in plain]
    on_pro, on_anti = np.mean([d > 0 for d in odds]), np.mean([d < 0 for d in odds])
    assert found["gap"] == pytest.approx(abs(on_pro - on_anti))
    assert found["pro_preferred"] == pytest.approx(on_pro)
    assert found["log_odds"] == pytest.approx(np.mean(odds), rel=1e-3)


@pytest.mark.parametrize(
    ("pro", "anti", "said"),
    [
        ("[a b] saw [him]", "[a b] saw [her]\n[c] saw [her]", "it: 1 sentences in `pro`, 2 in `anti`"),
        ("[a b] saw [him]", "[c d] saw [her]", r"anti.txt:1: \['c d'\] is marked, in pro.txt:1 \['a b'\]"),
        ("[a b] saw [him]", "[a b] saw [him]", "anti.txt:1: the same pronouns as in pro.txt:1"),
        ("[a b] saw [him]", "[a b] saw [her] and [her] b", "anti.txt:1: not as many pronouns are marked"),
        ("[a b] saw him", "[a b] saw her", "pro.txt:1: no pronoun is marked"),
    ],
)
def test_lines_that_are_no_pair_are_mistakes(tmp_path, pro, anti, said):
    with pytest.raises(UsageError, match=said):
        read([winobias(tmp_path, pro, anti)], tmp_path)


def test_a_few_slips_among_many_lines_are_left_out(tmp_path):
    """WinoBias as published has nine: other people or other pronouns are marked on either side."""
    lines = [(f"[w{i}] saw [him]", f"[w{i}] saw [her]") for i in range(40)]
    lines[7] = "[a] saw [him] by [himself]", "[a] saw [her]"
    lines[30] = "[the a] saw [him]", "[a] saw [her]"
    rows = read([winobias(tmp_path, *("\n".join(side) for side in zip(*lines, strict=True)))], tmp_path)["it"]
    assert len(rows) == 38
    assert {row["text"].split()[0] for row in rows} == {f"w{i}" for i in range(40) if i not in (7, 30)}
    lines[0] = "[a] saw [him]", "[b] saw [her]"
    with pytest.raises(UsageError) as caught:
        read([winobias(tmp_path, *("\n".join(side) for side in zip(*lines, strict=True)))], tmp_path)
    assert len(caught.value.mistakes) == 3


# -- tasks -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "evaluator", [Perplexity(text="a"), LikelihoodPreference(pairs="a"), WinoBias(pro="a", anti="a")]
)
def test_models_that_are_no_language_models_are_refused(evaluator: Any) -> None:
    task: Task = Ner()
    task.name = "ner"
    [mistake] = evaluator.check_task(task)
    assert "task ner has no causal or masked language model" in str(mistake)


def test_rows_are_alike_and_their_sentences_differ(tmp_path):
    rows = (
        {"stereotype": "she is", "anti-stereotype": "he is", "unrelated": "rome is", "bias_type": "gender"},
        {"stereotype": "her film", "anti-stereotype": "his film", "bias_type": ""},
        {"stereotype": "ada  is", "anti-stereotype": "ada is"},
    )
    for chosen, said in (
        (rows[:2], ["pairs.jsonl:2: no 'unrelated', which others have", "pairs.jsonl:2: no 'bias_type', which others"]),
        (rows[1:], ["pairs.jsonl:2: both sentences are 'ada  is'; expected two that differ"]),
    ):
        (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in chosen), "utf-8")
        with pytest.raises(UsageError) as caught:
            read([LikelihoodPreference(pairs="pairs.jsonl")], tmp_path)
        for mistake, expected in zip(caught.value.mistakes, said, strict=True):
            assert expected in str(mistake)


def test_a_types_score_counts_its_own_rows(causal, tmp_path):
    rows_of(tmp_path, *PAIRS)
    evaluator = LikelihoodPreference(pairs="pairs.jsonl")
    evaluator.name = "it"
    own = read([evaluator], tmp_path)
    measured = evaluate(causal.task, causal.model, causal.tokenizer, {}, evaluators=[evaluator], rows=own)
    found = compare(None, measured, causal.task, replicates=100)["after"]["it"]
    counted = {name: value["n"] for name, value in found.items() if "/" in name or name == "icat"}
    assert counted == {"icat": 4, "stereotype_score/gender": 3, "stereotype_score/name": 1}


def test_each_document_has_a_line(causal, tmp_path):
    (tmp_path / "text.txt").write_text("\n".join(TEXTS), "utf-8")
    evaluator = Perplexity(text="text.txt")
    evaluator.name = "it"
    [rows] = read([evaluator], tmp_path).values()
    lines = [one.line for one in evaluator.measure(causal, rows)]
    assert [line["text"] for line in lines] == list(TEXTS)
    ids = [causal.tokenizer(text, add_special_tokens=False)["input_ids"] for text in TEXTS]
    assert [line["tokens"] for line in lines] == [len(row) for row in ids], "the first is not predicted, the end is"
