from __future__ import annotations

import numpy as np
import pytest

from nnssl.data.scanners import SCANNERS, Scanner, reimage

SPACING = (8.0, 1.5, 2.0)


def scan() -> tuple[np.ndarray, np.ndarray]:
    """Return a smooth scan (6, 30, 40) with 1 % of voxels far outside, and the label of its upper half."""
    z, y, x = np.meshgrid(*(np.linspace(0, 1, n) for n in (6, 30, 40)), indexing="ij")
    image = 200 + 600 * (0.2 * z + 0.5 * y + 0.3 * x)
    label = (y > 0.5).astype(np.uint8) * 3
    return image, label


def imaged(seed: int = 0, **changes: float) -> tuple[np.ndarray, np.ndarray, tuple[float, float, float]]:
    plain = {
        "gamma": 1.0,
        "pedestal": 0.0,
        "bias": 0.0,
        "motion_mm": 0.0,
        "pixel_factor": 1.0,
        "noise": 0.0,
        "scale": 1000.0,
    }
    return reimage(*scan(), SPACING, Scanner("X", **plain | changes), np.random.default_rng(seed))


def scaled() -> np.ndarray:
    image, _ = scan()
    low, high = np.percentile(image, [0.5, 99.5])
    return np.clip((image - low) / (high - low), 0, 1)


@pytest.mark.parametrize(("gamma", "pedestal"), [(1.0, 0.0), (0.5, 0.0), (2.0, 0.3)])
def test_the_intensity_curve(gamma: float, pedestal: float) -> None:
    image, label, spacing = imaged(gamma=gamma, pedestal=pedestal)
    expected = np.round(1000 * (pedestal + (1 - pedestal) * scaled() ** gamma))
    np.testing.assert_array_equal(image, expected)
    np.testing.assert_array_equal(label, scan()[1])
    assert spacing == SPACING
    assert (image.dtype, label.dtype) == (np.int16, np.uint8)


def test_the_bias_field_is_smooth_and_has_the_deviation_of_its_scanner() -> None:
    image, _, _ = imaged(bias=0.3, pedestal=0.5, scale=10000)
    field = np.log(image / (10000 * (0.5 + 0.5 * scaled())))
    assert field.std() == pytest.approx(0.3, abs=0.01)
    assert np.abs(np.diff(field, axis=2)).max() < 0.2


def test_motion_blurs_along_one_axis_in_the_plane_only() -> None:
    image, label = np.zeros((5, 21, 21)), np.zeros((5, 21, 21), np.uint8)
    image[1:4, 8:14, 7:14] = 1.0
    rule = Scanner("X", 1.0, 0.0, 0.0, motion_mm=6.0, pixel_factor=1.0, noise=0.0, scale=900.0)
    found = set()
    for seed in range(8):
        blurred, _, _ = reimage(image, label, (8.0, 2.0, 2.0), rule, np.random.default_rng(seed))
        means = [sum(np.roll(image, shift, axis) for shift in (-1, 0, 1)) * 300 for axis in (0, 1, 2)]
        found |= {axis for axis, mean in enumerate(means) if np.array_equal(blurred, np.round(mean))}
    assert found == {1, 2}


def test_resolution_is_lost_in_the_plane_and_labels_stay_labels() -> None:
    image, label, spacing = imaged(pixel_factor=1.5)
    assert image.shape == label.shape == (6, 20, 27)
    assert spacing == pytest.approx((8.0, 1.5 * 30 / 20, 2.0 * 40 / 27))
    assert np.prod(spacing) * image.size == pytest.approx(np.prod(SPACING) * scan()[0].size)
    assert set(np.unique(label)) == {0, 3}
    assert (label == 3).mean() == pytest.approx((scan()[1] == 3).mean(), abs=0.03)
    assert image.mean() == pytest.approx(imaged()[0].mean(), rel=0.01)


def test_noise_has_the_deviation_of_its_scanner() -> None:
    image, _, _ = imaged(noise=0.05, pedestal=0.5, scale=10000)
    clean, _, _ = imaged(pedestal=0.5, scale=10000)
    assert (image.astype(float) - clean).std() / 10000 == pytest.approx(0.05, rel=0.05)


def test_seeds_repeat_and_differ() -> None:
    one, again, other = (imaged(seed, noise=0.05, bias=0.2, motion_mm=5.0)[0] for seed in (3, 3, 4))
    np.testing.assert_array_equal(one, again)
    assert (one != other).any()


def test_the_four_scanners_differ_and_are_fixed() -> None:
    assert [scanner.name for scanner in SCANNERS] == ["A", "B", "C", "D"]
    looks = [reimage(*scan(), SPACING, scanner, np.random.default_rng(0))[0] for scanner in SCANNERS]
    medians = [float(np.median(look)) / scanner.scale for look, scanner in zip(looks, SCANNERS, strict=True)]
    assert min(np.diff(sorted(medians))) > 0.02
    assert [(s.gamma, s.pixel_factor, s.noise) for s in SCANNERS] == [
        (1.0, 1.0, 0.02), (0.5, 1.25, 0.03), (2.0, 1.0, 0.06), (0.75, 1.5, 0.04),
    ]  # fmt: skip


def test_a_constant_scan_stays_finite() -> None:
    image, label = np.full((4, 8, 8), 7.0), np.zeros((4, 8, 8), np.uint8)
    look, _, _ = reimage(image, label, (1.0, 1.0, 1.0), SCANNERS[3], np.random.default_rng(0))
    assert np.isfinite(look).all()
