"""The pages joined for paper, the links on the front page, the ZIP file. No browser."""

import subprocess
import zipfile

import pytest
from bs4 import BeautifulSoup

from book import pdf, shelf
from book.joined import Part, join
from tests.test_book import ROOT

HEAD = """<head><meta charset="utf-8"><title>A page</title>
<link rel="stylesheet" href="../_static/book.css?v=1"><link rel="next" href="two.html">
<script>one = 1</script><script defer src="../_static/book.js"></script>{more}</head>"""
ONE = """<article><section id="top"><h1>1. One &amp; all<a class="headerlink" href="#top">#</a></h1>
<p id="shelf">To take along</p><p>So <span class="math">\\(a &lt; b\\)</span></p>
<a href="two.html#eq-a">(2.1)</a> <a href="two.html">two</a> <a href="#top">above</a>
<a href="https://example.org/two.html#eq-a">outside</a>
<a href="../_images/big.png"><img src="../_images/big.png" id="fig"></a>
<a class="reference" href="../_modules/x.html"><span class="viewcode-link">[source]</span></a>
<img src="data:image/png;base64,AA+/="></section></article>"""
TWO = """<article><section id="top"><h1>2. Two</h1><label for="eq-a">a</label>
<div id="eq-a"></div><div class="living"><script type="application/json">{"a": "<b> & c"}</script>
</div></section></article>"""


def page(article, more=""):
    head = HEAD.format(more=more)
    return f"<html>{head}<body><nav><a href='gone.html'>menu</a></nav>{article}</body></html>"


@pytest.fixture
def document():
    parts = [Part("", ["book/one.html"]), Part("Part", ["book/two.html"])]
    more = "<script>two = 2</script><script src='../_static/living.js'></script>"
    texts = {"book/one.html": page(ONE), "book/two.html": page(TWO, more)}
    text = join(parts, texts, root="html/", front="<p>Title</p>", style="main > p { color: red }")
    return BeautifulSoup(text, "html.parser")


def test_names_are_unique_and_links_lead_to_them(document):
    names = [tag["id"] for tag in document.select("[id]")]
    assert names == ["one", "one--top", "one--fig", "two", "two--top", "two--eq-a"]
    found = [(tag.get_text(), tag["href"]) for tag in document.select("article a[href]")]
    assert found == [
        ("(2.1)", "#two--eq-a"),
        ("two", "#two"),
        ("above", "#one--top"),
        ("outside", "https://example.org/two.html#eq-a"),
    ]
    assert document.select_one("label")["for"] == "two--eq-a"


def test_files_are_found_from_the_document_and_loaded_once(document):
    assert [tag["src"] for tag in document.select("script[src]")] == [
        "html/_static/book.js",
        "html/_static/living.js",
    ]
    assert [tag["href"] for tag in document.select("link")] == ["html/_static/book.css?v=1"]
    assert [tag["src"] for tag in document.select("img")] == [
        "html/_images/big.png",
        "data:image/png;base64,AA+/=",
    ]
    assert document.select_one("script:not([src])").string == "one = 1"
    assert "two = 2" not in str(document)


def test_formulas_data_and_styles_come_as_they_are(document):
    assert document.select_one(".math").get_text() == "\\(a < b\\)"
    assert document.select_one(".living script").string == '{"a": "<b> & c"}'
    assert "main > p { color: red }" in document.style.string
    assert document.title.string == "1. One & all"


def test_what_only_a_screen_can_use_is_left_out(document):
    assert "[source]" not in document.get_text()
    assert "menu" not in document.get_text()
    assert "take along" not in document.get_text()
    assert not document.select(".headerlink")


def test_contents_and_running_heads_name_every_page_in_order(document):
    entries = document.select(".book-contents li")
    assert [(e.a["href"], e.a.get_text(), e.span["data-of"]) for e in entries] == [
        ("#one", "1. One & all", "one"),
        ("#two", "2. Two", "two"),
    ]
    assert [p.get_text() for p in document.select(".book-contents p")] == ["", "Part"]
    assert '@page page-2 { @top-center { content: "2. Two"; } }' in document.style.string
    assert "article:nth-of-type(2) { page: page-2; }" in document.style.string


def test_a_title_with_quotes_stays_a_title():
    quoted = page(r'<article><h1>The "\ case"</h1></article>')
    text = join([Part("", ["a.html"])], {"a.html": quoted}, root="", front="", style="")
    assert r'content: "The \"\\ case\"";' in text


def test_a_page_without_an_article_is_named():
    with pytest.raises(ValueError, match=r"book/one\.html has no <article>"):
        join([Part("", ["book/one.html"])], {"book/one.html": ""}, root="", front="", style="")


def test_the_order_is_that_of_the_table_of_contents():
    pages = [path for part in pdf.parts() for path in part.pages]
    assert pages[:2] == [shelf.FRONT, "book/01_inverse_problems.html"]
    assert pages[-2:] == ["book/bibliography.html", "book/changelog.html"]
    chapters = {path.stem for path in (ROOT / "book").glob("*.ipynb")}
    assert chapters <= {path.removeprefix("book/").removesuffix(".html") for path in pages}


def links(text):
    return [tag["href"] for tag in BeautifulSoup(text, "html.parser").select("a")]


@pytest.fixture
def html(tmp_path):
    (tmp_path / shelf.FRONT).parent.mkdir()
    (tmp_path / shelf.FRONT).write_bytes('<h1>é</h1><p id="shelf" hidden></p><p>text</p>'.encode())
    return tmp_path


def test_the_front_page_links_what_is_there_and_nothing_else(html):
    front = html / shelf.FRONT
    (html / "book-1.zip").write_bytes(bytes(2_600_000))
    for _ in range(2):  # each `make` writes the line anew
        shelf.link(html)
        assert links(front.read_text(encoding="utf-8")) == ["../book-1.zip"]
    (html / "book-1.pdf").write_bytes(b"")
    shelf.link(html)
    text = front.read_text(encoding="utf-8")
    assert links(text) == ["../book-1.pdf", "../book-1.zip"]
    assert "(3 MB)" in text
    assert "hidden" not in text
    assert text.count("<p") == 2
    assert text.startswith("<h1>é</h1>")
    assert text.endswith("<p>text</p>")


def test_a_front_page_without_a_place_for_links_is_named(html):
    (html / shelf.FRONT).write_bytes(b"<p>text</p>")
    with pytest.raises(ValueError, match="needs one"):
        shelf.link(html)


def test_the_front_page_has_the_place():
    assert (ROOT / "book/intro.md").read_text(encoding="utf-8").count(
        '\n<p id="shelf" hidden></p>\n'
    ) == 1


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    if not shelf.is_clone():
        pytest.skip("this folder is no clone: git packs the ZIP file")
    return shelf.pack(tmp_path_factory.mktemp("zip"))


def test_the_zip_file_is_what_git_keeps(packed):
    with zipfile.ZipFile(packed) as archive:
        files = {name for name in archive.namelist() if not name.endswith("/")}
        assert archive.testzip() is None
    assert packed.name == f"{shelf.edition()}.zip"
    kept = subprocess.run(
        ["git", "ls-tree", "-r", "-z", "--name-only", "HEAD"],
        cwd=ROOT,
        capture_output=True,
        encoding="utf-8",
        check=True,
    ).stdout.split("\0")
    assert files == {f"{shelf.edition()}/{name}" for name in kept if name}


def test_the_zip_file_holds_what_the_two_commands_need_and_no_junk(packed):
    with zipfile.ZipFile(packed) as archive:
        names = [name.split("/", 1)[1] for name in archive.namelist()]
    needed = ["Makefile", "README.md", "requirements.txt", "pyproject.toml", "conftest.py"]
    needed += ["_config.yml", "_toc.yml", "src/invbayes/__init__.py", "tests/test_book.py"]
    needed += [f"book/{path.name}" for path in (ROOT / "book").glob("*.ipynb")]
    assert {*needed} <= {*names}
    junk = [".venv", "_build", ".bench", "__pycache__", "checkpoints", ".egg-info", "_cache"]
    assert [name for name in names if any(part in name for part in junk)] == []


def test_without_git_the_user_is_told_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr(shelf, "ROOT", tmp_path)
    with pytest.raises(SystemExit, match="Clone the book"):
        shelf.pack(tmp_path)
    monkeypatch.setattr(shelf, "ROOT", ROOT / "book")  # a folder inside another's clone
    assert not shelf.is_clone()
    monkeypatch.setattr(shelf, "ROOT", ROOT)
    monkeypatch.setenv("PATH", "")
    assert not shelf.is_clone()
