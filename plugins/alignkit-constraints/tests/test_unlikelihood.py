"""Unlikelihood against closed forms in double precision; phrases and rejected answers on tiny models and tokenizers."""

from __future__ import annotations

import math

import pytest
import torch
from alignkit_constraints import Unlikelihood
from alignkit_constraints.spellings import beginnings, completions, forbidden, spellings, texts
from alignkit_constraints.unlikelihood import last_answer, rejected, unlikelihood
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from alignkit.compose import Composition
from alignkit.data import Example
from alignkit.errors import UsageError
from alignkit.plan import Setting, make_plan
from alignkit.tasks.causal_lm import CausalLm
from alignkit.tasks.chat import Chat
from alignkit.tasks.dialogue import Dialogue
from alignkit.tasks.masked_lm import MaskedLm
from alignkit.tasks.multiple_choice import MultipleChoice
from alignkit.tasks.ner import Ner
from alignkit.tasks.prompted_classification import PromptedClassification
from alignkit.tasks.translation import Translation
from alignkit.testing.models import VOCABULARY, collate, examples, tiny, tokenizer

LLAMA = "llama-causal-lm"
WORD = {word: i for i, word in enumerate(VOCABULARY)}


# -- the loss ----------------------------------------------------------------------------------------------------


def test_it_is_the_negative_log_of_the_complement():
    scores = torch.randn(6, 9, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 3
    positions, tokens = torch.tensor([0, 0, 3, 5]), torch.tensor([1, 8, 2, int(scores[5].argmax())])
    expected = -(1 - scores.softmax(-1)[positions, tokens]).log()
    torch.testing.assert_close(unlikelihood(scores.log_softmax(-1), positions, tokens), expected)


def test_its_gradient_is_that_of_the_closed_form():
    scores = torch.randn(3, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_(True)
    positions, tokens = torch.tensor([0, 1, 2]), torch.tensor([4, 0, int(scores[2].argmax())])
    found = torch.autograd.grad(unlikelihood(scores.log_softmax(-1), positions, tokens).sum(), scores)[0]
    p = scores.detach().softmax(-1)
    share = p[positions, tokens] / (1 - p[positions, tokens])
    expected = -share[:, None] * p  # d -log(1 - p_c) / dz_j = p_c (1[j = c] - p_j) / (1 - p_c)
    expected[positions, tokens] += share
    torch.testing.assert_close(found, expected)
    assert torch.autograd.gradcheck(lambda z: unlikelihood(z.log_softmax(-1), positions, tokens), scores)


def test_what_is_almost_certain_keeps_a_finite_loss_and_a_gradient():
    scores = torch.tensor([[60.0, 0.0, 0.0, -5.0]], requires_grad=True)
    found = unlikelihood(scores.log_softmax(-1), torch.tensor([0]), torch.tensor([0]))
    assert found.item() == pytest.approx(60 - math.log(2 + math.exp(-5)), rel=1e-6)
    gradient = torch.autograd.grad(found.sum(), scores)[0]
    assert gradient[0, 0].item() == pytest.approx(1.0)
    assert gradient.isfinite().all()


def test_what_is_impossible_costs_nothing_and_has_a_finite_gradient():
    scores = torch.tensor([[-200.0, 0.0]], requires_grad=True)
    found = unlikelihood(scores.log_softmax(-1), torch.tensor([0]), torch.tensor([0]))
    assert found.item() == 0.0
    assert torch.autograd.grad(found.sum(), scores)[0].isfinite().all()


# -- phrases -----------------------------------------------------------------------------------------------------


def test_the_token_that_would_complete_a_phrase():
    table = {(7, 3): frozenset({9}), (3,): frozenset({4, 9}), (): frozenset({1})}
    ids = [[7, 3, 5, 3], [3, 7, 3, 0]]
    scored = [[False, True, True, True], [False, False, True, True]]
    found = forbidden(ids, scored, table)
    assert list(zip(*found, strict=True)) == [(0, 1), (1, 1), (1, 4), (1, 9), (2, 1), (3, 1), (4, 1), (4, 4), (4, 9)]


def test_a_phrase_does_not_begin_in_another_text_of_the_row():
    table = {(7, 3): frozenset({9})}
    assert forbidden([[7, 3, 5]], [[True] * 3], table) == ([2], [9])
    assert forbidden(*texts([[7, 3, 5]], [[True] * 3], [[0, 0, 1]]), table) == ([], [])
    assert forbidden(*texts([[7, 3, 5]], [[True] * 3], [[2, 2, 3]]), table) == ([], [])  # positions from 2 on


def test_a_text_goes_on_from_the_prompt_that_it_shares():
    ids, scored = [[7, 3, 5, 4, 6, 0]], [[False, False, True, True, True, False]]
    found = texts(ids, scored, [[0, 1, 2, 3, 2, 0]])
    assert found == (
        [[7, 3, 5, 4], [7, 3, 6], [0]],
        [[False, False, True, True], [False, False, True], [False]],
    )
    assert forbidden(*found, {(7, 3): frozenset({9})}) == ([0, 2], [9, 9])
    assert forbidden(*found, {(4,): frozenset({9})}) == ([], [])


@pytest.mark.parametrize("shared", [True, False])
def test_both_answers_of_a_pair_go_on_from_their_prompt(shared, make_step):
    preference = pytest.importorskip("alignkit_preference")
    task, words = preference.Preference(shared_prompt=shared), tokenizer(LLAMA)
    model = tiny(LLAMA)[0].eval()
    pairs = [("who is bob", "ada is", "bob"), ("what ?", "a fine film", "rome rome rome")]
    examples = [task.parse({"prompt": p, "chosen": c, "rejected": r}, "") for p, c, r in pairs]
    batch = task.collate([task.encode(example, words) for example in examples], words)
    constraint, objective = Unlikelihood(phrases=("assistant : ada", "bob")), preference.ORPO()
    step = make_step(model, batch, [constraint], task=task, objective=objective, tokenizer=words)
    step.loss()
    expected, scored = 0.0, 0
    for prompt, *answers in pairs:
        for answer in answers:
            alone = Chat().parse({"prompt": prompt, "completion": answer}, "")
            row = Chat().encode(alone, words)
            log_p = model(torch.tensor([row["input_ids"]])).logits[0].log_softmax(-1)
            places = [t for t, label in enumerate(row["labels"]) if label >= 0]
            said = [(t, "bob") for t in places] + [(places[0], "ada")]
            expected -= sum(math.log(1 - log_p[t - 1, WORD[word]].exp().item()) for t, word in said)
            scored += len(places)
    assert step.terms["unlikelihood"].mean.item() == pytest.approx(expected / scored, rel=1e-5)


def byte_level(*words: str) -> PreTrainedTokenizerFast:
    """Spaces are part of the word that follows, as GPT-2 and its kin have it."""
    vocabulary = {word: i for i, word in enumerate(["<eos>", *pre_tokenizers.ByteLevel.alphabet(), *words])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<eos>"))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>", pad_token="<eos>")


def metaspace(*words: str) -> PreTrainedTokenizerFast:
    """Beginnings of words are marked, as SentencePiece has it."""
    pieces = [("<unk>", 0.0), *[(word, -2.0) for word in words], *[(c, -9.0) for c in 'abdeghstu▁"']]
    backend = Tokenizer(models.Unigram(pieces, unk_id=0))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token=AddedToken("<unk>"))


def test_a_phrase_is_spelt_with_and_without_the_space_before_it():
    tokens = byte_level("bad", "Ġbad", "Ġhat")
    found = {tuple(tokens.convert_ids_to_tokens(ids)) for ids in spellings("bad hat", tokens)}
    assert found == {("bad", "Ġhat"), ("Ġbad", "Ġhat")}
    tokens = metaspace("▁bad", "bad", "▁hat")
    found = {tuple(tokens.convert_ids_to_tokens(ids)) for ids in spellings("bad hat", tokens)}
    assert {("▁bad", "▁hat"), ("bad", "▁hat")} <= found


def test_the_table_holds_last_tokens_by_what_is_before():
    tokens = tokenizer(LLAMA)
    assert completions(["bob", "the film", "the bad"], tokens) == {
        (): {WORD["bob"]},
        (WORD["the"],): {WORD["film"], WORD["bad"]},
    }
    assert beginnings(["bob", "the film"], tokens) == {(): {0}, (WORD["the"],): {1}}


def test_what_the_vocabulary_has_no_tokens_for_is_named():
    with pytest.raises(UsageError) as caught:
        completions(["bob", "€", "ß€"], tokenizer(LLAMA))
    assert [str(mistake) for mistake in caught.value.mistakes] == [
        "phrases: the model's vocabulary has no tokens for '€'; expected one that it has",
        "phrases: the model's vocabulary has no tokens for 'ß€'; expected one that it has",
    ]


def by_hand(model, rows, phrases) -> float:
    """The unlikelihood of phrases given as lists of ids per scored token, row by row and token by token, unpadded."""
    total, scored = 0.0, 0
    for row in rows:
        decoder = {"labels": torch.tensor([row["labels"]])} if model.config.is_encoder_decoder else {}
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([row["input_ids"]]), **decoder).logits[0].double()
        shift = 0 if decoder else 1
        text = row["labels"] if decoder else row["input_ids"]
        for t in range(shift, len(text)):
            if row["labels"][t] == -100:
                continue
            scored += 1
            p = logits[t - shift].softmax(-1)
            last = {phrase[-1] for phrase in phrases if text[max(0, t - len(phrase) + 1) : t] == phrase[:-1]}
            total -= sum(math.log(1 - p[token].item()) for token in last)
    return total / scored


@pytest.mark.parametrize("head", [LLAMA, "t5", "bart"])
def test_the_penalty_is_the_sum_over_scored_tokens_by_hand(head, make_step):
    model, rows = tiny(head)[0], examples(head, 8)
    texts = [row["input_ids" if head == LLAMA else "labels"] for row in rows]
    phrases = [["bob"], *([VOCABULARY[a], VOCABULARY[b]] for a, b in ((t[-3], t[-2]) for t in texts if len(t) > 3))]
    known = [[WORD[word] for word in phrase] for phrase in phrases if not phrase[1:] or "##" not in phrase[1]]
    constraint = Unlikelihood(phrases=("bob",))
    step = make_step(model, collate(head, rows), [constraint])
    step.context.tokenizer = tokenizer(head)
    constraint._known = {}
    for phrase in known:
        before = tuple(phrase[:-1])
        constraint._known[before] = frozenset({*constraint._known.get(before, ()), phrase[-1]})
    step.loss()
    term = step.terms["unlikelihood"]
    assert term.per == "token"
    assert term.mean.item() == pytest.approx(by_hand(model, rows, known), rel=1e-4)


def test_training_on_it_makes_a_phrase_unlikely(make_step):
    model, batch = tiny(LLAMA)[0], collate(LLAMA, examples(LLAMA, 4))
    optimizer, found = torch.optim.SGD(model.parameters(), lr=0.5), []
    bias = model.lm_head.weight.detach()
    with torch.no_grad():
        bias[WORD["bob"]] *= 8
    for _ in range(40):
        step = make_step(model, batch, [Unlikelihood(phrases=("bob",))])
        step.context.tokenizer = tokenizer(LLAMA)
        optimizer.zero_grad()
        step.loss().backward()
        optimizer.step()
        found.append(step.terms["unlikelihood"].mean.item())
    assert found[-1] < 0.2 * found[0]


def test_a_file_of_phrases(tmp_path, make_step):
    path = tmp_path / "phrases.txt"
    path.write_text("# not to be said\nbob\n\nada\n", encoding="utf-8")
    model, batch = tiny(LLAMA)[0], collate(LLAMA, examples(LLAMA, 4))
    means = []
    for phrases in (path, ("bob", "ada")):
        step = make_step(model, batch, [Unlikelihood(phrases=phrases)])
        step.context.tokenizer = tokenizer(LLAMA)
        step.loss()
        means.append(step.terms["unlikelihood"].mean.item())
    assert means[0] == means[1] > 0


# -- rejected answers ----------------------------------------------------------------------------------------------


def test_a_rejected_answer_is_forbidden_from_where_it_parts_with_the_other():
    labels = [[-100, 5, 6, -100, 7, 8, 9, 2], [-100, -100, 7, 2, -100]]
    wanted = [[-100, 5, 6, -100, 7, 9, 2], [-100, -100, 7, 7, 2]]
    # earlier answers (5, 6), the beginning that both have (7) and special tokens (2) are to be said
    assert rejected(labels, wanted, special=(2,), first=1) == ([3, 4], [8, 9])
    assert rejected(wanted, labels, special=(2,), first=1) == ([3, 6], [9, 7])
    assert rejected([[7, 8]], [[7, 9]], special=(), first=0) == ([1], [8])
    assert rejected([[7, 8]], [[7, 8]], special=(), first=0) == ([], [])


def test_the_last_answer():
    assert last_answer([-100, 5, -100, 6, 7, -100]) == (3, [6, 7])
    assert last_answer([5, 6]) == (0, [5, 6])
    assert last_answer([-100, -100]) == (0, [])


@pytest.mark.parametrize("head", [LLAMA, "t5"])
def test_rejected_answers_are_a_sum_over_their_tokens_per_token_that_is_scored(head, make_step):
    model, rows, others = tiny(head)[0], examples(head, 4), examples(head, 4, seed=1)
    views = []
    for i in (0, 2):
        prompt = [x for x, la in zip(rows[i]["input_ids"], rows[i]["labels"], strict=False) if la == -100]
        answer = others[i]["labels"] if head == "t5" else others[i]["input_ids"]
        row = {"input_ids": rows[i]["input_ids"], "labels": answer} if head == "t5" else {
            "input_ids": [*prompt, *answer], "labels": [*[-100] * len(prompt), *answer]}  # fmt: skip
        views.append({**row, "attention_mask": [1] * len(row["input_ids"])})
    view = {**collate(head, views), "rows": torch.tensor([0, 2])}
    step = make_step(model, {**collate(head, rows), "views": {"unlikelihood": view}}, [Unlikelihood()])
    step.loss()

    expected, shift = 0.0, 0 if head == "t5" else 1
    for i, row in zip((0, 2), views, strict=True):
        with torch.no_grad():
            inputs = {"input_ids": torch.tensor([row["input_ids"]]), "labels": torch.tensor([row["labels"]])}
            logits = model(**inputs).logits[0].double()
        own = [la for la in rows[i]["labels"] if la != -100]
        answer = [t for t, la in enumerate(row["labels"]) if la != -100]
        same = 0
        while row["labels"][answer[same]] == own[same]:
            same += 1
        for t in answer[same:]:
            if row["labels"][t] not in (0, 2, 3):  # the special tokens of the fixture
                expected -= math.log(1 - logits[t - shift].softmax(-1)[row["labels"][t]].item())
    scored = sum(la != -100 for row in rows for la in row["labels"])
    assert step.terms["unlikelihood"].count == scored
    assert step.terms["unlikelihood"].mean.item() == pytest.approx(expected / scored, rel=1e-4)


def test_views():
    constraint = Unlikelihood()
    chat = Example({"prompt": "a", "completion": "b", "rejected": "c"}, ("prompt",), ("completion",))
    assert constraint.views(chat)["unlikelihood"]["completion"] == "c"
    translated = Example({"source": "a", "target": "b", "rejected": "c"}, ("source",), ("target",))
    assert constraint.views(translated)["unlikelihood"]["target"] == "c"
    said = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    talk = Example({"messages": said, "rejected": "c"}, ("messages",))
    assert constraint.views(talk)["unlikelihood"]["messages"][1] == {"role": "assistant", "content": "c"}
    assert talk["messages"][1]["content"] == "b"
    for nothing in (None, " "):
        assert constraint.views(chat.replace(rejected=nothing)) == {}
    assert constraint.views(Example({"text": "a", "rejected": "c"}, ("text",))) == {}
    with pytest.raises(UsageError, match="'rejected' is 3; expected the text of an answer, or nothing"):
        constraint.views(chat.replace(rejected=3))


# -- before training -----------------------------------------------------------------------------------------------


def plan(constraint, task, rows=()):
    task.name = "it"
    made = [task.parse(dict(row), f"row {i}") for i, row in enumerate(rows)]
    composition = Composition([constraint], task)
    known = {"examples": made, "tokenizer": lambda: tokenizer(LLAMA)}
    return make_plan(composition, Setting(task, composition.components, composition.objective, **known))


def refused(constraint, task, rows=()):
    with pytest.raises(UsageError) as caught:
        plan(constraint, task, rows)
    return [str(mistake) for mistake in caught.value.mistakes]


@pytest.mark.parametrize(
    "task", [Ner(), MaskedLm(), MultipleChoice(), MultipleChoice(by="likelihood"), PromptedClassification()], ids=str
)
def test_tasks_that_do_not_write_are_refused(task):
    assert refused(Unlikelihood(phrases=("bob",)), task) == [
        "constraint unlikelihood: task it does not write text from left to right; expected a task of causal or "
        "encoder-decoder models that write: chat, dialogue, causal-lm, translation …"
    ]


@pytest.mark.parametrize("task", [Chat(), Dialogue(), CausalLm(), Translation()], ids=lambda t: type(t).__name__)
def test_tasks_that_write_are_served(task):
    assert "unlikelihood" in plan(Unlikelihood(phrases=("bob",)), task).render()


def test_nothing_that_is_forbidden():
    rows = [{"prompt": "who ?", "completion": "bob", "reject": "ada"}]
    assert refused(Unlikelihood(), Chat(), rows) == [
        "constraint unlikelihood: no training row with an answer that it could stand for has text in the column "
        "'rejected'; expected rows with rejected answers, or `phrases`; did you mean 'reject'?; map it with "
        "`columns: {rejected: …}`"
    ]
    assert refused(Unlikelihood(column="reject"), CausalLm(), [{"text": "bob", "reject": "ada"}]) == [
        "constraint unlikelihood: no training row with an answer that it could stand for has text in the column "
        "'reject'; expected rows with rejected answers, or `phrases`"
    ]
    assert plan(Unlikelihood(column="reject"), Chat(), rows)
    assert refused(Unlikelihood(), Chat(), [{**rows[0], "rejected": odd} for odd in (3, "ada", ["bob"], None)]) == [
        "train row -1: 'rejected' is 3; expected the text of an answer, or nothing",
        "train row -1: 'rejected' is ['bob']; expected the text of an answer, or nothing",
    ]


def test_beside_phrases_rejected_answers_are_looked_at_where_their_column_is_named():
    row = Example({"prompt": "a", "completion": "b", "rejected": "c"}, ("prompt",), ("completion",))
    assert Unlikelihood(phrases=("bob",)).views(row) == {}
    assert set(Unlikelihood(phrases=("bob",), column="rejected").views(row)) == {"unlikelihood"}


def test_phrases_that_cannot_be_read(tmp_path):
    missing = tmp_path / "none.txt"
    assert refused(Unlikelihood(phrases=missing), Chat())[0].startswith(f"{missing}: no such file; expected a list")
    assert refused(Unlikelihood(phrases=("€",)), Chat())[0].startswith("phrases: the model's vocabulary has no tokens")


def test_phrases_of_which_no_row_has_the_beginning_are_noted():
    rows = [{"prompt": "who saw the film ?", "completion": "she saw the bad film"}]
    noted = plan(Unlikelihood(phrases=("bob", "the film", "very good", "where is it")), Chat(), rows).notes
    assert noted == [
        "unlikelihood learns nothing of 'very good', 'where is it': a phrase of several tokens is forbidden behind all "
        "but the last of them, which none of 1 training rows has before a token that is learnt"
    ]


def test_phrases_without_a_tokenizer(make_step):
    step = make_step(tiny(LLAMA)[0], collate(LLAMA, examples(LLAMA, 2)), [Unlikelihood(phrases=("bob",))])
    with pytest.raises(UsageError, match="phrases, and no tokenizer; pass `processing_class=tokenizer`"):
        step.loss()


@pytest.mark.parametrize("head", ["bert-token-classification", "bert-masked-lm", "bert-sequence-classification"])
def test_a_plain_head_that_does_not_write_is_refused(head, make_step):
    step = make_step(tiny(head)[0], collate(head, examples(head, 2)), [Unlikelihood(phrases=("bob",))])
    with pytest.raises(UsageError, match="head does not write text from left to right"):
        step.loss()
