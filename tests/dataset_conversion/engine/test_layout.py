from __future__ import annotations

from pathlib import Path

import pytest

from nnssl.dataset_conversion.engine.layout import (
    find_root,
    list_files,
    list_folders,
    note_absent_parts,
    number_labels,
    stem,
)


def has_mark(folder: Path) -> bool:
    return (folder / "mark").is_dir()


def test_the_root_is_the_folder_or_a_near_one_is_proposed(tmp_path: Path) -> None:
    root = tmp_path / "outer" / "root"
    (root / "mark" / "inside").mkdir(parents=True)
    assert find_root(root, "a mark", has_mark) == (root, [])
    for start in (tmp_path, tmp_path / "outer", root / "mark", root / "mark" / "inside"):
        found, (problem,) = find_root(start, "a mark", has_mark)
        assert found is None
        assert problem == f"-i {start} does not hold a mark; {root} does: give that folder to -i"
    (tmp_path / "empty").mkdir()
    assert find_root(tmp_path / "empty", "x", lambda _: False) == (None, [f"-i {tmp_path / 'empty'} does not hold x"])


def test_folders_and_files_come_sorted_and_without_hidden_ones(tmp_path: Path) -> None:
    for name in ("b", "a", ".git", "__MACOSX"):
        (tmp_path / name).mkdir()
    for name in ("2.NII.GZ", "1.nii.gz", ".3.nii.gz", "notes.txt"):
        (tmp_path / name).touch()
    assert [path.name for path in list_folders(tmp_path)] == ["a", "b"]
    assert [path.name for path in list_files(tmp_path, [".nii.gz"])] == ["1.nii.gz", "2.NII.GZ"]
    assert list_files(tmp_path / "none", [".nii.gz"]) == list_folders(tmp_path / "none") == []


def test_absent_parts_are_notes(tmp_path: Path) -> None:
    (tmp_path / "training").mkdir()
    assert note_absent_parts(tmp_path, ["training", "testing"]) == (
        f"testing is missing in {tmp_path}: its cases are left out",
    )
    assert note_absent_parts(None, ["training"]) == ()


@pytest.mark.parametrize(
    ("name", "expected"),
    [("a.nii.gz", "a"), ("a.b.NRRD", "a.b"), ("a.h5", "a"), ("a.png", "a"), ("a", "a"), ("pat.1", "pat.1")],
)
def test_stems(name: str, expected: str) -> None:
    assert stem(Path("folder") / name) == expected


def test_labels_are_numbered_from_one() -> None:
    assert number_labels(["LA", "LV"]) == ({"background": 0, "LA": 1, "LV": 2}, [])
    assert number_labels(None) == ({}, [])
    for names in (["LA", "LA"], ["background"]):
        assert number_labels(names) == (
            {},
            [f"-label_names repeats a name, or names the background: {' '.join(names)}"],
        )
