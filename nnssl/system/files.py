"""Paths of nnU-Net's three folders, and files that are either old or new but never half-written."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from nnssl.errors import DataError, EnvironmentProblem

PLANS_KEYS = ("plans_name", "configurations", "image_reader_writer", "transpose_forward")
DATASET_KEYS = ("labels", "file_ending")


def environment_folder(variable: str, *, must_exist: bool = False) -> Path:
    """Return the folder that `nnUNet_raw`, `nnUNet_preprocessed` or `nnUNet_results` names.

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
    """Check, without making it, that a folder exists or can be made, and can be written to.

    Args:
        folder: the folder.
        what: what it is, for the message.
        run: the repair, for the message.

    Raises:
        EnvironmentProblem: something on the way to it is a file, or cannot be written to.
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
    """Check, without making anything, that a file can be written at `path`.

    Raises:
        EnvironmentProblem: a folder or a device has this name, or its folder cannot be written to.
    """
    if path.exists() and not path.is_file():
        raise EnvironmentProblem("the output is a folder or a device", where=path, run="choose another name for it")
    check_writable(path.parent, "the folder of the output file", "choose another folder")


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it is synced to disk and renamed to `path`, else removed.

    Raises:
        EnvironmentProblem: the folder cannot be written, or the disk is full.
    """
    temporary: Path | None = None
    try:
        if path.exists() and not path.is_file():
            raise FileExistsError("a folder or a device has this name")
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
        os.close(handle)
        temporary = Path(name)
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        temporary.replace(path)
        temporary = None
    except OSError as error:
        raise EnvironmentProblem(
            "a file could not be written",
            where=path,
            why=str(error),
            run="free space or choose another folder, then run the same command again",
        ) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` in one piece (see `replacing`)."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, content: Any) -> None:  # noqa: ANN401 - JSON is any nesting of plain values
    """Write `content` as indented JSON in one piece; key order is kept."""
    write_text(path, json.dumps(content, indent=2) + "\n")


def read_json(path: Path, made_by: str = "") -> Any:  # noqa: ANN401
    """Return the content of a JSON file.

    Raises:
        DataError: the file is missing or is not JSON; the message names `made_by`, the command that writes it.
        EnvironmentProblem: the file cannot be read, for lack of permission for instance.
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
