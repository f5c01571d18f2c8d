from __future__ import annotations

import pytest
import torch
from nnunetv2.training.loss.compound_losses import DC_and_BCE_loss, DC_and_CE_loss
from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss

from nnssl_trainers.parts.masked_nnunet_loss import MaskedNNUNetLoss

SHAPES = {2: (3, 3, 8, 6), 3: (2, 3, 8, 6, 4)}


def logits_of(dim: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(SHAPES[dim], generator=torch.Generator().manual_seed(seed)).requires_grad_()


def labels_of(dim: int) -> torch.Tensor:
    shape = SHAPES[dim]
    return torch.randint(0, 3, (shape[0], 1, *shape[2:]), generator=torch.Generator().manual_seed(9))


def value_and_gradient(loss: torch.Tensor, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    (gradient,) = torch.autograd.grad(loss, logits)
    return loss.detach(), gradient


@pytest.mark.parametrize("batch_dice", [False, True])
@pytest.mark.parametrize("dim", [2, 3])
def test_without_a_mask_it_is_nnunets_loss_with_deep_supervision(dim: int, batch_dice: bool) -> None:
    dice = {"batch_dice": batch_dice, "smooth": 1e-5, "do_bg": False, "ddp": False}
    theirs = DeepSupervisionWrapper(DC_and_CE_loss(dice, {}, dice_class=MemoryEfficientSoftDiceLoss), [2 / 3, 1 / 3])
    labels, fine = labels_of(dim), logits_of(dim)
    slices = (slice(None), slice(None), *[slice(0, None, 2)] * dim)
    coarse = logits_of(dim, 1).detach()[slices]
    small = torch.nn.functional.interpolate(labels.float(), coarse.shape[2:], mode="nearest-exact")
    ours = MaskedNNUNetLoss((2 / 3, 1 / 3, 0.0), batch_dice)
    expected = value_and_gradient(theirs([fine, coarse], [labels.float(), small]), fine)
    found = value_and_gradient(ours([fine, coarse], labels, torch.ones_like(labels)), fine)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("batch_dice", [False, True])
@pytest.mark.parametrize("dim", [2, 3])
def test_voxels_outside_the_mask_are_as_if_ignored_by_label(dim: int, batch_dice: bool) -> None:
    dice = {"batch_dice": batch_dice, "smooth": 1e-5, "do_bg": False, "ddp": False}
    theirs = DC_and_CE_loss(dice, {}, ignore_label=3, dice_class=MemoryEfficientSoftDiceLoss)
    labels, logits = labels_of(dim), logits_of(dim)
    mask = torch.rand(labels.shape, generator=torch.Generator().manual_seed(4)) > 0.4
    expected = value_and_gradient(theirs(logits, labels.masked_fill(~mask, 3)), logits)
    found = value_and_gradient(MaskedNNUNetLoss((1.0,), batch_dice)([logits], labels, mask), logits)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("dim", [2, 3])
def test_regions(dim: int) -> None:
    dice = {"batch_dice": True, "do_bg": True, "smooth": 1e-5, "ddp": False}
    theirs = DC_and_BCE_loss({}, dice, dice_class=MemoryEfficientSoftDiceLoss)
    ours, logits = MaskedNNUNetLoss((1.0,), True, regions=True), logits_of(dim)
    target = (torch.rand(logits.shape, generator=torch.Generator().manual_seed(2)) > 0.5).float()
    expected = value_and_gradient(theirs(logits, target), logits)
    found = value_and_gradient(ours([logits], target, torch.ones_like(target[:, :1])), logits)
    torch.testing.assert_close(found, expected)
    mask = torch.rand(target[:, :1].shape, generator=torch.Generator().manual_seed(4)) > 0.4
    kept = mask.expand_as(logits)
    cross_entropy = torch.nn.functional.binary_cross_entropy_with_logits(logits[kept], target[kept])
    p, y = logits.sigmoid() * mask, target * mask
    axes = [0, *range(2, dim + 2)]
    overlap = (2 * (p * y).sum(axes) + 1e-5) / (p.sum(axes) + y.sum(axes) + 1e-5)
    torch.testing.assert_close(ours([logits], target, mask), cross_entropy - overlap.mean())


@pytest.mark.parametrize("dim", [2, 3])
def test_an_empty_mask_gives_no_gradient(dim: int) -> None:
    labels, logits = labels_of(dim), logits_of(dim)
    _, gradient = value_and_gradient(MaskedNNUNetLoss()([logits], labels, torch.zeros_like(labels)), logits)
    assert not gradient.any()


def test_half_precision_counts_in_full_precision() -> None:
    labels, logits = labels_of(2), logits_of(2)
    mask = torch.ones_like(labels)
    half = MaskedNNUNetLoss()([logits.detach().half()], labels, mask)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, MaskedNNUNetLoss()([logits.detach()], labels, mask), atol=2e-3, rtol=0)
