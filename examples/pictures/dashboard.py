"""The picture of `hpo dashboard` in the README: a study's note beside the figures of the final stage.

    python examples/pictures/dashboard.py hpo-demo

Needs the extra `test` (playwright) and Chromium.
"""

from __future__ import annotations

import io
import shutil
import signal
import subprocess
import sys
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, sync_playwright

STUDY, FINAL = "batch-norm", "final"
WIDTH, HEIGHT, GAP = 1100, 1040, 24


def screenshot(browser: Browser, address: str, wait_for: str, scroll_to: str = "") -> Image.Image:
    """A page of the dashboard, once what it should show is there."""
    page = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT})
    page.goto(address)
    page.locator(wait_for).first.wait_for()
    if scroll_to:
        page.evaluate(f"document.querySelector({scroll_to!r}).scrollIntoView()")
        page.mouse.wheel(0, -80)  # the dashboard's head covers what is at the top
        page.wait_for_timeout(1000)
    picture = Image.open(io.BytesIO(page.screenshot()))
    page.close()
    return picture


def main(out: str) -> None:
    """Takes the picture of a finished plan in the folder `out`."""
    command = [
        sys.executable,
        "-m",
        "hpo",
        "dashboard",
        "--out",
        out,
        "--port=0",
        "--read-only",
        "--no-browser",
    ]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        address = server.stdout.readline().strip()
        with sync_playwright() as started:
            browser = started.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
            page = browser.new_page()
            listed = page.request.get(f"{address}api/studies").json()["study_summaries"]
            ids = {study["study_name"]: study["study_id"] for study in listed}
            studies = f"{address}dashboard/studies"
            left = screenshot(browser, f"{studies}/{ids[STUDY]}/note", "h1")
            plots = "[id^='user-defined-plot']"
            right = screenshot(browser, f"{studies}/{ids[FINAL]}", f"{plots} svg.main-svg", plots)
            browser.close()
    finally:
        server.send_signal(signal.SIGINT)
        server.wait()
    both = Image.new("RGB", (2 * WIDTH + GAP, HEIGHT), "white")
    both.paste(left, (0, 0))
    both.paste(right, (WIDTH + GAP, 0))
    both.quantize(128).save(Path(__file__).with_suffix(".png"), optimize=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
