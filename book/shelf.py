"""What readers can take along, beside the built book: `make pdf` and `make zip`.

A build clears this shelf, and its front page has no links to it: they are written
into the built page when something is put there. Run alone, this packs the ZIP file.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
HTML = ROOT / "_build" / "html"
FRONT = "book/intro.html"
PLACE = re.compile(r'<p id="shelf"[^>]*>.*?</p>', re.DOTALL)
KINDS = {
    ".pdf": "the whole book as a PDF",
    ".zip": "the notebooks, the package and the tests as a ZIP file",
}


def edition() -> str:
    """The name of what is taken along, with its version."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    project = tomllib.loads(text)["project"]
    return f"{project['name']}-{project['version']}"


def git(*arguments: str) -> str:
    """What git says; nothing where there is no git, or no clone."""
    command = ["git", "-C", str(ROOT), *arguments]
    try:
        run = subprocess.run(
            command, capture_output=True, check=True, encoding="utf-8"
        )
    except (FileNotFoundError, subprocess.CalledProcessError):
        return ""
    return run.stdout.rstrip()


def is_clone() -> bool:
    """Whether git keeps this folder, and not one around it."""
    top = git("rev-parse", "--show-toplevel")
    return bool(top) and Path(top).samefile(ROOT)


def link(html: Path = HTML) -> None:
    """Lead from the built front page to what lies on the shelf."""
    page = html / FRONT
    links = [
        f'<a href="../{path.name}">{text}</a> ({path.stat().st_size / 1e6:.0f} MB)'
        for suffix, text in KINDS.items()
        for path in html.glob(f"*{suffix}")
    ]
    line = f'<p id="shelf">To take along: {", ".join(links)}.</p>'
    text, places = PLACE.subn(line, page.read_text(encoding="utf-8"))
    if places != 1:
        raise ValueError(f'{page} needs one <p id="shelf">, and has {places}')
    page.write_text(text, encoding="utf-8")


def pack(folder: Path) -> Path:
    """The last commit, as git keeps it: no caches, nothing built."""
    if not is_clone():
        sys.exit(
            f"`make zip` packs what git keeps, and {ROOT} is no clone (or git is "
            "missing). Clone the book; or pack the folder without .venv and _build."
        )
    if changed := git("status", "--porcelain"):
        print(f"Not committed, and so not in the ZIP file:\n{changed}")
    path = folder / f"{edition()}.zip"
    options = [f"--prefix={edition()}/", f"--output={path}"]
    subprocess.run(["git", "-C", ROOT, "archive", *options, "HEAD"], check=True)
    return path


def main() -> None:
    """Pack the ZIP file and put it on the shelf."""
    if not (HTML / FRONT).exists():
        sys.exit(f"There is no built book in {HTML}: run `make book` first.")
    print(f"Packed {pack(HTML)}")
    link()


if __name__ == "__main__":
    main()
