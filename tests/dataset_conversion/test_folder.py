from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.cut_files import CONVERTER_ENDINGS, write_cut
from tests.dataset_conversion.miniatures import (
    ORIGIN,
    assert_scan,
    convert_folder,
    converted,
    label,
    names,
    read,
    refused,
    scan,
    write,
)


@pytest.fixture
def download(tmp_path: Path) -> Path:
    root = tmp_path / "mine"
    for seed, case in enumerate(("a", "b")):
        write(root / "images" / f"{case}.mha", scan(seed))
        write(root / "labels" / f"{case}.nii.gz", label([1, 2], dtype=np.int16))
    write(root / "unlabelled" / "c.nrrd", scan(2, dtype=np.float32))
    write(root / "test" / "d.nii.gz", scan(3))
    return root


def test_the_default_globs(tmp_path: Path, monkeypatch, download: Path) -> None:
    raw = converted(tmp_path, monkeypatch, "folder", download)
    assert (list(raw.labelled), list(raw.unlabelled), list(raw.test)) == (["a", "b"], ["c"], ["d"])
    assert_scan(raw.labelled["b"].images[0], scan(1))
    assert_scan(raw.labelled["b"].label, label([1, 2]))
    assert_scan(raw.unlabelled["c"].images[0], scan(2, dtype=np.float32))
    assert raw.dataset_json["labels"] == {"background": 0, "label_1": 1, "label_2": 2}


def test_globs_with_two_channels_name_the_case(tmp_path: Path, monkeypatch) -> None:
    root = tmp_path / "mine"
    for seed, case in enumerate(("p1", "p2")):
        for offset, channel in enumerate(("t1", "flair")):
            write(root / case / f"scan_{channel}.nii.gz", scan(10 * seed + offset))
        write(root / case / "seg.nii.gz", 100 * label([1]))
    options = [
        "-images",
        "*/scan_t1.nii.gz",
        "*/scan_flair.nii.gz",
        "-labels",
        "*/seg.nii.gz",
        "-channel",
        "T1",
        "FLAIR",
    ]
    raw = converted(
        tmp_path, monkeypatch, "folder", root, *options, "-label_values", "0", "100", "-label_names", "lesion"
    )
    assert list(raw.labelled) == ["p1", "p2"]
    assert raw.channel_names == ["T1", "FLAIR"]
    assert_scan(raw.labelled["p2"].images[1], scan(11))
    assert_scan(raw.labelled["p2"].label, label([1]))
    assert raw.dataset_json["labels"] == {"background": 0, "lesion": 1}


def test_fix_geometry_gives_the_label_the_geometry_of_its_image(tmp_path, monkeypatch, capsys, download: Path) -> None:
    write(download / "labels" / "a.nii.gz", label([1, 2]), origin=(0.0, 0.0, 0.0), spacing=(1.0, 1.0, 1.0))
    message = refused(tmp_path, monkeypatch, capsys, "folder", download)
    assert "labels/a.nii.gz has the spacing 1 x 1 x 1 mm, its image has 1.5 x 1.25 x 8 mm" in message
    assert "labels/a.nii.gz has the origin 0, 0, 0, its image has -12.5, 3, 40" in message
    assert "--fix_geometry" in message
    raw = converted(tmp_path, monkeypatch, "folder", download, "--fix_geometry")
    assert_scan(raw.labelled["a"].label, label([1, 2]))
    assert read(download / "labels" / "a.nii.gz")[1].GetOrigin() != ORIGIN
    assert "a: labels/a.nii.gz gets the geometry of its image" in capsys.readouterr().out


def test_other_sizes_cannot_be_fixed(tmp_path: Path, monkeypatch, capsys, download: Path) -> None:
    write(download / "labels" / "a.nii.gz", label([1, 2], size=(4, 6, 6)))
    message = refused(tmp_path, monkeypatch, capsys, "folder", download, "--fix_geometry")
    assert "labels/a.nii.gz has 6 x 6 x 4 voxels, its image has 5 x 6 x 4" in message


def test_patients_are_found_in_the_names(tmp_path: Path, monkeypatch, capsys) -> None:
    for seed, case in enumerate(("p1_ed", "p1_es", "p2_ed")):
        write(tmp_path / "mine" / "images" / f"{case}.nii.gz", scan(seed))
        write(tmp_path / "mine" / "labels" / f"{case}.nii.gz", label([1]))
    message = refused(tmp_path, monkeypatch, capsys, "folder", tmp_path / "mine", "-patient", "p1|q")
    assert message == "p2_ed: -patient p1|q finds nothing in this name"
    raw = converted(tmp_path, monkeypatch, "folder", tmp_path / "mine", "-patient", r"p\d")
    assert raw.patients() == {"p1_ed": "p1", "p1_es": "p1", "p2_ed": "p2"}


def test_missing_partners(tmp_path: Path, monkeypatch, capsys, download: Path) -> None:
    (download / "labels" / "b.nii.gz").unlink()
    message = refused(tmp_path, monkeypatch, capsys, "folder", download)
    first, second = message.splitlines()
    assert first == "b: the image images/b.mha expects a label that matches labels/b.*"
    assert second.startswith("-labels labels/* matches the labels of a: * must stand for the same text")


def test_same_voxels(tmp_path: Path, monkeypatch, capsys, download: Path) -> None:
    option = "--same_scans_are_one_patient"
    write(download / "unlabelled" / "e.mha", scan(0))
    assert "voxels are in a, e: remove all but one" in refused(
        tmp_path, monkeypatch, capsys, "folder", download, option
    )
    write(download / "unlabelled" / "e.mha", scan(2, dtype=np.float32))
    assert f"c, e: remove all but one, or add {option}" in refused(tmp_path, monkeypatch, capsys, "folder", download)
    raw = converted(tmp_path, monkeypatch, "folder", download, option)
    assert raw.patients()["e"] == raw.patients()["c"] == "c"
    assert json.loads((raw.folder / "conversion.json").read_text())["cases"]["e"]["inputs"].keys() == {
        "unlabelled/e.mha"
    }


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["-channel", "a", "b", "-images", "images/*"], "1 glob(s) for 2 channel(s)"),
        (["-label_values", "0", "1", "1"], "repeats a value"),
        (["-label_values", "0", "1", "-label_names", "x", "y"], "2 name(s) for 2 -label_values"),
        (["-labels", "/labels/*"], "empty or absolute"),
        (["-test", ""], "empty or absolute"),
    ],
)
def test_wrong_options(world: tuple[Path, Path], capsys, options: list[str], expected: str) -> None:
    source, folder = world
    assert convert_folder(source, *options) == 2
    assert expected in capsys.readouterr().err
    assert not folder.exists()


def test_two_channels_need_no_other_globs(world: tuple[Path, Path]) -> None:
    source, folder = world
    for seed, case in enumerate("abc"):
        write(source / "second" / f"{case}.nrrd", scan(10 + seed))
    assert convert_folder(source, "-channel", "a", "b", "-images", "images/*", "second/*") == 0
    assert len(names(folder / "imagesTr")) == 6


def test_a_given_glob_that_matches_nothing_is_named(world: tuple[Path, Path], capsys) -> None:
    assert convert_folder(world[0], "-test", "tset/*") == 3
    assert "-test tset/* matches no file" in capsys.readouterr().err


def test_dots_in_a_name_belong_to_it(tmp_path: Path, monkeypatch, capsys) -> None:
    root = tmp_path / "mine"
    for seed, case in enumerate(("1.2.840.1", "1.2.840.2")):
        write(root / "images" / f"{case}.nii.gz", scan(seed))
        write(root / "labels" / f"{case}.nii.gz", label([1, 2], dtype=np.int16))
    globs = ["-images", "images/*.nii.gz", "-labels", "labels/*.nii.gz"]
    assert list(converted(tmp_path, monkeypatch, "folder", root, *globs).labelled) == ["1.2.840.1", "1.2.840.2"]


def test_names_that_differ_after_a_dot_are_never_paired(tmp_path: Path, monkeypatch, capsys) -> None:
    root = tmp_path / "mine"
    write(root / "images" / "two.1.nii.gz", scan(1))
    write(root / "labels" / "two.7.nii.gz", label([1, 2], dtype=np.int16))
    globs = ["-images", "images/*.nii.gz", "-labels", "labels/*.nii.gz"]
    message = refused(tmp_path, monkeypatch, capsys, "folder", root, *globs)
    assert "two.1: the image images/two.1.nii.gz expects a label that matches labels/two.1.nii.gz" in message
    assert "-labels labels/*.nii.gz matches the labels of two.7" in message


def test_an_open_glob_leaves_the_ending_out_of_the_name(tmp_path: Path, monkeypatch) -> None:
    root = tmp_path / "mine"
    for seed, (case, ending) in enumerate({"pat01": ".nii.gz", "pat02": ".nii"}.items()):
        write(root / "scans" / f"{case}_img{ending}", scan(seed))
        write(root / "scans" / f"{case}_mask.nii.gz", label([1, 2], dtype=np.int16))
    globs = ["-images", "scans/*_img.nii*", "-labels", "scans/*_mask.nii*"]
    raw = converted(tmp_path, monkeypatch, "folder", root, *globs)
    assert list(raw.labelled) == ["pat01", "pat02"]
    assert_scan(raw.labelled["pat02"].images[0], scan(1))


def test_both_spellings_of_the_folder_of_unlabelled_scans(tmp_path: Path, monkeypatch, download: Path) -> None:
    (download / "unlabelled").rename(download / "unlabeled")
    for options in ([], ["-unlabeled", "unlabeled/*.nrrd"]):
        assert list(converted(tmp_path, monkeypatch, "folder", download, *options).unlabelled) == ["c"]


def test_names_that_nnunet_would_mix_up(tmp_path: Path, monkeypatch, capsys, download: Path) -> None:
    (download / "unlabelled" / "c.nrrd").rename(download / "unlabelled" / "a_seg.nrrd")
    assert "the cases a and a_seg cannot stand in one data set" in refused(
        tmp_path, monkeypatch, capsys, "folder", download
    )


def test_a_label_without_an_image(tmp_path: Path, monkeypatch, capsys, download: Path) -> None:
    (download / "images" / "b.mha").unlink()
    message = refused(tmp_path, monkeypatch, capsys, "folder", download)
    assert message.startswith("b: the label labels/b.nii.gz belongs to no image: * must stand for")


def test_channel_numbers_in_the_names_of_images_only(tmp_path: Path, monkeypatch, capsys, download: Path) -> None:
    for case in ("a", "b"):
        (download / "images" / f"{case}.mha").rename(download / "images" / f"{case}_0000.mha")
    message = refused(tmp_path, monkeypatch, capsys, "folder", download)
    assert "-images 'images/*_0000.mha' leaves the channel number out of the name" in message
    raw = converted(tmp_path, monkeypatch, "folder", download, "-images", "images/*_0000.mha")
    assert list(raw.labelled) == ["a", "b"]


def test_a_glob_of_labels_that_matches_nothing_is_one_problem(tmp_path, monkeypatch, capsys, download: Path) -> None:
    message = refused(tmp_path, monkeypatch, capsys, "folder", download, "-labels", "masks/*")
    assert message.startswith("-labels masks/* matches no file")
    assert "expects a label" not in message


def test_labels_beside_the_images_are_no_images(tmp_path: Path, monkeypatch) -> None:
    root = tmp_path / "mine"
    for seed, (case, ending) in enumerate({"pat01": ".nii.gz", "pat02": ".nii"}.items()):
        write(root / "scans" / f"{case}{ending}", scan(seed))
        write(root / "scans" / f"{case}_mask{ending}", label([1, 2]))
    globs = ["-images", "scans/*.nii*", "-labels", "scans/*_mask.nii*"]
    raw = converted(tmp_path, monkeypatch, "folder", root, *globs)
    assert list(raw.labelled) == ["pat01", "pat02"]
    assert names(raw.folder / "imagesTr") == ["pat01_0000.nii.gz", "pat02_0000.nii.gz"]


def test_globs_that_match_labels_only(tmp_path: Path, monkeypatch, capsys, download: Path) -> None:
    message = refused(tmp_path, monkeypatch, capsys, "folder", download, "-images", "labels/*")
    assert "-images labels/* matches no file but labels" in message


def test_several_globs_of_one_channel(tmp_path: Path, monkeypatch) -> None:
    root = tmp_path / "mine"
    for seed, (site, ending) in enumerate((("a", ".nii"), ("b", ".nii.gz"))):
        write(root / site / f"{site}1_img{ending}", scan(seed))
        write(root / site / f"{site}1_mask.nii.gz", label([1]))
        write(root / site / f"{site}2_new{ending}", scan(10 + seed))
    options = ["-images", "a/*_img.nii*", "b/*_img.nii*", "-labels", "a/*_mask.*", "b/*_mask.*"]
    raw = converted(tmp_path, monkeypatch, "folder", root, *options, "-unlabelled", "a/*_new.*", "b/*_new.*")
    assert (list(raw.labelled), list(raw.unlabelled)) == (["a1", "b1"], ["a2", "b2"])


def test_several_globs_of_two_channels(tmp_path: Path, monkeypatch, capsys) -> None:
    root = tmp_path / "mine"
    for seed, site in enumerate("ab"):
        for offset, channel in enumerate(("t1", "t2")):
            write(root / site / f"{site}1_{channel}.nii", scan(10 * seed + offset))
        write(root / "labels" / f"{site}1.nii.gz", label([1]))
    options = ["-images", "a/*_t1.nii", "a/*_t2.nii", "b/*_t1.nii", "b/*_t2.nii"]
    message = refused(tmp_path, monkeypatch, capsys, "folder", root, *options)
    assert "a1_t1.nii and a1_t2.nii would both be the case a1" in message
    assert "name the channels with -channel" in message
    raw = converted(tmp_path, monkeypatch, "folder", root, *options, "-channel", "T1", "T2")
    assert_scan(raw.labelled["b1"].images[1], scan(11))


def test_a_channel_that_is_missing_is_named(tmp_path: Path, monkeypatch, capsys, download: Path) -> None:
    write(download / "second" / "a.mha", scan(10))
    options = ["-images", "images/*.mha", "second/*.mha", "-channel", "T1", "T2"]
    message = refused(tmp_path, monkeypatch, capsys, "folder", download, *options)
    assert "b: no file matches -images second/b.mha" in message


def test_default_folders_of_two_channels_are_named(world: tuple[Path, Path], capsys) -> None:
    source, _ = world
    for seed, case in enumerate("abc"):
        write(source / "second" / f"{case}.nrrd", scan(10 + seed))
    write(source / "unlabelled" / "u.nrrd", scan(20))
    assert convert_folder(source, "-channel", "a", "b", "-images", "images/*", "second/*") == 0
    assert "warning: unlabelled/ is left out: with 2 channels give -unlabelled one glob a channel" in (
        capsys.readouterr().out
    )


def test_labels_of_test_scans(tmp_path: Path, monkeypatch, capsys, download: Path) -> None:
    write(download / "test_labels" / "d.nrrd", label([1]))
    raw = converted(tmp_path, monkeypatch, "folder", download)
    assert_scan(raw.folder / "labelsTs" / "d.nii.gz", label([1]))
    write(download / "test" / "e.nii.gz", scan(5))
    write(download / "truth" / "d_gt.nrrd", label([2]))
    raw = converted(tmp_path, monkeypatch, "folder", download, "-test_labels", "truth/*_gt.nrrd")
    assert_scan(raw.folder / "labelsTs" / "d.nii.gz", label([2]))
    assert "warning: 1 test case(s) have no label: e" in capsys.readouterr().out


def test_everything_that_is_left_out_is_named(world: tuple[Path, Path], capsys) -> None:
    source, _ = world
    write(source / "unlabelled scans" / "u.nrrd", scan(9))
    (source / "patients.csv").write_text("a,1")
    (source / "images" / "notes.txt").write_text("three scans")
    assert convert_folder(source, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["left_out"] == [
        str(source / name) for name in ("images/notes.txt", "patients.csv", "unlabelled scans/u.nrrd")
    ]
    assert found["notes"] == [
        "left out: patients.csv",
        "left out: images/notes.txt",
        "left out: the folder unlabelled scans with 1 file(s)",
    ]


def test_a_tiff_volume_has_its_voxel_size_beside_it(tmp_path: Path, monkeypatch, capsys) -> None:
    root = tmp_path / "mine"
    for seed, case in enumerate("ab"):
        for folder, array in (("images", scan(seed, dtype=np.uint16)), ("labels", label([1]))):
            write(root / folder / f"{case}.tif", array)
            (root / folder / f"{case}.json").write_text(json.dumps({"spacing": [4.0, 2.0, 1.0]}))
    raw = converted(tmp_path, monkeypatch, "folder", root)
    assert read(raw.labelled["b"].images[0])[1].GetSpacing() == (1.0, 2.0, 4.0)
    assert "TIFF" not in capsys.readouterr().out
    write(root / "unlabelled" / "u.tif", scan(7, dtype=np.uint16))
    converted(tmp_path, monkeypatch, "folder", root)
    assert "warning: 1 TIFF volume(s) have no file with their voxel size, u.json for example" in capsys.readouterr().out


@pytest.mark.parametrize("ending", CONVERTER_ENDINGS)
@pytest.mark.parametrize("place", ["images", "labels", "unlabelled"])
def test_files_that_end_too_early(tmp_path: Path, monkeypatch, capsys, download: Path, ending: str, place: str) -> None:
    name = "c" if place == "unlabelled" else "a"
    for old in (download / place).glob(f"{name}.*"):
        old.unlink()
    write_cut(download / place / f"{name}{ending}", label([1, 2]))
    message = refused(tmp_path, monkeypatch, capsys, "folder", download)
    assert f"{name}: {place}/{name}." in message
    assert "copy the file again from its source" in message
