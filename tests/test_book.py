"""The rules that the notebooks, the README and the package's floors keep."""

from __future__ import annotations

import ast
import doctest
import inspect
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from pkgutil import resolve_name

import nbformat
import pytest

import invbayes
from book import colab

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "book").glob("*.ipynb"))
# From the bottom up: a file may import from those before it only.
FLOORS = [
    "_checks",
    "_random",
    "errors",
    "progress",
    "bayes.operators",
    "bayes.noise",
    "bayes.mixture_parts",
    "bayes.mixtures",
    "bayes.inverse_problem",
    "bayes.problems",
    "bayes.nonlinear",
    "bayes.poisson",
    "bayes.quadrature",
    "bayes.posteriors",
    "bayes.modes",
    "bayes.estimators",
    "networks.conjugate",
    "networks.precision",
    "networks.state",
    "networks.steps",
    "networks.implicit",
    "networks.contraction",
    "networks.activations",
    "networks.blocks",
    "networks.dense",
    "networks.convolutions",
    "networks.ridge",
    "networks.weakly_convex",
    "networks.convolutional",
    "networks.stochastic",
    "networks.inversion",
    "networks.iresnet",
    "networks.saving",
    "networks.pushforward",
    "networks.covariance",
    "networks.evidence",
    "networks.stein",
    "networks.descent",
    "networks.minimum",
    "networks.proximal",
    "networks.learned_posterior",
    "training.metrics",
    "training.heat_step",
    "training.runaway",
    "training.objectives",
    "training.weighted",
    "training.without_truth",
    "training.samplers",
    "training.checkpoint",
    "training.run",
    "training.training",
    "training.fitting",
    "training.report",
    "deep_prior.linearised",
    "deep_prior.stability",
    "deep_prior.inertia",
    "deep_prior.optimizers",
    "deep_prior.adaptive_optimizer",
    "deep_prior.network",
    "deep_prior.observation_fit",
    "examples",
    "_variation",
    "imaging",
    "figures",
    "living",
]
SMALL = {"networks.activations", "progress", "errors"}
# What a wing may import besides itself and the files outside the wings.
BELOW = {
    "bayes": set(),
    "networks": {"bayes"},
    "training": {"bayes", "networks"},
    "deep_prior": {"bayes"},
}

each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def code_cells(path):
    return [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]


def draws(cell):
    return any("image/png" in output.get("data", {}) for output in cell.outputs)


@each_notebook
def test_cells_are_short(path):
    for cell in code_cells(path):
        assert len(cell.source.splitlines()) <= 25, cell.source


@each_notebook
def test_cells_ran_once_from_top_to_bottom(path):
    cells = code_cells(path)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))


@each_notebook
def test_every_figure_has_a_caption_a_name_and_alt_text(path):
    for cell in filter(draws, code_cells(path)):
        options = cell.metadata.get("mystnb", {})
        assert len(options["image"]["alt"]) > 40
        assert options["figure"]["name"].startswith("fig-")
        assert len(options["figure"]["caption"]) > 40


@each_notebook
def test_nothing_is_drawn_from_a_hidden_source_of_randomness(path):
    for cell in code_cells(path):
        calls = re.findall(
            r"torch\.(?:rand|randn|randint|randperm)\([^)]*\)"
            r"|\.(?:sample|observe)\((?:[^()]|\([^()]*\))*\)"
            r"|manual_seed\(|np\.random",
            cell.source,
        )
        unseeded = [c for c in calls if "generator" not in c and c != "manual_seed("]
        assert not unseeded
        assert "torch.manual_seed" not in cell.source


@each_notebook
def test_shared_links_are_described_in_words(path):
    """Without this, a preview quotes the first paragraph, formulas as raw TeX."""
    description = nbformat.read(path, as_version=4).metadata["og:description"]
    assert 80 < len(description) < 200
    assert "\\" not in description


@each_notebook
def test_the_cell_for_colab_is_that_of_the_public_address(path):
    stored = nbformat.read(path, as_version=4)
    assert colab.prepared(stored, **colab.repository()) == stored


@each_notebook
def test_no_output_tells_where_it_was_made(path):
    stored = "".join(str(cell.outputs) for cell in code_cells(path))
    assert not re.search(r"/home/|/root/|/tmp/|/work/|C:\\\\", stored)


def test_no_function_is_defined_in_two_notebooks():
    names = Counter(
        node.name
        for path in NOTEBOOKS
        for cell in code_cells(path)
        for node in ast.parse(cell.source).body
        if isinstance(node, (ast.FunctionDef, ast.ClassDef))
    )
    assert [name for name, count in names.items() if count > 1] == []


def package_files():
    root = ROOT / "src" / "invbayes"
    for path in root.rglob("*.py"):
        yield (
            ".".join(path.relative_to(root).with_suffix("").parts),
            path.read_text(encoding="utf-8"),
        )


def test_imports_run_downwards():
    files = {name: text for name, text in package_files() if not name.endswith("__init__")}
    assert set(files) == {*FLOORS}
    for height, name in enumerate(FLOORS):
        imported = re.findall(r"from invbayes\.([\w.]+) import", files[name])
        assert all(FLOORS.index(other) < height for other in imported), name
        assert not re.search(
            r"^(import|from) invbayes( |\.figures| import)", files[name], re.MULTILINE
        )
        wing = name.split(".")[0]
        wings = {other.split(".")[0] for other in imported} & BELOW.keys()
        assert wings <= {wing} | BELOW.get(wing, BELOW.keys()), name


def test_wings_hold_no_names_of_their_own():
    """Public names stand once, in the package's own list."""
    for name, text in package_files():
        if name.endswith(".__init__"):
            assert len(ast.parse(text).body) == 1, name


def test_files_are_short():
    for name, text in package_files():
        assert len(text.splitlines()) <= 275, name


def test_public_names_are_documented_and_listed():
    listed = (ROOT / "book" / "api.md").read_text(encoding="utf-8")
    for name in invbayes.__all__:
        assert getattr(invbayes, name).__doc__
        assert re.search(rf":: {name}$", listed, re.MULTILINE), name


def listed_in_the_reference():
    listed = (ROOT / "book" / "api.md").read_text(encoding="utf-8")
    names = re.findall(r"^\.\. auto\w+:: (?:invbayes\.)?(\S+)$", listed, re.MULTILINE)
    return [resolve_name(f"invbayes.{name}") for name in names]


def test_the_reference_is_ordered_as_the_floors():
    """Small parts and errors apart, which come last."""
    modules = [getattr(found, "__module__", found.__name__) for found in listed_in_the_reference()]
    names = [module.removeprefix("invbayes.") for module in modules]
    heights = [FLOORS.index(name) for name in names if name not in SMALL]
    assert heights == sorted(heights)


def test_the_table_of_names_is_complete():
    table, _ = (ROOT / "book" / "api.md").read_text(encoding="utf-8").split("currentmodule", 1)
    for name in invbayes.__all__:
        assert f"`~invbayes.{name}`" in table, name


def public_callables():
    """Functions and classes of the reference; errors and results, which only hold values, apart."""
    for found in listed_in_the_reference():
        if inspect.ismodule(found):
            yield from (f for _, f in inspect.getmembers(found, is_public_function(found)))
        elif not (inspect.isclass(found) and issubclass(found, (tuple, Exception))):
            yield found


def is_public_function(module):
    return lambda f: (
        inspect.isfunction(f) and f.__module__ == module.__name__ and f.__name__[0] != "_"
    )


@pytest.mark.parametrize("found", [*public_callables()], ids=lambda found: found.__qualname__)
def test_every_public_function_has_an_example(found):
    """A class's example calls its own methods; with_f stands for f, too. The doctests run all."""
    examples = doctest.DocTestParser().get_examples(inspect.getdoc(found))
    code = "".join(example.source for example in examples)
    assert code
    if inspect.isclass(found):
        inherited = dir(found.__bases__[0])
        for name in vars(found).keys() - {*inherited}:
            if inspect.isfunction(vars(found)[name]) and not name.startswith("_"):
                assert re.search(rf"\.(with_)?{name.removeprefix('with_')}\(", code), name


def test_the_readme_example_runs(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (example,) = re.findall(
        r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL
    )
    exec(compile(example, "README.md", "exec"), {})
    printed = capsys.readouterr().out
    network, linear = map(float, re.findall(r"tensor\(([\d.]+)", printed))
    assert network < 0.95 * linear
    assert (tmp_path / "net.pt").exists()


def test_the_core_needs_neither_plots_nor_jupyter():
    """What notebooks need is an extra: importing the package must not ask for it."""
    code = (
        "import sys, invbayes, invbayes.examples;"
        "print([n for n in ('matplotlib', 'IPython', 'ipywidgets', 'PIL') if n in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
