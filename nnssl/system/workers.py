"""Worker processes under supervision: when a worker dies, its case is named and tried once more; nothing hangs."""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import pickle
import signal
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Generic, TypeVar

from nnssl.errors import EnvironmentProblem, NnsslError, OutOfMemory, UsageError
from nnssl.system.resources import oom_kills

T = TypeVar("T")
R = TypeVar("R")
log = logging.getLogger(__name__)

START_METHOD = "fork" if sys.platform == "linux" else "spawn"
PARENT_CHECK_S = 0.5
STOP_TIMEOUT_S = 2.0
QUIET_PROGRESS_S = 10.0
SHARED_MEMORY = "/dev/shm"
LITTLE_SHARED_MEMORY_BYTES = 64 << 20


class WorkerTraceback(Exception):
    """The traceback of a failed worker as text: the cause of the error that the parent raises."""


def portable_error(error: NnsslError) -> NnsslError:
    """Return the error, or one of nnssl's own classes with the same parts where pickle cannot carry the error."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # pickle raises what the error's class raises
        kind: type[NnsslError] = next(base for base in type(error).__mro__ if base.__module__ == NnsslError.__module__)
        return kind(error.what, where=error.where, why=error.why, run=error.run)
    return error


def cause_of_death(exit_code: int | None) -> str:
    """Return the name of the signal that ended a process, or its exit code in words."""
    if exit_code is not None and exit_code < 0:
        with contextlib.suppress(ValueError):
            return signal.Signals(-exit_code).name
    return f"exit code {exit_code}"


def reason_of_death(cause: str, oom_kills_before: int | None) -> str:
    """Return what the system says about the death of a worker; an empty text where it says nothing.

    Args:
        cause: the result of `cause_of_death`.
        oom_kills_before: the result of `oom_kills` when the workers started.
    """
    now = oom_kills()
    if cause == "SIGKILL" and now is not None and oom_kills_before is not None and now > oom_kills_before:
        return "memory ran out: since then the kernel has killed processes for lack of memory"
    if cause == "SIGBUS":
        with contextlib.suppress(OSError):
            shared = os.statvfs(SHARED_MEMORY)
            free_bytes = shared.f_bavail * shared.f_frsize
            if free_bytes < LITTLE_SHARED_MEMORY_BYTES:
                return f"shared memory is full: {free_bytes >> 20} MiB are free in {SHARED_MEMORY}"
    return ""


def check_main_guard() -> None:
    """Raise at once where new processes would run the user's script from its begin instead of their work.

    Processes that are not forked import the main script. A script that starts them without the usual guard would start
    them again in each of them.

    Raises:
        UsageError: this process is such a copy, or the main script has no guard.
    """
    file = getattr(sys.modules["__main__"], "__file__", None)
    copied = getattr(multiprocessing.current_process(), "_inheriting", False)
    guarded = True
    with contextlib.suppress(OSError, UnicodeDecodeError, TypeError):
        guarded = "__name__" in Path(file).read_text(encoding="utf-8")  # type: ignore[arg-type]
    if copied or not guarded:
        raise UsageError(
            "the script starts processes that would run the script again",
            where=file or "the main script",
            why="its calls of nnssl do not stand below a guard",
            run='put them below the line   if __name__ == "__main__":',
        )


def run_parallel(
    function: Callable[[T], R],
    tasks: Mapping[str, T],
    num_processes: int,
    description: str,
    on_result: Callable[[str, R], None] | None = None,
) -> dict[str, R]:
    """Return `{case: function(task)}` in the order of `tasks`, computed by supervised worker processes.

    Each worker holds one task at a time, computes with one thread, and ends when its parent ends. When a worker is
    killed, its case is tried once more after the other cases, alone in a new worker.

    Args:
        function: called with one task; the spawn start method needs a picklable function.
        tasks: case name -> picklable task.
        num_processes: number of workers; with one worker, or one task, the calling process does the work itself.
        description: the work in a few words, for progress and messages.
        on_result: called in this process with case and result, as soon as a case is done.

    Raises:
        NnsslError: `function` raised it; every other exception becomes an NnsslError that names the case.
        OutOfMemory: `function` ran out of memory.
        EnvironmentProblem: a worker died twice on the same case.
    """
    if num_processes <= 1 or len(tasks) <= 1 or multiprocessing.current_process().daemon:
        return _run_in_process(function, tasks, description, on_result)
    if START_METHOD != "fork":
        check_main_guard()
    oom_kills_before = oom_kills()
    with _blosc2_without_threads(), _progress(description, len(tasks)) as advance:
        results, died = _Pool(function, tasks, min(num_processes, len(tasks)), description, advance, on_result).run()
        for case, how in died.items():
            log.warning("%s: the worker on %s died (%s); trying this case once more", description, case, how)
        retried, died = _Pool(function, {case: tasks[case] for case in died}, 1, description, advance, on_result).run()
    for case, how in died.items():
        raise EnvironmentProblem(
            f"{description}: the worker process died twice on {case} ({how})",
            where=case,
            why=reason_of_death(how, oom_kills_before) or "the second time it was the only worker",
        )
    results |= retried
    return {case: results[case] for case in tasks}


def _run_in_process(
    function: Callable[[T], R],
    tasks: Mapping[str, T],
    description: str,
    on_result: Callable[[str, R], None] | None,
) -> dict[str, R]:
    results = {}
    with _progress(description, len(tasks)) as advance:
        for case, task in tasks.items():
            try:
                results[case] = function(task)
            except NnsslError:
                raise
            except Exception as error:
                raise _error_of_case(case, description, error, 1) from error
            if on_result is not None:
                on_result(case, results[case])
            advance()
    return results


def _error_of_case(case: str, description: str, error: Exception, num_processes: int) -> NnsslError:
    """Return the error that names the case that failed."""
    if isinstance(error, MemoryError):
        run = f"the same command with fewer processes (-np {num_processes // 2})" if num_processes > 1 else ""
        return OutOfMemory(f"{description}: out of memory on {case}", where=case, why=str(error), run=run)
    return NnsslError(f"{description}: {case} failed", where=case, why=f"{type(error).__name__}: {error}")


@dataclass
class _Worker:
    process: BaseProcess
    pipe: Connection
    case: str


@dataclass
class _Pool(Generic[T, R]):
    """One pass over the tasks.

    `run` returns the results and, for each case whose worker died, the cause of death.
    """

    function: Callable[[T], R]
    tasks: Mapping[str, T]
    size: int
    description: str
    advance: Callable[[], None]
    on_result: Callable[[str, R], None] | None = None
    workers: list[_Worker] = field(default_factory=list)

    def run(self) -> tuple[dict[str, R], dict[str, str]]:
        waiting = deque(self.tasks)
        results: dict[str, R] = {}
        died: dict[str, str] = {}
        try:
            while waiting or self.workers:
                while waiting and len(self.workers) < self.size:
                    self.workers.append(self._start_worker(waiting.popleft()))
                for worker in self._wait_for_workers():
                    try:
                        kind, content, text = worker.pipe.recv()
                    except (EOFError, OSError):
                        worker.process.join(STOP_TIMEOUT_S)
                        died[worker.case] = cause_of_death(worker.process.exitcode)
                        self._remove(worker)
                        continue
                    except Exception as error:  # pickle raises what the class of the result raises
                        raise _error_of_case(worker.case, self.description, error, self.size) from error
                    if kind == "error":
                        raise content from WorkerTraceback(text)
                    results[worker.case] = content
                    if self.on_result is not None:
                        self.on_result(worker.case, content)
                    self.advance()
                    self._give_next(worker, waiting)
        finally:
            self._stop()
        return results, died

    def _start_worker(self, case: str) -> _Worker:
        context: Any = multiprocessing.get_context(START_METHOD)
        our_end, their_end = context.Pipe()
        process = context.Process(
            target=_answer_tasks, args=(self.function, their_end, self.description, self.size, os.getpid()), daemon=True
        )
        process.start()
        their_end.close()
        worker = _Worker(process, our_end, case)
        self._send(worker, case)
        return worker

    def _wait_for_workers(self) -> list[_Worker]:
        ready = set(wait([item for worker in self.workers for item in (worker.pipe, worker.process.sentinel)]))
        return [worker for worker in self.workers if worker.pipe in ready or worker.process.sentinel in ready]

    def _give_next(self, worker: _Worker, waiting: deque[str]) -> None:
        if waiting:
            worker.case = waiting.popleft()
            self._send(worker, worker.case)
        else:
            worker.process.terminate()
            self._remove(worker)

    def _send(self, worker: _Worker, case: str) -> None:
        # A worker may be dead by now: the next receive reports its death.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            worker.pipe.send((case, self.tasks[case]))

    def _remove(self, worker: _Worker) -> None:
        _end_processes([worker.process])
        worker.pipe.close()
        self.workers.remove(worker)

    def _stop(self) -> None:
        for worker in self.workers:
            worker.process.terminate()
        _end_processes([worker.process for worker in self.workers])
        for worker in self.workers:
            worker.pipe.close()


def _end_processes(processes: list[BaseProcess]) -> None:
    """Wait for processes that were told to end, and kill those that have not ended after `STOP_TIMEOUT_S` in all."""
    deadline = time.monotonic() + STOP_TIMEOUT_S
    for process in processes:
        process.join(max(0.0, deadline - time.monotonic()))
    for process in processes:
        if process.is_alive():
            process.kill()
            process.join()


def _answer_tasks(
    function: Callable[[Any], Any], pipe: Connection, description: str, num_processes: int, parent: int
) -> None:
    """Answer tasks from the pipe until the parent stops this process or ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole process group; the parent stops its workers
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_exit_with_parent, args=(parent,), daemon=True).start()
    _use_one_thread()
    with contextlib.suppress(EOFError, BrokenPipeError):
        while True:
            case, task = pipe.recv()
            try:
                pipe.send(("result", function(task), ""))
            except NnsslError as error:
                pipe.send(("error", portable_error(error), traceback.format_exc()))
            except Exception as error:
                pipe.send(("error", _error_of_case(case, description, error, num_processes), traceback.format_exc()))


def _exit_with_parent(parent: int) -> None:
    if START_METHOD == "fork":
        while os.getppid() == parent:
            time.sleep(PARENT_CHECK_S)
    elif (process := multiprocessing.parent_process()) is not None:
        process.join()
    os._exit(1)


def _use_one_thread() -> None:
    """Limit the thread pools of the libraries that are loaded, and of those that this process will load."""
    from threadpoolctl import threadpool_limits

    for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "BLOSC_NTHREADS"):
        os.environ[variable] = "1"
    threadpool_limits(limits=1)
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)


@contextlib.contextmanager
def _blosc2_without_threads() -> Iterator[None]:
    """End blosc2's threads while this process forks: a child inherits none of them and would wait for them for ever."""
    blosc2 = sys.modules.get("blosc2")
    before = blosc2.set_nthreads(1) if blosc2 is not None else None
    try:
        yield
    finally:
        if blosc2 is not None:
            blosc2.set_nthreads(before)


@contextlib.contextmanager
def _progress(description: str, total: int) -> Iterator[Callable[[], None]]:
    """Yield a function to call after each case. It shows a bar on a terminal, elsewhere a line after each quarter."""
    from tqdm import tqdm

    started = last = time.monotonic()
    done = 0
    bar = tqdm(total=total, desc=description, disable=None, file=sys.stderr)

    def advance() -> None:
        nonlocal done, last
        done += 1
        bar.update()
        if bar.disable and done * 4 // total > (done - 1) * 4 // total and time.monotonic() - last > QUIET_PROGRESS_S:
            last = time.monotonic()
            log.info("%s: %d of %d after %.0f s", description, done, total, last - started)

    with bar:
        yield advance
