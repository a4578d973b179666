"""The tables of a report: plain cells that become HTML, Markdown and CSV alike."""

from __future__ import annotations

import csv
import io
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

from hpo._text import cost_text, duration, harmless_cell, params_text, percent, printable, show_value
from hpo.monitor.origins import Origin
from hpo.monitor.results import TrialRow, all_costs, deviation
from hpo.planning.claims import Cell as ClaimCell
from hpo.planning.confirmation import ConfirmedDecision
from hpo.planning.manifest import Options
from hpo.planning.metrics import Metric
from hpo.reporting.data import Point, ReportData, Section, anchor
from hpo.reporting.prose import count_text, data_text
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
    key: str = ""
    """Empty: the head."""
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
    more: Sequence[Column] = ()
    """Of the last cells, which only the CSV file has."""

    def csv(self) -> str:
        """Return raw values under plain names; nothing in it is a formula to a spreadsheet."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow([harmless_cell(column.key or column.head) for column in [*self.columns, *self.more]])
        writer.writerows([[harmless_cell(cell.raw) for cell in row.cells] for row in self.rows])
        return text.getvalue()


Columns = Sequence[tuple[Column, Callable[[Any], Cell]]]
"""Each with what it shows of the thing that a row is about."""


def _table(
    name: str, caption: str, things: Iterable[Any], columns: Columns, chosen: Any = None, more: Columns = ()
) -> Table:
    """Return a table of a row a thing."""
    rows = [
        Row([show(each) for _, show in [*columns, *more]], "best" if each is chosen else "")
        for each in things
    ]
    return Table(name, caption, [column for column, _ in columns], rows, [column for column, _ in more])


def _words(head: str, key: str = "") -> Column:
    return Column(head, key, numeric=False)


def _cell(value: object) -> Cell:
    return Cell("–" if value is None else str(value), value)


def _text(key: str) -> Callable[[Mapping[str, str]], Cell]:
    return lambda each: Cell(printable(each[key]))


def _number(key: str) -> Callable[[Mapping[str, object]], Cell]:
    return lambda each: _cell(each[key])


def _share(key: str) -> Callable[[Mapping[str, float]], Cell]:
    return lambda each: Cell(percent(each[key]), each[key])


def _param_cell(value: ParamValue | None) -> Cell:
    """Return a parameter's value; nothing where a control has it from elsewhere."""
    return Cell("–") if value is None else Cell(show_value(value), value)


def _metric(metric: Metric) -> Callable[[Mapping[str, float | None]], Cell]:
    def cell(each: Mapping[str, float | None]) -> Cell:
        value = each[metric.name]
        return Cell(metric.text(value, each.get(f"{metric.name}_std")), value)

    return cell


def _metric_columns(metrics: Iterable[Metric]) -> Columns:
    """Return a column a metric, with the deviation where `NAME_std` has one."""
    return [(Column(metric.head, metric.name), _metric(metric)) for metric in metrics]


def _cost_columns(names: Iterable[str]) -> Columns:
    return [(Column(name.replace("_", " "), name), _cost(name)) for name in names]


def _cost(name: str) -> Callable[[Mapping[str, float]], Cell]:
    return lambda costs: Cell(cost_text(costs.get(name)), costs.get(name))


def _deviation_columns(metrics: Iterable[Metric]) -> Columns:
    names = [f"{metric.name}_std" for metric in metrics]
    return [(Column(name), _number(name)) for name in names]


def _with_deviations(means: Mapping[str, Any], std: Mapping[str, float | None]) -> dict[str, Any]:
    return {**means, **{f"{name}_std": value for name, value in std.items()}}


# --- a study ---------------------------------------------------------------------------------------------


def points_table(report: ReportData, section: Section) -> Table:
    """Return all points of a study; the control too, where an earlier study trained it."""
    control = section.control
    fixed = [
        name
        for name, value in section.spec.fixed.items()
        if control is not None and control.config.get(name) != value  # what tells the control from the others
    ]
    axes = [*fixed, *section.spec.search]
    points = [control] if control is not None and control not in section.points else []
    points += section.points
    # of one seed there is no deviation: no empty columns
    has_std = any(value is not None for point in points for value in point.row.std.values())
    costs = section.spec.costs
    further = [name for name in all_costs(point.row for point in points) if name not in costs]
    more: Columns = [(Column("epochs"), _number("epochs")), *_cost_columns(further)]
    more = [*more, *(_deviation_columns(report.metrics) if has_std else [])]
    columns = [
        Column("trial"),
        *[Column(axis.replace("_", " "), axis) for axis in axes],
        *[column for column, _ in _metric_columns(report.metrics)],
        *[column for column, _ in _cost_columns(costs)],
        Column("best epoch", "best_epoch"),
        Column("time\N{NO-BREAK SPACE}s", "seconds"),
        _words("state"),
        _words("remarks"),
    ]
    rows = [_point_row(report.metrics, section, point, axes, more) for point in points]
    n_seeds = max((len(point.seeds) for point in points), default=1)
    caption = f"All points of {section.name}; metrics of the best epoch on validation{_of_seeds(n_seeds)}."
    if any(point.row.stop for point in points):
        caption += (
            " Each is over the point's own seeds: only points with as many seeds can be compared by it."
        )
    return Table(f"points-{section.name}", caption, columns, rows, [column for column, _ in more])


def _of_seeds(n_seeds: int) -> str:
    """Return how a table tells several seeds; nothing where there is one."""
    return ", mean ± standard deviation over seeds" if n_seeds > 1 else ""


def _point_row(
    metrics: Sequence[Metric], section: Section, point: Point, axes: Sequence[str], more: Columns
) -> Row:
    decision, row = section.decision, point.row
    is_control = point is section.control or row.point == "control"
    # a point that bears the control's result stands for it
    refs = [point.ref, *([decision.control.source] if is_control and decision and decision.control else [])]
    is_best = bool(decision and decision.winner and decision.winner.source in refs)
    is_carried = bool(decision and decision.source in refs)
    is_ours = point.study == section.name
    marks = ["best of the study"] * is_best + ["control"] * is_control + ["carried on"] * is_carried
    finish = decision.race.finish_of(row.trial) if decision and decision.race and is_ours else None
    if decision and decision.race and finish:
        marks.append(decision.race.words_of(finish, section.objective))
    found = {**row.costs, **_with_deviations(row.metrics, row.std), "epochs": row.epochs}
    return Row(
        [
            Cell(str(row.trial)) if is_ours else Cell(point.name, link=point.anchor),
            *[_param_cell(_param(point, axis)) for axis in axes],
            *[show(found) for _, show in _metric_columns(metrics)],
            *[show(row.costs) for _, show in _cost_columns(section.spec.costs)],
            Cell(f"{row.best_epoch}/{row.epochs}" if row.best_epoch else "–", row.best_epoch),
            Cell(f"{row.seconds:.1f}", round(row.seconds, 3)),
            _state(row),
            Cell(printable("; ".join([*marks, *_remarks(point)]))),
            *[show(found) for _, show in more],
        ],
        style=" ".join(["best"] * is_carried + ["control"] * is_control),
        anchor=point.anchor if is_ours else "",
    )


def _param(point: Point, name: str) -> ParamValue | None:
    """Return a parameter of a point; None for one that means nothing there."""
    return None if name in point.row.inactive else point.row.params.get(name, point.config.get(name))


def _state(row: TrialRow) -> Cell:
    return Cell(row.shown_state, style=f"state {row.state}")


def _remarks(point: Point) -> list[str]:
    """Return remarks of a word or two each, beside the state; `notes` has the rest."""
    kinds = [text.partition(":")[0] for text in _texts(point)]
    kinds = [kind for kind in kinds if kind != point.row.shown_state]
    again = [f"attempt {point.row.attempt}"] if point.row.attempt > 1 else []
    return list(dict.fromkeys([*kinds, *again]))


def _texts(point: Point) -> list[str]:
    found = [point.row.reason, *[finding.text for finding in point.row.findings]]
    return [text for text in found if text]


def notes(section: Section) -> list[str]:
    """Return what is to be known of single points, equal texts together."""
    trials: dict[str, list[str]] = {}
    # how each came to its result, then what is wrong with it
    reasons = [(point, point.row.reason) for point in section.points if point.row.reason]
    faults = [(point, finding.text) for point in section.points for finding in point.row.findings]
    for point, text in (*reasons, *faults):
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


def epochs_table(report: ReportData) -> Table:
    """Return every epoch of every seed, for those who want to draw figures of their own."""
    keys = ("train_loss", *[f"valid_{metric.name}" for metric in report.metrics], "seconds")
    records = (
        {
            **{f"valid_{name}": value for name, value in seed["metrics"].items()},
            "train_loss": seed.get("train_loss"),
            "seconds": seed.get("seconds"),
            "seed": seed["seed"],
            "study": point.study,
            "trial": point.row.trial,
            "epoch": number,
        }
        for point in (*report.points, *report.confirmation_points)
        for number, epoch in enumerate(point.row.history, start=1)
        for seed in epoch
    )
    columns = [(Column(key), _number(key)) for key in ("study", "trial", "epoch", "seed", *keys)]
    return _table("epochs", "Every epoch of every trial that counts.", records, columns)


# --- the confirmation ------------------------------------------------------------------------------------


def confirmation_tables(report: ReportData) -> list[Table]:
    """Return what fresh seeds say of each decision, and what they were; nothing where there is none."""
    objective, found = report.objective, report.confirmation
    points = report.confirmation_points
    if not points and found is None:
        return []
    trials = _table(
        "confirmation-seeds",
        "Every training of the confirmation; metrics of the best epoch on validation.",
        points,
        [
            (Column("trial"), lambda each: Cell(str(each.row.trial))),
            (_words("configuration"), lambda each: Cell(printable(each.row.point.rpartition(", seed ")[0]))),
            (Column("seed"), lambda each: _cell(each.seeds[0])),
            *[
                (column, lambda each, show=show: show(each.row.metrics))
                for column, show in _metric_columns(report.metrics)
            ],
            (_words("state"), lambda each: _state(each.row)),
            (_words("remarks"), lambda each: Cell(printable("; ".join(_remarks(each))))),
        ],
    )
    trials = replace(
        trials,
        rows=[replace(row, anchor=point.anchor) for row, point in zip(trials.rows, points, strict=True)],
    )
    if found is None or not found.decisions:
        return [trials]

    def interval(each: ConfirmedDecision) -> Cell:
        low, high = each.interval or (None, None)
        return Cell("–" if low is None else f"{objective.gap(low)} to {objective.gap(high)}")

    columns: Columns = [
        (_words("study"), lambda each: Cell(printable(each.study))),
        (_words("change"), lambda each: Cell(printable(params_text(each.change)))),
        (_words("instead of", "before"), lambda each: Cell(printable(params_text(each.before)))),
        (
            Column(f"difference in {objective.head}", "difference"),
            lambda each: Cell(objective.gap(each.difference), each.difference),
        ),
        (Column("95 % interval", "interval"), interval),
        (_words("verdict"), lambda each: Cell(each.verdict)),
        (
            Column("p ≤", "p_adjusted"),
            lambda each: Cell("–" if each.p_adjusted is None else f"{each.p_adjusted:.2g}", each.p_adjusted),
        ),
        (Column("seeds"), lambda each: _cell(each.seeds)),
        (_words("kept"), lambda each: Cell("kept" if each.kept else "taken back")),
    ]
    bounds: Columns = [
        (Column("interval_low"), lambda each: _cell(each.interval and each.interval[0])),
        (Column("interval_high"), lambda each: _cell(each.interval and each.interval[1])),
        (Column("p_value"), lambda each: _cell(each.p_value)),
    ]
    caption = (
        "Each adopted decision against the same configuration without it, on fresh seeds; p of being better, "
        "among all decisions (Holm)."
    )
    return [_table("confirmation", caption, found.decisions, columns, more=bounds), trials]


# --- the final stage -------------------------------------------------------------------------------------


def final_tables(report: ReportData) -> list[Table]:
    """Return the final configuration and the metrics on the test set; nothing before there are any."""
    if report.final is None:
        return []
    final, epoch = report.final, report.final["selected_epoch"]
    std = [
        {metric.name: deviation([seed[metric.name] for seed in seeds]) for metric in report.metrics}
        for seeds in report.test_epochs
    ]
    epochs = list(map(_with_deviations, final["per_epoch"], std))
    chosen = next((each for each in epochs if each["epoch"] == epoch), None)
    metrics = _metric_columns(report.metrics)
    n_seeds = len(final["seeds"])
    settled = report.options.final_data == "train+validation"
    chose = f"{epoch} epochs were settled before" if settled else f"validation chose epoch {epoch}"
    return [
        _table(
            "final-configuration",
            "The configuration that the final stage trained.",
            report.final_origins,
            [
                (_words("parameter"), lambda each: Cell(each[0])),
                (
                    Column("value"),
                    lambda each: _param_cell(None if each[0] in report.final_inactive else each[1]),
                ),
                (_words("from", "origin"), lambda each: _origin_cell(each[2])),
            ],
        ),
        _table(
            "final-epochs",
            f"Test metrics per epoch{_of_seeds(n_seeds)}; {chose}.",
            epochs,
            [(Column("epoch"), _number("epoch")), *metrics],
            chosen,
            _deviation_columns(report.metrics) if n_seeds > 1 else [],
        ),
        _table(
            "final-seeds",
            f"Test metrics per seed at epoch {epoch}.",
            final["per_seed"],
            [(Column("seed"), _number("seed")), *metrics],
        ),
        *_class_tables(report, final),
    ]


def _class_tables(report: ReportData, final: Mapping[str, Any]) -> list[Table]:
    """Return what there is to say of single classes; nothing where targets are none."""
    if "per_class" not in final:
        return []
    counts = list(zip(final["per_class"], final["confusion_matrix"], strict=True))
    examples = report.examples
    classes = [
        {"class": name, "f1": final["per_class"][name]["f1"], examples: round(sum(row))}
        for name, row in counts
    ]
    return [
        _table(
            "per-class",
            "Test F1 per class, means over seeds.",
            classes,
            [
                (_words("class"), _text("class")),
                (Column("F1 %", "f1"), _share("f1")),
                (Column(examples), _number(examples)),
            ],
        ),
        Table(
            "confusion-matrix",
            f"Test {examples} by true class (rows) and predicted class (columns), means over seeds.",
            [_words("is ↓ taken for →", "class"), *[Column(printable(name)) for name, _ in counts]],
            [Row([Cell(printable(name)), *[Cell(f"{n:.1f}", n) for n in row]]) for name, row in counts],
        ),
        _table(
            "most-confidently-wrong",
            f"{examples.capitalize()} by their place in the test set, as the network of one seed took them.",
            final["most_confidently_wrong"],
            [
                (Column(examples.removesuffix("s"), "image"), _number("image")),
                (_words("is", "label"), _text("label")),
                (_words("taken for", "predicted"), _text("predicted")),
                (Column("with %", "probability"), _share("probability")),
            ],
        ),
    ]


def _origin_cell(origin: Origin) -> Cell:
    return Cell(origin.trial.name if origin.trial else origin.text, link=anchor(origin.trial))


# --- the original ----------------------------------------------------------------------------------------


def published_table(comparisons: Sequence[Comparison], report: ReportData) -> Table:
    """Return what the original printed beside what was found here."""

    def number(each: Comparison, value: float | None) -> Cell:
        return Cell((each.metric or report.objective).text(value), value)

    def gap(each: Comparison) -> Cell:
        return Cell((each.metric or report.objective).gap(each.difference), each.difference)

    caption = (
        "Published: CIFAR-10, 40,000 training and 10,000 validation images, one seed. "
        f"Ours: {data_text(report)}. Each metric is of its own best epoch (the highest accuracy, the lowest "
        "loss), as the original printed it, or of the last epoch where it says so."
    )
    columns: Columns = [
        (_words("study"), lambda each: Cell(printable(f"{each.section} {each.study}".strip()), each.study)),
        (_words("with", "parameters"), lambda each: Cell(each.params)),
        (_words("metric"), lambda each: Cell(each.what)),
        (Column("published"), lambda each: number(each, each.published)),
        (Column("ours"), lambda each: number(each, each.ours)),
        (Column("difference"), gap),
        (_words("trial"), lambda each: Cell(each.trial or "–", link=each.anchor)),
        (_words("remarks"), lambda each: Cell(printable(each.note))),
    ]
    return _table("published", caption, comparisons, columns)


def claims_tables(report: ReportData) -> list[Table]:
    """Return the plan's claims with what is said of them here, and their cells; none where it has none."""
    if report.claims is None:
        return []
    numbered = list(enumerate(report.claims.results, start=1))
    columns: Columns = [
        (_words("no.", "number"), lambda each: Cell(str(each[0]))),
        (_words("claim"), lambda each: Cell(printable(each[1].claim.text))),
        (_words("verdict"), lambda each: Cell(each[1].verdict)),
        (_words("evidence"), lambda each: Cell(printable(each[1].text))),
        (_words("trials"), lambda each: Cell(_trials(each[1].cells))),
    ]
    objective = report.objective
    cell_columns: Columns = [
        (_words("claim"), lambda each: Cell(str(each[0]))),
        (_words("cell", "parameters"), lambda each: Cell(printable(params_text(each[1].params)))),
        (Column("seeds"), lambda each: Cell(str(len(each[1].scores)), len(each[1].scores))),
        (Column(objective.head, objective.name), lambda each: _mean_cell(objective, each[1])),
        (_words("trials"), lambda each: Cell(_trials([each[1]]))),
    ]
    cells = [(number, cell) for number, result in numbered for cell in result.cells]
    caption = (
        "What the claims are judged by. Seeds were trained to their end; the metric is of each one's best "
        "epoch, and ± its standard deviation between seeds."
    )
    return [
        _table("claims", "The plan's claims.", numbered, columns),
        _table("claim-cells", caption, cells, cell_columns),
    ]


def _trials(cells: Iterable[ClaimCell]) -> str:
    return " ".join(dict.fromkeys(ref.name for cell in cells for ref in cell.trials))


def _mean_cell(objective: Metric, cell: ClaimCell) -> Cell:
    values = [objective.score(score) for score in cell.scores]
    if not values:
        return Cell("–")
    return Cell(objective.text(fmean(values), deviation(values)), fmean(values))


# --- provenance ------------------------------------------------------------------------------------------


def provenance_table(report: ReportData, version: str) -> Table:
    """Return what the results depend on, and what they took."""
    options, identity = report.options, report.identity
    points = [point for point in (*report.trained, *report.confirmation_points) if not point.is_reused]
    trained = sum(point.row.epochs * len(point.seeds) for point in points)
    pruned = [point for point in points if point.row.state == "pruned"]
    saved = sum((int(p.config.get("epochs", 0)) - p.row.epochs) * len(p.seeds) for p in pruned)
    busy = sum(point.row.seconds for point in points)
    seconds_saved = sum(
        point.row.seconds / point.row.epochs * (int(point.config.get("epochs", 0)) - point.row.epochs)
        for point in pruned
        if point.row.epochs
    )
    wall = max((attempt.end for attempt in report.attempts), default=0.0)
    workers = len({attempt.worker for attempt in report.attempts})
    lost = sum(attempt.state in ("lost", "released", "superseded", "error") for attempt in report.attempts)
    last = max((seed for point in report.points for seed in point.seeds), default=options.seed)
    search_seeds = f"{options.seed} to {last}" if last > options.seed else options.seed
    final_seeds = ", ".join(map(str, report.final["seeds"])) if report.final else "not trained yet"
    fresh = [point.seeds[0] for point in report.confirmation_points]
    lines: list[tuple[str, object]] = [
        ("plan", report.name),
        ("data", data_text(report)),
        ("data fingerprint", identity.fingerprint),
        ("recipe", report.recipe.name),
        (
            "source files of the recipe",
            ", ".join(f"{module}.py {digest[:12]}" for module, digest in report.recipe.sources.items()),
        ),
        ("classes", ", ".join(identity.class_names)),
        ("seed of the search" if last == options.seed else "seeds of the search", search_seeds),
        ("seeds of the confirmation", f"{min(fresh)} to {max(fresh)}" if fresh else ""),
        ("seeds of the final stage", final_seeds),
        (
            "precision, device, threads a worker",
            f"{identity.precision}, {identity.device_text}, {identity.threads}",
        ),
        (
            "trained on",
            "; ".join(
                f"{text} ({'one trial' if n == 1 else f'{n:,} trials'})"
                for text, n in report.machines.items()
            ),
        ),
        ("versions", ", ".join(f"{name} {number}" for name, number in report.versions.items())),
        ("this page", f"hpo {version}"),
        ("database", report.storage),
        ("command", command(options)),
        ("first trial began", report.began),
        ("last trial ended", report.ended),
        ("time from first to last", duration(wall)),
        (
            "time of training",
            f"{duration(busy)} on {count_text(workers)} worker{'' if workers == 1 else 's'}",
        ),
        ("epochs trained", f"{trained:,}, those of each seed counted"),
        ("epochs saved by pruning", f"{saved:,} (about {duration(seconds_saved)})"),
        ("attempts lost, released or failed", lost),
    ]
    rows = [Row([Cell(name), Cell(printable(str(value)), value)]) for name, value in lines if value != ""]
    return Table(
        "provenance",
        "What the results depend on, and what they took.",
        [_words("what"), _words("value")],
        rows,
    )


def command(options: Options) -> str:
    """Return a command that makes such a plan."""
    words = ["hpo run"]
    for name, value in options.model_dump().items():
        if name == "pruning":
            words += [] if value else ["--no-pruning"]
        elif value != Options.model_fields[name].default or name == "data":
            text = f"{value:g}" if isinstance(value, float) else str(value)
            words += [f"--{name.replace('_', '-')}", *([] if value is True else [shlex.quote(text)])]
    return " ".join(words)
