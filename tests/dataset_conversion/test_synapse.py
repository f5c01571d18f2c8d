from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.dataset_conversion.miniatures import assert_scan, converted, label, refused, scan, write

ORGANS = tuple(range(1, 14))


def add(root: Path, number: int) -> None:
    write(root / "Training" / "img" / f"img{number:04d}.nii.gz", scan(number))
    write(root / "Training" / "label" / f"label{number:04d}.nii.gz", label(ORGANS))


@pytest.fixture
def download(tmp_path: Path) -> Path:
    root = tmp_path / "Abdomen" / "RawData"
    for number in (1, 21):
        add(root, number)
    write(root / "Testing" / "img" / "img0061.nii.gz", scan(61))
    return root


@pytest.mark.parametrize("up", [0, 1, 2])
def test_training_scans_are_labelled_and_test_scans_not(tmp_path: Path, monkeypatch, download: Path, up: int) -> None:
    raw = converted(tmp_path, monkeypatch, "synapse", (download, *download.parents)[up])
    assert list(raw.labelled) == ["img0001", "img0021"]
    assert list(raw.unlabelled) == ["img0061"]
    assert raw.test == {}
    assert_scan(raw.labelled["img0021"].images[0], scan(21))
    assert_scan(raw.labelled["img0021"].label, label(ORGANS))
    assert_scan(raw.unlabelled["img0061"].images[0], scan(61))
    assert len(raw.dataset_json["labels"]) == 14
    assert raw.dataset_json["labels"]["pancreas"] == 11


@pytest.mark.parametrize(
    ("protocol", "sizes", "labelled"),
    [
        ("synapse-4", (20, 4, 6), ["img0009", "img0021", "img0025", "img0034"]),
        ("synapse_dhc-2", (20, 4, 6), ["img0023", "img0028"]),
        ("synapse_transunet-2", (18, 18, 12), None),
    ],
)
def test_published_splits(tmp_path: Path, monkeypatch, download: Path, protocol: str, sizes, labelled) -> None:
    for number in (*range(1, 11), *range(21, 41)):
        add(download, number)
    raw = converted(tmp_path, monkeypatch, "synapse", download, "-protocol", protocol)
    (fold,) = json.loads((raw.folder / "splits_final.json").read_text())
    assert (len(fold["train"]), len(fold["val"]), len(raw.test)) == sizes
    assert labelled in (None, fold["labelled_order"][: len(labelled or ())])
    assert raw.unlabelled == {}  # the papers learn from the training scans alone
    assert len(list((raw.folder / "labelsTs").iterdir())) == sizes[2]


def test_every_problem_is_in_one_report(tmp_path: Path, monkeypatch, capsys, download: Path) -> None:
    (download / "Training" / "label" / "label0001.nii.gz").unlink()
    write(download / "Training" / "label" / "label0021.nii.gz", np.pad(label(ORGANS), ((0, 0), (0, 0), (0, 1))))
    write(download / "Training" / "img" / "img1.nii.gz", scan(7))
    message = refused(tmp_path, monkeypatch, capsys, "synapse", download)
    assert "Training/label/label0001.nii.gz is missing" in message
    assert "label0021.nii.gz has 6 x 6 x 4 voxels, its image has 5 x 6 x 4" in message
    assert "Training/img/img1.nii.gz does not belong to the layout" in message
    assert len(message.splitlines()) == 3
