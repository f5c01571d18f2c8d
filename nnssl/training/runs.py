"""All runs below `nnUNet_results`: what there is, where each stands, and which one a few names mean."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nnssl.errors import DataError, UsageError
from nnssl.names import (
    CHECKPOINT_PATTERN,
    FOLD_PREFIX,
    GT_FOLDER,
    PLANS_JSON,
    PREPROCESSED_VARIABLE,
    RESULTS_VARIABLE,
    SEMI_KEY,
    VALIDATION_FOLDER,
)
from nnssl.system.files import environment_folder
from nnssl.training.record import RunRecord, Scores, State, training_seconds
from nnssl.training.run_folder import FINAL, ModelName, is_locked
from nnssl.training.settings import DEFAULT_TAG

if TYPE_CHECKING:
    from nnssl.evaluation.summary import EvaluationResult


@dataclass(frozen=True)
class Run:
    """One fold of one model, as far as its files tell.

    Attributes:
        folder: the fold's folder.
        dataset: folder name of the data set.
        trainer: class name of the method.
        plans: plans name, with the tag of the label budget.
        configuration: for instance `3d_fullres`.
        fold: fold number as text, or `all`.
        tag: name of the run; empty for the default run.
        state: `running`, `stopped`, `failed` or `done`; a run that was killed is `stopped`.
        iteration: optimiser steps that are done, None where no file tells.
        num_iterations: length of the run, None where no file tells.
        validation_dice: mean Dice of the validation, None where the run was not validated.
        postprocessed_dice: the same after post-processing, None where no file tells.
        seconds: time that training took so far.
        command: the command that began the run; empty for runs without a record.
    """

    folder: Path
    dataset: str
    trainer: str
    plans: str
    configuration: str
    fold: str
    tag: str
    state: State
    iteration: int | None
    num_iterations: int | None
    validation_dice: float | None
    postprocessed_dice: float | None
    seconds: float
    command: str

    @property
    def progress(self) -> str:
        """The state in words: `stopped at 120 of 2500`."""
        if self.state in ("stopped", "failed") and self.iteration is not None:
            return f"{self.state} at {self.iteration}" + (f" of {self.num_iterations}" if self.num_iterations else "")
        return self.state

    @property
    def options(self) -> str:
        """The options that select this run in `nnssl_predict` and `nnssl_evaluate`."""
        names = f"-d {self.dataset} -tr {self.trainer} -p {self.plans} -c {self.configuration} -f {self.fold}"
        return f"{names} -tag {self.tag or DEFAULT_TAG}"

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {**vars(self), "folder": str(self.folder), "tag": self.tag or DEFAULT_TAG}


def runs(
    dataset: str | int | None = None,
    trainer: str | None = None,
    plans: str | None = None,
    configuration: str | None = None,
    tag: str | None = None,
    fold: str | int | None = None,
) -> list[Run]:
    """Return the runs below `nnUNet_results` that have these names, sorted; None leaves a name open.

    Runs of stock nnU-Net and of earlier versions are among them, with what their files tell.

    Args:
        dataset: folder name or id.
        trainer: class name.
        plans: plans name, with the tag of the label budget.
        configuration: for instance `3d_fullres`.
        tag: tag of the run, `default` for the run without a tag.
        fold: fold number, or "all".

    Raises:
        EnvironmentProblem: `nnUNet_results` is not set.
    """
    wanted = (trainer, plans, configuration, "" if tag == DEFAULT_TAG else tag)
    found = []
    for folder in sorted(environment_folder(RESULTS_VARIABLE).glob(f"Dataset*/*__*__*/{FOLD_PREFIX}*")):
        name = ModelName.parse(folder.parent.name)
        if name is None or not fits_dataset(folder.parents[1].name, dataset):
            continue
        if any(asked not in (None, given) for asked, given in zip(wanted, name, strict=True)):
            continue
        number = folder.name.removeprefix(FOLD_PREFIX)
        if fold in (None, number) or str(fold) == number:
            found += _run_in(folder, name, number)
    return found


def fits_dataset(name: str, wanted: str | int | None) -> bool:
    """Return whether a data set's folder name is the one that a name, an id or None (any) means."""
    if wanted is None or name == str(wanted):
        return True
    number = re.fullmatch(r"(?:Dataset)?(\d+)", str(wanted))
    return number is not None and re.match(rf"Dataset{int(number[1]):03d}_", name) is not None


def evaluate_run(
    dataset: str | int | None = None,
    trainer: str | None = None,
    plans: str | None = None,
    configuration: str | None = None,
    tag: str | None = None,
    fold: str | int | None = None,
    **options: Any,  # noqa: ANN401 - those of `nnssl.evaluate`
) -> EvaluationResult:
    """Score the validation masks of one run again, for instance with other metrics; see `nnssl.evaluate`.

    Args:
        dataset: as the other names, see `runs`; the names must leave one validated run.
        trainer: class name.
        plans: plans name.
        configuration: for instance `3d_fullres`.
        tag: tag of the run.
        fold: fold number, or "all".
        options: of `nnssl.evaluate`.

    Raises:
        UsageError: no validated run fits, or several do; the message lists them.
        DataError: the references are missing.
        EnvironmentProblem: `nnUNet_results` or `nnUNet_preprocessed` is not set.
    """
    from nnssl.evaluation.api import evaluate

    fitting = runs(dataset, trainer, plans, configuration, tag, fold)
    run = only_run([run for run in fitting if (run.folder / VALIDATION_FOLDER).is_dir()], "validated run")
    references = environment_folder(PREPROCESSED_VARIABLE) / run.dataset / GT_FOLDER
    if not references.is_dir():
        raise DataError(
            "the references of the validation cases are missing",
            where=references,
            run=f"nnssl_plan_and_preprocess -d {run.dataset}",
        )
    placement = {"same_placement": False, "chill": True}  # as after training
    return evaluate(references, run.folder / VALIDATION_FOLDER, **{**placement, **options})


def only_run(fitting: list[Run], kind: str = "run") -> Run:
    """Return the only run of a list.

    Raises:
        UsageError: the list is empty, or has several; the message lists them with the options that select each.
    """
    if len(fitting) == 1:
        return fitting[0]
    if not fitting:
        raise UsageError(f"no {kind} fits", where=environment_folder(RESULTS_VARIABLE), run="nnssl_runs lists all runs")
    raise UsageError(
        f"{len(fitting)} {kind}s fit: choose one",
        where=environment_folder(RESULTS_VARIABLE),
        why=lines_of(fitting),
        run=fitting[0].options,
    )


def lines_of(found: Iterable[Run]) -> str:
    """Return one line a run: the options that select it, and its state."""
    return "\n".join(f"{run.options}   ({run.progress})" for run in found)


def _run_in(folder: Path, name: ModelName, fold: str) -> list[Run]:
    """Return the run in a fold's folder; nothing where the folder holds none."""
    record = RunRecord.read(folder)
    if record is None and not any(folder.glob(CHECKPOINT_PATTERN)):
        return []
    seconds, logged = training_seconds(folder)
    scores = Scores.of_validation(folder / VALIDATION_FOLDER)
    if record is None:
        iteration, length, command = logged or None, _length_in_plans(folder.parent / PLANS_JSON), ""
        state: State = "done" if (folder / FINAL).is_file() else "stopped"
    else:
        iteration, length = max(record.iteration, logged), record.settings.num_iterations
        command = record.sessions[0].command if record.sessions else ""
        state = "stopped" if record.state == "running" else record.state
    return [
        Run(
            folder,
            folder.parents[1].name,
            name.trainer,
            name.plans,
            name.configuration,
            fold,
            name.tag,
            "running" if is_locked(folder) else state,
            iteration,
            length,
            scores.dice if scores else None,
            scores.postprocessed.dice if scores and scores.postprocessed else None,
            round(seconds, 1),
            command,
        )
    ]


def _length_in_plans(file: Path) -> int | None:
    """Return the length of the run that nnssl wrote into a model's plans; None for stock nnU-Net's."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        return int(json.loads(file.read_text(encoding="utf-8"))[SEMI_KEY]["run"]["num_iterations"])
    return None
