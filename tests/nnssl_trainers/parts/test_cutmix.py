from __future__ import annotations

import pytest
import torch

from nnssl_trainers.parts.cutmix import cutmix_batch


@pytest.mark.parametrize("size", [(12, 10), (6, 8, 10)])
def test_boxes_of_the_patch_before_go_into_each_patch_with_labels_and_mask(size) -> None:
    torch.manual_seed(0)
    labels = torch.arange(3).view(3, 1, *[1] * len(size)).expand(3, 1, *size).contiguous()
    image = torch.cat([labels * 10.0, labels * 100.0], 1)
    mixed, moved = cutmix_batch([image, labels], 1.0)
    assert mixed.dtype == moved.dtype == image.dtype
    assert torch.equal(mixed, torch.cat([moved * 10, moved * 100], 1))
    for row in range(3):
        values = set(moved[row].unique().tolist())
        assert values == {float(row), float((row - 1) % 3)}
        inside = (moved[row, 0] != row).nonzero()
        box = inside.amax(0) - inside.amin(0) + 1
        assert box.prod() == len(inside)  # the pasted voxels fill a box


def test_nothing_to_mix() -> None:
    image, labels = torch.randn(2, 1, 4, 4), torch.ones(2, 1, 4, 4)
    assert cutmix_batch([image, labels], 0.0) == [image, labels]
    assert cutmix_batch([image[:1], labels[:1]], 1.0)[0].shape == (1, 1, 4, 4)
    assert torch.equal(cutmix_batch([image[:1]], 1.0)[0], image[:1])
