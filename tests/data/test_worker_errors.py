"""Exceptions in data workers keep type, text and cases, and no worker outlives its stream."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from nnssl.data.streams import IterationBatches, OrderedBatches
from nnssl.errors import DataError, EnvironmentProblem, NnsslError, OutOfMemory
from nnssl.system.workers import WorkerTraceback

ROOT = Path(__file__).parents[2]
FOLDER = SimpleNamespace(identifiers=["a"], source_folder="pre/D/x", load_case=lambda _: (np.zeros(1), np.zeros(1)))


class OddError(Exception):
    """Pickle can write this exception, but cannot make it again from its one argument."""

    def __init__(self, first: str, second: str) -> None:
        super().__init__(f"{first} and {second}")


class OddDataError(DataError):
    def __init__(self, first: str, second: str) -> None:
        super().__init__(f"{first} and {second}", where="a")


class Raises:
    """Stands for nnU-Net's batch maker: the second batch raises."""

    _data = FOLDER

    def __init__(self, error: BaseException, shape: tuple[int, ...]) -> None:
        self.error, self.shape, self.made = error, shape, 0

    def get_indices(self) -> Any:
        return np.random.choice(["case_1", "case_2", "case_3"], 2)

    def generate_train_batch(self) -> dict[str, Any]:
        self.cases = list(self.get_indices())
        self.made += 1
        if self.made == 2:
            raise self.error
        return {"data": torch.zeros(2, 1, *self.shape), "target": torch.zeros(2, 1, *self.shape)}


ERRORS = [
    (ValueError("index can't contain negative values"), NnsslError, "ValueError: index can't contain negative values"),
    (RuntimeError("Caught a DataLoader worker at lunch"), NnsslError, "RuntimeError: Caught a DataLoader worker"),
    (OddError("one", "two"), NnsslError, "OddError: one and two"),
    (MemoryError("12 GiB"), OutOfMemory, "12 GiB"),
    (DataError("two spacings", where="scan", why="1 mm, 2 mm", run="repair it"), DataError, "1 mm, 2 mm"),
    (OddDataError("one", "two"), DataError, "one and two"),
]


@pytest.mark.parametrize("workers", [0, 1, 2])
@pytest.mark.parametrize("shape", [(6, 6), (4, 6, 6)], ids=["2d", "3d"])
@pytest.mark.parametrize(("error", "kind", "text"), ERRORS, ids=lambda value: type(value).__name__)
def test_an_exception_keeps_its_type_and_text(
    error: Exception, kind: type[NnsslError], text: str, shape: tuple[int, ...], workers: int
) -> None:
    order = [("train", number) for number in range(6)]
    stream = OrderedBatches(IterationBatches({"labelled": Raises(error, shape)}, 7), order, workers, False)
    with pytest.raises(NnsslError) as caught, stream.translate_worker_death():
        list(stream)
    assert caught.value.exit_code == kind.exit_code
    assert isinstance(caught.value, kind)
    assert text in str(caught.value)
    assert isinstance(caught.value.__cause__, WorkerTraceback)
    assert "in generate_train_batch" in str(caught.value.__cause__)
    start = time.monotonic()
    stream.close()
    assert time.monotonic() - start < 5


def test_the_cases_of_the_batch_are_named() -> None:
    maker = Raises(ValueError("odd"), (4, 4))
    stream = OrderedBatches(IterationBatches({"unlabelled": maker}, 7), [("train", 5), ("train", 8)], 0, False)
    with pytest.raises(NnsslError) as caught:
        list(stream)
    assert caught.value.where == f"iteration 8, unlabelled case(s) {', '.join(dict.fromkeys(map(str, maker.cases)))}"


class Leaves(Raises):
    def generate_train_batch(self) -> dict[str, Any]:
        os._exit(9)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_worker_that_exits_is_a_death(workers: int) -> None:
    batches = IterationBatches({"labelled": Leaves(ValueError(), (4, 4))}, 0)
    stream = OrderedBatches(batches, [("train", 0), ("train", 1)], workers, False)
    with pytest.raises(EnvironmentProblem, match="data loading process died") as caught:
        next(stream)
    assert "exit code 9" in caught.value.where
    assert caught.value.why == ""


BUSY = """
import os, signal, sys, time
from pathlib import Path
import torch
from nnssl.data.streams import IterationBatches, OrderedBatches

class Busy:
    def generate_train_batch(self):
        (Path(sys.argv[2]) / str(os.getpid())).touch()
        time.sleep(0 if len(list(Path(sys.argv[2]).iterdir())) < 2 else 60)
        return {"data": torch.zeros(1), "target": torch.zeros(1)}

def main():
    order = [("train", number) for number in range(9)]
    stream = OrderedBatches(IterationBatches({"labelled": Busy()}, 0), order, 2, False)
    try:
        if sys.argv[1] == "raise":
            time.sleep(1.5)
            raise ValueError("the trainer fails")
        if sys.argv[1] == "leave":
            time.sleep(1.5)
            global kept
            kept = stream
            return
        while True:
            time.sleep(0.05)
    finally:
        if sys.argv[1] != "leave":
            stream.close()

main()
"""


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("way", ["raise", "leave", "SIGINT", "SIGKILL"])
def test_busy_workers_are_gone_within_five_seconds_on_every_way_out(tmp_path: Path, way: str) -> None:
    script, marks = tmp_path / "busy.py", tmp_path / "marks"
    script.write_text(BUSY)
    marks.mkdir()
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(script), way, str(marks)]
    with subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL) as trainer:
        end = time.monotonic() + 30
        while len(list(marks.iterdir())) < 2 and time.monotonic() < end:
            time.sleep(0.05)
        pids = [int(mark.name) for mark in marks.iterdir()]
        assert len(pids) == 2
        if way.startswith("SIG"):
            trainer.send_signal(getattr(signal, way))
        trainer.wait(timeout=10)
    end = time.monotonic() + 5
    while any(map(alive, pids)) and time.monotonic() < end:
        time.sleep(0.05)
    assert not any(map(alive, pids))
