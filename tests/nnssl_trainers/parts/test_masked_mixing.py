from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from nnssl_trainers.parts.masked_mixing import LabelledPatches, known_patches, mask_blocks, mix_with_partners


def numbered(first: int, count: int, size: tuple[int, ...], problems: int = 1) -> LabelledPatches:
    """Return patches whose voxels, labels and masks all tell the number of the patch."""
    numbers = torch.arange(first, first + count).view(-1, *[1] * (len(size) + 1))
    labels = numbers.expand(-1, problems, *size)
    return LabelledPatches(numbers.expand(-1, 2, *size).float(), labels, (numbers % 2 == 0).expand(-1, 1, *size))


@pytest.mark.parametrize(("size", "problems"), [((16, 12), 1), ((8, 16, 12), 2)])
def test_boxes_come_with_their_labels_from_other_patches(size: tuple[int, ...], problems: int) -> None:
    torch.manual_seed(0)
    others, patches = numbered(0, 2, size), numbered(2, 2, size)
    others, patches = (
        LabelledPatches(x.image, x.labels[:, :1].expand(-1, problems, *size), x.mask) for x in (others, patches)
    )
    partners: list[set[int]] = [set(), set()]
    for _ in range(40):
        mixed = mix_with_partners(others, patches)
        assert (mixed.image[:, 0] == mixed.image[:, 1]).all()
        assert (mixed.image[:, :1] == mixed.labels).all()
        assert ((mixed.image[:, :1] % 2 == 0) == mixed.mask).all()
        for i, image in enumerate(mixed.image[:, 0]):
            inside = image != i + 2
            if inside.any():
                places = inside.nonzero()
                assert inside.sum() == (places.amax(0) - places.amin(0) + 1).prod()  # a box
                assert len(image[inside].unique()) == 1
                partners[i].add(int(image[inside][0]))
    assert partners == [{0, 1, 3}, {0, 1, 2}]
    assert (patches.image[0] == 2).all()


def test_a_patch_alone_stays_as_it_is() -> None:
    patches = numbered(1, 1, (8, 8))
    mixed = mix_with_partners(LabelledPatches(*(x[:0] for x in (patches.image, patches.labels, patches.mask))), patches)
    assert torch.equal(mixed.image, patches.image)


@pytest.mark.parametrize("dim", [2, 3])
def test_blocks_are_zero_in_all_channels(dim: int) -> None:
    torch.manual_seed(0)
    image = torch.randn(3, 2, *[32] * dim)
    masked = mask_blocks(image, 0.5)
    zero = masked == 0
    assert torch.equal(zero[:, 0], zero[:, 1])
    assert torch.equal(masked, image.masked_fill(zero, 0))
    assert not torch.equal(zero[0], zero[1])
    assert zero.float().mean().item() == pytest.approx(0.5, abs=0.1)
    assert torch.equal(mask_blocks(image, 0.0), image)
    assert torch.equal(zero[..., ::2], zero[..., 1::2])  # 16 blocks of 2 voxels


def test_known_patches_leave_the_ignore_label_out() -> None:
    image, target = torch.zeros(1, 1, 2, 2), torch.tensor([[[[0.0, 2.0], [1.0, 3.0]]]])
    manager = SimpleNamespace(num_segmentation_heads=3, has_regions=False, ignore_label=3)
    known = known_patches(image, target, manager)
    assert known.labels.tolist() == [[[[0, 2], [1, 0]]]]
    assert known.mask.tolist() == [[[[True, True], [True, False]]]]


def test_known_patches_of_regions() -> None:
    target = torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 1.0]]).view(1, 3, 1, 2)  # the last channel is the ignore label
    manager = SimpleNamespace(num_segmentation_heads=2, has_regions=True, ignore_label=3)
    known = known_patches(torch.zeros(1, 1, 1, 2), target, manager)
    assert known.labels.tolist() == [[[[1, 0]], [[1, 0]]]]
    assert known.mask.tolist() == [[[[True, False]]]]
