"""Write the pages that lead from each numbered statement to its code and its test.

Run by `make execute`. `equations.yml` says whose a statement is, which function
computes it and which test checks it; titles and equations are read from the
chapters. The tests compare the stored pages with fresh ones; the build fails if a
link leads nowhere.
"""

import ast
import re
from itertools import compress, groupby
from operator import attrgetter
from pathlib import Path

import yaml
from book.chapters import BOOK, Statement, headings, statements, write

import invbayes

INTRO = """\
# From equation to code

Every numbered statement of the book, the functions that compute it, and the tests
that check it. "Paper" says whose it is: "ours" is what we found nowhere else, and
"the paper's" what comes from the abstract, the captions or Lemma 1 of
{cite:t}`heilenkotter2025regularization`, in the chapter on a deep prior of
{cite:t}`buskulic2025implicit`. "Our reconstruction" marks a theorem of which we had
its name and a summary, but not the wording."""

COLUMNS = ["Statement", "Paper", "Equations", "Code", "Checked by"]
NO_ENTRY = {"code": [], "tests": []}
PROPER_NAMES = {
    "bayes": "Bayes",
    "douglas": "Douglas",
    "gaussian": "Gaussian",
    "hessian": "Hessian",
    "hessians": "Hessians",
    "jacobian": "Jacobian",
    "jacobians": "Jacobians",
    "laplacian": "Laplacian",
    "lipschitz": "Lipschitz",
    "rachford": "Rachford",
    "tweedie": "Tweedie",
}
# "map" alone is also any function.
ESTIMATE = re.compile(
    r"\bmap(?= estimate| gradient| jumps| are)|(?<=close to )map\b"
)

CHECKS = """\
---
orphan: true
---

# The checks

The tests that {doc}`from_equation_to_code` names, in the order of the book: what a
test checks, for which statements, and, unfolded, its code. `make test` runs them,
and many more. Helpers that several tests share stand above them in their file, or
in `tests/conftest.py`."""


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
    text = ESTIMATE.sub("MAP", text)
    return text[0].upper() + text[1:]


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


def table(heading: str, rows: list[list[str]]) -> str:
    """The statements of a chapter, without the columns that none of them fills."""
    filled = [any(cells) for cells in zip(*rows, strict=True)]
    lines = [COLUMNS, ["---"] * len(COLUMNS), *rows]
    text = "\n".join(
        "| " + " | ".join(compress(cells, filled)) + " |" for cells in lines
    )
    return f"""
## {heading}

```{{table}}
:class: statements
{text}
```"""


def summary(test: str) -> str:
    """The first line of a test's docstring, with Markdown's own signs escaped."""
    path, name = test.split("::")
    tree = ast.parse((BOOK.parent / path).read_text(encoding="utf-8"))
    (found,) = (node for node in tree.body if getattr(node, "name", "") == name)
    first = (ast.get_docstring(found) or "").partition("\n")[0]
    return re.sub(r"([*_`|\\])", r"\\\1", first)


def source(test: str, labels: list[str]) -> str:
    """A test: what it says, the statements it checks, and its code, folded."""
    path, name = test.split("::")
    links = ", ".join(f"{{prf:ref}}`{label}`" for label in labels)
    return f"""
({target(test)})=
### {spoken(test)}

{f"{summary(test)} (For {links}.)" if summary(test) else f"For {links}."}

:::{{admonition}} `{path}`
:class: dropdown

```{{literalinclude}} ../{path}
:pyobject: {name}
```
:::"""


def pages() -> dict[Path, str]:
    """The text of both pages."""
    listed = yaml.safe_load((BOOK / "equations.yml").read_text(encoding="utf-8"))
    entries = {entry["label"]: entry for entry in listed}
    checked: dict[str, list[str]] = {}
    for entry in listed:
        for test in entry["tests"]:
            checked.setdefault(test, []).append(entry["label"])
    titles, tables, checks, shown = headings(), [INTRO], [CHECKS], set()
    for chapter, found in groupby(statements(), lambda found: found.chapter):
        # A statement without an entry: the tests complain, the page is made.
        some = [(one, entries.get(one.label, NO_ENTRY)) for one in found]
        rows = [row(statement, entry) for statement, entry in some]
        tables.append(table(titles[chapter], rows))
        checks.append(f"\n## {titles[chapter]}")
        for test in (test for _, entry in some for test in entry["tests"]):
            if test not in shown:
                checks.append(source(test, checked[test]))
                shown.add(test)
    return {
        BOOK / "from_equation_to_code.md": "\n".join(tables) + "\n",
        BOOK / "checks.md": "\n".join(checks) + "\n",
    }


if __name__ == "__main__":
    write(pages())
