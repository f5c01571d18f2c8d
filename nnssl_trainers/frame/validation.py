"""Prediction of a fold's validation cases after training, in this process, and their scores."""

from __future__ import annotations

import logging
import shutil
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from nnunetv2.inference.export_prediction import export_prediction_from_logits
from nnunetv2.inference.sliding_window_prediction import compute_gaussian
from torch import distributed, nn
from tqdm import tqdm

from nnssl.inference.predictor import Predictor
from nnssl.system.files import write_json

EXPORTS_IN_FLIGHT = 2  # bounds the memory held by finished logits
log = logging.getLogger("nnssl.train")


def predict_validation_cases(trainer: Any, network: nn.Module, save_probabilities: bool) -> None:  # noqa: ANN401
    """Predict the validation cases of `trainer` with `network`; rank 0 writes `validation/summary.json`.

    The resampling and writing of a mask happens in a thread while the network works on the next case.
    """
    folder = Path(trainer.output_folder) / "validation"
    rank = trainer.local_rank
    if rank == 0:
        shutil.rmtree(folder, ignore_errors=True)  # masks of an earlier split would be scored with the new ones
        folder.mkdir(parents=True)
        write_json(folder / "plans.json", trainer.plans_manager.plans)
        write_json(folder / "dataset.json", trainer.dataset_json)
    if trainer.is_ddp:
        distributed.barrier()
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
    cases = sorted(trainer.do_split()[1])
    mine = cases[rank :: distributed.get_world_size()] if trainer.is_ddp else cases
    dataset = trainer.dataset_class(trainer.preprocessed_dataset_folder, mine)
    pending: list[Future[None]] = []
    with ThreadPoolExecutor(max_workers=1) as pool:
        for case in tqdm(mine, desc="validation", disable=None):
            data, _, _, properties = dataset.load_case(case)
            logits = predictor.predict_sliding_window_return_logits(torch.from_numpy(data[:].copy())).cpu()
            while len(pending) >= EXPORTS_IN_FLIGHT:
                pending.pop(0).result()
            pending.append(
                pool.submit(
                    export_prediction_from_logits,
                    logits,
                    properties,
                    trainer.configuration_manager,
                    trainer.plans_manager,
                    trainer.dataset_json,
                    str(folder / case),
                    save_probabilities,
                    num_threads_torch=torch.get_num_threads(),
                )
            )
        for export in pending:
            export.result()
    compute_gaussian.cache_clear()
    if trainer.is_ddp:
        distributed.barrier()
    if rank == 0:
        from nnssl.evaluation.api import evaluate

        truth = Path(trainer.preprocessed_dataset_folder_base) / "gt_segmentations"
        result = evaluate(truth, folder, chill=True, same_placement=False)  # training ignored the placement as well
        dice = result.summary["foreground_mean"]["Dice"]
        trainer.print_to_log_file(f"Mean Validation Dice: {dice}")
        log.info("validation of %d cases: mean foreground Dice %.4f (%s)", len(cases), dice, folder / "summary.json")
