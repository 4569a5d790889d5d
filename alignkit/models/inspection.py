"""What a model is, told from its config and the header of its weights: nothing is loaded, torch is not imported."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from alignkit.errors import Mistake, UsageError
from alignkit.models.location import ADAPTER_BASE, is_adapter, weight_files

if TYPE_CHECKING:
    from alignkit.components import Task

_BODY = {"embeddings", "layer", "layers", "block", "h", "pooler"}
"""Components of names that no head's weights have."""


@dataclass(frozen=True)
class ModelFacts:
    """What is known of a model before its weights are loaded."""

    model_type: str
    """`bert`, `llama` …"""
    architecture: str
    """The class that wrote the checkpoint: `BertForTokenClassification` …"""
    fresh_head: bool
    """The task puts a head on the model that the checkpoint does not hold, or holds for other labels."""
    is_encoder_decoder: bool
    is_decoder: bool
    """Reads from left to right only."""
    parameters: int
    """How many numbers the checkpoint holds."""
    hidden_size: int
    labels: tuple[str, ...]
    """The labels that the checkpoint's head was trained on, in the order of its rows."""
    dropout: bool | None
    """Its config gives a dropout probability above 0; None: it gives none at all."""


def facts(path: Path | str, task: Task) -> ModelFacts:
    """What the model in a folder (as `resolve` gives it) is, and whether it has the head that the task needs.

    Raises:
        UsageError: the folder cannot be read as a model.
    """
    config = read_config(Path(path))
    shapes = read_shapes(Path(path))
    task.take_model(config)
    architecture = next(iter(config.get("architectures") or []), "")
    return ModelFacts(
        model_type=config.get("model_type", ""),
        architecture=architecture,
        fresh_head=task.has_head and not has_trained_head(config, shapes, task),
        is_encoder_decoder=bool(config.get("is_encoder_decoder", False)),
        is_decoder=_is_decoder(config, architecture),
        parameters=sum(math.prod(shape) for shape in shapes.values()),
        hidden_size=int(next((config[k] for k in ("hidden_size", "d_model", "n_embd", "dim") if k in config), 0)),
        labels=labels_of(config),
        dropout=_has_dropout(config),
    )


def read_config(folder: Path) -> dict[str, Any]:
    """A model folder's config.json."""
    file = (folder / ADAPTER_BASE if is_adapter(folder) else folder) / "config.json"
    try:
        config = json.loads(file.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UsageError(Mistake(str(file), str(error), "a transformers config")) from None
    if not isinstance(config, dict):
        raise UsageError(Mistake(str(file), type(config).__name__, "a JSON object"))
    return config


def read_shapes(folder: Path) -> dict[str, Sequence[int]]:
    """The shape of every tensor in a folder's weights, by name, from the headers of its files."""
    from safetensors import SafetensorError, safe_open

    shapes: dict[str, Sequence[int]] = {}
    try:
        for file in weight_files(folder):
            with safe_open(file, framework="np") as weights:
                shapes |= {name: weights.get_slice(name).get_shape() for name in weights.keys()}  # noqa: SIM118  # no mapping
    except (SafetensorError, OSError) as error:
        raise UsageError(Mistake(str(folder), f"its weights cannot be read ({error})", "safetensors")) from None
    return shapes


def positions_of(config: Mapping[str, Any]) -> int | None:
    """How many tokens a config's model was made for; None: it does not say, or positions are relative (T5)."""
    named = ("max_position_embeddings", *(() if config.get("is_encoder_decoder") else ("n_positions",)))
    return next((int(config[name]) for name in named if config.get(name)), None)


def labels_of(config: dict[str, Any]) -> tuple[str, ...]:
    """A config's labels in the order of the head's rows; none where it names none."""
    labels = config.get("id2label") or {}
    return tuple(str(labels[key]) for key in sorted(labels, key=int))


def wanted_labels(task: Task) -> tuple[str, ...]:
    """The labels that the task's head is to have; none where it has none, or does not know them yet."""
    return labels_of(task.head())


def has_trained_head(config: dict[str, Any], shapes: dict[str, Sequence[int]], task: Task) -> bool:
    """The checkpoint holds the task's kind of head, trained on labels that the task has or would adopt.

    A task that does not know its labels yet is given the benefit of the doubt.
    """
    would = copy.copy(task)
    _adopt(config, shapes, would)
    return _holds_head(config, shapes, task) and wanted_labels(would) in ((), labels_of(config))


def adopt_labels(path: Path | str, task: Task) -> None:
    """Let the task take its labels from the head in the checkpoint, so that trained rows keep their meaning.

    Whether they suit its data is the task's to say. `load` does this; before it, labels may be in another order.
    """
    _adopt(read_config(Path(path)), read_shapes(Path(path)), task)


def _adopt(config: dict[str, Any], shapes: dict[str, Sequence[int]], task: Task) -> None:
    found = labels_of(config)
    if found and found != wanted_labels(task) and _holds_head(config, shapes, task):
        names = dict(enumerate(found))
        numbers = {name: i for i, name in names.items()}
        task.adopt(SimpleNamespace(**config | {"id2label": names, "label2id": numbers, "num_labels": len(names)}))


def _holds_head(config: dict[str, Any], shapes: dict[str, Sequence[int]], task: Task) -> bool:
    """The class that the task loads wrote the checkpoint, and the weights do hold a row for every label it names."""
    suffix = task.auto_class.removeprefix("AutoModel")
    if not any(name.endswith(suffix) for name in config.get("architectures") or []):
        return False
    rows = {shape[0] for name, shape in shapes.items() if len(shape) == 2 and not _BODY & set(name.split("."))}
    return not labels_of(config) or len(labels_of(config)) in rows


def is_causal(config: Mapping[str, Any]) -> bool:
    """transformers knows the model as a language model that reads from left to right, and as none that fills gaps."""
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    )

    kind = config.get("model_type")
    known = kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    return known and (bool(config.get("is_decoder")) or kind not in MODEL_FOR_MASKED_LM_MAPPING_NAMES)


def _has_dropout(config: Mapping[str, Any]) -> bool | None:
    """`hidden_dropout_prob`, `resid_pdrop`, `dropout_rate` …: any above 0."""
    found = [v for name, v in config.items() if "drop" in name and isinstance(v, int | float)]
    return any(value > 0 for value in found) if found else None


def _is_decoder(config: dict[str, Any], architecture: str) -> bool:
    """Decoders say so, or have what only they have: a cache of keys and values that is on by default."""
    if config.get("is_encoder_decoder"):
        return False
    if config.get("is_decoder") or architecture.endswith(("ForCausalLM", "LMHeadModel")):
        return True
    encoder = "type_vocab_size" in config or "position_embedding_type" in config
    return bool(config.get("use_cache")) and not encoder
