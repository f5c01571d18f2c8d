"""One run in this process, or in one process for each device; and its record."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import logging
import multiprocessing
import os
import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from nnssl.data.domains import setting_tag
from nnssl.errors import EnvironmentProblem, NnsslError, StoppedBySignal
from nnssl.host import free_port
from nnssl.registry import Method
from nnssl.system.resources import cpu_count
from nnssl.system.signals import STOP_SIGNALS, on_signals
from nnssl.system.workers import check_main_guard
from nnssl.training.launched import Launched, process_group, translate_lost_process
from nnssl.training.record import DataHashes, RunRecord, State, new_session, plans_hash, refuse_other_data
from nnssl.training.run_folder import BEST
from nnssl.training.tracking import log_validation, open_tracks, run_of

log = logging.getLogger("nnssl.train")


@dataclass(frozen=True)
class Job:
    """One run, as plain values that reach the processes of distributed training.

    Attributes:
        method: what trains.
        plans: nnU-Net's plans with the settings of the run in them.
        dataset_json: description of the data set.
        configuration: for instance `3d_fullres`.
        fold: fold number, or "all".
        device: `cpu`, `cuda` or `mps`.
        command: the command line of the run, for its record.
        resume: checkpoint to continue from, None for a new run.
        pretrained_weights: checkpoint to start from, without its segmentation layers.
        start_from: checkpoint to start from, with all weights.
        do_training: train; False validates only.
        validate: `last`, `best`, or None for no validation.
        save_probabilities: also write the probabilities of the validation cases.
        disable_checkpointing: write no checkpoint.
        cache_bytes: most memory of decoded cases; 0 reads all from their files.
        progress: `bar`, `lines` or `off`; None: a bar on a terminal, lines elsewhere.
        track: trackers that also get the progress, see `nnssl.training.tracking`.
    """

    method: Method
    plans: dict[str, Any]
    dataset_json: dict[str, Any]
    configuration: str
    fold: int | str
    device: str
    command: str
    resume: str | None = None
    pretrained_weights: str | None = None
    start_from: str | None = None
    do_training: bool = True
    validate: str | None = "last"
    save_probabilities: bool = False
    disable_checkpointing: bool = False
    cache_bytes: int = 0
    progress: Literal["bar", "lines", "off"] | None = None
    track: tuple[str, ...] = ()


def run_job(job: Job, num_processes: int = 1) -> None:
    """Do a job in this process, as one of the processes of a launcher, or in several processes of this machine.

    Raises:
        NnsslError: whatever ends the run; of several processes the first error that one of them meets.
    """
    launched = Launched.find()
    if num_processes > 1 or multiprocessing.get_start_method() != "fork":  # the data workers are processes, too
        check_main_guard()
    if launched is not None:
        _launched_work(job, launched)
    elif num_processes > 1:
        _spawn(job, num_processes)
    else:
        _work(job)


def _work(job: Job, world_size: int = 1) -> None:
    import torch

    if job.device == "cpu":
        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", cpu_count())) // world_size or 1)
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
    trainer.disable_checkpointing, trainer.progress_style = job.disable_checkpointing, job.progress
    trainer.cache_bytes = job.cache_bytes
    with on_signals(lambda *_: trainer.request_stop()), _save_on_first_interrupt(trainer):
        if job.resume:
            trainer.load_checkpoint(job.resume)
        elif job.pretrained_weights:
            trainer.load_pretrained(job.pretrained_weights)
        elif job.start_from:
            trainer.load_start(job.start_from)
        with _recorded(job, trainer), translate_lost_process(), _tracked(job, trainer):
            if job.do_training:
                trainer.run_training()
            if job.validate == "best":
                trainer.load_checkpoint(str(Path(trainer.output_folder) / BEST))
            if job.validate:
                trainer.perform_actual_validation(job.save_probabilities)
                if trainer.local_rank == 0:
                    log_validation(trainer.tracks, Path(trainer.output_folder), trainer.iteration)


@contextlib.contextmanager
def _tracked(job: Job, trainer: Any) -> Iterator[None]:  # noqa: ANN401 - the frame's trainer
    """Let the trackers of the run be open inside the block, in the process that keeps the record."""
    if trainer.local_rank != 0 or not job.do_training:
        yield
        return
    with open_tracks(job.track, run_of(trainer, job.method.class_name)) as trainer.tracks:
        yield


@contextlib.contextmanager
def _save_on_first_interrupt(trainer: Any) -> Iterator[None]:  # noqa: ANN401 - the frame's trainer
    """Let the first Ctrl-C save and stop the run; the second one ends it at once, as without this block."""

    def stop(*_: object) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        trainer.request_stop(by_user=True)

    with on_signals(stop, ("SIGINT",)):
        yield


@contextlib.contextmanager
def _recorded(job: Job, trainer: Any) -> Iterator[None]:  # noqa: ANN401 - the frame's trainer
    """Keep `run.json` while the block runs; one process of a distributed run does."""
    if trainer.local_rank != 0:
        yield
        return
    folder = Path(trainer.output_folder)
    state: State = "failed"
    record = _begun(job, trainer, folder)
    if job.do_training:
        record.write(folder)
    try:
        yield
        state = "done" if trainer.iteration >= trainer.settings.num_iterations else "stopped"
    except (StoppedBySignal, KeyboardInterrupt):
        state = "stopped"
        raise
    finally:
        _write_end(record, folder, state if job.do_training else record.state, trainer)


def _begun(job: Job, trainer: Any, folder: Path) -> RunRecord:  # noqa: ANN401
    """Return the record of the run at the begin of a session."""
    import torch

    device = torch.cuda.get_device_name() if job.device == "cuda" else job.device
    session = new_session(job.command, device, trainer.iteration)
    earlier = RunRecord.read(folder) if job.resume else None
    preprocessed = Path(trainer.preprocessed_dataset_folder_base)
    record = RunRecord(
        dataset=preprocessed.name,
        trainer=job.method.class_name,
        plans=job.plans["plans_name"],
        configuration=job.configuration,
        fold=str(job.fold),
        settings=trainer.settings,
        state="running" if job.do_training else "done",
        iteration=trainer.iteration,
        sessions=(*(earlier.sessions if earlier else ()), session),
        plans_hash=plans_hash(job.plans),
        data=DataHashes.of(preprocessed, trainer.fold_cases(), setting_tag(trainer.settings.setting)),
        seconds_per_iteration=earlier.seconds_per_iteration if earlier else None,
        scores=earlier.scores if earlier else None,
        supervised_key=_supervised_key(trainer, earlier),
        unlabelled_from=earlier.unlabelled_from if earlier else None,
    )
    if earlier is not None:
        refuse_other_data(earlier, record, folder)
    return record if job.do_training or earlier is None else dataclasses.replace(record, state=earlier.state)


def _supervised_key(trainer: Any, earlier: RunRecord | None) -> str:  # noqa: ANN401
    """Return the key by which other runs may start from this one; a run that became longer is like no other run."""
    if earlier is None:
        key: str = trainer.supervised_key()
        return key
    return earlier.supervised_key if earlier.settings.num_iterations == trainer.settings.num_iterations else ""


def _write_end(record: RunRecord, folder: Path, state: State, trainer: Any) -> None:  # noqa: ANN401
    import torch

    peak = torch.cuda.max_memory_allocated() if trainer.device.type == "cuda" else 0
    try:
        record = dataclasses.replace(record, unlabelled_from=trainer.unlabelled_from)
        record.ended(folder, state, trainer.iteration, peak).write(folder)
    except EnvironmentProblem as error:  # a full disk must not hide how the run itself ended
        log.warning("warning: the record of the run could not be written: %s", error.why)


def _spawn(job: Job, world_size: int) -> None:
    """Run one process for each rank; the first error that one of them meets is raised here."""
    from torch.multiprocessing.spawn import spawn

    os.environ["MASTER_ADDR"] = "localhost"
    if "MASTER_PORT" not in os.environ:
        os.environ["MASTER_PORT"] = str(free_port())
    errors = multiprocessing.get_context("spawn").SimpleQueue()

    def stop(*_: object) -> None:
        raise StoppedBySignal("stopped by a signal", run="the same command with --c continues the run")

    ranks = spawn(_distributed_work, (job, world_size, errors), world_size, join=False)  # type: ignore[no-untyped-call]
    try:
        with on_signals(stop, (*STOP_SIGNALS, "SIGINT")):
            while not ranks.join():
                pass
    except Exception as error:
        if isinstance(error, StoppedBySignal):
            for process in ranks.processes:
                process.terminate()  # each process saves its state
        for process in ranks.processes:
            process.join()
        if errors.empty():
            raise
        raise errors.get() from error


def _launched_work(job: Job, place: Launched) -> None:
    """Do the share of one process of a launcher, which has set the number of threads of each process."""
    import torch

    if place.rank:
        logging.getLogger().setLevel(logging.WARNING)
    if job.device == "cuda":
        torch.cuda.set_device(place.local_rank)
    with process_group(place, "nccl" if job.device == "cuda" else "gloo"):
        _work(job)


def _distributed_work(rank: int, job: Job, world_size: int, errors: Any) -> None:  # noqa: ANN401 - a SimpleQueue
    import torch
    from torch import distributed

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the first one stops the others
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
