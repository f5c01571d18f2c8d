from __future__ import annotations

import hashlib
import logging
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from nnssl.data.splits import FoldCases
from nnssl.errors import DataError
from nnssl.host import plans_manager
from nnssl.labelling.files import GivenMask, MaskReader, check_masks, find_masks
from tests.conftest import LABELS, tiny_plans

CASES = FoldCases(("lab",), ("un_0", "un_1"), ("val",))
SPACING, ORIGIN = (0.9, 1.1, 1.6), (-7.0, 12.5, 3.0)  # x, y, z
DESCRIPTION = {"labels": LABELS, "file_ending": ".nii.gz", "channel_names": {"0": "MRI"}}


def write(path: Path, array: np.ndarray, spacing=SPACING, origin=ORIGIN, direction=None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(spacing)
    image.SetOrigin(origin)
    if direction:
        image.SetDirection(direction)
    sitk.WriteImage(image, str(path))
    return path


@pytest.fixture
def world(tmp_path: Path):
    """Return a reader of masks, and what nnU-Net's preprocessing makes of a scan and its label."""
    plans = tiny_plans(3, [16, 16, 16]) | {"transpose_forward": [1, 0, 2], "transpose_backward": [1, 0, 2]}
    manager = plans_manager(plans)
    configuration = manager.get_configuration("3d_fullres")
    rng = np.random.default_rng(0)
    image = np.zeros((14, 20, 18), np.float32)
    image[2:13, 3:, :16] = rng.normal(100, 30, (11, 17, 16))
    labels = np.zeros(image.shape, np.uint8)
    labels[4:9, 6:14, 3:10], labels[6:8, 8:11, 5:9] = 1, 2
    scan, mask = write(tmp_path / "un_0_0000.nii.gz", image), write(tmp_path / "masks" / "un_0.nii.gz", labels)
    preprocessor = configuration.preprocessor_class(verbose=False)
    truth = preprocessor.run_case([str(scan)], str(mask), manager, configuration, DESCRIPTION)
    return MaskReader(manager, configuration, DESCRIPTION), GivenMask(mask), labels, truth


def test_a_mask_is_brought_to_the_grid_as_nnunet_brings_a_label(world) -> None:
    reader, given, _, (data, seg, properties) = world
    assert data.shape[1:] not in ((14, 20, 18), (20, 14, 18))  # it is cropped and resampled
    labels, confidence = reader.on_preprocessed_grid(given, properties, data.shape[1:])
    assert np.array_equal(labels, np.maximum(seg[0], 0))
    assert set(np.unique(labels)) == {0, 1, 2}
    assert (confidence == 255).all()
    assert reader.problems_of(given, properties) == []


@pytest.mark.parametrize("scale", [1, 255])
def test_confidence_is_a_probability_or_a_byte(scale: int, world, tmp_path) -> None:
    reader, given, labels, (data, _, properties) = world
    values = np.where(labels > 0, 0.8, 0.2) * scale
    values = values.astype(np.float32) if scale == 1 else np.rint(values).astype(np.uint8)
    given = GivenMask(given.mask, write(tmp_path / "masks" / "un_0_confidence.nii.gz", values))
    assert reader.problems_of(given, properties) == []
    found, confidence = reader.on_preprocessed_grid(given, properties, data.shape[1:])
    assert confidence.dtype == np.uint8
    assert confidence.shape == found.shape
    assert {confidence.min(), confidence.max()} == {51, 204}
    assert confidence[found == 2].min() > 180
    assert given.origin.sha256 == hashlib.sha256(given.mask.read_bytes() + given.confidence.read_bytes()).hexdigest()
    assert given.origin.origin == "file"


def test_the_ignore_label_does_not_count(world) -> None:
    reader, given, _, (data, _, properties) = world
    other = MaskReader(
        reader.plans, reader.configuration, {**DESCRIPTION, "labels": {"background": 0, "a": 1, "ignore": 2}}
    )
    known, _ = reader.on_preprocessed_grid(given, properties, data.shape[1:])
    labels, confidence = other.on_preprocessed_grid(given, properties, data.shape[1:])
    assert np.array_equal(labels, np.where(known == 2, 0, known))
    assert np.array_equal(confidence == 0, known == 2)


def turned(array: np.ndarray) -> tuple[np.ndarray, tuple[float, ...]]:
    return array[:, :, ::-1], (-1.0, 0, 0, 0, 1.0, 0, 0, 0, 1.0)


def test_wrong_masks_are_listed_together(world, tmp_path, caplog) -> None:
    reader, given, labels, (_, _, properties) = world
    folder = tmp_path / "wrong"
    array, direction = turned(labels)
    far_end = (ORIGIN[0] + 17 * SPACING[0], *ORIGIN[1:])
    masks = {
        "value": write(folder / "value.nii.gz", np.where(labels == 2, 7, labels)),
        "shape": write(folder / "shape.nii.gz", labels[1:]),
        "spacing": write(folder / "spacing.nii.gz", labels, spacing=(0.9, 1.1, 2.0)),
        "axes": write(folder / "axes.nii.gz", array, origin=far_end, direction=direction),
        "origin": write(folder / "origin.nii.gz", labels, origin=(0.0, 0.0, 0.0)),
    }
    (folder / "broken.nii.gz").write_bytes(given.mask.read_bytes()[:60])
    masks["broken"] = folder / "broken.nii.gz"
    with caplog.at_level(logging.WARNING), pytest.raises(DataError, match="5 problem") as error:
        check_masks(reader, {name: GivenMask(file) for name, file in masks.items()}, dict.fromkeys(masks, properties))
    lines = {name: [line for line in error.value.why.splitlines() if f"{name}.nii.gz" in line] for name in masks}
    assert "has the values 7, dataset.json allows 0 to 2" in lines["value"][0]
    assert "shape (18, 20, 13), its scan has (18, 20, 14)" in lines["shape"][0]
    assert "has the spacing" in lines["spacing"][0]
    assert "on other axes (x reversed)" in lines["axes"][0]
    assert "cannot be read" in lines["broken"][0]
    assert not lines["origin"]
    assert "origin.nii.gz has another origin" in caplog.text
    check_masks(reader, {"un_0": given}, {"un_0": properties})


@pytest.mark.parametrize("value", [-1.0, 300.0])
def test_a_confidence_outside_its_range_is_a_problem(value: float, world, tmp_path) -> None:
    reader, given, labels, (_, _, properties) = world
    file = write(tmp_path / "c" / "un_0_confidence.nii.gz", np.full(labels.shape, value, np.float32))
    (problem,) = reader.problems_of(GivenMask(given.mask, file), properties)
    assert "other values than 0 to 1, or 0 to 255" in problem


def touch(folder: Path, *names: str) -> Path:
    folder.mkdir(exist_ok=True)
    for name in names:
        (folder / name).touch()
    return folder


def test_masks_are_found_by_the_names_of_unlabelled_scans(tmp_path, caplog) -> None:
    folder = touch(tmp_path / "m", "un_1.nii.gz", "un_1_confidence.nii.gz", "val.nii.gz", "lab.nii.gz", "scores.json")
    touch(folder, "val_confidence.nii.gz", ".part_un_0.nii.gz")
    with caplog.at_level(logging.INFO):
        found = find_masks(folder, ".nii.gz", CASES)
    assert found == {"un_1": GivenMask(folder / "un_1.nii.gz", folder / "un_1_confidence.nii.gz")}
    assert "2 mask(s) of labelled or validation scans do not count" in caplog.text
    assert "1 of 2 unlabelled scans have a mask" in caplog.text


def test_masks_with_another_ending_are_named_as_such(tmp_path, caplog) -> None:
    folder = touch(tmp_path / "m", "un_0.nii.gz", "un_1.nii", "scores.json")
    assert list(find_masks(folder, ".nii.gz", CASES)) == ["un_0"]
    told = "1 image(s) do not count, because they do not end with .nii.gz: un_1.nii"
    assert told in caplog.text
    (folder / "un_0.nii.gz").unlink()
    with pytest.raises(DataError, match="no unlabelled scan has a mask") as error:
        find_masks(folder, ".nii.gz", CASES)
    assert error.value.why == told


def test_strange_names_and_no_masks_are_errors(tmp_path) -> None:
    folder = touch(tmp_path / "m", "un_0.nii.gz", "other.nii.gz", "test_confidence.nii.gz")
    with pytest.raises(DataError, match=r"2 mask\(s\) belong to no scan of this run") as error:
        find_masks(folder, ".nii.gz", CASES)
    assert error.value.why == "other, test_confidence"
    with pytest.raises(DataError, match="no unlabelled scan has a mask"):
        find_masks(touch(tmp_path / "n", "val.nii.gz"), ".nii.gz", CASES)


def test_an_unlabelled_scan_may_be_called_confidence(tmp_path) -> None:
    cases = FoldCases((), ("a", "a_confidence"), ())
    folder = touch(tmp_path / "m", "a.nii.gz", "a_confidence.nii.gz")
    assert {case: given.confidence for case, given in find_masks(folder, ".nii.gz", cases).items()} == {
        "a": None,
        "a_confidence": None,
    }
