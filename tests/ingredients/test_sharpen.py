from __future__ import annotations

import pytest
import torch
from torch import Tensor

from nnssl.ingredients.consistency import sharpening_loss
from nnssl.ingredients.pseudo_labels import sharpen


def two_classes(foreground: list[float]) -> Tensor:
    p = torch.tensor(foreground, dtype=torch.float64)
    return torch.stack([1 - p, p])[None]  # (1, 2, n)


def three_classes() -> Tensor:
    return torch.tensor([[0.5, 0.3, 0.2], [0.4, 0.35, 0.25]], dtype=torch.float64).T[None]


FOREGROUND = [0.1, 0.3, 0.45, 0.5, 0.55, 0.7, 0.9]


@pytest.mark.parametrize(
    ("temperature", "expected"),
    [
        (0.1, [0, 0.000209, 0.118501, 0.5, 0.881499, 0.999791, 1]),
        (0.5, [0.012195, 0.155172, 0.400990, 0.5, 0.599010, 0.844828, 0.987805]),
        (1.0, FOREGROUND),
    ],
)
def test_hand_values_for_two_classes(temperature: float, expected: list[float]) -> None:
    probs = two_classes(FOREGROUND)
    assert sharpen(probs, temperature)[0, 1].tolist() == pytest.approx(expected, abs=1e-6)
    assert sharpen(probs[:, 1:], temperature, binary=True).flatten().tolist() == pytest.approx(expected, abs=1e-6)


def test_hand_values_for_three_classes() -> None:
    probs = three_classes()
    expected = {
        0.5: [[0.657895, 0.236842, 0.105263], [0.463768, 0.355072, 0.181159]],
        0.1: [[0.993886, 0.006010, 0.000104], [0.786058, 0.206793, 0.007149]],
    }
    for temperature, rows in expected.items():
        torch.testing.assert_close(
            sharpen(probs, temperature)[0].T, torch.tensor(rows, dtype=torch.float64), atol=1e-6, rtol=0
        )
    alone = sharpen(probs, 0.5, binary=True)
    assert alone.sum(1).flatten().tolist() == pytest.approx([0.713996, 0.632463], abs=1e-6)
    assert sharpening_loss(probs, 0.5).item() == pytest.approx(0.007788, abs=1e-6)
    assert sharpening_loss(probs, 0.1).item() == pytest.approx(0.099806, abs=1e-6)


@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (2, 4, 3, 2, 5)])
@pytest.mark.parametrize("temperature", [0.1, 0.7, 2.0])
def test_against_the_formula(shape: tuple[int, ...], temperature: float) -> None:
    probs = torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).softmax(1)
    powers, complements = probs ** (1 / temperature), (1 - probs) ** (1 / temperature)
    torch.testing.assert_close(sharpen(probs, temperature), powers / powers.sum(1, keepdim=True))
    torch.testing.assert_close(sharpen(probs, temperature, binary=True), powers / (powers + complements))


@pytest.mark.parametrize("binary", [False, True])
def test_certain_voxels_stay_and_gradients_are_finite(binary: bool) -> None:
    probs = torch.tensor([[[0.0, 1.0, 1e-30, 1e-3, 0.5], [1.0, 0.0, 1.0, 0.999, 0.5]]], requires_grad=True)
    result = sharpen(probs, 0.1, binary)
    assert result[0, :, :3].tolist() == [[0.0, 1.0, 0.0], [1.0, 0.0, 1.0]]
    result.square().sum().backward()
    assert probs.grad.isfinite().all()
    assert sharpen(probs.half(), 0.1).dtype == torch.float32


@pytest.mark.parametrize("temperature", [0.0, -1.0])
def test_temperature_is_positive(temperature: float) -> None:
    with pytest.raises(ValueError, match="temperature must be positive"):
        sharpen(three_classes(), temperature)


@pytest.mark.parametrize(
    ("detach", "expected"),
    [(True, [0.05, 0.165750, -0.165750, -0.149896]), (False, [0.05, -0.533802, 0.533802, -0.148404])],
)
def test_gradient_with_and_without_detached_target(detach: bool, expected: list[float]) -> None:
    foreground = torch.tensor([0.1, 0.45, 0.55, 0.7], dtype=torch.float64, requires_grad=True)
    loss = sharpening_loss(torch.stack([1 - foreground, foreground])[None], 0.1, detach)
    loss.backward()
    assert loss.item() == pytest.approx(0.079915, abs=1e-6)
    assert foreground.grad.tolist() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("offset", [-1e-3, 1e-3])
def test_undetached_gradient_turns_where_the_sharpened_curve_has_slope_one(offset: float) -> None:
    foreground = torch.tensor([0.409213 + offset], dtype=torch.float64, requires_grad=True)
    sharpening_loss(torch.stack([1 - foreground, foreground])[None], 0.1, detach=False).backward()
    assert foreground.grad.sign().item() == (-1.0 if offset > 0 else 1.0)  # inside the interval towards 0.5


def test_loss_is_the_mean_over_the_voxels_of_the_mask() -> None:
    probs = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(2)).softmax(1).requires_grad_()
    mask = torch.rand(2, 1, 4, 5, generator=torch.Generator().manual_seed(3)) > 0.5
    squares = (probs - sharpen(probs, 0.1)).square().sum(1, keepdim=True)
    expected = sum(squares[b, 0, y, x] for b, _, y, x in mask.nonzero().tolist()) / (3 * mask.sum())
    torch.testing.assert_close(sharpening_loss(probs, 0.1, mask=mask), expected)
    torch.testing.assert_close(sharpening_loss(probs, 0.1), squares.mean() / 3)
    nothing = sharpening_loss(probs, 0.1, mask=torch.zeros_like(mask))
    nothing.backward()
    assert nothing.item() == 0.0
    assert torch.equal(probs.grad, torch.zeros_like(probs))
