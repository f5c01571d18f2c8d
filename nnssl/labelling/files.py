"""Pseudo-labels that come as masks: found, checked like labels, and brought to the grid of the preprocessed scans.

A folder holds `CASE.nii.gz` (the file ending of the data set) on the grid of the scan, and optionally
`CASE_confidence.nii.gz` with probabilities from 0 to 1, or whole numbers from 0 to 255.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnssl.data.geometry import geometry_of_array, relate_grids
from nnssl.data.labels import parse_labels
from nnssl.data.raw import listed, other_endings
from nnssl.data.splits import FoldCases
from nnssl.errors import DataError
from nnssl.evaluation.mask_pairs import read_labels
from nnssl.host import ConfigurationManager, PlansManager
from nnssl.labelling.report import Origin
from nnssl.labelling.store import SURE
from nnssl.names import FILE_ENDING_KEY
from nnssl.system.files import content_hash

CONFIDENCE = "_confidence"
SHOWN_PROBLEMS = 10
log = logging.getLogger("nnssl.train")


@dataclass(frozen=True)
class GivenMask:
    """The files of one pseudo-labelled scan; `confidence` is None where every voxel is certain."""

    mask: Path
    confidence: Path | None = None

    @property
    def origin(self) -> Origin:
        """The mask, and the hash of both files."""
        files = [self.mask, *([self.confidence] if self.confidence else [])]
        return Origin("file", str(self.mask), content_hash(*files))


def find_masks(folder: Path, ending: str, cases: FoldCases) -> dict[str, GivenMask]:
    """Return the masks of unlabelled cases in a folder, sorted by case.

    Masks of labelled and validation cases are left out, with a warning: these cases have labels.

    Args:
        folder: with the masks; files with other endings do not count, and a warning names the images among them.
        ending: of the masks, with its dot.
        cases: of the run.

    Raises:
        DataError: a file belongs to no case of the run, or no unlabelled case has a mask.
    """
    stems = [file.name.removesuffix(ending) for file in sorted(folder.glob(f"*{ending}")) if file.name[0] != "."]
    unlabelled, others = set(cases.unlabelled), {*cases.labelled, *cases.validation}
    beside = {stem for stem in stems if stem.removesuffix(CONFIDENCE) in unlabelled | others} - unlabelled - others
    strangers = [stem for stem in stems if stem not in unlabelled | others | beside]
    found = {
        case: GivenMask(
            folder / f"{case}{ending}",
            folder / f"{case}{CONFIDENCE}{ending}" if f"{case}{CONFIDENCE}" in beside else None,
        )
        for case in stems
        if case in unlabelled
    }
    uncounted = other_endings(folder, ending)
    if strangers or not found:
        what = (
            f"{len(strangers)} mask(s) belong to no scan of this run" if strangers else "no unlabelled scan has a mask"
        )
        raise DataError(
            what,
            where=folder,
            why="\n".join(filter(None, (listed(strangers), uncounted))),
            run=f"name the masks CASE{ending} after the unlabelled scans, {cases.unlabelled[0]}{ending} for example, "
            "and move others away",
        )
    labelled = [stem for stem in stems if stem in others - unlabelled]
    if labelled:
        log.warning("warning: %d mask(s) of labelled or validation scans do not count: %s", len(labelled), labelled[0])
    if uncounted:
        log.warning("warning: %s", uncounted)
    if len(found) < len(unlabelled):
        log.info("%d of %d unlabelled scans have a mask in %s", len(found), len(unlabelled), folder)
    return found


@dataclass(frozen=True)
class MaskReader:
    """Reads masks as nnU-Net's preprocessing treats labels.

    Attributes:
        plans: nnU-Net's plans.
        configuration: the configuration whose grid the masks are brought to.
        dataset_json: names the label values.
    """

    plans: PlansManager
    configuration: ConfigurationManager
    dataset_json: Mapping[str, Any]

    @property
    def ending(self) -> str:
        """File ending of the masks, with its dot."""
        return str(self.dataset_json[FILE_ENDING_KEY])

    def problems_of(self, given: GivenMask, properties: Mapping[str, Any]) -> list[str]:
        """Return what must be repaired: geometry and values, by the rules of the integrity check for labels.

        Other origins and directions are warnings in the log, as nnU-Net ignores both.

        Args:
            given: the files of the scan.
            properties: what preprocessing noted about the scan.
        """
        problems = []
        for path in [given.mask, *([given.confidence] if given.confidence else [])]:
            try:
                found = read_labels(self._reader, path) if path == given.mask else None
                values, geometry = (found.values, found.geometry) if found else self._confidence(path)
            except DataError as error:
                problems.append(f"{path}: {error.what}{f' ({error.why})' if error.why else ''}")
                continue
            problems += _geometry_problems(path, geometry, self._geometry(properties))
            problems += self._value_problems(path, values) if found else []
        return problems

    def on_preprocessed_grid(
        self, given: GivenMask, properties: Mapping[str, Any], shape: Sequence[int]
    ) -> tuple[NDArray[Any], NDArray[np.uint8]]:
        """Return labels and confidence (*S) on the grid of the preprocessed scan; ignored voxels have confidence 0.

        Args:
            given: files that `problems_of` has passed.
            properties: what preprocessing noted about the scan.
            shape: of the preprocessed scan, *S.
        """
        labels = read_labels(self._reader, given.mask).values
        found = self._resampled(labels, properties, shape, self.configuration.resampling_fn_seg)
        sure = np.ones(shape, np.float32)
        if given.confidence:
            values, _ = self._confidence(given.confidence)
            sure = self._resampled(values, properties, shape, self.configuration.resampling_fn_probabilities)
        ignored = found == parse_labels(self.dataset_json).ignore
        confidence = np.rint(SURE * np.clip(np.where(ignored, 0, sure), 0, 1)).astype(np.uint8)
        return np.where(ignored, 0, found), confidence

    @property
    def _reader(self) -> type[Any]:
        reader: type[Any] = self.plans.image_reader_writer_class
        return reader

    def _confidence(self, path: Path) -> tuple[NDArray[np.float32], Any]:
        """Return the confidence (z, y, x) of a file, in [0, 1], and its geometry."""
        try:
            array, properties = self._reader().read_seg(str(path))
        except Exception as error:  # readers raise many types
            raise DataError("a confidence file cannot be read", where=path, why=str(error)) from error
        values = np.asarray(array[0], np.float32)
        largest = float(values.max(initial=0))
        if not (np.isfinite(values).all() and values.min(initial=0) >= 0 and largest <= SURE):
            raise DataError("a confidence file holds other values than 0 to 1, or 0 to 255", where=path)
        probabilities = (values / SURE if largest > 1 else values).astype(np.float32)
        return probabilities, geometry_of_array(values.shape, properties)

    def _geometry(self, properties: Mapping[str, Any]) -> Any:  # noqa: ANN401
        shape = [properties["shape_before_cropping"][axis] for axis in self.plans.transpose_backward]
        return geometry_of_array(shape, properties)

    def _value_problems(self, path: Path, values: NDArray[Any]) -> list[str]:
        allowed = parse_labels(self.dataset_json).allowed_in_references
        strange = sorted({int(value) for value in np.unique(values)} - set(allowed))
        shown = ", ".join(map(str, strange[:5]))
        known = f"dataset.json allows {allowed[0]} to {allowed[-1]}"
        return [f"{path} has the values {shown}, {known}: correct the mask"] if strange else []

    def _resampled(
        self,
        array: NDArray[Any],
        properties: Mapping[str, Any],
        shape: Sequence[int],
        resample: Any,  # noqa: ANN401 - a function of nnU-Net
    ) -> NDArray[Any]:
        """Transpose, crop and resample an array (z, y, x) as nnU-Net's preprocessing does with labels."""
        order = self.plans.transpose_forward
        box = tuple(slice(low, high) for low, high in properties["bbox_used_for_cropping"])
        part = np.ascontiguousarray(array.transpose(order)[box])[None]
        before = [properties["spacing"][axis] for axis in order]
        after = list(self.configuration.spacing)
        result: NDArray[Any] = resample(part, shape, before, [*before[: 3 - len(after)], *after])[0]
        return result


def check_masks(reader: MaskReader, masks: Mapping[str, GivenMask], properties: Mapping[str, Any]) -> None:
    """Check every mask, and raise one error that lists the problems of all.

    Args:
        reader: reads the masks.
        masks: case → files.
        properties: case → what preprocessing noted about the scan.

    Raises:
        DataError: a mask or a confidence file cannot be read, lies on another grid, or holds undeclared values.
    """
    problems = [text for case, given in masks.items() for text in reader.problems_of(given, properties[case])]
    if problems:
        more = [f"… and {len(problems) - SHOWN_PROBLEMS} more"] if len(problems) > SHOWN_PROBLEMS else []
        raise DataError(
            f"the pseudo-labels have {len(problems)} problem(s)",
            where=next(iter(masks.values())).mask.parent,
            why="\n".join([*problems[:SHOWN_PROBLEMS], *more]),
            run="repair these problems, then run the same command again",
        )


def _geometry_problems(path: Path, found: Any, expected: Any) -> list[str]:  # noqa: ANN401
    relation = relate_grids(found, expected)
    if relation.turn:
        return [
            f"{path} lies in the place of its scan, but on other axes ({relation.turn}): bring it to the scan's axes"
        ]
    problems = []
    for each in relation.differences:
        if each.quantity in ("shape", "spacing"):
            what = f"{path} has the {each.quantity} {each.found}, its scan has {each.expected}"
            problems.append(f"{what} (tolerance {each.tolerance}): resample the mask to the grid of its scan")
        else:
            log.warning("warning: %s has another %s than its scan; nnU-Net ignores that", path, each.quantity)
    return problems
