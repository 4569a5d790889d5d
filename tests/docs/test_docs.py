"""The documentation is complete, up to date, and its examples run.

A fenced block is left out by `<!-- skip: REASON -->` on the line before it. Python blocks of a page run one after
another in one namespace; a block whose fence names a file (```python src/x.py) is that file of a plugin package.
"""

from __future__ import annotations

import importlib.util
import inspect
import json
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import typer

import alignkit
from alignkit.catalogue import default_catalogue
from alignkit.cli import COMMANDS, application
from alignkit.components import Component
from alignkit.compose import Composition
from alignkit.data.load import load as load_data
from alignkit.data.source import Data, Source
from alignkit.hookspecs import HOOK_POINTS, KINDS, Run
from alignkit.models import Peft
from alignkit.preflight import plan_of
from alignkit.recipe import RECIPE_DEFAULTS, EarlyStopping, Evaluation, Recipe
from alignkit.recipe.file import parse
from alignkit.step import TrainingStep
from alignkit.tasks.stock import StockTask
from alignkit.testing import collate, examples, tiny

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted([*DOCS.glob("*.md"), ROOT / "README.md"])
CARDS = sorted(ROOT.glob("plugins/*/README.md"))
FENCE = re.compile(
    r"^(?:<!-- skip: (?P<skip>\S.*?) -->\n)?```(?P<language>\w+) *(?P<file>[^\n]*)\n(?P<code>.*?)^```$", re.M | re.S
)
BASE = {"model": "runs/plain", "task": "ner", "data": {"train": "train.conll", "validation": "dev.conll"}}
"""What a recipe's fragment in the text stands in."""


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    page: Path
    line: int
    """Of its first line of code."""
    language: str
    file: str
    code: str
    skip: str


def blocks(*languages: str, pages: list[Path] = PAGES, skipped: bool = False) -> list[Block]:
    found = []
    for page in pages:
        text = page.read_text("utf-8")
        for match in FENCE.finditer(text):
            line = text.count("\n", 0, match.start("code")) + 1
            found.append(Block(page, line, match["language"], match["file"], match["code"], match["skip"] or ""))
    return [b for b in found if b.language in languages and bool(b.skip) == skipped]


def named(value: Block) -> str:
    return f"{value.page.relative_to(ROOT)}:{value.line}"


def page(name: str) -> str:
    return (DOCS / name).read_text("utf-8")


def section(text: str, title: str, level: int = 2) -> str:
    """What stands under a heading, up to the next of its level."""
    found = re.search(rf"^#{{{level}}} {re.escape(title)}\b.*?\n(.*?)(?=^#{{1,{level}}} |\Z)", text, re.M | re.S)
    assert found, f"no section {title!r}"
    return found[1]


# -- up to date --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["commands.md", "components.md"])
def test_generated_pages_are_as_the_code_is(name: str) -> None:
    spec = importlib.util.spec_from_file_location("docs_generate", DOCS / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    generate = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generate)
    assert page(name) == generate.PAGES[name](), "run `python docs/generate.py`"


def test_links_lead_somewhere() -> None:
    for file in (*PAGES, *CARDS):
        for target in re.findall(r"\]\(([^)\s]+)\)", file.read_text("utf-8")):
            path, _, anchor = target.partition("#")
            if "://" in target:
                continue
            linked = (file.parent / path).resolve() if path else file
            if linked.suffix == ".png" or linked.is_relative_to(ROOT / "benchmarks"):
                continue  # made by scripts
            assert linked.exists(), f"{file.name} links to {target}"
            if anchor:
                titles = re.findall(r"^#+ (.*)$", linked.read_text("utf-8"), re.M)
                known = {re.sub(r"[^\w\- ]", "", t.lower()).replace(" ", "-") for t in titles}
                assert anchor in known, f"{file.name} links to {target}"


def test_tests_that_are_named_exist() -> None:
    for file, name in re.findall(r"`((?:tests|plugins)/\S+?\.py)::(\w+)`", page("numerics.md")):
        assert f"def {name}(" in (ROOT / file).read_text("utf-8"), f"{file}::{name}"


# -- complete ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("point", HOOK_POINTS)
def test_every_hook_point_is_documented_with_its_signature(point: str) -> None:
    signature = re.sub(r"'([^']*)'", r"\1", str(inspect.signature(getattr(Run, point))))
    assert f"`{point}{signature}`" in section(page("hook-points.md"), point)


def test_everything_that_a_step_offers_is_documented() -> None:
    model, _, _ = tiny("bert-token-classification")
    composition = Composition([], StockTask())
    context: Any = type("Context", (), {"composition": composition, "task": composition.task})()
    step = TrainingStep(context, model, collate("bert-token-classification", examples("bert-token-classification", 2)))
    offered = {n for n in (*vars(step), *vars(TrainingStep)) if not n.startswith("_")}
    documented = set(re.findall(r"`(\w+)", section(page("hook-points.md"), "TrainingStep")))
    assert offered <= documented, offered - documented


def test_everything_that_a_component_declares_is_documented() -> None:
    declared = {n for n in vars(Component) if not n.startswith("_")} - {"kind", "hook_points", "must_override"}
    documented = set(re.findall(r"`(\w+)", section(page("hook-points.md"), "What a component declares")))
    assert declared - {"reset", "fields"} <= documented, declared - documented


@pytest.mark.parametrize("model", [Recipe, Data, Source, Evaluation, EarlyStopping, Peft])
def test_every_field_of_a_recipe_is_documented(model: Any) -> None:
    text = page("recipes.md")
    assert [name for name in model.model_fields if not re.search(rf"`[^`\n]*\b{name}\b[^`\n]*`", text)] == []


def test_every_section_of_a_recipe_has_a_row_and_a_heading() -> None:
    assert re.findall(r"^\| `(\w+)` \|", page("recipes.md"), re.M)[: len(Recipe.model_fields)] == [
        *[name for name in Recipe.model_fields if name != "plugins"],
        "plugins",
    ]
    titles = " ".join(re.findall(r"^## (.*)$", page("recipes.md"), re.M)).split()
    assert sorted(set(Recipe.model_fields) - set(titles) - {"task"}) == []


def test_recipe_defaults_are_as_documented() -> None:
    block = next(b for b in blocks("yaml", pages=[DOCS / "recipes.md"]) if b.code.startswith("training:"))
    assert parse(block.code)["training"] == RECIPE_DEFAULTS


def test_every_command_and_kind_is_documented() -> None:
    assert re.findall(r"^## (.*)$", page("commands.md"), re.M) == list(COMMANDS)
    assert set(KINDS) <= set(re.findall(r"^\| ([\w-]+) \|", page("index.md"), re.M))


def test_every_public_name_is_documented() -> None:
    documented = set(re.findall(r"`(\w+)`", page("python.md")))
    assert set(alignkit.__all__) <= documented, set(alignkit.__all__) - documented


def test_everything_in_a_run_folder_is_documented(prepared: Path) -> None:
    text, run = page("run-folder.md"), prepared / "runs" / "plain"
    for path in run.iterdir():
        assert f"`{path.name}" in text, path.name
    checkpoint = next(run.glob("checkpoints/checkpoint-*"))
    for name in ("components", "alignkit.json"):
        assert (checkpoint / name).exists()
        assert f"`{name}" in text
    for path in (run / "memory" / "replay").iterdir():
        assert f"`{path.name}`" in text
    for key in json.loads((run / "lineage.json").read_text()):
        assert f"`{key}`" in section(text, "lineage.json"), key
    shown = {b.code.split('"')[1]: json.loads(b.code) for b in blocks("json", pages=[DOCS / "run-folder.md"])}
    assert set(json.loads((run / "audit.jsonl").read_text().splitlines()[0])) == set(shown["split"])
    metrics = json.loads((run / "metrics.json").read_text())
    assert set(metrics) == set(shown["before"])
    for side in ("before", "after", "difference"):
        assert set(metrics[side]["test"]["f1"]) == set(shown["before"][side]["test"]["f1"])


# -- cards of plugins --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("card", CARDS, ids=lambda path: path.parent.name)
def test_every_method_of_a_plugin_has_a_card_that_names_its_fields(card: Path) -> None:
    catalogue, text = default_catalogue(), card.read_text("utf-8")
    own = [e for es in catalogue.entries().values() for e in es.values() if e.distribution == card.parent.name]
    assert own, f"{card.parent.name} registers nothing, or is not installed"
    introduction = text.partition("\n## ")[0]
    for entry in own:
        fields = catalogue.load_class(entry).__pydantic_fields__  # type: ignore[attr-defined]  # set by the base
        title = f"Attack: {entry.name}" if entry.kind == "attack" else entry.name
        about = introduction + section(text, title)
        missing = [name for name in fields if name != "weight" and not re.search(rf"\b{name}\b", about)]
        assert missing == [], f"{entry.name}: its card does not mention {missing}"


# -- examples run ------------------------------------------------------------------------------------------------


def test_blocks_are_skipped_for_a_reason() -> None:
    skipped = blocks("python", "yaml", skipped=True)
    assert len(skipped) <= 3, "an example that cannot be run should be rare"


@pytest.mark.parametrize("block", blocks("yaml", pages=[*PAGES, *CARDS]), ids=named)
def test_recipes_are_valid(block: Block, workplace: Path) -> None:
    fields = parse(block.code)
    assert isinstance(fields, dict)
    (workplace / "my_method.py").write_text(method(), "utf-8")
    if str(fields.get("model", "")).startswith("alignkit-demo/"):
        fields["model"] = BASE["model"]
    file = workplace / "recipe.json"
    file.write_text(json.dumps(fields if "model" in fields else {**BASE, **fields}), "utf-8")
    recipe = Recipe.load(file)
    load_data(recipe.data, recipe.task, recipe.base)
    if not isinstance(recipe.model, str) or (workplace / recipe.model).exists():
        plan_of(recipe)


@pytest.mark.parametrize("path", [p for p in PAGES if blocks("python", pages=[p])], ids=lambda path: path.name)
def test_python_runs(path: Path, workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_page(path, monkeypatch)


def test_hook_points_are_shown_by_components_that_compose(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = run_page(DOCS / "hook-points.md", monkeypatch)
    made = [v() for v in vars(module).values() if isinstance(v, type) and v.__module__ == module.__name__]
    assert {point for component in made for point in component.hook_points} == set(HOOK_POINTS)
    for component in made:
        Composition([component], StockTask())


def run_page(path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Run a page's Python blocks in a module of their own."""
    module = ModuleType(f"docs_{path.stem.replace('-', '_')}")
    module.__dict__.update(prelude() if path.name == "README.md" else {})
    monkeypatch.setitem(sys.modules, module.__name__, module)  # pydantic resolves annotations through it
    for block in blocks("python", pages=[path]):
        if not block.file:
            code = "\n" * (block.line - 1) + block.code  # so that a traceback names the page's own line
            exec(compile(code, str(path), "exec", dont_inherit=True), module.__dict__)
    return module


def prelude() -> dict[str, Any]:
    """What the README's examples take for granted."""
    from alignkit_constraints import KLReference
    from alignkit_fusion import EMA
    from transformers import TrainingArguments

    model, tokenizer, _ = tiny("bert-token-classification")
    args = TrainingArguments(output_dir="trainer", max_steps=1, report_to="none", use_cpu=True, disable_tqdm=True)
    names = {"model": model, "tokenizer": tokenizer, "args": args, "data": examples("bert-token-classification", 4)}
    trainer = type("AlignTrainer", (alignkit.AlignTrainer,), {})

    def made(**given: Any) -> Any:
        return trainer(**given, data_collator=lambda rows: collate("bert-token-classification", rows))

    return names | {"AlignTrainer": made, "KLReference": KLReference, "EMA": EMA}


def method() -> str:
    """The method that writing-a-plugin.md makes, as a local file."""
    return next(b.code for b in blocks("python") if b.file.endswith("hesitation/hesitation.py"))


@pytest.fixture
def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The package of writing-a-plugin.md, importable."""
    for block in blocks("python", "toml", pages=[DOCS / "writing-a-plugin.md"]):
        if block.file:
            (tmp_path / block.file).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / block.file).write_text(block.code, "utf-8")
    (tmp_path / "src" / "alignkit_hesitation" / "__init__.py").touch()
    monkeypatch.syspath_prepend(str(tmp_path / "src"))
    yield tmp_path
    for name in [name for name in sys.modules if name.partition(".")[0] == "alignkit_hesitation"]:
        del sys.modules[name]


def test_the_plugin_that_is_written_declares_itself_without_torch(written: Path) -> None:
    points = tomllib.loads((written / "pyproject.toml").read_text("utf-8"))["project"]["entry-points"]["alignkit"]
    code = (
        f"import sys; sys.path.insert(0, {str(written / 'src')!r});"
        f"from {points['hesitation']} import alignkit_components; [r] = alignkit_components();"
        "print(r.target, sorted({'torch', 'transformers'} & set(sys.modules)))"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said == "alignkit_hesitation.hesitation:Hesitation []\n"


def test_the_plugin_that_is_written_passes_its_tests(written: Path) -> None:
    options = ["-q", "-p", "no:cacheprovider", f"--rootdir={written}", "-c", str(written / "pyproject.toml")]
    assert pytest.main([*options, str(written / "tests")]) == 0


@pytest.mark.parametrize("block", blocks("bash", pages=[*PAGES, *CARDS]), ids=named)
def test_command_lines_are_those_of_the_commands(block: Block) -> None:
    for line in block.code.splitlines():
        words = shlex.split(line, comments=True)
        if words[:1] == ["alignkit"]:
            group: Any = typer.main.get_command(application(words[1]))
            group.commands[words[1]].make_context(words[1], words[2:])
