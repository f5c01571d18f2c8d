"""The pictures: each patient's value with the baseline and with each method, and means over label budgets."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nnssl.comparison.efficiency import Curve
from nnssl.comparison.result import Comparison, MethodComparison
from nnssl.comparison.scores import Metric
from nnssl.comparison.tables import sentence
from nnssl.system.files import replacing

COLUMNS = 4
PANEL_INCH = (3.4, 4.0)
CURVE_INCH = (6.0, 4.0)
BETTER, WORSE, EQUAL = "tab:blue", "tab:red", "grey"
DPI = 150


def plot_comparison(comparison: Comparison, files: Sequence[Path]) -> None:
    """Draw one panel a method: dots are patients, black dots are means, and blue lines lead to a better value.

    Args:
        comparison: the result.
        files: the pictures to write; the ending of each, `.png` or `.svg`, is its format.

    Raises:
        EnvironmentProblem: a file cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    count = len(comparison.methods)
    columns = min(count, COLUMNS)
    rows = -(-count // columns)
    figure = Figure(figsize=(PANEL_INCH[0] * columns + 0.6, PANEL_INCH[1] * rows), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(rows, columns, sharey=True, squeeze=False).flat
    for axes, method in zip(panels, comparison.methods, strict=False):
        _draw_panel(axes, method, comparison)
    for axes in list(figure.axes)[count:]:
        axes.set_visible(False)
    for row in range(rows):
        figure.axes[row * columns].set_ylabel(comparison.described.title)
    for file in files:
        with replacing(file) as temporary:
            figure.savefig(temporary, format=file.suffix.removeprefix("."), dpi=DPI)


def plot_curve(curve: Curve, metric: Metric, files: Sequence[Path]) -> None:
    """Draw the mean of each method over the number of labelled patients, with 95 % intervals.

    Args:
        curve: the means.
        metric: title of the axis.
        files: the pictures to write; the ending of each, `.png` or `.svg`, is its format.

    Raises:
        EnvironmentProblem: a file cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=CURVE_INCH, layout="constrained")
    FigureCanvasAgg(figure)
    draw_curve(figure.subplots(), curve, metric)
    for file in files:
        with replacing(file) as temporary:
            figure.savefig(temporary, format=file.suffix.removeprefix("."), dpi=DPI)


def draw_curve(axes: Any, curve: Curve, metric: Metric) -> None:  # noqa: ANN401 - axes of matplotlib
    """Draw the mean of each method over the number of labelled patients, with 95 % intervals, on some axes."""
    for method, means in curve.means.items():
        known = [(budget, mean) for budget, mean in zip(curve.budgets, means, strict=True) if mean is not None]
        budgets = [budget for budget, _ in known]
        (line,) = axes.plot(budgets, [mean.mean for _, mean in known], marker="o", label=method)
        low, high = ([getattr(mean, end) for _, mean in known] for end in ("low", "high"))
        axes.fill_between(budgets, low, high, color=line.get_color(), alpha=0.15, linewidth=0)
    axes.set_xscale("log")
    axes.set_xticks(curve.budgets, [str(budget) for budget in curve.budgets])
    axes.minorticks_off()
    axes.set_xlabel("labelled patients")
    axes.set_ylabel(f"mean {metric.title}")
    axes.legend(fontsize="small")
    axes.grid(alpha=0.3)


def _draw_panel(axes: Any, method: MethodComparison, comparison: Comparison) -> None:  # noqa: ANN401
    """Draw the pairs of one method."""
    sign = 1.0 if comparison.described.higher_is_better else -1.0
    pairs = method.pairs
    for base, ours in zip(pairs.baseline, pairs.method, strict=True):
        gain = sign * (ours - base)
        color = BETTER if gain > 0 else WORSE if gain < 0 else EQUAL
        axes.plot((0, 1), (base, ours), color=color, alpha=0.6, linewidth=1, marker="o", markersize=4)
    means = (pairs.baseline.mean(), pairs.method.mean())
    axes.plot((0, 1), means, color="black", linewidth=2, marker="o", markersize=7)
    axes.set_xlim(-0.3, 1.3)
    axes.set_xticks((0, 1), [_wrapped(comparison.baseline), _wrapped(method.name)], fontsize="small")
    verdict, difference = sentence(method, comparison.described).rsplit(": ", maxsplit=1)
    axes.set_title(f"{_wrapped(verdict, 38)}\n{_wrapped(difference, 38)}", fontsize="small")
    axes.grid(axis="y", alpha=0.3)


def _wrapped(text: str, width: int = 20) -> str:
    import textwrap

    return "\n".join(textwrap.wrap(text, width))
