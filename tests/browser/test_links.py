"""Links inside the built book land, and what a page is made of lies beside it. No browser."""

import re
import tomllib
from html.parser import HTMLParser
from pathlib import PurePosixPath
from posixpath import normpath
from urllib.parse import unquote, urlsplit

import pytest

from .conftest import ALL_PAGES

# Links in a page's head that name other pages; all else there is loaded.
NAMED_ONLY = {"index", "search", "next", "prev", "canonical"}


class Page(HTMLParser):
    """The names that can be linked to, the links, and what the browser loads by itself."""

    def __init__(self, text):
        super().__init__()
        self.anchors, self.links, self.parts = set(), [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.anchors |= {attrs[key] for key in ("id", "name") if key in attrs}
        if tag == "a" and "href" in attrs:
            self.links.append(attrs["href"])
        elif tag == "link" and attrs.get("rel") not in NAMED_ONLY:
            self.parts.append(attrs["href"])
        elif "src" in attrs:
            self.parts.append(attrs["src"])


@pytest.fixture(scope="module")
def pages(book):
    return {name: Page((book / name).read_text(encoding="utf-8")) for name in ALL_PAGES}


def target(name, url):
    """The file, from the root of the book, and the place in it."""
    parts = urlsplit(url)
    path = PurePosixPath(name).parent / unquote(parts.path) if parts.path else name
    return normpath(path), unquote(parts.fragment)


def is_local(url):
    return not urlsplit(url).scheme and not urlsplit(url).netloc


@pytest.mark.parametrize("name", ALL_PAGES)
def test_links_land(name, pages, book):
    for url in filter(is_local, pages[name].links):
        path, place = target(name, url)
        assert (book / path).is_file(), url
        # The theme's links to the top of a page.
        if place and path in pages:
            assert place in pages[path].anchors, url


def test_every_numbered_statement_leads_to_its_code_and_check(pages, book):
    text = (book / "book/from_equation_to_code.html").read_text(encoding="utf-8")
    rows = re.findall(r'id="(row-[^"]+)"', text)
    links = [link for name in pages for link in pages[name].links if "#row-" in link]
    assert len(rows) > 40
    assert [link.split("#")[1] for link in links] == rows


@pytest.mark.parametrize("name", ALL_PAGES)
def test_pages_are_made_of_the_books_own_files(name, pages, book):
    for url in pages[name].parts:
        if not url.startswith("data:"):
            assert is_local(url), url
            assert (book / target(name, url)[0]).is_file(), url


def test_every_page_names_the_version_and_what_changed(pages, book):
    project = tomllib.loads((book.parents[1] / "pyproject.toml").read_text(encoding="utf-8"))
    line = f"Version {project['project']['version']}</a>."
    # index.html only leads on; a page of source code is written anew when the code changes.
    without = [n for n in pages if line not in (book / n).read_text(encoding="utf-8")]
    assert [n for n in without if not n.startswith("_modules")] == ["index.html"]


@pytest.mark.parametrize("name", ALL_PAGES)
def test_pages_are_small_with_their_pictures(name, pages, book):
    """Three megabytes, fonts, styles and scripts, which the pages share, apart."""
    pictures = {url for url in pages[name].parts if url.endswith((".png", ".jpg", ".svg"))}
    files = [name, *(target(name, url)[0] for url in pictures)]
    assert sum((book / path).stat().st_size for path in files) < 3_000_000
