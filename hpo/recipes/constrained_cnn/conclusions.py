"""The original's seven conclusions, each confirmed, denied or open, with the numbers that say so.

Open is the default. A claim is judged by contrasts (in the module `contrasts`): cells that differ in nothing
but what the claim is about.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from statistics import fmean

from hpo._text import show_value
from hpo.planning.diagnostics import DEAD_SHARE
from hpo.recipes.constrained_cnn.contrasts import (
    Block,
    Cells,
    best_f1,
    low_high_pairs,
    seed_noise,
    widest_interaction,
)
from hpo.reporting.data import Point, ReportData
from hpo.reporting.evidence import Conclusions, Evidence, Verdict

TOO_FEW_CHANNELS = 16
"""What the original names as too few; its own study does not have it."""
ORIGINAL_EPOCHS = 11


def conclusions(report: ReportData) -> Conclusions:
    """Return the seven claims, judged on what the plan has trained so far."""
    limits = not_the_originals(report)
    cells = Cells(report.points, report.trained, len(report.identity.class_names))
    found = {}
    for claim, judge in CLAIMS.items():
        evidence = judge(cells)
        if limits and evidence.verdict != "open":
            text = f"{evidence.text} Here that would be {evidence.verdict}, but {' and '.join(limits)}."
            evidence = replace(evidence, verdict="open", text=text)
        found[claim] = evidence
    return Conclusions(found, noise_text(report), limits)


def noise_text(report: ReportData) -> str:
    """Return how far apart seeds are, in a sentence."""
    noise = seed_noise(report.trained)
    if noise.deviation is None:
        return "No configuration was trained on two seeds, so nobody knows how much seeds alone do."
    return (
        f"Between seeds of one configuration macro F1 has a standard deviation of "
        f"{100 * noise.deviation:.1f} points ({noise.df} degrees of freedom), taken to be the same for all. "
        "Runs of different length are compared over the epochs that both have, and by how far apart seeds "
        "are in those."
    )


def not_the_originals(report: ReportData) -> list[str]:
    """Return why the runs here say nothing about the original's claims; empty where they do."""
    options, reasons = report.options, []
    if options.limit_train or options.limit_valid:
        identity = report.identity
        reasons.append(f"only {identity.n_train:,} + {identity.n_valid:,} of the images were used")
    if options.epochs is not None and options.epochs < ORIGINAL_EPOCHS:
        reasons.append(f"only {options.epochs} of the original's {ORIGINAL_EPOCHS} epochs were trained")
    return reasons


# --- the claims ------------------------------------------------------------------------------------------


def _channels(cells: Cells) -> Evidence:
    enough, fewer = [], []
    for group in cells.groups("conv1_channels"):
        for low, high in low_high_pairs(group, "conv1_channels"):
            c1_low, c1_high, c2 = (
                low.config["conv1_channels"],
                high.config["conv1_channels"],
                low.config["conv2_channels"],
            )
            if c1_low <= TOO_FEW_CHANNELS < c1_high <= c2:  # type: ignore[operator]
                enough.append([(1, high), (-1, low)])
            if c1_low < c2 <= c1_high:  # type: ignore[operator]
                fewer.append([(1, low), (-1, high)])
    return _all_of(
        (
            f"More channels in C1 than {TOO_FEW_CHANNELS}, against fewer",
            enough,
            f"No cells with {TOO_FEW_CHANNELS} channels or fewer in C1 show what too few would do.",
        ),
        ("Fewer channels in C1 than in C2, against as many", fewer, "No cells have as many in C1 as in C2."),
        cells=cells,
    )


def _kernels(cells: Cells) -> Evidence:
    blocks = []
    for axis in ("conv1_kernel", "conv2_kernel"):
        for group in cells.groups(axis):
            growing = [point for point in group if _grows(point)]
            blocks += [[(1, yes), (-1, no)] for yes in growing for no in group if not _grows(no)]
    return _all_of(
        ("Growing kernels against equal or shrinking ones", blocks, "No two cells differ in that alone."),
        cells=cells,
    )


def _grows(point: Point) -> bool:
    return point.config["conv1_kernel"] < point.config["conv2_kernel"]  # type: ignore[operator]


def _dying(cells: Cells) -> Evidence:
    verdicts: list[Evidence] = []
    for group in cells.groups("learning_rate"):
        top = max(group, key=lambda point: float(point.config["learning_rate"]))
        rest = [point for point in group if point is not top]
        best = max(rest, key=lambda point: best_f1(point, len(point.row.history)))
        contrast = cells.contrast([[(1, best), (-1, top)]])
        rates = [show_value(point.config["learning_rate"]) for point in (top, best)]
        died, shares = [], []
        for point in (top, best):
            died.append(f"{point.n_dying} of {len(point.seeds)}")
            shares.append(f"{100 * _dead_share(point):.0f} %")
        text = (
            f"At {rates[0]}, {died[0]} runs died of their ReLUs: in the worst layer {shares[0]} of the units "
            f"were dead at the end. At {rates[1]} it is {died[1]}, and {shares[1]}. The lower rate gains "
            f"{contrast}."
        )
        verdict: Verdict = "open"
        if top.n_dying == len(top.seeds) and not best.n_dying:
            verdict = "confirmed"
        elif _dead_share(top) < DEAD_SHARE and contrast.verdict == "confirmed":
            verdict = "denied"  # too high it is, and yet units live in every layer
        verdicts.append(Evidence(verdict, text, (top, best)))
    if not verdicts:
        return Evidence("open", "No two cells differ in the learning rate alone.")
    decided = [each for each in verdicts if each.verdict != "open"]
    chosen = (decided or verdicts)[0]
    if any(each.verdict != chosen.verdict for each in decided):
        return replace(chosen, verdict="open", text=f"Cells contradict each other. {chosen.text}")
    return chosen


def _dead_share(point: Point) -> float:
    """Return the share of dead units in the worst layer after the last epoch, mean over seeds."""
    layers = [seed["layers"].values() for seed in point.row.history[-1]]
    return fmean(max((layer["dead_share"] or 0.0 for layer in found), default=0.0) for found in layers)


def _small_batches(cells: Cells) -> Evidence:
    blocks = []
    for group in cells.groups("batch_size", "learning_rate"):
        alive = [point for point in group if not point.n_dying]  # a dead network prefers nothing
        blocks += widest_interaction(alive, "batch_size", "learning_rate")
    return _all_of(
        (
            "What the small rate gains over the large one, at small batches beyond large ones",
            blocks,
            "No four cells have two batch sizes at two learning rates each.",
        ),
        cells=cells,
    )


def _l2(cells: Cells) -> Evidence:
    blocks = []
    for group in cells.groups("l2"):
        pairs = low_high_pairs([point for point in group if float(point.config["l2"]) > 0], "l2")
        widest = max(pairs, key=lambda p: float(p[1].config["l2"]) / float(p[0].config["l2"]), default=None)
        blocks += [[(1, widest[0]), (-1, widest[1])]] if widest else []
    return _all_of(
        ("The smallest L2 against the largest", blocks, "No two cells differ in a positive L2 alone."),
        cells=cells,
    )


def _batch_norm(cells: Cells) -> Evidence:
    blocks = []
    for group in cells.groups("batch_norm", "batch_size"):
        blocks += widest_interaction(group, "batch_size", "batch_norm")
    return _all_of(
        (
            "What batch norm gains at the largest batches beyond what it gains at the smallest",
            blocks,
            "No four cells have batch norm on and off at two batch sizes, all else equal.",
        ),
        cells=cells,
    )


def _mixup(cells: Cells) -> Evidence:
    pairs = []
    for group in cells.groups("mixup_first_epoch"):
        with_mixup = [p for p in group if p.config["mixup_alpha"]]
        first = [p for p in with_mixup if p.config["mixup_first_epoch"] == 1]
        later = [p for p in with_mixup if 1 < int(p.config["mixup_first_epoch"]) <= int(p.config["epochs"])]
        pairs += [(a, b) for a in first for b in later]
    if not pairs:
        return Evidence("open", "No two cells differ only in the epoch in which mixup begins.")
    contrast = cells.contrast([[(1, later), (-1, first)] for first, later in pairs])
    at_once = cells.contrast([[(1, first)] for first, _ in pairs])
    reached = fmean(best_f1(later, len(later.row.history)) for _, later in pairs)
    noise = 2 * (at_once.standard_error or 0.0)
    at_chance = at_once.difference <= 1.5 * cells.chance
    learns = at_once.difference - noise > max(1.5 * cells.chance, reached / 2)
    text = (
        f"Mixup from the first epoch on reaches a macro F1 of {100 * at_once.difference:.1f} % "
        f"(chance: {100 * cells.chance:.0f} %); after normal training it gains {contrast}."
    )
    verdict: Verdict = "open"
    if contrast.verdict == "confirmed" and at_chance:
        verdict = "confirmed"
    elif learns and at_once.standard_error is not None:
        verdict, text = "denied", f"{text} It learns without that."
    return Evidence(verdict, text, contrast.points)


CLAIMS: Mapping[str, Callable[[Cells], Evidence]] = {
    "The first convolution needs enough channels, and fewer than the second": _channels,
    "Kernels should grow with depth": _kernels,
    "Too high a learning rate kills the units of a ReLU network": _dying,
    "Small batches go with small learning rates": _small_batches,
    "L2 must be small on a small network": _l2,
    "Batch norm matters more at large batches": _batch_norm,
    "Mixup needs normal training first": _mixup,
}
"""Each claim in our words, with what judges it; their order is the original's."""


# --- helpers ---------------------------------------------------------------------------------------------


def _all_of(*parts: tuple[str, list[Block], str], cells: Cells) -> Evidence:
    """Return a claim of several parts: denied if one is, confirmed if all are."""
    verdicts: list[Verdict] = []
    texts, points = [], dict[str, Point]()
    for prediction, blocks, missing in parts:
        if not blocks:
            verdicts.append("open")
            texts.append(missing)
            continue
        contrast = cells.contrast(blocks)
        verdicts.append(contrast.verdict)
        texts.append(f"{prediction}: {contrast}.")
        points |= {point.name: point for point in contrast.points}
    verdict: Verdict = "open"
    if "denied" in verdicts:
        verdict = "denied"
    elif all(each == "confirmed" for each in verdicts):
        verdict = "confirmed"
    return Evidence(verdict, " ".join(texts), tuple(points.values()))
