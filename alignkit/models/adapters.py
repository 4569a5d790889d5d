"""Training few parameters instead of all: LoRA and prompt methods, by peft."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, field_validator, model_validator

from alignkit.errors import Mistake, UsageError, nearest
from alignkit.sections import note

if TYPE_CHECKING:
    from alignkit.components import Task

Method = Literal["lora", "prompt-tuning", "prefix-tuning", "p-tuning"]

_LORA_ONLY = ("r", "alpha", "dropout", "target_modules")


class Peft(BaseModel):
    """The `peft:` section of a recipe.

    The head of a classification task is trained in full beside the adapter. Switching the adapter off therefore brings
    back the head that was loaded, too: fresh if it was fresh.

    Example:
        >>> Peft(method="lora", r=8).alpha
        32
    """

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True, frozen=True)

    method: Method = "lora"
    """`lora`; or a prompt of virtual tokens: `prompt-tuning`, `p-tuning` (put before the text), `prefix-tuning` (put
    before every layer's keys and values)."""
    r: PositiveInt = 16
    """LoRA: the rank of an update."""
    alpha: PositiveInt = 32
    """LoRA: updates are scaled by alpha / r."""
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    """LoRA: dropout on the input of an update."""
    target_modules: Annotated[list[str], Field(min_length=1)] | Literal["all-linear"] = "all-linear"
    """LoRA: the modules to adapt, by the end of their names; by default every linear layer below the head."""
    num_virtual_tokens: PositiveInt = 20
    """Prompt methods: the length of the prompt. It takes so many of the model's positions from the text."""
    modules_to_save: list[str] = []
    """LoRA: more modules to train in full, by the end of their names."""

    @model_validator(mode="after")
    def _options_of_the_method(self) -> Peft:
        others = ("num_virtual_tokens",) if self.method == "lora" else (*_LORA_ONLY, "modules_to_save")
        wrong = sorted(set(others) & self.model_fields_set)
        if wrong:
            raise ValueError(f"{', '.join(wrong)}: not an option of {self.method}; take it out")
        return self

    _note = field_validator("*")(note)

    @property
    def virtual_tokens(self) -> int:
        """Positions that the method puts before the text in the model's outputs."""
        return self.num_virtual_tokens if self.method in ("prompt-tuning", "p-tuning") else 0

    @property
    def reserved(self) -> int:
        """Positions of the model that the method takes, so that texts have to do with the others."""
        return 0 if self.method == "lora" else self.num_virtual_tokens


def adapted(model: Any, task: Task, peft: Peft, fresh: Iterable[str] = ()) -> Any:
    """The model with an adapter, as a `peft.PeftModel`; the model itself is changed in place.

    Args:
        model: a transformers model.
        task: names the kind of head, and whether it is the task's own.
        peft: the method and its options.
        fresh: parameters that no checkpoint gave; the modules that hold them are trained in full.

    Raises:
        UsageError: the method cannot serve the task or the model, or names modules that are not there.
    """
    from peft import LoraConfig, PrefixTuningConfig, PromptEncoderConfig, PromptTuningConfig, get_peft_model

    where = f"peft.method {peft.method}"
    task_type = task.peft_type or None
    if peft.method == "lora":
        named = _named(model, peft)
        trained = sorted({*_heads(model, task), *(n.rpartition(".")[0] for n in fresh), *peft.modules_to_save} - {""})
        config: Any = LoraConfig(
            task_type=task_type,
            r=peft.r,
            lora_alpha=peft.alpha,
            lora_dropout=peft.dropout,
            target_modules=named or _linear_layers(model, trained),
            modules_to_save=trained or None,
        )
    else:
        if task_type is None:
            raise UsageError(Mistake(where, "the task does not say what kind of head it has", "", "use lora"))
        if task_type == "SEQ_CLS" and peft.virtual_tokens and _is_decoder(model):
            found = "a decoder's classifier reads the last token, which it cannot find behind virtual tokens"
            raise UsageError(Mistake(where, found, "", "use prefix-tuning or lora"))
        kinds = {
            "prompt-tuning": PromptTuningConfig,
            "prefix-tuning": PrefixTuningConfig,
            "p-tuning": PromptEncoderConfig,
        }
        config = kinds[peft.method](task_type=task_type, num_virtual_tokens=peft.num_virtual_tokens)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # peft reads what transformers has renamed
            return with_padded_labels(get_peft_model(model, config))
    except (ValueError, TypeError) as error:
        raise UsageError(Mistake(where, f"peft cannot apply it to this model ({error})")) from error


def virtual_tokens(model: Any) -> int:
    """Positions that a prompt puts before the text in a model's outputs; an encoder's lengthens no decoder's."""
    config: Any = getattr(model, "active_peft_config", None)
    if not getattr(config, "is_prompt_learning", False) or model.get_base_model().config.is_encoder_decoder:
        return 0
    return int(config.num_virtual_tokens)


def cropped(outputs: Any, tokens: int, virtual: int) -> Any:
    """A model's outputs without those at the virtual tokens before the text.

    Args:
        tokens: length of the text, T.
        virtual: as `virtual_tokens` counts them; logits that are no longer than T are left alone.
    """
    for name, dimensions in (("logits", 3), ("start_logits", 2), ("end_logits", 2)) if virtual else ():
        logits = getattr(outputs, name, None)
        if logits is not None and logits.dim() == dimensions and logits.shape[1] > tokens:
            outputs[name] = logits[:, logits.shape[1] - tokens :]
    return outputs


def with_padded_labels(model: Any) -> Any:
    """A `PeftModel` whose token labels are lengthened where virtual tokens lengthen the text.

    peft itself does so for language models only.
    """
    config = model.active_peft_config
    if config.is_prompt_learning and config.task_type in ("TOKEN_CLS", "FEATURE_EXTRACTION"):  # the latter: masked LMs
        model.get_base_model().register_forward_pre_hook(_pad_labels, with_kwargs=True)
    return model


def _pad_labels(_model: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    from torch.nn.functional import pad

    labels, embeds = kwargs.get("labels"), kwargs.get("inputs_embeds")
    if labels is None or embeds is None or labels.shape[1] == embeds.shape[1]:
        return args, kwargs
    return args, {**kwargs, "labels": pad(labels, (embeds.shape[1] - labels.shape[1], 0), value=-100)}


def _heads(model: Any, task: Task) -> list[str]:
    """The modules that the task put on the model."""
    if not task.has_head:
        return []
    body = model.base_model
    return [n for n, child in model.named_children() if child is not body and any(True for _ in child.parameters())]


def _named(model: Any, peft: Peft) -> list[str]:
    """The modules that are asked for by name; none where every linear layer is."""
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    if peft.target_modules == "all-linear":
        return []
    modules = dict(model.named_modules())
    missing = [t for t in peft.target_modules if not any(f".{name}".endswith(f".{t}") for name in modules)]
    if missing:
        linear = {name.rpartition(".")[2] for name, m in modules.items() if isinstance(m, nn.Linear | Conv1D)}
        raise UsageError(*(Mistake("peft.target_modules", f"no module {t!r}", "", nearest(t, linear)) for t in missing))
    return list(peft.target_modules)


def _linear_layers(model: Any, trained: list[str]) -> list[str]:
    """Names of every linear layer of the body that is not trained anyway.

    peft's own `all-linear` takes the classifier of a token-classification model for a layer of the body.
    """
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    head = model.get_output_embeddings()
    body = {id(m) for m in model.base_model.modules() if isinstance(m, nn.Linear | Conv1D) and m is not head}
    return [
        name
        for name, module in model.named_modules()
        if id(module) in body and not any(f".{t}." in f".{name}." for t in trained)
    ]


def _is_decoder(model: Any) -> bool:
    from transformers import AutoModelForCausalLM, AutoModelForMaskedLM

    kind = type(model.config)
    causal, masked = AutoModelForCausalLM._model_mapping, AutoModelForMaskedLM._model_mapping
    return kind in causal and kind not in masked and not model.config.is_encoder_decoder
