"""Draws the picture at the top of README.md: what terminal and page say of a paper.

Run it as ``python docs/picture.py`` where `repro` is on the path; it needs Chromium.
"""

from __future__ import annotations

import html
import shutil
import subprocess
import tempfile
from pathlib import Path

from PIL import Image
from playwright.sync_api import ViewportSize, sync_playwright

PAPER = "dgc"
FILE = Path(__file__).with_name("terminal-and-page.png")
SIZE = ViewportSize(width=1560, height=760)
PAGE = """
<body style="margin: 0; display: flex; gap: 12px; background: #8a929c; padding: 12px">
<pre style="margin: 0; box-sizing: border-box; width: 730px; height: 736px; padding: 14px;
  overflow: hidden; background: #16181d; color: #d8dce2; font: 13px/1.45 'DejaVu Sans Mono'"
>$ repro show {paper}\n{shown}</pre>
<iframe src="report.html#{paper}-0" style="width: 794px; height: 736px; border: 0"></iframe>
"""


def repro(*words: str) -> str:
    """What the command prints on 88 columns."""
    command = ["env", "COLUMNS=88", "repro", *words]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def draw(folder: Path) -> None:
    """Puts both beside each other, by way of some files in a folder."""
    repro("report", "--recorded", "--paper", PAPER, "--html", str(folder / "report.html"))
    both = folder / "both.html"
    both.write_text(PAGE.format(paper=PAPER, shown=html.escape(repro("show", PAPER))))
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox"]
        )
        page = browser.new_page(viewport=SIZE)
        page.goto(both.as_uri())
        page.wait_for_timeout(3000)  # until the page has scrolled to the study
        page.screenshot(path=FILE)
        browser.close()
    Image.open(FILE).convert("RGB").save(FILE, optimize=True)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        draw(Path(folder))
