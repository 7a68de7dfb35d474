"""Give every chapter the cell that Google Colab needs, or take it away.

Run by `make execute`. Colab opens a chapter alone, without the package that it
imports; the cell installs it there, and does nothing elsewhere. The address comes
from `_config.yml`; where that names none, no chapter has the cell.
"""

from pathlib import Path

import nbformat
import yaml
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell

BOOK = Path(__file__).parent
NAME = "colab"
SOURCE = """\
import sys

if "google.colab" in sys.modules:  # there, the chapter comes without its package
    package = "invbayes[chapters] @ git+{url}@{branch}"
    get_ipython().run_line_magic("pip", f"install --quiet '{{package}}'")"""


def repository() -> dict[str, str]:
    """The public address, empty where there is none, and the branch."""
    return yaml.safe_load(
        (BOOK.parent / "_config.yml").read_text(encoding="utf-8")
    )["repository"]


def prepared(chapter: NotebookNode, url: str, branch: str) -> NotebookNode:
    """The chapter with the cell in front of its first code, or without it."""
    cells = [cell for cell in chapter.cells if cell.id != NAME]
    if url:
        source = SOURCE.format(url=url, branch=branch)
        tags = {"tags": ["remove-cell"]}
        first = [cell.cell_type for cell in cells].index("code")
        cells.insert(first, new_code_cell(source, id=NAME, metadata=tags))
    return NotebookNode(chapter, cells=cells)


def main() -> None:
    """Rewrite every chapter."""
    for path in BOOK.glob("*.ipynb"):
        chapter = nbformat.read(path, as_version=4)
        nbformat.write(prepared(chapter, **repository()), path)


if __name__ == "__main__":
    main()
