"""What follows from the book's public address, `repository.url` in `_config.yml`.

With an address, chapters have buttons for Binder and Colab, pages have one for the
repository, and previews of shared links name the page where the workflow publishes
it, on GitHub Pages. Without one there are no buttons: they would lead nowhere.
"""

from __future__ import annotations

from sphinx.application import Sphinx
from sphinx.config import Config


def apply(_app: Sphinx, config: Config) -> None:
    """Fill in, or take away, what needs the address."""
    options = config.html_theme_options
    url = options.get("repository_url")
    options["use_repository_button"] = options["use_issues_button"] = bool(url)
    if not url:
        options["launch_buttons"] = {}
        return
    owner, name = url.rstrip("/").split("/")[-2:]
    site = f"https://{owner.lower()}.github.io/{name}/"
    config.html_baseurl = config.ogp_site_url = site


def setup(app: Sphinx) -> dict[str, bool]:
    """Called by Sphinx."""
    app.connect("config-inited", apply)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
