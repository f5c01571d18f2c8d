"""Start, continue or validate one run: what `nnssl_train` and `nnssl.train` do."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from nnssl.config import MethodConfig, Value, config_with
from nnssl.config_source import settings_without_torch
from nnssl.data.cache import parse_size
from nnssl.data.domains import Setting, choose
from nnssl.data.protocols import is_of_protocol
from nnssl.data.raw import dataset_name
from nnssl.data.splits import LabelBudget, cases_of_run, read_splits, splits_file
from nnssl.errors import DataError, EnvironmentProblem, UsageError
from nnssl.names import (
    DATASET_JSON,
    NAME_SEPARATOR,
    PREPROCESSED_VARIABLE,
    RESULTS_VARIABLE,
    SEMI_KEY,
    SPLITS_JSON,
    SUMMARY_JSON,
    TAG_SEPARATOR,
    VALIDATION_FOLDER,
)
from nnssl.registry import DEFAULT_METHOD, Method, check_networks, find_method
from nnssl.system.devices import choose_device, has_bfloat16
from nnssl.system.files import DATASET_KEYS, PLANS_KEYS, check_writable, environment_folder, read_object
from nnssl.training.choice import command_line, place_to_continue, place_to_start, refuse_to_replace
from nnssl.training.job import Job, run_job
from nnssl.training.launched import one_job, refuse_num_gpus, share
from nnssl.training.record import RunRecord
from nnssl.training.run_folder import BEST, FINAL, ModelName, lock_fold, start_in
from nnssl.training.settings import RunSettings, check_tag
from nnssl.training.start import find_pseudo_labels, find_start, name_of_start
from nnssl.training.tracking import check_trackers

log = logging.getLogger("nnssl.train")
CPU_RUN = "-device cpu (with plans made by -hardware cpu)"


@dataclass(frozen=True)
class TrainResult:
    """Where a run left its files.

    Attributes:
        folder: the fold's folder with checkpoints, progress.jsonl, progress.csv and progress.png.
        checkpoint: `checkpoint_final.pth`, the deployed network.
        summary: scores of the validation cases, None where validation was not asked for.
        settings: what the run was asked to do.
        record: what `run.json` says: scores, times, versions, commit.
    """

    folder: Path
    checkpoint: Path
    summary: Path | None
    settings: RunSettings
    record: RunRecord | None

    @property
    def next_commands(self) -> str:
        """What to run next, one command a line."""
        _, plans, configuration = self.folder.parent.name.split(NAME_SEPARATOR)
        what = f"{self.folder.parents[1].name} -p {plans} -c {configuration.partition(TAG_SEPARATOR)[0]}"
        predict = f"run:  nnssl_predict -i IMAGES -o PREDICTIONS -m {self.folder.parent}"
        return f"{predict}\nruns: nnssl_runs\nreport: nnssl_report -d {what} -o REPORT"


def _follow(content: tuple[Job, Path]) -> TrainResult:
    """Do the job of the first process of a launcher, and return its result."""
    job, folder = content
    run_job(job)
    return _result(job, folder)


@one_job(_follow)
def train(  # noqa: PLR0913 - the public API names every option
    dataset: str | int,
    configuration: str,
    fold: int | str,
    *,
    trainer: str = DEFAULT_METHOD,
    plans: str = "nnUNetPlans",
    labelled: str | None = None,
    protocol: str | None = None,
    pick: int = 0,
    num_iterations: int | None = None,
    seed: int | None = None,
    tag: str | None = None,
    overwrite: bool = False,
    bf16: bool = False,
    settings: Mapping[str, Value] | Iterable[str] = (),
    device: str = "auto",
    num_gpus: int = 1,
    continue_training: bool = False,
    only_validation: bool = False,
    validate_best: bool = False,
    save_probabilities: bool = False,
    disable_checkpointing: bool = False,
    pretrained_weights: str | None = None,
    start_from: str | Path | None = None,
    pseudo_labels: str | Path | None = None,
    run_validation: bool = True,
    progress: Literal["bar", "lines", "off"] | None = None,
    setting: str | Setting | None = None,
    track: Sequence[str] = (),
    cache: str | None = None,
) -> TrainResult:
    """Train one fold of a preprocessed data set and score its validation cases.

    Args:
        dataset: id or folder name of the data set.
        configuration: `2d`, `3d_fullres` or `3d_lowres`.
        fold: fold number, or "all".
        trainer: class name of the method (`nnssl_methods` lists them).
        plans: plans name, without the tag of the label budget.
        labelled: label budget, patients (`7`) or percent (`10%`); None uses every label.
        pick: number of another seeded choice of the labelled patients; 0 is the order in `splits_final.json`.
        protocol: published protocol, `acdc-7`, that the data set was planned with: its lists and its label budget.
        num_iterations: optimiser steps (default 250 000, nnU-Net's 1000 epochs), the stored ones when continuing.
        seed: default 0.
        tag: name of the run beside other runs of this method; None makes one from what differs from the defaults, and
            `default` is the run without a tag. With `continue_training` or `only_validation`: which run is meant.
        overwrite: replace the run of the same name; without it such a run is an error.
        bf16: calculate in bfloat16, on the CPU as well (default: fp16 on CUDA, fp32 elsewhere).
        settings: method settings, `{"name": value}` or `["name=value"]`.
        device: `auto`, `cuda`, `cpu` or `mps`.
        num_gpus: processes of distributed training on one machine.
        continue_training: go on from the last checkpoint; with a larger `num_iterations` the run becomes longer.
        only_validation: validate a finished run, do not train.
        validate_best: validate checkpoint_best.pth instead of the last weights.
        save_probabilities: also write the validation cases' probabilities.
        disable_checkpointing: write no checkpoint.
        pretrained_weights: nnU-Net checkpoint to start from; its segmentation layers and teachers are left out.
        start_from: finished run, fold or checkpoint with the same plans, of nnssl or of stock nnU-Net; all networks of
            the method start from its weights, and the supervised stage and other pre-training fall away.
        pseudo_labels: folder with masks of unlabelled scans, made elsewhere: `CASE.nii.gz`, and optionally
            `CASE_confidence.nii.gz`; for methods that learn from stored pseudo-labels. The supervised stage falls away.
        run_validation: score the validation cases at the end.
        progress: `bar`, `lines` (one a minute) or `off`; None takes the bar on a terminal and lines elsewhere.
        setting: setting of domains that the data set was planned with, `umda:SOURCE->TARGET` or `mdg:TARGET`.
        track: trackers that also get the progress: `tensorboard`, `mlflow`, `wandb`; a continued run keeps its own.
        cache: memory for decoded cases, `4GB` for example; the batches are the same.

    Returns:
        The run's files.

    Raises:
        UsageError: unknown trainer, setting or fold, or options that contradict each other.
        DataError: the data set is not planned or preprocessed for this run.
        EnvironmentProblem: device, paths or checkpoint.
        StoppedBySignal: SIGTERM or SIGUSR1; the run is saved.
    """
    method = find_method(trainer)
    config = _config_of(method, settings)
    check_trackers(track)
    masks = find_pseudo_labels(pseudo_labels, trainer, method.takes_pseudo_labels) if pseudo_labels else None
    domains, labelled = choose(setting, protocol, labelled, fold, pick)
    if TAG_SEPARATOR in plans:
        raise UsageError(
            "the plans name is given without the tags of setting and label budget",
            where=f"-p {plans}",
            run=f"-p {plans.partition(TAG_SEPARATOR)[0]} -labelled N (and -setting, where the data set has domains)",
        )
    tag = None if tag is None else check_tag(tag)
    goes_on = _goes_on(continue_training, only_validation, validate_best and disable_checkpointing)
    _check_options(goes_on, overwrite, pretrained_weights, start_from)
    root = environment_folder(PREPROCESSED_VARIABLE, must_exist=True)
    results = environment_folder(RESULTS_VARIABLE)
    preprocessed = root / dataset_name(dataset, root, f"nnssl_plan_and_preprocess -d {dataset}")
    if protocol and domains is None:
        _check_protocol(preprocessed, protocol, configuration)
    budget = LabelBudget.parse(labelled) if labelled else None
    plan = _plans_for(preprocessed, plans, configuration, fold, budget, domains)
    start = find_start(start_from, results / preprocessed.name, fold, plan, configuration) if start_from else None
    asked = {
        "num_iterations": num_iterations,
        "seed": seed,
        "labelled": str(budget) if budget else None,
        "bf16": bf16 or None,
        "config": config.changes(),
        "start_from": name_of_start(start, results) if start else None,
        "pseudo_labels": masks,
        "setting": str(domains) if domains else None,
    }
    given = {name: value for name, value in asked.items() if value is not None and value != {}}
    name = ModelName(trainer, plan["plans_name"], configuration)
    if goes_on:
        place = place_to_continue(results / preprocessed.name, name, fold, tag, given, continue_training)
    else:
        place = place_to_start(results / preprocessed.name, name, fold, tag, given, bool(pretrained_weights))
        if not overwrite:
            refuse_to_replace(place.folder)
    folder, run = place.folder, place.settings
    check_writable(folder, "the results folder", "export nnUNet_results=/a/folder/that/can/be/written")
    if only_validation and validate_best and not (folder / BEST).is_file():
        raise EnvironmentProblem("there is no such checkpoint", where=folder / BEST, run="leave --val_best out")
    plan.setdefault(SEMI_KEY, {})["run"] = run.to_dict()
    switches = {
        "--c": continue_training,
        "--val": only_validation,
        "--val_best": validate_best,
        "--npz": save_probabilities,
        "--no_val": not run_validation,
        "--disable_checkpointing": disable_checkpointing,
    }
    job = Job(
        method=method,
        plans=plan,
        dataset_json=read_object(preprocessed / DATASET_JSON),
        configuration=configuration,
        fold=fold,
        device=_device(device, num_gpus, run.bf16),
        command=command_line(
            preprocessed.name, name, fold, run, num_gpus, pretrained_weights, filter(switches.get, switches)
        ),
        resume=str(place.resume) if place.resume else None,
        pretrained_weights=pretrained_weights,
        start_from=str(start) if start else None,
        do_training=not only_validation,
        validate=("best" if validate_best else "last") if run_validation else None,
        save_probabilities=save_probabilities,
        disable_checkpointing=disable_checkpointing,
        cache_bytes=parse_size(cache, "-cache") if cache else 0,
        progress=progress,
        track=tuple(track),
    )
    started = contextlib.nullcontext() if goes_on else start_in(folder, keep_on_failure=disable_checkpointing)
    with lock_fold(folder), started:
        share((job, folder))
        run_job(job, num_gpus)
    return _result(job, folder)


def _result(job: Job, folder: Path) -> TrainResult:
    summary = folder / VALIDATION_FOLDER / SUMMARY_JSON if job.validate else None
    return TrainResult(folder, folder / FINAL, summary, RunSettings.from_plans(job.plans), RunRecord.read(folder))


def _config_of(method: Method, settings: Mapping[str, Value] | Iterable[str]) -> MethodConfig:
    """Return the checked settings of a method; torch is imported only where `settings_without_torch` returns None."""
    draft = settings_without_torch(method)
    config: MethodConfig = config_with(draft or method.load().config_class, settings)
    check_networks(config)
    return config


def _device(name: str, num_gpus: int, bf16: bool) -> str:
    refuse_num_gpus(num_gpus)
    device = choose_device(name, num_gpus, automatic=("cuda", "cpu"), run=CPU_RUN)
    if bf16 and not has_bfloat16(device):
        raise EnvironmentProblem(
            f"this {device.type} device has no bfloat16 arithmetic",
            where="--bf16",
            why="it would be emulated, about 12 times slower than full precision on a CPU",
            run="leave --bf16 out",
        )
    return str(device)


def _goes_on(resume: bool, only_validation: bool, best_unsaved: bool) -> bool:
    """Return whether an earlier run is meant, after checking the options that say so."""
    if resume and only_validation:
        raise UsageError("--c and --val exclude each other", run="--c trains on and validates; --val only validates")
    if best_unsaved:
        raise UsageError("--val_best needs checkpoints", where="--disable_checkpointing")
    return resume or only_validation


def _check_options(goes_on: bool, overwrite: bool, pretrained: str | None, start_from: str | Path | None) -> None:
    if pretrained and goes_on:
        raise UsageError("-pretrained_weights is for the start of a run", where="--c, --val")
    if pretrained and start_from:
        raise UsageError("-pretrained_weights and -start_from exclude each other", run="leave one of them out")
    if pretrained and not Path(pretrained).is_file():
        raise EnvironmentProblem("there are no such weights", where=pretrained)
    if overwrite and goes_on:
        raise UsageError("--overwrite is for the start of a run", where="--c, --val", run="leave one of them out")


def _check_protocol(preprocessed: Path, protocol: str, configuration: str) -> None:
    if not is_of_protocol(read_splits(preprocessed), protocol):
        raise DataError(
            f"the folds are not those of the protocol {protocol}",
            where=preprocessed / SPLITS_JSON,
            run=f"nnssl_plan_and_preprocess -d {preprocessed.name} -c {configuration} -protocol {protocol}",
        )


def _plans_for(
    preprocessed: Path,
    plans: str,
    configuration: str,
    fold: int | str,
    budget: LabelBudget | None,
    setting: Setting | None,
) -> dict[str, Any]:
    """Return the plans made from exactly the labels that this run may see."""
    from nnssl.planning.preprocessing import check_preprocessed

    command = f"nnssl_plan_and_preprocess -d {preprocessed.name} -c {configuration}"
    command += f" {setting.option} {setting.words}" if setting else ""
    command += f" -labelled {budget}" if budget and not (setting and setting.protocol) else ""
    command += f" -f {fold}" if budget and setting is None else ""
    dataset_json = read_object(preprocessed / DATASET_JSON, command, DATASET_KEYS)
    tag = setting.tag if setting else ""
    if setting and not (preprocessed / splits_file(tag)).is_file():
        planned = sorted(path.stem.partition(TAG_SEPARATOR)[2] for path in preprocessed.glob(splits_file("@*")))
        raise DataError(
            f"the data set is not planned for {setting}",
            where=preprocessed,
            why=f"settings that are planned: {', '.join(planned) or 'none'}",
            run=command,
        )
    cases = cases_of_run(preprocessed, dataset_json, fold, budget, tag)
    names = [plans + tag + budget.tag, f"{plans}{tag}{budget.tag}-fold{fold}"] if budget else [plans + tag]
    files = [path for name in names if (path := preprocessed / f"{name}.json").is_file()]
    found = [read_object(path, command, PLANS_KEYS) for path in files]
    if budget or setting:
        found = [p for p in found if set(p.get(SEMI_KEY, {}).get("labelled_cases", ())) == set(cases.labelled)]
    if not found:
        raise DataError(
            f"there are no plans for this {'label budget and fold' if budget else 'data set'}",
            where=preprocessed / f"{names[0]}.json",
            why="plans see only the labels that the run may see" if budget else "",
            run=command,
        )
    if configuration not in found[0]["configurations"]:
        raise UsageError(
            f"the plans have no configuration {configuration}",
            where=preprocessed / f"{found[0]['plans_name']}.json",
            why=f"they have: {', '.join(found[0]['configurations'])}",
        )
    needed = [*cases.labelled, *cases.validation]
    check_preprocessed(preprocessed, found[0], configuration, needed, cases.unlabelled)
    return dict(found[0])
