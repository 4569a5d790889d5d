"""Summarization: texts and their summaries, scored by ROUGE."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from pydantic import PositiveInt

from alignkit.data.example import Example
from alignkit.errors import Mistake, UsageError
from alignkit.tasks.generation import Generation, Prompt, references
from alignkit.tasks.words import HAN_KANA

ROUGE = ("rouge1", "rouge2", "rougeL", "rougeLsum")

_UNSPACED = re.compile(f"([{HAN_KANA}])")


class Summarization(Generation):
    """Summarises a text, by an encoder-decoder (T5, BART) or by a causal language model.

    Reads rows `source` and `target`; `target` may be a list of references, of which training takes the first. Metrics
    are of summaries that are generated: `rouge1`, `rouge2`, `rougeL`, `rougeLsum` (Lin 2004; sentences are lines),
    each the mean F1 of the examples, from 0 to 1, by the reference that is best; `loss` and `perplexity` are of the
    first reference. Needs rouge-score.

    rouge-score compares lower-cased runs of letters a to z and digits. Where a text is Chinese or Japanese, each of its
    characters is a word, too; rouge-score by itself drops them.

    Example:
        >>> Summarization(maximum_source_length=768, max_new_tokens=60)
    """

    prompt: Prompt = "Summarise:\n{source}\nSummary:"
    """What a causal model is asked, with `{source}` in it."""
    prefix: str = ""
    """What an encoder-decoder reads before the source, T5 `summarize: `."""
    maximum_source_length: PositiveInt = 768
    """Longest source in tokens; for an encoder-decoder with its prefix and special tokens."""
    stemmer: bool = False
    """Take the endings off English words before they are compared (Porter)."""

    hub_task: ClassVar[str] = "summarization"
    metric: ClassVar[str] = "rougeL"
    samples: ClassVar[tuple[dict[str, Any], ...]] = (
        {"source": "ada went to rome and saw a film . the film was good .", "target": "ada saw a good film"},
        {"source": "bob lives in paris and works in paris .", "target": "bob is in paris"},
        {"source": "it was a bad film . she was not in it .", "target": ["a bad film", "she was not in a bad film"]},
        {"source": "where is he ? he is in rome .", "target": "he is in rome"},
        {"source": "very good , a very fine film !", "target": "a good film"},
        {"source": "they saw ada", "target": "ada"},
    )

    def prepare(self, splits: Mapping[str, list[Example]]) -> None:
        """Miss rouge-score before the training and not after it."""
        _scorer(self.stemmer)

    def statistics(self, example: Example, prediction: dict[str, Any]) -> dict[str, float]:
        scores = _scorer(self.stemmer).score_multi(references(example), prediction.get("target", ""))
        found = {"examples": 1.0, **{name: float(scores[name].fmeasure) for name in ROUGE}}
        return found | super().statistics(example, prediction)

    def metrics(self, totals: Mapping[str, Any]) -> dict[str, Any]:
        """`rouge1`, `rouge2`, `rougeL`, `rougeLsum`, `perplexity` and `loss`."""
        examples = np.asarray(totals["examples"], float)
        return {name: np.asarray(totals[name], float) / examples for name in ROUGE} | super().metrics(totals)


@functools.cache
def _scorer(stemmer: bool) -> Any:
    try:
        from rouge_score.rouge_scorer import RougeScorer
        from rouge_score.tokenizers import DefaultTokenizer
    except ImportError:
        found = "rouge-score, which counts for ROUGE, is not installed"
        raise UsageError(Mistake("task summarization", found, mend="pip install rouge-score")) from None

    class Words(DefaultTokenizer):
        """rouge-score's own, on what stands between characters that are words by themselves."""

        def tokenize(self, text: str) -> list[str]:
            own = super().tokenize
            parts = enumerate(_UNSPACED.split(text))
            return [word for i, part in parts for word in ([part] if i % 2 else own(part))]

    return RougeScorer(list(ROUGE), tokenizer=Words(stemmer))
