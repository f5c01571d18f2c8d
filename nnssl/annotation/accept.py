"""`nnssl.accept`: corrected masks become labels of the data set."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nnssl.annotation.folds import with_new_cases
from nnssl.annotation.history import HISTORY_JSON, read_history, with_round
from nnssl.annotation.suggest import SUGGESTION_JSON, voxel_hash
from nnssl.annotation.transfer import finish_interrupted, locked, transfer
from nnssl.data.labels import parse_labels
from nnssl.data.raw import TIFF_ENDINGS, RawCase, RawDataset, dataset_name, listed, read_raw_dataset
from nnssl.data.scans import Expected, ScanTask, examine
from nnssl.data.splits import check_splits
from nnssl.errors import DataError, UsageError
from nnssl.evaluation.mask_pairs import read_labels
from nnssl.host import companion_file, reader_of, size_file
from nnssl.names import DATASET_JSON, IMAGES_TR, LABELS_TR, PREPROCESSED_VARIABLE, RAW_VARIABLE, SPLITS_JSON
from nnssl.system.files import environment_folder, read_json, read_object

log = logging.getLogger("nnssl.plan")


@dataclass(frozen=True)
class AcceptResult:
    """What `accept` did.

    Attributes:
        dataset: folder name of the data set.
        accepted: cases that are labelled now.
        replaced: labelled cases whose label was replaced.
        already: cases whose label is this mask.
        unchanged: cases whose mask is as suggested; they were left out.
        missing: suggested cases without a mask in the folder.
        labelled: number of labelled cases now.
        unlabelled: number of unlabelled cases now.
    """

    dataset: str
    accepted: list[str]
    replaced: list[str]
    already: list[str]
    unchanged: list[str]
    missing: list[str]
    labelled: int
    unlabelled: int


@dataclass
class _Sorted:
    """The masks of a folder by what becomes of them: case -> mask."""

    new: dict[str, Path] = field(default_factory=dict)
    changed: dict[str, Path] = field(default_factory=dict)
    already: list[str] = field(default_factory=list)
    unchanged: list[str] = field(default_factory=list)


def accept(
    folder: str | Path, *, dataset: str | int | None = None, unchanged: bool = False, overwrite: bool = False
) -> AcceptResult:
    """Take corrected masks into a data set: `labelsTr` gets the masks, and `imagesTr` the scans of `imagesUn`.

    dataset.json and the folds follow; no validation case moves. All masks are checked as labels are before anything is
    changed, and all are taken, or none. Repeat the call as more masks are ready.

    Args:
        folder: of `suggest`, or any folder with masks `CASE.nii.gz` of unlabelled scans.
        dataset: id or folder name; None for the one that `suggest` noted in the folder.
        unchanged: also take masks that are as `suggest` wrote them.
        overwrite: replace labels of cases that are labelled already.

    Raises:
        UsageError: no such folder or data set, or a label would be replaced.
        DataError: a mask has no scan, or is no valid label of its scan; or the folds are wrong.
        EnvironmentProblem: a file cannot be written.
    """
    place = Path(folder)
    if not place.is_dir():
        raise UsageError("there is no such folder", where=place, run="give the folder of nnssl_suggest")
    noted = read_object(place / SUGGESTION_JSON) if (place / SUGGESTION_JSON).is_file() else {}
    name = dataset if dataset is not None else noted.get("dataset")
    if name is None:
        raise UsageError("the data set of these masks is not known", where=place, run="-d DATASET names it")
    root = environment_folder(RAW_VARIABLE, must_exist=True)
    finish_interrupted(root / dataset_name(name, root))
    with locked(root / dataset_name(name, root)):
        raw = read_raw_dataset(name)
        reader = _reader(raw)
        found = _sort(_masks(place, raw), raw, reader, {} if unchanged else noted.get("prefilled", {}))
        if found.changed and not overwrite:
            raise UsageError(
                f"{len(found.changed)} case(s) are labelled already, with another label",
                where=raw.folder / LABELS_TR,
                why=listed(sorted(found.changed)),
                run="--overwrite replaces these labels; or move the masks away",
            )
        _check(raw, {**found.new, **found.changed}, reader)
        if found.new or found.changed:
            _transfer(raw, found, str(noted.get("strategy", "")))
    named = {*found.new, *found.changed, *found.already, *found.unchanged}
    return AcceptResult(
        dataset=raw.name,
        accepted=sorted(found.new),
        replaced=sorted(found.changed),
        already=found.already,
        unchanged=found.unchanged,
        missing=sorted(set(noted.get("cases", {})) - named),
        labelled=len(raw.labelled) + len(found.new),
        unlabelled=len(raw.unlabelled) - len(found.new),
    )


def _masks(place: Path, raw: RawDataset) -> dict[str, Path]:
    """Return case -> mask for all masks in a folder.

    Raises:
        DataError: there are none, or one has no scan.
    """
    ending = raw.file_ending
    files = sorted(file for file in place.iterdir() if file.name.endswith(ending) and file.name[0] != ".")
    masks = {file.name.removesuffix(ending): file for file in files}
    strangers = [case for case in masks if case not in raw.unlabelled and case not in raw.labelled]
    if strangers or not masks:
        raise DataError(
            f"{len(strangers)} mask(s) have no scan in the data set" if strangers else "there are no masks",
            where=place,
            why=listed(strangers) or f"no file is named CASE{ending}",
            run=f"name each mask as its scan in {raw.folder / 'imagesUn'}, without the channel: CASE{ending}",
        )
    return masks


def _reader(raw: RawDataset) -> Any:  # noqa: ANN401 - one of nnU-Net's reader classes
    example = next(iter({**raw.unlabelled, **raw.labelled}.values())).images[0]
    return reader_of(raw.dataset_json, str(example), verbose=False)


def _sort(masks: Mapping[str, Path], raw: RawDataset, reader: Any, prefilled: Mapping[str, str]) -> _Sorted:  # noqa: ANN401
    found = _Sorted()
    for case, path in masks.items():
        digest = voxel_hash(read_labels(reader, path).values)
        known = raw.labelled.get(case)
        if known is not None and known.label is not None and known.label.is_file():
            same = voxel_hash(read_labels(reader, known.label).values) == digest
            if same:
                found.already.append(case)
            elif prefilled.get(path.name) != digest:
                found.changed[case] = path
        elif prefilled.get(path.name) == digest:
            found.unchanged.append(case)
        else:
            found.new[case] = path
    return found


def _check(raw: RawDataset, masks: Mapping[str, Path], reader: Any) -> None:  # noqa: ANN401
    """Check masks as planning checks labels.

    Raises:
        DataError: a mask is no valid label of its scan; the message lists the problems.
    """
    labels = parse_labels(raw.dataset_json).allowed_in_references
    expected = Expected(reader, len(raw.channel_names), labels, raw.file_ending)
    scans = {**raw.labelled, **raw.unlabelled}
    problems = []
    for case, path in masks.items():
        scan = RawCase(case, scans[case].images, path, scans[case].patient)
        outcome = examine(ScanTask(scan, "labelled", True), expected)
        problems += outcome.problems
        for warning in outcome.warnings:
            log.warning("warning: %s", warning)
    if problems:
        more = [f"… and {len(problems) - 10} more"] if len(problems) > 10 else []
        raise DataError(
            f"the masks have {len(problems)} problem(s); no mask was taken",
            where=next(iter(masks.values())).parent,
            why="\n".join([*problems[:10], *more]),
            run="repair these masks, then run the same command again",
        )


def _transfer(raw: RawDataset, found: _Sorted, strategy: str) -> None:
    """Write labels, scans, dataset.json, folds and history together."""
    copies: dict[Path, Path] = {}
    moves: list[tuple[Path, Path]] = []
    for case, mask in {**found.new, **found.changed}.items():
        known = raw.labelled.get(case)
        label = (
            known.label if known is not None and known.label else raw.folder / LABELS_TR / f"{case}{raw.file_ending}"
        )
        copies[label] = mask
        beside, theirs = companion_file(mask), companion_file(label)
        if beside is not None and theirs is not None and beside.is_file():
            copies[theirs] = beside
    for case in found.new:
        files = list(raw.unlabelled[case].images)
        files += (
            [size_file(files[0])] if raw.file_ending.lower() in TIFF_ENDINGS and size_file(files[0]).is_file() else []
        )
        moves += [(file, raw.folder / IMAGES_TR / file.name) for file in files]
    contents: dict[Path, Any] = {}
    if found.new:
        contents = {raw.folder / DATASET_JSON: _description(raw, found.new), **_splits(raw, list(found.new))}
        contents[raw.folder / HISTORY_JSON] = with_round(read_history(raw.folder), list(found.new), strategy)
    transfer(raw.folder, copies, moves, contents)


def _description(raw: RawDataset, new: Mapping[str, Path]) -> dict[str, Any]:
    """Return dataset.json with the new labelled cases."""
    content = {**raw.dataset_json, "numTraining": len(raw.labelled) + len(new)}
    if "dataset" in content:  # nnU-Net's explicit list
        entries = {
            case: {
                "images": [f"{IMAGES_TR}/{image.name}" for image in raw.unlabelled[case].images],
                "label": f"{LABELS_TR}/{case}{raw.file_ending}",
            }
            for case in new
        }
        content["dataset"] = {**content["dataset"], **entries}
    return content


def _splits(raw: RawDataset, new: Sequence[str]) -> dict[Path, Any]:
    """Return the files with folds, of the raw and of the preprocessed data set, and their new content.

    Raises:
        DataError: a file holds no folds of the data set.
    """
    places = [raw.folder / SPLITS_JSON]
    places += [environment_folder(PREPROCESSED_VARIABLE) / raw.name / SPLITS_JSON]
    changed = {}
    for path in (path for path in places if path.is_file()):
        splits = read_json(path)
        check_splits(splits, raw.labelled, raw.unlabelled, path, raw.patients())
        changed[path] = with_new_cases(splits, new, raw.patients())
    return changed
