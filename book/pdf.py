"""Print the built book as one PDF: run by `make pdf`.

The pages are joined into one document, which Chromium sets and prints twice: the
numbers in the table of contents are known after the first time.
"""

from __future__ import annotations

import sys
from html import escape
from io import BytesIO
from pathlib import Path

import yaml
from book import shelf
from book.chromium import launch
from book.joined import Part, join
from book.shelf import HTML, ROOT
from playwright.sync_api import Page, sync_playwright
from pypdf import PdfReader

DOCUMENT = HTML.parent / "print.html"
# The pages are made for a screen: on paper their letters are too large.
SCALE = 0.8
# The width of A4 without its margins (pdf.css), in the pixels of the document.
COLUMN = int((210 - 2 * 18) / 25.4 * 96 / SCALE)

# Formulas and tables that are wider than their box become smaller. (MathML is not
# printed, and wide.)
FIT = """() => {
    document.querySelectorAll('mjx-assistive-mml').forEach(copy => copy.remove());
    const inner = box => box.querySelector(':scope > mjx-math') ?? box;
    const around = box => box.matches('table') ? box.parentElement : box;
    for (const box of document.querySelectorAll('mjx-container[display], table')) {
        const { left, right } = inner(box).getBoundingClientRect();
        const room = around(box).getBoundingClientRect().right - left;
        if (right - left > room) box.style.zoom = 0.99 * room / (right - left);
    }
}"""
# Boxes that do not show all that is in them, and pages wider than the paper. (A hat
# may stand out from its letter by two pixels.)
CUT_OFF = """() => {
    const boxes = document.querySelectorAll('article, article :not(mjx-math *)');
    return [...boxes].filter(box => box.checkVisibility()
        && (box.matches('article') || getComputedStyle(box).overflowX != 'visible')
        && box.clientWidth && box.scrollWidth > box.clientWidth + 4
    ).map(box => `${box.closest('article').id}: ${box.textContent.slice(0, 80)}`);
}"""
NUMBER = """pages => {
    for (const number of document.querySelectorAll('.number'))
        number.textContent = pages[number.dataset.of];
}"""


def parts() -> list[Part]:
    """The book's order."""
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf-8"))
    return [Part("", [f"{toc['root']}.html"])] + [
        Part(part["caption"], [f"{page['file']}.html" for page in part["chapters"]])
        for part in toc["parts"]
    ]


def version() -> str:
    """The version, and the day of the last commit where there is git."""
    day = shelf.git("log", "-1", "--format=%cs") if shelf.is_clone() else ""
    return ", ".join(filter(None, [shelf.edition(), day]))


def title_page() -> str:
    """Title, authors, version."""
    config = yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8"))
    return (
        f'<header class="title-page"><p class="title">{escape(config["title"])}</p>'
        f"<p>{escape(config['author'])}</p>"
        '<img alt="" src="html/_static/cover.png">'
        f"<p>{escape(version())}</p><p>{escape(config['html']['extra_footer'])}</p></header>"
    )


def open_document(page: Page) -> None:
    """Wait until all is set, as on paper, and make what is too wide smaller."""
    page.emulate_media(media="print")
    page.set_viewport_size({"width": COLUMN, "height": 1000})
    page.goto(DOCUMENT.as_uri())
    page.wait_for_function("() => MathJax.startup.promise.then(() => true)")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    page.evaluate(FIT)


def printed(page: Page, *, tagged: bool = True) -> bytes:
    """The document as a PDF; with tags also its bookmarks, which takes longer."""
    return page.pdf(
        scale=SCALE,
        prefer_css_page_size=True,
        print_background=True,
        outline=tagged,
        tagged=tagged,
    )


def numbers(pdf: bytes) -> dict[str, int]:
    """On which sheet each place that a link leads to is found."""
    reader = PdfReader(BytesIO(pdf))
    return {
        place.removeprefix("/"): reader.get_destination_page_number(found) + 1
        for place, found in reader.named_destinations.items()
    }


def write_document() -> None:
    """Join the built pages."""
    order = parts()
    paths = [path for part in order for path in part.pages]
    if missing := [path for path in paths if not (HTML / path).exists()]:
        sys.exit(f"{HTML} has no {missing[0]}: run `make book` first.")
    texts = {path: (HTML / path).read_text(encoding="utf-8") for path in paths}
    style = Path(__file__).with_name("pdf.css").read_text(encoding="utf-8")
    text = join(order, texts, root="html/", front=title_page(), style=style)
    DOCUMENT.write_text(text, encoding="utf-8")


def main() -> None:
    """Print the book and put it on the shelf."""
    write_document()
    with sync_playwright() as playwright:
        page = launch(playwright).new_page()
        page.set_default_timeout(0)  # the whole book takes its time
        open_document(page)
        if cut := page.evaluate(CUT_OFF):
            sys.exit("The edge of the paper cuts off:\n" + "\n".join(cut))
        page.evaluate(NUMBER, numbers(printed(page, tagged=False)))
        pdf = printed(page)
    path = HTML / f"{shelf.edition()}.pdf"
    path.write_bytes(pdf)
    shelf.link()
    print(f"Printed {path}")


if __name__ == "__main__":
    main()
