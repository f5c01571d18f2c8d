from __future__ import annotations

from pathlib import Path

import pytest

from nnssl.dataset_conversion.engine.left_over import describe_left_out, find_strangers
from nnssl.dataset_conversion.engine.records import Found, SourceRecord
from nnssl.dataset_conversion.engine.sources import ImageFile

FILES = ("used.nii.gz", "more.NII", "notes.txt", ".hidden.nii", "left/out.nrrd", "raw/Dataset001_A/made.nii.gz")


@pytest.mark.parametrize(
    ("strict", "expected"), [(True, ["more.NII"]), (False, ["more.NII", "notes.txt"])], ids=["download", "own"]
)
def test_files_outside_the_layout(tmp_path: Path, strict: bool, expected: list[str]) -> None:
    for name in FILES:
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).touch()
    used = SourceRecord("a", (ImageFile(tmp_path / "used.nii.gz"),), "labelled")
    found = Found((used,), ("CT",), {}, ignored=(tmp_path / "left",), strict=strict)
    assert find_strangers(found, tmp_path, tmp_path / "raw") == [tmp_path / name for name in expected]


def test_a_folder_of_data_sets_may_be_the_source(tmp_path: Path) -> None:
    (tmp_path / "more.nii").touch()
    assert find_strangers(Found((), ("CT",), {}), tmp_path, tmp_path) == [tmp_path / "more.nii"]


def test_unused_folders_have_one_line(tmp_path: Path) -> None:
    left_out = [tmp_path / name for name in ("b/c/1.nii", "b/d/2.nii", "a.csv", "images/old.nii")]
    left_out += [tmp_path / "labels" / f"{number}.png" for number in range(7)]
    used = [tmp_path / "images" / "a.nii", tmp_path / "labels" / "a.nii"]
    assert describe_left_out(left_out, used, tmp_path) == [
        "left out: a.csv",
        "left out: the folder b with 2 file(s)",
        "left out: images/old.nii",
        "left out: labels/0.png, labels/1.png, labels/2.png, labels/3.png, labels/4.png and 2 more",
    ]


def test_a_long_list_is_cut(tmp_path: Path) -> None:
    left_out = [tmp_path / f"{number:02d}" / "a.nii" for number in range(25)]
    lines = describe_left_out(left_out, [], tmp_path)
    assert lines[19:] == ["left out: the folder 19 with 1 file(s)", "left out: files in 5 more folders"]
