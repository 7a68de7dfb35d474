"""Ends every entry of the reference with links into the book.

Statements come from `equations.yml`, chapters from what the notebooks import: no
list has to be kept by hand.
"""

from __future__ import annotations

import ast
import json
from collections import defaultdict
from functools import cached_property
from pathlib import Path

import yaml
from sphinx.application import Sphinx

BOOK = Path(__file__).parents[1]


def notebooks() -> dict[str, str]:
    """What to call each notebook; in the order of the book. Empty: its title."""
    parts = yaml.safe_load((BOOK.parent / "_toc.yml").read_text(encoding="utf-8"))[
        "parts"
    ]
    found, number = {}, 0
    for part in parts:
        for chapter in part["chapters"]:
            name = chapter["file"].removeprefix("book/")
            if part.get("numbered"):
                number += 1
                found[name] = f"chapter {number}"
            elif (BOOK / f"{name}.ipynb").exists():
                found[name] = ""
    return found


def imported(notebook: str) -> set[str]:
    """The names that a notebook imports from the package."""
    text = (BOOK / f"{notebook}.ipynb").read_text(encoding="utf-8")
    cells = [c for c in json.loads(text)["cells"] if c["cell_type"] == "code"]
    return {
        name.name
        for cell in cells
        for node in ast.walk(ast.parse("".join(cell["source"])))
        if isinstance(node, ast.ImportFrom) and node.module.startswith("invbayes")
        for name in node.names
    }


def statements() -> dict[str, list[str]]:
    """The labels of the statements that each name computes, in the book's order."""
    found = defaultdict(list)
    for entry in yaml.safe_load(
        (BOOK / "equations.yml").read_text(encoding="utf-8")
    ):
        for name in entry["code"]:
            found[name].append(entry["label"])
    return found


class Links:
    """Adds the links to docstrings, while Sphinx reads them."""

    # Read when the first entry asks: a page built alone has no reference.
    @cached_property
    def labels(self) -> dict[str, list[str]]:
        """For each name the labels of its statements."""
        return statements()

    @cached_property
    def notebooks(self) -> dict[str, tuple[str, set[str]]]:
        """For each notebook what to call it, and the names that it imports."""
        return {name: (text, imported(name)) for name, text in notebooks().items()}

    def used(self, name: str) -> list[str]:
        """Links to the notebooks that import a function or class."""
        short = name.rpartition(".")[2]
        return [
            f":doc:`{text} </book/{notebook}>`"
            if text
            else f":doc:`/book/{notebook}`"
            for notebook, (text, names) in self.notebooks.items()
            if short in names
        ]

    def add(
        self,
        _app: Sphinx,
        what: str,
        name: str,
        _found: object,
        _options: object,
        lines: list[str],
    ) -> None:
        """One paragraph at the end: what an entry computes, where it is used."""
        computes = [f":prf:ref:`{label}`" for label in self.labels.get(name, [])]
        used = self.used(name) if what in {"function", "class"} else []
        parts = {"computes": computes, "used in": used}
        said = [
            f"{verb} {', '.join(links)}" for verb, links in parts.items() if links
        ]
        if said:
            lines += ["", f"*In the book:* {'; '.join(said)}.", ""]


def setup(app: Sphinx) -> dict[str, bool]:
    """Called by Sphinx; late, when the docstrings' sections have been read."""
    app.connect("autodoc-process-docstring", Links().add, priority=900)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
