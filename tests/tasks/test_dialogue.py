"""Dialogue: whose turns are learnt, stretches of whole turns, what is refused."""

import pytest
import torch

from alignkit.data.features import windows
from alignkit.errors import UsageError
from alignkit.evaluation.score import measure, predictions
from alignkit.tasks.chat import Chat
from alignkit.tasks.dialogue import Dialogue
from alignkit.testing import tiny

MODEL, TOKENIZER, _ = tiny("llama-causal-lm")
FIVE = ["who ?", "ada .", "where ?", "in rome .", "good !"]


def talk(utterances, **fields):
    task = Dialogue(**fields)
    return task, task.parse({"utterances": utterances}, "a.jsonl:1")


def learnt(row):
    """The turns that are labels."""
    found, run = [], []
    for label in [*row["labels"], -100]:
        if label != -100:
            run.append(label)
        elif run:
            found.append(TOKENIZER.decode(run, skip_special_tokens=True))
            run = []
    return found


def seen(row):
    text = TOKENIZER.decode(row["input_ids"]).replace("[EOS]", "")
    return [turn.strip() for turn in text.split("[BOS]")[1:]]


def roles(example):
    return [m["role"][0] for m in example["messages"]]


def test_whose_turns_are_learnt():
    task, example = talk(FIVE)
    (row,) = task.encode(example, TOKENIZER)
    assert roles(example) == [*"uauau"]
    assert learnt(row) == ["ada.", "in rome."]
    assert seen(row) == ["user : who?", "assistant : ada.", "user : where?", "assistant : in rome."]

    task, example = talk(FIVE, learn="last")
    (row,) = task.encode(example, TOKENIZER)
    assert roles(example) == [*"auaua"]
    assert learnt(row) == ["good!"]
    assert len(seen(row)) == 5

    task, example = talk(FIVE, learn="both")
    second, first = task.encode(example, TOKENIZER)
    assert learnt(second) == ["ada.", "in rome."]
    assert learnt(first) == ["where?", "good!"]
    assert seen(first)[0] == "assistant : who?"
    messages = [{"role": r, "content": c} for r, c in (("user", "who ?"), ("assistant", "ada ."))]
    both = task.encode(task.parse({"messages": messages}, "a:1"), TOKENIZER)
    assert [learnt(row) for row in both] == [["ada."]]


def test_a_dialogue_that_fits_is_the_conversation_that_chat_learns():
    messages = [{"role": r, "content": c} for r, c in (("user", "who ?"), ("assistant", "ada ."))]
    chat = Chat(system="be good")
    task = Dialogue(system="be good")
    one = chat.encode(chat.parse({"messages": messages}, "a:1"), TOKENIZER)
    assert task.encode(task.parse({"utterances": ["who ?", "ada ."]}, "a:1"), TOKENIZER) == [{**one, "window": 0}]
    assert task.prompt_ids(task.inputs("who ?"), TOKENIZER) == chat.prompt_ids(chat.inputs("who ?"), TOKENIZER)


def test_a_first_word_after_the_system_message_is_learnt_when_the_first_speaker_is_played():
    task, example = talk(["who ?", "ada ."], learn="both", system="be good")
    second, first = task.encode(example, TOKENIZER)
    assert (learnt(second), learnt(first)) == (["ada."], ["who?"])


@pytest.mark.parametrize("system", ["", "be good"])
@pytest.mark.parametrize("room", range(20, 70, 7))
@pytest.mark.parametrize("learn", ["second", "both"])
def test_every_turn_is_learnt_once_in_stretches_of_whole_turns(learn, room, system):
    words = ["ada", "bob", "paris", "rome", "film", "good", "bad", "fine", "very", "saw"]
    spoken = [" ".join([word] * (1 + i % 3)) for i, word in enumerate(words)]
    task, example = talk(spoken, learn=learn, maximum_length=room, system=system)
    rows = task.encode(example, TOKENIZER)
    turns = [turn for row in rows for turn in learnt(row)]
    first = spoken[0::2][0 if system else 1 :]
    assert turns == spoken[1::2] + (first if learn == "both" else [])
    for row in rows:
        assert len(row["input_ids"]) <= room
        head, *rest = seen(row) if system else ["", *seen(row)]
        assert head == (f"system : {system}" if system else "")
        contents = [turn.partition(" : ")[2] for turn in rest]
        start = spoken.index(contents[0])
        assert contents == spoken[start : start + len(contents)]
        assert rest[0].startswith("user") or start == 0
    prompt = {"input_ids": task.prompt_ids(task.inputs({"utterances": spoken}), TOKENIZER)}
    assert len(prompt["input_ids"]) <= room
    assert seen(prompt)[-1] == "assistant :"
    assert seen(prompt)[-2] == f"user : {spoken[-1]}"


def test_a_pair_of_turns_that_is_too_long_is_cut():
    task, example = talk(["a", "b", "rome " * 50, "paris " * 50], maximum_length=20)
    rows = task.encode(example, TOKENIZER)
    assert [len(row["input_ids"]) for row in rows] == [10, 20]
    assert learnt(rows[1]) == [" ".join(["paris"] * 10)]


@pytest.mark.parametrize("learn", ["second", "last", "both"])
def test_scores_are_over_every_turn_that_is_learnt(learn):
    task, example = talk(FIVE * 3, learn=learn, maximum_length=40)
    rows = task.encode(example, TOKENIZER)
    assert len(rows) == {"second": 3, "last": 1, "both": 6}[learn]
    total, tokens = 0.0, 0
    for row in rows:
        count = sum(label != -100 for label in row["labels"])
        with torch.no_grad():
            mean = MODEL.eval()(**{name: torch.tensor([row[name]]) for name in ("input_ids", "labels")}).loss.item()
        total, tokens = total + mean * count, tokens + count
    found = predictions(task, MODEL, TOKENIZER, [example])
    assert found[0] == pytest.approx({"nll": total, "tokens": tokens}, rel=1e-5)
    assert measure(task, [example], found)["loss"] == pytest.approx(total / tokens, rel=1e-5)
    parts = [{"nll": 1.0, "tokens": 2, "window": 0}, {"nll": 1.0, "tokens": 2, "window": 1}]
    assert task.join([*parts, parts[0]]) == {"nll": 2.0, "tokens": 4}  # padding of a batch repeats windows


def test_a_conversation_goes_on():
    task = Dialogue(max_new_tokens=4)
    spoken = {"utterances": ["who ?", "ada .", "where ?"], "system": "be good"}
    turns = [
        {"role": r, "content": c} for r, c in zip(("user", "assistant", "user"), spoken["utterances"], strict=True)
    ]
    for given in (spoken, {"messages": turns}, "where ?", {"utterances": ["who ?", "ada ."]}):
        example = task.inputs(given)
        (answer,) = task.predict(MODEL, TOKENIZER, [example])
        assert isinstance(answer.pop("completion"), str)
        assert answer == ({"utterances": [given]} if isinstance(given, str) else given)
    assert roles(task.inputs({"utterances": ["who ?", "ada ."]})) == [*"au"]


def test_other_components_see_and_rewrite_the_users_turns():
    task, example = talk(["who ?", "ada ."])
    again = task.parse(dict(example.map_words(str.upper).fields), "memory:1")
    assert [m["content"] for m in again["messages"]] == ["WHO ?", "ada ."]
    assert example.text == "who ?\nada ."
    odd = task.parse({"utterances": ["who ?", "ada ."], "prompt": "a column of another use"}, "a:1")
    assert task.encode(odd, TOKENIZER) == task.encode(example, TOKENIZER)


def refused(fields):
    with pytest.raises(UsageError) as caught:
        Dialogue().parse(fields, "a.jsonl:4")
    return [str(m) for m in caught.value.mistakes]


def test_mistakes_in_utterances():
    assert refused({"utterance": []}) == [
        "a.jsonl:4: no 'utterances'; expected `utterances`, or `messages`; did you mean 'utterance'?; "
        "map it with `columns: {utterances: …}`"
    ]
    assert refused({"utterances": "a"}) == ["a.jsonl:4: 'utterances' is 'a'; expected a list of strings"]
    assert refused({"utterances": ["a", " ", 3]}) == [
        "a.jsonl:4 turn 2: ' '; expected text",
        "a.jsonl:4 turn 3: 3; expected text",
    ]
    assert refused({"utterances": ["a"], "system": 1}) == [
        "a.jsonl:4: 1 turn; expected two or more",
        "a.jsonl:4: 'system' is 1; expected a string",
    ]
    with pytest.raises(UsageError, match=r"^input: 0 turns; expected one or more$"):
        Dialogue().inputs({"utterances": []})
    with pytest.raises(UsageError, match=r"^input: 'utterances' is None; expected a list of strings$"):
        Dialogue().inputs({"text": "a"})
    with pytest.raises(UsageError, match="input: 'system' is 3; expected a string"):
        Dialogue().inputs({"utterances": ["a"], "system": 3})


def test_mistakes_in_messages():
    def say(role, content="a"):
        return {"role": role, "content": content}

    assert refused({"messages": [say("user"), say("user"), say("system"), say("usr"), say("assistant", " ")]}) == [
        "a.jsonl:4 message 2: the user speaks twice in a row; expected turns; join the two, or drop the row",
        "a.jsonl:4 message 3: a system message between turns; expected one, before all turns",
        "a.jsonl:4 message 4: the role 'usr'; expected 'user' or 'assistant' or 'system'; did you mean 'user'?",
        "a.jsonl:4 message 5: the content ' '; expected text",
    ]
    assert refused({"messages": [say("system"), say("user")]}) == [
        "a.jsonl:4: 1 turn; expected two or more",
        "a.jsonl:4: no turn of the assistant's; expected one, which is what is learnt",
    ]
    assert refused({"messages": ["a"]}) == [
        "a.jsonl:4: 'messages' is ['a']; expected a list of {\"role\", \"content\"}"
    ]
    assert Dialogue().parse({"messages": [say("user"), say("assistant"), say("user")]}, "a:1")
    assert (
        windows(Dialogue().encode(Dialogue().parse({"messages": [say("assistant"), say("user")]}, "a:1"), TOKENIZER))
        == []
    )
