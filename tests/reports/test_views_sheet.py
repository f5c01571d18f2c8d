from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nnssl.errors import DataError, UsageError
from nnssl.reports import views_sheet as module
from nnssl.reports.views_sheet import draw_views, middle_slice, views_sheet
from tests.conftest import DATASET

Views = list[list[np.ndarray]]


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Views]:
    """Return what was drawn."""
    seen: list[Views] = []

    def draw(title: str, patches: Views) -> bytes:
        seen.append(patches)
        return draw_views(title, patches)

    monkeypatch.setattr(module, "draw_views", draw)
    return seen


def test_the_views_are_those_of_the_first_batch_of_a_training(
    tmp_path: Path, make_trainer, drawn: list[Views], monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make_trainer("FixMatchTrainer", 2)
    trainer.initialize()
    stream, _ = trainer.get_dataloaders()
    data = next(stream)["unlabelled"]["data"].numpy()
    stream.close()
    monkeypatch.chdir(tmp_path)
    results = Path(os.environ["nnUNet_results"])
    before = sorted(results.rglob("*"))
    sheet = views_sheet(DATASET, patches=2)
    (patches,) = drawn
    assert [len(views) for views in patches] == [2, 2]
    for patch, (weak, strong) in zip(data, patches, strict=False):
        np.testing.assert_array_equal(weak, patch[0])
        np.testing.assert_array_equal(strong, patch[1])
        assert not np.array_equal(weak, strong)
    assert (sheet.file, sheet.cases) == (Path(f"{DATASET}_views.png"), ("patch 1", "patch 2"))
    with Image.open(sheet.file) as picture:
        assert picture.height > picture.width * 0.9
    assert os.environ["nnUNet_results"] == str(results)
    assert sorted(results.rglob("*")) == before


def test_more_patches_than_a_batch_in_3d(tmp_path: Path, make_tiny, drawn: list[Views]) -> None:
    make_tiny(3)
    views_sheet(DATASET, output_file=tmp_path / "v.png", trainer="MeanTeacherTrainer", patches=3)
    assert [[view.shape for view in views] for views in drawn[0]] == [[(16, 16)] * 2] * 3


def test_the_middle_slice() -> None:
    volume = np.arange(3 * 2 * 2).reshape(3, 2, 2)
    assert middle_slice(volume).tolist() == [[4, 5], [6, 7]]
    assert middle_slice(volume[0]).tolist() == [[0, 1], [2, 3]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"trainer": "SupervisedTrainer"}, "no views to draw"),
        ({"trainer": "SelfTrainingTrainer"}, "no views to draw"),
        ({"patches": 0}, "-n must be at least 1"),
        ({"configuration": "3d_fullres"}, "unknown configuration"),
    ],
)
def test_wrong_options(tmp_path: Path, make_tiny, options: dict[str, object], message: str) -> None:
    make_tiny(2)
    with pytest.raises(UsageError, match=message):
        views_sheet(DATASET, output_file=tmp_path / "v.png", **options)
    assert not (tmp_path / "v.png").exists()


def test_without_unlabelled_scans(tmp_path: Path, make_tiny) -> None:
    shutil.rmtree(make_tiny(2) / "nnUNetPlans_2d_unlabelled")
    with pytest.raises(DataError, match="no unlabelled scan is preprocessed"):
        views_sheet(DATASET, output_file=tmp_path / "v.png")
