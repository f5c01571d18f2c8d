from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from nnssl.cli.convert import main
from nnssl.dataset_conversion.engine import case_files as cases
from nnssl.system.files import content_hash
from tests.dataset_conversion.miniatures import assert_scan, convert_folder, label, names, read, scan, use_raw, write
from tests.dataset_conversion.test_acdc import download as acdc  # noqa: F401 - a fixture
from tests.orientations import SIZES, image_with_corner, reorient


def stamps(folder: Path) -> dict[str, int]:
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.rglob("*.nii.gz")}


def test_manifest_lists_inputs_and_outputs(world: tuple[Path, Path]) -> None:
    source, folder = world
    assert convert_folder(source) == 0
    manifest = json.loads((folder / "conversion.json").read_text())
    assert manifest["converter"] == "folder"
    assert manifest["cases"]["b"]["inputs"] == {
        name: content_hash(source / name) for name in ("images/b.nrrd", "labels/b.nrrd")
    }
    written = {name: digest for case in manifest["cases"].values() for name, digest in case["outputs"].items()}
    assert written == {name: content_hash(folder / name) for name in stamps(folder)}
    assert names(folder) == ["conversion.json", "dataset.json", "imagesTr", "labelsTr"]


def test_a_repeated_run_writes_nothing_again(world: tuple[Path, Path], capsys) -> None:
    source, folder = world
    assert convert_folder(source) == 0
    before = stamps(folder)
    assert convert_folder(source, "--json") == 0
    assert stamps(folder) == before
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["kept"] == 3


def test_what_is_damaged_changed_or_new_is_converted(world: tuple[Path, Path]) -> None:
    source, folder = world
    assert convert_folder(source) == 0
    before = stamps(folder)
    (folder / "labelsTr" / "a.nii.gz").write_bytes(b"damaged")
    write(source / "images" / "b.nrrd", scan(10))
    write(source / "unlabelled" / "d.nrrd", scan(11))
    assert convert_folder(source) == 0
    after = stamps(folder)
    assert {name for name in before if before[name] == after[name]} == {
        "imagesTr/c_0000.nii.gz", "labelsTr/c.nii.gz",
    }  # fmt: skip
    assert names(folder / "imagesUn") == ["d_0000.nii.gz"]
    assert set(json.loads((folder / "dataset.json").read_text())["cases"]) == set("abcd")


def test_a_stopped_run_goes_on(world: tuple[Path, Path], monkeypatch) -> None:
    source, folder = world
    real, calls = cases._save, []

    def stop_at_the_fourth(image, target) -> None:
        calls.append(target.name)
        if len(calls) == 4:
            raise KeyboardInterrupt
        real(image, target)

    with monkeypatch.context() as patch:
        patch.setattr(cases, "_save", stop_at_the_fourth)
        assert convert_folder(source) == 130
    assert not (folder / "dataset.json").exists()
    calls.clear()
    monkeypatch.setattr(cases, "_save", lambda image, target: (calls.append(target.name), real(image, target))[1])
    assert convert_folder(source) == 0
    assert calls == [f".part_{name}.nii.gz" for name in ("b_0000", "b", "c_0000", "c")]
    assert names(folder) == ["conversion.json", "dataset.json", "imagesTr", "labelsTr"]


LIMITED = """
import resource, signal, sys
from nnssl.cli.convert import main
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (16384, 16384))
sys.exit(main(sys.argv[1:]))
"""


def test_a_full_disk_is_exit_code_4(world: tuple[Path, Path]) -> None:
    source, folder = world
    write(source / "images" / "a.nrrd", scan(9, (30, 30, 30)))
    write(source / "labels" / "a.nrrd", label([1], (30, 30, 30)))
    command = [sys.executable, "-c", LIMITED, "folder", "-i", str(source), "-d", "5", "-np", "1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 4, done.stderr
    assert "No space left on device" in done.stderr
    assert names(folder) == [".conversion", "imagesTr"]
    assert names(folder / "imagesTr") == names(folder / ".conversion") == []
    assert convert_folder(source) == 0
    assert_scan(folder / "imagesTr" / "a_0000.nii.gz", scan(9, (30, 30, 30)))


def test_splits_of_a_protocol_go_with_it(acdc: Path, tmp_path: Path, monkeypatch) -> None:  # noqa: F811
    folder = use_raw(tmp_path, monkeypatch) / "Dataset005_ACDC"
    command = ["acdc", "-i", str(acdc), "-d", "5", "-np", "1"]
    assert main(command) == 0
    users = folder / "splits_final.json"
    users.write_text("[]")
    assert main(command) == 0
    assert users.read_text() == "[]"
    manifest = json.loads((folder / "conversion.json").read_text())
    assert manifest["protocol"] is None
    (folder / "conversion.json").write_text(json.dumps(manifest | {"protocol": "acdc"}))
    assert main(command) == 0
    assert not users.exists()


def test_files_of_a_killed_run_are_removed(world: tuple[Path, Path]) -> None:
    source, folder = world
    assert convert_folder(source) == 0
    (folder / "dataset.json").unlink()
    (folder / "imagesTr" / "z_0000.nii.gz").write_bytes(b"left")
    (folder / "labelsTr" / "z.nii.gz").write_bytes(b"left")
    assert convert_folder(source) == 0
    assert names(folder / "labelsTr") == [f"{case}.nii.gz" for case in "abc"]
    assert names(folder / "imagesTr") == [f"{case}_0000.nii.gz" for case in "abc"]


def test_files_of_others_are_refused(world: tuple[Path, Path], capsys) -> None:
    source, folder = world
    assert convert_folder(source) == 0
    foreign = folder / "imagesTr" / "z_0000.nii.gz"
    foreign.write_bytes(b"mine")
    assert convert_folder(source) == 3
    assert f"{foreign} was not made by nnssl_convert" in capsys.readouterr().err
    assert foreign.read_bytes() == b"mine"


def test_one_process_writes_at_a_time(world: tuple[Path, Path], capsys) -> None:
    source, folder = world
    lock = folder / ".conversion" / "lock"
    lock.parent.mkdir(parents=True)
    lock.write_text(str(os.getpid()))
    assert convert_folder(source) == 4
    assert "another nnssl_convert writes this data set" in capsys.readouterr().err
    assert names(folder) == [".conversion"]
    with subprocess.Popen([sys.executable, "-c", ""]) as gone:
        gone.wait()
    lock.write_text(str(gone.pid))
    assert convert_folder(source) == 0
    assert not lock.exists()


def test_two_workers_write_the_same(world: tuple[Path, Path], tmp_path: Path, monkeypatch) -> None:
    source, folder = world
    assert convert_folder(source) == 0
    monkeypatch.setenv("nnUNet_raw", str(tmp_path / "other"))
    assert main(["folder", "-i", str(source), "-d", "5", "-np", "2"]) == 0
    other = tmp_path / "other" / folder.name
    assert {name: content_hash(folder / name) for name in stamps(folder)} == {
        name: content_hash(other / name) for name in stamps(other)
    }
    assert (folder / "conversion.json").read_bytes() == (other / "conversion.json").read_bytes()


def test_cases_that_are_gone_are_not_left_in_silence(world: tuple[Path, Path], capsys) -> None:
    source, _ = world
    assert convert_folder(source) == 0
    for name in ("images/c.nrrd", "labels/c.nrrd"):
        (source / name).unlink()
    assert convert_folder(source) == 3
    assert "holds 1 case(s) that this conversion does not make (c)" in capsys.readouterr().err


def test_a_label_on_other_axes_lies_on_its_image_after_the_command(tmp_path: Path, monkeypatch, capsys) -> None:
    """Two axes of the label of b run the other way than those of its image; both lie in the same place."""
    source, images = tmp_path / "mine", {}
    for number, case in enumerate(("a", "b")):
        images[case] = image_with_corner(SIZES["volume"], dtype=np.int16)
        images[case].SetOrigin((float(number), 0.0, 0.0))
        for folder in ("images", "labels"):
            (source / folder).mkdir(parents=True, exist_ok=True)
        sitk.WriteImage(images[case] * 100 + number, str(source / "images" / f"{case}.nii.gz"))
        turned = reorient(images[case], ((0, 1, 2), (case == "b", case == "b", False)))
        sitk.WriteImage(turned, str(source / "labels" / f"{case}.nii.gz"))
    for option in ([], ["--fix_geometry"]):
        folder = use_raw(tmp_path, monkeypatch) / "Dataset005_mine"
        shutil.rmtree(folder, ignore_errors=True)
        assert convert_folder(source, "-o", "mine", *option) == 0
        lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("note: ")]
        assert lines == [
            "note: b: labels/b.nii.gz lies in the place of its image and is brought to its axes (x and y reversed)"
        ]
        for case, image in images.items():
            voxels = read(folder / "labelsTr" / f"{case}.nii.gz")[0]
            np.testing.assert_array_equal(voxels, sitk.GetArrayFromImage(image))
