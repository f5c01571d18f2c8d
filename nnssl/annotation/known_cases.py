"""What the labelled cases of runs tell: volumes and components, and the cases that no run has learned from."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from nnssl.annotation.members import MemberFold
from nnssl.data.labels import Label, parse_labels
from nnssl.data.raw import RawCase, read_raw_dataset
from nnssl.data.splits import FoldCases, LabelBudget, cases_of_run
from nnssl.errors import NnsslError
from nnssl.evaluation.mask_pairs import LabelImage, read_labels
from nnssl.evaluation.postprocessing import count_components
from nnssl.names import DATASET_JSON, GT_FOLDER, PREPROCESSED_VARIABLE, VALIDATION_FOLDER
from nnssl.system.files import environment_folder, read_object, settings_hash
from nnssl.training.record import RunRecord


@dataclass(frozen=True)
class KnownCases:
    """The labelled cases of some runs, as far as their data set is on this machine.

    Attributes:
        labelled: label file of each case that a run has learned from.
        held_out: case that every run validates on and none has learned from -> its scan, with its label file.
        note: why something is missing; empty where nothing is.
    """

    labelled: tuple[Path, ...] = ()
    held_out: dict[str, RawCase] = field(default_factory=dict)
    note: str = ""


def find_known_cases(folds: Sequence[MemberFold]) -> KnownCases:
    """Return the labelled cases of the runs; empty, with a note, where the data set is not on this machine."""
    dataset = folds[0].model.dataset
    if len({each.model.dataset for each in folds}) > 1 or not dataset:
        return KnownCases(note="the runs are not of one data set, so that labelled cases are not compared")
    try:
        preprocessed = environment_folder(PREPROCESSED_VARIABLE) / dataset
        description = read_object(preprocessed / DATASET_JSON)
        cases = [_cases(each, preprocessed) for each in folds]
        raw = read_raw_dataset(dataset)
    except NnsslError as error:
        why = f"the data set of the runs is not here ({error.what})"
        return KnownCases(note=f"{why}, so that labelled cases are not compared")
    learned = {case for fold in cases for case in fold.labelled}
    held_out = set.intersection(*(set(fold.validation) for fold in cases)) - learned
    ending = str(description["file_ending"])

    def label(case: str) -> Path:
        return preprocessed / GT_FOLDER / f"{case}{ending}"

    scans = {case: raw.labelled[case] for case in sorted(held_out) if case in raw.labelled and label(case).is_file()}
    whole = parse_labels(description).ignore is None  # an ignore label hides parts of structures
    labelled = tuple(path for case in sorted(learned) if whole and (path := label(case)).is_file())
    held = {case: RawCase(case, scan.images, label(case), scan.patient) for case, scan in scans.items()}
    if not all(_was_validated_here(each.folder, part) for each, part in zip(folds, cases, strict=True)):
        return KnownCases(labelled, {}, "the runs do not tell that they held out the validation cases of this data set")
    shared = "" if held else "the folds of the runs share no validation case that none has learned from"
    return KnownCases(labelled, held, shared)


def _was_validated_here(folder: Path, cases: FoldCases) -> bool:
    """Return whether a run has held out the validation cases that its fold has now.

    An installed model may stem from another data set of the same name; its record has no hash of cases. Runs of stock
    nnU-Net have no record, but the masks of their validation.
    """
    record = RunRecord.read(folder)
    if record is None:
        return (folder / VALIDATION_FOLDER).is_dir()
    return record.data.validation == settings_hash(list(cases.validation))


def _cases(each: MemberFold, preprocessed: Path) -> FoldCases:
    budget = LabelBudget.parse(each.labelled) if each.labelled else None
    fold = int(each.fold) if each.fold.isdigit() else each.fold
    return cases_of_run(preprocessed, read_object(preprocessed / DATASET_JSON), fold, budget)


@dataclass(frozen=True)
class Size:
    """Volume in ml and number of components of each structure of a mask."""

    volumes_ml: tuple[float, ...]
    components: tuple[int, ...]


def size_of(image: LabelImage, structures: Sequence[Label]) -> Size:
    """Return volumes and components of the structures of a label map."""
    voxel_ml = math.prod(image.spacing_mm) / 1000
    parts = [each if isinstance(each, tuple) else (each,) for each in structures]
    volumes = tuple(int(np.isin(image.values, part).sum()) * voxel_ml for part in parts)
    return Size(volumes, tuple(count_components(image.values, part) for part in parts))


def labelled_sizes(known: KnownCases, structures: Sequence[Label], reader: type) -> list[Size]:
    """Return the sizes of all labelled cases."""
    return [size_of(read_labels(reader, path), structures) for path in known.labelled]
