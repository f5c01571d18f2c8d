"""nnU-Net's preprocessing with the guards of nnssl: thin scans keep a slice, extreme values are errors or warnings."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
from nnunetv2.imageio.tif_reader_writer import Tiff3DIO
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnssl import host
from nnssl.errors import DataError
from nnssl.host.preprocessing import KeepingConfiguration, checked_preprocessor, clip_channels
from nnssl.inference.export import write_mask
from tests.conftest import LABELS, tiny_plans

DATASET_JSON = {"labels": LABELS, "channel_names": {"0": "MR"}, "numTraining": 4, "file_ending": ".nii.gz"}


def preprocessed(array, spacing, *, scheme="ZScoreNormalization", target=(5.0, 1.0, 1.0), stock=False, more=None):
    plans = tiny_plans(3, [16, 16, 16])
    (name,) = plans["configurations"]
    plans["configurations"][name] |= {"spacing": list(target), "normalization_schemes": [scheme]} | (more or {})
    manager = PlansManager(plans)
    configuration = manager.get_configuration(name)
    preprocessor = DefaultPreprocessor
    if not stock:
        configuration = KeepingConfiguration(configuration.configuration)
        preprocessor = checked_preprocessor(DefaultPreprocessor)
    image = np.asarray(array, np.float32)[None]
    arguments = {"spacing": list(spacing)}, manager, configuration, DATASET_JSON
    return preprocessor(verbose=False).run_case_npy(image, (image > 50).astype(np.int8), *arguments)[:2]


def scan(shape=(12, 20, 18)):
    image = np.random.default_rng(0).normal(10, 6, shape)
    image[tuple(slice(size // 4, size // 2 + 1) for size in shape)] += 90
    return image


@pytest.mark.parametrize("axis", range(3))
def test_every_axis_keeps_one_voxel(axis):
    shape, target = [12, 20, 18], [1.0, 1.0, 1.0]
    shape[axis], target[axis] = 2, 5.0
    data, seg = preprocessed(scan(shape), (1.0, 1.0, 1.0), target=target)
    expected = [1 if number == axis else size for number, size in enumerate(shape)]
    assert list(data.shape[1:]) == list(seg.shape[1:]) == expected
    assert np.isfinite(data).all()
    assert seg.max() == 1


@pytest.mark.parametrize("spacing", [(5.0, 1.0, 1.0), (3.0, 0.7, 1.4), (2.6, 1.0, 1.0)])
def test_other_sizes_are_bit_identical_to_stock_nnunet(spacing):
    ours, stock = (preprocessed(scan(), spacing, stock=value) for value in (False, True))
    assert all(np.array_equal(mine, theirs) for mine, theirs in zip(ours, stock, strict=True))


@pytest.mark.parametrize("value", [np.finfo(np.float32).min, np.finfo(np.float32).max, 1e20])
def test_values_that_spoil_the_normalisation_are_named(value):
    image = scan()
    image[0, :, :3] = value
    with pytest.raises(DataError, match="channel 0 cannot be normalised") as caught:
        preprocessed(image, (5.0, 1.0, 1.0))
    assert f"{np.float32(value):.6g}" in caught.value.why


@pytest.mark.parametrize("value", [1e7, 1e8, -1e8, 1e12])
def test_an_outlier_that_hides_the_scan_is_a_warning(caplog, value):
    image = scan()
    image[0, 0, 0] = value
    with caplog.at_level(logging.WARNING):
        data, _ = preprocessed(image, (5.0, 1.0, 1.0))
    assert np.isfinite(data).all()
    assert f"image: the value {value:.6g} in channel 0 is an outlier that leaves the other voxels no" in caplog.text


@pytest.mark.parametrize(
    ("scheme", "value"), [("ZScoreNormalization", 3e4), ("CTNormalization", 1e12), ("ZScoreNormalization", 0.0)]
)
def test_large_values_that_keep_the_contrast_are_silent(caplog, scheme, value):
    image = scan()
    image[0, 0, 0] = value
    with caplog.at_level(logging.WARNING):
        preprocessed(image, (5.0, 1.0, 1.0), scheme=scheme)
    assert not caplog.records


def test_a_tiff_mask_and_its_voxel_size_are_written_as_one(tmp_path):
    mask = np.zeros((4, 6, 5), np.uint8)
    mask[1:3, 2:4, 1:4] = 1
    write_mask(tmp_path / "a.b.tif", mask, {"spacing": [3.0, 1.0, 1.0]}, Tiff3DIO())
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.b.json", "a.b.tif"]
    voxels, properties = Tiff3DIO().read_seg(str(tmp_path / "a.b.tif"))
    assert np.array_equal(voxels[0], mask)
    assert properties["spacing"] == [3.0, 1.0, 1.0]


def test_a_tiff_mask_that_fails_leaves_nothing(tmp_path):
    class Broken(Tiff3DIO):
        def read_seg(self, seg_fname):
            raise RuntimeError(f"cannot read {seg_fname}")

    with pytest.raises(Exception, match="could not be written"):
        write_mask(tmp_path / "a.tif", np.zeros((4, 6, 5), np.uint8), {"spacing": [3.0, 1.0, 1.0]}, Broken())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "companion"), [("a_seg.tif", "a_seg.json"), ("a.TIFF", "a.json"), ("a.nii.gz", None), ("a.png", None)]
)
def test_only_tiff_has_a_companion(name, companion):
    found = host.companion_file(Path("folder", name))
    assert found == (Path("folder", companion) if companion else None)


def test_readers_that_fail_leave_no_traceback(tmp_path, capfd):
    import tifffile

    tifffile.imwrite(tmp_path / "a_0000.tif", np.zeros((10, 24, 26), np.uint8))
    description = {"file_ending": ".tif"}
    assert host.reader_of(description, str(tmp_path / "a_0000.tif"), verbose=False) is Tiff3DIO
    assert "Traceback" not in capfd.readouterr().err


def test_the_shared_normalisation_clips_each_image_at_its_own_percentiles():
    clip, spacing = {"nnssl_clip_percentiles": [0.5, 99.5]}, (1.0, 1.0, 1.0)
    image = scan()
    image[0, 0, 0] = 4000
    low, high = np.percentile(image.astype(np.float32), [0.5, 99.5])
    clipped = np.clip(image, low, high)
    expected = (clipped - clipped.mean()) / clipped.std()
    data, _ = preprocessed(image, spacing, target=spacing, more=clip)
    np.testing.assert_allclose(data[0], expected, atol=1e-3)
    other, _ = preprocessed(2.5 * image - 1000, spacing, target=spacing, more=clip)  # as another modality
    np.testing.assert_allclose(other, data, atol=1e-3)
    stock, _ = preprocessed(image, spacing, target=spacing, more=clip, stock=True)  # stock nnU-Net does not clip
    np.testing.assert_allclose(stock[0], (image - image.mean()) / image.std(), atol=1e-3)
    assert np.abs(stock - data).max() > 1


def test_channels_are_clipped_apart_and_nearly_constant_ones_stay():
    data = np.stack([np.arange(1000.0), np.zeros(1000)])
    data[1, :3] = 5
    before = data.copy()
    clipped = clip_channels(data, [1, 90])
    np.testing.assert_array_equal(clipped[0], np.clip(before[0], 9.99, 899.1))
    np.testing.assert_array_equal(clipped[1], before[1])
    np.testing.assert_array_equal(data, before)
