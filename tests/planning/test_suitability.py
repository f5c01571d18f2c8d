from __future__ import annotations

import logging

import numpy as np
import pytest

from nnssl.data.scans import ScanFacts
from nnssl.errors import DataError
from nnssl.planning.fingerprint import _check_intensities
from nnssl.planning.planner import one_slice_axis
from nnssl.planning.suitability import check_slices, trainable_configurations


def named(**stages):
    return {
        "configurations": {
            name: {"patch_size": [8, 8], "architecture": {"arch_kwargs": {"features_per_stage": [4] * count}}}
            for name, count in stages.items()
        }
    }


@pytest.mark.parametrize("stages", [1, 2])
def test_networks_of_less_than_three_stages_are_refused(stages):
    with pytest.raises(DataError, match="too small to train on") as caught:
        trainable_configurations(named(flat=stages), ["flat"])
    assert "at least 16 voxels" in caught.value.why
    assert "flat 8x8" in caught.value.where


def test_a_small_configuration_is_left_out_and_named(caplog):
    with caplog.at_level(logging.WARNING):
        assert trainable_configurations(named(flat=2, volume=3), ["flat", "volume"]) == ["volume"]
    assert "left out" in caplog.text
    assert "flat 8x8" in caplog.text


def facts(case, shape):
    return {case: ScanFacts(case, "unlabelled", shape, (1.0, 1.0, 1.0), "", "", "", ())}


@pytest.mark.parametrize(("forward", "shape"), [([0, 1, 2], (20, 1, 30)), ([2, 0, 1], (1, 20, 30))])
def test_a_slice_across_the_slices_of_the_plans_is_refused(forward, shape):
    described = named(flat=3) | {"transpose_forward": forward}
    with pytest.raises(DataError, match="one voxel thick") as caught:
        check_slices(described, ["flat"], facts("sideways", shape))
    assert "sideways" in caught.value.where
    check_slices(described, ["flat"], facts("right", tuple(np.array([1, 20, 30])[np.argsort(forward)])))


@pytest.mark.parametrize("axis", range(3))
def test_the_axis_of_one_slice_is_found(axis):
    sizes = np.insert(np.full((4, 2), 40), axis, 1, axis=1)
    assert one_slice_axis(sizes, np.median(sizes, axis=0)) == axis
    sizes[:, axis] = 3
    assert one_slice_axis(sizes, np.median(sizes, axis=0)) is None


@pytest.mark.parametrize(
    ("sizes", "message"),
    [([[1, 1, 40]] * 3, "more than one axis"), ([[1, 40, 52], [40, 1, 52]], "lie on different axes")],
)
def test_slices_without_a_common_plane_are_refused(sizes, message):
    with pytest.raises(DataError, match=message):
        one_slice_axis(np.array(sizes), np.median(sizes, axis=0))


def test_labelled_intensities_that_overflow_are_named():
    good, bad = np.ones(9, np.float32), np.full(9, np.finfo(np.float32).min)
    _check_intensities(["a_0000.nii.gz"], [good])
    _check_intensities(["a_0000.nii.gz"], [np.array([], np.float32)])
    with pytest.raises(DataError, match="channel 1 cannot be normalised") as caught:
        _check_intensities(["a_0000.nii.gz", "a_0001.nii.gz"], [good, bad])
    assert caught.value.where == "a_0001.nii.gz"
    assert "-3.40282e+38" in caught.value.why
