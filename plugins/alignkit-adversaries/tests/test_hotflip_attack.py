"""HotFlip as an attack: exact where the loss is linear, and what it may not touch."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import pytest
import torch
from alignkit_adversaries import HotFlipAttack
from alignkit_adversaries.attacks.hotflip import NEGATIONS, Flipped, Target, site_gradients, stop_pattern
from alignkit_adversaries.attacks.sites import find_sites, lines_of, longest_run, replaced_texts, replaced_tokens
from alignkit_adversaries.pieces import NEVER, piece_classes
from pydantic import ValidationError
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer
from transformers import PreTrainedTokenizerFast
from transformers.modeling_outputs import SequenceClassifierOutput

from alignkit.data.example import Example
from alignkit.data.features import windows
from alignkit.errors import UsageError
from alignkit.evaluation.compare import evaluate
from alignkit.evaluation.victim import Victim
from alignkit.tasks.extractive_qa import ExtractiveQa
from alignkit.tasks.multiple_choice import MultipleChoice
from alignkit.tasks.ner import Ner
from alignkit.tasks.prompted_classification import PromptedClassification
from alignkit.tasks.relation_extraction import RelationExtraction
from alignkit.tasks.text_classification import TextClassification
from alignkit.testing.models import CLASSES, TAGS, VOCABULARY, tiny, tokenizer

WORDPIECE = tokenizer()


def named(component, name):
    component.name = name
    return component


def victim_of(task, head, batch_size=32, **fields):
    model, own, _ = tiny(head)
    if task in (TextClassification, RelationExtraction, Ner):
        made = named(task(**fields), "task")
        made.labels = list(TAGS if task is Ner else CLASSES)
    else:
        made = named(task(**fields), "task")
    return Victim(made, model, own, batch_size)


def texts(victim, *given, **others):
    """Examples whose label is what the model predicts."""
    label = CLASSES[0]
    rows = [
        Example({"text": text, "label": label, **others}, inputs=("text", *others), split="test", row=i)
        for i, text in enumerate(given)
    ]
    with victim:
        return [r.replace(label=p["labels"][0]) for r, p in zip(rows, victim.predict(rows), strict=True)]


def sentences(victim, *given):
    rows = [
        Example({"tokens": text.split(), "tags": ["O"] * len(text.split())}, inputs=("tokens",), split="test", row=i)
        for i, text in enumerate(given)
    ]
    with victim:
        return [r.replace(tags=list(p["tags"])) for r, p in zip(rows, victim.predict(rows), strict=True)]


# -- the search --------------------------------------------------------------------------------------------------


class Linear(torch.nn.Module):
    """Its loss is linear in the embeddings; it predicts the first class whatever it reads."""

    config = SimpleNamespace(is_encoder_decoder=False)

    def __init__(self, seed):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.embedding = torch.nn.Embedding(len(VOCABULARY), 3)
        self.embedding.weight.data = torch.randn(len(VOCABULARY), 3, generator=generator)
        self.direction = torch.randn(16, 3, generator=generator)

    def get_input_embeddings(self):
        return self.embedding

    def value(self, ids):
        return (self.embedding(ids) * self.direction[: ids.shape[1]]).sum((1, 2))

    def forward(self, input_ids, attention_mask, labels=None, token_type_ids=None):
        value = self.value(input_ids)
        return SequenceClassifierOutput(logits=torch.stack([torch.full_like(value, 1e6), value], 1))


class LinearTask(TextClassification):
    def row_losses(self, outputs, batch):
        return outputs.logits[:, 1]


@pytest.mark.parametrize("candidates", [1, 3])
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("flips", [1, 2])
def test_where_the_loss_is_linear_it_is_exhaustive_search(seed, flips, candidates):
    model, task = Linear(seed), named(LinearTask(), "task")
    task.labels = ["yes", "no"]
    text = "ada saw a film ."
    example = Example({"text": text, "label": "yes"}, inputs=("text",))
    victim = Victim(task, model, WORDPIECE)
    with victim:
        (attempt,) = HotFlipAttack(maximum_flips=flips, candidates=candidates, stop_words=()).attempt(
            victim, [example]
        )[""]

    ids, classes = WORDPIECE(text)["input_ids"], piece_classes(WORDPIECE, len(VOCABULARY)).tolist()
    best = -float("inf")
    for places in itertools.combinations(range(1, len(ids) - 1), flips):
        kinds = [[v for v in range(len(VOCABULARY)) if classes[v] == classes[ids[t]] != NEVER] for t in places]
        for tokens in itertools.product(*kinds):
            changed = list(ids)
            for t, token in zip(places, tokens, strict=True):
                changed[t] = token
            value = model.value(torch.tensor([changed])).item()
            if value > best:
                best, chosen = value, changed
    shown = WORDPIECE(attempt.example["text"])["input_ids"]
    assert shown == chosen
    assert attempt.measures["flips"] == flips
    assert attempt.queries == 1 + (1 + candidates) * flips


def test_a_round_in_vain_looks_elsewhere_next():
    class Flat(LinearTask):
        """Its gradient promises what the loss does not keep."""

        def row_losses(self, outputs, batch):
            value = outputs.logits[:, 1]
            return value if value.requires_grad else torch.zeros_like(value)

    task = named(Flat(), "task")
    task.labels = ["yes", "no"]
    example = Example({"text": "ada saw a film very", "label": "yes"}, inputs=("text",))
    victim = Victim(task, Linear(0), WORDPIECE)
    with victim:
        (attempt,) = HotFlipAttack(maximum_flips=10, candidates=2).attempt(victim, [example])[""]
    assert attempt.example is None
    assert attempt.measures["flips"] == 0
    assert attempt.queries == 1 + (1 + 2) + (1 + 2) + (1 + 1)


@pytest.mark.parametrize("head", ["bert-sequence-classification", "llama-sequence-classification"])
def test_gradients_are_those_of_each_examples_own_loss(head):
    victim = victim_of(TextClassification, head)
    rows = texts(victim, "a good film", "it was very bad and she went to rome", "bob")
    model, own = victim.model, victim.tokenizer
    with victim:
        targets = []
        for row in rows:
            features = windows(victim.task.encode(row, own))
            sites = find_sites(row, lines_of(features), own, own.all_special_ids)
            targets.append(Target(row, features, sites, [], 1, Flipped(features)))
        found = site_gradients(victim, targets)
        table = model.get_input_embeddings().weight.detach()
        for row, target, gradient in zip(rows, targets, found, strict=True):
            ids = torch.tensor([own(row["text"])["input_ids"]])
            embeds = table[ids].requires_grad_(True)
            wanted = torch.tensor([CLASSES.index(row["label"])])
            logits = model(inputs_embeds=embeds, attention_mask=torch.ones_like(ids)).logits
            expected = torch.autograd.grad(torch.nn.functional.cross_entropy(logits, wanted), embeds)[0][0]
            places = [position for site in target.sites for _, position in site.places]
            assert len(places) == int((~torch.isin(ids, torch.tensor(own.all_special_ids))).sum())
            torch.testing.assert_close(gradient, expected[places], rtol=1e-4, atol=1e-6)


def test_what_is_reported_is_what_the_model_says_of_the_flipped_tokens():
    victim = victim_of(TextClassification, "bert-sequence-classification")
    rows = texts(victim, "a good film", "it was very bad and she went to rome", "bob saw ada", "who was in paris ?")
    with victim:
        attempts = HotFlipAttack(maximum_flips=3).attempt(victim, rows)[""]
        assert any(victim.task.score(r, a.prediction) < 1 for r, a in zip(rows, attempts, strict=True))
        for row, attempt in zip(rows, attempts, strict=True):
            before = WORDPIECE(row["text"])["input_ids"]
            after = WORDPIECE(attempt.example["text"])["input_ids"]
            assert len(before) == len(after)
            assert sum(a != b for a, b in zip(before, after, strict=True)) == attempt.measures["flips"] <= 3
            (said,) = victim.predict([attempt.example])
            assert said["labels"] == attempt.prediction["labels"]
            assert said["probabilities"] == pytest.approx(attempt.prediction["probabilities"], abs=1e-4)
            losses = victim.losses([row, attempt.example])
            assert losses[1] > losses[0]


def test_it_stops_at_the_first_flip_that_breaks_and_a_share_bounds_it():
    victim = victim_of(TextClassification, "bert-sequence-classification")
    rows = texts(victim, "it was very bad and she went to rome and saw a film . it was fine , too", "bob saw ada")
    with victim:
        few = HotFlipAttack(maximum_flips=0.1).attempt(victim, rows)[""]
        many = HotFlipAttack(maximum_flips=1.0).attempt(victim, rows)[""]
    tokens = [len(WORDPIECE(row["text"], add_special_tokens=False)["input_ids"]) for row in rows]
    assert [a.measures["flips"] <= max(1, int(0.1 * n)) for a, n in zip(few, tokens, strict=True)] == [True, True]
    for row, attempt, n in zip(rows, many, tokens, strict=True):
        broken = victim.task.score(row, attempt.prediction) < 1
        assert broken or attempt.measures["flips"] <= n


@pytest.mark.parametrize("batch_size", [1, 3, 32])
def test_a_row_depends_on_no_other(batch_size):
    given = ("a good film", "it was very bad and she went to rome", "bob saw ada", "who was in paris ?")
    victim = victim_of(TextClassification, "bert-sequence-classification", batch_size)
    rows = texts(victim, *given)
    with victim:
        together = HotFlipAttack(maximum_flips=2).attempt(victim, rows)[""]
        alone = [HotFlipAttack(maximum_flips=2).attempt(victim, [row])[""][0] for row in rows]
    assert [a.example for a in together] == [a.example for a in alone]
    assert [a.queries for a in together] == [a.queries for a in alone]


# -- what it may not touch ---------------------------------------------------------------------------------------


def test_words_keep_their_number_and_kind():
    victim = victim_of(Ner, "bert-token-classification")
    rows = sentences(victim, "zoe lives in rome .", "they went to paris , and saw ada !", "qqq")
    with victim:
        attempts = HotFlipAttack(maximum_flips=1.0, keep_answers=False).attempt(victim, rows)[""]
    classes = piece_classes(WORDPIECE, len(VOCABULARY))
    for row, attempt in zip(rows, attempts, strict=True):
        assert len(attempt.example["tokens"]) == len(row["tokens"])
        assert attempt.example["tags"] == row["tags"]
        before, after = (WORDPIECE(e["tokens"], is_split_into_words=True)["input_ids"] for e in (row, attempt.example))
        assert [int(classes[i]) for i in before] == [int(classes[i]) for i in after]
    assert any(a.example["tokens"] != r["tokens"] for a, r in zip(attempts, rows, strict=True))


def test_words_of_entities_are_left_alone():
    victim = victim_of(Ner, "bert-token-classification")
    rows = sentences(victim, "zoe lives in rome .", "they went to paris , and saw ada !")
    rows = [row.replace(tags=["B-PER", *row["tags"][1:]]) for row in rows]
    with victim:
        attempts = HotFlipAttack(maximum_flips=1.0).attempt(victim, rows)[""]
    for row, attempt in zip(rows, attempts, strict=True):
        for word, tag, after in zip(row["tokens"], row["tags"], (attempt.example or row)["tokens"], strict=True):
            assert tag == "O" or word == after


def test_marks_and_entities_of_a_relation_are_left_alone():
    victim = victim_of(RelationExtraction, "bert-sequence-classification")
    given = [
        {"text": "she saw that <e1> bob </e1> lives in <e2> rome </e2> .", "label": CLASSES[0]},
        {"text": "in <e1> paris </e1> they saw <e2> ada </e2>", "label": CLASSES[1]},
    ]
    rows = [victim.task.parse(row, "row") for row in given]
    with victim:
        rows = [r.replace(label=p["labels"][0]) for r, p in zip(rows, victim.predict(rows), strict=True)]
        attempts = HotFlipAttack(maximum_flips=1.0).attempt(victim, rows)[""]
        for row, attempt in zip(rows, attempts, strict=True):
            after = attempt.example
            assert (after["head"], after["tail"]) == (row["head"], row["tail"])
            assert after.inputs == row.inputs
            features = [victim.task.encode(e, WORDPIECE)["input_ids"] for e in (row, after)]
            marks = [[(i, t) for i, t in enumerate(ids) if VOCABULARY[t] in "@#"] for ids in features]
            assert marks[0] == marks[1]
            assert len(features[0]) == len(features[1])


def test_stop_words_are_neither_replaced_nor_made():
    victim = victim_of(TextClassification, "bert-sequence-classification")
    rows = texts(victim, "it was not good , was it ?", "who was in paris ?", "not", "Not that")
    stop = ("not", "ada", "very", "film", "fine", "she")
    with victim:
        attempts = HotFlipAttack(maximum_flips=1.0, stop_words=stop).attempt(victim, rows)[""]
        unbound = HotFlipAttack(maximum_flips=1.0, stop_words=()).attempt(victim, rows)[""]
    pattern = stop_pattern(stop)
    for row, attempt in zip(rows, attempts, strict=True):
        after = (attempt.example or row)["text"]
        assert pattern.findall(row["text"]) == pattern.findall(after)
    assert any(
        pattern.findall(r["text"]) != pattern.findall((a.example or r)["text"])
        for r, a in zip(rows, unbound, strict=True)
    )


def test_stop_words_are_not_made_of_pieces():
    victim = victim_of(TextClassification, "bert-sequence-classification")
    text = "qx zj and wv qq"
    letters = "abcdefghijklmnopqrstuvwxyz"
    stop = tuple(a + b for a in letters for b in letters if a + b not in text.split())
    (row,) = texts(victim, text)
    with victim:
        attempt = HotFlipAttack(maximum_flips=1.0, stop_words=stop, candidates=60).attempt(victim, [row])[""][0]
    after = (attempt.example or row)["text"]
    assert not stop_pattern(stop).findall(after)
    kept = [WORDPIECE(word, add_special_tokens=False).tokens()[1:] for word in text.split()]
    assert [WORDPIECE(word, add_special_tokens=False).tokens()[1:] for word in after.split()] == kept


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("It is not.", ["not"]),
        ("NOT a knot, notable", ["NOT"]),
        ("I don't know", ["n't"]),
        ("I don’t, can't, ain't", ["n’t", "n't", "n't"]),
        ("no-one; None of it", ["no", "None"]),
        ("canto nothing", ["nothing"]),
        ("cannot", ["cannot"]),
    ],
)
def test_negations_are_found(text, found):
    assert stop_pattern(NEGATIONS).findall(text) == found


def test_no_stop_words():
    assert stop_pattern(()) is None


# -- texts that are read several times -----------------------------------------------------------------------------


def test_a_question_is_flipped_with_each_of_its_choices():
    victim = victim_of(MultipleChoice, "bert-multiple-choice", by="head")
    task = victim.task
    given = [
        {"question": "where does ada live", "choices": ["in rome", "she was", "the film was very good"], "label": 0},
        {"question": "who saw the film ?", "choices": ["paris", "bob"], "label": 1},
    ]
    rows = [task.parse(row, "row") for row in given]
    with victim:
        best = [int(p["probabilities"].argmax()) for p in victim.predict(rows)]
        rows = [row.replace(label=label) for row, label in zip(rows, best, strict=True)]
        attempts = HotFlipAttack(maximum_flips=1.0).attempt(victim, rows)[""]
        for row, attempt in zip(rows, attempts, strict=True):
            after = attempt.example
            assert after["question"] != row["question"]
            assert [after[n] for n in row.inputs[1:]] == [row[n] for n in row.inputs[1:]]
            (said,) = victim.predict([after])
            assert said["probabilities"] == pytest.approx(attempt.prediction["probabilities"], abs=1e-4)


def test_a_context_is_flipped_in_all_its_windows_and_answers_are_slices_of_it():
    victim = victim_of(ExtractiveQa, "bert-question-answering", maximum_length=18, stride=5)
    task = victim.task
    context = "she went to rome . the film was good . bob saw ada in paris . who was he ? it was a bad film ."
    row = task.parse(
        {"question": "who saw ada ?", "context": context, "answers": [{"text": "bob", "answer_start": 39}]}, "row"
    )
    attack = HotFlipAttack(maximum_flips=0.5, keep_answers=True)
    with victim:
        features = windows(task.encode(row, WORDPIECE))
        assert len(features) >= 3
        sites = find_sites(row, lines_of(features), WORDPIECE, WORDPIECE.all_special_ids)
        shared = [place for place, site in enumerate(sites) if len(site.places) > 1 and site.name == "context"]
        asked = [place for place, site in enumerate(sites) if site.name == "question"]
        assert len(shared) >= 6
        assert all(len(sites[place].places) == len(features) for place in asked)
        read = [context[site.start : site.end] for site in sites if site.name == "context"]
        assert " ".join(read) == context

        (answer,) = victim.predict([row])
        gold = context[answer["start"] : answer["end"]]
        row = row.replace(answers=[{"text": gold, "answer_start": answer["start"]}])
        (attempt,) = attack.attempt(victim, [row])[""]
        after = attempt.example["context"]
        assert gold in after
        (said,) = victim.predict([attempt.example])
        assert (said["start"], said["end"]) == (attempt.prediction["start"], attempt.prediction["end"])
        assert said["score"] == pytest.approx(attempt.prediction["score"], abs=1e-4)

        place = shared[0]
        changed = replaced_tokens(features, sites, {place: 42}, {place: "paris"})
        for line, position in sites[place].places:
            assert lines_of(changed)[line][position] == 42
            start, end = changed[line]["offsets"][position]
            new = replaced_texts(row, sites, {place: "paris"})["context"]
            assert new[start:end] == "paris"
        for window, own in zip(changed, features, strict=True):
            for (start, end), (was, until) in zip(window["offsets"], own["offsets"], strict=True):
                if was >= 0 and (was, until) != (sites[place].start, sites[place].end):
                    assert new[start:end] == context[was:until]


# -- sites -------------------------------------------------------------------------------------------------------


def byte_level(*corpus):
    backend = Tokenizer(BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = BpeTrainer(
        vocab_size=400, special_tokens=["<s>", "</s>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    backend.train_from_iterator(corpus * 4, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", pad_token="</s>")


@pytest.mark.parametrize("read", [WORDPIECE, byte_level("the film was good", "she doesn't like Zürich films")])
@pytest.mark.parametrize("template", ["{}", "Text: {} .", "( {} )", "the film was good . {}\nLabel:"])
def test_sites_are_the_tokens_of_the_text(read, template):
    text = "the film was good, she doesn't like films"
    example = Example({"text": text}, inputs=("text",))
    ids = read(template.format(text))["input_ids"]
    sites = find_sites(example, [ids], read, read.all_special_ids)
    assert "".join(text[site.start : site.end] for site in sites).replace(" ", "") == text.replace(" ", "")
    for site in sites:
        ((_, position),) = site.places
        assert ids[position] == site.token
        assert not text[site.start].isspace()
    whole = replaced_texts(example, sites, {place: text[s.start : s.end] for place, s in enumerate(sites)})
    assert whole == {"text": text}


def test_sites_of_words_of_a_list():
    words = ["She", "doesn't", "like", "Zürich"]
    read = byte_level("she doesn't like Zürich")
    example = Example({"tokens": words}, inputs=("tokens",))
    ids = read([" ".join(["", w]) if i else w for i, w in enumerate(words)], is_split_into_words=True)["input_ids"]
    sites = find_sites(example, [ids], read, read.all_special_ids)
    for number, word in enumerate(words):
        own = [site for site in sites if site.word == number]
        assert (own[0].start, own[-1].end) == (0, len(word))
    first = next(place for place, site in enumerate(sites) if site.word == 1)
    changed = replaced_texts(example, sites, {first: "X"})["tokens"]
    assert changed[0] == "She"
    assert changed[1].startswith("X")
    assert changed[2:] == words[2:]


@pytest.mark.parametrize("text", ["bob saw ada", "ada", "and ada"])
def test_two_texts_that_share_words_are_told_apart(text):
    one = Example({"text": text, "text_pair": "ada saw bob and ada"}, inputs=("text", "text_pair"))
    ids = WORDPIECE(one["text"], one["text_pair"])["input_ids"]
    sites = find_sites(one, [ids], WORDPIECE, WORDPIECE.all_special_ids)
    words = len(text.split())
    assert [(site.name, site.places[0][1]) for site in sites] == [
        *(("text", 1 + i) for i in range(words)),
        *(("text_pair", 2 + words + i) for i in range(5)),
    ]


@pytest.mark.parametrize(
    ("text", "line", "run"),
    [
        ([1, 2, 3], [9, 1, 2, 3, 9], (0, 1, 3)),
        ([1, 2, 3], [9, 2, 3, 9], (1, 1, 2)),
        ([1, 2], [1, 2, 9, 1, 2], (0, 3, 2)),
        ([1, 2], [9], (0, 0, 0)),
        ([], [9], (0, 0, 0)),
        ([5, 5, 5], [5, 5], (0, 0, 2)),
    ],
)
def test_longest_run(text, line, run):
    import numpy

    assert longest_run(numpy.array(text, dtype=int), numpy.array(line)) == run


# -- what it says ------------------------------------------------------------------------------------------------


def test_fields():
    assert HotFlipAttack(maximum_flips=1).maximum_flips == 1
    assert isinstance(HotFlipAttack(maximum_flips=1).maximum_flips, int)
    assert isinstance(HotFlipAttack(maximum_flips=1.0).maximum_flips, float)
    for wrong in (0, 1.5, -0.1):
        with pytest.raises(ValidationError):
            HotFlipAttack(maximum_flips=wrong)


def test_a_tokenizer_that_does_not_say_where_its_tokens_are_is_refused_before_anything_is_asked():
    class Slow:
        """Stands for one without a fast version."""

    task = named(TextClassification(), "text-classification")
    with pytest.raises(UsageError) as refused:
        evaluate(task, None, Slow(), {"test": []}, attacks=[named(HotFlipAttack(), "hotflip")])
    assert str(refused.value) == (
        "attack hotflip: Slow cannot say where in a text a token is; expected a fast tokenizer; save the model with "
        "its fast tokenizer, or take deepwordbug or typos, which change words"
    )


def test_tasks_that_ask_more_than_once_are_refused():
    with pytest.raises(UsageError, match="attack hotflip: task x asks the model more than once for a prediction"):
        evaluate(named(PromptedClassification(), "x"), None, None, {}, attacks=[named(HotFlipAttack(), "hotflip")])
