"""`forbidden-phrases`: against brute force over decoded texts, on vocabularies of several kinds."""

from __future__ import annotations

import random
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from alignkit_constraints import ForbiddenPhrases
from alignkit_constraints.controls.phrases import Phrases, joins, read_phrases
from alignkit_constraints.controls.vocabulary import Completions, byte_alphabet, token_bytes
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from alignkit.aligned import Aligned, find_task
from alignkit.errors import UsageError
from alignkit.testing import tiny, tokenizer

CORPUS = """the bomb was a Bomb in the bombing and a class of glass was an ass at last; an ass as such
北京的天气很好，中国的首都是北京。我们不能制造炸弹，炸弹很危险。été ÉTÉ Été straße
a  film\twas\nseen in rome, Rome and ROME; the roman said so"""


def byte_level(size: int = 340) -> Any:
    """A byte-level BPE in which Chinese characters are mostly several tokens."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=size, initial_alphabet=alphabet, special_tokens=["<pad>", "<s>", "</s>"], show_progress=False
    )
    backend.train_from_iterator(CORPUS.splitlines() * 3, trainer)
    backend.add_tokens([AddedToken("naïve words", normalized=False)])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", bos_token="<s>", eos_token="</s>", model_max_length=64
    )


def sentencepiece() -> Any:
    """A BPE with `▁` for spaces and bytes for characters that it does not know."""
    pieces = ["<unk>", "<pad>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁"]
    pieces += [*"abcdefghijklmnopqrstuvwxyzABR,.", "▁b", "▁bo", "mb", "om", "▁a", "fi", "lm", "▁rome", "北"]
    merges = [("▁", "b"), ("▁b", "o"), ("m", "b"), ("o", "m"), ("▁", "a"), ("f", "i"), ("l", "m")]
    backend = Tokenizer(
        models.BPE({p: i for i, p in enumerate(dict.fromkeys(pieces))}, merges, byte_fallback=True, unk_token="<unk>")
    )
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="<unk>", pad_token="<pad>", bos_token="<s>", eos_token="</s>",
        model_max_length=64,
    )  # fmt: skip


VOCABULARIES = {"byte-level": byte_level, "byte-fallback": sentencepiece}
PHRASES = ["bomb", "a film", "炸弹", "rome", "北京", "été", "ass"]


def decoded(vocabulary: Any, ids: list[int]) -> str:
    text: str = vocabulary.decode(ids, skip_special_tokens=True)
    return text


# -- the vocabulary ----------------------------------------------------------------------------------------------


def test_the_alphabet_of_bytes_is_the_tokenizers_own() -> None:
    assert set(byte_alphabet()) == set(pre_tokenizers.ByteLevel.alphabet())
    for byte in range(0x80):
        [(piece, _)] = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str(chr(byte))
        assert byte_alphabet()[piece] == byte


@pytest.mark.parametrize("name", VOCABULARIES)
def test_tokens_add_their_bytes_to_a_text(name: str) -> None:
    vocabulary = VOCABULARIES[name]()
    pieces = token_bytes(vocabulary)
    for line in (*CORPUS.splitlines(), "a film, naïve words 北京", "bomb"):
        ids = vocabulary(line, add_special_tokens=False)["input_ids"]
        assert b"".join(pieces[i] for i in ids).decode().strip() == line.strip()
    assert all(pieces[i] == b"" for i in vocabulary.all_special_ids)


def test_pieces_of_words_join_what_comes_before() -> None:
    vocabulary = tokenizer("llama-causal-lm")
    pieces = token_bytes(vocabulary)
    ids = vocabulary("ada works", add_special_tokens=False)["input_ids"]
    assert b"".join(pieces[i] for i in ids) == b" ada works"
    assert pieces[vocabulary.convert_tokens_to_ids("##b")] == b"b"


# -- tokens that complete a phrase -------------------------------------------------------------------------------


def completed(text: str, phrases: list[str], whole_words: bool) -> bool:
    """By brute force: a phrase is in the text, spaces and case aside."""
    text = " ".join(re.split(r"[ \t\n\r\f\v]+", text))
    for phrase in phrases:
        pattern = re.escape(phrase)
        if whole_words and phrase.isascii():
            pattern = rf"(?<![a-zA-Z0-9_é-ÿß]){pattern}(?![a-zA-Z0-9_é-ÿßÉ])"
        if re.search(pattern, text, re.IGNORECASE):
            return True
    return False


@pytest.mark.parametrize("whole_words", [False, True])
@pytest.mark.parametrize("name", VOCABULARIES)
def test_exactly_the_tokens_that_complete_a_phrase_are_found(name: str, whole_words: bool) -> None:
    vocabulary, generator = VOCABULARIES[name](), random.Random(0)
    pieces = token_bytes(vocabulary)
    phrases = [phrase for phrase in PHRASES if phrase != "été"]
    completions = Completions(pieces, Phrases(phrases, whole_words))
    starts = ["the bo", "a", "a ", "a  fi", "an as", "class", "cl", "x炸", "炸", "北", "rom", " Ro", "the B", "é", ""]
    for text in starts:
        for cut in {0, generator.randrange(1, 3)}:
            ids = vocabulary(text, add_special_tokens=False)["input_ids"]
            ids = ids[: max(len(ids) - cut, 0)]
            if completed(decoded(vocabulary, ids), phrases, whole_words):
                continue
            found = {i for part in completions.after(b"".join(pieces[i] for i in ids)) for i in part}
            expected = {
                i
                for i in range(len(vocabulary))
                if i not in vocabulary.all_special_ids
                and completed(decoded(vocabulary, [*ids, i]), phrases, whole_words)
            }
            assert found == expected, (text, cut, vocabulary.convert_ids_to_tokens(sorted(found ^ expected)))


def test_letters_outside_ascii_have_their_usual_forms() -> None:
    pieces = [text.encode() for text in ("été", "ÉTÉ", "Été", "éTÉ", "xÉTÉ")]
    assert {i for part in Completions(pieces, Phrases(["Été"])).after(b"") for i in part} == {0, 1, 2, 4}


def test_parts_of_characters_are_seen() -> None:
    pieces = ["炸".encode(), "弹".encode()[:1], "弹".encode()[1:2], "弹".encode()[2:], b"x"]
    completions = Completions(pieces, Phrases(["炸弹"]))
    assert completions.after("炸".encode()) == []
    assert completions.after("炸".encode() + "弹".encode()[:1]) == []
    assert completions.after("炸".encode() + "弹".encode()[:2]) == [{3: "炸弹"}]


@pytest.mark.parametrize(
    ("text", "whole_words", "found"),
    [
        ("a BOMB.", False, "bomb"),
        ("bombing", False, "bomb"),
        ("bombing", True, None),
        ("class", True, None),
        ("an ass", True, "ass"),
        ("制造炸弹吗", True, "炸弹"),
        ("a炸弹b", True, "炸弹"),
        ("a\n film", False, "a film"),
        ("ÉTÉ", False, "été"),
        ("nothing", False, None),
    ],
)
def test_phrases_are_found_in_texts(text: str, whole_words: bool, found: str | None) -> None:
    match = Phrases(PHRASES, whole_words).first(text)
    assert (match.phrase if match else None) == found


def test_a_script_without_spaces_has_no_words_to_be_within() -> None:
    assert [joins(c) for c in "aé1中かไ ,"] == [True, True, True, False, False, False, False, False]


# -- generation --------------------------------------------------------------------------------------------------


def model_for(vocabulary: Any, seed: int = 0) -> Any:
    config = LlamaConfig(
        vocab_size=len(vocabulary), hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=64, max_position_embeddings=128, initializer_range=0.2, pad_token_id=vocabulary.pad_token_id,
        bos_token_id=vocabulary.bos_token_id, eos_token_id=vocabulary.eos_token_id,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(config).eval()


SHORT = ["a", "B", "on", "t h", "中", "京", "é"]
"""Phrases that a random model writes all the time."""
TEXTS = ["the bomb", "a", "北京的天气", "an ass at last", "rome"]


def folded(text: str) -> str:
    return " ".join(text.casefold().split())


@pytest.mark.parametrize("options", [{}, {"num_beams": 3}, {"do_sample": True}])
@pytest.mark.parametrize("name", VOCABULARIES)
def test_no_phrase_is_written_and_without_the_control_they_are(name: str, options: dict[str, Any]) -> None:
    vocabulary = VOCABULARIES[name]()
    control = ForbiddenPhrases(phrases=SHORT)
    written = {True: 0, False: 0}
    cut = 0
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        for seed in range(3):
            model = model_for(vocabulary, seed)
            for on in (True, False):
                aligned = Aligned(find_task("causal-lm"), model, vocabulary, controls=[control] if on else [])
                for answer in aligned.predict(TEXTS, max_new_tokens=24, **options):
                    text = folded(answer["continuation"])
                    written[on] += any(folded(phrase) in text for phrase in SHORT)
                    cut += any("cut" in record["changed"] for record in answer.get("controls", []))
    assert written == {True: 0, False: written[False]}
    assert written[False] >= 3
    assert not cut, "it was ruled out token by token"


def test_greedily_it_is_the_likeliest_token_that_completes_none() -> None:
    """Against a loop without a cache, without padding and without tables: try the tokens from the likeliest on."""
    vocabulary = byte_level()
    model, length = model_for(vocabulary), 16
    aligned = Aligned(find_task("causal-lm"), model, vocabulary, controls=[ForbiddenPhrases(phrases=SHORT)])
    audit: list[dict[str, Any]] = []
    answers = aligned.predict(TEXTS, max_new_tokens=length, audit=audit)
    for row, (text, answer) in enumerate(zip(TEXTS, answers, strict=True)):
        prompt = vocabulary(text, add_special_tokens=False)["input_ids"]
        ids: list[int] = []
        other = 0
        with torch.no_grad():
            while len(ids) < length and vocabulary.eos_token_id not in ids:
                ranked = model(torch.tensor([[*prompt, *ids]])).logits[0, -1].argsort(descending=True).tolist()
                token = next(t for t in ranked if not completed(decoded(vocabulary, [*ids, t]), SHORT, False))
                other += token != ranked[0]
                ids.append(token)
        ids = ids[: ids.index(vocabulary.eos_token_id)] if vocabulary.eos_token_id in ids else ids
        assert answer["continuation"] == decoded(vocabulary, ids)
        steps = [re.search(r"at (\d+) step", line["changed"]) for line in audit if line["row"] == row]
        assert sum(int(match[1]) for match in steps if match) == other


def test_what_got_through_is_cut() -> None:
    model, vocabulary, _ = tiny("llama-causal-lm")
    control = ForbiddenPhrases(phrases=["a film", "ŁÓDŹ"])
    control.prepare(model, vocabulary, find_task("chat"))
    finished = control.finish(None, "in Łódź I saw A  Film there")  # type: ignore[arg-type]  # only the text matters
    assert finished is not None
    assert (finished.text, finished.value, finished.rule) == ("in", "ŁÓDŹ", "phrases")
    assert control.finish(None, "a filmy thing of Lodz".replace("a filmy", "a firm")) is None  # type: ignore[arg-type]


def test_the_file_may_be_commented_and_names_the_rule(tmp_path: Path) -> None:
    (tmp_path / "no.txt").write_bytes("\ufeff# not these\n\nrome\r\na   film\nrome\n".encode())
    assert read_phrases(tmp_path / "no.txt", "phrases") == ["rome", "a film"]
    control = ForbiddenPhrases(phrases=tmp_path / "no.txt")
    assert control._rule == "no.txt"
    assert list(control.check_task(find_task("chat"))) == []


def test_mistakes_say_what_and_where(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="phrases: no phrases; expected one or more"):
        ForbiddenPhrases(phrases=[" "])
    missing = ForbiddenPhrases(phrases=tmp_path / "none.txt")
    assert "none.txt: no such file" in str(next(iter(missing.check_task(find_task("chat")))))
    (tmp_path / "latin.txt").write_bytes(b"rome\n\xe9t\xe9\n")
    latin = ForbiddenPhrases(phrases=tmp_path / "latin.txt")
    assert "latin.txt:2: byte 0xe9 is not UTF-8" in str(next(iter(latin.check_task(find_task("chat")))))
