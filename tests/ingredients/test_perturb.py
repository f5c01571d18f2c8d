from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional

from nnssl.ingredients.perturb import (
    add_clipped_noise,
    add_shared_noise,
    augment_patches,
    gaussian_blur,
    gumbel_softmax,
)


def patches(dim: int, count: int = 3, size: int = 12) -> torch.Tensor:
    generator = torch.Generator().manual_seed(2)
    return 3 + 2 * torch.randn(count, 2, *[size] * dim, generator=generator)


@pytest.mark.parametrize("dim", [2, 3])
def test_copy_without_any_strength_is_the_image(dim: int) -> None:
    image = patches(dim)
    same = augment_patches(image, least_side=1.0, jitter=0.0, noise=0.0, cutout=0.0)
    torch.testing.assert_close(same, image, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("dim", [2, 3])
def test_copy_crops_within_the_patch_each_for_itself(dim: int) -> None:
    place = (torch.arange(16) + 0.5) / 16
    image = torch.stack(torch.meshgrid(*[place] * dim, indexing="ij")).expand(5, dim, *[16] * dim)
    copy = augment_patches(image, least_side=0.5, jitter=0.0, noise=0.0, cutout=0.0)
    for axis in range(dim):
        along = copy[:, axis].movedim(axis + 1, -1).flatten(1, -2).mean(1)
        assert (along.diff() >= -1e-6).all()
        length = (along[:, -1] - along[:, 0]) * 16 / 15
        assert (length > 0.45).all()
        assert (length < 1.01).all()
        assert len(set(length.tolist())) == 5
        assert (along >= 0).all()
        assert (along <= 1).all()


@pytest.mark.parametrize("dim", [2, 3])
def test_copy_jitters_contrast_and_brightness_in_units_of_the_patch(dim: int) -> None:
    image, spatial = patches(dim, count=40), tuple(range(2, dim + 2))
    copy = augment_patches(image, least_side=1.0, jitter=0.3, noise=0.0, cutout=0.0)
    std = image.std(spatial, correction=0)
    contrast = copy.std(spatial, correction=0) / std
    brightness = (copy.mean(spatial) - image.mean(spatial)) / std
    for change in (contrast - 1, brightness):
        assert change.abs().max() < 0.301
        assert change.abs().max() > 0.2
        assert change.mean().abs() < 0.1
        assert len(set(change.flatten().tolist())) == change.numel()


@pytest.mark.parametrize("dim", [2, 3])
def test_copy_has_a_box_of_one_value_and_noise_elsewhere(dim: int) -> None:
    image = patches(dim, count=4, size=32 if dim == 2 else 16)
    copy = augment_patches(image, least_side=1.0, jitter=0.0, noise=0.1, cutout=0.5)
    boxed = ((copy - image.mean(tuple(range(2, dim + 2)), keepdim=True)).abs() < 1e-5).all(1, keepdim=True)
    shares = boxed.flatten(1).float().mean(1)
    assert (shares > 0).all()
    assert (shares <= 0.55**dim).all()
    residue = ((copy - image) / image.std(tuple(range(2, dim + 2)), keepdim=True))[~boxed.expand_as(image)]
    assert residue.std().item() == pytest.approx(0.1, rel=0.1)


def test_copy_depends_on_the_generator_alone_and_has_no_graph() -> None:
    image = patches(2).requires_grad_()
    one, same, other = (augment_patches(image, generator=torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert not one.requires_grad
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(augment_patches(image, generator=torch.Generator().manual_seed(1)), one)
    constant = torch.full((1, 1, 6, 6), 2.0)
    torch.testing.assert_close(augment_patches(constant), constant)


def seeded(seed: int = 3) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_moments_of_the_clipped_normal_distribution() -> None:
    noise = add_clipped_noise(torch.zeros(4, 1, 500, 500, dtype=torch.float64), 0.1, 0.2, generator=seeded())
    assert noise.std().item() == pytest.approx(0.095945, abs=3e-4)
    assert noise.mean().item() == pytest.approx(0.0, abs=5e-4)
    assert (noise.abs() == 0.2).double().mean().item() == pytest.approx(0.0455, abs=1e-3)
    assert noise.abs().max() == 0.2


@pytest.mark.parametrize("shape", [(3, 2, 6, 5), (2, 3, 4, 5, 6)])
def test_every_value_has_its_own_noise_around_the_image(shape: tuple[int, ...]) -> None:
    image = torch.randn(shape, generator=seeded(), dtype=torch.float64)
    noise = add_clipped_noise(image, 0.1, 10.0, generator=seeded(4)) - image
    assert noise.unique().numel() == image.numel()
    expected = 0.1 * torch.randn(shape, generator=seeded(4), dtype=torch.float64)
    torch.testing.assert_close(noise, expected)


def test_unit_scales_noise_and_limit_by_channel() -> None:
    image, unit = torch.zeros(2, 2, 40, 40), torch.tensor([1.0, 50.0]).view(2, 1, 1)
    noise = add_clipped_noise(image, 0.1, 0.2, unit, generator=seeded())
    assert noise[:, 0].abs().max() == pytest.approx(0.2)
    assert noise[:, 1].abs().max() == pytest.approx(10.0)
    assert add_clipped_noise(image.half(), 0.1, 0.2).dtype == torch.float16


def test_background_can_stay_zero() -> None:
    image = torch.zeros(1, 2, 4, 4)
    image[0, 0, :2] = 1.0
    changed = add_clipped_noise(image, 0.1, 0.2, keep_zeros=True, generator=seeded()) != image
    assert changed[:, :, :2].all()  # also of the channel that is 0 there
    assert not changed[:, :, 2:].any()


def test_no_noise_and_gradient() -> None:
    image = torch.randn(1, 1, 4, 4, requires_grad=True)
    assert torch.equal(add_clipped_noise(image, 0.0, 0.2), image)
    add_clipped_noise(image, 0.1, 0.2).sum().backward()
    assert torch.equal(image.grad, torch.ones_like(image))


@pytest.mark.parametrize("dim", [2, 3])
def test_views_share_their_noise(dim: int) -> None:
    weak, strong = patches(dim, 8), 2 * patches(dim, 8)
    torch.manual_seed(1)
    noisy_weak, noisy_strong = add_shared_noise((weak, strong), 0.1)
    torch.manual_seed(1)
    noise = 0.1 * torch.randn(weak.shape)
    torch.testing.assert_close(noisy_weak - weak, noise, atol=1e-5, rtol=0)
    torch.testing.assert_close(noisy_strong - strong, noise, atol=1e-5, rtol=0)
    other = [add_shared_noise((weak,), 0.1, torch.Generator().manual_seed(seed))[0] for seed in (0, 0, 1)]
    assert torch.equal(other[0], other[1])
    assert not torch.equal(other[0], other[2])


def test_no_shared_noise_draws_nothing() -> None:
    image = patches(2)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    (same,) = add_shared_noise((image,), 0.0)
    assert same is image
    assert torch.equal(torch.get_rng_state(), before)


def field(rows: list[list[float]]) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float64)


X0 = torch.stack([field([[0.8, -0.2], [0.1, -1]]), field([[-0.8, 0.2], [0.3, 1]])])[None]
DRAWS = torch.stack([field([[0.5, 0.3], [0.7, 0.9]]), field([[0.2, 0.6], [0.4, 0.1]])])[None]


def test_gumbel_softmax_by_hand() -> None:
    z, u = (torch.tensor(x, dtype=torch.float64).view(1, 3, 1, 1) for x in ((1.0, -1.0, 0.5), (0.5, 0.9, 0.2)))
    expected = torch.tensor([0.4647782, 0.4138132, 0.1214087], dtype=torch.float64)
    torch.testing.assert_close(gumbel_softmax(z, 1.0, u).flatten(), expected, atol=1e-6, rtol=0)
    no_noise = torch.full_like(z, math.exp(-1))  # g = −log(−log e^−1) = 0
    expected = torch.tensor([0.5740970, 0.0776956, 0.3482074], dtype=torch.float64)
    torch.testing.assert_close(gumbel_softmax(z, 1.0, no_noise).flatten(), expected, atol=1e-6, rtol=0)
    fg = gumbel_softmax(X0, 1.0, DRAWS)[0, 1].flatten()
    expected = field([[0.0799963, 0.7785702, 0.3222373, 0.2526743]])[0]
    torch.testing.assert_close(fg, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("size", [(5, 6), (3, 4, 5)])
def test_gumbel_softmax_draws_classes_by_their_probability(size: tuple[int, ...]) -> None:
    z = torch.zeros(2, 3, *size, requires_grad=True)
    p = gumbel_softmax(z, 0.5, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(p.sum(1), torch.ones(2, *size))
    p[:, 0].sum().backward()
    assert z.grad is not None
    assert z.grad.abs().max() > 0
    logits = torch.tensor([2.0, 0.0, -1.0]).view(1, 3, 1, 1).expand(1, 3, 100, 100)
    drawn = gumbel_softmax(logits, 1.0, generator=torch.Generator().manual_seed(0)).argmax(1)
    shares = torch.bincount(drawn.flatten(), minlength=3) / drawn.numel()
    torch.testing.assert_close(shares, logits.softmax(1)[0, :, 0, 0], atol=0.02, rtol=0)
    assert gumbel_softmax(z, 1.0, torch.zeros_like(z)).isfinite().all()
    assert gumbel_softmax(z, 1.0, torch.ones_like(z)).isfinite().all()
    with pytest.raises(ValueError, match="temperature"):
        gumbel_softmax(z, 0.0)


def test_blur_weights() -> None:
    point = torch.zeros(1, 1, 3, 3, 3, dtype=torch.float64)
    point[..., 1, 1, 1] = 1
    blurred = gaussian_blur(point)[0, 0]
    taps = [blurred[1, 1, 1], blurred[0, 1, 1], blurred[0, 0, 1], blurred[0, 0, 0]]
    assert [tap.item() for tap in taps] == pytest.approx([0.0922613, 0.0559593, 0.0339410, 0.0205863], abs=1e-6)
    ones = torch.ones(1, 1, 4, 4, dtype=torch.float64)
    assert gaussian_blur(ones, border="zero")[0, 0, 0, 0].item() == pytest.approx(0.5269764, abs=1e-6)
    assert gaussian_blur(ones, border="zero")[0, 0, 0, 1].item() == pytest.approx(0.7259314, abs=1e-6)
    assert gaussian_blur(ones[..., None].expand(1, 1, 4, 4, 4), border="zero")[0, 0, 0, 0, 0].item() == pytest.approx(
        0.3825487, abs=1e-6
    )


def test_blur_of_the_random_map() -> None:
    p = gumbel_softmax(X0, 1.0, DRAWS)
    for border, expected in (
        ("replicate", [0.2801466, 0.5006790, 0.2944792, 0.3581734]),
        ("zero", [0.1716385, 0.2243712, 0.1654740, 0.1939254]),
    ):
        assert gaussian_blur(p, border=border)[0, 1].flatten().tolist() == pytest.approx(expected, abs=1e-6)
    torch.testing.assert_close(gaussian_blur(p).sum(1), torch.ones(1, 2, 2, dtype=torch.float64))


@pytest.mark.parametrize("border", ["replicate", "constant"])
@pytest.mark.parametrize("size", [(5, 4), (3, 4, 5)])
def test_blur_against_a_convolution_with_the_whole_kernel(size: tuple[int, ...], border: str) -> None:
    image = torch.randn(2, 3, *size, dtype=torch.float64, requires_grad=True)
    line = torch.exp(-(torch.tensor([-1.0, 0.0, 1.0], dtype=torch.float64) ** 2) / (2 * 0.7**2))
    line /= line.sum()
    kernel = line
    for _ in size[1:]:
        kernel = kernel.unsqueeze(-1) * line
    convolve = functional.conv2d if len(size) == 2 else functional.conv3d
    padded = functional.pad(image, (1, 1) * len(size), mode=border)
    expected = convolve(padded, kernel.expand(3, 1, *kernel.shape), groups=3)
    ours = gaussian_blur(image, 0.7, "zero" if border == "constant" else "replicate")
    torch.testing.assert_close(ours, expected)
    factor = torch.randn_like(ours)
    gradients = [torch.autograd.grad(x, image, factor)[0] for x in (ours, expected)]
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("options", [{"sigma": 0.0}, {"border": "reflect"}])
def test_impossible_blurs(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="sigma must be positive"):
        gaussian_blur(torch.ones(1, 1, 2, 2), **options)  # type: ignore[arg-type]
