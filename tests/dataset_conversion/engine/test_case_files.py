from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nnssl.dataset_conversion.engine import case_files
from nnssl.dataset_conversion.engine.case_files import write_case
from nnssl.dataset_conversion.engine.checks import ConvertedCase, Job
from nnssl.dataset_conversion.engine.records import SourceRecord
from nnssl.dataset_conversion.engine.sources import ImageFile
from nnssl.errors import EnvironmentProblem
from nnssl.system.files import content_hash
from tests.dataset_conversion.miniatures import ORIGIN, assert_scan, label, names, read, scan, write

ENTRY = ConvertedCase("recipe", "voxels", {})


@pytest.fixture
def job(tmp_path: Path) -> Job:
    folder = tmp_path / "made"
    (folder / ".conversion").mkdir(parents=True)
    return Job(tmp_path, folder, {0: 0, 100: 1}, fix_geometry=True, done={})


def record(folder: Path, ending: str) -> SourceRecord:
    """Write an image, and a label in another place."""
    image = write(folder / f"a{ending}", scan(0))
    reference = write(folder / "a_gt.nrrd", label([100]), origin=(1.0, 2.0, 3.0))
    return SourceRecord("a", (ImageFile(image),), "labelled", ImageFile(reference))


@pytest.mark.parametrize("ending", [".nrrd", ".nii.gz"])
def test_files_and_the_record_of_a_case(tmp_path: Path, job: Job, ending: str) -> None:
    write_case((record(tmp_path, ending), ENTRY), job)
    assert names(job.folder) == [".conversion", "imagesTr", "labelsTr"]
    assert names(job.folder / ".conversion") == ["a.json"]
    assert_scan(job.folder / "imagesTr" / "a_0000.nii.gz", scan(0))
    assert_scan(job.folder / "labelsTr" / "a.nii.gz", label([1]))  # at the place of its image
    stored = json.loads((job.folder / ".conversion" / "a.json").read_text())
    assert stored["outputs"] == {
        name: content_hash(job.folder / name) for name in ("imagesTr/a_0000.nii.gz", "labelsTr/a.nii.gz")
    }


@pytest.mark.parametrize("ending", [".nrrd", ".nii.gz"])
def test_no_file_is_decoded_twice(tmp_path: Path, job: Job, ending: str, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: Counter[str] = Counter()
    original = ImageFile.read

    def count(source: ImageFile) -> Any:
        decoded[source.path.name] += 1
        return original(source)

    monkeypatch.setattr(ImageFile, "read", count)
    write_case((record(tmp_path, ending), ENTRY), job)
    assert decoded == {f"a{ending}": 1, "a_gt.nrrd": 1}


def test_without_fix_geometry_a_label_stays_in_its_place(tmp_path: Path, job: Job) -> None:
    own = Job(job.source, job.folder, job.values, fix_geometry=False, done={})
    write_case((record(tmp_path, ".nii.gz"), ENTRY), own)
    np.testing.assert_allclose(read(job.folder / "labelsTr" / "a.nii.gz")[1].GetOrigin(), (1, 2, 3))
    np.testing.assert_allclose(read(job.folder / "imagesTr" / "a_0000.nii.gz")[1].GetOrigin(), ORIGIN)


def test_unlabelled_and_test_cases_have_folders_of_their_own(tmp_path: Path, job: Job) -> None:
    image = ImageFile(write(tmp_path / "a.nii.gz", scan(0)))
    write_case((SourceRecord("u", (image, image), "unlabelled"), ENTRY), job)
    write_case((SourceRecord("t", (image,), "test"), ENTRY), job)
    assert names(job.folder / "imagesUn") == ["u_0000.nii.gz", "u_0001.nii.gz"]
    assert names(job.folder / "imagesTs") == ["t_0000.nii.gz"]
    assert not (job.folder / "labelsTs").exists()


def test_a_write_that_falls_short_is_a_full_disk(tmp_path: Path, job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(case_files, "_unpacked_bytes", lambda _: 400)
    with pytest.raises(EnvironmentProblem, match="could not be written") as caught:
        write_case((record(tmp_path, ".nrrd"), ENTRY), job)
    assert "No space left" in caught.value.why
    assert names(job.folder / "imagesTr") == names(job.folder / ".conversion") == []
