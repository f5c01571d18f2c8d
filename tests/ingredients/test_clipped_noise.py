from __future__ import annotations

import pytest
import torch

from nnssl.ingredients.perturb import clipped_noise


def seeded(seed: int = 3) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_moments_of_the_clipped_normal_distribution() -> None:
    noise = clipped_noise(torch.zeros(4, 1, 500, 500, dtype=torch.float64), 0.1, 0.2, generator=seeded())
    assert noise.std().item() == pytest.approx(0.095945, abs=3e-4)
    assert noise.mean().item() == pytest.approx(0.0, abs=5e-4)
    assert (noise.abs() == 0.2).double().mean().item() == pytest.approx(0.0455, abs=1e-3)
    assert noise.abs().max() == 0.2


@pytest.mark.parametrize("shape", [(3, 2, 6, 5), (2, 3, 4, 5, 6)])
def test_every_value_has_its_own_noise_around_the_image(shape: tuple[int, ...]) -> None:
    image = torch.randn(shape, generator=seeded(), dtype=torch.float64)
    noise = clipped_noise(image, 0.1, 10.0, generator=seeded(4)) - image
    assert noise.unique().numel() == image.numel()
    expected = 0.1 * torch.randn(shape, generator=seeded(4), dtype=torch.float64)
    torch.testing.assert_close(noise, expected)


def test_unit_scales_noise_and_limit_by_channel() -> None:
    image, unit = torch.zeros(2, 2, 40, 40), torch.tensor([1.0, 50.0]).view(2, 1, 1)
    noise = clipped_noise(image, 0.1, 0.2, unit, generator=seeded())
    assert noise[:, 0].abs().max() == pytest.approx(0.2)
    assert noise[:, 1].abs().max() == pytest.approx(10.0)
    assert clipped_noise(image.half(), 0.1, 0.2).dtype == torch.float16


def test_background_can_stay_zero() -> None:
    image = torch.zeros(1, 2, 4, 4)
    image[0, 0, :2] = 1.0
    changed = clipped_noise(image, 0.1, 0.2, keep_zeros=True, generator=seeded()) != image
    assert changed[:, :, :2].all()  # also of the channel that is 0 there
    assert not changed[:, :, 2:].any()


def test_no_noise_and_gradient() -> None:
    image = torch.randn(1, 1, 4, 4, requires_grad=True)
    assert torch.equal(clipped_noise(image, 0.0, 0.2), image)
    clipped_noise(image, 0.1, 0.2).sum().backward()
    assert torch.equal(image.grad, torch.ones_like(image))
