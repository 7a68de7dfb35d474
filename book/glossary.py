"""Write the glossary, `glossary.md`, from `glossary.yml`: run by `make execute`.

Sphinx puts its terms into the search and the index. The tests ask for an entry for
every definition of the chapters and for every word that a chapter prints in bold.
"""

from pathlib import Path

import yaml
from book.chapters import BOOK, link, write

INTRO = """\
# Glossary

The words of the book, each in one sentence, with the place that defines it or uses
it first. Letters and signs are on the page {doc}`notation`.

````{glossary}
:sorted:
"""


def entries() -> list[dict]:
    """The terms, as `glossary.yml` lists them."""
    return yaml.safe_load((BOOK / "glossary.yml").read_text(encoding="utf-8"))


def entry(listed: dict) -> str:
    """A term with its other names; its sentence, and the place."""
    names = [listed["term"], *listed.get("also", [])]
    return "\n".join([*names, f"  {listed['says']} See {link(listed['at'])}."])


def pages() -> dict[Path, str]:
    """The text of the page."""
    terms = "\n\n".join(map(entry, entries()))
    return {BOOK / "glossary.md": f"{INTRO}{terms}\n````\n"}


if __name__ == "__main__":
    write(pages())
