"""`alignkit plugins`: what is installed, and what one component is and takes. Listing imports no torch."""

from __future__ import annotations

import inspect
import json
import sys
import textwrap
from collections.abc import Iterable
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import typer

from alignkit.catalogue import Catalogue, Entry, default_catalogue
from alignkit.components import Component
from alignkit.errors import Mistake, UsageError, nearest


def command(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="A component: fgm, or adversaries/fgm.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
    strict: Annotated[bool, typer.Option("--strict", help="A plugin that cannot be loaded is an error.")] = False,
) -> None:
    """List what is installed by kind; with NAME, a component's fields, hook points, reference and costs."""
    catalogue = default_catalogue(strict)
    if name is not None:
        found = [explained(entry, catalogue) for entry in named(name, catalogue)]
        print(json.dumps(found, indent=2, ensure_ascii=False) if as_json else "\n\n".join(map(_page, found)))
    elif as_json:
        print(json.dumps(listed(catalogue), indent=2, ensure_ascii=False))
    else:
        _print_table(catalogue)


def listed(catalogue: Catalogue) -> dict[str, Any]:
    """Everything that is registered, and what could not be loaded, as JSON holds it."""
    components = {
        kind: {name: _registered(entry) for name, entry in entries.items()}
        for kind, entries in catalogue.entries().items()
    }
    return {"components": components, "errors": [_error(error) for error in catalogue.errors]}


def named(name: str, catalogue: Catalogue) -> list[Entry]:
    """The components of a name, one for each kind that has it.

    Raises:
        UsageError: there is none, or a name is registered twice within a kind.
        PluginError: its plugin could not be loaded.
    """
    by_kind = catalogue.entries()
    short = name.rpartition("/")[2]
    kinds = [kind for kind, entries in by_kind.items() if any(entry.name == short for entry in entries.values())]
    found = []
    for kind in kinds or ["component"]:
        try:
            found.append(catalogue.find(kind, name))
        except UsageError:
            if len(kinds) == 1:
                raise
    if not found:
        known = [known for entries in by_kind.values() for known in entries]
        raise UsageError(Mistake("", f"no component is called {name!r}", "", nearest(name, known)))
    return found


def explained(entry: Entry, catalogue: Catalogue) -> dict[str, Any]:
    """What a component is and takes: imports its class."""
    cls: Any = catalogue.load_class(entry)  # Any: pydantic's fields are attributes that the base class adds
    fields = {
        name: {
            "type": " ".join([type_name(info.annotation), *_bounds(info.metadata)]),
            "default": None if info.is_required() else repr(info.get_default(call_default_factory=True)),
            "required": info.is_required(),
            "description": " ".join((info.description or "").split()),
        }
        for name, info in cls.__pydantic_fields__.items()
    }
    costs = {name: _cost(cls, name) for name in ("passes", "forwards", "backwards", "reference")}
    return {
        **_registered(entry),
        "kind": entry.kind,
        "name": entry.name,
        "description": inspect.cleandoc(cls.__doc__ or entry.summary),
        "fields": fields,
        "samples": list(getattr(cls, "samples", ())),
        "hook_points": list(cls.hook_points),
        "couples_rows": bool(cls.couples_rows),
        "costs": costs,
    }


def type_name(annotation: Any) -> str:
    """A type as a reader of recipes knows it: `float | weight`, `'l2' | 'sign'`, `list[str]`."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return " ".join([type_name(arguments[0]), *_bounds(arguments[1:])])
    if origin in (Union, UnionType):
        return " | ".join(map(type_name, arguments))
    if origin is Literal:
        return " | ".join(map(repr, arguments))
    if annotation is type(None):
        return "None"
    if isinstance(annotation, type) and issubclass(annotation, Component):
        return annotation.kind
    if arguments:
        inner = ", ".join("..." if argument is Ellipsis else type_name(argument) for argument in arguments)
        return f"{getattr(origin, '__name__', origin)}[{inner}]"
    return getattr(annotation, "__name__", str(annotation))


def _bounds(metadata: Iterable[Any]) -> list[str]:
    """`> 0`, `<= 1` …, of what annotated-types says."""
    signs = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}
    return [f"{sign} {getattr(m, name)}" for m in metadata for name, sign in signs.items() if hasattr(m, name)]


def _registered(entry: Entry) -> dict[str, str]:
    return {
        "qualified": entry.qualified,
        "summary": entry.summary,
        "reference": entry.reference,
        "distribution": entry.distribution,
        "version": entry.version,
        "target": entry.target,
    }


def _error(error: Any) -> dict[str, str]:
    return {n: getattr(error, n) for n in ("plugin", "distribution", "version", "reason")}


def _cost(cls: Any, name: str) -> Any:
    """A cost as the class declares it; a property depends on the fields, of which the defaults are taken."""
    value = getattr(cls, name)
    if not isinstance(value, property):
        return value
    required = any(info.is_required() for info in cls.__pydantic_fields__.values())
    return "depends on its fields" if required else getattr(cls(), name)


def _page(about: dict[str, Any]) -> str:
    """One component as text."""
    lines = [f"{about['name']} · {about['kind']} · {about['distribution']} {about['version']}".rstrip(), ""]
    lines += [about["description"], ""]
    if about["reference"]:
        lines += [f"Reference: {about['reference']}", ""]
    lines.append("Fields:" if about["fields"] else "It has no fields.")
    for name, info in about["fields"].items():
        value = "required" if info["required"] else f"default {info['default']}"
        lines.append(f"  {name}: {info['type']} ({value})")
        lines += textwrap.wrap(info["description"], 80, initial_indent=" " * 6, subsequent_indent=" " * 6)
    lines += ["", f"Hook points: {', '.join(about['hook_points'])}"] if about["hook_points"] else []
    costs = about["costs"]
    said = [f"{costs['passes']} losses per step"] if costs["passes"] != 1 else []
    said += [f"{costs['forwards']} extra forward passes per step"] if costs["forwards"] else []
    said += [f"{costs['backwards']} extra forward and backward passes per loss"] if costs["backwards"] else []
    said += ["the reference model's outputs, once per step at most"] if costs["reference"] else []
    lines += ["", f"Costs: {', '.join(said) or 'no extra pass'}"]
    lines += ["Its result depends on which rows share a batch."] if about["couples_rows"] else []
    if about["samples"]:
        rows = (json.dumps(row, ensure_ascii=False) for row in about["samples"][:2])
        lines += ["", "Rows of its data, as JSON lines:", *(f"  {row}" for row in rows)]
    lines += ["", f"In a recipe: {{use: {about['name']}, ...}}, or {{use: {about['qualified']}, ...}}"]
    return "\n".join(lines)


def _print_table(catalogue: Catalogue) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(width=None if sys.stdout.isatty() else 80, highlight=False)
    for kind, entries in catalogue.entries().items():
        if not entries:
            continue
        table = Table(box=None, pad_edge=False, show_header=False, padding=(0, 2, 0, 0))
        table.add_column(overflow="fold", min_width=18)
        table.add_column(ratio=1)
        table.add_column(overflow="fold")
        for name, entry in entries.items():
            table.add_row(name, entry.summary, entry.source)
        console.print(kind, style="bold")
        console.print(table)
        console.print()
    for error in catalogue.errors:
        console.print(str(error), style="red", markup=False, soft_wrap=True)
