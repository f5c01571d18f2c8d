"""The files that nnU-Net's prediction leaves beside the masks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from nnssl.inference.models import ChosenModel, told
from nnssl.names import DATASET_JSON, PLANS_JSON, PREDICTION_JSON, SEMI_KEY
from nnssl.system.files import write_json

if TYPE_CHECKING:
    from nnssl.inference.api import DiskJob
    from nnssl.inference.ensemble import Ensemble
    from nnssl.inference.predictor import Predictor


def write_records(folder: Path, predictor: Predictor | Ensemble, models: Sequence[ChosenModel], job: DiskJob) -> None:
    """Write dataset.json, plans.json and the arguments of a prediction beside its masks, as nnU-Net does.

    Raises:
        EnvironmentProblem: a file cannot be written.
    """
    first = predictor.first
    arguments = {
        "list_of_lists_or_source_folder": str(job.source[0]),
        "output_folder_or_list_of_truncated_output_files": str(job.output),
        "save_probabilities": job.save_probabilities,
        "overwrite": job.overwrite,
        "num_processes_preprocessing": job.readers,
        "num_processes_segmentation_export": job.writers,
        "folder_with_segs_from_prev_stage": None,
        "num_parts": job.num_parts,
        "part_id": job.part_id,
        SEMI_KEY: {
            **told(models),
            "step_size": first.tile_step_size,
            "mirroring": first.use_mirroring,
            "postprocessing": predictor.postprocessing.line,
            "device": str(first.device),
        },
    }
    write_json(folder / PREDICTION_JSON, arguments)
    write_json(folder / DATASET_JSON, first.dataset_json)
    write_json(folder / PLANS_JSON, first.plans_manager.plans)
