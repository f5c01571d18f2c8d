from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.dataset_conversion.miniatures import SIZE, assert_scan, converted, label, read, refused, scan, write_4d

TABLE = "211230_M&Ms_Dataset_information_diagnosis_opendataset.csv"
COLUMNS = ",External code,VendorName,Vendor,Centre,ED,ES,Age,Pathology,Sex,Height,Weight"
PATIENTS = {  # code: vendor, folder, ED, ES
    "A0S9V9": ("A", "Training/Labeled", 0, 2),
    "M4P7Q6": ("B", "Training/Labeled", 3, 1),
    "C1G6Y3": ("C", "Training/Unlabeled", 1, 2),
    "V4W8Z5": ("C", "Validation", 0, 1),
    "I8N8Y1": ("D", "Testing", 0, 3),
}


def volume(code: str, frame: int) -> np.ndarray:
    return scan(100 * list(PATIENTS).index(code) + frame)


def write_table(root: Path, patients: dict[str, tuple] = PATIENTS) -> None:
    rows = [f"{n},{code},x,{p[0]},1,{p[2]},{p[3]},50,NOR,F,160,60" for n, (code, p) in enumerate(patients.items())]
    (root / TABLE).write_text("\n".join([COLUMNS, *rows]) + "\n", encoding="utf-8")


def write_patient(root: Path, code: str) -> None:
    _, place, ed, es = PATIENTS[code]
    write_4d(root / place / code / f"{code}_sa.nii.gz", [volume(code, frame) for frame in range(4)])
    if place != "Training/Unlabeled":
        empty = np.zeros(SIZE, dtype=np.uint8)
        frames = {ed: label([1, 2, 3]), es: label([3, 1])}
        write_4d(root / place / code / f"{code}_sa_gt.nii.gz", [frames.get(frame, empty) for frame in range(4)])


@pytest.fixture
def download(tmp_path: Path) -> Path:
    root = tmp_path / "OpenDataset"
    for code in PATIENTS:
        write_patient(root, code)
    write_table(root)
    return root


def test_frames_vendors_and_parts(tmp_path: Path, monkeypatch, download: Path) -> None:
    raw = converted(tmp_path, monkeypatch, "mnms", download.parent)
    expected = {"A0S9V9": (0, 2), "M4P7Q6": (1, 3), "V4W8Z5": (0, 1)}
    assert list(raw.labelled) == [f"{code}_frame{frame:02d}" for code, frames in expected.items() for frame in frames]
    assert list(raw.unlabelled) == ["C1G6Y3_frame01", "C1G6Y3_frame02"]
    assert list(raw.test) == ["I8N8Y1_frame00", "I8N8Y1_frame03"]
    for case in (*raw.labelled.values(), *raw.unlabelled.values(), *raw.test.values()):
        code, frame = case.name.split("_frame")
        assert case.patient == code
        assert_scan(case.images[0], volume(code, int(frame)))
        assert raw.dataset_json["cases"][case.name]["domain"] == PATIENTS[code][0]
    assert_scan(raw.labelled["M4P7Q6_frame03"].label, label([1, 2, 3]))  # ED
    assert_scan(raw.labelled["M4P7Q6_frame01"].label, label([3, 1]))
    assert raw.dataset_json["labels"] == {"background": 0, "LV": 1, "MYO": 2, "RV": 3}
    np.testing.assert_array_equal(read(raw.folder / "labelsTs" / "I8N8Y1_frame03.nii.gz")[0], label([3, 1]))


def test_other_frames_of_the_training_part_as_unlabelled_scans(tmp_path: Path, monkeypatch, download: Path) -> None:
    raw = converted(tmp_path, monkeypatch, "mnms", download, "--cine")
    expected = {"A0S9V9": (1, 3), "M4P7Q6": (0, 2), "C1G6Y3": (0, 1, 2, 3)}
    assert set(raw.unlabelled) == {f"{code}_frame{frame:02d}" for code, frames in expected.items() for frame in frames}
    assert_scan(raw.unlabelled["M4P7Q6_frame02"].images[0], volume("M4P7Q6", 2))


def test_an_unseen_vendor_is_tested_and_its_scans_are_not_learned_from(
    tmp_path: Path, monkeypatch, download: Path, capsys
) -> None:
    content = {
        "source": "made for this test", "budgets": ["2"], "domains": {"labelled": ["A", "B", "D"], "test": ["C"]},
        "labelled": {"2": ["I8N8Y1", "A0S9V9"]}, "train": ["A0S9V9", "M4P7Q6", "I8N8Y1"], "test": ["V4W8Z5", "F0I6U8"],
    }  # fmt: skip
    (tmp_path / "protocols").mkdir()
    (tmp_path / "protocols" / "to_c.json").write_text(json.dumps(content))
    monkeypatch.setattr("nnssl.data.protocols.FOLDER", tmp_path / "protocols")
    raw = converted(tmp_path, monkeypatch, "mnms", download, "--cine", "-protocol", "to_c-2")
    assert {case.patient for case in raw.test.values()} == {"V4W8Z5"}
    assert {case.patient for case in raw.labelled.values()} == {"A0S9V9", "M4P7Q6", "I8N8Y1"}  # I8N8Y1 was in Testing
    assert {case.patient for case in raw.unlabelled.values()} == {"A0S9V9", "M4P7Q6"}
    (fold,) = json.loads((raw.folder / "splits_final.json").read_text())
    assert fold["labelled_order"] == ["I8N8Y1", "A0S9V9", "M4P7Q6"]
    assert fold["protocol"] == "to_c-2"
    assert len(fold["train"]) == 6
    assert len(fold["unlabelled"]) == 4
    assert "1 test patient(s) of the protocol are not in the download: F0I6U8" in capsys.readouterr().out


def test_every_problem_is_in_one_report(tmp_path: Path, monkeypatch, capsys, download: Path) -> None:
    write_table(download, {**PATIENTS, "V4W8Z5": ("C", "", 0, 9), "I8N8Y1": ("E", "", 0, 3)})
    (download / "Training" / "Labeled" / "A0S9V9" / "A0S9V9_sa_gt.nii.gz").unlink()
    (download / "Training" / "Labeled" / "B1B1B1").mkdir()
    message = refused(tmp_path, monkeypatch, capsys, "mnms", download)
    assert "A0S9V9_sa_gt.nii.gz is missing" in message
    assert "V4W8Z5_sa.nii.gz holds 5x6x4x4 voxels, a fourth axis with a position 9 is expected" in message
    assert f"{TABLE}: the row of I8N8Y1 has the vendor 'E'" in message
    assert "Training/Labeled/B1B1B1 has no row in the table" in message


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda table: table.unlink(), "0 tables"),
        (lambda table: table.write_text("External code,Vendor\nA0S9V9,A\n"), "lacks the column(s) ED, ES"),
    ],
)
def test_the_table_is_needed(tmp_path: Path, monkeypatch, capsys, download: Path, change, text: str) -> None:
    change(download / TABLE)
    assert text in refused(tmp_path, monkeypatch, capsys, "mnms", download)
