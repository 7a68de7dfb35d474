"""What `make pdf` has printed. Without a PDF beside the built book these checks are skipped.

`make test` builds the book, which clears the PDF away; after `make pdf` run this file alone.
"""

import pytest
from pypdf import PdfReader

from book import pdf, shelf
from book.joined import Page

from .test_pages import LOST_ON_PAPER, READING

PRINTED = shelf.HTML / f"{shelf.edition()}.pdf"
A4 = (595, 842)
MARGIN = 18 / 25.4 * 72  # pdf.css
needs_pdf = pytest.mark.skipif(
    not PRINTED.exists(), reason=f"there is no {PRINTED}: run `make pdf` first"
)


@pytest.fixture(scope="module")
def reader():
    return PdfReader(PRINTED)


@pytest.fixture(scope="module")
def titles():
    """Every page of the book with its title, in their order."""
    paths = [path for part in pdf.parts() for path in part.pages]
    return {path: Page(path, (pdf.HTML / path).read_text(encoding="utf-8")).title for path in paths}


def flat(outline):
    for entry in outline:
        yield from flat(entry) if isinstance(entry, list) else [entry]


def squeezed(text):
    return "".join(text.split())


@needs_pdf
def test_it_has_as_many_sheets_of_paper_as_a_book(reader):
    assert 300 < len(reader.pages) < 600
    sizes = {(round(p.mediabox.width), round(p.mediabox.height)) for p in reader.pages}
    assert sizes == {A4}
    assert reader.metadata.title == "Invertible Networks as Bayesian Point Estimators"


@needs_pdf
def test_bookmarks_name_every_page_of_the_book_in_order(reader, titles):
    chapters = [entry.title for entry in reader.outline if not isinstance(entry, list)]
    assert chapters == ["Contents", *titles.values()]
    sheets = [reader.get_destination_page_number(entry) for entry in flat(reader.outline)]
    assert len(sheets) > 250
    assert sheets == sorted(sheets)


@needs_pdf
def test_a_page_of_the_book_begins_on_the_sheet_that_the_contents_name(reader, titles):
    contents = reader.pages[1].extract_text(extraction_mode="layout").splitlines()
    for title in titles.values():
        (line,) = [line for line in contents if squeezed(line).startswith(squeezed(title))]
        first = reader.pages[int(line.split()[-1]) - 1]
        text = squeezed(first.extract_text(extraction_mode="layout"))
        assert text.startswith(2 * squeezed(title))  # the running head and the heading


@needs_pdf
def test_links_lead_to_a_place_in_the_pdf_or_out_of_the_book(reader):
    places, inside, outside = reader.named_destinations, [], []
    for sheet in reader.pages:
        for link in (found.get_object() for found in sheet.get("/Annots", [])):
            inside += [link["/Dest"]] if "/Dest" in link else []
            outside += [link["/A"]["/URI"]] if "/A" in link else []
    assert len(inside) > 1000
    assert {place for place in inside if place not in places} == set()
    assert all(reader.get_destination_page_number(place) >= 0 for place in places.values())
    assert len(outside) > 20
    assert [url for url in outside if not url.startswith("http")] == []


@needs_pdf
def test_formulas_are_text(reader):
    (chapter,) = [e for e in flat(reader.outline) if e.title.startswith("1.2. Where")]
    sheet = reader.pages[reader.get_destination_page_number(chapter)]
    text = squeezed(sheet.extract_text(extraction_mode="layout"))
    assert "GivenamatrixA∈Rm×dandanoiselevelδ>0" in text


@needs_pdf
def test_no_heading_is_the_last_line_of_a_sheet(reader):
    """Below its upper edge there is room for the heading and two lines."""
    room = MARGIN + 50
    assert [entry.title for entry in flat(reader.outline) if entry.top < room] == []


@needs_pdf
def test_nothing_is_cut_off_lost_or_left_over(browser):
    page = browser.new_page()
    page.set_default_timeout(0)
    pdf.open_document(page)
    assert page.evaluate(pdf.CUT_OFF) == []
    assert page.evaluate(LOST_ON_PAPER) == []
    seen = page.evaluate(READING)
    assert (seen["errors"], seen["raw"], seen["empty"]) == ([], [], 0)
    assert seen["formulas"] == seen["once"] > 5000
    shown = "images => images.every(image => image.complete && image.naturalWidth)"
    assert page.locator("img").evaluate_all(shown)
    page.close()


def test_wide_formulas_and_tables_are_made_to_fit_and_the_rest_is_named(browser):
    wide = "<div style='width: 300px'>x</div>"
    page = browser.new_page()
    page.set_content(
        f"""<article id="one" style="width: 200px">
        <table><td>{wide}</table>
        <mjx-container display style="display: block; overflow: auto">
            <mjx-math style="display: inline-block">{wide}</mjx-math></mjx-container>
        <pre style="overflow: hidden">code {wide}</pre></article>"""
    )
    assert len(page.evaluate(pdf.CUT_OFF)) == 3  # the article, the formula, the code
    page.evaluate(pdf.FIT)
    assert page.locator("table").bounding_box()["width"] <= 200
    assert page.locator("mjx-math").bounding_box()["width"] <= 200
    assert page.evaluate(pdf.CUT_OFF) == ["one: code x"]
    page.close()
