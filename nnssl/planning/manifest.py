"""Manifest of a folder of preprocessed cases: the settings and source files that its cases were made from.

Training compares the manifest with its plans, so it never uses stale cases.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from nnssl.data.raw import listed
from nnssl.errors import DataError
from nnssl.names import CLIP_KEY, FACTS_FILE, LABELS_KEY, UNLABELLED_SUFFIX
from nnssl.planning.case_files import CASE_ENDINGS, CaseEntry, CaseFiles, is_complete
from nnssl.system.fact_store import FactStore
from nnssl.system.files import read_object, settings_hash, write_json, write_text
from nnssl.system.resources import available_cpus

STATISTICS = "foreground_intensity_properties_per_channel"
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
    STATISTICS,
    "label_manager",
)
DATASET_SETTINGS = (LABELS_KEY, "regions_class_order", "channel_names", "modality")
# What nnU-Net's normalisations take from the intensity statistics of the labelled cases; others may take anything.
STATISTICS_USED: dict[str, tuple[str, ...]] = {
    "CTNormalization": ("mean", "std", "percentile_00_5", "percentile_99_5"),
    "ZScoreNormalization": (),
    "RescaleTo01Normalization": (),
    "RGBTo01Normalization": (),
    "NoNormalization": (),
}
STOCK_PREPROCESSOR = "DefaultPreprocessor"
MANIFEST_ENDING = ".manifest.json"


def resolved_configuration(plans: Mapping[str, Any], configuration: str) -> dict[str, Any]:
    """Return a configuration of plans.json together with the entries that it inherits."""
    own = plans["configurations"][configuration]
    parent = resolved_configuration(plans, own["inherits_from"]) if "inherits_from" in own else {}
    return {**parent, **own}


def preprocessing_settings(
    plans: Mapping[str, Any], configuration: str, dataset_json: Mapping[str, Any]
) -> dict[str, Any]:
    """Return all entries of plans and dataset.json that decide the voxels and properties of preprocessed cases.

    The patch size is not one of them: it only decides how the arrays are cut into blocks on disk. Nor are intensity
    statistics that the normalisation does not use.
    """
    chosen = resolved_configuration(plans, configuration)
    settings = {
        **{name: chosen.get(name) for name in CONFIGURATION_SETTINGS},
        **({CLIP_KEY: chosen[CLIP_KEY]} if CLIP_KEY in chosen else {}),
        **{name: plans.get(name) for name in PLANS_SETTINGS},
        **{name: dataset_json.get(name) for name in DATASET_SETTINGS},
        "nnunetv2": version("nnunetv2"),
    }
    return effective_settings(settings)


def effective_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings without the intensity statistics that decide nothing.

    Manifests of earlier versions hold all of them.
    """
    schemes: list[str] = settings.get("normalization_schemes") or []
    statistics = settings.get(STATISTICS)
    if settings.get("preprocessor_name") != STOCK_PREPROCESSOR or not isinstance(statistics, Mapping):
        return dict(settings)
    used = {}
    for channel, scheme in enumerate(schemes):
        values: dict[str, float] = statistics.get(str(channel), {})
        names = STATISTICS_USED.get(scheme, tuple(values))
        used[str(channel)] = {name: values[name] for name in names if name in values}
    return {**settings, STATISTICS: used}


def unlabelled_folder(labelled: Path) -> Path:
    """Return the folder of the cases without a label, which stands beside the folder of the labelled cases."""
    return labelled.with_name(labelled.name + UNLABELLED_SUFFIX)


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
        """The manifest, a file beside the folder: the settings, and case -> `CaseEntry`."""
        return self.path.with_name(self.path.name + MANIFEST_ENDING)

    @property
    def partial(self) -> Path:
        """Folder of the cases that are being written, and of the notes about complete cases."""
        return self.path.with_name(f".{self.path.name}.partial")

    @property
    def lock(self) -> Path:
        """Lock file of the command that changes the folder."""
        return self.path.with_name(f".{self.path.name}.lock")

    @property
    def settings_hash(self) -> str:
        """Hash of the settings."""
        return settings_hash(dict(self.settings))

    def finished(self) -> dict[str, CaseEntry]:
        """Return the complete cases with these settings.

        Raises:
            DataError: the manifest is damaged.
        """
        cases = self._listed(f"delete {self.manifest.name} and plan again")
        for path in sorted(self.partial.glob("*.json")):
            note = read_object(path)
            if note.get("settings_hash") == self.settings_hash:
                cases |= {case: CaseEntry.read(noted) for case, noted in note["cases"].items()}
        names = self._file_names()
        return {case: entry for case, entry in cases.items() if is_complete(case, names)}

    def _listed(self, run: str) -> dict[str, CaseEntry]:
        """Return the cases of the manifest, none where the manifest has other settings.

        Raises:
            DataError: the manifest is damaged; the message says to `run`.
        """
        content = read_object(self.manifest, run) if self.manifest.is_file() else {}
        settings, cases = content.get("settings", {}), content.get("cases", {})
        try:
            if settings_hash(effective_settings(settings)) != self.settings_hash:
                return {}
            return {str(case): CaseEntry.read(noted) for case, noted in cases.items()}
        except (TypeError, KeyError, AttributeError) as error:
            raise DataError("a manifest is damaged", where=self.manifest, why=repr(error), run=run) from error

    def _file_names(self) -> set[str]:
        return {path.name for path in self.path.iterdir()} if self.path.is_dir() else set()

    def note(self, case: str, entry: CaseEntry) -> None:
        """Note that a case is complete; the note counts if the run is killed before the manifest is written."""
        content = {"settings_hash": self.settings_hash, "cases": {case: entry.to_json()}}
        write_json(self.partial / f"{case}.json", content)

    def keep_only(self, cases: Mapping[str, CaseEntry]) -> None:
        """Write the manifest of these cases; delete all other files of the folder, and all notes."""
        content = {
            "settings_hash": self.settings_hash,
            "settings": dict(self.settings),
            "cases": {case: entry.to_json() for case, entry in cases.items()},
        }
        write_text(self.manifest, json.dumps(content) + "\n")
        names = {case + ending for case in cases for ending in CASE_ENDINGS}
        self.path.mkdir(exist_ok=True)
        for file in self.path.iterdir():
            if file.name not in names:
                shutil.rmtree(file) if file.is_dir() else file.unlink()
        shutil.rmtree(self.partial, ignore_errors=True)

    def check(self, cases: Iterable[str], command: str) -> None:
        """Check that the folder holds these cases, complete, unchanged and with these settings.

        A case whose files have another size or time than when they were written is read and compared.

        Raises:
            DataError: a case is missing, was changed or has other settings; the message names `command`, which
                preprocesses it.
        """
        wanted = list(cases)
        if not wanted:
            return
        entries = self._listed(command)
        if not entries:
            self._refuse_settings(len(wanted), command)
        names = self._file_names()
        missing = [case for case in wanted if case not in entries or not is_complete(case, names)]
        if missing:
            what = f"{len(missing)} case(s) are not preprocessed"
            raise DataError(what, where=self.path, why=listed(missing), run=command)
        known = {case: entries[case] for case in wanted if entries[case].content is not None}
        with FactStore(self.path.parent / FACTS_FILE) as store:
            held = CaseFiles(self.path, store).holding(known, available_cpus())
        changed = [case for case in known if case not in held]
        if changed:
            what = f"{len(changed)} case(s) were changed since they were preprocessed"
            raise DataError(what, where=self.path, why=listed(changed), run=command)

    def _refuse_settings(self, count: int, command: str) -> None:
        """Raise the error that there are no cases with these settings, unless the manifest is merely empty."""
        manifest = read_object(self.manifest, command) if self.manifest.is_file() else {}
        old = effective_settings(manifest.get("settings", {}))
        changed = [name for name, value in self.settings.items() if _as_json(old.get(name)) != _as_json(value)]
        if changed:
            raise DataError(
                "the preprocessed data were made with other settings" if manifest else "cases are not preprocessed",
                where=self.manifest,
                why=f"different: {', '.join(changed)}" if manifest else f"the run needs {count} case(s)",
                run=command,
            )


def _as_json(value: object) -> str:
    return json.dumps(value, sort_keys=True)
