"""The whole road with random geometry: convert, plan, predict, evaluate, in one process, without training.

The model is a threshold, so the right mask of a scan is known. Every example ends in one of two ways: the predicted
mask is the structure, in its place, or a command refuses the data with an error of its own. Any other exception and
any other mask fails the test.
"""

from __future__ import annotations

import gzip
import json
import struct
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from scipy import ndimage

import nnssl
from nnssl.errors import DataError, UsageError
from tests.cli.bad_input_world import SETTINGS, VARIABLES, few_samples_and_steps
from tests.orientations import OBLIQUE, ORIENTATIONS, Orientation, reorient

DATASET = "Dataset907_Road"
CASES = {"a": "images", "b": "images", "u": "unlabelled", "t": "test"}
DTYPES = ("uint8", "int8", "int16", "uint16", "int32", "uint32", "float32", "float64")
LEVELS = (10, 60, 110)  # stored values of air, body and structure; every dtype holds them
MASK = "mask"
READERS = (None, "SimpleITKIO", "NibabelIO", "NibabelIOWithReorient")


@dataclass(frozen=True)
class Example:
    """One data set; sizes and spacings are in the order x, y, z before the axes are turned.

    Attributes:
        size: voxels of the labelled scans.
        test_size: voxels of the test scan.
        spacing_mm: voxel size of the labelled scans.
        test_spacing_mm: voxel size of the test scan.
        axes: order and flips of the axes of all images.
        label_axes: the same for the labels; the converter brings these to the axes of the images.
        other_axes: the same for the channels after the first one.
        oblique: whether the axes are turned away from those of the patient.
        channels: image channels; the structure is visible in the last one only.
        dtype: type of the stored voxels.
        slope: scale of the stored values; NIfTI only.
        intercept: value of a stored 0; NIfTI only.
        ending: file ending of the user's files.
        normalised: whether the intensities are normalised by mean and standard deviation.
        reader: the reader that dataset.json names.
        hardware: option of planning.
        memory: type of the test scan in memory.
        pick: which of the planned configurations predicts.
        seed: of the structures.
    """

    size: tuple[int, int, int]
    test_size: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    test_spacing_mm: tuple[float, float, float]
    axes: Orientation
    label_axes: Orientation
    other_axes: Orientation
    oblique: bool
    channels: int
    dtype: str
    slope: float
    intercept: float
    ending: str
    normalised: bool
    reader: str | None
    hardware: str | None
    memory: str
    pick: int
    seed: int

    @property
    def resampled(self) -> bool:
        return self.spacing_mm != self.test_spacing_mm

    @property
    def reoriented(self) -> bool:
        return str(self.reader).endswith("Reorient")

    def real(self, level: int) -> float:
        """Return the value that a stored level stands for."""
        return level * self.slope + self.intercept if self.ending.startswith(".nii") else float(level)


@st.composite
def examples(draw: Callable[..., Any]) -> Example:
    lengths = st.one_of(st.integers(16, 40), st.integers(16, 40), st.integers(1, 40))
    millimetres = st.one_of(st.sampled_from([0.2, 1.0, 8.0]), st.floats(0.2, 8.0).map(lambda mm: round(mm, 3)))
    sizes, size, spacing = (
        st.tuples(*[lengths] * 3),
        draw(st.tuples(*[lengths] * 3)),
        draw(st.tuples(*[millimetres] * 3)),
    )
    normalised = draw(st.booleans())
    test_size, test_spacing = size, spacing
    if not normalised and draw(st.booleans()):
        factors = draw(st.tuples(*[st.floats(0.25, 4.0)] * 3))  # more would blow the scan up to gigabytes
        test_size = draw(sizes)
        test_spacing = tuple(
            round(min(8.0, max(0.2, mm * factor)), 3) for mm, factor in zip(spacing, factors, strict=True)
        )
    axes = draw(st.sampled_from(ORIENTATIONS))
    others = st.one_of(st.just(axes), st.sampled_from(ORIENTATIONS))
    return Example(
        size,
        test_size,
        spacing,
        test_spacing,
        axes,
        draw(others),
        draw(others),
        oblique=draw(st.booleans()),
        channels=draw(st.integers(1, 4)),
        dtype=draw(st.sampled_from(DTYPES)),
        slope=draw(st.sampled_from([1.0, 0.5, 3.25, 0.01])),
        intercept=draw(st.sampled_from([0.0, -1024.0, 7.5])),
        ending=draw(st.sampled_from([".nii.gz", ".nii", ".nrrd", ".mha"])),
        normalised=normalised,
        reader=draw(st.sampled_from(READERS)),
        hardware=draw(st.sampled_from(["cpu", None])),
        memory=draw(st.sampled_from(["sitk", "nibabel", "array"])),
        pick=draw(st.integers(0, 2)),
        seed=draw(st.integers(0, 99)),
    )


def structure(size: Sequence[int], rng: np.random.Generator) -> np.ndarray:
    """Return a box (x, y, z) with a corner cut off: no flip and no order of the axes brings it to itself."""
    label = np.zeros(tuple(size), np.uint8)
    lengths = [max(1, int(length * rng.uniform(0.3, 0.7))) for length in size]
    starts = [int(rng.integers(0, length - part + 1)) for length, part in zip(size, lengths, strict=True)]
    label[tuple(slice(start, start + part) for start, part in zip(starts, lengths, strict=True))] = 1
    notch = [slice(start, start + part // 2) for start, part in zip(starts, lengths, strict=True)]
    if all(part >= 2 for part in lengths):
        label[tuple(notch)] = 0
    return label


def stored_levels(label: np.ndarray, with_air: bool) -> np.ndarray:
    """Return the stored values (x, y, z): the structure in a body, and air at the upper half of the first axis."""
    levels = np.full(label.shape, LEVELS[1])
    if with_air:
        levels[label.shape[0] - label.shape[0] // 4 :] = LEVELS[0]
    return np.where(label == 1, LEVELS[2], levels)


def image_of(array: np.ndarray, spacing_mm: Sequence[float], oblique: bool) -> sitk.Image:
    image = sitk.GetImageFromArray(np.ascontiguousarray(array.T))
    image.SetSpacing(spacing_mm)
    if oblique:
        image.SetDirection(OBLIQUE)
    image.SetOrigin((-12.5, 33.0, 140.0))
    return image


def write(path: Path, image: sitk.Image, slope: float = 1.0, intercept: float = 0.0) -> None:
    """Write an image; slope and intercept go into the header of a NIfTI file, the stored voxels stay."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.name.endswith((".nii", ".nii.gz")):
        sitk.WriteImage(image, str(path))
        return
    plain = path.with_name("plain.nii")
    sitk.WriteImage(image, str(plain))
    content = bytearray(plain.read_bytes())
    content[112:120] = struct.pack("<2f", slope, intercept)  # scl_slope and scl_inter of NIfTI-1
    plain.unlink()
    path.write_bytes(gzip.compress(content, 1) if path.name.endswith(".gz") else bytes(content))


def write_scans(example: Example, root: Path) -> sitk.Image:
    """Write the user's folders and return the label of the test scan, on the axes of the image."""
    rng = np.random.default_rng(example.seed)
    for case, folder in CASES.items():
        is_test = case == "t"
        size = example.test_size if is_test else example.size
        spacing = example.test_spacing_mm if is_test else example.spacing_mm
        label = structure(size, rng)
        mask = image_of(label, spacing, example.oblique)
        visible = stored_levels(label, not example.normalised).astype(example.dtype)
        for channel in range(example.channels):
            hidden = rng.integers(LEVELS[0], LEVELS[2], label.shape).astype(example.dtype)
            levels = visible if channel == example.channels - 1 else hidden
            image = image_of(levels, spacing, example.oblique)
            turned = reorient(image, example.other_axes if channel else example.axes)
            path = root / "mine" / folder / f"{case}_{channel}{example.ending}"
            write(path, turned, example.slope, example.intercept)
        if folder != "unlabelled":
            place = "test_labels" if is_test else "labels"
            write(root / "mine" / place / f"{case}{example.ending}", reorient(mask, example.label_axes))
        if is_test:
            write(root / "truth" / f"{case}.nii.gz", reorient(mask, example.label_axes))
    return reorient(mask, example.axes)


def convert(example: Example, root: Path) -> Path:
    numbers, ending = range(example.channels), example.ending
    options: dict[str, Any] = {
        option: tuple(f"{folder}/*_{number}{ending}" for number in numbers)
        for option, folder in (("images", "images"), ("unlabelled", "unlabelled"), ("test", "test"))
    }
    channel = "MR" if example.normalised else "noNorm"
    options |= {"channel": [channel] * example.channels, "label_names": ["box"]}
    folder = nnssl.convert("folder", root / "mine", 907, name="Road", options=options, num_processes=1).folder
    if example.reader:
        path = folder / "dataset.json"
        content = json.loads(path.read_text()) | {"overwrite_image_reader_writer": example.reader}
        path.write_text(json.dumps(content))
    return folder


def write_model(example: Example, root: Path, label: sitk.Image) -> Path:
    """Plan the data set, and write a model whose threshold lies between body and structure of the test scan."""
    planned = nnssl.plan(
        907, hardware=example.hardware, num_processes=1, num_processes_fingerprint=1, trainer="SupervisedTrainer"
    )
    names = list(planned.configurations)
    name = names[example.pick % len(names)]
    plans = json.loads(planned.plans_path.read_text())
    entry = {"network_class_name": "tests.threshold_network.ThresholdNetwork", "arch_kwargs": {}}
    plans["configurations"][name]["architecture"] = entry | {"_kw_requires_import": []}
    folder = root / "nnUNet_results" / DATASET / f"SupervisedTrainer__nnUNetPlans__{name}"
    (folder / "fold_0").mkdir(parents=True)
    (folder / "plans.json").write_text(json.dumps(plans))
    (folder / "dataset.json").write_text((planned.plans_path.parent / "dataset.json").read_text())
    values = [example.real(level) for level in LEVELS]
    threshold = (values[1] + values[2]) / 2
    if example.normalised:  # mean and standard deviation of a scan of body and structure only
        scan = np.where(sitk.GetArrayFromImage(label) == 1, values[2], values[1])
        threshold = (threshold - scan.mean()) / scan.std()
    checkpoint = {
        "network_weights": {"threshold": torch.tensor(threshold, dtype=torch.float32)},
        "trainer_name": "SupervisedTrainer",
        "init_args": {"configuration": name},
        "inference_allowed_mirroring_axes": (0, 1),
        "nnssl_semi": {},
    }
    torch.save(checkpoint, folder / "fold_0" / "checkpoint_final.pth")
    return folder


def target_spacing_mm(model: Path) -> list[float]:
    """Return the voxel size of the plan along the axes that the reader gives (z, y, x); 0 along 2-D slices."""
    plans = json.loads((model / "plans.json").read_text())
    spacing = plans["configurations"][model.name.split("__")[-1]]["spacing"]
    padded = [0.0] * (3 - len(spacing)) + list(spacing)
    return [padded[axis] for axis in plans["transpose_backward"]]


def check_mask(example: Example, mask: sitk.Image, label: sitk.Image, model: Path) -> None:
    """Check place and voxels of a mask.

    Without resampling the mask is the label. Otherwise a boundary may move by one and a half voxels of the coarser grid
    along each axis, as interpolation to the grid of the plan and back can do.
    """
    assert mask.GetSize() == label.GetSize()
    for quantity in ("GetSpacing", "GetOrigin", "GetDirection"):
        np.testing.assert_allclose(getattr(mask, quantity)(), getattr(label, quantity)(), rtol=1e-5, atol=1e-4)
    if example.reoriented:  # the spacing of the plan belongs to these axes
        mask, label = sitk.DICOMOrient(mask, "RAS"), sitk.DICOMOrient(label, "RAS")
    found, wanted = sitk.GetArrayFromImage(mask), sitk.GetArrayFromImage(label)
    if not example.resampled:
        np.testing.assert_array_equal(found, wanted)
        return
    own = label.GetSpacing()[::-1]
    reach = [int(np.ceil(1.5 * max(pair) / pair[1])) for pair in zip(target_spacing_mm(model), own, strict=True)]
    window = [2 * voxels + 1 for voxels in reach]
    assert (found >= ndimage.minimum_filter(wanted, window, mode="nearest")).all()
    assert (found <= ndimage.maximum_filter(wanted, window, mode="nearest")).all()


def predict_in_memory(example: Example, files: Sequence[Path], model: Path) -> np.ndarray:
    """Return the mask (z, y, x) of the scan in these channel files, which the test reads itself.

    An array tells no directions. So a model whose reader turns scans gets the array on the axes that the reader makes.
    """
    options: dict[str, Any] = {"model": model, "device": "cpu", "mirroring": False}
    if example.memory == "nibabel":
        mask = nnssl.predict([nibabel.load(file) for file in files], **options)
        return np.asarray(mask.dataobj).T
    images = [sitk.ReadImage(str(file)) for file in files]
    if example.memory == "sitk":
        return sitk.GetArrayFromImage(nnssl.predict(images, **options))
    own_axes = sitk.DICOMOrientImageFilter.GetOrientationFromDirectionCosines(images[0].GetDirection())
    turned = [sitk.DICOMOrient(image, "RAS") for image in images] if example.reoriented else images
    array = np.stack([sitk.GetArrayFromImage(image) for image in turned])
    mask = sitk.GetImageFromArray(nnssl.predict(array, spacing_mm=turned[0].GetSpacing()[::-1], **options))
    mask.CopyInformation(turned[0])
    return sitk.GetArrayFromImage(sitk.DICOMOrient(mask, own_axes) if example.reoriented else mask)


def follow_the_road(example: Example, root: Path) -> str:
    """Go from a user's files to scores; check the masks on disk and in memory, and the scores; return the ending."""
    label = write_scans(example, root)
    try:
        raw = convert(example, root)
        model = write_model(example, root, label)
        (path,) = nnssl.predict(raw / "imagesTs", root / "masks", model=model, device="cpu")
        in_memory = predict_in_memory(example, sorted((raw / "imagesTs").iterdir()), model)
    except (UsageError, DataError) as error:
        return f"exit {error.exit_code}: {error.what}"
    mask = sitk.ReadImage(str(path))
    check_mask(example, mask, label, model)
    found, wanted = sitk.GetArrayFromImage(mask), sitk.GetArrayFromImage(label)
    np.testing.assert_array_equal(in_memory, found)
    (case,) = nnssl.evaluate(root / "truth", root / "masks", num_processes=1).summary["metric_per_case"]
    dice = 2 * (found & wanted).sum() / (found.sum() + wanted.sum())
    assert case["metrics"]["1"]["Dice"] == pytest.approx(dice)
    return MASK + (", resampled" if example.resampled else "")


@pytest.fixture(scope="module", autouse=True)
def _few_samples():
    with few_samples_and_steps():
        yield


def run(example: Example) -> str:
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        root = Path(folder)
        for name in VARIABLES:
            (root / name).mkdir()
        for name, value in ({name: str(root / name) for name in VARIABLES} | SETTINGS).items():
            patch.setenv(name, value)
        return follow_the_road(example, root)


def run_examples(count: int, *, derandomize: bool) -> None:
    """Run random examples; at least a third of them must end with a mask."""
    endings: list[str] = []

    @settings(
        max_examples=count,
        derandomize=derandomize,
        deadline=None,
        database=None,
        print_blob=True,
        phases=(Phase.explicit, Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
    )
    @given(examples())
    def follow(example: Example) -> None:
        endings.append(run(example))

    follow()
    assert sum(ending.startswith(MASK) for ending in endings) >= count / 3, endings


def test_the_structure_comes_back_where_it_was() -> None:
    run_examples(15, derandomize=True)


@pytest.mark.nightly
def test_the_structure_comes_back_where_it_was_in_many_examples() -> None:
    run_examples(200, derandomize=False)
