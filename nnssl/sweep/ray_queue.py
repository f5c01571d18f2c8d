"""The queue of a study on a Ray cluster: one task a run, and nothing lost where a worker dies.

Ray only finds a place for each run. What is done, what goes on with `--c` and what counts is decided as for the local
queue: by the files of the runs in the shared folder.

A Ray worker that is killed may leave its child training. Three guards end such a child: the raylets of a cluster that
this command starts end the children of their workers, a guard (`nnssl.sweep.guard`) beside each child ends the child at
the end of its worker, and a worker that is cancelled stops the group of its child. The lock of the fold keeps a retry
away meanwhile.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import logging
import os
import signal
import sys
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nnssl.errors import EnvironmentProblem
from nnssl.names import PREPROCESSED_VARIABLE, RAW_VARIABLE, RESULTS_VARIABLE
from nnssl.sweep.child import GRACE_SECONDS, Child, stop_children
from nnssl.sweep.places import Places, progress_of
from nnssl.sweep.queue import (
    FLAGS,
    LOCKED_SECONDS,
    MEMORY_RESERVE,
    MOST_STOPS,
    SAVED,
    STOPPING,
    command_of,
    stop_study,
    verdict,
)
from nnssl.sweep.store import Store, Task
from nnssl.sweep.study import StudyRun
from nnssl.system.signals import on_signals

log = logging.getLogger("nnssl.sweep")
RAY_VARIABLES = {
    "RAY_kill_child_processes_on_worker_exit_with_raylet_subreaper": "true",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_DEDUP_LOGS": "0",
}
PASSED = (RAW_VARIABLE, PREPROCESSED_VARIABLE, RESULTS_VARIABLE, "PYTHONPATH", "OMP_NUM_THREADS", "nnUNet_compile",
          "nnUNet_n_proc_DA", "nnUNet_def_n_proc")  # fmt: skip
MOST_LOSSES = 5  # starts of a run in one call whose workers may be lost
POLL_SECONDS = 0.5


@dataclass(frozen=True)
class Ended:
    """How a command ended on a worker.

    Attributes:
        code: exit code, negative for a signal.
        seconds: that it took.
        memory_bytes: largest resident memory that was seen.
        message: why it failed.
    """

    code: int
    seconds: float
    memory_bytes: int
    message: str


def run_command(words: Sequence[str], variables: Mapping[str, str], log_file: str) -> Ended:
    """Run a command on a worker, and stop it with all that it started if the worker is told to stop.

    Args:
        words: of the command line.
        variables: that the command gets beside those of the worker.
        log_file: in the shared folder.
    """
    hear_children()
    guarded = [sys.executable, "-m", "nnssl.sweep.guard", str(os.getpid()), *words]
    child = Child.start(guarded, {**os.environ, **variables}, Path(log_file))
    try:
        while child.process.poll() is None:
            child.measure()
            time.sleep(POLL_SECONDS)
    finally:
        stop_children([child], GRACE_SECONDS if child.process.poll() is None else 0.0)
    code = int(child.process.returncode)
    return Ended(code, child.seconds, child.memory_bytes, child.message() if code else "")


def hear_children() -> None:
    """Let this process learn the exit codes of its children.

    With the guard against orphans Ray ignores SIGCHLD in its processes, and then every exit code reads as 0.
    """
    with contextlib.suppress(ValueError):  # raised outside the main thread; Ray's tasks run in it
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)


def check_ray() -> None:
    """Check that Ray is installed, without importing it.

    Raises:
        EnvironmentProblem: it is not.
    """
    if importlib.util.find_spec("ray") is None:
        raise EnvironmentProblem(
            "-engine ray needs the Python package ray, which is not installed",
            where="-engine ray",
            why="without -engine, the same command works on this machine alone",
            run='python -m pip install "nnssl-semi[ray]"',
        )


@contextlib.contextmanager
def cluster(address: str | None, slots: int | None) -> Iterator[Any]:
    """Join a cluster, or start one on this machine for the time of the block, and yield the package `ray`.

    Args:
        address: of the cluster, `auto` or HOST:PORT; None starts one.
        slots: workers of a cluster that is started; None takes one a GPU, or one.

    Raises:
        EnvironmentProblem: Ray is not installed, or there is no cluster at the address.
    """
    check_ray()
    for name, value in RAY_VARIABLES.items():
        os.environ.setdefault(name, value)
    ray: Any = importlib.import_module("ray")
    quiet = {"include_dashboard": False, "num_cpus": slots or max(1, _gpus())} if address is None else {}
    try:
        ray.init(address=address or "local", log_to_driver=False, logging_level=logging.ERROR, **quiet)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise EnvironmentProblem(
            "there is no Ray cluster at this address",
            where=f"-address {address}",
            why=str(error).splitlines()[0],
            run="ray start --head on the first machine prints the address; -address auto finds it there",
        ) from error
    hear_children()
    try:
        yield ray
    finally:
        ray.shutdown()


def _gpus() -> int:
    import torch

    return torch.cuda.device_count()


@dataclass
class RayQueue:
    """Runs tasks on a cluster until all are done or failed.

    Attributes:
        store: of the study.
        places: of its data set, in the shared folder.
        ray: the package, after `cluster`.
        device: `-device` of the runs.
        logs: folder of the log files, in the shared folder.
        most: number of runs that wait on the cluster at the same time; None: no limit.
        words: makes the command line of a task; tests give another one.
        running: what Ray returned for a run -> the run.
        ended: number -> task that is done, failed, or stopped too often.
    """

    store: Store
    places: Places
    ray: Any
    device: str
    logs: Path
    most: int | None = None
    words: Any = command_of
    running: dict[Any, Task] = field(default_factory=dict)
    ended: dict[int, Task] = field(default_factory=dict)

    def run(self, tasks: Sequence[Task]) -> list[Task]:
        """Do the tasks and return them with their new states; see `Queue.run`.

        Raises:
            StoppedBySignal: SIGTERM, SIGHUP or SIGUSR1; the runs saved their states and are `stopped`.
        """
        waiting, pause = deque(tasks), dict.fromkeys((task.number for task in tasks), 0.0)
        stops, losses = dict.fromkeys(pause, 0), dict.fromkeys(pause, 0)
        try:
            with on_signals(stop_study, STOPPING):
                while waiting or self.running:
                    self._fill(waiting, pause)
                    if not self.running:
                        time.sleep(POLL_SECONDS)
                        continue
                    ready, _ = self.ray.wait(list(self.running), timeout=POLL_SECONDS)
                    waiting.extend(filter(None, [self._take(reference, stops, losses) for reference in ready]))
        finally:
            self._stop_all()
        return [self.ended[task.number] for task in tasks]

    def _fill(self, waiting: deque[Task], pause: dict[int, float]) -> None:
        for _ in range(len(waiting)):
            if self.most is not None and len(self.running) >= self.most:
                return
            task = waiting.popleft()
            progress = progress_of(self.places.folder(_run(task)), _run(task))
            if time.monotonic() < pause[task.number] or progress == "locked":
                pause[task.number] = max(pause[task.number], time.monotonic() + LOCKED_SECONDS * (progress == "locked"))
                waiting.append(task)
            elif progress == "done":
                self._end(task, state="done", message="")
            else:
                self._start(task, FLAGS[progress])

    def _start(self, task: Task, flags: list[str]) -> None:
        folder = str(self.places.folder(_run(task)))
        flags = [*flags, "-device", self.device]
        task = self.store.update(task, state="running", message="", folder=folder, starts=task.starts + 1)
        variables = {name: os.environ[name] for name in PASSED if name in os.environ}
        needs: dict[str, Any] = {"num_cpus": 1, "max_retries": 0, "name": f"run {task.number}"}
        if self.device in ("auto", "cuda") and self.ray.cluster_resources().get("GPU"):
            needs["num_gpus"] = 1
        if largest := max((each.memory_bytes for each in self.store.tasks()), default=0):
            needs["memory"] = min(MEMORY_RESERVE * largest, self.ray.cluster_resources().get("memory", largest))
        log_file = str((self.logs / f"{task.number:05}.log").resolve())
        reference = self.ray.remote(run_command).options(**needs).remote(self.words(task, flags), variables, log_file)
        self.running[reference] = task
        log.info("started on Ray: %s", " ".join([task.command, *flags]))

    def _take(self, reference: Any, stops: dict[int, int], losses: dict[int, int]) -> Task | None:  # noqa: ANN401
        """Take the result of a run; return the run if it goes on."""
        task = self.running.pop(reference)
        try:
            ended: Ended = self.ray.get(reference)
        except self.ray.exceptions.RayError as error:
            losses[task.number] += 1
            message = f"a worker of Ray was lost: {str(error).strip().splitlines()[0]}"
            log.info("lost: %s", task.command)
            if losses[task.number] < MOST_LOSSES:
                return self.store.update(task, state="stopped", message=message)
            self._end(task, state="failed", message=message)
            return None
        spent = {"seconds": task.seconds + ended.seconds, "memory_bytes": max(task.memory_bytes, ended.memory_bytes)}
        stops[task.number] += ended.code in SAVED
        if ended.code in SAVED and stops[task.number] < MOST_STOPS:
            return self.store.update(task, state="stopped", message="stopped by a signal", **spent)
        done = progress_of(self.places.folder(_run(task)), _run(task)) == "done"
        state, message = verdict(ended.code, done, ended.message)
        self._end(task, state=state, message=message, **spent)
        return None

    def _end(self, task: Task, **changes: object) -> None:
        task = self.store.update(task, folder=str(self.places.folder(_run(task))), **changes)
        self.ended[task.number] = task
        log.info("%s: %s", task.state, task.command)

    def _stop_all(self) -> None:
        """Stop what still runs, and write down where it stands."""
        if not self.running:
            return
        log.info("stopping %d run(s); they save their state", len(self.running))
        for reference in self.running:
            self.ray.cancel(reference, force=False)
        self.ray.wait(list(self.running), num_returns=len(self.running), timeout=GRACE_SECONDS)
        for task in self.running.values():
            done = progress_of(self.places.folder(_run(task)), _run(task)) == "done"
            message = "" if done else "the study was stopped"
            self.store.update(task, state="done" if done else "stopped", message=message)
        self.running.clear()


def _run(task: Task) -> StudyRun:
    assert isinstance(task.job, StudyRun)
    return task.job
