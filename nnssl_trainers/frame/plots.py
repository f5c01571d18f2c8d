"""The picture `progress.png`: the course of a run with one point per epoch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nnssl.system.files import replacing
from nnssl_trainers.frame.epoch_log import Row

WIDTH_INCH, HEIGHT_INCH = 10.0, 12.0


def plot_progress(rows: Sequence[Row], names: Sequence[str], file: Path) -> None:
    """Draw the log of a run: loss with its terms, pseudo-Dice of each structure, learning rate and speed.

    Args:
        rows: the log with one row per epoch.
        names: the names of the structures; `pseudo_dice_k` of a row belongs to the k-th name.
        file: the picture to write.

    Raises:
        EnvironmentProblem: the file cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH_INCH, HEIGHT_INCH), layout="constrained")
    FigureCanvasAgg(figure)
    losses, dice, speed = figure.subplots(3, 1, sharex=True)
    terms = list(dict.fromkeys(key for row in rows for key in row if key.startswith("loss_")))
    _draw_curve(losses, rows, "loss", "loss (sum of the terms)", color="black", linewidth=2)
    _draw_curve(losses, rows, "validation_loss", "loss on validation patches", color="grey", linestyle="--")
    for term in terms if len(terms) > 1 else ():  # a single term is the loss itself
        _draw_curve(losses, rows, term, term.removeprefix("loss_"))
    _draw_curve(dice, rows, "pseudo_dice", "mean", color="black", linewidth=2)
    for number, name in enumerate(names, start=1):
        _draw_curve(dice, rows, f"pseudo_dice_{number}", name)
    _draw_curve(speed, rows, "seconds_per_iteration", "seconds per iteration", color="tab:blue")
    rate = speed.twinx()
    _draw_curve(rate, rows, "learning_rate", "learning rate", color="tab:orange")
    rate.set_ylabel("learning rate")
    rate.legend(loc="upper right", fontsize="small")
    dice.set_ylim(0, 1)
    for axes, label in ((losses, "loss"), (dice, "pseudo-Dice"), (speed, "seconds")):
        axes.set_ylabel(label)
        axes.grid(alpha=0.3)
        axes.legend(loc="best", fontsize="small")
    speed.set_ylim(bottom=0)
    speed.set_xlabel("iteration")
    with replacing(file) as temporary:
        figure.savefig(temporary, format="png", dpi=100)


def _draw_curve(axes: Any, rows: Sequence[Row], key: str, label: str, **style: Any) -> None:  # noqa: ANN401
    """Draw one column of the log; markers make a single point visible."""
    points = [(row["iteration"], row[key]) for row in rows if math.isfinite(row.get(key, math.nan))]
    if points:
        axes.plot(*zip(*points, strict=True), marker="o", markersize=3, label=label, **style)
