"""Streams of batches in which every batch is a pure function of (seed, stream, rank, iteration).

An ordered torch DataLoader runs over iteration numbers and calls nnU-Net's batch generation. So a resumed run needs no
state of a loader, the number of workers does not change the data, and a dead worker is an error instead of a hang.
"""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import random
import signal
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Protocol

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from nnssl.errors import DataError, EnvironmentProblem
from nnssl.host import CaseDataset, cases_of

Index = tuple[str, int]  # ("train" | "validation", iteration)
STREAM_NUMBERS = {"labelled": 0, "unlabelled": 1, "validation": 2}


class BatchMaker(Protocol):
    """What a stream needs of nnU-Net's `nnUNetDataLoader`."""

    def generate_train_batch(self) -> dict[str, Any]:
        """Return a batch drawn from the global generators: `data` (B, C, *S) and `target`."""
        ...


@contextmanager
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
    """Map ("train", i) to the labelled and unlabelled batch of iteration i, ("validation", j) to a validation batch.

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
        For a case that cannot be read the result is {"error": DataError}: an exception would lose its parts on the way
        between processes.
        """
        kind, iteration = index
        names = ("validation",) if kind == "validation" else ("labelled", "unlabelled")
        batch = {}
        for name in names:
            if name in self.makers:
                with seeded(self.seed, STREAM_NUMBERS[name], self.rank, iteration):
                    try:
                        drawn = self.makers[name].generate_train_batch()
                    except (OSError, EOFError, RuntimeError, UnpicklingError):
                        broken = find_unreadable_case(cases_of(self.makers[name]))
                        if broken is None:
                            raise
                        return {"error": broken}
                batch[name] = {key: drawn[key] for key in ("data", "target", "boxes") if key in drawn}
        return batch


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
        self._loader = DataLoader(
            batches,
            batch_size=None,
            sampler=order,
            num_workers=num_workers,
            pin_memory=pin_memory,
            prefetch_factor=3 if num_workers else None,
            worker_init_fn=_start_worker if num_workers else None,
        )
        self._iterator: Iterator[dict[str, Any]] | None = iter(self._loader)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return self

    def __next__(self) -> dict[str, Any]:
        """Return the next batch.

        Raises:
            EnvironmentProblem: a worker process died; the message names it and the signal.
            DataError: a preprocessed case cannot be read.
        """
        if self._iterator is None:
            raise StopIteration
        start = time.perf_counter()
        with self.translate_worker_death():
            batch = next(self._iterator)
        self.seconds_waited += time.perf_counter() - start
        if "error" in batch:
            raise batch["error"]
        return batch

    @contextmanager
    def translate_worker_death(self) -> Iterator[None]:
        """Turn torch's error about a dead worker into an `EnvironmentProblem` that names the process.

        Torch raises its error at any moment, not only in `next`, so the whole training loop stands in this block.
        """
        try:
            yield
        except RuntimeError as error:
            if "DataLoader worker" not in str(error):
                raise
            raise EnvironmentProblem(
                "a data loading process died",
                where=self._dead_workers() or str(error).splitlines()[0],
                why="usually the machine ran out of memory, or of shared memory (/dev/shm in containers)",
                run="the same command with --c, with fewer workers: export nnUNet_n_proc_DA=2",
            ) from error

    def _dead_workers(self) -> str:
        workers = getattr(self._iterator, "_workers", [])
        codes = {worker.pid: worker.exitcode for worker in workers if worker.exitcode}
        return ", ".join(
            f"process {pid}: {signal.Signals(-code).name if code < 0 else f'exit code {code}'}"
            for pid, code in codes.items()
        )

    def close(self) -> None:
        """Stop the workers."""
        self._iterator = None


def _start_worker(worker: int) -> None:  # noqa: ARG001 - signature of worker_init_fn
    """Leave signals to the trainer, and end this worker soon after its trainer ended, for whatever reason.

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
        while os.getppid() == parent and not multiprocessing.connection.wait(sentinels, timeout=1.0):
            pass
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
