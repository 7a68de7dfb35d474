"""Write the page of what to take home from each chapter, `take_home.md`.

Run by `make execute`. The sentences are those that the chapters end with.
"""

import re
from pathlib import Path

from book.chapters import BOOK, headings, text, write

TITLE = "(?:Three sentences to|To) take home"
PASSAGE = re.compile(
    rf"^## {TITLE}\n(?P<section>.*?)(?=^#|^\([\w-]+\)=$|\Z)"
    rf"|^(?P<fence>`{{3,}}|:{{3,}})\{{admonition\}} {TITLE}\n(?::class:[^\n]*\n)?"
    r"(?P<box>.*?)^(?P=fence)$",
    re.DOTALL | re.MULTILINE,
)
INTRO = """\
# To take home

What each chapter leaves you with, in its own words."""


def passage(name: str) -> str:
    """The last word of a chapter."""
    found = PASSAGE.search(text(name))
    words = (found["section"] or found["box"]).strip() if found else ""
    if not words:
        raise ValueError(f'{name} has no, or an empty, section "To take home"')
    return words


def pages() -> dict[Path, str]:
    """The text of the page."""
    parts = [INTRO]
    for name, title in headings().items():
        number = title.partition(".")[0]
        read = f"{{doc}}`Read chapter {number} <{name}>`"
        parts.append(f"## {title}\n\n{passage(name)}\n\n{read}")
    return {BOOK / "take_home.md": "\n\n".join(parts) + "\n"}


if __name__ == "__main__":
    write(pages())
