"""Run every chapter from top to bottom, store its outputs, note what it took.

Run by `make execute`. The table of run times, memory, versions, seeds and threads
goes to `_generated/reproducibility.md`, which the page on reproducibility shows.
"""

import contextlib
import os
import platform
import re
import threading
import time
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import nbformat
import psutil
from nbclient import NotebookClient

BOOK = Path(__file__).parent
PACKAGES = ["torch", "numpy", "scipy", "matplotlib", "pytorch-optimizer"]


class Taken(NamedTuple):
    """What a chapter took: seconds, with the kernel's start; its most memory."""

    seconds: float
    gigabytes: float


class Memory(threading.Thread):
    """Watches how much memory the processes started from here hold at most."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.most, self.done = 0, threading.Event()

    def run(self) -> None:
        """Look five times a second."""
        while not self.done.wait(0.2):
            held = 0
            for process in psutil.Process().children(recursive=True):
                with contextlib.suppress(psutil.Error):
                    held += process.memory_info().rss
            self.most = max(self.most, held)


def run(path: Path) -> Taken:
    """Execute a chapter in place."""
    notebook = nbformat.read(path, as_version=4)
    memory, started = Memory(), time.perf_counter()
    memory.start()
    NotebookClient(
        notebook,
        timeout=300,
        kernel_name="python3",
        record_timing=False,
        store_widget_state=False,
        resources={"metadata": {"path": str(BOOK)}},
    ).execute()
    seconds = time.perf_counter() - started
    memory.done.set()
    for cell in notebook.cells:  # a live control is nothing without its kernel
        if "remove-output" in cell.metadata.get("tags", []):
            cell.outputs = []
    nbformat.write(notebook, path)
    return Taken(seconds, memory.most / 1e9)


def settings(path: Path) -> str:
    """The seeds and the number of threads that a chapter sets."""
    cells = nbformat.read(path, as_version=4).cells
    code = "\n".join(cell.source for cell in cells if cell.cell_type == "code")
    seeds = sorted({int(n) for n in re.findall(r"manual_seed\((\d+)\)", code)})
    (threads,) = set(re.findall(r"set_num_threads\((\d+)\)", code))
    return f"{', '.join(map(str, seeds))} | {threads}"


def report(taken: dict[Path, Taken]) -> str:
    """Both tables, as Markdown."""
    lines = ["| Chapter | Seconds | Memory, GB | Seeds | Threads |"]
    lines += ["|---|---|---|---|---|"]
    lines += [
        f"| {{doc}}`/book/{path.stem}` | {one.seconds:.0f} | {one.gigabytes:.1f} "
        f"| {settings(path)} |"
        for path, one in taken.items()
    ]
    total = sum(one.seconds for one in taken.values())
    most = max(one.gigabytes for one in taken.values())
    lines += [f"| **All, one after the other** | {total:.0f} | {most:.1f} | | |"]
    lines += ["", "| Made with | |", "|---|---|"]
    lines += [f"| Python | {platform.python_version()} |"]
    lines += [f"| {name} | {version(name)} |" for name in PACKAGES]
    lines += [f"| Machine | {platform.machine()}, {os.cpu_count()} cores |"]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run all chapters and write the report."""
    os.environ["TQDM_DISABLE"] = "1"  # stored outputs hold no progress bars
    os.environ["OPENBLAS_NUM_THREADS"] = "1"  # numpy's; a chapter sets torch's
    taken = {path: run(path) for path in sorted(BOOK.glob("*.ipynb"))}
    (BOOK / "_generated" / "reproducibility.md").write_text(
        report(taken), encoding="utf-8"
    )


if __name__ == "__main__":
    main()
