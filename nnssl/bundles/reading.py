"""From a bundle of nnssl to a model folder."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from nnssl.bundles.archive import Archive, readable, refused
from nnssl.bundles.layout import MANIFEST_JSON, NETWORK_JSON, WEIGHTS, Manifest
from nnssl.bundles.trust import problems_of_description, problems_of_plans
from nnssl.errors import DataError
from nnssl.evaluation.postprocessing import Postprocessing
from nnssl.names import CHECKPOINT_FINAL, DATASET_JSON, FOLD_PREFIX, PLANS_JSON, POSTPROCESSING_JSON, RUN_JSON
from nnssl.system.files import write_json
from nnssl.training.record import RunRecord
from nnssl.training.settings import RunSettings


def read_manifest(archive: Archive) -> Manifest:
    """Return the manifest of a bundle whose entries are exactly those that it lists.

    Raises:
        DataError: an entry is not listed or missing, or has another size; or the manifest is wrong.
    """
    content = archive.read_object(MANIFEST_JSON, ("dataset", "trainer", "plans", "configuration", "tag", "folds"))
    manifest = Manifest.from_dict(content, archive.file)
    extra = [name for name in archive.names if name != MANIFEST_JSON and name not in manifest.files]
    if extra:
        raise refused(f"it holds {extra[0]!r}, which no bundle has: no pickle and no code", archive.file)
    needed = [PLANS_JSON, DATASET_JSON]
    needed += [f"{FOLD_PREFIX}{fold}/{name}" for fold in manifest.folds for name in (WEIGHTS, NETWORK_JSON)]
    for name in (*needed, *manifest.files):
        if name not in manifest.files or name not in archive.names:
            raise refused(f"{name} is missing", archive.file)
        if archive.size(name) != manifest.files[name].bytes:
            sizes = f"{archive.size(name)} bytes, its manifest says {manifest.files[name].bytes}"
            raise refused(f"{name} has {sizes}", archive.file)
    return manifest


def write_model(archive: Archive, manifest: Manifest, folder: Path) -> None:
    """Write the model of a bundle into an empty folder.

    Raises:
        DataError: an entry is damaged or has another hash, or is not what it must be.
        EnvironmentProblem: a file cannot be written.
    """
    plans, description = _checked_json(archive, manifest)
    write_json(folder / PLANS_JSON, plans)
    write_json(folder / DATASET_JSON, description)
    _write_decision(archive, manifest, POSTPROCESSING_JSON, folder)
    for fold in manifest.folds:
        place = folder / f"{FOLD_PREFIX}{fold}"
        place.mkdir()
        _write_fold(archive, manifest, place, plans, description)


def _checked_json(archive: Archive, manifest: Manifest) -> tuple[dict[str, Any], dict[str, Any]]:
    plans = _read_object(archive, manifest, PLANS_JSON)
    description = _read_object(archive, manifest, DATASET_JSON)
    check_trusted(plans, description, archive.file)
    return plans, description


def check_trusted(plans: dict[str, Any], description: dict[str, Any], file: Path) -> None:
    """Check that plans and dataset.json from outside name only what nnU-Net and nnssl have.

    Raises:
        DataError: they name something else; the message names the archive `file`.
    """
    for name, problems in (
        (PLANS_JSON, problems_of_plans(plans)),
        (DATASET_JSON, problems_of_description(description)),
    ):
        if problems:
            known = "only the networks, readers and functions of nnU-Net and nnssl are allowed"
            raise refused(f"{name}: {problems[0][:200]}; {known}", file)


def _read_object(archive: Archive, manifest: Manifest, name: str) -> dict[str, Any]:
    _check_hash(hashlib.sha256(archive.read(name)).hexdigest(), manifest, name, archive.file)
    return archive.read_object(name)


def _check_hash(found: str, manifest: Manifest, name: str, file: Path) -> None:
    if found != manifest.files[name].sha256:
        raise refused(
            f"{name} has the SHA-256 {found[:16]}…, its manifest says {manifest.files[name].sha256[:16]}…", file
        )


def _write_decision(archive: Archive, manifest: Manifest, name: str, folder: Path) -> None:
    if name in manifest.files:
        content = _read_object(archive, manifest, name)
        try:
            Postprocessing.from_dict(content).write(folder)
        except DataError as error:
            raise refused(f"{name} is no decision about post-processing ({error.why})", archive.file) from error


def _write_fold(
    archive: Archive, manifest: Manifest, folder: Path, plans: dict[str, Any], description: dict[str, Any]
) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    from nnssl.bundles.weights import FoldNetwork, problem_with_weights, save_checkpoint, with_repeats

    name, content = f"{folder.name}/{WEIGHTS}", _read_object(archive, manifest, f"{folder.name}/{NETWORK_JSON}")
    packed = folder / WEIGHTS
    _check_hash(archive.unpack(name, packed), manifest, name, archive.file)
    try:
        with readable(archive.file, f"{folder.name}/{NETWORK_JSON} and {WEIGHTS} do not fit together"):
            network = FoldNetwork.from_dict(content)
            weights = with_repeats(load_file(packed), network.aliases)
    except (SafetensorError, TypeError, AttributeError) as error:
        raise refused(f"{name} cannot be read ({error})", archive.file) from error
    packed.unlink()
    problem = problem_with_weights(plans, description, network.configuration, weights)
    if problem or network.configuration != manifest.configuration:
        raise refused(f"{name}: {problem or 'it is of another configuration'}", archive.file)
    ours = {"trainer": manifest.trainer, "run": RunSettings.from_plans(plans).to_dict()}
    save_checkpoint(folder / CHECKPOINT_FINAL, weights, network, ours)
    _write_decision(archive, manifest, f"{folder.name}/{POSTPROCESSING_JSON}", folder)
    if f"{folder.name}/{RUN_JSON}" in manifest.files:
        write_json(folder / RUN_JSON, _read_object(archive, manifest, f"{folder.name}/{RUN_JSON}"))
        if RunRecord.read(folder) is None:
            raise refused(f"{folder.name}/{RUN_JSON} is no record of a run", archive.file)
