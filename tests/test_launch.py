"""What follows from a public address: buttons, previews, the cell for Colab; Binder's environment.

Nothing here asks the network: the services are known by their addresses only.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path
from types import ModuleType

import nbformat
import pytest
import yaml

from book import colab
from tests.test_book import NOTEBOOKS, ROOT, code_cells

CHAPTER = "01_inverse_problems.ipynb"
ADDRESS = "https://github.com/Someone/a-book"


@pytest.fixture
def chapter():
    return nbformat.read(ROOT / "book" / CHAPTER, as_version=4)


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """The first chapter, built alone with a public address."""
    folder = tmp_path_factory.mktemp("launch")
    config = yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8"))
    config["repository"]["url"] = ADDRESS
    (folder / "_config.yml").write_text(yaml.safe_dump(config), encoding="utf-8")
    (folder / "_toc.yml").write_text(f"format: jb-book\nroot: book/{CHAPTER}\n", encoding="utf-8")
    (folder / "book").mkdir()
    for name in (CHAPTER, "references.bib"):
        shutil.copy(ROOT / "book" / name, folder / "book")
    for name in ("_ext", "_static"):
        shutil.copytree(ROOT / "book" / name, folder / "book" / name)
    program = Path(sys.executable).with_name("jupyter-book")
    subprocess.run([program, "build", folder, "--quiet"], check=True, capture_output=True)
    return (folder / "_build/html/book" / CHAPTER).with_suffix(".html").read_text(encoding="utf-8")


def test_buttons_lead_to_the_repository(page):
    path = f"book/{CHAPTER}"
    links = re.findall(r'href="(https://[^"]*)"', page)
    assert f"https://mybinder.org/v2/gh/Someone/a-book/main?urlpath=lab/tree/{path}" in links
    colab_page = "https://colab.research.google.com/github/Someone/a-book/blob/main"
    assert f"{colab_page}/{path}" in links
    assert ADDRESS in links


def test_previews_name_the_published_page(page):
    tags = dict(re.findall(r'<meta property="(og:\w+)" content="([^"]*)"', page))
    site = "https://someone.github.io/a-book"
    assert tags["og:url"] == f"{site}/book/{CHAPTER.replace('ipynb', 'html')}"
    assert tags["og:image"] == f"{site}/_static/cover.png"
    assert (ROOT / "book/_static/cover.png").is_file()


def test_the_cell_for_colab_comes_and_goes_with_the_address(chapter):
    without = colab.prepared(chapter, "", "main")
    with_cell = colab.prepared(without, ADDRESS, "main")
    code = [cell for cell in with_cell.cells if cell.cell_type == "code"]
    assert [cell.id == "colab" for cell in code] == [True] + [False] * (len(code) - 1)
    assert colab.prepared(with_cell, ADDRESS, "main") == with_cell
    assert colab.prepared(with_cell, "", "main") == without
    nbformat.validate(with_cell)


@pytest.mark.parametrize("on_colab", [False, True])
def test_the_cell_installs_on_colab_only(on_colab, chapter, monkeypatch):
    cells = colab.prepared(chapter, ADDRESS, "main").cells
    (source,) = [cell.source for cell in cells if cell.id == "colab"]
    asked = []
    if on_colab:
        monkeypatch.setitem(sys.modules, "google.colab", ModuleType("google.colab"))
    shell = ModuleType("shell")
    shell.run_line_magic = lambda *magic: asked.append(magic)
    exec(source, {"get_ipython": lambda: shell})
    package = f"'invbayes[chapters] @ git+{ADDRESS}@main'"
    assert asked == ([("pip", f"install --quiet {package}")] if on_colab else [])


def test_colab_gets_all_that_the_chapters_import():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    asked = [*project["dependencies"], *project["optional-dependencies"]["chapters"]]
    distributions = {line.split(">")[0] for line in asked}
    code = "\n".join(cell.source for path in NOTEBOOKS for cell in code_cells(path))
    imported = set(re.findall(r"^(?:from|import) (\w+)", code, re.MULTILINE))
    for name in imported - sys.stdlib_module_names - {"invbayes"}:
        assert packages_distributions()[name][0].lower() in distributions, name


def test_binder_installs_the_pinned_packages_on_a_python_that_the_package_takes():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    binder = ROOT / ".binder"
    assert (
        "-r ../requirements.txt"
        in (binder / "requirements.txt").read_text(encoding="utf-8").splitlines()
    )
    offered = (binder / "runtime.txt").read_text(encoding="utf-8").strip().removeprefix("python-")
    least = project["requires-python"].removeprefix(">=")
    assert tuple(map(int, offered.split("."))) >= tuple(map(int, least.split(".")))
