from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from nnunetv2.imageio.nibabel_reader_writer import NibabelIO
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

from nnssl.data import known_scans
from nnssl.data.known_scans import examine_scans, known_reader
from nnssl.data.raw import RawCase
from nnssl.data.scans import Examined, Expected, ScanTask, examine
from nnssl.system.fact_store import FactStore

SHAPE = (4, 5, 6)
EXPECTED = Expected(SimpleITKIO, 1, (0, 1), ".nii.gz")


def age(folder: Path) -> None:
    """Give every file a time of long ago, so that its facts count as settled."""
    for number, path in enumerate(sorted(folder.rglob("*"))):
        os.utime(path, ns=(10**18, 10**18 + number))


def write(path: Path, voxels: np.ndarray, origin: float = 0.0) -> None:
    path.parent.mkdir(exist_ok=True)
    image = sitk.GetImageFromArray(voxels)
    image.SetOrigin((origin, 0.0, 0.0))
    sitk.WriteImage(image, str(path))


def pad(path: Path, size: int = 4000) -> None:
    """Bring a gzip file to a size by zeros after its end, which readers skip."""
    content = path.read_bytes()
    path.write_bytes(content + b"\0" * (size - len(content)))


def make_tasks(folder: Path, read_label: bool = True) -> dict[str, ScanTask]:
    """Return the tasks of a scan without findings, one with a warning, one with a problem, and an unlabelled one."""
    cases = {}
    for name in ("good", "moved", "strange", "free"):
        label = folder / f"labels/{name}.nii.gz" if name != "free" else None
        case = RawCase(name, (folder / f"images/{name}_0000.nii.gz",), label, name)
        cases[name] = ScanTask(case, "labelled" if label else "unlabelled", read_label and label is not None)
    return cases


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "raw"
    folder.mkdir()
    for seed, name in enumerate(("good", "moved", "strange", "free")):
        write(folder / f"images/{name}_0000.nii.gz", np.random.default_rng(seed).random(SHAPE, np.float32))
        label = np.zeros(SHAPE, np.uint8)
        label[1, 1, 1] = 7 if name == "strange" else 1
        if name != "free":
            write(folder / f"labels/{name}.nii.gz", label, 3.0 if name == "moved" else 0.0)
    age(folder)
    return folder


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str]]:
    """The names of the cases that are decoded, and of the files that are hashed to be compared."""
    seen: dict[str, list[str]] = {"decoded": [], "hashed": []}
    parts, hash_of = known_scans.examine_parts, known_scans.content_hash

    def decode(task: ScanTask, expected: Expected) -> Any:
        seen["decoded"].append(task.case.name)
        return parts(task, expected)

    def compare(*paths: Path) -> str:
        seen["hashed"] += [path.name for path in paths]
        return hash_of(*paths)

    monkeypatch.setattr(known_scans, "examine_parts", decode)
    monkeypatch.setattr(known_scans, "content_hash", compare)
    return seen


def look(
    folder: Path, expected: Expected = EXPECTED, read_label: bool = True, trust: bool = True
) -> dict[str, Examined]:
    with FactStore(folder.parent / "facts.sqlite", trust=trust) as store:
        return examine_scans(make_tasks(folder, read_label), expected, 1, store)


def plain(folder: Path, expected: Expected = EXPECTED, read_label: bool = True) -> dict[str, Examined]:
    """Return what the check without any facts finds."""
    return {name: examine(task, expected) for name, task in make_tasks(folder, read_label).items()}


def test_a_second_look_finds_the_same_and_opens_nothing(folder: Path, opened: dict[str, list[str]]) -> None:
    true = plain(folder)
    assert [len(true[name].problems) for name in ("good", "moved", "strange")] == [0, 0, 1]
    assert len(true["moved"].warnings) == 1
    assert look(folder) == true
    assert opened.pop("decoded") == ["good", "moved", "strange", "free"]
    opened["decoded"] = []
    assert look(folder) == true
    assert list(look(folder)) == list(true)
    assert opened == {"hashed": [], "decoded": []}


def test_verify_reads_everything(folder: Path, opened: dict[str, list[str]]) -> None:
    look(folder)
    look(folder, trust=False)
    assert opened["decoded"] == ["good", "moved", "strange", "free"] * 2


def test_two_processes_keep_the_same_facts(folder: Path, opened: dict[str, list[str]]) -> None:
    with FactStore(folder.parent / "facts.sqlite") as store:
        found = examine_scans(make_tasks(folder), EXPECTED, 2, store)
    assert found == look(folder) == plain(folder)
    assert opened["decoded"] == []


def test_another_time_costs_one_hash(folder: Path, opened: dict[str, list[str]]) -> None:
    true = look(folder)
    opened["decoded"].clear()
    os.utime(folder / "labels/good.nii.gz", ns=(10**18, 10**18 - 5))
    assert look(folder) == true
    assert opened == {"decoded": [], "hashed": ["good_0000.nii.gz", "good.nii.gz"]}
    assert look(folder) == true
    assert len(opened["hashed"]) == 2


@pytest.mark.parametrize("file", ["images/good_0000.nii.gz", "labels/good.nii.gz"])
def test_changed_content_is_read_again(folder: Path, opened: dict[str, list[str]], file: str) -> None:
    path = folder / file
    pad(path)
    before = look(folder)
    opened["decoded"].clear()
    write(path, np.zeros(SHAPE, np.float32))
    pad(path)
    after = look(folder)
    assert after["good"] == plain(folder)["good"] != before["good"]
    assert opened["decoded"] == ["good"]


def test_a_file_changed_right_after_it_was_read_is_noticed(folder: Path) -> None:
    path, good = folder / "labels/strange.nii.gz", folder / "labels/good.nii.gz"
    pad(path)
    pad(good)
    state = path.stat()
    assert look(folder)["strange"].problems
    with path.open("r+b") as file:
        file.write(good.read_bytes())
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert not look(folder)["strange"].problems


def test_hidden_labels_play_no_part(folder: Path, opened: dict[str, list[str]]) -> None:
    true = plain(folder, read_label=False)
    look(folder)
    opened["decoded"].clear()
    shutil.rmtree(folder / "labels")
    found = look(folder, read_label=False)
    assert found == true
    assert not any(outcome.problems or outcome.warnings for outcome in found.values())
    assert opened == {"decoded": [], "hashed": []}


def test_a_label_that_may_be_read_now_is_read(folder: Path, opened: dict[str, list[str]]) -> None:
    look(folder, read_label=False)
    opened["decoded"].clear()
    assert look(folder) == plain(folder)
    assert opened["decoded"] == ["good", "moved", "strange"]


@pytest.mark.parametrize(
    ("changes", "again"),
    [
        ({"labels": (0, 1, 7)}, ["good", "moved", "strange"]),
        ({"channels": 2}, ["good", "moved", "strange", "free"]),
        ({"reader": NibabelIO}, ["good", "moved", "strange", "free"]),
    ],
)
def test_other_expectations_are_checked_again(
    folder: Path, opened: dict[str, list[str]], changes: dict[str, Any], again: list[str]
) -> None:
    look(folder)
    opened["decoded"].clear()
    expected = replace(EXPECTED, **changes)
    assert look(folder, expected) == plain(folder, expected)
    assert opened["decoded"] == again


def test_other_versions_are_checked_again(
    folder: Path, opened: dict[str, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    look(folder)
    monkeypatch.setattr(known_scans, "__version__", "99")
    look(folder)
    assert opened["decoded"] == ["good", "moved", "strange", "free"] * 2


def test_a_copied_folder_costs_one_hash_and_no_message_names_the_old_place(
    folder: Path, opened: dict[str, list[str]]
) -> None:
    look(folder)
    opened["decoded"].clear()
    copy = folder.with_name("copy")
    shutil.copytree(folder, copy)
    shutil.rmtree(folder)
    found = look(copy)
    assert found == plain(copy)
    assert opened["decoded"] == ["moved", "strange"]
    assert opened["hashed"] == ["good_0000.nii.gz", "good.nii.gz", "free_0000.nii.gz"]
    assert look(copy) == found
    assert len(opened["hashed"]) == 3


def test_what_could_not_be_read_is_tried_again(folder: Path, opened: dict[str, list[str]]) -> None:
    (folder / "images/good_0000.nii.gz").write_bytes(b"damaged")
    (folder / "labels/moved.nii.gz").write_bytes(b"damaged")
    age(folder)
    assert look(folder)["good"].facts is None
    opened["decoded"].clear()
    assert look(folder)["moved"].problems
    assert opened["decoded"] == ["good", "moved"]


def test_formats_whose_voxels_lie_in_a_second_file_are_always_read(
    tmp_path: Path, opened: dict[str, list[str]]
) -> None:
    path = tmp_path / "raw/a_0000.mhd"
    write(path, np.ones(SHAPE, np.float32))
    age(path.parent)
    tasks = {"a": ScanTask(RawCase("a", (path,), None, "a"), "unlabelled", False)}
    for _ in range(2):
        with FactStore(tmp_path / "facts.sqlite") as store:
            examine_scans(tasks, replace(EXPECTED, file_ending=".mhd"), 1, store)
    assert opened["decoded"] == ["a", "a"]


@pytest.mark.parametrize(
    "spoil", [lambda _: None, lambda value: {**value, "facts": {"shape": 3}}, lambda value: [value]]
)
def test_a_damaged_fact_is_learned_again(
    folder: Path, opened: dict[str, list[str]], spoil: Callable[[Any], Any]
) -> None:
    true = look(folder)
    with FactStore(folder.parent / "facts.sqlite") as store:
        for key, fact in list(store._known.items()):
            store.put(key, replace(fact, value=spoil(fact.value)))
    assert look(folder) == true
    assert opened["decoded"] == ["good", "moved", "strange", "free"] * 2


def test_the_reader_is_looked_up_once_for_each_example(folder: Path) -> None:
    calls = []

    def find() -> type:
        calls.append(1)
        return SimpleITKIO

    example = str(folder / "images/good_0000.nii.gz")
    with FactStore(folder.parent / "facts.sqlite") as store:
        names = [known_reader(find, store, {"file_ending": ".nii.gz"}, example) for _ in range(2)]
        assert (names, len(calls)) == (["SimpleITKIO"] * 2, 1)
        known_reader(find, store, {"file_ending": ".nii.gz", "overwrite_image_reader_writer": "NibabelIO"}, example)
        os.utime(example, ns=(0, 0))
        known_reader(find, store, {"file_ending": ".nii.gz"}, example)
        assert len(calls) == 3
        known_reader(find, None, {"file_ending": ".nii.gz"}, example)
        assert len(calls) == 4
