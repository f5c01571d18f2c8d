"""Preprocessed cases that several plans share: one copy on disk, to which each plan's folder has hard links.

Label budgets, settings of domains and configurations have folders of their own, as nnU-Net expects. Where the settings
that decide the voxels and the raw files are the same, a case is linked from another folder instead of preprocessed. And
where only the image is the same, as that of a case whose label is hidden under one of two budgets, its file is linked.

No file is ever written in place: a new version of a case gets new files, and the old ones stay what they are under
their other names.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from nnssl.errors import DataError, EnvironmentProblem
from nnssl.host.content import CaseContent
from nnssl.names import UNLABELLED_SUFFIX
from nnssl.planning.case_files import DATA_ENDINGS, CaseEntry, CaseFiles, same_files
from nnssl.planning.manifest import MANIFEST_ENDING, DataFolder, effective_settings
from nnssl.system.fact_store import FactStore
from nnssl.system.files import read_object, replacing

log = logging.getLogger(__name__)
IMAGE_ENDING = ".b2nd"


@dataclass(frozen=True)
class Image:
    """The image file of a preprocessed case of other plans.

    Attributes:
        path: the file.
        content: hash of its voxels.
        size: its bytes.
        mtime_ns: time of its last change.
    """

    path: Path
    content: str
    size: int
    mtime_ns: int

    def replace(self, own: Path) -> bool:
        """Replace a file by a hard link to this image; return whether that was possible.

        Args:
            own: a complete image file with the same voxels; stays as it is where it cannot be replaced.
        """
        link = own.with_name(f".{own.name}.link")
        try:
            os.link(self.path, link)
            found = link.stat()
            if (found.st_size, found.st_mtime_ns) != (self.size, self.mtime_ns):
                return False
            link.replace(own)
        except OSError:
            return False
        finally:
            with contextlib.suppress(OSError):
                link.unlink(missing_ok=True)
        return True


@dataclass(frozen=True)
class Relatives:
    """The preprocessed cases of a data set's other plans that a folder can share.

    Attributes:
        twins: the folders whose cases have the same settings, with their cases.
        others: the folders of the same dimension, with their cases: images in them may have the same voxels.
        store: facts of the data set.
    """

    twins: Mapping[Path, Mapping[str, CaseEntry]] = field(default_factory=dict)
    others: Mapping[Path, Mapping[str, CaseEntry]] = field(default_factory=dict)
    store: FactStore = field(default_factory=lambda: FactStore(None))

    def images(self, case: str) -> tuple[Image, ...]:
        """Return the unchanged images that other plans have of a case."""
        found: list[Image] = []
        for folder, entries in self.others.items():
            content = entries[case].content if case in entries else None
            files = CaseFiles(folder, self.store)
            if content is not None and files.is_unchanged(case, content):
                images = (state for state in files.states(case) if state.path == case + IMAGE_ENDING)
                found += [Image(folder / each.path, content.image, each.size, each.mtime_ns) for each in images]
        return tuple(found)

    def link(self, wanted: Mapping[str, str], folder: Path, num_processes: int) -> dict[str, CaseEntry]:
        """Link cases that other plans have into a folder, the image last; return those that were linked.

        Where the file system has no hard links, the cases are copied, and the log says so once.

        Args:
            wanted: case -> hash of its raw files.
            folder: where the cases are missing.
            num_processes: worker processes, for cases that have to be read.

        Raises:
            EnvironmentProblem: a copy cannot be written.
        """
        linked: dict[str, CaseEntry] = {}
        for other, entries in self.twins.items():
            same = {
                case: entry
                for case, entry in entries.items()
                if case not in linked and case in wanted and entry.source == wanted[case]
            }
            linked |= {
                case: entry
                for case, entry in CaseFiles(other, self.store).holding(same, num_processes).items()
                if entry.content is not None and self._link_case(case, entry.content, other, folder)
            }
        return linked

    def _link_case(self, case: str, content: CaseContent, other: Path, folder: Path) -> bool:
        """Link one case; False where its files are gone or change meanwhile."""
        theirs, own = CaseFiles(other, self.store), CaseFiles(folder, self.store)
        last = {case + ending for ending in DATA_ENDINGS}
        names = sorted((state.path for state in theirs.states(case)), key=lambda name: (name in last, name))
        with contextlib.suppress(FileNotFoundError):
            for name in names:
                _link_or_copy(other / name, folder / name)
            states = own.states(case)
            own.note(case, content, states)
            if names and theirs.is_unchanged(case, content) and same_files(states, theirs.states(case)):
                return True
        for name in names:
            (folder / name).unlink(missing_ok=True)
        return False


def _link_or_copy(source: Path, target: Path) -> None:
    """Link a file under another name, or copy it with its time; the target is complete or missing.

    Raises:
        FileNotFoundError: the source is gone.
        EnvironmentProblem: the copy cannot be written.
    """
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except FileNotFoundError:
        raise
    except OSError as error:
        if not source.exists():
            raise FileNotFoundError(source) from error
        _say_once(target.parent.parent, str(error.strerror))
        with replacing(target) as temporary:
            shutil.copy2(source, temporary)


@functools.cache
def _say_once(dataset: Path, why: str) -> None:
    log.warning("note: %s: no hard links (%s): plans that could share cases get copies", dataset, why)


def relatives_of(folder: DataFolder, store: FactStore) -> Relatives:
    """Return the cases that the other plans of a data set have; a damaged manifest counts as none.

    Labelled cases are shared with labelled ones and unlabelled with unlabelled ones. Images may be shared between the
    two, but not between 2-D and 3-D: their files are cut into blocks of other shapes, which are slow to read otherwise.

    Args:
        folder: the folder that needs cases.
        store: facts of the data set.
    """
    twins, others = {}, {}
    unlabelled = folder.path.name.endswith(UNLABELLED_SUFFIX)
    for manifest in sorted(folder.path.parent.glob(f"*{MANIFEST_ENDING}")):
        other = manifest.with_name(manifest.name.removesuffix(MANIFEST_ENDING))
        if other == folder.path:
            continue
        try:
            settings = effective_settings(read_object(manifest)["settings"])
            finished = DataFolder(other, settings).finished()
            same_dimension = len(settings["spacing"]) == len(folder.settings["spacing"])
        except (DataError, EnvironmentProblem, TypeError, KeyError, AttributeError, OSError):
            continue
        known = {case: entry for case, entry in finished.items() if entry.content is not None}
        same = DataFolder(other, settings).settings_hash == folder.settings_hash
        if same and other.name.endswith(UNLABELLED_SUFFIX) == unlabelled:
            twins[other] = known
        if same_dimension:
            others[other] = known
    return Relatives(twins, others, store)
