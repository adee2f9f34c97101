"""Where a browser is, and how it is started: for the tests of the page, and for the picture in the README.

python -m tests.browser        takes the picture anew, of reports/report.html
"""

from __future__ import annotations

import os
import shutil

from stages.cli import UserError, guard
from stages.files import REPORTS
from tests.conftest import ROOT

FLAGS = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
]
NONE = "no Chromium: install it, or name it in the environment variable CHROMIUM"


def browser_path() -> str | None:
    """Return the program of a Chromium on this machine."""
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    return os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, names)), None)


def main() -> None:
    """Photograph the top of the report, down to the first leaderboard's end."""
    from playwright.sync_api import sync_playwright

    path = browser_path()
    if path is None:
        raise UserError(NONE)
    report = ROOT / REPORTS / "report.html"
    if not report.exists():
        raise UserError(f"{report} is not there: run `dvc repro`")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS)
        page = browser.new_page(viewport={"width": 1000, "height": 1000})
        page.goto(report.as_uri())
        table = page.locator("table").first.bounding_box()
        assert table is not None
        height = table["y"] + table["height"] + 20
        page.screenshot(
            path=ROOT / "docs/report.png", clip={"x": 0, "y": 0, "width": 1000, "height": height}, full_page=True
        )
        browser.close()


if __name__ == "__main__":
    guard(main)
