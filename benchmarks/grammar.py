"""How often the rule of `counterfactual` that takes `her` for `his` or `him` is right.

    python benchmarks/grammar.py FOLDER…

Every `his` and `him` in the folders' files is hidden, and told by what follows it, as the rule is told what follows a
`her`. Beside it, how often `his` would be right.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from alignkit_constraints.grammar import noun_follows

HIDDEN = re.compile(r"(?<![^\W_])(his|him)(?![^\W_])", re.IGNORECASE)


def text_of(file: Path) -> str:
    """A file's text; of files with a word per line (`.conll`) the words."""
    text = file.read_text("utf-8", errors="replace")
    if file.suffix != ".conll":
        return text
    return " ".join(line.split()[0] if line.split() else "\n" for line in text.splitlines())


def told(text: str) -> list[tuple[bool, bool]]:
    """For each place whether `his` stands there, and whether the rule says so."""
    return [(m.group().lower() == "his", noun_follows(text[m.end() : m.end() + 80])) for m in HIDDEN.finditer(text)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path)
    given = parser.parse_args()
    print("| corpus | places | the rule | always `his` |\n|---|---:|---:|---:|")
    everything = []
    for folder in given.folders:
        files = sorted(file for file in folder.rglob("*.*") if file.is_file() and file.suffix != ".md")
        found = [place for file in files for place in told(text_of(file))]
        everything += [(folder.name, found)]
    for name, found in [*everything, ("all", [place for _, places in everything for place in places])]:
        right, his = sum(a == b for a, b in found), sum(a for a, _ in found)
        print(f"| {name} | {len(found):,} | {right / max(len(found), 1):.1%} | {his / max(len(found), 1):.1%} |")


if __name__ == "__main__":
    main()
