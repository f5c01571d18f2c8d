from __future__ import annotations

import os
import signal
import time
from typing import Any

import numpy as np
import pytest
import torch

from nnssl.data import streams
from nnssl.data.streams import IterationBatches, OrderedBatches, seeded
from nnssl.errors import EnvironmentProblem


class Draws:
    """Stands for nnU-Net's batch maker: a batch of draws from all three generators."""

    def __init__(self, die_at: int | None = None) -> None:
        self.made, self.die_at = 0, die_at

    def get_indices(self) -> list[str]:
        return [f"case_{np.random.randint(1000)}" for _ in range(2)]

    def generate_train_batch(self) -> dict[str, Any]:
        self.made += 1
        if self.made == self.die_at:
            os.kill(os.getpid(), signal.SIGKILL)
        draws = [float(np.random.uniform()), torch.rand(1).item()]
        return {"data": torch.tensor(draws), "target": torch.zeros(1), "keys": ["a"]}


def draws(order: list[tuple[str, int]], workers: int, seed: int = 3, rank: int = 0) -> list[dict[str, list[float]]]:
    batches = IterationBatches({name: Draws() for name in ("labelled", "unlabelled", "validation")}, seed, rank)
    return [
        {name: part["data"].tolist() for name, part in batch.items()}
        for batch in OrderedBatches(batches, order, workers, pin_memory=False)
    ]


ORDER = [("train", 0), ("train", 1), ("validation", 0), ("train", 2)]


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_a_batch_depends_on_seed_stream_rank_and_iteration_alone(workers: int) -> None:
    reference = draws(ORDER, 0)
    assert draws(ORDER, workers) == reference
    assert draws(ORDER[1:], workers) == reference[1:]
    assert draws(ORDER, workers, seed=4) != reference
    assert draws(ORDER, workers, rank=1) != reference
    values = [tuple(value) for batch in reference for value in batch.values()]
    assert len(set(values)) == len(values)
    assert [sorted(batch) for batch in reference] == [["labelled", "unlabelled"]] * 2 + [["validation"]] + [
        ["labelled", "unlabelled"]
    ]


def test_the_generators_of_the_trainer_are_left_alone() -> None:
    torch.manual_seed(1)
    np.random.seed(1)
    expected = torch.rand(2).tolist(), np.random.uniform()
    torch.manual_seed(1)
    np.random.seed(1)
    first = torch.rand(1).item()
    with seeded(1, 2, 3):
        torch.rand(5)
        np.random.uniform(size=3)
    assert ([first, torch.rand(1).item()], np.random.uniform()) == expected


def test_a_dead_worker_is_an_error_with_its_signal() -> None:
    batches = IterationBatches({"labelled": Draws(die_at=2)}, 0)
    stream = OrderedBatches(batches, [("train", i) for i in range(6)], 1, pin_memory=False)
    with pytest.raises(EnvironmentProblem, match="data loading process died") as error:
        list(stream)
    assert "SIGKILL" in error.value.where
    assert error.value.exit_code == 4


def test_a_worker_that_dies_while_the_trainer_computes_is_named_too() -> None:
    stream = OrderedBatches(IterationBatches({"labelled": Draws()}, 0), [("train", i) for i in range(9)], 1, False)
    next(stream)
    with pytest.raises(EnvironmentProblem, match="data loading process died"), stream.translate_worker_death():
        os.kill(stream._iterator._workers[0].pid, signal.SIGKILL)
        time.sleep(5)


def test_a_remedy_is_named_only_where_its_condition_holds(monkeypatch) -> None:
    def message(workers: int, kills: list[int]) -> tuple[str, str]:
        monkeypatch.setattr(streams, "oom_kills", lambda: kills[0])
        monkeypatch.setattr("nnssl.system.workers.oom_kills", lambda: kills[1])
        batches = IterationBatches({"labelled": Draws(die_at=1)}, 0)
        with pytest.raises(EnvironmentProblem) as error:
            list(OrderedBatches(batches, [("train", i) for i in range(6)], workers, pin_memory=False))
        return error.value.why, error.value.run

    assert message(2, [3, 3]) == ("", "the same command with --c")
    why, run = message(2, [3, 4])
    assert "memory ran out" in why
    assert run == "the same command with --c, with fewer workers: export nnUNet_n_proc_DA=1"
    assert message(1, [3, 4])[1] == "the same command with --c"


def test_workers_leave_signals_to_the_trainer() -> None:
    stream = OrderedBatches(IterationBatches({"labelled": Draws()}, 0), [("train", i) for i in range(9)], 1, False)
    next(stream)
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
        os.kill(stream._iterator._workers[0].pid, number)
    assert len(list(stream)) == 8


def test_waiting_is_measured_and_close_ends_the_stream() -> None:
    stream = OrderedBatches(IterationBatches({"labelled": Draws()}, 0), [("train", 0), ("train", 1)], 0, False)
    next(stream)
    assert stream.seconds_waited > 0
    stream.close()
    assert list(stream) == []
