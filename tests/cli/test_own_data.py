"""A user's own scans and pictures through the commands: names, folders, globs, broken files, labels of test scans."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk

from nnssl.cli.convert import main as convert
from nnssl.cli.plan_and_preprocess import main as plan
from tests.dataset_conversion.miniatures import label, names, scan, stock_check, write

FOLDER = "Dataset070_Folder"
PICTURE = (40, 48)
PLAN = ["-d", "70", "-hardware", "cpu", "-np", "1", "-npfp", "1"]


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("nnUNet_raw", "nnUNet_preprocessed"):
        (tmp_path / name).mkdir()
        monkeypatch.setenv(name, str(tmp_path / name))
    return tmp_path


@pytest.fixture
def mine(root: Path) -> Path:
    """Write two labelled and three unlabelled scans."""
    folder = root / "mine"
    for seed, case in enumerate("ab"):
        write(folder / "images" / f"{case}.nii.gz", scan(seed))
        write(folder / "labels" / f"{case}.nii.gz", label([1]))
    for seed in range(3):
        write(folder / "unlabelled" / f"u{seed}.nii.gz", scan(10 + seed))
    return folder


def run(folder: Path, *options: str) -> int:
    return convert(["folder", "-i", str(folder), "-d", "70", "-np", "1", *options])


def raw(root: Path) -> Path:
    return root / "nnUNet_raw" / FOLDER


def answer(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])
    return found


# ---------------------------------------------------------------------- names


@pytest.mark.parametrize("place", ["images", "unlabelled"])
def test_convert_refuses_names_that_nnunet_would_mix_up(root: Path, mine: Path, capsys, place: str) -> None:
    write(mine / place / "a_seg.nii.gz", scan(20))
    if place == "images":
        write(mine / "labels" / "a_seg.nii.gz", label([1]))
    assert run(mine) == 3
    assert "the cases a and a_seg cannot stand in one data set" in capsys.readouterr().err
    assert not raw(root).exists()


@pytest.mark.parametrize(("images", "budget"), [("imagesTr", []), ("imagesUn", []), ("imagesTr", ["-labelled", "2"])])
def test_planning_refuses_names_that_nnunet_would_mix_up(
    root: Path, mine: Path, capsys, images: str, budget: list[str]
) -> None:
    """With a label budget the case is a hidden one: its preprocessed scan lies beside those of imagesUn."""
    assert run(mine) == 0
    write(raw(root) / images / "a_seg_0000.nii.gz", scan(20))
    if images == "imagesTr":
        write(raw(root) / "labelsTr" / "a_seg.nii.gz", label([1]))
        description = json.loads((raw(root) / "dataset.json").read_text())
        (raw(root) / "dataset.json").write_text(json.dumps(description | {"numTraining": 3}))
    assert plan([*PLAN, *budget]) == 3
    assert "the cases a and a_seg cannot stand in one data set" in capsys.readouterr().err
    assert not list((root / "nnUNet_preprocessed").rglob("*.b2nd"))


def test_unique_names_of_scanners_are_case_names(root: Path) -> None:
    folder = root / "mine"
    for seed in (1, 2):
        write(folder / "images" / f"1.2.840.{seed}.nii.gz", scan(seed))
        write(folder / "labels" / f"1.2.840.{seed}.nii.gz", label([1]))
        write(folder / "unlabelled" / f"1.2.840.7.{seed}.nii", scan(10 + seed))
    assert run(folder) == 0
    assert names(raw(root) / "labelsTr") == ["1.2.840.1.nii.gz", "1.2.840.2.nii.gz"]
    assert names(raw(root) / "imagesUn") == ["1.2.840.7.1_0000.nii.gz", "1.2.840.7.2_0000.nii.gz"]


@pytest.mark.parametrize("options", [[], ["-images", "images/*.nii.gz", "-labels", "labels/*.nii.gz"]])
def test_names_that_differ_after_a_dot_are_never_paired(root: Path, capsys, options: list[str]) -> None:
    write(root / "mine" / "images" / "two.1.nii.gz", scan(1))
    write(root / "mine" / "labels" / "two.7.nii.gz", label([1]))
    assert run(root / "mine", *options) == 3
    err = capsys.readouterr().err
    assert "two.1: the image images/two.1.nii.gz expects a label that matches labels/two.1." in err
    assert "matches the labels of two.7" in err


# ---------------------------------------------------------------------- folders and globs


@pytest.mark.parametrize("name", ["unlabelled", "unlabeled", "Unlabeled"])
def test_both_spellings_of_the_folder(root: Path, mine: Path, capsys, name: str) -> None:
    (mine / "unlabelled").rename(mine / name)
    assert run(mine) == 0
    out = capsys.readouterr().out
    assert "2 labelled, 3 unlabelled" in out
    assert "warning" not in out


@pytest.mark.parametrize("flag", ["-unlabelled", "-unlabeled"])
def test_both_spellings_of_the_flag(root: Path, mine: Path, capsys, flag: str) -> None:
    (mine / "unlabelled").rename(mine / "more")
    assert run(mine, flag, "more/*") == 0
    assert "3 unlabelled" in capsys.readouterr().out


def test_no_unlabelled_scans_and_the_folder_left_out_are_said(root: Path, mine: Path, capsys) -> None:
    (mine / "unlabelled").rename(mine / "scans without labels")
    assert run(mine) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "note: left out: the folder scans without labels with 3 file(s)" in lines
    (warning,) = (line for line in lines if line.startswith("warning: "))
    assert warning.startswith("warning: no unlabelled scans: semi-supervised methods need some; put them into")


def test_planning_names_the_folder_that_is_not_read(root: Path, mine: Path, caplog) -> None:
    assert run(mine) == 0
    (raw(root) / "imagesUn").rename(raw(root) / "unlabeled")
    assert plan([*PLAN, "--no_pp"]) in (0, 3)
    assert "the folder unlabeled is not read: unlabelled scans stand in imagesUn/" in caplog.text


def test_the_label_that_an_image_expects_is_said(root: Path, capsys) -> None:
    for seed, case in enumerate(("pat01", "pat02")):
        write(root / "mine" / "scans" / f"{case}.nii.gz", scan(seed))
        write(root / "mine" / "scans" / f"{case}_seg1.nii.gz", label([1]))
    options = ["-images", "scans/pat??.nii*", "-labels"]
    assert run(root / "mine", *options, "scans/*_mask.nii*") == 3
    assert "-labels scans/*_mask.nii* matches no file" in capsys.readouterr().err
    write(root / "mine" / "scans" / "pat01_mask.nii.gz", label([1]))
    assert run(root / "mine", "-images", "scans/*.nii*", "-labels", "scans/*_mask.nii*") == 3
    err = capsys.readouterr().err
    assert "pat02: the image scans/pat02.nii.gz expects a label that matches scans/pat02_mask.nii*" in err
    assert "pat01: the image" not in err
    assert err.index("pat02_seg1: ") < err.index("-labels scans/*_mask.nii* matches the labels of pat01: *")


def test_mixed_endings_and_open_globs(root: Path) -> None:
    for seed, (case, ending) in enumerate({"pat01": ".nii.gz", "pat02": ".nii", "pat03": ".nrrd"}.items()):
        write(root / "mine" / "scans" / f"{case}{ending}", scan(seed))
        write(root / "mine" / "scans" / f"{case}_mask.nii{'' if seed else '.gz'}", label([1]))
    globs = ["-images", "scans/*.n*", "-labels", "scans/*_mask.nii*"]
    assert run(root / "mine", *globs) == 0
    assert names(raw(root) / "imagesTr") == [f"pat0{number}_0000.nii.gz" for number in (1, 2, 3)]
    assert names(raw(root) / "labelsTr") == [f"pat0{number}.nii.gz" for number in (1, 2, 3)]


# ---------------------------------------------------------------------- broken scans, test labels, one labelled case


def test_an_unreadable_unlabelled_scan_is_left_out_on_request(root: Path, mine: Path, capsys) -> None:
    broken = mine / "unlabelled" / "u1.nii.gz"
    broken.write_bytes(broken.read_bytes()[:-30])
    assert run(mine) == 3
    err = capsys.readouterr().err
    assert "or add --skip_unreadable, which leaves these 1 unlabelled scan(s) out" in err
    assert "download" not in err
    assert not raw(root).exists()
    assert run(mine, "--skip_unreadable", "--json") == 0
    found = answer(capsys)
    why = found["skipped"]["u1"][0]
    assert "unlabelled/u1.nii.gz is cut off" in why
    assert found["warnings"] == [f"left out by --skip_unreadable: {why}"]
    assert (found["unlabelled"], found["converted"]) == (2, 4)
    assert names(raw(root) / "imagesUn") == ["u0_0000.nii.gz", "u2_0000.nii.gz"]
    assert list(json.loads((raw(root) / "conversion.json").read_text())["skipped"]) == ["u1"]
    write(broken, scan(11))
    assert run(mine, "--skip_unreadable", "--json") == 0
    found = answer(capsys)
    assert (found["skipped"], found["unlabelled"], found["converted"], found["kept"]) == ({}, 3, 1, 4)


@pytest.mark.parametrize("place", ["images", "labels", "test"])
def test_other_unreadable_files_are_never_left_out(root: Path, mine: Path, capsys, place: str) -> None:
    path = write(mine / "test" / "a.nii.gz" if place == "test" else mine / place / "a.nii.gz", label([1]))
    if place == "test":
        path = path.rename(path.with_name("t.nii.gz"))
    path.write_bytes(path.read_bytes()[:-30])
    assert run(mine, "--skip_unreadable") == 3
    err = capsys.readouterr().err
    assert f"{place}/{path.name} is cut off" in err
    assert "add --skip_unreadable" not in err


@pytest.mark.parametrize("options", [[], ["-test_labels", "test_labels/*"]])
def test_labels_of_test_scans_are_taken(root: Path, mine: Path, capsys, options: list[str]) -> None:
    write(mine / "test" / "t.nii.gz", scan(30))
    write(mine / "test_labels" / "t.nii.gz", label([1]))
    assert run(mine, *options) == 0
    assert "1 test cases" in capsys.readouterr().out
    assert names(raw(root) / "labelsTs") == ["t.nii.gz"]
    write(mine / "test_labels" / "other.nii.gz", label([1]))
    assert run(mine, *options) == 3
    assert "other: the label test_labels/other.nii.gz belongs to no image" in capsys.readouterr().err


def test_one_labelled_case_is_a_warning(root: Path, mine: Path, capsys) -> None:
    for place in ("images", "labels"):
        (mine / place / "b.nii.gz").unlink()
    assert run(mine) == 0
    assert "warning: only one labelled case, a: nnssl learns from this case and validates on it" in (
        capsys.readouterr().out
    )


def test_messages_about_own_data_do_not_speak_of_a_download(root: Path, mine: Path, capsys) -> None:
    (mine / "labels" / "a.nii.gz").write_bytes(b"no label")
    for folder in (mine, root / "nowhere"):
        assert run(folder) in (2, 3)
        assert "download" not in capsys.readouterr().err


# ---------------------------------------------------------------------- pictures


def write_picture(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(sitk.GetImageFromArray(pixels, isVector=pixels.ndim == 3), str(path))


def write_pictures(folder: Path, ending: str, colours: int) -> dict[str, np.ndarray]:
    """Write four labelled and two unlabelled pictures of a bright square; return the pixels."""
    pictures = {}
    mask = np.zeros(PICTURE, np.uint8)
    mask[10:30, 12:30] = 255
    for seed, case in enumerate(("a", "b", "c", "d", "u", "v")):
        noise = np.random.default_rng(seed).integers(0, 80, (*PICTURE, colours))
        pictures[case] = (noise + mask[..., None] // 2).astype(np.uint8)
        place = "unlabelled" if case in "uv" else "images"
        write_picture(folder / place / f"{case}{ending}", pictures[case][..., 0] if colours == 1 else pictures[case])
        if place == "images":
            write_picture(folder / "labels" / f"{case}.png", mask)
    return pictures


@pytest.mark.parametrize(("ending", "colours"), [(".png", 3), (".png", 1), (".tif", 3), (".jpg", 3)])
def test_pictures_make_a_two_dimensional_data_set(root: Path, monkeypatch, capsys, ending: str, colours: int) -> None:
    pictures = write_pictures(root / "mine", ending, colours)
    assert run(root / "mine", "-label_values", "0", "255", "-label_names", "square") == 0
    assert "4 labelled, 2 unlabelled" in capsys.readouterr().out
    description = json.loads((raw(root) / "dataset.json").read_text())
    assert description["file_ending"] == ".png"
    assert list(description["channel_names"].values()) == (["image"] if colours == 1 else ["R", "G", "B"])
    found = sitk.GetArrayFromImage(sitk.ReadImage(str(raw(root) / "imagesUn" / "v_0000.png")))
    if ending != ".jpg":
        np.testing.assert_array_equal(found.reshape(*PICTURE, colours), pictures["v"])
    mask = sitk.GetArrayFromImage(sitk.ReadImage(str(raw(root) / "labelsTr" / "a.png")))
    assert (mask.shape, mask.sum(), mask.max()) == (PICTURE, 20 * 18, 1)
    stock_check(raw(root).absolute(), monkeypatch)
    assert plan(PLAN) == 0
    (plans,) = (root / "nnUNet_preprocessed").rglob("nnUNetPlans.json")
    assert list(json.loads(plans.read_text())["configurations"]) == ["2d"]
    assert run(root / "mine", "-label_values", "0", "255", "-label_names", "square", "--json") == 0
    assert answer(capsys)["kept"] == 6


@pytest.mark.parametrize("options", [[], ["-label_names", "square"]])
def test_masks_with_grey_values_lead_to_the_option_with_one_error(root: Path, capsys, options: list[str]) -> None:
    write_pictures(root / "mine", ".png", 3)
    assert run(root / "mine", *options) == 3
    err = capsys.readouterr().err
    assert err.count("error: ") == err.count("run: ") == 1
    assert "-label_values" in err.partition("run: ")[2]
    assert not raw(root).exists()


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["-channel", "red", "green"], 2, "-channel has 2 names, colour images have 3 channels in one file"),
        (["-channel", "r", "g", "b"], 0, "4 labelled"),
    ],
)
def test_names_of_colours(root: Path, capsys, options: list[str], code: int, message: str) -> None:
    write_pictures(root / "mine", ".png", 3)
    assert run(root / "mine", "-label_values", "0", "255", *options) == code
    assert message in "".join(capsys.readouterr())


def test_pictures_and_volumes_need_two_data_sets(root: Path, capsys) -> None:
    write_pictures(root / "mine", ".png", 1)
    write(root / "mine" / "unlabelled" / "volume.nii.gz", scan(1))
    assert run(root / "mine", "-label_values", "0", "255") == 3
    assert (
        "volume: unlabelled/volume.nii.gz holds 5x6x4 voxels, the first image is a picture: images with two axes"
        in (capsys.readouterr().err)
    )


def test_images_of_two_axes_in_other_formats_become_one_slice(root: Path) -> None:
    for seed, case in enumerate("ab"):
        for place, array in (("images", scan(seed, (6, 5))), ("labels", label([1])[0])):
            (root / "mine" / place).mkdir(parents=True, exist_ok=True)
            sitk.WriteImage(sitk.GetImageFromArray(array), str(root / "mine" / place / f"{case}.mha"))
    assert run(root / "mine") == 0
    assert sitk.ReadImage(str(raw(root) / "imagesTr" / "a_0000.nii.gz")).GetSize() == (5, 6, 1)


def test_planning_refuses_names_of_files_beside_tiff_masks(root: Path, capsys) -> None:
    """The voxel size of the mask `summary.tif` would replace the scores in `summary.json`."""
    for seed, case in enumerate(("a", "summary")):
        for place, array in ((f"imagesTr/{case}_0000", scan(seed)), (f"labelsTr/{case}", label([1]))):
            write(raw(root) / f"{place}.tif", array.astype(np.uint16))
    description = {"channel_names": {"0": "MR"}, "labels": {"background": 0, "core": 1}, "numTraining": 2}
    (raw(root) / "dataset.json").write_text(json.dumps({**description, "file_ending": ".tif"}))
    assert plan(PLAN) == 3
    assert "the case summary cannot have this name" in capsys.readouterr().err
