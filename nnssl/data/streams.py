"""Streams of batches in which every batch is a pure function of (seed, stream, rank, iteration).

An ordered torch DataLoader runs over iteration numbers and calls nnU-Net's batch generation. So a resumed run needs no
state of a loader, and the number of workers does not change the data. An exception in a worker keeps its type and text,
a dead worker is an error instead of a hang, and no worker outlives its stream for more than `STOP_GRACE_S`.
"""

from __future__ import annotations

import atexit
import contextlib
import multiprocessing
import multiprocessing.connection
import os
import random
import re
import signal
import threading
import time
import traceback
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Protocol

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from nnssl.errors import DataError, EnvironmentProblem, NnsslError, OutOfMemory
from nnssl.host import CaseDataset, cases_of, drawn_cases
from nnssl.system.resources import oom_kills
from nnssl.system.workers import WorkerTraceback, cause_of_death, portable_error, reason_of_death

Index = tuple[str, int]  # ("train" | "validation" | "look", iteration)
STREAM_NUMBERS = {"labelled": 0, "unlabelled": 1, "validation": 2, "look": 3}
STOP_GRACE_S = 2.0  # a worker that still computes this long after the stop of its stream ends at once
TORCHS_REPORT_OF_DEATH = re.compile(r"DataLoader worker \(pid")


class BatchMaker(Protocol):
    """What a stream needs of nnU-Net's `nnUNetDataLoader`."""

    def generate_train_batch(self) -> dict[str, Any]:
        """Return a batch drawn from the global generators: `data` (B, C, *S) and `target`."""
        ...


@contextlib.contextmanager
def seeded(*key: int) -> Iterator[None]:
    """Seed the CPU generators of python, numpy and torch from `key`; restore their states afterwards."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    words = np.random.SeedSequence(key).generate_state(4)
    random.seed(int(words[0]))
    np.random.seed(words[1])
    torch.default_generator.manual_seed((int(words[2]) << 32) | int(words[3]))
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])


class IterationBatches(Dataset[dict[str, Any]]):
    """Map ("train", i) to the labelled and unlabelled batch of iteration i, and (stream, j) to another stream's batch.

    Args:
        makers: nnU-Net's batch makers under the names of `STREAM_NUMBERS`.
        seed: seed of the run, >= 0.
        rank: number of this process in distributed training.
    """

    def __init__(self, makers: Mapping[str, BatchMaker], seed: int, rank: int = 0) -> None:
        self.makers, self.seed, self.rank = dict(makers), seed, rank

    def __getitem__(self, index: Index) -> dict[str, Any]:
        """Return {stream: {"data": (B, C, *S), "target": (B, 1, *S), or a list with one tensor for each output}}.

        A stream whose batch maker follows the places of its patches also has "boxes" (B, n, 2).
        For a batch that cannot be made the result is {"error": NnsslError, "traceback": text}: torch would lose the
        parts of an exception on the way between processes.
        """
        kind, iteration = index
        names = ("labelled", "unlabelled") if kind == "train" else (kind,)
        batch = {}
        for name in names:
            if name in self.makers:
                key = (self.seed, STREAM_NUMBERS[name], self.rank, iteration)
                try:
                    with seeded(*key):
                        drawn = self.makers[name].generate_train_batch()
                except Exception as error:  # augmentation and storage raise many types
                    text = traceback.format_exc()
                    return {"error": _explain(error, self.makers[name], key, name), "traceback": text}
                batch[name] = {key: drawn[key] for key in ("data", "target", "boxes") if key in drawn}
        return batch


def _explain(error: Exception, maker: BatchMaker, key: tuple[int, ...], stream: str) -> NnsslError:
    """Return the error of a batch that cannot be made: what was raised, and the cases of the batch."""
    if isinstance(error, NnsslError):
        return portable_error(error)
    if isinstance(error, OSError | EOFError | RuntimeError | UnpicklingError):
        broken = find_unreadable_case(cases_of(maker))
        if broken is not None:
            return broken
    with seeded(*key):  # the same numbers draw the same cases
        cases = drawn_cases(maker)
    where = f"iteration {key[-1]}, {stream} case(s) {', '.join(dict.fromkeys(cases))}"
    if isinstance(error, MemoryError):
        return OutOfMemory("out of memory while a batch was made", where=where, why=str(error))
    return NnsslError("a batch cannot be made", where=where, why=f"{type(error).__name__}: {error}")


def find_unreadable_case(dataset: CaseDataset) -> DataError | None:
    """Return the error of the first preprocessed case that cannot be read, None where every case can be read."""
    return next(filter(None, (_reading_error(dataset, case) for case in dataset.identifiers)), None)


def _reading_error(dataset: CaseDataset, case: str) -> DataError | None:
    try:
        data, seg, *_ = dataset.load_case(case)
        _ = data[:], seg[:]
    except Exception as error:  # blosc2, numpy and pickle raise many types for a damaged file
        folder = Path(dataset.source_folder)
        return DataError(
            f"the preprocessed case {case} cannot be read",
            where=folder / case,
            why=f"{type(error).__name__}: {error}",
            run=f"delete its files, then run again nnssl_plan_and_preprocess -d {folder.parent.name} with its options",
        )
    return None


class OrderedBatches:
    """Iterate over the batches of a list of indices, in this order, and measure the time spent waiting for them.

    Args:
        batches: the map from index to batch.
        order: indices still to come.
        num_workers: background processes; with 0 this process makes the batches.
        pin_memory: whether batches are copied to page-locked memory (for CUDA).

    Attributes:
        seconds_waited: total time that `next` blocked.
    """

    def __init__(self, batches: IterationBatches, order: Iterable[Index], num_workers: int, pin_memory: bool) -> None:
        self.seconds_waited = 0.0
        self._num_workers, self._oom_kills = num_workers, oom_kills()
        stop_reader, stop_writer = multiprocessing.Pipe(duplex=False)
        self._stop = partial(_send_stop, stop_writer)
        atexit.register(self._stop)  # runs before multiprocessing waits for its processes, which ignore SIGTERM
        self._loader = DataLoader(
            batches,
            batch_size=None,
            sampler=order,
            num_workers=num_workers,
            pin_memory=pin_memory,
            prefetch_factor=3 if num_workers else None,
            worker_init_fn=partial(_start_worker, stop=stop_reader) if num_workers else None,
        )
        self._iterator: Iterator[dict[str, Any]] | None = iter(self._loader)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return self

    def __next__(self) -> dict[str, Any]:
        """Return the next batch.

        Raises:
            EnvironmentProblem: a worker process died; the message names it and the signal.
            DataError: a preprocessed case cannot be read.
            OutOfMemory: memory ran out while the batch was made.
            NnsslError: the batch cannot be made for another reason; the message names type, text and cases.
        """
        if self._iterator is None:
            raise StopIteration
        start = time.perf_counter()
        with self.translate_worker_death():
            batch = next(self._iterator)
        self.seconds_waited += time.perf_counter() - start
        if "error" in batch:
            raise batch["error"] from WorkerTraceback(batch["traceback"])
        return batch

    @contextlib.contextmanager
    def translate_worker_death(self) -> Iterator[None]:
        """Turn torch's error about a dead worker into an `EnvironmentProblem` that names the process.

        Torch raises its error at any moment, not only in `next`, so the whole training loop stands in this block.
        """
        try:
            yield
        except RuntimeError as error:
            if not TORCHS_REPORT_OF_DEATH.search(str(error)):
                raise
            workers = getattr(self._iterator, "_workers", [])
            causes = {worker.pid: cause_of_death(worker.exitcode) for worker in workers if worker.exitcode}
            reasons = dict.fromkeys(reason_of_death(cause, self._oom_kills) for cause in causes.values())
            why = "\n".join(filter(None, reasons))
            fewer = f", with fewer workers: export nnUNet_n_proc_DA={self._num_workers // 2}"
            raise EnvironmentProblem(
                "a data loading process died",
                where=", ".join(f"process {pid}: {cause}" for pid, cause in causes.items()) or str(error),
                why=why,
                run=f"the same command with --c{fewer if why and self._num_workers > 1 else ''}",
            ) from error

    def close(self) -> None:
        """Stop the workers: idle ones at once, busy ones after `STOP_GRACE_S`."""
        self._stop()
        atexit.unregister(self._stop)
        self._iterator = None


def _send_stop(pipe: Connection) -> None:
    # No worker takes the bytes out, so that every worker sees them; an event would wait for a killed worker.
    with contextlib.suppress(OSError):
        pipe.send_bytes(b"stop")


def _start_worker(worker: int, stop: Connection) -> None:  # noqa: ARG001 - signature of worker_init_fn
    """Leave signals to the trainer, and end this worker soon after its stream or its trainer ended.

    Clusters and terminals send their signals to all processes of a job, but the trainer decides when its workers end.
    The trainer's sentinel works under every start method. A forked sibling can hold the sentinel open, so the worker
    also watches the id of its parent.
    """
    for name in ("SIGTERM", "SIGUSR1", "SIGINT"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    parent, trainer = os.getppid(), multiprocessing.parent_process()
    sentinels = [trainer.sentinel] if trainer is not None else []

    def watch() -> None:
        while os.getppid() == parent and not multiprocessing.connection.wait([*sentinels, stop], timeout=1.0):
            pass
        if stop.poll():
            time.sleep(STOP_GRACE_S)
        os._exit(0)

    threading.Thread(target=watch, daemon=True).start()
