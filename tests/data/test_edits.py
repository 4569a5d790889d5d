"""Which words can be misspelt. Every single edit is tested where it is used: in the augmenter `typos`."""

from __future__ import annotations

import pytest

from alignkit.data.edits import OPERATIONS, plain_words


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Ask about well-known films", ["about", "well", "known", "films"]),
        ("@someone #something https://example.com/path www.site 2024 room101 a.b_c <name> {place} `code`", []),
        ("don't isn’t café Zürich слово", ["café", "Zürich", "слово"]),
        ("他在北京的一家公司工作 한국어 조선민주 ภาษาไทย", []),
        ("北京film很好good", ["film", "good"]),
        ("", []),
    ],
)
def test_plain_words(text: str, words: list[str]) -> None:
    assert [text[start:end] for start, end in plain_words(text)] == words


def test_shorter_words() -> None:
    assert [text for text in ("it", "ok", "a") if list(plain_words(text, 2))] == ["it", "ok"]


def test_every_operation_gives_other_words() -> None:
    for operation in OPERATIONS.values():
        assert "word" not in operation("word")
        assert operation("it") == [], "it has no inner letters"
