"""The conformance cases against components that break a promise: each is caught by the case that is made for it."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from alignkit.components import (
    KEEP,
    Adversary,
    Attack,
    Attempt,
    Augmenter,
    Averager,
    Component,
    Constraint,
    Evaluator,
    Filter,
    Measurement,
    Term,
    Verdict,
)
from alignkit.testing import (
    AdversaryCases,
    AttackCases,
    AugmenterCases,
    AveragerCases,
    ConstraintCases,
    EvaluatorCases,
    FilterCases,
)
from alignkit.testing.attack_cases import Subject, trained_subject
from alignkit.testing.evaluator_cases import with_samples
from alignkit.testing.training import short_collections

HEAD = "bert-token-classification"


@pytest.fixture(autouse=True, scope="module")
def fast() -> Iterator[None]:
    with short_collections():
        yield


class Everywhere(Adversary):
    """Perturbs padding too."""

    epsilon: float = 0.5
    """Radius."""
    passes = 2

    def attack(self, step: Any) -> Any:
        delta = step.zeros()
        yield step.loss(delta)
        yield step.loss(self.epsilon * step.unit(delta.grad, mask=torch.ones_like(step.mask)) + 1e-3)


class TooFar(Adversary):
    """Leaves its radius."""

    epsilon: float = 0.5
    """Radius."""
    passes = 2

    def attack(self, step: Any) -> Any:
        delta = step.zeros()
        yield step.loss(delta)
        yield step.loss(1.1 * self.epsilon * step.unit(delta.grad))


class Hidden(Adversary):
    """Leaves its radius in a forward pass of its penalty."""

    epsilon: float = 0.5
    """Radius."""
    weight: float = 1.0
    """Of the penalty."""

    def penalty(self, step: Any, outputs: Any) -> Term:
        further = step.forward(1.1 * self.epsilon * step.unit(step.noise()))
        return Term((further.logits - outputs.logits).square().sum(-1).mean(), "example")


class Untidy(Adversary):
    """Shifts weights, and puts them back only where nothing goes wrong."""

    passes = 2

    def attack(self, step: Any) -> Any:
        yield step.loss()
        parameter = next(step.model.parameters())
        before = parameter.detach().clone()
        with torch.no_grad():
            parameter.add_(0.1)
        yield step.loss()
        with torch.no_grad():
            parameter.copy_(before)


class WrongUnit(Constraint):
    """A mean over tokens that says it is one over examples."""

    def penalty(self, step: Any, outputs: Any) -> Term:
        return Term(outputs.logits[step.batch["labels"] != -100].square().mean(), "example")


class Dice(Constraint):
    """Draws from the global generator."""

    def penalty(self, step: Any, outputs: Any) -> Term:
        return Term(outputs.logits.square().mean() * torch.rand(()), "example")


class Forgetful(Averager):
    """Its averages do not survive a checkpoint."""

    def __post_init__(self) -> None:
        self._seen: list[Any] = []

    def after_step(self, step: Any) -> None:
        self._seen.append({name: p.detach().clone() for name, p in step.model.named_parameters()})

    def average(self) -> Any:
        for name in self._seen[0] if self._seen else ():
            yield name, torch.stack([seen[name] for seen in self._seen]).mean(0)


class FirstOfEach(Filter):
    """Drops the first example of each chunk."""

    def filter_examples(self, examples: Any) -> Any:
        return [Verdict("drop", rule="first") if i == 0 else KEEP for i, _ in enumerate(examples)]


class Shuffled(Augmenter):
    """Changes what is no input."""

    def augment_examples(self, examples: Any, generator: Any) -> Any:
        return [e.replace(**dict.fromkeys(set(e) - set(e.inputs), "changed")) for e in examples]


class Asking(Attack):
    """Asks the model about what `rewritten` makes of the examples."""

    def attempt(self, victim: Any, examples: Any) -> Any:
        changed = self.rewritten(examples)
        asked = zip(victim.predict(changed), changed, strict=True)
        return {"": [Attempt(prediction, example, queries=1) for prediction, example in asked]}

    def rewritten(self, examples: Any) -> Any:
        return [e.map_words(str.upper) for e in examples]


class Crowded(Asking):
    """Puts the first example's first word into all the others."""

    def rewritten(self, examples: Any) -> Any:
        return [e.replace(tokens=[*examples[0]["tokens"][:1], *e["tokens"][1:]]) for e in examples]


class Shortening(Asking):
    """Takes words out and leaves their tags."""

    def rewritten(self, examples: Any) -> Any:
        return [e.replace(tokens=e["tokens"][:1]) for e in examples]


class Restless(Asking):
    """Draws from the global generator."""

    def rewritten(self, examples: Any) -> Any:
        torch.rand(())
        return examples


class Careless(Attack):
    """Moves weights, and puts them back only where nothing goes wrong."""

    def attempt(self, victim: Any, examples: Any) -> Any:
        parameter = next(victim.model.parameters())
        before = parameter.detach().clone()
        with torch.no_grad():
            parameter.add_(0.1)
            predicted = victim.predict(examples)
            parameter.copy_(before)
        return {"": [Attempt(prediction, queries=1) for prediction in predicted]}


class Smearing(Attack):
    """Perturbs special tokens and padding, too."""

    def attempt(self, victim: Any, examples: Any) -> Any:
        found: Any = [Attempt({}, queries=1)] * len(examples)
        for batch in victim.batches(examples):
            with torch.no_grad():
                predicted = victim.decoded(batch, batch.step.forward(torch.ones_like(batch.step.zeros())))
            for place, prediction in zip(batch.places, predicted, strict=True):
                found[place] = Attempt(prediction, queries=1)
        return {"": found}


class Counting(Evaluator):
    """Counts the words of sentences."""

    directions: ClassVar[dict[str, int]] = {"words": 0}

    def measure(self, subject: Any, examples: Any) -> Any:
        return [Measurement({"words": float(len(e.words)), "rows": 1.0}) for e in examples]

    def metrics(self, totals: Any) -> Any:
        return {"words": totals["words"] / totals["rows"]}


class Relative(Counting):
    """Counts by the longest sentence."""

    def measure(self, subject: Any, examples: Any) -> Any:
        longest = max(len(e.words) for e in examples)
        return [Measurement({"words": len(e.words) / longest, "rows": 1.0}) for e in examples]


class Summed(Counting):
    """Looks at all resamples together."""

    def metrics(self, totals: Any) -> Any:
        return {"words": totals["words"] / np.sum(totals["rows"])}


class Boastful(Counting):
    """Declares what it does not give."""

    directions: ClassVar[dict[str, int]] = {"syllables": 1}


class Drawing(Counting):
    """Draws from the global generator."""

    def measure(self, subject: Any, examples: Any) -> Any:
        torch.rand(())
        return super().measure(subject, examples)


def cases_of(base: type) -> Any:
    return type("Cases", (base,), {"heads": (HEAD,)})()


@pytest.mark.parametrize(
    ("component", "cases", "case", "arguments"),
    [
        (Everywhere(), AdversaryCases, "only_real_tokens_are_perturbed_within_the_radius", {"head": HEAD}),
        (TooFar(), AdversaryCases, "only_real_tokens_are_perturbed_within_the_radius", {"head": HEAD}),
        (Hidden(), AdversaryCases, "only_real_tokens_are_perturbed_within_the_radius", {"head": HEAD}),
        (Untidy(), AdversaryCases, "weights_are_put_back_when_training_breaks", {}),
        (WrongUnit(), ConstraintCases, "accumulated_micro_batches_are_one_large_batch", {"head": HEAD}),
        (Dice(), ConstraintCases, "the_global_random_state_is_left_alone", {}),
        (Forgetful(), AveragerCases, "a_resumed_training_ends_with_the_same_bytes", {}),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Component) else "",
)
def test_a_broken_promise_of_a_training_is_found(
    component: Any, cases: type, case: str, arguments: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(AssertionError):
        getattr(cases_of(cases), f"test_{case}")(component, **arguments, tmp_path=tmp_path)


def test_a_broken_promise_about_data_is_found() -> None:
    with pytest.raises(AssertionError):
        FilterCases().test_chunks_do_not_matter(FirstOfEach(), chunk=3)
    with pytest.raises(AssertionError, match="is no input, and has changed"):
        AugmenterCases().test_labels_still_fit(Shuffled())


@pytest.fixture
def subject() -> Subject:
    """A tiny tagger of its own, that an attack may spoil."""
    shared = trained_subject("ner", "AutoModelForTokenClassification")
    return replace(shared, model=copy.deepcopy(shared.model))


CASES_OF_ATTACKS = {
    "who_else_is_attacked_changes_nothing": Crowded,
    "labels_fit_what_it_made": Shortening,
    "model_and_random_state_are_as_before": Restless,
    "the_model_is_as_before_when_something_breaks": Careless,
    "special_tokens_and_padding_are_not_perturbed": Smearing,
}


@pytest.mark.parametrize("case", CASES_OF_ATTACKS)
def test_a_broken_promise_of_an_attack_is_found(case: str, subject: Subject) -> None:
    tested = getattr(AttackCases(), f"test_{case}")
    tested(Asking(), subject)
    with pytest.raises(AssertionError):
        tested(CASES_OF_ATTACKS[case](), subject)


CASES_OF_EVALUATORS = {
    "who_else_is_measured_changes_nothing": Relative,
    "metrics_are_elementwise_functions_of_sums": Summed,
    "what_it_declares_of_its_metrics_is_there": Boastful,
    "model_and_random_state_are_as_before": Drawing,
}


@pytest.mark.parametrize("case", CASES_OF_EVALUATORS)
def test_a_broken_promise_of_an_evaluator_is_found(case: str, subject: Subject, tmp_path: Path) -> None:
    tested = getattr(EvaluatorCases(), f"test_{case}")
    tested(with_samples(Counting(), tmp_path), subject, tmp_path)
    with pytest.raises(AssertionError):
        tested(with_samples(CASES_OF_EVALUATORS[case](), tmp_path), subject, tmp_path)
