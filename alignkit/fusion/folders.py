"""Fusing model folders into one: the answer of a component, checked and written shard by shard."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor
from tqdm import tqdm

from alignkit.errors import Mistake, PluginError, UsageError
from alignkit.fusion.agreement import incompatibilities, independent_heads, mismatches
from alignkit.fusion.members import SafetensorsMember, open_members
from alignkit.models.location import resolve
from alignkit.models.saving import replacing

if TYPE_CHECKING:
    from alignkit.components import Fusion, Score

SHARD_BYTES = 256 * 2**20
"""Tensors are gathered up to this size before they are written; a larger tensor is a shard of its own."""

COPIED = (
    "config.json",
    "generation_config.json",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab*",
    "merges.txt",
    "*.model",
    "chat_template*",
)
"""What makes weights a model: its config and its tokenizer. Nothing else describes the result."""


def fuse_folders(
    component: Fusion,
    members: Sequence[Path | str],
    *,
    output: Path | str,
    weights: Sequence[float] | None = None,
    base: Path | str | None = None,
    score: Score | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> Path:
    """Fuse model folders into one that `from_pretrained` loads; memory stays at a shard and a few tensors.

    The config, the tokenizer and the types of the tensors are the first member's. The folder is written beside its
    place and then moved there.

    Args:
        component: implements `fuse`.
        members: folders of models or of runs.
        output: the new model's folder; another model there is replaced.
        weights: one per member, for `Member.weight`; 1.0 each by default.
        base: the model that the members were fine-tuned from, for methods that look at differences.
        score: evaluates a candidate on the validation split, for methods that choose.
        shard_bytes: size of a shard.

    Returns:
        The new folder.

    Raises:
        UsageError: members that cannot be fused (all reasons at once), or a folder that cannot be written.
        PluginError: the component gave a tensor that the model does not have, or not all that it has.
    """
    output = Path(output)
    if "fuse" not in component.hook_points:
        raise UsageError(Mistake(_of(component), "it combines outputs, not weights", "a fusion that implements fuse()"))
    opened = open_members(members, weights)
    if mistakes := [*incompatibilities(opened), *mismatches(opened), *_unusable(output, opened)]:
        raise UsageError(*mistakes)
    for head, other in independent_heads(opened):
        warnings.warn(
            f"{head} of {other.name} has nothing in common with {opened[0].name}'s: heads that were initialised "
            "independently cannot be averaged; train the members from one model that has a head",
            stacklevel=2,
        )
    origin = SafetensorsMember(resolve(str(base)), name=str(base)) if base is not None else None
    try:
        with replacing(output) as part:
            answer = component.fuse([*opened], origin, score)
            tensors = _checked(component, opened[0], answer)
            write_weights(part, tqdm(tensors, "fusing", len(opened[0].names), disable=None), shard_bytes)
            _copy_beside(opened[0].folder, part)
    except OSError as error:
        raise UsageError(Mistake(str(output), f"it cannot be written ({error})", "a folder to write to")) from error
    return output


def write_weights(folder: Path, tensors: Iterable[tuple[str, Tensor]], shard_bytes: int = SHARD_BYTES) -> None:
    """Write tensors as they come: `model.safetensors`, or shards and their index where one shard does not do."""
    from safetensors.torch import save_file

    shards: list[list[str]] = []
    pending: dict[str, Tensor] = {}
    size = total = 0

    def write() -> None:
        save_file(pending, folder / f"shard-{len(shards)}", metadata={"format": "pt"})
        shards.append(list(pending))
        pending.clear()

    for name, tensor in tensors:
        if pending and size + tensor.nbytes > shard_bytes:
            write()
            size = 0
        pending[name] = _own(tensor)
        size, total = size + tensor.nbytes, total + tensor.nbytes
    write()
    if len(shards) == 1:
        (folder / "shard-0").rename(folder / "model.safetensors")
        return
    weight_map: dict[str, str] = {}
    for number, names in enumerate(shards):
        file = f"model-{number + 1:05d}-of-{len(shards):05d}.safetensors"
        (folder / f"shard-{number}").rename(folder / file)
        weight_map |= dict.fromkeys(names, file)
    index = json.dumps({"metadata": {"total_size": total}, "weight_map": weight_map}, indent=2)
    (folder / "model.safetensors.index.json").write_text(index + "\n", encoding="utf-8")


def _own(tensor: Tensor) -> Tensor:
    """The tensor, contiguous and alone in its storage: safetensors refuses to write shared memory."""
    tensor = tensor.detach().cpu().contiguous()
    return tensor if tensor.untyped_storage().nbytes() == tensor.nbytes else tensor.clone()


def _unusable(output: Path, members: Sequence[SafetensorsMember]) -> Iterator[Mistake]:
    if any(output.resolve() == m.folder.resolve() or output.resolve() in m.folder.resolve().parents for m in members):
        yield Mistake(str(output), "it is, or holds, one of the members", "another folder")
    elif output.exists() and not output.is_dir():
        yield Mistake(str(output), "a file", "a new folder")
    elif output.is_dir() and any(output.iterdir()) and not (output / "config.json").is_file():
        yield Mistake(str(output), "a folder that holds something else than a model", "a new folder")


def _checked(
    component: Fusion, model: SafetensorsMember, tensors: Iterable[tuple[str, Tensor]]
) -> Iterator[tuple[str, Tensor]]:
    """What the component gives, each tensor held against the model that it is to become."""
    missing = dict.fromkeys(model.names)
    for name, tensor in tensors:
        if name not in missing:
            why = "twice" if name in model.names else f"but {model.name} has no such tensor"
            raise PluginError(f"{_of(component)} gave {name}, {why}")
        if tuple(tensor.shape) != model.shape(name):
            raise PluginError(f"{_of(component)} gave {name} as {list(tensor.shape)}, not {list(model.shape(name))}")
        if not tensor.isfinite().all() and model.tensor(name).isfinite().all():
            raise UsageError(Mistake(f"{_of(component)}: {name}", "not finite", "finite weights", "check the members"))
        del missing[name]
        yield name, tensor.to(model.tensor(name).dtype)
    if missing:
        raise PluginError(f"{_of(component)} left out {', '.join(list(missing)[:5])} ({len(missing)} tensors)")


def _copy_beside(folder: Path, output: Path) -> None:
    for file in folder.iterdir():
        if file.is_file() and any(file.match(pattern) for pattern in COPIED):
            shutil.copyfile(file, output / file.name)


def _of(component: Fusion) -> str:
    return f"{component.kind} {component.name}"
