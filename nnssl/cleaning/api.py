"""Find, and remove, what no plans refer to: preprocessed cases, and what killed commands left."""

from __future__ import annotations

import contextlib
import shutil
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nnssl.cleaning.references import References, references_of
from nnssl.data.raw import dataset_name
from nnssl.errors import EnvironmentProblem
from nnssl.names import FACTS_FILE, GT_FOLDER, PREPROCESSED_VARIABLE
from nnssl.planning.case_files import CASE_ENDINGS
from nnssl.planning.manifest import MANIFEST_ENDING, DataFolder
from nnssl.system.files import environment_folder
from nnssl.system.locks import hold_lock, is_held

NO_PLANS = "preprocessed cases that no plans refer to"
NO_SCAN = "preprocessed cases whose scans are gone"
KILLED = "half-written cases of a command that was killed"
OLD_FILES = "temporary files of a command that was killed"
SETTLED_S = 3600.0  # a temporary file that nobody has written to for an hour belongs to no running command
TEMPORARY = (".*.tmp", ".part_*", ".*.link", f"{FACTS_FILE}.unusable*")


@dataclass(frozen=True)
class LeftOver:
    """Files that belong together and that nothing needs.

    Attributes:
        dataset: folder name of the data set.
        paths: files and folders.
        why: why nothing needs them.
        bytes: size of the files, also of those that other plans share.
        folder: the folder of preprocessed cases whose lock protects them; None for temporary files.
    """

    dataset: str
    paths: tuple[Path, ...]
    why: str
    bytes: int
    folder: Path | None

    @property
    def name(self) -> str:
        """The first path in the folder of the data set, and how many others there are."""
        parents = [parent.name for parent in self.paths[0].parents]
        shown = self.paths[0].relative_to(self.paths[0].parents[parents.index(self.dataset)])
        return f"{shown} and {len(self.paths) - 1} more" if len(self.paths) > 1 else str(shown)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        paths = [str(path) for path in self.paths]
        return {"dataset": self.dataset, "paths": paths, "why": self.why, "bytes": self.bytes}


@dataclass(frozen=True)
class CleanResult:
    """What can go, or is gone.

    Attributes:
        left_overs: what nothing needs.
        frees_bytes: what the disk gains; files that other plans share stay under their names.
        removed: whether the files were removed.
        in_use: folders that a running command holds, and that were left out.
        notes: what could not be told.
    """

    left_overs: tuple[LeftOver, ...]
    frees_bytes: int
    removed: bool
    in_use: tuple[Path, ...] = ()
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {
            "left_overs": [each.to_dict() for each in self.left_overs],
            "frees_bytes": self.frees_bytes,
            "removed": self.removed,
            "in_use": [str(path) for path in self.in_use],
            "notes": list(self.notes),
        }

    def lines(self) -> list[str]:
        """Return what was found as lines to print."""
        lines = [f"note: {note}" for note in self.notes]
        lines += [f"note: a running command uses {path}: left out" for path in self.in_use]
        for dataset in dict.fromkeys(each.dataset for each in self.left_overs):
            lines.append(dataset)
            mine = [each for each in self.left_overs if each.dataset == dataset]
            lines += [f"  {in_words(each.bytes):>8}  {each.name}: {each.why}" for each in mine]
        total = sum(each.bytes for each in self.left_overs)
        rest = ", the rest is shared with other plans" if self.frees_bytes < total else ""
        freed = f"{in_words(self.frees_bytes)} of {in_words(total)}{rest}"
        if not self.left_overs:
            return [*lines, "nothing is left over"]
        return [*lines, f"removed, which frees {freed}" if self.removed else f"removing this would free {freed}"]


@dataclass
class _Search:
    """What was found so far."""

    found: list[LeftOver] = field(default_factory=list)
    in_use: list[Path] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def clean(dataset: str | int | None = None, *, remove: bool = False) -> CleanResult:
    """Find what no plans refer to below `nnUNet_preprocessed`, and remove it where asked to.

    This is: folders of preprocessed cases that no plans of their data set name, cases whose scans are gone,
    half-written cases, and temporary files that are older than an hour. Raw data and results are never touched, nor is
    what a running command holds. Where plans cannot be read, no folder of the data set counts as left over.

    Args:
        dataset: id or folder name; None takes all data sets.
        remove: remove the files; without it they are listed only.

    Raises:
        UsageError: there is no such data set.
        EnvironmentProblem: `nnUNet_preprocessed` is not set or no folder, or a file cannot be read or removed.
    """
    root = environment_folder(PREPROCESSED_VARIABLE, must_exist=True)
    if dataset is None:
        folders = sorted(path for path in root.glob("Dataset*") if path.is_dir())
    else:
        folders = [root / dataset_name(dataset, root, f"nnssl_plan_and_preprocess -d {dataset}")]
    search = _Search()
    try:
        for folder in folders:
            _look_into(folder, search)
        if not remove:
            return CleanResult(tuple(search.found), _frees(search.found), False, *_remarks(search))
        freed = {each: gain for each in search.found if (gain := _remove(each, search)) is not None}
    except OSError as error:
        raise EnvironmentProblem(
            "a file cannot be read or removed", where=error.filename or root, why=str(error.strerror), run="check its "
            "permissions, then run the same command again",
        ) from error  # fmt: skip
    return CleanResult(tuple(freed), sum(freed.values()), True, *_remarks(search))


def in_words(size: int) -> str:
    """Return a number of bytes with three digits and a unit, 1.23 GB for example."""
    value, units = float(size), ["B", "kB", "MB", "GB", "TB"]
    while value >= 999.5 and len(units) > 1:
        value /= 1000
        units.pop(0)
    return f"{value:.3g} {units[0]}"


def _remarks(search: _Search) -> tuple[tuple[Path, ...], tuple[str, ...]]:
    return tuple(dict.fromkeys(search.in_use)), tuple(search.notes)


def _look_into(folder: Path, search: _Search) -> None:
    """Look for left-overs in the folder of a data set."""
    references = references_of(folder)
    search.notes += references.notes
    if references.certain:
        for name in sorted(_names(folder)):
            data = DataFolder(folder / name, {})
            if name not in references.folders and _foreign_files(data.path):
                search.notes.append(f"{data.path} holds other files than preprocessed cases: left out")
                continue
            for paths, why in _unneeded(data, references):
                if is_held(data.lock):
                    search.in_use.append(data.path)
                else:
                    search.found.append(_left_over(folder, paths, why, data.path))
    places = [folder, folder / GT_FOLDER, *(folder / name for name in sorted(references.folders))]
    old = tuple(path for place in places for path in _old_files(place))
    if old:
        search.found.append(_left_over(folder, old, OLD_FILES, None))


def _left_over(dataset: Path, paths: Sequence[Path], why: str, folder: Path | None) -> LeftOver:
    size = sum(file.stat().st_size for file in _files(paths))
    return LeftOver(dataset.name, tuple(paths), why, size, folder)


def _names(folder: Path) -> set[str]:
    """Return the names of the folders of preprocessed cases, also of those of which only a trace is left."""
    names = {path.name.removesuffix(MANIFEST_ENDING) for path in folder.glob(f"*{MANIFEST_ENDING}")}
    names |= {path.name[1:].removesuffix(".partial") for path in folder.glob(".*.partial") if path.is_dir()}
    return names | {path.name for path in folder.iterdir() if path.is_dir() and _holds_cases(path)}


def _holds_cases(folder: Path) -> bool:
    """Return whether a folder holds preprocessed cases and nothing else."""
    if folder.name.startswith(".") or folder.name == GT_FOLDER or folder.is_symlink():
        return False
    return any(folder.iterdir()) and not _foreign_files(folder)


def _foreign_files(folder: Path) -> list[Path]:
    """Return what a folder holds beside preprocessed cases."""
    files = folder.iterdir() if folder.is_dir() else ()
    return [file for file in files if not (file.name.endswith(CASE_ENDINGS) and file.is_file())]


def _unneeded(data: DataFolder, references: References) -> Iterator[tuple[list[Path], str]]:
    """Yield files of a folder of preprocessed cases that nothing needs, with the reason."""
    if data.path.name not in references.folders:
        yield [path for path in (data.path, data.manifest, data.partial) if path.exists()], NO_PLANS
        return
    if data.partial.is_dir() and (unfinished := sorted(path for path in data.partial.iterdir() if path.is_dir())):
        yield unfinished, KILLED
    if references.cases is not None and data.path.is_dir():
        known = {case + ending for case in references.cases for ending in CASE_ENDINGS}
        files = sorted(path for path in data.path.iterdir() if path.name.endswith(CASE_ENDINGS))
        if gone := [path for path in files if path.name not in known]:
            yield gone, NO_SCAN


def _old_files(place: Path) -> list[Path]:
    """Return the temporary files in a folder that nobody has written to for an hour."""
    found = {path for pattern in TEMPORARY for path in place.glob(pattern) if path.is_file()}
    return sorted(path for path in found if time.time() - path.stat().st_mtime > SETTLED_S)


def _files(paths: Sequence[Path]) -> Iterator[Path]:
    """Yield all files at and below these paths; links to folders are not followed."""
    for path in paths:
        if path.is_dir() and not path.is_symlink():
            yield from _files(sorted(path.iterdir()))
        elif path.is_file():
            yield path


def _frees(left_overs: Sequence[LeftOver]) -> int:
    """Return the bytes of the files of which no name would be left."""
    names: Counter[tuple[int, int]] = Counter()
    sizes: dict[tuple[int, int], tuple[int, int]] = {}
    for file in (file for each in left_overs for file in _files(each.paths)):
        found = file.stat()
        names[found.st_dev, found.st_ino] += 1
        sizes[found.st_dev, found.st_ino] = found.st_size, found.st_nlink
    return sum(size for key, (size, links) in sizes.items() if names[key] >= links)


def _remove(left_over: LeftOver, search: _Search) -> int | None:
    """Remove files under the lock of their folder; return the bytes that this freed, None where they are needed now."""
    with contextlib.ExitStack() as stack:
        if left_over.folder is not None:
            lock = DataFolder(left_over.folder, {}).lock
            try:
                stack.enter_context(hold_lock(lock, "", where=left_over.folder, run=""))
            except EnvironmentProblem:
                search.in_use.append(left_over.folder)
                return None
            now = references_of(left_over.folder.parent)
            if not now.certain or (left_over.why == NO_PLANS and left_over.folder.name in now.folders):
                search.in_use.append(left_over.folder)
                return None
        freed = _frees([left_over])
        for path in left_over.paths:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
    return freed
