"""The prediction of a fold's validation cases after training, and the scores of these predictions."""

from __future__ import annotations

import logging
import os
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import distributed, nn
from tqdm import tqdm

from nnssl.errors import NnsslError
from nnssl.evaluation.postprocessing import Postprocessing
from nnssl.evaluation.summary import EvaluationResult
from nnssl.host import forget_patch_weights
from nnssl.inference.predictor import Predictor
from nnssl.names import (
    DATASET_JSON,
    GT_FOLDER,
    IMAGES_TR,
    PLANS_JSON,
    RAW_VARIABLE,
    SUMMARY_JSON,
    SUMMARY_POSTPROCESSED_JSON,
    VALIDATION_FOLDER,
)
from nnssl.system.files import write_json
from nnssl_trainers.frame.postprocessing import decide_for_fold, decide_for_model

VALIDATION_SHEET, DRAWN_CASES = "validation.png", 5
log = logging.getLogger("nnssl.train")


def predictor_of(trainer: Any, network: nn.Module) -> Predictor:  # noqa: ANN401
    """Return a predictor with a network of a trainer; the network is in inference mode, without deep supervision."""
    predictor = Predictor(device=trainer.device)
    predictor.manual_initialization(
        network,
        trainer.plans_manager,
        trainer.configuration_manager,
        [network.state_dict()],
        trainer.dataset_json,
        type(trainer).__name__,
        trainer.inference_allowed_mirroring_axes,
    )
    return predictor


def predict_validation_cases(trainer: Any, network: nn.Module, save_probabilities: bool) -> None:  # noqa: ANN401
    """Predict the validation cases of a fold in this process; the first process writes the scores.

    `validation/` holds the masks as the network gives them, and `summary.json` their scores. The scores after the
    fold's post-processing stand in `summary_postprocessed.json`; post-processed masks are not written. When all folds
    of a model are validated, their masks decide about the post-processing of the model.

    Args:
        trainer: a trainer of the frame after training, or with loaded weights.
        network: the network to validate, without the wrappers of torch.compile and distributed training.
        save_probabilities: also write the class probabilities of each case.

    Raises:
        EnvironmentProblem: a file cannot be written.
    """
    folder = Path(trainer.output_folder) / VALIDATION_FOLDER
    rank = trainer.local_rank
    if rank == 0:
        shutil.rmtree(folder, ignore_errors=True)  # the scores would include old masks of an earlier split
        folder.mkdir(parents=True)
        write_json(folder / PLANS_JSON, trainer.plans_manager.plans)
        write_json(folder / DATASET_JSON, trainer.dataset_json)
    if trainer.is_ddp:
        distributed.barrier()
    predictor = predictor_of(trainer, network)
    cases = sorted(trainer.do_split()[1])
    own_cases = cases[rank :: distributed.get_world_size()] if trainer.is_ddp else cases
    dataset = trainer.dataset_class(trainer.preprocessed_dataset_folder, own_cases)

    def load(case: str) -> tuple[torch.Tensor, dict[str, Any]]:
        data, _, _, properties = dataset.load_case(case)
        return torch.from_numpy(data[:].copy()), properties

    done = predictor.predict_preprocessed(own_cases, load, folder, save_probabilities=save_probabilities)
    for _ in tqdm(done, total=len(own_cases), desc=VALIDATION_FOLDER, disable=None):
        pass
    forget_patch_weights()
    if trainer.is_ddp:
        distributed.barrier()
    if rank == 0:
        _score(trainer, folder, len(cases))
        draw_worst_cases(trainer, folder, len(cases))
        decide_for_model(trainer)


def draw_worst_cases(trainer: Any, folder: Path, num_cases: int) -> None:  # noqa: ANN401
    """Draw the worst validation cases, each with its mask and its label, as `validation.png` in the fold's folder.

    Without the scans in nnUNet_raw there is no sheet. An error while it is drawn is a warning: the run is done.
    """
    from nnssl.reports.look import look

    base = Path(trainer.preprocessed_dataset_folder_base)
    scans = Path(os.environ.get(RAW_VARIABLE) or "/nowhere") / base.name / IMAGES_TR
    if not scans.is_dir():
        return
    file = Path(trainer.output_folder) / VALIDATION_SHEET
    try:
        look(scans, [folder, base / GT_FOLDER], output_file=file, cases=min(DRAWN_CASES, num_cases))
        log.info("worst validation cases: %s", file)
    except (NnsslError, OSError, ValueError) as error:
        log.warning("warning: no sheet of the validation cases: %s", error)


def _score(trainer: Any, folder: Path, num_cases: int) -> None:  # noqa: ANN401
    """Score the masks in `validation/` as they are, and after the fold's post-processing."""
    from nnssl.evaluation.api import evaluate

    truth = Path(trainer.preprocessed_dataset_folder_base) / GT_FOLDER
    score = partial(evaluate, truth, folder, chill=True, same_placement=False)  # nor did training check placement
    result = score()
    dice = result.summary["foreground_mean"]["Dice"]
    trainer.print_to_log_file(f"Mean Validation Dice: {dice}")
    log.info("validation of %d cases: %s; %s", num_cases, _dice_line(result), folder)
    if dice == 0:
        log.warning("warning: no predicted foreground voxel is right in validation; see %s", folder / SUMMARY_JSON)
    decision = _decision_of_fold(trainer)
    if decision is None:
        return
    output = folder / SUMMARY_POSTPROCESSED_JSON
    if decision.applied:
        after = score(postprocessing=decision, output_file=output)
    else:
        after = result
        write_json(output, result.summary)
    line = f"after post-processing, {decision.effect}: {_dice_line(after)}"
    trainer.print_to_log_file(line)
    log.info(line)


def _decision_of_fold(trainer: Any) -> Postprocessing | None:  # noqa: ANN401
    """Return the decision that training wrote; a run that ended before nnssl made decisions gets one now."""
    return Postprocessing.read(Path(trainer.output_folder)) or decide_for_fold(trainer)


def _dice_line(result: EvaluationResult) -> str:
    parts = ", ".join(f"{name} {result.mean[label]['Dice']:.3f}" for label, name in result.structures.items())
    return f"mean foreground Dice {result.foreground_mean['Dice']:.4f} ({parts})"
