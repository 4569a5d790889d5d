"""The card's front matter is what the hub reads; its text survives any name."""

from __future__ import annotations

import yaml
from huggingface_hub import ModelCard, ModelCardData
from markdown_it import MarkdownIt

from alignkit.report import RunFacts, write_card


def front(path):
    return yaml.safe_load(path.read_text(encoding="utf-8").split("---\n")[1])


def test_the_hub_reads_every_result(facts, tmp_path):
    path = write_card(tmp_path / ".." / tmp_path.name, facts)
    data = ModelCard.load(path).data
    assert data.model_name == tmp_path.name
    assert (data.license, data.library_name, data.pipeline_tag) == ("unknown", "transformers", "token-classification")
    found = {(r.dataset_split, r.metric_type): r.metric_value for r in data.eval_results}
    expected = {
        (split, metric): side["value"]
        for split, metrics in facts.metrics["after"].items()
        for metric, side in metrics.items()
    }
    assert found == expected
    assert {r.dataset_name for r in data.eval_results} == {
        "dev.conll (validation)",
        "test.conll (test)",
        "test.conll (test under typos)",
    }
    assert ModelCardData(**front(path)).to_dict() == data.to_dict()


def test_base_model_is_named_where_it_is_on_the_hub_only(facts, tmp_path):
    run = tmp_path / "runs" / "aligned"
    run.mkdir(parents=True)
    (tmp_path / "runs" / "plain").mkdir()
    assert "base_model" not in front(write_card(run, facts))
    facts.recipe = {**facts.recipe, "model": "HuggingFaceTB/SmolLM2-135M-Instruct"}
    assert front(write_card(run, facts))["base_model"] == "HuggingFaceTB/SmolLM2-135M-Instruct"
    for local in ("package:minilm", str(tmp_path / "elsewhere"), "./here", "model.gguf/../x"):
        facts.recipe = {**facts.recipe, "model": local}
        assert "base_model" not in front(write_card(run, facts))
    assert str(tmp_path) not in (run / "README.md").read_text()


def test_the_table_says_what_changed(facts, tmp_path):
    text = write_card(tmp_path, facts).read_text(encoding="utf-8")
    html = MarkdownIt("commonmark").enable("table").render(text.split("---\n", 2)[2])
    assert html.count("<tr>") == 5
    assert "<td>test under typos</td>" in html
    assert "-0.019 (-0.023 to -0.014)</td>\n<td>better</td>" in html
    assert "3,394 rows read, 3,381 kept by the filters, 676 added by augmenters" in text
    assert "<code>fgm</code>" in html
    assert "<code>supervised</code>" not in html


def test_what_got_worse_and_what_was_not_done_is_said(facts, tmp_path):
    facts.metrics = {
        side: {"validation": splits["test"] | {"f1": {"value": -0.1, "low": -0.2, "high": -0.05, "n": 9, "p": 0.01}}}
        for side, splits in facts.metrics.items()
    }
    text = write_card(tmp_path, facts).read_text(encoding="utf-8")
    assert "- Worse than before: f1 ↑ on validation." in text
    assert "- There was no test split" in text


def test_names_that_mean_something_to_markdown_are_quoted(facts, tmp_path):
    evil = "a|b <script>x</script> *_`\n# no heading"
    facts.metrics = {side: {evil: splits["test"]} for side, splits in facts.metrics.items()}
    facts.warnings = [evil]
    facts.recipe = {**facts.recipe, "model": evil, "data": {"train": [{"path": evil}]}}
    text = write_card(tmp_path, facts).read_text(encoding="utf-8")
    html = MarkdownIt("commonmark").enable("table").render(text.split("---\n", 2)[2])
    assert "<script" not in html
    assert "no heading</h1>" not in html
    assert html.count("<tr>") == 3
    assert front(tmp_path / "README.md")["model-index"][0]["results"][0]["dataset"]["split"] == evil


def test_notes_are_no_limits_and_keep_their_code(facts, tmp_path):
    facts.warnings = ["an *odd* note: see `alignkit predict` and `head: {a_b: 0.1}`"]
    text = write_card(tmp_path, facts).read_text(encoding="utf-8")
    limits, notes = text.partition("## Limits")[2].split("## Licence")[0].split("## Notes")
    assert "odd" not in limits
    assert notes.strip() == "- an \\*odd\\* note: see `alignkit predict` and `head: {a_b: 0.1}`"


def test_a_run_without_anything_has_a_card(tmp_path):
    path = write_card(tmp_path, RunFacts(recipe={}, task="ner"))
    assert "model-index" not in front(path)
    assert "Nothing was measured." in path.read_text()
    assert "None" not in path.read_text()


def test_a_licence_that_is_given_is_kept(facts, tmp_path):
    facts.licence = "apache-2.0"
    assert front(write_card(tmp_path, facts))["license"] == "apache-2.0"
