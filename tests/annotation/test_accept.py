from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

import nnssl
from nnssl.annotation.suggest import voxel_hash
from nnssl.data.raw import read_raw_dataset
from nnssl.errors import DataError, UsageError
from tests.inference.model_for_tests import read_mask
from tests.tiny_raw import NAME, write_raw


@pytest.fixture
def raw(tmp_path, monkeypatch) -> Path:
    """Return a raw data set of 5 labelled and 4 unlabelled scans, with folds and without preprocessed scans."""
    for variable in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        (tmp_path / variable).mkdir()
        monkeypatch.setenv(variable, str(tmp_path / variable))
    folder = write_raw(tmp_path / "nnUNet_raw", labelled=5, unlabelled=4)
    cases = [f"case_{n:02d}" for n in range(5)]
    split = {"train": cases[:4], "val": cases[4:], "unlabelled": [f"un_{n:02d}" for n in range(4)],
             "labelled_order": cases[:4]}  # fmt: skip
    (tmp_path / "nnUNet_preprocessed" / NAME).mkdir()
    (tmp_path / "nnUNet_preprocessed" / NAME / "splits_final.json").write_text(json.dumps([split]))
    return folder


@pytest.fixture
def masks(raw, tmp_path) -> Path:
    """Return a folder with masks of two unlabelled scans."""
    folder = tmp_path / "masks"
    folder.mkdir()
    for number, case in enumerate(("un_01", "un_03")):
        write_mask(folder, raw, case, number + 1)
    return folder


def write_mask(folder: Path, raw: Path, case: str, value: int = 1, **changes) -> None:
    scan = next(path for path in raw.glob(f"images*/{case}_0000.nii.gz"))
    image = sitk.ReadImage(str(scan))
    values = np.zeros(image.GetSize()[::-1], np.uint8)
    values[4:8, 4:8, 4:8] = value
    mask = sitk.GetImageFromArray(values)
    mask.CopyInformation(image)
    if "spacing" in changes:
        mask.SetSpacing(changes["spacing"])
    sitk.WriteImage(mask[:-1] if changes.get("cut") else mask, str(folder / f"{case}.nii.gz"))


def everything(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def split_of(raw: Path) -> dict:
    return json.loads((raw.parents[1] / "nnUNet_preprocessed" / NAME / "splits_final.json").read_text())[0]


def test_masks_become_labels_and_scans_move(raw, masks) -> None:
    before, scan = split_of(raw), (raw / "imagesUn" / "un_01_0000.nii.gz").read_bytes()
    result = nnssl.accept(masks, dataset=NAME)
    assert result.accepted == ["un_01", "un_03"]
    assert (result.labelled, result.unlabelled) == (7, 2)
    found = read_raw_dataset(NAME)
    assert set(found.unlabelled) == {"un_00", "un_02"}
    assert {"un_01", "un_03"} < set(found.labelled)
    assert found.dataset_json["numTraining"] == 7
    assert (raw / "labelsTr" / "un_01.nii.gz").read_bytes() == (masks / "un_01.nii.gz").read_bytes()
    assert (raw / "imagesTr" / "un_01_0000.nii.gz").read_bytes() == scan
    after = split_of(raw)
    assert after["val"] == before["val"]
    assert after["train"] == [*before["train"], "un_01", "un_03"]
    assert after["unlabelled"] == ["un_00", "un_02"]
    assert after["labelled_order"] == [*before["labelled_order"], "un_01", "un_03"]
    assert [path.name for path in raw.iterdir() if path.name.startswith(".")] == []
    assert json.loads((raw / "accepted.json").read_text()) == [{"cases": ["un_01", "un_03"], "strategy": ""}]
    # again: nothing is left to do, and nothing changes
    state = everything(raw)
    again = nnssl.accept(masks, dataset=NAME)
    assert (again.accepted, again.already) == ([], ["un_01", "un_03"])
    assert everything(raw) == state
    # another mask, and a new one of a labelled case
    write_mask(masks, raw, "un_00")
    write_mask(masks, raw, "un_01", 2)
    with pytest.raises(UsageError, match=r"1 case\(s\) are labelled already") as error:
        nnssl.accept(masks, dataset=NAME)
    assert "--overwrite" in error.value.run
    assert everything(raw) == state
    last = nnssl.accept(masks, dataset=NAME, overwrite=True)
    assert (last.accepted, last.replaced, last.already) == (["un_00"], ["un_01"], ["un_03"])
    assert 2 in read_mask(raw / "labelsTr" / "un_01.nii.gz")
    assert (last.labelled, last.unlabelled) == (8, 1)


def test_what_a_suggestion_noted_decides_which_masks_count(raw, masks) -> None:
    hashes = {"un_01.nii.gz": voxel_hash(read_mask(masks / "un_01.nii.gz")), "un_03.nii.gz": "of another mask"}
    noted = {
        "dataset": NAME,
        "strategy": "entropy",
        "cases": {"un_01": {}, "un_02": {}, "un_03": {}},
        "prefilled": hashes,
    }
    (masks / "suggestion.json").write_text(json.dumps(noted))
    # ITK-SNAP writes other types and headers: the same labels are the same mask
    image = sitk.Cast(sitk.ReadImage(str(masks / "un_01.nii.gz")), sitk.sitkInt16)
    sitk.WriteImage(image, str(masks / "un_01.nii.gz"))
    result = nnssl.accept(masks)
    assert (result.accepted, result.unchanged, result.missing) == (["un_03"], ["un_01"], ["un_02"])
    assert json.loads((raw / "accepted.json").read_text())[0]["strategy"] == "entropy"
    assert nnssl.accept(masks, unchanged=True).accepted == ["un_01"]


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda masks, raw: write_mask(masks, raw, "un_03", 7), "7"),
        (lambda masks, raw: write_mask(masks, raw, "un_03", cut=True), "shape"),
        (lambda masks, raw: write_mask(masks, raw, "un_03", spacing=(2.0, 1.0, 1.0)), "spacing"),
        (lambda masks, raw: (masks / "un_03.nii.gz").write_bytes(b"no image"), "un_03"),
        (lambda masks, raw: shutil.copy(masks / "un_01.nii.gz", masks / "stranger.nii.gz"), "stranger"),
        (lambda masks, raw: [path.unlink() for path in masks.iterdir()], "CASE.nii.gz"),
    ],
)
def test_one_bad_mask_leaves_everything_as_it_was(raw, masks, spoil, words) -> None:
    spoil(masks, raw)
    root = raw.parents[1]
    state = {name: data for name, data in everything(root).items() if not name.startswith("masks")}
    with pytest.raises(DataError) as error:
        nnssl.accept(masks, dataset=NAME)
    assert words in str(error.value)
    assert {name: data for name, data in everything(root).items() if not name.startswith("masks")} == state


def test_an_explicit_list_of_cases_gets_the_new_ones(raw, masks) -> None:
    content = json.loads((raw / "dataset.json").read_text())
    content["dataset"] = {
        f"case_{n:02d}": {"images": [f"imagesTr/case_{n:02d}_0000.nii.gz"], "label": f"labelsTr/case_{n:02d}.nii.gz"}
        for n in range(5)
    }
    (raw / "dataset.json").write_text(json.dumps(content))
    nnssl.accept(masks, dataset=NAME)
    found = json.loads((raw / "dataset.json").read_text())["dataset"]
    assert found["un_01"] == {"images": ["imagesTr/un_01_0000.nii.gz"], "label": "labelsTr/un_01.nii.gz"}
    assert len(read_raw_dataset(NAME).labelled) == 7


def test_folds_in_the_raw_folder_follow_and_wrong_folds_stop_it(raw, masks) -> None:
    (raw / "splits_final.json").write_text(json.dumps([{"train": ["case_00"], "val": ["case_01"]}]))
    nnssl.accept(masks, dataset=NAME)
    assert json.loads((raw / "splits_final.json").read_text()) == [
        {"train": ["case_00", "un_01", "un_03"], "val": ["case_01"]}
    ]
    write_mask(masks, raw, "un_00")
    (raw / "splits_final.json").write_text(json.dumps([{"train": ["who"], "val": ["case_01"]}]))
    state = everything(raw)
    with pytest.raises(DataError, match="does not have"):
        nnssl.accept(masks, dataset=NAME)
    assert everything(raw) == state


def test_wrong_arguments(raw, masks, tmp_path) -> None:
    with pytest.raises(UsageError, match="no such folder"):
        nnssl.accept(tmp_path / "nowhere")
    with pytest.raises(UsageError, match="is not known"):
        nnssl.accept(masks)
    with pytest.raises(UsageError, match="no data set"):
        nnssl.accept(masks, dataset=3)


def test_tiff_scans_move_with_the_files_of_their_voxel_sizes(tmp_path, monkeypatch) -> None:
    import tifffile

    for variable in ("nnUNet_raw", "nnUNet_preprocessed"):
        (tmp_path / variable).mkdir()
        monkeypatch.setenv(variable, str(tmp_path / variable))
    raw, masks = tmp_path / "nnUNet_raw" / "Dataset911_Tiff", tmp_path / "masks"
    masks.mkdir()
    values = np.zeros((6, 7, 8), np.uint8)
    values[2:4, 2:4, 2:4] = 1
    for folder, name in (("imagesTr", "a_0000"), ("labelsTr", "a"), ("imagesUn", "b_0000")):
        (raw / folder).mkdir(parents=True, exist_ok=True)
        tifffile.imwrite(raw / folder / f"{name}.tif", values)
        (raw / folder / f"{name[0]}.json").write_text('{"spacing": [2.0, 1.0, 1.0]}')
    tifffile.imwrite(masks / "b.tif", values)
    (masks / "b.json").write_text('{"spacing": [2.0, 1.0, 1.0]}')
    content = {"channel_names": {"0": "EM"}, "labels": {"background": 0, "box": 1}, "numTraining": 1}
    (raw / "dataset.json").write_text(json.dumps(content | {"file_ending": ".tif"}))
    assert nnssl.accept(masks, dataset=911).accepted == ["b"]
    there = sorted(path.relative_to(raw).as_posix() for path in raw.rglob("b*"))
    assert there == ["imagesTr/b.json", "imagesTr/b_0000.tif", "labelsTr/b.json", "labelsTr/b.tif"]
