from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager

from nnssl.host import mask_from_logits
from nnssl.inference import interpolation
from nnssl.inference.restoring import Restoration, WholeRestoration, restoration_of, restoring_bytes

CLASSES = {"background": 0, **{f"class {number}": number for number in range(1, 5)}}
RESAMPLING = {"is_seg": False, "order": 1, "order_z": 0, "force_separate_z": None}
SCANS = {
    "isotropic": ([1.5, 1.5, 1.5], [0.8, 1.0, 0.7], (0, 1, 2)),
    "coarser": ([1.0, 1.0, 1.0], [1.3, 1.9, 1.1], (0, 1, 2)),
    "thick slices": ([4.0, 1.0, 1.0], [5.0, 0.7, 0.8], (0, 1, 2)),
    "thick along the last axis": ([1.0, 1.0, 4.0], [0.7, 0.8, 5.0], (0, 1, 2)),
    "transposed": ([4.0, 1.0, 1.0], [0.8, 5.0, 0.7], (1, 2, 0)),
    "2-D": ([1.2, 1.2], [8.0, 0.9, 0.8], (0, 1, 2)),
    "the same grid": ([1.0, 1.0, 1.0], [1.0, 1.0, 1.0], (2, 0, 1)),
}


def logits_and_managers(ours, spacing, forward, labels=CLASSES, region_order=None, **resampling):
    """Smooth logits of a cropped scan, and what nnU-Net needs to turn them into a mask of the scan."""
    entry = {"spacing": ours, "architecture": {}, "resampling_fn_probabilities": "resample_data_or_seg_to_shape"}
    configuration = ConfigurationManager({**entry, "resampling_fn_probabilities_kwargs": {**RESAMPLING, **resampling}})
    plans = SimpleNamespace(transpose_forward=list(forward), transpose_backward=[int(i) for i in np.argsort(forward)])
    manager = LabelManager(labels, regions_class_order=region_order)
    before = [spacing[axis] for axis in forward]
    target = [before[0], *ours][-3:]
    cropped = [35, 42, 39]
    shape = [max(1, round(size * old / new)) for size, old, new in zip(cropped, before, target, strict=True)]
    rng = torch.Generator().manual_seed(0)
    logits = torch.nn.functional.interpolate(
        torch.randn(1, manager.num_segmentation_heads, 6, 6, 6, generator=rng), shape, mode="trilinear"
    )[0]
    logits = (3 * logits + 0.3 * torch.randn(logits.shape, generator=rng)).half()
    properties = {
        "spacing": spacing,
        "shape_after_cropping_and_before_resampling": tuple(cropped),
        "shape_before_cropping": tuple(size + 5 for size in cropped),
        "bbox_used_for_cropping": [[2, 2 + size] for size in cropped],
    }
    return logits, (plans, configuration, manager), properties


def assert_restored_as_by_nnunet(logits, managers, properties):
    found = restoration_of(logits, *managers, properties)
    assert isinstance(found, Restoration)
    mask, probs = mask_from_logits(logits, *managers, properties, True)
    alone = mask_from_logits(logits, *managers, properties, False)
    few = mask.size // 1_000_000
    assert len(np.unique(mask)) > 2
    ours, ours_probs = found.mask_and_probabilities()
    streamed, parts = found.mask_and_parts()
    parts = np.concatenate([part.reshape(-1) for part in parts]).reshape(probs.shape)
    for made, theirs in ((found.mask(), alone), (ours, mask), (streamed, mask)):
        assert made.dtype == theirs.dtype
        assert np.count_nonzero(made != theirs) <= few
    for made in (ours_probs, parts):
        assert made.dtype == probs.dtype
        # a logit in the middle between two numbers of half precision may be rounded either way
        assert np.quantile(np.abs(made - probs), 0.95) < 1e-6
        np.testing.assert_allclose(made, probs, atol=4e-3)


@pytest.fixture
def thin_slabs(monkeypatch):
    monkeypatch.setattr(interpolation, "SLAB_BYTES", 3 * 8 * 42 * 42 * 4)


@pytest.mark.usefixtures("thin_slabs")
@pytest.mark.parametrize("scan", SCANS)
def test_slabs_give_the_masks_and_probabilities_of_nnunet(scan):
    assert_restored_as_by_nnunet(*logits_and_managers(*SCANS[scan]))


@pytest.mark.usefixtures("thin_slabs")
@pytest.mark.parametrize("scan", ["isotropic", "transposed", "2-D"])
def test_regions(scan):
    labels = {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "inner": 3}
    assert_restored_as_by_nnunet(*logits_and_managers(*SCANS[scan], labels, [1, 2, 3]))


@pytest.mark.usefixtures("thin_slabs")
def test_ignored_voxels_are_never_predicted():
    logits, managers, properties = logits_and_managers(*SCANS["isotropic"], {**CLASSES, "ignore": 5})
    assert len(logits) == 5
    assert_restored_as_by_nnunet(logits, managers, properties)


@pytest.mark.usefixtures("thin_slabs")
def test_linear_between_thick_slices():
    assert_restored_as_by_nnunet(*logits_and_managers(*SCANS["thick slices"], order_z=1))


def test_equal_logits_are_the_first_class_as_in_nnunet():
    logits, managers, properties = logits_and_managers(*SCANS["the same grid"])
    logits[:] = logits[:1]
    assert not restoration_of(logits, *managers, properties).mask().any()


def test_another_resampling_is_left_to_nnunet():
    logits, managers, properties = logits_and_managers(*SCANS["isotropic"], order=3)
    found = restoration_of(logits, *managers, properties)
    assert isinstance(found, WholeRestoration)
    assert (found.mask() == mask_from_logits(logits, *managers, properties, False)).all()
    mask, parts = found.mask_and_parts()
    theirs, probs = mask_from_logits(logits, *managers, properties, True)
    assert (mask == theirs).all()
    assert (np.stack(list(parts)) == probs).all()


def test_memory_of_a_restoration_by_hand():
    scan, cropped = (10, 20, 30), (8, 20, 30)
    least = 24 * 600 * 8 + 6000  # all planes are one slab
    assert restoring_bytes(scan, cropped, 3, kept=False, streamed=False) == least
    assert restoring_bytes(scan, cropped, 3, kept=True, streamed=False) == least + 4 * 3 * 6000
    assert restoring_bytes(scan, cropped, 3, kept=False, streamed=True) == least + 4 * 4800
