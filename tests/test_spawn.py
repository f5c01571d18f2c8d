"""Training where processes are spawned, as on macOS and Windows: the data workers get all that they need by pickle."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import nnssl
from nnssl.data.phantom import write_phantom

SCRIPT = """
import json, multiprocessing, sys
import nnssl

if __name__ == "__main__":
    multiprocessing.set_start_method(sys.argv[1])
    result = nnssl.train(1, "2d", 0, trainer="FixMatchTrainer", num_iterations=3, tag=sys.argv[1], device="cpu",
                         settings={"supervised_share": 0.0, "ready_dice": 0.0}, progress="off")
    print(json.dumps([str(result.folder), multiprocessing.get_start_method()]))
"""


@pytest.mark.nightly
@pytest.mark.slow
def test_spawned_data_workers_give_the_same_weights_as_forked_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("raw", "preprocessed", "results"):
        (tmp_path / name).mkdir()
        monkeypatch.setenv(f"nnUNet_{name}", str(tmp_path / name))
    write_phantom(tmp_path / "raw", 1, labelled=3, unlabelled=3, test=1, shape=(16, 24, 24))
    nnssl.plan(1, ["2d"], hardware="cpu")
    script = tmp_path / "train.py"
    script.write_text(SCRIPT)
    weights = []
    for method in ("fork", "spawn"):
        words = [sys.executable, str(script), method]
        environment = {**os.environ, "nnUNet_n_proc_DA": "2"}
        done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        place, used = json.loads(done.stdout.splitlines()[-1])
        assert used == method
        weights.append(torch.load(Path(place) / "checkpoint_final.pth", weights_only=True)["network_weights"])
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
