"""Translation: sacreBLEU's figures, what either kind of model is shown and learns, what is refused."""

import math
from itertools import chain

import numpy as np
import pytest
import torch
from sacrebleu.metrics import BLEU, CHRF

from alignkit.data.example import Example
from alignkit.errors import UsageError
from alignkit.evaluation.score import gap, measure, predictions, statistics_matrix
from alignkit.models import Peft
from alignkit.tasks.translation import Translation, corpus_bleu, corpus_chrf
from alignkit.testing import collate, examples, make_trainer, tiny
from alignkit.testing.models import tokenizer as tiny_tokenizer

CORPORA = {
    "two references": (
        ["The dog bit the man.", "It wasn't surprising.", "The man had just bitten him.", "a b"],
        [
            ["The dog bit the man.", "The dog had bit the man."],
            ["It was not unexpected.", "No one was surprised."],
            ["The man bit him first.", "The man had bitten the dog."],
            ["a b", "a b c"],
        ],
    ),
    "no 4-gram matches": (
        ["the cat is here", "a dog was there", "all men are mortal"],
        [["the cat was here"], ["a cat was there"], ["some men are not"]],
    ),
    "nothing matches": (["x y z q", "w"], [["a b c d"], ["e"]]),
    "too short": (["good", "bad film"], [["good"], ["bad film"]]),
    "nothing said": (["", ""], [["a b"], ["c d e f"]]),
    "Chinese": (
        ["他在北京的一家公司工作。", "今天天气很好,我们去公园吧!", "I like 北京."],
        [["他在北京一家公司上班。"], ["今天天气不错,我们去公园吧!"], ["我喜欢北京。"]],
    ),
}


def rows(hypotheses, targets):
    examples = [Translation().parse({"source": "s", "target": t}, "a.tsv:1") for t in targets]
    return examples, [{"target": h, "nll": 1.0, "tokens": 2} for h in hypotheses]


def official(metric, hypotheses, targets):
    longest = max(map(len, targets))
    streams = [[t[i] if i < len(t) else None for t in targets] for i in range(longest)]
    return metric.corpus_score(list(hypotheses), streams).score


@pytest.mark.parametrize("tokenize", ["13a", "intl", "zh", "char", "none"])
@pytest.mark.parametrize("corpus", CORPORA)
def test_scores_are_sacrebleus(corpus, tokenize):
    hypotheses, targets = CORPORA[corpus]
    found = measure(Translation(tokenize=tokenize), *rows(hypotheses, targets))
    assert found["bleu"] == pytest.approx(official(BLEU(tokenize=tokenize), hypotheses, targets), rel=1e-12)
    assert found["chrf"] == pytest.approx(official(CHRF(), hypotheses, targets), rel=1e-12)
    assert found["loss"] == 0.5


def test_replicates_are_scored_as_corpora_are():
    hypotheses, targets = (list(chain(*parts)) for parts in zip(*CORPORA.values(), strict=True))
    task = Translation()
    examples, said = rows(hypotheses, targets)
    names, matrix = statistics_matrix(task, examples, said)
    drawn = np.random.default_rng(0).integers(len(said), size=(30, len(said)))
    totals = dict(zip(names, matrix[drawn].sum(1).T, strict=True))
    found = task.metrics(totals)
    for i, places in enumerate(drawn):
        resampled = [hypotheses[p] for p in places], [targets[p] for p in places]
        assert found["bleu"][i] == pytest.approx(official(BLEU(), *resampled), rel=1e-12)
        assert found["chrf"][i] == pytest.approx(official(CHRF(), *resampled), rel=1e-12)


def test_scores_of_made_up_sums():
    sums = np.array([8.0, 4.0, 2.0, 1.0]), np.array([10.0, 8.0, 6.0, 4.0])
    expected = 100 * math.exp(1 - 12 / 10) * (0.8 * 0.5 * (1 / 3) * 0.25) ** 0.25
    assert corpus_bleu(np.array(10.0), np.array(12.0), *sums) == pytest.approx(expected)
    one = np.zeros(6)
    one[0] = 1
    assert corpus_chrf(4 * one, 2 * one, one) == pytest.approx(100 * 5 * 0.25 * 0.5 / (4 * 0.25 + 0.5))


# -- models ------------------------------------------------------------------------------------------------------


def taken(head, **fields):
    task = Translation(**fields)
    model, tokenizer, _ = tiny(head)
    task.take_model(model.config.to_dict())
    return task, model.eval(), tokenizer


def pair(source, target, task=None):
    return (task or Translation()).parse({"source": source, "target": target}, "a.tsv:1")


@pytest.mark.parametrize("head", ["t5", "bart", "llama-causal-lm"])
def test_scores_are_the_models_own_loss_and_its_own_texts(head):
    task, model, tokenizer = taken(head, max_new_tokens=6)
    examples = [pair("ada was in rome", "in rome"), pair("bob", "bob saw the film")]
    found = predictions(task, model, tokenizer, examples)
    answers = list(task.predict(model, tokenizer, examples, batch_size=1))
    for example, prediction, answer in zip(examples, found, answers, strict=True):
        features = task.encode(example, tokenizer)
        with torch.no_grad():
            mean = model(**{name: torch.tensor([values]) for name, values in features.items()}).loss.item()
        assert prediction["tokens"] == sum(label != -100 for label in features["labels"])
        assert prediction["nll"] / prediction["tokens"] == pytest.approx(mean, rel=1e-5)
        assert answer == {"source": example["source"], "target": prediction["target"]}
    assert set(measure(task, examples, found)) == {"bleu", "chrf", "loss", "perplexity"}
    one, other = (p["nll"] / p["tokens"] for p in found)
    assert gap(task, examples[:1], found[:1], found[1:])[0] == pytest.approx(abs(one - other))


@pytest.mark.parametrize("head", ["t5", "bart", "llama-causal-lm"])
def test_a_model_learns_to_translate_and_to_stop(head):
    task, model, tokenizer = taken(head, max_new_tokens=12, target_language="rome")
    examples = [pair("ada was in rome", "in rome"), pair("bob saw it", "the film was very good")]
    batch = task.collate([task.encode(e, tokenizer) for e in examples], tokenizer)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(100):
        optimizer.zero_grad()
        loss = model(**batch).loss
        loss.backward()
        optimizer.step()
    assert loss < 0.1
    found = predictions(task, model, tokenizer, examples)
    assert [p["target"] for p in found] == ["in rome", "the film was very good"]
    assert measure(task, examples[1:], found[1:])["bleu"] == pytest.approx(100.0)
    question = task.inputs("ada was in rome")
    answer = {"source": "ada was in rome", "target": "in rome"}
    for options in ({}, {"num_beams": 3}, {"do_sample": True, "temperature": 0.01}):
        assert list(task.predict(model, tokenizer, [question], **options)) == [answer]
    (short,) = task.predict(model, tokenizer, [question], max_new_tokens=1)
    assert short["target"] in ("", "in")
    with pytest.raises(UsageError, match=r"^beams: no option of this task; .*did you mean 'num_beams'\?$"):
        list(task.predict(model, tokenizer, [question], beams=3))


@pytest.mark.parametrize("peft", [None, Peft(r=4)])
@pytest.mark.parametrize("head", ["t5", "bart"])
def test_labels_are_smoothed(head, peft, tmp_path):
    trainer = make_trainer(head, tmp_path, label_smoothing_factor=0.1, peft=peft, max_steps=1)
    batch = collate(head, examples(head, 4))
    with torch.no_grad():
        logits = trainer.model(**batch).logits
    trainer.train()
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch["labels"].flatten(), label_smoothing=0.1)
    assert trainer.state.log_history[0]["loss"] == pytest.approx(expected.item(), rel=1e-4)


def test_an_encoder_decoder_reads_the_prefix_and_learns_the_end():
    task, _, tokenizer = taken("t5", prefix="the {target_language} : ", target_language="rome")
    encoded = task.encode(pair("ada", "was bad"), tokenizer)
    assert tokenizer.decode(encoded["input_ids"]) == "the rome : ada [EOS]"
    assert tokenizer.decode(encoded["labels"]) == "was bad [EOS]"
    rows = [encoded, task.encode(pair("ada was in rome", "a"), tokenizer)]
    batch = task.collate(rows, tokenizer)
    assert batch["labels"].tolist() == [rows[0]["labels"], [*rows[1]["labels"], -100]]
    assert batch["attention_mask"].sum(1).tolist() == [len(row["input_ids"]) for row in rows]
    assert task.counts(batch) == {"example": 2, "token": 5}


def test_labels_end_where_a_tokenizer_writes_no_end():
    task, _, _ = taken("t5", maximum_target_length=3)
    bare = tiny_tokenizer("llama-causal-lm")
    assert bare.decode(task.encode(pair("ada", "was"), bare)["labels"]) == "was [EOS]"
    assert bare.decode(task.encode(pair("ada", "was was was was"), bare)["labels"]) == "was was [EOS]"


def test_a_causal_model_is_asked_and_learns_the_target_alone():
    task, _, tokenizer = taken("llama-causal-lm", prompt="{source_language} ? {source}", source_language="Rome")
    example = pair("ada {source}", "was bad")
    encoded = task.encode(example, tokenizer)
    prompt = task.prompt_ids(example, tokenizer)
    asked = [{"role": "user", "content": "Rome ? ada {source}"}]
    assert prompt == tokenizer.apply_chat_template(asked, add_generation_prompt=True, return_dict=False)
    assert encoded["input_ids"][: len(prompt)] == prompt
    assert encoded["labels"] == [-100] * len(prompt) + encoded["input_ids"][len(prompt) :]
    assert tokenizer.decode(encoded["input_ids"][len(prompt) :]) == "was bad [EOS]"
    tokenizer.chat_template = None
    encoded = task.encode(example, tokenizer)
    assert tokenizer.decode([i for i in encoded["labels"] if i != -100]) == "was bad [EOS]"
    assert tokenizer.decode(task.prompt_ids(pair("ada", "b"), tokenizer)) == "rome? ada"


def test_the_question_names_the_languages_that_are_known():
    assert Translation().asked("a") == "Translate:\na\n"
    assert Translation(target_language="German").asked("a") == "Translate to German:\na\n"
    both = Translation(source_language="English", target_language="German")
    assert both.asked("{target_language}") == "Translate from English to German:\n{target_language}\n"


@pytest.mark.parametrize("template", [True, False])
def test_an_over_long_source_loses_its_end(template):
    task, _, tokenizer = taken("llama-causal-lm", prompt="{source} ?", maximum_source_length=5)
    tokenizer.chat_template = tokenizer.chat_template if template else None
    words = " ".join(["ada", "bob", "was", "in", "rome", "and", "paris"] * 20)
    prompt = tokenizer.decode(task.prompt_ids(pair(words, "x"), tokenizer))
    assert "ada bob was in rome?" in prompt
    task.maximum_source_length = 1000
    encoded = task.encode(pair(words, words), tokenizer)
    assert len(encoded["input_ids"]) <= tokenizer.model_max_length == 64
    learnt = [i for i in encoded["labels"] if i != -100]
    assert len(learnt) == 16
    assert learnt[-1] == tokenizer.eos_token_id
    prompt = task.prompt_ids(pair(words, "x"), tokenizer)
    assert encoded["input_ids"][: len(prompt)] == prompt
    assert len(prompt) == 64 - 16

    task, _, tokenizer = taken("t5", maximum_source_length=4, maximum_target_length=3)
    encoded = task.encode(pair(words, words), tokenizer)
    assert tokenizer.decode(encoded["input_ids"]) == "ada bob was [EOS]"
    assert tokenizer.decode(encoded["labels"]) == "ada bob [EOS]"


def test_an_encoder_is_refused():
    expected = r"^model: bert cannot generate; expected an encoder-decoder \(T5, BART\) or a causal language model$"
    with pytest.raises(UsageError, match=expected):
        Translation().take_model({"model_type": "bert", "architectures": ["BertModel"]})


# -- rows --------------------------------------------------------------------------------------------------------


def refused(fields):
    with pytest.raises(UsageError) as caught:
        Translation().parse(fields, "a.jsonl:4")
    return [str(m) for m in caught.value.mistakes]


def test_mistakes_in_rows():
    assert refused({"sorce": "a", "target": " "}) == [
        "a.jsonl:4: no 'source'; did you mean 'sorce'?; map it with `columns: {source: …}`",
        "a.jsonl:4: 'target' is blank; expected text",
    ]
    assert refused({"source": 3, "target": None}) == [
        "a.jsonl:4: 'source' is 3; expected text",
        "a.jsonl:4: 'target' is None; expected text",
    ]
    assert refused({"source": "a", "target": []}) == ["a.jsonl:4: 'target' is []; expected text"]
    assert refused({"source": "a", "target": ["b", ""]}) == ["a.jsonl:4: '' among the references; expected texts"]
    assert refused({"source": "a", "target": "b", "references": "c"}) == [
        "a.jsonl:4: 'references' is 'c'; expected a list of texts"
    ]
    with pytest.raises(UsageError, match=r"^input: 'source' is blank; expected text$"):
        Translation().inputs(" ")


def test_references_outlive_another_reading():
    task = Translation()
    example = task.parse({"source": "a", "target": ["b", "c"]}, "a.jsonl:1")
    again = task.parse(dict(example.fields), "memory:1")
    for found in (example, again):
        assert (found["target"], found["references"], found.text) == ("b", ["b", "c"], "a\nb")
    assert example.map_words(str.upper)["target"] == "b"
    assert example.map_words(str.upper)["source"] == "A"
    assert isinstance(task.inputs({"source": "a", "target": "b"}), Example)


def test_prompts_are_checked_when_they_are_written():
    with pytest.raises(ValueError, match=r"no placeholder is called \{sorce\}; there is \{source\}, \{source_l"):
        Translation(prompt="Translate {sorce}")
    with pytest.raises(ValueError, match=r"it has to hold \{source\}, once"):
        Translation(prompt="Translate this")
    with pytest.raises(UsageError, match=r"^task target_language: blank, and the prompt or prefix names it"):
        Translation(prefix="translate to {target_language}: ")
