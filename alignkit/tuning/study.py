"""The trials of a search, kept in a file that it goes on from after an interruption."""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from alignkit.errors import Mistake, UsageError
from alignkit.tuning.space import Search, Values
from alignkit.tuning.trial import State, Trial, carry_out

if TYPE_CHECKING:
    from alignkit.recipe import Recipe
    from alignkit.recipe.tuning import Tune

JOURNAL, TRIALS = "study.journal", "trials"


def installed() -> ModuleType:
    """optuna.

    Raises:
        UsageError: it is not there.
    """
    try:
        import optuna
    except ImportError as error:
        mend = "pip install 'alignkit[tune]'"
        raise UsageError(Mistake("alignkit tune", "optuna is not installed", "optuna 4 or later", mend)) from error
    return optuna


@contextlib.contextmanager
def quiet(optuna: ModuleType) -> Iterator[None]:
    """optuna says nothing of its own inside."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(before)


class Study:
    """A recipe's trials: those that are done, and how the next one is chosen and carried out.

    The sampler's seed depends on the search's and on the trial's number alone, so that a search that was interrupted
    goes on with the trials that it would have had.
    """

    def __init__(self, recipe: Recipe, tune: Tune, search: Search, folder: Path):
        self.recipe, self.tune, self.search, self.folder = recipe, tune, search, folder
        self.seed = recipe.seed if tune.seed is None else tune.seed
        self.combinations = search.space.combinations(tune.trials, self.seed)
        self._optuna = installed()
        self._study = self._opened()

    @property
    def total(self) -> int:
        """Trials to be made: as many as were asked for, or as there are combinations."""
        return self.tune.trials if self.combinations is None else len(self.combinations)

    @property
    def over(self) -> bool:
        """All trials are made."""
        done = self.trials()
        return len(done) >= self.tune.trials or (self.combinations is not None and self._untried(done) is None)

    def trials(self) -> list[Trial]:
        """Those that are done, in order; what an interruption has ended is not."""
        names = self._optuna.trial.TrialState
        states: dict[Any, State] = {names.COMPLETE: "complete", names.PRUNED: "pruned", names.FAIL: "failed"}
        done = [t for t in self._study.get_trials(deepcopy=False) if t.state in states and "seconds" in t.user_attrs]
        return [self._told(number, trial, states[trial.state]) for number, trial in enumerate(done, 1)]

    def next(self) -> Trial:
        """Make one more trial. One whose values were tried before is not run again: it would end as the other did."""
        done = self.trials()
        number = len(done) + 1
        trial = self._asked(done, number)
        values = self.search.space.suggest(trial)
        started = time.monotonic()
        twin = next((t for t in done if self.search.space.suggested(t.values) == trial.params), None)
        if twin is None:
            folder = self.folder / TRIALS / f"{number:03}"
            state, score, reason = carry_out(self.recipe, values, self.search, trial, folder)
        else:
            state, score, reason = twin.state, twin.score, f"as trial {twin.number}"
            for step, value in enumerate(twin.evaluations, 1):
                trial.report(value, step)
        trial.set_user_attr("reason", reason)
        trial.set_user_attr("seconds", time.monotonic() - started)
        self._finish(trial, state, score)
        return self.trials()[-1]

    # -- optuna ------------------------------------------------------------------------------------------------

    def _opened(self) -> Any:
        journal = self.folder / JOURNAL
        mended(journal)
        backend = self._optuna.storages.journal.JournalFileBackend(str(journal))
        study = self._optuna.create_study(
            study_name="alignkit",
            storage=self._optuna.storages.JournalStorage(backend),
            direction="maximize" if self.search.greater_is_better else "minimize",
            pruner=self._pruner(),
            load_if_exists=True,
        )
        for trial in study.get_trials(deepcopy=False, states=[self._optuna.trial.TrialState.RUNNING]):
            study.tell(trial.number, state=self._optuna.trial.TrialState.FAIL)  # interrupted: it is done again
        return study

    def _asked(self, done: list[Trial], number: int) -> Any:
        seed = random.Random(f"{self.seed}/{number}").getrandbits(32)
        self._study.sampler = self._optuna.samplers.TPESampler(n_startup_trials=self.tune.startup, seed=seed)
        untried = self._untried(done)
        waiting = [self._optuna.trial.TrialState.WAITING]  # where a process was killed just after the next line
        if untried is not None and not self._study.get_trials(deepcopy=False, states=waiting):
            self._study.enqueue_trial(untried)
        return self._study.ask()

    def _untried(self, done: list[Trial]) -> Values | None:
        """The next of the combinations that no trial has had yet."""
        tried = [self.search.space.suggested(trial.values) for trial in done]
        named = map(self.search.space.suggested, self.combinations or ())
        return next((values for values in named if values not in tried), None)

    def _pruner(self) -> Any:
        pruners = self._optuna.pruners
        if self.tune.pruner == "median":
            return pruners.MedianPruner(n_startup_trials=self.tune.startup)
        return pruners.HyperbandPruner() if self.tune.pruner == "hyperband" else pruners.NopPruner()

    def _finish(self, trial: Any, state: State, score: float | None) -> None:
        states = self._optuna.trial.TrialState
        told = {"complete": states.COMPLETE, "pruned": states.PRUNED, "failed": states.FAIL}[state]
        self._study.tell(trial, score, told)

    def _told(self, number: int, trial: Any, state: State) -> Trial:
        attributes = trial.user_attrs
        return Trial(
            number=number,
            values=self.search.space.values(trial.params),
            state=state,
            score=trial.value if state == "complete" else None,
            evaluations=[value for _, value in sorted(trial.intermediate_values.items())],
            seconds=attributes["seconds"],
            reason=attributes["reason"],
        )


def mended(journal: Path) -> None:
    """Take out of a journal what a process that was killed while it wrote has left: half a line, a lock.

    Nobody else writes: the search has its folder for itself.
    """
    journal.with_name(f"{journal.name}.lock").unlink(missing_ok=True)
    if journal.is_file():
        written = journal.read_bytes()
        whole = written[: written.rfind(b"\n") + 1]
        if whole != written:
            journal.write_bytes(whole)
