"""A study whose runs are a small script, which behaves as `nnssl_train` does towards the queue."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from nnssl.sweep.places import Places
from nnssl.sweep.queue import Queue, Slot
from nnssl.sweep.store import Store, Task
from nnssl.sweep.study import Study, StudyRun, study_plans, study_runs
from tests.comparison.folders_for_tests import DATASET

LENGTH = 30
SCRIPT = """
import json, os, pathlib, signal, subprocess, sys, time
folder, starts = map(pathlib.Path, sys.argv[1:3])
ways, flags = json.loads(sys.argv[3]), sys.argv[4:]
with starts.open("a") as file:
    file.write(json.dumps({"folder": str(folder), "flags": flags, "omp": os.environ["OMP_NUM_THREADS"],
                           "gpu": os.environ.get("CUDA_VISIBLE_DEVICES"), "pid": os.getpid()}) + "\\n")
count = sum(json.loads(line)["folder"] == str(folder) for line in starts.read_text().splitlines())
way = ways[min(count, len(ways)) - 1]
folder.mkdir(parents=True, exist_ok=True)
def save(*_):
    (folder / "checkpoint_latest.pth").touch()
    sys.exit(75)
if way == "hang":
    signal.signal(signal.SIGTERM, save)
    worker = subprocess.Popen([sys.executable, "-c", "import signal, time; signal.signal(signal.SIGTERM, "
                               "signal.SIG_IGN); time.sleep(60)"])
    (folder / "worker").write_text(str(worker.pid))
    time.sleep(60)
if way == "stop":
    save()
if way == "fail":
    print(json.dumps({"error": "the scans are broken", "where": "case_1", "why": "", "run": "", "exit_code": 3}))
    sys.exit(3)
if way == "die":
    os.kill(os.getpid(), signal.SIGKILL)
if way == "done":
    (folder / "validation").mkdir(exist_ok=True)
    (folder / "validation" / "summary.json").write_text("{}")
    record = {"dataset": "d", "trainer": "t", "plans": "p", "configuration": "2d", "fold": "0", "state": "done",
              "iteration": 30, "settings": {"num_iterations": 30}, "seconds_per_iteration": 0.5}
    (folder / "run.json").write_text(json.dumps(record))
"""


def small_study(number: int = 3, **changes: object) -> Study:
    """Return a study of runs with the seeds 0, 1, …"""
    values = {"trainers": ("SupervisedTrainer",), "seeds": tuple(range(number)), "num_iterations": LENGTH, **changes}
    return Study(dataset=DATASET, configurations=("2d",), **values)  # type: ignore[arg-type]


class World:
    """The folders of nnU-Net, and a study whose runs go the ways that a test says."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in ("raw", "preprocessed", "results"):
            (root / name / DATASET).mkdir(parents=True)
            monkeypatch.setenv(f"nnUNet_{name}", str(root / name))
        self.root, self.places, self.study = root, Places.of(DATASET), root / "study"
        self.script, self.starts = root / "script.py", root / "starts.jsonl"
        self.script.write_text(SCRIPT)
        self.ways: dict[int, list[str]] = {}  # number of a task -> what its first, second, … start does

    def write_plans(self, name: str = "nnUNetPlans", **semi: object) -> None:
        content = {"plans_name": name, "configurations": {"2d": {}}, "nnssl_semi": semi}
        (self.places.preprocessed / f"{name}.json").write_text(json.dumps(content))

    def words(self, task: Task, flags: Sequence[str]) -> list[str]:
        folder = self.places.folder(task.job) if isinstance(task.job, StudyRun) else self.root / "plans"
        ways = json.dumps(self.ways.get(task.number, ["done"]))
        return [sys.executable, str(self.script), str(folder), str(self.starts), ways, *flags]

    def queue(self, store: Store, slots: Sequence[Slot] = (Slot(),)) -> Queue:
        return Queue(store, self.places, list(slots), "cpu", self.study / "logs", self.words, 10.0)

    def store(self, study: Study) -> Store:
        store = Store(self.study)
        store.add([*study_plans(study), *study_runs(study)])
        return store

    def started(self) -> list[dict[str, object]]:
        lines = self.starts.read_text().splitlines() if self.starts.exists() else []
        return [json.loads(line) for line in lines]


def runs_of(store: Store) -> list[Task]:
    return [task for task in store.tasks() if isinstance(task.job, StudyRun)]
