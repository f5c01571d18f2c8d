from __future__ import annotations

import numpy as np
import pytest
import torch
from nnunetv2.preprocessing.resampling.default_resampling import resample_data_or_seg

from nnssl.inference import interpolation
from nnssl.inference.interpolation import CUBIC, LINEAR, NEAREST, Taps, interpolate, planes_a_slab, resample_image


def noise(shape):
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("slab_bytes", [1, 200_000, 67_108_864])
@pytest.mark.parametrize("new", [(20, 70, 51), (33, 13, 90), (66, 20, 25), (1, 5, 200), (33, 40, 51)])
def test_a_scan_is_resampled_as_by_nnunet(new, slab_bytes, monkeypatch):
    monkeypatch.setattr(interpolation, "SLAB_BYTES", slab_bytes)
    image = noise((2, 33, 40, 51))
    expected = resample_data_or_seg(image, new, False, None, 3, False)
    found = resample_image(image, new)
    assert found.dtype == expected.dtype
    assert np.count_nonzero(found != expected) <= expected.size // 10_000  # the last bit, where both were rounded
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_linear_taps_by_hand():
    taps = Taps.between(2, 4, LINEAR)
    assert taps.index.tolist() == [[0, 0, 0, 1], [1, 1, 1, 1]]
    assert taps.weight.tolist() == [[1.0, 0.75, 0.25, 1.0], [0.0, 0.25, 0.75, 0.0]]


def test_nearest_taps_by_hand():
    assert Taps.between(3, 5, NEAREST).index.tolist() == [[0, 0, 1, 2, 2]]
    assert Taps.between(4, 2, NEAREST).index.tolist() == [[1, 3]]  # in the middle the later voxel, as in SciPy


@pytest.mark.parametrize("order", [NEAREST, LINEAR, CUBIC])
def test_the_weights_of_a_voxel_sum_to_1(order):
    torch.testing.assert_close(Taps.between(7, 12, order).weight.sum(0), torch.ones(12, dtype=torch.float64))


def test_a_slab_is_a_part_of_the_whole():
    volume = torch.from_numpy(noise((9, 8, 7)))
    taps = [Taps.between(*sizes, LINEAR) for sizes in ((9, 20), (8, 5), (7, 7))]
    whole = interpolate(volume, taps, 0, 20)
    assert whole.shape == (20, 5, 7)
    assert [each.is_identity for each in taps] == [False, False, True]
    assert torch.equal(torch.cat([interpolate(volume, taps, start, start + 4) for start in range(0, 20, 4)]), whole)


def test_planes_of_a_slab_by_hand(monkeypatch):
    monkeypatch.setattr(interpolation, "SLAB_BYTES", 24 * 100 * 5 + 1)
    assert planes_a_slab((50, 10, 10)) == 5
    assert planes_a_slab((50, 1000, 1000)) == 1
