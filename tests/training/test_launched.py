"""Distributed training by torchrun itself: two processes end with the weights of one, and a lost one ends all."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from nnssl.errors import EnvironmentProblem, OutOfMemory, StoppedBySignal, UsageError
from nnssl.registry import METHODS
from nnssl.training import launched
from nnssl.training.launched import Launched, Share, refuse_num_gpus, translate_lost_process
from nnssl.training.record import RunRecord
from tests.conftest import DATASET

TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
PREPARED = """
import sys
import nnssl.planning.preprocessing
nnssl.planning.preprocessing.check_preprocessed = lambda *a: None  # hand-made cases have no manifest
"""
TRAIN_ALL = f"""{PREPARED}
import dataclasses, nnssl
from nnssl.registry import METHODS
for name in sys.argv[2:]:
    known = {{item.name for item in dataclasses.fields(METHODS[name].load().config_class)}}
    wanted = {{"supervised_share": 0.25, "supervised_least": 0, "ready_dice": 0.0, "pretrain_least": 4}}
    settings = {{key: value for key, value in wanted.items() if key in known}}
    nnssl.train("{DATASET}", "3d_fullres", 0, trainer=name, tag=sys.argv[1], settings=settings, num_iterations=20,
                device="cpu", run_validation=False, progress="off")
"""
COMMAND = f"""{PREPARED}
import nnssl.training.settings
nnssl.training.settings.ITERATIONS_PER_EPOCH = 5
from nnssl_trainers.frame.run_loop import RunLoop
RunLoop.num_val_iterations_per_epoch = property(lambda self: 1, lambda self, value: None)
from nnssl.cli.train import main
sys.exit(main())
"""


def environment() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    return {**kept, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}


def weights_of(root: Path, trainer: str, tag: str) -> dict[str, torch.Tensor]:
    file = root / "nnUNet_results" / DATASET / f"{trainer}__nnUNetPlans__3d_fullres@{tag}/fold_0/checkpoint_final.pth"
    return dict(torch.load(file, weights_only=True)["network_weights"])


def largest_differences(root: Path, trainers: Sequence[str]) -> dict[str, float]:
    """Train methods in one process and in two, and return the largest difference of a weight of each method."""
    script = root / "train_all.py"
    script.write_text(TRAIN_ALL)
    for tag, launcher in (("one", []), ("two", TORCHRUN)):
        words = [sys.executable, *launcher, str(script), tag, *trainers]
        done = subprocess.run(words, env=environment(), capture_output=True, text=True, timeout=3600, check=False)
        assert done.returncode == 0, done.stderr[-5000:]
    found = {}
    for trainer in trainers:
        one, two = (weights_of(root, trainer, tag) for tag in ("one", "two"))
        assert one.keys() == two.keys()
        found[trainer] = max((one[name].double() - two[name].double()).abs().max().item() for name in one)
    return found


@pytest.mark.slow
def test_two_processes_end_with_the_weights_of_one(make_tiny) -> None:
    root = make_tiny().parents[1]
    found = largest_differences(root, ["SupervisedTrainer", "FixMatchTrainer"])
    assert max(found.values()) <= 1e-5, found


@pytest.mark.nightly
def test_two_processes_end_with_the_weights_of_one_for_every_method(make_tiny) -> None:
    found = largest_differences(make_tiny().parents[1], list(METHODS))
    assert max(found.values()) <= 1e-5, found


def children_of(parent: int) -> list[int]:
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # the process has ended meanwhile
            if int((folder / "stat").read_text().rpartition(")")[2].split()[1]) == parent:
                found.append(int(folder.name))
    return sorted(found)


@pytest.mark.nightly
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_process_ends_all_and_the_run_continues(make_tiny, rank: int) -> None:
    root = make_tiny().parents[1]
    script, log = root / "command.py", root / "log"
    script.write_text(COMMAND)
    words = [sys.executable, *TORCHRUN, str(script), DATASET, "3d_fullres", "0", "-tr", "SupervisedTrainer"]
    words += ["-device", "cpu", "--no_val", "-num_iterations", "100"]
    fold = root / "nnUNet_results" / DATASET / "SupervisedTrainer__nnUNetPlans__3d_fullres@iterations100" / "fold_0"
    with log.open("w") as file:
        running = subprocess.Popen(words, env=environment(), stdout=file, stderr=file)
        wait_for(lambda: (fold / "checkpoint_latest.pth").is_file() or running.poll() is not None)
        ranks = children_of(running.pid)
        assert len(ranks) == 2, log.read_text()
        os.kill(ranks[rank], signal.SIGKILL)
        assert running.wait(120) != 0
    wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in ranks), 10)
    if rank == 1:
        assert "another process of the run is gone" in log.read_text()
        assert RunRecord.read(fold).state == "stopped"
    reached = torch.load(fold / "checkpoint_latest.pth", weights_only=True)["nnssl_semi"]["iteration"]
    assert reached % 5 == 0
    assert 0 < reached < 100
    again = [*words, "--c"]
    done = subprocess.run(again, env=environment(), capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert torch.load(fold / "checkpoint_final.pth", weights_only=True)["nnssl_semi"]["iteration"] == 100
    rows = [json.loads(line)["iteration"] for line in (fold / "progress.jsonl").read_text().splitlines()]
    assert rows == list(range(5, 105, 5))


def wait_for(condition, seconds: float = 300) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.1)


@pytest.fixture
def variables(monkeypatch: pytest.MonkeyPatch):
    def put(**values: str) -> None:
        for name in (*launched.VARIABLES, "LOCAL_RANK"):
            monkeypatch.delenv(name, raising=False)
        for name, value in values.items():
            monkeypatch.setenv(name, value)

    return put


PLACE = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "MASTER_ADDR": "node1", "MASTER_PORT": "29500"}


def test_the_place_of_a_process(variables) -> None:
    variables()
    assert Launched.find() is None
    variables(**{**PLACE, "RANK": "0", "WORLD_SIZE": "1"})
    assert Launched.find() is None
    variables(**PLACE)
    assert Launched.find() == Launched(3, 4, 1)
    assert launched.is_follower()
    with pytest.raises(UsageError, match="a launcher has started them already"):
        refuse_num_gpus(2)
    refuse_num_gpus(1)
    variables(**{name: value for name, value in PLACE.items() if name != "MASTER_PORT"})
    with pytest.raises(EnvironmentProblem) as caught:
        Launched.find()
    assert caught.value.where == "MASTER_PORT"


@pytest.mark.parametrize("change", [{"RANK": "4"}, {"RANK": "one"}, {"WORLD_SIZE": "2"}, {"LOCAL_RANK": "-1"}])
def test_impossible_places(variables, change: dict[str, str]) -> None:
    variables(**{**PLACE, **change})
    with pytest.raises(EnvironmentProblem, match="contradict each other"):
        Launched.find()


def test_the_first_content_counts_and_an_error_is_raised_everywhere() -> None:
    store = torch.distributed.HashStore()
    first, other, third = (Share(store, number) for number in (1, 1, 2))
    first.give({"a": 1})
    first.give({"a": 2})
    assert other.wait() == {"a": 1}
    third.give(UsageError("no such fold", where="-f 9"))
    with pytest.raises(UsageError, match="no such fold"):
        Share(store, 2).wait()
    assert Share(store).number + 1 == Share(store).number  # each call of nnssl.train has its own


def test_a_lost_connection_is_a_stop_and_lost_memory_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(StoppedBySignal, match="another process of the run is gone"), translate_lost_process():
        raise RuntimeError("[pair.cc] Connection closed by peer [127.0.0.1]:1")
    with pytest.raises(RuntimeError, match="shapes"), translate_lost_process():
        raise RuntimeError("shapes differ")
    counts = iter([3, 4])
    monkeypatch.setattr(launched, "oom_kills", lambda: next(counts))
    with pytest.raises(OutOfMemory), translate_lost_process():
        raise RuntimeError("Connection reset by peer")
