"""Write the pages that lead from each numbered statement to its code and its test.

Run by `make execute`. `equations.yml` says which function computes a statement and
which test checks it; titles and equations are read from the chapters. The tests
compare the stored pages with fresh ones; the build fails if a link leads nowhere.
"""

import re
from itertools import compress, groupby
from operator import attrgetter
from pathlib import Path
from typing import NamedTuple

import nbformat
import yaml

import invbayes

BOOK = Path(__file__).parent
BLOCK = re.compile(
    r"^(?P<fence>`{3,}|:{3,})\{prf:\w+\} (?P<title>.*?)\n"
    r":label: (?P<label>\S+)\n(?P<body>.*?)^(?P=fence)$",
    re.DOTALL | re.MULTILINE,
)
EQUATION = re.compile(r"^\s*:label: (eq-\S+)$", re.MULTILINE)

INTRO = """\
# From equation to code

Every numbered statement of the book, the functions that compute it, and the tests
that check it. "Paper" is arXiv 2510.26704, for chapter 8 arXiv 2506.02986. (Chapter
7 has no statements, only measurements.)"""

COLUMNS = ["Statement", "Paper", "Equations", "Code", "Checked by"]
PROPER_NAMES = {
    "bayes": "Bayes",
    "gaussian": "Gaussian",
    "hessian": "Hessian",
    "jacobian": "Jacobian",
    "jacobians": "Jacobians",
    "lipschitz": "Lipschitz",
    "tweedie": "Tweedie",
}

CHECKS = """\
# The checks

The tests that {doc}`from_equation_to_code` names, word for word. `make test`
runs them, and many more. Helpers that several tests share stand above them in
their file, or in `tests/conftest.py`."""


class Statement(NamedTuple):
    """A numbered environment of a chapter, with the labels of its equations."""

    chapter: str
    label: str
    title: str
    equations: list[str]


def statements() -> list[Statement]:
    """All numbered environments, in the order of the book."""
    found = []
    for path in sorted(BOOK.glob("*.ipynb")):
        cells = nbformat.read(path, as_version=4).cells
        text = "\n\n".join(c.source for c in cells if c.cell_type == "markdown")
        for block in BLOCK.finditer(text):
            equations = EQUATION.findall(block["body"])
            # What follows a semicolon names the paper; it has its own column.
            title = block["title"].split(";")[0]
            found.append(Statement(path.stem, block["label"], title, equations))
    return found


def role(name: str) -> str:
    """A link to the reference."""
    short = name.removeprefix("invbayes.")
    found = attrgetter(short)(invbayes)
    inner = isinstance(getattr(invbayes, short.split(".")[0]), type)
    kind = {property: "attr", type: "class"}.get(
        type(found), "meth" if inner else "func"
    )
    breakable = short.replace(".", ".\N{ZERO WIDTH SPACE}")
    return f"{{py:{kind}}}`{breakable} <{name}>`"


def target(test: str) -> str:
    """The label under which a test stands on the page of checks."""
    return "check-" + re.sub(r"[\W_]+", "-", test.removeprefix("tests/"))


def spoken(test: str) -> str:
    """A test's name in words."""
    words = test.split("::")[1].removeprefix("test_").split("_")
    text = " ".join(PROPER_NAMES.get(word, word) for word in words)
    return (text[0].upper() + text[1:]).replace("map estimate", "MAP estimate")


def row(statement: Statement, entry: dict) -> list[str]:
    """One line of the table."""
    checks = [
        f"{{ref}}`{spoken(test)} <{target(test)}>`" for test in entry["tests"]
    ]
    return [
        f'<span id="row-{statement.label}"></span>{{prf:ref}}`{statement.label}`: '
        + statement.title,
        entry.get("paper", ""),
        " ".join(f"{{eq}}`{label}`" for label in statement.equations),
        " · ".join(map(role, entry["code"])),
        " · ".join(checks),
    ]


def table(chapter: str, rows: list[list[str]]) -> str:
    """The statements of a chapter, without the columns that none of them fills."""
    filled = [any(cells) for cells in zip(*rows, strict=True)]
    lines = [COLUMNS, ["---"] * len(COLUMNS), *rows]
    text = "\n".join(
        "| " + " | ".join(compress(cells, filled)) + " |" for cells in lines
    )
    return f"""
## Chapter {int(chapter[:2])}

```{{table}}
:class: statements
{text}
```"""


def source(test: str) -> str:
    """A test with its own source."""
    path, name = test.split("::")
    return f"""
({target(test)})=
## {spoken(test)}

`{path}`

```{{literalinclude}} ../{path}
:pyobject: {name}
```"""


def pages() -> dict[Path, str]:
    """The text of both pages."""
    listed = yaml.safe_load((BOOK / "equations.yml").read_text())
    entries = {entry["label"]: entry for entry in listed}
    tables = [
        table(
            chapter,
            [row(statement, entries[statement.label]) for statement in some],
        )
        for chapter, some in groupby(statements(), lambda found: found.chapter)
    ]
    tests = sorted({test for entry in listed for test in entry["tests"]})
    return {
        BOOK / "from_equation_to_code.md": "\n".join([INTRO, *tables]) + "\n",
        BOOK / "checks.md": "\n".join([CHECKS, *map(source, tests)]) + "\n",
    }


def main() -> None:
    """Write both pages."""
    for path, text in pages().items():
        path.write_text(text)


if __name__ == "__main__":
    main()
