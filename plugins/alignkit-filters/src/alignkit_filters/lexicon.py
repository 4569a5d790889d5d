"""Terms of a user's list, found in one pass over the text whatever the list's size."""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, NamedTuple

import ahocorasick
from pydantic import Field

from alignkit.components import KEEP, Filter, Verdict
from alignkit.data import Example
from alignkit.data.scripts import UNSPACED
from alignkit.errors import Mistake, UsageError
from alignkit_filters.texts import Of, rewritten, texts

if TYPE_CHECKING:
    from alignkit.plan import Setting

_MARKS = "\u0300-\u036f\u1ab0-\u1aff\u1dc0-\u1dff\u20d0-\u20ff\u3099\u309a\ufe20-\ufe2f\uff9e\uff9f"
_UNIT = re.compile(rf"(?P<stays>[\u4e00-\u9fff]+)|\s+|.[{_MARKS}]*")
_SPACES = re.compile(r"[^\S ]|\s\s")
_UNSPACED = re.compile(rf"[{UNSPACED}]")


class Match(NamedTuple):
    """A term found at `text[start:end]`."""

    start: int
    end: int
    term: str
    """As the list has it."""


# -- folding -----------------------------------------------------------------------------------------------------


def fold(text: str, ignore_case: bool) -> tuple[str, list[int]]:
    """Text as it is compared (NFKC, single spaces, case folded on demand), and where each character came from.

    Folding may lengthen or shorten a text (`ß` is `ss`; `e` and a combining accent are `é`), so it is done unit by
    unit, a unit being a character with its combining marks or a run of white space.

    Returns:
        The folded text, and for each of its characters the start of its unit in `text`; the length of `text` last.

    Example:
        >>> fold("Straße", True)
        ('strasse', [0, 1, 2, 3, 4, 4, 5, 6])
    """
    if text.isascii() and not _SPACES.search(text):
        return (text.lower() if ignore_case else text), list(range(len(text) + 1))
    folded: list[str] = []
    origin: list[int] = []
    for unit in _UNIT.finditer(text):
        if unit.lastgroup == "stays":  # common Han characters: one step for the whole run
            folded.append(unit.group())
            origin += range(*unit.span())
            continue
        part = _fold_unit(unit.group(), ignore_case)
        folded.append(part)
        origin += [unit.start()] * len(part)
    return "".join(folded), [*origin, len(text)]


@functools.lru_cache(maxsize=1 << 16)
def _fold_unit(unit: str, ignore_case: bool) -> str:
    if unit.isspace():
        return " "
    unit = unicodedata.normalize("NFKC", unit)
    return unicodedata.normalize("NFKC", unit.casefold()) if ignore_case else unit


# -- finding -----------------------------------------------------------------------------------------------------


def automaton(terms: Iterable[str], ignore_case: bool) -> Any:  # pyahocorasick has no types
    """The Aho–Corasick automaton of the folded terms; of terms that fold alike the first is kept."""
    built = ahocorasick.Automaton()
    for term in terms:
        folded = fold(term.strip(), ignore_case)[0]
        if folded and folded not in built:
            built.add_word(folded, (len(folded), term.strip()))
    built.make_automaton()
    return built


def find(text: str, terms: Any, ignore_case: bool) -> Iterator[Match]:
    """Every occurrence of a term in `text`, overlapping ones too, in the order of their ends.

    Args:
        text: running text.
        terms: what `automaton` made.
        ignore_case: as the automaton was made.

    An occurrence counts where no letter, digit or mark of a script with spaces goes on beyond either end (`ass` is
    not in `class`), and where it covers whole characters of `text` (`s` is not half of `ß`).
    """
    if not len(terms):
        return
    folded, origin = fold(text, ignore_case)
    for last, (length, term) in terms.iter(folded):
        first, after = last + 1 - length, last + 1
        start, end = origin[first], origin[after]
        whole = (first == 0 or origin[first - 1] < start) and end > origin[last]
        if whole and not _within_word(text, start) and not _within_word(text, end):
            yield Match(start, end, term)


def _within_word(text: str, position: int) -> bool:
    """Whether a word of a script with spaces goes on across `position`."""
    return 0 < position < len(text) and _joins(text[position - 1]) and _joins(text[position])


def _joins(character: str) -> bool:
    return unicodedata.category(character)[0] in "LNM" and not _UNSPACED.match(character)


# -- masking -----------------------------------------------------------------------------------------------------


def mask_text(text: str, matches: Iterable[Match], mask: str) -> str:
    """`text` with every match replaced by `mask`; matches that overlap are replaced as one."""
    return _masked(text, [(m.start, m.end) for m in matches], mask)


def _masked(text: str, spans: list[tuple[int, int]], mask: str) -> str:
    merged: list[tuple[int, int]] = []
    for start, end in sorted(spans):
        if merged and start < merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    for start, end in reversed(merged):
        text = text[:start] + mask + text[end:]
    return text


def join(words: list[str]) -> tuple[str, list[int]]:
    """A word list as running text, and where each word starts in it: no space where a script has none."""
    text, starts = "", []
    for word in words:
        if text and word and not (_UNSPACED.match(text[-1]) and _UNSPACED.match(word[0])):
            text += " "
        starts.append(len(text))
        text += word
    return text, starts


def mask_words(words: list[str], terms: Any, ignore_case: bool, mask: str) -> list[str]:
    """A word list of the same length: in each word, what belongs to a term (of one word or several) is masked."""
    text, starts = join(words)
    matches = list(find(text, terms, ignore_case))
    masked = []
    for word, start in zip(words, starts, strict=True):
        end = start + len(word)
        spans = [
            (max(m.start, start) - start, min(m.end, end) - start) for m in matches if m.start < end > start < m.end
        ]
        masked.append(_masked(word, spans, mask))
    return masked


# -- the filter --------------------------------------------------------------------------------------------------


def read_terms(path: Path) -> list[str]:
    """The terms of a UTF-8 file, one per line; empty lines and lines that start with `# ` are skipped.

    Raises:
        UsageError: the file is missing, is no file, is not UTF-8, or has no terms.
    """
    try:
        lines = path.read_bytes().decode("utf-8-sig").splitlines()
    except FileNotFoundError:
        raise UsageError(Mistake(str(path), "no such file", "a list of terms, one per line")) from None
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        found = f"byte 0x{error.object[error.start]:02x} is not UTF-8"
        raise UsageError(Mistake(f"{path}:{line}", found, "a UTF-8 file", "save the list as UTF-8")) from None
    except OSError as error:
        raise UsageError(Mistake(str(path), error.strerror or str(error), "a readable file")) from None
    terms = [line.strip() for line in lines if line.strip() and not line.startswith("# ")]
    if not terms:
        raise UsageError(Mistake(str(path), "no terms", "at least one, one per line"))
    return terms


class Lexicon(Filter):
    """Drops, masks or flags examples that contain a term of your list.

    All terms are looked for in one pass (Aho & Corasick 1975). In scripts with spaces a term is found as a whole word
    or a run of whole words; in Chinese, Japanese, Korean, Thai, Lao, Burmese and Khmer anywhere. Full-width and
    decomposed characters are found too (NFKC). Word lists are searched across word boundaries (`New`, `York`), and
    keep their number of words when masked, so labels stay aligned. The verdict's rule is the list's file name
    (`words` for an inline list), its value the matched terms.

    With `action: flag` and a `column`, rows with a match get that column, for constraints that look at some rows only:
    `kl-ethics: {marked: harmful}`. Several lists may write one column (`value: she`, `value: he`, for
    `group-fairness`); of a row that several find, the last one's value stands. Like every filter it sees the training
    split alone.

    Errors: a list that is missing, is not UTF-8 or has no terms is a mistake of the recipe, reported with the line;
    so is a column that the data has already, or that no other action than `flag` would write.

    Cost: linear in the text, whatever the list's size; no forward passes.

    Relations: a list knows words, not meanings: it also finds who quotes or condemns them. `flag` first and read the
    audit; a toxicity classifier weighs the context.

    Example:
        >>> row = Example({"text": "A Bad Word, badly put."}, inputs=("text",))
        >>> Lexicon(words=["bad word"], action="mask").filter_examples([row])[0].example["text"]
        'A ***, badly put.'
    """

    example: ClassVar[Mapping[str, Any]] = {"words": ("rome",), "action": "mask"}

    words: Path | tuple[str, ...]
    """Path of a UTF-8 file with one term per line (`# ` starts a comment), or a list of the terms themselves."""
    action: Literal["drop", "mask", "flag"] = "drop"
    """What happens to an example with a match; `flag` keeps it, with a verdict that names the terms."""
    column: str = ""
    """Of `flag`: the column that an example with a match gets, for other components to read; empty: none."""
    value: Annotated[str, Field(min_length=1)] = "yes"
    """What stands in that column."""
    ignore_case: bool = True
    """Compare after full Unicode case folding (`STRASSE` is `straße`)."""
    mask: Annotated[str, Field(pattern=r"^\S+$")] = "***"
    """What stands in for a masked term: no white space, so that a word stays one word."""
    of: Of = "all"
    """The text that is searched: `inputs`, or `all`: completions and assistant turns as well."""

    def __post_init__(self) -> None:
        if self.column and self.action != "flag":
            raise ValueError(f"action {self.action} writes no column: set `action: flag`, or take `column` out")

    @property
    def writes(self) -> tuple[str, ...]:  # type: ignore[override]  # a constant of the class in most filters
        """The column, where one is named."""
        return (self.column,) if self.column else ()

    def check(self, setting: Setting) -> Iterable[Mistake]:
        try:
            self._terms()
        except UsageError as error:
            return error.mistakes
        return ()

    def filter_examples(self, examples: list[Example]) -> list[Verdict]:
        return [self._verdict(example) for example in examples]

    def _verdict(self, example: Example) -> Verdict:
        found = [m.term for text in texts(example, self.of) for m in self._find(text)]
        if not found:
            return KEEP
        rule = self.words.name if isinstance(self.words, Path) else "words"
        value = list(dict.fromkeys(found))
        if self.action == "mask":
            return Verdict("edit", rule=rule, value=value, example=self._masked(example))
        if self.column:
            return Verdict("edit", rule=rule, value=value, example=example.replace(**{self.column: self.value}))
        return Verdict("drop" if self.action == "drop" else "keep", rule=rule, value=value)

    def _find(self, text: str | list[str]) -> Iterator[Match]:
        return find(text if isinstance(text, str) else join(text)[0], self._automaton, self.ignore_case)

    def _masked(self, example: Example) -> Example:
        return rewritten(
            example,
            self.of,
            lambda text: mask_text(text, self._find(text), self.mask),
            lambda words: mask_words(words, self._automaton, self.ignore_case, self.mask),
        )

    def _terms(self) -> list[str]:
        if isinstance(self.words, Path):
            return read_terms(self.words)
        terms = [word.strip() for word in self.words if word.strip()]
        if not terms:
            raise UsageError(Mistake("words", "no terms", "at least one, or the path of a list"))
        return terms

    @functools.cached_property
    def _automaton(self) -> Any:
        return automaton(self._terms(), self.ignore_case)
