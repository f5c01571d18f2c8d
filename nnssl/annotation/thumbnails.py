"""Small pictures of a scan: the slice in which the members differ most, the consensus, and where it is uncertain."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnssl.annotation.viewers import colour_of
from nnssl.system.files import replacing

INCHES, DPI = 3.0, 80


def slice_to_show(uncertainty: NDArray[Any], foreground: NDArray[np.bool_]) -> int:
    """Return the slice along the first axis with the largest uncertainty within the foreground, or in the middle."""
    weights = np.where(foreground, uncertainty, 0).sum(axis=(1, 2))
    return int(weights.argmax()) if weights.any() else len(weights) // 2


def write_thumbnail(
    path: Path, image: NDArray[Any], mask: NDArray[Any], uncertainty: NDArray[Any], spacing_mm: tuple[float, ...]
) -> None:
    """Write a PNG with the scan, the scan with the mask, and the scan with the entropy, side by side.

    Args:
        path: of the picture.
        image: intensities of one channel (z, y, x).
        mask: label values (z, y, x).
        uncertainty: entropy (z, y, x), in [0, 1].
        spacing_mm: voxel size (z, y, x), mm.

    Raises:
        EnvironmentProblem: the file cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.colors import ListedColormap
    from matplotlib.figure import Figure

    index = slice_to_show(uncertainty, mask > 0)
    plane, labels, unsure = image[index].astype(float), mask[index], uncertainty[index]
    low, high = np.percentile(plane, (1, 99))
    figure = Figure(figsize=(3 * INCHES, INCHES), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, title in zip(figure.subplots(1, 3), (f"slice {index}", "mask", "entropy"), strict=True):
        axes.imshow(plane, cmap="gray", vmin=low, vmax=max(high, low + 1e-6), aspect=spacing_mm[1] / spacing_mm[2])
        axes.set_title(title, fontsize="small")
        axes.set_axis_off()
    shown = np.ma.masked_equal(labels, 0)
    last = max(int(mask.max()), 1)
    colours = ListedColormap([[part / 255 for part in colour_of(k)] for k in range(last)])
    figure.axes[1].imshow(
        shown,
        cmap=colours,
        vmin=1,
        vmax=last + 1,
        alpha=0.5,
        interpolation="nearest",
        aspect=spacing_mm[1] / spacing_mm[2],
    )
    figure.axes[2].imshow(
        np.ma.masked_less(unsure, 0.05), cmap="inferno", vmin=0, vmax=1, alpha=0.7,
        aspect=spacing_mm[1] / spacing_mm[2],
    )  # fmt: skip
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=DPI)
