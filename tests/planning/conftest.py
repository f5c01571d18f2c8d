from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.planning.raw_for_tests import DATASET, fresh_copy, make_raw
from tests.planning.stock_nnunet import few_intensity_samples, run_stock


@pytest.fixture(scope="session")
def raw_template(tmp_path_factory) -> Path:
    return make_raw(tmp_path_factory.mktemp("template"))


@pytest.fixture(scope="package", autouse=True)
def _few_intensity_samples():
    with few_intensity_samples():
        yield


@pytest.fixture
def data(raw_template, tmp_path, monkeypatch) -> SimpleNamespace:
    """A data set of one's own: `raw` and `preprocessed` folders."""
    raw, preprocessed = fresh_copy(raw_template, tmp_path, monkeypatch)
    return SimpleNamespace(raw=raw, preprocessed=preprocessed)


@pytest.fixture(scope="package")
def stock(raw_template, tmp_path_factory) -> Path:
    """The folder that stock nnU-Net makes of the data set."""
    root = tmp_path_factory.mktemp("stock")
    run_stock("plan_and_preprocess", nnUNet_raw=str(raw_template.parent), nnUNet_preprocessed=str(root))
    return root / DATASET
