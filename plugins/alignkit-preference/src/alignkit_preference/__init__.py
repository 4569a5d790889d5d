"""Learning from pairs of a chosen and a rejected answer."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from alignkit_preference.cpo import CPO
    from alignkit_preference.dpo import DPO
    from alignkit_preference.kto import KTO
    from alignkit_preference.orpo import ORPO
    from alignkit_preference.preference import Preference
    from alignkit_preference.simpo import SimPO

_MODULES = {
    "CPO": "cpo",
    "DPO": "dpo",
    "KTO": "kto",
    "ORPO": "orpo",
    "Preference": "preference",
    "SimPO": "simpo",
}

__all__ = ["CPO", "DPO", "KTO", "ORPO", "Preference", "SimPO"]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
