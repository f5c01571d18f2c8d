"""`nnssl.pseudo_label`: masks of the unlabelled scans of a data set from one trained model or several."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from nnssl.data.domains import setting_tag
from nnssl.data.labels import Label, parse_labels
from nnssl.data.raw import RawCase, RawDataset, dataset_name, listed, read_raw_dataset
from nnssl.data.splits import FoldCases, LabelBudget, cases_of_run
from nnssl.errors import DataError, UsageError
from nnssl.evaluation.mask_pairs import read_labels
from nnssl.evaluation.postprocessing import Postprocessing, postprocess
from nnssl.evaluation.structures import declared_structures
from nnssl.inference.export import write_mask
from nnssl.inference.inputs import ScanToPredict, check_cases
from nnssl.inference.models import ModelFolder, ModelQuery, find_folds, find_model
from nnssl.inference.postprocessing import shared_choice
from nnssl.labelling.files import CONFIDENCE
from nnssl.labelling.report import Origin, write_report
from nnssl.labelling.scores import ScanScore, choose_scans, score_scan
from nnssl.names import (
    CHECKPOINT_FINAL,
    DATASET_JSON,
    FILE_ENDING_KEY,
    FOLD_PREFIX,
    GT_FOLDER,
    LABELS_KEY,
    PLANS_JSON,
    PREPROCESSED_VARIABLE,
    RESULTS_VARIABLE,
)
from nnssl.system.files import check_writable, content_hash, environment_folder, read_object
from nnssl.training.settings import RunSettings

if TYPE_CHECKING:
    import torch

    from nnssl.inference.predictor import Predictor

SCORES_JSON = "scores.json"
log = logging.getLogger("nnssl.predict")


@dataclass(frozen=True)
class PseudoLabelResult:
    """What `pseudo_label` did.

    Attributes:
        folder: of the masks and confidences.
        scores: `scores.json`: origin, scores and verdict of every scan.
        cases: names of the labelled scans.
        kept: names of the scans that the filter keeps.
        predicted: number of scans that this call predicted; the others were there.
        models: folders of the models.
        device: where the networks ran.
    """

    folder: Path
    scores: Path
    cases: list[str]
    kept: list[str]
    predicted: int
    models: list[str]
    device: str


@dataclass(frozen=True)
class _Model:
    """A trained model, and the folds of it that predict."""

    folder: ModelFolder
    folds: list[str]

    def cases(self, preprocessed: Path) -> Iterable[FoldCases]:
        """Return the cases of each fold under the label budget of the model."""
        settings = RunSettings.from_plans(read_object(self.folder.path / PLANS_JSON))
        budget = LabelBudget.parse(settings.labelled) if settings.labelled else None
        tag = setting_tag(settings.setting)
        description = read_object(preprocessed / DATASET_JSON)
        for fold in self.folds:
            yield cases_of_run(preprocessed, description, int(fold) if fold.isdigit() else fold, budget, tag)

    @property
    def checkpoints(self) -> list[Path]:
        return [self.folder.path / f"{FOLD_PREFIX}{fold}" / CHECKPOINT_FINAL for fold in self.folds]


def pseudo_label(  # noqa: PLR0913 - the public API names every option
    dataset: str | int,
    output: str | Path,
    *,
    models: Sequence[str | Path] = (),
    keep_share: float = 0.9,
    mirroring: bool = True,
    device: str | torch.device | None = None,
    overwrite: bool = False,
    continue_prediction: bool = False,
    postprocessing: bool = True,
) -> PseudoLabelResult:
    """Write masks of the unlabelled scans of a data set, for `nnssl_train -pseudo_labels`.

    The scans are those that every given model may learn from without their labels: imagesUn without the patients that a
    fold validates on, and the cases whose labels the label budget hides. The probabilities of all models and folds are
    averaged on the grid of the scan. `CASE.nii.gz` is the most likely label after post-processing,
    `CASE_confidence.nii.gz` the probability of the label before it times 255, and `scores.json` has the score of each
    scan and class, the volumes, and whether the filter keeps a scan.

    Args:
        dataset: id or folder name.
        output: folder of the masks, outside the raw data set.
        models: model folders (all trained folds are averaged) or fold folders, as paths or by their names below the
            results of the data set; without any, the only trained model of the data set.
        keep_share: share of the scans that the filter keeps, in [0, 1]; the masks of the others are written, too.
        mirroring: average over mirrored copies.
        device: `cuda`, `cpu` or `mps`; None takes the best one.
        overwrite: replace the masks in `output`; without it, or `continue_prediction`, files there are an error.
        continue_prediction: keep the masks in `output`, and predict the other scans.
        postprocessing: follow the decision that is stored with the models (largest components) if all have the same.

    Raises:
        UsageError: no such data set or model, several models fit, the models have different labels, or `output` holds
            files.
        DataError: there are no unlabelled scans, or a scan cannot be read.
        EnvironmentProblem: a checkpoint is damaged, there is no such device, or a file cannot be written.
        OutOfMemory: the device has too little memory for a scan.
    """
    if not 0 <= keep_share <= 1:
        raise UsageError(f"-keep_share {keep_share} is not in [0, 1]")
    raw, root = read_raw_dataset(dataset), environment_folder(PREPROCESSED_VARIABLE, must_exist=True)
    preprocessed = root / dataset_name(raw.name, root, f"nnssl_plan_and_preprocess -d {raw.name}")
    folder = Path(output)
    if raw.folder.resolve() in (folder.resolve(), *folder.resolve().parents):
        raise UsageError("pseudo-labels are no part of the raw data set", where=folder, run="choose another -o")
    _check_replacing(folder, overwrite, continue_prediction)
    chosen = [_find(model, raw.name) for model in models] or [_only_model(raw.name)]
    runs = [cases for model in chosen for cases in model.cases(preprocessed)]
    scans = _scans(raw, runs, folder)
    check_writable(folder, "the output folder", "choose another folder with -o")
    from nnssl.inference.predictor import Predictor

    predictors = [
        Predictor.from_folder(
            model.folder, folds=model.folds, mirroring=mirroring, device=device, postprocessing=postprocessing
        )
        for model in chosen
    ]
    _check_same_labels(predictors, raw)
    decision = shared_choice([predictor.postprocessing for predictor in predictors]).decision
    log.info("post-processing: %s", decision or "none")
    todo = [
        scan for scan in scans if not (continue_prediction and scan.mask.is_file() and _confidence_of(scan).is_file())
    ]
    check_cases(todo, predictors[0].plans_manager.image_reader_writer_class, predictors[0].channels)
    for number, scan in enumerate(todo, start=1):
        _label(scan, predictors, decision)
        log.info("%d of %d: %s", number, len(todo), scan.name)
    volumes, origins = _labelled_ml(preprocessed, runs, predictors[0]), _origins(folder, scans, todo, chosen)
    kept = _write_scores(folder, scans, predictors[0], volumes, keep_share, origins)
    return PseudoLabelResult(
        folder=folder,
        scores=folder / SCORES_JSON,
        cases=[scan.name for scan in scans],
        kept=kept,
        predicted=len(todo),
        models=[str(model.folder.path) for model in chosen],
        device=str(predictors[0].device),
    )


def _check_replacing(folder: Path, overwrite: bool, continue_prediction: bool) -> None:
    """Refuse to write into a folder that holds files, unless the user says what becomes of them."""
    if overwrite and continue_prediction:
        raise UsageError("--overwrite and --continue_prediction exclude each other", run="leave one of them out")
    there = sorted(file.name for file in folder.iterdir() if file.name[0] != ".") if folder.is_dir() else []
    if there and not overwrite and not continue_prediction:
        raise UsageError(
            "the output folder holds files already",
            where=folder,
            why=f"{listed(there)}; masks are not replaced unasked",
            run="--c keeps the masks and predicts the others; --overwrite replaces them; another -o keeps both",
        )


def _find(model: str | Path, dataset: str) -> _Model:
    """Return the model that a path, or a name below the results of the data set, means."""
    results = environment_folder(RESULTS_VARIABLE) / dataset
    place = next((each for each in (Path(model), results / model) if each.is_dir()), None)
    if place is None:
        why = f"it is no folder, neither here nor in {results}"
        raise UsageError("there is no such model", where=f"-m {model}", why=why, run="nnssl_runs lists all runs")
    if place.name.startswith(FOLD_PREFIX):
        folder = find_model(ModelQuery(folder=place.parent))
        return _Model(folder, find_folds(folder, [place.name.removeprefix(FOLD_PREFIX)]))
    folder = find_model(ModelQuery(folder=place))
    return _Model(folder, find_folds(folder, None))


def _only_model(dataset: str) -> _Model:
    try:
        folder = find_model(ModelQuery(dataset=dataset))
    except UsageError as error:
        run = "-m FOLDER [FOLDER ...] names the models; nnssl_runs lists all runs"
        raise UsageError(error.what, where=error.where, why=error.why, run=run) from None
    return _Model(folder, find_folds(folder, None))


def _scans(raw: RawDataset, runs: Sequence[FoldCases], folder: Path) -> list[ScanToPredict]:
    """Return the scans that are unlabelled in every run; neither a validation nor a test scan is among them."""
    shared = set.intersection(*(set(cases.unlabelled) for cases in runs))
    known: dict[str, RawCase] = {**raw.labelled, **raw.unlabelled}
    missing = sorted(shared - known.keys())
    if missing or not shared:
        raise DataError(
            f"{len(missing)} unlabelled scan(s) are not in the raw data set" if missing else "no scan is unlabelled",
            where=raw.folder,
            why=", ".join(missing[:5]) or "the folds of the models have no unlabelled scan in common",
            run="put the scans back, or plan again" if missing else "-m MODEL/fold_0 takes one fold",
        )
    ending = raw.file_ending
    return [ScanToPredict(name, known[name].images, folder / f"{name}{ending}") for name in sorted(shared)]


def _check_same_labels(predictors: Sequence[Predictor], raw: RawDataset) -> None:
    """Check that the probabilities of all models mean the same labels, and that the models read the same files."""
    keys = (LABELS_KEY, "regions_class_order", FILE_ENDING_KEY)
    ours = [*(raw.dataset_json.get(key) for key in keys), len(raw.channel_names)]
    for predictor in predictors:
        theirs = [*(predictor.dataset_json.get(key) for key in keys), predictor.channels]
        if theirs != ours:
            raise UsageError(
                "a model has other labels, files or channels than the data set",
                where=predictor.model.path if predictor.model else "",
                why=f"model    {theirs}\ndata set {ours}",
            )


def _confidence_of(scan: ScanToPredict) -> Path:
    return scan.mask.with_name(f"{scan.name}{CONFIDENCE}{scan.mask.name.removeprefix(scan.name)}")


def _label(scan: ScanToPredict, predictors: Sequence[Predictor], decision: Postprocessing | None) -> None:
    """Write confidence and mask of one scan; the mask is the last file."""
    import torch

    from nnssl.labelling.prediction import most_likely

    mean, properties = predictors[0].probabilities_of(scan)
    for predictor in predictors[1:]:
        mean = mean + predictor.probabilities_of(scan)[0]
    labels, confidence = most_likely(torch.from_numpy(mean / len(predictors)), predictors[0].label_manager)
    writer = predictors[0].plans_manager.image_reader_writer_class()
    write_mask(_confidence_of(scan), confidence, properties, writer)
    write_mask(scan.mask, postprocess(labels, decision), properties, writer)


def _score(predictor: Predictor, path: Path, confidence: NDArray[np.uint8] | None = None) -> ScanScore:
    """Return the score of a label file; without a confidence every voxel is certain."""
    image = read_labels(predictor.plans_manager.image_reader_writer_class, path)
    sure = np.full(image.values.shape, 255, np.uint8) if confidence is None else confidence
    return score_scan(image.values, sure, list(_structures(predictor)), math.prod(image.spacing_mm) / 1000)


def _structures(predictor: Predictor) -> dict[Label, str]:
    return declared_structures(predictor.dataset_json, Path(DATASET_JSON)).names


def _labelled_ml(preprocessed: Path, runs: Sequence[FoldCases], predictor: Predictor) -> list[tuple[float, ...]]:
    """Return the volumes in the labelled scans of the models, ml; none where an ignore label hides parts of them."""
    if parse_labels(predictor.dataset_json).ignore is not None:
        return []
    cases = sorted({case for run in runs for case in run.labelled})
    return [_score(predictor, preprocessed / GT_FOLDER / f"{case}{predictor.file_ending}").volumes_ml for case in cases]


def _write_scores(
    folder: Path,
    scans: Sequence[ScanToPredict],
    predictor: Predictor,
    labelled_ml: Sequence[tuple[float, ...]],
    keep_share: float,
    origins: Mapping[str, Origin],
) -> list[str]:
    """Write `scores.json`, and return the names of the scans that are kept."""
    reader, scores = predictor.plans_manager.image_reader_writer_class, {}
    for scan in scans:
        confidence = reader().read_seg(str(_confidence_of(scan)))[0][0].astype(np.uint8)
        scores[scan.name] = _score(predictor, scan.mask, confidence)
    names = list(_structures(predictor).values())
    verdicts = choose_scans(scores, labelled_ml, names, keep_share)
    write_report(folder / SCORES_JSON, names, scores, verdicts, origins)
    return [name for name, verdict in verdicts.items() if verdict.kept]


def _origins(
    folder: Path, scans: Sequence[ScanToPredict], todo: Sequence[ScanToPredict], models: Sequence[_Model]
) -> dict[str, Origin]:
    """Return the origin of each mask; masks that were there keep the origin that `scores.json` tells."""
    files = [file for model in models for file in model.checkpoints]
    ours = Origin("model", ", ".join(map(str, files)), content_hash(*files))
    earlier = read_object(folder / SCORES_JSON) if (folder / SCORES_JSON).is_file() else {}
    known: dict[str, Any] = {
        scan.name: earlier[scan.name] for scan in scans if scan not in todo and scan.name in earlier
    }
    return {
        scan.name: Origin("model", known[scan.name]["source"], known[scan.name]["sha256"])
        if scan.name in known
        else ours
        for scan in scans
    }
