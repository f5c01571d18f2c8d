"""The figures of a report as SVG: differences by patient, scores by case, and the course of the runs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from nnssl.comparison.efficiency import Curve
from nnssl.comparison.plots import draw_curve
from nnssl.comparison.result import Comparison
from nnssl.comparison.scores import Metric
from nnssl.reports.drawing import figure_of, picture_bytes

Row = Mapping[str, Any]
ROW_INCH = 0.32
SHARE = "pseudo_share_"  # of the k-th structure in the pseudo-labels of an epoch, in the log of a run


def interval_figure(comparison: Comparison) -> bytes:
    """Return a forest plot: the mean difference of each method with its 95 % interval, and the patients as dots."""
    metric, methods = comparison.described, comparison.methods
    with figure_of(7.5, 1.1 + 0.55 * len(methods)) as figure:
        axes = figure.subplots()
        axes.axvline(0, color="black", linewidth=0.8)
        for place, method in enumerate(methods):
            found = method.judgement.interval
            dots = method.pairs.differences * metric.factor
            axes.plot(dots, [place] * len(dots), "o", color="#7a8ca0", markersize=3, alpha=0.6)
            mean = found.mean * metric.factor
            if not math.isnan(found.low):
                axes.plot([found.low * metric.factor, found.high * metric.factor], [place] * 2, color="#0b4a8f", lw=3)
            axes.plot([mean], [place], "D", color="#0b4a8f", markersize=7)
        axes.set_yticks(range(len(methods)), [_short(method.name) for method in methods])
        axes.set_ylim(len(methods) - 0.5, -0.5)
        better = "right is better" if metric.higher_is_better else "left is better"
        axes.set_xlabel(f"difference from {comparison.baseline}, {metric.unit} ({better})")
        axes.grid(axis="x", alpha=0.3)
        return picture_bytes(figure, "svg")


def efficiency_figure(curve: Curve, metric: Metric) -> bytes:
    """Return the mean of each method over the number of labelled patients, with 95 % intervals."""
    with figure_of(7.5, 4.0) as figure:
        draw_curve(figure.subplots(), curve, metric)
        return picture_bytes(figure, "svg")


def course_figure(rows: Sequence[Row], names: Sequence[str]) -> bytes:
    """Return the course of one run: loss terms, pseudo-Dice of every structure, and their shares of the pseudo-labels.

    Args:
        rows: the log of the run, one row an epoch.
        names: the names of the structures; `pseudo_dice_k` and `pseudo_share_k` of a row belong to the k-th name.
    """
    taught = any(key.startswith(SHARE) for row in rows for key in row)
    panels = 3 if taught else 2
    with figure_of(7.5, 3.0 * panels) as figure:
        losses, dice, *shares = figure.subplots(panels, 1, sharex=True)
        terms = list(dict.fromkeys(key for row in rows for key in row if key.startswith("loss_")))
        _curve(losses, rows, "loss", "loss (sum of the terms)", color="black", linewidth=2)
        _curve(losses, rows, "validation_loss", "loss on validation patches", color="grey", linestyle="--")
        for term in terms:
            _curve(losses, rows, term, term.removeprefix("loss_"))
        _curve(dice, rows, "pseudo_dice", "mean", color="black", linewidth=2)
        for number, name in enumerate(names, start=1):
            _curve(dice, rows, f"pseudo_dice_{number}", _short(name))
            for axes in shares:
                _curve(axes, rows, f"{SHARE}{number}", _short(name))
        for axes in (dice, *shares):
            axes.set_ylim(0, 1)
        (dice, *shares)[-1].set_xlabel("iteration")
        labels = ("loss", "pseudo-Dice of validation patches", "share of the pseudo-labels")
        for axes, label in zip((losses, dice, *shares), labels, strict=False):
            axes.set_ylabel(label)
            axes.grid(alpha=0.3)
            if axes.lines:
                axes.legend(loc="best", fontsize="small")
        return picture_bytes(figure, "svg")


def pseudo_figure(scores: Mapping[str, tuple[float, bool]]) -> bytes:
    """Return the scores of stored pseudo-labels, sorted, with those that were kept and those that were left out.

    Args:
        scores: case -> score in [0, 1], and whether the pseudo-label was kept.
    """
    ordered = sorted(scores.values())
    with figure_of(7.5, 2.8) as figure:
        axes = figure.subplots()
        for kept, colour, marker, name in ((True, "#0b4a8f", "o", "kept"), (False, "#b3261e", "x", "left out")):
            places = [place for place, (_, is_kept) in enumerate(ordered, start=1) if is_kept is kept]
            if places:
                values = [ordered[place - 1][0] for place in places]
                axes.plot(places, values, marker, color=colour, markersize=4, label=f"{name}: {len(places)}")
        axes.set_xlabel("unlabelled scans, from the least to the most confident")
        axes.set_ylabel("score")
        axes.grid(alpha=0.3)
        axes.legend(loc="lower right", fontsize="small")
        return picture_bytes(figure, "svg")


def _curve(axes: Any, rows: Sequence[Row], key: str, label: str, **style: Any) -> None:  # noqa: ANN401
    points = [(row["iteration"], row[key]) for row in rows if _is_number(row.get(key))]
    if points:
        axes.plot(*zip(*points, strict=True), marker="o", markersize=2.5, label=label, **style)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _short(name: str) -> str:
    return name if len(name) <= 46 else f"{name[:43]}…"
