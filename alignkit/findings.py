"""Every mistake at once, and none that only follows from another: what hangs on a mistake has nothing to say yet."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Generic, TypeVar, cast

from alignkit.errors import Mistake, UsageError

T = TypeVar("T")

UNSETTLED: Any = object()
"""Stands for what is not known because there is a mistake in it."""


class Unsettled(Exception):  # no error: it ends a question that cannot be answered yet
    """There is a mistake in what was asked for, and it is told where it is: whoever asked cannot say anything yet."""


class Findings:
    """The mistakes that independent questions find.

    Args:
        mistakes: those that were found before.

    Example:
        >>> findings = Findings()
        >>> length = findings.once(lambda: int("3"))
        >>> findings.hear(lambda: [Mistake("length", "3", "2")] if length() == 3 else [])
        >>> [str(mistake) for mistake in findings.mistakes]
        ['length: 3; expected 2']
    """

    def __init__(self, mistakes: Iterable[Mistake] = ()):
        self.mistakes = list(mistakes)

    def hear(self, question: Callable[[], Iterable[Mistake]]) -> None:
        """Take the mistakes that a question finds, up to where it hangs on another one."""

        def told() -> None:
            for mistake in question():
                self.mistakes.append(mistake)

        self.ask(told)

    def hear_all(self, questions: Iterable[Callable[[], Iterable[Mistake]]]) -> None:
        """As `hear`, several questions: none keeps another from being asked."""
        for question in questions:
            self.hear(question)

    def ask(self, question: Callable[[], T]) -> T:
        """What a question gives; `UNSETTLED` where it has found a mistake itself, or hangs on one."""
        try:
            return question()
        except Unsettled:
            pass
        except UsageError as error:
            self.mistakes += error.mistakes
        return cast(T, UNSETTLED)

    def once(self, make: Callable[[], T]) -> Callable[[], T]:
        """What several questions ask for, made when the first does; where that fails, they are `Unsettled`."""
        return _Once(self, make)

    def refuse(self) -> None:
        """End here, if anything was found.

        Raises:
            UsageError: with all of it.
        """
        if self.mistakes:
            raise UsageError(*dict.fromkeys(self.mistakes))


class _Once(Generic[T]):
    def __init__(self, findings: Findings, make: Callable[[], T]):
        self._findings, self._make = findings, make
        self._made: list[T] = []

    def __call__(self) -> T:
        if not self._made:
            self._made.append(self._findings.ask(self._make))
        if self._made[0] is UNSETTLED:
            raise Unsettled
        return self._made[0]
