from __future__ import annotations

import numpy as np
import pytest
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2

from nnssl.host import plans_manager
from nnssl.labelling.store import (
    UNSURE,
    PseudoLabelledCases,
    read_pseudo_label,
    stored_confidence,
    write_pseudo_label,
)
from tests.conftest import LABELS, tiny_plans


@pytest.fixture
def stored(make_tiny, tmp_path):
    """Return the data set of two pseudo-labelled scans, and labels and confidence of the first one."""
    folder = make_tiny() / "nnUNetPlans_3d_fullres_unlabelled"
    rng = np.random.default_rng(3)
    shape = (20, 24, 22)
    labels = rng.integers(0, 3, shape)
    confidence = rng.integers(100, 256, shape).astype(np.uint8)
    for case in ("un_00", "un_02"):
        write_pseudo_label(tmp_path / "pseudo" / f"{case}.b2nd", labels, confidence, [1, 2], 0.7)
    cases = nnUNetDatasetBlosc2(str(folder))
    return PseudoLabelledCases(cases, tmp_path / "pseudo", ["un_00", "un_02"], [1, 2], 0.7), labels, confidence


def test_what_is_written_is_read(stored) -> None:
    dataset, labels, confidence = stored
    found, sure = read_pseudo_label(dataset.folder / "un_00.b2nd")
    assert np.array_equal(found, labels)
    assert np.array_equal(sure, confidence)
    assert sure.dtype == np.uint8
    assert sorted(file.name for file in dataset.folder.iterdir()) == ["un_00.b2nd", "un_02.b2nd"]


def test_labels_above_255_are_kept(tmp_path) -> None:
    labels = np.array([[[0, 255, 300]]])
    write_pseudo_label(tmp_path / "a.b2nd", labels, np.full((1, 1, 3), 200, np.uint8), [300], 0.0)
    found, sure = read_pseudo_label(tmp_path / "a.b2nd")
    assert found.tolist() == [[[0, 255, 300]]]
    assert sure.tolist() == [[[200, 200, 200]]]


def test_confidence_is_stored_in_256_steps() -> None:
    assert [stored_confidence(value) for value in (0.0, 0.5, 0.7, 1.0)] == [0, 128, 178, 255]


def test_unsure_voxels_and_voxels_outside_the_scan_are_marked(stored) -> None:
    dataset, labels, confidence = stored
    segmentation = np.zeros((1, 20, 24, 22), np.int16)
    segmentation[0, :4] = -1
    data, _, _, properties = dataset.cases.load_case("un_00")
    dataset.cases = type("Cases", (), {"load_case": lambda *_: (data, segmentation, None, properties)})()
    found = dataset.load_case("un_00")[1]
    expected = np.where(confidence >= 178, labels, UNSURE)
    expected[:4] = -1
    assert found.shape == (1, 20, 24, 22)
    assert np.array_equal(found[:], expected[None])
    part = (slice(None), slice(2, 7), slice(0, 3), slice(20, 22))
    assert np.array_equal(found[part], expected[None][part])
    assert {-1, 0, 1, 2, UNSURE} == set(np.unique(found[:]))


def test_patches_are_centred_on_sure_foreground(stored) -> None:
    dataset, labels, confidence = stored
    places = dataset.load_case("un_02")[3]["class_locations"]
    for structure in (1, 2):
        drawn = places[structure]
        everywhere = {tuple(place) for place in np.argwhere(((labels == structure) & (confidence >= 178))[None])}
        assert {tuple(place) for place in drawn} == everywhere
    assert dataset.load_case("un_02")[3]["spacing"] == [1.0, 1.0, 1.0]


def test_nnunets_batch_maker_cuts_patches_from_the_stored_labels(stored) -> None:
    dataset, labels, confidence = stored
    manager = plans_manager(tiny_plans(3, [16, 16, 16])).get_label_manager({"labels": LABELS})
    maker = nnUNetDataLoader(dataset, 2, (24, 24, 24), (24, 24, 24), manager, oversample_foreground_percent=1.0)
    np.random.seed(1)
    batch = maker.generate_train_batch()
    inside = batch["target"][batch["target"] >= 0].numpy()
    expected = np.where(confidence >= 178, labels, UNSURE)
    assert batch["target"].shape == (2, 1, 24, 24, 24)
    assert (batch["target"] == -1).any()  # the patch is larger than the scan
    assert {0, 1, 2, UNSURE} == set(np.unique(inside)) == set(np.unique(expected))
