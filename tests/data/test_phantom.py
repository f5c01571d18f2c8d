from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from nnssl.data import phantom
from nnssl.data.integrity import check_dataset, shift_warnings
from nnssl.data.phantom import LABELS, PhantomScan, phantom_scan, write_phantom
from nnssl.data.raw import read_raw_dataset
from nnssl.data.scanners import SCANNERS, reimage
from nnssl.errors import EnvironmentProblem, UsageError

SMALL = (16, 20, 20)


def read(path: Path) -> np.ndarray:
    import SimpleITK as sitk

    return sitk.GetArrayFromImage(sitk.ReadImage(str(path)))


@pytest.fixture(scope="module")
def scans() -> list[PhantomScan]:
    return [phantom_scan([0, number], [0, number, 1]) for number in range(12)]


def test_layout(tmp_path: Path) -> None:
    folder = write_phantom(tmp_path, 901, labelled=2, unlabelled=3, test=1, shape=SMALL)
    assert folder == tmp_path / "Dataset901_Phantom"
    assert sorted(str(path.relative_to(folder)) for path in folder.rglob("*.*")) == [
        "dataset.json",
        "imagesTr/labelled_001_0000.nii.gz",
        "imagesTr/labelled_002_0000.nii.gz",
        "imagesTs/test_001_0000.nii.gz",
        "imagesUn/unlabelled_001_0000.nii.gz",
        "imagesUn/unlabelled_002_0000.nii.gz",
        "imagesUn/unlabelled_003_0000.nii.gz",
        "labelsTr/labelled_001.nii.gz",
        "labelsTr/labelled_002.nii.gz",
        "labelsTs/test_001.nii.gz",
    ]
    assert [path.name for path in tmp_path.iterdir()] == [folder.name]
    described = json.loads((folder / "dataset.json").read_text())
    assert described["numTraining"] == 2
    assert described["labels"] == LABELS


def test_it_passes_the_check_and_is_homogeneous(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("nnUNet_raw", str(tmp_path))
    write_phantom(tmp_path, 5, labelled=5, unlabelled=14, test=5, shape=SMALL)
    raw = read_raw_dataset(5)
    facts = check_dataset(raw, 1).facts
    assert len(facts) == 24
    assert shift_warnings(facts) == []
    assert {scan.orientation for scan in facts.values()} == {"RAS"}
    second = raw.unlabelled["unlabelled_006"]
    assert second.patient == raw.labelled["labelled_001"].patient
    assert raw.unlabelled["unlabelled_012"].patient == raw.labelled["labelled_002"].patient
    assert len(set(raw.patients().values())) == 5 + 12


def test_files_hold_the_scan(tmp_path: Path) -> None:
    folder = write_phantom(tmp_path, 901, labelled=1, unlabelled=0, test=0, shape=SMALL, seed=4)
    scan = phantom_scan([4, 0, 1], [4, 0, 1, 1], SMALL)
    assert np.array_equal(read(folder / "imagesTr" / "labelled_001_0000.nii.gz"), scan.image)
    assert np.array_equal(read(folder / "labelsTr" / "labelled_001.nii.gz"), scan.label)
    assert sorted(path.name for path in folder.iterdir()) == ["dataset.json", "imagesTr", "labelsTr"]


def test_same_seed_same_bytes_whatever_the_number_of_cases(tmp_path: Path) -> None:
    few = write_phantom(tmp_path, 1, labelled=1, unlabelled=1, test=1, shape=SMALL, seed=3)
    more = write_phantom(tmp_path, 2, labelled=2, unlabelled=2, test=2, shape=SMALL, seed=3)
    other = write_phantom(tmp_path, 3, labelled=1, unlabelled=1, test=1, shape=SMALL, seed=4)
    files = [path.relative_to(few) for path in few.rglob("*.nii.gz")]
    assert len(files) == 5
    for file in files:
        assert (few / file).read_bytes() == (more / file).read_bytes()
        assert (few / file).read_bytes() != (other / file).read_bytes()


def test_every_structure_is_in_every_scan(scans: list[PhantomScan]) -> None:
    for scan in scans:
        assert scan.image.shape == scan.label.shape
        counts = np.bincount(scan.label.ravel(), minlength=4)
        assert len(counts) == 4
        assert counts[1:].min() > 100
        assert counts[0] > 0.9 * counts.sum()
        assert scan.image.min() >= 0


def test_scans_vary(scans: list[PhantomScan]) -> None:
    assert len({scan.image.shape for scan in scans}) > 6
    for axis, mean in enumerate(phantom.SHAPE):
        sizes = [scan.image.shape[axis] for scan in scans]
        assert 0.89 * mean <= min(sizes) < max(sizes) <= 1.11 * mean
    for axis, mean_mm in enumerate(phantom.SPACING_MM):
        spacings = [scan.spacing_mm[axis] for scan in scans]
        assert 0.899 * mean_mm <= min(spacings) < max(spacings) <= 1.101 * mean_mm
    contrasts = [scan.image[scan.label == 1].mean() / scan.image[scan.label == 2].mean() for scan in scans]
    assert max(contrasts) > 1.3 * min(contrasts)


def test_two_scans_of_a_patient_differ_in_looks_only(scans: list[PhantomScan]) -> None:
    def volumes(scan: PhantomScan) -> np.ndarray:
        return np.bincount(scan.label.ravel(), minlength=4)[1:] / scan.label.size

    again = [phantom_scan([0, number], [0, number, 2]) for number in range(12)]
    first, second = np.array([volumes(scan) for scan in scans]), np.array([volumes(scan) for scan in again])
    assert all(not np.array_equal(one.image, two.image) for one, two in zip(scans, again, strict=True))

    def agreement(one: np.ndarray, two: np.ndarray) -> float:
        return float(np.mean([np.corrcoef(one[:, k], two[:, k])[0, 1] for k in range(3)]))

    assert agreement(first, second) > 0.6
    assert agreement(first, np.roll(second, 1, axis=0)) < 0.4


def test_thresholds_do_not_find_the_structures(scans: list[PhantomScan]) -> None:
    """Even the best interval of normalised intensities, chosen with the labels, is no segmentation."""
    images = np.concatenate([((scan.image - scan.image.mean()) / scan.image.std()).ravel() for scan in scans])
    labels = np.concatenate([scan.label.ravel() for scan in scans])
    edges = np.linspace(images.min(), images.max(), 60)
    dice = []
    for structure in (1, 2, 3):
        hits = np.histogram(images[labels == structure], edges)[0]
        found = np.histogram(images, edges)[0]
        best = max(
            2 * hits[low:high].sum() / (found[low:high].sum() + hits.sum())
            for low in range(len(hits))
            for high in range(low + 1, len(hits) + 1)
        )
        dice.append(best)
    assert max(dice) < 0.7
    assert np.mean(dice) < 0.5


def test_an_existing_dataset_is_kept(tmp_path: Path) -> None:
    folder = write_phantom(tmp_path, 9, labelled=1, unlabelled=0, test=0, shape=SMALL)
    before = (folder / "dataset.json").stat().st_mtime_ns
    with pytest.raises(UsageError, match="exists") as caught:
        write_phantom(tmp_path, 9, labelled=2, unlabelled=0, test=0, shape=SMALL)
    assert "--overwrite" in caught.value.run
    assert (folder / "dataset.json").stat().st_mtime_ns == before
    with pytest.raises(UsageError, match="taken by Dataset009_Phantom"):
        write_phantom(tmp_path, 9, name="Other", labelled=1, shape=SMALL, overwrite=True)


def test_overwrite_replaces_the_whole_phantom(tmp_path: Path) -> None:
    write_phantom(tmp_path, 9, labelled=2, unlabelled=1, test=0, shape=SMALL)
    folder = write_phantom(tmp_path, 9, labelled=1, unlabelled=0, test=0, shape=SMALL, overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == [folder.name]
    assert not (folder / "imagesUn").exists()
    assert len(list((folder / "imagesTr").iterdir())) == 1


@pytest.mark.parametrize("content", ['{"labels": {}}', "[]", "no json", None])
def test_overwrite_spares_data_that_are_no_phantom(tmp_path: Path, content: str | None) -> None:
    folder = tmp_path / "Dataset009_Phantom"
    folder.mkdir()
    (folder / "precious").write_text("x")
    if content is not None:
        (folder / "dataset.json").write_text(content)
    with pytest.raises(UsageError, match="not a phantom"):
        write_phantom(tmp_path, 9, labelled=1, shape=SMALL, overwrite=True)
    assert (folder / "precious").read_text() == "x"


def test_nothing_stays_of_a_write_that_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_phantom(tmp_path, 9, labelled=1, unlabelled=0, test=0, shape=SMALL)
    content = (folder / "dataset.json").read_text()

    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(phantom, "_write_volume", full)
    with pytest.raises(EnvironmentProblem, match="could not be written") as caught:
        write_phantom(tmp_path, 9, labelled=2, unlabelled=0, test=0, shape=SMALL, overwrite=True)
    assert "No space left" in caught.value.why
    assert [path.name for path in tmp_path.iterdir()] == [folder.name]
    assert (folder / "dataset.json").read_text() == content


def test_the_old_phantom_comes_back_when_the_new_one_cannot_take_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_phantom(tmp_path, 9, labelled=1, unlabelled=0, test=0, shape=SMALL)
    rename = Path.rename

    def refuse(self: Path, target: Path) -> Path:
        if self.name == "new":
            raise PermissionError(13, "Permission denied")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(EnvironmentProblem, match="could not be written"):
        write_phantom(tmp_path, 9, labelled=2, unlabelled=0, test=0, shape=SMALL, overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == [folder.name]
    assert json.loads((folder / "dataset.json").read_text())["numTraining"] == 1


def test_root_below_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(EnvironmentProblem, match="could not be written"):
        write_phantom(tmp_path / "file" / "raw", 1, labelled=1, unlabelled=0, test=0, shape=SMALL)


@pytest.mark.parametrize(
    ("changes", "fragment"),
    [
        ({"dataset_id": 0}, "-d 0"),
        ({"dataset_id": 1000}, "-d 1000"),
        ({"name": "a/b"}, "-n a/b"),
        ({"name": ""}, "-n "),
        ({"labelled": 0}, "-labelled 0"),
        ({"unlabelled": -1}, "-unlabelled -1"),
        ({"test": -1}, "-test -1"),
        ({"seed": -1}, "-seed -1"),
        ({"shape": (40, 48, 8)}, "-shape 40 48 8"),
        ({"shape": (40, 48)}, "-shape 40 48"),
    ],
)
def test_settings_out_of_range(tmp_path: Path, changes: dict[str, object], fragment: str) -> None:
    settings = {"dataset_id": 1, "labelled": 1, "unlabelled": 0, "test": 0, "shape": SMALL} | changes
    with pytest.raises(UsageError) as caught:
        write_phantom(tmp_path, **settings)
    assert caught.value.exit_code == 2
    assert caught.value.where == fragment
    assert list(tmp_path.iterdir()) == []


def test_four_domains_image_each_patient_with_one_scanner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("nnUNet_raw", str(tmp_path))
    write_phantom(tmp_path, 5, labelled=2, unlabelled=3, test=1, shape=SMALL, domains=4)
    raw = read_raw_dataset(5)
    about = raw.dataset_json["cases"]
    assert raw.dataset_json["numTraining"] == len(raw.labelled) == 8
    assert (len(raw.unlabelled), len(raw.test)) == (12, 4)
    for part in (raw.labelled, raw.test):
        assert sorted(about[case]["domain"] for case in part) == sorted("ABCD" * (len(part) // 4))
    places: dict[str, set[str]] = {}
    for entry in about.values():
        places.setdefault(entry["patient"], set()).add(entry["domain"])
    assert all(len(found) == 1 for found in places.values())
    assert about["unlabelled_006"] == about["labelled_001"]  # a second scan of this patient
    assert len(check_dataset(raw, 1).facts) == 24


def test_a_scanner_changes_the_voxels_of_the_plain_scan(tmp_path: Path) -> None:
    plain = write_phantom(tmp_path / "plain", 5, labelled=4, unlabelled=0, test=0, shape=SMALL)
    four = write_phantom(tmp_path / "four", 5, labelled=1, unlabelled=0, test=0, shape=SMALL, domains=4)
    for number, scanner in enumerate(SCANNERS, start=1):
        names = f"imagesTr/labelled_{number:03d}_0000.nii.gz", f"labelsTr/labelled_{number:03d}.nii.gz"
        image, label, rng = (
            read(plain / names[0]),
            read(plain / names[1]),
            np.random.default_rng([0, 0, number, 1, 2]),
        )
        spacing = phantom_scan([0, 0, number], [0, 0, number, 1], SMALL).spacing_mm
        expected = reimage(image, label, spacing, scanner, rng)
        np.testing.assert_array_equal(read(four / names[0]), expected[0])
        np.testing.assert_array_equal(read(four / names[1]), expected[1])
    assert "domain" not in json.loads((plain / "dataset.json").read_text())["cases"]["labelled_001"]


@pytest.mark.parametrize("domains", [0, 5])
def test_there_are_four_scanners(tmp_path: Path, domains: int) -> None:
    with pytest.raises(UsageError, match="out of range") as caught:
        write_phantom(tmp_path, 5, domains=domains)
    assert "1 to 4" in caught.value.why
    assert not list(tmp_path.iterdir())
