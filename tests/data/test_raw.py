from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from nnssl.data.raw import (
    channels_of,
    clashing_names,
    dataset_name,
    overlooked_folders,
    patient_of,
    read_raw_dataset,
    reserved_names,
)
from nnssl.errors import DataError, EnvironmentProblem, UsageError

DESCRIPTION = {
    "channel_names": {"0": "T1", "1": "T2"},
    "labels": {"background": 0, "core": 1},
    "numTraining": 2,
    "file_ending": ".nii.gz",
    "cases": {"a": {"patient": "anna"}, "u": {"patient": "anna", "domain": "site1"}},
}


def touch(folder: Path, *files: str) -> None:
    for file in files:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).touch()


def describe(folder: Path, **changes: object) -> None:
    content = {key: value for key, value in (DESCRIPTION | changes).items() if value is not None}
    (folder / "dataset.json").write_text(json.dumps(content))


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("nnUNet_raw", str(tmp_path))
    return tmp_path


@pytest.fixture
def folder(root: Path) -> Path:
    folder = root / "Dataset012_Toy"
    touch(folder, *(f"imagesTr/{case}_{channel}.nii.gz" for case in ("b", "a") for channel in ("0001", "0000")))
    touch(folder, "labelsTr/a.nii.gz", "labelsTr/b.nii.gz", "imagesUn/u_0000.nii.gz", "imagesTs/t_1_0000.nii.gz")
    describe(folder)
    return folder


def test_reads_all_three_kinds(folder: Path) -> None:
    raw = read_raw_dataset(12)
    assert (raw.name, raw.folder, raw.file_ending) == ("Dataset012_Toy", folder, ".nii.gz")
    assert raw.channel_names == ["T1", "T2"]
    assert [list(part) for part in (raw.labelled, raw.unlabelled, raw.test)] == [["a", "b"], ["u"], ["t_1"]]
    assert raw.labelled["a"].images == tuple(folder / "imagesTr" / f"a_{n}.nii.gz" for n in ("0000", "0001"))
    assert raw.labelled["a"].label == folder / "labelsTr" / "a.nii.gz"
    assert raw.unlabelled["u"].label is None
    assert raw.test["t_1"].label is None
    assert raw.patients() == {"a": "anna", "b": "b", "u": "anna"}


def test_folders_of_unlabelled_and_test_scans_may_be_missing(root: Path) -> None:
    folder = root / "Dataset001_Few"
    touch(folder, "imagesTr/a_0000.nii.gz")
    describe(folder)
    raw = read_raw_dataset("Dataset001_Few")
    assert (raw.unlabelled, raw.test) == ({}, {})


@pytest.mark.parametrize("name", [12, "12", "012", "Dataset012_Toy"])
def test_ways_to_name_a_dataset(folder: Path, name: str | int) -> None:
    assert dataset_name(name, folder.parent) == "Dataset012_Toy"


def test_ids_of_four_digits(root: Path) -> None:
    (root / "Dataset1234_Big").mkdir()
    (root / "Dataset123_Small").mkdir()
    assert dataset_name(1234, root) == "Dataset1234_Big"
    assert dataset_name(123, root) == "Dataset123_Small"


@pytest.mark.parametrize("name", [13, "1", "Toy", "Dataset012", "Dataset012_Other", "", "²"])
def test_unknown_dataset_lists_what_is_there(folder: Path, name: str | int) -> None:
    with pytest.raises(UsageError, match="there is no data set") as caught:
        dataset_name(name, folder.parent)
    assert "Dataset012_Toy" in caught.value.why


def test_two_datasets_with_one_id(folder: Path) -> None:
    (folder.parent / "Dataset012_Twin").mkdir()
    with pytest.raises(UsageError, match="several data sets have the id 12") as caught:
        dataset_name(12, folder.parent)
    assert "Dataset012_Toy, Dataset012_Twin" in caught.value.why


def test_an_empty_root_offers_the_phantom(root: Path) -> None:
    with pytest.raises(UsageError) as caught:
        dataset_name(1, root)
    assert caught.value.run.startswith("nnssl_phantom")


def test_variable_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("nnUNet_raw", raising=False)
    with pytest.raises(EnvironmentProblem, match="nnUNet_raw is not set"):
        read_raw_dataset(1)


def test_missing_description(folder: Path) -> None:
    (folder / "dataset.json").unlink()
    with pytest.raises(DataError, match="a file is missing"):
        read_raw_dataset(12)


@pytest.mark.parametrize("key", ["labels", "file_ending", "channel_names"])
def test_incomplete_description(folder: Path, key: str) -> None:
    describe(folder, **{key: None})
    with pytest.raises(DataError, match="incomplete") as caught:
        read_raw_dataset(12)
    assert caught.value.why == f"missing: {key}"


@pytest.mark.parametrize(
    ("changes", "fragment"),
    [
        ({"channel_names": ["T1"]}, "channel_names is not a JSON object"),
        ({"cases": ["a"]}, "cases is not a JSON object"),
        ({"cases": {"a": "anna"}}, "cases: a is not a JSON object"),
        ({"dataset": ["a"]}, "dataset is not a JSON object"),
        ({"dataset": {"a": {"images": ["a.nii.gz"]}}}, "dataset: a has no 'images' or no 'label'"),
        ({"dataset": {"a": {"images": [], "label": "a.nii.gz"}}}, "dataset: a has no 'images' or no 'label'"),
    ],
)
def test_malformed_description(folder: Path, changes: dict[str, object], fragment: str) -> None:
    describe(folder, **changes)
    with pytest.raises(DataError, match="malformed") as caught:
        read_raw_dataset(12)
    assert fragment in caught.value.why


def test_description_that_is_a_list(folder: Path) -> None:
    (folder / "dataset.json").write_text("[]")
    with pytest.raises(DataError, match="malformed"):
        read_raw_dataset(12)


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("imagesUn/u.nii.gz", "1 file name(s) are not of the form CASE_0000.nii.gz"),
        ("imagesTr/a_000.nii.gz", "1 file name(s) are not of the form CASE_0000.nii.gz"),
        ("imagesUn/x.txt", "1 file name(s) are not of the form CASE_0000.nii.gz"),
        ("imagesTs/t_0000.nii", "1 image(s) do not end with .nii.gz, the file_ending of dataset.json"),
        ("imagesUn/U_0000.NII.GZ", "1 image(s) do not end with .nii.gz, the file_ending of dataset.json"),
    ],
)
def test_file_without_channel_suffix_or_ending(folder: Path, file: str, message: str) -> None:
    touch(folder, file)
    with pytest.raises(DataError, match=re.escape(message)) as caught:
        read_raw_dataset(12)
    assert Path(file).name in caught.value.why
    assert caught.value.where == str(folder / Path(file).parent)


def test_hidden_files_are_ignored(folder: Path) -> None:
    touch(folder, "imagesUn/.DS_Store")
    assert list(read_raw_dataset(12).unlabelled) == ["u"]


def test_spacing_files_beside_tif_are_ignored(root: Path) -> None:
    folder = root / "Dataset002_Tif"
    touch(folder, "imagesTr/a_0000.tif", "imagesTr/a.json", "labelsTr/a.tif", "labelsTr/a.json")
    describe(folder, file_ending=".tif")
    assert list(read_raw_dataset(2).labelled) == ["a"]


def test_no_labelled_case(folder: Path) -> None:
    for file in (folder / "imagesTr").iterdir():
        file.unlink()
    with pytest.raises(DataError, match="no labelled cases"):
        read_raw_dataset(12)


def test_explicit_list_replaces_the_folders(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCANS", str(tmp_path / "scans"))
    listed = {
        "y": {"images": ["$SCANS/y_t1.nii.gz", "$SCANS/y_t2.nii.gz"], "label": "labelsTr/y.nii.gz"},
        "x": {"images": ["imagesTr/x_0000.nii.gz"], "label": "$SCANS/x.nii.gz"},
    }
    describe(folder, dataset=listed)
    labelled = read_raw_dataset(12).labelled
    assert list(labelled) == ["x", "y"]
    assert labelled["y"].images == (tmp_path / "scans" / "y_t1.nii.gz", tmp_path / "scans" / "y_t2.nii.gz")
    assert labelled["y"].label == folder / "labelsTr" / "y.nii.gz"
    assert labelled["x"].label == tmp_path / "scans" / "x.nii.gz"


def test_listed_links_keep_their_names(folder: Path) -> None:
    touch(folder, "store/0f3a")
    (folder / "x_0000.nii.gz").symlink_to(folder / "store" / "0f3a")
    describe(folder, dataset={"x": {"images": ["x_0000.nii.gz"], "label": "x.nii.gz"}})
    assert read_raw_dataset(12).labelled["x"].images[0].name == "x_0000.nii.gz"


def test_channels_and_patients() -> None:
    assert channels_of({"modality": {"0": "CT"}}) == {"0": "CT"}
    assert channels_of({"channel_names": {"0": "T1"}, "modality": {"0": "CT"}}) == {"0": "T1"}
    assert channels_of({}) == {}
    assert patient_of("a", DESCRIPTION) == "anna"
    assert patient_of("b", DESCRIPTION) == "b"
    assert patient_of("a", {"cases": {"a": {"domain": "site1"}}}) == "a"


@pytest.mark.parametrize(("ending", "problems"), [(".tif", 1), (".TIFF", 1), (".nii.gz", 0)])
def test_names_of_the_files_beside_tiff_masks_are_reserved(ending: str, problems: int) -> None:
    assert len(reserved_names(["summary", "a"], ending)) == problems


def test_names_clash_in_both_orders_of_the_alphabet() -> None:
    assert [text.split(" cannot")[0] for text in clashing_names(["X_seg", "b", "X", "a_seg", "X_seg_seg"])] == [
        "the cases X and X_seg",
        "the cases X_seg and X_seg_seg",
    ]


def test_folders_of_unlabelled_scans_that_nobody_reads(folder: Path) -> None:
    for name in ("unlabeled", "imagesUnlabelled", "imagesUn", "labelsVa"):
        (folder / name).mkdir(exist_ok=True)
    assert overlooked_folders(folder) == ["imagesUnlabelled", "unlabeled"]
