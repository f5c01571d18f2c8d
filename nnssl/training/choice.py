"""Which run a call of `nnssl_train` means: the folder of a new run, or the run that goes on."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnssl.config import format_value
from nnssl.data.domains import Setting
from nnssl.errors import EnvironmentProblem, UsageError
from nnssl.names import DEFAULT_PLANS, FOLD_PREFIX, PLANS_JSON, TAG_SEPARATOR
from nnssl.system.files import read_object
from nnssl.training.record import RunRecord
from nnssl.training.run_folder import FINAL, LATEST, ModelName, has_run, put_back_after_kill
from nnssl.training.runs import Run, only_run, runs
from nnssl.training.settings import DEFAULT_TAG, RunSettings, automatic_tag


@dataclass(frozen=True)
class Place:
    """Where a run stands.

    Attributes:
        folder: the fold's folder.
        settings: of the run, with its tag.
        resume: the checkpoint that goes on, None for a new run.
    """

    folder: Path
    settings: RunSettings
    resume: Path | None = None


def place_to_start(
    dataset_results: Path,
    name: ModelName,
    fold: int | str,
    tag: str | None,
    given: Mapping[str, Any],
    pretrained: bool,
) -> Place:
    """Return the place of a new run.

    Args:
        dataset_results: the data set's folder in nnUNet_results.
        name: trainer, plans and configuration.
        fold: fold number, or "all".
        tag: as `check_tag` returns it; None makes one from the settings.
        given: the settings that the user gave.
        pretrained: the run starts from other weights.
    """
    run = RunSettings(**given)
    run = dataclasses.replace(run, tag=automatic_tag(run, pretrained) if tag is None else tag)
    return Place(_fold_folder(dataset_results, name, fold, run.tag), run)


def place_to_continue(
    dataset_results: Path,
    name: ModelName,
    fold: int | str,
    tag: str | None,
    given: Mapping[str, Any],
    training: bool,
) -> Place:
    """Return the place of the run that `--c` or `--val` means; arguments as of `place_to_start`.

    Args:
        dataset_results: the data set's folder in nnUNet_results.
        name: trainer, plans and configuration.
        fold: fold number, or "all".
        tag: as `check_tag` returns it; None finds the run by its settings.
        given: the settings that the user gave.
        training: the run trains on; False only validates it.

    Raises:
        UsageError: several runs fit (the message lists them), or the settings are not those of the run.
        EnvironmentProblem: there is no checkpoint to continue from.
    """
    found = _run_that_goes_on(dataset_results.name, name, fold, tag, given)
    folder = found.folder if found else _fold_folder(dataset_results, name, fold, tag or "")
    resume = _checkpoint_to_resume(folder, training, given.get("num_iterations"))
    return Place(folder, _stored_settings(resume, given, found.tag if found else ""), resume)


def _fold_folder(dataset_results: Path, name: ModelName, fold: int | str, tag: str) -> Path:
    return dataset_results / name._replace(tag=tag).folder / f"{FOLD_PREFIX}{fold}"


def refuse_to_replace(folder: Path) -> None:
    """Raise where a run stands in the folder, with the ways out that its state allows.

    A run that a killed `--overwrite` had put aside is put back first.

    Raises:
        UsageError: a run stands there.
        EnvironmentProblem: another process is replacing the run.
    """
    put_back_after_kill(folder)
    if not has_run(folder):
        return
    number, name = folder.name.removeprefix(FOLD_PREFIX), ModelName.parse(folder.parent.name)
    names = {} if name is None else name._asdict() | {"tag": name.tag or DEFAULT_TAG}
    (found,) = runs(folder.parents[1].name, fold=number, **names)
    dice = "" if found.validation_dice is None else f", validation Dice {found.validation_dice:.3f}"
    ways = ["--c continues it"] if found.state != "done" else []
    raise UsageError(
        "a run of this name exists already",
        where=folder,
        why=f"{found.progress}{dice}; a new run does not replace it unasked",
        run="; ".join([*ways, "--overwrite replaces it", "-tag NAME keeps both"]),
    )


def _run_that_goes_on(
    dataset: str, name: ModelName, fold: int | str, tag: str | None, given: Mapping[str, Any]
) -> Run | None:
    """Return the run that `--c` or `--val` means, None where there is none.

    That is the run of the given tag; else the run whose tag follows from the given settings; else the only run whose
    settings agree with them; else the only run, whose settings are then compared.

    Raises:
        UsageError: several runs fit; the message lists them.
    """
    asked = None if tag is None else tag or DEFAULT_TAG
    found = runs(dataset, name.trainer, name.plans, name.configuration, asked, fold)
    wanted = RunSettings(**given)
    tags = {automatic_tag(wanted), automatic_tag(wanted, pretrained=True)}
    of_tag = [run for run in found if run.tag in tags]
    agreeing = [run for run in found if _agree(run.folder, given)]
    for choice in (of_tag, agreeing, found):
        if len(choice) == 1:
            return choice[0]
    return only_run(agreeing or found) if found else None


def _agree(folder: Path, given: Mapping[str, Any]) -> bool:
    """Return whether a run's record (before there were records, the plans of its model) has the given settings."""
    record = RunRecord.read(folder)
    if record is not None:
        stored = record.settings.to_dict()
    else:
        file = folder.parent / PLANS_JSON
        stored = RunSettings.from_plans(read_object(file)).to_dict() if file.is_file() else {}
    return all(stored.get(key) == value for key, value in given.items())


def _checkpoint_to_resume(folder: Path, continue_training: bool, length: int | None) -> Path:
    """Return the checkpoint that goes on: the whole state where training goes on, else the deployed network."""
    final, latest = folder / FINAL, folder / LATEST
    record = RunRecord.read(folder)
    unfinished = record is not None and (record.state != "done" or (length or 0) > record.settings.num_iterations)
    if final.is_file() and not (continue_training and unfinished and latest.is_file()):
        return final
    from nnssl.training import checkpoints  # imports torch, so that the other checks come first

    if continue_training and (latest.is_file() or checkpoints.previous(latest).is_file()):
        return latest
    raise EnvironmentProblem(
        "there is no checkpoint to continue from" if continue_training else "this run is not finished",
        where=folder,
        run="the same command without --c starts the run" if continue_training else "the same command with --c",
    )


def _stored_settings(resume: Path, given: Mapping[str, Any], tag: str) -> RunSettings:
    """Return the settings in the checkpoint of a run that goes on.

    Raises:
        EnvironmentProblem: nnssl did not write the checkpoint.
        UsageError: the settings that were given differ.
    """
    from nnssl.training import checkpoints

    checkpoint = checkpoints.load_newest(resume) if resume.name == LATEST else checkpoints.load(resume)
    stored = checkpoint.get(checkpoints.KEY, {}).get("run")
    if stored is None:
        raise EnvironmentProblem("this checkpoint was not written by nnssl", where=resume)
    length = given.get("num_iterations", 0)
    if resume.name == LATEST and length > stored["num_iterations"]:
        stored = {**stored, "num_iterations": length}
    different = [
        f"{name}: stored {stored.get(name)}, asked {value}"
        for name, value in given.items()
        if stored.get(name) != value
    ]
    if different:
        raise UsageError(
            "a continued run keeps its settings",
            where=resume,
            why="\n".join(different),
            run="leave these options out, or start a new run without --c",
        )
    return RunSettings(**{**stored, "tag": tag})


def command_line(  # noqa: PLR0913, PLR0917 - the parts of a command line
    dataset: str,
    name: ModelName,
    fold: int | str,
    run: RunSettings,
    num_gpus: int,
    pretrained: str | None,
    flags: Iterable[str],
) -> str:
    """Return the `nnssl_train` command line of a session: its flags, and what differs from the defaults."""
    words = ["nnssl_train", dataset, name.configuration, str(fold), "-tr", name.trainer]
    default, plans = RunSettings(), name.plans.partition(TAG_SEPARATOR)[0]
    setting = Setting.find(run.setting)
    for flag, value, usual in (
        ("-p", plans, DEFAULT_PLANS),
        (setting.option if setting else "-setting", setting, None),
        ("-labelled", None if setting and setting.protocol else run.labelled, None),
        ("-num_iterations", run.num_iterations, default.num_iterations),
        ("-seed", run.seed, default.seed),
        ("-num_gpus", num_gpus, 1),
        ("-pretrained_weights", pretrained, None),
        ("-start_from", run.start_from, default.start_from),
        ("-pseudo_labels", run.pseudo_labels, default.pseudo_labels),
    ):
        words += [flag, str(value)] if value != usual else []
    words += ["--set", *(f"{key}={format_value(value)}" for key, value in run.config.items())] if run.config else []
    words += ["--bf16"] if run.bf16 else []
    words += ["-tag", run.tag or DEFAULT_TAG] if run.tag != automatic_tag(run, bool(pretrained)) else []
    return shlex.join([*words, *flags])
