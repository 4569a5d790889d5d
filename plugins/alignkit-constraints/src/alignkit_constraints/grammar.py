"""What a swap list cannot say of English: `her` as `his` or `him`, `a` or `an`, an adjective or a person.

Rules of a few lines each, right more often than not (`docs/results.md` says how often); no parser is involved.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

_ARTICLE = re.compile(r"(?<![^\W_])(an?)(\s+)$", re.IGNORECASE)
_SENTENCE_START = re.compile(r"(?:^|[.!?]['\"”’)]*)\s*['\"“‘(]*$")
_LAST_WORD = re.compile(r"([^\W\d_]+)\s+$")
_NEXT_WORD = re.compile(r"\s+[\"'“‘`(]*([^\W_]+(?:['’-][^\W_]+)*)")

_BEFORE_NOUN = (("his", "him"), ("her", "hers"))
"""The form before a noun, and the form elsewhere."""


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_DETERMINERS = _words("a an the this that one another every each any no some")
_PRONOUNS = _words("i you he she it we they there that what who")
_NO_NOUN = _PRONOUNS | _words("""
    a an the this these those some any all both each every no one my your his her its our their
    me him us them himself herself whom which whose anyone anything someone something everyone everything nothing
    in on at by for with from to of about as into onto over under after before between through during without within
    against among across behind beyond near off out up down around toward towards upon like than until till since
    because and or but nor yet if when while where why how although though unless whether
    is was are were am be been being do does did has have had will would can could shall should may might must
    isn't wasn't doesn't didn't hasn't hadn't won't wouldn't can't couldn't n't
    not never ever always again too also now then here yesterday today tomorrow tonight already soon once later away
    alone anymore instead maybe perhaps either together forever back anyway sometimes afterwards overnight along
    please such
    feel go know get say see think come want become understand believe realize realise forget remember leave stay die
    live speak eat wear lose tell give take keep let make try sing decide determine choose adjust win
""")
"""Words that begin no noun phrase after a possessive: function words, adverbs of time and place, and what people are
made or let to do (`make her feel`)."""
_SKIPPED = _words("""
    so very too more most just even still really quite rather pretty almost only
    happy sad angry mad sick crazy proud better worse good bad free safe hard fast right wrong well dead alive afraid
    sure ready beautiful attractive interesting
""")
"""Words after which it is the next one that tells: `her very first film`, `made her very happy.`"""
_NO_ADVERB = _words("""
    family ally belly bully july early daily lovely ugly elderly friendly lonely lively deadly likely silly jolly holy
    only reply supply fly sly
""")
"""Words in -ly that are no adverbs."""

_VOWEL = re.compile(r"[aeiou]|h(?:eir|on(?:est|our|or)|our)", re.IGNORECASE)
_NO_VOWEL = re.compile(r"eu|ewe|on(?:e|ce)\b|u(?:ni(?!m|n)|k|g(?!l)|ru|s[aeiou]|tah|ti)", re.IGNORECASE)


def noun_follows(after: str) -> bool:
    """Whether the text after a word looks like the rest of a noun phrase that the word begins.

    It does where the next word is none that cannot continue one (an article, a pronoun, a preposition, a conjunction,
    an auxiliary, an adverb of time …); of words that are found in either place (adverbs in -ly, `very`, `happy`) the
    one after them decides.

    Example:
        >>> [noun_follows(after) for after in (" book.", " yesterday", " very first film", " very happy.")]
        [True, False, True, False]
    """
    while match := _NEXT_WORD.match(after):
        word = match.group(1).casefold().replace("’", "'")
        if word.partition("'")[0] in _PRONOUNS:  # I'll, he's
            return False
        adverb = word.endswith("ly") and word not in _NO_ADVERB
        if not adverb and word not in _SKIPPED:
            return word not in _NO_NOUN
        after = after[match.end() :]
    return False


def chosen(options: Sequence[tuple[int, str]], before: str, after: str) -> str:
    """Which counterpart a word has in its place, of those that a list gives it.

    Of `his` and `him`, and of `her` and `hers`, the first where a noun follows, else the second. Of a word that stands
    in several columns (`German`: adjective, person), the last column after an article where no noun follows, else the
    first. In all other cases the first counterpart of the list.

    Args:
        options: the column that the word stands in, and its counterpart, in the list's order.
        before, after: the text on both sides.
    """
    words = [word for _, word in options]
    for possessive, other in _BEFORE_NOUN:
        if possessive in words and other in words:
            return possessive if noun_follows(after) else other
    if len({column for column, _ in options}) > 1:
        article = (match := _LAST_WORD.search(before)) and match.group(1).casefold() in _DETERMINERS
        return max(options)[1] if article and not noun_follows(after) else min(options)[1]
    return words[0]


def sentence_starts(before: str) -> bool:
    """Whether a sentence starts after the text."""
    return bool(_SENTENCE_START.search(before))


def article(before: str, old: str, new: str) -> tuple[int, int, str] | None:
    """The change of an article that stands before a word which gave way to another: start, end, `a` or `an`.

    None where there is no article or the words' first sounds are of one sort.

    Example:
        >>> article("He was an ", "actor", "waiter")
        (7, 9, 'a')
    """
    match = _ARTICLE.search(before)
    if match is None or vowel(old) == vowel(new):
        return None
    right = "an" if vowel(new) else "a"
    if match.group(1)[0].isupper():
        right = right.upper() if len(new) > 1 and new.isupper() else right.capitalize()
    return match.start(1), match.end(1), right


def vowel(word: str) -> bool:
    """Whether a word begins with a vowel sound, by its letters: an `actor`, an `heiress`, but a `European`.

    Example:
        >>> [vowel(word) for word in ("actor", "heiress", "uncle", "European", "Ukrainian", "waiter")]
        [True, True, True, False, False, False]
    """
    return bool(_VOWEL.match(word)) and not _NO_VOWEL.match(word)
