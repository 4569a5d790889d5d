"""How a model stands up to attacks: what breaks, what survives, after how many queries."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from alignkit.components import Attack, Attempt, Task
from alignkit.compose import name_apart
from alignkit.errors import AlignkitError, Mistake, PluginError
from alignkit.evaluation.table import ACCURACY, BEFORE, QUERIES, SUCCESS

if TYPE_CHECKING:
    from alignkit.data import Example
    from alignkit.evaluation.victim import Victim

PREFIX = "attack/"
AROUND, SHORT = 12, 200
"""Words beside a change, and characters of a prediction, that are shown."""
ROWS = 128
"""Rows that an attack gets at a time: their candidates are in memory together, and share batches."""


@dataclass
class Attacked:
    """One split under one setting of one attack."""

    names: list[str]
    """Of the K statistics: the task's own, then those of the attack."""
    matrix: Any
    """[N, K] over the rows that were attacked, those that were wrong already included."""
    lines: list[dict[str, Any]]
    """Every attempt: the row, the input before and after, what was predicted, queries."""


def attacked(
    attack: Attack, victim: Victim, examples: list[Example], predicted: list[dict[str, Any]]
) -> dict[str, Attacked]:
    """Attack a split.

    Args:
        predicted: the model's prediction for each example as it stands.

    Returns:
        By setting. Statistics of each row are the task's, for the prediction under attack, and `attack/rows`,
        `attack/right` (before; of an attack with a goal of its own `attack/open`: the goal was not reached before),
        `attack/survived`, `attack/attacked`, `attack/queries`, and the attack's measures with their counts. A row
        whose prediction is all wrong is not attacked: it has not survived, and no attack succeeded on it. The same is
        said of a row that had reached the attack's goal before.

    Raises:
        PluginError: the attack does not give one attempt per example.
    """
    rows = spread(len(examples), attack.limit)
    task, scored = victim.task, attack.needs_score
    chosen, before = [examples[row] for row in rows], [predicted[row] for row in rows]
    scores = victim.scores(chosen, before) if scored else [1.0] * len(rows)
    worth = [i for i, score in enumerate(scores) if score > 0]
    found = {}
    for setting, attempts in _attempts(attack, victim, [chosen[i] for i in worth]).items():
        by_row = dict(zip(worth, attempts, strict=True))
        statistics, lines = [], []
        for i, example in enumerate(chosen):
            attempt = by_row.get(i, Attempt(before[i]))
            changed, right = attempt.example or example, scores[i] >= 1.0 and not attempt.reached
            broken = right and _broken(task, changed, attempt)
            own = {"rows": 1.0, "survived": float(right and not broken), "right" if scored else "open": float(right)}
            own |= {"attacked": float(i in by_row), "queries": float(attempt.queries)}
            own |= {f"measure {name}": float(value) for name, value in attempt.measures.items()}
            own |= {f"measured {name}": 1.0 for name in attempt.measures}
            of_task = task.statistics(changed, attempt.prediction) if scored and attack.measures_task else {}
            statistics.append({**of_task, **{PREFIX + name: value for name, value in own.items()}})
            if i in by_row:
                lines.append(_line(task, example, attempt, before[i], broken))
        names = list(dict.fromkeys(name for row in statistics for name in row))
        matrix = np.array([[row.get(name, 0.0) for name in names] for row in statistics], dtype=np.float64)
        found[setting] = Attacked(names, matrix.reshape(len(chosen), len(names)), lines)
    return found


def _attempts(attack: Attack, victim: Victim, examples: list[Example]) -> dict[str, list[Attempt]]:
    """By setting an attempt at each example, some examples at a time."""
    from tqdm.auto import tqdm

    parts = [examples[start : start + ROWS] for start in range(0, len(examples), ROWS)] or [[]]
    made: dict[str, list[Attempt]] = {}
    with victim, tqdm(desc=f"attack {attack.name}", total=len(examples), unit="row", leave=False, disable=None) as bar:
        for part in parts:
            for setting, attempts in attack.attempt(victim, part).items():
                made.setdefault(setting, []).extend(attempts)
            bar.update(len(part))
    for attempts in made.values():
        if len(attempts) != len(examples) or not all(isinstance(attempt, Attempt) for attempt in attempts):
            who = f"attack {attack.name!r} ({type(attack).__module__}.{type(attack).__qualname__})"
            raise PluginError(f"{who}: {len(attempts)} attempts at {len(examples)} examples")
        if taken := {name for attempt in attempts for name in attempt.measures} & {BEFORE, ACCURACY, SUCCESS, QUERIES}:
            raise PluginError(f"attack {attack.name!r}: its measure {min(taken)!r} is the host's")
    return made


def attack_metrics(sums: Mapping[str, Any]) -> dict[str, Any]:
    """Accuracy before (right / all rows) and under attack (survived / all), success (broken / those that were right).

    Of an attack with a goal of its own no row is right before: its success is that of the rows which had not reached
    the goal without it. Queries and the attack's own measures are means over the rows that were attacked, or measured.
    """

    def ratio(part: str, whole: str) -> Any:
        return np.asarray(sums[PREFIX + part], float) / np.asarray(sums[PREFIX + whole], float)

    measures = [name.removeprefix(f"{PREFIX}measure ") for name in sums if name.startswith(f"{PREFIX}measure ")]
    with np.errstate(all="ignore"):  # 0/0 is an answer here: not a number
        scored = f"{PREFIX}right" in sums
        return {
            **({BEFORE: ratio("right", "rows")} if scored else {}),
            ACCURACY: ratio("survived", "rows"),
            SUCCESS: 1.0 - ratio("survived", "right" if scored else "open"),
            QUERIES: ratio("queries", "attacked"),
            **{name: ratio(f"measure {name}", f"measured {name}") for name in measures},
        }


def refusals(attacks: Sequence[Attack], task: Task, tokenizer: Any = None) -> Iterator[Mistake]:
    """Attacks that the task cannot be put to, each with the reason.

    Args:
        tokenizer: the model's, once it is known: what the attacks lack in it is said, too.
    """
    name_apart(attacks)
    for attack in attacks:
        mistakes = list(attack.check_task(task))
        unscored = attack.needs_score and type(task).score is Task.score
        if unscored and not any(mistake.mend for mistake in mistakes):  # unless the attack knows a way out
            found = f"task {task.name} does not say which predictions are right"
            yield Mistake(f"attack {attack.name}", found, "a task that does, or an attack with a goal of its own")
        elif mistakes:
            yield from mistakes
        elif tokenizer is not None:
            yield from attack.check_tokenizer(task, tokenizer)


def spread(number: int, limit: int | None) -> list[int]:
    """At most `limit` of `number` rows, at even distances."""
    if limit is None or limit >= number:
        return list(range(number))
    return [i * number // limit for i in range(limit)]


def rows_of(attacks: Sequence[Attack], number: int) -> list[int]:
    """Those of `number` rows that any of the attacks takes."""
    return sorted({row for attack in attacks for row in spread(number, attack.limit)})


def _broken(task: Task, changed: Example, attempt: Attempt) -> bool:
    """The attack reached its goal on a row that was right."""
    if attempt.broken is not None:
        return attempt.broken
    score = task.score(changed, attempt.prediction) if attempt.prediction else 0.0
    if score is None:
        raise AlignkitError(f"task {task.name} does not say which predictions are right")
    return score < 1.0


def _line(task: Task, example: Example, attempt: Attempt, before: dict[str, Any], broken: bool) -> dict[str, Any]:
    """An attempt as `attacks.jsonl` holds it."""
    inputs = {name: example[name] for name in example.inputs}
    changed = attempt.example
    shown = {name: changed[name] for name in changed.inputs} if changed is not None else None
    sides = (said(task, example, before), said(task, changed or example, attempt.prediction))
    predicted, under_attack = attempt.said or sides
    return {
        "split": example.split,
        "row": example.row,
        "broken": broken,
        "queries": attempt.queries,
        "input": inputs,
        "attacked": shown if shown != inputs else None,
        "predicted": predicted,
        "under_attack": under_attack,
        "measures": attempt.measures,
    }


# -- for people --------------------------------------------------------------------------------------------------


def as_text(value: Any) -> str:
    """An input field in one line: the words of a word list, the contents of messages."""
    if isinstance(value, list):
        return " ".join(item if isinstance(item, str) else f"{item['role']}: {item['content']}" for item in value)
    return str(value)


Part = tuple[str, bool]
"""Some words of a text, and whether the other text has others in their place."""


def sides(before: Any, after: Any, around: int = AROUND) -> tuple[list[Part], list[Part]]:
    """An input field as it was and as an attack left it, word by word, each in parts that are joined by spaces.

    Args:
        around: words beside a change that are shown of a longer stretch that both have.
    """
    old, new = as_text(before).split(), as_text(after).split()
    codes = difflib.SequenceMatcher(None, old, new, autojunk=False).get_opcodes()
    found: tuple[list[Part], list[Part]] = ([], [])
    for number, (tag, a, b, c, d) in enumerate(codes):
        if tag == "equal":
            head, tail = around * (number > 0), around * (number < len(codes) - 1)
            shown = old[a:b]
            if len(codes) > 1 and b - a > head + tail + 1:
                shown = [*shown[:head], "…", *shown[len(shown) - tail :]]
            for side in found:
                side.append((" ".join(shown), False))
        else:
            for side, words in zip(found, (old[a:b], new[c:d]), strict=True):
                side.extend([(" ".join(words), True)] if words else [])
    return found


def brief(answer: Any) -> str:
    """What was predicted, in one short line."""
    if isinstance(answer, dict) and "entities" in answer:
        return ", ".join(f"{e['text']} ({e['type']})" for e in answer["entities"]) or "no entities"
    if isinstance(answer, dict) and "answer" in answer:
        return str(answer["answer"])[:SHORT] or "no answer"
    if isinstance(answer, dict):
        shown = [_short(name, value) for name, value in answer.items() if name not in ("start", "end", "score", "id")]
        return ", ".join(shown)[:SHORT]
    return "nothing" if answer is None else str(answer)[:SHORT]


def _short(name: str, value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    if isinstance(value, float):
        return f"{name} {value:.4g}"
    return " ".join(str(value).split()) or f"no {name}"


def said(task: Task, example: Example, prediction: dict[str, Any]) -> Any:
    """A prediction in few words: the task's answer without the input that it repeats."""
    if not prediction:
        return None
    answer = prediction if not task_answers(task) else task.answer(example, prediction)
    repeated = {*example.fields, "tokens", "tags", "scores", "probabilities", "text", "choices"} - {"label", "labels"}
    return {name: value for name, value in answer.items() if name not in repeated} or answer


def task_answers(task: Task) -> bool:
    """The task turns predictions into answers."""
    return type(task).answer is not Task.answer
