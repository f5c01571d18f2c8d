"""The views sheet: what the student and its teacher see of real patches, weak view beside strong view."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from nnssl.data.raw import dataset_name
from nnssl.data.splits import LabelBudget
from nnssl.errors import DataError, UsageError, unknown_name
from nnssl.host import quiet
from nnssl.names import (
    DATASET_JSON,
    DEFAULT_PLANS,
    PREPROCESSED_VARIABLE,
    RESULTS_VARIABLE,
    SEMI_KEY,
    SUPERVISED_TRAINER,
    UNLABELLED_SUFFIX,
)
from nnssl.registry import DEFAULT_METHOD, Method, find_method
from nnssl.reports.drawing import figure_of, picture_bytes
from nnssl.reports.look import Sheet
from nnssl.reports.volumes import Array
from nnssl.system.files import PLANS_KEYS, check_output_file, environment_folder, read_object, write_bytes
from nnssl.training.settings import RunSettings

PANEL_INCH = 2.4
FROM_THE_START = ("supervised_share", "ready_dice")  # settings that hold the unlabelled patches back
DARKEST, BRIGHTEST = 0.5, 99.5  # percentiles of the weak view


def views_sheet(
    dataset: str | int,
    labelled: str | None = None,
    output_file: str | Path | None = None,
    *,
    trainer: str = DEFAULT_METHOD,
    configuration: str | None = None,
    patches: int = 4,
) -> Sheet:
    """Draw the first patches of unlabelled scans that a training with seed 0 would see: weak and strong view.

    All views of a patch have the same geometry and the same grey scale. Of a patch in 3-D the middle slice is drawn,
    and of several channels the first one.

    Args:
        dataset: name or id of a planned data set.
        labelled: the label budget of the plans, `7`; None for the plans with all labels.
        output_file: the PNG; None for `DATASET_views.png` in the current folder.
        trainer: method whose views are drawn.
        configuration: `2d` for example; None takes the first one that is preprocessed.
        patches: number of patches, at least 1.

    Raises:
        UsageError: the method draws no unlabelled patches at its start, or `patches` is below 1.
        DataError: the data set was not planned for this, or has no unlabelled scan.
        EnvironmentProblem: `nnUNet_preprocessed` is not set, or the picture cannot be written.
    """
    method = find_method(trainer)
    if trainer == SUPERVISED_TRAINER or method.takes_pseudo_labels:
        why = "it sees no unlabelled patches, or only after it has labelled the scans"
        raise UsageError("this method has no views to draw", where=f"-tr {trainer}", why=why, run="leave -tr out")
    if patches < 1:
        raise UsageError(f"-n must be at least 1, got {patches}")
    root = environment_folder(PREPROCESSED_VARIABLE, must_exist=True)
    command = f"nnssl_plan_and_preprocess -d {dataset}" + (f" -labelled {labelled}" if labelled else "")
    folder = root / dataset_name(dataset, root, command)
    tag = LabelBudget.parse(labelled).tag if labelled else ""
    plans = read_object(folder / f"{DEFAULT_PLANS}{tag}.json", command, PLANS_KEYS)
    chosen = _configuration(folder, plans, configuration, command)
    file = Path(output_file) if output_file else Path(f"{folder.name}_views.png")
    check_output_file(file)
    dataset_json = read_object(folder / DATASET_JSON, command)
    views = _views(method, plans, chosen, dataset_json, labelled, patches)
    content = draw_views(f"{folder.name}, {chosen}, {trainer}", views)
    write_bytes(file, content)
    return Sheet(file, tuple(f"patch {number}" for number in range(1, len(views) + 1)))


def draw_views(title: str, patches: list[list[Array]]) -> bytes:
    """Return the PNG with a line for each patch.

    Args:
        title: above the sheet.
        patches: for each patch its views of shape (H, W), the weak one first; intensities are normalised.
    """
    columns = max(map(len, patches))
    with figure_of(PANEL_INCH * columns, PANEL_INCH * len(patches) + 0.5) as figure:
        panels = figure.subplots(len(patches), columns, squeeze=False)
        for line, views in zip(panels, patches, strict=True):
            dark, bright = np.percentile(views[0], (DARKEST, BRIGHTEST))
            for number, (axes, view) in enumerate(zip(line, views, strict=True)):
                axes.imshow(view, cmap="gray", vmin=dark, vmax=bright, interpolation="nearest")
                axes.set_axis_off()
                axes.set_title(f"strong {number}" if number else "weak", fontsize="x-small")
        figure.suptitle(title, fontsize="small")
        return picture_bytes(figure, "png")


def middle_slice(volume: Array) -> Array:
    """Return a slice (H, W) of (H, W), or the middle one of (D, H, W)."""
    return volume if volume.ndim == 2 else volume[volume.shape[0] // 2]


def _configuration(folder: Path, plans: dict[str, Any], asked: str | None, command: str) -> str:
    """Return the configuration to draw from: the one asked for, or the first one with unlabelled scans."""
    known: dict[str, dict[str, Any]] = plans["configurations"]
    if asked is not None and asked not in known:
        raise unknown_name("configuration", asked, known, option="-c")
    for name, entry in known.items():
        place = folder / f"{entry.get('data_identifier')}{UNLABELLED_SUFFIX}"
        if asked in (None, name) and any(place.glob("*.pkl")):
            return name
    raise DataError("no unlabelled scan is preprocessed", where=folder, why="imagesUn/ is empty, or planning ran "
                    "without -c", run=f"{command} -c {asked or '2d'}")  # fmt: skip


def _views(
    method: Method,
    plans: dict[str, Any],
    configuration: str,
    dataset_json: dict[str, Any],
    labelled: str | None,
    patches: int,
) -> list[list[Array]]:
    """Return the views of the first patches, from the batches that a training would get."""
    import torch

    trainer_class = method.load()
    held_back: dict[str, Any] = {name: 0.0 for name in FROM_THE_START if hasattr(trainer_class.config_class(), name)}
    settings = RunSettings(labelled=labelled, config=held_back)
    plans = {**plans, SEMI_KEY: {**plans.get(SEMI_KEY, {}), "run": settings.to_dict()}}
    with _scratch_results():
        trainer: Any = trainer_class(plans, configuration, 0, dataset_json, torch.device("cpu"))
        trainer.initialize()
        stream, _ = trainer.get_dataloaders()
        try:
            found: list[list[Array]] = []
            while len(found) < patches:
                for patch in next(stream)["unlabelled"]["data"].numpy():
                    channels = patch.shape[0] // (1 + trainer.strong_views)
                    found.append([middle_slice(view) for view in patch[::channels]])
        finally:
            stream.close()
    return found[:patches]


@contextlib.contextmanager
def _scratch_results() -> Iterator[None]:
    """Let nnU-Net's trainer write its log into a folder that is gone afterwards."""
    before = os.environ.get(RESULTS_VARIABLE)
    with tempfile.TemporaryDirectory(prefix="nnssl_views_") as scratch:
        os.environ[RESULTS_VARIABLE] = scratch
        try:
            with quiet():
                yield
        finally:
            os.environ.pop(RESULTS_VARIABLE)
            if before is not None:
                os.environ[RESULTS_VARIABLE] = before
