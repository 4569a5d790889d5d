"""`alignkit fuse`: make one model of several."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from alignkit.cli.parts import component
from alignkit.errors import Mistake, UsageError

if TYPE_CHECKING:
    from alignkit.components import Fusion


def command(
    models: Annotated[list[str], typer.Argument(help="Runs or model folders.", metavar="MODEL")],
    method: Annotated[str, typer.Option(help="A fusion: `alignkit plugins` lists them.")],
    output: Annotated[Path, typer.Option(help="The new model's folder.")],
    base: Annotated[str | None, typer.Option(help="The model that the others were fine-tuned from.")] = None,
    weights: Annotated[str | None, typer.Option(help="One number per model: 1,0.5,0.2")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", metavar="K=V", help="A field of the method.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the model in the folder.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, and nothing else.")] = False,
) -> None:
    """Merge models, one tensor at a time; the result loads with from_pretrained()."""
    from alignkit.fusion import fuse_folders

    chosen = fusion(method, set_ or [])
    if len(models) < 2:
        raise UsageError(Mistake("alignkit fuse", f"{len(models)} model", "at least two"))
    if chosen.needs_validation:
        mend = "name the members in a recipe's `fusion:`, whose validation split it can look at"
        raise UsageError(Mistake(f"--method {method}", "it chooses by scores on a validation split", "a recipe", mend))
    if output.is_dir() and any(output.iterdir()) and not overwrite:
        found = "there is a model in it already" if (output / "config.json").is_file() else "it is not empty"
        raise UsageError(Mistake(f"--output {output}", found, "a new folder", "name another, or say --overwrite"))
    folder = fuse_folders(chosen, models, output=output, weights=_numbers(weights, len(models)), base=base)
    if as_json:
        print(json.dumps({"model": str(folder), "method": method, "members": models}, indent=2, ensure_ascii=False))
    else:
        print(f"{folder}: {method} of {len(models)} models")


def fusion(method: str, overrides: list[str]) -> Fusion:
    """The method that a command line names, with its fields."""
    found: Fusion = component("fusion", method, f"--method {method}", overrides)
    return found


def _numbers(weights: str | None, wanted: int) -> list[float] | None:
    if weights is None:
        return None
    try:
        numbers = [float(w) for w in weights.replace(",", " ").split()]
    except ValueError as error:
        raise UsageError(Mistake(f"--weights {weights}", str(error), "numbers: 1,0.5,0.2")) from error
    if len(numbers) != wanted:
        raise UsageError(Mistake(f"--weights {weights}", f"{len(numbers)} numbers", f"{wanted}, one per model"))
    return numbers
