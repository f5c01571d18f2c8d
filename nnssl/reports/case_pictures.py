"""The picture and the viewer's volumes of one case: scan, reference and masks on one grid."""

from __future__ import annotations

import base64
import gzip
import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from nnssl.errors import NnsslError
from nnssl.reports.case_files import CaseFiles
from nnssl.reports.drawing import draw_legend, draw_slice, figure_of, picture_bytes
from nnssl.reports.volumes import Array, Volume, grey_levels, occupied_box, read_volume

MARGIN_MM = 15.0
LARGEST_VOXELS = 1_500_000  # of a volume in the viewer; larger volumes keep every second voxel, or fewer
LARGEST_REPORT = 40_000_000  # voxels of all scans in the viewer together: about 60 MB with their masks
PANEL_INCH = 2.6


@dataclass(frozen=True)
class CaseVolumes:
    """The volumes of a case on one grid, cropped to the structures.

    Attributes:
        image: grey levels 0 to 255, None without a scan.
        reference: label values, None without a reference.
        masks: name of a method -> label values.
        pseudo_label: label values, None without one.
        notes: what could not be shown, one line each.
    """

    image: Volume | None
    reference: Volume | None
    masks: dict[str, Volume]
    pseudo_label: Volume | None
    notes: tuple[str, ...]


def read_case(files: CaseFiles) -> CaseVolumes | None:
    """Return the volumes of a case; None where neither a reference nor a mask can be read.

    A file that is missing, that cannot be read, or that has another shape is left out with a note.
    """
    wanted = {"image": files.image, "reference": files.reference, "pseudo-label": files.pseudo_label}
    places = {**wanted, **{f"mask of {name}": file for name, file in files.masks.items()}}
    found: dict[str, Volume] = {}
    notes: list[str] = []
    for what, file in places.items():
        if file is None:
            notes += [f"no {what} is found"] if what != "pseudo-label" else []
            continue
        try:
            found[what] = read_volume(file)
        except NnsslError as error:
            notes.append(f"{what}: {error.what}")
    masks = {what: volume for what, volume in found.items() if what != "image"}
    if not masks:
        return None
    shape = next(iter(masks.values())).voxels.shape
    for what in [what for what, volume in found.items() if volume.voxels.shape != shape]:
        notes.append(f"{what}: another shape than the reference")
        del found[what]
    box = _box_of({what: volume for what, volume in found.items() if what != "image"})
    cropped = {what: volume.cropped(box) for what, volume in found.items()}
    image = cropped.get("image")
    if image is not None:
        image = Volume(grey_levels(image.voxels), image.spacing_mm, image.affine)
    return CaseVolumes(
        image,
        cropped.get("reference"),
        {name: cropped[f"mask of {name}"] for name in files.masks if f"mask of {name}" in cropped},
        cropped.get("pseudo-label"),
        tuple(notes),
    )


def draw_case(volumes: CaseVolumes, labels: Mapping[int, str]) -> bytes:
    """Return a PNG: scan, reference and masks side by side, on the slice where masks and reference differ most."""
    columns: dict[str, Volume | None] = {"scan": None} if volumes.image is not None else {}
    columns |= {"reference": volumes.reference} if volumes.reference is not None else {}
    columns |= dict(volumes.masks)
    example = next(volume for volume in columns.values() if volume is not None)
    index = slice_of_interest(volumes)
    aspect = example.spacing_mm[1] / example.spacing_mm[2]
    height, width = example.voxels.shape[1] * aspect, example.voxels.shape[2]
    tall = PANEL_INCH * min(2.0, max(0.5, height / width))
    with figure_of(PANEL_INCH * len(columns), tall + 0.6) as figure:
        panels = figure.subplots(1, len(columns), squeeze=False)[0]
        for axes, (name, mask) in zip(panels, columns.items(), strict=True):
            grey = None if volumes.image is None else volumes.image.voxels[index]
            draw_slice(axes, grey, None if mask is None else mask.voxels[index], aspect)
            axes.set_title(_short(name), fontsize="small")
        draw_legend(figure, labels)
        return picture_bytes(figure, "png")


def slice_of_interest(volumes: CaseVolumes) -> int:
    """Return the slice with the most voxels in which masks and reference differ; the fullest where none differ."""
    masks = list(volumes.masks.values())
    base = volumes.reference or masks[0]
    wrong = sum((mask.voxels != base.voxels).sum(axis=(1, 2)) for mask in masks)
    filled = (base.voxels > 0).sum(axis=(1, 2))
    counted = wrong if np.any(wrong) else filled
    return int(np.argmax(counted))


def viewer_volumes(volumes: CaseVolumes, cases: int = 1) -> dict[str, str]:
    """Return layer -> a gzipped NIfTI file in base64: `image`, `reference`, `mask:NAME`, `pseudo-label`.

    Args:
        volumes: of the case.
        cases: number of cases in the viewer, which share the voxels of a report.
    """
    largest = min(LARGEST_VOXELS, LARGEST_REPORT // cases)
    layers = {"image": volumes.image, "reference": volumes.reference}
    layers |= {f"mask:{name}": mask for name, mask in volumes.masks.items()}
    layers |= {"pseudo-label": volumes.pseudo_label}
    return {name: _nifti(volume, largest) for name, volume in layers.items() if volume is not None}


def _nifti(volume: Volume, largest_voxels: int) -> str:
    import nibabel as nib

    shape = volume.voxels.shape
    excess = math.prod(shape) / largest_voxels
    every = max(1, math.ceil(excess ** (1 / 3)))
    step = tuple(every if size > 2 * every else 1 for size in shape)
    small = volume.cropped(tuple(slice(0, size) for size in shape), step)  # type: ignore[arg-type]
    voxels = np.minimum(small.voxels, 255).astype(np.uint8).transpose(2, 1, 0)
    image = nib.Nifti1Image(np.ascontiguousarray(voxels), small.affine)
    return base64.b64encode(gzip.compress(image.to_bytes(), 6, mtime=0)).decode("ascii")


def _box_of(masks: Mapping[str, Volume]) -> tuple[slice, slice, slice]:
    first = next(iter(masks.values()))
    margin = tuple(math.ceil(MARGIN_MM / size) for size in first.spacing_mm)
    arrays: list[Array] = [mask.voxels for mask in masks.values()]
    return occupied_box(arrays, first.voxels.shape, margin)  # type: ignore[arg-type]


def _short(name: str) -> str:
    return name if len(name) <= 34 else f"{name[:31]}…"
