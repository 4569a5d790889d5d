"""The words that stand for a class in a prompt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from alignkit.errors import Mistake, UsageError
from alignkit.tasks.classification import label_name
from alignkit.tasks.prompts import Ids, Template, answer_ids

Verbalisers = Mapping[str, str | list[str]]


def checked_verbalisers(value: Any) -> Any:
    """A mapping of classes to words as text: YAML takes some for numbers or truth values.

    Raises:
        ValueError: a class without a word, or a word that stands twice in it.
    """
    if not isinstance(value, Mapping):
        return value
    named = {
        label_name(label) or "": [label_name(word) for word in given] if isinstance(given, list) else label_name(given)
        for label, given in value.items()
    }
    every = [word for given in named.values() for word in (given if isinstance(given, list) else [given])]
    if "" in named or None in every or [] in named.values():
        raise ValueError("expected a word or a list of words for every class")
    if twice := [word for word in every if every.count(word) > 1]:
        raise ValueError(f"{twice[0]!r} stands twice in it; a word stands for one class")
    if len(named) < len(value):
        raise ValueError("a class stands twice in it")
    if len(named) == 1:
        raise ValueError(f"it names one class, {next(iter(named))!r}; its keys are all the classes there are")
    return named


def words_for(label: str, verbalisers: Verbalisers) -> list[str]:
    """The words that stand for a class: its own name where nobody says otherwise."""
    given = verbalisers.get(label, label)
    return [given] if isinstance(given, str) else given


def verbaliser_ids(
    labels: Sequence[str], verbalisers: Verbalisers, template: Template, tokenizer: Any
) -> list[list[Ids]]:
    """Per class the tokens that each of its words has in the template.

    Raises:
        UsageError: words that the tokenizer does not know, or cannot tell apart.
    """
    found = [
        [answer_ids(tokenizer, template.stub, template.space + word) for word in words_for(label, verbalisers)]
        for label in labels
    ]
    mistakes = []
    owners: dict[Ids, str] = {}
    for label, of_label in zip(labels, found, strict=True):
        for word, ids in zip(words_for(label, verbalisers), of_label, strict=True):
            where = f"verbalisers.{label}"
            if not ids or tokenizer.unk_token_id in ids:
                mistakes.append(Mistake(where, f"{word!r} holds what the model has no token for", "a word it knows"))
            elif ids in owners:
                found_in = f"to the model {word!r} is the same as {owners[ids]!r}"
                mistakes.append(Mistake(where, found_in, "words that it can tell apart"))
            owners.setdefault(ids, word)
    if mistakes:
        raise UsageError(*mistakes)
    return found
