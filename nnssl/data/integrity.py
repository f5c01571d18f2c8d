"""The check of a raw data set: every scan is read once, and one error lists the problems of all cases."""

from __future__ import annotations

import contextlib
import io
import logging
import shlex
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from nnssl.data.known_scans import examine_scans, known_reader
from nnssl.data.labels import find_label_problems, parse_labels
from nnssl.data.raw import RawCase, RawDataset, clashing_names, overlooked_folders, reserved_names
from nnssl.data.scans import ChannelIntensity, Examined, Expected, ScanFacts, ScanTask
from nnssl.data.shift import shift_warnings
from nnssl.errors import DataError
from nnssl.host import READER_OF_3D_TIFF, reader_named, reader_of, size_file
from nnssl.names import CASES_KEY, DATASET_JSON, IMAGES_TR, IMAGES_TS, IMAGES_UN, LABELS_TR, LABELS_TS
from nnssl.system.fact_store import FactStore

__all__ = ["ChannelIntensity", "CheckedDataset", "ScanFacts", "check_dataset", "shift_warnings"]

SHOWN_PROBLEMS = 10
READER_EXAMPLES = 5
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CheckedDataset:
    """The outcome of the check.

    Attributes:
        facts: case name -> facts: labelled, then unlabelled, then test cases, each sorted by name.
        skipped: unlabelled case that is left out -> its problems.
    """

    facts: dict[str, ScanFacts]
    skipped: dict[str, list[str]]


def check_dataset(
    raw: RawDataset,
    num_processes: int,
    label_cases: Collection[str] | None = None,
    *,
    skip_unreadable: bool = False,
    store: FactStore | None = None,
) -> CheckedDataset:
    """Read every labelled, unlabelled and test scan once, check the scan, and return its facts.

    With a store, files that are unchanged since they were read are not opened; the result is the same.

    The check uses the reader that nnU-Net's preprocessing will use. It opens the label files of `label_cases` only;
    other label files need not exist. It never opens labels of test cases.

    These are problems:
        - in dataset.json: wrong labels or a wrong `numTraining`; an `imagesUn` folder without scans;
        - in one case: a file that cannot be read, wrong numbers or a wrong count of channels, channels or a label of
          another shape or spacing or on flipped or reordered axes, NaN, infinite and huge voxels, a missing label, a
          label value that is not declared, a TIFF scan without the voxel size that others have;
        - across cases: the same voxels twice, one name in two folders, names that clash (`X` and `X_seg`), a patient in
          the test set and elsewhere.

    Warnings in the log name other origins or directions, axes that are not at right angles, constant images, empty
    labels and repeated scans of a patient.

    Args:
        raw: the data set.
        num_processes: worker processes; 1 works in this process.
        label_cases: labelled cases whose labels may be read; None allows all.
        skip_unreadable: leave out unlabelled scans that cannot be read or used, instead of raising an error.
        store: what earlier calls learned; None reads every file.

    Raises:
        DataError: the data set has problems; the message lists up to ten of them with values and repair.
    """
    chosen = set(raw.labelled if label_cases is None else label_cases)
    unknown = sorted(chosen - set(raw.labelled))
    if unknown:
        raise DataError(
            f"{len(unknown)} case(s) whose labels the caller asks for are not labelled cases of the data set",
            where=raw.folder,
            why=", ".join(unknown[:SHOWN_PROBLEMS]),
        )
    problems = find_label_problems(raw.dataset_json)
    labels = () if problems else parse_labels(raw.dataset_json).allowed_in_references
    problems += _description_problems(raw) + _folder_problems(raw)
    tasks = {
        f"{kind} {name}": ScanTask(case, kind, kind == "labelled" and name in chosen)
        for kind, cases in _kinds(raw).items()
        for name, case in cases.items()
    }
    expected = Expected(_reader(raw, store), len(raw.channel_names), labels, raw.file_ending)
    results = examine_scans(tasks, expected, num_processes, store)
    missing_sizes, no_sizes = _missing_sizes(tasks, expected.reader)
    for name, problem in missing_sizes.items():
        results[name].problems.append(f"{tasks[name].case.name} ({tasks[name].kind}): {problem}")
    broken = {name: results[f"unlabelled {name}"].problems for name in raw.unlabelled}
    broken = {name: texts for name, texts in broken.items() if texts}
    skipped = broken if skip_unreadable else {}
    for name in skipped:
        del results[f"unlabelled {name}"]
    facts = [outcome.facts for outcome in results.values() if outcome.facts]
    repeated, warnings = _duplicates(raw, facts)
    problems += repeated + [text for outcome in results.values() for text in outcome.problems]
    _log_warnings(raw, no_sizes + warnings + [text for outcome in results.values() for text in outcome.warnings])
    if problems:
        raise DataError(
            f"the raw data set has {len(problems)} problem(s)",
            where=raw.folder,
            why=_shortened(problems),
            run=_repair(raw, results.values(), broken, len(problems)),
        )
    return CheckedDataset({scan.case: scan for scan in facts}, skipped)


def _missing_sizes(tasks: Mapping[str, ScanTask], reader: Any) -> tuple[dict[str, str], list[str]]:  # noqa: ANN401
    """Return the problems of TIFF scans without their voxel size, by task, and the warning where no scan has one."""
    if reader.__name__ != READER_OF_3D_TIFF:
        return {}, []
    files = {name: size_file(task.case.images[0]) for name, task in tasks.items() if task.case.images}
    missing = {name: file for name, file in files.items() if not file.is_file()}
    if missing and len(missing) == len(files):
        return {}, ["no TIFF scan has its voxel size beside it (CASE.json): nnU-Net takes 1 mm along each axis"]
    hint = 'without it nnU-Net takes 1 mm; write {"spacing": [z, y, x]} in mm into it'
    return {name: f"{file} is missing, which holds the voxel size: {hint}" for name, file in missing.items()}, []


def _repair(
    raw: RawDataset, outcomes: Iterable[Examined], broken: Mapping[str, Sequence[str]], num_problems: int
) -> str:
    """Return what to run: with files on other axes the conversion that brings all files of a case to one order.

    Args:
        raw: the data set.
        outcomes: of all scans.
        broken: unlabelled case -> its problems, of the cases that have some.
        num_problems: number of all problems.
    """
    if not any(outcome.on_other_axes for outcome in outcomes):
        again = "repair these problems, then run the same command again"
        if broken and num_problems == sum(map(len, broken.values())):
            return f"{again}; or add --skip_unreadable, which leaves these {len(broken)} unlabelled scan(s) out"
        return again
    numbers = [f"_{number:04d}" for number in range(len(raw.channel_names))]
    options = {
        "-i": [str(raw.folder)],
        "-o": [raw.folder.name.partition("_")[2]],
        "-images": [f"{IMAGES_TR}/*{number}{raw.file_ending}" for number in numbers],
        "-labels": [f"{LABELS_TR}/*{raw.file_ending}"],
        "-unlabelled": [f"{IMAGES_UN}/*{number}{raw.file_ending}" for number in numbers if raw.unlabelled],
        "-test": [f"{IMAGES_TS}/*{number}{raw.file_ending}" for number in numbers if raw.test],
        "-test_labels": [f"{LABELS_TS}/*{raw.file_ending}"] if raw.test and (raw.folder / LABELS_TS).is_dir() else [],
        "-channel": raw.channel_names,
        "-label_names": _plain_label_names(raw),
    }
    words = [text for option, values in options.items() if values for text in (option, *map(shlex.quote, values))]
    return (
        f"nnssl_convert folder {' '.join(words)} -d NEW_ID\n"
        "writes the data set again with all files of a case on the axes of its first channel"
    )


def _plain_label_names(raw: RawDataset) -> list[str]:
    """Return the names of the label values from 1 on, in the order of the values.

    The list is empty where the labels are wrong, and where regions or an ignore label are among them.
    """
    if find_label_problems(raw.dataset_json):
        return []
    labels = parse_labels(raw.dataset_json)
    if labels.has_regions or labels.ignore is not None:
        return []
    return [name for _, name in sorted((values[0], name) for name, values in labels.values.items() if values[0])]


def _kinds(raw: RawDataset) -> dict[str, dict[str, RawCase]]:
    return {"labelled": raw.labelled, "unlabelled": raw.unlabelled, "test": raw.test}


def _description_problems(raw: RawDataset) -> list[str]:
    if not raw.whole:
        return []
    problems = []
    stated = raw.dataset_json.get("numTraining")
    if stated != len(raw.labelled):
        problems.append(
            f"dataset.json: numTraining is {stated!r}, {len(raw.labelled)} labelled cases were found: "
            f"correct the number, or add the missing scans to imagesTr"
        )
    folder = raw.folder / IMAGES_UN
    if folder.is_dir() and not raw.unlabelled:
        problems.append(
            f"{folder} holds no scans (CASE_0000{raw.file_ending}): put unlabelled scans there, or remove the folder"
        )
    return problems


def _folder_problems(raw: RawDataset) -> list[str]:
    """Return problems: cases that stand in two folders, and patients that are both tested and learned from."""
    kinds = _kinds(raw)
    problems = []
    for first, second in (("labelled", "unlabelled"), ("labelled", "test"), ("unlabelled", "test")):
        for name in sorted(set(kinds[first]) & set(kinds[second])):
            places = " and in ".join(str(kinds[kind][name].images[0].parent) for kind in (first, second))
            problems.append(f"{name} stands in {places}: keep the scan in one folder, or rename one of two scans")
    problems += clashing_names([*raw.labelled, *raw.unlabelled])
    problems += reserved_names([*raw.labelled, *raw.unlabelled, *raw.test], raw.file_ending)
    learned = {case.patient: case.name for kind in ("unlabelled", "labelled") for case in kinds[kind].values()}
    for case in raw.test.values():
        other = learned.get(case.patient, case.name)
        if other != case.name:
            problems.append(
                f"patient {case.patient} is tested with {case.name} and learned from with {other}: such a test is "
                f"not fair; move all scans of a patient to one side, or correct 'cases' in dataset.json"
            )
    return problems


def _duplicates(raw: RawDataset, facts: Iterable[ScanFacts]) -> tuple[list[str], list[str]]:
    """Return problems and warnings about groups of cases with the same voxels.

    Repeated scans of one patient in one folder are a warning only, because the splits keep such scans on one side.
    `_folder_problems` reports one name in two folders.
    """
    groups: dict[str, list[ScanFacts]] = {}
    for scan in facts:
        groups.setdefault(scan.content_hash, []).append(scan)
    problems, warnings = [], []
    for digest, scans in groups.items():
        if len({scan.case for scan in scans}) == 1:
            continue
        listed = ", ".join(f"{scan.case} ({scan.kind})" for scan in scans[:4]) + (", …" if len(scans) > 4 else "")
        text = f"the same voxels (SHA-256 {digest[:12]}) stand in {len(scans)} cases: {listed}"
        one_folder = len({scan.kind for scan in scans}) == 1
        if one_folder and len({_kinds(raw)[scan.kind][scan.case].patient for scan in scans}) == 1:
            warnings.append(text)
        else:
            other = "; or give them one patient in 'cases' of dataset.json" if one_folder else ""
            problems.append(f"{text}: remove all but one{other}")
    return problems, warnings


def _reader(raw: RawDataset, store: FactStore | None) -> Any:  # noqa: ANN401 - one of nnU-Net's reader classes
    """Return the reader that nnU-Net takes: the first one for this file ending that can read an example."""
    examples = [str(case.images[0]) for cases in _kinds(raw).values() for case in cases.values() if case.images]
    for example in [*examples[:READER_EXAMPLES], None]:
        with contextlib.redirect_stderr(io.StringIO()), contextlib.suppress(RuntimeError):
            find = partial(reader_of, raw.dataset_json, example, verbose=False)
            return reader_named(known_reader(find, store, raw.dataset_json, example)) if example else find()
    raise DataError(
        f"nnU-Net has no reader for files that end with {raw.file_ending}",
        where=raw.folder / DATASET_JSON,
        why="file_ending decides the reader",
        run="correct file_ending (.nii.gz, .nrrd, .mha, .png, .tif …), or convert the scans",
    )


def _log_warnings(raw: RawDataset, warnings: list[str]) -> None:
    known = {name for cases in _kinds(raw).values() for name in cases}
    strangers = sorted(set(raw.dataset_json.get(CASES_KEY, {})) - known)
    if strangers and raw.whole:
        warnings.append(f"dataset.json: 'cases' names {len(strangers)} unknown case(s): {', '.join(strangers[:5])}")
    warnings += [
        f"the folder {name} is not read: unlabelled scans stand in {IMAGES_UN}/, as CASE_0000{raw.file_ending}"
        for name in overlooked_folders(raw.folder)
    ]
    if warnings:
        log.warning("%d warning(s) about the raw data set:\n%s", len(warnings), _shortened(warnings))


def _shortened(lines: Sequence[str]) -> str:
    more = len(lines) - SHOWN_PROBLEMS
    return "\n".join([*lines[:SHOWN_PROBLEMS], *([f"… and {more} more"] if more > 0 else [])])
