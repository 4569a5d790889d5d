"""Entities as character spans: both formats, every mistake with its place, Chinese by the character."""

import pytest

from alignkit.errors import UsageError
from alignkit.tasks.ner import Ner
from alignkit.tasks.tags import marked, spans
from alignkit.tasks.words import words


def parsed(fields, **options):
    return Ner(**options).parse(fields, "a.jsonl:3")


def refused(fields, **options):
    with pytest.raises(UsageError) as caught:
        parsed(fields, **options)
    return [str(m) for m in caught.value.mistakes]


def entities(*given, text="Ada went to New York."):
    return {"text": text, "entities": [dict(zip(("start", "end", "type", "text"), g, strict=False)) for g in given]}


def test_spans_become_a_tag_per_word():
    found = parsed({**entities((0, 3, "PER"), (11, 20, "LOC")), "id": 7})
    assert found.fields == {
        "id": 7,
        "tokens": ["Ada", "went", "to", "New", "York", "."],
        "tags": ["B-PER", "O", "O", "B-LOC", "I-LOC", "O"],
    }
    assert found.inputs == ("tokens",)
    labels = {"text": "Ada went.", "entities": [{"start": 0, "end": 3, "label": " PER ", "text": "Ada"}]}
    assert parsed(labels, scheme="BIOES")["tags"] == ["S-PER", "O", "O"]
    assert parsed({"text": "Nothing here.", "entities": []})["tags"] == ["O", "O", "O"]
    twice = entities((0, 3, "PER"), (0, 3, "PER"))
    assert parsed(twice)["tags"] == parsed(entities((0, 3, "PER")))["tags"]


def test_cluener_ends_are_the_last_character():
    row = {
        "text": "李明和王芳在北京，李明说。",
        "label": {"name": {"李明": [[0, 1], [9, 10]], "王芳": [[3, 4]]}, "address": {"北京": [[6, 7]]}},
    }
    found = parsed(row)
    assert found["tokens"] == list(row["text"])
    named = [(kind, "".join(found["tokens"][a:b])) for kind, a, b in spans(found["tags"], "BIO")]
    assert named == [("name", "李明"), ("name", "王芳"), ("address", "北京"), ("name", "李明")]
    assert set(parsed({"text": "什么也没有", "label": {}})["tags"]) == {"O"}


def test_letters_among_chinese_are_cut_where_an_entity_ends_and_elsewhere_not():
    row = {"text": "昨晚ABvsCD很好看", "label": {"team": {"AB": [[2, 3]], "CD": [[6, 7]]}}}
    assert parsed(row)["tokens"] == ["昨", "晚", "AB", "vs", "CD", "很", "好", "看"]
    assert refused(entities((0, 2, "PER"), (16, 20, "LOC"))) == [
        "a.jsonl:3 entity 1: 'Ad' begins or ends within the word 'Ada'; expected whole words"
    ]


def test_what_is_wrong_with_spans_is_said_with_its_place():
    assert refused(entities((0, 30, "PER"), (-1, 3, "PER"), (3, 3, "PER"), (3, 4, "X"))) == [
        "a.jsonl:3 entity 1: [0, 30] in a text of 21 characters; expected a place in the text",
        "a.jsonl:3 entity 2: [-1, 3] in a text of 21 characters; expected a place in the text",
        "a.jsonl:3 entity 3: [3, 3] in a text of 21 characters; expected a place in the text",
        "a.jsonl:3 entity 4: nothing but spaces at [3, 4]; expected an entity",
    ]
    assert refused(entities((11, 19, "LOC", "New York"), (0, 3, "PER", 5))) == [
        "a.jsonl:3 entity 1: at [11, 19] is ' New Yor'; expected 'New York'; it is at [12, 20]",
        "a.jsonl:3 entity 2: at [0, 3] is 'Ada'; expected 5",
    ]
    assert refused({"text": "李明说", "label": {"name": {"李明": [[0, 2]]}}}) == [
        "a.jsonl:3 name '李明': at [0, 2] is '李明说'; expected '李明'; it is at [0, 1]"
    ]


def test_entities_that_overlap_are_refused_or_the_longest_is_kept():
    nested = entities((12, 20, "LOC"), (16, 20, "CITY"), (0, 3, "PER"))
    assert refused(nested) == [
        "a.jsonl:3 entity 2: CITY at [16, 20] overlaps LOC at [12, 20]; expected entities apart; "
        "`repair: true` keeps the longest"
    ]
    assert parsed(nested, repair=True)["tags"] == ["B-PER", "O", "O", "B-LOC", "I-LOC", "O"]
    assert refused(entities((0, 3, "PER"), (0, 3, "ORG")))[0].startswith("a.jsonl:3 entity 1: PER at [0, 3] overlaps")


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"text": "", "entities": []}, "a.jsonl:3: 'text' is ''; expected text"),
        ({"text": 5, "label": {}}, "a.jsonl:3: 'text' is 5; expected text"),
        ({"text": "a", "entities": {}}, "a.jsonl:3: 'entities' is {}; expected a list of {"),
        ({"text": "a", "entities": [3]}, 'a.jsonl:3 entity 1: 3; expected {"start": 0, "end": 3, "type": "PER"}'),
        ({"text": "a", "entities": [{"start": 0, "end": True, "type": "X"}]}, "a.jsonl:3 entity 1: {'start': 0, 'end'"),
        ({"text": "a", "entities": [{"start": 0, "end": 1, "type": ""}]}, "a.jsonl:3 entity 1: {'start': 0, 'end': 1"),
        ({"text": "a", "label": {"name": [[0, 1]]}}, "a.jsonl:3: 'label' holds [[0, 1]] for 'name'; expected {type: {"),
        (
            {"text": "a", "label": {"name": {"a": [0, 0]}}},
            "a.jsonl:3 name 'a': 0; expected {type: {text: [[first, last]",
        ),
        ({"text": "a", "label": {"name": {"a": []}}}, "a.jsonl:3 name 'a': []; expected {type: {text: [[first, last]"),
        ({"text": "a", "label": "x"}, "a.jsonl:3: no 'tokens'; expected a list of tokens"),
    ],
)
def test_rows_of_another_shape_are_refused(fields, says):
    assert refused(fields)[0].startswith(says)


def test_spans_of_tags_are_the_spans_they_were_made_of():
    given = [("A", 0, 1), ("B", 1, 4), ("A", 6, 8)]
    for scheme in ("BIO", "BIOES"):
        assert spans(marked(given, 9, scheme), scheme) == given


def test_words_say_where_they_stand():
    text = "Ada's 北京, 2024-01!"
    assert [text[a:b] for a, b in words(text)] == ["Ada", "'s", "北", "京", ",", "2024-01", "!"]
