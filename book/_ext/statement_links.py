"""Puts a link to code and check beside the title of every numbered statement.

The link leads to the statement's row on the page from equation to code; the link
check in tests/browser fails where that row is missing.
"""

from __future__ import annotations

import re
from pathlib import Path

from sphinx.application import Sphinx

TITLE = re.compile(
    r'(<div class="proof \w+ admonition" id="(?P<label>[^"]+)">\s*'
    r'<p class="admonition-title">.*?)(?=</p>)',
    re.DOTALL,
)
ROW = r"from_equation_to_code.html#row-\g<label>"
LINK = rf'\1 <a class="to-code" href="{ROW}">code and check</a>'


def add(app: Sphinx, error: Exception | None) -> None:
    """Rewrite the chapters, once all pages have been written."""
    if error or app.builder.format != "html":
        return
    for path in Path(app.outdir, "book").glob("[0-9]*.html"):
        text = path.read_text(encoding="utf-8")
        path.write_text(TITLE.sub(LINK, text), encoding="utf-8")


def setup(app: Sphinx) -> dict[str, bool]:
    """Called by Sphinx."""
    app.connect("build-finished", add)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
