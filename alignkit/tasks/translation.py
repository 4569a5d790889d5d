"""Translation: sources and targets, scored by BLEU and chrF."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

import numpy as np

from alignkit.data.example import Example
from alignkit.errors import Mistake, UsageError
from alignkit.tasks.generation import Generation, placeholders, references

ORDERS = 4
"""BLEU's longest n-gram, in words."""
CHARACTERS = 6
"""chrF's longest n-gram, in characters."""
BETA = 2
"""How many times as much recall counts in chrF as precision."""


class Translation(Generation):
    """Translates a text, by an encoder-decoder (T5, BART) or by a causal language model.

    Reads rows `source` and `target`; `target` may be a list of references, of which training takes the first. `bleu`
    (Papineni et al. 2002) and `chrf` (Popović 2015) are sacreBLEU's corpus scores, from 0 to 100, on texts that are
    generated; `loss` and `perplexity` are of the first reference. Needs sacrebleu.

    Example:
        >>> Translation(source_language="English", target_language="German")
    """

    source_language: str = ""
    """What `{source_language}` in `prompt` and `prefix` stands for."""
    target_language: str = ""
    """What `{target_language}` in `prompt` and `prefix` stands for."""
    prompt: Annotated[str, placeholders("source_language", "target_language")] | None = None  # type: ignore[assignment]  # may be none here
    """What a causal model is asked, with `{source}` in it; null: to translate, from and into the languages above."""
    prefix: str = ""
    """What an encoder-decoder reads before the source, T5 `translate English to German: `."""
    tokenize: Literal["13a", "intl", "zh", "char", "none"] = "13a"
    """How BLEU splits a text into words; `zh`, or `char`, where the target is Chinese."""

    hub_task: ClassVar[str] = "translation"
    metric: ClassVar[str] = "bleu"
    samples: ClassVar[tuple[dict[str, Any], ...]] = (
        {"source": "she was in rome", "target": "in rome was she"},
        {"source": "bob lives in paris", "target": "in paris lives bob"},
        {"source": "the film was good", "target": ["good was the film", "a good film was it"]},
        {"source": "he went to paris", "target": "to paris went he"},
        {"source": "ada saw a very good film", "target": "a very good film saw ada"},
        {"source": "bad", "target": "bad"},
    )

    def __post_init__(self) -> None:
        for name in ("source_language", "target_language"):
            if not getattr(self, name) and f"{{{name}}}" in f"{self.prompt}{self.prefix}":
                raise UsageError(Mistake(f"task {name}", "blank, and the prompt or prefix names it", "a language"))

    def prepare(self, splits: Mapping[str, list[Example]]) -> None:
        """Miss sacrebleu before the training and not after it."""
        _counters(self.tokenize)

    def asked(self, source: str) -> str:
        known = (("from", self.source_language), ("to", self.target_language))
        languages = "".join(f" {word} {language}" for word, language in known if language)
        return self.filled(self.prompt or f"Translate{languages}:\n{{source}}\n", source)

    def statistics(self, example: Example, prediction: dict[str, Any]) -> dict[str, float]:
        bleu, chrf = _counters(self.tokenize)
        said, right = prediction.get("target", ""), references(example)
        counts = zip(_bleu_names() + _chrf_names(), bleu(said, right) + chrf(said, right), strict=True)
        return {name: float(count) for name, count in counts} | super().statistics(example, prediction)

    def metrics(self, totals: Mapping[str, Any]) -> dict[str, Any]:
        """`bleu`, `chrf`, `perplexity` and `loss`."""
        bleu, chrf = (np.stack([np.asarray(totals[n], float) for n in names()]) for names in (_bleu_names, _chrf_names))
        return {
            "bleu": corpus_bleu(bleu[0], bleu[1], bleu[2 : 2 + ORDERS], bleu[2 + ORDERS :]),
            "chrf": corpus_chrf(chrf[0::3], chrf[1::3], chrf[2::3]),
            **super().metrics(totals),
        }


def corpus_bleu(said: np.ndarray, right: np.ndarray, correct: np.ndarray, total: np.ndarray) -> np.ndarray:
    """BLEU of a corpus from its sums (Papineni et al. 2002), smoothed as sacreBLEU does by default (`exp`).

    Of the n-gram orders without a match the k-th counts as if 1 / 2^k of an n-gram had matched.

    Args:
        said: words of the hypotheses [...].
        right: words of the references that are nearest to them in length [...].
        correct: n-grams that match, per order [4, ...].
        total: n-grams of the hypotheses, per order [4, ...].

    Returns:
        From 0 to 100 [...]; 0 where nothing matches, or no hypothesis has four words.
    """
    with np.errstate(all="ignore"):
        halved = 0.5 ** np.cumsum(correct == 0, axis=0)
        precisions = 100.0 * np.where(correct == 0, halved, correct) / total
        brevity = np.where(said < right, np.exp(1.0 - right / said), 1.0)
        scores = brevity * np.exp(np.log(precisions).mean(0))
    return np.where((correct > 0).any(0) & (total > 0).all(0), scores, 0.0)


def corpus_chrf(said: np.ndarray, right: np.ndarray, matched: np.ndarray) -> np.ndarray:
    """chrF of a corpus from its sums (Popović 2015), as sacreBLEU takes it: orders without n-grams do not count.

    Args:
        said: character n-grams of the hypotheses, per order [6, ...].
        right: those of the references [6, ...].
        matched: those of both [6, ...].

    Returns:
        From 0 to 100 [...].
    """
    counted = (said > 0) & (right > 0)
    with np.errstate(all="ignore"):
        orders = np.maximum(counted.sum(0), 1)
        precision = np.where(counted, matched / said, 0.0).sum(0) / orders
        recall = np.where(counted, matched / right, 0.0).sum(0) / orders
        scores = 100.0 * (1 + BETA**2) * precision * recall / (BETA**2 * precision + recall)
    return np.where(precision + recall > 0, scores, 0.0)


def _bleu_names() -> list[str]:
    counts = [f"bleu/{what}/{n}" for what in ("correct", "total") for n in range(1, ORDERS + 1)]
    return ["bleu/said", "bleu/right", *counts]


def _chrf_names() -> list[str]:
    return [f"chrf/{what}/{n}" for n in range(1, CHARACTERS + 1) for what in ("said", "right", "matched")]


@functools.cache
def _counters(tokenize: str) -> tuple[Any, Any]:
    """Two functions of a hypothesis and its references, which give the sums of sacreBLEU's BLEU and chrF."""
    try:
        from sacrebleu.metrics import BLEU, CHRF
    except ImportError:
        found = "sacrebleu, which counts for BLEU and chrF, is not installed"
        raise UsageError(Mistake("task translation", found, mend="pip install sacrebleu")) from None

    def counter(metric: Any) -> Any:
        # what its corpus_score adds up
        return lambda said, right: list(metric._extract_corpus_statistics([said], [[text] for text in right])[0])

    return counter(BLEU(tokenize=tokenize)), counter(CHRF(char_order=CHARACTERS, beta=BETA))
