from __future__ import annotations

import pytest
import torch

from nnssl.ingredients.consistency import probability_mse


def naive(probs: torch.Tensor, target: torch.Tensor, mask: torch.Tensor) -> float:
    total, count = 0.0, 0.0
    for b in range(probs.shape[0]):
        for index in torch.cartesian_prod(*[torch.arange(n) for n in probs.shape[2:]]).tolist():
            if mask[(b, 0, *index)]:
                p, q = probs[(b, slice(None), *index)], target[(b, slice(None), *index)]
                total += ((p - q) ** 2).mean().item()
                count += 1
    return total / count


@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (2, 2, 3, 4, 2)])
def test_against_a_loop_over_voxels(shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(3)
    probs = torch.rand(shape, generator=generator).softmax(1)
    target = torch.rand(shape, generator=generator).softmax(1)
    mask = torch.rand((shape[0], 1, *shape[2:]), generator=generator) > 0.4
    assert probability_mse(probs, target, mask).item() == pytest.approx(naive(probs, target, mask), rel=1e-5)
    everywhere = torch.ones_like(mask)
    torch.testing.assert_close(probability_mse(probs, target), probability_mse(probs, target, everywhere))


def test_hand_value_and_empty_mask() -> None:
    probs, target = torch.tensor([[[1.0]], [[0.0]]])[None], torch.tensor([[[0.0]], [[0.0]]])[None]
    assert probability_mse(probs, target).item() == 0.5
    nothing = probability_mse(probs.requires_grad_(), target, torch.zeros(1, 1, 1, 1))
    nothing.backward()
    assert nothing.item() == 0.0
    assert torch.equal(probs.grad, torch.zeros_like(probs))


def test_gradient_goes_to_the_student_only() -> None:
    probs, target = torch.rand(1, 2, 4, 4, requires_grad=True), torch.rand(1, 2, 4, 4, requires_grad=True)
    probability_mse(probs, target).backward()
    assert probs.grad.abs().sum() > 0
    assert target.grad is None
