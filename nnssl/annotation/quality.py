"""`nnssl.pseudo_quality`: how far to trust the masks of scans without a reference."""

from __future__ import annotations

import csv
import io
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from nnssl.annotation.agreement import mean_entropy, mean_of
from nnssl.annotation.known_cases import KnownCases, find_known_cases, labelled_sizes, size_of
from nnssl.annotation.members import Members, Opinion, files_of, find_member_folds
from nnssl.annotation.verdicts import DECISIONS, Calibration, Judged, Quality, calibrate, judge
from nnssl.data.geometry import Geometry, geometry_of_array
from nnssl.data.raw import listed
from nnssl.errors import UsageError
from nnssl.evaluation.mask_pairs import LabelImage, read_labels
from nnssl.inference.inputs import ScanToPredict, cases_in_folder
from nnssl.labelling.scores import agreement
from nnssl.system.files import check_writable, write_json, write_text

if TYPE_CHECKING:
    import torch

SCORES_CSV, CALIBRATION_JSON, THUMBNAILS = "scores.csv", "calibration.json", "thumbnails"
log = logging.getLogger("nnssl.predict")


@dataclass(frozen=True)
class QualityResult:
    """What `pseudo_quality` did.

    Attributes:
        folder: of the results.
        scores: `scores.csv`, the worst scan first.
        decisions: case -> `accept`, `look` or `drop`, in the order of the file.
        members: what predicted: `runs`, `checkpoints` or `mirrored copies`.
        names: of the members.
        calibration: in words.
        correlation: rank correlation of score and Dice on held-out cases, None where it is not known.
        notes: what a user should know.
    """

    folder: Path
    scores: Path
    decisions: dict[str, str]
    members: str
    names: list[str]
    calibration: str
    correlation: float | None
    notes: list[str]


def pseudo_quality(  # noqa: PLR0913 - the public API names every option
    models: Sequence[str | Path],
    images: str | Path,
    output: str | Path,
    *,
    accept: float = 0.85,
    drop: float = 0.6,
    mirroring: bool = True,
    device: str | torch.device | None = None,
    calibration: bool = True,
    overwrite: bool = False,
) -> QualityResult:
    """Score the masks that models give to scans without a reference, and say which to accept, look at, or drop.

    The score is the mean pairwise Dice of several predictions: of all given runs and folds; for a single fold, of its
    checkpoints if there are several; else of mirrored copies. Volumes and components are compared with the labelled
    cases of the runs. Where there are at least eight held-out validation cases, the score is calibrated with them.

    `output` receives `scores.csv` (case, score, decision, …; the worst first), `calibration.json`, and a picture of
    each scan in `thumbnails`.

    Args:
        models: model or fold folders, as paths or as names below `nnUNet_results`.
        images: folder of scans, `CASE_0000.nii.gz`.
        output: folder of the results.
        accept: Dice from which on a mask is accepted.
        drop: Dice below which a mask is dropped.
        mirroring: average each prediction over mirrored copies.
        device: `cuda`, `cpu` or `mps`; None takes the best one.
        calibration: predict held-out cases to calibrate the score.
        overwrite: replace results in `output`.

    Raises:
        UsageError: no such model, limits that make no sense, or results in `output`.
        DataError: a scan cannot be read or is not what the models need.
        EnvironmentProblem: a checkpoint is damaged, no such device, or `output` cannot be written.
        OutOfMemory: the device has too little memory for a scan.
    """
    if not 0 <= drop <= accept <= 1:
        raise UsageError(f"-drop {drop:g} and -accept {accept:g} are not in order: 0 <= drop <= accept <= 1")
    folder = Path(output)
    folds = find_member_folds(models)
    scans = cases_in_folder(Path(images), folder, *files_of(folds[0].model))
    _check_output(folder, Path(images), overwrite)
    members = Members(folds, mirroring=mirroring, device=device)
    members.first.check_cases(scans)
    known = find_known_cases(folds)
    names = list(members.structures.values())
    worth = _calibrated(members, known) if calibration else calibrate({}, "switched off")
    qualities = {}
    for number, scan in enumerate(scans, start=1):
        opinion = members.opinion(scan)
        qualities[scan.name] = quality_of(opinion, members)
        _write_picture(folder / THUMBNAILS / f"{scan.name}.png", scan, opinion, members)
        log.info("%d of %d: %s", number, len(scans), scan.name)
    sizes = labelled_sizes(known, list(members.structures), members.reader)
    judged = judge(qualities, sizes, names, worth, (accept, drop))
    order = _worst_first(qualities, judged)
    write_json(folder / CALIBRATION_JSON, {"members": members.kind, "names": members.names, **worth.to_dict()})
    write_text(folder / SCORES_CSV, _table(order, qualities, judged, names))
    return QualityResult(
        folder=folder,
        scores=folder / SCORES_CSV,
        decisions={case: judged[case].decision for case in order},
        members=members.kind,
        names=members.names,
        calibration=worth.note,
        correlation=worth.correlation,
        notes=[] if sizes else ["no labelled cases to compare volumes and components with"],
    )


def quality_of(opinion: Opinion, members: Members) -> Quality:
    """Return the quality of the consensus about one scan."""
    structures = list(members.structures)
    image = LabelImage(opinion.consensus, _geometry(opinion))
    union = np.any([mask > 0 for mask in opinion.masks], axis=0)
    dice = agreement(opinion.masks, structures)
    return Quality(dice, mean_entropy(opinion.uncertainty, union), size_of(image, structures))


def _geometry(opinion: Opinion) -> Geometry:
    return geometry_of_array(opinion.consensus.shape, opinion.properties)


def _check_output(folder: Path, images: Path, overwrite: bool) -> None:
    if folder.resolve() == images.resolve():
        raise UsageError("the output is the folder of the scans", where=folder, run="choose another -o")
    there = sorted(file.name for file in folder.iterdir() if file.name[0] != ".") if folder.is_dir() else []
    if there and not overwrite:
        raise UsageError(
            "the output folder holds files already",
            where=folder,
            why=listed(there),
            run="--overwrite replaces results; another -o keeps both",
        )
    check_writable(folder, "the output folder", "choose another folder with -o")


def _calibrated(members: Members, known: KnownCases) -> Calibration:
    """Return what the score is worth on the held-out cases of the runs."""
    structures, cases = list(members.structures), {}
    for name, case in known.held_out.items():
        assert case.label is not None
        opinion = members.opinion(ScanToPredict(name, case.images, case.label))
        score = quality_of(opinion, members).score
        reference = read_labels(members.reader, case.label).values
        dice = mean_of(agreement([reference, opinion.consensus], structures))
        if score is not None and dice is not None:
            cases[name] = (score, dice)
        log.info("held-out case %s", name)
    return calibrate(cases, known.note)


def _write_picture(path: Path, scan: ScanToPredict, opinion: Opinion, members: Members) -> None:
    from nnssl.annotation.thumbnails import write_thumbnail

    image = members.reader().read_images([str(file) for file in scan.images])[0][0]
    spacing = tuple(float(mm) for mm in opinion.properties["spacing"])
    write_thumbnail(path, image, opinion.consensus, opinion.uncertainty, spacing)


def _worst_first(qualities: dict[str, Quality], judged: dict[str, Judged]) -> list[str]:
    def place(case: str) -> tuple[int, float, str]:
        score = qualities[case].score
        return DECISIONS.index(judged[case].decision), -1.0 if score is None else score, case

    return sorted(qualities, key=place)


def _table(order: Sequence[str], qualities: dict[str, Quality], judged: dict[str, Judged], names: Sequence[str]) -> str:
    """Return the content of `scores.csv`."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    columns = [f"{what} {name}" for what in ("agreement", "volume_ml", "components") for name in names]
    writer.writerow(["case", "score", "decision", "expected_dice", "entropy", "why", *columns])
    for case in order:
        quality, verdict = qualities[case], judged[case]
        numbers = [*quality.dice, *quality.size.volumes_ml, *quality.size.components]
        start = [case, _cell(quality.score), verdict.decision, _cell(verdict.expected_dice), _cell(quality.entropy)]
        writer.writerow([*start, verdict.why, *map(_cell, numbers)])
    return text.getvalue()


def _cell(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}" if isinstance(value, float) else str(value)
