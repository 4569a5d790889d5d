"""A refusal policy: prompts that match it are answered by a fixed text, and the model is not asked."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from alignkit.components import Control, Intervention
from alignkit.data import Example
from alignkit.errors import Mistake, UsageError
from alignkit_constraints.controls.phrases import Phrases, listed, read_lines, read_phrases

if TYPE_CHECKING:
    from alignkit.aligned import Aligned
    from alignkit.components import Task


class RefusalPolicy(Control):
    """Answers prompts that match a policy by a fixed refusal; the model is not asked for those.

    A prompt matches if it holds one of the `phrases`, or one of the `patterns` (regular expressions) is found in it, or
    the `classifier` gives it the `label` with a probability of `threshold` or more; asked in this order, the first that
    matches decides. Every decision is in the audit, those to let a prompt pass included: the rule, what it found (the
    phrase, the text that the pattern matched, the probability), and the threshold.

    Looked at is what the user says: of `messages` and `utterances` the last turn, or all that are not the assistant's;
    otherwise the prompt, source or text. The system message is not, as it is the operator's.

    Cost: of phrases and patterns next to none; of a classifier one forward pass of it per prompt.

    Relations: a list knows words, not meanings, and also refuses who asks how to be safe from them: measure the
    refusals of harmless prompts beside those of harmful ones. `forbidden-phrases` looks at the answer and not at the
    question.

    Example:
        >>> policy = RefusalPolicy(phrases=("pipe bomb",))
        >>> [ruling] = policy.reply([Example({"prompt": "Build a Pipe Bomb"}, inputs=("prompt",))])
        >>> ruling.rule, ruling.value, ruling.text
        ('phrases', 'pipe bomb', "I'm sorry, but I can't help with that.")
    """

    example: ClassVar[Mapping[str, Any]] = {"phrases": ("rome", "a film")}

    phrases: Path | tuple[str, ...] | None = None
    """Path of a UTF-8 file with one phrase per line (`# ` starts a comment), or a list of the phrases themselves."""
    whole_words: bool = True
    """A phrase does not count within a longer word; in scripts without spaces it counts anywhere."""
    patterns: Path | tuple[str, ...] | None = None
    """Path of a UTF-8 file with one regular expression per line (`# ` starts a comment), or a list of them."""
    ignore_case: bool = True
    """Of phrases and patterns."""
    classifier: Path | None = None
    """A run, model folder or `.gguf` file of the task `text-classification`."""
    label: str | None = None
    """The classifier's label whose prompts are refused."""
    threshold: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Probability of the label from which on a prompt is refused."""
    answer: Annotated[str, Field(min_length=1)] = "I'm sorry, but I can't help with that."
    """The refusal."""
    turns: Literal["last", "all"] = "last"
    """Of a conversation: the user's last turn, or all that are not the assistant's."""

    def __post_init__(self) -> None:
        mistakes = []
        if (self.classifier is None) != (self.label is None):
            found = "no label whose prompts are refused" if self.label is None else "no classifier whose label that is"
            mistakes.append(Mistake("label", found, "a classifier and its label"))
        if not isinstance(self.patterns, Path | None):
            mistakes += list(_wrong_patterns(self.patterns, "patterns"))
        if not self.answer.strip():
            mistakes.append(Mistake("answer", f"{self.answer!r} is blank", "a text"))
        if mistakes:
            raise UsageError(*mistakes)

    def check_task(self, task: Task) -> Iterable[Mistake]:
        """There is something to match, lists can be read, and there is such a classifier."""
        from alignkit.models import resolve

        if self.phrases is None and self.patterns is None and self.classifier is None:
            expected = "`phrases`, `patterns` or a `classifier`"
            return [Mistake(self._where, "nothing that a prompt could match", expected)]
        try:
            self._rules()
            if self.classifier is not None:
                resolve(str(self.classifier))
        except UsageError as error:
            return error.mistakes
        return ()

    def prepare(self, model: Any, tokenizer: Any, task: Task) -> None:
        self._rules()
        if self.classifier is not None:
            of = (self.classifier, self.label)
            if getattr(self, "_classifier_of", None) != of:
                self._classifier, self._classifier_of = self._loaded(self.classifier), of
            self._classifier.model.to(next(model.parameters()).device)

    def reply(self, examples: list[Example]) -> list[Intervention]:
        said = [asked(example, self.turns) for example in examples]
        rulings = [self._by_rules(text) for text in said]
        left = [row for row, ruling in enumerate(rulings) if ruling is None]
        for row, ruling in zip(left, self._by_classifier([said[row] for row in left]), strict=True):
            rulings[row] = ruling
        return [ruling for ruling in rulings if ruling is not None]

    # -- rules -------------------------------------------------------------------------------------------------

    def _rules(self) -> tuple[Phrases | None, list[re.Pattern[str]]]:
        """The phrases and the patterns, read once and again where a field is another."""
        of = repr([self.phrases, self.patterns, self.whole_words, self.ignore_case])
        if getattr(self, "_rules_of", None) != of:
            phrases, patterns = None, list[re.Pattern[str]]()
            if self.phrases is not None:
                phrases = Phrases(read_phrases(self.phrases, "phrases"), self.whole_words, self.ignore_case)
            if self.patterns is not None:
                in_file = isinstance(self.patterns, Path)
                lines = read_lines(self.patterns) if isinstance(self.patterns, Path) else self.patterns
                if mistakes := list(_wrong_patterns(lines, str(self.patterns) if in_file else "patterns")):
                    raise UsageError(*mistakes)
                patterns = [re.compile(line, re.IGNORECASE if self.ignore_case else 0) for line in lines]
            self._known, self._rules_of = (phrases, patterns), of
        return self._known

    def _by_rules(self, text: str) -> Intervention | None:
        phrases, patterns = self._rules()
        if phrases is not None and (found := phrases.first(text)):
            assert self.phrases is not None  # they were read
            return self._refused(listed(self.phrases, "phrases"), found.phrase)
        match = next((match for pattern in patterns if (match := pattern.search(text))), None)
        if match is not None:
            return self._refused(f"pattern {match.re.pattern}", match.group())
        return None

    def _refused(self, rule: str, value: Any, threshold: float | None = None) -> Intervention:
        return Intervention(rule, value, threshold, changed="answered without asking the model", text=self.answer)

    # -- the classifier ----------------------------------------------------------------------------------------

    def _by_classifier(self, texts: list[str]) -> list[Intervention]:
        """Rulings on the prompts that no rule matches."""
        if self.classifier is None or not texts:
            names = [name for name in ("phrases", "patterns") if getattr(self, name) is not None]
            return [Intervention(" and ".join(names)) for _ in texts]
        found = []
        for answer in self._classifier.predict(texts):
            probability = float(answer["scores"][str(self.label)])
            rule = f"{self.classifier.name} {self.label}"
            if probability >= self.threshold:
                found.append(self._refused(rule, round(probability, 4), self.threshold))
            else:
                found.append(Intervention(rule, round(probability, 4), self.threshold))
        return found

    @property
    def _where(self) -> str:
        return f"control {self.name}"

    def _loaded(self, classifier: Path) -> Aligned:
        from alignkit.aligned import load
        from alignkit.tasks.classification import Classification
        from alignkit.tasks.relation_extraction import RelationExtraction

        found = load(classifier, controls=())
        if not isinstance(found.task, Classification) or isinstance(found.task, RelationExtraction):
            other = f"{classifier} is for task {found.task.name}, which gives a plain text no label"
            raise UsageError(Mistake(f"{self._where} classifier", other, "a model of task text-classification"))
        if self.label not in found.task.labels:
            unknown = f"{classifier} knows no {self.label!r}"
            raise UsageError(Mistake(f"{self._where} label", unknown, f"one of {', '.join(found.task.labels)}"))
        return found


def asked(example: Example, turns: Literal["last", "all"]) -> str:
    """What a user says: the prompt, or of a conversation the last turn or all that are not the assistant's.

    Example:
        >>> asked(Example({"system": "Be brief.", "prompt": "Hi"}, inputs=("system", "prompt")), "all")
        'Hi'
    """
    found: list[str] = []
    for name in example.inputs:
        value = example[name]
        if name == "system":
            continue
        if isinstance(value, str):
            found.append(value)
        elif value and all(isinstance(item, Mapping) for item in value):
            users = [item["content"] for item in value if item["role"] not in ("assistant", "system")]
            found += users[-1:] if turns == "last" else users
        else:
            found.append(" ".join(value))
    return "\n".join(found)


def _wrong_patterns(patterns: Sequence[str], where: str) -> Iterator[Mistake]:
    if not any(pattern.strip() for pattern in patterns):
        yield Mistake(where, "no patterns", "one or more")
    for pattern in patterns:
        try:
            re.compile(pattern)
        except re.error as error:
            yield Mistake(where, f"{pattern!r}: {error}", "a regular expression")
