from __future__ import annotations

import errno
import json
from pathlib import Path

import pytest
from filelock import FileLock

from nnssl.annotation import transfer as module
from nnssl.annotation.transfer import LOCK, finish_interrupted, locked, move, transfer
from nnssl.errors import EnvironmentProblem


@pytest.fixture
def raw(tmp_path):
    """Return a folder with a scan, and a mask outside of it."""
    folder = tmp_path / "raw"
    (folder / "imagesUn").mkdir(parents=True)
    (folder / "imagesUn" / "a.img").write_text("scan")
    (folder / "dataset.json").write_text("{}")
    (tmp_path / "a.mask").write_text("mask")
    return folder


def run(raw: Path) -> None:
    with locked(raw):
        transfer(
            raw,
            {raw / "labelsTr" / "a.mask": raw.parent / "a.mask"},
            [(raw / "imagesUn" / "a.img", raw / "imagesTr" / "a.img")],
            {raw / "dataset.json": {"n": 1}},
        )


def content(raw: Path) -> dict[str, str]:
    return {path.relative_to(raw).as_posix(): path.read_text() for path in raw.rglob("*") if path.is_file()}


BEFORE = {"imagesUn/a.img": "scan", "dataset.json": "{}"}
AFTER = {"imagesTr/a.img": "scan", "labelsTr/a.mask": "mask", "dataset.json": '{\n  "n": 1\n}\n'}


def test_everything_is_done_and_the_source_of_a_copy_stays(raw) -> None:
    run(raw)
    assert content(raw) == AFTER
    assert (raw.parent / "a.mask").read_text() == "mask"
    assert not finish_interrupted(raw)


class KilledError(BaseException):
    """Stands for SIGKILL: no handler of the module may undo anything."""


@pytest.mark.parametrize("after", range(12))
def test_a_killed_process_has_done_nothing_or_is_finished_by_the_next(raw, monkeypatch, after) -> None:
    """The process dies after each of its steps in turn."""
    steps = iter(range(after))

    def dying(function):
        def step(*arguments, **options):
            result = function(*arguments, **options)
            if next(steps, None) is None:
                raise KilledError
            return result

        return step

    with monkeypatch.context() as patch:
        for name in ("_copy", "move", "write_json"):
            patch.setattr(module, name, dying(getattr(module, name)))
        patch.setattr(module.shutil, "rmtree", dying(module.shutil.rmtree))
        try:
            run(raw)
            killed = False
        except KilledError:
            killed = True
    if not (raw / module.JOURNAL_JSON).is_file():
        found = {name: text for name, text in content(raw).items() if not name.startswith(module.WORK)}
        assert found in (BEFORE, AFTER)
        assert killed or found == AFTER
    else:
        assert killed
        assert finish_interrupted(raw)
        assert content(raw) == AFTER
    run_again = raw / "imagesUn" / "a.img"
    if run_again.exists():
        run(raw)
    assert content(raw) == AFTER


def test_a_mask_that_cannot_be_copied_changes_nothing(raw) -> None:
    (raw.parent / "a.mask").unlink()
    with pytest.raises(EnvironmentProblem, match="could not be copied") as error:
        run(raw)
    assert "the data set is as it was" in error.value.why
    assert content(raw) == BEFORE


def test_a_move_that_fails_is_finished_by_the_next_command(raw, monkeypatch) -> None:
    real = Path.replace

    def fails(self: Path, target: Path) -> Path:
        if self.name == "a.img":
            raise OSError("no space")
        return real(self, target)

    with monkeypatch.context() as patch, pytest.raises(EnvironmentProblem, match="could not be moved") as error:
        patch.setattr(Path, "replace", fails)
        run(raw)
    assert "the next nnssl_accept finishes it" in error.value.why
    assert finish_interrupted(raw)
    assert content(raw) == AFTER


def test_files_move_to_other_file_systems(tmp_path, monkeypatch) -> None:
    (tmp_path / "a").write_text("x")
    real = Path.replace

    def other_file_system(self: Path, target: Path) -> Path:
        if self.name == "a":
            raise OSError(errno.EXDEV, "other device")
        return real(self, target)

    monkeypatch.setattr(Path, "replace", other_file_system)
    move(tmp_path / "a", tmp_path / "folder" / "b")
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]
    assert (tmp_path / "folder" / "b").read_text() == "x"


def test_one_process_at_a_time(raw) -> None:
    with FileLock(raw / LOCK), pytest.raises(EnvironmentProblem, match="another process"):
        run(raw)
    assert json.loads((raw / "dataset.json").read_text()) == {}
