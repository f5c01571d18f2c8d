from __future__ import annotations

import json
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given, settings
from hypothesis import strategies as st

from nnssl.data.geometry import geometry_of_image, relate_grids
from nnssl.dataset_conversion.engine import case_files
from nnssl.dataset_conversion.engine.case_files import write_case
from nnssl.dataset_conversion.engine.checks import ConvertedCase, Job, check_case
from nnssl.dataset_conversion.engine.records import SourceRecord
from nnssl.dataset_conversion.engine.sources import ImageFile
from nnssl.errors import EnvironmentProblem
from nnssl.system.files import content_hash
from tests.dataset_conversion.miniatures import ORIGIN, assert_scan, label, names, read, scan, write
from tests.orientations import FILE_SIZES, ORIENTATIONS, SAME, Orientation, image_with_corner, name_of, reorient

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


def checked(case: SourceRecord, job: Job) -> tuple[SourceRecord, ConvertedCase]:
    """Return the case with what the check learned."""
    outcome = check_case(case, job)
    assert outcome.entry is not None, outcome.problems
    return case, outcome.entry


@pytest.mark.parametrize("ending", [".nrrd", ".nii.gz"])
def test_files_and_the_record_of_a_case(tmp_path: Path, job: Job, ending: str) -> None:
    write_case(checked(record(tmp_path, ending), job), job)
    assert names(job.folder) == [".conversion", "imagesTr", "labelsTr"]
    assert names(job.folder / ".conversion") == ["a.json"]
    assert_scan(job.folder / "imagesTr" / "a_0000.nii.gz", scan(0))
    assert_scan(job.folder / "labelsTr" / "a.nii.gz", label([1]))  # at the place of its image
    stored = json.loads((job.folder / ".conversion" / "a.json").read_text())
    assert sorted(stored) == ["inputs", "outputs", "recipe", "values", "voxels"]
    assert stored["outputs"] == {
        name: content_hash(job.folder / name) for name in ("imagesTr/a_0000.nii.gz", "labelsTr/a.nii.gz")
    }


@pytest.mark.parametrize("ending", [".nrrd", ".nii.gz"])
def test_no_file_is_decoded_twice(tmp_path: Path, job: Job, ending: str, monkeypatch: pytest.MonkeyPatch) -> None:
    task = checked(record(tmp_path, ending), job)
    decoded: Counter[str] = Counter()
    original = ImageFile.read

    def count(source: ImageFile) -> Any:
        decoded[source.path.name] += 1
        return original(source)

    monkeypatch.setattr(ImageFile, "read", count)
    write_case(task, job)
    copied = ending == ".nii.gz"  # byte by byte
    assert decoded == ({} if copied else {f"a{ending}": 1}) | {"a_gt.nrrd": 1}


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


@pytest.mark.parametrize("fix_geometry", [False, True])
@pytest.mark.parametrize("size", FILE_SIZES.values(), ids=FILE_SIZES)
@pytest.mark.parametrize("orientation", ORIENTATIONS, ids=name_of)
def test_files_on_other_axes_are_brought_to_the_axes_of_the_image(
    tmp_path: Path, orientation: Orientation, size: tuple[int, ...], fix_geometry: bool
) -> None:
    first, second, reference = (image_with_corner(size) + value for value in (0, 10, 0))
    sitk.WriteImage(first, str(tmp_path / "a_t1.nii.gz"))
    sitk.WriteImage(reorient(second, orientation), str(tmp_path / "a_t2.nii.gz"))
    sitk.WriteImage(reorient(reference, orientation), str(tmp_path / "a_gt.nii.gz"))
    channels = tuple(ImageFile(tmp_path / f"a_{name}.nii.gz") for name in ("t1", "t2"))
    case = SourceRecord("a", channels, "labelled", ImageFile(tmp_path / "a_gt.nii.gz"))
    job = Job(tmp_path, tmp_path / "made", {0: 0, 1: 1, 2: 2}, fix_geometry=fix_geometry, done={})
    notes = check_case(case, job).notes
    assert len(notes) == (0 if orientation == SAME else 2)
    assert all("is brought to its axes" in note for note in notes)
    (job.folder / ".conversion").mkdir(parents=True)
    write_case(checked(case, job), job)
    image = read(job.folder / "imagesTr" / "a_0000.nii.gz")[1]
    for name, expected in (("imagesTr/a_0001", second), ("labelsTr/a", reference)):
        voxels, written = read(job.folder / f"{name}.nii.gz")
        np.testing.assert_array_equal(voxels, sitk.GetArrayFromImage(expected))
        assert relate_grids(geometry_of_image(written), geometry_of_image(image)).is_same
    assert (job.folder / "imagesTr/a_0000.nii.gz").read_bytes() == (tmp_path / "a_t1.nii.gz").read_bytes()


def test_channels_keep_type_and_bytes_where_nothing_must_be_turned(tmp_path: Path, job: Job) -> None:
    """The label is on other axes; the second channel is not, and is copied."""
    images = [scan(seed) for seed in (0, 1)]
    channels = tuple(ImageFile(write(tmp_path / f"a_{n}.nii.gz", array)) for n, array in enumerate(images))
    turned = reorient(sitk.ReadImage(str(write(tmp_path / "gt.nrrd", label([100])))), ORIENTATIONS[-1])
    sitk.WriteImage(turned, str(tmp_path / "gt.nrrd"))
    write_case(checked(SourceRecord("a", channels, "labelled", ImageFile(tmp_path / "gt.nrrd")), job), job)
    for number in (0, 1):
        written = job.folder / "imagesTr" / f"a_{number:04d}.nii.gz"
        assert written.read_bytes() == (tmp_path / f"a_{number}.nii.gz").read_bytes()
    assert_scan(job.folder / "labelsTr" / "a.nii.gz", label([1]))


GRIDS = st.fixed_dictionaries(
    {
        "size": st.tuples(*[st.integers(1, 12)] * 3),
        "spacing": st.tuples(*[st.floats(0.2, 8.0)] * 3),
        "angles": st.tuples(*[st.floats(-3.1, 3.1)] * 3),
        "orientation": st.sampled_from(ORIENTATIONS),
        "fix_geometry": st.booleans(),
        "seed": st.integers(0, 2**32 - 1),
    }
)


def convert_random_case(size, spacing, angles, orientation, fix_geometry, seed) -> None:
    """Convert an image with bright voxels, and their label on other axes; the label must lie on the bright voxels."""
    bright = np.random.default_rng(seed).integers(0, 2, size[::-1], dtype=np.uint8)
    reference = sitk.GetImageFromArray(bright)
    reference.SetSpacing(spacing)
    reference.SetOrigin((-30.5, 12.0, 400.0))
    reference.SetDirection(sitk.Euler3DTransform((0, 0, 0), *angles).GetMatrix())
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sitk.WriteImage(sitk.Cast(reference, sitk.sitkFloat32) * 1000, str(folder / "a.nii.gz"))
        sitk.WriteImage(reorient(reference, orientation), str(folder / "gt.nii.gz"))
        record = SourceRecord("a", (ImageFile(folder / "a.nii.gz"),), "labelled", ImageFile(folder / "gt.nii.gz"))
        job = Job(folder, folder / "made", {0: 0, 1: 1}, fix_geometry=fix_geometry, done={})
        (job.folder / ".conversion").mkdir(parents=True)
        write_case(checked(record, job), job)
        image, label_map = (read(job.folder / file) for file in ("imagesTr/a_0000.nii.gz", "labelsTr/a.nii.gz"))
    np.testing.assert_array_equal(label_map[0], image[0] > 500)
    assert relate_grids(geometry_of_image(label_map[1]), geometry_of_image(image[1])).is_same


@given(GRIDS)
@settings(max_examples=15, deadline=None)
def test_a_random_label_lies_on_its_structure(grid) -> None:
    convert_random_case(**grid)


@pytest.mark.nightly
@given(GRIDS)
@settings(max_examples=200, deadline=None)
def test_many_random_labels_lie_on_their_structures(grid) -> None:
    convert_random_case(**grid)
