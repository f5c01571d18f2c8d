"""Downloads that are broken in the common ways: one report of everything, nothing written."""

from __future__ import annotations

import gzip
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.dataset_conversion.miniatures import label, names, refused, scan, use_raw, write
from tests.dataset_conversion.test_acdc import download as acdc  # noqa: F401 - a fixture

ONE = "training/patient001"


def edit(path: str, change: Callable[[Path], object]) -> Callable[[Path], object]:
    return lambda database: change(database / path)


def not_compressed(path: Path) -> None:
    path.write_bytes(gzip.decompress(path.read_bytes()))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-30])


def renamed(name: str) -> Callable[[Path], object]:
    return lambda path: path.rename(path.with_name(name))


BREAKS = {
    "a missing frame": (edit(f"{ONE}/patient001_frame03.nii.gz", Path.unlink), "patient001_frame03.nii.gz is missing"),
    "a missing label": (
        edit(f"{ONE}/patient001_frame03_gt.nii.gz", Path.unlink),
        "patient001_frame03_gt.nii.gz is missing",
    ),
    "a missing table": (edit(f"{ONE}/Info.cfg", Path.unlink), "training/patient001/Info.cfg is missing"),
    "a table without ES": (
        edit(f"{ONE}/Info.cfg", lambda path: path.write_text("ED: 1\n")),
        "patient001/Info.cfg does not name the frames ED and ES",
    ),
    "gz that is none": (
        edit(f"{ONE}/patient001_frame01.nii.gz", not_compressed),
        "patient001_frame01.nii.gz is named .gz but is not compressed",
    ),
    "a cut file": (edit(f"{ONE}/patient001_frame01.nii.gz", cut), "patient001_frame01.nii.gz is cut off"),
    "no image at all": (
        edit(f"{ONE}/patient001_frame01.nii.gz", lambda path: path.write_bytes(gzip.compress(b"<html>"))),
        "patient001_frame01.nii.gz cannot be read",
    ),
    "a label with another size": (
        edit(f"{ONE}/patient001_frame01_gt.nii.gz", lambda path: write(path, label([1, 2, 3], size=(4, 6, 7)))),
        "patient001_frame01_gt.nii.gz has 7 x 6 x 4 voxels, its image has 5 x 6 x 4",
    ),
    "a label in another place": (
        edit(f"{ONE}/patient001_frame01_gt.nii.gz", lambda path: write(path, label([1, 2, 3]), origin=(0, 0, 0))),
        "patient001_frame01_gt.nii.gz has the origin 0, 0, 0, its image has -12.5, 3, 40",
    ),
    "a label turned round": (
        edit(
            f"{ONE}/patient001_frame01_gt.nii.gz",
            lambda path: write(path, label([1, 2, 3]), direction=(1, 0, 0, 0, 1, 0, 0, 0, 1)),
        ),
        "patient001_frame01_gt.nii.gz has the direction 1, 0, 0, 0, 1, 0, 0, 0, 1",
    ),
    "a strange label value": (
        edit(f"{ONE}/patient001_frame01_gt.nii.gz", lambda path: write(path, label([1, 2, 7]))),
        "patient001_frame01_gt.nii.gz has the label value(s) 7, expected are 0, 1, 2, 3",
    ),
    "a label with fractions": (
        edit(f"{ONE}/patient001_frame01_gt.nii.gz", lambda path: write(path, 0.5 * label([1], dtype=np.float32))),
        "patient001_frame01_gt.nii.gz has the label value(s) 0.5",
    ),
    "NaN": (
        edit(
            f"{ONE}/patient001_frame01.nii.gz",
            lambda path: write(path, np.where(label([1]) > 0, np.nan, 1).astype(np.float32)),
        ),
        "patient001_frame01.nii.gz has 3 voxels that are NaN or infinite",
    ),
    "a patient twice": (
        lambda database: shutil.copytree(database / ONE, database / "training" / "patient001 (1)"),
        "training/patient001 (1) is not of the form patientXXX",
    ),
    "a patient in both parts": (
        lambda database: shutil.copytree(database / ONE, database / "testing" / "patient001"),
        "patient patient001 is in the test part and elsewhere",
    ),
    "mixed case": (
        edit(f"{ONE}/patient001_frame01.nii.gz", renamed("Patient001_Frame01.nii.gz")),
        "training/patient001/Patient001_Frame01.nii.gz does not belong to the layout",
    ),
    "an extra image": (
        lambda database: write(database / ONE / "mine.nii.gz", scan(0)),
        "training/patient001/mine.nii.gz does not belong to the layout",
    ),
    "a name that is not ASCII": (
        edit(ONE, renamed("pätient001")),
        "training/pätient001 is not of the form patientXXX",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BREAKS)
def test_one_break(name: str, tmp_path: Path, monkeypatch, capsys, acdc: Path) -> None:  # noqa: F811
    damage, expected = BREAKS[name]
    damage(acdc / "database")
    assert expected in refused(tmp_path, monkeypatch, capsys, "acdc", acdc)


def test_all_breaks_at_once_are_one_report(tmp_path: Path, monkeypatch, capsys, acdc: Path) -> None:  # noqa: F811
    database = acdc / "database"
    (database / ONE / "patient001_frame03.nii.gz").unlink()
    not_compressed(database / ONE / "patient001_frame01.nii.gz")
    write(database / "training/patient002/patient002_frame02_gt.nii.gz", label([1, 9]))
    cut(database / "training/patient002/patient002_frame04.nii.gz")
    (database / "testing/patient101/Info.cfg").unlink()
    write(database / "extra.nrrd", scan(0))
    lines = refused(tmp_path, monkeypatch, capsys, "acdc", acdc).splitlines()
    assert len(lines) == 6 + 4  # without its table the frames of patient101 and their labels are strangers
    for part in ("frame03", "not compressed", "value(s) 9", "cut off", "Info.cfg is missing", "extra.nrrd"):
        assert any(part in line for line in lines), part


def test_case_names_outside_ascii(tmp_path: Path, monkeypatch, capsys) -> None:
    for case in ("müller", "ok"):
        write(tmp_path / "mine" / "images" / f"{case}.nii.gz", scan(len(case)))
        write(tmp_path / "mine" / "labels" / f"{case}.nii.gz", label([1]))
    message = refused(tmp_path, monkeypatch, capsys, "folder", tmp_path / "mine")
    assert "'müller' cannot be a case name" in message


def test_a_name_twice_in_other_letter_case(tmp_path: Path, monkeypatch, capsys) -> None:
    for seed, case in enumerate(("case", "Case")):
        write(tmp_path / "mine" / "images" / f"{case}.nii.gz", scan(seed))
        write(tmp_path / "mine" / "labels" / f"{case}.nii.gz", label([1]))
    message = refused(tmp_path, monkeypatch, capsys, "folder", tmp_path / "mine")
    assert "2 cases have the name Case, letter case aside" in message


def test_an_empty_folder(tmp_path: Path, monkeypatch, capsys) -> None:
    (tmp_path / "empty").mkdir()
    for name in ("acdc", "la", "msd"):
        assert "does not hold" in refused(tmp_path, monkeypatch, capsys, name, tmp_path / "empty")
    assert "-images images/* matches no file" in refused(tmp_path, monkeypatch, capsys, "folder", tmp_path / "empty")
    assert names(use_raw(tmp_path, monkeypatch)) == []
