from __future__ import annotations

import math
import sys

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from nnunetv2.imageio.natural_image_reader_writer import NaturalImage2DIO
from nnunetv2.imageio.nibabel_reader_writer import NibabelIO
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
from nnunetv2.imageio.tif_reader_writer import Tiff3DIO

from nnssl.data.read_errors import RIGHT_ANGLES, SHEARED
from nnssl.errors import DataError
from nnssl.evaluation.mask_pairs import FilePair, Measurement, measure_case, read_labels
from nnssl.evaluation.metrics import segmentation_metrics, voxel_metrics
from nnssl.evaluation.structures import Structures
from tests.cut_files import READER_ENDINGS, write_cut
from tests.evaluation.folders_for_tests import SPACING, label_array, write_labels
from tests.orientations import FILE_SIZES, ORIENTATIONS, SAME, image_with_corner, name_of, reorient
from tests.sheared import write_sheared

STRUCTURES = Structures({1: "core", 2: "rim", (1, 2): "both"}, None, frozenset({0, 1, 2}))


def measured(tmp_path, prediction, reference, structures=STRUCTURES, paper=False, reader=SimpleITKIO, **geometry):
    files = FilePair(
        "case",
        write_labels(tmp_path / "reference" / "case.nii.gz", reference),
        write_labels(tmp_path / "prediction" / "case.nii.gz", prediction, **geometry),
    )
    return measure_case(Measurement(reader, structures, 1.0, paper), files).metrics


def test_placement_may_differ_where_that_is_asked_for(tmp_path):
    array = label_array(1)
    files = FilePair(
        "case",
        write_labels(tmp_path / "reference" / "case.nii.gz", array),
        write_labels(tmp_path / "prediction" / "case.nii.gz", array, origin=(5.0, 0.0, 0.0)),
    )
    with pytest.raises(DataError, match="origin"):
        measure_case(Measurement(SimpleITKIO, STRUCTURES, 1.0, False), files)
    found = measure_case(Measurement(SimpleITKIO, STRUCTURES, 1.0, False, same_placement=False), files)
    assert found.metrics[1]["Dice"] == 1.0
    assert found.notes == ()


@pytest.mark.parametrize("reader", [SimpleITKIO, NibabelIO])
def test_a_case_has_the_metrics_of_its_arrays_with_the_spacing_in_array_order(tmp_path, reader):
    prediction, reference = label_array(1), label_array(2)
    found = measured(tmp_path, prediction, reference, paper=True, reader=reader)
    ours = segmentation_metrics(prediction, reference, SPACING[::-1], [1, 2, (1, 2)])
    voxels = voxel_metrics(prediction, reference, [1, 2, (1, 2)])
    for label, values in found.items():
        assert values["Dice"] == ours[label]["dice"]
        assert values["IoU"] == ours[label]["jaccard"]
        assert [values[key] for key in ("hd95_mm", "assd_mm", "nsd")] == pytest.approx(
            [ours[label][key] for key in ("hd95_mm", "assd_mm", "nsd")], rel=1e-6
        )
        assert {key: values[key] for key in voxels[label]} == voxels[label]
        assert {"dice", "jaccard"}.isdisjoint(values)
    assert list(found) == [1, 2, (1, 2)]


def test_the_standard_metrics_have_no_voxel_figures(tmp_path):
    found = measured(tmp_path, label_array(1), label_array(2))
    assert {"hd95_vox_pooled", "asd_vox"}.isdisjoint(found[1])


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("thickness", [0.01, 5.0, 4000.0])
def test_images_of_one_slice_are_measured_in_their_plane(tmp_path, axis, thickness):
    """All numbers are those of the flat image, whichever axis is thin and however thick the slice is."""
    prediction, reference = label_array(1, (8, 9)), label_array(2, (8, 9))
    expected = measured(tmp_path / "flat", prediction, reference, paper=True)
    spacing = list(SPACING[:2])
    spacing.insert(2 - axis, thickness)
    slices = [np.expand_dims(array, axis) for array in (prediction, reference)]
    folder = tmp_path / "slice"
    files = FilePair(
        "case",
        write_labels(folder / "reference" / "case.nii.gz", slices[1], spacing=spacing),
        write_labels(folder / "prediction" / "case.nii.gz", slices[0], spacing=spacing),
    )
    found = measure_case(Measurement(SimpleITKIO, STRUCTURES, 1.0, True), files).metrics
    for label in STRUCTURES.names:
        assert found[label] == pytest.approx(expected[label])


def test_flat_images_are_measured_in_their_plane(tmp_path):
    prediction, reference = label_array(1, (8, 9)), label_array(2, (8, 9))
    expected = segmentation_metrics(prediction, reference, SPACING[1::-1], [1])[1]["hd95_mm"]
    assert measured(tmp_path, prediction, reference)[1]["hd95_mm"] == pytest.approx(expected)
    path = tmp_path / "a.png"
    NaturalImage2DIO().write_seg(prediction[None], str(path), {})
    image = read_labels(NaturalImage2DIO, path)
    np.testing.assert_array_equal(image.values, prediction[None])
    assert image.spacing_mm[1:] == (1, 1)
    files = FilePair("a", path, path)
    found = measure_case(Measurement(NaturalImage2DIO, STRUCTURES, 1.0, False), files).metrics
    assert found[1]["hd95_mm"] == 0


def test_a_flat_file_may_meet_a_file_of_one_slice(tmp_path):
    array = label_array(1, (8, 9))
    files = FilePair(
        "case",
        write_labels(tmp_path / "reference" / "case.nii.gz", array),
        write_labels(tmp_path / "prediction" / "case.nii.gz", array[None]),
    )
    found = measure_case(Measurement(SimpleITKIO, STRUCTURES, 1.0, False), files).metrics
    assert (found[1]["Dice"], found[1]["hd95_mm"]) == (1, 0)


@pytest.mark.parametrize("same_placement", [True, False])
@pytest.mark.parametrize("size", FILE_SIZES.values(), ids=FILE_SIZES)
@pytest.mark.parametrize("orientation", ORIENTATIONS, ids=name_of)
def test_a_prediction_on_other_axes_is_brought_to_those_of_the_reference(tmp_path, orientation, size, same_placement):
    reference = image_with_corner(size)
    prediction = reference + sitk.Cast(reference == 2, sitk.sitkUInt8) * 253  # the corner becomes 255
    prediction = sitk.ChangeLabel(prediction, {255: 1})
    paths = [tmp_path / f"{name}.nii.gz" for name in ("reference", "same", "turned")]
    for path, image in zip(paths, (reference, prediction, reorient(prediction, orientation)), strict=True):
        sitk.WriteImage(image, str(path))
    measurement = Measurement(SimpleITKIO, STRUCTURES, 1.0, True, same_placement)
    expected = measure_case(measurement, FilePair("case", paths[0], paths[1]))
    found = measure_case(measurement, FilePair("case", paths[0], paths[2]))
    assert expected.metrics[2]["missed"]
    for label in STRUCTURES.names:
        assert found.metrics[label] == pytest.approx(expected.metrics[label], nan_ok=True)
    assert expected.notes == ()
    if orientation == SAME:
        assert found.notes == ()
    else:
        (note,) = found.notes
        assert note.startswith("case: the prediction was brought to the axes of the reference (")


def test_sheared_axes_are_told(tmp_path):
    """nibabel reads such files, ITK does not."""
    path = write_sheared(tmp_path / "a.nii.gz")
    image = nibabel.load(path)
    nibabel.save(nibabel.Nifti1Image((image.get_fdata() > 10).astype(np.uint8), image.affine), path)
    found = measure_case(Measurement(NibabelIO, STRUCTURES, 1.0, False), FilePair("a", path, path))
    (note,) = found.notes
    assert note.startswith(f"a: {SHEARED}")
    with pytest.raises(DataError, match="cannot be read") as caught:
        read_labels(SimpleITKIO, write_sheared(path))
    assert (caught.value.why, caught.value.run) == (SHEARED, RIGHT_ANGLES)


def test_a_spacing_of_zero_is_refused(tmp_path):
    class Flat(SimpleITKIO):
        def read_seg(self, seg_fname):
            array, properties = super().read_seg(seg_fname)
            return array, {**properties, "spacing": [0.0, 1.0, 1.0]}

    path = write_labels(tmp_path / "a.nii.gz", label_array(0))
    with pytest.raises(DataError, match="spacing of a label file is not valid") as caught:
        read_labels(Flat, path)
    assert caught.value.why == "spacing (0, 1, 1) mm"


TURNED = (0, -1, 0, 1, 0, 0, 0, 0, 1)


@pytest.mark.parametrize("reader", [SimpleITKIO, NibabelIO])
@pytest.mark.parametrize(
    ("geometry", "quantity", "value"),
    [
        ({"spacing": (0.8, 1.2, 3.1)}, "spacing", "(3.1, 1.2, 0.8)"),
        ({"origin": (0, 0, 0.5)}, "origin", "0.5)"),
        ({"direction": TURNED}, "direction", ""),
    ],
)
def test_another_geometry_is_refused_with_both_values_and_the_tolerance(tmp_path, reader, geometry, quantity, value):
    with pytest.raises(DataError, match=f"case: reference and prediction differ in {quantity}") as caught:
        measured(tmp_path, label_array(1), label_array(1), reader=reader, **geometry)
    assert caught.value.exit_code == 3
    reference, prediction, tolerance = caught.value.why.splitlines()
    assert reference.startswith("reference  (")
    assert prediction.startswith("prediction (")
    assert prediction.endswith(value)
    assert tolerance.startswith("tolerance  ")


def test_another_shape_is_refused(tmp_path):
    with pytest.raises(DataError, match="differ in shape") as caught:
        measured(tmp_path, label_array(1, (5, 8, 6)), label_array(1, (5, 8, 7)))
    assert "(5, 8, 6)" in caught.value.why
    assert "(5, 8, 7)" in caught.value.why


def test_rounding_in_the_header_is_accepted(tmp_path):
    geometry = {"spacing": (0.80001, 1.2, 3.00001), "origin": (0.001, 0, -0.001)}
    assert measured(tmp_path, label_array(1), label_array(1), **geometry)[1]["Dice"] == 1


@pytest.mark.parametrize("wrong", ["reference", "prediction"])
def test_values_that_are_not_declared_are_refused(tmp_path, wrong):
    arrays = {"reference": label_array(1), "prediction": label_array(2)}
    arrays[wrong] = np.where(arrays[wrong] == 2, 7, arrays[wrong])
    with pytest.raises(DataError, match=r"holds 7, which dataset\.json does not declare") as caught:
        measured(tmp_path, **arrays)
    assert f"{wrong}/case.nii.gz" in caught.value.where.replace("\\", "/")
    assert caught.value.why == "declared values: 0, 1, 2"


def test_undeclared_values_between_and_below_the_declared_ones_are_found(tmp_path):
    structures = Structures({5: "far"}, None, frozenset({0, 5}))
    array = np.zeros((4, 4, 4), dtype=np.int16)
    for value in (3, -2):
        array[0, 0, 0] = value
        with pytest.raises(DataError, match=f"holds {value}, which"):
            measured(tmp_path, array, np.zeros_like(array), structures)


def test_the_ignore_label_is_allowed_in_the_reference_only(tmp_path):
    structures = Structures({1: "core"}, 3, frozenset({0, 1}))
    reference = np.where(label_array(1) == 2, 3, label_array(1))
    prediction = np.where(label_array(2) == 2, 1, label_array(2))
    found = measured(tmp_path, prediction, reference, structures)[1]
    assert sum(found[key] for key in ("TP", "FP", "FN", "TN")) == (reference != 3).sum()
    assert not math.isnan(found["Dice"])
    with pytest.raises(DataError, match="holds 3"):
        measured(tmp_path, reference, reference, structures)


def test_without_a_declaration_other_values_are_background(tmp_path):
    structures = Structures({1: "label 1"})
    assert (
        measured(tmp_path, np.where(label_array(1) == 2, 40, label_array(1)), label_array(1), structures)[1]["Dice"]
        == 1
    )


@pytest.mark.parametrize("ending", READER_ENDINGS)
def test_a_mask_that_ends_too_early_is_an_error(tmp_path, ending):
    path = write_cut(tmp_path / f"a{ending}", np.ones((6, 8, 10), np.uint8))
    with pytest.raises(DataError, match="cannot be read") as caught:
        read_labels(Tiff3DIO if ending == ".tif" else SimpleITKIO, path)
    assert caught.value.where == str(path)
    assert caught.value.run.startswith("copy the file again")


@pytest.mark.parametrize("fault", ["missing", "garbage", "cut", "fractions", "nan", "channels"])
def test_unreadable_files_are_named(tmp_path, fault):
    path = tmp_path / "a.nii.gz"
    if fault == "garbage":
        path.write_bytes(b"not an image")
    elif fault == "cut":
        noise = np.random.default_rng(0).integers(0, 3, (20, 20, 20), dtype=np.uint8)
        content = write_labels(path, noise).read_bytes()
        path.write_bytes(content[: len(content) // 2])
    elif fault == "fractions":
        write_labels(path, np.full((3, 4, 5), 0.5, dtype=np.float32))
    elif fault == "nan":
        write_labels(path, np.full((3, 4, 5), np.nan, dtype=np.float32))
    elif fault == "channels":
        path = tmp_path / "a.png"
        NaturalImage2DIO().write_seg(np.zeros((1, 4, 5, 3), dtype=np.uint8), str(path), {})
    reader = {"channels": NaturalImage2DIO, "nan": NibabelIO}.get(fault, SimpleITKIO)  # ITK reads NaN as 0
    with pytest.raises(DataError) as caught:
        read_labels(reader, path)
    assert caught.value.where == str(path)
    assert caught.value.why


def test_readers_print_nothing(tmp_path, capsys):
    class Chatty(SimpleITKIO):
        def read_seg(self, seg_fname):
            sys.stdout.write("WARNING")
            return super().read_seg(seg_fname)

    path = write_labels(tmp_path / "a.nii.gz", label_array(0))
    np.testing.assert_array_equal(read_labels(Chatty, path).values, label_array(0))
    assert capsys.readouterr().out == ""
