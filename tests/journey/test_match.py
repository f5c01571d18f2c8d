from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from nnssl.errors import DataError, UsageError
from nnssl.journey.match import PARTS, collect, find_files, own_name, pair_names

NONE: dict[str, list[Path]] = {part: [] for part in PARTS}


def paths(*names: str) -> list[Path]:
    return [Path("/data") / name for name in names]


@pytest.mark.parametrize(
    ("images", "labels", "cases"),
    [
        (["p1.nii.gz", "p2.nii.gz"], ["m/p1.nii.gz", "m/p2.nii.gz"], ["p1", "p2"]),
        (["p1_T1.nii.gz", "p2_T1.nii.gz"], ["p1_seg.nii.gz", "p2_seg.nii.gz"], ["p1", "p2"]),
        (["img_07.nii", "img_12.nii"], ["label_07.nrrd", "label_12.nrrd"], ["07", "12"]),
        (["1/t1.nii.gz", "10/t1.nii.gz"], ["1/mask.nii.gz", "10/mask.nii.gz"], ["1", "10"]),
        (["a/scan.nii.gz", "b/scan.nii.gz"], ["x/a.nii.gz", "x/b.nii.gz"], ["a", "b"]),
        (["c_0000.nii.gz", "d_0000.nii.gz"], ["c.nii.gz", "d.nii.gz"], ["c", "d"]),
        (["pat1.nii.gz", "pat10.nii.gz"], ["pat10.nii.gz", "pat1.nii.gz"], ["pat1", "pat10"]),
    ],
)
def test_masks_find_their_scans(images: list[str], labels: list[str], cases: list[str]) -> None:
    found = pair_names("labels", paths(*images), paths(*labels))
    assert [case for case, _ in found.values()] == cases
    expected = sorted(labels, key=lambda name: next(n for n, case in enumerate(cases[::-1]) if case in name))[::-1]
    assert [label for _, label in found.values()] == paths(*expected)


def test_a_lonely_scan_becomes_unlabelled_and_a_lonely_mask_is_left_out() -> None:
    images, labels = paths("a_T1.nii.gz", "b_T1.nii.gz", "c_T1.nii.gz"), paths("a_s.nii.gz", "b_s.nii.gz", "z_s.nii.gz")
    found = collect(NONE | {"images": images, "labels": labels, "unlabelled": paths("u.nii.gz")})
    assert set(found.files) == {
        "images/a.nii.gz", "labels/a.nii.gz", "images/b.nii.gz", "labels/b.nii.gz",
        "unlabelled/c_T1.nii.gz", "unlabelled/u.nii.gz",
    }  # fmt: skip
    assert found.files["unlabelled/c_T1.nii.gz"] == images[2]
    assert found.notes[1:] == [
        "c_T1.nii.gz has no mask: it becomes an unlabelled scan",
        "z_s.nii.gz is left out: no scan belongs to this mask",
    ]


def test_names_that_do_not_fit_are_an_error() -> None:
    with pytest.raises(DataError) as caught:
        pair_names("labels", paths("alpha.nii.gz", "beta.nii.gz"), paths("7.nii.gz", "8.nii.gz"))
    assert (caught.value.exit_code, caught.value.what) == (3, "2 of 2 scans find no mask by name")
    assert "alpha, beta" in caught.value.why


def test_equal_names_get_numbers_and_odd_characters_go() -> None:
    parts = NONE | {"images": paths("a b.nii.gz"), "labels": paths("m/a b.nii.gz"), "test": paths("t/a_b.nii.gz")}
    assert list(collect(parts).files) == ["images/a_b.nii.gz", "labels/a_b.nii.gz", "test/a_b-2.nii.gz"]


def test_test_masks_have_the_name_of_their_scan() -> None:
    parts = NONE | {
        "images": paths("a.nii.gz"), "labels": paths("m/a.nii.gz"),
        "test": paths("new1.nii.gz", "new2.nii.gz"), "test_labels": paths("new1-truth.nii.gz", "new2-truth.nii.gz"),
    }  # fmt: skip
    files = collect(parts).files
    assert files["test/new2.nii.gz"] == Path("/data/new2.nii.gz")
    assert files["test_labels/new2.nii.gz"] == Path("/data/new2-truth.nii.gz")


def test_one_file_with_two_parts_is_an_error() -> None:
    parts = NONE | {"images": paths("a.nii.gz"), "labels": paths("m/a.nii.gz"), "unlabelled": paths("a.nii.gz")}
    with pytest.raises(DataError, match="a file has two parts"):
        collect(parts)


def test_files_globs_and_folders(tmp_path: Path) -> None:
    for name in ("b.nii.gz", "a.nii.gz", "notes.txt", ".hidden.nii.gz"):
        (tmp_path / name).touch()
    both = [tmp_path / "a.nii.gz", tmp_path / "b.nii.gz"]
    assert find_files("-images", [str(tmp_path)]) == both
    assert find_files("-images", [f"{tmp_path}/*"]) == both
    assert find_files("-images", [f"{tmp_path}/b.nii.gz", f"{tmp_path}/a*", f"{tmp_path}/b.nii.gz"]) == both[::-1]


@pytest.mark.parametrize("text", ["nothing*", "notes.txt", "x.mhd"])
def test_no_image_is_an_error(tmp_path: Path, text: str) -> None:
    for name in ("notes.txt", "x.mhd"):
        (tmp_path / name).touch()
    with pytest.raises(UsageError) as caught:
        find_files("-images", [str(tmp_path / text)])
    assert text in caught.value.where


def test_equal_file_names_are_told_apart_by_their_folders() -> None:
    listed = paths("x/one/t1.nii.gz", "x/two/t1.nii.gz")
    assert own_name(listed[1], listed) == "two/t1"


def test_folders_of_one_name_at_several_levels() -> None:
    listed = paths("a/x/a/t1.nii.gz", "a/y/a/t1.nii.gz")
    assert [own_name(path, listed) for path in listed] == ["x/a/t1", "y/a/t1"]


def test_files_that_differ_in_the_ending_alone_are_an_error() -> None:
    listed = paths("t1.nii.gz", "t1.nrrd")
    with pytest.raises(DataError, match="one name but for the ending"):
        own_name(listed[0], listed)


def test_the_script_links_what_the_call_links(tmp_path: Path) -> None:
    images, labels = ([tmp_path / part / "it's 1.nii.gz"] for part in ("in", "masks"))
    for path in (*images, *labels):
        path.parent.mkdir()
        path.write_text(path.parent.name)
    found = collect(NONE | {"images": images, "labels": labels})
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "collect.sh").write_text(found.script())
    subprocess.run(["sh", str(tmp_path / "made" / "collect.sh")], check=True)
    old = tmp_path / "own" / "images" / "old.nii.gz"
    old.parent.mkdir(parents=True)
    old.symlink_to(images[0])
    found.link(tmp_path / "own")
    links = [
        {path.relative_to(folder): path.readlink() for path in folder.rglob("*") if path.is_symlink()}
        for folder in (tmp_path / "made" / "scans", tmp_path / "own")
    ]
    assert links[0] == links[1] == {Path("images/it_s_1.nii.gz"): images[0], Path("labels/it_s_1.nii.gz"): labels[0]}
