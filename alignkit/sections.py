"""What is known of a section of a recipe, or of the whole recipe, in which there are mistakes."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import cache
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationInfo

from alignkit.findings import Unsettled

S = TypeVar("S", bound=BaseModel)

Sound = dict[tuple[type[BaseModel], str], Any]
"""(section, field) -> a value that was found valid."""


def note(cls: type[BaseModel], value: Any, info: ValidationInfo) -> Any:
    """A section's last validator, of all fields: what it is given is valid."""
    if info.context is not None and info.field_name is not None:
        info.context.sound[cls, info.field_name] = value
    return value


def partly(
    cls: type[S], given: Mapping[str, Any], sound: Sound, doubtful: Collection[str], parts: Mapping[str, Any]
) -> S:
    """A section as far as it is known: asked for another field, it raises `Unsettled`.

    Args:
        given: what was validated.
        sound: what is valid in it.
        doubtful: fields in which there are mistakes, or that may have been meant where there is none of the name.
        parts: what is known of those all the same.
    """
    known = dict(parts)
    for name, info in cls.model_fields.items():
        if name not in doubtful and (cls, name) in sound:
            known[name] = sound[cls, name]
        elif name not in doubtful and name not in given and not info.is_required():
            known[name] = info.get_default(call_default_factory=True)
    section: S = _partial(cls).model_construct(**known)
    for name in cls.model_fields.keys() - known.keys():
        section.__dict__.pop(name, None)
    return section


@cache
def _partial(cls: type[Any]) -> Any:
    """A subclass that knows which of its fields are missing."""

    def missing(self: Any, name: str) -> Any:
        if name in cls.model_fields:
            raise Unsettled(name)
        return cls.__getattr__(self, name)

    return type(cls.__name__, (cls,), {"__module__": cls.__module__, "__getattr__": missing})
