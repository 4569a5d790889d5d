"""The page stands alone, escapes everything, and is complete with whatever a run lacks."""

from __future__ import annotations

import dataclasses
import random
import re
import xml.dom.minidom
from html.parser import HTMLParser

import matplotlib
import numpy as np
import pytest

from alignkit.report import RunFacts, write_report
from alignkit.report.html import duration, render, size
from alignkit.report.plots import curves_plot, intervals_plot, radius_plot

VOID = {"meta", "br", "hr", "img", "link", "input"}


class Page(HTMLParser):
    """Collects tags, attributes and text, and checks that every tag is closed in order."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.text, self.attributes = [], [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not self.open or self.open[-1] != "style":
            self.text.append(data.strip())

    @property
    def words(self):
        return re.sub(r"\s+", " ", " ".join(self.text))


def test_the_page_is_whole_and_needs_nothing_from_elsewhere(facts, tmp_path):
    path = write_report(tmp_path, facts)
    assert path == tmp_path / "report.html"
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]
    page = Page(path.read_text(encoding="utf-8"))
    assert not {"script", "link", "img", "iframe", "object", "embed"} & set(page.tags)
    for name, value in page.attributes:
        assert not name.startswith("on")
        if name in ("href", "src", "xlink:href"):
            assert value.startswith("#")
    assert "url(http" not in path.read_text()
    assert page.tags.count("svg") == 2


def test_the_page_says_what_the_run_found(facts):
    words = Page(render(facts)).words
    assert "runs/plain on ner" in words
    assert "Of 4 headline measurements: 2 better, 2 without a clear change." in words
    assert "test under typos 1,287 rows" in words
    assert (
        "counterfactual gap ↓ 402 rows 0.031 0.026–0.037 0.012 0.009–0.015 -0.019 -0.023 to -0.014 < .001 ✓ better"
        in words
    )
    assert "fgm adversary One gradient-normalised step on the embeddings. × 2.00 × 2.06 +44.5" in words
    assert "All together 121.7 ms per step; a plain one takes 42.1 ms × 2.83 × 2.89 +79.6" in words
    assert "train 3,394 3,381 676" in words
    assert "duplicates, rule exact: 12 rows dropped" in words
    assert "wnut17.conll:812 · value 231, threshold 200" in words
    assert "lexicon, rule handles: 1 row edited" in words
    assert "f1/person" in words
    assert "epsilon: 0.5" in words
    assert "transformers 5.23.0" in words
    assert "3 min 23 s" in words


# -- attacks -----------------------------------------------------------------------------------------------------


def interval(value, n=40):
    return {"value": value, "low": value - 0.1, "high": value + 0.1, "n": n}


def under_attack(split, *values, n=40):
    """A curve of accuracies over the radii 0.1, 0.2 …, from .9 without an attack."""
    return {
        f"{split} against pgd {radius / 10:g}": {
            "f1": interval(value, n),
            "accuracy_before_attack": interval(0.9, n),
            "accuracy_under_attack": interval(value, n),
            "attack_success": interval(1 - value, n),
            "queries": interval(20.0, n),
        }
        for radius, value in enumerate(values, 1)
    }


ATTEMPT = {
    "model": "after",
    "measured": "test against deepwordbug",
    "split": "test",
    "row": 7,
    "broken": True,
    "queries": 9,
    "input": {"tokens": ["Ada", "lives", "in", "Rome"]},
    "attacked": {"tokens": ["Aad", "lives", "in", "Rome"]},
    "predicted": {"entities": [{"text": "Ada", "type": "PER"}]},
    "under_attack": {"entities": []},
    "measures": {"edits": 2.0},
}


def test_broken_inputs_stand_beside_what_they_were(facts):
    facts.attempts = [
        {**ATTEMPT, "model": "before", "row": 1},
        {**ATTEMPT, "row": 2, "broken": False},
        {**ATTEMPT, "row": 3, "attacked": None, "measured": "test against pgd 0.1"},
        *({**ATTEMPT, "row": row} for row in range(7, 20)),
        {**ATTEMPT, "measured": "test against typos", "queries": 1, "input": {"text": "a film", "text_pair": "<b>"},
         "attacked": {"text": "a flim", "text_pair": "<b>"}, "predicted": {"label": "good"}, "under_attack": None},
    ]  # fmt: skip
    text = render(facts)
    words = Page(text).words
    assert "Under attack" in words
    assert (
        "test against deepwordbug: inputs that broke the aligned model "
        "row 7 · 9 queries · Ada (PER) → no entities Ada lives in Rome Aad lives in Rome row 8" in words
    )
    assert "row 1 ·" not in words
    assert "row 2 ·" not in words
    assert "row 11 ·" not in words, "a few of each attack"
    assert "<mark>Ada</mark> lives in Rome</div>" in text
    assert "<mark>Aad</mark> lives in Rome</div>" in text
    assert "row 7 · 1 query · good → nothing a film a flim <b>" in words
    assert text.count("&lt;b&gt;") == 1, "what is as it was is shown once"


def test_a_curve_begins_with_what_there_is_without_an_attack(facts):
    clean = {"test": {"f1": interval(0.95)}}
    facts.metrics = {
        "before": {**clean, **under_attack("test", 0.5, 0.3)},
        "after": {**clean, **under_attack("test", 0.7, 0.6)},
        "difference": {},
    }
    text = render(facts)
    assert "pgd on test: accuracy under attack" in text
    assert "pgd on test: f1" in text
    assert "What is left under attacks of growing radius" in text
    for svg in re.findall(r"<svg.*?</svg>", text, flags=re.DOTALL):
        xml.dom.minidom.parseString(svg)


def test_points_of_a_curve():
    from alignkit.report.plots import _points

    splits = {"test": {"f1": interval(0.95, n=40)}, **under_attack("test", 0.5, 0.3)}
    stem = "test against pgd"
    f1, accuracy = (_points(splits, stem, name) for name in ("f1", "accuracy_under_attack"))
    assert [point[:2] for point in f1] == [(0.0, 0.95), (0.1, 0.5), (0.2, 0.3)]
    assert [point[:2] for point in accuracy] == [(0.0, 0.9), (0.1, 0.5), (0.2, 0.3)]
    fewer = {**splits, "test": {"f1": interval(0.95, n=300)}}
    assert [point[0] for point in _points(fewer, stem, "f1")] == [0.1, 0.2], "of other rows than those of the attack"


def test_one_radius_or_words_are_no_curve():
    one = {"after": under_attack("test", 0.5)}
    named = {"after": {f"test against {name}": {"accuracy_under_attack": interval(0.5)} for name in ("typos", "gcg")}}
    assert radius_plot(one, "f1") == radius_plot(named, "f1") == radius_plot({}, "f1") == ""
    two = {"after": {**under_attack("test", 0.5, 0.4), **under_attack("test/other", 0.5, 0.4)}}
    svg = radius_plot(two, "f1")
    assert "pgd on test: " in svg
    assert "pgd on test/other: " in svg


def test_the_headline_has_of_an_attack_what_survived_and_what_it_measures(facts):
    split = under_attack("test", 0.5)["test against pgd 0.1"]
    facts.metrics = {"after": {"test against pgd 0.1": {**split, "words_left": interval(2.0)}}}
    labels = [line.label for line in facts.lines()]
    assert labels == ["f1 ↑", "accuracy under attack ↑", "attack success ↓", "words left"]
    assert "words left" not in intervals_plot(facts.lines()), "nobody knows which way is better"
    more = [line.label for line in facts.lines(headline=False)]
    assert {"accuracy before attack ↑", "queries"} <= set(more)


EVIL = "<script>alert('x')</script>&\"$x_1$]]>"


def test_everything_is_escaped(facts):
    def spoilt(value):
        if isinstance(value, str):
            return EVIL
        if isinstance(value, dict):
            return {key: spoilt(v) for key, v in value.items()}
        if isinstance(value, list):
            return [spoilt(v) for v in value]
        return value

    every = {f.name: spoilt(getattr(facts, f.name)) for f in dataclasses.fields(facts)}
    every["metrics"] = {side: {EVIL: {EVIL: splits["test"]["f1"]}} for side, splits in facts.metrics.items()}
    every["history"] = [{f"penalty/{EVIL}": 1.0, f"eval_{EVIL}": 1.0, "step": n} for n in (1, 2)]
    every["sizes"] = {EVIL: {"loaded": 1}}
    every["versions"] = {EVIL: EVIL}
    every["warnings"] = [EVIL]
    every["peak_memory"] = {EVIL: 1}
    text = render(RunFacts(**every))
    page = Page(text)
    assert "script" not in page.tags
    assert "<script" not in text
    assert page.words.count("<script>alert('x')</script>&") > 15
    for svg in re.findall(r"<svg.*?</svg>", text, flags=re.DOTALL):
        xml.dom.minidom.parseString(svg)


OPTIONAL = [f.name for f in dataclasses.fields(RunFacts) if f.name not in ("recipe", "task")]


@pytest.mark.parametrize("start", range(5))
def test_any_part_may_be_missing(facts, start):
    missing = OPTIONAL[start::5]
    given = {f.name: getattr(facts, f.name) for f in dataclasses.fields(facts) if f.name not in missing}
    words = Page(render(RunFacts(**given))).words
    assert "None" not in words
    assert "nan" not in words.lower().split()


def test_rows_may_lack_what_was_not_measured(facts):
    facts.plan = [{"phase": "every step", "component": "fgm"}]
    facts.audit = [{"row": 4}, {}]
    facts.sizes = {"train": {"loaded": 7}}
    facts.metrics, facts.history = {}, []
    words = Page(render(facts)).words
    assert "fgm – – –" in words
    assert "filter: 2 rows dropped" in words
    assert "None" not in words


def test_a_run_without_anything_has_a_page():
    words = Page(render(RunFacts(recipe={}, task="ner"))).words
    assert "unknown on ner" in words
    assert "Nothing was measured" in words


def test_without_before_values_stand_alone(facts):
    facts.metrics = {"after": facts.metrics["after"]}
    facts.fresh_head = True
    words = Page(render(facts)).words
    assert "The model's head for this task was new, so there is nothing to compare with." in words
    assert "Measurement Value Rows" in words
    assert "better ✓" not in words
    assert "headline measurements" not in words


def test_a_metric_that_is_zero_over_zero_is_a_dash(facts):
    for splits in facts.metrics.values():
        splits["test"]["f1"] = {"value": None, "low": None, "high": None, "n": 1287, "p": None}
    assert "f1 ↑ – – – –" in Page(render(facts)).words


def test_plots_leave_global_state_alone_and_are_reproducible(facts):
    settings = dict(matplotlib.rcParams)
    states = random.getstate(), np.random.get_state()[1].tolist()
    assert intervals_plot(facts.lines()) == intervals_plot(facts.lines())
    assert curves_plot(facts.history, "f1") == curves_plot(facts.history, "f1")
    assert dict(matplotlib.rcParams) == settings
    assert (random.getstate(), np.random.get_state()[1].tolist()) == states


def test_plots_keep_text_as_text_and_name_what_they_show(facts):
    svg = intervals_plot(facts.lines())
    assert "test under typos" in svg
    assert "Change in counterfactual gap ↓" in svg
    assert "+0.086  better" in svg
    curves = curves_plot(facts.history, "f1")
    for title in ("Loss", "Validation f1", "kl-reference penalty", "counterfactual penalty"):
        assert title in curves
    assert "weighted" not in curves
    assert "runtime" not in curves
    assert 'role="img"' in curves


def test_nothing_logged_no_plot():
    assert curves_plot([], "f1") == ""
    assert curves_plot([{"loss": float("nan"), "step": 1}, {"train_runtime": 2.0, "step": 1}], "f1") == ""
    assert intervals_plot([]) == ""


def test_durations_and_sizes_in_words():
    assert [duration(s) for s in (4.2, 59.6, 200, 7500)] == ["4 s", "1 min 00 s", "3 min 20 s", "2 h 05 min"]
    assert [size(n) for n in (300 * 2**20, 3.5 * 2**30)] == ["300 MiB", "3.5 GiB"]


def test_a_training_loss_that_is_divided_is_said_to_be(facts):
    said = "is divided by 1 + the weights of the budgets"
    assert said not in render(facts)
    facts.normalised = True
    assert said in render(facts)


def test_steps_are_whole_numbers():
    history = [{"loss": 1.0 / step, "step": step} for step in (1, 2, 3)]
    ticks = re.findall(r">([\d.]+)</text>", curves_plot(history, "f1"))
    assert {"1", "2", "3"} <= set(ticks)
    assert not {"1.5", "2.5", "1.50", "2.50"} & set(ticks)
