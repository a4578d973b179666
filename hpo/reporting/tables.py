"""The tables of a report: plain cells that become HTML, Markdown and CSV alike."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hpo._text import harmless_cell, percent, printable, show_value
from hpo.reporting.conclusions import Conclusion
from hpo.reporting.data import Point, ReportData, Section
from hpo.reporting.published import Comparison
from hpo.space.parameters import ParamValue


@dataclass(frozen=True)
class Cell:
    """What a reader sees, and what a program reads."""

    text: str
    value: object = None
    """For CSV and for sorting; None: the text, or nothing where that is a dash."""
    link: str = ""
    """Anchor on the page."""
    style: str = ""

    @property
    def raw(self) -> object:
        """What a CSV file holds."""
        return self.value if self.value is not None else ("" if self.text == "–" else self.text)


@dataclass(frozen=True)
class Column:
    """One column: its head on the page, and its name in a CSV file."""

    head: str
    key: str
    numeric: bool = True


@dataclass(frozen=True)
class Row:
    """One line; its style and anchor are for the page."""

    cells: Sequence[Cell]
    style: str = ""
    anchor: str = ""


@dataclass(frozen=True)
class Table:
    """A table of the report."""

    name: str
    """Of its CSV file."""
    caption: str
    columns: Sequence[Column]
    rows: Sequence[Row]

    def csv(self) -> str:
        """Return raw values under plain names; nothing in it is a formula to a spreadsheet."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow([harmless_cell(column.key) for column in self.columns])
        writer.writerows([[harmless_cell(cell.raw) for cell in row.cells] for row in self.rows])
        return text.getvalue()


def percent_cell(value: float | None, style: str = "") -> Cell:
    """Return a fraction as a percentage."""
    return Cell(percent(value), value, style=style)


def loss_cell(value: float | None, style: str = "") -> Cell:
    """Return a loss."""
    return Cell("–" if value is None else f"{value:.3f}", value, style=style)


def param_cell(value: ParamValue | None) -> Cell:
    """Return a parameter's value; nothing where a control has it from elsewhere."""
    return Cell("–") if value is None else Cell(show_value(value), value)


def points_table(section: Section) -> Table:
    """Return all points of a study; the control too, where an earlier study trained it."""
    control = section.control
    fixed = [
        name
        for name, value in section.spec.fixed.items()
        if control is not None and control.config.get(name) != value  # what tells the control from the others
    ]
    axes = [*fixed, *section.spec.search]
    columns = [
        Column("trial", "trial"),
        *[Column(axis.replace("_", " "), axis) for axis in axes],
        Column("F1 %", "macro_f1"),
        Column("acc. %", "accuracy"),
        Column("loss", "loss"),
        Column("best epoch", "best_epoch"),
        Column("epochs", "epochs"),
        Column("time s", "seconds"),
        Column("state", "state", numeric=False),
        Column("remarks", "remarks", numeric=False),
    ]
    points = list(section.points)
    if control and control not in points:
        points.insert(0, control)
    decision = section.decision
    best = decision.winner.source if decision and decision.winner else None
    carried = decision.source if decision else None
    rows = []
    for point in points:
        is_best, is_carried = (
            ref is not None and (ref.study, ref.trial) == (point.study, point.row.trial)
            for ref in (best, carried)
        )
        is_control = point is control or point.row.point == "control"
        is_ours = point.study == section.name
        row = point.row
        marks = ["best of the study"] * is_best + ["control"] * is_control + ["carried on"] * is_carried
        rows.append(
            Row(
                cells=[
                    Cell(
                        str(row.trial) if is_ours else point.name,
                        None if is_ours else point.name,
                        link="" if is_ours else point.anchor,
                    ),
                    *[param_cell(_param(point, axis)) for axis in axes],
                    percent_cell(row.macro_f1),
                    percent_cell(row.accuracy),
                    loss_cell(row.loss),
                    Cell("–" if row.best_epoch is None else str(row.best_epoch), row.best_epoch),
                    Cell(str(row.epochs), row.epochs),
                    Cell(f"{row.seconds:.1f}", round(row.seconds, 3)),
                    Cell(row.state, style=f"state {row.state}"),
                    Cell(printable("; ".join([*marks, *_remarks(point)]))),
                ],
                style=" ".join(["best"] * is_carried + ["control"] * is_control),
                anchor=point.anchor if is_ours else "",
            )
        )
    caption = f"All points of {section.name}; figures of the best epoch on validation, means over seeds."
    return Table(f"points-{section.name}", caption, columns, rows)


def _param(point: Point, name: str) -> ParamValue | None:
    """Return a parameter of a point; None for when mixup begins and ends, where there is none."""
    if name in ("mixup_first_epoch", "mixup_last_epoch") and not point.config.get("mixup_alpha"):
        return None
    return point.row.params.get(name, point.config.get(name))


def _remarks(point: Point) -> list[str]:
    """Return remarks of a word or two each; `notes` has the rest."""
    kinds = [
        text.split(":")[0].removesuffix(" at the last epoch")
        for text in (point.row.reason, *point.findings)
        if text
    ]
    again = [f"attempt {point.row.attempt}"] if point.row.attempt > 1 else []
    return list(dict.fromkeys([*kinds, *again]))


def notes(section: Section) -> list[str]:
    """Return what is to be known of single points, equal texts together."""
    trials: dict[str, list[str]] = {}
    for point in section.points:
        for text in (point.row.reason, *point.findings):
            if text:
                trials.setdefault(text, []).append(str(point.row.trial))
    found = [
        f"{'Trial' if len(numbers) == 1 else 'Trials'} {', '.join(numbers)}: {text}."
        for text, numbers in trials.items()
    ]
    for point in section.points:
        found += [
            f"{text[0].upper()}{text[1:]}." for text in (*point.row.earlier, *point.row.checkpoint_notes)
        ]
    return [printable(text) for text in found]


def published_table(comparisons: Sequence[Comparison], report: ReportData) -> Table:
    """Return what the report printed beside what was found here."""
    columns = [
        Column("study", "study", numeric=False),
        Column("with", "parameters", numeric=False),
        Column("figure", "figure", numeric=False),
        Column("published", "published"),
        Column("ours", "ours"),
        Column("difference", "difference"),
        Column("trial", "trial", numeric=False),
        Column("remarks", "remarks", numeric=False),
    ]
    rows = [Row(_comparison_cells(each, is_same=report.is_cifar10)) for each in comparisons]
    ours = data_text(report)
    caption = (
        "Published: CIFAR-10, 40,000 training and 10,000 validation images, one seed. "
        f"Ours: {ours}. Each figure is of its own best epoch (the highest accuracy, the lowest loss), as the "
        "report printed it, or of the last epoch where it says so."
        f"{'' if report.is_cifar10 else ' On other data a difference means nothing, and is left out.'}"
    )
    return Table("published", caption, columns, rows)


def _comparison_cells(each: Comparison, *, is_same: bool) -> list[Cell]:
    show = loss_cell if each.figure == "loss" else percent_cell
    gap = each.difference if is_same else None
    scale = 1 if each.figure == "loss" else 100
    digits = 3 if each.figure == "loss" else 1
    return [
        Cell(printable(f"{each.section} {each.study}".strip()), each.study),
        Cell(each.params),
        Cell(each.what),
        show(each.published),
        show(each.ours),
        Cell("–" if gap is None else f"{scale * gap:+.{digits}f}", gap),
        Cell(each.trial, link=each.anchor) if each.trial else Cell("–"),
        Cell(printable(each.note)),
    ]


def data_text(report: ReportData) -> str:
    """Return the data set at hand in words."""
    identity = report.identity
    height, width, channels = identity.image_shape
    source = report.options.data
    known = f"CIFAR-10 ({source})" if report.is_cifar10 and not source.startswith("cifar10") else source
    parts = f"{identity.n_train:,} training and {identity.n_valid:,} validation images"
    if report.final:
        n_test = round(sum(map(sum, report.final["confusion_matrix"])))
        parts = f"{identity.n_train:,} training, {identity.n_valid:,} validation and {n_test:,} test images"
    return printable(
        f"{known}: {parts} of {height}×{width}×{channels} in {len(identity.class_names)} classes"
    )


def config_table(config: Mapping[str, ParamValue], origins: Mapping[str, Cell]) -> Table:
    """Return a configuration, each value with where it comes from."""
    rows = [
        Row([Cell(name), Cell(show_value(value), value), origins.get(name, Cell("default"))])
        for name, value in config.items()
    ]
    columns = [
        Column("parameter", "parameter", numeric=False),
        Column("value", "value"),
        Column("from", "origin", numeric=False),
    ]
    return Table("final-configuration", "The configuration that the studies chose.", columns, rows)


def final_tables(final: Mapping[str, Any]) -> list[Table]:
    """Return the test set's figures by epoch, by seed and by class, and the confusion matrix."""
    heads = [Column("F1 %", "macro_f1"), Column("acc. %", "accuracy"), Column("loss", "loss")]
    chosen = final["selected_epoch"]
    epochs = [
        Row([Cell(str(each["epoch"]), each["epoch"]), *_figure_cells(each)], "best" if is_chosen else "")
        for each in final["per_epoch"]
        for is_chosen in [each["epoch"] == chosen]
    ]
    seeds = [Row([Cell(str(each["seed"]), each["seed"]), *_figure_cells(each)]) for each in final["per_seed"]]
    classes = [
        Row([Cell(printable(name)), percent_cell(figures["f1"])])
        for name, figures in final["per_class"].items()
    ]
    names = [printable(name) for name in final["per_class"]]
    confusion = [
        Row([Cell(name), *[Cell(f"{count:.1f}", count) for count in counts]])
        for name, counts in zip(names, final["confusion_matrix"], strict=True)
    ]
    wrong = [
        Row(
            [
                Cell(str(each["image"]), each["image"]),
                Cell(printable(each["label"])),
                Cell(printable(each["predicted"])),
                percent_cell(each["probability"]),
            ]
        )
        for each in final["most_confidently_wrong"]
    ]
    return [
        Table(
            "final-epochs",
            f"Test figures per epoch, means over seeds; validation chose epoch {chosen}.",
            [Column("epoch", "epoch"), *heads],
            epochs,
        ),
        Table(
            "final-seeds",
            f"Test figures per seed at epoch {chosen}.",
            [Column("seed", "seed"), *heads],
            seeds,
        ),
        Table(
            "per-class",
            "Test F1 per class, means over seeds.",
            [Column("class", "class", numeric=False), Column("F1 %", "f1")],
            classes,
        ),
        Table(
            "confusion-matrix",
            "Test images by true class (rows) and predicted class (columns), means over seeds.",
            [Column("is ↓ taken for →", "class", numeric=False), *[Column(name, name) for name in names]],
            confusion,
        ),
        Table(
            "most-confidently-wrong",
            "Images by their place in the test set, the most confident first.",
            [
                Column("image", "image"),
                Column("is", "label", numeric=False),
                Column("taken for", "predicted", numeric=False),
                Column("with %", "probability"),
            ],
            wrong,
        ),
    ]


def _figure_cells(figures: Mapping[str, Any]) -> list[Cell]:
    return [percent_cell(figures["macro_f1"]), percent_cell(figures["accuracy"]), loss_cell(figures["loss"])]


def conclusions_table(conclusions: Sequence[Conclusion]) -> Table:
    """Return the report's conclusions and what is said of them here."""
    keys = (
        ("no.", "number"),
        ("claim", "claim"),
        ("verdict", "verdict"),
        ("evidence", "evidence"),
        ("trials", "trials"),
    )
    rows = [
        Row(
            [
                Cell(str(each.number), each.number),
                Cell(each.claim),
                Cell(each.verdict),
                Cell(each.text),
                Cell(" ".join(point.name for point in each.points)),
            ]
        )
        for each in conclusions
    ]
    columns = [Column(head, key, numeric=False) for head, key in keys]
    return Table("conclusions", "The report's conclusions.", columns, rows)


def epochs_table(points: Iterable[Point]) -> Table:
    """Return every epoch of every seed, for those who want to draw their own figures."""
    keys = ("train_loss", "valid_loss", "valid_accuracy", "valid_macro_f1", "seconds")
    columns = [Column(key, key) for key in ("study", "trial", "epoch", "seed", *keys)]
    rows = [
        Row(
            [Cell(str(value), value) for value in (point.study, point.row.trial, number, seed["seed"])]
            + [Cell(str(seed[key]), seed[key]) for key in keys]
        )
        for point in points
        for number, epoch in enumerate(point.row.history, start=1)
        for seed in epoch
    ]
    return Table("epochs", "Every epoch of every trial that counts.", columns, rows)
