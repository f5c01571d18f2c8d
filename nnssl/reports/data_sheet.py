"""The data sheet: spacing, size and intensity of every scan, labelled against unlabelled, with planning's warnings."""

from __future__ import annotations

import logging
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from nnssl.data.raw import dataset_name
from nnssl.data.splits import LabelBudget
from nnssl.errors import DataError, NnsslError
from nnssl.names import DATA_CHECK, PREPROCESSED_VARIABLE, TAG_SEPARATOR
from nnssl.reports.drawing import figure_of, picture_bytes
from nnssl.reports.look import Sheet
from nnssl.system.files import check_output_file, environment_folder, read_object, write_bytes

KIND_COLOURS = {"labelled": "#0b4a8f", "unlabelled": "#c26a00", "test": "#5b6670"}
COLUMNS = 4
LINE_INCH = 0.17
WIDTH = 150  # characters of a warning in one line
SHOWN_WARNINGS = 25
log = logging.getLogger("nnssl.plan")


def data_sheet(dataset: str | int, labelled: str | None = None, output_file: str | Path | None = None) -> Sheet:
    """Draw what planning found in the scans of a data set: a dot a scan, and the warnings as text.

    Args:
        dataset: name or id of a planned data set.
        labelled: the label budget of the plans, `7`; None for the plans with all labels.
        output_file: the PNG; None for `DATASET_look.png` in the current folder.

    Raises:
        DataError: the data set was not planned, or was planned before the check was kept.
        EnvironmentProblem: `nnUNet_preprocessed` is not set, or the picture cannot be written.
    """
    root = environment_folder(PREPROCESSED_VARIABLE, must_exist=True)
    name = dataset_name(dataset, root, f"nnssl_plan_and_preprocess -d {dataset}")
    tag = LabelBudget.parse(labelled).tag if labelled else ""
    command = f"nnssl_plan_and_preprocess -d {name}" + (f" -labelled {labelled}" if labelled else "")
    check = read_object(root / name / f"{DATA_CHECK}{tag}.json", command, ("scans", "warnings"))
    if not check["scans"]:
        raise DataError("the check holds no scan", where=root / name, run=command)
    file = Path(output_file) if output_file else Path(f"{name}_look.png")
    check_output_file(file)
    return _write(file, name, check)


def sheet_after_planning(plans_file: Path) -> Path | None:
    """Draw the data sheet beside new plans, as `data_check.png` with the tags of setting and label budget.

    Args:
        plans_file: the plans, in the folder of the preprocessed data set.

    Returns:
        The PNG; None, with a warning, where the sheet cannot be drawn or written, as planning is done already.
    """
    tag = "".join(plans_file.stem.partition(TAG_SEPARATOR)[1:])
    file = plans_file.with_name(f"{DATA_CHECK}{tag}.png")
    try:
        check = read_object(file.with_suffix(".json"), "nnssl_plan_and_preprocess", ("scans", "warnings"))
        return _write(file, plans_file.parent.name, check).file if check["scans"] else None
    except (NnsslError, OSError) as error:
        log.warning("warning: no data sheet: %s", error)
        return None


def _write(file: Path, name: str, check: Mapping[str, Any]) -> Sheet:
    content = draw_check(name, check)
    write_bytes(file, content)
    return Sheet(file, tuple(check["scans"]))


def measures_of(scans: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Return measure -> case -> value: spacing and size of each axis, mean and spread of each channel."""
    found: dict[str, dict[str, float]] = {}
    for case, scan in scans.items():
        for axis, (spacing, size) in enumerate(zip(scan["spacing_mm"], scan["shape"], strict=True)):
            found.setdefault(f"spacing of axis {axis}, mm", {})[case] = spacing
            found.setdefault(f"size of axis {axis}, mm", {})[case] = spacing * size
        for channel, intensity in enumerate(scan["intensity"]):
            found.setdefault(f"mean intensity, channel {channel}", {})[case] = intensity["mean"]
            found.setdefault(f"standard deviation, channel {channel}", {})[case] = intensity["std"]
    return found


def draw_check(name: str, check: Mapping[str, Any]) -> bytes:
    """Return the PNG of a check: a panel a measure with a dot a scan, and the warnings below."""
    scans, measures = check["scans"], measures_of(check["scans"])
    kinds = [kind for kind in KIND_COLOURS if any(scan["kind"] == kind for scan in scans.values())]
    warnings = [f"warning: {text}" for text in check["warnings"][:SHOWN_WARNINGS]] or ["no warning"]
    text = "\n".join(line for warning in warnings for line in textwrap.wrap(warning, WIDTH, subsequent_indent="   "))
    lines = -(-len(measures) // COLUMNS)
    low = 0.4 + LINE_INCH * (text.count("\n") + 1)
    with figure_of(3.0 * COLUMNS, 2.2 * lines + low) as figure:
        upper, lower = figure.subfigures(2, 1, height_ratios=[2.2 * lines, low])
        panels = upper.subplots(lines, COLUMNS, squeeze=False).ravel()
        for axes in panels[len(measures) :]:
            axes.set_axis_off()
        for axes, (measure, values) in zip(panels, measures.items(), strict=False):
            for place, kind in enumerate(kinds):
                chosen = [value for case, value in values.items() if scans[case]["kind"] == kind]
                across = place + np.linspace(-0.25, 0.25, len(chosen)) if len(chosen) > 1 else [place]
                axes.plot(across, chosen, "o", color=KIND_COLOURS[kind], markersize=3, alpha=0.7)
                axes.plot([place - 0.3, place + 0.3], [np.median(chosen)] * 2, color="black", linewidth=1)
            axes.set_xticks(range(len(kinds)), kinds, fontsize="x-small")
            axes.set_xlim(-0.5, len(kinds) - 0.5)
            axes.set_title(measure, fontsize="small")
        upper.suptitle(f"{name}: a dot is a scan, a line the median", fontsize="medium")
        lower.text(0.01, 0.95, text, va="top", fontsize="small")
        return picture_bytes(figure, "png")
