"""What a reference model says of rows, kept on disk: computed once, however many epochs and runs look at it.

An entry is keyed by what the model reads (the row's token ids and which of them are scored), in a folder that is keyed
by the model (its weights, its kind and the precision). Ids hold what the tokenizer, its chat template and truncation
made of a row, so that whatever of those changes makes other entries.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from alignkit.tasks.padding import attended
from alignkit.tasks.stock import scored_per_row

if TYPE_CHECKING:
    from alignkit.components import Batch

logger = logging.getLogger(__name__)

FLUSH = 2**26
"""Bytes of new entries that are kept in memory before they are written."""
_KEY = 16
_ELSEWHERE = ("_name_or_path", "transformers_version", "dtype", "torch_dtype")
"""What a config says that the model's outputs do not depend on, or that the weights say themselves."""


class RowCache:
    """One tensor per row of data, a value or a vector per scored token, on disk; what is read is read when asked for.

    Args:
        folder: where it is kept; made when something is written. Several processes may share it.
        dtype: what values are stored and given back in.
    """

    def __init__(self, folder: Path, dtype: torch.dtype = torch.float32):
        self.folder, self.dtype = folder, dtype
        self._places: dict[bytes, tuple[Any, int, int]] = {}
        self._new: dict[bytes, Tensor] = {}
        self._bytes = 0
        self._writes = True
        for file in sorted(folder.glob("*.safetensors")):
            try:
                self._open(file)
            except (SafetensorError, OSError, ValueError) as error:
                logger.warning("%s cannot be read and is passed over: %s", file, error)

    def __len__(self) -> int:
        return len(self._places) + len(self._new)

    def get(self, batch: Batch) -> Tensor | None:
        """[N, ...] for the batch's scored labels, row by row, on its device; None where a row is not there."""
        keys = row_keys(batch)
        if not all(key in self._new or key in self._places for key in keys):
            return None
        return torch.cat([self._row(key) for key in keys]).to(batch["input_ids"].device)

    def put(self, batch: Batch, values: Tensor) -> Tensor:
        """Keep [N, ...] values; gives them as `get` will."""
        sizes = scored_per_row(batch, len(values))
        stored = values.detach().to(self.dtype)
        for key, part in zip(row_keys(batch), stored.cpu().split(sizes), strict=True):
            if key not in self._new and key not in self._places:
                self._new[key] = part.clone()
                self._bytes += part.numel() * part.element_size()
        if self._bytes >= FLUSH:
            self.flush()
        return stored

    def flush(self) -> None:
        """Write what is new, as a file of its own. Where that cannot be done, say so once and go on without."""
        if not self._new or not self._writes:
            return
        try:
            self._write()
        except (SafetensorError, OSError) as error:
            self._writes = False
            logger.warning("what the reference says of rows is not kept: %s: %s", self.folder, error)

    def _write(self) -> None:
        from safetensors.torch import save_file

        self.folder.mkdir(parents=True, exist_ok=True)
        keys = torch.frombuffer(bytearray(b"".join(self._new)), dtype=torch.uint8).view(-1, _KEY)
        sizes = torch.tensor([len(values) for values in self._new.values()])
        target = self.folder / f"{uuid.uuid4().hex}.safetensors"
        temporary = target.with_suffix(".tmp")
        save_file({"keys": keys, "sizes": sizes, "values": torch.cat(list(self._new.values()))}, temporary)
        os.replace(temporary, target)
        self._new, self._bytes = {}, 0
        self._open(target)

    def _open(self, file: Path) -> None:
        from safetensors import safe_open

        opened = safe_open(file, framework="pt")
        values, start, found = opened.get_slice("values"), 0, {}
        for key, size in zip(opened.get_tensor("keys"), opened.get_tensor("sizes").tolist(), strict=True):
            found[key.numpy().tobytes()] = (values, start, start + size)
            start += size
        self._places |= found

    def _row(self, key: bytes) -> Tensor:
        if key in self._new:
            return self._new[key]
        values, start, end = self._places[key]
        found: Tensor = values[start:end]
        return found


class ReferenceCache:
    """What one frozen model says of rows.

    Args:
        folder: holds a folder per model.
        model: the reference, in the state in which it is asked; its weights are read once, for the key.
        precision: what it is run in: `fp32`, `bf16` …
        hidden: keep hidden states, too.

    Cost: reading the weights (about a second per GB); on disk four bytes per scored token, and for hidden states two
    bytes per token and dimension.
    """

    def __init__(self, folder: Path, model: nn.Module, precision: str = "fp32", hidden: bool = False):
        own = Path(folder) / "references" / fingerprint(model, precision)
        self.labels = RowCache(own / "labels")
        """[N]: log-probabilities of the labels, as they were computed."""
        self.hidden = RowCache(own / "hidden", torch.float16) if hidden else None
        """[N, D]: hidden states that predict the labels, rounded to half precision."""

    def flush(self) -> None:
        """Write what is new."""
        self.labels.flush()
        if self.hidden is not None:
            self.hidden.flush()


def serves(batch: Batch) -> bool:
    """The batch's labels stand beside its token ids, so that a row's are found by what the model reads."""
    labels = batch.get("labels")
    return labels is not None and labels.numel() == batch["input_ids"].numel() and not labels.is_floating_point()


def row_keys(batch: Batch) -> list[bytes]:
    """A digest per row of the ids that are attended to, their labels, and what else stands beside them.

    Padding has no part in it, so that a row's key does not depend on what it shares a batch with.
    """
    rows = len(batch["labels"])
    real = attended(batch).reshape(rows, -1).cpu()
    beside = [name for name in sorted(batch) if name not in ("attention_mask", "predicted_from")]
    tensors = [batch[name].reshape(rows, -1).cpu() for name in beside if batch[name].numel() == real.numel()]
    keys = []
    for row in range(rows):
        digest = hashlib.blake2b(str(batch["input_ids"].dim()).encode(), digest_size=_KEY)
        for values in tensors:
            digest.update(values[row, real[row]].contiguous().numpy().tobytes())
        keys.append(digest.digest())
    return keys


def fingerprint(model: nn.Module, precision: str) -> str:
    """A digest of a model's weights without its adapter, of its config and the precision."""
    from alignkit.lm_head import unwrapped

    base = unwrapped(model)
    config = {name: value for name, value in base.config.to_dict().items() if name not in _ELSEWHERE}
    said = json.dumps(config, sort_keys=True, default=str)
    digest = hashlib.blake2b(f"{type(base).__name__} {precision} {said}".encode(), digest_size=12)
    for name, values in sorted(base.state_dict().items()):
        if "lora_" not in name and "modules_to_save" not in name:
            digest.update(f"{name} {tuple(values.shape)} {values.dtype}".encode())
            digest.update(values.cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()
