"""Start, continue or validate one run: what `nnssl_train` and `nnssl.train` do."""

from __future__ import annotations

import contextlib
import io
import logging
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnssl.config import Value, config_with
from nnssl.data.protocols import budget_of, is_of_protocol
from nnssl.data.raw import dataset_name, patient_of
from nnssl.data.splits import LabelBudget, fold_cases, read_splits
from nnssl.errors import DataError, EnvironmentProblem, NnsslError, StoppedBySignal, UsageError
from nnssl.registry import Method, find_method
from nnssl.system.files import DATASET_KEYS, PLANS_KEYS, check_writable, environment_folder, read_object
from nnssl.training.run_folder import BEST, FINAL, LATEST, alone_in, in_place_of_previous
from nnssl.training.settings import RunSettings

log = logging.getLogger("nnssl.train")


@dataclass(frozen=True)
class TrainResult:
    """Where a run left its files.

    Attributes:
        folder: the fold's folder with checkpoints, progress.jsonl, progress.csv and progress.png.
        checkpoint: `checkpoint_final.pth`, the deployed network.
        summary: scores of the validation cases, None where validation was not asked for.
        settings: what the run was asked to do.
    """

    folder: Path
    checkpoint: Path
    summary: Path | None
    settings: RunSettings


@dataclass(frozen=True)
class _Job:
    """One run, as plain values that reach the processes of distributed training."""

    method: Method
    plans: dict[str, Any]
    dataset_json: dict[str, Any]
    configuration: str
    fold: int | str
    device: str
    resume: str | None
    pretrained_weights: str | None
    do_training: bool
    validate: str | None
    save_probabilities: bool
    disable_checkpointing: bool


def train(  # noqa: PLR0913 - the public API names every option
    dataset: str | int,
    configuration: str,
    fold: int | str,
    *,
    trainer: str = "MeanTeacherTrainer",
    plans: str = "nnUNetPlans",
    labelled: str | None = None,
    protocol: str | None = None,
    num_iterations: int | None = None,
    seed: int | None = None,
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
    run_validation: bool = True,
) -> TrainResult:
    """Train one fold of a preprocessed data set and score its validation cases.

    Args:
        dataset: id or folder name of the data set.
        configuration: `2d`, `3d_fullres` or `3d_lowres`.
        fold: fold number, or "all".
        trainer: class name of the method (`nnssl_methods` lists them).
        plans: plans name, without the tag of the label budget.
        labelled: label budget, patients (`7`) or percent (`10%`); None uses every label.
        protocol: published protocol, `acdc-7`, that the data set was planned with: its lists and its label budget.
        num_iterations: optimiser steps (default 250 000, nnU-Net's 1000 epochs), the stored ones when continuing.
        seed: default 0.
        bf16: calculate in bfloat16, on the CPU as well (default: fp16 on CUDA, fp32 elsewhere).
        settings: method settings, `{"name": value}` or `["name=value"]`.
        device: `auto`, `cuda`, `cpu` or `mps`.
        num_gpus: processes of distributed training on one machine.
        continue_training: go on from the last checkpoint.
        only_validation: validate a finished run, do not train.
        validate_best: validate checkpoint_best.pth instead of the last weights.
        save_probabilities: also write the validation cases' probabilities.
        disable_checkpointing: write no checkpoint.
        pretrained_weights: nnU-Net checkpoint to start from.
        run_validation: score the validation cases at the end.

    Returns:
        The run's files.

    Raises:
        UsageError: unknown trainer, setting or fold, or options that contradict each other.
        DataError: the data set is not planned or preprocessed for this run.
        EnvironmentProblem: device, paths or checkpoint.
        StoppedBySignal: SIGTERM or SIGUSR1; the run is saved.
    """
    method = find_method(trainer)
    if protocol:
        labelled = budget_of(protocol, labelled, fold)
    if "@" in plans:
        raise UsageError(
            "the plans name is given without the tag of a label budget",
            where=f"-p {plans}",
            run=f"-p {plans.partition('@')[0]} -labelled N",
        )
    config = config_with(method.load().config_class, settings)
    _check_options(continue_training, only_validation, validate_best and disable_checkpointing, pretrained_weights)
    root = environment_folder("nnUNet_preprocessed", must_exist=True)
    results = environment_folder("nnUNet_results")
    preprocessed = root / dataset_name(dataset, root, f"nnssl_plan_and_preprocess -d {dataset}")
    if protocol:
        _check_protocol(preprocessed, protocol, configuration)
    budget = LabelBudget.parse(labelled) if labelled else None
    plan = _plans_for(preprocessed, plans, configuration, fold, budget)
    folder = results / preprocessed.name / f"{trainer}__{plan['plans_name']}__{configuration}" / f"fold_{fold}"
    check_writable(folder, "the results folder", "export nnUNet_results=/a/folder/that/can/be/written")
    resume = _checkpoint_to_resume(folder, continue_training, only_validation)
    if only_validation and validate_best and not (folder / BEST).is_file():
        raise EnvironmentProblem("there is no such checkpoint", where=folder / BEST, run="leave --val_best out")
    asked = {
        "num_iterations": num_iterations,
        "seed": seed,
        "labelled": str(budget) if budget else None,
        "bf16": bf16 or None,
        "config": config.changes(),
    }
    run = _run_settings(asked, resume)
    plan.setdefault("nnssl_semi", {})["run"] = run.to_dict()
    job = _Job(
        method,
        plan,
        read_object(preprocessed / "dataset.json"),
        configuration,
        fold,
        _device(device, num_gpus),
        str(resume) if resume else None,
        pretrained_weights,
        not only_validation,
        ("best" if validate_best else "last") if run_validation else None,
        save_probabilities,
        disable_checkpointing,
    )
    place = contextlib.nullcontext() if resume else in_place_of_previous(folder, put_back=not disable_checkpointing)
    with alone_in(folder), place:
        _spawn(job, num_gpus) if num_gpus > 1 else _work(job)
    summary = folder / "validation" / "summary.json"
    return TrainResult(folder, folder / FINAL, summary if run_validation else None, run)


def _check_options(resume: bool, only_validation: bool, best_unsaved: bool, pretrained: str | None) -> None:
    if resume and only_validation:
        raise UsageError("--c and --val exclude each other", run="--c trains on and validates; --val only validates")
    if best_unsaved:
        raise UsageError("--val_best needs checkpoints", where="--disable_checkpointing")
    if pretrained and (resume or only_validation):
        raise UsageError("-pretrained_weights is for the start of a run", where="--c, --val")
    if pretrained and not Path(pretrained).is_file():
        raise EnvironmentProblem("there are no such weights", where=pretrained)


def _check_protocol(preprocessed: Path, protocol: str, configuration: str) -> None:
    if not is_of_protocol(read_splits(preprocessed), protocol):
        raise DataError(
            f"the folds are not those of the protocol {protocol}",
            where=preprocessed / "splits_final.json",
            run=f"nnssl_plan_and_preprocess -d {preprocessed.name} -c {configuration} -protocol {protocol}",
        )


def _plans_for(
    preprocessed: Path, plans: str, configuration: str, fold: int | str, budget: LabelBudget | None
) -> dict[str, Any]:
    """Return the plans made from exactly the labels that this run may see."""
    from nnssl.planning.preprocessing import check_preprocessed

    command = f"nnssl_plan_and_preprocess -d {preprocessed.name} -c {configuration}"
    command += f" -labelled {budget} -f {fold}" if budget else ""
    splits = read_splits(preprocessed)
    dataset_json = read_object(preprocessed / "dataset.json", command, DATASET_KEYS)
    patients = {
        case: patient_of(case, dataset_json) for split in splits for key in ("train", "val") for case in split[key]
    }
    cases = fold_cases(splits, fold, budget, patients)
    names = [plans + budget.tag, f"{plans}{budget.tag}-fold{fold}"] if budget else [plans]
    files = [path for name in names if (path := preprocessed / f"{name}.json").is_file()]
    found = [read_object(path, command, PLANS_KEYS) for path in files]
    if budget:
        found = [p for p in found if set(p.get("nnssl_semi", {}).get("labelled_cases", ())) == set(cases.labelled)]
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


def _checkpoint_to_resume(folder: Path, continue_training: bool, only_validation: bool) -> Path | None:
    from nnssl.training.checkpoints import previous

    if not (continue_training or only_validation):
        return None
    final, latest = folder / FINAL, folder / LATEST
    if final.is_file():
        return final
    if continue_training and (latest.is_file() or previous(latest).is_file()):
        return latest
    raise EnvironmentProblem(
        "there is no checkpoint to continue from" if continue_training else "this run is not finished",
        where=folder,
        run="the same command without --c starts the run" if continue_training else "the same command with --c",
    )


def _run_settings(asked: dict[str, Any], resume: Path | None) -> RunSettings:
    given = {name: value for name, value in asked.items() if value is not None and value != {}}
    if resume is None:
        return RunSettings(**given)
    from nnssl.training import checkpoints

    checkpoint = checkpoints.load_newest(resume) if resume.name == LATEST else checkpoints.load(resume)
    stored = checkpoint.get(checkpoints.KEY, {}).get("run")
    if stored is None:
        raise EnvironmentProblem("this checkpoint was not written by nnssl", where=resume)
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
    return RunSettings(**stored)


def _device(name: str, num_gpus: int) -> str:
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and torch.cuda.device_count() < num_gpus:
        raise EnvironmentProblem(
            "there is no CUDA device" if num_gpus == 1 else f"there are {torch.cuda.device_count()} CUDA devices",
            where=f"-device cuda -num_gpus {num_gpus}",
            run="-device cpu (with plans made by -budget cpu)" if num_gpus == 1 else "a smaller -num_gpus",
        )
    if num_gpus < 1:
        raise UsageError("-num_gpus must be at least 1", where=f"-num_gpus {num_gpus}")
    if name == "mps" and not torch.backends.mps.is_available():
        raise EnvironmentProblem("there is no MPS device", where="-device mps", run="-device cpu")
    return name


@contextlib.contextmanager
def _on_signals(handler: Callable[..., None]) -> Iterator[None]:
    """Call `handler` on SIGTERM and SIGUSR1, which clusters send before the time is up."""
    before = {}
    with contextlib.suppress(ValueError):  # outside of the main thread signals are not ours to handle
        for name in ("SIGTERM", "SIGUSR1"):
            if hasattr(signal, name):
                number = getattr(signal, name)
                before[number] = signal.signal(number, handler)
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)


def _work(job: _Job, world_size: int = 1) -> None:
    import torch

    if job.device == "cpu":
        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1)) // world_size or 1)
    elif job.device == "cuda":
        torch.set_num_threads(1)
        torch.backends.cudnn.benchmark = True
    chatter = io.StringIO()
    with contextlib.redirect_stdout(chatter):
        trainer = job.method.load()(
            plans=job.plans,
            configuration=job.configuration,
            fold=job.fold,
            dataset_json=job.dataset_json,
            device=torch.device(job.device),
        )
    trainer.disable_checkpointing = job.disable_checkpointing
    with _on_signals(lambda *_: trainer.request_stop()):
        if job.resume:
            trainer.load_checkpoint(job.resume)
        elif job.pretrained_weights:
            trainer.load_pretrained(job.pretrained_weights)
        if job.do_training:
            trainer.run_training()
        if job.validate == "best":
            trainer.load_checkpoint(str(Path(trainer.output_folder) / BEST))
        if job.validate:
            trainer.perform_actual_validation(job.save_probabilities)


def _spawn(job: _Job, world_size: int) -> None:
    """Run one process a rank; the first error of ours that one of them meets is raised here."""
    from torch.multiprocessing.spawn import spawn

    os.environ["MASTER_ADDR"] = "localhost"
    if "MASTER_PORT" not in os.environ:
        from nnunetv2.run.run_training import find_free_network_port

        os.environ["MASTER_PORT"] = str(find_free_network_port())
    errors = multiprocessing.get_context("spawn").SimpleQueue()

    def stop(*_: object) -> None:
        raise StoppedBySignal("stopped by a signal", run="the same command with --c continues the run")

    ranks = spawn(_distributed_work, (job, world_size, errors), world_size, join=False)  # type: ignore[no-untyped-call]
    try:
        with _on_signals(stop):
            while not ranks.join():
                pass
    except Exception as error:
        if isinstance(error, StoppedBySignal):
            for process in ranks.processes:
                process.terminate()  # it saves its state
        for process in ranks.processes:
            process.join()
        if errors.empty():
            raise
        raise errors.get() from error


def _distributed_work(rank: int, job: _Job, world_size: int, errors: Any) -> None:  # noqa: ANN401 - a SimpleQueue
    import torch
    from torch import distributed

    logging.basicConfig(level=logging.INFO if rank == 0 else logging.WARNING, format="%(message)s")
    distributed.init_process_group("nccl" if job.device == "cuda" else "gloo", rank=rank, world_size=world_size)
    if job.device == "cuda":
        torch.cuda.set_device(rank)
    try:
        with contextlib.redirect_stdout(sys.stderr):  # nnU-Net prints; standard output is for results
            _work(job, world_size)
    except NnsslError as error:
        errors.put(error)
        raise
    finally:
        distributed.destroy_process_group()
