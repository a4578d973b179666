"""One look at a plan as lines of a terminal, cut to its width and height.

Where not all fits, what matters least goes first: old decisions, then studies; never the first line.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum, auto

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text

from hpo._text import duration, params_text, point_text, printable, seeds_text
from hpo.cli.grid import block, shortened
from hpo.cli.tables import STAGES, STATE_STYLES
from hpo.monitor.watch import Best, Progress, Running, StudyProgress
from hpo.planning.metrics import Metric
from hpo.planning.plan import FINAL

WIDE, VERY_WIDE = 110, 150
"""Columns from which there is room for more."""
N_BAR = 11
N_WORKERS = 4
"""Workers that matter more than what is said of studies."""
N_NAMED = 6
"""Trials and reasons that one line names; of the rest it says how many."""


class _Rank(IntEnum):
    """What is kept where not all fits, the last ones longest."""

    SPACE = auto()
    OLD_DECISION = auto()
    PARAMS = auto()
    MORE_WORKERS = auto()
    STUDY = auto()
    BEST = auto()
    LAST_DECISION = auto()
    TROUBLE = auto()
    WORKER = auto()
    NOTE = auto()
    CURRENT_STUDY = auto()
    FIRST_LINE = auto()


@dataclass(frozen=True)
class _Line:
    rank: _Rank
    text: Text
    kind: str = ""
    """What there is one fewer of where the line has no room: "study" or "worker"."""


class Display:
    """What one look found, as rich prints it: as wide and high as there is room.

    Args:
        progress: what was found.
        notes: what else has to be said, the last last.
        has_workers: whether who looks has workers of its own: where none trains, they are about to.
    """

    def __init__(self, progress: Progress, notes: Sequence[str] = (), *, has_workers: bool = False) -> None:
        self._progress, self._notes = progress, notes
        self._is_starting = has_workers and not progress.running and not progress.is_over

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Return the lines, each on one row."""
        width, height = options.max_width, options.height or console.size.height
        lines = self._lines(console, width, is_short=False)
        if len(lines) > height:
            lines = self._lines(console, width, is_short=True)
        for text in _fitted(lines, height):
            yield shortened(text, width)

    def _lines(self, console: Console, width: int, *, is_short: bool) -> list[_Line]:
        return [
            _Line(_Rank.FIRST_LINE, headline(self._progress, width, is_starting=self._is_starting)),
            *(_Line(_Rank.NOTE, Text(printable(note), "yellow")) for note in self._notes[-2:]),
            _Line(_Rank.SPACE, Text()),
            *_tree(self._progress, console, width, is_short=is_short, is_starting=self._is_starting),
            _Line(_Rank.SPACE, Text()),
            *_workers(self._progress, width, is_starting=self._is_starting),
        ]


def _fitted(lines: Sequence[_Line], height: int) -> Iterator[Text]:
    """Yield the lines that matter most, in order, and how many studies and workers have no room."""
    kept = set(range(len(lines)))

    def order(index: int) -> tuple[_Rank, int]:
        """Sort by rank; of equal rank the lower goes first, of decisions the older."""
        rank = lines[index].rank
        return rank, index if rank == _Rank.OLD_DECISION else -index

    by_rank = sorted(kept, key=order)
    said: dict[int, str] = {}
    while len(kept) + len(said) > max(height, 1) and len(kept) > 1:
        kept.discard(by_rank.pop(0))
        hidden = [index for index in range(len(lines)) if index not in kept]
        said = {}
        for kind, plural in (("study", "studies"), ("worker", "workers")):
            places = [index for index in hidden if lines[index].kind == kind]
            if places:
                said[places[-1]] = f"… {len(places)} more {kind if len(places) == 1 else plural}"
    for index, line in enumerate(lines):
        if index in kept:
            yield line.text
        elif index in said and len(kept) + len(said) <= height:
            yield Text(said[index], "dim")


# --- the first line -------------------------------------------------------------------------------


def headline(progress: Progress, width: float = math.inf, *, is_starting: bool = False) -> Text:
    """Return a plan in one line: where it is, best so far, time left, test set; as much as fits."""
    lines = [_summary(progress, n_details, is_starting=is_starting) for n_details in (2, 1, 0, -1)]
    return next((line for line in lines if line.cell_len <= width), lines[-1])


def _summary(progress: Progress, n_details: int, *, is_starting: bool) -> Text:
    n_studies = sum(not study.is_stage for study in progress.studies)
    of_all = str(n_studies) if n_studies == progress.n_in_plan else f"{n_studies} asked for"
    study, best, test = progress.studies[progress.current], progress.best, progress.test
    objective = progress.objective
    if progress.is_over:
        n_decided = sum(each.status.state == "done" for each in progress.studies if not each.is_stage)
        where = f"{n_decided} of {n_studies} studies decided"
    elif study.is_stage:
        where = STAGES[study.status.name]
    else:
        where = f"study {progress.current + 1} of {of_all}"
    parts = [Text(where, "bold")]
    if best is not None and n_details >= 0:
        details = [seeds_text(best.n_seeds), trial_name(best)][:n_details]
        parts.append(
            Text.assemble(
                f"best {objective.short} ",
                (objective.with_unit(best.value, best.deviation), "bold green"),
                (f" ({', '.join(details)})" if details else "", "dim"),
            )
        )
    if len(progress.running) > 1 and n_details >= 1:
        parts.append(Text(f"{len(progress.running)} trials at once"))
    if progress.seconds_left is not None:
        how = "at least" if progress.may_take_longer else "about"
        parts.append(Text(f"{how} {_rough(progress.seconds_left)} left"))
    elif not progress.is_over:
        parts.append(Text(_activity(progress, is_starting=is_starting), "dim"))
    if test is not None:
        value = objective.with_unit(test["test"][objective.name], test["std"][objective.name])
        parts.append(Text.assemble(f"test {objective.short} ", (value, "bold green")))
    lock = ("locked", "bold")
    if progress.is_test_open:
        has_answer = test is not None or progress.is_over
        has_answer |= any(each.is_over for each in progress.studies if each.status.name == FINAL)
        lock = ("opened" if has_answer else "being read", "bold yellow")
    parts.append(Text.assemble("test set ", lock))
    return Text.assemble(parts[0], *(piece for part in parts[1:] for piece in ((" · ", "dim"), part)))


def _activity(progress: Progress, *, is_starting: bool) -> str:
    if progress.running:
        return "time left not known yet"
    return "trials are starting" if is_starting else "no worker"


def trial_name(trial: Best | Running, width: int = 80) -> str:
    """Return a trial as STUDY/NUMBER, the study shortened to the width."""
    number = f"/{trial.trial}"
    return f"{shortened(Text(printable(trial.study)), width - len(number))}{number}"


def _rough(seconds: float) -> str:
    """Return an estimate, no more exact than it is."""
    if seconds < 60:
        return f"{max(5, 5 * round(seconds / 5))} s"
    return f"{round(seconds / 60)} min" if seconds < 5400 else duration(60 * round(seconds / 60))


# --- the plan as a tree ---------------------------------------------------------------------------


def _tree(
    progress: Progress, console: Console, width: int, *, is_short: bool, is_starting: bool
) -> Iterator[_Line]:
    """Yield every study with its decision, on two rows or, if `is_short`, on one, and what ended badly."""
    studies = progress.studies
    n_bar = N_BAR if width < WIDE else 2 * N_BAR
    above = [None, *(study.status.name for study in studies[:-1])]
    rows = [
        [*_study_row(study, n_bar, is_starting=is_starting), study_title(study, name)]
        for study, name in zip(studies, above, strict=True)
    ]
    busy = {each.study for each in progress.running} | {studies[progress.current].status.name}
    last_decided = max((index for index, study in enumerate(studies) if study.status.decision), default=None)
    for index, (study, line) in enumerate(zip(studies, _aligned(rows), strict=True)):
        branch, guide = ("└ ", "      ") if index == len(studies) - 1 else ("├ ", "│     ")
        is_current = index == progress.current
        if is_current:
            line.stylize("bold")
        is_last_decided = index == last_decided
        rank = _Rank.LAST_DECISION if is_last_decided else _Rank.STUDY  # a decision keeps its study
        rank = _Rank.CURRENT_STUDY if is_current else rank
        yield _Line(rank, Text.assemble((branch, "dim"), line), "study")
        rank = _Rank.LAST_DECISION if is_last_decided else _Rank.OLD_DECISION
        decision = Text(printable(study.status.decision))
        room = max(10, width - len(guide))
        wrapped = [decision] if is_short else list(decision.wrap(console, room))
        if len(wrapped) > 2:
            wrapped = [wrapped[0], shortened(Text(decision.plain[len(wrapped[0]) :].lstrip()), room)]
        for text in wrapped if decision else ():
            yield _Line(rank, Text.assemble((guide, "dim"), text))
        if study.status.name in busy:
            for text in troubles(study):
                yield _Line(_Rank.TROUBLE, Text.assemble((guide, "dim"), text))


def _study_row(study: StudyProgress, n_bar: int, *, is_starting: bool) -> list[Text]:
    status = study.status
    is_waiting = status.state == "pending"
    share = status.n_ended / status.n_points if status.n_points else 0.0
    count = Text(f"{status.n_ended}/{status.n_points}", "dim" if is_waiting else "")
    bar = Text(" " * n_bar) if is_waiting else _bar(share, n_bar, STATE_STYLES[status.state])
    name = Text(printable(status.name), "dim" if is_waiting else "")
    section = Text(printable(status.section), "dim")
    state = Text(status.shown_state, STATE_STYLES[status.shown_state])
    if is_starting and status.shown_state == "idle":
        state = Text("starting", STATE_STYLES["running"])
    return [shortened(section, 8), shortened(name, 24), state, bar, count]


def study_title(study: StudyProgress, above: str | None) -> Text:
    """Return what ended badly in a study, its parent where that is not the one above, and its title."""
    words = [Text(f"{count} {word}", STATE_STYLES[word]) for word, count in study.status.ended_badly.items()]
    if study.inherits is not None and study.inherits != above:
        words.append(Text(f"from {printable(study.inherits)}", "dim"))
    if study.title:
        words.append(Text(printable(study.title), "dim"))
    return Text(", ").join(words)


def troubles(study: StudyProgress) -> Iterator[Text]:
    """Yield why points were pruned or failed, what was lost, and what was found in the runs."""
    for state, reasons in study.reasons.items():
        if reasons:
            counted = sorted(reasons.items(), key=lambda item: -item[1])
            why = "; ".join(f"{count} {printable(reason)}" for reason, count in counted[:N_NAMED])
            yield Text(f"{state}: {why}{_more(len(counted) - N_NAMED)}", STATE_STYLES[state])
    if study.n_lost:
        one, many = "1 attempt lost with its worker", f"{study.n_lost} attempts lost with their workers"
        yield Text(f"{one if study.n_lost == 1 else many}, tried again", "yellow")
    for flag, trials in study.flags.items():
        numbers = ", ".join(map(str, trials[:N_NAMED]))
        plural = "trial" if len(trials) == 1 else "trials"
        style = "dim" if flag.startswith("still improving") else "yellow"
        yield Text(f"{flag}: {plural} {numbers}{_more(len(trials) - N_NAMED)}", style)


def _more(count: int) -> str:
    return f" and {count} more" if count > 0 else ""


# --- the workers ----------------------------------------------------------------------------------


def _workers(progress: Progress, width: int, *, is_starting: bool) -> Iterator[_Line]:
    running, best = progress.running, progress.best
    if not running:
        if not progress.is_over:
            nobody = "no worker is training; one that starts is shown here"
            yield _Line(_Rank.WORKER, Text("the next trials are starting" if is_starting else nobody, "dim"))
        return
    n_curve = 11 if width < WIDE else 24 if width < VERY_WIDE else 40
    curves = [each.curve for each in running] + ([best.curve] if best else [])
    n_epochs = max([len(curve) for curve in curves] + [each.epochs for each in running])
    n_columns = min(n_curve, n_epochs)
    values = [value for curve in curves for value in curve if math.isfinite(value)]
    scale = (min(values), max(values)) if values else (0.0, 1.0)
    objective = progress.objective
    heads = ("trial", "", "epoch", f"{objective.short} by epoch", objective.head, "vs best", "left")
    rows = [[Text(head, "dim") for head in heads]]
    if best is not None:
        curve = _sparkline([], best.curve, len(best.curve), min(n_columns, len(best.curve)), scale)
        is_best = Text("best so far", "dim")
        rows.append(
            [Text(trial_name(best)), is_best, Text(), curve, Text(objective.text(best.value)), Text(), Text()]
        )
    rows += [_worker_row(each, best.curve if best else [], n_columns, scale, objective) for each in running]
    lines = _aligned(rows)
    at = max(line.cell_len for line in lines) + 2
    details = [[place(each, width), Text(point_text(each.params, each.point), "dim")] for each in running]
    # one below the other their columns help; each below its own row they do not
    beside = _aligned(details)
    has_room = max(text.cell_len for text in beside) <= width - at
    yield _Line(_Rank.BEST, lines.pop(0))
    if best is not None:
        yield _Line(_Rank.BEST, lines.pop(0))
        yield _Line(_Rank.PARAMS, Text(f"  {params_text(best.params)}", "dim"))
    for index, (each, line) in enumerate(zip(running, lines, strict=True)):
        is_first = index < N_WORKERS
        rank = _Rank.WORKER if is_first else _Rank.MORE_WORKERS
        if has_room:
            line = Text.assemble(line, " " * (at - line.cell_len), beside[index])
        yield _Line(rank, line, "worker")
        if not has_room:
            rank = _Rank.TROUBLE if is_first and [*warnings(each)] else _Rank.PARAMS
            yield _Line(rank, Text.assemble("  ", _joined(details[index])))


def _worker_row(
    each: Running, best: Sequence[float], n_columns: int, scale: tuple[float, float], objective: Metric
) -> list[Text]:
    done = len(each.curve)
    name = Text(trial_name(each, 28), "cyan")
    if not each.epochs:
        return [name, Text("starting"), *[Text()] * 5]
    ahead, left = each.beyond(best), each.seconds_left
    return [
        name,
        _bar(done / each.epochs, N_BAR, "cyan"),
        Text(f"{done}/{each.epochs}"),
        _sparkline(each.curve, best, each.epochs, min(n_columns, each.epochs), scale),
        Text(objective.text(each.curve[-1]) if each.curve else ""),
        Text(
            "" if ahead is None else objective.gap(ahead),
            "magenta" if objective.score(ahead or 0) < 0 else "green",
        ),
        Text("" if left is None else duration(left)),
    ]


def place(each: Running, width: int) -> Text:
    """Return where a trial is being trained, and what is wrong with it or its worker."""
    if width < WIDE:
        name = "" if each.is_local else each.host
    else:
        name = f"process {each.pid}" if each.is_local else each.worker
    return _joined([Text(printable(name), "dim"), Text(", ".join(warnings(each)), "yellow")])


def warnings(each: Running) -> Iterator[str]:
    """Yield what is wrong with a trial that is being trained, or with its worker."""
    if math.isinf(each.silent_seconds):
        yield "its process is gone"
    elif each.silent_seconds:
        yield f"silent for {duration(each.silent_seconds)}"
    yield from each.flags


# --- pieces ---------------------------------------------------------------------------------------


def _joined(texts: Sequence[Text]) -> Text:
    """Return those that say something, side by side."""
    return Text("  ").join([text for text in texts if text])


def _bar(share: float, width: int, style: str) -> Text:
    halves = min(2 * width, round(2 * width * share))
    full = "━" * (halves // 2) + "╸" * (halves % 2)
    # thick and thin, so that it can be read without colours
    return Text.assemble((full, style), ("─" * (width - len(full)), "dim"))


def _sparkline(
    curve: Sequence[float], best: Sequence[float], n_epochs: int, width: int, scale: tuple[float, float]
) -> Text:
    """Return a curve over all epochs of its run; where it has none yet, that of the best trial, dim.

    Args:
        curve: the objective after the epochs so far.
        best: the objective after the best trial's epochs.
        n_epochs: that the run is going to have.
        width: columns; fewer than epochs show the last epoch of each of as many parts.
        scale: what is drawn lowest and highest.
    """
    line = Text()
    for column in range(width):
        epoch = (column + 1) * n_epochs // width
        begun = column * n_epochs // width + 1
        if curve and begun <= len(curve):
            epoch = min(epoch, len(curve))
            is_behind = len(best) >= epoch and curve[epoch - 1] < best[epoch - 1]
            line.append(block(curve[epoch - 1], scale), "magenta" if is_behind else "green")
        elif len(best) >= epoch:
            line.append(block(best[epoch - 1], scale), "dim")
        else:
            line.append(" ")
    return line


def _aligned(rows: Sequence[Sequence[Text]]) -> list[Text]:
    """Return cells under one another, columns that are empty left out."""
    columns = [column for column in zip(*rows, strict=True) if any(cell.plain.strip() for cell in column)]
    widths = [max(cell_len(cell.plain) for cell in column) for column in columns]
    lines = []
    for row in zip(*columns, strict=True):
        line = Text()
        for cell, n_cells in zip(row, widths, strict=True):
            line.append_text(cell)
            line.append(" " * (n_cells - cell_len(cell.plain) + 2))
        line.rstrip()
        lines.append(line)
    return lines
