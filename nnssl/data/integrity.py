"""The check of a raw data set: every scan of every kind once, all problems of all cases in one error."""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from nnssl.data.raw import RawCase, RawDataset
from nnssl.data.scans import ChannelIntensity, Expected, ScanFacts, ScanTask, examine
from nnssl.data.shift import shift_warnings
from nnssl.errors import DataError
from nnssl.system.workers import run_parallel

__all__ = ["ChannelIntensity", "ScanFacts", "check_dataset", "shift_warnings"]

SHOWN_PROBLEMS = 10
READER_EXAMPLES = 5
log = logging.getLogger(__name__)


def check_dataset(
    raw: RawDataset, num_processes: int, label_cases: Collection[str] | None = None
) -> dict[str, ScanFacts]:
    """Read every labelled, unlabelled and test scan once, check it, and return what was learned.

    Scans are read with the reader that nnU-Net's preprocessing will use. Labels are opened for `label_cases` only: no
    other label file is read, nor need it exist. Labels of test cases are never opened.

    Checked are: dataset.json (labels, `numTraining`), an `imagesUn` that exists but is empty; for each case files that
    cannot be read, channel numbers and count, agreement of the channels and of the label in shape and spacing, NaN and
    infinite voxels, missing labels, label values; across cases the same voxels twice, one name in two folders, and a
    patient in the test set and elsewhere. Differing origins and directions, constant images, empty labels and repeated
    scans of one patient are logged as warnings.

    Args:
        raw: the data set.
        num_processes: worker processes; 1 works in this process.
        label_cases: labelled cases whose labels may be read; None for all.

    Returns:
        Case name -> facts: labelled, then unlabelled, then test cases, each sorted by name.

    Raises:
        DataError: at least one problem was found; the message lists up to ten of them with values and repair.
    """
    chosen = set(raw.labelled if label_cases is None else label_cases)
    unknown = sorted(chosen - set(raw.labelled))
    if unknown:
        raise DataError(
            f"{len(unknown)} case(s) whose labels are asked for are not labelled cases of the data set",
            where=raw.folder,
            why=", ".join(unknown[:SHOWN_PROBLEMS]),
        )
    labels, problems = label_values(raw.dataset_json)
    problems += _description_problems(raw) + _folder_problems(raw)
    tasks = {
        f"{kind} {name}": ScanTask(case, kind, kind == "labelled" and name in chosen)
        for kind, cases in _kinds(raw).items()
        for name, case in cases.items()
    }
    expected = Expected(_reader(raw), len(raw.channel_names), labels, raw.file_ending)
    results = run_parallel(partial(examine, expected=expected), tasks, num_processes, "checking the scans")
    facts = [outcome.facts for outcome in results.values() if outcome.facts]
    repeated, warnings = _duplicates(raw, facts)
    problems += repeated + [text for outcome in results.values() for text in outcome.problems]
    _log_warnings(raw, warnings + [text for outcome in results.values() for text in outcome.warnings])
    if problems:
        raise DataError(
            f"the raw data set has {len(problems)} problem(s)",
            where=raw.folder,
            why=_shortened(problems),
            run="repair them, then run the same command again",
        )
    return {scan.case: scan for scan in facts}


def label_values(dataset_json: Mapping[str, Any]) -> tuple[tuple[int, ...], list[str]]:
    """Return the label values that may occur (the ignore label too), and what is wrong with dataset.json's `labels`.

    Regions (lists of values) contribute all their values. With a problem the values are empty.
    """
    labels = dataset_json.get("labels")
    if not isinstance(labels, dict):
        return (), [f"dataset.json: labels is {labels!r}, it must map names to values, background to 0"]
    background = labels.get("background")
    if background != 0 or isinstance(background, bool):
        hint = " (it maps values to names: turn it round)" if "0" in labels else ""
        found = f"background is {background!r}" if "background" in labels else "background is missing"
        return (), [f"dataset.json: labels: {found}, it must be 0{hint}"]
    parts = {name: value if isinstance(value, list) else [value] for name, value in labels.items()}
    strange = [name for name, part in parts.items() if not part or not all(type(value) is int for value in part)]
    if strange:
        return (), [f"dataset.json: labels: {name} is {labels[name]!r}, it must be an integer" for name in strange]
    values = sorted({value for name, part in parts.items() if name != "ignore" for value in part})
    problems = []
    if values != list(range(len(values))):
        problems.append(
            f"dataset.json: labels has the values {values}, they must be consecutive: {list(range(len(values)))}"
        )
    if "ignore" in labels and labels["ignore"] != values[-1] + 1:
        problems.append(
            f"dataset.json: labels: ignore is {labels['ignore']!r}, it must be the highest value: {values[-1] + 1}"
        )
    problems += _region_problems(labels, dataset_json.get("regions_class_order"))
    return (() if problems else tuple(values + ([labels["ignore"]] if "ignore" in labels else []))), problems


def _region_problems(labels: Mapping[str, Any], order: Any) -> list[str]:  # noqa: ANN401 - whatever stands in JSON
    if not any(isinstance(value, list) and len(value) > 1 for value in labels.values()):
        return []
    regions = [name for name, value in labels.items() if name != "ignore" and value not in (0, [0])]
    if isinstance(order, list) and len(order) == len(regions):
        return []
    return [f"dataset.json: regions_class_order is {order!r}, it must hold one value for each of {', '.join(regions)}"]


def _kinds(raw: RawDataset) -> dict[str, dict[str, RawCase]]:
    return {"labelled": raw.labelled, "unlabelled": raw.unlabelled, "test": raw.test}


def _description_problems(raw: RawDataset) -> list[str]:
    problems = []
    stated = raw.dataset_json.get("numTraining")
    if stated != len(raw.labelled):
        problems.append(
            f"dataset.json: numTraining is {stated!r}, {len(raw.labelled)} labelled cases were found: "
            f"correct the number, or add the missing scans to imagesTr"
        )
    folder = raw.folder / "imagesUn"
    if folder.is_dir() and not raw.unlabelled:
        problems.append(
            f"{folder} holds no scans (CASE_0000{raw.file_ending}): put unlabelled scans there, or remove the folder"
        )
    return problems


def _folder_problems(raw: RawDataset) -> list[str]:
    """Return the cases that stand in two folders, and the patients that are tested and learned from."""
    kinds = _kinds(raw)
    problems = []
    for first, second in (("labelled", "unlabelled"), ("labelled", "test"), ("unlabelled", "test")):
        for name in sorted(set(kinds[first]) & set(kinds[second])):
            places = " and in ".join(str(kinds[kind][name].images[0].parent) for kind in (first, second))
            problems.append(f"{name} stands in {places}: keep it in one folder, or rename one if they differ")
    learned = {case.patient: case.name for kind in ("unlabelled", "labelled") for case in kinds[kind].values()}
    for case in raw.test.values():
        other = learned.get(case.patient, case.name)
        if other != case.name:
            problems.append(
                f"patient {case.patient} is tested with {case.name} and learned from with {other}: the test would "
                f"not be fair; move all scans of a patient to one side, or correct 'cases' in dataset.json"
            )
    return problems


def _duplicates(raw: RawDataset, facts: Iterable[ScanFacts]) -> tuple[list[str], list[str]]:
    """Return problems and warnings for groups of cases with the same voxels.

    Within one folder and one patient it is a warning: the splits keep such scans on one side. One name in two folders
    is reported elsewhere.
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


def _reader(raw: RawDataset) -> Any:  # noqa: ANN401 - one of nnU-Net's reader classes
    """Return the reader that nnU-Net takes: the first whose ending fits and that can read an example."""
    from nnunetv2.imageio.reader_writer_registry import determine_reader_writer_from_dataset_json

    examples = [str(case.images[0]) for cases in _kinds(raw).values() for case in cases.values() if case.images]
    for example in [*examples[:READER_EXAMPLES], None]:
        with contextlib.redirect_stderr(io.StringIO()), contextlib.suppress(RuntimeError):
            return determine_reader_writer_from_dataset_json(raw.dataset_json, example, verbose=False)
    raise DataError(
        f"nnU-Net has no reader for files that end with {raw.file_ending}",
        where=raw.folder / "dataset.json",
        why="file_ending decides the reader",
        run="correct file_ending (.nii.gz, .nrrd, .mha, .png, .tif …), or convert the scans",
    )


def _log_warnings(raw: RawDataset, warnings: list[str]) -> None:
    known = {name for cases in _kinds(raw).values() for name in cases}
    strangers = sorted(set(raw.dataset_json.get("cases", {})) - known)
    if strangers:
        warnings.append(f"dataset.json: 'cases' names {len(strangers)} unknown case(s): {', '.join(strangers[:5])}")
    if warnings:
        log.warning("%d warning(s) about the raw data set:\n%s", len(warnings), _shortened(warnings))


def _shortened(lines: Sequence[str]) -> str:
    more = len(lines) - SHOWN_PROBLEMS
    return "\n".join([*lines[:SHOWN_PROBLEMS], *([f"… and {more} more"] if more > 0 else [])])
