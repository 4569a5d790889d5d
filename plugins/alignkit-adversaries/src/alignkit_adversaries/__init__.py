"""Adversaries: what a model is hardened against."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from alignkit_adversaries.attacks.deepwordbug import DeepwordbugAttack
    from alignkit_adversaries.attacks.gcg import GCGAttack
    from alignkit_adversaries.attacks.hotflip import HotFlipAttack
    from alignkit_adversaries.attacks.input_reduction import InputReductionAttack
    from alignkit_adversaries.attacks.pgd import PGDAttack
    from alignkit_adversaries.attacks.typos import TyposAttack
    from alignkit_adversaries.awp import AWP
    from alignkit_adversaries.continuous import Continuous
    from alignkit_adversaries.fgm import FGM
    from alignkit_adversaries.fgsm import FGSM
    from alignkit_adversaries.free_at import FreeAT
    from alignkit_adversaries.freelb import FreeLB
    from alignkit_adversaries.hotflip import HotFlip
    from alignkit_adversaries.latent import Latent
    from alignkit_adversaries.pgd import PGD
    from alignkit_adversaries.r3f import R3F
    from alignkit_adversaries.smart import SMART
    from alignkit_adversaries.vat import VAT

_MODULES = {
    "AWP": "awp",
    "Continuous": "continuous",
    "DeepwordbugAttack": "attacks.deepwordbug",
    "FGM": "fgm",
    "FGSM": "fgsm",
    "FreeAT": "free_at",
    "FreeLB": "freelb",
    "GCGAttack": "attacks.gcg",
    "HotFlip": "hotflip",
    "HotFlipAttack": "attacks.hotflip",
    "InputReductionAttack": "attacks.input_reduction",
    "Latent": "latent",
    "PGD": "pgd",
    "PGDAttack": "attacks.pgd",
    "R3F": "r3f",
    "SMART": "smart",
    "TyposAttack": "attacks.typos",
    "VAT": "vat",
}

__all__ = [
    "AWP",
    "FGM",
    "FGSM",
    "PGD",
    "R3F",
    "SMART",
    "VAT",
    "Continuous",
    "DeepwordbugAttack",
    "FreeAT",
    "FreeLB",
    "GCGAttack",
    "HotFlip",
    "HotFlipAttack",
    "InputReductionAttack",
    "Latent",
    "PGDAttack",
    "TyposAttack",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
