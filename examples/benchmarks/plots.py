"""A picture of what the benchmarks measured: a panel a table of `results/`.

    python examples/benchmarks/plots.py [FILE.svg]

Light and dark, as the figures of `hpo report`. To add one: a function and a line in `PANELS`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import fmean

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter
from tables import read_tables

from hpo.reporting.palette import BLUE, GREY, SERIES, SKY, Colour
from hpo.reporting.render.matplotlib import MARKERS, canvas, styled, written

RESULTS = Path(__file__).with_name("results")
PICTURE = RESULTS / "benchmarks.svg"
COLUMNS, WIDTH, HEIGHT = 2, 9.6, 2.9
"""Of the picture and of a row of panels; inches."""
Rows = Sequence[Mapping[str, str]]


def throughput(axes: Axes, rows: Rows, title: str = "Training, images a second") -> None:
    """Images a second, and how many times as fast hpo is."""
    labels = [row["contender"].replace(", ", ",\n") for row in rows]
    speeds = [float(row["images_per_second"]) for row in rows]
    ratios = [float(row["hpo_is_faster_by"]) for row in rows]
    _bars(axes, labels, speeds, ["" if ratio == 1 else f"hpo: {ratio:.2g}×" for ratio in ratios])
    axes.set(title=title)


def step(axes: Axes, rows: Rows) -> None:
    """A step beside its convolutions alone."""
    labels = [f"batch {row['batch_size']}" for row in rows]
    whole = [1000 * float(row["step_ms"]) / float(row["batch_size"]) for row in rows]
    bare = [1000 * float(row["convolutions_ms"]) / float(row["batch_size"]) for row in rows]
    shares = [f"{100 * float(row['share_of_convolutions_rate']):.0f} %" for row in rows]
    _bars(axes, labels, whole, shares, colour=SKY, label="the whole step")
    axes.barh(range(len(rows)), bare, height=0.55, color=BLUE.light, label="its convolutions alone")
    axes.set(title="A step, µs an image and core", ylim=(len(rows) - 0.4, -1.1))
    axes.legend(loc="upper left", ncols=2, fontsize=7)


def equality(axes: Axes, rows: Rows) -> None:
    """Macro F1 of each seed, hpo's networks beside the plain script's."""
    by_contender: dict[str, list[float]] = {}
    for row in rows:
        by_contender.setdefault(row["contender"], []).append(100 * float(row["macro_f1"]))
    labels = [f"{contender}: mean {fmean(each):.1f}" for contender, each in by_contender.items()]
    colours = [colour.light for colour in SERIES[: len(labels)]]
    axes.hist(list(by_contender.values()), 14, histtype="step", color=colours, label=labels, linewidth=1.6)
    for each, colour in zip(by_contender.values(), colours, strict=True):
        axes.axvline(fmean(each), color=colour, linewidth=0.9, linestyle="--")
    axes.set(title="Macro F1, seeds of each kind", xlabel="macro F1, %")
    axes.set(ylim=(0, 1.35 * axes.get_ylim()[1]))
    axes.legend(loc="upper left", fontsize=7.5)


def startup(axes: Axes, rows: Rows) -> None:
    """What a user waits for."""
    seconds = [float(row["wall_seconds"]) for row in rows]
    _bars(axes, [row["what"] for row in rows], seconds, [f"{value:.2g}" for value in seconds])
    axes.set(title="Until it answers, seconds")


def growth(axes: Axes, rows: Rows) -> None:
    """Costs by the trials in one storage."""
    lines = {
        "hpo status": "status_s",
        "first look of a worker": "first_look_s",
        "verdict of a pruner": "verdict_s",
        "claim of a trial": "claim_s",
    }
    _lines(axes, rows, "trials", lines)
    axes.set(title="As trials grow, seconds", xlabel="trials in one storage")


def images(axes: Axes, rows: Rows) -> None:
    """Memory by the images of a data set."""
    lines = {
        "cache on disk": "cache_mb",
        "a worker's own memory": "private_mb",
        "peak while the cache is made": "cold_peak_mb",
    }
    _lines(axes, [row for row in rows if (row["kind"], row["workers"]) == ("arrays", "1")], "images", lines)
    axes.set(title="As images grow, MB", xlabel="images of 32×32×3")


def search_epochs(axes: Axes, rows: Rows) -> None:
    """What each pruner spends."""
    _marks(axes, rows, "epochs_share", 100, 35)
    axes.set(title="What pruning spends", xlabel="% of the epochs", xlim=(0, 104))


def search_regret(axes: Axes, rows: Rows) -> None:
    """What each pruner loses."""
    _marks(axes, rows, "regret_p90", 1, 0.5)
    axes.set(title="What pruning loses", xlabel="regret, points of F1 (90th percentile)")
    axes.legend(loc="upper left", bbox_to_anchor=(0, -0.25), fontsize=8)  # the place below is free


def verdicts_wrong(axes: Axes, rows: Rows) -> None:
    """Plans that carry a useless change, before and after fresh seeds."""
    columns = {"by the search": "useless_before", "confirmed on fresh seeds": "useless_after"}
    _worlds(axes, rows, columns, goal=5)
    axes.set(title="Plans with a useless change, %")


def verdicts_right(axes: Axes, rows: Rows) -> None:
    """Plans that keep a change that helps."""
    shown = [row for row in rows if row["kept"]]
    _worlds(axes, shown, {"of all": "kept", "of those that adopted it": "power"}, goal=80)
    axes.set(title="Plans that keep what helps, %")


def plan_or_joint(axes: Axes, rows: Rows) -> None:
    """Regret by the seconds that a search has spent, on images."""
    rows = [row for row in rows if row["grid"] == "joint-cifar10"]
    searches = list(dict.fromkeys(row["search"] for row in rows))
    for search, colour, marker in zip(searches, SERIES, MARKERS, strict=False):
        own = [row for row in rows if row["search"] == search]
        x, y = [100 * float(row["share"]) for row in own], [float(row["mean_regret"]) for row in own]
        axes.plot(x, y, marker=marker, color=colour.light, label=search, markersize=4)
    axes.axvline(100, color=GREY.light, linewidth=0.8, linestyle="--")
    axes.set(title="Study by study, or all at once", xlabel="% of the plan's training seconds")
    axes.set(ylabel="regret, points of F1", ylim=(0, None))
    axes.legend(loc="upper right", fontsize=7.5)


PANELS: Sequence[tuple[str, Callable[[Axes, Rows], None]]] = (
    ("throughput", throughput),
    ("throughput_avx2", partial(throughput, title="The same, held to AVX2")),
    ("step", step),
    ("equality_seeds", equality),
    ("images", images),
    ("startup", startup),
    ("growth", growth),
    ("search_cost", search_epochs),
    ("search_cost", search_regret),
    ("verdicts", verdicts_wrong),
    ("verdicts", verdicts_right),
    ("plan_or_joint", plan_or_joint),
)
"""Table and what is drawn of it."""


def _bars(
    axes: Axes,
    labels: Sequence[str],
    values: Sequence[float],
    texts: Sequence[str],
    *,
    colour: Colour = BLUE,
    label: str | None = None,
) -> None:
    axes.barh(range(len(values)), values, height=0.55, color=colour.light, label=label)
    for place, (value, text) in enumerate(zip(values, texts, strict=True)):
        axes.annotate(text, (value, place), xytext=(4, 0), textcoords="offset points", va="center")
    axes.set_yticks(range(len(labels)), labels)
    axes.set(xlim=(0, 1.22 * max(values)), ylim=(len(values) - 0.4, -0.6))
    axes.grid(visible=False, axis="y")


def _marks(axes: Axes, rows: Rows, column: str, scale: float, goal: float) -> None:
    """A row a pruner, a mark a table; searches in random order."""
    rows = [row for row in rows if row["order"] == "random"]
    pruners = list(dict.fromkeys(row["pruner"] for row in rows))
    tables = dict.fromkeys(row["table"] for row in rows)
    for table, colour, marker in zip(tables, SERIES, MARKERS, strict=False):
        own = [row for row in rows if row["table"] == table]
        x, y = [scale * float(row[column]) for row in own], [pruners.index(row["pruner"]) for row in own]
        axes.plot(x, y, marker, color=colour.light, label=table.replace("-", " "), markersize=5)
    axes.axvline(goal, color=GREY.light, linewidth=0.8, linestyle="--")
    axes.set_yticks(range(len(pruners)), pruners, fontsize=7)
    axes.set(ylim=(len(pruners) - 0.5, -0.5))


def _worlds(axes: Axes, rows: Rows, columns: Mapping[str, str], goal: float) -> None:
    """A row a world, a mark a column; searches of one seed."""
    rows = [row for row in rows if row["search_seeds"] == "1"]
    for (label, column), colour, marker in zip(columns.items(), SERIES, MARKERS, strict=False):
        shares = [100 * float(row[column]) for row in rows]
        axes.plot(shares, range(len(rows)), marker, color=colour.light, label=label, markersize=5)
    axes.axvline(goal, color=GREY.light, linewidth=0.8, linestyle="--")
    axes.set_yticks(range(len(rows)), [row["world"].replace("-", " ") for row in rows], fontsize=7)
    axes.set(ylim=(len(rows) - 0.5, -0.5), xlim=(-2, 104))
    axes.legend(loc="upper right", bbox_to_anchor=(1.05, -0.12), ncols=2, fontsize=7.5)


def _lines(axes: Axes, rows: Rows, x: str, lines: Mapping[str, str]) -> None:
    for (label, column), colour, marker in zip(lines.items(), SERIES, MARKERS, strict=False):
        values = [float(row[column]) for row in rows]
        axes.plot([float(row[x]) for row in rows], values, marker=marker, color=colour.light, label=label)
    axes.set(xscale="log", yscale="log")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(
            FuncFormatter(lambda value, _: f"{value:,.0f}" if value >= 1 else f"{value:g}")
        )
        axis.set_minor_formatter(FuncFormatter(lambda *_: ""))
    axes.legend(loc="best", fontsize=7.5)


def main(target: Path = PICTURE) -> None:
    """Draws what there is."""
    found = [
        (draw, read_tables(file)[-1]) for name, draw in PANELS if (file := RESULTS / f"{name}.csv").exists()
    ]
    n_rows = -(-len(found) // COLUMNS)
    with styled():
        figure = canvas(HEIGHT * n_rows, WIDTH)
        for place, (draw, rows) in enumerate(found, start=1):
            draw(figure.add_subplot(n_rows, COLUMNS, place), rows)
        figure.set_layout_engine("constrained", w_pad=0.15, h_pad=0.12)
        target.write_bytes(written(figure).svg)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:2]))
