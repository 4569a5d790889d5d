"""What the package declares: everything it exports, without importing anything heavy."""

import importlib
import subprocess
import sys

import alignkit_preference
from alignkit_preference.plugin import alignkit_components

from alignkit.hookspecs import KINDS


def test_every_target_is_exported_and_of_its_kind():
    registrations = list(alignkit_components())
    assert sorted(r.target.partition(":")[2] for r in registrations) == sorted(alignkit_preference.__all__)
    for registration in registrations:
        module, _, name = registration.target.partition(":")
        component = getattr(importlib.import_module(module), name)
        assert component is getattr(alignkit_preference, name)
        assert component.kind == registration.kind in KINDS
        assert all(field.description for field in component.__pydantic_fields__.values())


def test_declaring_imports_nothing_heavy():
    code = (
        "import sys, alignkit_preference.plugin as p; list(p.alignkit_components());"
        "print([m for m in ('torch', 'transformers', 'pydantic') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
