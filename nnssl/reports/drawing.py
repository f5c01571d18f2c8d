"""Figures without a screen: text as it stands, files written as a whole, slices with the contours of a mask."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from nnssl.reports.colours import colour_of
from nnssl.reports.volumes import Array

RULES: Any = {"text.parse_math": False, "svg.hashsalt": "nnssl", "font.size": 9}  # `$` in a case's name is a dollar
DPI = 110


@contextlib.contextmanager
def figure_of(width_inch: float, height_inch: float) -> Iterator[Any]:
    """Yield a figure on which names are drawn as they stand."""
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with mpl.rc_context(RULES):
        figure = Figure(figsize=(width_inch, height_inch), layout="constrained")
        FigureCanvasAgg(figure)
        yield figure


def picture_bytes(figure: Any, kind: str, dpi: int = DPI) -> bytes:  # noqa: ANN401 - a figure of matplotlib
    """Return a figure as a file.

    Args:
        figure: the figure.
        kind: `png` or `svg`.
        dpi: of a PNG.
    """
    stream = io.BytesIO()
    figure.savefig(stream, format=kind, dpi=dpi, metadata={"Date": None} if kind == "svg" else None)
    return stream.getvalue()


def draw_slice(axes: Any, image: Array | None, mask: Array | None, aspect: float) -> None:  # noqa: ANN401
    """Draw one slice of a scan in grey and the contour of each label.

    Args:
        axes: of matplotlib.
        image: grey levels of shape (H, W), None for a black background.
        mask: label values of shape (H, W), None for no contour.
        aspect: height of a voxel divided by its width.
    """
    axes.set_axis_off()
    shape = next(each.shape for each in (image, mask) if each is not None)
    shown = np.zeros(shape, np.uint8) if image is None else image
    axes.imshow(shown, cmap="gray", vmin=0, vmax=255, aspect=aspect, interpolation="nearest")
    for value in np.unique(mask[mask > 0]) if mask is not None else ():
        padded = np.pad(mask == value, 1).astype(np.uint8)  # a contour also closes at the border of the slice
        rows, columns = (np.arange(-1, size + 1) for size in shape)
        axes.contour(columns, rows, padded, levels=[0.5], colors=[colour_of(int(value))], linewidths=1.2)
    axes.set_xlim(-0.5, shape[1] - 0.5)
    axes.set_ylim(shape[0] - 0.5, -0.5)


def draw_legend(figure: Any, labels: Mapping[int, str]) -> None:  # noqa: ANN401
    """Draw the names of label values below the figure, in their colours."""
    from matplotlib.lines import Line2D

    if labels:
        lines = [Line2D([], [], color=colour_of(value), linewidth=3) for value in labels]
        figure.legend(
            lines, labels.values(), loc="outside lower center", ncols=min(5, len(lines)), fontsize="small",
            frameon=False,
        )  # fmt: skip
