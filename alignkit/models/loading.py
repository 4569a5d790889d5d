"""Loading a model and its tokenizer for a task: the right head, the right labels, ready to train."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sized
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignkit.errors import Mistake, UsageError
from alignkit.models.adapters import Peft, adapted, with_padded_labels
from alignkit.models.freezing import freeze as freeze_parameters
from alignkit.models.head import head_arguments, refuse_without_effect
from alignkit.models.inspection import (
    adopt_labels,
    has_trained_head,
    positions_of,
    read_config,
    read_shapes,
    wanted_labels,
)
from alignkit.models.location import ADAPTER_BASE, is_adapter
from alignkit.models.saving import quiet

if TYPE_CHECKING:
    import torch

    from alignkit.components import Task

_VOCABULARIES = ("tokenizer.json", "*vocab*", "*.model", "*.tiktoken", "tekken.json")
SHORTEST = 8
"""Tokens that a text needs at least."""


def load(
    path: Path | str,
    task: Task,
    *,
    peft: Peft | None = None,
    freeze: Iterable[str] = (),
    dtype: torch.dtype | str | None = None,
    head: Mapping[str, Any] | None = None,
) -> tuple[Any, Any]:
    """A model and its tokenizer from a folder, as `resolve` gives it.

    A head that was trained on the task's labels keeps its rows: the task adopts the checkpoint's labels, so load before
    encoding. A head for other labels, and one that is missing, is drawn anew from torch's global random
    state, which the caller seeds. A saved prompt is loaded for use, frozen: peft keeps only what prediction needs.

    Args:
        path: a model folder.
        task: names the class to load and shapes its head.
        peft: train an adapter instead of all parameters.
        freeze: parameters to leave alone, as `alignkit.models.freeze` takes them.
        dtype: of the weights; float32 where it is not given, whatever the checkpoint is in.
        head: a recipe's `head:` section: `dropout`, or fields of the model's config.

    Raises:
        UsageError: no such kind of head for this model, unreadable weights, no tokenizer, patterns that name nothing.
    """
    path, freeze = Path(path), list(freeze)
    task.take_model(read_config(path))
    _refuse_both(path, peft, freeze)
    if is_adapter(path) and task.has_head and not has_trained_head(read_config(path), read_shapes(path), task):
        found = "its prompt was trained with a head for other labels"
        raise UsageError(Mistake(f"model {str(path)!r}", found, "the task's labels", f"name {path / ADAPTER_BASE}"))
    tokenizer = load_tokenizer(path, task, peft)
    shaped = head_arguments(path, task, head or {})
    model, fresh = _load_plain(path / ADAPTER_BASE if is_adapter(path) else path, task, dtype, shaped)
    refuse_without_effect(model, head or {})
    _agree_on_padding(model, tokenizer)
    if is_adapter(path):
        from peft import PeftModel

        with quiet():
            model = with_padded_labels(PeftModel.from_pretrained(model, path)).requires_grad_(False)
    if peft is not None:
        with quiet():
            model = adapted(model, task, peft, fresh)
    if freeze:
        freeze_parameters(model, freeze)
    return model, tokenizer


def refuse_unfit(
    path: Path | str, task: Task, peft: Peft | None, freeze: Iterable[str], head: Mapping[str, Any]
) -> None:
    """Refuse what `load` would, as far as it shows in a model without weights.

    Raises:
        UsageError: no such kind of head for this model, modules, parameters or fields of the head that are not there,
            or values of those that the model cannot have.
    """
    import torch

    path, freeze = Path(path), list(freeze)
    _refuse_both(path, peft, freeze)
    shaped = head_arguments(path, task, head)
    try:
        with quiet(), torch.device("meta"):
            model = _without_weights(path, task, {})
            if shaped:
                model = _reshaped(model, path, task, shaped)
            refuse_without_effect(model, head)
            if peft is not None:
                model = adapted(model, task, peft)
            if freeze and not is_adapter(path):  # its adapter, which is not made here, has parameters, too
                freeze_parameters(model, freeze)
    except UsageError:
        raise
    except Exception:  # a model family's own code may raise anything on the meta device, where load does not
        return


def _reshaped(plain: Any, path: Path, task: Task, shaped: Mapping[str, Any]) -> Any:
    """As `_without_weights`, where without the head's fields it can be made: what they do to it is their fault."""
    try:
        model = _without_weights(path, task, shaped)
    except UsageError:
        raise
    except Exception as error:  # whatever the model family's code raises
        found = f"no {plain.config.model_type} can be made with it ({_first_line(error)})"
        mend = "correct the field under it, or take it out"
        raise UsageError(Mistake("head", found, "values that the model can have", mend)) from error
    shapes = {name: p.shape for name, p in model.named_parameters() if _in_body(model, name)}
    changed = [name for name, p in plain.named_parameters() if shapes.get(name, p.shape) != p.shape]
    if changed:
        raise UsageError(_misshapen(changed))
    if emptied := [name for name, layers in _stacks(model).items() if not layers and _stacks(plain).get(name)]:
        found = f"a field under it takes all {len(_stacks(plain)[emptied[0]])} layers of {emptied[0]} away"
        raise UsageError(Mistake("head", found, "a model with layers", "correct the field under it, or take it out"))
    return model


def _stacks(model: Any) -> dict[str, Sized]:
    """The model's lists of modules, by name: its layers."""
    from torch import nn

    return {name: module for name, module in model.named_modules() if isinstance(module, nn.ModuleList)}


def _misshapen(names: Iterable[str]) -> Mistake:
    first, *others = sorted(names)
    found = f"a field under it changes the shape of {first}{f' and {len(others)} more' if others else ''}"
    return Mistake("head", found, "fields that leave the checkpoint's weights as they are", "take it out")


def _without_weights(path: Path, task: Task, shaped: Mapping[str, Any]) -> Any:
    """The model that the task would load, without an adapter of its own; made on the device of the context."""
    import transformers

    head = task.head() if wanted_labels(task) or not task.has_head else {}
    folder = path / ADAPTER_BASE if is_adapter(path) else path
    config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False, **shaped, **head)
    auto: Any = getattr(transformers, task.auto_class)
    if type(config) not in auto._model_mapping:
        found = f"{task.auto_class} cannot load it ({config.model_type} has no such head)"
        raise UsageError(Mistake(f"model {str(path)!r}", found, "a model that this task can use"))
    return auto.from_config(config)


def _refuse_both(path: Path, peft: Peft | None, freeze: Iterable[str]) -> None:
    if peft is not None and freeze:
        found = "both given: under peft everything but the adapter and the head is frozen already"
        raise UsageError(Mistake("freeze, peft", found, "one of them", "take one out"))
    if peft is not None and is_adapter(path):
        found = "it was trained by a prompt method and carries that adapter"
        raise UsageError(Mistake(f"model {str(path)!r}", found, "a plain model", f"name {path / ADAPTER_BASE}"))


def load_tokenizer(path: Path | str, task: Task, peft: Peft | None = None) -> Any:
    """The folder's tokenizer, with a padding token; words of a word list are spaced as in running text.

    Its `model_max_length` leaves room for the virtual tokens of a prompt method, and is saved so with the model.
    """
    from transformers import AutoTokenizer

    if not any(found for pattern in _VOCABULARIES for found in Path(path).glob(pattern)):
        # transformers would make an empty vocabulary of its own, which knows no word
        found = "its tokenizer cannot be loaded (no vocabulary in the folder)"
        mend = "save the tokenizer into the model's folder, too"
        raise UsageError(Mistake(f"model {str(path)!r}", found, "a transformers tokenizer", mend))
    try:
        with quiet():
            tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
    except (OSError, ValueError, KeyError, ImportError) as error:
        found = f"its tokenizer cannot be loaded ({_first_line(error)})"
        raise UsageError(Mistake(f"model {str(path)!r}", found, "a transformers tokenizer")) from error
    if task.auto_class == "AutoModelForTokenClassification":
        _space_words(tokenizer)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    if peft is not None and peft.reserved:
        tokenizer.model_max_length = _room(read_config(Path(path)), tokenizer.model_max_length, peft.reserved)
    return tokenizer


def _room(config: Mapping[str, Any], longest: int, reserved: int) -> int:
    """Tokens of a text that fit behind a prompt's.

    Args:
        longest: the tokenizer's limit, which is less than the model's where some positions serve another purpose.
    """
    positions = positions_of(config)
    if positions is None:
        return longest
    room = min(longest, positions) - reserved
    if room < SHORTEST:
        found = f"{reserved}, which leave {max(room, 0)} of the model's {room + reserved} positions to a text"
        mend = f"set `num_virtual_tokens: {max(room + reserved - SHORTEST, 1)}` or less"
        raise UsageError(Mistake("peft.num_virtual_tokens", found, f"room for {SHORTEST} tokens or more", mend))
    return room


def _load_plain(
    folder: Path, task: Task, dtype: torch.dtype | str | None, shaped: Mapping[str, Any]
) -> tuple[Any, set[str]]:
    """A model without adapters, and the names of the parameters that the checkpoint did not give."""
    import transformers

    adopt_labels(folder, task)
    head = task.head() if wanted_labels(task) or not task.has_head else {}  # no labels known: the checkpoint's
    auto = getattr(transformers, task.auto_class)
    try:
        with quiet():
            model, report = auto.from_pretrained(
                folder,
                dtype=dtype or "float32",
                ignore_mismatched_sizes=True,
                output_loading_info=True,
                trust_remote_code=False,
                **shaped,
                **head,
            )
    except (OSError, ValueError, KeyError, RuntimeError, ImportError) as error:
        found = f"{task.auto_class} cannot load it ({_first_line(error)})"
        raise UsageError(Mistake(f"model {str(folder)!r}", found, "a model that this task can use")) from error
    fresh = {*report["missing_keys"], *(key[0] for key in report["mismatched_keys"])}
    body = {name for name in fresh if _in_body(model, name)}
    if any(key[0] in body for key in report["mismatched_keys"]):
        if shaped:
            raise UsageError(_misshapen(body))
        found = f"weights of other shapes than its config says: {', '.join(sorted(body))}"
        raise UsageError(Mistake(f"model {str(folder)!r}", found, "a whole model", "copy it again"))
    if task.has_head and not has_trained_head(read_config(folder), read_shapes(folder), task):
        fresh |= _draw_head(model, fresh)
    return model, fresh


def _in_body(model: Any, name: str) -> bool:
    prefix = model.base_model_prefix
    return model.base_model is not model and name.startswith(f"{prefix}.")


def _draw_head(model: Any, fresh: set[str]) -> set[str]:
    """Draw anew what of the head the checkpoint gave although it was trained for something else; the names of it."""
    drawn = set()
    labels = getattr(model, "num_labels", None)  # language-model heads have none
    for path, module in model.named_modules():
        own = {f"{path}.{n}" if path else n: p for n, p in module.named_parameters(recurse=False)}
        stale = {n: p for n, p in own.items() if not _in_body(model, n) and n not in fresh}
        if model.base_model is model or not stale or not any(len(p) == labels for p in own.values()):
            continue
        for parameter in own.values():
            parameter._is_hf_initialized = False  # transformers leaves alone what came from a checkpoint
        model._init_weights(module)
        drawn |= set(stale)
    return drawn


def _agree_on_padding(model: Any, tokenizer: Any) -> None:
    """Heads on decoders look for the last token that is not padding, and fail without knowing it."""
    if model.config.pad_token_id is None:
        model.config.pad_token_id = tokenizer.pad_token_id
    generation = getattr(model, "generation_config", None)
    if generation is not None and generation.pad_token_id is None:
        generation.pad_token_id = tokenizer.pad_token_id


def _space_words(tokenizer: Any) -> None:
    """Byte-level tokenizers write a word's first piece with its space: give every word of a list one."""
    from tokenizers import Tokenizer

    backend = getattr(tokenizer, "_tokenizer", None)
    state = json.loads(backend.to_str()) if backend is not None else {}
    pre = state.get("pre_tokenizer") or {}
    levels = [p for p in (pre, *pre.get("pretokenizers", ())) if p.get("type") == "ByteLevel"]
    if not levels or any(level["add_prefix_space"] for level in levels):
        return
    for level in levels:
        level["add_prefix_space"] = True
    post = state.get("post_processor") or {}
    if "add_prefix_space" in post:
        post["add_prefix_space"] = True
    tokenizer._tokenizer = Tokenizer.from_str(json.dumps(state))
    tokenizer.add_prefix_space = True
    tokenizer.init_kwargs["add_prefix_space"] = True


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).strip() or 'no message').splitlines()[0]}"
