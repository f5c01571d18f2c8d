from __future__ import annotations

import hashlib
import json
import os
import stat
from pathlib import Path

import pytest

from nnssl.errors import DataError, EnvironmentProblem
from nnssl.system.files import (
    append_text,
    check_output_file,
    check_writable,
    content_hash,
    environment_folder,
    read_json,
    read_object,
    replacing,
    settings_hash,
    write_json,
    write_text,
)


def test_environment_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("nnUNet_results", "/somewhere")
    assert environment_folder("nnUNet_results") == Path("/somewhere")
    for unset in (None, ""):
        monkeypatch.delenv("nnUNet_results", raising=False)
        if unset is not None:
            monkeypatch.setenv("nnUNet_results", unset)
        with pytest.raises(EnvironmentProblem, match="nnUNet_results is not set") as caught:
            environment_folder("nnUNet_results")
        assert caught.value.run.startswith("export nnUNet_results=")


def test_environment_folder_that_must_exist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "file"
    file.touch()
    for place, words in ((tmp_path / "gone", "a folder that does not exist"), (file, "a file")):
        monkeypatch.setenv("nnUNet_raw", str(place))
        assert environment_folder("nnUNet_raw") == place
        with pytest.raises(EnvironmentProblem, match=f"nnUNet_raw names {words}") as caught:
            environment_folder("nnUNet_raw", must_exist=True)
        assert caught.value.where == str(place)
    monkeypatch.setenv("nnUNet_raw", str(tmp_path))
    assert environment_folder("nnUNet_raw", must_exist=True) == tmp_path


def test_check_writable_makes_nothing(tmp_path: Path) -> None:
    check_writable(tmp_path / "new" / "below", "the output", "-o")
    check_output_file(tmp_path / "new" / "file.json")
    assert list(tmp_path.iterdir()) == []
    file = tmp_path / "file"
    file.touch()
    check_output_file(file)
    for check in (
        lambda: check_writable(file / "below", "the output", "-o"),
        lambda: check_output_file(file / "f.json"),
    ):
        with pytest.raises(EnvironmentProblem, match="cannot be written") as caught:
            check()
        assert caught.value.why == f"{file} is a file"


@pytest.mark.parametrize("place", ["folder", "/dev/null"])
def test_folders_and_devices_are_never_replaced(place: str, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    path = tmp_path / place
    with pytest.raises(EnvironmentProblem, match="folder or a device"):
        check_output_file(path)
    with pytest.raises(EnvironmentProblem, match="could not be written") as caught, replacing(path) as temporary:
        temporary.write_text("content")
    assert "folder or a device" in caught.value.why
    assert path.exists()
    assert not path.is_file()


def test_read_object(tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    path.write_text('{"a": 1}')
    assert read_object(path, keys=["a"]) == {"a": 1}
    with pytest.raises(DataError, match="incomplete") as caught:
        read_object(path, "make it", ["a", "b", "c"])
    assert (caught.value.why, caught.value.run) == ("missing: b, c", "make it")
    path.write_text("[1]")
    with pytest.raises(DataError, match="not a JSON object"):
        read_object(path)


def test_replacing_makes_the_folder_and_leaves_one_file(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file.txt"
    with replacing(path) as temporary:
        temporary.write_text("content")
        assert not path.exists()
        assert temporary.parent == path.parent
    assert path.read_text() == "content"
    assert list(path.parent.iterdir()) == [path]


def test_replacing_gives_the_usual_permissions(tmp_path: Path) -> None:
    (tmp_path / "usual").write_text("")
    write_text(tmp_path / "ours", "")
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("usual", "ours")]
    assert modes[0] == modes[1]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_replacing_keeps_the_old_file_when_the_writer_fails(tmp_path: Path, error: type[BaseException]) -> None:
    path = tmp_path / "file.txt"
    path.write_text("old")

    def fail() -> None:
        with replacing(path) as temporary:
            temporary.write_text("half")
            raise error

    with pytest.raises(error):
        fail()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_replacing_names_a_disk_that_is_full(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    path.write_text("old")
    with pytest.raises(EnvironmentProblem, match="could not be written") as caught, replacing(path):
        raise OSError(28, "No space left on device")
    assert caught.value.exit_code == 4
    assert (caught.value.where, path.read_text()) == (str(path), "old")
    assert "No space left" in caught.value.why
    assert list(tmp_path.iterdir()) == [path]


def test_the_ending_is_kept_for_image_writers(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.nii.gz"
    with replacing(path, keep_ending=True) as temporary:
        assert temporary == path.with_name(".part_a.nii.gz")
        temporary.write_text("content")
    assert path.read_text() == "content"
    assert list(path.parent.iterdir()) == [path]


def test_what_a_killed_run_left_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "a.nii.gz"
    (tmp_path / ".part_a.nii.gz").write_text("left over, and longer than the new content")
    with replacing(path, keep_ending=True) as temporary:
        assert not temporary.exists()
        temporary.write_text("new")
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_two_writers_of_one_file_do_not_meet(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    with replacing(path) as first, replacing(path) as second:
        first.write_text("first")
        second.write_text("second")
    assert path.read_text() == "first"
    assert list(tmp_path.iterdir()) == [path]


def test_the_temporary_file_may_lie_elsewhere(tmp_path: Path) -> None:
    path, work = tmp_path / "images" / "a.nii.gz", tmp_path / "work"
    with replacing(path, keep_ending=True, work_folder=work) as temporary:
        assert temporary.parent == work
        temporary.write_text("content")
    assert path.read_text() == "content"
    assert list(work.iterdir()) == []


def test_a_runtime_error_of_an_image_writer_is_a_disk_problem(tmp_path: Path) -> None:
    def fail(**options: bool) -> None:
        with replacing(tmp_path / "a.nii.gz", run="repair", **options) as temporary:
            temporary.write_text("half")
            raise RuntimeError("ITK\nno space")

    with pytest.raises(EnvironmentProblem, match="could not be written") as caught:
        fail(keep_ending=True)
    assert (caught.value.why, caught.value.run) == ("no space", "repair")
    with pytest.raises(RuntimeError):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_a_writer_that_writes_nothing_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "a.nii.gz"
    with pytest.raises(EnvironmentProblem, match="could not be written"), replacing(path, keep_ending=True):
        pass
    assert not path.exists()


def test_writing_below_a_file_or_over_a_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "file" / "x.json", tmp_path / "folder"):
        with pytest.raises(EnvironmentProblem, match="could not be written"):
            write_json(path, {})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]


def test_text_is_added_at_the_end(tmp_path: Path) -> None:
    append_text(tmp_path / "a", "first\n")
    append_text(tmp_path / "a", "zweite Zeile, ü\n")
    assert (tmp_path / "a").read_text(encoding="utf-8") == "first\nzweite Zeile, ü\n"
    with pytest.raises(EnvironmentProblem, match="could not be written"):
        append_text(tmp_path, "text")


def test_json_keeps_order_and_text(tmp_path: Path) -> None:
    content = {"b": [1, 2.5, None], "a": {"é": True}}
    write_json(tmp_path / "x.json", content)
    assert list(read_json(tmp_path / "x.json").items()) == list(content.items())
    assert (tmp_path / "x.json").read_text().endswith("}\n")


def test_json_that_cannot_be_written_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    write_json(path, [1])
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert json.loads(path.read_text()) == [1]
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("below", ["missing.json", "file/missing.json"])
def test_missing_json_names_the_command_that_writes_it(tmp_path: Path, below: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="a file is missing") as caught:
        read_json(tmp_path / below, made_by="nnssl_train")
    assert caught.value.run == "nnssl_train"


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[" * 200_000])
def test_broken_json(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(DataError, match="not valid JSON") as caught:
        read_json(tmp_path / "x.json")
    assert caught.value.where == str(tmp_path / "x.json")


def test_json_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentProblem, match="cannot be read"):
        read_json(tmp_path)


def test_content_hash_is_that_of_the_bytes_in_order(tmp_path: Path) -> None:
    first, second = tmp_path / "1", tmp_path / "2"
    first.write_bytes(os.urandom(3 << 20))
    second.write_bytes(b"second")
    assert content_hash(first, second) == hashlib.sha256(first.read_bytes() + b"second").hexdigest()
    assert content_hash(second, first) != content_hash(first, second)


def test_settings_hash_ignores_key_order_only() -> None:
    settings = {"a": 1, "b": {"c": [1, 2], "d": "x"}}
    assert settings_hash(settings) == settings_hash({"b": {"d": "x", "c": [1, 2]}, "a": 1})
    assert settings_hash(settings) != settings_hash({"a": 1, "b": {"c": [2, 1], "d": "x"}})
