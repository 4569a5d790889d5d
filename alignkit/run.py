"""A whole run: data, plain or aligned training, fusion, memory, evaluation before and after, report."""

from __future__ import annotations

import contextlib
import copy
import functools
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignkit import checkpoints, limits, models, run_folder
from alignkit.aligned import Aligned
from alignkit.checking import checked, load
from alignkit.components import Memory
from alignkit.compose import Composition
from alignkit.data import prepare
from alignkit.data.audit import write_lines
from alignkit.data.vocabulary import vocabulary_notes
from alignkit.errors import Mistake, UsageError
from alignkit.evaluation import compare
from alignkit.findings import Findings
from alignkit.kept import controls_of, keep
from alignkit.lineage import write_lineage
from alignkit.memory import load_memory, save_memory
from alignkit.models.location import cache_folder
from alignkit.models.saving import quiet
from alignkit.recipe import Recipe
from alignkit.run_folder import ATTACKS, AUDIT, CHECKPOINTS, CONTROLS, EVALUATIONS, MEMORY, METRICS, MODEL

if TYPE_CHECKING:
    import torch
    from transformers import TrainerCallback

    from alignkit.components import Score, Task
    from alignkit.data import Example
    from alignkit.evaluation import evaluators
    from alignkit.plan import Plan
    from alignkit.trainer import AlignTrainer

Say = Callable[[str], None]
Measure = Callable[[Any], compare.Measured]


@dataclass
class Run:
    """A finished run: its folder, its numbers, and the model ready to answer."""

    path: Path
    metrics: dict[str, Any]
    aligned: Aligned
    seconds: float = 0.0
    """Of training alone."""
    is_main: bool = True
    """This process wrote the folder (of several, one does)."""

    @property
    def model(self) -> Any:
        """The aligned transformers model."""
        return self.aligned.model

    def predict(self, texts: Iterable[str | Mapping[str, Any]], **options: Any) -> list[dict[str, Any]]:
        """One answer per text; see `Aligned.predict`."""
        return self.aligned.predict(texts, **options)


@dataclass
class Prepared:
    """The data of a run, filtered, augmented, and as it was."""

    splits: dict[str, list[Example]]
    audit: list[dict[str, Any]] = field(default_factory=list)
    loaded: dict[str, int] = field(default_factory=dict)
    augmented: int = 0
    remembered: list[Example] = field(default_factory=list)
    """Rows of earlier runs, for the updater to rehearse."""
    evaluated: evaluators.Rows = field(default_factory=dict)
    """By evaluator its own rows."""

    def sizes(self) -> dict[str, dict[str, int]]:
        """Per split: rows loaded, kept by the filters, and added by augmenters."""
        sizes = {name: {"loaded": n, "kept": n, "augmented": 0} for name, n in self.loaded.items()}
        kept = len(self.splits["train"]) - self.augmented
        return sizes | {"train": {"loaded": self.loaded["train"], "kept": kept, "augmented": self.augmented}}

    @property
    def evaluation(self) -> dict[str, list[Example]]:
        return {name: rows for name, rows in self.splits.items() if name != "train"}

    @property
    def examples(self) -> list[Example]:
        """What the training set's indices point into."""
        return [*self.splits["train"], *self.remembered]


def train(
    recipe: Recipe | str | Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    say: Say = lambda text: None,
    callbacks: Iterable[TrainerCallback] = (),
) -> Run:
    """Carry out a recipe.

    Args:
        recipe: a `Recipe`, or the path of its file.
        resume: go on from the newest complete checkpoint in the output folder (from the start where there is none).
        overwrite: replace the run in the output folder.
        say: is told what happens (the plan, where a resumed run goes on), as text.
        callbacks: of transformers' kind, added to the trainer's own.

    Returns:
        The run, with the trained model in memory; everything else is in its folder.

    Raises:
        UsageError: anything that the user can mend. What is wrong with the recipe, its data or its models is found
            before anything is written or replaced.
    """
    main = run_folder.is_main()
    recipe = recipe if isinstance(recipe, Recipe) else load(recipe)
    with run_folder.reserved(recipe) if main else contextlib.nullcontext():
        return _train(recipe, resume, overwrite, say if main else lambda text: None, main, callbacks)


def _train(
    recipe: Recipe, resume: bool, overwrite: bool, say: Say, main: bool, callbacks: Iterable[TrainerCallback]
) -> Run:
    from transformers import set_seed

    started = time.time()
    findings = Findings()
    if main:
        findings.ask(lambda: run_folder.checked(recipe, resume=resume, overwrite=overwrite))
    kept = _with_kept_files(recipe) if resume else recipe
    found = checked(kept, findings)
    splits, composition, plan = found.splits, found.composition, found.plan
    say(plan.render())
    source = recipe.source()
    fresh = models.facts(source, recipe.task).fresh_head  # once the task has seen the data: it depends on the labels
    prepared = replace(_shape(recipe, composition, splits), evaluated=found.rows)
    memory = _memory(recipe, composition)
    with quiet():
        set_seed(recipe.seed)
        model, tokenizer = models.load(source, recipe.task, peft=recipe.peft, freeze=recipe.freeze, head=recipe.head)
        _refuse_untrainable(model, recipe)
        recipe.task.take_weights(model, tokenizer)
        _refuse_unfit_controls(kept, model, tokenizer)
        encoded = _encoded(recipe, composition, prepared, memory, tokenizer)  # after loading, which settles the labels
        for note in vocabulary_notes(encoded["train"], tokenizer):
            say(f"  note: {note}")
            plan.notes.append(note)  # the report and the card say it, too
        folder = recipe.resolve_path(str(recipe.output))
        if main:
            run_folder.begin(folder, recipe, overwrite=overwrite)
            keep(recipe, folder)
            write_lines(folder / AUDIT, prepared.audit)
        trainer = _trainer(recipe, composition, prepared, encoded, model, tokenizer, folder, fresh)
        for callback in callbacks:
            trainer.add_callback(callback)
        measure = _measurer(recipe, prepared, tokenizer)
        before = None if fresh else measure(model)
        seconds = _carry_out(trainer, folder, resume, say)
        floors = {name: cost for name, cost in trainer.first_costs.items() if name in plan.anchored}
        for note in limits.unmet(composition, trainer.state.log_history, floors):
            say(f"  note: {note}")
            plan.notes.append(note)
        trained = trainer.accelerator.unwrap_model(trainer.model)
        aligned = Aligned(recipe.task, trained, tokenizer, folder, controls_of(kept, folder))
        if main:
            models.save(aligned.model, tokenizer, folder / MODEL)
            if composition.fusion is not None:
                _fuse(recipe, composition, folder, source, splits.get("validation", []))
        trainer.accelerator.wait_for_everyone()
        if composition.fusion is not None:
            aligned.model = models.load(folder / MODEL, recipe.task)[0].to(trainer.args.device)
        _consolidate(composition, trainer, memory, folder, main)
        after = measure(aligned.model)
        metrics: dict[str, Any] = dict(
            compare.compare(before, after, recipe.task, recipe.evaluation.replicates, recipe.seed)
        )
        metrics |= {"seeds": [recipe.seed], "task": recipe.task.name, "seconds": round(time.time() - started, 1)}
        if recipe.controls:
            metrics["controls"] = {side: [] for side in metrics if side in ("before", "after")}
        if main:
            if recipe.controls:
                aligned.controlled().save(folder / CONTROLS)
            checkpoints.write_json(folder / METRICS, metrics)
            write_lineage(folder, recipe, source)
            rows = {name: _of_both(before, after, name) for name in ("attempts", "seen")}
            if recipe.evaluation.attacks:
                write_lines(folder / ATTACKS, rows["attempts"])
            if recipe.evaluation.evaluators:
                write_lines(folder / EVALUATIONS, rows["seen"])
            _report(recipe, plan, trainer, prepared, metrics, folder, seconds, fresh, rows)
    return Run(folder, metrics, aligned, seconds, main)


# -- before training -----------------------------------------------------------------------------------------------


def _with_kept_files(recipe: Recipe) -> Recipe:
    """The recipe of a run that goes on, its controls with the files that the run keeps: the originals may be gone."""
    folder = recipe.resolve_path(recipe.output or "")
    return recipe.model_copy(update={"controls": controls_of(recipe, folder)})


def _shape(recipe: Recipe, composition: Composition, splits: dict[str, list[Example]]) -> Prepared:
    """Filter and augment the training split."""
    kept, lines = prepare.filter_examples(composition.filters, splits["train"])
    if not kept:
        rules = ", ".join(sorted({f"{line['component']} {line['rule']}" for line in lines}))
        found = f"none of {len(splits['train'])} training examples is left"
        raise UsageError(Mistake("filters", found, "at least one", f"look at the rules that dropped them: {rules}"))
    more = prepare.augment(composition.augmenters, kept, recipe.seed)
    loaded = {name: len(rows) for name, rows in splits.items()}
    return Prepared({**splits, "train": more}, lines, loaded, augmented=len(more) - len(kept))


def _memory(recipe: Recipe, composition: Composition) -> Memory:
    """What the run that this one goes on from left for the updater; empty where there is none."""
    if composition.updater is None:
        return Memory()
    return load_memory(recipe.origin / MEMORY / composition.updater.name)


def _refuse_untrainable(model: Any, recipe: Recipe) -> None:
    """What training itself would only find out after its first steps."""
    where, labels = f"model {str(recipe.model)!r}", recipe.task.head().get("num_labels")
    if not any(parameter.requires_grad for parameter in model.parameters()):
        mend = (
            "name the model that its prompt was trained on (its folder `base`)" if hasattr(model, "peft_config") else ""
        )
        raise UsageError(Mistake(where, "nothing in it requires a gradient", "something to train", mend))
    if labels is not None and labels != model.config.num_labels:
        found = f"{model.config.num_labels} outputs, where task {recipe.task.name} knows {labels} labels"
        raise UsageError(Mistake(where, found, "one output per label", "does the task take its labels in prepare()?"))


def _refuse_unfit_controls(recipe: Recipe, model: Any, tokenizer: Any) -> None:
    """Prepare the controls for the model as it begins: what is wrong with them is found before hours of training."""
    from alignkit.generation import Controlled

    if recipe.controls:
        Controlled(recipe.controls, recipe.task, model, tokenizer)
        for control in recipe.controls:
            control.reset()


def _encoded(
    recipe: Recipe, composition: Composition, prepared: Prepared, memory: Memory, tokenizer: Any
) -> dict[str, Any]:
    """The training split, remembered rows in it, and the validation split, as the model reads them."""

    def encode(rows: list[Example], first: int = 0, pack: bool = False) -> Any:
        views = composition.views if composition.has_views else None
        unaligned = composition.unaligned_views
        return prepare.encode(recipe.task, rows, tokenizer, views, composition.columns, first, pack, unaligned)

    prompted = recipe.peft is not None and recipe.peft.method != "lora"  # peft takes no mask that keeps texts apart
    encoded = {"train": encode(prepared.splits["train"], pack=composition.rows_may_be_packed and not prompted)}
    if "validation" in prepared.splits:
        encoded["validation"] = encode(prepared.splits["validation"])
    empty = [name for name, dataset in encoded.items() if not len(dataset)]
    if empty:
        found = "no row has anything to learn from or to score"
        raise UsageError(*(Mistake(f"data.{name}", found, "at least one row that does") for name in empty))
    if prompted:
        _refuse_too_long(encoded, tokenizer.model_max_length)
    updater = composition.updater
    if updater is not None and "rehearse" in updater.hook_points:
        import numpy

        if memory.examples:
            prepared.remembered = _remembered(recipe.task, memory, prepared.splits, updater.name)
            memory.dataset = encode(prepared.remembered, first=len(prepared.splits["train"]))
        encoded["train"] = updater.rehearse(encoded["train"], memory, numpy.random.default_rng(recipe.seed))
    return encoded


def _refuse_too_long(encoded: Mapping[str, Any], limit: int) -> None:
    """Rows of a task that does not go by the tokenizer's limit, which leaves room for a prompt's virtual tokens."""
    mend = f"set the task's `maximum_length: {limit}`, or fewer `num_virtual_tokens` under `peft:`"
    expected = f"{limit} at most, which is what the model and the virtual tokens before the text have room for"
    longest = {name: max(dataset["length"]) for name, dataset in encoded.items()}
    if too_long := [name for name, tokens in longest.items() if tokens > limit]:
        found = (Mistake(f"data.{name}", f"a row of {longest[name]} tokens", expected, mend) for name in too_long)
        raise UsageError(*found)


def _remembered(task: Task, memory: Memory, splits: Mapping[str, list[Example]], updater: str) -> list[Example]:
    """Rows of earlier runs as examples, read and held against the labels like any others."""
    rows = []
    for number, fields in enumerate(memory.examples):
        example = task.parse(dict(fields), f"memory row {number}")
        rows.append(replace(example, split=MEMORY, row=number, origin=MEMORY))
    try:
        task.prepare({**splits, MEMORY: rows})
    except UsageError as error:
        mend = f"take updater {updater} out, or train on data that has all labels of the runs before"
        raise UsageError(*(replace(mistake, mend=mend) for mistake in error.mistakes[:3])) from error
    return rows


# -- training ------------------------------------------------------------------------------------------------------


def _trainer(
    recipe: Recipe,
    composition: Composition,
    prepared: Prepared,
    encoded: Mapping[str, Any],
    model: torch.nn.Module,
    tokenizer: Any,
    folder: Path,
    fresh: bool,
) -> AlignTrainer:
    from transformers import EarlyStoppingCallback

    from alignkit.trainer import AlignTrainer

    stopping = recipe.early_stopping
    reference = None
    if recipe.reference is not None and composition.needs_reference:
        task = copy.copy(recipe.task)  # which it must not give its labels to
        reference, _ = models.load(models.resolve(recipe.reference, recipe.base), task)
    trainer = AlignTrainer(
        model=model,
        args=recipe.training_arguments(folder / CHECKPOINTS),
        train_dataset=encoded["train"],
        eval_dataset=encoded.get("validation"),
        processing_class=tokenizer,
        data_collator=functools.partial(recipe.task.collate, tokenizer=tokenizer),
        components=composition.components,
        task=recipe.task,
        objective=composition.objective,
        reference=reference,
        fresh_head=fresh,
        cache=cache_folder(),
        cache_hidden_states=recipe.cache_hidden_states,
        callbacks=[EarlyStoppingCallback(early_stopping_patience=stopping.patience)] if stopping else [],
    )
    trainer.examples = prepared.examples
    trainer.scored_examples = {"eval": prepared.splits.get("validation", [])}
    _show_progress(trainer)
    return trainer


def _show_progress(trainer: AlignTrainer) -> None:
    """A progress bar with the loss beside it on a terminal, nothing elsewhere; never dictionaries on stdout."""
    from transformers import PrinterCallback, ProgressCallback

    from alignkit.progress import LossBesideBar

    for stock in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(stock)
    if sys.stderr.isatty():
        trainer.add_callback(LossBesideBar())


def _carry_out(trainer: AlignTrainer, folder: Path, resume: bool, say: Say) -> float:
    """Train, from the newest complete checkpoint where asked to; gives the seconds that it took."""
    checkpoint = checkpoints.newest(folder / CHECKPOINTS) if resume else None
    if resume:
        say(f"resuming from {checkpoint.name}" if checkpoint else "no complete checkpoint: starting from scratch")
    if checkpoint is not None and checkpoints.has_ended(checkpoint):
        trainer.restore(checkpoint)
        return 0.0
    result = trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    return float(result.metrics["train_runtime"])


# -- after training ------------------------------------------------------------------------------------------------


def _consolidate(composition: Composition, trainer: AlignTrainer, memory: Memory, folder: Path, main: bool) -> None:
    """Let the updater keep what the next run is to have."""
    updater = composition.updater
    if updater is not None and "consolidate" in updater.hook_points:
        memory = updater.consolidate(_single_rows(trainer), memory)
        if main:
            save_memory(folder / MEMORY / updater.name, memory)


def _single_rows(trainer: AlignTrainer) -> Iterator[Any]:
    """A step per training row, in evaluation mode, made as it is asked for."""
    from alignkit.step import TrainingStep

    trainer.model.eval()
    dataset = trainer.train_dataset
    for i in range(len(dataset)):
        inputs = trainer._prepare_inputs(trainer.data_collator([dataset[i]]))
        yield TrainingStep(trainer.context, trainer.model, inputs, index=trainer.state.global_step, micro=i)


def _fuse(recipe: Recipe, composition: Composition, folder: Path, source: Path, validation: list[Example]) -> None:
    """Merge the trained model with the members that the recipe names; the result takes its place in `model/`."""
    from alignkit.fusion import fuse_folders

    component: Any = composition.fusion
    others = [models.resolve(name, recipe.base) for name in getattr(component, "members", [])]
    fused = folder / f".{MODEL}.fused"
    score = _scorer(recipe, folder / MODEL, validation) if component.needs_validation else None
    fuse_folders(component, [folder / MODEL, *others], output=fused, base=source, score=score)
    shutil.rmtree(folder / MODEL)
    fused.rename(folder / MODEL)


def _scorer(recipe: Recipe, folder: Path, validation: list[Example]) -> Score:
    """Evaluates candidate weights on the validation split by the task's metric: higher is better."""
    import torch

    from alignkit.evaluation.score import measure, predictions

    task = recipe.task
    model, tokenizer = models.load(folder, task)
    parameters = model.state_dict()
    sign = 1.0 if task.greater_is_better else -1.0

    def score(weights: Iterable[tuple[str, torch.Tensor]]) -> float:
        with torch.no_grad():
            for name, value in weights:
                parameters[name].copy_(value)
        return sign * measure(task, validation, predictions(task, model, tokenizer, validation))[task.metric]

    return score


def _measurer(recipe: Recipe, prepared: Prepared, tokenizer: Any) -> Measure:
    """Measures a model on every split but the training one, and in every way that the recipe asks for beside that."""
    gaps = recipe.evaluation.gaps

    def measure(model: Any) -> compare.Measured:
        return compare.evaluate(
            recipe.task,
            model,
            tokenizer,
            prepared.evaluation,
            under=recipe.evaluation.under,
            gaps=[view.name for view in gaps],
            views=Composition(gaps, recipe.task).views,
            attacks=recipe.evaluation.attacks,
            evaluators=recipe.evaluation.evaluators,
            rows=prepared.evaluated,
            batch_size=int(recipe.training.get("per_device_eval_batch_size", 32)),
            seed=recipe.seed,
        )

    return measure


def _of_both(before: compare.Measured | None, after: compare.Measured, name: str) -> list[dict[str, Any]]:
    """What was noted of single examples (`attempts` or `seen`), of the model before and after."""
    sides = {"before": before, "after": after}
    noted = {side: getattr(measured, name) for side, measured in sides.items() if measured is not None}
    return [{"model": side, **line} for side, lines in noted.items() for line in lines]


def _report(
    recipe: Recipe,
    plan: Plan,
    trainer: AlignTrainer,
    prepared: Prepared,
    metrics: dict[str, Any],
    folder: Path,
    seconds: float,
    fresh: bool,
    rows: Mapping[str, list[dict[str, Any]]],
) -> None:
    from alignkit.costs import measure_costs, peak_memory
    from alignkit.report import write_card, write_report
    from alignkit.report.facts import RunFacts

    milliseconds = measure_costs(trainer)
    facts = RunFacts(
        recipe=recipe.resolved(),
        plan=plan.as_dicts(milliseconds),
        metrics=metrics,
        history=trainer.state.log_history,
        audit=prepared.audit,
        sizes=prepared.sizes(),
        seconds=seconds,
        task=recipe.task.name,
        plan_text=plan.render(),
        peak_memory=peak_memory(),
        fresh_head=fresh,
        metric=recipe.task.metric,
        greater_is_better=recipe.task.greater_is_better,
        auto_class=recipe.task.auto_class,
        hub_task=recipe.task.hub_task,
        predicted=plan.factor,
        milliseconds=milliseconds,
        warnings=plan.notes,
        bounds=limits.called_bounds(trainer.composition),
        normalised=any(weight.normalises for weight in trainer.composition.weights.values()),
        attempts=rows["attempts"],
        seen=rows["seen"],
    )
    write_report(folder, facts)
    write_card(folder, facts)
