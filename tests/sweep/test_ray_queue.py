"""The queue on a real Ray cluster of two workers on this machine; the runs are small scripts."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from nnssl.errors import EnvironmentProblem, UsageError
from nnssl.sweep import ray_queue
from nnssl.sweep.api import sweep
from nnssl.sweep.places import Places
from nnssl.sweep.queue import Queue, Slot, verdict
from nnssl.sweep.ray_queue import RayQueue, cluster, run_command
from nnssl.sweep.store import Store, Task
from nnssl.sweep.study import Study, study_runs
from tests.conftest import DATASET
from tests.sweep.studies_for_tests import World, runs_of, small_study


@pytest.fixture(scope="module")
def ray() -> Iterator[Any]:
    pytest.importorskip("ray")
    with cluster(None, 2) as started:
        yield started


def ray_queue_of(world: World, store: Store, ray: Any) -> RayQueue:
    return RayQueue(store, world.places, ray, "cpu", world.study / "logs", 2, world.words)


def is_alive(pid: int) -> bool:
    with contextlib.suppress(OSError, IndexError):
        return (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    return False


def parent_of(pid: int) -> int:
    return int((Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[1])


def wait_for(condition: Any, seconds: float) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.nightly
def test_states_messages_and_retries(world: World, ray: Any) -> None:
    world.write_plans()
    world.ways = {2: ["done"], 3: ["fail"], 4: ["stop", "done"], 5: ["die"]}
    with world.store(small_study(4)) as store:
        ended = ray_queue_of(world, store, ray).run(runs_of(store))
        assert [task.state for task in ended] == ["done", "failed", "done", "failed"], [t.message for t in ended]
        assert ended[1].message.startswith("the scans are broken\nwhere: case_1")
        assert "killed by signal 9" in ended[3].message
        assert [task.state for task in runs_of(store)] == [task.state for task in ended]
        assert ray_queue_of(world, store, ray).run([ended[0]])[0].state == "done"
    flags = [start["flags"] for start in world.started() if str(start["folder"]).endswith("seed2,iterations30/fold_0")]
    assert flags == [["-device", "cpu"], ["--c", "-device", "cpu"]]
    assert len(world.started()) == 5


@pytest.mark.nightly
def test_a_killed_worker_loses_nothing_and_leaves_no_orphan(world: World, ray: Any) -> None:
    world.write_plans()
    world.ways = {2: ["hang", "done"], 3: ["done"]}
    orphans: list[int] = []

    def kill() -> None:
        wait_for(lambda: any(world.places.results.glob("*/*/worker")), 120)
        (hanging,) = (s for s in world.started() if (Path(str(s["folder"])) / "worker").exists())
        child = int(str(hanging["pid"]))
        worker = parent_of(parent_of(child))  # the guard stands between
        orphans.extend([child, int((Path(str(hanging["folder"])) / "worker").read_text()), worker])
        os.kill(worker, signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    with world.store(small_study(2)) as store:
        ended = ray_queue_of(world, store, ray).run(runs_of(store))
    killer.join()
    assert [task.state for task in ended] == ["done", "done"]
    assert len(orphans) == 3
    wait_for(lambda: not any(map(is_alive, orphans)), 10)


TRAIN = """
import sys
import nnssl.planning.preprocessing
import nnssl.training.settings
from nnssl_trainers.frame.run_loop import RunLoop
nnssl.planning.preprocessing.check_preprocessed = lambda *a: None  # hand-made cases have no manifest
nnssl.training.settings.ITERATIONS_PER_EPOCH = 5
RunLoop.num_val_iterations_per_epoch = property(lambda self: 1, lambda self, value: None)
from nnssl.cli.train import main
sys.exit(main())
"""


@pytest.mark.nightly
def test_a_study_on_ray_ends_with_the_weights_of_the_local_one(
    make_tiny: Any, tmp_path: Path, ray: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_tiny()
    script = tmp_path / "train.py"
    script.write_text(TRAIN)
    for name, value in (("OMP_NUM_THREADS", "1"), ("nnUNet_n_proc_DA", "0"), ("PYTHONPATH", os.pathsep.join(sys.path))):
        monkeypatch.setenv(name, value)
    study = Study(DATASET, ("3d_fullres",), ("FixMatchTrainer",), seeds=(0, 1), num_iterations=40)
    killed: list[int] = []

    def words(task: Task, flags: Sequence[str]) -> list[str]:
        return [sys.executable, str(script), *task.job.arguments, *flags, "--json"]

    def kill(results: Path) -> None:
        wait_for(lambda: any(results.glob("*/fold_0/checkpoint_latest.pth")), 300)
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if (
                    str(script).encode() in (folder / "cmdline").read_bytes()
                    and b"guard" not in (folder / "cmdline").read_bytes()
                ):
                    killed[:] = [int(folder.name), parent_of(int(folder.name)), parent_of(parent_of(int(folder.name)))]
        os.kill(killed[-1], signal.SIGKILL)

    def train(name: str) -> tuple[list[Task], Path]:
        monkeypatch.setenv("nnUNet_results", str(tmp_path / name))
        places = Places.of(DATASET)
        with Store(tmp_path / f"study_{name}") as store:
            store.add(study_runs(study))
            logs = tmp_path / f"study_{name}" / "logs"
            if name == "local":
                return Queue(store, places, [Slot(), Slot()], "cpu", logs, words).run(store.tasks()), places.results
            killer = threading.Thread(target=kill, args=(places.results,))
            killer.start()
            ended = RayQueue(store, places, ray, "cpu", logs, 2, words).run(store.tasks())
            killer.join()
            return ended, places.results

    weights = {}
    for name in ("local", "ray"):
        ended, results = train(name)
        assert [task.state for task in ended] == ["done", "done"], [task.message for task in ended]
        weights[name] = {
            file.parts[-3]: torch.load(file, weights_only=True)["network_weights"]
            for file in results.glob("*/fold_0/checkpoint_final.pth")
        }
        starts = [task.starts for task in ended]
    assert sum(starts) == 3  # one worker was killed
    wait_for(lambda: not any(map(is_alive, killed)), 10)
    assert len(weights["local"]) == 2
    torch.testing.assert_close(weights["ray"], weights["local"], atol=0, rtol=0)


def test_a_command_on_a_worker_is_stopped_with_its_group(tmp_path: Path) -> None:
    words = ["sh", "-c", f"sleep 60 & echo $! > {tmp_path}/pid; exit 3"]
    ended = run_command(words, {}, str(tmp_path / "log"))
    assert ended.code == 3
    assert "exit code 3" in ended.message
    wait_for(lambda: not is_alive(int((tmp_path / "pid").read_text())), 10)


def test_verdicts() -> None:
    assert verdict(0, True, "") == ("done", "")
    assert verdict(0, False, "")[0] == "failed"
    assert verdict(75, False, "late") == ("stopped", "late")
    assert verdict(3, False, "broken") == ("failed", "broken")


def test_missing_ray_and_an_address_without_ray(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="-address names a Ray cluster"):
        sweep(small_study(), world.study, address="auto")
    with pytest.raises(UsageError, match="unknown engine 'slurm'"):
        sweep(small_study(), world.study, engine="slurm")
    monkeypatch.setattr(ray_queue.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(EnvironmentProblem, match="-engine ray needs the Python package ray") as caught:
        sweep(small_study(), world.study, engine="ray")
    assert caught.value.run == 'python -m pip install "nnssl-semi[ray]"'
    assert not (world.study / "study.db").exists()
