"""Swap lists, English grammar around their words, and the text that they make."""

from __future__ import annotations

from itertools import pairwise

import pytest
from alignkit_constraints import Counterfactual
from alignkit_constraints.grammar import article, noun_follows, vowel
from alignkit_constraints.swap_lists import SHIPPED, SwapList, read_list
from alignkit_constraints.swaps import Swapper
from pydantic import ValidationError

from alignkit.data import Example
from alignkit.errors import UsageError


def view(constraint: Counterfactual, **fields):
    return constraint.views(Example(fields, inputs=tuple(fields))).get("counterfactual")


def swapper(*names: str, language: str = "en", cased: bool = True) -> Swapper:
    read = [read_list(str(name), language) for name in names]
    assert not [mistake for _, mistakes in read for mistake in mistakes]
    return Swapper([part for parts, _ in read for part in parts], language, cased)


def pairs(*words: tuple[str, str]) -> Swapper:
    return Swapper([SwapList(tuple(((left,), (right,)) for left, right in words))])


# -- English -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("He won.", "She won."),
        ("SHE said he's late", "HE said she's late"),
        ("the(he) or_he", "the(she) or_she"),
        ("his book, him and himself", "her book, her and herself"),
        ("The theme of her speech", "The theme of his speech"),
        ("I saw her in the market.", "I saw him in the market."),
        ("The situation makes HER feel angry.", "The situation makes HIM feel angry."),
        ("They made her very happy", "They made him very happy"),
        ("Her very first film", "His very first film"),
        ("The book is his; hers is new", "The book is hers; his is new"),
        ("We loved her deeply, and her deeply moving songs", "We loved him deeply, and his deeply moving songs"),
        ("Mr. Smith and Ma'am", "Ms. Smith and Sir"),
        ("An actor met a waitress", "An actress met a waiter"),
        ("A heroine and AN ACTOR", "A hero and AN ACTRESS"),
    ],
)
def test_gender(text, expected):
    assert view(Counterfactual(lists=["gender"]), text=text)["text"] == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("John's mother met Mary", "Patricia's father met James"),
        ("JOHN and john", "PATRICIA and john"),
        ("José came", "Rosa came"),
        ("DeShawn, not Deshawn", "Latoya, not Latoya"),
    ],
)
def test_names_on_the_first_draw_give_way_to_those_of_their_line(text, expected):
    assert swapper("gender", "names")(text) == expected


def test_names_are_found_in_small_letters_where_texts_have_no_capitals():
    assert view(Counterfactual(), text="john met mary") is None
    swapped = view(Counterfactual(cased=False), text="john met mary")["text"]
    assert swapped != "john met mary"
    assert swapped.islower()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Germany and the Germans", "Ghana and the Ghanaians"),
        ("She speaks German.", "She speaks Ghanaian."),
        ("a Chilean, and a Chilean wine", "a Chinese person, and a Chinese wine"),
        ("an Egyptian", "an Ethiopian"),
        ("an Australian", "an Austrian"),
        ("a Frenchman", "a German"),
        ("The Chinese are, the Chinese state is", "The Colombians are, the Colombian state is"),
        ("The Dutch are out. Morocco lost", "The Nigerians are out. The Netherlands lost"),
        ("I love Morocco", "I love the Netherlands"),
        ("in the US, with us, THE U.S.", "in Australia, with us, AUSTRALIA"),
        ("a Ukrainian and an Uruguayan", "an American and an Uruguayan"),
        (
            "an American friend, French fries and African Americans",
            "an Australian friend, French fries and African Americans",
        ),
        ("polish the china", "polish the china"),
    ],
)
def test_nationality(text, expected):
    draws = {"a Ukrainian": 2}  # Venezuela, Vietnam, America
    draw = next((draw for start, draw in draws.items() if text.startswith(start)), 0)
    assert swapper("nationality")(text, draw) == expected


def test_a_vowel_is_one_by_its_sound():
    assert all(map(vowel, ["actor", "heiress", "honest", "uncle", "Indian", "Uzbek", "unmarried"]))
    assert not any(
        map(vowel, ["hero", "European", "Ukrainian", "Ugandan", "university", "one", "USA", "waiter", "yak"])
    )


def test_an_article_changes_with_the_sound_and_nowhere_else():
    assert article("He is A ", "man", "actor") == (6, 7, "An")
    assert article("He is A ", "MAN", "ACTOR") == (6, 7, "AN")
    assert article("He is a ", "actor", "actress") is None  # not ours to correct
    assert article("Canada ", "man", "actor") is None


@pytest.mark.parametrize("after", [" book", " 2 cats", " “best” friend", " happy life", " lovely, old house", " own"])
def test_a_noun_follows(after):
    assert noun_follows(after)


@pytest.mark.parametrize("after", ["", ".", " .", " , and", " the book", " I'll", " he’s late", " really badly.", "'s"])
def test_no_noun_follows(after):
    assert not noun_follows(after)


# -- Chinese -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("他是其他人的父亲。", "她是其他人的母亲。"),
        ("她们和王先生", "他们和王女士"),
        ("张伟喜欢弹吉他", "王芳喜欢弹吉他"),
        ("王志强认识李秀英", "王淑芬认识李志强"),
        ("女儿的丈夫", "儿子的妻子"),
        ("男女生和女生", "男女生和男生"),
        ("中国人在印度尼西亚", "美国人在埃塞俄比亚"),
        ("其中国家很多，印度洋", "其中国家很多，印度洋"),
    ],
)
def test_chinese(text, expected):
    assert swapper("gender", "names", "nationality", language="zh")(text) == expected


@pytest.mark.parametrize("draw", [0, 1, 12345678901234567])
def test_chinese_counterparts_are_as_long_as_the_words(draw):
    text = "张伟、王建国和淑芬在俄罗斯、澳大利亚和沙特阿拉伯见到德国人"
    swapped = swapper(*SHIPPED, language="zh")(text, draw)
    assert len(swapped) == len(text)
    assert sum(a != b for a, b in zip(swapped, text, strict=True)) > 15


# -- a choice ----------------------------------------------------------------------------------------------------


def test_two_people_stay_two_and_other_texts_get_other_counterparts():
    constraint = Counterfactual(lists=["names"])
    texts = [f"James, John, Robert and Mary, number {i}" for i in range(20)]
    found = [view(constraint, text=text)["text"].partition(", number")[0] for text in texts]
    assert found == [view(constraint, text=text)["text"].partition(", number")[0] for text in texts]
    assert len(set(found)) > 15
    for text in found:
        first, second, third = text.split(" and ")[0].split(", ")
        assert len({first, second, third}) == 3


def test_another_seed_makes_another_choice():
    texts = [f"Germany {i}" for i in range(20)]
    one, other = ([view(Counterfactual(lists=["nationality"], seed=s), text=t)["text"] for t in texts] for s in (0, 1))
    assert sum(a != b for a, b in zip(one, other, strict=True)) > 15


def test_every_other_word_of_a_line_has_its_turn_and_the_word_itself_has_none():
    faiths = SwapList(((("Hindu",), ("Jew",), ("Muslim",), ("Sikh",)),))
    assert {Swapper([faiths])("a Jew", draw) for draw in range(12)} == {"a Hindu", "a Muslim", "a Sikh"}
    countries = SwapList(
        tuple(((c,), (p,)) for c, p in [("Peru", "Peruvians"), ("Cuba", "Cubans"), ("Mali", "Malians")]), "lines"
    )
    found = {Swapper([countries])("Cubans of Cuba", draw) for draw in range(12)}
    assert found == {"Peruvians of Peru", "Malians of Mali"}


def test_grammar_is_kept_far_into_a_text():
    start = "word " * 100
    assert swapper("gender")(start + "He saw her, an actor. ") == start + "She saw him, an actress. "
    assert swapper("gender")(start + "a heroine") == start + "a hero"
    assert pairs(("heir", "prince"))(start + "an heir") == start + "a prince"


# -- examples ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["Nothing here.", "the theme", "will mark grace the art", ""])
def test_no_view_where_there_is_nothing_to_swap(text):
    assert Counterfactual().views(Example({"text": text}, inputs=("text",))) == {}


def test_word_lists_keep_their_words_and_see_their_neighbours():
    swap = swapper("gender", "names", "nationality")
    words = ["Her", "son", "'s", "U.S.", "friend", "saw", "her", ",", "Mary", ",", "and", "a", "Ghanaian", ",", ""]
    swapped = ["His", "daughter", "'s", "U.S.", "friend", "saw", "him", ",", "James", ",", "and", "a", "Greek", ",", ""]
    assert swap.words(words) == swapped
    assert swap.words(["an", "Indian", "/", "Saudi", "Arabia"], 0) == ["an", "Indonesian", "/", "Saudi", "Arabia"]
    assert swap.words(["South", "Africa"], 1) == ["South", "Africa"]  # Spain is one word
    assert swap.words(["a", "Cuban", "."], 0) == ["a", "Dane", "."]


def test_words_of_several_give_way_to_as_many():
    swap = pairs(("old man", "old woman"), ("New York", "Paris"))
    assert swap.words(["An", "old", "man's", "New", "York"]) == ["An", "old", "woman's", "New", "York"]
    assert swap.words(["New York", "Paris"]) == ["Paris", "New York"]


def test_chinese_words_made_of_several_tokens_are_found():
    swap = swapper("gender", "names", "nationality", language="zh")
    assert swap.words(list("王先生和其他人问他")) == list("王女士和其他人问她")
    assert swap.words(["张", "伟是", "德国", "人"]) == ["王", "芳是", "俄国", "人"]


def test_targets_and_what_the_assistant_said_stay():
    messages = [{"role": "user", "content": "Is he well?"}, {"role": "assistant", "content": "He is."}]
    example = Example({"messages": messages, "completion": "He is."}, inputs=("messages",), targets=("completion",))
    swapped = Counterfactual().views(example)["counterfactual"]
    assert [m["content"] for m in swapped["messages"]] == ["Is she well?", "He is."]
    assert swapped["completion"] == "He is."
    assert example["messages"][0]["content"] == "Is he well?"


def test_the_view_bears_the_components_name():
    constraint = Counterfactual(lists=["names"])
    constraint.name = "names-only"
    assert set(constraint.views(Example({"text": "Mary and he"}, inputs=("text",)))) == {"names-only"}


# -- lists -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "language"), [(n, lang) for n in SHIPPED for lang in ("en", "zh")])
def test_shipped_lists_are_well_formed(name, language):
    parts, mistakes = read_list(name, language)
    assert not mistakes
    lines = [line for part in parts for line in part.lines]
    assert len(lines) > 15
    assert len(set(lines)) == len(lines)
    words = [spelling for line in lines for cell in line for spelling in cell]
    if language == "zh":
        assert all(len({len(spelling) for cell in line for spelling in cell}) == 1 for line in lines)
        wide = [part for part in parts if part.by != "columns"]
        assert all(len(a[0][0]) == len(b[0][0]) for part in wide for a, b in pairwise(part.lines))
    if name == "names":
        assert len(set(words)) == len(words)
    assert all(word == word.strip() for word in words)


def test_swapping_names_twice_gives_the_text_back():
    swap = swapper("names")
    text = "John met Mary and OMAR in Paris"
    assert swap(text) != text
    assert swap(swap(text)) == text


def test_longer_entries_win_and_identical_pairs_protect():
    swap = pairs(("old man", "old woman"), ("man", "woman"), ("Isle of Man", "Isle of Man"))
    assert swap("An old man and a man on the Isle of Man") == "An old woman and a woman on the Isle of Man"


def test_a_file_of_ones_own(tmp_path):
    path = tmp_path / "faith.tsv"
    path.write_text("# comment\nmosque\tchurch\n\nMuslim\tChristian\n", encoding="utf-8")
    constraint = Counterfactual(lists=[str(path), "gender"])
    assert view(constraint, text="The Muslim left his mosque")["text"] == "The Christian left her church"


def test_a_file_of_forms(tmp_path):
    path = tmp_path / "faith.tsv"
    path.write_text("he\tshe\n# swap: lines\nIslam\tMuslim|Moslem\nHinduism\tHindu\n", encoding="utf-8")
    swap = swapper(path)
    assert swap("A Moslem and his Islam") == "A Hindu and his Hinduism"
    assert swap("He, a Hindu") == "She, a Muslim"


def test_names_held_out_by_a_list_of_ones_own_are_not_found(tmp_path):
    path = tmp_path / "names.tsv"
    path.write_text("#swap: both\nJames\tMary\nJuan\tRosa\n", encoding="utf-8")
    constraint = Counterfactual(lists=[path])
    assert view(constraint, text="Latoya") is None
    assert {view(constraint, text=f"James {i}")["text"].split()[0] for i in range(20)} == {"Mary", "Rosa"}


def test_every_mistake_of_the_lists_at_once(tmp_path):
    bad, forms, latin, empty = (tmp_path / f"{name}.tsv" for name in ("bad", "forms", "latin", "empty"))
    bad.write_text("a\tb\nonly one\na\tb\tc\nx\t\ny\tz|\n#swap: line\n", encoding="utf-8")
    forms.write_text("#swap: both\na\tb\nc\n#swap: lines\nx\ty\tz\n", encoding="utf-8")
    latin.write_bytes(b"caf\xe9\tbar\n")
    empty.write_text("# nothing\n", encoding="utf-8")
    constraint = Counterfactual(lists=["gendr", bad, forms, latin, empty])
    expected = [
        "swap list gendr: no such list or file; expected gender, names or nationality, or a file; "
        "did you mean 'gender'?",
        f"{bad}:2: 1 column; expected two words or more separated by tabs",
        f"{bad}:4: an empty column or spelling; expected words separated by tabs",
        f"{bad}:5: an empty column or spelling; expected words separated by tabs",
        f"{bad}:6: #swap: line; expected columns, lines or both; did you mean 'lines'?",
        f"{forms}:3: 1 column; expected two words or more separated by tabs",
        f"{forms}:4: one line; expected two or more to choose from",
        f"{latin}: no UTF-8 at byte 3; expected UTF-8 text; save the file as UTF-8",
        f"{empty}: no words; expected two words separated by a tab in each line",
    ]
    assert [str(mistake) for mistake in constraint.check(None)] == expected
    with pytest.raises(UsageError) as caught:
        constraint.views(Example({"text": "he"}, inputs=("text",)))
    assert [str(mistake) for mistake in caught.value.mistakes] == expected


def test_at_least_one_list():
    with pytest.raises(ValidationError, match="at least 1"):
        Counterfactual(lists=[])
