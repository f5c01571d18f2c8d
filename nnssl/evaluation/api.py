"""`nnssl.evaluate`: a folder of predictions against a folder of references, with an extended summary.json."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from nnssl.data.domains import domains_of
from nnssl.data.labels import Label
from nnssl.data.raw import listed, other_endings
from nnssl.errors import DataError, UsageError, unknown_name
from nnssl.evaluation.mask_pairs import FilePair, Measurement, measure_case
from nnssl.evaluation.postprocessing import Postprocessing
from nnssl.evaluation.structures import (
    Structures,
    declared_structures,
    file_ending,
    find_reader,
    listed_structures,
)
from nnssl.evaluation.summary import EvaluationResult, summarise
from nnssl.names import DATASET_JSON, PLANS_JSON, SUMMARY_JSON
from nnssl.system.files import check_output_file, read_object, write_json
from nnssl.system.resources import worker_processes
from nnssl.system.workers import run_parallel

METRIC_SETS = ("standard", "paper")
LOGGED_NOTES = 10
log = logging.getLogger(__name__)


def evaluate(  # noqa: PLR0913 - the public API names every option
    reference_folder: str | Path,
    prediction_folder: str | Path,
    *,
    dataset_json: str | Path | None = None,
    plans_json: str | Path | None = None,
    labels: Sequence[Label] | None = None,
    ignore_label: int | None = None,
    output_file: str | Path | None = None,
    num_processes: int | None = None,
    chill: bool = False,
    metrics: str = "standard",
    nsd_tolerance_mm: float = 1.0,
    same_placement: bool = True,
    postprocessing: Postprocessing | None = None,
    protocol: str | None = None,
) -> EvaluationResult:
    """Measure every prediction against its reference, write `summary.json`, and return the same content.

    Args:
        reference_folder: reference label files.
        prediction_folder: predicted label files of the same names. Prediction leaves dataset.json and plans.json in
            this folder; they name the labels and the reader of the files.
        dataset_json: the file; None for `dataset.json` in the prediction folder.
        plans_json: the file; None for `plans.json` in the prediction folder.
        labels: labels or regions (tuples of labels) to evaluate; other values then count as background. None
            evaluates the labels that dataset.json declares; other values are then an error.
        ignore_label: only with `labels`: reference voxels with this value are not scored.
        output_file: the summary; None for `summary.json` in the prediction folder.
        num_processes: worker processes; None for nnU-Net's number (`nnUNet_def_n_proc`, else 8), at most one a CPU.
        chill: evaluate the cases that have a prediction when other references have none, instead of stopping.
        metrics: "standard", or "paper" to add the voxel distances of the semi-supervised papers.
        nsd_tolerance_mm: tolerance of the normalised surface distance, mm, >= 0.
        same_placement: whether different origins and directions are an error; different shapes and spacings always are.
            A prediction that lies in the place of its reference on flipped or reordered axes is never an error: it is
            brought to the axes of the reference, and the log and the summary say so.
        postprocessing: what is done to every prediction before it is measured; the files stay as they are.
        protocol: the old spelling of `metrics`.

    Raises:
        UsageError: nothing says which labels to evaluate, or an argument is wrong.
        DataError: a folder or file is missing or unreadable, geometries differ, or a file holds values that
            dataset.json does not declare.
        EnvironmentProblem: the summary cannot be written, or a worker process was lost.
    """
    references, predictions = _folder(reference_folder, "reference"), _folder(prediction_folder, "prediction")
    output = Path(output_file) if output_file is not None else predictions / SUMMARY_JSON
    metrics = protocol or metrics
    _check_options(output, num_processes, metrics, nsd_tolerance_mm)
    dataset_path = Path(dataset_json) if dataset_json is not None else predictions / DATASET_JSON
    plans_path = Path(plans_json) if plans_json is not None else predictions / PLANS_JSON
    dataset = _json_object(dataset_path, needed=dataset_json is not None)
    plans = _json_object(plans_path, needed=plans_json is not None)
    declared = None if dataset is None else declared_structures(dataset, dataset_path)
    structures = _structures(declared, labels, ignore_label, predictions)
    ending = file_ending(dataset, references)
    cases, without_prediction, without_reference = _pairs(references, predictions, ending, chill)
    reader = find_reader(plans, dataset, ending, next(iter(cases.values())).reference)
    measurement = Measurement(reader, structures, nsd_tolerance_mm, metrics == "paper", same_placement, postprocessing)
    processes = num_processes or worker_processes()
    result = summarise(
        run_parallel(partial(measure_case, measurement), cases, processes, "evaluating"),
        cases,
        measurement,
        summary_file=output,
        unmatched=(tuple(without_prediction), tuple(without_reference)),
        domains=domains_of(dataset or {}),
    )
    write_json(output, result.summary)
    if result.notes:
        more = [f"… and {len(result.notes) - LOGGED_NOTES} more"] if len(result.notes) > LOGGED_NOTES else []
        log.warning("%s", "\n".join([*result.notes[:LOGGED_NOTES], *more]))
    return result


def _folder(path: str | Path, role: str) -> Path:
    folder = Path(path)
    if not folder.is_dir():
        raise DataError(f"the {role} folder {'is a file' if folder.exists() else 'does not exist'}", where=folder)
    return folder


def _check_options(output: Path, num_processes: int | None, metrics: str, nsd_tolerance_mm: float) -> None:
    check_output_file(output)
    if output.suffix != ".json":
        raise UsageError("the output file must end with .json", where=output)
    if num_processes is not None and num_processes < 1:
        raise UsageError(f"-np {num_processes}: the number of processes must be at least 1")
    if metrics not in METRIC_SETS:
        raise unknown_name("metric set", metrics, METRIC_SETS, option="-metrics")
    if not 0 <= nsd_tolerance_mm < math.inf:
        raise UsageError(f"the NSD tolerance is {nsd_tolerance_mm} mm", why="a tolerance is 0 or larger")


def _json_object(path: Path, *, needed: bool) -> dict[str, Any] | None:
    """Return the content of the file; None if the file is missing and not needed."""
    if not needed and not path.is_file():
        return None
    return read_object(path)


def _structures(
    declared: Structures | None, labels: Sequence[Label] | None, ignore_label: int | None, predictions: Path
) -> Structures:
    if labels is not None:
        if not labels:
            raise UsageError("the list of labels is empty")
        return listed_structures(labels, ignore_label, declared)
    if declared is None:
        raise UsageError(
            "nothing says which labels to evaluate",
            where=predictions,
            why="this folder has no dataset.json, which nnssl_predict and nnUNetv2_predict leave beside predictions",
            run="add -djfile /path/to/dataset.json, or list the labels: -l 1 2 3",
        )
    if ignore_label is not None:
        raise UsageError(
            "an ignore label is given without labels",
            why="dataset.json names its own ignore label",
            run=f"-l LABEL [LABEL ...] -il {ignore_label}",
        )
    return declared


def _pairs(
    references: Path, predictions: Path, ending: str, chill: bool
) -> tuple[dict[str, FilePair], list[str], list[str]]:
    """Return the cases with both files, those without a prediction, and those without a reference."""
    wanted, found = _label_files(references, ending), _label_files(predictions, ending)
    for folder, files in ((references, wanted), (predictions, found)):
        if not files:
            raise DataError(f"the folder holds no {ending} files", where=folder, why=other_endings(folder, ending))
    cases = {name: FilePair(name, wanted[name], found[name]) for name in wanted if name in found}
    without_prediction = [name for name in wanted if name not in found]
    without_reference = [name for name in found if name not in wanted]
    if not cases:
        raise DataError(
            "no prediction has the name of a reference",
            where=predictions,
            why=f"references such as {without_prediction[0]}, predictions such as {without_reference[0]}",
        )
    if without_prediction and not chill:
        raise DataError(
            f"{len(without_prediction)} of {len(wanted)} references have no prediction",
            where=predictions,
            why="\n".join(filter(None, (listed(without_prediction), other_endings(predictions, ending)))),
            run=f"predict these cases, or add --chill to evaluate the {len(cases)} that have a prediction",
        )
    return cases, without_prediction, without_reference


def _label_files(folder: Path, ending: str) -> dict[str, Path]:
    files = sorted(file for file in folder.iterdir() if file.name.endswith(ending) and not file.name.startswith("."))
    return {file.name[: -len(ending)]: file for file in files}
