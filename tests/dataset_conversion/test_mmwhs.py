from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.dataset_conversion.miniatures import assert_scan, converted, label, refused, scan, write

VALUES = (205, 420, 500, 550, 600, 820, 850)
SEEDS = {"ct_train_1001": 1, "ct_train_1002": 2, "mr_train_1001": 3, "ct_test_2001": 4, "mr_test_2001": 5}


def add(root: Path, case: str, seed: int, values: tuple[int, ...] = VALUES) -> None:
    folder = root / case[:-5]
    write(folder / f"{case}_image.nii.gz", scan(seed))
    if "train" in case:
        write(folder / f"{case}_label.nii.gz", label(values, dtype=np.int16))


@pytest.fixture
def download(tmp_path: Path) -> Path:
    root = tmp_path / "MM-WHS 2017 Dataset"
    for case, seed in SEEDS.items():
        add(root, case, seed)
    add(root, "mr_train_1010", 6, (205, 421, 500, 550, 600, 820, 850))
    return root


def test_both_modalities_are_domains(tmp_path: Path, monkeypatch, download: Path) -> None:
    raw = converted(tmp_path, monkeypatch, "mmwhs", download)
    assert list(raw.labelled) == ["ct_train_1001", "ct_train_1002", "mr_train_1001", "mr_train_1010"]
    assert list(raw.unlabelled) == ["ct_test_2001", "mr_test_2001"]
    domains = {case: entry["domain"] for case, entry in raw.dataset_json["cases"].items()}
    assert domains == {case: case[:2].upper() for case in (*raw.labelled, *raw.unlabelled)}
    assert raw.dataset_json["channel_names"] == {"0": "image"}
    for case, seed in SEEDS.items():
        assert_scan(({**raw.labelled, **raw.unlabelled})[case].images[0], scan(seed))
    for case in raw.labelled.values():  # the stray 421 of mr_train_1010 is the left atrium
        assert_scan(case.label, label([1, 2, 3, 4, 5, 6, 7]))
    assert raw.dataset_json["labels"]["left atrium"] == 2


def test_one_modality(tmp_path: Path, monkeypatch, download: Path) -> None:
    raw = converted(tmp_path, monkeypatch, "mmwhs", download, "-modality", "mr")
    assert list(raw.labelled) == ["mr_train_1001", "mr_train_1010"]
    assert list(raw.unlabelled) == ["mr_test_2001"]


def test_four_structures_and_adaptation(tmp_path: Path, monkeypatch, download: Path) -> None:
    for number in range(1001, 1021):
        for kind in ("ct", "mr"):
            add(download, f"{kind}_train_{number}", number + 100 * (kind == "mr"))
    options = ("--four_structures", "-protocol", "mmwhs_ct_to_mr-16")
    raw = converted(tmp_path, monkeypatch, "mmwhs", download, *options)
    assert_scan(raw.labelled["ct_train_1001"].label, label([1, 2, 3, 0, 0, 4, 0]))
    assert sorted(raw.test) == [f"mr_train_{n}" for n in (1007, 1009, 1018, 1019)]
    (fold,) = json.loads((raw.folder / "splits_final.json").read_text())
    assert len(fold["labelled_order"]) == 16
    assert {name[:2] for name in fold["labelled_order"]} == {"ct"}
    assert sum(name.startswith("mr") for name in fold["train"]) == 13
    assert fold["val"] == [f"ct_train_{n}" for n in (1003, 1008, 1014, 1019)]  # no label of the target is read
    assert fold["unlabelled"] == []
    assert not {f"mr_train_{n}" for n in (1012, 1015, 1016)} & {*raw.labelled, *raw.unlabelled}


def test_every_problem_is_in_one_report(tmp_path: Path, monkeypatch, capsys, download: Path) -> None:
    (download / "ct_train" / "ct_train_1001_label.nii.gz").unlink()
    (download / "mr_train" / "mr_train_1001_image.nii.gz").unlink()
    write(download / "ct_train" / "ct_train_1002_label.nii.gz", label([205, 100], dtype=np.int16))
    shutil.copy(download / "ct_test" / "ct_test_2001_image.nii.gz", download / "ct_test" / "ct_train_1009_image.nii.gz")
    message = refused(tmp_path, monkeypatch, capsys, "mmwhs", download)
    assert "ct_train/ct_train_1001_label.nii.gz is missing" in message
    assert "mr_train/mr_train_1001_label.nii.gz does not belong to the layout" in message
    assert "ct_train_1002_label.nii.gz has the label value(s) 100" in message
    assert "ct_test/ct_train_1009_image.nii.gz is not of the form ct_test_1001_image.nii.gz" in message


def test_a_missing_modality_must_be_wanted(tmp_path: Path, monkeypatch, capsys, download: Path) -> None:
    shutil.rmtree(download / "mr_train")
    assert "the folder mr_train is missing" in refused(tmp_path, monkeypatch, capsys, "mmwhs", download)
    raw = converted(tmp_path, monkeypatch, "mmwhs", download, "-modality", "ct")
    assert list(raw.labelled) == ["ct_train_1001", "ct_train_1002"]
