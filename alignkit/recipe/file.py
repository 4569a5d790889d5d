"""Reading a recipe file: values, the line of each, and overrides from the command line."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from alignkit.errors import Mistake, UsageError
from alignkit.recipe.errors import Place, locate, shown

Placed = list[tuple[Place, Mistake]]
"""Mistakes, each with its place in the recipe."""

_SCALARS = {
    "bool": (r"(true|True|TRUE|false|False|FALSE)", "tTfF"),
    "int": (r"[-+]?(0|[1-9][\d_]*)", "-+0123456789"),
    "float": (
        r"[-+]?(\d[\d_]*\.\d*([eE][-+]?\d+)?|\.\d+([eE][-+]?\d+)?|\d[\d_]*[eE][-+]?\d+|\.(inf|Inf|INF))|\.(nan|NaN|NAN)",
        "-+0123456789.",
    ),
}
"""YAML 1.2's scalars: `5e-5` is a number, while `no`, `10:30` and `2024-01-01` are text."""


_NO_COLON = "could not find expected ':'"
_NO_SPACE = " is one word"
_ITSELF = "a value that holds itself"
_ONE_WORD = re.compile(r"[\w.-]+:\S")
_YAML_MENDS = {
    _NO_COLON: "write `FIELD: VALUE`, with a space after the colon",
    _ITSELF: "write it out in place of its alias",
    "mapping values are not allowed here": "indent it as its neighbours are, and quote text that has `: ` in it",
}


class _Loader(yaml.SafeLoader):
    """Safe, with YAML 1.2's scalars in place of 1.1's."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in rules if tag.rpartition(":")[2] in ("null", "merge")]
    for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


class _Dumper(yaml.SafeDumper):
    """Quotes text that either version of YAML would read as something else."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


for _tag, (_pattern, _first) in _SCALARS.items():
    for _either in (_Loader, _Dumper):
        _either.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"(?:{_pattern})$"), list(_first))


def read(path: Path) -> tuple[dict[str, Any], dict[Place, str], Placed]:
    """A recipe file's values, where each of them stands (`recipe.yaml:12`), and keys that are there twice.

    Raises:
        UsageError: the file cannot be read, or is not a mapping.
    """
    text = _text(path)
    if path.suffix == ".toml":
        return _mapping(path, _toml(path, text)), {}, []
    if path.suffix == ".json":
        values = _json(path, text)
        try:
            _, lines, mistakes = _yaml(path, text.replace("\t", " "))  # JSON is YAML, whose parser knows the lines
        except UsageError:
            lines, mistakes = {}, []
        return _mapping(path, values), lines, mistakes
    if path.suffix not in (".yaml", ".yml"):
        raise UsageError(
            Mistake(str(path), f"a file {path.suffix or 'without a suffix'}", ".yaml, .yml, .toml or .json")
        )
    values, lines, mistakes = _yaml(path, text)
    return _mapping(path, values), lines, mistakes


def parse(text: str) -> Any:
    """One value as YAML writes it: what `--set` takes."""
    return yaml.load(text, Loader=_Loader)  # a subclass of SafeLoader


def dump(values: dict[str, Any]) -> str:
    """Values as a YAML document that reads back as they are."""
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)


def override(values: dict[str, Any], overrides: Iterable[str], lines: dict[Place, str]) -> Placed:
    """Apply `--set` overrides such as `adversary.epsilon=0.3` or `constraints.0.weight=0.2`, in order."""
    mistakes: Placed = []
    for text in overrides:
        where = f"--set {text}"
        dotted, equals, value = text.partition("=")
        if not equals or not dotted.strip():
            found = "no `=` in it" if dotted.strip() else "no field before `=`"
            mistakes.append((_place(dotted.strip()), Mistake(where, found, "FIELD=VALUE")))
            continue
        try:
            wrong = put(values, dotted.strip(), parse(value), lines, where)
        except yaml.YAMLError as error:
            problem = getattr(error, "problem", None) or str(error).splitlines()[0]
            mend = "close the bracket" if value.startswith("[") else f"""quote it: {dotted}='"…"'"""
            wrong = Mistake(where, f"the value is not YAML: {problem}", mend=mend)
        if wrong:
            mistakes.append((_place(dotted.strip()), wrong))
    return mistakes


def put(values: dict[str, Any], path: str, value: Any, lines: dict[Place, str], where: str = "") -> Mistake | None:
    """Set the value at a dotted path; what is wrong with the path, or nothing.

    Args:
        lines: is told where the value stands.
        where: that is there; in a mistake, by default, the path.
    """
    here: Any = values
    place = _place(path)
    for depth, part in enumerate(place):
        dotted = ".".join(map(str, place[:depth]))
        if isinstance(here, list):
            if not isinstance(part, int) or part > len(here):
                found = f"{dotted} is a list of {len(here)}, which has no {part!r}"
                mend = f"its items have numbers from 0 on; `{dotted}.{len(here)}` adds one"
                return Mistake(where or path, found, mend=mend)
            if part == len(here):
                here.append(None)
        elif isinstance(here, dict):
            part = str(part)
            here.setdefault(part, None)
        else:
            found = f"{dotted} is {shown(here)}, which has no fields"
            return Mistake(where or path, found, mend=f"set it as a whole: {dotted}=VALUE")
        if depth == len(place) - 1 or here[part] is None:
            lines[place[: depth + 1]] = where
        if depth == len(place) - 1:
            here[part] = value
        else:
            here[part] = _container(here[part], place[0], place[depth + 1])
            here = here[part]
    return None


def _place(path: str) -> Place:
    """The parts of a dotted path; the fields that `tune.search` names are paths themselves, and keys as they stand."""
    searched = path.removeprefix("tune.search.")
    if searched != path:
        return ("tune", "search", searched)
    return tuple(int(part) if part.isdigit() else part for part in path.split("."))


def _container(value: Any, section: str | int, part: str | int) -> Any:
    """What a field is set in: nothing becomes a mapping or list, a bare name or path becomes what it stands for."""
    if value is None:
        return [] if isinstance(part, int) else {}
    if isinstance(value, str) and section not in ("model", "output", "reference"):
        return {{"data": "path", "peft": "method"}.get(str(section), "use"): value}
    return value


def _text(path: Path) -> str:
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError as error:
        raise UsageError(Mistake(str(path), "no such file", "a recipe")) from error
    except IsADirectoryError as error:
        raise UsageError(Mistake(str(path), "a directory", "a recipe file", _in_folder(path))) from error
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise UsageError(Mistake(f"{path}:{line}", f"byte 0x{error.object[error.start]:02x}", "UTF-8")) from error
    except OSError as error:
        raise UsageError(Mistake(str(path), f"it cannot be read: {error.strerror}", "a file that can be")) from error
    if not text.strip():
        raise UsageError(Mistake(str(path), "an empty file", "a mapping with model, task and data"))
    return text


def _in_folder(path: Path) -> str:
    return f"{path / 'recipe.yaml'} is a recipe" if (path / "recipe.yaml").is_file() else ""


def _mapping(path: Path, values: Any) -> dict[str, Any]:
    if not isinstance(values, dict):
        raise UsageError(Mistake(str(path), shown(values), "a mapping with model, task and data"))
    return values


def _toml(path: Path, text: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        line = re.search(r"at line (\d+)", str(error))
        raise UsageError(Mistake(f"{path}:{line[1]}" if line else str(path), f"not TOML: {error}")) from error


def _json(path: Path, text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise UsageError(Mistake(f"{path}:{error.lineno}", f"not JSON: {error.msg}")) from error


def _yaml(path: Path, text: str) -> tuple[Any, dict[Place, str], Placed]:
    lines: dict[Place, str] = {}
    mistakes: Placed = []
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None, lines, mistakes
        _walk(node, (), str(path), lines, mistakes, ())
        return loader.construct_document(node), lines, mistakes
    except yaml.MarkedYAMLError as error:
        begun = error.context_mark if error.problem == _NO_COLON else None  # the line before the one it noticed it on
        mark = begun or error.problem_mark or error.context_mark
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        raise UsageError(
            Mistake(where, f"not YAML: {error.problem or error.context}", "", _yaml_mend(error))
        ) from error
    except yaml.YAMLError as error:
        raise UsageError(Mistake(str(path), f"not YAML: {str(error).splitlines()[0]}")) from error


def _yaml_mend(error: yaml.MarkedYAMLError) -> str:
    if "'\\t'" in str(error.problem):
        return "indent with spaces, not with tabs"
    problem = _NO_COLON if str(error.problem).endswith(_NO_SPACE) else str(error.problem)
    return _YAML_MENDS.get(problem, "")


def _walk(
    node: yaml.Node, place: Place, file: str, lines: dict[Place, str], mistakes: Placed, above: tuple[int, ...]
) -> None:
    """Note the line of every key and item; report keys that are there twice and values that hold themselves."""
    if id(node) in above:
        raise yaml.MarkedYAMLError(problem=_ITSELF, problem_mark=node.start_mark)
    above = (*above, id(node))
    if isinstance(node, yaml.SequenceNode):
        for i, item in enumerate(node.value):
            lines[(*place, i)] = f"{file}:{item.start_mark.line + 1}"
            _walk(item, (*place, i), file, lines, mistakes, above)
    elif isinstance(node, yaml.MappingNode):
        seen: dict[str, int] = {}
        for key, value in node.value:
            line = key.start_mark.line + 1
            name = str(key.value)
            no_value = node.flow_style and key.style is None and value.value == ""  # as in `{use:fgm}`
            if no_value and _ONE_WORD.match(name):
                raise yaml.MarkedYAMLError(problem=f"{name!r}{_NO_SPACE}", problem_mark=key.start_mark)
            if name in seen:
                where = locate((*place, name), {}, f"{file}:{line}")
                found = f"a second {name!r}; the first is on line {seen[name]}"
                mistakes.append(((*place, name), Mistake(where, found, "", "take one of them out")))
            seen[name] = line
            lines[(*place, name)] = f"{file}:{line}"
            _walk(value, (*place, name), file, lines, mistakes, above)
