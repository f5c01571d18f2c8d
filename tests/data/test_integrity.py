from __future__ import annotations

import gzip
import json
import logging
import shlex
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from nnssl.data.integrity import ChannelIntensity, ScanFacts, check_dataset
from nnssl.data.raw import read_raw_dataset
from nnssl.data.read_errors import COPY_AGAIN, RIGHT_ANGLES, SHEARED
from nnssl.errors import DataError
from nnssl.system.files import content_hash
from tests.orientations import ORIENTATIONS, name_of, reorient
from tests.sheared import write_sheared

SHAPE = (5, 6, 7)
SPACING = (2.0, 1.0, 0.5)
CHANNELS = ("0000", "0001")
TRUE_LABEL = np.zeros(SHAPE, np.uint8)
TRUE_LABEL[1:3, 2:4, 2:5] = 1
TRUE_LABEL[3:, 2:4, 2:5] = 2
DUPLICATE = "the same voxels"


def write(
    path: Path,
    array: np.ndarray,
    spacing: tuple[float, ...] = SPACING,
    vector: bool = False,
    **geometry: tuple[float, ...],
) -> None:
    path.parent.mkdir(exist_ok=True)
    image = sitk.GetImageFromArray(array, isVector=vector)
    image.SetSpacing(spacing[::-1])
    for name, value in geometry.items():
        getattr(image, f"Set{name.capitalize()}")(value)
    sitk.WriteImage(image, str(path))


def voxels(seed: int, shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    return np.random.default_rng(seed).normal(100, 20, shape).astype(np.float32)


def vectors() -> np.ndarray:
    return np.stack([voxels(1), voxels(2)], axis=-1)


def edit_json(folder: Path, **changes: object) -> None:
    path = folder / "dataset.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def write_dataset(root: Path) -> Path:
    """Two channels; labelled l1 to l3, unlabelled u1 and u2, test t1."""
    folder = root / "Dataset007_Tiny"
    folder.mkdir()
    parts = {"imagesTr": ("l1", "l2", "l3"), "imagesUn": ("u1", "u2"), "imagesTs": ("t1",)}
    for seed, (part, name) in enumerate((part, name) for part, names in parts.items() for name in names):
        for number, channel in enumerate(CHANNELS):
            write(folder / part / f"{name}_{channel}.nii.gz", voxels(10 * seed + number))
        if part == "imagesTr":
            write(folder / "labelsTr" / f"{name}.nii.gz", TRUE_LABEL)
    (folder / "dataset.json").write_text("{}")
    edit_json(
        folder,
        channel_names={"0": "T1", "1": "T2"},
        labels={"background": 0, "core": 1, "rim": 2},
        numTraining=3,
        file_ending=".nii.gz",
    )
    return folder


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("nnUNet_raw", str(tmp_path))
    return write_dataset(tmp_path)


def check(folder: Path, processes: int = 1, label_cases: list[str] | None = None) -> dict[str, ScanFacts]:
    return check_dataset(read_raw_dataset(folder.name), processes, label_cases).facts


def problems_of(folder: Path) -> list[str]:
    with pytest.raises(DataError) as caught:
        check(folder)
    assert caught.value.exit_code == 3
    assert caught.value.where == str(folder)
    assert caught.value.run
    return caught.value.why.splitlines()


def test_facts_of_a_good_dataset(folder: Path) -> None:
    facts = check(folder)
    assert [(scan.case, scan.kind) for scan in facts.values()] == [
        ("l1", "labelled"),
        ("l2", "labelled"),
        ("l3", "labelled"),
        ("u1", "unlabelled"),
        ("u2", "unlabelled"),
        ("t1", "test"),
    ]
    scan = facts["u1"]
    assert scan.shape == SHAPE
    assert scan.spacing_mm == pytest.approx(SPACING)
    assert scan.orientation == "LPS"
    assert len({scan.content_hash for scan in facts.values()}) == 6
    images = [folder / "imagesUn" / f"u1_{channel}.nii.gz" for channel in CHANNELS]
    assert scan.source_hash == content_hash(*images)
    for number, found in enumerate(scan.intensity):
        true = voxels(30 + number)
        low, high = np.percentile(true, [0.5, 99.5])
        assert (found.mean, found.std) == pytest.approx((true.mean(), true.std()), rel=1e-5)
        assert (found.percentile_00_5, found.percentile_99_5) == pytest.approx((low, high), rel=1e-5)


def test_source_hash_covers_the_label_that_was_read(folder: Path) -> None:
    image_files = [folder / "imagesTr" / f"l1_{channel}.nii.gz" for channel in CHANNELS]
    assert check(folder)["l1"].source_hash == content_hash(*image_files, folder / "labelsTr" / "l1.nii.gz")
    assert check(folder, label_cases=["l2"])["l1"].source_hash == content_hash(*image_files)


def test_intensities_leave_zeros_out(folder: Path) -> None:
    image = voxels(99)
    image[:3] = 0
    write(folder / "imagesUn" / "u1_0000.nii.gz", image)
    write(folder / "imagesUn" / "u2_0001.nii.gz", np.zeros(SHAPE, np.float32))
    facts = check(folder)
    assert facts["u1"].intensity[0].mean == pytest.approx(image[3:].mean(), rel=1e-5)
    assert facts["u2"].intensity[1] == ChannelIntensity(0.0, 0.0, 0.0, 0.0)


def test_workers_find_what_this_process_finds(folder: Path) -> None:
    assert check(folder, processes=2) == check(folder, processes=1)


def test_labels_that_are_not_asked_for_are_never_opened(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

    opened: list[str] = []
    original = SimpleITKIO.read_seg

    def read_seg(self: object, path: str) -> object:
        opened.append(Path(path).name)
        return original(self, path)

    monkeypatch.setattr(SimpleITKIO, "read_seg", read_seg)
    before = check(folder, label_cases=["l2"])
    assert opened == ["l2.nii.gz"]
    (folder / "labelsTr" / "l1.nii.gz").write_bytes(b"not an image")
    (folder / "labelsTr" / "l3.nii.gz").unlink()
    assert check(folder, label_cases=["l2"]) == before
    assert check(folder, label_cases=[])["l2"].content_hash == before["l2"].content_hash
    assert opened == ["l2.nii.gz"] * 2


def test_unknown_label_case(folder: Path) -> None:
    with pytest.raises(DataError, match="not labelled cases") as caught:
        check(folder, label_cases=["l1", "u1"])
    assert caught.value.why == "u1"


def cut(path: Path, share: float = 0.5) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])


def copy_voxels(source: Path, target: Path) -> None:
    """Same voxels, other compressed bytes."""
    target.write_bytes(gzip.compress(gzip.decompress(source.read_bytes()), 1))
    assert target.read_bytes() != source.read_bytes()


def copy_scan(folder: Path, source: str, target: str) -> None:
    for channel in CHANNELS:
        copy_voxels(folder / f"{source}_{channel}.nii.gz", folder / f"{target}_{channel}.nii.gz")


def move_channel(folder: Path) -> None:
    (folder / "imagesUn" / "u1_0001.nii.gz").rename(folder / "imagesUn" / "u1_0002.nii.gz")


def empty_unlabelled(folder: Path) -> None:
    for file in (folder / "imagesUn").iterdir():
        file.unlink()


def with_value(array: np.ndarray, value: float, kind: type = np.float32) -> np.ndarray:
    changed = array.astype(kind)
    changed[0, 0, 0] = value
    return changed


U1, L1, LABEL = "imagesUn/u1_0001.nii.gz", "imagesTr/l1_0000.nii.gz", "labelsTr/l1.nii.gz"
OTHER_SHAPE = (5, 6, 8)
BAD: dict[str, tuple[Callable[[Path], object], tuple[str, ...]]] = {
    "missing channel": (
        lambda f: (f / "imagesTr/l2_0001.nii.gz").unlink(),
        ("l2 (labelled)", "1 channel(s) in l2_0000.nii.gz", "names 2"),
    ),
    "unlabelled scan with another channel count": (
        lambda f: write(f / "imagesUn/u2_0002.nii.gz", voxels(77)),
        ("u2 (unlabelled)", "3 channel(s)", "names 2"),
    ),
    "channel numbers with a gap": (move_channel, ("u1 (unlabelled)", "0000, 0002", "count up from 0000")),
    "cut gzip": (lambda f: cut(f / U1), ("u1 (unlabelled)", U1, "end too early", "copy the file again")),
    "gzip without its last bytes": (lambda f: cut(f / L1, 0.99), ("l1 (labelled)", L1, "cannot be read")),
    "not an image": (lambda f: (f / U1).write_bytes(b"hello"), ("u1 (unlabelled)", U1, "cannot be read")),
    "empty file": (lambda f: (f / U1).write_bytes(b""), ("u1 (unlabelled)", U1, "cannot be read")),
    "the first scan of all is broken": (lambda f: (f / L1).write_bytes(b"hello"), ("l1 (labelled)", L1)),
    "cut label": (lambda f: cut(f / LABEL), ("l1 (labelled)", LABEL, "cannot be read")),
    "channels of two shapes": (
        lambda f: write(f / U1, voxels(5, OTHER_SHAPE)),
        (U1, "5 x 6 x 8", "u1_0000.nii.gz has 5 x 6 x 7", "tolerance 0", "resample"),
    ),
    "channels of two spacings": (
        lambda f: write(f / U1, voxels(5), (2.0, 1.0, 0.501)),
        (U1, "2 x 1 x 0.501 mm", "u1_0000.nii.gz has 2 x 1 x 0.5 mm", "tolerance 1e-05"),
    ),
    "label of another shape": (
        lambda f: write(f / LABEL, np.zeros(OTHER_SHAPE, np.uint8)),
        (LABEL, "5 x 6 x 8", "l1_0000.nii.gz has 5 x 6 x 7"),
    ),
    "label of another spacing": (
        lambda f: write(f / LABEL, TRUE_LABEL, (2.5, 1.0, 0.5)),
        (LABEL, "2.5 x 1 x 0.5 mm", "l1_0000.nii.gz has 2 x 1 x 0.5 mm", "tolerance 0.001"),
    ),
    "channels as a vector image": (
        lambda f: [write(f / U1.replace("u1_0001", "u1_0000"), vectors(), vector=True), (f / U1).unlink()],
        ("u1_0000.nii.gz has 2 spacing(s) for 3 axes", "one file for each channel"),
    ),
    "NaN": (lambda f: write(f / U1, with_value(voxels(1), np.nan)), (U1, "1 of 210 voxels", "NaN or infinite")),
    "infinite": (lambda f: write(f / L1, with_value(voxels(1), -np.inf)), (L1, "1 of 210 voxels", "NaN or infinite")),
    "label 7 of 3": (
        lambda f: write(f / LABEL, with_value(TRUE_LABEL, 7, np.uint8)),
        (LABEL, "values 7 in 1 voxel(s)", "allows 0 to 2"),
    ),
    "label of a half": (
        lambda f: write(f / LABEL, with_value(TRUE_LABEL, 0.5)),
        (LABEL, "not integers 0.5 in 1 voxel(s)"),
    ),
    "label of NaN": (lambda f: write(f / LABEL, with_value(TRUE_LABEL, np.nan)), (LABEL, "1 voxels that are NaN")),
    "missing label": (lambda f: (f / LABEL).unlink(), ("l1 (labelled)", LABEL, "does not exist", "imagesUn")),
    "no background": (lambda f: edit_json(f, labels={"core": 1}), ("background is missing", "must be 0")),
    "numTraining": (lambda f: edit_json(f, numTraining=5), ("numTraining is 5", "3 labelled cases")),
    "names that clash in the preprocessed folder": (
        lambda f: [(f / f"imagesUn/u1_000{c}.nii.gz").rename(f / f"imagesUn/l2_seg_000{c}.nii.gz") for c in (0, 1)],
        ("the cases l2 and l2_seg cannot stand in one data set", "rename one"),
    ),
    "empty imagesUn": (empty_unlabelled, ("imagesUn holds no scans", "remove the folder")),
    "labelled scan again as unlabelled": (
        lambda f: copy_scan(f, "imagesTr/l1", "imagesUn/u1"),
        (DUPLICATE, "l1 (labelled), u1 (unlabelled)", "remove all but one"),
    ),
    "unlabelled scan twice": (
        lambda f: copy_scan(f, "imagesUn/u2", "imagesUn/u1"),
        (DUPLICATE, "u1 (unlabelled), u2 (unlabelled)", "or give them one patient"),
    ),
    "test scan again as labelled": (
        lambda f: copy_scan(f, "imagesTs/t1", "imagesTr/l2"),
        (DUPLICATE, "l2 (labelled), t1 (test)"),
    ),
    "one scan in two folders": (
        lambda f: copy_scan(f, "imagesTr/l2", "imagesUn/l2"),
        ("l2 stands in", "imagesTr and in", "imagesUn", "keep the scan in one folder"),
    ),
    "one name in two folders": (
        lambda f: [write(f / f"imagesTs/u1_{c}.nii.gz", voxels(500 + i)) for i, c in enumerate(CHANNELS)],
        ("u1 stands in", "imagesUn and in", "imagesTs"),
    ),
    "test patient among the unlabelled": (
        lambda f: edit_json(f, cases={"u2": {"patient": "anna"}, "t1": {"patient": "anna"}}),
        ("patient anna is tested with t1 and learned from with u2", "cases"),
    ),
    "test patient among the labelled": (
        lambda f: edit_json(f, cases={"t1": {"patient": "l3"}}),
        ("patient l3 is tested with t1 and learned from with l3",),
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_data_is_one_problem_with_its_repair(folder: Path, name: str) -> None:
    spoil, fragments = BAD[name]
    spoil(folder)
    problems = problems_of(folder)
    assert len(problems) == 1
    for fragment in fragments:
        assert fragment in problems[0]


@pytest.mark.parametrize("file", [U1, L1, LABEL, "imagesTs/t1_0000.nii.gz"])
def test_sheared_axes_get_the_hint_of_the_table(folder: Path, file: str) -> None:
    if file == L1:  # nnU-Net takes the reader that can read the first scan; the second one is the exception here
        file = L1.replace("l1", "l2")
    write_sheared(folder / file)
    (problem,) = problems_of(folder)
    assert problem.endswith(f"{file} cannot be read ({SHEARED}): {RIGHT_ANGLES}")
    assert COPY_AGAIN not in problem


@pytest.mark.parametrize("orientation", [ORIENTATIONS[4], ORIENTATIONS[29]], ids=name_of)
def test_the_command_of_the_error_brings_all_files_to_the_axes_of_the_first_channel(
    folder: Path, orientation: tuple[tuple[int, ...], tuple[bool, ...]]
) -> None:
    from nnssl.cli.convert import main

    write(folder / "labelsTs" / "t1.nii.gz", TRUE_LABEL)
    for file in (U1, LABEL):
        sitk.WriteImage(reorient(sitk.ReadImage(str(folder / file)), orientation), str(folder / file))
    with pytest.raises(DataError) as caught:
        check(folder)
    assert len(caught.value.why.splitlines()) == 2
    assert all("on other axes" in line for line in caught.value.why.splitlines())
    command, explanation = caught.value.run.splitlines()
    assert explanation.endswith("on the axes of its first channel")
    words = shlex.split(command.replace("NEW_ID", "8"))
    assert words[0] == "nnssl_convert"
    assert main(words[1:]) == 0
    made = folder.with_name("Dataset008_Tiny")
    facts = check(made)
    assert set(facts) == {"l1", "l2", "l3", "u1", "u2", "t1"}
    assert (made / "labelsTs" / "t1.nii.gz").is_file()
    for key in ("labels", "channel_names", "numTraining"):
        assert (
            json.loads((made / "dataset.json").read_text())[key]
            == (json.loads((folder / "dataset.json").read_text())[key])
        )
    for number, array in (("_0001", voxels(31)), ("", TRUE_LABEL)):
        file = f"imagesUn/u1{number}.nii.gz" if number else LABEL
        np.testing.assert_array_equal(sitk.GetArrayFromImage(sitk.ReadImage(str(made / file))), array)
    assert {case: scan.content_hash for case, scan in facts.items() if case != "u1"}.items() <= {
        case: scan.content_hash for case, scan in check_original(folder).items()
    }.items()


@pytest.mark.parametrize(
    ("labels", "order", "named"),
    [
        ({"background": 0, "rim": 2, "core": 1}, None, "-label_names core rim -d"),
        ({"background": 0, "core": 1, "rim": 2, "ignore": 3}, None, "-channel T1 T2 -d"),
        ({"background": 0, "all": [1, 2], "core": 1}, [2, 1], "-channel T1 T2 -d"),
        ({"background": 0, "core": 1, "rim": "2"}, None, "-channel T1 T2 -d"),
    ],
)
def test_the_command_names_plain_labels_only(folder: Path, labels: dict, order: list[int] | None, named: str) -> None:
    edit_json(folder, labels=labels, regions_class_order=order)
    sitk.WriteImage(reorient(sitk.ReadImage(str(folder / U1)), ORIENTATIONS[9]), str(folder / U1))
    with pytest.raises(DataError) as caught:
        check(folder)
    assert named in caught.value.run


def check_original(folder: Path) -> dict[str, ScanFacts]:
    """Return the facts of the data set before any file was turned."""
    write(folder / U1, voxels(31))
    write(folder / LABEL, TRUE_LABEL)
    return check(folder)


def test_all_problems_at_once(folder: Path) -> None:
    edit_json(folder, numTraining=1)
    (folder / LABEL).unlink()
    cut(folder / U1)
    write(folder / "imagesTs" / "t1_0000.nii.gz", with_value(voxels(1), np.nan))
    problems = problems_of(folder)
    assert [line.split(":")[0] for line in problems] == [
        "dataset.json",
        "l1 (labelled)",
        "u1 (unlabelled)",
        "t1 (test)",
    ]


def test_long_lists_are_shortened(folder: Path) -> None:
    edit_json(folder, channel_names={"0": "T1"}, labels={"background": 0, "all": 1})
    for number in range(4):
        for index, channel in enumerate(CHANNELS):
            write(folder / "imagesUn" / f"more{number}_{channel}.nii.gz", voxels(200 + 2 * number + index))
    problems = problems_of(folder)
    assert len(problems) == 11
    assert problems[-1] == "… and 3 more"


def test_ignore_label_and_regions_in_files(folder: Path) -> None:
    edit_json(folder, labels={"background": 0, "all": [1, 2], "core": 1, "ignore": 3}, regions_class_order=[2, 1])
    write(folder / LABEL, with_value(TRUE_LABEL, 3, np.uint8))
    assert len(check(folder)) == 6


def test_without_unlabelled_and_test_scans(folder: Path) -> None:
    for part in ("imagesUn", "imagesTs"):
        for file in (folder / part).iterdir():
            file.unlink()
        (folder / part).rmdir()
    assert list(check(folder)) == ["l1", "l2", "l3"]


def test_tiny_rounding_of_spacing_is_no_problem(folder: Path) -> None:
    write(folder / LABEL, TRUE_LABEL, (2.001, 1.0, 0.5))
    assert len(check(folder)) == 6


@pytest.mark.parametrize(
    ("spoil", "fragment"),
    [
        (lambda f: write(f / LABEL, TRUE_LABEL, origin=(0.0, 3.0, 0.0)), "has the origin (0, 3, 0)"),
        (
            lambda f: write(f / U1, voxels(1), direction=(-1.0, 0.0, 0.0, 0.0, -1.0, 0.0, 0.0, 0.0, 1.0)),
            "has the direction (-1, 0,",
        ),
        (lambda f: write(f / LABEL, np.zeros(SHAPE, np.uint8)), "is background only"),
        (lambda f: write(f / U1, np.full(SHAPE, 3.0, np.float32)), "has the value 3 in every voxel"),
        (lambda f: edit_json(f, cases={"typo": {"patient": "a"}}), "1 unknown case(s): typo"),
        (lambda f: (f / "unlabeled").mkdir(), "the folder unlabeled is not read: unlabelled scans stand in imagesUn/"),
    ],
)
def test_oddities_are_logged_only(
    folder: Path, caplog: pytest.LogCaptureFixture, spoil: Callable[[Path], None], fragment: str
) -> None:
    spoil(folder)
    with caplog.at_level(logging.WARNING):
        assert len(check(folder)) == 6
    assert fragment in caplog.text


def test_repeated_scan_of_one_patient_is_logged_only(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    copy_scan(folder, "imagesTr/l1", "imagesTr/l3")
    edit_json(folder, cases={"l1": {"patient": "p"}, "l3": {"patient": "p"}})
    with caplog.at_level(logging.WARNING):
        assert len(check(folder)) == 6
    assert "l1 (labelled), l3 (labelled)" in caplog.text


def test_file_ending_without_a_reader(folder: Path) -> None:
    edit_json(folder, file_ending=".xyz")
    for file in [*folder.glob("images*/*"), *folder.glob("labelsTr/*")]:
        file.rename(file.with_name(file.name.replace(".nii.gz", ".xyz")))
    with pytest.raises(DataError, match="no reader") as caught:
        check(folder)
    assert ".xyz" in caught.value.what


def test_channels_in_one_four_dimensional_file(folder: Path) -> None:
    both = np.stack([voxels(1), voxels(2)])
    (folder / U1).unlink()
    write(folder / "imagesUn" / "u1_0000.nii.gz", both, (1.0, *SPACING))
    scan = check(folder)["u1"]
    assert scan.shape == SHAPE
    assert scan.spacing_mm == pytest.approx(SPACING)
    assert len(scan.intensity) == 2


def test_nibabel_reader_gives_the_same_facts(folder: Path) -> None:
    expected = check(folder)
    edit_json(folder, overwrite_image_reader_writer="NibabelIO")
    found = check(folder)
    assert {case: replace(scan, spacing_mm=()) for case, scan in found.items()} == {
        case: replace(scan, spacing_mm=()) for case, scan in expected.items()
    }
    assert found["l1"].spacing_mm == pytest.approx(expected["l1"].spacing_mm)


def test_flat_pictures_have_no_orientation(folder: Path) -> None:
    for part in ("imagesUn", "imagesTs"):
        for file in (folder / part).iterdir():
            file.unlink()
        (folder / part).rmdir()
    for file in [*(folder / "imagesTr").iterdir(), *(folder / "labelsTr").iterdir()]:
        file.unlink()
    edit_json(folder, channel_names={"0": "grey"}, file_ending=".png", numTraining=1)
    write(folder / "imagesTr" / "a_0000.png", np.arange(30, dtype=np.uint8).reshape(5, 6), (1.0, 1.0))
    write(folder / "labelsTr" / "a.png", np.eye(5, 6, dtype=np.uint8), (1.0, 1.0))
    scan = check(folder)["a"]
    assert (scan.shape, scan.spacing_mm, scan.orientation) == ((1, 5, 6), (999.0, 1.0, 1.0), "")
