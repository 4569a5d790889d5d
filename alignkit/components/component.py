"""The base of all kinds: it makes a class a pydantic dataclass with its hook points marked, or refuses it."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, dataclass_transform

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass as pydantic_dataclass

from alignkit.components.answers import Batch
from alignkit.errors import Mistake, PluginError
from alignkit.hookspecs import HOOK_POINTS, hookimpl

if TYPE_CHECKING:
    from alignkit.plan import Setting


@dataclass_transform(eq_default=False, kw_only_default=True)
class Component:
    """Base of every kind; subclass one of the kinds below instead."""

    kind: ClassVar[str] = ""
    hook_points: ClassVar[tuple[str, ...]] = ()
    """The hook points that the class implements (found at class creation)."""
    must_override: ClassVar[tuple[str, ...]] = ()
    """Methods of which a concrete class must supply every one (plain kinds)."""
    may_override: ClassVar[tuple[str, ...]] = ()
    """Methods of which a concrete class must supply one or more (plain kinds)."""
    columns: ClassVar[tuple[str, ...]] = ()
    """Data columns that the component reads and the model does not take; see `step.column(name)`. May be a property."""
    unaligned_views: ClassVar[tuple[str, ...]] = ()
    """Names of its views that have answers of their own: their labels need not be as many as the example's. May be a
    property."""
    makes_views: ClassVar[bool] = True
    """Of a component with `views`: as it is set, it makes some. May be a property."""
    couples_rows: ClassVar[bool] = False
    """The result depends on which rows share a batch."""
    passes: ClassVar[int] = 1
    """Adversaries: how many losses `attack` yields. May be a property."""
    replays: ClassVar[int] = 1
    """Optimizer steps in a row that train on one batch (Free-AT). May be a property."""
    reference: ClassVar[bool] = False
    """Needs the reference model's outputs once per step. May be a property."""
    forwards: ClassVar[float] = 0.0
    """Extra forward passes per step without a backward pass, as a share of a full one. May be a property."""
    backwards: ClassVar[float] = 0.0
    """Extra forward-and-backward passes per loss evaluation, as a share of a full one. May be a property."""
    perturbs: ClassVar[bool] = False
    """Takes gradients with respect to the embeddings' output."""
    needs_validation: ClassVar[bool] = False
    """Asks for scores on the validation split."""
    example: ClassVar[Mapping[str, Any]] = {}
    """The fields that have no default, as they might be set: what tests over the whole catalogue make it with."""

    def __init_subclass__(cls, abstract: bool = False, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        _refuse_unannotated_fields(cls)
        for name in HOOK_POINTS:
            if name in vars(cls):
                hookimpl(vars(cls)[name])
        cls.hook_points = tuple(n for n in HOOK_POINTS if getattr(getattr(cls, n, None), "alignkit_impl", None))
        if not abstract:
            _refuse_missing_methods(cls)
        config = ConfigDict(
            extra="forbid", use_attribute_docstrings=True, arbitrary_types_allowed=True, allow_inf_nan=False
        )
        try:
            pydantic_dataclass(cls, kw_only=True, eq=False, config=config)
        except (TypeError, ValueError) as error:  # a mutable default, a type that pydantic cannot validate
            raise PluginError(f"{cls.__module__}.{cls.__qualname__}: {error}") from error
        _inherit_descriptions(cls)

    @cached_property
    def name(self) -> str:
        """Its name in the recipe; set by the composer, the class name in kebab-case until then."""
        return component_name(type(self))

    def reset(self) -> None:
        """Forget everything but the fields, as if newly made. The host calls it when a training starts."""
        for name in [n for n in vars(self) if n not in self.fields() and n != "name"]:
            delattr(self, name)
        for value in self.fields().values():
            if isinstance(value, Component):
                value.reset()
        if hasattr(self, "__post_init__"):
            self.__post_init__()

    def fields(self) -> dict[str, Any]:
        """The hyper-parameters by name, as they are set."""
        return {name: getattr(self, name) for name in getattr(type(self), "__pydantic_fields__", {})}

    def state_dict(self) -> dict[str, Any]:
        """State that must survive a checkpoint: tensors and anything JSON holds, by name."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up a state that `state_dict` gave."""

    def counts(self, batch: Batch) -> dict[str, int]:
        """Counts of this component's own that its terms are means over, beside the task's `token` and `example`.

        Args:
            batch: what the step has of it, `views`, `columns` and `index` included, and in `counts` the task's own.
        """
        return {}

    def check(self, setting: Setting) -> Iterable[Mistake]:
        """Before any weight is loaded: what in the run it cannot go together with, and the mend."""
        return ()

    def notes(self, setting: Setting) -> Iterable[str]:
        """Before any weight is loaded, after every `check`: what the plan is to say of it in this run."""
        return ()


def component_name(cls: type) -> str:
    """`KLReference` -> `kl-reference`, `FGM` -> `fgm`; of an attack without its kind, `PGDAttack` -> `pgd`."""
    import re

    name = re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z0-9])(?=[A-Z][a-z])", "-", cls.__name__).lower()
    return name.removesuffix("-attack") if getattr(cls, "kind", "") == "attack" else name


def _refuse_unannotated_fields(cls: type) -> None:
    annotated = set(vars(cls).get("__annotations__", {}))
    for name, value in vars(cls).items():
        plain = not (callable(value) or isinstance(value, property | classmethod | staticmethod))
        declared = any(name in vars(base) or name in vars(base).get("__annotations__", {}) for base in cls.__mro__[1:])
        if plain and not name.startswith("_") and name not in annotated and not declared:
            raise PluginError(
                f"{cls.__module__}.{cls.__qualname__}.{name} has no annotation, so it would not be a field: "
                f"write `{name}: {type(value).__name__} = {value!r}`, or `{name}: ClassVar[...]` for a constant"
            )


def _refuse_missing_methods(cls: type[Component]) -> None:
    where = f"{cls.__module__}.{cls.__qualname__}"
    known = {*HOOK_POINTS, *(n for base in cls.__mro__[1:] for n in vars(base))}
    for name, value in vars(cls).items():
        if inspect.isfunction(value) and not name.startswith("_") and name not in known:
            close = difflib.get_close_matches(name, HOOK_POINTS, n=1, cutoff=0.8)
            if close:
                raise PluginError(f"{where}.{name} is no hook point: did you mean {close[0]!r}?")
    supplied = [base for base in cls.__mro__ if not base.__module__.startswith(f"{__package__}.")]
    own = {name for base in supplied for name in vars(base)}
    for name in cls.must_override:
        if name not in own:
            raise PluginError(f"{where} is of kind {cls.kind!r} and must implement {name}()")
    if cls.may_override and own.isdisjoint(cls.may_override):
        raise PluginError(f"{where} is of kind {cls.kind!r} and must implement {' or '.join(cls.may_override)}")
    if not (cls.must_override or cls.may_override or cls.hook_points):
        methods = [n for n, v in vars(cls).items() if inspect.isfunction(v) and not n.startswith("__")]
        raise PluginError(
            f"{where} is of kind {cls.kind!r} and implements no hook point: "
            f"expected one of {', '.join(HOOK_POINTS)}; its methods are {', '.join(methods) or 'none'}"
        )


def _inherit_descriptions(cls: type[Component]) -> None:
    """pydantic reads attribute docstrings from a class's own source only; fields keep their base's description."""
    for name, info in cls.__pydantic_fields__.items():  # type: ignore[attr-defined]  # set by the decorator
        for base in cls.__mro__[1:]:
            inherited = getattr(base, "__pydantic_fields__", {}).get(name)
            if info.description is None and inherited is not None:
                info.description = inherited.description
