"""Draws the live screen of a real run, mid-way, as the README shows it.

    python examples/pictures/live_screen.py [FILE]

Trains the report's plan on some handwritten digits, looks at it as `hpo status --watch` does, keeps the
screen of a moment in the middle of a study, and stops the run. A minute or two.
"""

from __future__ import annotations

import io
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rich.terminal_theme import TerminalTheme

from hpo import find_plan
from hpo.cli.screen import Display
from hpo.cli.tables import Screen
from hpo.monitor.watch import Progress, Watch

COLUMNS, STUDY = 120, "batch-size"
SIZES = ("--limit-train", "250", "--limit-valid", "250", "--epochs", "8", "--seeds", "2")
RUN = ("demo", *SIZES, "--workers", "2")
THEME = TerminalTheme(
    (27, 31, 38),
    (215, 220, 228),
    [
        *((60, 66, 76), (240, 113, 120), (126, 200, 127), (232, 191, 106)),
        *((110, 168, 254), (200, 146, 234), (94, 199, 209), (215, 220, 228)),
    ],
)


def is_telling(progress: Progress) -> bool:
    """Whether there is something to see: a point has ended in the study, others are well under way."""
    study = progress.studies[progress.current].status
    n_epochs = sum(len(each.curve) for each in progress.running)
    return study.name == STUDY and study.n_ended >= 1 and len(progress.running) > 1 and n_epochs >= 5


def moment(out: Path, run: subprocess.Popen[bytes]) -> Progress:
    """Waits for something to see; of a run that has ended, its end."""
    while not (out / "hpo.db").exists() and run.poll() is None:
        time.sleep(1)
    time.sleep(2)  # the plan is being written
    plan = find_plan(out)
    watch = Watch(plan, plan.all_names)
    while not is_telling(progress := watch.look()) and run.poll() is None:
        time.sleep(0.3)
    return progress


def main() -> None:
    """Runs, waits for the moment, draws."""
    file = Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).with_suffix(".svg"))
    with tempfile.TemporaryDirectory(prefix="hpo-picture-") as name:
        out = Path(name)
        with subprocess.Popen([sys.executable, "-m", "hpo", *RUN, "--out", name, "--json"]) as run:
            try:
                progress = moment(out, run)
            finally:
                run.send_signal(signal.SIGINT)
    console = Screen(file=io.StringIO(), record=True, width=COLUMNS, height=40, force_terminal=True)
    console.print(Display(progress))
    picture = console.export_svg(title="hpo run", theme=THEME)
    # its fonts would come from another server; any font of equal widths does as well
    picture = re.sub(r"\s*@font-face \{.*?\}", "", picture, flags=re.DOTALL)
    file.write_text(picture, encoding="utf-8")


if __name__ == "__main__":
    main()
