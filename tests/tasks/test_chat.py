"""Chat: what is learnt and what is not, on a byte-level tokenizer whose padding is its end of text."""

import math
import warnings

import pytest
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from alignkit.data.example import Example
from alignkit.errors import UsageError
from alignkit.evaluation.score import gap, measure, predictions
from alignkit.models import Peft
from alignkit.models.adapters import adapted
from alignkit.tasks.chat import Chat
from alignkit.tasks.conversation import segments

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
FORGETFUL = CHATML.replace(
    "{{ m['content'] }}", "{{ m['content'][:1 if m['role'] == 'assistant' and not loop.last else 99] }}"
)
REFUSING = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + CHATML
TALK = [
    {"role": "user", "content": "你好"},
    {"role": "assistant", "content": "Hello!"},
    {"role": "user", "content": "再见"},
    {"role": "assistant", "content": "再见。"},
]


def byte_level(template=CHATML, bos=False):
    vocabulary = {c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    backend = Tokenizer(models.BPE(vocabulary, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(t, special=True) for t in ("<|end|>", "<|im_start|>", "<|im_end|>", "<s>")])
    if bos:
        from tokenizers.processors import TemplateProcessing

        backend.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 259)])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<|end|>", pad_token="<|end|>", chat_template=template,
        bos_token="<s>" if bos else None,
    )  # fmt: skip


TOKENIZER = byte_level()


def llama(seed=0, width=32):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = LlamaConfig(
            vocab_size=260, hidden_size=width, intermediate_size=2 * width, num_hidden_layers=2, num_attention_heads=2,
            max_position_embeddings=256, bos_token_id=None, eos_token_id=256, tie_word_embeddings=True,
        )  # fmt: skip
        return LlamaForCausalLM(config)


def pair(prompt, completion, **fields):
    return Chat().parse({"prompt": prompt, "completion": completion, **fields}, "a.jsonl:1")


def learnt(features, tokenizer=TOKENIZER):
    """The stretches of text that are labels."""
    found, run = [], []
    for label in [*features["labels"], -100]:
        if label != -100:
            run.append(label)
        elif run:
            found.append(tokenizer.decode(run))
            run = []
    return found


def test_the_prompt_is_a_token_prefix_and_only_the_completion_is_learnt():
    task = Chat(system="Sei nett.")
    example = pair("北京在哪?", " In China. ")
    encoded = task.encode(example, TOKENIZER)
    asked = [{"role": "system", "content": "Sei nett."}, {"role": "user", "content": "北京在哪?"}]
    prompt = TOKENIZER.apply_chat_template(asked, add_generation_prompt=True, return_dict=False)
    assert encoded["input_ids"][: len(prompt)] == prompt == task.prompt_ids(example, TOKENIZER)
    assert encoded["labels"][: len(prompt)] == [-100] * len(prompt)
    assert learnt(encoded) == [" In China. <|im_end|>"]
    assert encoded["labels"][len(prompt) :] == encoded["input_ids"][len(prompt) :]


def test_the_end_is_learnt_and_attended_to_where_padding_is_the_same_token():
    tokenizer = byte_level(template=None)
    task = Chat()
    rows = [task.encode(pair("a", "b"), tokenizer), task.encode(pair("a long question", "好"), tokenizer)]
    batch = task.collate(rows, tokenizer)
    assert tokenizer.pad_token_id == tokenizer.eos_token_id == 256
    short = len(rows[0]["input_ids"])
    assert batch["labels"][0, short - 1] == 256
    assert batch["attention_mask"][0].tolist() == [1] * short + [0] * (batch["input_ids"].shape[1] - short)
    assert (batch["labels"][0, short:] == -100).all()
    assert learnt(rows[1], tokenizer) == [" 好<|end|>"]
    assert tokenizer.decode(rows[0]["input_ids"]) == "User: a\nAssistant: b<|end|>"
    assert task.counts(batch)["token"] == 3 + 5


def test_every_answer_of_a_conversation_is_learnt():
    task = Chat()
    example = task.parse({"messages": TALK}, "a:1")
    encoded = task.encode(example, TOKENIZER)
    assert learnt(encoded) == ["Hello!<|im_end|>", "再见。<|im_end|>"]
    whole = TOKENIZER.apply_chat_template(TALK, tokenize=False)
    assert TOKENIZER.decode(encoded["input_ids"]) == whole.rstrip()
    assert example.map_words(str.upper)["messages"][1] == TALK[1]
    plain = byte_level(template=None, bos=True)
    encoded = task.encode(example, plain)
    assert plain.decode(encoded["input_ids"]) == (
        "<s>User: 你好\nAssistant: Hello!<|end|>\nUser: 再见\nAssistant: 再见。<|end|>"
    )
    assert learnt(encoded, plain) == [" Hello!<|end|>", " 再见。<|end|>"]


def test_a_template_that_rewrites_earlier_turns_leaves_the_last_answer():
    found = segments(TALK, byte_level(FORGETFUL))
    assert [s.text for s in found if s.learnt] == ["再见。<|im_end|>"]
    assert "Hello!" not in found[0].text


def test_a_template_without_an_end_gets_one():
    bare = byte_level(CHATML.replace("<|im_end|>", ""))
    assert learnt(Chat().encode(pair("a", "b"), bare), bare) == ["b<|end|>"]


def test_a_template_that_begins_an_answer_otherwise_than_it_asks_for_one():
    other = byte_level(CHATML.replace("assistant\n{% endif", "assistant\n<think>{% endif"))
    encoded = Chat().encode(pair("a", "b"), other)
    assert other.decode(encoded["input_ids"]).endswith("assistant\n<think>b<|im_end|>")
    assert learnt(encoded, other) == ["b<|im_end|>"]


def test_a_template_that_refuses_is_the_users_to_mend():
    with pytest.raises(UsageError, match="refuses the conversation: no system role"):
        Chat(system="Be good.").encode(pair("a", "b"), byte_level(REFUSING))


def test_truncation_keeps_the_end_of_the_prompt_and_the_start_of_the_completion():
    plain = byte_level(template=None, bos=True)
    task = Chat(maximum_length=20)

    def shape(prompt, completion):
        encoded = task.encode(pair(prompt, completion), plain)
        assert len(encoded["input_ids"]) == 20
        return plain.decode(encoded["input_ids"]), learnt(encoded, plain)

    assert shape("x" * 50, "yes") == ("<s>xxx\nAssistant: yes<|end|>", [" yes<|end|>"])
    assert shape("x" * 50, "y" * 50) == ("<s>ssistant: yyyyyyyyy", [" yyyyyyyyy"])
    prompt = task.prompt_ids(pair("x" * 50, "y"), plain)
    assert plain.decode(prompt) == "<s>xxxxxxxx\nAssistant:"


def test_scores_are_the_models_own_loss():
    task = Chat()
    model = llama().eval()
    examples = [pair("a", "bcd"), pair("how are you", "好"), pair("x", "a longer answer")]
    found = predictions(task, model, TOKENIZER, examples)
    for example, prediction in zip(examples, found, strict=True):
        features = task.encode(example, TOKENIZER)
        alone = {name: torch.tensor([values]) for name, values in features.items()}
        with torch.no_grad():
            mean = model(**alone).loss.item()
        assert prediction["tokens"] == sum(label != -100 for label in features["labels"])
        assert prediction["nll"] / prediction["tokens"] == pytest.approx(mean, rel=1e-5)
        assert set(prediction) == {"nll", "tokens"}
    metrics = measure(task, examples, found)
    nll, tokens = (sum(p[name] for p in found) for name in ("nll", "tokens"))
    assert metrics == pytest.approx({"loss": nll / tokens, "perplexity": math.exp(nll / tokens)})
    distance = gap(task, examples[:1], found[:1], found[1:2])[0]
    assert distance == pytest.approx(abs(found[0]["nll"] / 4 - found[1]["nll"] / 4))
    with_question = predictions(task, model, TOKENIZER, [task.inputs("a")])
    assert with_question == [{}]


def test_a_trained_model_answers_and_stops():
    task = Chat(max_new_tokens=20)
    examples = [pair("你好吗", "很好!"), pair("and a rather longer question", "No.")]
    batch = task.collate([task.encode(e, TOKENIZER) for e in examples], TOKENIZER)
    model = llama()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(80):
        optimizer.zero_grad()
        loss = model(**batch).loss
        loss.backward()
        optimizer.step()
    assert loss < 0.05
    questions = [task.inputs("你好吗"), task.inputs("and a rather longer question")]
    answers = list(task.predict(model, TOKENIZER, questions))
    assert answers == [
        {"prompt": "你好吗", "completion": "很好!"},
        {"prompt": "and a rather longer question", "completion": "No."},
    ]
    assert list(task.predict(model, TOKENIZER, questions, batch_size=1)) == answers  # left padding changes nothing
    assert next(task.predict(model, TOKENIZER, questions, max_new_tokens=3))["completion"] == "很"
    assert model.training


@pytest.mark.parametrize("method", ["prompt-tuning", "p-tuning", "prefix-tuning"])
def test_virtual_tokens_stand_right_before_the_text_in_a_batch_too(method):
    task = Chat(max_new_tokens=12)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = adapted(llama(), task, Peft(method=method, num_virtual_tokens=3))
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    questions = [task.inputs(text) for text in ("a", "and a rather longer question", "b", "好")]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        answers = list(task.predict(model, TOKENIZER, questions))
    assert answers == list(task.predict(model, TOKENIZER, questions, batch_size=1))


@pytest.mark.parametrize("config", [{"model_type": "bert"}, {"model_type": "t5", "is_encoder_decoder": True}])
def test_other_models_are_refused(config):
    with pytest.raises(UsageError, match=r"^model: .* does not read from left to right only; expected a causal"):
        Chat().take_model(config)


def refused(fields):
    with pytest.raises(UsageError) as caught:
        Chat().parse(fields, "a.jsonl:4")
    return [str(m) for m in caught.value.mistakes]


def test_mistakes_in_rows():
    assert refused({"promt": "a", "completion": " "}) == [
        "a.jsonl:4: no 'prompt'; expected `prompt` and `completion`, or `messages`; "
        "did you mean 'promt'?; map it with `columns: {prompt: …}`",
        "a.jsonl:4: 'completion' is blank; expected text",
    ]
    assert refused({"prompt": "a", "completion": 3, "system": 1}) == [
        "a.jsonl:4: 'completion' is 3; expected a string",
        "a.jsonl:4: 'system' is 1; expected a string",
    ]
    messages = [TALK[1], {"role": "usr", "content": "a"}, {"role": "user"}, "text", TALK[0]]
    assert refused({"messages": messages}) == [
        "a.jsonl:4 message 1: an answer to nothing; expected a message of the system or the user first",
        "a.jsonl:4 message 2: the role 'usr'; expected 'system' or 'user' or 'assistant' or 'tool'; "
        "did you mean 'user'?",
        "a.jsonl:4 message 3: the content None; expected text",
        "a.jsonl:4 message 4: the role None; expected 'system' or 'user' or 'assistant' or 'tool'; "
        "there is assistant, system, tool, user",
        "a.jsonl:4 message 5: the last message is the user's; expected the assistant's, which is what is learnt",
    ]
    assert refused({"messages": []}) == ['a.jsonl:4: \'messages\' is []; expected a list of {"role", "content"}']


def test_texts_that_filters_and_augmenters_see():
    example = pair("ask", "tell", system="be")
    assert example.text == "be\nask\ntell"
    assert example.map_words(str.upper)["completion"] == "tell"
    assert Example({"prompt": "a"}, ("prompt",)).text == Chat().inputs("a").text
    assert Chat().inputs({"prompt": "a", "system": "b", "completion": "c"}).text == "b\na"
    assert Chat().inputs({"messages": TALK[:3]})["messages"][-1]["role"] == "user"
    with pytest.raises(UsageError, match=r"^input: 'prompt' is blank; expected text$"):
        Chat().inputs(" ")
    with pytest.raises(UsageError, match="input: 'system' is 3; expected a string"):
        Chat().inputs({"prompt": "a", "system": 3})
