"""Reads the chapters, for the pages that are written from them.

The numbered statements, the titles, the texts, and which chapter holds a label.
"""

import re
from functools import cache
from pathlib import Path
from typing import NamedTuple

import nbformat
import yaml

BOOK = Path(__file__).parent
BLOCK = re.compile(
    r"^(?P<fence>`{3,}|:{3,})\{prf:(?P<kind>\w+)\} (?P<title>.*?)\n"
    r":label: (?P<label>\S+)\n(?P<body>.*?)^(?P=fence)$",
    re.DOTALL | re.MULTILINE,
)
EQUATION = re.compile(r"^\s*:label: (eq-\S+)$", re.MULTILINE)
LABEL = re.compile(
    r"^\s*:label: (\S+)$|^\(([\w-]+)\)=$|^\s*\$\$ \(([\w-]+)\)$", re.MULTILINE
)


class Statement(NamedTuple):
    """A numbered environment of a chapter, with the labels of its equations."""

    chapter: str
    kind: str
    label: str
    title: str
    equations: list[str]
    body: str


def notebooks() -> list[str]:
    """The names of all notebooks, in the order of the book."""
    return sorted(path.stem for path in BOOK.glob("*.ipynb"))


@cache
def text(name: str) -> str:
    """What a notebook says, without its code."""
    cells = nbformat.read(BOOK / f"{name}.ipynb", as_version=4).cells
    return "\n\n".join(c.source for c in cells if c.cell_type == "markdown")


def statements() -> list[Statement]:
    """All numbered environments, in the order of the book."""
    found = []
    for name in notebooks():
        for block in BLOCK.finditer(text(name)):
            equations = EQUATION.findall(block["body"])
            # What follows a semicolon names the paper; it has its own column.
            title = block["title"].split(";")[0]
            kind, label, body = block["kind"], block["label"], block["body"]
            found.append(Statement(name, kind, label, title, equations, body))
    return found


@cache
def headings() -> dict[str, str]:
    """The number and the title of each chapter, as the built pages have them."""
    toc = (BOOK.parent / "_toc.yml").read_text(encoding="utf-8")
    files = [
        chapter["file"].removeprefix("book/")
        for part in yaml.safe_load(toc)["parts"]
        if part.get("numbered")
        for chapter in part["chapters"]
    ]
    titles = (re.search(r"^# (.+)$", text(name), re.MULTILINE)[1] for name in files)
    numbered = enumerate(zip(files, titles, strict=True), start=1)
    return {name: f"{number}. {title}" for number, (name, title) in numbered}


@cache
def places() -> dict[str, str]:
    """For each label of a section, statement, exercise or equation its notebook."""
    return {
        next(filter(None, groups)): name
        for name in notebooks()
        for groups in LABEL.findall(text(name))
    }


def link(label: str) -> str:
    """Links to a labelled place and to its chapter."""
    name = places().get(label)
    if not name:
        raise ValueError(
            f"no chapter has the label {label!r}: mend it, or the list"
        )
    number = headings().get(name, "").partition(".")[0]
    chapter = (
        f"{{doc}}`chapter {number} <{name}>`" if number else f"{{doc}}`{name}`"
    )
    kind = label.partition("-")[0]
    if kind == "ch":
        return chapter
    role = {"sec": "ref", "ex": "ref", "eq": "eq"}.get(kind, "prf:ref")
    return f"{{{role}}}`{label}`, {chapter}"


def write(pages: dict[Path, str]) -> None:
    """Store pages, with the same bytes on every system."""
    for path, page in pages.items():
        path.write_text(page, encoding="utf-8", newline="\n")
