from __future__ import annotations

from pathlib import Path

import pytest

from nnssl.errors import DataError
from nnssl.evaluation.structures import Structures, declared_structures, file_ending, find_reader, listed_structures
from tests.evaluation.folders_for_tests import label_array, write_labels

PATH = Path("dataset.json")


@pytest.mark.parametrize(
    ("labels", "names", "ignore", "allowed"),
    [
        ({"background": 0, "liver": 1, "spleen": 3}, {1: "liver", 3: "spleen"}, None, {0, 1, 3}),
        ({"background": 0, "liver": "1"}, {1: "liver"}, None, {0, 1}),
        ({"background": 0, "liver": 1, "ignore": 2}, {1: "liver"}, 2, {0, 1}),
        (
            {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "enhancing": [3]},
            {(1, 2, 3): "whole", (2, 3): "core", (3,): "enhancing"},
            None,
            {0, 1, 2, 3},
        ),
        ({"background": 0, "whole": [1, 2], "core": 2, "ignore": 3}, {(1, 2): "whole", 2: "core"}, 3, {0, 1, 2}),
        ({"background": 0, "liver": [1]}, {1: "liver"}, None, {0, 1}),
    ],
)
def test_labels_and_regions_are_those_of_nnunet(labels, names, ignore, allowed):
    found = declared_structures({"labels": labels}, PATH)
    assert found == Structures(names, ignore, frozenset(allowed))
    handling = pytest.importorskip("nnunetv2.utilities.label_handling.label_handling")
    manager = handling.LabelManager(labels, regions_class_order=list(range(len(names))))
    assert list(names) == list(manager.foreground_regions if manager.has_regions else manager.foreground_labels)
    assert ignore == manager.ignore_label


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, "declares no labels"),
        ({"labels": ["liver"]}, "declares no labels"),
        ({"labels": {"0": "background", "1": "liver"}}, "not whole numbers"),
        ({"labels": {"background": 0, "liver": None}}, "not whole numbers"),
        ({"labels": {"background": 0}}, "no foreground"),
        ({"labels": {"background": 0, "ignore": 1}}, "no foreground"),
    ],
)
def test_a_dataset_json_without_usable_labels_is_refused(content, message):
    with pytest.raises(DataError, match=message):
        declared_structures(content, PATH)


def test_listed_labels_take_their_names_from_dataset_json():
    declared = Structures({1: "liver", (1, 2): "organs"}, None, frozenset({0, 1, 2}))
    found = listed_structures([[1, 2], 1, 5], 9, declared)
    assert found == Structures({(1, 2): "organs", 1: "liver", 5: "label 5"}, 9, None)


def test_the_ending_is_that_of_dataset_json_or_of_the_files(tmp_path):
    write_labels(tmp_path / "a.nii.gz", label_array(0))
    (tmp_path / "notes.txt").write_text("")
    assert file_ending({"file_ending": ".nrrd"}, tmp_path) == ".nrrd"
    assert file_ending(None, tmp_path) == ".nii.gz"
    write_labels(tmp_path / "b.nrrd", label_array(0))
    with pytest.raises(DataError, match=r"several endings: \.nii\.gz, \.nrrd"):
        file_ending(None, tmp_path)


def test_a_folder_without_label_files_has_no_ending(tmp_path):
    with pytest.raises(DataError, match="no label files"):
        file_ending(None, tmp_path)


def test_the_reader_is_the_named_one_or_the_first_that_reads_the_file(tmp_path):
    example = write_labels(tmp_path / "a.nii.gz", label_array(0))

    def name(plans, dataset_json):
        return find_reader(plans, dataset_json, ".nii.gz", example).__name__

    assert name(None, None) == "SimpleITKIO"
    assert name({"image_reader_writer": "NibabelIO"}, None) == "NibabelIO"
    assert name(None, {"overwrite_image_reader_writer": "NibabelIOWithReorient"}) == "NibabelIOWithReorient"
    assert name({"image_reader_writer": "NibabelIO"}, {"overwrite_image_reader_writer": "SimpleITKIO"}) == "NibabelIO"
    assert name({}, {"overwrite_image_reader_writer": "None"}) == "SimpleITKIO"


def test_a_reader_that_fails_on_the_file_gives_way_to_the_next(tmp_path):
    nibabel = pytest.importorskip("nibabel")
    sheared = label_array(0).astype("f4")
    affine = [[1, 0.4, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]  # ITK refuses axes that are not orthogonal
    nibabel.save(nibabel.Nifti1Image(sheared, affine), tmp_path / "a.nii.gz")
    assert find_reader(None, None, ".nii.gz", tmp_path / "a.nii.gz").__name__ == "NibabelIO"


def test_unknown_readers_and_unreadable_files_are_refused(tmp_path):
    broken = tmp_path / "a.nii.gz"
    broken.write_bytes(b"not an image")
    with pytest.raises(DataError, match="no reader 'MyIO'"):
        find_reader({"image_reader_writer": "MyIO"}, None, ".nii.gz", broken)
    with pytest.raises(DataError, match="no reader can read") as caught:
        find_reader(None, None, ".nii.gz", broken)
    assert "SimpleITKIO: " in caught.value.why
    assert "NibabelIO: " in caught.value.why
    with pytest.raises(DataError, match="no reader can read"):
        find_reader(None, None, ".xyz", broken)
