from __future__ import annotations

import numpy as np
import pytest
import torch

from nnssl.errors import EnvironmentProblem
from nnssl.inference.checkpoint import load_checkpoint

CONTENT = {
    "network_weights": {"weight": torch.ones(2)},
    "trainer_name": "nnUNetTrainer",
    "init_args": {"configuration": "2d", "device": torch.device("cpu")},
    "inference_allowed_mirroring_axes": (0, 1),
}


class Harmful:
    def __reduce__(self):
        return pytest.fail, ("code in the checkpoint was run",)


def save(path, **changes):
    torch.save({**CONTENT, **changes}, path)
    return path


def test_our_checkpoint(tmp_path):
    checkpoint = load_checkpoint(save(tmp_path / "c.pth", nnssl_semi={"method": "x"}))
    assert (checkpoint.trainer, checkpoint.configuration, checkpoint.ours) == ("nnUNetTrainer", "2d", True)
    assert checkpoint.mirror_axes == (0, 1)
    assert torch.equal(checkpoint.weights["weight"], torch.ones(2))


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64, np.int64, np.uint8, np.bool_])
def test_numpy_scalars_of_stock_checkpoints(tmp_path, kind):
    checkpoint = load_checkpoint(save(tmp_path / "c.pth", logging={"dice": [kind(1)]}, _best_ema=kind(1)))
    assert not checkpoint.ours


@pytest.mark.parametrize("axes", [None, (), []])
def test_no_mirroring(tmp_path, axes):
    assert load_checkpoint(save(tmp_path / "c.pth", inference_allowed_mirroring_axes=axes)).mirror_axes is None


def test_code_in_a_checkpoint_is_not_run(tmp_path):
    with pytest.raises(EnvironmentProblem, match="cannot be read") as caught:
        load_checkpoint(save(tmp_path / "c.pth", logging=Harmful()))
    assert caught.value.why.startswith("it holds more than numbers and text: ")


@pytest.mark.parametrize("size", [0, 10, 300, -10])
def test_truncated_file(tmp_path, size):
    path = save(tmp_path / "c.pth")
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(EnvironmentProblem, match="checkpoint") as caught:
        load_checkpoint(path)
    assert caught.value.where == str(path)
    assert caught.value.exit_code == 4


@pytest.mark.parametrize("content", [{"weights": 1}, [1, 2], {**CONTENT, "init_args": {}}])
def test_other_content(tmp_path, content):
    torch.save(content, tmp_path / "c.pth")
    with pytest.raises(EnvironmentProblem, match="no checkpoint of nnU-Net"):
        load_checkpoint(tmp_path / "c.pth")
