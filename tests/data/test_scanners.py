from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from benchmarks.scanners import main as write_scanners
from nnssl.data.integrity import check_dataset
from nnssl.data.phantom import write_phantom
from nnssl.data.raw import read_raw_dataset
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


def test_a_real_data_set_is_dealt_out_by_patient(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setenv("nnUNet_raw", str(tmp_path))
    source = write_phantom(tmp_path, 1, labelled=9, unlabelled=6, test=0, shape=(16, 20, 20))
    validated = ["labelled_008", "labelled_009"]
    (source / "splits_final.json").write_text(json.dumps([{"train": [], "val": validated}]))
    folder = write_scanners("1", 2, "Four", 0)
    raw = read_raw_dataset(2)
    about = raw.dataset_json["cases"]
    assert raw.dataset_json["numTraining"] == len(raw.labelled) == 7
    assert sorted(raw.test) == validated
    assert about["unlabelled_006"] == about["labelled_001"]  # the same patient
    counts = [sum(about[case]["domain"] == name for case in raw.labelled) for name in "ABCD"]
    assert sorted(counts) == [1, 2, 2, 2]
    assert len(check_dataset(raw, 1).facts) == 15
    for case in (*raw.labelled, *raw.test):
        part = "Tr" if case in raw.labelled else "Ts"
        old, new = (
            sitk.ReadImage(str(place / f"labels{p}" / f"{case}.nii.gz"))
            for place, p in ((source, "Tr"), (folder, part))
        )
        centres = [
            image.TransformContinuousIndexToPhysicalPoint([(n - 1) / 2 for n in image.GetSize()])
            for image in (old, new)
        ]
        assert centres[0] == pytest.approx(centres[1], abs=1e-3)
        volumes = [(sitk.GetArrayFromImage(image) == 1).sum() * np.prod(image.GetSpacing()) for image in (old, new)]
        assert volumes[0] == pytest.approx(volumes[1], rel=0.15)
    assert "domain A: " in capsys.readouterr().out
    with pytest.raises(SystemExit, match="exists"):
        write_scanners("1", 2, "Four", 0)
