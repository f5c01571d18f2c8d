from __future__ import annotations

import shutil

import numpy as np
import pytest
import SimpleITK
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.postprocessing.remove_connected_components import remove_all_but_largest_component_from_segmentation

from nnssl.errors import DataError
from nnssl.evaluation.postprocessing import Postprocessing, Step
from nnssl.inference.api import load_predictor, predict
from nnssl.inference.postprocessing import Choice, choose_postprocessing
from tests.inference.model_for_tests import make_scan, read_mask

WHOLE = Postprocessing("labelled anatomy", 4, (Step("foreground", (1, 2), True), Step("core", (1,))))
CORE = Postprocessing("labelled anatomy", 4, (Step("foreground", (1, 2)), Step("core", (1,), True)))
OFF = Postprocessing("labelled anatomy", 5, (Step("foreground", (1, 2)),))
ALL = Postprocessing("cross-validation", 8, (Step("foreground", (1, 2)), Step("core", (1,), True)))
BOTH = Postprocessing("labelled anatomy", 4, (Step("foreground", (1, 2), True), Step("rim", (2,), True)))
OPTIONS = {"device": "cpu", "mirroring": False}


@pytest.mark.parametrize(
    ("of_model", "of_folds", "expected"),
    [
        (None, {}, Choice()),
        (None, {0: WHOLE}, Choice(None, "none, as the folds differ (fold 0: largest component of foreground; "
                                        "fold 1: no decision) and no cross-validation has decided")),
        (None, {0: WHOLE, 1: WHOLE}, Choice(WHOLE, "largest component of foreground (labelled anatomy of each fold)")),
        (None, {0: OFF, 1: OFF}, Choice(OFF, "none (labelled anatomy of each fold)")),
        (None, {0: OFF, 1: CORE}, Choice(None, "none, as the folds differ (fold 0: none; fold 1: largest component of "
                                               "core) and no cross-validation has decided")),
        (ALL, {0: WHOLE, 1: WHOLE}, Choice(ALL, "largest component of core (cross-validation, 8 cases)")),
        (ALL, {}, Choice(ALL, "largest component of core (cross-validation, 8 cases)")),
    ],
)  # fmt: skip
def test_which_decision_counts(of_model, of_folds, expected, tmp_path) -> None:
    if of_model:
        of_model.write(tmp_path)
    for fold, decision in of_folds.items():
        decision.write(tmp_path / f"fold_{fold}")
    assert choose_postprocessing(tmp_path, ["0", "1"]) == expected


def test_one_fold_follows_its_own_decision(tmp_path) -> None:
    WHOLE.write(tmp_path / "fold_0")
    CORE.write(tmp_path / "fold_1")
    assert choose_postprocessing(tmp_path, ["1"]) == Choice(
        CORE, "largest component of core (labelled anatomy, 4 cases)"
    )


def naive(mask: np.ndarray) -> np.ndarray:
    """Return a mask after the steps of BOTH."""
    for labels in ([1, 2], 2):
        mask = remove_all_but_largest_component_from_segmentation(mask, labels)
    return mask


def test_arrays_images_and_files_with_and_without(model, scans, tmp_path) -> None:
    image = make_scan(0)
    array, spacing = SimpleITK.GetArrayFromImage(image), image.GetSpacing()[::-1]
    raw = predict(array, spacing_mm=spacing, **OPTIONS)
    assert np.count_nonzero(naive(raw) != raw) > 10
    for fold in (0, 1):
        BOTH.write(model / f"fold_{fold}")
    cleaned = predict(array, spacing_mm=spacing, **OPTIONS)
    np.testing.assert_array_equal(cleaned, naive(raw))
    np.testing.assert_array_equal(SimpleITK.GetArrayFromImage(predict(image, **OPTIONS)), naive(raw))
    np.testing.assert_array_equal(predict(array, spacing_mm=spacing, postprocessing=False, **OPTIONS), raw)
    with_it = predict(scans, tmp_path / "with", **OPTIONS)
    without = predict(scans, tmp_path / "without", postprocessing=False, **OPTIONS)
    assert len(with_it) == len(without) == 3
    for cleaned_file, raw_file in zip(with_it, without, strict=True):
        np.testing.assert_array_equal(read_mask(cleaned_file), naive(read_mask(raw_file)))


def test_folds_that_differ_change_nothing(model) -> None:
    array = SimpleITK.GetArrayFromImage(make_scan(0))
    raw = predict(array, spacing_mm=(1, 1, 1), **OPTIONS)
    WHOLE.write(model / "fold_0")
    CORE.write(model / "fold_1")
    np.testing.assert_array_equal(predict(array, spacing_mm=(1, 1, 1), **OPTIONS), raw)
    assert load_predictor(**OPTIONS).postprocessing.line.startswith("none, as the folds differ")
    assert load_predictor(folds=[1], **OPTIONS).postprocessing.decision == CORE
    assert load_predictor(folds=[1], postprocessing=False, **OPTIONS).postprocessing == Choice()


def test_a_damaged_decision_stops_before_anything_is_written(model, scans, tmp_path) -> None:
    (model / "fold_0" / "postprocessing.json").write_text("{")
    with pytest.raises(DataError, match="not valid JSON"):
        predict(scans, tmp_path / "masks", **OPTIONS)
    assert not (tmp_path / "masks").exists()
    assert len(predict(scans, tmp_path / "masks", postprocessing=False, **OPTIONS)) == 3


def test_stock_nnunet_reads_the_model_as_before(model, scans, tmp_path) -> None:
    shutil.rmtree(model / "fold_1")
    WHOLE.write(model / "fold_0")
    ALL.write(model)
    (tmp_path / "stock").mkdir()
    stock = nnUNetPredictor(device=torch.device("cpu"), use_mirroring=False, allow_tqdm=False)
    stock.initialize_from_trained_model_folder(str(model), None)
    stock.predict_from_files_sequential(str(scans), str(tmp_path / "stock"), False, True, None)
    predict(scans, tmp_path / "ours", postprocessing=False, **OPTIONS)
    for case in range(3):
        ours, theirs = (read_mask(tmp_path / folder / f"case_{case}.nii.gz") for folder in ("ours", "stock"))
        assert np.mean(ours != theirs) < 0.01
