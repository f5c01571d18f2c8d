"""The decisions about post-processing at the end of a run: from its labelled cases, and from all folds of its model."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from nnssl.data.splits import read_splits
from nnssl.errors import DataError, EnvironmentProblem
from nnssl.evaluation.evidence import decide_by_anatomy, decide_by_scores, read_mask, read_pair
from nnssl.evaluation.mask_pairs import FilePair
from nnssl.evaluation.postprocessing import Postprocessing
from nnssl.evaluation.structures import declared_structures
from nnssl.names import (
    CHECKPOINT_FINAL,
    DATASET_JSON,
    FILE_ENDING_KEY,
    FOLD_PREFIX,
    GT_FOLDER,
    POSTPROCESSING_JSON,
    SUMMARY_JSON,
    VALIDATION_FOLDER,
)
from nnssl.system.resources import worker_processes

CASES_OF_ONE_PROCESS = 8  # to start workers for fewer label files takes longer than to read them
log = logging.getLogger("nnssl.train")


def forget_decision_of_model(trainer: Any) -> None:  # noqa: ANN401 - the frame's trainer
    """Delete the model's decision, as a fold that decided has new weights; fold `all` has no held-out cases."""
    if trainer.fold != "all":
        (Path(trainer.output_folder_base) / POSTPROCESSING_JSON).unlink(missing_ok=True)


def decide_for_fold(trainer: Any) -> Postprocessing | None:  # noqa: ANN401
    """Decide by the labelled training cases of the run, and write `postprocessing.json` into the fold's folder.

    Validation cases have no say: they are the test bed on which methods are compared.

    Returns:
        The decision; None, with a warning, where the labels cannot be read, as this must not end a run.
    """
    try:
        decision = anatomy_of_labels(trainer)
    except (DataError, EnvironmentProblem) as error:
        _warn(error)
        return None
    decision.write(Path(trainer.output_folder))
    _tell(trainer, f"post-processing: {decision}")
    return decision


def anatomy_of_labels(trainer: Any) -> Postprocessing:  # noqa: ANN401
    """Return what the labelled training cases of the run say about post-processing.

    Raises:
        DataError: a label cannot be read.
        EnvironmentProblem: a worker process was lost.
    """
    truth = Path(trainer.preprocessed_dataset_folder_base) / GT_FOLDER
    ending = trainer.dataset_json[FILE_ENDING_KEY]
    cases = {case: truth / f"{case}{ending}" for case in trainer.fold_cases().labelled}
    structures = declared_structures(trainer.dataset_json, Path(DATASET_JSON))
    load = partial(read_mask, trainer.plans_manager.image_reader_writer_class)
    return decide_by_anatomy(cases, load, structures, _processes(cases))


def decide_for_model(trainer: Any) -> Postprocessing | None:  # noqa: ANN401
    """Decide by the predictions of all folds for the cases that they held out; the model's folder gets the decision.

    Returns:
        The decision; None where a fold is not validated yet, the folds are no cross-validation, a label budget or
        a setting of domains makes their validation cases a test bed, or, with a warning, a mask cannot be read.
    """
    if trainer.settings.labelled or trainer.settings.setting or trainer.fold == "all":
        return None
    preprocessed, model = Path(trainer.preprocessed_dataset_folder_base), Path(trainer.output_folder_base)
    pairs = held_out_predictions(model, preprocessed, trainer.dataset_json[FILE_ENDING_KEY])
    if pairs is None:
        return None
    structures = declared_structures(trainer.dataset_json, Path(DATASET_JSON))
    load = partial(read_pair, trainer.plans_manager.image_reader_writer_class)
    try:
        decision = decide_by_scores(pairs, load, structures, _processes(pairs))
    except (DataError, EnvironmentProblem) as error:  # as where another process starts one of the folds anew just now
        _warn(error)
        return None
    decision.write(model)
    _tell(trainer, f"all {len(read_splits(preprocessed))} folds are validated; post-processing: {decision}")
    return decision


def held_out_predictions(model: Path, preprocessed: Path, ending: str) -> dict[str, FilePair] | None:
    """Return the prediction of every case by the fold that held it out, None where the folds are not complete.

    Args:
        model: the model's folder, with the folders of its folds.
        preprocessed: the data set's folder in nnUNet_preprocessed.
        ending: of the label files, with its dot.

    Raises:
        DataError: `splits_final.json` is missing or wrong.
    """
    splits = read_splits(preprocessed)
    if not is_cross_validation(splits):
        return None
    pairs = {}
    for number, split in enumerate(splits):
        fold = model / f"{FOLD_PREFIX}{number}"
        if not ((fold / CHECKPOINT_FINAL).is_file() and (fold / VALIDATION_FOLDER / SUMMARY_JSON).is_file()):
            return None
        for case in split["val"]:
            name = f"{case}{ending}"
            pairs[case] = FilePair(case, preprocessed / GT_FOLDER / name, fold / VALIDATION_FOLDER / name)
    return pairs if all(pair.prediction.is_file() for pair in pairs.values()) else None


def is_cross_validation(splits: Sequence[Mapping[str, Any]]) -> bool:
    """Return whether each training case is held out by exactly one fold, and no other case is held out."""
    held_out = [case for split in splits for case in split["val"]]
    trained_on = {case for split in splits for case in split["train"]}
    apart = all(set(split["train"]).isdisjoint(split["val"]) for split in splits)
    return apart and len(held_out) == len(set(held_out)) and set(held_out) == trained_on


def _processes(cases: Mapping[str, object]) -> int:
    return worker_processes() if len(cases) > CASES_OF_ONE_PROCESS else 1


def _tell(trainer: Any, line: str) -> None:  # noqa: ANN401
    log.info(line)
    trainer.print_to_log_file(line)


def _warn(error: DataError | EnvironmentProblem) -> None:
    log.warning("warning: post-processing is not decided: %s (%s)", error.what, error.where)
