"""From a `.zip` of `nnUNetv2_export_model_to_zip` to model folders, without running what stands in it."""

from __future__ import annotations

import re
import zipfile
from dataclasses import dataclass
from pathlib import Path

from nnssl.bundles.archive import Archive, refused, shown
from nnssl.bundles.layout import check_names
from nnssl.bundles.reading import check_trusted
from nnssl.bundles.weights import STOCK_TRAINER, network_of, problem_with_weights, save_checkpoint
from nnssl.errors import EnvironmentProblem
from nnssl.inference.checkpoint import load_checkpoint
from nnssl.names import CHECKPOINT_FINAL, DATASET_JSON, FOLD_PREFIX, PLANS_JSON
from nnssl.system.files import DATASET_KEYS, PLANS_KEYS, write_json
from nnssl.training.run_folder import ModelName

CHECKPOINT = re.compile(r"([^/]+)/([^/]+)/fold_([^/]+)/checkpoint_(final|best)\.pth")
# Files that nnU-Net exports and that prediction does not need. They stay in the archive, and are never read.
LEFT_OUT = re.compile(
    r".+\.(json|png|pdf|txt|nii\.gz|nii|nrrd|mha|mhd|tif|tiff|gipl|npz)|.+/(ensembles/.+|crossval_results_folds_[^/]+)"
    r"/postprocessing\.pkl"
)


@dataclass(frozen=True)
class StockModel:
    """One model in the archive.

    Attributes:
        dataset: folder name of the data set.
        model: folder name of the model.
        folds: in order.
        left_out: number of entries that are not installed.
    """

    dataset: str
    model: str
    folds: tuple[str, ...]
    left_out: int


def find_models(archive: Archive) -> list[StockModel]:
    """Return the models in an export of stock nnU-Net.

    Raises:
        DataError: there are none, their names are unsafe, or the archive holds pickles, code, or anything else that
            stock nnU-Net does not export.
    """
    found: dict[tuple[str, str], list[str]] = {}
    for name in archive.names:
        if match := CHECKPOINT.fullmatch(name):
            folds = found.setdefault((match[1], match[2]), [])
            folds += [match[3]] if match[4] == "final" else []
        elif not LEFT_OUT.fullmatch(name):
            raise refused(f"it holds {shown(name)}, which stock nnU-Net does not export", archive.file)
    models = []
    for (dataset, model), folds in sorted(found.items()):
        if not folds:
            raise refused(f"{dataset}/{model} has no {CHECKPOINT_FINAL}", archive.file)
        check_names(dataset, model, tuple(folds), archive.file)
        models.append(StockModel(dataset, model, tuple(sorted(folds)), 0))
    if not models:
        what = "it is neither a bundle of nnssl (no manifest.json) nor an export of stock nnU-Net (no checkpoints)"
        raise refused(what, archive.file)
    left_out = len(archive.names) - sum(len(model.folds) + 2 for model in models)
    return [StockModel(model.dataset, model.model, model.folds, left_out) for model in models]


def write_model(archive: Archive, model: StockModel, folder: Path) -> str:
    """Write a model of stock nnU-Net into an empty folder, and return a note about it; the note can be empty.

    Checkpoints are read without running what they hold, and written again with what prediction needs.

    Raises:
        DataError: a file is missing, damaged or unsafe.
        EnvironmentProblem: a file cannot be written.
    """
    inside = f"{model.dataset}/{model.model}"
    plans = archive.read_object(f"{inside}/{PLANS_JSON}", PLANS_KEYS)
    description = archive.read_object(f"{inside}/{DATASET_JSON}", DATASET_KEYS)
    check_trusted(plans, description, archive.file)
    write_json(folder / PLANS_JSON, plans)
    write_json(folder / DATASET_JSON, description)
    note = ""
    for fold in model.folds:
        place = folder / f"{FOLD_PREFIX}{fold}"
        place.mkdir()
        name, packed = f"{inside}/{place.name}/{CHECKPOINT_FINAL}", place / "packed.pth"
        archive.unpack(name, packed)
        _check_inner_sizes(packed, name, archive)
        try:
            checkpoint = load_checkpoint(packed)
        except EnvironmentProblem as error:
            raise refused(f"{name}: {error.what} ({error.why})", archive.file) from error
        packed.unlink()
        parsed = ModelName.parse(model.model)
        if parsed is None or checkpoint.configuration != parsed.configuration:
            raise refused(f"{name} is of the configuration {checkpoint.configuration!r}", archive.file)
        problem = problem_with_weights(plans, description, checkpoint.configuration, checkpoint.weights)
        if problem and (checkpoint.ours or checkpoint.trainer == STOCK_TRAINER):
            raise refused(f"{name}: {problem}", archive.file)
        if problem:
            note = f"{model.model}: the plans do not describe its network; prediction needs {checkpoint.trainer}"
        # A network that the plans describe needs no trainer class.
        network = network_of(checkpoint, {}, "" if problem else STOCK_TRAINER)
        save_checkpoint(place / CHECKPOINT_FINAL, checkpoint.weights, network, None)
    return note


def _check_inner_sizes(path: Path, name: str, archive: Archive) -> None:
    """Refuse a checkpoint, itself a zip archive, that unpacks to far more bytes than it has."""
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as content:
        total = sum(entry.file_size for entry in content.infolist())
    if total > 2 * path.stat().st_size + 2**20:
        raise refused(f"{name} unpacks to {total} bytes, far more than it has", archive.file)
