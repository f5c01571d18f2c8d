from __future__ import annotations

import os
import shutil
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from nnssl.cleaning import api
from nnssl.cleaning.api import KILLED, NO_PLANS, NO_SCAN, OLD_FILES, clean, in_words
from nnssl.errors import EnvironmentProblem, UsageError
from nnssl.names import PLANS_JSON
from nnssl.system.locks import hold_lock
from nnssl.training.run_folder import lock_fold
from tests.planning.raw_for_tests import write_json

NAME = "Dataset005_Old"
CASES = ("a", "b")
OLD = time.time() - 7200


def write_plans(path: Path, *folders: str) -> None:
    write_json(path, {"configurations": {name: {"data_identifier": name} for name in folders}})


def write_cases(folder: Path, *cases: str, manifest: bool = True, size: int = 100) -> None:
    folder.mkdir(exist_ok=True)
    for case in cases:
        for ending in (".pkl", ".b2nd", "_seg.b2nd"):
            (folder / f"{case}{ending}").write_bytes(bytes(size))
    if manifest:
        write_json(folder.with_name(f"{folder.name}.manifest.json"), {})


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A data set with plans and all that they need, and nothing else."""
    for name in ("raw", "preprocessed", "results"):
        monkeypatch.setenv(f"nnUNet_{name}", str(tmp_path / name))
        (tmp_path / name / NAME).mkdir(parents=True)
    raw, preprocessed = tmp_path / "raw" / NAME, tmp_path / "preprocessed" / NAME
    write_json(raw / "dataset.json", {"channel_names": {"0": "MRI"}, "labels": {"background": 0, "x": 1},
                                      "file_ending": ".nii.gz", "numTraining": 2})  # fmt: skip
    for folder, end in (("imagesTr", "_0000.nii.gz"), ("labelsTr", ".nii.gz")):
        (raw / folder).mkdir()
        for case in CASES:
            (raw / folder / f"{case}{end}").touch()
    (raw / "imagesUn").mkdir()
    (raw / "imagesUn" / "un_0000.nii.gz").touch()
    write_json(preprocessed / "splits_final.json", [{"train": ["a"], "val": ["b"], "unlabelled": ["un"]}])
    for name in ("dataset.json", "dataset_fingerprint.json", "data_check.json"):
        write_json(preprocessed / name, {})
    write_plans(preprocessed / "nnUNetPlans.json", "P_2d", "P_3d")
    for name in ("P_2d", "P_3d"):
        write_cases(preprocessed / name, *CASES)
        write_cases(preprocessed / f"{name}_unlabelled", "un")
    (preprocessed / "gt_segmentations").mkdir()
    (preprocessed / "gt_segmentations" / "a.nii.gz").touch()
    return SimpleNamespace(raw=raw, preprocessed=preprocessed, results=tmp_path / "results" / NAME, root=tmp_path)


def tree(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def found(result: api.CleanResult) -> list[tuple[str, set[str]]]:
    return [(each.why, {path.name for path in each.paths}) for each in result.left_overs]


def test_what_plans_need_is_kept(data) -> None:
    before = tree(data.root)
    result = clean(remove=True)
    assert (found(result), result.frees_bytes, result.notes, result.in_use) == ([], 0, (), ())
    assert result.lines() == ["nothing is left over"]
    assert tree(data.root) == before


def test_folders_without_plans_are_listed_and_removed_only_where_asked_to(data) -> None:
    before = tree(data.root)
    for name in ("P_old", "P_old_unlabelled"):
        write_cases(data.preprocessed / name, *CASES)
    write_cases(data.preprocessed / "P_stock", *CASES, manifest=False)
    write_json(data.preprocessed / "P_gone.manifest.json", {})
    with_old = tree(data.root)
    result = clean("5")
    assert found(result) == [
        (NO_PLANS, {"P_gone.manifest.json"}),
        (NO_PLANS, {"P_old", "P_old.manifest.json"}),
        (NO_PLANS, {"P_old_unlabelled", "P_old_unlabelled.manifest.json"}),
        (NO_PLANS, {"P_stock"}),
    ]
    assert [each.bytes for each in result.left_overs] == [2, 602, 602, 600]
    assert (result.frees_bytes, result.removed) == (1806, False)
    assert tree(data.root) == with_old
    assert "  602 B  P_old and 1 more" in "\n".join(result.lines())
    assert result.lines()[-1] == "removing this would free 1.81 kB of 1.81 kB"
    removed = clean(NAME, remove=True)
    assert (removed.left_overs, removed.frees_bytes, removed.removed) == (result.left_overs, 1806, True)
    assert tree(data.root) == before
    assert not list(data.preprocessed.glob("P_old*"))


def test_a_shared_file_frees_nothing_until_its_last_name_goes(data) -> None:
    for name, sizes in (("P_old", 100), ("P_older", 1000)):
        write_cases(data.preprocessed / name, *CASES, manifest=False, size=sizes)
    shared = data.preprocessed / "P_old" / "a.b2nd"
    for place in (data.preprocessed / "P_2d", data.preprocessed / "P_older"):
        (place / "a.b2nd").unlink()
        os.link(shared, place / "a.b2nd")
    both = data.preprocessed / "P_old" / "b.b2nd"
    (data.preprocessed / "P_older" / "b.b2nd").unlink()
    os.link(both, data.preprocessed / "P_older" / "b.b2nd")
    expected = 4 * 100 + 4 * 1000 + 100  # without a.b2nd, which P_2d needs, and with one b.b2nd
    listed = clean()
    assert listed.frees_bytes == expected
    assert listed.lines()[-1].endswith("the rest is shared with other plans")
    assert clean(remove=True).frees_bytes == expected
    assert (data.preprocessed / "P_2d" / "a.b2nd").read_bytes() == bytes(100)


def test_cases_whose_scans_are_gone(data) -> None:
    for name in ("P_2d", "P_3d_unlabelled"):
        write_cases(data.preprocessed / name, "gone", "b")
    result = clean(remove=True)
    files = {"gone.pkl", "gone.b2nd", "gone_seg.b2nd"}
    assert found(result)[0] == (NO_SCAN, files)
    assert found(result)[1] == (NO_SCAN, files)
    assert not list(data.preprocessed.glob("*/gone*"))
    assert (data.preprocessed / "P_3d_unlabelled" / "b.pkl").exists()


@pytest.mark.parametrize("name", ["raw data", "splits"])
def test_without_knowledge_of_the_scans_no_case_is_gone(data, name: str) -> None:
    write_cases(data.preprocessed / "P_2d", "gone")
    if name == "raw data":
        shutil.rmtree(data.raw)
    else:
        write_json(data.preprocessed / "splits_final.json", [["a"]])
    result = clean(remove=True)
    assert found(result) == []
    assert any("cases without a scan are not looked for" in note for note in result.notes)


def test_what_a_killed_command_left(data) -> None:
    partial = data.preprocessed / ".P_2d.partial"
    (partial / "a").mkdir(parents=True)
    (partial / "a" / "a.b2nd").write_bytes(bytes(7))
    write_json(partial / "b.json", {})
    gone = data.preprocessed / ".P_old.partial"
    gone.mkdir()
    write_json(gone / "b.json", {})
    names = (".P.json.0a1b2c3d.tmp", "gt_segmentations/.part_a.nii.gz", "P_3d/.a.b2nd.link", "facts.sqlite.unusable")
    old = [data.preprocessed / name for name in names]
    for path in old:
        path.write_bytes(bytes(5))
        os.utime(path, (OLD, OLD))
    new = data.preprocessed / ".dataset.json.0a1b2c3d.tmp"
    new.touch()
    result = clean(remove=True)
    assert found(result) == [(KILLED, {"a"}), (NO_PLANS, {".P_old.partial"}), (OLD_FILES, {path.name for path in old})]
    assert result.left_overs[0].bytes == 7
    assert not any(path.exists() for path in (*old, gone, partial / "a"))
    assert new.exists()
    assert (partial / "b.json").exists()  # the note of a complete case, with which planning goes on


def test_what_a_running_command_holds_is_kept(data) -> None:
    for name in ("P_old", "P_new"):
        write_cases(data.preprocessed / name, *CASES)
    with hold_lock(data.preprocessed / ".P_new.lock", "", where=data.root, run=""):
        listed, removed = clean(), clean(remove=True)
    assert found(listed) == found(removed) == [(NO_PLANS, {"P_old", "P_old.manifest.json"})]
    assert listed.in_use == removed.in_use == (data.preprocessed / "P_new",)
    assert (data.preprocessed / "P_new" / "a.pkl").exists()


def test_a_command_that_starts_meanwhile_keeps_its_folder(data, monkeypatch) -> None:
    """The folder is unneeded when it is listed; before it is removed, plans name it, or a command holds its lock."""
    for name in ("P_one", "P_two"):
        write_cases(data.preprocessed / name, *CASES)
    real = api._remove

    def start(left_over: api.LeftOver, search: object) -> int | None:
        if left_over.folder.name == "P_one":
            write_plans(data.preprocessed / "one.json", "P_one")
            return real(left_over, search)
        with hold_lock(data.preprocessed / ".P_two.lock", "", where=data.root, run=""):
            return real(left_over, search)

    monkeypatch.setattr(api, "_remove", start)
    result = clean(remove=True)
    assert (found(result), result.frees_bytes) == ([], 0)
    assert {path.name for path in result.in_use} == {"P_one", "P_two"}
    assert (data.preprocessed / "P_one" / "a.pkl").exists()
    assert (data.preprocessed / "P_two" / "a.pkl").exists()


def test_the_data_of_a_running_training_are_kept_without_plans(data) -> None:
    fold = data.results / "SupervisedTrainer__old__2d" / "fold_0"
    fold.mkdir(parents=True)
    (fold / "checkpoint_latest.pth").touch()
    write_plans(fold.parent / PLANS_JSON, "P_old")
    for name in ("P_old", "P_old_unlabelled"):
        write_cases(data.preprocessed / name, *CASES)
    with lock_fold(fold):
        assert found(clean(remove=True)) == []
    assert len(found(clean(remove=True))) == 2
    assert (fold / "checkpoint_latest.pth").exists()


@pytest.mark.parametrize("content", [
    "{", "[]", '{"configurations": {"2d": {"inherits_from": "gone"}}}', '{"configurations": {"2d": {}}}',
])  # fmt: skip
def test_without_readable_plans_no_folder_is_left_over(data, content: str) -> None:
    write_cases(data.preprocessed / "P_old", *CASES)
    (data.preprocessed / "mine.json").write_text(content)
    before = tree(data.root)
    result = clean(remove=True)
    assert found(result) == []
    assert "mine.json" in result.notes[0]
    assert tree(data.root) == before


def test_other_files_of_a_user_are_kept(data) -> None:
    write_cases(data.preprocessed / "P_old", *CASES)
    (data.preprocessed / "P_old" / "notes.txt").touch()
    (data.preprocessed / "mine").mkdir()
    (data.preprocessed / "mine" / "plot.png").touch()
    (data.preprocessed / "empty").mkdir()
    before = tree(data.root)
    result = clean(remove=True)
    assert found(result) == []
    assert result.notes == (f"{data.preprocessed / 'P_old'} holds other files than preprocessed cases: left out",)
    assert tree(data.root) == before
    assert (data.preprocessed / "empty").is_dir()


def test_data_of_a_link_stay_where_they_are(data, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    write_cases(elsewhere, *CASES, manifest=False)
    (data.preprocessed / "P_old").symlink_to(elsewhere)
    write_json(data.preprocessed / "P_old.manifest.json", {})
    clean(remove=True)
    assert not (data.preprocessed / "P_old").exists()
    assert (elsewhere / "a.pkl").exists()


def test_wrong_names_and_places(data, monkeypatch) -> None:
    with pytest.raises(UsageError, match="no data set '7'"):
        clean(7)
    monkeypatch.setattr(api.shutil, "rmtree", lambda path: (_ for _ in ()).throw(PermissionError(13, "denied", path)))
    write_cases(data.preprocessed / "P_old", *CASES)
    with pytest.raises(EnvironmentProblem, match="cannot be read or removed") as caught:
        clean(remove=True)
    assert caught.value.where.endswith("P_old")
    monkeypatch.delenv("nnUNet_preprocessed")
    with pytest.raises(EnvironmentProblem, match="not set"):
        clean()


@pytest.mark.parametrize(("size", "words"), [
    (0, "0 B"), (999, "999 B"), (1000, "1 kB"), (1234, "1.23 kB"), (999_499, "999 kB"), (999_600, "1 MB"),
    (12_340_000_000, "12.3 GB"), (5 * 10**15, "5e+03 TB"),
])  # fmt: skip
def test_sizes_have_three_digits(size: int, words: str) -> None:
    assert in_words(size) == words
