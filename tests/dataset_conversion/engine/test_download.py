from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from nnssl.dataset_conversion.engine.checks import ConvertedCase, Job
from nnssl.dataset_conversion.engine.download import check_download, find_repeated
from nnssl.dataset_conversion.engine.records import Found, SourceRecord
from nnssl.dataset_conversion.engine.sources import ImageFile
from nnssl.errors import DataError
from tests.dataset_conversion.miniatures import convert_folder, label, scan, write


def record(folder: Path, case: str, part: str = "unlabelled") -> SourceRecord:
    return SourceRecord(case, (ImageFile(folder / f"{case}.nii.gz"),), part)


@pytest.fixture
def found(tmp_path: Path) -> Found:
    image, reference = write(tmp_path / "a.nii.gz", scan(0)), write(tmp_path / "a_gt.nii.gz", label([1]))
    case = SourceRecord("a", (ImageFile(image),), "labelled", ImageFile(reference))
    return Found((case,), ("CT",), {}, strict=False)


def job(folder: Path, **changes: object) -> Job:
    return dataclasses.replace(Job(folder, folder / "made", {}, False, {}), **changes)


def test_repeated_scans_of_one_patient_are_no_group() -> None:
    entries = {case: ConvertedCase("", voxels, {}) for case, voxels in (("a", "1"), ("b", "1"), ("c", "2"))}
    records = [record(Path(), case) for case in "abc"]
    assert find_repeated(entries, records) == [records[:2]]
    assert find_repeated(entries, [dataclasses.replace(one, patient="p") for one in records]) == []


def test_labels_that_occur_get_names(tmp_path: Path, found: Found) -> None:
    checked = check_download(found, job(tmp_path), False, 1, [])
    assert checked.found.labels == {"background": 0, "label_1": 1}
    assert (list(checked.entries), checked.notes, checked.skipped, checked.left_out) == (["a"], [], {}, [])
    with pytest.raises(DataError, match=r"1 problem\(s\)") as caught:
        check_download(found, job(tmp_path), False, 1, ["a foreign file"])
    assert caught.value.why == "a foreign file"


def test_label_values_that_are_no_class_numbers_name_the_file(world: tuple[Path, Path], capsys) -> None:
    write(world[0] / "labels" / "b.nrrd", label([200]))
    assert convert_folder(world[0]) == 3
    assert f"b, {world[0] / 'labels' / 'b.nrrd'}" in capsys.readouterr().err


def with_broken_scan(folder: Path, found: Found, part: str = "unlabelled") -> Found:
    (folder / "broken.nii.gz").write_bytes(b"no image")
    return dataclasses.replace(found, records=(*found.records, record(folder, "broken", part)))


def test_an_unreadable_scan_is_left_out_on_request_only(tmp_path: Path, found: Found) -> None:
    both = with_broken_scan(tmp_path, found)
    with pytest.raises(DataError) as caught:
        check_download(both, job(tmp_path), False, 1, [])
    assert "--skip_unreadable, which leaves these 1 unlabelled scan(s) out" in caught.value.run
    checked = check_download(both, job(tmp_path, skip_unreadable=True), False, 1, [])
    assert [one.case for one in checked.found.records] == ["a"]
    assert list(checked.skipped) == ["broken"]
    assert "broken.nii.gz is named .gz but is not compressed" in checked.skipped["broken"][0]


@pytest.mark.parametrize("reason", ["a test scan", "converted before"])
def test_other_unreadable_scans_stay_a_problem(tmp_path: Path, found: Found, reason: str) -> None:
    both = with_broken_scan(tmp_path, found, "test" if reason == "a test scan" else "unlabelled")
    done = {"broken": ConvertedCase("", "", {})} if reason == "converted before" else {}
    with pytest.raises(DataError) as caught:
        check_download(both, job(tmp_path, skip_unreadable=True, done=done), False, 1, [])
    assert "--skip_unreadable" not in caught.value.run


def test_unknown_label_values_lead_to_the_option(tmp_path: Path, found: Found) -> None:
    with pytest.raises(DataError) as caught:
        check_download(found, job(tmp_path, values={0: 0}), False, 1, [])
    assert "-label_values says which values stand for" in caught.value.run
