from __future__ import annotations

import pytest
import torch

from nnssl.ingredients.perturb import add_clipped_noise, add_shared_noise, augment_patches


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
