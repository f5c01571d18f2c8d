from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch

from nnssl.errors import EnvironmentProblem, UsageError
from nnssl.training import checkpoints
from nnssl.training.settings import RunSettings


def test_plain_values_load_with_weights_only(tmp_path: Path) -> None:
    content = {"a": np.float32(0.5), "b": [np.arange(2), Path("x")], "c": torch.device("cpu"), 1: (True, None)}
    path = tmp_path / "checkpoint_latest.pth"
    checkpoints.save(checkpoints.plain(content), path)
    assert checkpoints.load(path) == {"a": 0.5, "b": [[0, 1], "x"], "c": "cpu", 1: (True, None)}


def test_the_last_two_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint_latest.pth"
    for number in range(3):
        checkpoints.save({"number": number}, path, keep_previous=True)
    assert checkpoints.load(path)["number"] == 2
    assert checkpoints.load(checkpoints.previous(path))["number"] == 1
    assert len(list(tmp_path.iterdir())) == 2
    path.unlink()
    assert checkpoints.load_newest(path)["number"] == 1


def test_code_in_a_checkpoint_is_never_run(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self):
            return Path.touch, (tmp_path / "sprung",)

    torch.save({"network_weights": Trap()}, tmp_path / "checkpoint_final.pth")
    with pytest.raises(EnvironmentProblem, match="cannot be read"):
        checkpoints.load(tmp_path / "checkpoint_final.pth")
    assert not (tmp_path / "sprung").exists()


def test_a_full_disk_leaves_the_old_checkpoint(tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "checkpoint_latest.pth"
    checkpoints.save({"number": 1}, path)

    def full(*_: object) -> None:
        raise RuntimeError("[enforce fail at inline_container.cc] . PytorchStreamWriter failed writing file")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(EnvironmentProblem, match="could not be written"):
        checkpoints.save({"number": 2}, path, keep_previous=True)
    monkeypatch.undo()
    assert checkpoints.load(path)["number"] == 1
    assert len(list(tmp_path.iterdir())) == 1


def test_generators_continue_where_they_were(tmp_path: Path) -> None:
    checkpoints.save(checkpoints.rng_state(), tmp_path / "rng.pth")
    expected = random.random(), np.random.uniform(), torch.rand(1).item()
    checkpoints.set_rng_state(checkpoints.load(tmp_path / "rng.pth"))
    assert (random.random(), np.random.uniform(), torch.rand(1).item()) == expected


@pytest.mark.parametrize("name", ["bf16", "tag", "start_from", "pseudo_labels", "setting"])
def test_a_run_of_a_version_that_knew_fewer_settings_goes_on(name: str) -> None:
    run = RunSettings(num_iterations=9).to_dict()
    content = {checkpoints.KEY: {"trainer": "T", "run": {key: run[key] for key in run if key != name}}}
    assert checkpoints.of_run(content, "T", run, Path())["trainer"] == "T"
    with pytest.raises(UsageError, match="other settings"):
        checkpoints.of_run(content, "T", run | {name: "another"}, Path())
