"""Run every chapter from top to bottom, store its outputs, note how long it took.

Run by `make execute`. The table of run times, versions, seeds and threads goes to
`_generated/reproducibility.md`, which the page on reproducibility shows.
"""

import os
import platform
import re
import time
from importlib.metadata import version
from pathlib import Path

import nbformat
from nbclient import NotebookClient

BOOK = Path(__file__).parent
PACKAGES = ["torch", "numpy", "scipy", "matplotlib", "pytorch-optimizer"]


def run(path: Path) -> float:
    """Execute a chapter in place; the seconds it took, with the kernel's start."""
    notebook = nbformat.read(path, as_version=4)
    started = time.perf_counter()
    NotebookClient(
        notebook,
        timeout=300,
        kernel_name="python3",
        record_timing=False,
        store_widget_state=False,
        resources={"metadata": {"path": str(BOOK)}},
    ).execute()
    seconds = time.perf_counter() - started
    for cell in notebook.cells:  # a live control is nothing without its kernel
        if "remove-output" in cell.metadata.get("tags", []):
            cell.outputs = []
    nbformat.write(notebook, path)
    return seconds


def settings(path: Path) -> str:
    """The seeds and the number of threads that a chapter sets."""
    cells = nbformat.read(path, as_version=4).cells
    code = "\n".join(cell.source for cell in cells if cell.cell_type == "code")
    seeds = sorted({int(n) for n in re.findall(r"manual_seed\((\d+)\)", code)})
    (threads,) = set(re.findall(r"set_num_threads\((\d+)\)", code))
    return f"{', '.join(map(str, seeds))} | {threads}"


def report(seconds: dict[Path, float]) -> str:
    """Both tables, as Markdown."""
    lines = ["| Chapter | Seconds | Seeds | Threads |", "|---|---|---|---|"]
    lines += [
        f"| {{doc}}`/book/{path.stem}` | {taken:.0f} | {settings(path)} |"
        for path, taken in seconds.items()
    ]
    lines += ["", "| Made with | |", "|---|---|"]
    lines += [f"| Python | {platform.python_version()} |"]
    lines += [f"| {name} | {version(name)} |" for name in PACKAGES]
    lines += [f"| Machine | {platform.machine()}, {os.cpu_count()} cores |"]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run all chapters and write the report."""
    os.environ["TQDM_DISABLE"] = "1"  # stored outputs hold no progress bars
    os.environ["OPENBLAS_NUM_THREADS"] = "1"  # numpy's; a chapter sets torch's
    seconds = {path: run(path) for path in sorted(BOOK.glob("*.ipynb"))}
    (BOOK / "_generated" / "reproducibility.md").write_text(report(seconds))


if __name__ == "__main__":
    main()
