from __future__ import annotations

import json
from pathlib import Path

from tests.dataset_conversion.miniatures import assert_scan, converted, label, names, refused, scan, write, write_4d


def task(root: Path, modality: dict[str, str]) -> Path:
    cases, tested = ("BRATS_001", "BRATS_002"), "BRATS_003"
    for seed, case in enumerate((*cases, tested)):
        path = root / ("imagesTs" if case == tested else "imagesTr") / f"{case}.nii.gz"
        volumes = [scan(10 * seed + index) for index in range(len(modality))]
        write_4d(path, volumes) if len(volumes) > 1 else write(path, volumes[0])
        (path.parent / f"._{path.name}").write_bytes(b"left by macOS")
        if case != tested:
            write(root / "labelsTr" / f"{case}.nii.gz", label([1, 2]))
    about = {
        "name": "BRATS",
        "modality": modality,
        "labels": {"0": "background", "1": "edema", "2": "tumor"},
        "training": [{"image": f"./imagesTr/{c}.nii.gz", "label": f"./labelsTr/{c}.nii.gz"} for c in cases],
        "test": [f"./imagesTs/{tested}.nii.gz"],
    }
    (root / "dataset.json").write_text(json.dumps(about))
    return root


def test_the_fourth_axis_becomes_channels(tmp_path: Path, monkeypatch) -> None:
    root = task(tmp_path / "Task01_BrainTumour", {"0": "FLAIR", "1": "T1w"})
    raw = converted(tmp_path, monkeypatch, "msd", root)
    assert raw.name == "Dataset027_BrainTumour"
    assert raw.channel_names == ["FLAIR", "T1w"]
    assert raw.dataset_json["labels"] == {"background": 0, "edema": 1, "tumor": 2}
    assert names(raw.folder / "imagesTs") == ["BRATS_003_0000.nii.gz", "BRATS_003_0001.nii.gz"]
    for channel in (0, 1):
        assert_scan(raw.labelled["BRATS_002"].images[channel], scan(10 + channel))
    assert_scan(raw.labelled["BRATS_002"].label, label([1, 2]))


def test_one_channel(tmp_path: Path, monkeypatch) -> None:
    raw = converted(tmp_path, monkeypatch, "msd", task(tmp_path / "Task04_Hippocampus", {"0": "MRI"}))
    assert_scan(raw.test["BRATS_003"].images[0], scan(20))


def test_an_axis_that_is_too_short(tmp_path: Path, monkeypatch, capsys) -> None:
    root = task(tmp_path / "Task01_BrainTumour", {"0": "FLAIR", "1": "T1w"})
    write_4d(root / "imagesTr" / "BRATS_001.nii.gz", [scan(0)])
    message = refused(tmp_path, monkeypatch, capsys, "msd", root)
    assert "BRATS_001: imagesTr/BRATS_001.nii.gz holds" in message


def test_a_dataset_json_of_another_form_is_in_the_report(tmp_path: Path, monkeypatch, capsys) -> None:
    about = {"modality": ["MRI"], "labels": {"0": "background", "1": "x"}, "training": ["imagesTr/a.nii.gz"]}
    (tmp_path / "task").mkdir()
    (tmp_path / "task" / "dataset.json").write_text(json.dumps(about))
    assert "dataset.json does not have the form" in refused(tmp_path, monkeypatch, capsys, "msd", tmp_path / "task")
