"""The system's Chromium, for the printer and for the tests in tests/browser."""

import shutil
from pathlib import Path

from playwright.sync_api import Browser, Playwright

NAMES = ["chromium", "chromium-browser", "google-chrome", "google-chrome-stable"]


def launch(playwright: Playwright) -> Browser:
    """Start it, or say what is missing."""
    found = filter(None, map(shutil.which, NAMES))
    path = next(found, playwright.chromium.executable_path)
    if not Path(path).exists():
        raise FileNotFoundError(
            f"there is no Chromium: none of {', '.join(NAMES)} is on the PATH, and "
            "`playwright install chromium` has not been run"
        )
    # Its sandbox starts neither for root nor in containers; the pages are our own.
    return playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
