"""From a model folder to a bundle."""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from nnssl.bundles.layout import MANIFEST_JSON, NETWORK_JSON, WEIGHTS, Entry, Manifest, check_names
from nnssl.bundles.privacy import REMOVED, public_description, public_plans, public_record
from nnssl.bundles.trust import problems_of_plans
from nnssl.bundles.weights import STOCK_TRAINER, network_of, problem_with_weights, without_repeats
from nnssl.errors import DataError, UsageError
from nnssl.evaluation.postprocessing import Postprocessing
from nnssl.inference.checkpoint import Checkpoint, load_checkpoint
from nnssl.inference.models import ModelFolder
from nnssl.names import CHECKPOINT_FINAL, DATASET_JSON, FOLD_PREFIX, PLANS_JSON, POSTPROCESSING_JSON, RUN_JSON
from nnssl.system.files import DATASET_KEYS, PLANS_KEYS, read_object, replacing
from nnssl.training.run_folder import ModelName
from nnssl.version import __version__

DATE = (1980, 1, 1, 0, 0, 0)  # of every entry: the same model gives the same bytes


def write_bundle(model: ModelFolder, folds: tuple[str, ...], file: Path) -> Manifest:
    """Write the bundle of some folds of a model, in one piece.

    Args:
        model: a model folder whose names are known.
        folds: that hold a final checkpoint.
        file: the bundle.

    Raises:
        UsageError: the plans do not describe the network, which a trainer class builds.
        DataError: plans.json, dataset.json or a decision about post-processing is damaged.
        EnvironmentProblem: a checkpoint is damaged, or the file cannot be written.
    """
    name = ModelName(model.trainer, model.plans, model.configuration, model.tag)
    check_names(model.dataset, name.folder, folds, model.path)
    plans = public_plans(read_object(model.path / PLANS_JSON, keys=PLANS_KEYS))
    description = public_description(read_object(model.path / DATASET_JSON, keys=DATASET_KEYS))
    _check_known(plans, model.path / PLANS_JSON)
    with replacing(file) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as archive:
        files = dict(_add_json(archive, {PLANS_JSON: plans, DATASET_JSON: description}))
        files |= _add_decision(archive, model.path, "")
        for fold in folds:
            files |= _add_fold(archive, model.path / f"{FOLD_PREFIX}{fold}", plans, description)
        manifest = Manifest(model.dataset, *name, folds=folds, files=files, nnssl=__version__, removed=REMOVED)
        dict(_add_json(archive, {MANIFEST_JSON: manifest.to_dict()}))
    return manifest


def _check_known(plans: dict[str, Any], path: Path) -> None:
    if problems := problems_of_plans(plans):
        raise UsageError(
            "the model cannot be exported: its plans name a class that neither nnU-Net nor nnssl has",
            where=path,
            why=problems[0],
            run="a bundle holds no code, and nnssl_install takes known networks and functions only",
        )


def _add_fold(
    archive: zipfile.ZipFile, folder: Path, plans: dict[str, Any], description: dict[str, Any]
) -> dict[str, Entry]:
    from safetensors.torch import save

    path = folder / CHECKPOINT_FINAL
    checkpoint = load_checkpoint(path)
    _check_described(checkpoint, plans, description, path)
    weights, aliases = without_repeats(checkpoint.weights)
    network = network_of(checkpoint, aliases, STOCK_TRAINER)
    contents: dict[str, Any] = {f"{folder.name}/{NETWORK_JSON}": {**vars(network)}}
    if record := public_record(folder):
        contents[f"{folder.name}/{RUN_JSON}"] = record
    files = dict(_add_json(archive, contents)) | _add_decision(archive, folder, f"{folder.name}/")
    name = f"{folder.name}/{WEIGHTS}"
    return files | {name: _add(archive, name, save(weights), zipfile.ZIP_STORED)}


def _check_described(checkpoint: Checkpoint, plans: dict[str, Any], description: dict[str, Any], path: Path) -> None:
    problem = problem_with_weights(plans, description, checkpoint.configuration, checkpoint.weights)
    if problem:
        raise UsageError(
            "the model cannot be exported: its plans do not describe its network",
            where=path,
            why=f"{problem}; the class {checkpoint.trainer} builds it, and a bundle holds no code",
            run="nnUNetv2_export_model_to_zip exports it for machines that have this class",
        )


def _add_decision(archive: zipfile.ZipFile, folder: Path, place: str) -> dict[str, Entry]:
    """Add the decision about post-processing of a folder, if it has one."""
    if Postprocessing.read(folder) is None:
        return {}
    return dict(_add_json(archive, {f"{place}{POSTPROCESSING_JSON}": read_object(folder / POSTPROCESSING_JSON)}))


def _add_json(archive: zipfile.ZipFile, contents: Mapping[str, Any]) -> Iterable[tuple[str, Entry]]:
    for name, content in contents.items():
        try:
            text = json.dumps(content, indent=2, allow_nan=False) + "\n"
        except ValueError as error:
            raise DataError("a file holds NaN or infinity", where=name, why=str(error)) from error
        yield name, _add(archive, name, text.encode(), zipfile.ZIP_DEFLATED)


def _add(archive: zipfile.ZipFile, name: str, content: bytes, compression: int) -> Entry:
    info = zipfile.ZipInfo(name, DATE)
    info.compress_type, info.external_attr = compression, 0o644 << 16
    archive.writestr(info, content)
    return Entry(len(content), hashlib.sha256(content).hexdigest())
