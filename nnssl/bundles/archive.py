"""Zip archives from outside: names, sizes and kinds of all entries are checked before the first byte is unpacked."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import stat
import unicodedata
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from nnssl.errors import DataError, UsageError

MOST_ENTRIES = 2000
MOST_BYTES = 20 * 2**30
MOST_TEXT_BYTES = 16 * 2**20
LARGEST_RATIO = 100  # of unpacked to packed bytes; trained weights have 1.1
FREE_OF_RATIO = 2**20  # bytes; smaller entries may have any ratio
LONGEST_NAME = 255
BLOCK = 2**20
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
DAMAGED = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError, KeyError)


def refused(why: str, file: Path, run: str = "") -> DataError:
    """Return the error for a file that nnssl does not install.

    Args:
        why: what is wrong with the file, in one line or more.
        file: the archive.
        run: the repair; empty for the usual one.
    """
    return DataError(
        "the bundle is refused; nothing was installed",
        where=file,
        why=why,
        run=run or "get the file again from those who exported it, and compare its SHA-256 with theirs",
    )


class Archive:
    """An open zip archive whose list of entries is safe; see `open_archive`.

    Attributes:
        file: the archive.
        names: of its entries, without folders, in their order.
    """

    def __init__(self, file: Path, content: zipfile.ZipFile) -> None:
        self.file, self._zip = file, content
        self._entries = {entry.filename: entry for entry in content.infolist() if not entry.is_dir()}
        self.names = list(self._entries)

    def size(self, name: str) -> int:
        """Return the unpacked bytes of an entry."""
        return self._entries[name].file_size

    def read(self, name: str) -> bytes:
        """Return the bytes of an entry of at most 16 MiB.

        Raises:
            DataError: the entry is missing, too large or damaged.
        """
        if name not in self._entries:
            raise refused(f"{name} is missing", self.file)
        if self.size(name) > MOST_TEXT_BYTES:
            raise refused(f"{name} has {self.size(name)} bytes; at most {MOST_TEXT_BYTES} are allowed", self.file)
        with self._open(name) as stream:
            return stream.read()

    def read_object(self, name: str, keys: Sequence[str] = ()) -> dict[str, Any]:
        """Return the JSON object in an entry; its texts hold no control characters.

        Raises:
            DataError: the entry is missing, too large or damaged, holds something else, or lacks a key.
        """
        try:
            content = json.loads(self.read(name))
        except (ValueError, RecursionError) as error:
            raise refused(f"{name} is not valid JSON ({error})", self.file) from error
        if not isinstance(content, dict) or any(key not in content for key in keys):
            needed = f" with {', '.join(keys)}" if keys else ""
            raise refused(f"{name} is not a JSON object{needed}", self.file)
        if any(CONTROL.search(text) for text in texts_in(content)):
            raise refused(f"{name} has texts with control characters", self.file)
        return content

    def unpack(self, name: str, target: Path) -> str:
        """Write an entry to a file, and return the SHA-256 of its bytes.

        Raises:
            DataError: the entry is missing or damaged.
        """
        if name not in self._entries:
            raise refused(f"{name} is missing", self.file)
        digest = hashlib.sha256()
        with self._open(name) as stream, target.open("wb") as file:
            while block := stream.read(BLOCK):
                digest.update(block)
                file.write(block)
        return digest.hexdigest()

    @contextlib.contextmanager
    def _open(self, name: str) -> Iterator[IO[bytes]]:
        with readable(self.file, f"{name} is damaged"), self._zip.open(name) as stream:
            yield stream


@contextlib.contextmanager
def readable(file: Path, what: str) -> Iterator[None]:
    """Turn what zipfile raises about a damaged archive inside the block into the error that refuses the bundle."""
    try:
        yield
    except DAMAGED as error:
        raise refused(f"{what} ({str(error) or type(error).__name__})", file) from error


@contextlib.contextmanager
def open_archive(file: Path) -> Iterator[Archive]:
    """Yield a zip archive after a check of all entries; nothing is unpacked for the check.

    Refused are: more than 2,000 entries; names that leave the folder, that are absolute, that repeat another name or
    differ from it by upper and lower case only; links and other special files; encryption and rare compressions;
    more than 20 GiB in all; entries that unpack to more than 100 times their size.

    Raises:
        UsageError: there is no such file.
        DataError: the file is no zip archive, is truncated, or is refused.
    """
    if not file.is_file():
        raise UsageError("there is no such bundle", where=file, run="give the .zip file that nnssl_export wrote")
    with readable(file, "it is no zip archive, or it is truncated"):
        content = zipfile.ZipFile(file)
    with content:
        problem = _problem(content, file.stat().st_size)
        if problem:
            raise refused(problem, file)
        yield Archive(file, content)


def _problem(content: zipfile.ZipFile, size: int) -> str:
    """Return why an archive of `size` bytes is refused; empty where nothing speaks against it."""
    entries = content.infolist()
    if len(entries) > MOST_ENTRIES:
        return f"it has {len(entries)} entries; at most {MOST_ENTRIES} are allowed"
    for entry in entries:
        if problem := _problem_of_name(entry) or _problem_of_kind(entry):
            return problem
    if problem := _problem_of_repeats([entry.filename for entry in entries]):
        return problem
    return _problem_of_sizes(entries, size)


def _problem_of_repeats(names: Sequence[str]) -> str:
    """Return which two names would be one place on a disk, also on one that does not tell upper from lower case."""
    places: dict[str, str] = {}
    files: set[str] = set()
    for name in names:
        parts = name.rstrip("/").split("/")
        for count in range(1, len(parts) + 1):
            part = "/".join(parts[:count])
            other = places.setdefault(unicodedata.normalize("NFC", part).casefold(), part)
            if other != part:
                return f"the entry {shown(part)} differs from {shown(other)} by upper and lower case only"
        whole = "/".join(parts)
        if whole in files:
            return f"the entry {shown(whole)} appears twice"
        if not name.endswith("/"):
            files.add(whole)
    folders = {"/".join(name.split("/")[:count]) for name in names for count in range(1, name.count("/") + 1)}
    both = sorted(files & folders)
    return f"the entry {shown(both[0])} is a file and a folder" if both else ""


def _problem_of_name(entry: zipfile.ZipInfo) -> str:
    name = entry.filename
    parts = name.removesuffix("/").split("/")
    unsafe = (
        name != entry.orig_filename
        or len(name) > LONGEST_NAME
        or any(part in ("", ".", "..") for part in parts)
        or re.search(r"[\\:]", name)
        or not name.isprintable()
    )
    return f"the entry {shown(entry.orig_filename)} has an unsafe path" if unsafe else ""


def _problem_of_kind(entry: zipfile.ZipInfo) -> str:
    mode = entry.external_attr >> 16
    if stat.S_IFMT(mode) not in (0, stat.S_IFREG, stat.S_IFDIR):
        return f"the entry {shown(entry.filename)} is a link or a special file"
    if entry.flag_bits & 1 or entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        return f"the entry {shown(entry.filename)} is encrypted, or compressed in an unusual way"
    return ""


def _problem_of_sizes(entries: Sequence[zipfile.ZipInfo], size: int) -> str:
    for entry in entries:
        if entry.file_size > max(FREE_OF_RATIO, LARGEST_RATIO * entry.compress_size):
            return f"the entry {shown(entry.filename)} unpacks from {entry.compress_size} to {entry.file_size} bytes"
    total = sum(entry.file_size for entry in entries)
    if total > MOST_BYTES:
        return f"it unpacks to {total} bytes; at most {MOST_BYTES} are allowed"
    if sum(entry.compress_size for entry in entries) > size:
        return "its entries overlap"
    return ""


def shown(name: str) -> str:
    """Return a name from an archive for a message: quoted, without control characters, not too long."""
    return repr(name if len(name) <= 80 else f"{name[:77]}…")


def texts_in(content: Any) -> Iterator[str]:  # noqa: ANN401 - JSON
    """Yield all texts in nested plain values, keys included."""
    waiting = [content]
    while waiting:
        value = waiting.pop()
        if isinstance(value, str):
            yield value
        elif isinstance(value, dict):
            waiting += [*value, *value.values()]
        elif isinstance(value, list):
            waiting += value
