"""The benchmarks run for hours, so no test runs them; but they must not fall behind the package."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from pkgutil import resolve_name

import pytest

FILES = sorted((Path(__file__).parent / "benchmarks").glob("*.py"))


def taken(tree: ast.Module) -> dict[str, object]:
    """What a file imports from the package and from the other tests, by the name it has there."""
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module.startswith(("invbayes", "tests")):
            source = import_module(node.module)
            found |= {name.asname or name.name: getattr(source, name.name) for name in node.names}
    return found


def calls(tree: ast.Module) -> Iterator[tuple[object, list[str]]]:
    """What a file calls of the package, with the names of the arguments."""
    names = taken(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            called, given = ast.unparse(node.func), [k.arg for k in node.keywords if k.arg]
            if re.fullmatch(r"ib(\.\w+)+", called):
                yield resolve_name(called.replace("ib.", "invbayes:", 1)), given
            elif called in names:
                yield names[called], given


@pytest.mark.parametrize("path", FILES, ids=[path.stem for path in FILES])
def test_what_a_benchmark_takes_from_the_package_is_there(path):
    """Each name, and each argument that is called by its name."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for called, given in calls(tree):
        accepted = inspect.signature(called).parameters
        if not any(p.kind is p.VAR_KEYWORD for p in accepted.values()):
            assert set(given) <= set(accepted), called
