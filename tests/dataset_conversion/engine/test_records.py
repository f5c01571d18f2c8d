from __future__ import annotations

from pathlib import Path

from nnssl.dataset_conversion.engine.records import Found, SourceRecord
from nnssl.dataset_conversion.engine.sources import Frame, ImageFile

IMAGE, LABEL, CINE = (Path(name) for name in ("a.nii", "a_gt.nii", "a_4d.nii"))


def test_every_file_of_a_record_comes_once() -> None:
    record = SourceRecord("a", (Frame(CINE, 0), Frame(CINE, 1), ImageFile(IMAGE)), "labelled", ImageFile(LABEL))
    assert record.files() == [CINE, IMAGE, LABEL]
    assert len(record.sources()) == 4
    assert SourceRecord("a", (ImageFile(IMAGE),), "unlabelled").files() == [IMAGE]


def test_a_case_without_a_patient_is_its_own_patient() -> None:
    assert SourceRecord("a", (), "test").person == "a"
    assert SourceRecord("a", (), "test", patient="p").person == "p"


def test_allowed_values_are_those_of_labels_and_regions() -> None:
    assert Found((), ("CT",), {"background": 0, "whole": (1, 2), "core": (2,)}).allowed_values() == {0: 0, 1: 1, 2: 2}
    assert Found((), ("CT",), {"background": 0, "LA": 1}, label_values={0: 0, 255: 1}).allowed_values() == {
        0: 0,
        255: 1,
    }
    assert Found((), ("CT",), {}).allowed_values() == {}
