"""Boxes of patches, on cases whose voxels hold their own normalised coordinates."""

from __future__ import annotations

import pickle
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from batchgeneratorsv2.transforms.spatial.mirroring import MirrorTransform
from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnssl.data.boxes import LocatedPatches
from nnssl.data.streams import IterationBatches, seeded
from nnssl.data.views import make_reproducible, two_views

CASES = {  # shape of the case, initial and final patch, dummy 2-D
    "2d": ((3, 40, 31), (23, 20), (12, 15), False),
    "3d": ((30, 24, 27), (19, 14, 20), (12, 11, 13), False),
    "anisotropic 3d": ((7, 40, 36), (5, 22, 19), (5, 14, 13), True),
    "larger than the case": ((9, 10, 30), (19, 18, 20), (13, 12, 13), False),
}
LABELS = SimpleNamespace(all_labels=[0, 1], has_ignore_label=False)


class Coordinates:
    """One case whose channels are the coordinates of its voxels in units of its sides."""

    identifiers = ("case",)

    def __init__(self, shape: tuple[int, ...]) -> None:
        axes = [(np.arange(n) + 0.5) / n for n in shape]
        self.image = np.stack(np.meshgrid(*axes, indexing="ij")).astype(np.float32)

    def load_case(self, _name: str) -> tuple[Any, ...]:
        return self.image, np.zeros_like(self.image[:1], dtype=np.int16), None, {"class_locations": {}}


def loader(name: str, cls: Any = LocatedPatches, upright: bool = True, mirror: bool = True) -> Any:
    shape, initial, final, dummy_2d = CASES[name]
    axes = tuple(range(len(final))) if mirror else ()
    chain = nnUNetTrainer.get_training_transforms(
        final, (-0.5, 0.5), [[1.0] * len(final)], axes, dummy_2d, use_mask_for_norm=[False]
    )
    views = two_views(make_reproducible(chain), 0.0)
    for part in views.geometric.transforms:
        if isinstance(part, SpatialTransform) and upright:
            part.p_rotation = part.p_scaling = 0.0
    return cls(Coordinates(shape), 4, initial, final, LABELS, 0.0, transforms=views)


def batch(maker: Any, seed: int) -> dict[str, Any]:
    with seeded(seed):
        made: dict[str, Any] = maker.generate_train_batch()
    return made


def coordinates(box: torch.Tensor, size: torch.Size) -> torch.Tensor:
    """Return the coordinates (n, *S) that a patch with this box shows."""
    axes = [lo + (torch.arange(n) + 0.5) / n * (hi - lo) for (lo, hi), n in zip(box, size, strict=True)]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"))


@pytest.mark.parametrize("mirror", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_a_patch_shows_what_its_box_says(name: str, mirror: bool) -> None:
    maker, mirrored = loader(name, mirror=mirror), 0
    dim = len(CASES[name][2])
    for seed in range(4):
        made = batch(maker, seed)
        assert made["boxes"].shape == (4, dim, 2)
        assert made["boxes"].dtype == torch.float32
        mirrored += int((made["boxes"][..., 0] > made["boxes"][..., 1]).sum())
        for image, target, box in zip(made["data"], made["target"], made["boxes"], strict=True):
            expected, scan = coordinates(box, image.shape[1:]), target[0] >= 0
            assert scan.any()
            torch.testing.assert_close(image[3 - dim : 3, scan], expected[:, scan], atol=1e-5, rtol=0)
            inside = ((expected > 0) & (expected < 1)).all(0)
            assert torch.equal(scan, inside)  # padding is where the box leaves the scan
    assert (mirrored > 0) == mirror


@pytest.mark.parametrize("name", ["2d", "3d"])
def test_rotation_and_scaling_keep_the_centre(name: str) -> None:
    maker = loader(name, upright=False)
    dim, turned = len(CASES[name][2]), 0
    for part in maker.transforms.geometric.transforms:
        if isinstance(part, SpatialTransform):
            part.p_rotation = part.p_scaling = 1.0
    for seed in range(3):
        made = batch(maker, seed)
        for image, target, box in zip(made["data"], made["target"], made["boxes"], strict=True):
            if (target >= 0).all():
                turned += 1
                voxel = 1 / torch.tensor(CASES[name][0][3 - dim :])  # an odd rest of the crop is half a voxel
                off = (image[3 - dim : 3].flatten(1).mean(1) - box.mean(1)).abs()
                assert (off <= 0.51 * voxel).all()
    assert turned


@pytest.mark.parametrize("name", CASES)
def test_patches_are_those_of_nnunets_batch_maker_bit_by_bit(name: str) -> None:
    ours, theirs = loader(name, upright=False), loader(name, nnUNetDataLoader, upright=False)
    for seed in range(3):
        a, b = batch(ours, seed), batch(theirs, seed)
        assert torch.equal(a["data"], b["data"])
        assert torch.equal(a["target"], b["target"])
        assert "boxes" not in b
    assert any(type(part) is MirrorTransform for part in theirs.transforms.geometric.transforms)


def test_streams_hand_boxes_over_where_there_are_any_and_after_pickling() -> None:
    maker = pickle.loads(pickle.dumps(loader("3d")))
    batches = IterationBatches({"labelled": loader("3d", nnUNetDataLoader), "unlabelled": maker}, seed=3)
    made = batches["train", 5]
    assert set(made["labelled"]) == {"data", "target"}
    assert set(made["unlabelled"]) == {"data", "target", "boxes"}
    assert torch.equal(made["unlabelled"]["boxes"], batches["train", 5]["unlabelled"]["boxes"])
    assert not torch.equal(made["unlabelled"]["boxes"], batches["train", 6]["unlabelled"]["boxes"])
