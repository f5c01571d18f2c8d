"""`nnssl.export_model` and `nnssl.install_model`: a trained model as one file, and back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nnssl.bundles.archive import Archive, open_archive
from nnssl.bundles.layout import MANIFEST_JSON
from nnssl.bundles.placing import check_free, put_in_place, staging
from nnssl.errors import UsageError
from nnssl.inference.models import ModelFolder, find_folds, find_named
from nnssl.names import RESULTS_VARIABLE
from nnssl.system.files import check_output_file, content_hash, environment_folder


@dataclass(frozen=True)
class ExportResult:
    """What `export_model` did.

    Attributes:
        file: the bundle.
        model: the model's folder.
        folds: in the bundle.
        bytes: size of the bundle.
        sha256: of the bundle, for those who receive it.
        removed: what the bundle leaves out for privacy.
        onnx: the ONNX file, None where none was asked for.
        onnx_difference: largest difference of the logits between ONNX and torch, None likewise.
    """

    file: Path
    model: Path
    folds: list[str]
    bytes: int
    sha256: str
    removed: list[str]
    onnx: Path | None = None
    onnx_difference: float | None = None


@dataclass(frozen=True)
class InstallResult:
    """What `install_model` did.

    Attributes:
        models: the installed model folders.
        kind: `nnssl` or `nnU-Net`, whose file it was.
        folds: of the first model.
        notes: what a user should know.
    """

    models: list[Path]
    kind: str
    folds: list[str]
    notes: list[str] = field(default_factory=list)


def export_model(
    model: str | Path, output: str | Path, *, folds: Sequence[str | int] | None = None, onnx: str | Path | None = None
) -> ExportResult:
    """Write a trained model into one file without pickle and code; the same model gives the same bytes.

    The bundle holds the weights of the deployed network as safetensors, plans.json, what prediction needs of
    dataset.json, the records of the runs without paths, the stored decisions about post-processing, and a manifest
    with sizes and SHA-256. Names of cases and patients are not in it.

    Args:
        model: model or fold folder, as a path or as its name below `nnUNet_results`.
        output: the bundle, a `.zip` file; an existing one is replaced.
        folds: folds to export; None takes all with a final checkpoint.
        onnx: also write the network of the only fold as ONNX file for one patch.

    Raises:
        UsageError: there is no such model or fold, training has not ended, or a trainer class builds the network.
        DataError: plans.json, dataset.json or a decision about post-processing is damaged.
        EnvironmentProblem: a checkpoint is damaged, a file cannot be written, or a package for ONNX is missing.
    """
    found, own = find_named(model)
    _check_named(found)
    chosen = tuple(find_folds(found, folds or own))
    file = Path(output)
    if file.suffix.lower() != ".zip":
        raise UsageError("a bundle is a .zip file", where=f"-o {file}", run=f"-o {file}.zip")
    check_output_file(file)
    if onnx is not None:
        from nnssl.bundles.onnx_file import check_packages

        check_output_file(Path(onnx))
        check_packages()
        if len(chosen) > 1:
            raise UsageError("an ONNX file holds one fold", why=f"folds: {', '.join(chosen)}", run=f"-f {chosen[0]}")
    from nnssl.bundles.writing import write_bundle

    manifest = write_bundle(found, chosen, file)
    difference = None
    if onnx is not None:
        from nnssl.bundles.onnx_file import write_onnx

        difference = write_onnx(found.path, chosen[0], Path(onnx))
    return ExportResult(
        file=file,
        model=found.path,
        folds=list(chosen),
        bytes=file.stat().st_size,
        sha256=content_hash(file),
        removed=list(manifest.removed),
        onnx=None if onnx is None else Path(onnx),
        onnx_difference=difference,
    )


def _check_named(model: ModelFolder) -> None:
    """Check that a model's folder is named as nnU-Net names models.

    Raises:
        UsageError: it is not, so that nobody could install the model again.
    """
    if not model.configuration:
        raise UsageError(
            "the folder has no name of a model",
            where=model.path,
            why="a model stands in DatasetXXX_NAME/TRAINER__PLANS__CONFIGURATION",
            run="give the folder the name that it had in nnUNet_results",
        )


def install_model(file: str | Path, *, overwrite: bool = False) -> InstallResult:
    """Install a bundle of nnssl, or an export of stock nnU-Net, into `nnUNet_results`: all of it or nothing.

    No pickle and no code of the file is run. Everything is checked in a hidden folder before it takes its place.

    Args:
        file: the bundle.
        overwrite: replace a model of the same name.

    Raises:
        UsageError: there is no such file, or a model of the name stands there.
        DataError: the bundle is refused: unsafe, damaged, or not what it must be.
        EnvironmentProblem: `nnUNet_results` is not set or cannot be written.
    """
    results = environment_folder(RESULTS_VARIABLE)
    with open_archive(Path(file)) as archive:
        if MANIFEST_JSON in archive.names:
            return _install_ours(archive, results, overwrite)
        return _install_stock(archive, results, overwrite)


def _install_ours(archive: Archive, results: Path, overwrite: bool) -> InstallResult:
    from nnssl.bundles.reading import read_manifest, write_model

    manifest = read_manifest(archive)
    target = results / manifest.dataset / manifest.model
    with staging(results) as folder:
        check_free([target], overwrite, archive.file)
        finished = folder / "model"
        finished.mkdir()
        write_model(archive, manifest, finished)
        put_in_place([(finished, target)])
    return InstallResult([target], "nnssl", list(manifest.folds), _notes(results, manifest.dataset))


def _install_stock(archive: Archive, results: Path, overwrite: bool) -> InstallResult:
    from nnssl.bundles.stock import find_models, write_model

    models = find_models(archive)
    targets = [results / model.dataset / model.model for model in models]
    notes = [f"{models[0].left_out} files that prediction does not need stayed in the archive, unread"]
    with staging(results) as folder:
        check_free(targets, overwrite, archive.file)
        pairs: list[tuple[Path, Path]] = []
        for model, target in zip(models, targets, strict=True):
            finished = folder / str(len(pairs))
            finished.mkdir()
            notes += filter(None, [write_model(archive, model, finished)])
            pairs.append((finished, target))
        put_in_place(pairs)
    return InstallResult(targets, "nnU-Net", list(models[0].folds), notes + _notes(results, models[0].dataset))


def _notes(results: Path, dataset: str) -> list[str]:
    """Return a note where another data set has the same id, which stock nnU-Net does not accept."""
    number = dataset.partition("_")[0]
    others = sorted(path.name for path in results.glob(f"{number}_*") if path.name != dataset)
    return [f"another data set has the id of {dataset}: {', '.join(others)}; name models with -m"] if others else []


def to_plain(result: ExportResult | InstallResult) -> dict[str, Any]:
    """Return a result as plain values for JSON."""
    return dict(vars(result))
