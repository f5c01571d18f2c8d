from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from batchgeneratorsv2.transforms.spatial.rot90 import Rot90Transform
from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform
from batchgeneratorsv2.transforms.utils.random import RandomTransform
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnssl.data.views import two_views
from nnssl.errors import UsageError
from nnssl_trainers.frame.augmentation import equal_axes, use_paper_augmentation


def stock(patch: tuple[int, ...], dummy_2d: bool = False):
    rotation = (-math.pi, math.pi)
    return nnUNetTrainer.get_training_transforms(
        patch, rotation, None, tuple(range(len(patch))), dummy_2d, use_mask_for_norm=[True], foreground_labels=[1]
    )


@pytest.mark.parametrize(
    ("patch", "spacing", "axes"),
    [
        ((32, 32), (1.0, 1.0), {0, 1}),
        ((32, 32), (1.0, 1.5), set()),
        ((32, 24), (1.0, 1.0), set()),
        ((16, 32, 32), (5.0, 1.0, 1.0), {1, 2}),
        ((32, 32, 32), (5.0, 1.0, 1.05), {1, 2}),
        ((32, 32, 32), (1.0, 1.0, 1.0), {0, 1, 2}),
    ],
)
def test_only_equal_axes_are_turned_into_each_other(patch, spacing, axes) -> None:
    assert equal_axes(patch, spacing) == axes


@pytest.mark.parametrize(("patch", "dummy_2d"), [((16, 16), False), ((16, 16, 16), False), ((4, 16, 16), True)])
def test_crops_flips_turns_and_small_rotations(patch: tuple[int, ...], dummy_2d: bool) -> None:
    transforms = stock(patch, dummy_2d)
    use_paper_augmentation(transforms, patch, (3.0, 1.0, 1.0)[-len(patch) :])
    assert not any(isinstance(part, RandomTransform) for part in transforms.transforms)
    (spatial,) = (part for part in transforms.transforms if isinstance(part, SpatialTransform))
    assert (spatial.rotation, spatial.p_rotation) == ((-math.radians(20), math.radians(20)), 0.5)
    assert (spatial.p_scaling, spatial.p_elastic_deform) == (0.0, 0)
    assert sum(isinstance(part, Rot90Transform) for part in transforms.transforms) == 1


def test_all_eight_poses_of_a_square_come_and_image_and_labels_stay_together() -> None:
    transforms = stock((8, 8))
    use_paper_augmentation(transforms, (8, 8), (1.0, 1.0))
    (spatial,) = (part for part in transforms.transforms if isinstance(part, SpatialTransform))
    spatial.p_rotation = 0.0
    labels = torch.arange(64).view(1, 8, 8).to(torch.int16)
    np.random.seed(0)
    torch.manual_seed(0)
    poses = set()
    for _ in range(120):
        found = transforms(image=labels.float(), segmentation=labels.clone())
        assert torch.equal(found["image"].round().to(torch.int16), found["segmentation"].to(torch.int16))
        poses.add(tuple(found["segmentation"].flatten().tolist()))
    assert len(poses) == 8


def test_weak_and_strong_view_are_the_same_patch() -> None:
    transforms = stock((8, 8))
    use_paper_augmentation(transforms, (8, 8), (1.0, 1.0))
    image = torch.randn(1, 12, 12)
    views = two_views(transforms, 0.5)(image=image, segmentation=torch.zeros(1, 12, 12))["image"]
    assert torch.equal(views[:1], views[1:])


@pytest.mark.parametrize("name", ["MeanTeacherTrainer", "DSMTTrainer"])
@pytest.mark.parametrize("dim", [2, 3])
def test_runs_train_with_it(name: str, dim: int, make_trainer) -> None:
    trainer = make_trainer(name, dim, config={"augmentation": "paper"})
    trainer.run_training()
    assert len(trainer.record.rows) == 2


def test_methods_that_follow_the_place_of_a_patch_refuse_turns(make_trainer) -> None:
    trainer = make_trainer("DPTMTrainer", 2, config={"augmentation": "paper"})
    with pytest.raises(UsageError, match="needs nnU-Net's augmentation"):
        trainer.run_training()
