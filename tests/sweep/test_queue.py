from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import pytest

from nnssl.errors import StoppedBySignal
from nnssl.sweep import queue as queue_module
from nnssl.sweep.queue import Slot, command_of
from nnssl.sweep.store import Store
from nnssl.training.run_folder import lock_fold
from tests.sweep.studies_for_tests import World, runs_of, small_study


@pytest.fixture
def store(world: World) -> Store:
    return world.store(small_study())


def is_alive(pid: int) -> bool:
    """Return whether a process runs; one that ended and that nobody has asked for counts as ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_each_run_is_started_once_and_done(world: World, store: Store) -> None:
    ended = world.queue(store).run(runs_of(store))
    assert [task.state for task in ended] == ["done"] * 3
    assert ended == runs_of(store)
    assert [start["folder"] for start in world.started()] == [task.folder for task in ended]
    assert all(start["flags"] == ["-device", "cpu"] for start in world.started())
    assert world.queue(store).run(runs_of(store))
    assert len(world.started()) == 3  # the second call finds the finished runs by their files


def test_a_stopped_run_continues_and_others_stop_it_three_times_at_most(world: World, store: Store) -> None:
    first, second, third = runs_of(store)
    world.ways = {first.number: ["stop", "done"], second.number: ["stop"]}
    ended = world.queue(store).run([first, second, third])
    assert [(task.state, task.starts) for task in ended] == [("done", 2), ("stopped", 3), ("done", 1)]
    flags = [start["flags"] for start in world.started() if start["folder"] == ended[0].folder]
    assert flags == [["-device", "cpu"], ["--c", "-device", "cpu"]]


def test_a_failed_run_keeps_its_message_and_is_not_started_again(world: World, store: Store) -> None:
    first, second, third = runs_of(store)
    world.ways = {first.number: ["fail"], second.number: ["die"], third.number: ["nothing"]}
    ended = world.queue(store).run([first, second, third])
    assert [(task.state, task.starts) for task in ended] == [("failed", 1)] * 3
    assert ended[0].message == "the scans are broken\nwhere: case_1"
    assert "killed by signal 9" in ended[1].message
    assert "not those of a finished run" in ended[2].message  # exit code 0 alone is no result


def test_a_run_that_is_trained_elsewhere_is_waited_for(
    world: World, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queue_module, "LOCKED_SECONDS", 0.1)
    first, *others = runs_of(store)
    folder = world.places.folder(first.job)  # type: ignore[arg-type]
    folder.mkdir(parents=True)
    held, release = threading.Event(), threading.Event()

    def hold() -> None:
        with lock_fold(folder):
            held.set()
            release.wait(60)

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait(10)

    def free_after_the_others() -> None:
        while len(world.started()) < 2:
            time.sleep(0.02)
        release.set()

    freeing = threading.Thread(target=free_after_the_others)
    freeing.start()
    ended = world.queue(store).run([first, *others])
    thread.join()
    freeing.join()
    assert [task.state for task in ended] == ["done"] * 3
    assert [start["folder"] for start in world.started()][-1] == str(folder)


def test_sigterm_stops_the_runs_and_all_that_they_started(world: World, store: Store) -> None:
    first, second, third = runs_of(store)
    world.ways = {task.number: ["hang"] for task in (first, second)}
    folders = [world.places.folder(task.job) for task in (first, second)]  # type: ignore[arg-type]

    def stop_when_both_run() -> None:
        while not all((folder / "worker").exists() and (folder / "worker").read_text() for folder in folders):
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=stop_when_both_run)
    thread.start()
    with pytest.raises(StoppedBySignal) as caught:
        world.queue(store, [Slot(share=2)] * 2).run([first, second, third])
    thread.join()
    assert caught.value.exit_code == 75
    assert [task.state for task in runs_of(store)] == ["stopped", "stopped", "waiting"]
    assert all((folder / "checkpoint_latest.pth").is_file() for folder in folders)  # both had the time to save
    leaders = [int(str(start["pid"])) for start in world.started()]
    workers = [int((folder / "worker").read_text()) for folder in folders]
    deadline = time.monotonic() + 10
    while any(map(is_alive, [*leaders, *workers])) and time.monotonic() < deadline:
        time.sleep(0.02)  # a process that got the signal takes a moment to end
    assert not any(map(is_alive, [*leaders, *workers]))

    world.ways = {}
    ended = world.queue(store).run(runs_of(store))
    assert [task.state for task in ended] == ["done"] * 3
    assert [start["flags"] for start in world.started()][2:] == [["--c", "-device", "cpu"]] * 2 + [["-device", "cpu"]]


def test_slots_divide_threads_and_name_their_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queue_module, "cpu_count", lambda: 8)
    monkeypatch.setattr(queue_module, "worker_processes", lambda: 6)
    made = Slot("3", 2).environment({"OMP_NUM_THREADS": "8", "PATH": "x"})
    assert made == {"OMP_NUM_THREADS": "4", "nnUNet_n_proc_DA": "4", "nnUNet_def_n_proc": "3", "PATH": "x",
                    "CUDA_VISIBLE_DEVICES": "3"}  # fmt: skip
    assert Slot().environment({"OMP_NUM_THREADS": "8"}) == {"OMP_NUM_THREADS": "8"}
    assert Slot(share=9).environment({"OMP_NUM_THREADS": "8"})["OMP_NUM_THREADS"] == "1"


def test_each_gpu_gets_one_run_at_a_time(world: World, store: Store) -> None:
    world.queue(store, [Slot("5", 2), Slot("7", 2)]).run(runs_of(store))
    assert {start["gpu"] for start in world.started()[:2]} == {"5", "7"}


@pytest.mark.parametrize(("free", "at_once"), [(100, 1), (10_000_000, 2)])
def test_a_run_waits_for_the_memory_that_runs_were_measured_to_need(
    world: World, store: Store, free: int, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queue_module, "free_memory_bytes", lambda: free)
    monkeypatch.setattr(queue_module.Child, "measure", lambda child: 1000)
    for task in runs_of(store):
        store.update(task, memory_bytes=1000)
    queue, most = world.queue(store, [Slot(share=2)] * 2), []
    start = queue._start
    monkeypatch.setattr(queue, "_start", lambda *words: (start(*words), most.append(len(queue.running))))
    queue.run(runs_of(store))
    assert max(most) == at_once


def test_a_task_is_the_ordinary_command(store: Store) -> None:
    plan, run, *_ = store.tasks()
    assert command_of(run, ["--c"])[-len(run.job.arguments) - 2 :] == [*run.job.arguments, "--c", "--json"]
    assert "import train" in command_of(run, [])[2]
    assert "import plan_and_preprocess" in command_of(plan, [])[2]
