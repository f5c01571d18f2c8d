from __future__ import annotations

import nibabel
import numpy as np
import pytest
import SimpleITK

import nnssl
from nnssl.errors import DataError, UsageError
from nnssl.inference.api import load_predictor
from nnssl.inference.images import load_image
from tests.inference.model_for_tests import DIRECTION, ORIGIN, SPACING, make_scan, read_mask, write_model, write_scans

READERS = ["SimpleITKIO", "NibabelIO", "SimpleITKIOWithReorient", "NibabelIOWithReorient"]


@pytest.fixture
def scan_file(scans):
    return scans / "case_0_0000.nii.gz"


def test_folder_in_paths_out(model, scans, tmp_path):
    masks = nnssl.predict(scans, tmp_path / "out", device="cpu")
    assert masks == [tmp_path / "out" / f"case_{case}.nii.gz" for case in range(3)]
    assert set(np.unique(read_mask(masks[0]))) == {0, 1, 2}


def test_file_in_file_out(model, scan_file, tmp_path):
    named = nnssl.predict(scan_file, tmp_path / "deep" / "my.nii.gz", device="cpu")
    assert named == tmp_path / "deep" / "my.nii.gz"
    assert list(named.parent.iterdir()) == [named]
    in_folder = nnssl.predict(str(scan_file), str(tmp_path / "out"), device="cpu")
    assert in_folder == tmp_path / "out" / "case_0.nii.gz"
    assert (read_mask(named) == read_mask(in_folder)).all()


def test_a_list_of_files_is_a_list_of_scans_where_the_model_has_one_channel(model, scans, tmp_path):
    files = [scans / f"case_{case}_0000.nii.gz" for case in (2, 0)]
    masks = nnssl.predict(files, tmp_path / "out", device="cpu")
    assert masks == [tmp_path / "out" / f"case_{case}.nii.gz" for case in (2, 0)]
    alone = nnssl.predict(files[0], tmp_path / "alone.nii.gz", device="cpu")
    assert (read_mask(masks[0]) == read_mask(alone)).all()
    assert nnssl.predict([[file] for file in files], tmp_path / "nested", device="cpu") == [
        tmp_path / "nested" / mask.name for mask in masks
    ]


def test_a_folder_of_plain_names(model, scans, tmp_path):
    expected = [read_mask(mask) for mask in nnssl.predict(scans, tmp_path / "numbered", device="cpu")]
    for file in scans.iterdir():
        file.rename(file.with_name(file.name.replace("_0000", "")))
    masks = nnssl.predict(scans, tmp_path / "plain", device="cpu")
    assert [mask.name for mask in masks] == [f"case_{case}.nii.gz" for case in range(3)]
    assert all((read_mask(mask) == other).all() for mask, other in zip(masks, expected, strict=True))


@pytest.mark.parametrize("reader", READERS)
def test_images_in_memory_give_the_mask_of_the_file(results, scan_file, tmp_path, reader):
    write_model(results, image_reader_writer=reader)
    mask_file = nnssl.predict(scan_file, tmp_path / "mask.nii.gz", device="cpu")
    expected = SimpleITK.ReadImage(str(mask_file))
    expected_array = SimpleITK.GetArrayFromImage(expected)
    assert len(np.unique(expected_array)) == 3
    predictor = load_predictor(device="cpu")

    image = SimpleITK.ReadImage(str(scan_file))
    mask = predictor.predict_image(image)
    assert (SimpleITK.GetArrayFromImage(mask) == expected_array).all()
    for side in (image, expected):
        assert np.allclose(mask.GetDirection(), side.GetDirection())
        assert np.allclose(mask.GetOrigin(), side.GetOrigin())
        assert np.allclose(mask.GetSpacing(), side.GetSpacing())

    image = nibabel.load(scan_file)
    mask = predictor.predict_image(image)
    assert isinstance(mask, nibabel.Nifti1Image)
    assert np.array_equal(np.asarray(mask.dataobj), np.asarray(nibabel.load(mask_file).dataobj))
    assert np.array_equal(mask.affine, image.affine)
    assert mask.get_data_dtype() == np.uint8
    assert [int(mask.header[code]) for code in ("qform_code", "sform_code")] == [
        int(image.header[code]) for code in ("qform_code", "sform_code")
    ]

    if not reader.endswith("WithReorient"):
        array = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(scan_file)))
        mask = predictor.predict_image(array, SPACING[::-1])
        assert isinstance(mask, np.ndarray)
        assert (mask == expected_array).all()


def test_saved_nibabel_mask_lies_on_the_scan(model, scan_file, tmp_path):
    nibabel.save(nnssl.predict(nibabel.load(scan_file), device="cpu"), tmp_path / "mask.nii.gz")
    mask = SimpleITK.ReadImage(str(tmp_path / "mask.nii.gz"))
    assert np.allclose(mask.GetDirection(), DIRECTION)
    assert np.allclose(mask.GetOrigin(), ORIGIN)
    assert np.allclose(mask.GetSpacing(), SPACING)


def test_channels(results, tmp_path):
    write_model(results, channels=2)
    scans = write_scans(tmp_path / "scans", count=1, channels=2)
    files = [scans / f"case_0_000{channel}.nii.gz" for channel in (0, 1)]
    expected = read_mask(nnssl.predict(scans, tmp_path / "folder", device="cpu")[0])
    assert (read_mask(nnssl.predict(files, tmp_path / "files", device="cpu")) == expected).all()
    predictor = load_predictor(device="cpu")
    images = [SimpleITK.ReadImage(str(file)) for file in files]
    arrays = [SimpleITK.GetArrayFromImage(image) for image in images]
    assert (SimpleITK.GetArrayFromImage(predictor.predict_image(images)) == expected).all()
    mask = predictor.predict_image(SimpleITK.Compose(images))
    assert (SimpleITK.GetArrayFromImage(mask) == expected).all()
    mask = predictor.predict_image(SimpleITK.JoinSeries(images))
    assert mask.GetSize() == images[0].GetSize()
    assert (SimpleITK.GetArrayFromImage(mask) == expected).all()
    assert (predictor.predict_image(np.stack(arrays), SPACING[::-1]) == expected).all()
    assert (predictor.predict_image(arrays, SPACING[::-1]) == expected).all()
    with pytest.raises(DataError, match=r"1 channel\(s\), the model needs 2"):
        predictor.predict_image(images[0])


def test_flat_images(results, tmp_path):
    write_model(results, dim=2)
    scans = write_scans(tmp_path / "scans", count=1, shape=(24, 20))
    image = SimpleITK.ReadImage(str(scans / "case_0_0000.nii.gz"))
    expected = read_mask(nnssl.predict(scans, tmp_path / "out", device="cpu")[0])
    predictor = load_predictor(device="cpu")
    mask = predictor.predict_image(image)
    assert mask.GetSize() == image.GetSize()
    assert (SimpleITK.GetArrayFromImage(mask) == expected).all()
    array = SimpleITK.GetArrayFromImage(image)
    assert (predictor.predict_image(array, image.GetSpacing()[::-1]) == expected).all()


def test_image_is_left_alone(model):
    array = np.random.default_rng(0).normal(size=(14, 20, 18))
    before = array.copy()
    nnssl.predict(array, spacing_mm=(1, 1, 1), device="cpu")
    assert np.array_equal(array, before)


@pytest.mark.parametrize(
    ("image", "options", "error", "message"),
    [
        (np.zeros((9, 9, 9)), {}, UsageError, "needs its spacing"),
        (np.zeros((9, 9)), {"spacing_mm": (1, 1, 1)}, UsageError, "needs its spacing"),
        (np.zeros((9, 9, 9)), {"spacing_mm": (1, 0, 1)}, UsageError, "needs its spacing"),
        (np.full((9, 9, 9), np.nan), {"spacing_mm": (1, 1, 1)}, DataError, "NaN"),
        (np.zeros((2, 9, 9, 9)), {"spacing_mm": (1, 1, 1)}, DataError, "2 channel"),
        (nibabel.Nifti1Image(np.zeros((9, 9)), np.eye(4)), {}, UsageError, "nibabel image of shape"),
        (3.5, {}, UsageError, "cannot predict a float"),
        ([], {}, UsageError, "no image"),
        (make_scan(0), {"output": "mask.nii.gz"}, UsageError, "output is for paths"),
        ("scan.nii.gz", {}, UsageError, "output is needed"),
        (make_scan(0), {"step_size": 0}, UsageError, "step_size"),
        (make_scan(0), {"stepsize": 1}, UsageError, "unknown option stepsize"),
        ([make_scan(0), make_scan(0, shape=(3, 4, 5))], {}, DataError, "same grid"),
    ],
)
def test_what_cannot_be_predicted(model, image, options, error, message):
    with pytest.raises(error, match=message):
        nnssl.predict(image, device="cpu", **options)


def test_reorientation_turns_the_axes():
    image = make_scan(0)
    turned = load_image(image, reorient=True)
    assert turned.array.shape == (1, 14, 18, 20)
    assert turned.spacing_mm == pytest.approx((1.6, 0.9, 1.1))
    assert turned.restore(turned.array[0]).GetSize() == image.GetSize()


@pytest.mark.parametrize("order", [([1, 0, 2], [1, 0, 2]), ([2, 0, 1], [1, 2, 0])])
@pytest.mark.parametrize("kind", ["array", "channel and array", "sitk", "file"])
def test_a_plane_is_refused_and_not_turned_where_the_slices_of_the_model_lie_otherwise(results, tmp_path, order, kind):
    write_model(results, dim=2, transpose_forward=order[0], transpose_backward=order[1])
    image = make_scan(0, (20, 18))
    array = SimpleITK.GetArrayFromImage(image)
    SimpleITK.WriteImage(image, str(tmp_path / "plane_0000.nii.gz"))
    scan, options = {
        "array": (array, {"spacing_mm": (1.0, 1.0)}),
        "channel and array": (array[None], {"spacing_mm": (1.0, 1.0)}),
        "sitk": (image, {}),
        "file": (tmp_path / "plane_0000.nii.gz", {"output": tmp_path / "mask.nii.gz"}),
    }[kind]
    with pytest.raises(DataError, match="one voxel thick within the slices of the model") as caught:
        nnssl.predict(scan, device="cpu", **options)
    assert f"lie across axis {'zyx'[order[0][0]]}, the scan has one voxel along z" in caught.value.why
    assert not (tmp_path / "mask.nii.gz").exists()
