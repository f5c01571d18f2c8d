"""Pseudo-labels on disk, one file for each preprocessed scan, and the data set that reads them.

A file `CASE.b2nd` has the grid of the preprocessed scan. It holds labels and confidence (2, *S), and places of the
foreground for the sampling of patches. A file is written under a temporary name and renamed, so that a file that is
there is complete.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import blosc2
import numpy as np
from numpy.typing import NDArray

from nnssl.data.labels import Label
from nnssl.host import CaseDataset, sample_places
from nnssl.system.files import replacing

OUTSIDE = -1  # nnU-Net's value of voxels outside the scan
UNSURE = 30_000  # value of voxels whose pseudo-label does not count; above every label value
SURE = 255  # stored confidence of 1
PLACES, AGREEMENT = "places", "agreement"
ENDING = ".b2nd"

LabelArray = NDArray[Any]
Confidence = NDArray[np.uint8]


def stored_confidence(confidence: float) -> int:
    """Return a confidence in [0, 1] as the files store it: a whole number from 0 to 255."""
    return round(SURE * confidence)


def write_pseudo_label(
    path: Path,
    labels: LabelArray,
    confidence: Confidence,
    structures: Sequence[Label],
    least: float,
    *,
    agreed: Sequence[float | None] = (),
) -> None:
    """Write the pseudo-label of a scan in one piece.

    Args:
        path: of the file `CASE.b2nd`.
        labels: label values (*S), 0 or larger.
        confidence: (*S), uint8, 255 = certain.
        structures: labels or regions that patches are centred on; see `PseudoLabelledCases`.
        least: confidence in [0, 1] that a voxel in the centre of a patch has.
        agreed: agreement of several networks about each structure; empty for one network.

    Raises:
        EnvironmentProblem: the file cannot be written.
    """
    kind = np.uint8 if labels.max(initial=0) <= SURE else np.uint16
    content = np.stack([labels.astype(kind), confidence.astype(kind)])
    counted = np.where(confidence >= stored_confidence(least), labels, UNSURE)[None].astype(np.int16)
    places = sample_places(counted, structures)
    with replacing(path) as temporary:
        array = blosc2.asarray(np.ascontiguousarray(content), urlpath=str(temporary), mode="w")
        array.schunk.vlmeta[PLACES] = [np.asarray(places[each], np.int32).tobytes() for each in structures]
        array.schunk.vlmeta[AGREEMENT] = list(agreed)


def read_pseudo_label(path: Path) -> tuple[LabelArray, Confidence]:
    """Return labels (*S) and confidence (*S, uint8, 255 = certain) of a stored pseudo-label."""
    content = _open(path)[:]
    return content[0], content[1].astype(np.uint8)


def read_agreement(path: Path) -> tuple[float | None, ...]:
    """Return the agreement of several networks about each structure of a stored pseudo-label; empty for one network."""
    stored = _open(path)  # the metadata live as long as this array
    return tuple(stored.schunk.vlmeta[AGREEMENT])


def _open(path: Path) -> Any:  # noqa: ANN401 - blosc2's array
    return blosc2.open(str(path), mode="r", dparams={"nthreads": 1})


class TrainingLabels:
    """The labels (1, *S) that a patch is cut from: stored labels, `UNSURE` below a confidence, −1 outside the scan.

    Args:
        segmentation: nnU-Net's array (1, *S) of the preprocessed scan, negative outside the scan.
        stored: labels and confidence (2, *S).
        least: stored confidence from which on a voxel counts.
    """

    dtype = np.dtype(np.int16)

    def __init__(self, segmentation: Any, stored: Any, least: int) -> None:  # noqa: ANN401 - blosc2's arrays
        self._segmentation, self._stored, self._least = segmentation, stored, least
        self.shape = (1, *stored.shape[1:])

    def __getitem__(self, key: Any) -> NDArray[np.int16]:  # noqa: ANN401 - what numpy takes
        places = key[1:] if isinstance(key, tuple) else ()
        labels, confidence = self._stored[(slice(None), *places)]
        found = np.where(confidence >= self._least, labels.astype(np.int16), np.int16(UNSURE))
        outside = self._segmentation[(slice(None), *places)][0] < 0
        return np.where(outside, np.int16(OUTSIDE), found)[None]


class PseudoLabelledCases:
    """Preprocessed scans with stored pseudo-labels in the place of labels; nnU-Net's batch maker reads this data set.

    Args:
        cases: nnU-Net's data set of the preprocessed scans.
        folder: of the stored pseudo-labels; the cases without one are left out.
        kept: names of the cases to draw.
        structures: labels or regions, as `write_pseudo_label` was given them.
        least: confidence in [0, 1] below which a voxel is `UNSURE`.
    """

    def __init__(
        self, cases: CaseDataset, folder: Path, kept: Sequence[str], structures: Sequence[Label], least: float
    ) -> None:
        self.cases, self.folder, self.structures = cases, folder, list(structures)
        self.identifiers = list(kept)
        self.source_folder = cases.source_folder
        self.least = stored_confidence(least)

    def load_case(self, case: str) -> tuple[Any, TrainingLabels, None, dict[str, Any]]:
        """Return image (C, *S), labels (1, *S), None, and the properties with places of pseudo-labelled foreground."""
        data, segmentation, _, properties = self.cases.load_case(case)
        stored = _open(self.folder / f"{case}{ENDING}")
        places: Mapping[Label, Any] = {
            each: np.frombuffer(found, np.int32).reshape(-1, stored.ndim)
            for each, found in zip(self.structures, stored.schunk.vlmeta[PLACES], strict=True)
        }
        labels = TrainingLabels(segmentation, stored, self.least)
        return data, labels, None, {**properties, "class_locations": places}
