"""`nnssl.sweep`: plan a study, train its runs, go on after a kill, and say where it stands."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from nnssl.data.raw import dataset_name
from nnssl.errors import NnsslError, UsageError, unknown_name
from nnssl.names import PREPROCESSED_VARIABLE, RAW_VARIABLE
from nnssl.sweep.estimate import Measured, SweepPlan
from nnssl.sweep.places import Places, progress_of
from nnssl.sweep.queue import FLAGS, Queue, Slot
from nnssl.sweep.ray_queue import RayQueue, check_ray, cluster
from nnssl.sweep.store import Store, Task, has_study
from nnssl.sweep.study import EXAMPLE, Study, StudyPlan, StudyRun, study_plans, study_runs
from nnssl.sweep.tables import status_text
from nnssl.system.files import check_writable, environment_folder
from nnssl.system.locks import hold_lock

LOCAL, RAY = ENGINES = ("local", "ray")
LOCK = ".study.lock"
LOGS = "logs"
GPUS_VARIABLE = "CUDA_VISIBLE_DEVICES"
log = logging.getLogger("nnssl.sweep")


def plan_sweep(study: Study | None, output_folder: str | Path, device: str = "auto") -> SweepPlan:
    """Return the runs of a study, what is missing for them, and what they will take; nothing is written.

    Args:
        study: what to train; None takes all runs of the study in the folder.
        output_folder: of the study.
        device: that the commands name; `auto` leaves it out.

    Raises:
        UsageError: a name or value of the study is wrong, or there is no study.
        EnvironmentProblem: one of nnU-Net's folders is not set.
    """
    jobs = _jobs(study, Path(output_folder))
    planning = [job for job in jobs if isinstance(job, StudyPlan)]
    listed = [job for job in jobs if isinstance(job, StudyRun)]
    places = Places.of(listed[0].dataset)
    runs, commands, estimates = [], [], []
    measured = Measured.of(places.results)
    for number, run in enumerate(listed, start=1):
        folder = places.folder(run)
        progress = progress_of(folder, run)
        state = {"done": "done", "locked": "running", "new": "waiting"}.get(progress, "stopped")
        runs.append(Task(number, run, state, folder=str(folder)))  # type: ignore[arg-type]
        estimates.append(measured.estimate(run))
        if progress != "done":
            named = [] if device == "auto" else ["-device", device]
            commands.append(" ".join([run.command, *FLAGS.get(progress, []), *named]))
    missing = [each for each in planning if not places.has_plans(each)]
    return SweepPlan(runs, missing, estimates, commands)


def sweep(  # noqa: PLR0913 - the public API names every option
    study: Study | None,
    output_folder: str | Path,
    *,
    device: str = "auto",
    slots: int | None = None,
    retry_failed: bool = False,
    engine: str = LOCAL,
    address: str | None = None,
) -> list[Task]:
    """Train the runs of a study, each as an ordinary `nnssl_train` in a process of its own, and return their states.

    Called again after a kill at any time, the study goes on: finished runs stay, begun runs continue from their last
    checkpoint. A finished run of the same settings, trained before or elsewhere, counts as done.

    Args:
        study: what to train; None goes on with all runs of the study in the folder.
        output_folder: of the study: `study.db` and the logs. The runs themselves stand in `nnUNet_results`.
        device: `auto`, `cuda`, `cpu` or `mps`.
        slots: number of runs at the same time; None takes one for each GPU, or one on the CPU.
        retry_failed: also start runs that failed before.
        engine: `local`, or `ray`: the runs go to the workers of a Ray cluster, which share all folders.
        address: of the Ray cluster; None starts one on this machine.

    Raises:
        UsageError: a name or value of the study is wrong.
        EnvironmentProblem: a folder cannot be used, or another process works on the study.
        StoppedBySignal: SIGTERM; the same call goes on.
    """
    folder = Path(output_folder)
    check_writable(folder, "the folder of the study", "choose another folder with -o")
    _check_engine(engine, address)
    jobs = _jobs(study, folder)
    results = "export nnUNet_results=/a/folder/that/can/be/written"
    check_writable(Places.of(jobs[0].dataset).results, "the results folder", results)
    if slots is not None and slots < 1:
        raise UsageError("-slots must be at least 1", where=f"-slots {slots}")
    wanted = {job.command for job in jobs}
    with _only_one(folder), Store(folder) as store:
        store.add(jobs)
        tasks = [task for task in store.tasks() if task.command in wanted]
        if retry_failed:
            tasks = [_again(store, task) for task in tasks]
        _work(store, tasks, folder, device, Engine(engine, address, slots))
        return [task for task in store.tasks() if task.command in wanted and _is_run(task)]


def keep_study(study: Study | None, output_folder: str | Path) -> None:
    """Write the runs of a study into its folder without training them, so that its state can be asked for.

    Raises:
        UsageError: a name or value of the study is wrong, or there is no study.
        EnvironmentProblem: the folder cannot be written.
    """
    folder = Path(output_folder)
    jobs = _jobs(study, folder)
    check_writable(folder, "the folder of the study", "choose another folder with -o")
    with Store(folder) as store:
        store.add(jobs)
    places = Places.of(jobs[0].dataset)
    for job in jobs:
        if isinstance(job, StudyPlan) and not places.has_plans(job):
            log.info("plan first: %s", job.command)


def study_status(output_folder: str | Path) -> list[Task]:
    """Return the runs of the study in a folder with the states that its database holds.

    Raises:
        UsageError: there is no study in the folder.
        EnvironmentProblem: the database cannot be read.
    """
    return [task for task in _stored(Path(output_folder)) if _is_run(task)]


def check_all_done(tasks: Sequence[Task], output_folder: str | Path) -> None:
    """Raise where runs failed or stopped; the message lists them.

    Raises:
        NnsslError: some runs are not done.
    """
    left = [task for task in tasks if task.state != "done"]
    if left:
        failed = any(task.state == "failed" for task in left)
        raise NnsslError(
            f"{len(left)} of {len(tasks)} runs are not done",
            where=output_folder,
            why=status_text(left, None),
            run=f"nnssl_sweep -o {output_folder}{' --retry_failed' if failed else ''}",
        )


@dataclass(frozen=True)
class Engine:
    """Where runs train.

    Attributes:
        name: `local` or `ray`.
        address: of the Ray cluster, None for one on this machine.
        slots: runs at the same time, None for the default.
    """

    name: str = LOCAL
    address: str | None = None
    slots: int | None = None


def _check_engine(engine: str, address: str | None) -> None:
    if engine not in ENGINES:
        raise unknown_name("engine", engine, ENGINES, option="-engine")
    if engine == RAY:
        check_ray()
    elif address is not None:
        raise UsageError("-address names a Ray cluster", where=f"-address {address}", run="add -engine ray")


def free_slots(device: str, number: int | None) -> list[Slot]:
    """Return the slots of this machine.

    Args:
        device: of the runs.
        number: of slots; None takes one for each GPU, or one on the CPU.

    Raises:
        UsageError: there are fewer GPUs than slots.
    """
    gpus = _gpus() if device in ("auto", "cuda") else []
    if not gpus:
        return [Slot(share=number or 1) for _ in range(number or 1)]
    if number is not None and number > len(gpus):
        raise UsageError(
            f"this machine has {len(gpus)} GPU(s), {number} slots are asked for",
            where=f"-slots {number}",
            run=f"-slots {len(gpus)}: one run takes one GPU",
        )
    used = gpus[:number]
    return [Slot(gpu, len(used)) for gpu in used]


def _gpus() -> list[str]:
    named = os.environ.get(GPUS_VARIABLE)
    if named is not None:
        return [name.strip() for name in named.split(",") if name.strip() not in ("", "-1", "NoDevFiles")]
    import torch

    return [str(number) for number in range(torch.cuda.device_count())]


def _work(store: Store, tasks: Sequence[Task], folder: Path, device: str, engine: Engine) -> None:
    """Plan what is missing, one after another, then train."""
    waiting = [task for task in tasks if task.state not in ("done", "failed")]
    runs = [task for task in waiting if _is_run(task)]
    broken: dict[str, str] = {}
    if not runs:
        return
    places = Places.of(runs[0].job.dataset)
    queue = Queue(store, places, [Slot()], device, folder / LOGS)
    planning = [task for task in waiting if not _is_run(task)]
    for task in planning:
        if isinstance(task.job, StudyPlan) and task.starts == 0 and places.has_plans(task.job):
            store.update(task, state="done", message="the plans stood there before")
        else:
            (ended,) = queue.run([task])
            if ended.state != "done":
                broken[_data_of(ended)] = ended.message
    for task in tasks:
        if task.state == "failed" and not _is_run(task):
            broken[_data_of(task)] = task.message
    ready = []
    for task in runs:
        if _data_of(task) in broken:
            store.update(task, state="failed", message=f"planning failed: {broken[_data_of(task)]}")
        else:
            ready.append(task)
    if ready:
        _train(queue, ready, engine)


def _train(queue: Queue, runs: Sequence[Task], engine: Engine) -> None:
    if engine.name == LOCAL:
        dataclasses.replace(queue, slots=free_slots(queue.device, engine.slots), running={}, ended={}).run(runs)
        return
    with cluster(engine.address, engine.slots) as ray:
        RayQueue(queue.store, queue.places, ray, queue.device, queue.logs, engine.slots).run(runs)


def _data_of(task: Task) -> str:
    """Return what a run shares with the planning that it needs: plans name, budget and fold of the budget."""
    job = task.job
    return f"{job.plans} {job.budget} {job.fold if job.budget else ''}"


def _is_run(task: Task) -> bool:
    return isinstance(task.job, StudyRun)


def _again(store: Store, task: Task) -> Task:
    return store.update(task, state="waiting", message="") if task.state == "failed" else task


def _jobs(study: Study | None, folder: Path) -> list[StudyPlan | StudyRun]:
    """Return planning and runs of a study, or those of the study in a folder."""
    if study is None:
        return [task.job for task in _stored(folder)]
    study = _resolved(study)
    return [*study_plans(study), *study_runs(study)]


def _stored(folder: Path) -> list[Task]:
    if not has_study(folder):
        raise UsageError("there is no study in this folder", where=folder, run=EXAMPLE)
    with Store(folder) as store:
        return store.tasks()


def _resolved(study: Study) -> Study:
    """Return the study with the folder name of its data set, and with the hardware of the plans that exist."""
    raw, preprocessed = environment_folder(RAW_VARIABLE), environment_folder(PREPROCESSED_VARIABLE)
    try:
        name = dataset_name(study.dataset, raw)
    except UsageError as error:
        try:  # the raw scans may have been removed after the preprocessing
            name = dataset_name(study.dataset, preprocessed)
        except UsageError:
            raise error from None
    places = Places.of(name)
    return dataclasses.replace(study, dataset=name, hardware=study.hardware or places.hardware(study.plans))


@contextlib.contextmanager
def _only_one(folder: Path) -> Iterator[None]:
    """Keep other processes from working on the study; a file system without locks keeps no process away.

    Raises:
        EnvironmentProblem: another process works on it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    run = f"nnssl_sweep -o {folder} --status shows how far it is; wait for its end, or stop it"
    with hold_lock(folder / LOCK, "another process works on this study", where=folder, run=run, keep_file=True):
        yield
