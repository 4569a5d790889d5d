"""Classification by prompts: templates, likelihoods against the model's own, calibration, demonstrations, tuning."""

import json
import random

import numpy as np
import pytest
import torch
from pydantic import ValidationError

import alignkit
from alignkit.data.example import Example
from alignkit.errors import UsageError
from alignkit.evaluation.score import predictions
from alignkit.models.saving import quiet
from alignkit.tasks.gaps import Gap, log_likelihoods
from alignkit.tasks.prompted_classification import PromptedClassification
from alignkit.tasks.prompts import Template, answer_ids
from alignkit.testing import tiny, tokenizer

CAUSAL, MASKED = {"architectures": ["LlamaForCausalLM"]}, {"architectures": ["BertForMaskedLM"]}
HEADS = {"llama-causal-lm": CAUSAL, "bert-masked-lm": MASKED}
WORDS = {"0": "bad", "1": ["good", "very fine"]}
ROWS = [("ada saw rome", 1), ("bob was very", 0), ("the film", 1), ("she works in paris", 0), ("he", 1), ("it was", 0)]


def prepared(config=CAUSAL, rows=ROWS, split="train", **fields):
    task = PromptedClassification(**{"template": "{text} it was {answer}", **fields})
    task.name = "prompted-classification"
    found = [task.parse({"text": text, "label": label}, f"a.csv:{i + 2}") for i, (text, label) in enumerate(rows)]
    task.prepare({split: found})
    task.take_model(config)
    return task, found


def refused(do):
    with pytest.raises(UsageError) as caught:
        do()
    return [str(m) for m in caught.value.mistakes]


# -- prompts -----------------------------------------------------------------------------------------------------


def test_a_template_says_what_stands_before_and_after_the_answer():
    template = Template("{{x}} {text} / {text_pair}\nIt was   {answer}, yes. ")
    fields = {"text": " {a} ", "text_pair": "b"}
    assert template.before(fields) == "{x} {a} / b\nIt was"
    assert (template.space, template.after(fields), template.stub) == ("   ", ", yes.", "\nIt was")
    assert template.filled(fields, "good") == "{x} {a} / b\nIt was   good, yes."
    assert Template("{text} {answer}").answer_is_last


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("{txt} {answer}", "no placeholder is called {txt}; did you mean 'text'?"),
        ("{text} {mask}", "no placeholder is called {mask}; there is answer, text, text_pair"),
        ("{text} {text.__class__} {answer}", "no placeholder is called {text.__class__}"),
        ("{text}", "{answer} stands in it 0 times; it must once"),
        ("{text} {answer} {answer}", "{answer} stands in it 2 times; it must once"),
        ("It was {answer}", "it has no place for {text}"),
    ],
)
def test_what_is_wrong_with_a_template_is_said(source, says):
    with pytest.raises(ValidationError) as caught:
        PromptedClassification(template=source)
    assert says in str(caught.value)


def test_an_answer_has_the_tokens_that_it_has_in_the_text():
    words = tokenizer("llama-causal-lm")
    assert answer_ids(words, " it was", " very good") == tuple(words.convert_tokens_to_ids(["very", "good"]))
    assert answer_ids(words, "", "good") == tuple(words.convert_tokens_to_ids(["good"]))


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"a": "x", "b": "x"}, "'x' stands twice in it"),
        ({"a": [], "b": "x"}, "a word or a list of words for every class"),
        ({"a": " ", "b": "x"}, "a word or a list of words for every class"),
        ({"1": "x", 1: "y"}, "a class stands twice in it"),
        ({"a": "x"}, "it names one class, 'a'"),
        ("good", "valid dictionary"),
    ],
)
def test_what_is_wrong_with_verbalisers_is_said(given, says):
    with pytest.raises(ValidationError) as caught:
        PromptedClassification(verbalisers=given)
    assert says in str(caught.value)


def test_verbalisers_name_the_classes_as_yaml_writes_them():
    task = PromptedClassification(verbalisers={0: "bad", 2.0: ["good", 5], True: "yes"})
    assert task.verbalisers == {"0": "bad", "2": ["good", "5"], "True": "yes"}
    assert task.labels == ["0", "2", "True"]


def test_words_that_a_model_does_not_know_or_tell_apart_are_refused():
    task, _ = prepared(verbalisers={"0": "bad", "1": ["BAD", "好"]})
    assert refused(lambda: task.answers(tokenizer("llama-causal-lm"))) == [
        "verbalisers.1: to the model 'BAD' is the same as 'bad'; expected words that it can tell apart",
        "verbalisers.1: '好' holds what the model has no token for; expected a word it knows",
    ]


# -- rows and models ---------------------------------------------------------------------------------------------


def test_mistakes_in_rows():
    task = PromptedClassification()
    assert refused(lambda: task.parse({"sentence": "x", "label": [1]}, "a.jsonl:2")) == [
        "a.jsonl:2: no 'text'; there is label, sentence; map it with `columns: {text: …}`",
        "a.jsonl:2: 'label' is [1]; expected a string or an integer",
    ]
    assert refused(lambda: task.parse({"text": "x", "text_pair": "y", "label": 1}, "a:1")) == [
        "a:1: a 'text_pair', for which the template has no place; expected {text_pair} in `template`"
    ]
    pairs = PromptedClassification(template="{text} {text_pair} {answer}")
    assert refused(lambda: pairs.inputs("x")) == [
        "input: no 'text_pair'; expected one, as the template has a place for it"
    ]


def test_classes_come_from_the_verbalisers_or_the_data_or_the_model():
    assert prepared()[0].labels == ["0", "1"]
    assert prepared(verbalisers={"1": "good", "0": "bad", "2": "fine"})[0].labels == ["1", "0", "2"]
    assert refused(lambda: prepared(verbalisers={"pos": "good", "0": "bad"}, rows=ROWS[:2])) == [
        "train row -1: label '1'; expected a class with a verbaliser; there is 0, pos"
    ]
    assert refused(lambda: prepared(rows=ROWS[:1])) == [
        "train: every row has the label '1'; expected two classes or more"
    ]
    fresh = PromptedClassification()
    fresh.take_model({**CAUSAL, "id2label": {"1": "b", "0": "a"}})
    assert fresh.labels == ["a", "b"]
    assert fresh.head() == {"id2label": {0: "a", 1: "b"}, "label2id": {"a": 0, "b": 1}}
    fresh = PromptedClassification()
    fresh.take_model({**CAUSAL, "id2label": {"0": "LABEL_0", "1": "LABEL_1"}})
    assert (fresh.labels, fresh.head()) == ([], {})


@pytest.mark.parametrize(
    ("config", "template", "says"),
    [
        ({"architectures": ["BertModel"]}, "{text} {answer}", "model BertModel: no trained language-model head"),
        ({"model_type": "bert"}, "{text} {answer}", "model bert: no trained language-model head"),
        ({"architectures": ["T5ForConditionalGeneration"], "is_encoder_decoder": True}, "{text} {answer}", "an enc"),
        (CAUSAL, "{text} was {answer}.", "template: text after {answer} in '{text} was {answer}.'"),
    ],
)  # fmt: skip
def test_models_that_cannot_be_prompted_are_refused(config, template, says):
    assert says in refused(lambda: PromptedClassification(template=template).take_model(config))[0]


def test_the_kind_of_model_says_how_it_is_loaded_and_trained():
    for config, auto_class, shifts in ((CAUSAL, "AutoModelForCausalLM", True), (MASKED, "AutoModelForMaskedLM", False)):
        task, _ = prepared(config)
        assert (task.auto_class, task.shifts_labels) == (auto_class, shifts)
    assert PromptedClassification.auto_class == "AutoModelForCausalLM"


# -- likelihoods -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("head", HEADS)
def test_likelihoods_are_the_models_own(head):
    model, words, _ = tiny(head)
    model.eval()
    masked, mask = head == "bert-masked-lm", words.mask_token_id
    prompts = [Gap([2, 10, 11, 12], [3] if masked else []), Gap([2, 30], [20, 21, 3] if masked else [])]
    answers = [(14,), (15, 16), (15, 17, 18), (19,)]
    with torch.no_grad():
        found = log_likelihoods(model, words, prompts, answers, mask if masked else None)
        for prompt, row in zip(prompts, found, strict=True):
            for answer, value in zip(answers, row, strict=True):
                seen = [mask] * len(answer) if masked else list(answer)
                ids = torch.tensor([[*prompt.before, *seen, *prompt.after]])
                logs = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0].log_softmax(-1)
                at = range(len(prompt.before) - (not masked), len(prompt.before) - (not masked) + len(answer))
                expected = sum(logs[position, token] for position, token in zip(at, answer, strict=True))
                assert float(value) == pytest.approx(float(expected), abs=1e-4)


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("verbalisers", [WORDS, {"0": "bad", "1": "good"}], ids=["several tokens", "one token"])
def test_probabilities_are_those_of_the_words(head, verbalisers):
    model, words, _ = tiny(head)
    model.eval()
    masked = head == "bert-masked-lm"
    for average_tokens in (False, True):
        for synonyms in ("mean", "sum"):
            task, examples = prepared(
                HEADS[head], verbalisers=verbalisers, average_tokens=average_tokens, synonyms=synonyms
            )
            found = predictions(task, model, words, examples, batch_size=4)
            for example, prediction in zip(examples, found, strict=True):
                expected = []
                for given in verbalisers.values():
                    several = given if isinstance(given, list) else [given]
                    logs = [_log(model, words, example["text"], word, masked, average_tokens) for word in several]
                    expected.append(np.exp(logs).mean() if synonyms == "mean" else np.exp(logs).sum())
                shares = np.array(expected) / np.sum(expected)
                np.testing.assert_allclose(prediction["probabilities"], shares, rtol=1e-3)
                assert prediction["labels"] == [list(verbalisers)[int(shares.argmax())]]


def _log(model, words, text, word, masked, average):
    """The word's log-probability in `TEXT it was WORD`, one row at a time and with the tokenizer's own layout."""
    tokens = words(word, add_special_tokens=False)["input_ids"]
    if masked:
        ids = words(f"{text} it was {' '.join([words.mask_token] * len(tokens))}", return_tensors="pt")["input_ids"]
        places = (ids[0] == words.mask_token_id).nonzero().flatten()
    else:
        ids = words(f"{text} it was {word}", return_tensors="pt")["input_ids"]
        places = torch.arange(ids.shape[1] - len(tokens), ids.shape[1]) - 1
    with torch.no_grad():
        logs = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0].log_softmax(-1)
    total = sum(float(logs[place, token]) for place, token in zip(places, tokens, strict=True))
    return total / len(tokens) if average else total


@pytest.mark.parametrize("head", HEADS)
def test_calibration_divides_by_what_content_free_texts_get(head):
    model, words, _ = tiny(head)
    plain, examples = prepared(HEADS[head], verbalisers=WORDS)
    calibrated, _ = prepared(HEADS[head], verbalisers=WORDS, calibrate=True)
    before = np.array([p["probabilities"] for p in predictions(plain, model, words, examples)])
    empty = [Example({"text": text}, ("text",)) for text in ("N/A", "[MASK]", "")]
    free = np.array([p["probabilities"] for p in predictions(plain, model, words, empty)]).mean(0)
    expected = before / free
    expected /= expected.sum(1, keepdims=True)
    found = np.array([p["probabilities"] for p in predictions(calibrated, model, words, examples)])
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.5)
    moved = np.array([p["probabilities"] for p in predictions(calibrated, model, words, examples)])
    assert abs(moved - found).max() > 1e-3, "the constants are of the weights as they stand"


# -- demonstrations ----------------------------------------------------------------------------------------------


def shown(task, example, words):
    """The demonstrations' texts and words in the order in which they are seen, and what is asked."""
    ids = task.prompt(example, words).before
    return words.decode(ids).replace("[CLS] ", "")


def test_demonstrations_are_balanced_and_never_the_text_itself():
    words = tokenizer("llama-causal-lm")
    rows = [(f"{name} {verb} {place}", i % 2) for i, (name, verb, place) in enumerate(
        (n, v, p) for n in ("ada", "bob", "she") for v in ("saw", "works in") for p in ("rome", "paris"))]  # fmt: skip
    task, examples = prepared(rows=rows, verbalisers={"0": "bad", "1": "good"}, shots=2, maximum_length=64)
    prompts = {e["text"]: shown(task, e, words) for e in examples}
    question = shown(task, task.inputs("it"), words)
    assert question.count("it was good") == question.count("it was bad") == 2
    assert question.endswith(" it it was")
    for text, prompt in prompts.items():
        assert prompt.count("it was good") == prompt.count("it was bad") == 2
        assert prompt.count(f"{text} it was") == 1, "a training row does not see its own answer"
    again, _ = prepared(rows=rows, verbalisers={"0": "bad", "1": "good"}, shots=2, maximum_length=64)
    other, _ = prepared(rows=rows, verbalisers={"0": "bad", "1": "good"}, shots=2, maximum_length=64, seed=1)
    assert shown(again, again.inputs("it"), words) == question != shown(other, other.inputs("it"), words)


def test_nearest_demonstrations_share_words_and_the_nearest_is_last():
    model, words, _ = tiny("llama-causal-lm")
    rows = [("ada saw rome", 1), ("bob works in paris", 1), ("ada saw paris", 0), ("the film was very", 0)]
    task, _ = prepared(rows=rows, verbalisers={"0": "bad", "1": "good"}, shots=1, demonstrations="nearest")
    assert refused(lambda: task.prompt(task.inputs("ada saw rome"), words))[0].startswith(
        "demonstrations nearest: no mo"
    )
    task.take_weights(model, words)
    query = task.inputs("ada saw rome it")
    assert shown(task, query, words) == "ada saw paris it was bad ada saw rome it was good ada saw rome it it was"
    own = task.pool[0]
    assert shown(task, own, words).endswith("ada saw rome it was")
    assert shown(task, own, words).count("ada saw rome") == 1


def test_what_is_missing_for_demonstrations_is_said():
    task, _ = prepared(split="test", shots=1, verbalisers={"0": "bad", "1": "good"})
    assert refused(lambda: task.prompt(task.inputs("it"), tokenizer("llama-causal-lm"))) == [
        "shots 1: no training split to take demonstrations from; expected rows with labels; name a file: --train FILE"
    ]
    assert refused(lambda: prepared(shots=4)) == [
        "shots 4: 3 training rows of class '0'; expected 4 or more",
        "shots 4: 3 training rows of class '1'; expected 4 or more",
    ]
    assert refused(lambda: PromptedClassification(shots=1, demonstrations="nearest", calibrate=True)) == [
        "calibrate: nearest demonstrations give every text a prompt of its own, and calibration is of one prompt; "
        "take `demonstrations: seed`"
    ]


def test_long_prompts_lose_demonstrations_and_then_the_end_of_the_text():
    words = tokenizer("bert-masked-lm")
    task, _ = prepared(MASKED, verbalisers={"0": "bad", "1": "good"}, shots=2, maximum_length=20)
    prompt = task.prompt(task.inputs("bob was"), words)
    assert len(prompt.before) + len(prompt.after) + 1 <= 20
    assert words.decode(prompt.before).count("bad") + words.decode(prompt.before).count("good") in (1, 2)
    long = task.prompt(task.inputs("ada saw " * 40), words)
    assert len(long.before) + 1 + len(long.after) == 20
    assert words.decode(long.before) == "[CLS] " + "ada saw " * 7 + "ada it was"
    tight, _ = prepared(MASKED, verbalisers={"0": "bad", "1": "good"}, maximum_length=4)
    assert refused(lambda: tight.prompt(tight.inputs("ada"), words)) == [
        "maximum_length: the template alone is 1 tokens too long for it; expected room for the text"
    ]


# -- training ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    """Rows in which `good` or `bad` says the class, and a tiny causal model that was trained to repeat the word."""
    folder = tmp_path_factory.mktemp("toy")
    for name, seed in (("train", 0), ("test", 1)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in _toy_rows(seed)), "utf-8")
    model, words, _ = tiny("llama-causal-lm")
    with quiet():
        for part in (model, words):
            part.save_pretrained(folder / "model")
    run = _train(folder, "model", "full", {}, 3e-3, epochs=20)
    assert run.metrics["after"]["test"]["accuracy"]["value"] > 0.95
    return folder


def _toy_rows(seed):
    draw = random.Random(seed)
    for _ in range(64):
        label = draw.choice(["good", "bad"])
        words = draw.choices(["she", "he", "was", "film", "the", "it", "very", "in", "rome"], k=draw.randrange(2, 6))
        words.insert(draw.randrange(len(words) + 1), label)
        yield {"text": " ".join(words), "label": label}


def _train(folder, model, output, task, rate, epochs=10, **parts):
    return alignkit.train(
        alignkit.Recipe(
            base=folder,
            model=model,
            task={"use": "prompted-classification", "template": "{text} it was {answer}", **task},
            data={"train": "train.jsonl", "test": "test.jsonl"},
            training={
                "learning_rate": rate,
                "num_train_epochs": epochs,
                "per_device_train_batch_size": 8,
                "logging_steps": 4,
            },
            evaluation={"replicates": 20},
            output=output,
            **parts,
        ),
        overwrite=True,
    )


def test_prompt_tuning_steers_a_frozen_model(toy):
    """Sixteen virtual tokens make it answer in words that it was never trained to answer with."""
    task, peft = {"verbalisers": {"good": "fine", "bad": "very"}}, {"method": "prompt-tuning", "num_virtual_tokens": 16}
    run = _train(toy, "full", "prompt", task, 0.3, epochs=20, peft=peft)
    before, after = (run.metrics[side]["test"]["accuracy"]["value"] for side in ("before", "after"))
    assert before < 0.7
    assert after > 0.9
    answer = alignkit.load(run.path).predict(["the film was good"])[0]
    assert answer["label"] == "good"
    assert list(answer) == ["text", "label", "scores"]


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("method", ["prompt-tuning", "prefix-tuning", "p-tuning", "lora"])
def test_every_adapter_trains_both_kinds_of_model(head, method, toy, tmp_path):
    model, words, _ = tiny(head)
    with quiet():
        for part in (model, words):
            part.save_pretrained(tmp_path / "model")
    run = _train(toy, str(tmp_path / "model"), str(tmp_path / "run"), {}, 0.05, epochs=1, peft={"method": method})
    assert run.metrics["after"]["test"]["accuracy"]["n"] == 64
    losses = [entry["loss"] for entry in json.loads(_state(run.path))["log_history"] if "loss" in entry]
    assert losses
    assert np.isfinite(losses).all()
    again = alignkit.load(run.path).predict(["she was good", "bad"])
    assert again == run.predict(["she was good", "bad"])


def _state(path):
    return max(path.glob("checkpoints/*/trainer_state.json")).read_text("utf-8")


def test_a_run_with_shots_answers_as_it_did_when_it_is_loaded_again(toy, tmp_path):
    run = _train(toy, "full", str(tmp_path / "run"), {"shots": 2, "maximum_length": 60}, 1e-4, epochs=1)
    texts = ["she was good", "bad film in rome"]
    assert alignkit.load(run.path).predict(texts) == run.predict(texts)
