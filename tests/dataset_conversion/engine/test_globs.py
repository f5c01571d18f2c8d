from __future__ import annotations

from pathlib import Path

import pytest

from nnssl.dataset_conversion.engine.globs import expected_files, match_files, merge_matches


@pytest.mark.parametrize(
    ("file", "glob", "case"),
    [
        ("images/a.nii.gz", "images/*", "a"),
        ("images/1.2.840.nii.gz", "images/*", "1.2.840"),
        ("images/1.2.840.nii.gz", "images/*.nii*", "1.2.840"),
        ("images/1.2.840.nii.gz", "images/*.*", "1.2.840"),
        ("images/a.nii", "images/*_mask.nii*", None),
        ("images/a_mask.nii.gz", "images/*_mask.nii*", "a"),
        ("p1/t1.nii.gz", "*/t1.nii.gz", "p1"),
        ("p1/s2/t1.nii.gz", "*/*/t1.nii.gz", "p1_s2"),
        ("p1/s2/t1.nii.gz", "**/t1.nii.gz", "p1_s2"),
        ("images/a1.nii.gz", "images/a?.nii.gz", "1"),
        ("images/a1.nii.gz", "images/a[0-3].nii.gz", "1"),
        ("images/a1.nii.gz", "images/a[!0-3].nii.gz", None),
        ("images/a1.nii.gz", "images/[ab]*.nii.gz", "a_1"),
        ("images/one.nii.gz", "images/one.nii.gz", "one"),
        ("images/a.PNG", "images/*", "a"),
        ("images/.hidden.nii", "images/*", None),
        ("images/readme.txt", "images/*", None),
        ("images/a.json", "images/*", None),
    ],
)
def test_what_a_glob_matches_names_the_case(tmp_path: Path, file: str, glob: str, case: str | None) -> None:
    path = tmp_path / file
    path.parent.mkdir(parents=True)
    path.touch()
    problems: list[str] = []
    assert match_files(tmp_path, glob, problems) == ({case: path} if case else {})
    assert problems == []


@pytest.mark.parametrize(
    ("header", "voxels"), [("a.mhd", "a.raw"), ("a.mhd", "a.zraw"), ("a.nhdr", "a.raw.gz"), ("a.hdr", "a.img")]
)
def test_a_header_and_its_voxels_are_one_image(tmp_path: Path, header: str, voxels: str) -> None:
    for name in (header, voxels, "b.img"):
        (tmp_path / name).touch()
    problems: list[str] = []
    assert match_files(tmp_path, "*", problems) == {"a": tmp_path / header, "b": tmp_path / "b.img"}
    assert problems == []


def test_two_files_of_one_case(tmp_path: Path) -> None:
    for name in ("a.nii", "a.nii.gz"):
        (tmp_path / name).touch()
    problems: list[str] = []
    match_files(tmp_path, "*", problems)
    assert [text.split(":")[0] for text in problems] == ["a.nii and a.nii.gz would both be the case a"]
    assert list(match_files(tmp_path, "*", problems, {tmp_path / "a.nii"}).values()) == [tmp_path / "a.nii.gz"]
    assert len(problems) == 1


def test_the_same_file_twice_is_no_problem() -> None:
    found, problems = {"a": Path("a.nii")}, []
    merge_matches(found, {"a": Path("a.nii"), "b": Path("b.nii")}, problems)
    assert (list(found), problems) == (["a", "b"], [])


@pytest.mark.parametrize(
    ("globs", "expected"),
    [
        (["scans/*_mask.nii*"], "scans/p_mask.nii*"),
        (["labels/*"], "labels/p.*"),
        (["*/seg.nii.gz"], "p/seg.nii.gz"),
        (["a/*.nii", "b/*_gt.nii.gz"], "a/p.nii or b/p_gt.nii.gz"),
        (["*/*/seg.nii"], "*/*/seg.nii"),
        (["a?/*.nii"], "a?/*.nii"),
        (["v1.2/*.nii.gz"], "v1.2/p.nii.gz"),
    ],
)
def test_the_name_that_a_file_should_have(globs: list[str], expected: str) -> None:
    assert expected_files(globs, "p") == expected
