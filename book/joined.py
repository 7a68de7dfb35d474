"""Join the built pages into one document, so that they can be printed as one book.

No browser is needed here. Every name gets its page in front of it: `#eq-loss` of
`05_log_determinant.html` becomes `#05_log_determinant--eq-loss`. Links from page to
page lead to these names.
"""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from pathlib import PurePosixPath
from posixpath import normpath
from typing import NamedTuple
from urllib.parse import SplitResult, unquote, urlsplit

from bs4 import BeautifulSoup, Tag

# What a document is made of; the rest of a head is for search engines and previews.
# The theme's scripts look for its menus.
MADE_OF = "meta[charset], style, script:not([src*=theme]), link[rel=stylesheet]"
# Handles of headings, links to source pages, the front page's links to this book.
LEFT_OUT = "a.headerlink, a.reference:has(> .viewcode-link), #shelf"
# Attributes that name elements of their page.
NAMING = ["id", "for", "aria-labelledby", "aria-describedby", "aria-controls"]
EMPTY = """<!DOCTYPE html>
<html lang="en" data-content_root="{root}"><head></head>
<body><main class="bd-content"></main></body></html>"""


class Part(NamedTuple):
    """A part of the book: its caption, empty for the front page, and its pages."""

    caption: str
    pages: list[str]


class Page:
    """A built page, on its way into the document."""

    def __init__(self, path: str, text: str) -> None:
        self.path, self.soup = path, BeautifulSoup(text, "html.parser")
        if self.soup.article is None or self.soup.article.h1 is None:
            raise ValueError(
                f"{path} has no <article> with a heading: is it a page of the book?"
            )
        for tag in self.soup.select(LEFT_OUT):
            tag.decompose()
        self.article: Tag = self.soup.article

    @property
    def title(self) -> str:
        """The page's first heading, with the chapter's number."""
        return " ".join(self.article.h1.get_text().split())

    def address(self, url: str) -> SplitResult | None:
        """A link of this page, from the root of the book; None leads out of it."""
        parts = urlsplit(url)
        if parts.scheme or parts.netloc:
            return None
        folder = PurePosixPath(self.path).parent
        path = normpath(folder / unquote(parts.path)) if parts.path else self.path
        return parts._replace(path=path, fragment=unquote(parts.fragment))


def name(path: str, place: str = "") -> str:
    """What a place is called in the document; without a place, its page."""
    return "--".join(filter(None, [PurePosixPath(path).stem, place]))


def load_from(root: str, page: Page, within: Tag) -> None:
    """Pictures, styles and scripts are found from where the document lies."""
    for tag in within.select("[src], link[href]"):
        key = "src" if tag.has_attr("src") else "href"
        if address := page.address(tag[key]):
            tag[key] = root + address.geturl()


def rename(page: Page) -> None:
    """Put the page's name in front of all names on it."""
    for key in NAMING:
        for tag in page.article.select(f"[{key}]"):
            places = tag[key].split()
            tag[key] = " ".join(name(page.path, place) for place in places)
    page.article["id"] = name(page.path)


def link(page: Page, paths: set[str]) -> None:
    """Lead links to where their page is now; of others the text stays."""
    for tag in page.article.select("a[href]"):
        address = page.address(tag["href"])
        if address and address.path in paths:
            tag["href"] = f"#{name(address.path, address.fragment)}"
        elif address:
            tag.unwrap()


def loaded(pages: list[Page], root: str) -> Iterator[Tag]:
    """What the pages load, each once; scripts without a file, the first page's."""
    seen = set()
    for page in pages:
        load_from(root, page, page.soup.head)
        for tag in page.soup.head.select(MADE_OF):
            source = tag.get("src") or tag.get("href")
            if source not in seen if source else page is pages[0]:
                yield tag
            seen.add(source)


def contents(parts: list[Part], titles: dict[str, str]) -> str:
    """The table of contents; the printer fills in the numbers of the pages."""
    lines = ['<nav class="book-contents"><h1>Contents</h1>']
    for part in parts:
        lines.append(f"<p>{escape(part.caption)}</p><ul>")
        lines += [
            f'<li><a href="#{name(path)}">{escape(titles[path])}</a>'
            f'<span class="number" data-of="{name(path)}"></span></li>'
            for path in part.pages
        ]
        lines.append("</ul>")
    return "".join([*lines, "</nav>"])


def running_heads(titles: list[str]) -> str:
    """For each page of the book a kind of paper, which has its title at the top."""
    rules = []
    for i, title in enumerate(titles, start=1):
        text = title.replace("\\", r"\\").replace('"', r"\"")
        rules += [
            f'@page page-{i} {{ @top-center {{ content: "{text}"; }} }}',
            f"article:nth-of-type({i}) {{ page: page-{i}; }}",
        ]
    return "\n".join(rules)


def join(
    parts: list[Part], texts: dict[str, str], *, root: str, front: str, style: str
) -> str:
    """The whole book as one document.

    Args:
        parts: the book's order.
        texts: the pages' HTML, by their paths from the root of the built book.
        root: where the built book lies, seen from the document.
        front: HTML that goes before everything.
        style: CSS for this document alone.
    """
    pages = [Page(path, texts[path]) for part in parts for path in part.pages]
    titles = {page.path: page.title for page in pages}
    document = BeautifulSoup(EMPTY.format(root=root), "html.parser")
    style += running_heads([*titles.values()])
    document.head.append(document.new_tag("title", string=pages[0].title))
    document.head.extend([*loaded(pages, root)])
    document.head.append(document.new_tag("style", string=style))
    before = BeautifulSoup(front + contents(parts, titles), "html.parser")
    document.main.extend([*before.contents])
    for page in pages:
        load_from(root, page, page.article)
        link(page, {*titles})
        rename(page)
        document.main.append(page.article)
    return str(document)
