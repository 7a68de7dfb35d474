"""Puts the version of the installed package into every page's last line."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

from sphinx.application import Sphinx
from sphinx.config import Config


def apply(_app: Sphinx, config: Config) -> None:
    """Tell Sphinx the version."""
    config.version = config.release = version("invbayes")


def add(
    app: Sphinx, _page: str, _template: str, context: dict[str, Any], _tree: object
) -> None:
    """Begin the footer with the version and a link to what changed."""
    url = context["pathto"]("book/changelog")
    line = f'<a href="{url}">Version {app.config.release}</a>.'
    context["theme_extra_footer"] = f"{line} {context['theme_extra_footer']}"


def setup(app: Sphinx) -> dict[str, bool]:
    """Called by Sphinx."""
    app.connect("config-inited", apply)
    app.connect("html-page-context", add)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
