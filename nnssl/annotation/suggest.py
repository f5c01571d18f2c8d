"""`nnssl.suggest`: which unlabelled scans to label next, with masks to correct."""

from __future__ import annotations

import contextlib
import csv
import hashlib
import io
import logging
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from nnssl.annotation.agreement import mean_entropy
from nnssl.annotation.history import read_history
from nnssl.annotation.members import MemberFold, Members, Opinion, find_member_folds
from nnssl.annotation.strategies import STRATEGIES, Candidate, Pick, Strategy, choose, random_order
from nnssl.annotation.transfer import finish_interrupted
from nnssl.annotation.viewers import ITK_SNAP, SLICER, itk_snap_table, names_of_values, slicer_table
from nnssl.data.labels import parse_labels
from nnssl.data.raw import RawDataset, channels_of, dataset_name, listed, read_raw_dataset
from nnssl.errors import DataError, UsageError, unknown_name
from nnssl.evaluation.mask_pairs import read_labels
from nnssl.inference.export import write_mask
from nnssl.inference.inputs import ScanToPredict
from nnssl.inference.models import ModelQuery, find_folds, find_model, list_models
from nnssl.names import DATASET_JSON, FILE_ENDING_KEY, LABELS_KEY, RAW_VARIABLE
from nnssl.system.files import (
    DATASET_KEYS,
    check_writable,
    environment_folder,
    read_object,
    write_json,
    write_text,
)
from nnssl.training.runs import fits_dataset

if TYPE_CHECKING:
    import torch

SUGGESTION_JSON, SUGGESTION_CSV = "suggestion.json", "suggestion.csv"
WORK = ".unfinished"
log = logging.getLogger("nnssl.predict")


@dataclass(frozen=True)
class SuggestResult:
    """What `suggest` did.

    Attributes:
        folder: with masks, label colours, `suggestion.csv` and `suggestion.json`.
        dataset: folder name of the data set.
        cases: suggested scans, the first one first.
        images: their image files, of all channels.
        masks: pre-filled masks, empty without a model.
        strategy: that chose.
        examined: number of scans that the model looked at.
        notes: what a user should know.
    """

    folder: Path
    dataset: str
    cases: list[str]
    images: list[Path]
    masks: list[Path]
    strategy: str
    examined: int
    notes: list[str]


def suggest(  # noqa: PLR0913 - the public API names every option
    dataset: str | int,
    output: str | Path,
    *,
    count: int = 5,
    models: Sequence[str | Path] = (),
    strategy: Strategy = "random",
    seed: int = 0,
    mirroring: bool = True,
    device: str | torch.device | None = None,
) -> SuggestResult:
    """Choose scans of `imagesUn` to label next, and write masks to correct in 3D Slicer or ITK-SNAP.

    `random`, the default, takes scans at random in which the model sees a structure. `entropy` takes those that the
    model is least certain of. `class_entropy` goes through the structures in turn, and adds noise that halves with
    every round. A patient is taken twice only where no other is left. Without a trained model the choice is random.

    Args:
        dataset: id or folder name.
        output: new or empty folder, outside the raw data set.
        count: number of scans.
        models: model or fold folders whose mean probabilities count; without any, the only trained model of the data
            set, if there is one.
        strategy: see above.
        seed: of the random choice.
        mirroring: average over mirrored copies.
        device: `cuda`, `cpu` or `mps`; None takes the best one.

    Raises:
        UsageError: no such data set, model or strategy, several models fit, or `output` holds files.
        DataError: no scan is unlabelled, or a scan cannot be read.
        EnvironmentProblem: a checkpoint is damaged, no such device, or a file cannot be written.
        OutOfMemory: the device has too little memory for a scan.
    """
    if strategy not in STRATEGIES:
        raise unknown_name("strategy", strategy, STRATEGIES, option="-strategy")
    if count < 1 or seed < 0:
        raise UsageError(f"-n {count} and -seed {seed}: at least one scan, and a seed of 0 or more")
    root = environment_folder(RAW_VARIABLE, must_exist=True)
    finish_interrupted(root / dataset_name(dataset, root))
    raw, folder = read_raw_dataset(dataset), Path(output)
    if not raw.unlabelled:
        raise DataError("no scan is unlabelled", where=raw.folder, run="put scans into imagesUn, as CASE_0000.nii.gz")
    _check_output(folder, raw)
    folds = _folds(models, raw.name)
    if not folds and strategy != "random":
        raise UsageError(f"-strategy {strategy} needs a trained model", run="nnssl_train trains one")
    _check_same_labels(folds, raw)
    number = len(read_history(raw.folder))
    scouted = _Scouted(raw, folds, mirroring, device) if folds else None
    candidates = _candidates(raw, scouted, count, strategy, seed)
    picks = choose(candidates, count, strategy, seed, number)
    head = {
        "dataset": raw.name, "strategy": strategy, "seed": seed, "round": number,
        "models": [f"{each.model.path.name}/fold_{each.fold}" for each in folds],
    }  # fmt: skip
    with _complete(folder) as work:
        masks = _write(work, raw, scouted, picks, head)
    return SuggestResult(
        folder=folder,
        dataset=raw.name,
        cases=[pick.case for pick in picks],
        images=[image for pick in picks for image in raw.unlabelled[pick.case].images],
        masks=[folder / mask.name for mask in masks],
        strategy=strategy,
        examined=len(scouted.opinions) if scouted else 0,
        notes=_notes(folds, picks, count),
    )


@contextlib.contextmanager
def _complete(folder: Path) -> Iterator[Path]:
    """Yield a hidden folder whose files enter `folder` at the end of the block, or go where the block fails.

    The description comes first: a mask in the folder is then known to be one that nobody has corrected yet.
    """
    made, work = not folder.exists(), folder / WORK
    shutil.rmtree(work, ignore_errors=True)  # of a killed command
    work.mkdir(parents=True)
    try:
        yield work
        for file in sorted(work.iterdir(), key=lambda each: (each.name != SUGGESTION_JSON, each.name)):
            file.replace(folder / file.name)
    finally:
        shutil.rmtree(work, ignore_errors=True)
        if made:
            with contextlib.suppress(OSError):  # it holds files
                folder.rmdir()


def _write(
    work: Path, raw: RawDataset, scouted: _Scouted | None, picks: Sequence[Pick], head: dict[str, Any]
) -> list[Path]:
    """Write everything into a folder, and return the paths of the masks."""
    masks = scouted.write_masks(picks, work) if scouted else []
    hashes = {}
    if scouted:
        hashes = {path.name: voxel_hash(read_labels(scouted.members.reader, path).values) for path in masks}
    names = names_of_values(parse_labels(raw.dataset_json))
    write_text(work / SLICER, slicer_table(names))
    write_text(work / ITK_SNAP, itk_snap_table(names))
    write_text(work / SUGGESTION_CSV, _table(picks, raw, masks))
    cases = {pick.case: {"score": pick.score, "why": pick.why} for pick in picks}
    write_json(work / SUGGESTION_JSON, {**head, "cases": cases, "prefilled": hashes})
    return masks


def voxel_hash(values: NDArray[Any]) -> str:
    """Return the SHA-256 of label values and shape; type, header and compression do not count."""
    return hashlib.sha256(str(values.shape).encode() + values.astype("<i4").tobytes()).hexdigest()


class _Scouted:
    """The scans of a data set as a model sees them; each is predicted once, when it is first asked for."""

    def __init__(
        self, raw: RawDataset, folds: Sequence[MemberFold], mirroring: bool, device: str | torch.device | None
    ) -> None:
        self.raw = raw
        self.members = Members(folds, mirroring=mirroring, device=device)
        self.opinions: dict[str, Candidate] = {}

    def _scan(self, case: str, folder: Path) -> ScanToPredict:
        return ScanToPredict(case, self.raw.unlabelled[case].images, folder / f"{case}{self.raw.file_ending}")

    def _opinion(self, case: str, folder: Path) -> Opinion:
        scan = self._scan(case, folder)
        self.members.first.check_cases([scan])
        return self.members.opinion(scan)

    def candidate(self, case: str) -> Candidate:
        """Return the candidate for a case."""
        if case not in self.opinions:
            opinion = self._opinion(case, Path())
            union = np.any([mask > 0 for mask in opinion.masks], axis=0)
            found = {name: np.isin(opinion.consensus, label) for label, name in self.members.structures.items()}
            entropies = {name: mean_entropy(opinion.uncertainty, mask) for name, mask in found.items() if mask.any()}
            patient, whole = self.raw.unlabelled[case].patient, mean_entropy(opinion.uncertainty, union)
            self.opinions[case] = Candidate(case, patient, whole, entropies)
            log.info("%d scans examined: %s", len(self.opinions), case)
        return self.opinions[case]

    def write_masks(self, picks: Sequence[Pick], folder: Path) -> list[Path]:
        """Write the masks of the chosen scans, and return their paths."""
        paths = []
        for pick in picks:
            scan, opinion = self._scan(pick.case, folder), self._opinion(pick.case, folder)
            write_mask(scan.mask, opinion.consensus, opinion.properties, self.members.reader())
            paths.append(scan.mask)
        return paths


def _candidates(
    raw: RawDataset, scouted: _Scouted | None, count: int, strategy: Strategy, seed: int
) -> list[Candidate]:
    """Return all scans as the model sees them; for a random choice only until enough of them have foreground."""
    patients = {name: case.patient for name, case in raw.unlabelled.items()}
    order = random_order(patients, seed)
    if scouted is None:
        return [Candidate(case, patients[case]) for case in order]
    if strategy != "random":
        return [scouted.candidate(case) for case in sorted(order)]
    found: list[Candidate] = []
    empty: list[Candidate] = []
    for case in order:
        candidate = scouted.candidate(case)
        (found if candidate.has_foreground else empty).append(candidate)
        if len(found) == count:
            break
    return found + empty


def _folds(models: Sequence[str | Path], dataset: str) -> list[MemberFold]:
    if models:
        return find_member_folds(models)
    if not any(fits_dataset(model.dataset, dataset) and model.folds("checkpoint_final.pth") for model in list_models()):
        return []
    try:
        model = find_model(ModelQuery(dataset=dataset))
    except UsageError as error:
        raise UsageError(error.what, where=error.where, why=error.why, run="-m RUN names the model to ask") from None
    return [MemberFold(model, fold) for fold in find_folds(model, None)]


def _check_same_labels(folds: Sequence[MemberFold], raw: RawDataset) -> None:
    """Check that models have the labels, files and channels of the data set."""
    keys = (LABELS_KEY, "regions_class_order", FILE_ENDING_KEY)
    for each in folds[:1]:  # all folds are of one kind
        theirs = read_object(each.model.path / DATASET_JSON, keys=DATASET_KEYS)
        differing = [key for key in keys if theirs.get(key) != raw.dataset_json.get(key)]
        if len(channels_of(theirs)) != len(raw.channel_names):
            differing.append("channel_names")
        if differing:
            raise UsageError(
                "the model has other labels, files or channels than the data set",
                where=each.model.path,
                why=f"{', '.join(differing)} of dataset.json differ",
                run="-m RUN names a model of the data set",
            )


def _check_output(folder: Path, raw: RawDataset) -> None:
    if raw.folder.resolve() in (folder.resolve(), *folder.resolve().parents):
        raise UsageError("suggestions are no part of the raw data set", where=folder, run="choose another -o")
    there = sorted(file.name for file in folder.iterdir() if file.name[0] != ".") if folder.is_dir() else []
    if there:
        raise UsageError(
            "the output folder holds files already",
            where=folder,
            why=f"{listed(there)}; masks that you may have corrected are not replaced",
            run="choose another -o",
        )
    check_writable(folder, "the output folder", "choose another folder with -o")


def _table(picks: Sequence[Pick], raw: RawDataset, masks: Sequence[Path]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["case", "score", "why", "mask", "images"])
    names = [mask.name for mask in masks] or [f"{pick.case}{raw.file_ending}" for pick in picks]
    for pick, name in zip(picks, names, strict=True):
        images = " ".join(map(str, raw.unlabelled[pick.case].images))
        writer.writerow([pick.case, "" if pick.score is None else f"{pick.score:.4f}", pick.why, name, images])
    return text.getvalue()


def _notes(folds: Sequence[MemberFold], picks: Sequence[Pick], count: int) -> list[str]:
    notes = [] if folds else ["no model of the data set is trained: a random choice, and no masks to correct"]
    return notes + ([f"only {len(picks)} scans are unlabelled"] if len(picks) < count else [])
