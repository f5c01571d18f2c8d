from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from nnssl.data.scans import ScanFacts
from nnssl.errors import OutOfMemory
from nnssl.inference import memory
from nnssl.inference.api import DiskJob, predict_files
from nnssl.inference.memory import Peaks, ensemble_peaks, network_bytes, peaks_of, plan_memory
from nnssl.inference.predictor import Predictor
from tests.inference.model_for_tests import write_model


def scan_of(shape, spacing=(1.0, 1.0, 1.0)):
    return ScanFacts("big", "test", shape, spacing, "", "", "", ())


@pytest.fixture
def predictor(results):
    return Predictor.from_folder(write_model(results), device="cpu")


def test_memory_of_a_network_by_hand():
    network = nn.Sequential(nn.Conv3d(1, 4, 1), nn.ReLU(), nn.Conv3d(4, 2, 1))
    voxels = 4 * 2 * 8**3  # bytes of a channel of two images
    # the image, and the result of the first layer beside that of the second
    assert network_bytes(network, (2, 1, 8, 8, 8)) == voxels * (1 + 4 + 4)
    assert next(network.parameters()).device.type == "cpu"


def test_a_network_that_looks_at_values_counts_as_nothing():
    class Looking(nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else -x

    assert network_bytes(Looking(), (1, 1, 4, 4)) == 0


def test_peaks_by_hand(predictor):
    small, large = (peaks_of(predictor, scan_of((n,) * 3, (0.7,) * 3), False, 1000) for n in (100, 200))
    heads, patch = 3, 16
    spacing = predictor.configuration_manager.spacing
    n = [round(100 * 0.7 / mm) for mm in spacing]
    voxels = n[0] * n[1] * n[2]
    assert min(n) >= patch
    assert small.held == 4 * voxels
    assert small.infer == 4 * voxels + 2 * (heads + 1) * voxels + 1000
    assert small.export == 2 * heads * voxels + max(small.export - 2 * heads * voxels, 8 * 100**3)
    assert small.prepare >= 9 * 100**3 + 8 * 124**3  # read, converted, nonzero, and the coefficients of splines
    assert 7 < large.infer / small.infer < 9
    assert 6 < large.prepare / small.prepare < 9


def test_folds_and_probabilities_take_more(results, predictor):
    folds = Predictor.from_folder(write_model(results, trainer="MeanTeacherTrainer", folds=(0, 1)), device="cpu")
    scan = scan_of((300, 300, 300))
    one, two = peaks_of(predictor, scan, False, 0), peaks_of(folds, scan, False, 0)
    assert two.infer > one.infer
    assert peaks_of(predictor, scan, True, 0).export >= one.export


def test_peak_of_stages_that_follow_each_other():
    assert Peaks(prepare=10, held=1, infer=5, export=4).alone == 10
    assert Peaks(prepare=5, held=2, infer=5, export=4).alone == 7
    assert Peaks(prepare=5, held=2, infer=3, export=9).alone == 11


def test_peaks_of_an_ensemble_by_hand():
    made = ensemble_peaks([Peaks(10, 1, 5, 4), Peaks(8, 2, 7, 9)], heads=3, voxels=100)
    assert made == Peaks(prepare=13, held=3, infer=9 + 3 * 1200, export=1200 + 800)


def test_plan_without_room_for_two_scans_works_on_one_at_a_time(predictor, monkeypatch):
    scans = [scan_of((200, 200, 200))] * 3
    monkeypatch.setattr(memory, "free_memory_bytes", lambda: 10**12)
    wide = plan_memory([predictor], scans, False, 1, 2)
    assert (wide.readers, wide.writers) == (1, 2)
    alone = peaks_of(predictor, scans[0], False, 10**6).alone
    monkeypatch.setattr(memory, "free_memory_bytes", lambda: alone + 10**6)
    narrow = plan_memory([predictor], scans, False, 1, 2)
    assert (narrow.readers, narrow.writers) == (0, 0)
    assert narrow.peak_bytes < wide.peak_bytes


def test_a_scan_that_does_not_fit_is_one_message_before_anything_is_written(results, scans, tmp_path, monkeypatch):
    model = write_model(results)
    monkeypatch.setattr(memory, "free_memory_bytes", lambda: 1000)
    with pytest.raises(OutOfMemory, match=r"case_0 needs 0\.\d GB of memory, 0\.0 GB are free") as caught:
        predict_files(DiskJob([scans], tmp_path / "out"), {"model": model, "device": "cpu"})
    assert caught.value.exit_code == 5
    assert "14 x 20 x 18 voxels, 3 classes" in caught.value.why
    assert not list((tmp_path / "out").glob("*"))


def test_the_announced_peak_stands_in_the_result(results, scans, tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "peak_memory_bytes", lambda: 5)
    monkeypatch.setattr(memory, "resident_bytes", lambda: 10**9)
    model = write_model(results)
    result = predict_files(DiskJob([scans], tmp_path / "out"), {"model": model, "device": "cpu"})
    assert result.to_dict()["memory_bytes"] == result.memory_bytes
    assert 10**9 < result.memory_bytes < 2 * 10**9


def test_another_resampling_counts_all_classes(predictor):
    changed = {**predictor.configuration_manager.configuration, "resampling_fn_probabilities": "resample_torch_simple"}
    other = SimpleNamespace(**vars(predictor))
    for name in ("channels", "resamples_in_slabs"):
        setattr(other, name, getattr(predictor, name))
    other.configuration_manager = SimpleNamespace(
        configuration=changed,
        spacing=predictor.configuration_manager.spacing,
        patch_size=predictor.configuration_manager.patch_size,
    )
    scan = scan_of((200, 200, 200))
    assert peaks_of(other, scan, False, 0).export > peaks_of(predictor, scan, False, 0).export + 2 * 3 * 200**3


def test_a_batch_on_the_cpu_has_the_size_of_prediction(predictor):
    assert memory._batch_of(predictor) == (2, 1, 16, 16, 16)
    assert torch.device("cpu") == predictor.device
