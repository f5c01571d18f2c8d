"""nnU-Net's raw layout plus `imagesUn/`: unlabelled scans that are named like the others and have no label file."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnssl.errors import DataError, UsageError
from nnssl.names import (
    CASES_KEY,
    DATASET_JSON,
    FILE_ENDING_KEY,
    IMAGES_TR,
    IMAGES_TS,
    IMAGES_UN,
    LABELS_KEY,
    LABELS_TR,
    RAW_VARIABLE,
)
from nnssl.system.files import environment_folder, read_json

# Endings of image files, the longest first where one ends in another; a name without its ending names the case.
IMAGE_ENDINGS = (
    ".nii.gz", ".nii", ".nrrd", ".nhdr", ".mha", ".mhd", ".gipl", ".hdr", ".img", ".dcm", ".h5", ".hdf5",
    ".png", ".bmp", ".tif", ".tiff", ".jpg", ".jpeg",
)  # fmt: skip
TIFF_ENDINGS = (".tif", ".tiff")
RESERVED = {"dataset", "plans", "summary", "predict_from_raw_data_args"}  # JSON files beside predicted masks


@dataclass(frozen=True)
class RawCase:
    """One scan: its channel files in order, and its label file, None without a label."""

    name: str
    images: tuple[Path, ...]
    label: Path | None
    patient: str


@dataclass(frozen=True)
class RawDataset:
    """A raw data set on disk. The mappings lead from case name to case and are sorted by name.

    `whole` is False where a setting of domains left cases out.
    """

    name: str
    folder: Path
    dataset_json: dict[str, Any]
    labelled: dict[str, RawCase]
    unlabelled: dict[str, RawCase]
    test: dict[str, RawCase]
    whole: bool = True

    @property
    def file_ending(self) -> str:
        """File ending with its dot, `.nii.gz` for instance."""
        return str(self.dataset_json[FILE_ENDING_KEY])

    @property
    def channel_names(self) -> list[str]:
        """Names of the input channels, in order."""
        return [str(name) for name in channels_of(self.dataset_json).values()]

    def patients(self) -> dict[str, str]:
        """Return case name -> patient for labelled and unlabelled cases."""
        return {case.name: case.patient for part in (self.labelled, self.unlabelled) for case in part.values()}


def reserved_names(cases: Iterable[str], file_ending: str) -> list[str]:
    """Return one problem for each case whose mask would replace a file that nnU-Net writes beside the masks.

    nnU-Net keeps the voxel size of a TIFF mask `CASE.tif` in `CASE.json`.
    """
    if file_ending.lower() not in TIFF_ENDINGS:
        return []
    return [
        f"the case {name} cannot have this name: the voxel size of its mask would replace nnU-Net's {name}.json; "
        "rename the case"
        for name in sorted(set(cases) & RESERVED)
    ]


def clashing_names(cases: Iterable[str]) -> list[str]:
    """Return one problem for each two cases whose preprocessed files would replace each other.

    nnU-Net keeps the preprocessed label of a case `X` as `X_seg`, where the image of a case `X_seg` would lie, too.
    """
    names = set(cases)
    return [
        f"the cases {name} and {name}_seg cannot stand in one data set: nnU-Net keeps the label of {name} "
        f"as {name}_seg; rename one of them"
        for name in sorted(names)
        if f"{name}_seg" in names
    ]


def with_other_ending(names: Iterable[str], ending: str) -> list[str]:
    """Return the names of image files, of any format, that do not end with `ending`."""
    return [name for name in names if not name.endswith(ending) and name.lower().endswith(IMAGE_ENDINGS)]


def other_endings(folder: Path, ending: str) -> str:
    """Return which images of a folder do not count, because they end differently; empty where there are none."""
    others = with_other_ending(sorted(file.name for file in folder.iterdir() if file.name[0] != "."), ending)
    if not others:
        return ""
    return f"{len(others)} image(s) do not count, because they do not end with {ending}: {listed(others)}"


def listed(names: Sequence[str]) -> str:
    """Return the first five names as text for a message."""
    return ", ".join(names[:5]) + (" …" if len(names) > 5 else "")


def overlooked_folders(folder: Path) -> list[str]:
    """Return the folders beside `imagesUn` whose names say that they hold unlabelled scans, which nobody reads."""
    return sorted(path.name for path in folder.iterdir() if path.is_dir() and "unlab" in path.name.lower())


def channels_of(dataset_json: Mapping[str, Any]) -> dict[str, str]:
    """Return dataset.json's channels (`channel_names`, or the older `modality`)."""
    return dict(dataset_json.get("channel_names") or dataset_json.get("modality") or {})


def patient_of(case: str, dataset_json: Mapping[str, Any]) -> str:
    """Return the patient of a case: `cases.CASE.patient` of dataset.json, or the case name where that is missing."""
    return str(dataset_json.get(CASES_KEY, {}).get(case, {}).get("patient", case))


def dataset_name(name_or_id: str | int, root: Path, made_by: str = "") -> str:
    """Return the folder name `DatasetXXX_Name` of a data set below `root`.

    Args:
        name_or_id: the folder name, or the id.
        root: folder of the data sets.
        made_by: the command that writes the data set there, for the message.

    Raises:
        UsageError: no such data set, or several with that id; the message lists the data sets of the folder.
    """
    there = sorted(entry.name for entry in root.glob("Dataset*") if entry.is_dir())
    text = str(name_or_id)
    if text in there:
        return text
    found = [name for name in there if text.isdecimal() and name.startswith(f"Dataset{int(text):03d}_")]
    if len(found) == 1:
        return found[0]
    raise UsageError(
        f"several data sets have the id {text}" if len(found) > 1 else f"there is no data set '{text}'",
        where=root,
        why=f"data sets there: {', '.join(there) or 'none'}",
        run=made_by or ("nnssl_phantom -d 901 writes a synthetic one to try" if not there else ""),
    )


def read_raw_dataset(name_or_id: str | int) -> RawDataset:
    """Return the raw data set with this id or name below `nnUNet_raw`.

    Raises:
        UsageError: no such data set.
        DataError: dataset.json is missing, incomplete or malformed, a file has no channel suffix, or no case has a
            label.
        EnvironmentProblem: `nnUNet_raw` is not set, or its folder does not exist.
    """
    root = environment_folder(RAW_VARIABLE, must_exist=True)
    folder = root / dataset_name(name_or_id, root)
    path = folder / DATASET_JSON
    dataset_json = read_json(path, made_by="write dataset.json as nnU-Net's documentation describes")
    _check_form(dataset_json, path)
    missing = [key for key in (LABELS_KEY, FILE_ENDING_KEY) if key not in dataset_json]
    if missing or not channels_of(dataset_json):
        missing += [] if channels_of(dataset_json) else ["channel_names"]
        raise DataError("dataset.json is incomplete", where=path, why=f"missing: {', '.join(missing)}")
    return RawDataset(
        folder.name,
        folder,
        dataset_json,
        labelled=_labelled_cases(folder, dataset_json),
        unlabelled=_cases(folder / IMAGES_UN, dataset_json),
        test=_cases(folder / IMAGES_TS, dataset_json),
    )


def _check_form(dataset_json: Any, path: Path) -> None:  # noqa: ANN401 - whatever stands in the file
    """Check that dataset.json, and those of its entries that this module reads, are JSON objects.

    Raises:
        DataError: one of these is something else, or a listed case lacks its images or its label.
    """
    parts = {"the file": dataset_json}
    if isinstance(dataset_json, dict):
        parts |= {key: dataset_json.get(key, {}) for key in ("channel_names", "modality", CASES_KEY, "dataset")}
        for key in (CASES_KEY, "dataset"):
            parts |= {f"{key}: {name}": entry for name, entry in parts[key].items()} if _is_object(parts[key]) else {}
    wrong = [f"{name} is not a JSON object" for name, part in parts.items() if not _is_object(part)]
    wrong += [
        f"{name} has no 'images' or no 'label'"
        for name, part in parts.items()
        if name.startswith("dataset: ") and _is_object(part) and not (part.get("images") and part.get("label"))
    ]
    ending = dataset_json.get(FILE_ENDING_KEY, ".nii.gz") if _is_object(dataset_json) else ".nii.gz"
    if not (isinstance(ending, str) and ending.startswith(".")):
        wrong.append(f"file_ending is {ending!r}, it must be text such as '.nii.gz'")
    if wrong:
        raise DataError(
            "dataset.json is malformed",
            where=path,
            why="\n".join([*wrong[:5], *(["…"] if len(wrong) > 5 else [])]),
            run="correct the file as nnU-Net's documentation describes",
        )


def _is_object(part: Any) -> bool:  # noqa: ANN401
    return isinstance(part, dict)


def _cases(folder: Path, dataset_json: Mapping[str, Any], labels: Path | None = None) -> dict[str, RawCase]:
    ending = str(dataset_json[FILE_ENDING_KEY])
    pattern = re.compile(rf"(.+)_(\d{{4}}){re.escape(ending)}")
    images: dict[str, list[Path]] = {}
    strangers = []
    aside = (".json",) if ending.lower() in TIFF_ENDINGS else ()  # nnU-Net keeps the spacing of these in CASE.json
    for file in sorted(folder.glob("*")) if folder.is_dir() else []:
        match = pattern.fullmatch(file.name)
        if match:
            images.setdefault(match[1], []).append(file)
        elif not file.name.startswith(".") and not file.name.endswith(aside):
            strangers.append(file.name)
    foreign = with_other_ending(strangers, ending)
    if foreign:
        raise DataError(
            f"{len(foreign)} image(s) do not end with {ending}, the file_ending of dataset.json",
            where=folder,
            why=listed(foreign),
            run=f"convert these images to {ending}, or move them",
        )
    if strangers:
        raise DataError(
            f"{len(strangers)} file name(s) are not of the form CASE_0000{ending}",
            where=folder,
            why=listed(strangers),
            run="rename or move these files",
        )
    return {
        name: RawCase(
            name, tuple(files), labels / f"{name}{ending}" if labels else None, patient_of(name, dataset_json)
        )
        for name, files in sorted(images.items())
    }


def _listed(folder: Path, file: str) -> Path:
    """Return the path of a file that dataset.json lists. Links stay links: the name of the link decides the reader."""
    return (folder / os.path.expandvars(file)).absolute()


def _labelled_cases(folder: Path, dataset_json: Mapping[str, Any]) -> dict[str, RawCase]:
    if "dataset" in dataset_json:  # nnU-Net's explicit list takes the place of imagesTr and labelsTr
        cases = {}
        for name, entry in sorted(dataset_json["dataset"].items()):
            images = tuple(_listed(folder, image) for image in entry["images"])
            label = _listed(folder, entry["label"])
            cases[name] = RawCase(name, images, label, patient_of(name, dataset_json))
    else:
        cases = _cases(folder / IMAGES_TR, dataset_json, folder / LABELS_TR)
    if not cases:
        raise DataError(
            "there are no labelled cases",
            where=folder / IMAGES_TR,
            why="at least one labelled case is needed to learn from",
            run="put scans into imagesTr/ and their labels into labelsTr/",
        )
    return cases
