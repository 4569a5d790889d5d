"""A recipe's components: from `{use: fgm, epsilon: 0.1}` to an instance, and back."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

from pydantic import ValidationError, ValidationInfo
from pydantic_core import to_jsonable_python

from alignkit.catalogue import Catalogue, Entry, default_catalogue
from alignkit.components import Component, component_name
from alignkit.errors import Mistake, PluginError, UsageError
from alignkit.recipe.errors import Place, Problem, Problems, problems_of, shown
from alignkit.sections import Sound

T = TypeVar("T")

RESERVED = ("objective",)
"""Names that the host's own terms and states carry."""
UNNAMED = ("task", "objective", "weight")
"""Kinds of which a recipe needs no second name: one per run, or one per constraint."""


@dataclass
class Making:
    """What the validators of one recipe share."""

    base: Path
    catalogue: Catalogue
    names: dict[str, Component | None] = field(default_factory=dict)
    """The components that hook into the run by name; None: one that could not be made."""
    sound: Sound = field(default_factory=dict)
    """The fields that were found valid."""
    lacks_plugins: bool = False
    """A plugin file could not be loaded: a name that is not known may be of something in it."""


def making_of(info: ValidationInfo) -> Making:
    """What the validators of one recipe share; a section made by itself has nobody to share with."""
    return info.context if isinstance(info.context, Making) else Making(Path.cwd(), default_catalogue())


def make(kind: str, value: Any, making: Making, names: dict[str, Component | None] | None = None) -> Component:
    """The component that a recipe's entry stands for: a bare name, `{use: NAME, ...fields}` or an instance.

    Args:
        names: the names that are taken; the component's own is added.

    Raises:
        Problems: everything that is wrong with it.
    """
    names = {} if names is None else names
    if isinstance(value, Component) or (isinstance(value, type) and issubclass(value, Component)):
        return _adopted(kind, value, names)
    given = {str(k): v for k, v in value.items()} if isinstance(value, Mapping) else {"use": value}
    use = given.pop("use", None)
    if not isinstance(use, str):
        raise Problems([_no_name(kind, value, making)])
    place: Place = ("use",) if isinstance(value, Mapping) else ()
    try:
        entry = making.catalogue.find(kind, use)
        cls = making.catalogue.load_class(entry)
    except UsageError as error:
        names.setdefault(str(given.get("name", use.rpartition("/")[2])), None)
        told = [m for m in error.mistakes if not making.lacks_plugins or _is_near(m)]
        raise Problems(Problem(place, m.found, m.expected, m.mend) for m in told) from error
    except PluginError as error:
        raise Problems([Problem(place, str(error), plugins=True)]) from error
    name, problems = _name(kind, entry.name, given, names)
    component, wrong = _made(cls, given, entry, making)
    if not isinstance(value, Mapping):
        wrong = [_with_fields(use, problem) for problem in wrong]
    if component is None or problems:
        names.setdefault(name, None)
        raise Problems(problems + wrong)
    component.name = name
    names[name] = component
    return component


def _no_name(kind: str, value: Any, making: Making) -> Problem:
    """An entry that names no component."""
    article = "an" if kind[0] in "aeiou" else "a"
    expected = f"the name of {article} {kind}, or {{use: NAME, ...}}"
    if isinstance(value, list):
        return Problem((), shown(value), expected, "there can be one: leave the others out")
    first = next(iter(value), None) if isinstance(value, Mapping) else None
    return Problem(
        (), shown(value), expected, f"write {{use: {first}, …}}" if first in making.catalogue.entries()[kind] else ""
    )


def _with_fields(use: str, problem: Problem) -> Problem:
    """A problem of an entry that is a bare name: where it lacks a field, how to write that."""
    if problem.found != "missing":
        return problem
    return replace(problem, mend=f"write {{use: {use}, {problem.place[0]}: …}}")


def _is_near(mistake: Mistake) -> bool:
    """A name that is unknown resembles a known one, or is of another kind: it is of no plugin that is missing."""
    return bool(mistake.expected or mistake.mend) and not mistake.mend.startswith("there is")


def each(value: Any, one: Callable[[Any], T]) -> list[T]:
    """`one` of every item of a list; the problems of all items at once."""
    if not isinstance(value, list | tuple):
        mend = f"write [{value}]" if isinstance(value, str) else "begin each item with `- `"
        raise Problems([Problem((), shown(value), "a list", mend)])
    found: dict[int, T] = {}
    problems: list[Problem] = []
    for i, item in enumerate(value):
        try:
            found[i] = one(item)
        except Problems as error:
            problems += [problem.under((i,)) for problem in error.problems]
        except UsageError as error:
            problems += [
                Problem((i,), f"{m.where}: {m.found}" if m.where else m.found, m.expected, m.mend)
                for m in error.mistakes
            ]
        except PluginError as error:
            problems.append(Problem((i,), str(error), plugins=True))
    if problems:
        raise Problems(problems, sound=found)
    return list(found.values())


def every(kind: str, value: Any, making: Making, names: dict[str, Component | None]) -> list[Component]:
    """The components that a list of entries stands for."""
    return each(value, lambda item: make(kind, item, making, names))


def with_views(item: Any, making: Making) -> Component:
    """A component with views: one of the recipe's own by its name, or another one."""
    if isinstance(item, str) and item in making.names:
        named = making.names[item]
        if named is None:
            raise Problems([])  # what is wrong with it has been said where it stands
        component = named
    elif isinstance(item, Component):
        component = item
    else:
        use = item.get("use") if isinstance(item, Mapping) else item
        updaters = making.catalogue.entries()["updater"]
        component = make("updater" if use in updaters else "constraint", item, making)
    if "views" not in component.hook_points:
        expected = "a component that does, such as counterfactual"
        raise Problems([Problem((), f"{component.name} makes no views of an example", expected)])
    return component


def described(component: Component, catalogue: Catalogue, base: Path) -> dict[str, Any]:
    """A component as a recipe writes it, every field with its value."""
    entry = catalogue.entry_of(type(component))
    cls = type(component)
    use = catalogue.usable_name(entry) if entry else f"{cls.__module__}:{cls.__qualname__}"
    short = entry.name if entry else component_name(cls)
    named = {"name": component.name} if component.kind not in UNNAMED and component.name != short else {}
    return {"use": use, **named, **{k: _plain(v, catalogue, base) for k, v in component.fields().items()}}


def kinds_in(annotation: Any) -> set[str]:
    """The kinds of component that a field's annotation mentions."""
    return {t.kind for t in _types(annotation) if issubclass(t, Component)}


def _made(
    cls: type[Component], given: dict[str, Any], entry: Entry, making: Making
) -> tuple[Component | None, list[Problem]]:
    own = getattr(cls, "__pydantic_fields__", {})
    problems: list[Problem] = []
    failed: set[str | int] = set()
    for name in [n for n in given if n in own]:
        try:
            given[name] = _prepared(given[name], [own[name].annotation], making)
        except Problems as error:
            failed.add(name)
            problems += [p.under((name,)) for p in error.problems]
    sound = {name: value for name, value in given.items() if name not in failed}
    try:
        component = cls(**sound)
    except ValidationError as error:
        found = problems_of(error, sound, lambda _: own, lambda place: _description(own, place))
        problems += [p for p in found if not (p.place and p.place[0] in failed)]
    except UsageError as error:
        at = (((m.where,) if m.where in own else (), m) for m in error.mistakes)
        problems += [Problem(place, m.found, m.expected, m.mend) for place, m in at]
    except Exception as error:  # a plugin's own __post_init__
        found_by = f"{entry.source}: {entry.name} failed when it was made: {type(error).__name__}: {error}"
        problems.append(Problem((), found_by, plugins=True))
    else:
        return (None, problems) if failed else (component, [])
    return None, problems


def _adopted(kind: str, value: Any, names: dict[str, Component | None]) -> Component:
    """An instance made in Python."""
    if isinstance(value, type):
        raise Problems([Problem((), f"the class {value.__name__}", "an instance", f"write {value.__name__}()")])
    if value.kind != kind:
        raise Problems([Problem((), f"{type(value).__name__}, of kind {value.kind}", f"a component of kind {kind}")])
    if any(value is other for other in names.values()):
        raise Problems([Problem((), f"the same {type(value).__name__} a second time", "an instance of its own")])
    value.name, _ = _name(kind, value.name, {}, names)
    names[value.name] = value
    return value


def _name(kind: str, short: str, given: dict[str, Any], names: dict[str, Any]) -> tuple[str, list[Problem]]:
    """The name that an entry asks for, or its short name, numbered where that is taken."""
    if kind in UNNAMED or "name" not in given:
        name, n = short, 2
        while name in names or (name in RESERVED and kind not in UNNAMED):
            name, n = f"{short}-{n}", n + 1
        return name, []
    name = given.pop("name")
    if not isinstance(name, str) or not re.fullmatch(r"[\w-]+", name):
        return short, [Problem(("name",), shown(name), "letters, digits, '-' and '_'")]
    if name in names or name in RESERVED:
        return name, [Problem(("name",), f"the name {name!r} is taken", "another name")]
    return name, []


def _prepared(value: Any, annotations: Sequence[Any], making: Making) -> Any:
    """A field's value with nested components made and paths taken relative to the recipe.

    Text is a path where the field takes a `Path` at that very place: items of a list and words that a `Literal`
    names are judged by themselves.
    """
    alternatives = [a for annotation in annotations for a in _alternatives(annotation)]
    kinds = sorted({kind for a in alternatives for kind in kinds_in(a)})
    if kinds and (isinstance(value, str) or (isinstance(value, Mapping) and "use" in value)):
        return make(kinds[0], value, making)
    if isinstance(value, list):
        items = [a for sequence in alternatives if get_origin(sequence) is not Literal for a in get_args(sequence)]
        return [_prepared(item, items, making) for item in value]
    word = any(get_origin(a) is Literal and value in get_args(a) for a in alternatives)
    paths = any(isinstance(a, type) and issubclass(a, Path) for a in alternatives)
    return making.base / Path(value).expanduser() if isinstance(value, str | Path) and paths and not word else value


def _alternatives(annotation: Any) -> Iterator[Any]:
    """What a field may be: the members of a union, without what is annotated on them."""
    if get_origin(annotation) is Annotated:
        yield from _alternatives(get_args(annotation)[0])
    elif get_origin(annotation) in (Union, UnionType):
        for member in get_args(annotation):
            yield from _alternatives(member)
    else:
        yield annotation


def _types(annotation: Any) -> Iterator[type]:
    if isinstance(annotation, type):
        yield annotation
    for argument in get_args(annotation):
        yield from _types(argument)


def _description(own: Mapping[str, Any], place: Place) -> str:
    info = own.get(str(place[0])) if place else None
    return str(getattr(info, "description", "") or "")


def _plain(value: Any, catalogue: Catalogue, base: Path) -> Any:
    if isinstance(value, Component):
        return described(value, catalogue, base)
    if isinstance(value, Path):
        return value.relative_to(base).as_posix() if value.is_relative_to(base) else str(value)
    if isinstance(value, Mapping):
        return {str(k): _plain(v, catalogue, base) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v, catalogue, base) for v in value]
    return to_jsonable_python(value, fallback=str)
