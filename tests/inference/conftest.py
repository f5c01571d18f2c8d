from __future__ import annotations

import pytest

from tests.inference.model_for_tests import write_model, write_scans


@pytest.fixture
def results(tmp_path, monkeypatch):
    folder = tmp_path / "nnUNet_results"
    folder.mkdir()
    monkeypatch.setenv("nnUNet_results", str(folder))
    return folder


@pytest.fixture
def model(results):
    return write_model(results, folds=(0, 1))


@pytest.fixture
def scans(tmp_path):
    return write_scans(tmp_path / "imagesTs")
