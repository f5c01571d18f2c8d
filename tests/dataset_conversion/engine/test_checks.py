from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from nnssl.data.read_errors import RIGHT_ANGLES, SHEARED
from nnssl.dataset_conversion.engine.checks import (
    Job,
    check_case,
    recipe_of,
)
from nnssl.dataset_conversion.engine.records import SourceRecord
from nnssl.dataset_conversion.engine.sources import ImageFile
from tests.dataset_conversion.miniatures import (
    ORIGIN,
    SPACING,
    label,
    scan,
    write,
)
from tests.sheared import write_sheared

SOURCE = Path("download")


def record(case: str, **changes: Any) -> SourceRecord:
    image = ImageFile(SOURCE / f"{case}.nii.gz")
    return SourceRecord(**{"case": case, "channels": (image,), "part": "labelled", **changes})


def job(folder: Path, **changes: Any) -> Job:
    settings = {"values": {0: 0, 1: 1}, "fix_geometry": False, "done": {}}
    return Job(folder, folder / "made", **{**settings, **changes})


def labelled(folder: Path, **geometry: Any) -> SourceRecord:
    """Write an image and a label with another geometry."""
    image, reference = write(folder / "a.nii.gz", scan(0)), write(folder / "a_gt.nii.gz", label([1]), **geometry)
    return record("a", channels=(ImageFile(image),), label=ImageFile(reference))


def test_the_entry_of_a_good_case(tmp_path: Path) -> None:
    outcome = check_case(labelled(tmp_path), job(tmp_path))
    assert (outcome.problems, outcome.notes) == ([], [])
    assert outcome.entry is not None
    assert outcome.entry.values == (0, 1)
    assert set(outcome.entry.inputs) == {"a.nii.gz", "a_gt.nii.gz"}
    assert outcome.entry.outputs == {}


@pytest.mark.parametrize("inside", [True, False])
@pytest.mark.parametrize(
    ("quantity", "values", "step"),
    [("spacing", SPACING, 1e-3 * SPACING[0]), ("origin", ORIGIN, 0.01 * min(SPACING))],
)
def test_limits_of_the_geometry_are_those_of_the_other_checks(
    tmp_path: Path, quantity: str, values: tuple[float, ...], step: float, inside: bool
) -> None:
    moved = (values[0] + (0.95 if inside else 1.05) * step, *values[1:])
    found = labelled(tmp_path, **{quantity: moved})
    problems = check_case(found, job(tmp_path)).problems
    assert [f"has the {quantity}" in text for text in problems] == ([] if inside else [True])
    fixed = check_case(found, job(tmp_path, fix_geometry=True))
    assert fixed.problems == []
    assert fixed.notes == ([] if inside else ["a: a_gt.nii.gz gets the geometry of its image (--fix_geometry)"])


def test_another_size_cannot_be_fixed(tmp_path: Path) -> None:
    found = labelled(tmp_path)
    write(tmp_path / "a_gt.nii.gz", label([1], size=(4, 6, 7)), origin=(0, 0, 0))
    for fix in (False, True):
        (problem,) = check_case(found, job(tmp_path, fix_geometry=fix)).problems
        assert problem == "a: a_gt.nii.gz has 7 x 6 x 4 voxels, its image has 5 x 6 x 4"


TURNED = (0.0, 1.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, -1.0)


@pytest.mark.parametrize("fix_geometry", [False, True])
@pytest.mark.parametrize("origin", [ORIGIN, (0.0, 0.0, 0.0)])
def test_another_direction_is_never_fixed(tmp_path: Path, fix_geometry: bool, origin: tuple[float, ...]) -> None:
    """The axes are those of the image, some of them reversed, but the first voxel is not at another corner."""
    found = labelled(tmp_path, direction=TURNED, origin=origin)
    outcome = check_case(found, job(tmp_path, fix_geometry=fix_geometry))
    assert outcome.entry is None
    assert len(outcome.problems) == (1 if origin == ORIGIN else 2)
    for problem in outcome.problems:
        assert problem.endswith("correct the header that is wrong, or resample the file to the grid of the image")
        assert "--fix_geometry" not in problem


@pytest.mark.parametrize("part", ["channel", "label"])
@pytest.mark.parametrize("ending", [".nii.gz", ".mha", ".nrrd"])
def test_sheared_axes_are_refused_with_the_hint_of_the_table(tmp_path: Path, part: str, ending: str) -> None:
    good = labelled(tmp_path)
    bad = write_sheared(tmp_path / f"bad{ending}")
    changes = {"channels": (ImageFile(bad),)} if part == "channel" else {"label": ImageFile(bad)}
    (problem,) = check_case(dataclasses.replace(good, **changes), job(tmp_path)).problems
    assert problem.startswith(f"a: bad{ending} can")
    assert problem.endswith(f"({SHEARED}): {RIGHT_ANGLES}")


def test_channels_are_compared_with_the_first_one(tmp_path: Path) -> None:
    first = ImageFile(write(tmp_path / "a_t1.nii.gz", scan(0)))
    second = ImageFile(write(tmp_path / "a_t2.nii.gz", scan(1), origin=(0.0, 0.0, 0.0)))
    (problem,) = check_case(record("a", channels=(first, second)), job(tmp_path, fix_geometry=True)).problems
    assert problem.startswith("a: a_t2.nii.gz has the origin 0, 0, 0, its image has")
    assert "--fix_geometry" not in problem


def test_a_completed_case_is_not_decoded(tmp_path: Path, monkeypatch) -> None:
    found, task = labelled(tmp_path), job(tmp_path)
    outcome = check_case(found, task)
    assert outcome.entry is not None
    written = write(task.folder / "imagesTr" / "a.nii.gz", scan(0))
    from nnssl.system.files import content_hash

    done = dataclasses.replace(outcome.entry, outputs={"imagesTr/a.nii.gz": content_hash(written)})
    monkeypatch.setattr(ImageFile, "read", lambda _: pytest.fail("the file was decoded"))
    assert check_case(found, job(tmp_path, done={"a": done})).entry == done


def test_the_recipe_changes_with_everything_that_decides_the_files(tmp_path: Path) -> None:
    one, inputs = record("a"), {"a.nii.gz": "1"}
    recipes = [
        recipe_of(one, job(SOURCE), inputs),
        recipe_of(record("b"), job(SOURCE), inputs),
        recipe_of(record("a", patient="p"), job(SOURCE), inputs),
        recipe_of(one, job(SOURCE, fix_geometry=True), inputs),
        recipe_of(one, job(SOURCE, values={0: 0}), inputs),
        recipe_of(one, job(SOURCE), {"a.nii.gz": "2"}),
    ]
    assert len(set(recipes)) == len(recipes)
    assert recipe_of(one, dataclasses.replace(job(SOURCE), folder=tmp_path), inputs) == recipes[0]
    # Another value would convert the data sets of all users again.
    assert recipes[0] == "82789950bc8ffbff01fb297323aa59b3048bcad328e7cc981f1d0df2d14ca092"
    # An older rule of --fix_geometry could mirror a label: cases that it wrote must be converted again.
    assert recipes[3] != "d39c275868a263e454b0e5ea5d490432d2b93c24de10f957c3a60732bd1542e2"
