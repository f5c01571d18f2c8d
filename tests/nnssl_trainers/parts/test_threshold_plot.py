from __future__ import annotations

from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
import torch

from nnssl.errors import UsageError
from nnssl.ingredients.thresholds import DynamicThresholdMap
from nnssl.training import checkpoints
from nnssl_trainers.parts.threshold_plot import plot_threshold_map


def write(folder: Path, values: torch.Tensor) -> Path:
    thresholds = DynamicThresholdMap(2, values.shape, 0.9)
    thresholds.map.copy_(values)
    thresholds.scale.copy_(torch.tensor([1.0, 0.5]))
    file = folder / "checkpoint_final.pth"
    checkpoints.save({checkpoints.KEY: {"threshold_map": thresholds.state_dict()}}, file)
    return file


def picture(checkpoint: Path) -> np.ndarray:
    file = checkpoint.with_suffix(".png")
    plot_threshold_map(checkpoint, file)
    return matplotlib.image.imread(file)


def test_a_map_of_three_axes_shows_its_middle_slice(tmp_path: Path) -> None:
    plane = torch.rand(6, 8, generator=torch.Generator().manual_seed(0))
    flat = picture(write(tmp_path, plane))
    volume = torch.zeros(5, 6, 8)
    volume[2] = plane
    assert np.array_equal(picture(write(tmp_path, volume)), flat)
    volume[2] = 1 - plane
    assert not np.array_equal(picture(write(tmp_path, volume)), flat)


def test_classes_stand_side_by_side_on_one_scale_of_colours(tmp_path: Path) -> None:
    same = picture(write(tmp_path, torch.full((6, 6), 0.8)))
    colours = matplotlib.colormaps["viridis"]([0.8, 0.4])[:, :3]
    shown = [np.abs(same[..., :3] - colour).max(-1) < 0.02 for colour in colours]
    left, right = (np.nonzero(found)[1].mean() for found in shown)
    assert left < right  # class 0 with threshold 0.8, then class 1 with 0.4
    assert min(found.sum() for found in shown) > 1000


def test_a_checkpoint_without_a_map_is_an_error(tmp_path: Path) -> None:
    file = tmp_path / "checkpoint_final.pth"
    checkpoints.save({checkpoints.KEY: {"trainer": "SupervisedTrainer"}}, file)
    with pytest.raises(UsageError, match="no threshold map"):
        plot_threshold_map(file, tmp_path / "map.png")
    assert not (tmp_path / "map.png").exists()
