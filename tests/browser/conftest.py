"""Chromium, the built book, and each of its pages, opened from a file path without a network."""

import re
from pathlib import Path
from types import SimpleNamespace

import pytest
from playwright.sync_api import sync_playwright
from xdist.scheduler import LoadScopeScheduling

from book.chromium import launch

BOOK = Path(__file__).parents[2] / "_build" / "html"
ALL_PAGES = sorted(
    path.relative_to(BOOK).as_posix()
    for path in BOOK.rglob("*.html")
    if "_static" not in path.parts  # the theme's templates
)
# index.html only leads to the first page; one page of source code stands for all.
PAGES = [
    name
    for name in ALL_PAGES
    if name != "index.html" and (not name.startswith("_modules") or "contraction" in name)
]
DESKTOP = {"width": 1280, "height": 900}


class OnePageOneWorker(LoadScopeScheduling):
    """All checks of a page go to one worker, in their order; the pages go where there is time.

    xdist's own groups do nothing under pytest 9.2, which no longer reads what they write.
    """

    def _split_scope(self, nodeid):
        if "test_links.py" in nodeid:
            return "links"  # the files are read once for all
        page = re.search(r"\[(.+\.html)", nodeid)
        return page[1] if page else nodeid


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    return OnePageOneWorker(config, log)


@pytest.fixture(scope="session")
def book():
    if not PAGES:
        pytest.skip(f"there is no built book in {BOOK}: run `make book` first")
    return BOOK


@pytest.fixture(scope="session")
def browser():
    with sync_playwright() as playwright:
        try:
            browser = launch(playwright)
        except FileNotFoundError as missing:
            pytest.skip(str(missing))
        yield browser
        browser.close()


@pytest.fixture
def visit(book, browser):
    """A function that opens a page; all of its pages are closed after the test."""
    contexts = []

    def open_(name):
        opened = open_page(book, browser, name)
        contexts.append(opened.context)
        return opened

    yield open_
    for context in contexts:
        context.close()


@pytest.fixture(scope="module", params=PAGES or ["no page"])
def opened(request, book, browser):
    """One page of the book, opened once for all the checks on it; see `open_page`."""
    opened = open_page(book, browser, request.param)
    yield opened
    opened.context.close()


def open_page(book, browser, name, *, formulas=True):
    """The page, with what it asked for (``requests``) and complained of (``complaints``).

    Without formulas, which nobody waits for then, it is there in a fraction of the time.
    """
    context = browser.new_context(offline=True, viewport=DESKTOP, has_touch=True)
    context.set_default_timeout(60_000)
    requests, complaints = [], []
    context.on("request", lambda request: requests.append(request.url))
    context.on("requestfailed", lambda request: complaints.append(f"failed: {request.url}"))
    context.on("weberror", lambda error: complaints.append(str(error.error)))
    context.on(
        "console",
        lambda message: complaints.append(message.text) if message.type == "error" else None,
    )
    page = context.new_page()
    if not formulas:
        page.route("**/mathjax/**", lambda route: route.fulfill(body=""))
    path, *query = name.partition("?")
    page.goto((book / path).as_uri() + "".join(query))
    if formulas:
        page.wait_for_function(
            "() => !window.MathJax || window.MathJax.startup?.promise.then(() => true)"
        )
    return SimpleNamespace(
        name=name, context=context, page=page, requests=requests, complaints=complaints
    )
