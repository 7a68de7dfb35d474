"""Pages that are written from other files, and files that repeat each other."""

from __future__ import annotations

import ast
import re
import tomllib

import pytest
import yaml

from book import chapters, equations, glossary, take_home, which_training
from tests.test_book import NOTEBOOKS, ROOT, code_cells

# Words that are bold for stress, and no terms.
BOLD_FOR_STRESS = {"new noise", "the decoder decides"}


def test_every_statement_leads_to_code_and_tests_that_exist():
    listed = yaml.safe_load((ROOT / "book" / "equations.yml").read_text(encoding="utf-8"))
    numbered = [statement.label for statement in chapters.statements()]
    assert [entry["label"] for entry in listed] == numbered
    assert [entry["label"] for entry in listed if not entry.get("paper")] == []
    assert all(entry["tests"] for entry in listed)
    for test in {test for entry in listed for test in entry["tests"]}:
        path, name = test.split("::")
        assert f"\ndef {name}(" in (ROOT / path).read_text(encoding="utf-8"), test


@pytest.mark.parametrize("writer", [equations, glossary, take_home, which_training])
def test_written_pages_are_those_that_the_chapters_give_now(writer):
    for path, text in writer.pages().items():
        assert path.read_text(encoding="utf-8") == text, (
            f"{path.name} is stale: run python -m {writer.__name__}"
        )


def test_the_glossary_has_every_definition_and_every_word_in_bold():
    """The build fails where an entry's label is no label of the book."""
    listed = glossary.entries()
    defined = {found.label for found in chapters.statements() if found.kind == "definition"}
    assert defined - {entry["at"] for entry in listed} == set()
    terms = {name.lower() for entry in listed for name in [entry["term"], *entry.get("also", [])]}
    words = {word.lower() for name in chapters.notebooks() for word in bold(chapters.text(name))}
    missing = {word for word in words if not {word, word.removesuffix("s")} & terms}
    assert missing == BOLD_FOR_STRESS


def bold(text):
    """What is printed in bold and may be a term: up to three words, with no stop after them."""
    return re.findall(r"(?<!\*)\*\*((?:[\w-]+ ?){1,3})\*\*(?!\*)", text)


def test_every_file_names_the_same_version_and_its_date():
    """The footer of the pages is read from the first of them while the book is built."""
    version = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"][
        "version"
    ]
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    newest = re.search(
        r"^## \[(.+)\] - (\S+)$", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE
    )
    assert (str(cited["version"]), str(cited["date-released"])) == newest.groups()
    assert newest[1] == version


def own_code():
    """Every file of Python, and every code cell."""
    for folder in ("src", "book", "tests"):
        for path in (ROOT / folder).rglob("*.py"):
            yield path.name, path.read_text(encoding="utf-8")
    for path in NOTEBOOKS:
        yield from ((path.name, cell.source) for cell in code_cells(path))


def test_text_files_are_read_and_written_in_utf_8():
    """Left out, the encoding is the machine's: on Windows it would garble every Greek letter."""
    for name, text in own_code():
        for call in (node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call)):
            if getattr(call.func, "attr", "") in {"read_text", "write_text"}:
                assert "encoding" in {k.arg for k in call.keywords}, (name, ast.unparse(call))
            assert getattr(call.func, "id", "") != "open", f"{name}: use pathlib"
