"""The JSON schema of recipe files, with every registered component's own fields, for editors."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, TypeAdapter
from pydantic.errors import PydanticSchemaGenerationError, PydanticUserError

from alignkit.catalogue import Catalogue, default_catalogue
from alignkit.components import Component
from alignkit.errors import PluginError
from alignkit.hookspecs import KINDS
from alignkit.recipe import training
from alignkit.recipe.parts import UNNAMED, kinds_in

_ONE = {
    "task": "task",
    "objective": "objective",
    "adversary": "adversary",
    "averaging": "averager",
    "fusion": "fusion",
    "updater": "updater",
}
_SEVERAL = {"filters": "filter", "augmenters": "augmenter", "constraints": "constraint", "controls": "control"}


def schema(recipe: type[BaseModel]) -> dict[str, Any]:
    """The schema of a recipe file. Imports every registered component; broken ones are left out."""
    from alignkit.data.source import Data
    from alignkit.models import Peft, Scratch
    from alignkit.recipe.tuning import Tune

    catalogue = default_catalogue()
    definitions: dict[str, Any] = {}
    for kind in KINDS:
        definitions[kind] = _kind(kind, catalogue, definitions)
    properties: dict[str, Any] = {name: {"description": i.description} for name, i in recipe.model_fields.items()}
    for name, kind in _ONE.items():
        properties[name] |= _reference(kind)
    for name, kind in _SEVERAL.items():
        properties[name] |= {"type": "array", "items": _reference(kind)}
    for name in ("plugins", "freeze"):
        properties[name] |= {"type": "array", "items": {"type": "string"}}
    properties["model"] |= {"anyOf": [{"type": "string"}, _model(Scratch, "model", definitions)]}
    properties["head"] |= {"type": "object", "properties": {"dropout": {"type": "number", "minimum": 0}}}
    for name in ("reference", "output"):
        properties[name] |= {"type": "string"}
    properties["seed"] |= {"type": "integer"}
    properties["evaluation"] |= _evaluation()
    properties["data"] |= _data(Data, definitions)
    properties["peft"] |= {"anyOf": [{"type": "string"}, _model(Peft, "peft", definitions)]}
    properties["early_stopping"] |= _model(training.EarlyStopping, "early_stopping", definitions)
    properties["training"] |= _training(definitions)
    properties["tune"] |= _model(Tune, "tune", definitions)
    properties["base"] = {"type": "string", "description": "The folder that relative paths are relative to."}
    properties["versions"] = {"type": "object", "description": "What wrote a resolved recipe."}
    for name, info in recipe.model_fields.items():
        if info.default is None:
            own = properties[name]
            described = {"description": own.pop("description")}
            properties[name] = {**described, "anyOf": [own, {"type": "null"}]}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "alignkit recipe",
        "type": "object",
        "additionalProperties": False,
        "required": [name for name, info in recipe.model_fields.items() if info.is_required()],
        "properties": properties,
        "$defs": definitions,
    }


def _reference(name: str) -> dict[str, Any]:
    return {"$ref": f"#/$defs/{name}"}


def _kind(kind: str, catalogue: Catalogue, definitions: dict[str, Any]) -> dict[str, Any]:
    """Any component of a kind: a bare name, or a mapping with `use` and the component's fields."""
    names, mappings = [], []
    for name, entry in catalogue.entries()[kind].items():
        try:
            own = component_schema(catalogue.load_class(entry), f"{kind}.{entry.plugin}.{entry.name}", definitions)
        except PluginError:
            continue
        names.append(name)
        own["properties"]["use"] = {"const": name, "description": entry.summary}
        own["required"] = ["use", *own.get("required", [])]
        mappings.append(own)
    return {"oneOf": [{"enum": names}, *mappings]} if names else {"type": ["string", "object"]}


def component_schema(cls: type[Component], prefix: str, definitions: dict[str, Any]) -> dict[str, Any]:
    """A component's fields as JSON schema; what its fields refer to is added to the definitions under the prefix."""
    try:
        own = _hoisted(TypeAdapter(cls), prefix, definitions)
    except (PydanticUserError, PydanticSchemaGenerationError):  # a field of a type that JSON does not hold
        own = {"type": "object", "properties": {name: {} for name in cls.__pydantic_fields__}}  # type: ignore[attr-defined]
    own.setdefault("properties", {})
    for name, info in cls.__pydantic_fields__.items():  # type: ignore[attr-defined]  # set by the base class
        for nested in sorted(kinds_in(info.annotation)):
            plain = [s for s in own["properties"][name].pop("anyOf", []) if "$ref" not in s]
            own["properties"][name] = {**own["properties"][name], "anyOf": [*plain, _reference(nested)]}
        if info.description:
            own["properties"][name]["description"] = info.description
    if cls.kind not in UNNAMED:
        own["properties"].setdefault("name", {"type": "string", "description": "What it is called in this recipe."})
    own.pop("title", None)
    return {**own, "additionalProperties": False}


def _hoisted(adapter: TypeAdapter[Any], prefix: str, definitions: dict[str, Any]) -> dict[str, Any]:
    own = adapter.json_schema(ref_template=f"#/$defs/{prefix}.{{model}}")
    inner = own.pop("$defs", {})
    definitions |= {f"{prefix}.{name}": value for name, value in inner.items()}
    return own


def _model(model: type[BaseModel], prefix: str, definitions: dict[str, Any]) -> dict[str, Any]:
    return _hoisted(TypeAdapter(model), prefix, definitions)


def _data(data: type[BaseModel], definitions: dict[str, Any]) -> dict[str, Any]:
    """Sources may be a path, a mapping, or a list of either; the test split may have several by name."""
    own = _model(data, "data", definitions)
    one = {"anyOf": [{"type": "string"}, _reference("data.Source")]}
    sources = {"anyOf": [*one["anyOf"], {"type": "array", "items": one}]}
    definitions["data.Sources"] = sources
    for name in ("train", "validation"):
        own["properties"][name] = {"description": data.model_fields[name].description, **_reference("data.Sources")}
    named = {"type": "object", "additionalProperties": _reference("data.Sources")}
    test = {"anyOf": [_reference("data.Sources"), named], "description": data.model_fields["test"].description}
    own["properties"]["test"] = test
    return own


def _evaluation() -> dict[str, Any]:
    from alignkit.recipe.evaluation import Evaluation

    described = {name: {"description": info.description} for name, info in Evaluation.model_fields.items()}
    views = {"anyOf": [{"type": "string"}, _reference("constraint"), _reference("updater")]}
    shapes: dict[str, Any] = {
        "under": {"type": "array", "items": _reference("augmenter")},
        "gaps": {"type": "array", "items": views},
        "attacks": {"type": "array", "items": _reference("attack")},
        "evaluators": {"type": "array", "items": _reference("evaluator")},
        "replicates": {"type": "integer", "exclusiveMinimum": 0},
    }
    properties = {name: {**described[name], **shape} for name, shape in shapes.items()}
    return {"type": "object", "additionalProperties": False, "properties": properties}


def _training(definitions: dict[str, Any]) -> dict[str, Any]:
    properties: dict[str, Any] = {}
    for name, hint in training.hints().items():
        if name in training.OURS:
            continue
        try:
            properties[name] = _hoisted(TypeAdapter(hint), f"training.{name}", definitions)
        except (PydanticUserError, PydanticSchemaGenerationError):  # objects that only Python holds
            properties[name] = {}
        if name in training.RECIPE_DEFAULTS:
            properties[name]["default"] = training.RECIPE_DEFAULTS[name]
    return {"type": "object", "additionalProperties": False, "properties": properties}
