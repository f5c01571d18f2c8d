"""A picture of DPTM's threshold map, from a checkpoint of a run."""

from __future__ import annotations

from pathlib import Path

from nnssl.errors import UsageError
from nnssl.system.files import replacing
from nnssl.training import checkpoints

INCHES = 3.0  # width and height of the picture of one class


def plot_threshold_map(checkpoint: Path, file: Path) -> None:
    """Draw the threshold of each class at each place of the scan, k_c·M; in 3-D the middle slice of the first axis.

    Args:
        checkpoint: any checkpoint of a run of DPTM, for example `checkpoint_final.pth`.
        file: the PNG picture to write.

    Raises:
        UsageError: the checkpoint has no threshold map.
        EnvironmentProblem: the checkpoint cannot be read, or the picture cannot be written.

    Reference: Mi et al., PLoS One 21(4): e0342567, 2026, figure 4.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    content = checkpoints.load(checkpoint).get(checkpoints.KEY, {}).get("threshold_map")
    if content is None:
        raise UsageError(
            "this checkpoint has no threshold map", where=str(checkpoint), why="only DPTMTrainer keeps one"
        )
    cells = content["map"]
    plane = cells if cells.ndim == 2 else cells[len(cells) // 2]
    thresholds = content["scale"].view(-1, 1, 1) * plane
    figure = Figure(figsize=(INCHES * len(thresholds) + 1, INCHES), layout="constrained")
    FigureCanvasAgg(figure)
    (row,) = figure.subplots(1, len(thresholds), squeeze=False)
    for number, (axes, values) in enumerate(zip(row, thresholds.cpu().numpy(), strict=True)):
        picture = axes.imshow(values, vmin=0, vmax=1)
        axes.set_title(f"class {number}")
    figure.colorbar(picture, ax=list(row), label="threshold")
    with replacing(file) as temporary:
        figure.savefig(temporary, format="png", dpi=100)
