"""Paths of nnU-Net's three folders, and a writer that replaces files as a whole, so that no reader sees a part."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import secrets
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from nnssl.errors import DataError, EnvironmentProblem
from nnssl.names import FILE_ENDING_KEY, LABELS_KEY

PLANS_KEYS = ("plans_name", "configurations", "image_reader_writer", "transpose_forward")
DATASET_KEYS = (LABELS_KEY, FILE_ENDING_KEY)
RUN_AGAIN = "free space or choose another folder, then run the same command again"


def environment_folder(variable: str, *, must_exist: bool = False) -> Path:
    """Return the folder that `nnUNet_raw`, `nnUNet_preprocessed` or `nnUNet_results` names.

    Args:
        variable: name of the environment variable.
        must_exist: whether a missing folder is an error.

    Raises:
        EnvironmentProblem: the variable is not set, or its folder must exist and does not.
    """
    value = os.environ.get(variable)
    if not value:
        raise EnvironmentProblem(
            f"the environment variable {variable} is not set",
            why="nnssl keeps its data where nnU-Net does",
            run=f"export {variable}=/path/to/{variable}",
        )
    if must_exist and not Path(value).is_dir():
        raise EnvironmentProblem(
            f"{variable} names {'a file' if Path(value).exists() else 'a folder that does not exist'}",
            where=value,
            run=f"export {variable}=/path/to/{variable}",
        )
    return Path(value)


def check_writable(folder: Path, what: str, run: str) -> None:
    """Check that a folder can be written to, or that it can be created; the check creates nothing.

    Args:
        folder: the folder.
        what: what the folder is for, as the subject of the message.
        run: the repair, for the message.

    Raises:
        EnvironmentProblem: one of the folder's parents is a file, or the nearest existing folder cannot be written to.
    """
    existing = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    if not (existing.is_dir() and os.access(existing, os.W_OK | os.X_OK)):
        raise EnvironmentProblem(
            f"{what} cannot be written",
            where=folder,
            why=f"{existing} is {'not writable' if existing.is_dir() else 'a file'}",
            run=run,
        )


def check_output_file(path: Path) -> None:
    """Check that a file can be written at `path`; the check creates nothing.

    Raises:
        EnvironmentProblem: a folder or a device has this name, or the folder of the file cannot be written to.
    """
    if path.exists() and not path.is_file():
        raise EnvironmentProblem(
            "the output is a folder or a device", where=path, run="choose another name for the output"
        )
    check_writable(path.parent, "the folder of the output file", "choose another folder")


@contextlib.contextmanager
def replacing(
    path: Path, *, keep_ending: bool = False, work_folder: Path | None = None, run: str = RUN_AGAIN
) -> Iterator[Path]:
    """Yield a temporary path. On success its file is synced to disk and renamed to `path`, otherwise it is removed.

    A reader of `path` sees the old content or the new content, never a part.

    By default the temporary name is unique: several processes may write the same path at once. With `keep_ending` the
    temporary name has the ending of `path`, because image writers choose the format by the ending. This name is always
    the same, so that the next run replaces what a killed run left; only one process may then write `path`.

    Args:
        path: the final file; a missing folder is created.
        keep_ending: see above. A RuntimeError, which ITK raises for a full disk, is then reported like an OSError.
        work_folder: folder of the temporary file, on the file system of `path`; None for the folder of `path`.
        run: the repair, for the message.

    Raises:
        EnvironmentProblem: the folder cannot be written, or the disk is full.
    """
    failures: tuple[type[Exception], ...] = (OSError, RuntimeError) if keep_ending else (OSError,)
    folder = work_folder or path.parent
    temporary = folder / (f".part_{path.name}" if keep_ending else f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        if path.exists() and not path.is_file():
            raise FileExistsError("a folder or a device has this name")
        for needed in (path.parent, folder):
            needed.mkdir(parents=True, exist_ok=True)
        temporary.unlink(missing_ok=True)
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except failures as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise EnvironmentProblem("a file could not be written", where=path, why=lines[-1], run=run) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Replace the file `path` by one that holds `text` (see `replacing`)."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_bytes(path: Path, content: bytes) -> None:
    """Replace the file `path` by one that holds `content` (see `replacing`)."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def append_text(path: Path, text: str) -> None:
    """Add `text` at the end of the file `path`, in one piece, and sync the file to disk.

    A kill or a full disk can leave a part of the text.

    Raises:
        EnvironmentProblem: the file cannot be written, or the disk is full.
    """
    try:
        with path.open("ab", buffering=0) as file:
            content = memoryview(text.encode("utf-8"))
            while content:
                content = content[file.write(content) :]
            os.fsync(file.fileno())
    except OSError as error:
        raise EnvironmentProblem("a file could not be written", where=path, why=str(error), run=RUN_AGAIN) from error


def write_json(path: Path, content: Any) -> None:  # noqa: ANN401 - JSON is any nesting of plain values
    """Replace the file `path` by one that holds `content` as indented JSON, keys in their order (see `replacing`)."""
    write_text(path, json.dumps(content, indent=2) + "\n")


def without_nan(value: object) -> object:
    """Return nested values with None for NaN and infinity, so that they become strict JSON."""
    if isinstance(value, dict):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_json(path: Path, made_by: str = "") -> Any:  # noqa: ANN401
    """Return the content of a JSON file.

    Raises:
        DataError: the file is missing or is not JSON; the message names `made_by`, the command that writes the file.
        EnvironmentProblem: the file cannot be read, for example for lack of permission.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise DataError("a file is missing", where=path, run=made_by) from None
    except OSError as error:
        raise EnvironmentProblem("a file cannot be read", where=path, why=str(error)) from error
    except (ValueError, RecursionError) as error:
        raise DataError("a file is not valid JSON", where=path, why=str(error), run=made_by) from error


def read_object(path: Path, made_by: str = "", keys: Iterable[str] = ()) -> dict[str, Any]:
    """Return the content of a JSON file that must hold an object with these keys.

    Raises:
        DataError: the file is missing, is not JSON, or holds something else; `made_by` as for `read_json`.
        EnvironmentProblem: the file cannot be read.
    """
    content = read_json(path, made_by)
    if not isinstance(content, dict):
        raise DataError("a file is not a JSON object", where=path, run=made_by)
    missing = [key for key in keys if key not in content]
    if missing:
        raise DataError("a file is incomplete", where=path, why=f"missing: {', '.join(missing)}", run=made_by)
    return content


def content_hash(*paths: Path) -> str:
    """Return the SHA-256 of the files' bytes, one after another, in hexadecimal."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def settings_hash(settings: Any) -> str:  # noqa: ANN401
    """Return the SHA-256 of plain settings (numbers, strings, lists, dicts), independent of key order."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
