"""The local queue of a study: one run on each GPU, or several on the CPU, and nothing twice."""

from __future__ import annotations

import logging
import os
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from nnssl.errors import StoppedBySignal
from nnssl.sweep.child import GRACE_SECONDS, Child, python_command, stop_children
from nnssl.sweep.places import Places, Progress, progress_of
from nnssl.sweep.store import Store, Task
from nnssl.sweep.study import StudyRun
from nnssl.system.resources import cpu_count, free_memory_bytes, worker_processes
from nnssl.system.signals import on_signals

log = logging.getLogger("nnssl.sweep")
POLL_SECONDS = 0.2
LOCKED_SECONDS = 5.0  # between two looks at a run that another process trains
MEMORY_RESERVE = 1.1  # a run starts beside others where its measured memory fits this often
MOST_STOPS = 3  # starts of a run in one call that others may end with exit code 75
STOPPING = ("SIGTERM", "SIGHUP", "SIGUSR1")  # signals that end a study
SAVED = (75, 130)  # exit codes of a run that saved its state
FLAGS: dict[Progress, list[str]] = {"new": [], "started": ["--c"], "unvalidated": ["--val"]}


@dataclass(frozen=True)
class Slot:
    """A place for one run.

    Attributes:
        gpu: value of CUDA_VISIBLE_DEVICES for its run, None for a run on the CPU.
        share: number of slots that share the CPUs of the machine.
    """

    gpu: str | None = None
    share: int = 1

    def environment(self, base: Mapping[str, str]) -> dict[str, str]:
        """Return the variables of a run in this slot: threads and worker processes are divided among the slots."""
        made = dict(base)
        threads = int(made.get("OMP_NUM_THREADS", cpu_count()))
        made["OMP_NUM_THREADS"] = str(max(1, threads // self.share))
        if self.share > 1:
            made.setdefault("nnUNet_n_proc_DA", str(max(1, cpu_count() // self.share)))
            made["nnUNet_def_n_proc"] = str(max(1, worker_processes() // self.share))
        if self.gpu is not None:
            made["CUDA_VISIBLE_DEVICES"] = self.gpu
        return made


def command_of(task: Task, flags: Sequence[str]) -> list[str]:
    """Return the words that do a task."""
    name = "train" if isinstance(task.job, StudyRun) else "plan_and_preprocess"
    return python_command(name, [*task.job.arguments, *flags, "--json"])


@dataclass
class Queue:
    """Runs tasks in slots until all are done or failed.

    Attributes:
        store: of the study.
        places: of its data set.
        slots: at least one.
        device: `-device` of the runs.
        logs: folder of the log files.
        words: makes the command line of a task; tests give another one.
        grace_seconds: time that stopped runs have to save their state.
        running: slot -> command and task.
        ended: number -> task that is done, failed, or stopped too often.
        largest: resident memory in bytes of the largest command that was measured.
    """

    store: Store
    places: Places
    slots: list[Slot]
    device: str
    logs: Path
    words: Callable[[Task, Sequence[str]], list[str]] = command_of
    grace_seconds: float = GRACE_SECONDS
    running: dict[int, tuple[Child, Task]] = field(default_factory=dict)
    ended: dict[int, Task] = field(default_factory=dict)
    largest: int = 0

    def run(self, tasks: Sequence[Task]) -> list[Task]:
        """Do the tasks in their order and return them with their new states.

        A task that is done by its files is not started. A run that another process trains is looked at again later.

        Raises:
            StoppedBySignal: SIGTERM, SIGHUP or SIGUSR1; the runs saved their states and are `stopped`.
        """
        waiting = deque(tasks)
        self.largest = max((task.memory_bytes for task in self.store.tasks()), default=0)
        pause = {task.number: 0.0 for task in tasks}
        stops = dict.fromkeys(pause, 0)
        try:
            with on_signals(stop_study, STOPPING):
                while waiting or self.running:
                    waiting.extend(self._reap(stops))
                    self._fill(waiting, pause)
                    if self.running or waiting:
                        time.sleep(POLL_SECONDS)
        finally:
            self._stop_all()
        return [self.ended[task.number] for task in tasks]

    def _fill(self, waiting: deque[Task], pause: dict[int, float]) -> None:
        """Start the next tasks in the free slots."""
        for _ in range(len(waiting)):
            free = [slot for slot in range(len(self.slots)) if slot not in self.running]
            if not free:
                return
            task = waiting.popleft()
            if time.monotonic() < pause[task.number]:
                waiting.append(task)
                continue
            progress = self._progress(task)
            if progress == "done":
                self._end(task, state="done", message="")
            elif progress == "locked":
                if not pause[task.number]:
                    log.info("waiting: another process trains %s", task.command)
                pause[task.number] = time.monotonic() + LOCKED_SECONDS
                waiting.append(task)
            elif not self._has_memory():
                waiting.appendleft(task)
                return
            else:
                self._start(task, free[0], FLAGS[progress])

    def _progress(self, task: Task) -> Progress:
        if not isinstance(task.job, StudyRun):
            return "new"
        return progress_of(self.places.folder(task.job), task.job)

    def _start(self, task: Task, slot: int, flags: list[str]) -> None:
        is_run = isinstance(task.job, StudyRun)
        folder = str(self.places.folder(task.job)) if isinstance(task.job, StudyRun) else ""
        flags = [*flags, *(["-device", self.device] if is_run else [])]
        task = self.store.update(task, state="running", message="", folder=folder, starts=task.starts + 1)
        words, environment = self.words(task, flags), self.slots[slot].environment(os.environ)
        child = Child.start(words, environment, self.logs / f"{task.number:05}.log")
        self.running[slot] = (child, task)
        where = f" on GPU {self.slots[slot].gpu}" if self.slots[slot].gpu is not None else ""
        log.info("started%s: %s", where, " ".join([task.command, *flags]))

    def _reap(self, stops: dict[int, int]) -> list[Task]:
        """Take the ended commands out of their slots, and return the tasks that go on."""
        again = []
        for slot, (child, task) in list(self.running.items()):
            child.measure()
            code = child.process.poll()
            if code is None:
                continue
            del self.running[slot]
            stop_children([child], 0.0)  # what the command may have left in its group
            spent = {
                "seconds": task.seconds + child.seconds,
                "memory_bytes": max(task.memory_bytes, child.memory_bytes),
            }
            stops[task.number] += code in SAVED
            if code in SAVED and stops[task.number] < MOST_STOPS:
                again.append(self.store.update(task, state="stopped", message="stopped by a signal", **spent))
            else:
                done = not isinstance(task.job, StudyRun) or self._progress(task) == "done"
                state, message = verdict(code, done, child.message() if code else "")
                self._end(task, state=state, message=message, **spent)
        return again

    def _end(self, task: Task, **changes: object) -> None:
        folder = str(self.places.folder(task.job)) if isinstance(task.job, StudyRun) else ""
        task = self.store.update(task, folder=folder, **changes)
        self.ended[task.number] = task
        first = f": {task.message.splitlines()[0]}" if task.message else ""
        log.info("%s: %s%s", task.state, task.command, first)

    def _has_memory(self) -> bool:
        """Return whether one more run fits into the free memory, by the largest run that was measured.

        Running commands may still grow to that size. The first run is started in any case.
        """
        if not self.running:
            return True
        free = free_memory_bytes()
        if free is None:
            return True
        now = [child.measure() for child, _ in self.running.values()]
        need = self.largest = max([self.largest, *(child.memory_bytes for child, _ in self.running.values())])
        growth = sum(max(0, need - size) for size in now)
        return free - growth >= MEMORY_RESERVE * need

    def _stop_all(self) -> None:
        """Stop what still runs and write down where it stands."""
        if not self.running:
            return
        log.info("stopping %d run(s); they save their state", len(self.running))
        stop_children([child for child, _ in self.running.values()], self.grace_seconds)
        for child, task in self.running.values():
            done = isinstance(task.job, StudyRun) and self._progress(task) == "done"
            self.store.update(
                task,
                state="done" if done else "stopped",
                message="" if done else "the study was stopped",
                seconds=task.seconds + child.seconds,
                memory_bytes=max(task.memory_bytes, child.memory_bytes),
            )
        self.running.clear()


def verdict(code: int, done: bool, message: str) -> tuple[str, str]:
    """Return state and message of a command that ended.

    Args:
        code: its exit code.
        done: whether the files of its run are those of a finished run.
        message: of the command, where it failed.
    """
    if code == 0 and done:
        return "done", ""
    if code == 0:
        return "failed", "nnssl_train ended without an error, but its files are not those of a finished run"
    return "stopped" if code in SAVED else "failed", message


def stop_study(*_: object) -> None:
    """End the queue: a handler of signals.

    Raises:
        StoppedBySignal: always.
    """
    raise StoppedBySignal("the study was stopped by a signal", run="the same command goes on")
