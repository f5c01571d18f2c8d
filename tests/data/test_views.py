from __future__ import annotations

import numpy as np
import pytest
import torch
from batchgeneratorsv2.transforms.base.basic_transform import ImageOnlyTransform
from batchgeneratorsv2.transforms.spatial.rot90 import Rot90Transform
from batchgeneratorsv2.transforms.utils.random import RandomTransform
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnssl.data.views import make_reproducible, two_views
from nnssl.errors import EnvironmentProblem

CASES = {
    "2d": ((24, 24), (16, 16), False),
    "3d": ((20, 20, 20), (12, 12, 12), False),
    "anisotropic 3d": ((6, 24, 24), (6, 16, 16), True),
}


def training(name: str, use_mask: bool = False):
    _, patch, dummy_2d = CASES[name]
    axes = tuple(range(len(patch)))
    return nnUNetTrainer.get_training_transforms(
        patch, (-0.5, 0.5), [[1.0] * len(patch)], axes, dummy_2d, use_mask_for_norm=[use_mask, use_mask]
    )


def views(name: str, strong: float = 1.0, use_mask: bool = False, seed: int = 0):
    torch.manual_seed(seed)
    np.random.seed(seed)
    shape = CASES[name][0]
    image = torch.rand(2, *shape) + 1
    segmentation = torch.zeros(1, *shape, dtype=torch.int16)
    segmentation[:, : shape[0] // 2] = -1
    made = two_views(make_reproducible(training(name, use_mask)), strong)(image=image, segmentation=segmentation)
    return made["image"][:2], made["image"][2:], made["segmentation"]


@pytest.mark.parametrize("name", CASES)
def test_shapes_and_shared_geometry(name: str) -> None:
    weak, strong, mask = views(name)
    patch = CASES[name][1]
    assert weak.shape == strong.shape == (2, *patch)
    assert mask.shape == (1, *patch)
    assert not torch.equal(weak, strong)
    same_weak, same_strong, _ = views(name, strong=1.0)
    assert torch.equal(weak, same_weak)
    assert torch.equal(strong, same_strong)


def test_without_strong_views_the_weak_view_is_the_same_and_nothing_is_drawn_for_others() -> None:
    transforms = two_views(training("2d"), 1.0, 0)
    transforms.intensity = None  # the weak view has no intensity augmentation
    weak, _, mask = views("2d")
    torch.manual_seed(0)
    np.random.seed(0)
    image = torch.rand(2, 24, 24) + 1
    segmentation = torch.zeros(1, 24, 24, dtype=torch.int16)
    segmentation[:, :12] = -1
    made = transforms(image=image, segmentation=segmentation)
    assert torch.equal(made["image"], weak)
    assert torch.equal(made["segmentation"], mask)


@pytest.mark.parametrize("name", CASES)
def test_without_intensity_augmentation_both_views_are_one(name: str) -> None:
    transforms = two_views(training(name), 0.0)
    for part in transforms.intensity.transforms:
        part.apply_probability = 0.0
    made = transforms(image=torch.rand(1, *CASES[name][0]), segmentation=torch.zeros(1, *CASES[name][0]).short())
    assert torch.equal(made["image"][:1], made["image"][1:])


def test_padding_stays_marked_and_masked_voxels_are_zero_in_both_views() -> None:
    weak, strong, mask = views("2d", use_mask=True)
    outside = (mask < 0).expand_as(weak)
    assert outside.any()
    assert (weak[outside] == 0).all()
    assert (strong[outside] == 0).all()


def test_probability_is_raised_never_lowered_and_the_labelled_chain_is_untouched() -> None:
    chain = training("3d")
    before = [part.apply_probability for part in chain.transforms if isinstance(part, RandomTransform)]
    made = two_views(chain, 0.25)
    assert [part.apply_probability for part in made.intensity.transforms] == [max(p, 0.25) for p in before]
    assert [part.apply_probability for part in chain.transforms if isinstance(part, RandomTransform)] == before


def test_blur_no_longer_times_its_algorithms() -> None:
    chain = training("3d")
    blur = [
        p.transform for p in chain.transforms if isinstance(p, RandomTransform) and hasattr(p.transform, "benchmark")
    ]
    assert any(part.benchmark for part in blur)
    make_reproducible(chain)
    assert not any(part.benchmark for part in blur)


class Unheard(ImageOnlyTransform):
    """A transform that an update of nnU-Net could bring."""


@pytest.mark.parametrize("wrapped", [False, True])
def test_an_unknown_transform_is_an_error_and_never_dropped(wrapped: bool) -> None:
    chain = training("3d")
    chain.transforms.insert(3, RandomTransform(Unheard(), 0.1) if wrapped else Unheard())
    with pytest.raises(EnvironmentProblem, match="does not know the transform Unheard") as caught:
        two_views(chain, 0.5)
    assert caught.value.where == f"{__name__}.Unheard"
    assert "nnunetv2 2." in caught.value.why
    assert "KNOWN_TRANSFORMS" in caught.value.run


def test_turns_by_90_degrees_are_shared_by_both_views() -> None:
    chain = training("3d")
    chain.transforms.insert(1, Rot90Transform(1, (1, 2, 3), {1, 2}))
    made = two_views(chain, 0.0)
    assert [type(part) for part in made.geometric.transforms[:2]] == [type(chain.transforms[0]), Rot90Transform]
