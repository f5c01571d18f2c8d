"""The run that another run starts from: where its checkpoint lies, and whether it fits."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nnssl.errors import EnvironmentProblem, UsageError
from nnssl.host import plans_manager
from nnssl.names import CHECKPOINT_FINAL, FOLD_PREFIX
from nnssl.training.record import RunRecord
from nnssl.training.run_folder import ModelName

SAME = ("spacing", "normalization_schemes", "use_mask_for_norm")  # decide what a network sees


def find_start(
    text: str | Path, dataset_results: Path, fold: int | str, plans: Mapping[str, Any], configuration: str
) -> Path:
    """Return the checkpoint that `-start_from` names.

    Args:
        text: a checkpoint; a fold's folder; a model's folder, by its path or by its name below the results of the data
            set; or the name of a trainer with an optional tag, `SupervisedTrainer@seed1`, with plans and configuration
            of this run.
        dataset_results: the data set's folder in nnUNet_results.
        fold: fold of the new run; a model's folder means this fold.
        plans: plans of the new run.
        configuration: for instance `3d_fullres`.

    Raises:
        UsageError: nothing of this name exists.
        EnvironmentProblem: the run is not finished.
    """
    trainer, _, tag = str(text).partition("@")
    named = dataset_results / ModelName(trainer, plans["plans_name"], configuration, tag).folder
    places = (Path(text), dataset_results / text, named)
    place = next((each for each in places if each.exists()), None)
    if place is None:
        raise UsageError(
            "there is no such run to start from",
            where=f"-start_from {text}",
            why=f"it is no file and no folder, neither here nor in {dataset_results}",
            run="nnssl_runs lists all runs",
        )
    if place.is_file():
        return place.resolve()
    folder = place if place.name.startswith(FOLD_PREFIX) else place / f"{FOLD_PREFIX}{fold}"
    if (folder / CHECKPOINT_FINAL).is_file():
        return (folder / CHECKPOINT_FINAL).resolve()
    record = RunRecord.read(folder)
    raise EnvironmentProblem(
        "the run to start from is not finished" if folder.is_dir() else "the run to start from has no such fold",
        where=folder,
        why=f"there is no {CHECKPOINT_FINAL}",
        run=f"{record.sessions[0].command} --c" if record and record.sessions else "",
    )


def find_pseudo_labels(folder: str | Path, trainer: str, takes_them: bool) -> str:
    """Return the folder that `-pseudo_labels` names, as a whole path.

    Args:
        folder: with masks of unlabelled scans.
        trainer: class name of the method.
        takes_them: whether the method learns from such masks.

    Raises:
        UsageError: the folder does not exist, or the method cannot take pseudo-labels.
    """
    if not takes_them:
        raise UsageError(
            f"{trainer} makes its pseudo-labels itself",
            where=f"-pseudo_labels {folder}",
            run="leave this option out, or train with -tr SelfTrainingTrainer",
        )
    if not Path(folder).is_dir():
        raise UsageError("there is no such folder of masks", where=f"-pseudo_labels {folder}")
    return str(Path(folder).resolve())


def name_of_start(file: Path, results: Path) -> str:
    """Return the checkpoint as the settings of a run keep it: below `nnUNet_results`, or as a whole path."""
    results = results.resolve()
    return str(file.relative_to(results)) if file.is_relative_to(results) else str(file)


def check_start(
    checkpoint: Mapping[str, Any], plans: dict[str, Any], configuration: str, dataset_json: Mapping[str, Any], file: str
) -> None:
    """Check that a network was trained on images and labels like those of this run.

    Args:
        checkpoint: of nnssl or of stock nnU-Net.
        plans: plans of this run.
        configuration: for instance `3d_fullres`.
        dataset_json: of this run.
        file: the checkpoint's, for the message.

    Raises:
        EnvironmentProblem: voxel size, normalisation, channels or labels differ.
    """
    theirs = checkpoint.get("init_args")
    if not isinstance(theirs, Mapping) or "network_weights" not in checkpoint:
        raise EnvironmentProblem("this is no checkpoint of nnU-Net", where=file)
    own = plans_manager(plans).get_configuration(configuration).configuration
    other_plans = plans_manager(dict(theirs["plans"]))
    if theirs["configuration"] not in other_plans.available_configurations:
        raise EnvironmentProblem("this checkpoint does not name its configuration", where=file)
    other = other_plans.get_configuration(theirs["configuration"]).configuration
    pairs = [(name, own.get(name), other.get(name)) for name in SAME]
    pairs += [("labels", dataset_json["labels"], theirs["dataset_json"]["labels"])]
    pairs += [("channels", channels(dataset_json), channels(theirs["dataset_json"]))]
    different = [f"{name}: {there}, here {here}" for name, here, there in pairs if here != there]
    if different:
        raise EnvironmentProblem(
            "the run to start from was trained on other images or labels", where=file, why="\n".join(different)
        )


def channels(dataset_json: Mapping[str, Any]) -> list[str]:
    """Return the names of the channels in dataset.json."""
    names: Mapping[str, str] = dataset_json.get("channel_names") or dataset_json["modality"]
    return list(names.values())
