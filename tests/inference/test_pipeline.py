from __future__ import annotations

import threading

import pytest
import torch

from nnssl.inference.pipeline import run_overlapped, using_threads


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_every_case_passes_all_stages_in_order(workers):
    made = []
    order = run_overlapped(
        range(10),
        lambda case: case * 10,
        lambda case, ready: ready + case,
        lambda case, ready, logits: made.append((case, ready, logits)),
        readers=workers,
        writers=workers,
    )
    assert list(order) == list(range(10))
    assert sorted(made) == [(case, case * 10, case * 11) for case in range(10)]


def test_no_cases():
    assert list(run_overlapped([], None, None, None)) == []


def test_stages_overlap():
    """The second case is read, and the first one exported, while the network runs."""
    read = [threading.Event() for _ in range(3)]
    exported = [threading.Event() for _ in range(3)]

    def infer(case, _ready):
        assert case == 2 or read[case + 1].wait(5)
        assert case == 0 or exported[case - 1].wait(5)

    assert len(list(run_overlapped(range(3), lambda c: read[c].set(), infer, lambda c, *_: exported[c].set()))) == 3


@pytest.mark.parametrize("readers", [1, 2])
def test_reading_ahead_is_bounded(readers):
    started = []
    seen = []

    def infer(case, _ready):
        seen.append(max(started) - case)

    def export(*_):
        pass

    list(run_overlapped(range(20), started.append, infer, export, readers=readers))
    assert max(seen) <= readers


def test_exports_that_wait_are_bounded():
    gate = threading.Event()
    begun = []

    def infer(case, _ready):
        begun.append(case)
        if case == 1:  # case 0 waits for its export: case 2 must not pass the network before it
            threading.Timer(0.1, gate.set).start()
        assert case < 2 or gate.is_set()

    list(run_overlapped(range(4), lambda c: c, infer, lambda *_: gate.wait(5)))
    assert begun == [0, 1, 2, 3]


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("stage", ["prepare", "infer", "export"])
def test_an_error_of_any_stage_ends_the_run(stage, workers):
    threads = threading.active_count()

    def fail(case, here):
        if stage == here and case == 2:
            raise ValueError(here)

    with pytest.raises(ValueError, match=stage):
        list(
            run_overlapped(
                range(6),
                lambda case: fail(case, "prepare"),
                lambda case, _: fail(case, "infer"),
                lambda case, *_: fail(case, "export"),
                readers=workers,
                writers=workers,
            )
        )
    assert threading.active_count() == threads


def test_threads_are_set_back() -> None:
    before = torch.get_num_threads()
    with using_threads(before + 1):
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before
