"""HotFlip against a finished model: tokens replaced by those that raise the loss most."""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

import torch
from pydantic import Field, PositiveInt

from alignkit.components import Attack, Attempt
from alignkit.data.features import windows
from alignkit.errors import Mistake
from alignkit.evaluation.victim import DIGITS
from alignkit.tasks.padding import attended
from alignkit_adversaries.attacks.sites import Site, find_sites, lines_of, replaced_texts, replaced_tokens
from alignkit_adversaries.hotflip import best_replacements
from alignkit_adversaries.pieces import NEVER, piece_classes

if TYPE_CHECKING:
    from torch import Tensor

    from alignkit.components import Task
    from alignkit.data import Example
    from alignkit.data.features import Features
    from alignkit.evaluation.victim import AttackedBatch, Victim

NEGATIONS = (
    "not", "no", "never", "n't", "nor", "neither", "none", "nobody", "nothing", "nowhere", "cannot", "without",
    "hardly", "barely",
)  # fmt: skip
"""Words that turn a sentence's meaning round."""


@functools.lru_cache(maxsize=16)
def stop_pattern(words: tuple[str, ...]) -> re.Pattern[str] | None:
    """What finds any of these words in a text, in any case; None where there are none.

    A word that has an apostrophe in it is found at the end of another one, too: `n't` in "don't".
    """
    found = []
    for word in words:
        text = re.escape(word.strip()).replace("'", "['’]")
        found.append(f"{text}(?!\\w)" if "'" in word else f"(?<!\\w){text}(?!\\w)")
    return re.compile("|".join(found), re.IGNORECASE) if found else None


@dataclass
class Flipped:
    """An example with some tokens replaced, and what the model makes of it."""

    rows: list[Features]
    """Of each window."""
    tokens: dict[int, int] = field(default_factory=dict)
    """Place among the example's sites -> the token that stands there."""
    texts: dict[int, str] = field(default_factory=dict)
    """The same as text."""
    example: Example | None = None
    """As text; None where nothing is replaced."""
    loss: float = 0.0
    """The mean of its windows', in nats, to five decimals: who else is asked moves it less."""
    prediction: dict[str, Any] = field(default_factory=dict)
    score: float = 0.0


@dataclass
class Target:
    """One example under attack."""

    example: Example
    rows: list[Features]
    sites: list[Site]
    free: list[int]
    """Places of the sites that may be flipped."""
    maximum: int
    """Flips at most."""
    now: Flipped
    """The worst so far."""
    before: float = 0.0
    """The score of the example as it is."""
    useless: set[int] = field(default_factory=set)
    """Sites whose flip was tried in vain since the last one that was kept."""
    rounds: int = 0
    queries: int = 0

    @property
    def broken(self) -> bool:
        """The prediction is worse than it was."""
        return self.now.score < self.before

    @property
    def open(self) -> list[int]:
        """Places of the sites that may be flipped next."""
        return [place for place in self.free if place not in self.now.tokens and place not in self.useless]


class HotFlipAttack(Attack):
    """Replaces tokens, one after another, by those that raise an example's loss most, until its prediction is wrong.

    Ebrahimi et al. 2018, arXiv:1712.06751, with tokens in place of characters: replacing w by v at position t changes
    the example's own loss by (E_v - E_w) . g_t to first order (eq. 2). In each round the `candidates` most promising
    flips, each at a position of its own, are tried for real, and the one with the highest loss is kept, one that
    breaks the prediction before all others. A round that finds nothing better leaves the text as it is, and the next
    one looks elsewhere. There are as many rounds as flips are allowed, and a position is flipped once. (The paper
    searches with a beam; with one beam and one candidate this is its greedy search.)

    A token is replaced by one of its own kind alone: the beginning of a word by the beginning of a word, what goes on
    with a word by what does, punctuation by punctuation. Words keep their number and labels their places. What the
    task adds to a text (special tokens, marks around entities) stays, and so does what the label is about
    (`keep_answers`) and `stop_words`. No flip takes a stop word away or makes one, by itself or with its neighbours.
    Where a model reads the same token several times (overlapping windows, a question with each of its choices), all
    are flipped together. Nothing asks whether the new word means the same: the attack shows what a model depends on,
    not what a reader would let pass.

    The prediction is that for the flipped tokens themselves. The attacked input that is shown is the text with the new
    tokens' text in the place of the old; read again, it may be cut into other tokens.

    Measures: `flips`, the mean number of tokens replaced.

    Cost: per example and round one gradient and `candidates` forward passes; examples share their batches.

    Relations: `hotflip`, the adversary, trains on such flips. `deepwordbug` and `typos` need no gradient and change
    letters, `pgd` moves embeddings where no token is. For language models see `gcg`.

    Example:
        >>> HotFlipAttack(maximum_flips=3).candidates
        8
    """

    maximum_flips: PositiveInt | Annotated[float, Field(gt=0, le=1)] = 0.2
    """Tokens that are replaced at most: a number, or a share of the tokens of the example's texts (at least one is)."""
    candidates: PositiveInt = 8
    """Flips that are tried for real in each round."""
    stop_words: tuple[str, ...] = NEGATIONS
    """Words that are neither replaced nor put in, in any case; by default what negates in English. `n't` is found at
    the end of a word."""
    keep_answers: bool = True
    """Leave alone what the label is about, as the task says: words of entities, the answer in its context … False:
    only what answers are compared with word for word."""

    def check_task(self, task: Task) -> Iterable[Mistake]:
        """A prediction that follows from one forward pass."""
        if not task.decodes_outputs:
            found = f"task {task.name} asks the model more than once for a prediction"
            yield Mistake(f"attack {self.name}", found, "a task that predicts from one forward pass")

    def check_tokenizer(self, task: Task, tokenizer: Any) -> Iterable[Mistake]:
        """One that says where in a text its tokens are."""
        if not getattr(tokenizer, "is_fast", False):
            found = f"{type(tokenizer).__name__} cannot say where in a text a token is"
            mend = "save the model with its fast tokenizer, or take deepwordbug or typos, which change words"
            yield Mistake(f"attack {self.name}", found, "a fast tokenizer", mend)

    def attempt(self, victim: Victim, examples: list[Example]) -> Mapping[str, list[Attempt]]:
        """One attempt per example; those that are not broken yet take their rounds together."""
        classes = self._classes(victim)
        made: list[Attempt] = []
        for start in range(0, len(examples), victim.batch_size):
            targets = [
                self._target(victim, example, classes) for example in examples[start : start + victim.batch_size]
            ]
            self._attack(victim, targets, classes)
            made += [
                Attempt(t.now.prediction, t.now.example, t.queries, measures={"flips": float(len(t.now.tokens))})
                for t in targets
            ]
        return {"": made}

    # -- what may be flipped -----------------------------------------------------------------------------------

    def _classes(self, victim: Victim) -> Tensor:
        """[V]: the class of each token; stop words have none."""
        classes = piece_classes(victim.tokenizer, len(victim.embeddings))
        for word in self.stop_words:
            for text in (word, f" {word}", word.capitalize(), f" {word.capitalize()}"):
                ids = victim.tokenizer(text, add_special_tokens=False)["input_ids"]
                if len(ids) == 1:
                    classes[ids[0]] = NEVER
        return classes

    def _target(self, victim: Victim, example: Example, classes: Tensor) -> Target:
        task = victim.task
        rows = windows(task.encode(example, victim.tokenizer))
        sites = find_sites(example, lines_of(rows), victim.tokenizer, victim.special_ids)
        spans = task.kept_spans(example) if self.keep_answers else task.fixed_spans(example)
        free = [
            place
            for place, site in enumerate(sites)
            if int(classes[site.token]) != NEVER
            and not held(site, spans)
            and not any(m.start() < site.end and site.start < m.end() for m in self._stops(example, site))
        ]
        allowed = self.maximum_flips
        maximum = allowed if isinstance(allowed, int) else max(int(allowed * len(sites)), 1)
        return Target(example, rows, sites, free, maximum, Flipped(rows))

    def _stops(self, example: Example, site: Site) -> list[re.Match[str]]:
        """The stop words in the text of a site."""
        pattern = stop_pattern(self.stop_words)
        return list(pattern.finditer(site.text(example))) if pattern else []

    def _flipped(self, victim: Victim, target: Target, place: int, token: int) -> Flipped | None:
        """The example with one flip more; None where that takes a stop word away or makes one."""
        text = victim.tokenizer.decode([token]).strip().removeprefix("##")
        tokens, texts = {**target.now.tokens, place: token}, {**target.now.texts, place: text}
        example = target.example.replace(**replaced_texts(target.example, target.sites, texts))
        before, after = ([m[0] for m in self._stops(e, target.sites[place])] for e in (target.example, example))
        rows = replaced_tokens(target.rows, target.sites, tokens, texts)
        return Flipped(rows, tokens, texts, example) if before == after else None

    # -- the search --------------------------------------------------------------------------------------------

    def _attack(self, victim: Victim, targets: list[Target], classes: Tensor) -> None:
        """Flip tokens of all targets, until their predictions are worse or no more flips are allowed."""
        self._ask(victim, targets, [[target.now] for target in targets])
        for target in targets:
            target.before = target.now.score
        while active := [t for t in targets if not t.broken and t.rounds < t.maximum and t.open]:
            flips = list(self._promising(victim, active, classes))
            self._ask(victim, active, flips)
            for target, tried in zip(active, flips, strict=True):
                target.rounds = target.rounds + 1 if tried else target.maximum
                best = max(tried, key=lambda f: (f.score < target.before, f.loss), default=target.now)
                if best.score < target.before or best.loss > target.now.loss:
                    target.now, target.useless = best, set()
                else:
                    target.useless |= {place for flipped in tried for place in flipped.tokens}

    def _promising(self, victim: Victim, targets: list[Target], classes: Tensor) -> Iterator[list[Flipped]]:
        """Of each target the flips with the largest first-order gains, if they are positive."""
        gradients = site_gradients(victim, targets)
        joined = torch.cat([g[t.open] for g, t in zip(gradients, targets, strict=True)])
        ids = torch.tensor([t.sites[place].token for t in targets for place in t.open], device=joined.device)
        gains, tokens = best_replacements(joined, ids, classes.to(joined.device), victim.embed)
        sizes = [len(target.open) for target in targets]
        for target, gain, token in zip(targets, gains.split(sizes), tokens.split(sizes), strict=True):
            order = gain.argsort(descending=True, stable=True).tolist()
            flips = (
                self._flipped(victim, target, target.open[k], int(token[k])) for k in order if float(gain[k]) > 0.0
            )
            yield list(itertools.islice((f for f in flips if f is not None), self.candidates))

    def _ask(self, victim: Victim, targets: list[Target], flips: list[list[Flipped]]) -> None:
        """Fill in the loss, prediction and score of all flips of all targets."""
        asked = [(target, flipped) for target, tried in zip(targets, flips, strict=True) for flipped in tried]
        rows = [(number, row) for number, (_, flipped) in enumerate(asked) for row in flipped.rows]
        answers: dict[int, tuple[float, dict[str, Any]]] = {}
        with torch.no_grad():
            for batch in victim.batches_of([(place, row) for place, (_, row) in enumerate(rows)]):
                outputs = batch.step.forward()
                losses = victim.task.row_losses(outputs, batch.step.batch).tolist()
                answers.update(zip(batch.places, zip(losses, victim.decoded(batch, outputs), strict=True), strict=True))
        parts: list[list[tuple[float, dict[str, Any]]]] = [[] for _ in asked]
        for place, (number, _) in enumerate(rows):
            parts[number].append(answers[place])
        joined = victim.joined([[prediction for _, prediction in windows] for windows in parts])
        for (target, flipped), of_windows, prediction in zip(asked, parts, joined, strict=True):
            target.queries += len(of_windows)
            flipped.loss = round(sum(loss for loss, _ in of_windows) / max(len(of_windows), 1), DIGITS)
            flipped.prediction = prediction
            flipped.score = victim.scores([flipped.example or target.example], [prediction])[0]


def site_gradients(victim: Victim, targets: list[Target]) -> list[Tensor]:
    """For each target [S, D]: the gradient of its own loss at each of its sites, summed over where it is read.

    Zero where it is not finite. Of several windows the losses are added up, which changes no order within a target.
    """
    found = [torch.zeros(len(t.sites), victim.embeddings.shape[1], device=victim.embeddings.device) for t in targets]
    rows = [(k, n, row) for k, t in enumerate(targets) for n, row in enumerate(t.now.rows)]
    for batch in victim.batches_of([(place, row) for place, (_, _, row) in enumerate(rows)]):
        gradient = _gradient(victim, batch)
        there = attended(batch.step.batch).view(gradient.shape[:2])
        choices = len(there) // len(batch.places)
        for at, place in enumerate(batch.places):
            k, window, row = rows[place]
            first = len(lines_of(targets[k].now.rows[:window]))
            for line in range(first, first + len(lines_of([row]))):
                own = gradient[at * choices + line - first]
                own = own[there[at * choices + line - first]]  # as the tokens are before they are padded
                pairs = [(n, p) for n, site in enumerate(targets[k].sites) for at_, p in site.places if at_ == line]
                if pairs:
                    sites, positions = (torch.tensor(part, device=own.device) for part in zip(*pairs, strict=True))
                    found[k].index_add_(0, sites, own[positions])
    for target in targets:
        target.queries += len(target.now.rows)
    return found


def _gradient(victim: Victim, batch: AttackedBatch) -> Tensor:
    """[B, T, D] ([B*C, T, D] of choices): of each row's own loss."""
    step = batch.step
    delta = step.zeros()
    gradient = step.gradient(delta, lambda: victim.task.row_losses(step.forward(delta), step.batch).sum())
    return gradient.nan_to_num(0.0, 0.0, 0.0)


def held(site: Site, spans: Mapping[str, list[tuple[int, int]]]) -> bool:
    """A site touches one of the spans of its field: characters of a text, words of a word list."""
    first, last = (site.start, site.end) if site.word is None else (site.word, site.word + 1)
    return any(start < last and first < end for start, end in spans.get(site.name, ()))
