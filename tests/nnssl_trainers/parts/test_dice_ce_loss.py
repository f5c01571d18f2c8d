from __future__ import annotations

import pytest
import torch

from nnssl.ingredients.supervised import dice_ce
from nnssl_trainers.parts.dice_ce_loss import DiceCELoss
from nnssl_trainers.parts.masked_nnunet_loss import nearest


@pytest.mark.parametrize("dim", [2, 3])
def test_the_weighted_sum_over_the_outputs(dim: int) -> None:
    outputs = [torch.randn(2, 3, *[n] * dim, requires_grad=True) for n in (8, 4, 2)]
    labels, mask = torch.randint(3, (2, 1, *[8] * dim)), torch.rand(2, 1, *[8] * dim) > 0.3
    weights = torch.tensor([1.0, 2.0, 0.5])
    loss = DiceCELoss((0.7, 0.3, 0.0))(outputs, labels, mask, weights)
    half = nearest(labels, outputs[1])[:, 0].long(), weights, nearest(mask, outputs[1])
    expected = 0.7 * dice_ce(outputs[0], labels[:, 0], weights, mask) + 0.3 * dice_ce(outputs[1], *half)
    torch.testing.assert_close(loss, expected)
    gradients = [torch.autograd.grad(x, outputs[:2], retain_graph=True) for x in (loss, expected)]
    torch.testing.assert_close(*gradients)
    torch.testing.assert_close(
        DiceCELoss((0.7, 0.3))(outputs[:1], labels, mask), dice_ce(outputs[0], labels[:, 0], None, mask)
    )


def test_each_region_is_a_problem_with_two_classes() -> None:
    z, labels = torch.randn(2, 3, 5, 5), torch.randint(2, (2, 3, 5, 5))
    mask = torch.rand(2, 1, 5, 5) > 0.3
    pairs = [torch.stack([torch.zeros_like(z[:, r]), z[:, r]], 1) for r in range(3)]
    expected = dice_ce(torch.cat(pairs), torch.cat([labels[:, r] for r in range(3)]), None, torch.cat([mask] * 3))
    torch.testing.assert_close(DiceCELoss(regions=True)([z], labels, mask), expected)


def test_the_literal_form_is_for_weighted_classes_alone() -> None:
    z, labels, mask = torch.randn(2, 3, 5, 5), torch.randint(3, (2, 1, 5, 5)), torch.ones(2, 1, 5, 5)
    loss, weights = DiceCELoss(form="literal"), torch.tensor([1.0, 2.0, 0.5])
    torch.testing.assert_close(loss([z], labels, mask, weights), dice_ce(z, labels[:, 0], weights, form="literal"))
    torch.testing.assert_close(loss([z], labels, mask), dice_ce(z, labels[:, 0]))


def test_an_empty_mask_gives_no_gradient() -> None:
    z = torch.randn(1, 2, 4, 4, requires_grad=True)
    DiceCELoss()([z], torch.ones(1, 1, 4, 4).long(), torch.zeros(1, 1, 4, 4)).backward()
    assert z.grad is not None
    assert not z.grad.any()
