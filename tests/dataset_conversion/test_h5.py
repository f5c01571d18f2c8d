from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from nnssl.cli.convert import main
from nnssl.data.protocols import Protocol, protocol_splits
from tests.dataset_conversion.miniatures import converted, label, names, read, refused, scan, use_raw

h5py = pytest.importorskip("h5py")


def write_h5(path: Path, **arrays: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        for name, array in arrays.items():
            file.create_dataset(name, data=array)
    return path


def image(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((4, 6, 5)).astype(np.float32)


def assert_volume(path: Path, array: np.ndarray, spacing: tuple[float, ...] = (1.0, 1.0, 1.0)) -> None:
    voxels, stored = read(path)
    np.testing.assert_array_equal(voxels, array)
    np.testing.assert_allclose(stored.GetSpacing(), spacing, rtol=1e-6)


@pytest.fixture
def acdc(tmp_path: Path) -> Path:
    """Make two volumes, the slices of one of them, and a case of slices alone; scribbles everywhere."""
    root = tmp_path / "ACDC"
    for seed, frame in enumerate(("01", "12")):
        arrays = {"image": image(seed), "label": label([1, 2, 3]), "scribble": label([4])}
        write_h5(root / "volumes" / f"patient001_frame{frame}.h5", **arrays)
    for case, seed in (("patient001_frame01", 0), ("patient002_frame01", 2)):
        for number in range(4):
            arrays = {"image": image(seed)[number], "label": label([1, 2, 3])[number], "scribble": label([4])[number]}
            write_h5(root / "slices" / f"{case}_slice_{number + 7}.h5", **arrays)
    return root


def test_volumes_and_slices_without_a_volume(tmp_path: Path, monkeypatch, capsys, acdc: Path) -> None:
    raw = converted(tmp_path, monkeypatch, "h5", acdc)
    assert list(raw.labelled) == ["patient001_frame01", "patient001_frame12", "patient002_frame01"]
    for seed, case in enumerate(raw.labelled.values()):
        assert_volume(case.images[0], image(seed))
        assert_volume(case.label, label([1, 2, 3]))
        assert read(case.images[0])[0].dtype == np.float32
    assert raw.labelled["patient001_frame12"].patient == "patient001"
    assert raw.dataset_json["labels"] == {"background": 0, "label_1": 1, "label_2": 2, "label_3": 3}
    assert "4 slice files are left out" in capsys.readouterr().out


def test_folder_names_where_stems_repeat_and_no_label_is_unlabelled(tmp_path: Path, monkeypatch) -> None:
    root = tmp_path / "LA"
    for seed, case in enumerate(("AAA", "BBB", "CCC")):
        arrays = {"image": image(seed)} | ({"label": label([1])} if case != "CCC" else {})
        write_h5(root / case / "mri_norm2.h5", **arrays)
    options = ["-spacing", "2", "0.5", "0.625", "-label_names", "LA"]
    raw = converted(tmp_path, monkeypatch, "h5", root, *options)
    assert (list(raw.labelled), list(raw.unlabelled)) == (["AAA", "BBB"], ["CCC"])
    assert_volume(raw.unlabelled["CCC"].images[0], image(2), (0.625, 0.5, 2.0))
    assert raw.dataset_json["labels"] == {"background": 0, "LA": 1}


def test_the_same_scan_under_two_names_is_one_patient(tmp_path: Path, monkeypatch) -> None:
    for patient, seed in (("074", 0), ("076", 0), ("077", 1)):
        write_h5(tmp_path / "v" / f"patient{patient}_frame01.h5", image=image(seed), label=label([1]))
    raw = converted(tmp_path, monkeypatch, "h5", tmp_path / "v")
    people = {case.name[:10]: case.patient for case in raw.labelled.values()}
    assert people == {"patient074": "patient074", "patient076": "patient074", "patient077": "patient077"}
    assert raw.dataset_json["cases"]["patient076_frame01"]["named"] == "patient076"
    protocol = Protocol("f", "s", ("1",), train=("patient076", "patient074"), validation=("patient077",))
    monkeypatch.setattr("nnssl.data.protocols.find_protocol", lambda name: (protocol, None))
    (fold,) = protocol_splits("f", raw)
    assert fold["train"] == ["patient074_frame01", "patient076_frame01"]


def test_what_is_broken(tmp_path: Path, monkeypatch, capsys, acdc: Path) -> None:
    (acdc / "slices" / "patient002_frame01_slice_8.h5").unlink()
    write_h5(acdc / "slices" / "patient002_frame01_slice_9.h5", image=image(2)[2])
    (acdc / "volumes" / "patient001_frame12.h5").write_bytes(b"no h5")
    write_h5(acdc / "volumes" / "patient003_frame01.h5", picture=image(0))
    write_h5(acdc / "volumes" / "patient004_frame01.h5", image=image(4), label=label([1])[:, :5])
    lines = refused(tmp_path, monkeypatch, capsys, "h5", acdc).splitlines()
    for expected in (
        "patient002_frame01: slice 8 is missing",
        "these have none: patient002_frame01_slice_9.h5",
        "volumes/patient001_frame12.h5 cannot be read",
        "volumes/patient003_frame01.h5 has no array 'image', it holds: picture",
        "volumes/patient004_frame01.h5 has 5 x 5 x 4 voxels, its image has 5 x 6 x 4",
        "patient002_frame01: slices/patient002_frame01_slice_7.h5 has no array 'label'",
    ):
        assert any(expected in line for line in lines), expected


def test_integers_that_float32_cannot_hold(tmp_path: Path, monkeypatch, capsys) -> None:
    write_h5(tmp_path / "v" / "a.h5", image=scan(0, dtype=np.int32) + (1 << 24) + 1, label=label([1]))
    assert "cannot represent" in refused(tmp_path, monkeypatch, capsys, "h5", tmp_path / "v")
    assert names(tmp_path / "nnUNet_raw") == []


@pytest.mark.parametrize("wrong", ["0", "-1", "nan", "inf"])
def test_voxel_sizes_are_positive(tmp_path: Path, capsys, monkeypatch, wrong: str) -> None:
    use_raw(tmp_path, monkeypatch)
    assert main(["h5", "-i", str(tmp_path), "-d", "5", "-spacing", "1", wrong, "1"]) == 2
    assert "greater than 0" in capsys.readouterr().err


def test_a_group_named_image_is_in_the_report(tmp_path: Path, monkeypatch, capsys) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_group("image")
    assert "'image' has 0 axes" in refused(tmp_path, monkeypatch, capsys, "h5", tmp_path)
