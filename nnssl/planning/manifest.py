"""Manifest of a folder of preprocessed cases: the settings and source files that its cases were made from.

Training compares the manifest with its plans, so it never uses stale cases.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from nnssl.data.raw import listed
from nnssl.errors import DataError
from nnssl.names import CLIP_KEY, LABELS_KEY, UNLABELLED_SUFFIX
from nnssl.system.files import read_object, settings_hash, write_json

CONFIGURATION_SETTINGS = (
    "spacing",
    "normalization_schemes",
    "use_mask_for_norm",
    "resampling_fn_data",
    "resampling_fn_data_kwargs",
    "resampling_fn_seg",
    "resampling_fn_seg_kwargs",
    "preprocessor_name",
)
PLANS_SETTINGS = (
    "transpose_forward",
    "image_reader_writer",
    "foreground_intensity_properties_per_channel",
    "label_manager",
)
DATASET_SETTINGS = (LABELS_KEY, "regions_class_order", "channel_names", "modality")
DATA_ENDINGS = (".b2nd", ".npz")  # nnU-Net finds a case by these files, so they are written last
CASE_ENDINGS = (".pkl", ".b2nd", "_seg.b2nd", ".npz", ".npy", "_seg.npy")


def resolved_configuration(plans: Mapping[str, Any], configuration: str) -> dict[str, Any]:
    """Return a configuration of plans.json together with the entries that it inherits."""
    own = plans["configurations"][configuration]
    parent = resolved_configuration(plans, own["inherits_from"]) if "inherits_from" in own else {}
    return {**parent, **own}


def preprocessing_settings(
    plans: Mapping[str, Any], configuration: str, dataset_json: Mapping[str, Any]
) -> dict[str, Any]:
    """Return all entries of plans and dataset.json that decide the voxels and properties of preprocessed cases.

    The patch size is not one of them: it only decides how the arrays are cut into blocks on disk.
    """
    chosen = resolved_configuration(plans, configuration)
    return {
        **{name: chosen.get(name) for name in CONFIGURATION_SETTINGS},
        **({CLIP_KEY: chosen[CLIP_KEY]} if CLIP_KEY in chosen else {}),
        **{name: plans.get(name) for name in PLANS_SETTINGS},
        **{name: dataset_json.get(name) for name in DATASET_SETTINGS},
        "nnunetv2": version("nnunetv2"),
    }


def unlabelled_folder(labelled: Path) -> Path:
    """Return the folder of the cases without a label, which stands beside the folder of the labelled cases."""
    return labelled.with_name(labelled.name + UNLABELLED_SUFFIX)


def is_complete(case: str, names: Collection[str]) -> bool:
    """Return whether the file names in a folder include all files of a case."""
    in_blocks = f"{case}.b2nd" in names and f"{case}_seg.b2nd" in names
    return f"{case}.pkl" in names and (in_blocks or f"{case}.npz" in names)


@dataclass(frozen=True)
class DataFolder:
    """A folder of preprocessed cases, its manifest, and the notes that an unfinished run left.

    Attributes:
        path: the folder; every case in this folder is complete.
        settings: the settings that decide the content, see `preprocessing_settings`.
    """

    path: Path
    settings: Mapping[str, Any]

    @property
    def manifest(self) -> Path:
        """The manifest, a file beside the folder: hash of the settings, and case -> hash of its source files."""
        return self.path.with_name(f"{self.path.name}.manifest.json")

    @property
    def partial(self) -> Path:
        """Folder of the cases that are being written, and of the notes about complete cases."""
        return self.path.with_name(f".{self.path.name}.partial")

    @property
    def settings_hash(self) -> str:
        """Hash of the settings."""
        return settings_hash(dict(self.settings))

    def finished(self) -> dict[str, str]:
        """Return case -> source hash of the complete cases with these settings."""
        notes = []
        if self.manifest.is_file():
            notes.append(read_object(self.manifest, f"delete {self.manifest.name} and plan again"))
        notes += [read_object(path) for path in sorted(self.partial.glob("*.json"))]
        cases: dict[str, str] = {}
        for note in notes:
            if note.get("settings_hash") == self.settings_hash:
                cases |= note.get("cases", {})
        names = self._file_names()
        return {case: source for case, source in cases.items() if is_complete(case, names)}

    def _file_names(self) -> set[str]:
        return {path.name for path in self.path.iterdir()} if self.path.is_dir() else set()

    def note(self, case: str, source_hash: str) -> None:
        """Note that a case is complete; the note counts if the run is killed before the manifest is written."""
        write_json(self.partial / f"{case}.json", {"settings_hash": self.settings_hash, "cases": {case: source_hash}})

    def keep_only(self, cases: Mapping[str, str]) -> None:
        """Write the manifest of these cases; delete all other files of the folder, and all notes."""
        content = {"settings_hash": self.settings_hash, "settings": dict(self.settings), "cases": dict(cases)}
        write_json(self.manifest, content)
        names = {case + ending for case in cases for ending in CASE_ENDINGS}
        self.path.mkdir(exist_ok=True)
        for file in self.path.iterdir():
            if file.name not in names:
                shutil.rmtree(file) if file.is_dir() else file.unlink()
        shutil.rmtree(self.partial, ignore_errors=True)

    def check(self, cases: Iterable[str], command: str) -> None:
        """Check that the folder holds these cases, complete and with these settings.

        Raises:
            DataError: a case is missing or has other settings; the message names `command`, which preprocesses it.
        """
        wanted = list(cases)
        if not wanted:
            return
        manifest = read_object(self.manifest, command) if self.manifest.is_file() else {}
        if manifest.get("settings_hash") != self.settings_hash:
            old = manifest.get("settings", {})
            changed = [name for name, value in self.settings.items() if _as_json(old.get(name)) != _as_json(value)]
            raise DataError(
                "the preprocessed data were made with other settings" if manifest else "cases are not preprocessed",
                where=self.manifest,
                why=f"different: {', '.join(changed)}" if manifest else f"the run needs {len(wanted)} case(s)",
                run=command,
            )
        names = self._file_names()
        missing = [case for case in wanted if case not in manifest.get("cases", {}) or not is_complete(case, names)]
        if missing:
            what = f"{len(missing)} case(s) are not preprocessed"
            raise DataError(what, where=self.path, why=listed(missing), run=command)


def _as_json(value: object) -> str:
    return json.dumps(value, sort_keys=True)
