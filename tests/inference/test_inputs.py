from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest
import SimpleITK
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

from nnssl.data.read_errors import RIGHT_ANGLES, SHEARED
from nnssl.errors import DataError
from nnssl.inference.inputs import case_of_files, cases_in_folder, cases_of_list, check_cases
from tests.inference.model_for_tests import make_scan, write_scans
from tests.orientations import ORIENTATIONS, SAME, SIZES, image_with_corner, name_of, reorient
from tests.sheared import write_sheared


def write(path: Path, image: SimpleITK.Image) -> Path:
    SimpleITK.WriteImage(image, str(path))
    return path


def check(folder, channels=1):
    check_cases(cases_in_folder(folder, Path("out"), ".nii.gz"), SimpleITKIO, channels)


def test_cases_are_sorted_and_channels_in_order(tmp_path):
    for name in ("b_0001", "b_0000", "a_b_0000", ".hidden_0000"):
        (tmp_path / f"{name}.nii.gz").touch()
    (tmp_path / "notes.txt").touch()
    cases = cases_in_folder(tmp_path, Path("out"), ".nii.gz")
    assert [case.name for case in cases] == ["a_b", "b"]
    assert [file.name for file in cases[1].images] == ["b_0000.nii.gz", "b_0001.nii.gz"]
    assert cases[0].mask == Path("out/a_b.nii.gz")
    assert cases[0].stem == Path("out/a_b")


@pytest.mark.parametrize(
    ("files", "message", "why"),
    [
        ([], "no scans", "CASE_0000.nii.gz"),
        (["notes.txt"], "no scans", "CASE_0000.nii.gz"),
        (["a_0000.nii.gz", "b.nii.gz"], "not named", "b.nii.gz"),
        (["a_0000.nii.gz", "b_0000.mha"], r"^1 image\(s\) have another file ending", "other endings: b_0000.mha"),
        (["a_0000.nii"], "another file ending", "other endings: a_0000.nii"),
        (["a_0000.nii.gz", "B_0000.NII.GZ"], "another file ending", "other endings: B_0000.NII.GZ"),
        (["a.nii.gz", "b.nii"], "another file ending", "other endings: b.nii\nwithout a channel number: a.nii.gz"),
    ],
)
def test_names_that_do_not_fit(tmp_path, files, message, why):
    for name in files:
        (tmp_path / name).touch()
    with pytest.raises(DataError, match=message) as caught:
        cases_in_folder(tmp_path, Path("out"), ".nii.gz")
    assert why in caught.value.why


def test_one_channel_needs_no_channel_number(tmp_path):
    for name in ("a.nii.gz", "b_0000.nii.gz", ".hidden.nii.gz", "notes.txt"):
        (tmp_path / name).touch()
    cases = cases_in_folder(tmp_path, Path("out"), ".nii.gz", files=1)
    assert [(case.name, case.mask) for case in cases] == [
        ("a", Path("out/a.nii.gz")),
        ("b", Path("out/b.nii.gz")),
    ]
    with pytest.raises(DataError, match=r"1 image.*not named"):
        cases_in_folder(tmp_path, Path("out"), ".nii.gz", files=2)


def test_other_endings_among_plain_names_are_named_as_such(tmp_path):
    for name in ("a.nii.gz", "b.nii", "c.mha", "d_0000.nii.gz"):
        (tmp_path / name).touch()
    with pytest.raises(DataError, match=r"^2 image\(s\) have another file ending") as caught:
        cases_in_folder(tmp_path, Path("out"), ".nii.gz", files=1)
    assert caught.value.why == "the model was trained on .nii.gz files; other endings: b.nii, c.mha"
    assert "channel" not in str(caught.value)


def test_a_scan_with_and_without_channel_number_is_two_files_for_one_mask(tmp_path):
    for name in ("a.nii.gz", "a_0000.nii.gz"):
        (tmp_path / name).touch()
    with pytest.raises(DataError, match="two files are the case a") as caught:
        cases_in_folder(tmp_path, Path("out"), ".nii.gz", files=1)
    assert caught.value.why == "a_0000.nii.gz, a.nii.gz"


def test_list_of_scans(tmp_path):
    files = [tmp_path / name for name in ("b_0000.nii.gz", "b_0001.nii.gz", "a.nii.gz", "other/a_0000.nii.gz")]
    files[-1].parent.mkdir()
    for file in files:
        file.touch()
    cases = cases_of_list([files[:2], files[2:3]], tmp_path / "out", ".nii.gz")
    assert [(case.name, len(case.images)) for case in cases] == [("b", 2), ("a", 1)]
    with pytest.raises(DataError, match="stand for several scans") as caught:
        cases_of_list([files[2:3], files[3:]], tmp_path / "out", ".nii.gz")
    assert caught.value.why == "a"


def test_missing_folder_and_missing_file(tmp_path):
    with pytest.raises(DataError, match="folder of scans does not exist"):
        cases_in_folder(tmp_path / "none", Path("out"), ".nii.gz")
    with pytest.raises(DataError, match="scan does not exist"):
        case_of_files([tmp_path / "a_0000.nii.gz"], Path("out"), ".nii.gz")
    (tmp_path / "a_0000.mha").touch()
    with pytest.raises(DataError, match="another file ending"):
        case_of_files([tmp_path / "a_0000.mha"], Path("out"), ".nii.gz")


def test_good_scans_pass(tmp_path):
    write_scans(tmp_path, channels=2)
    check(tmp_path, channels=2)


def test_every_problem_is_named(tmp_path, caplog):
    write_scans(tmp_path, count=7)
    write(tmp_path / "case_1_0001.nii.gz", make_scan(0))
    broken = tmp_path / "case_2_0000.nii.gz"
    broken.write_bytes(broken.read_bytes()[:2000])  # ITK fills what is missing with zeros
    with gzip.open(tmp_path / "case_3_0000.nii.gz", "wt") as file:
        file.write("no image" * 100)
    for case, value in ((4, np.nan), (5, np.inf)):  # ITK reads them as 0
        array = np.ones((5, 6, 7), np.float32)
        array[2, 3, 4] = value
        write(tmp_path / f"case_{case}_0000.nii.gz", SimpleITK.GetImageFromArray(array))
    write(tmp_path / "case_6_0000.nii.gz", SimpleITK.GetImageFromArray(np.zeros((5, 6, 7), np.float32)))
    with pytest.raises(DataError, match=r"^5 problem\(s\)") as caught:
        check(tmp_path)
    channels, *unreadable, nan, inf = caught.value.why.splitlines()
    assert "2 channel(s) in case_1_0000.nii.gz, case_1_0001.nii.gz" in channels
    for number, text in zip((2, 3), unreadable, strict=True):
        assert f"case_{number}_0000.nii.gz cannot be read" in text
    for number, text in ((4, nan), (5, inf)):
        assert f"case_{number}_0000.nii.gz has 1 of 210 voxels that are NaN or infinite" in text
    assert "case_6_0000.nii.gz has the value 0 in every voxel" in caplog.text


@pytest.mark.parametrize("change", [{"shape": (14, 20, 17)}, {"spacing": (0.9, 1.1, 1.7)}])
def test_channels_on_two_grids(tmp_path, change):
    write(tmp_path / "a_0000.nii.gz", make_scan(0))
    write(tmp_path / "a_0001.nii.gz", make_scan(1, **change))
    with pytest.raises(DataError) as caught:
        check(tmp_path, channels=2)
    assert "a_0001.nii.gz has the s" in caught.value.why


@pytest.mark.parametrize("orientation", ORIENTATIONS, ids=name_of)
def test_a_scan_may_have_any_axes_but_its_channels_must_share_them(tmp_path, orientation):
    write(tmp_path / "a_0000.nii.gz", reorient(image_with_corner(SIZES["volume"]), orientation))
    check(tmp_path)
    write(tmp_path / "a_0001.nii.gz", image_with_corner(SIZES["volume"]) + 5)
    if orientation == SAME:
        check(tmp_path, channels=2)
        return
    with pytest.raises(DataError) as caught:
        check(tmp_path, channels=2)
    assert "a_0001.nii.gz lies in the same place as a_0000.nii.gz, but on other axes" in caught.value.why


def test_sheared_axes_get_the_hint_of_the_table(tmp_path):
    path = write_sheared(tmp_path / "a_0000.nii.gz")
    with pytest.raises(DataError) as caught:
        check(tmp_path)
    assert caught.value.why == f"a (test): {path} cannot be read ({SHEARED}): {RIGHT_ANGLES}"
