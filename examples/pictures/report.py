"""The picture of `hpo report` in the README: the answer, what each study gained, the claims.

    python examples/pictures/report.py hpo-out/report/report.html

Of an image folder's path the last part is shown alone. Needs the extra `test` (playwright) and Chromium.
"""

from __future__ import annotations

import io
import shutil
import sys
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

WIDTH, HEIGHT = 1200, 800


def main(page_file: str) -> None:
    """Takes the top of the page, as it opens from disk."""
    with sync_playwright() as started:
        browser = started.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT})
        page.goto(Path(page_file).resolve().as_uri())
        page.evaluate(
            r"document.body.innerHTML = document.body.innerHTML.replace(/folder:[^\s)<]*\//g, 'folder:')"
        )
        picture = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
        browser.close()
    picture.save(Path(__file__).with_suffix(".png"), optimize=True)


if __name__ == "__main__":
    main(sys.argv[1])
