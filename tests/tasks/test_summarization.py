"""Summarization: rouge-score's figures, Chinese, and what is refused. What it shares is in test_translation.py."""

import subprocess
import sys

import numpy as np
import pytest
from rouge_score.rouge_scorer import RougeScorer

from alignkit.errors import UsageError
from alignkit.evaluation.score import measure, predictions, statistics_matrix
from alignkit.tasks.summarization import ROUGE, Summarization
from alignkit.testing import tiny

WRITTEN = ["The quick brown fox\njumps over the lazy dog.", "Cats running, everywhere!", "", "one two three"]
RIGHT = [
    ["The quick brown dog jumps on the log.", "A fox jumps over\na dog."],
    ["cats run everywhere"],
    ["something"],
    ["one two three", "four"],
]


def rows(written, right):
    examples = [Summarization().parse({"source": "s", "target": t}, "a.jsonl:1") for t in right]
    return examples, [{"target": text, "nll": 2.0, "tokens": 1} for text in written]


@pytest.mark.parametrize("stemmer", [False, True])
def test_scores_are_the_means_of_rouge_scores(stemmer):
    task = Summarization(stemmer=stemmer)
    examples, said = rows(WRITTEN, RIGHT)
    found = measure(task, examples, said)
    scorer = RougeScorer(list(ROUGE), use_stemmer=stemmer)
    each = [scorer.score_multi(right, written) for right, written in zip(RIGHT, WRITTEN, strict=True)]
    assert found == pytest.approx(
        {name: np.mean([scores[name].fmeasure for scores in each]) for name in ROUGE}
        | {"loss": 2.0, "perplexity": np.exp(2)}
    )
    names, matrix = statistics_matrix(task, examples, said)
    places = np.array([[0, 0, 1, 3], [2, 2, 2, 2]])
    totals = dict(zip(names, matrix[places].sum(1).T, strict=True))
    expected = [np.mean([each[i]["rougeL"].fmeasure for i in drawn]) for drawn in places]
    assert task.metrics(totals)["rougeL"] == pytest.approx(expected)


def test_chinese_is_compared_by_characters():
    found = measure(Summarization(), *rows(["今天去 Paris"], [["今天不去paris。"]]))
    # 今天去paris against 今天不去paris: all 4 of 5 words; of the pairs 今天 and 去paris, of 3 and of 4
    assert found["rouge1"] == pytest.approx(2 * 4 / (4 + 5))
    assert found["rouge2"] == pytest.approx(2 * 2 / (3 + 4))
    assert found["rougeL"] == pytest.approx(2 * 4 / (4 + 5))
    assert measure(Summarization(), *rows(["他很高兴"], [["今天下雨"]]))["rouge1"] == 0


@pytest.mark.parametrize("head", ["t5", "llama-causal-lm"])
def test_a_summary_is_generated_and_scored(head):
    task = Summarization(max_new_tokens=5)
    model, tokenizer, _ = tiny(head)
    task.take_model(model.config.to_dict())
    example = task.parse({"source": "ada saw the film", "target": "a film"}, "a.jsonl:1")
    (found,) = predictions(task, model.eval(), tokenizer, [example])
    (answer,) = task.predict(model, tokenizer, [task.inputs("ada saw the film")])
    assert answer == {"source": "ada saw the film", "target": found["target"]}
    if head == "llama-causal-lm":
        prompt = tokenizer.decode(task.prompt_ids(example, tokenizer))
        assert prompt.replace(" ", "").endswith("summarise:adasawthefilmsummary:[EOS][BOS]assistant:")


def test_a_prompt_without_the_source_is_refused():
    with pytest.raises(ValueError, match=r"it has to hold \{source\}, once"):
        Summarization(prompt="")
    with pytest.raises(ValueError, match=r"no placeholder is called \{target_language\}; there is \{source\}"):
        Summarization(prompt="{source} in {target_language}")


@pytest.mark.parametrize(
    ("task", "library", "package"),
    [("translation", "sacrebleu", "sacrebleu"), ("summarization", "rouge_score", "rouge-score")],
)
def test_a_library_that_is_missing_is_missed_before_training(task, library, package):
    code = (
        f"import sys; sys.modules[{library!r}] = None\n"
        "from alignkit.aligned import find_task; from alignkit.errors import UsageError\n"
        f"task = find_task({task!r}); example = task.parse({{'source': 'a', 'target': 'b'}}, 'a:1')\n"
        "try:\n    task.prepare({'train': [example]})\nexcept UsageError as error:\n    print(error)"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said.startswith(f"task {task}: {package}, which counts for ")
    assert said.endswith(f" is not installed; pip install {package}\n")


def test_mistakes_in_rows():
    with pytest.raises(UsageError) as caught:
        Summarization().parse({"document": "a", "summary": "b"}, "a.jsonl:4")
    assert [str(m) for m in caught.value.mistakes] == [
        "a.jsonl:4: no 'source'; there is document, summary; map it with `columns: {source: …}`",
        "a.jsonl:4: no 'target'; there is document, summary; map it with `columns: {target: …}`",
    ]
