"""Writes docs/commands.md from the commands' own help, and docs/components.md from the catalogue.

python docs/generate.py            # after a change to a command or a first-party component
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

from alignkit.catalogue import Catalogue, Entry, default_catalogue
from alignkit.cli import COMMANDS, application
from alignkit.cli.plugins import explained
from alignkit.components import BASES

FOLDER = Path(__file__).parent
WIDTH = 100
OURS = "alignkit"
"""Components of distributions whose names begin so are documented here; strangers' plugins have pages of their own."""

COMMANDS_HEAD = """# Commands

<!-- Written by docs/generate.py from the commands' own help. Do not edit. -->

`alignkit COMMAND --help` says the same. What a command ends with is in [run-folder.md](run-folder.md#exit-codes).

`--debug` goes with every command: it shows the traceback of a failure.
"""

COMPONENTS_HEAD = """# Components

<!-- Written by docs/generate.py from the catalogue. Do not edit. -->

Every component that alignkit and its first-party plugins register. `alignkit plugins NAME` prints the same for any
installed plugin. How to write them into a recipe: [recipes.md](recipes.md). What the hook points mean:
[hook-points.md](hook-points.md).

Costs are what a component declares: `passes` are the losses trained on per step; extra forward and backward passes are
shares of a full one. The plan adds them up; the report of a run shows what was measured.
"""


# -- commands ----------------------------------------------------------------------------------------------------


def commands() -> str:
    """docs/commands.md: the help of every command."""
    return "\n".join([COMMANDS_HEAD, *(f"## {name}\n\n```text\n{_help(name)}\n```\n" for name in COMMANDS)])


def _help(name: str) -> str:
    command: Any = typer.main.get_command(application(name))
    chosen = command.commands[name]
    context = chosen.make_context(f"alignkit {name}", [], resilient_parsing=True, terminal_width=WIDTH)
    return "\n".join(line.rstrip() for line in chosen.get_help(context).strip().splitlines())


# -- components --------------------------------------------------------------------------------------------------


def components() -> str:
    """docs/components.md: every first-party component by kind."""
    catalogue = default_catalogue()
    parts = [COMPONENTS_HEAD]
    for kind, entries in catalogue.entries().items():
        own = [entry for entry in entries.values() if entry.distribution.startswith(OURS)]
        if own:
            first = inspect.cleandoc(BASES[kind].__doc__ or "").split("\n\n")[0].replace("\n", " ")
            parts.append(f"## Kind: {kind}\n\n{first}\n")
            parts += [_card(entry, catalogue) for entry in own]
    return "\n".join(parts)


def _card(entry: Entry, catalogue: Catalogue) -> str:
    about = explained(entry, catalogue)
    lines = [f"### {entry.name}", "", entry.summary, ""]
    lines += [f"Reference: {entry.reference}", ""] if entry.reference else []
    lines += list(_fields(about["fields"])) or ["No fields.", ""]
    said = [f"`{entry.distribution}`", f"hook points: {', '.join(f'`{p}`' for p in about['hook_points']) or 'none'}"]
    lines.append(" · ".join([*said, f"cost: {_cost(about['costs'])}"]))
    lines += ["", "Its result depends on which rows share a batch."] if about["couples_rows"] else []
    return "\n".join([*lines, ""])


def _fields(fields: dict[str, dict[str, Any]]) -> Iterator[str]:
    if not fields:
        return
    yield "| field | type | default | meaning |"
    yield "|---|---|---|---|"
    for name, info in fields.items():
        default = "required" if info["required"] else f"`{info['default']}`"
        cells = (f"`{name}`", f"`{info['type']}`", default, info["description"])
        yield f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"
    yield ""


def _cost(costs: dict[str, Any]) -> str:
    said = [f"{costs['passes']} passes per step"] if costs["passes"] != 1 else []
    said += [f"{costs['forwards']:g} extra forward passes per step"] if costs["forwards"] else []
    said += [f"{costs['backwards']:g} extra forward and backward passes per loss"] if costs["backwards"] else []
    said += ["the reference model's outputs, once per step at most"] if costs["reference"] else []
    return ", ".join(said) or "no extra pass"


PAGES = {"commands.md": commands, "components.md": components}
"""File name -> what writes it."""


def main() -> None:
    for name, text in PAGES.items():
        unfinished = FOLDER / f"{name}.tmp"
        unfinished.write_text(text(), encoding="utf-8")
        os.replace(unfinished, FOLDER / name)


if __name__ == "__main__":
    main()
