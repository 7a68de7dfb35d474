"""Puts a link to code and check beside the title of every numbered statement.

The link leads to the statement's row on the page from equation to code; the link
check in tests/browser fails where that row is missing.
"""

from __future__ import annotations

import re
from typing import Any

from sphinx.application import Sphinx

TITLE = re.compile(
    r'(<div class="proof \w+ admonition" id="(?P<label>[^"]+)">\s*'
    r'<p class="admonition-title">.*?)(?=</p>)',
    re.DOTALL,
)
ROW = r"from_equation_to_code.html#row-\g<label>"
LINK = rf'\1 <a class="to-code" href="{ROW}">code and check</a>'


def add(
    _app: Sphinx, _page: str, _template: str, context: dict[str, Any], _tree: object
) -> None:
    """Add the links to a page's body, before it is written."""
    if "body" in context:
        context["body"] = TITLE.sub(LINK, context["body"])


def setup(app: Sphinx) -> dict[str, bool]:
    """Called by Sphinx."""
    app.connect("html-page-context", add)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
