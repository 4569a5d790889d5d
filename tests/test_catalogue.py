"""Discovery, lookups, collisions and everything that a plugin can do wrong."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import alignkit
from alignkit.catalogue import Catalogue, default_catalogue
from alignkit.errors import PluginError, UsageError
from alignkit.hookspecs import KINDS, Registration

Install = Callable[..., None]

DECLARATION = """
from alignkit.hookspecs import Registration, hookimpl

@hookimpl
def alignkit_components():
"""
FGM = """    yield Registration("adversary", "fgm", "{module}_methods:FGM", "A step.", "arXiv:1605.07725")
"""
METHOD = """
from alignkit.components import Adversary

class FGM(Adversary):
    epsilon: float = 1.0
    def attack(self, step):
        yield step.loss()
"""


def fgm(module: str) -> str:
    return DECLARATION + FGM.format(module=module)


def discovered() -> Catalogue:
    return Catalogue().discover()


def test_a_plugin_is_found_with_its_distribution_and_version(install: Install) -> None:
    install("acme-attacks", fgm("acme_attacks"), point="acme", version="2.3", methods=METHOD)
    found = discovered()
    entry = found.find("adversary", "fgm")
    assert isinstance(entry, Registration)
    assert (entry.distribution, entry.version, entry.qualified) == ("acme-attacks", "2.3", "acme/fgm")
    assert found.find("adversary", "acme/fgm") == found.find("adversary", "acme-attacks/fgm") == entry
    assert "acme_attacks_methods" not in sys.modules
    cls = found.load_class(entry)
    assert cls.__name__ == "FGM"
    assert found.entry_of(cls) == entry
    assert found.entries()["adversary"]["fgm"] == entry
    assert list(found.entries()) == list(KINDS)


def test_the_module_is_also_the_documented_function() -> None:
    assert alignkit.catalogue()["task"]["ner"].target == "alignkit.tasks.ner:Ner"
    from alignkit.catalogue import find

    assert alignkit.catalogue()["task"]["ner"] is find("task", "ner")


def test_a_typo_gets_the_nearest_name_and_a_wrong_kind_is_named(install: Install) -> None:
    install("acme-attacks", fgm("acme_attacks"))
    found = discovered()
    with pytest.raises(UsageError, match=r"^no task is called 'nerr'; did you mean 'ner'\?$"):
        found.find("task", "nerr")
    with pytest.raises(UsageError, match=r"^no averager is called 'fgm'; 'fgm' is of kind adversary$"):
        found.find("averager", "fgm")


def test_a_collision_names_both_distributions_and_qualified_names_stay_usable(install: Install) -> None:
    install("acme-attacks", fgm("acme_attacks"), point="acme", version="2.3")
    install("other", fgm("other"), version="0.4")
    found = discovered()
    with pytest.raises(UsageError) as caught:
        found.find("adversary", "fgm")
    assert str(caught.value) == (
        "adversary 'fgm' is registered by acme-attacks 2.3 (acme/fgm) and by other 0.4 (other/fgm); "
        "expected one of them: 'acme/fgm' or 'other/fgm'"
    )
    assert found.find("adversary", "other/fgm").distribution == "other"
    assert {"acme/fgm", "other/fgm"} <= set(found.entries()["adversary"])
    assert found.usable_name(found.find("adversary", "acme/fgm")) == "acme/fgm"


def test_a_broken_plugin_harms_nobody_who_did_not_ask_for_it(install: Install) -> None:
    install("broken", "import no_such_module", version="0.9")
    found = discovered()
    assert found.find("task", "ner").distribution == "alignkit"
    reason = (
        r"plugin 'broken' \(broken 0.9\) could not be loaded: ModuleNotFoundError: No module named 'no_such_module'"
    )
    assert len(found.errors) == 1
    with pytest.raises(PluginError, match=f"^adversary 'broken/fgm': {reason}$"):
        found.find("adversary", "broken/fgm")
    with pytest.raises(UsageError, match=reason):
        found.find("adversary", "what-it-would-have-registered")
    with pytest.raises(PluginError, match=f"^{reason}$"):
        Catalogue().discover(strict=True)
    with pytest.raises(PluginError, match=f"^{reason}$"):
        default_catalogue(strict=True)


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("", "it implements no alignkit_components marked with @hookimpl"),
        ("def alignkit_components(): return []", "it implements no alignkit_components marked with @hookimpl"),
        ("import sys; sys.exit(3)", "SystemExit: 3"),
        (DECLARATION + "    raise RuntimeError('no')", "RuntimeError: no"),
        (DECLARATION + "    yield 'fgm'", "alignkit_components gave 'fgm', expected a Registration"),
        (DECLARATION + "    return None", "TypeError: 'NoneType' object is not iterable"),
        (
            DECLARATION + "    yield Registration('adversry', 'fgm', 'a:B', '')",
            "the registration of adversry 'fgm': no such kind; did you mean 'adversary'?",
        ),
        (
            DECLARATION + "    yield Registration('adversary', 'Fast_GM', 'a:B', '')",
            "the registration of adversary 'Fast_GM': expected a name in kebab-case, such as 'kl-reference'",
        ),
        (
            DECLARATION + "    yield Registration('adversary', 'fgm', 'a.B', '')",
            "the registration of adversary 'fgm': its target is 'a.B', expected 'package.module:Class'",
        ),
        (
            DECLARATION + "    yield Registration('adversary', 'fgm', 'a:B', '')\n" * 2,
            "the registration of adversary 'fgm': it registers this name twice",
        ),
        (
            DECLARATION.replace("alignkit_components", "alignkit_component") + "    return []",
            "PluginValidationError: unknown hook 'alignkit_component'",
        ),
    ],
)
def test_declarations_that_cannot_be_taken_up(install: Install, code: str, reason: str) -> None:
    install("acme", code)
    found = discovered()
    assert [error.distribution for error in found.errors] == ["acme"]
    assert found.errors[0].reason.startswith(reason)
    assert not found.entries()["adversary"].get("acme/fgm")


def test_what_a_plugin_declared_before_it_broke_is_known_to_be_its_own(install: Install) -> None:
    install("acme", fgm("acme") + "    yield Registration('adversary', 'PGD', 'a:B', '')\n")
    with pytest.raises(PluginError, match=r"adversary 'fgm': plugin 'acme' .* expected a name in kebab-case"):
        discovered().find("adversary", "fgm")


@pytest.mark.parametrize(
    ("methods", "reason"),
    [
        ("import no_such", "importing acme_methods failed: ModuleNotFoundError: No module named 'no_such'"),
        ("", "acme_methods:FGM is not there: AttributeError: module 'acme_methods' has no attribute 'FGM'"),
        ("FGM = 3", "acme_methods:FGM is 3, expected a subclass of components.Adversary"),
        ("class FGM: pass", "acme_methods:FGM is <class 'acme_methods.FGM'>, expected a subclass of components"),
        (
            "from alignkit.components import Adversary as FGM",
            "acme_methods:FGM is <class 'alignkit.components.training.Adv",
        ),
        (METHOD.replace("attack", "atack"), "importing acme_methods failed: acme_methods.FGM.atack is no hook point"),
        (METHOD.replace(": float", ""), "importing acme_methods failed: acme_methods.FGM.epsilon has no annotation"),
    ],
)
def test_classes_that_are_not_what_they_were_registered_as(install: Install, methods: str, reason: str) -> None:
    install("acme", fgm("acme"), version="3.1", methods=methods)
    found = discovered()
    with pytest.raises(PluginError) as caught:
        found.load_class(found.find("adversary", "fgm"))
    assert str(caught.value).startswith(f"acme 3.1: adversary 'fgm': {reason}")


def test_the_environment_chooses_entry_points(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    install("acme", fgm("acme"))
    install("other", fgm("other"))
    monkeypatch.setenv("ALIGNKIT_PLUGINS", " other ,")
    assert discovered().find("adversary", "fgm").distribution == "other"
    monkeypatch.setenv("ALIGNKIT_PLUGINS", "")
    assert discovered().entries()["adversary"] == {}
    assert "ner" in discovered().entries()["task"]
    monkeypatch.setenv("ALIGNKIT_PLUGINS", "othr,acme")
    with pytest.raises(UsageError, match=r"^ALIGNKIT_PLUGINS: no plugin is called 'othr'; did you mean 'other'\?$"):
        discovered()


def test_a_local_file_registers_its_classes_under_their_names(tmp_path: Path) -> None:
    file = tmp_path / "my_method.py"
    file.write_text(
        "from __future__ import annotations\n"
        "from alignkit.components import Adversary, Filter\n"
        "class Base(Filter, abstract=True):\n    '''Nothing of its own.'''\n"
        "class TwoSteps(Adversary):\n    '''Two steps.\n\n    More.'''\n    size: float = 1.0\n    '''How far.'''\n"
        "    def attack(self, step): ...\n"
    )
    found = discovered().copy()
    entries = found.load_file(file)
    assert [(e.kind, e.name, e.summary, e.qualified) for e in entries] == [
        ("adversary", "two-steps", "Two steps.", "my_method.py/two-steps")
    ]
    assert found.load_file(tmp_path / "." / "my_method.py") == entries
    cls = found.load_class(found.find("adversary", "two-steps"))
    assert cls.__pydantic_fields__["size"].description == "How far."  # type: ignore[attr-defined]
    with pytest.raises(UsageError):
        discovered().find("adversary", "two-steps")


def test_a_local_file_may_declare_its_components(tmp_path: Path) -> None:
    file = tmp_path / "declared.py"
    declaration = DECLARATION + "    yield Registration('adversary', 'mine', f'{__name__}:FGM', 'Mine.')\n"
    file.write_text(METHOD + declaration)
    found = discovered()
    found.load_file(file)
    assert found.load_class(found.find("adversary", "mine")).__name__ == "FGM"


@pytest.mark.parametrize(
    ("name", "code", "error", "message"),
    [
        ("none.py", None, UsageError, "no such file; expected a Python file"),
        (".", None, UsageError, "a directory; expected a Python file"),
        ("empty.py", "", UsageError, "no component in it; expected a subclass of one of the kinds"),
        ("broken.py", "1/0", PluginError, "importing it failed: ZeroDivisionError: division by zero"),
        ("wrong.py", METHOD.replace("attack", "atack"), PluginError, "atack is no hook point: did you mean 'attack'?"),
        ("invalid.py", DECLARATION + "    yield 3", PluginError, "alignkit_components gave 3"),
    ],
)
def test_local_files_that_cannot_be_used(
    tmp_path: Path, name: str, code: str | None, error: type[Exception], message: str
) -> None:
    if code is not None:
        (tmp_path / name).write_text(code)
    with pytest.raises(error) as caught:
        discovered().load_file(tmp_path / name)
    assert message in str(caught.value)
    assert str((tmp_path / name).resolve()) in str(caught.value)


def test_a_hundred_plugins_are_listed_in_no_time_and_without_torch(install: Install, tmp_path: Path) -> None:
    for i in range(100):
        install(f"plugin-{i}", fgm(f"plugin_{i}").replace('"fgm"', f'"fgm-{i}"'), methods="import torch")
    started = time.perf_counter()
    assert len(discovered().entries()["adversary"]) >= 100
    assert time.perf_counter() - started < 1.0
    code = "import sys, alignkit; n = len(alignkit.catalogue()['adversary']); print(n, 'torch' in sys.modules)"
    path = os.pathsep.join([str(tmp_path / "site"), *sys.path])
    environment = {**os.environ, "PYTHONPATH": path, "ALIGNKIT_PLUGINS": ",".join(f"plugin_{i}" for i in range(100))}
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert result.stdout == "100 False\n"
