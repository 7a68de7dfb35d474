"""Puts the version, read from `pyproject.toml`, into every page's last line."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx
from sphinx.config import Config

ROOT = Path(__file__).parents[2]


def apply(_app: Sphinx, config: Config) -> None:
    """Tell Sphinx the version: pages, the PDF and the inventory know it."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    config.version = config.release = tomllib.loads(text)["project"]["version"]


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
