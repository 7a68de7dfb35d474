"""Mends the built pages where neither Jupyter Book nor the theme has an option.

The tests in tests/browser found these, and fail without them.
"""

from __future__ import annotations

import re
from pathlib import Path

from sphinx.application import Sphinx

# What a page cannot use when it is opened from a file path.
UNUSABLE = re.compile(
    r"""
    # Fonts asked for ahead of time, in a way (crossorigin) that browsers refuse for
    # files. The stylesheets ask for those they need again, in a way that works.
    <link\ rel="preload"\ as="font"[^>]*>
    # Thebe, which runs cells on a server: no page here has its button, its settings
    # name outside hosts, and Sphinx writes them twice, which is an error.
    |<link\ [^>]*sphinx-thebe\.css[^>]*>
    |<script\ [^>]*sphinx-thebe\.js[^>]*></script>
    |<script>const\ THEBE_JS_URL\b.*?</script>
    |<script\ type="text/x-thebe-config">.*?</script>
    |<script>kernelName\ =.*?</script>
    """,
    re.VERBOSE | re.DOTALL,
)


# A formula in the text with its punctuation: no line may begin with a full stop.
ENDED = re.compile(
    r'(\(?<span class="math notranslate nohighlight">[^<]*</span>[.,;:?!)\]’”]+)'
)

# A number and its per cent stay on one line, but for what is to be copied.
PARTED = re.compile(r"(<(pre|code)\b.*?</\2>)|(?<=[\d>]) %", re.DOTALL)


def clean(app: Sphinx, error: Exception | None) -> None:
    """Rewrite every page, once all of them have been written."""
    if error or app.builder.format != "html":
        return
    for path in Path(app.outdir).rglob("*.html"):
        text = UNUSABLE.sub("", path.read_text(encoding="utf-8"))
        text = ENDED.sub(r'<span class="math-end">\1</span>', text)
        text = PARTED.sub(lambda found: found[1] or "\N{NO-BREAK SPACE}%", text)
        # Docutils' role for a reference is out of use, and is no item of a list.
        text = text.replace(' role="doc-biblioentry"', ' role="listitem"')
        path.write_text(text, encoding="utf-8")


def setup(app: Sphinx) -> dict[str, bool]:
    """Called by Sphinx."""
    app.connect("build-finished", clean)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
