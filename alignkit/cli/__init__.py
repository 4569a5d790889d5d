"""The command line. A command's module, and what it imports, is loaded only when the command runs."""

from __future__ import annotations

import logging
import os
import sys
import traceback
from collections.abc import Sequence
from importlib import import_module
from typing import Annotated

import typer

from alignkit import __version__
from alignkit.errors import AlignkitError

COMMANDS = {
    "demo": "The embedded recipe, end to end, with no network.",
    "train": "Carry out a recipe.",
    "check": "Validate a recipe and print its plan.",
    "tune": "Search a recipe's fields for the best values.",
    "plugins": "List what is installed, or explain one component.",
    "filter": "Filter a file as a recipe says.",
    "fuse": "Make one model of several.",
    "evaluate": "Evaluate a run or a model.",
    "attack": "Attack a run or a model: what breaks, what survives.",
    "predict": "Answers of a run or a model.",
}
"""Name -> what it does. Each is the function `command` of `alignkit.cli.NAME`."""


def main(arguments: Sequence[str] | None = None) -> None:
    """The console entry: run a command and exit with its code.

    0: done; 1: a run failed; 2: the user can mend it; 3: a gate said no; 130: interrupted.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in given
    logger = logging.getLogger("alignkit")
    level = logger.level
    if debug:
        logger.setLevel(logging.DEBUG)  # what transformers says is then shown, too
    chosen = next((argument for argument in given if not argument.startswith("-")), None)
    try:
        typer.main.get_command(application(chosen))([a for a in given if a != "--debug"], prog_name="alignkit")
    except (Exception, KeyboardInterrupt) as error:
        if debug:
            traceback.print_exc()
        code, message = ending(error)
        if message:
            print(message, file=sys.stderr)
        sys.exit(code)
    finally:
        logger.setLevel(level)


def ending(error: BaseException) -> tuple[int, str]:
    """The exit code of a command that an error has ended, and what is said on stderr."""
    if isinstance(error, AlignkitError):
        return error.exit_code, str(error)
    if isinstance(error, KeyboardInterrupt):
        return 130, "interrupted"
    if isinstance(error, BrokenPipeError):  # the reader of a pipe has left: nothing to say to it, now or at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1, ""
    told = " ".join(" ".join([str(error)[:300], *getattr(error, "__notes__", [])]).split())
    return 1, f"unexpected {type(error).__name__}: {told}; please report; --debug shows the traceback"


def application(chosen: str | None = None) -> typer.Typer:
    """All commands; only the chosen one is imported, the others stand in the help."""
    app = typer.Typer(
        help="Align language models; every plugin composes with every other, on every task.",
        no_args_is_help=True,
        add_completion=False,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
    )
    app.callback()(_options)
    for name, summary in COMMANDS.items():
        if name == chosen:
            app.command(name)(import_module(f"alignkit.cli.{name}").command)
        else:
            app.command(name, help=summary)(_elsewhere)
    return app


def _elsewhere() -> None:
    """Stands for a command that was not chosen."""


def _version(wanted: bool) -> None:
    if wanted:
        print(f"alignkit {__version__}")
        raise typer.Exit


def _options(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Options of every command; `main` reads --debug itself, because it is needed after a command has failed."""
