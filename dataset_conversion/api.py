"""`nnssl.convert`: a download, or a user's own scans, become a raw data set.

The call checks everything before it writes a file.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nnssl.dataset_conversion.engine.case_files import FOLDERS, MANIFEST, WORK
from nnssl.dataset_conversion.engine.checks import Job
from nnssl.dataset_conversion.engine.download import CheckedDownload, check_download
from nnssl.dataset_conversion.engine.left_over import describe_left_out
from nnssl.dataset_conversion.engine.table import Converter, find_converter
from nnssl.dataset_conversion.engine.writer import find_foreign_files, read_completed, write_dataset
from nnssl.errors import UsageError
from nnssl.names import RAW_VARIABLE
from nnssl.system.files import check_writable, environment_folder
from nnssl.system.resources import worker_processes


@dataclass(frozen=True)
class ConversionResult:
    """What a conversion wrote, or would write.

    Attributes:
        folder: the data set folder.
        converter: the entry of `CONVERTERS`, with licence and citation.
        dry_run: True where nothing was written.
        labelled: number of labelled cases; `unlabelled` and `test` likewise.
        converted: number of cases that this run wrote (a dry run: would write).
        kept: number of cases that an earlier run had completed.
        notes: what the user should know.
        warnings: what the user should look at before the training.
        skipped: unlabelled case that is left out -> its problems.
        left_out: files below the source folder of a user's own data that are not converted.
    """

    folder: Path
    converter: Converter
    dry_run: bool
    labelled: int
    unlabelled: int
    test: int
    converted: int
    kept: int
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    skipped: Mapping[str, list[str]] = field(default_factory=dict)
    left_out: tuple[Path, ...] = ()

    def lines(self) -> list[str]:
        """Return result, licence, citation and the next command, as lines to print."""
        next_command = "the same command without --dry_run" if self.dry_run else "nnssl_plan_and_preprocess -d"
        number = "" if self.dry_run else f" {int(self.folder.name[7:10])}"
        counts = f"{self.converted} {'to convert' if self.dry_run else 'converted'}, {self.kept} there already"
        return [
            *(f"note: {note}" for note in self.notes),
            *(f"warning: {text}" for text in self.warnings),
            f"{self.folder}{' would be written' if self.dry_run else ''}",
            f"  {self.labelled} labelled, {self.unlabelled} unlabelled, {self.test} test cases: {counts}",
            f"licence:  {self.converter.licence}",
            f"citation: {self.converter.citation}",
            f"next: {next_command}{number}",
        ]


def convert(  # noqa: PLR0913 - the command's options, each with a default
    data_set: str,
    source: str | Path,
    dataset_id: int,
    *,
    name: str | None = None,
    options: Mapping[str, Any] | None = None,
    protocol: str | None = None,
    fix_geometry: bool = False,
    skip_unreadable: bool = False,
    same_scans_are_one_patient: bool | None = None,
    dry_run: bool = False,
    num_processes: int | None = None,
) -> ConversionResult:
    """Convert a download, or a user's own scans, into `nnUNet_raw/DatasetXXX_NAME`.

    The call checks everything before it writes a file: a problem leaves the disk as it was. A repeated call does what
    is missing.

    Args:
        data_set: what `nnssl_convert` takes, `acdc` for example.
        source: the folder with the files to convert.
        dataset_id: 1 to 999.
        name: name after the id, None for the converter's own.
        options: values of the converter's options, by name.
        protocol: published protocol whose test patients go to imagesTs and whose lists go to splits_final.json.
        fix_geometry: give labels the spacing and origin of their image where size and direction agree. Labels on
            flipped or reordered axes are always brought to the image's axes.
        skip_unreadable: leave out unlabelled scans that cannot be read or used; the result lists them.
        same_scans_are_one_patient: cases with the same voxels count as one patient instead of being an error; None
            for the converter's own setting.
        dry_run: check and count, write nothing.
        num_processes: worker processes, None for nnU-Net's number (`nnUNet_def_n_proc`, else 8), at most one a CPU.

    Raises:
        UsageError: an option is wrong, or the id is taken.
        DataError: the files have problems; the message lists them all.
        EnvironmentProblem: `nnUNet_raw` is not set or cannot be written.
    """
    converter = find_converter(data_set)
    raw = environment_folder(RAW_VARIABLE)
    processes = worker_processes() if num_processes is None else num_processes
    if processes < 1:
        raise UsageError("-np must be at least 1", where=f"-np {processes}")
    source = Path(source).absolute()
    if not source.is_dir():
        raise UsageError("the folder with the files to convert does not exist", where=f"-i {source}")
    given = {option.name: option.default for option in converter.options} | dict(options or {})
    found = converter.load()(source, given)
    folder = raw / f"Dataset{dataset_id:03d}_{_checked_name(name or converter.dataset or found.name)}"
    _check_target(raw, folder, dataset_id)
    splits: list[dict[str, Any]] = []
    if protocol:
        from nnssl.dataset_conversion.engine.arrangement import apply_protocol

        found, splits = apply_protocol(found, protocol)
    values, done = found.allowed_values(), read_completed(folder)
    job = Job(source, folder, values, fix_geometry, done, skip_unreadable, found.file_ending)
    merge = converter.same_scans_are_one_patient if same_scans_are_one_patient is None else same_scans_are_one_patient
    checked = check_download(found, job, merge, processes, find_foreign_files(job))
    found, entries = checked.found, checked.entries
    to_write = [record for record in found.records if not entries[record.case].outputs]
    if not dry_run:
        write_dataset(
            converter, found, job, {record.case: entries[record.case] for record in to_write}, processes,
            protocol=protocol, splits=splits, options=given, skipped=checked.skipped,
        )  # fmt: skip
    labelled, unlabelled, test = (sum(record.part == part for record in found.records) for part in FOLDERS)
    used = (path for record in found.records for path in record.files())
    left_out = describe_left_out(checked.left_out, used, source)
    return ConversionResult(
        folder,
        converter,
        dry_run,
        labelled,
        unlabelled,
        test,
        converted=len(to_write),
        kept=len(found.records) - len(to_write),
        notes=tuple(dict.fromkeys([*found.notes, *checked.notes, *left_out])),
        warnings=(*_warnings(converter, checked), *found.warnings),
        skipped=checked.skipped,
        left_out=tuple(checked.left_out),
    )


def _warnings(converter: Converter, checked: CheckedDownload) -> list[str]:
    """Return what the user should look at before the training."""
    warnings = [f"left out by --skip_unreadable: {text}" for texts in checked.skipped.values() for text in texts]
    records = checked.found.records
    labelled = [record.case for record in records if record.part == "labelled"]
    if len(labelled) == 1:
        warnings.append(
            f"only one labelled case, {labelled[0]}: nnssl learns from this case and validates on it as well, so the "
            "validation score says nothing about other scans"
        )
    if converter.own_data and not any(record.part == "unlabelled" for record in records):
        warnings.append(
            "no unlabelled scans: semi-supervised methods need some; put them into the folder unlabelled/, or give "
            "-unlabelled GLOB"
        )
    return warnings


def _checked_name(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_\-]+", name):
        raise UsageError(f"'{name}' cannot be the name of a data set", where="-o", why="letters, digits, '-' and '_'")
    return name


def _check_target(raw: Path, folder: Path, dataset_id: int) -> None:
    """Check that the data set may be written to `folder`.

    Raises:
        UsageError: the id is out of range or taken, or the folder holds something else.
        EnvironmentProblem: the folder cannot be written.
    """
    if not 1 <= dataset_id <= 999:
        raise UsageError("the id of a data set is 1 to 999", where=f"-d {dataset_id}")
    check_writable(folder, "the raw data folder", f"export {RAW_VARIABLE}=/a/folder/that/can/be/written")
    taken = [path.name for path in raw.glob(f"Dataset{dataset_id:03d}_*") if path != folder]
    if taken:
        raise UsageError(f"the id {dataset_id} is taken", where=raw / taken[0], run="choose another -d, or the same -o")
    is_converted = (folder / MANIFEST).is_file() or (folder / WORK).is_dir()
    if folder.exists() and not is_converted and any(folder.iterdir()):
        raise UsageError(
            "the data set folder exists and was not made by nnssl_convert",
            where=folder,
            run="choose another -d, or remove the folder",
        )
