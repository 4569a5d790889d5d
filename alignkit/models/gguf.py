"""`.gguf` files: unpacked once into a transformers folder, which is what every later run loads."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from pathlib import Path
from typing import Any

from alignkit.errors import Mistake, UsageError
from alignkit.findings import Unsettled
from alignkit.models.location import cache_folder

_SAMPLE = 1 << 20


def converted(file: Path, make: bool = True) -> Path:
    """The folder with the file's model in float32 and its tokenizer, made at the first call.

    The cache is keyed by the file's size, its first MiB (all of its metadata's beginning) and its last.

    Args:
        make: where the folder is not there yet, make it; `Unsettled` otherwise.

    Raises:
        UsageError: not a gguf file, an architecture that transformers cannot unpack, a missing package.
    """
    folder = cache_folder() / "gguf" / f"{file.stem}-{_fingerprint(file)}"
    if folder.is_dir():
        return folder
    _demand_gguf(file)
    if not make:
        raise Unsettled
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(
            Mistake(
                f"cache {folder.parent}", str(error), "a folder to write to", "set ALIGNKIT_CACHE to another folder"
            )
        ) from None
    part = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        _convert(file, part)
        part.chmod(0o755)  # mkdtemp's folders are for their maker only
        part.rename(folder)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        if not folder.is_dir():  # another process may have been first: its folder is the same
            raise
    return folder


def _fingerprint(file: Path) -> str:
    digest = hashlib.blake2b(digest_size=8)
    size = file.stat().st_size
    digest.update(str(size).encode())
    with file.open("rb") as stream:
        digest.update(stream.read(_SAMPLE))
        stream.seek(max(size - _SAMPLE, 0))
        digest.update(stream.read())
    return digest.hexdigest()


def _demand_gguf(file: Path) -> None:
    from importlib.util import find_spec

    where = f"model {str(file)!r}"
    with file.open("rb") as stream:
        magic = stream.read(4)
    if magic != b"GGUF":
        raise UsageError(Mistake(where, f"it begins with {magic!r}", "b'GGUF'", "is it a gguf file?"))
    missing = [name for name in ("gguf", "accelerate") if find_spec(name) is None]
    if missing:
        raise UsageError(Mistake(where, f"not installed: {', '.join(missing)}", "", f"pip install {' '.join(missing)}"))


def _convert(file: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from alignkit.models.saving import quiet

    try:
        with quiet():
            tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
            model: Any = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    except (ValueError, KeyError, OSError, RuntimeError, NotImplementedError, IndexError) as error:
        found = f"it cannot be unpacked ({type(error).__name__}: {error})"
        mend = "copy the file again, or name the transformers model that it was made from"
        raise UsageError(
            Mistake(f"model {str(file)!r}", found, "a whole gguf file that transformers knows", mend)
        ) from error
    model.hf_quantizer = None  # the weights are unpacked: saving must not ask the quantizer, nor loading look for it
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    with quiet():
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
