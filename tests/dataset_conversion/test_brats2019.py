from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.dataset_conversion.miniatures import assert_scan, converted, label, refused, scan, write

ROOT = "MICCAI_BraTS_2019_Data_Training"
CASES = {"BraTS19_CBICA_AAB_1": "HGG", "BraTS19_2013_0_1": "LGG"}
CHANNELS = ("flair", "t1", "t1ce", "t2")


@pytest.fixture
def download(tmp_path: Path) -> Path:
    root = tmp_path / ROOT
    for number, (case, grade) in enumerate(CASES.items()):
        for place, channel in enumerate(CHANNELS):
            write(root / grade / case / f"{case}_{channel}.nii.gz", scan(10 * number + place))
        write(root / grade / case / f"{case}_seg.nii.gz", label([1, 2, 4], dtype=np.int16))
    (root / "name_mapping.csv").write_text("Grade,BraTS_2019_subject_ID\n")
    return root


def test_four_channels_and_regions(tmp_path: Path, monkeypatch, download: Path) -> None:
    raw = converted(tmp_path, monkeypatch, "brats2019", download)
    assert sorted(raw.labelled) == sorted(CASES)
    assert raw.dataset_json["channel_names"] == {"0": "FLAIR", "1": "T1", "2": "T1ce", "3": "T2"}
    for number, case in enumerate(CASES):
        for place, path in enumerate(raw.labelled[case].images):
            assert_scan(path, scan(10 * number + place))
        assert_scan(raw.labelled[case].label, label([2, 1, 3]))  # core, edema, enhancing tumor
    assert raw.dataset_json["labels"] == {
        "background": 0,
        "whole tumor": [1, 2, 3],
        "tumor core": [2, 3],
        "enhancing tumor": [3],
    }
    assert raw.dataset_json["regions_class_order"] == [1, 2, 3]


def test_the_papers_setting_is_flair_and_whole_tumor(tmp_path: Path, monkeypatch, download: Path) -> None:
    raw = converted(tmp_path, monkeypatch, "brats2019", download, "--flair_only", "--whole_tumor")
    assert raw.dataset_json["channel_names"] == {"0": "FLAIR"}
    assert raw.dataset_json["labels"] == {"background": 0, "whole tumor": 1}
    assert "regions_class_order" not in raw.dataset_json
    case = raw.labelled["BraTS19_2013_0_1"]
    assert len(case.images) == 1
    assert_scan(case.images[0], scan(10))
    assert_scan(case.label, label([1, 1, 1]))


def test_every_problem_is_in_one_report(tmp_path: Path, monkeypatch, capsys, download: Path) -> None:
    first, second = (download / grade / case / case for case, grade in CASES.items())
    first.with_name(f"{first.name}_t1ce.nii.gz").unlink()
    write(second.with_name(f"{second.name}_seg.nii.gz"), label([1, 3]))
    write(second.with_name(f"{second.name}_t2.nii.gz"), scan(5), origin=(0, 0, 0))
    (download / "LGG" / "new folder").mkdir()
    message = refused(tmp_path, monkeypatch, capsys, "brats2019", download)
    assert "HGG/BraTS19_CBICA_AAB_1/BraTS19_CBICA_AAB_1_t1ce.nii.gz is missing" in message
    assert "BraTS19_2013_0_1_seg.nii.gz has the label value(s) 3, expected are 0, 1, 2, 4" in message
    assert "BraTS19_2013_0_1_t2.nii.gz has the origin 0, 0, 0" in message
    assert "LGG/new folder is not of the form BraTS19_" in message
    assert len(message.splitlines()) == 4


def test_wrong_nesting_names_the_right_folder(tmp_path: Path, monkeypatch, capsys, download: Path) -> None:
    message = refused(tmp_path, monkeypatch, capsys, "brats2019", download / "HGG")
    assert f"{download} does: give that folder to -i" in message
