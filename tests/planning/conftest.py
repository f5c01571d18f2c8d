from __future__ import annotations

import contextlib
import functools
import io
import multiprocessing
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.planning.raw_for_tests import DATASET, fresh_copy, make_raw


@pytest.fixture(scope="session")
def raw_template(tmp_path_factory) -> Path:
    return make_raw(tmp_path_factory.mktemp("template"))


@pytest.fixture(scope="package", autouse=True)
def _few_intensity_samples():
    """Stock nnU-Net and we draw 10^8 voxels for the intensity statistics; 10^4 show the same."""
    from nnunetv2.experiment_planning.dataset_fingerprint.fingerprint_extractor import DatasetFingerprintExtractor

    original = DatasetFingerprintExtractor.__init__

    @functools.wraps(original)
    def few(self, *args, **kwargs):
        original(self, *args, **kwargs)
        self.num_foreground_voxels_for_intensitystats = 1e4

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DatasetFingerprintExtractor, "__init__", few)
        yield


@pytest.fixture
def data(raw_template, tmp_path, monkeypatch) -> SimpleNamespace:
    """A data set of one's own: `raw` and `preprocessed` folders."""
    raw, preprocessed = fresh_copy(raw_template, tmp_path, monkeypatch)
    return SimpleNamespace(raw=raw, preprocessed=preprocessed)


@pytest.fixture(scope="package")
def stock(raw_template, tmp_path_factory, _few_intensity_samples) -> Path:
    """The folder that stock nnU-Net makes of the data set (with forked workers, which start faster)."""
    from nnunetv2.experiment_planning.plan_and_preprocess_api import (
        extract_fingerprint_dataset,
        plan_experiment_dataset,
        preprocess_dataset,
    )

    root = tmp_path_factory.mktemp("stock")
    names = {"nnUNet_raw": str(raw_template.parent), "nnUNet_preprocessed": str(root), "nnUNet_n_proc_DA": "1"}
    get_context = multiprocessing.get_context
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()):
        for name, value in names.items():
            patch.setenv(name, value)
        patch.setattr(multiprocessing, "get_context", lambda _method=None: get_context("fork"))
        extract_fingerprint_dataset(906, num_processes=2, show_progress_bar=False)
        plan_experiment_dataset(906)
        preprocess_dataset(906, configurations=("2d", "3d_fullres"), num_processes=(2, 2), show_progress_bar=False)
    return root / DATASET
