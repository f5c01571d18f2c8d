from __future__ import annotations

import math
import weakref

import pytest
import torch
from torch import Tensor

from nnssl.ingredients.mixing import copy_paste_mask
from nnssl.ingredients.supervised import masked_dice_bce, masked_dice_ce
from nnssl_trainers.parts.segmentation_loss import MixedSegmentationLoss, SegmentationLoss


def draw(classes: int, sizes: tuple[int, ...]) -> tuple[list[Tensor], Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    outputs = [torch.randn(2, classes, size, size, generator=generator) for size in sizes]
    labels = torch.randint(classes, (2, 1, sizes[0], sizes[0]), generator=generator)
    mask = (torch.rand(2, 1, sizes[0], sizes[0], generator=generator) > 0.3).float()
    return outputs, labels, mask


def test_uniform_probabilities_have_a_known_loss() -> None:
    logits, target = torch.zeros(1, 2, 4, 4), torch.zeros(1, 1, 4, 4)
    target[..., :2, :] = 1
    loss = SegmentationLoss("squared_batch")([logits], target, torch.ones(1, 1, 4, 4))
    dice = 1 - 2 * 8 * 0.5 / (16 * 0.25 + 8)  # the same for both classes
    assert loss.item() == pytest.approx((dice + math.log(2)) / 2, rel=1e-6)


def test_outputs_have_weights_and_coarse_outputs_take_the_nearest_label() -> None:
    outputs, labels, mask = draw(3, (8, 4, 2))
    found = SegmentationLoss("squared_batch", (1.0, 0.5, 0.0))(outputs, labels, mask)
    coarse = (slice(None), slice(None), slice(1, None, 2), slice(1, None, 2))  # nearest-exact takes the odd voxels
    expected = masked_dice_ce(outputs[0], labels[:, 0], mask) + 0.5 * masked_dice_ce(
        outputs[1], labels[coarse][:, 0], mask[coarse]
    )
    torch.testing.assert_close(found, expected)


def test_a_network_may_have_fewer_outputs_than_weights() -> None:
    outputs, labels, mask = draw(3, (8,))
    one = SegmentationLoss("linear_sample", (1.0,))(outputs, labels, mask)
    assert torch.equal(SegmentationLoss("linear_sample", (1.0, 0.5))(outputs, labels, mask), one)
    mixed = MixedSegmentationLoss("linear_sample", (0.25, 0.5))(outputs, labels, labels, mask)
    torch.testing.assert_close(mixed, MixedSegmentationLoss("linear_sample")(outputs, labels, labels, mask))


def test_voxels_outside_the_mask_and_the_ignore_label_do_not_count() -> None:
    (logits,), labels, mask = draw(3, (8,))
    loss = SegmentationLoss("squared_batch", ignore_label=9)
    value = loss([logits], labels, mask)
    assert torch.equal(loss([logits], torch.where(mask == 1, labels, (labels + 1) % 3), mask), value)
    torch.testing.assert_close(loss([logits], torch.where(mask == 1, labels, 9), torch.ones_like(mask)), value)
    assert not torch.equal(loss([logits], (labels + 1) % 3, mask), value)


def test_regions_are_sigmoids_with_the_ignore_label_as_last_channel() -> None:
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(2, 2, 8, 8, generator=generator)
    target = torch.randint(2, (2, 3, 8, 8), generator=generator).float()
    mask = torch.ones(1, 1, 8, 8)
    loss = SegmentationLoss("squared_batch", regions=True, ignore_label=3)
    expected = masked_dice_bce(logits, target[:, :2], 1 - target[:, 2:], "squared_batch")
    torch.testing.assert_close(loss([logits], target, mask), expected)
    all_known = masked_dice_bce(logits, target[:, :2], mask, "squared_batch")
    torch.testing.assert_close(loss([logits], target[:, :2], mask), all_known)


def test_a_mix_has_one_target_on_each_side_and_the_mean_over_outputs() -> None:
    outputs, outside, mask = draw(3, (8, 4))
    inside = (outside + 1) % 3
    coarse = (slice(None), slice(None), slice(1, None, 2), slice(1, None, 2))
    expected = torch.zeros(())
    for weight, z, (y, q, m) in (
        (1.0, outputs[0], (outside, inside, mask)),
        (0.5, outputs[1], (outside[coarse], inside[coarse], mask[coarse])),
    ):
        expected += weight * (2.0 * masked_dice_ce(z, y[:, 0], m) + 0.25 * masked_dice_ce(z, q[:, 0], 1 - m))
    found = MixedSegmentationLoss("squared_batch", (1.0, 0.5))(outputs, outside, inside, mask, 2.0, 0.25)
    torch.testing.assert_close(found, expected / 1.5)


def test_the_loss_of_a_mix_keeps_its_gradient_alone() -> None:
    loss = MixedSegmentationLoss("squared_batch", (1.0, 0.5))
    outputs = [torch.randn(2, 3, size, size).requires_grad_() for size in (32, 16)]
    labels = [torch.randint(3, (2, 1, 32, 32)) for _ in range(2)]
    kept: list[weakref.ref[Tensor]] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(weakref.ref(tensor))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        value = loss(outputs, *labels, copy_paste_mask((32, 32)), 1.0, 0.5)
        voxels = sum(tensor.numel() for tensor in (each() for each in kept) if tensor is not None)
    assert sum(z.numel() for z in outputs) <= voxels < 1.01 * sum(z.numel() for z in outputs)
    value.backward()
    assert all(z.grad is not None for z in outputs)
