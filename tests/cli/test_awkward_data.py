"""Awkward scans through the commands: thin slabs, extreme values, TIFF, one slice, tiny volumes."""

from __future__ import annotations

import json
import logging
import pickle
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk

import nnssl
from nnssl.errors import DataError
from tests.cli.bad_input_world import DATASET, VARIABLES, World, few_samples_and_steps, write_image

PLAN = "nnssl_plan_and_preprocess -d 906 -hardware cpu -np 1 -npfp 1"
TRAIN = "nnssl_train 906 {configuration} 0 -tr SupervisedTrainer -device cpu -num_iterations"
PREDICT = "nnssl_predict -device cpu --disable_tta -npp 0 -nps 0"
LOWEST = float(np.finfo(np.float32).min)


def disc(seed: int, shape: tuple[int, int, int], axis: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return image and label of a cylinder along an axis."""
    plane = [size for number, size in enumerate(shape) if number != axis]
    grid = np.indices(plane) - np.reshape(plane, (2, 1, 1)) / 2
    label = np.broadcast_to(np.expand_dims(np.hypot(*grid) < min(plane) / 3.5, axis), shape).astype(np.uint8)
    noise = np.random.default_rng(seed).normal(0, 6, shape)
    return (label * 100 + noise).astype(np.float32), label.copy()


def write_case(folder: Path, case: str, image: np.ndarray, label: np.ndarray | None, spacing: float = 1.0) -> None:
    images = "imagesUn" if label is None else "imagesTr"
    write_image(folder / images / f"{case}_0000.nii.gz", image, spacing)
    if label is not None:
        write_image(folder / "labelsTr" / f"{case}.nii.gz", label, spacing)


def write_raw(world: World, shape: tuple[int, int, int], *, axis: int = 0, spacing: float = 1.0) -> None:
    """Write four labelled and one unlabelled scan."""
    for number in range(5):
        image, label = disc(number, shape, axis)
        write_case(world.raw, f"c{number}", image, label if number < 4 else None, spacing)
    describe(world.raw)


def describe(folder: Path, **changes: Any) -> None:
    content = {"channel_names": {"0": "MR"}, "labels": {"background": 0, "disc": 1}, "numTraining": 4}
    (folder / "dataset.json").write_text(json.dumps(content | {"file_ending": ".nii.gz"} | changes))


def make_world(root: Path, patch: pytest.MonkeyPatch) -> World:
    for name in (*VARIABLES, "tmp"):
        (root / name).mkdir()
    made = World(root, patch)
    made.use()
    return made


@pytest.fixture(autouse=True)
def _few_samples_and_steps() -> Iterator[None]:
    with few_samples_and_steps():
        yield


@pytest.fixture
def world(tmp_path, monkeypatch) -> World:
    return make_world(tmp_path, monkeypatch)


def plans_of(world: World) -> dict[str, Any]:
    return json.loads((world.preprocessed / "nnUNetPlans.json").read_text())


# ---------------------------------------------------------------------- thin slabs, extreme values


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Iterator[Path]:
    """Return the model folder of a disc in slices of 5 mm, trained long enough to find the disc."""
    with pytest.MonkeyPatch.context() as patch, few_samples_and_steps():
        world = make_world(tmp_path_factory.mktemp("slab"), patch)
        write_raw(world, (12, 24, 24), spacing=5.0)
        image, _ = disc(9, (2, 24, 24))
        write_case(world.raw, "thin", image, None)
        assert world.run(f"{PLAN} -c 3d_fullres") == 0
        properties = world.preprocessed / "nnUNetPlans_3d_fullres_unlabelled" / "thin.pkl"
        assert properties.is_file()
        assert world.run(TRAIN.format(configuration="3d_fullres"), "60") == 0
        (model,) = (world.root / "nnUNet_results" / DATASET).iterdir()
        yield model


def in_memory(kind: str, array: np.ndarray) -> tuple[Any, dict[str, Any]]:
    """Return an image in memory with spacings of 1 mm, and the options that it needs."""
    if kind == "array":
        return array, {"spacing_mm": (1.0, 1.0, 1.0)}
    if kind == "sitk":
        return sitk.GetImageFromArray(array), {}
    return nibabel.Nifti1Image(array.transpose(2, 1, 0), np.eye(4)), {}


def voxels(image: Any) -> np.ndarray:
    """Return the array (z, y, x) of a mask in memory."""
    if isinstance(image, np.ndarray):
        return image
    if isinstance(image, sitk.Image):
        return sitk.GetArrayFromImage(image)
    return np.asarray(image.dataobj).transpose(2, 1, 0)


@pytest.mark.parametrize("axis_mm", [1.0, 0.4])
def test_a_thin_slab_on_disk_gets_the_structure_in_every_slice(world, trained, axis_mm):
    image, label = disc(20, (24, 24, 2), 2)  # nibabel's axes: the slices come last, so that nnU-Net reads them first
    header = np.diag([1.0, 1.0, axis_mm, 1.0])
    world.scans.mkdir()
    nibabel.save(nibabel.Nifti1Image(image, header), world.scans / "t0_0000.nii.gz")
    assert world.run(f"{PREDICT} -i {world.scans} -o {world.masks} -m {trained}") == 0
    mask = np.asarray(nibabel.load(world.masks / "t0.nii.gz").dataobj)
    assert mask.shape == label.shape
    assert (mask.sum(axis=(0, 1)) > label.sum(axis=(0, 1)) / 2).all()


@pytest.mark.parametrize("kind", ["array", "sitk", "nibabel"])
def test_a_thin_slab_in_memory_gets_the_structure_in_every_slice(trained, kind):
    array, label = disc(20, (2, 24, 24))
    image, options = in_memory(kind, array)
    mask = voxels(nnssl.predict(image, model=trained, device="cpu", mirroring=False, **options))
    assert mask.shape == label.shape
    assert (mask.sum(axis=(1, 2)) > label.sum(axis=(1, 2)) / 2).all()


@pytest.mark.parametrize("kind", ["array", "sitk", "nibabel"])
@pytest.mark.parametrize("value", [LOWEST, 1e20])
def test_extreme_values_in_memory_are_an_error(trained, kind, value):
    array, _ = disc(20, (12, 24, 24))
    array[:, :, :3] = value
    image, options = in_memory(kind, array)
    with pytest.raises(DataError, match="channel 0 cannot be normalised") as caught:
        nnssl.predict(image, model=trained, device="cpu", **options)
    assert f"{np.float32(value):.6g}" in caught.value.why


def test_extreme_values_on_disk_end_the_prediction_with_their_name(world, trained, capsys):
    array, _ = disc(20, (12, 24, 24))
    array[:, :, :3] = LOWEST
    write_image(world.scans / "nodata_0000.nii.gz", array)
    assert world.run(f"{PREDICT} -i {world.scans} -o {world.masks} -m {trained}") == 3
    err = capsys.readouterr().err
    assert "nodata_0000.nii.gz" in err
    assert "-3.40282e+38" in err
    assert not (world.masks / "nodata.nii.gz").exists()


@pytest.mark.parametrize(
    ("case", "labelled", "more"),
    [("c4", False, ""), ("c0", True, ""), ("c0", True, "-f all -labelled 1")],
    ids=["unlabelled", "labelled", "hidden"],
)
def test_extreme_values_end_planning_with_their_name(world, capsys, case, labelled, more):
    write_raw(world, (12, 24, 24))
    image, label = disc(0, (12, 24, 24))
    image[:, :, :3] = LOWEST
    write_case(world.raw, case, image, label if labelled else None)
    assert world.run(f"{PLAN} -c 3d_fullres {more}") == 3
    err = capsys.readouterr().err
    assert f"{case}_0000.nii.gz" in err
    assert "channel 0 cannot be normalised" in err
    assert "-3.40282e+38" in err


# ---------------------------------------------------------------------- TIFF


@pytest.fixture
def tiffs(world) -> World:
    import tifffile

    parts = [(f"c{n}", "imagesTr", "labelsTr") for n in range(4)]
    for number, (case, images, labels) in enumerate([*parts, ("u0", "imagesUn", None), ("t0", "imagesTs", "labelsTs")]):
        image, label = disc(number, (16, 24, 26))
        for folder, array, name in ((images, image, f"{case}_0000"), (labels, label, case)):
            if folder:
                (world.raw / folder).mkdir(parents=True, exist_ok=True)
                tifffile.imwrite(world.raw / folder / f"{name}.tif", np.clip(array, 0, 255).astype(np.uint8))
                (world.raw / folder / f"{case}.json").write_text(json.dumps({"spacing": [3.0, 1.0, 1.0]}))
    describe(world.raw, file_ending=".tif")
    return world


def test_tiff_masks_keep_their_voxel_size_on_the_whole_road(tiffs, capfd):
    world = tiffs
    assert world.run(f"{PLAN} -c 3d_fullres") == 0
    references = world.preprocessed / "gt_segmentations"
    names = sorted(f"c{n}.{ending}" for n in range(4) for ending in ("json", "tif"))
    assert sorted(file.name for file in references.iterdir()) == names
    assert world.run(TRAIN.format(configuration="3d_fullres"), "2") == 0
    assert world.run(f"{PREDICT} -i {world.raw}/imagesTs -o {world.masks}") == 0
    records = ["dataset.json", "plans.json", "predict_from_raw_data_args.json"]
    assert sorted(file.name for file in world.masks.iterdir()) == [*records, "t0.json", "t0.tif"]
    assert json.loads((world.masks / "t0.json").read_text())["spacing"] == [3.0, 1.0, 1.0]
    assert world.run(f"nnssl_evaluate {world.raw}/labelsTs {world.masks} -np 1") == 0
    assert "Traceback" not in capfd.readouterr().err
    parts = [file for file in world.root.rglob("*") if file.name.startswith(".part_")]
    assert parts == []


def test_a_changed_voxel_size_is_copied_and_the_scan_preprocessed_again(tiffs):
    assert tiffs.run(f"{PLAN} -c 3d_fullres") == 0
    for folder in ("imagesTr", "labelsTr"):
        (tiffs.raw / folder / "c0.json").write_text(json.dumps({"spacing": [2.5, 1.0, 1.0]}))
    assert tiffs.run(f"{PLAN} -c 3d_fullres") == 0
    copied = json.loads((tiffs.preprocessed / "gt_segmentations" / "c0.json").read_text())
    assert copied["spacing"] == [2.5, 1.0, 1.0]
    (preprocessed,) = tiffs.preprocessed.glob("*_3d_fullres/c0.pkl")
    assert pickle.loads(preprocessed.read_bytes())["spacing"] == [2.5, 1.0, 1.0]


@pytest.mark.parametrize("name", ["t0.tif", "t0_0000.tif"])
def test_a_tiff_scan_whose_voxel_size_would_be_overlooked_or_invented_is_refused(
    world, trained, tmp_path, name, capsys
):
    model = tmp_path / "model"
    shutil.copytree(trained, model)
    description = json.loads((model / "dataset.json").read_text())
    (model / "dataset.json").write_text(json.dumps(description | {"file_ending": ".tif"}))
    plans = json.loads((model / "plans.json").read_text())
    (model / "plans.json").write_text(json.dumps(plans | {"image_reader_writer": "Tiff3DIO"}))
    scan = world.scans / name
    scan.parent.mkdir()
    scan.touch()
    beside = scan.with_suffix(".json")
    beside.write_text(json.dumps({"spacing": [3.0, 1.0, 1.0]}))
    assert world.run(f"{PREDICT} -i {scan} -o {world.masks} -m {model}") == 3
    if name == "t0_0000.tif":
        assert "would be overlooked" in capsys.readouterr().err
        beside.unlink()
        assert world.run(f"{PREDICT} -i {scan} -o {world.masks} -m {model}") == 3
        assert "1 TIFF scan(s) have no voxel size" in capsys.readouterr().err


@pytest.mark.parametrize("case", ["c1", "u0"])
def test_a_tiff_scan_without_the_voxel_size_that_others_have_ends_planning(tiffs, case, capsys):
    folder = "imagesTr" if case == "c1" else "imagesUn"
    (tiffs.raw / folder / f"{case}.json").unlink()
    assert tiffs.run(f"{PLAN} -c 3d_fullres") == 3
    assert f"{case}.json is missing, which holds the voxel size" in capsys.readouterr().err
    if case == "u0":
        assert tiffs.run(f"{PLAN} -c 3d_fullres --skip_unreadable") == 0


def test_tiff_scans_that_all_lack_a_voxel_size_are_a_warning(tiffs, caplog):
    for file in tiffs.raw.rglob("*.json"):
        if file.parent != tiffs.raw:
            file.unlink()
    assert tiffs.run(f"{PLAN} -c 3d_fullres") == 0
    assert "no TIFF scan has its voxel size beside it" in caplog.text


# ---------------------------------------------------------------------- one slice


@pytest.mark.parametrize("axis", range(3))
def test_isotropic_slices_are_planned_in_their_plane(world, axis, caplog):
    shape = [40, 52]
    shape.insert(axis, 1)
    write_raw(world, tuple(shape), axis=axis)
    with caplog.at_level(logging.INFO):
        assert world.run(PLAN) == 0
    plans = plans_of(world)
    assert list(plans["configurations"]) == ["2d"]
    assert min(plans["configurations"]["2d"]["patch_size"]) >= 32
    assert plans["transpose_forward"][0] == 2 - axis  # nnU-Net reads the axes of nibabel in reverse order
    assert [plans["transpose_forward"][place] for place in plans["transpose_backward"]] == [0, 1, 2]
    assert f"one slice, along axis {'xyz'[axis]}" in caplog.text
    assert world.run(f"{PLAN} -c 3d_fullres") == 2


def test_a_slice_in_the_file_comes_back_as_a_slice(world):
    write_raw(world, (1, 40, 52))
    assert world.run(f"{PLAN} -c 2d") == 0
    assert world.run(TRAIN.format(configuration="2d"), "40") == 0
    image, label = disc(30, (1, 40, 52))
    write_image(world.scans / "t0_0000.nii.gz", image)
    assert world.run(f"{PREDICT} -i {world.scans} -o {world.masks}") == 0
    mask = np.asarray(nibabel.load(world.masks / "t0.nii.gz").dataobj)
    assert mask.shape == label.shape
    assert np.count_nonzero(mask[label > 0]) > label.sum() / 2
    sideways, _ = disc(30, (40, 1, 52), 1)
    write_image(world.scans / "t1_0000.nii.gz", sideways)
    assert world.run(f"{PREDICT} -i {world.scans} -o {world.masks}") == 3


@pytest.mark.parametrize("labelled", [True, False])
def test_slices_on_different_axes_are_refused(world, labelled, capsys):
    write_raw(world, (1, 40, 52))
    for number, case in enumerate(("c1", "c2") if labelled else ("other",)):
        image, label = disc(8 + number, (40, 1, 52), 1)
        write_case(world.raw, case, image, label if labelled else None)
    assert world.run(f"{PLAN} -c 2d") == 3
    err = capsys.readouterr().err
    assert ("lie on different axes" if labelled else "one voxel thick") in err


# ---------------------------------------------------------------------- tiny volumes


@pytest.mark.parametrize("shape", [(5, 7, 6), (10, 12, 9), (1, 12, 9)])
def test_volumes_without_room_for_two_poolings_are_refused(world, shape, capsys):
    write_raw(world, shape)
    assert world.run(PLAN) == 3
    err = capsys.readouterr().err
    assert "too small to train on" in err
    assert "at least 16 voxels" in err
    assert not (world.preprocessed / "nnUNetPlans.json").exists()


def test_the_least_size_can_be_trained(world):
    write_raw(world, (16, 16, 16))
    assert world.run(f"{PLAN} -c 3d_fullres") == 0
    assert world.run(TRAIN.format(configuration="3d_fullres"), "2") == 0


def test_small_planes_of_long_volumes_are_trained_in_3d_only(world, caplog):
    write_raw(world, (12, 12, 40), axis=2)
    assert world.run(PLAN) == 0
    assert "left out, because the scans are too small" in caplog.text
