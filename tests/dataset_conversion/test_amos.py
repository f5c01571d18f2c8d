from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.dataset_conversion.miniatures import assert_scan, converted, label, refused, scan, write

ORGANS = tuple(range(1, 16))
PLACES = {
    1: "amos22/imagesTr",
    500: "amos22/imagesTr",
    507: "amos22/imagesTr",
    8: "amos22/imagesVa",
    2: "amos22/imagesTs",
    5000: "amos_unlabeled_ct_5000_5399",
    6200: "amos22_unlabeled_6200_6899",
}


@pytest.fixture
def download(tmp_path: Path) -> Path:
    root = tmp_path / "AMOS"
    for number, place in PLACES.items():
        write(root / place / f"amos_{number:04d}.nii.gz", scan(number))
        if place.endswith(("Tr", "Va")):
            write(root / place.replace("images", "labels") / f"amos_{number:04d}.nii.gz", label(ORGANS))
    (root / "amos22" / "dataset.json").write_text(json.dumps({"name": "AMOS"}))
    return root


def test_every_part_has_its_place(tmp_path: Path, monkeypatch, download: Path) -> None:
    raw = converted(tmp_path, monkeypatch, "amos", download)
    assert list(raw.labelled) == ["amos_0001", "amos_0008", "amos_0500", "amos_0507"]
    assert list(raw.unlabelled) == ["amos_5000", "amos_6200"]
    assert list(raw.test) == ["amos_0002"]
    assert not (raw.folder / "labelsTs").exists()
    for case in (*raw.labelled.values(), *raw.unlabelled.values(), *raw.test.values()):
        assert_scan(case.images[0], scan(int(case.name[-4:])))
    assert_scan(raw.labelled["amos_0008"].label, label(ORGANS))
    mr = [case for case, entry in raw.dataset_json["cases"].items() if entry["domain"] == "MR"]
    assert mr == ["amos_0507"]
    assert raw.dataset_json["channel_names"] == {"0": "image"}
    assert raw.dataset_json["labels"]["prostate/uterus"] == 15


def test_one_modality_and_the_folder_amos22_itself(tmp_path: Path, monkeypatch, download: Path) -> None:
    raw = converted(tmp_path, monkeypatch, "amos", download / "amos22", "-modality", "ct")
    assert list(raw.labelled) == ["amos_0001", "amos_0008", "amos_0500"]
    assert raw.unlabelled == {}
    assert raw.dataset_json["channel_names"] == {"0": "CT"}


def test_every_problem_is_in_one_report(tmp_path: Path, monkeypatch, capsys, download: Path) -> None:
    (download / "amos22" / "labelsVa" / "amos_0008.nii.gz").unlink()
    cut = download / "amos_unlabeled_ct_5000_5399" / "amos_5000.nii.gz"
    cut.write_bytes(cut.read_bytes()[:-20])
    write(download / "amos22" / "imagesTr" / "scan.nii.gz", scan(3))
    write(download / "amos22_unlabeled_6200_6899" / "amos_0001.nii.gz", scan(4))
    message = refused(tmp_path, monkeypatch, capsys, "amos", download)
    assert "amos22/labelsVa/amos_0008.nii.gz is missing" in message
    assert "amos_5000.nii.gz is cut off" in message
    assert "amos22/imagesTr/scan.nii.gz does not belong to the layout" in message
    assert "2 cases have the name amos_0001" in message
    assert len(message.splitlines()) == 4
