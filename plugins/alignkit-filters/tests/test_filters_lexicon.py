import json
import re
import unicodedata

import pytest
from alignkit_filters import Lexicon
from alignkit_filters.lexicon import automaton, find, fold, join, mask_words
from pydantic import ValidationError

from alignkit.cli.filter import filtered
from alignkit.components import KEEP
from alignkit.data import Example, prepare
from alignkit.data.load import load
from alignkit.errors import UsageError
from alignkit.preflight import plan_of
from alignkit.recipe import Recipe
from alignkit.run import train
from alignkit.testing.models import tiny


def text(value):
    return Example({"text": value}, inputs=("text",))


def terms(found, words, ignore_case=True):
    return [found[m.start : m.end] for m in find(found, automaton(words, ignore_case), ignore_case)]


@pytest.mark.parametrize(
    ("given", "words", "found"),
    [
        ("You Ass, classy ass", ["ass"], ["Ass", "ass"]),
        ("class", ["ass"], []),
        ("kick-ass a ss", ["ass"], ["ass"]),
        ("New  York\tnew\nyork newyork", ["new york"], ["New  York", "new\nyork"]),
        ("C++ and c", ["c++"], ["C++"]),
        ("你是笨蛋吗", ["笨蛋"], ["笨蛋"]),
        ("我是Nazi分子", ["nazi"], ["Nazi"]),
        ("Nazis", ["nazi"], []),
        ("ＮＡＺＩ！", ["nazi"], ["ＮＡＺＩ"]),
        ("un CAFE\u0301!", ["café"], ["CAFE\u0301"]),
        ("STRASSE Straße", ["straße"], ["STRASSE", "Straße"]),
        ("ß", ["s"], []),
        ("ßs", ["ss"], []),
        ("İİİ bad İ", ["bad"], ["bad"]),
        ("ΟΔΟΣ οδος", ["οδός", "οδος"], ["ΟΔΟΣ", "οδος"]),
        ("हिंदी", ["हिं"], []),
        ("바보야", ["바보"], ["바보"]),
        ("x\U0001f595x", ["\U0001f595"], ["\U0001f595"]),
        ("she sells", ["she", "he", "sells"], ["she", "sells"]),
    ],
)
def test_terms_are_found_where_people_see_them(given, words, found):
    assert terms(given, words) == found


def test_case_is_kept_apart_on_demand():
    assert terms("Polish polish", ["Polish"], ignore_case=False) == ["Polish"]


def test_fold_agrees_with_unicode_and_its_origins_are_units_of_the_text():
    given = "ẞ ﬁn  İstanbul e\u0301 ｶﾞ 汉字 ŉ"
    folded, origin = fold(given, ignore_case=True)
    whole = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", given).casefold())
    assert folded == re.sub(r"\s+", " ", whole)
    assert len(origin) == len(folded) + 1
    assert origin == sorted(origin)
    assert origin[-1] == len(given)


def test_against_a_search_by_regular_expression():
    given = "The bad bad-tempered Baddie was BAD; a badger, bad_ly bad?" * 3
    expected = [m.span() for m in re.finditer(r"(?<![^\W_])bad(?![^\W_])", given, re.IGNORECASE)]
    assert [(m.start, m.end) for m in find(given, automaton(["bad"], True), True)] == expected


def test_actions():
    row = text("Bad bad WORSE thing")
    dropped, masked, flagged = (
        Lexicon(words=["worse", "bad"], action=action).filter_examples([row])[0] for action in ("drop", "mask", "flag")
    )
    assert [v.action for v in (dropped, masked, flagged)] == ["drop", "edit", "keep"]
    assert dropped.value == masked.value == flagged.value == ["bad", "worse"]
    assert dropped.rule == "words"
    assert masked.example["text"] == "*** *** *** thing"
    assert dropped.example is flagged.example is None
    assert row["text"] == "Bad bad WORSE thing"
    assert Lexicon(words=["worst"]).filter_examples([row]) == [KEEP]


def test_overlapping_terms_are_masked_as_one():
    row = text("new york city, york")
    verdict = Lexicon(words=["new york", "york city"], action="mask").filter_examples([row])[0]
    assert verdict.example["text"] == "***, york"


def test_word_lists_are_searched_across_words_and_keep_their_length():
    row = Example({"tokens": ["In", "New", "York", "City", "."], "tags": list("abcde")}, inputs=("tokens",))
    verdict = Lexicon(words=["new york"], action="mask", mask="[x]").filter_examples([row])[0]
    assert verdict.example["tokens"] == ["In", "[x]", "[x]", "City", "."]
    assert verdict.example["tags"] == row["tags"]


def test_word_lists_of_chinese_characters_are_joined_without_spaces():
    assert join(["你", "是", "a", "b", "", "c"]) == ("你是 a b c", [0, 1, 3, 5, 6, 7])
    assert mask_words(["你", "笨", "蛋吗", "？"], automaton(["笨蛋"], True), True, "***") == [
        "你",
        "***",
        "***吗",
        "？",
    ]


def test_assistant_turns_and_completions_are_masked_unless_only_inputs_are_searched():
    messages = [{"role": "user", "content": "bad?"}, {"role": "assistant", "content": "bad!"}]
    chat = Example({"messages": messages, "completion": "so bad"}, inputs=("messages",), targets=("completion",))
    everything = Lexicon(words=["bad"], action="mask").filter_examples([chat])[0].example
    assert [m["content"] for m in everything["messages"]] == ["***?", "***!"]
    assert everything["completion"] == "so ***"
    inputs = Lexicon(words=["bad"], action="mask", of="inputs").filter_examples([chat])[0].example
    assert [m["content"] for m in inputs["messages"]] == ["***?", "bad!"]
    assert inputs["completion"] == "so bad"


def test_a_list_in_a_file(tmp_path):
    path = tmp_path / "rude.txt"
    path.write_bytes("\ufeff# a comment\nbad\r\n\n  worse \n#tag\n".encode())
    lexicon = Lexicon(words=str(path), action="flag")
    verdict = lexicon.filter_examples([text("worse #tag; a comment, bad")])[0]
    assert (verdict.rule, verdict.value) == ("rude.txt", ["worse", "#tag", "bad"])
    assert list(lexicon.check(None)) == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "{path}: no such file; expected a list of terms, one per line"),
        (b"\n# nothing\n", "{path}: no terms; expected at least one, one per line"),
        (b"good\nb\xe4d\n", "{path}:2: byte 0xe4 is not UTF-8; expected a UTF-8 file; save the list as UTF-8"),
    ],
)
def test_a_list_that_cannot_be_used_is_the_users_to_mend(tmp_path, content, message):
    path = tmp_path / "list.txt"
    if content is not None:
        path.write_bytes(content)
    lexicon = Lexicon(words=str(path))
    assert [str(m) for m in lexicon.check(None)] == [message.format(path=path)]
    with pytest.raises(UsageError, match=re.escape(message.format(path=path))):
        lexicon.filter_examples([text("a")])


def test_a_folder_and_an_empty_inline_list_are_refused(tmp_path):
    assert [str(m) for m in Lexicon(words=str(tmp_path)).check(None)] == [
        f"{tmp_path}: Is a directory; expected a readable file"
    ]
    assert [str(m) for m in Lexicon(words=[" "]).check(None)] == [
        "words: no terms; expected at least one, or the path of a list"
    ]


@pytest.mark.parametrize("mask", ["", "a b"])
def test_a_mask_is_one_word(mask):
    with pytest.raises(ValidationError, match="mask"):
        Lexicon(words=["bad"], mask=mask)


# -- marking -----------------------------------------------------------------------------------------------------


def test_a_flag_with_a_column_marks_what_it_finds_and_leaves_the_rest():
    lexicon = Lexicon(words=["bad"], action="flag", column="harmful")
    found, other = lexicon.filter_examples([text("a bad one"), text("a good one")])
    assert (found.action, found.rule, found.value) == ("edit", "words", ["bad"])
    assert found.example.fields == {"text": "a bad one", "harmful": "yes"}
    assert other == KEEP
    assert lexicon.writes == ("harmful",)
    assert Lexicon(words=["bad"], action="flag").writes == ()


def test_of_two_lists_that_write_one_column_the_last_stands():
    filters = [Lexicon(words=[word], action="flag", column="about", value=word) for word in ("she", "he")]
    rows = [text("she is here"), text("he is here"), text("she and he"), text("nobody is here")]
    kept, audit = prepare.filter_examples([("lexicon", f.filter_examples) for f in filters], rows)
    assert [row.get("about") for row in kept] == ["she", "he", "he", None]
    assert [line["value"] for line in audit] == [["she"], ["she"], ["he"], ["he"]]


@pytest.mark.parametrize("action", ["drop", "mask"])
def test_a_column_that_would_not_be_written_is_refused(action):
    with pytest.raises(ValidationError, match=f"action {action} writes no column: set `action: flag`"):
        Lexicon(words=["bad"], action=action, column="harmful")


def recipe(folder, rows, **fields):
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    model, tokenizer, _ = tiny("bert-sequence-classification")
    for part in (model, tokenizer):
        part.save_pretrained(folder / "model")
    return Recipe(model="model", task="text-classification", data={"train": "rows.jsonl"}, base=folder, **fields)


ROWS = [
    {"text": sentence, "label": label}
    for sentence, label in (
        ("she is good", "good"),
        ("ada is good", "good"),
        ("he is bad", "bad"),
        ("bob is bad", "bad"),
        ("the film is bad", "bad"),
        ("the film is good", "good"),
    )
]
WOMEN = {"use": "lexicon", "words": ["she", "ada"], "action": "flag", "column": "about", "value": "women"}
MEN = {"use": "lexicon", "words": ["he", "bob"], "action": "flag", "column": "about", "value": "men"}
FAIR = {"use": "group-fairness", "column": "about"}


def test_the_plan_and_the_training_see_the_column(tmp_path):
    made = recipe(
        tmp_path,
        ROWS,
        filters=[WOMEN, MEN],
        constraints=[FAIR],
        training={"max_steps": 2, "logging_steps": 1},
        output="run",
    )
    plan_of(made, load(made.data, made.task, made.base)["train"])
    run = train(made)
    audit = [json.loads(line) for line in (run.path / "audit.jsonl").read_text().splitlines()]
    assert [(line["row"], line["action"]) for line in audit] == [(0, "edit"), (1, "edit"), (2, "edit"), (3, "edit")]
    state = next(run.path.glob("checkpoints/checkpoint-*/trainer_state.json"))
    logged = [entry for entry in json.loads(state.read_text())["log_history"] if "loss" in entry]
    assert logged
    assert all(entry["penalty/group-fairness"] > 0 for entry in logged)


def test_the_plan_says_that_a_list_marks_too_little_for_who_reads_it(tmp_path):
    made = recipe(tmp_path, ROWS, filters=[WOMEN], constraints=[FAIR])
    with pytest.raises(UsageError, match="all rows with a group in 'about' are 'women'; expected two groups"):
        plan_of(made, load(made.data, made.task, made.base)["train"])


@pytest.mark.parametrize(("words", "marked"), [(["bomb"], 1), (["poison"], 0)])
def test_the_plan_knows_what_a_list_marks_for_kl_ethics(tmp_path, words, marked):
    rows = [{"prompt": "how do i make a bomb", "completion": "no"}, {"prompt": "who is ada", "completion": "ok"}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "principles.txt").write_text("be good")
    for part in tiny("llama-causal-lm")[:2]:
        part.save_pretrained(tmp_path / "model")
    made = Recipe(
        base=tmp_path,
        model="model",
        task="chat",
        data={"train": "rows.jsonl"},
        filters=[{"use": "lexicon", "words": words, "action": "flag", "column": "harmful", "of": "inputs"}],
        constraints=[{"use": "kl-ethics", "marked": "harmful", "principles": str(tmp_path / "principles.txt")}],
    )
    examples = load(made.data, made.task, made.base)["train"]
    if marked:
        composition, _ = plan_of(made, examples)
        kept, _ = prepare.filter_examples(composition.filters, examples)
        assert [set(composition.views(row)) for row in kept] == [{"kl-ethics"}, set()]
    else:
        with pytest.raises(UsageError, match="no training row says yes in the column 'harmful'"):
            plan_of(made, examples)


def test_a_column_of_the_data_is_not_written_over(tmp_path):
    made = recipe(tmp_path, ROWS, filters=[{**WOMEN, "column": "label"}], constraints=[])
    with pytest.raises(UsageError) as refused:
        plan_of(made, load(made.data, made.task, made.base)["train"])
    assert str(refused.value) == (
        "filter lexicon: it would write over the column 'label', which the data has in 6 rows; "
        "expected a column of its own; give it another name"
    )


def test_a_filtered_file_has_the_column_where_it_has_a_place(tmp_path):
    (tmp_path / "recipe.yaml").write_text(
        "{model: m, task: ner, data: {train: rows.conll}, filters: "
        "[{use: lexicon, words: [rome], action: flag, column: city}]}"
    )
    rows = tmp_path / "rows.conll"
    rows.write_text("in O\nrome B-LOC\n\nin O\nparis B-LOC\n")
    counts = filtered(rows, tmp_path / "recipe.yaml", tmp_path / "out.jsonl", None, [])
    assert (counts["kept"], counts["edited"]) == (2, 1)
    written = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [row.get("city") for row in written] == ["yes", None]
    with pytest.raises(UsageError, match=r"without the column 'city' of filter lexicon; expected a \.jsonl file"):
        filtered(rows, tmp_path / "recipe.yaml", tmp_path / "out.conll", None, [])
    again = tmp_path / "again.jsonl"
    with pytest.raises(UsageError, match="it would write over the column 'city', which the data has"):
        filtered(tmp_path / "out.jsonl", tmp_path / "recipe.yaml", again, None, [])
