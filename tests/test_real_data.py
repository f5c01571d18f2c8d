"""The whole road on real scans, shortened: runs where NNSSL_REAL_DATA names a folder of data sets."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

import nnssl
from benchmarks.real_data import main as write_real_data
from nnssl.cli.convert import main as convert

ROOT = Path(os.environ.get("NNSSL_REAL_DATA") or "/nowhere")
pytestmark = [
    pytest.mark.real_data,
    pytest.mark.slow,
    pytest.mark.skipif(not ROOT.is_dir(), reason="NNSSL_REAL_DATA names no folder of data sets"),
]
SETTINGS = {
    "hippocampus": (4, "3d_fullres", "5", [40, 56, 40], 5, 155, 40, {}),
    "acdc": (27, "2d", "3", [192, 160], 6, 134, 20, {"patient076": "patient074"}),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_plan_train_predict_evaluate(name: str, tmp_path: Path, monkeypatch) -> None:
    dataset, configuration, labelled, patch, few, many, held_out, same = SETTINGS[name]
    for variable in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.setenv(variable, str(tmp_path / variable))
        (tmp_path / variable).mkdir()
    write_real_data(ROOT / name, dataset, name, same)
    plan = nnssl.plan(dataset, (configuration,), budget="cpu", labelled=labelled)
    assert plan.configurations[configuration].patch_size == tuple(patch)
    assert [len(part) for part in (plan.cases.labelled, plan.cases.unlabelled, plan.cases.validation)] == [
        few, many, held_out,
    ]  # fmt: skip
    run = nnssl.train(
        dataset, configuration, 0, labelled=labelled, num_iterations=4, device="cpu", run_validation=False,
        settings={"supervised_share": 0.0, "ready_dice": 0.0},
    )  # fmt: skip
    images = tmp_path / "images"
    images.mkdir()
    outside = next((tmp_path / "nnUNet_raw").glob("held_out_*"))
    for file in sorted((outside / "imagesTr").iterdir())[:2]:
        (images / file.name).symlink_to(file.resolve())
    nnssl.predict(images, tmp_path / "masks", model=run.folder.parent, device="cpu", mirroring=False)
    result = nnssl.evaluate(outside / "labelsTr", tmp_path / "masks", chill=True)
    assert len(result.summary["metric_per_case"]) == 2
    rows = [json.loads(line) for line in (run.folder / "progress.jsonl").read_text().splitlines()]
    assert rows[-1]["iteration"] == 4
    assert set(rows[-1]) >= {"loss_supervised", "loss_pseudo", "pseudo_dice", "data_wait_share"}


def h5_arrays(path: Path) -> dict[str, np.ndarray]:
    h5py = pytest.importorskip("h5py")
    with h5py.File(path) as file:
        return {name: file[name][()] for name in ("image", "label") if name in file}


def assert_converted(folder: Path, case: str, arrays: dict[str, np.ndarray]) -> None:
    image = sitk.GetArrayFromImage(sitk.ReadImage(str(folder / "imagesTr" / f"{case}_0000.nii.gz")))
    assert image.dtype == np.float32
    np.testing.assert_array_equal(image, arrays["image"])
    label = sitk.GetArrayFromImage(sitk.ReadImage(str(folder / "labelsTr" / f"{case}.nii.gz")))
    np.testing.assert_array_equal(label, arrays["label"])


@pytest.mark.parametrize("name", ["ACDC", "LA"])
def test_the_communitys_h5_files(name: str, tmp_path: Path, monkeypatch) -> None:
    pytest.importorskip("h5py")
    monkeypatch.setenv("nnUNet_raw", str(tmp_path))
    assert convert(["h5", "-i", str(ROOT / "community_h5" / name), "-d", "30", "-np", "2"]) == 0
    folder = tmp_path / "Dataset030_H5"
    files = sorted(path for path in (ROOT / "community_h5" / name).rglob("*.h5") if "_slice_" not in path.name)
    names = {path.stem if name == "ACDC" else path.parent.name: path for path in files}
    assert {path.name for path in (folder / "labelsTr").iterdir()} == {f"{case}.nii.gz" for case in names}
    for case, path in names.items():
        assert_converted(folder, case, h5_arrays(path))


@pytest.mark.parametrize("name", ["acdc", "la"])
def test_everything_expressed_as_h5_comes_back(name: str, tmp_path: Path, monkeypatch) -> None:
    h5py = pytest.importorskip("h5py")
    monkeypatch.setenv("nnUNet_raw", str(tmp_path / "raw"))
    source = tmp_path / "h5"
    source.mkdir()
    cases = sorted(path.name.removesuffix(".nii.gz") for path in (ROOT / name / "labelsTr").iterdir())
    for case in cases:
        image = sitk.ReadImage(str(ROOT / name / "imagesTr" / f"{case}_0000.nii.gz"), sitk.sitkFloat32)
        label = sitk.ReadImage(str(ROOT / name / "labelsTr" / f"{case}.nii.gz"))
        with h5py.File(source / f"{case}.h5", "w") as file:
            file["image"], file["label"] = map(sitk.GetArrayFromImage, (image, label))
    assert convert(["h5", "-i", str(source), "-d", "30", "-np", "2"]) == 0
    for case in cases:
        assert_converted(tmp_path / "raw" / "Dataset030_H5", case, h5_arrays(source / f"{case}.h5"))
