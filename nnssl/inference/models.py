"""Which trained model a prediction uses: nnU-Net's result folders, found by name or by being the only one."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import is_zipfile

from nnssl.data.domains import Setting
from nnssl.errors import DataError, UsageError
from nnssl.names import (
    BEST_JSON,
    BUDGET_TAG,
    DATASET_JSON,
    FILE_ENDING_KEY,
    FOLD_PREFIX,
    LABELS_KEY,
    PLANS_JSON,
    RESULTS_VARIABLE,
    TAG_SEPARATOR,
)
from nnssl.system.files import DATASET_KEYS, PLANS_KEYS, environment_folder, read_object
from nnssl.training.run_folder import ModelName
from nnssl.training.runs import fits_dataset
from nnssl.training.settings import DEFAULT_TAG, RunSettings

FINAL_CHECKPOINT = "checkpoint_final.pth"


@dataclass(frozen=True)
class ModelFolder:
    """One `TRAINER__PLANS__CONFIGURATION[@TAG]` folder with plans.json, dataset.json and `fold_X` folders.

    The names are empty where the folder's path does not tell them (a model given by its folder).
    """

    path: Path
    dataset: str = ""
    trainer: str = ""
    plans: str = ""
    configuration: str = ""
    tag: str = ""

    @property
    def options(self) -> str:
        """The options of `nnssl_predict` that select this model."""
        if not self.configuration:
            return f"-m {self.path}"
        names = f"-d {self.dataset} -tr {self.trainer} -p {self.plans} -c {self.configuration}"
        return f"{names} -tag {self.tag or DEFAULT_TAG}"

    def folds(self, checkpoint: str | None = None) -> list[str]:
        """Return the folds, in order, that hold `checkpoint` (None: any checkpoint)."""
        pattern = checkpoint or "checkpoint_*.pth"
        found = {file.parent.name.removeprefix("fold_") for file in self.path.glob(f"fold_*/{pattern}")}
        return sorted(found, key=lambda fold: (not fold.isdigit(), int(fold) if fold.isdigit() else 0, fold))


@dataclass(frozen=True)
class ChosenModel:
    """A trained model, and the folds of it that predict."""

    folder: ModelFolder
    folds: list[str]

    def __str__(self) -> str:
        return f"{self.folder.options}, folds {' '.join(self.folds)}"


@dataclass(frozen=True)
class ModelQuery:
    """What the user says about the model; None leaves the choice open.

    Attributes:
        folder: a model folder directly (`-m`); the names are not looked at then.
        dataset: name or id (`-d`).
        trainer: `-tr`.
        plans: `-p`.
        configuration: `-c`.
        tag: `-tag`; `default` is the run without a tag.
        checkpoint: file name inside the fold folders (`-chk`).
    """

    folder: Path | None = None
    dataset: str | int | None = None
    trainer: str | None = None
    plans: str | None = None
    configuration: str | None = None
    tag: str | None = None
    checkpoint: str = FINAL_CHECKPOINT

    def fits(self, model: ModelFolder) -> bool:
        """Return whether the model has the given names."""
        pairs = (
            (self.trainer, model.trainer),
            (self.plans, model.plans),
            (self.configuration, model.configuration),
            ("" if self.tag == DEFAULT_TAG else self.tag, model.tag),
        )
        return fits_dataset(model.dataset, self.dataset) and all(want in (None, name) for want, name in pairs)


def list_models(root: Path | None = None) -> list[ModelFolder]:
    """Return the models below `root` (default: `nnUNet_results`) that hold at least one checkpoint, sorted by path.

    Raises:
        EnvironmentProblem: `root` is not given and `nnUNet_results` is not set.
    """
    root = environment_folder("nnUNet_results") if root is None else root
    models = []
    for plans_file in sorted(root.glob("Dataset*/*__*__*/plans.json")):
        folder = plans_file.parent
        names = ModelName.parse(folder.name)
        if names and (folder / "dataset.json").is_file():
            model = ModelFolder(folder, folder.parent.name, *names)
            if model.folds():
                models.append(model)
    return models


def find_model(query: ModelQuery) -> ModelFolder:
    """Return the model the query means: the given folder, or the only trained model below `nnUNet_results` that fits.

    Raises:
        UsageError: no model, or several, fit (they are listed with the options that select each), or the only one
            has no such checkpoint because its training has not ended.
        DataError: the given folder is no model folder.
        EnvironmentProblem: `nnUNet_results` is not set.
    """
    if query.folder is not None:
        model = _model_at(_below_results(query.folder))
        return model if model.folds(query.checkpoint) else _no_checkpoint(model, query.checkpoint)
    root = environment_folder("nnUNet_results")
    models = list_models(root)
    fitting = [model for model in models if query.fits(model)]
    trained = [model for model in fitting if model.folds(query.checkpoint)]
    if len(trained) == 1:
        return trained[0]
    if trained:
        raise UsageError(
            f"{len(trained)} trained models fit: choose one",
            where=root,
            why=_listed(trained),
            run=f"nnssl_predict {trained[0].options} -i … -o …",
        )
    if len(fitting) == 1:
        return _no_checkpoint(fitting[0], query.checkpoint)
    raise UsageError(
        "no trained model fits" if models else "there is no trained model",
        where=root,
        why=f"models there:\n{_listed(models)}" if models else "",
        run="" if models else "nnssl_train trains one; -m FOLDER names a model folder elsewhere",
    )


def find_model_folder(folder: Path) -> ModelFolder:
    """Return the model of a folder, with the names that its path tells.

    Raises:
        DataError: the folder is no model folder.
    """
    return _model_at(folder)


@dataclass(frozen=True)
class BestChoice:
    """What `nnssl_find_best` chose.

    Attributes:
        file: `best.json`.
        models: with the folds that were rated.
        postprocessing: the decision, in plain values.
    """

    file: Path
    models: list[ChosenModel]
    postprocessing: dict[str, Any]


def find_best_choice(dataset: str | int | None) -> BestChoice | None:
    """Return the choice of `nnssl_find_best` for a data set (None: for the only one with trained models), or None.

    Raises:
        UsageError: a chosen run is not there any more.
        DataError: `best.json` is damaged.
        EnvironmentProblem: `nnUNet_results` is not set.
    """
    files = sorted(environment_folder("nnUNet_results").glob(f"Dataset*/{BEST_JSON}"))
    files = [file for file in files if fits_dataset(file.parent.name, dataset)]
    if len(files) != 1 or (dataset is None and {model.dataset for model in list_models()} != {files[0].parent.name}):
        return None
    content = read_object(files[0], keys=("models", "folds", "postprocessing"))
    folders = [files[0].parent / str(name) for name in content["models"]]
    gone = [folder for folder in folders if not folder.is_dir()]
    if gone or not folders:
        raise UsageError(
            "the chosen run is not there any more",
            where=files[0],
            why=", ".join(map(str, gone)) or "it names no run",
            run=f"nnssl_find_best -d {files[0].parent.name} chooses again; -m RUN names a run",
        )
    return BestChoice(files[0], find_ensemble(folders, content["folds"]), content["postprocessing"])


def find_named(model: str | Path, checkpoint: str = FINAL_CHECKPOINT) -> tuple[ModelFolder, list[str | int]]:
    """Return the model that a path, or a name below `nnUNet_results`, means, and the fold, if it means one.

    Args:
        model: path or name of a model or fold folder.
        checkpoint: file name that a fold of the model holds.

    Raises:
        UsageError: there is no such model, several have the name, or no fold of it is trained.
        DataError: the folder is no model folder.
        EnvironmentProblem: the path does not exist, and `nnUNet_results` is not set.
    """
    place = Path(model)
    if not place.is_dir():
        results = environment_folder("nnUNet_results")
        text = str(model).strip("/")
        there = sorted(path for path in results.glob("Dataset*/*__*__*") if path.is_dir())
        parts = text.rsplit("/", 1)
        fold = parts.pop() if re.fullmatch(rf"{FOLD_PREFIX}\w+", parts[-1]) and len(parts) > 1 else ""
        named = [path for path in there if "/".join(parts) in (path.name, f"{path.parent.name}/{path.name}")]
        if len(named) != 1:
            raise UsageError(
                f"several models have this name: {len(named)}" if named else "there is no such model",
                where=model,
                why="\n".join(f"{path.parent.name}/{path.name}" for path in named or there) or f"{results} has none",
                run="name the data set, too: DATASET/MODEL" if named else "nnssl_runs lists all runs",
            )
        place = named[0] / fold
    if place.name.startswith(FOLD_PREFIX):
        fold_model = find_model(ModelQuery(folder=place.parent, checkpoint=checkpoint))
        return fold_model, [place.name.removeprefix(FOLD_PREFIX)]
    return find_model(ModelQuery(folder=place, checkpoint=checkpoint)), []


def _listed(models: Iterable[ModelFolder]) -> str:
    return "\n".join(
        f"{model.options}   ({'folds ' + ' '.join(done) if (done := model.folds(FINAL_CHECKPOINT)) else 'unfinished'})"
        for model in models
    )


def _below_results(folder: Path) -> Path:
    """Return the folder, or one of this relative path below `nnUNet_results` where there is none here."""
    results = os.environ.get(RESULTS_VARIABLE)
    if results and not folder.exists() and (Path(results) / folder).is_dir():
        return Path(results) / folder
    return folder


def _model_at(folder: Path) -> ModelFolder:
    missing = [name for name in ("plans.json", "dataset.json") if not (folder / name).is_file()]
    if missing:
        if is_zipfile(folder):
            raise DataError("this is a file, not a model folder", where=folder, run=f"nnssl_install {folder}")
        inside = folder.name.startswith("fold_")
        raise DataError(
            "this is not a model folder",
            where=folder,
            why=f"it has no {' and no '.join(missing)}",
            run=f"-m {folder.parent} -f {folder.name.removeprefix('fold_')}" if inside else "",
        )
    names = ModelName.parse(folder.resolve().name)
    if names is None or not folder.resolve().parent.name.startswith("Dataset"):
        return ModelFolder(folder)
    return ModelFolder(folder, folder.resolve().parent.name, *names)


def _no_checkpoint(model: ModelFolder, checkpoint: str) -> ModelFolder:
    """Raise the error of a model without the wanted checkpoint."""
    there = sorted(file.name for file in model.path.glob("fold_*/checkpoint_*.pth"))
    unfinished = checkpoint == FINAL_CHECKPOINT and bool(there)
    fold = next(iter(model.folds()), "0")
    name, _, tag = model.plans.partition(BUDGET_TAG)
    setting = Setting.find(RunSettings.from_plans(read_object(model.path / PLANS_JSON)).setting)
    options = f" {setting.option} {setting.words}" if setting else ""
    if tag and not (setting and setting.protocol):
        options += f" -labelled {tag.partition('-fold')[0].replace('pct', '%')}"
    options = f"{name.partition(TAG_SEPARATOR)[0]}{options}"
    resume = f"nnssl_train {model.dataset} {model.configuration} {fold} -tr {model.trainer} -p {options}"
    resume += f" -tag {model.tag or DEFAULT_TAG} --c"
    raise UsageError(
        "the training of this model has not ended" if unfinished else f"no fold of this model holds {checkpoint}",
        where=model.path,
        why=f"checkpoints there: {', '.join(sorted(set(there))) or 'none'}",
        run=(f"{resume} continues it; " if unfinished and model.trainer else "")
        + (f"-chk {there[0]} predicts with what there is" if there else ""),
    )


def find_ensemble(
    models: Sequence[str | Path], folds: Sequence[str | int] | None, checkpoint: str = FINAL_CHECKPOINT
) -> list[ChosenModel]:
    """Return the models of an ensemble with their folds.

    Args:
        models: paths, or names below `nnUNet_results`, of model folders or of single folds of them.
        folds: of the models that are no single fold; None takes all that hold the checkpoint.
        checkpoint: file name inside the fold folders.

    Raises:
        UsageError: there is no such model, several have the name, a wanted fold is not trained, a fold stands twice, or
            labels, channels, file ending or reader of the models differ.
        DataError: a folder is no model folder.
        EnvironmentProblem: a path does not exist, and `nnUNet_results` is not set.
    """
    found = [find_named(model, checkpoint) for model in models]
    chosen = [ChosenModel(folder, find_folds(folder, own or folds, checkpoint)) for folder, own in found]
    _check_same_task(chosen)
    return chosen


def find_folds(model: ModelFolder, wanted: Sequence[str | int] | None, checkpoint: str = FINAL_CHECKPOINT) -> list[str]:
    """Return the folds to average: the wanted ones, or all that hold the checkpoint (`all` only where it is alone).

    Raises:
        UsageError: a wanted fold does not exist or does not hold the checkpoint.
    """
    there = model.folds(checkpoint)
    if not wanted:
        return [fold for fold in there if fold.isdigit()] or there
    folds = list(dict.fromkeys(str(fold) for fold in wanted))
    missing = [fold for fold in folds if fold not in there]
    if missing:
        raise UsageError(
            f"fold {', '.join(missing)} of this model holds no {checkpoint}",
            where=model.path,
            why=f"folds that do: {', '.join(there) or 'none'}",
            run=f"-f {' '.join(there)}" if there else "",
        )
    return folds


def _check_same_task(models: Sequence[ChosenModel]) -> None:
    """Check that the probabilities of all models mean the same labels, and that all models read the same files.

    Raises:
        UsageError: labels, channels, file ending or reader differ, or a model and fold stands twice.
        DataError: plans.json or dataset.json of a model cannot be read.
    """
    seen: set[tuple[Any, str]] = set()
    for model in models:
        again = [fold for fold in model.folds if (model.folder.path.resolve(), fold) in seen]
        if again:
            raise UsageError(f"fold {', '.join(again)} stands twice in the ensemble", where=model.folder.path)
        seen |= {(model.folder.path.resolve(), fold) for fold in model.folds}
    first, *others = [_task(model) for model in models]
    for model, task in zip(models[1:], others, strict=True):
        differing = [key for key in first if task[key] != first[key]]
        if differing:
            raise UsageError(
                f"the runs of an ensemble have the same {differing[0]}",
                where=f"{models[0].folder.path}\n{model.folder.path}",
                why="\n".join(f"{key}: {first[key]} and {task[key]}" for key in differing),
                run="choose runs on one data set, planned with one reader",
            )


def _task(model: ChosenModel) -> dict[str, Any]:
    description = read_object(model.folder.path / DATASET_JSON, keys=DATASET_KEYS)
    plans = read_object(model.folder.path / PLANS_JSON, keys=PLANS_KEYS)
    channels = description.get("channel_names", description.get("modality"))
    return {
        "labels": description[LABELS_KEY],
        "order of regions": description.get("regions_class_order"),
        "channels": channels,
        "file ending": description[FILE_ENDING_KEY],
        "reader": plans["image_reader_writer"],
    }


def told(models: Sequence[ChosenModel]) -> dict[str, Any]:
    """Return the models for JSON: `model` and `folds` of one model, null and empty for an ensemble."""
    alone = models[0] if len(models) == 1 else None
    return {
        "model": str(alone.folder.path) if alone else None,
        "folds": alone.folds if alone else [],
        "models": [{"model": str(each.folder.path), "folds": each.folds} for each in models],
    }
