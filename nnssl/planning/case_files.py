"""The files of preprocessed cases: whether they still hold what was written into them.

Sizes and times of the files are facts of the data set (see `nnssl.system.fact_store`), not a part of the manifest: the
same data give the same manifest on every machine.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from nnssl.host import case_dataset_class
from nnssl.host.content import CaseContent, stored_content
from nnssl.system.fact_store import Fact, FactStore, FileState, states_of
from nnssl.system.workers import run_parallel

DATA_ENDINGS = (".b2nd", ".npz")  # nnU-Net finds a case by these files, so they are written last
CASE_ENDINGS = (".pkl", ".b2nd", "_seg.b2nd", ".npz", ".npy", "_seg.npy")
UNPACKED_ENDINGS = (".npy", "_seg.npy")  # what nnU-Net's training unpacks from a .npz file


@dataclass(frozen=True)
class CaseEntry:
    """What a manifest says of one case.

    Attributes:
        source: hash of the raw files.
        content: hashes of what the files hold; None in manifests of earlier versions.
    """

    source: str
    content: CaseContent | None = None

    @property
    def image(self) -> str | None:
        """Hash of the voxels of the image, None in manifests of earlier versions."""
        return self.content.image if self.content is not None else None

    @classmethod
    def read(cls, noted: Any) -> CaseEntry:  # noqa: ANN401 - whatever a file holds
        """Return the entry that a manifest or a note holds.

        Raises:
            TypeError, KeyError: it holds something else.
        """
        if isinstance(noted, str):
            return cls(noted)
        return cls(str(noted["source"]), CaseContent(str(noted["image"]), str(noted["rest"])))

    def to_json(self) -> str | dict[str, str]:
        """Return the entry as a manifest holds it."""
        return self.source if self.content is None else {"source": self.source, **self.content._asdict()}


def is_complete(case: str, names: Collection[str]) -> bool:
    """Return whether the file names in a folder include all files of a case."""
    in_blocks = f"{case}.b2nd" in names and f"{case}_seg.b2nd" in names
    return f"{case}.pkl" in names and (in_blocks or f"{case}.npz" in names)


@dataclass(frozen=True)
class CaseFiles:
    """The files of the cases in a folder, and what the store knows of them.

    A file counts as unchanged if size and time of its last change are the same. Path and inode may differ, so that a
    data set can be moved, and copied with its times (`cp -a`, `rsync -a`). A change through another name of the file, a
    hard link, changes the time under every name.

    Attributes:
        folder: the folder of preprocessed cases.
        store: facts of the data set.
    """

    folder: Path
    store: FactStore

    def states(self, case: str) -> tuple[FileState, ...]:
        """Return the states of the files of a case that planning writes, with bare names instead of paths."""
        paths = [self.folder / (case + ending) for ending in CASE_ENDINGS if ending not in UNPACKED_ENDINGS]
        found = [states[0] for path in paths if (states := states_of([path])) is not None]
        return tuple(state._replace(path=Path(state.path).name) for state in found)

    def is_unchanged(self, case: str, content: CaseContent | None) -> bool:
        """Return whether the files are known to hold this content, without opening them."""
        fact = self.store.find(self._key(case), _joined(content)) if content is not None else None
        return fact is not None and same_files(fact.files, self.states(case))

    def note(self, case: str, content: CaseContent, states: tuple[FileState, ...]) -> None:
        """Note that files in these states hold this content."""
        self.store.put(self._key(case), Fact(_joined(content), states, None))

    def holding(self, entries: Mapping[str, CaseEntry], num_processes: int) -> dict[str, CaseEntry]:
        """Return the entries whose files hold what they say; only files that changed are read.

        Entries without a content, of an earlier version, get the content of the files.

        Args:
            entries: case -> entry; the folder has files of every case.
            num_processes: worker processes.
        """
        changed = {case: case for case, entry in entries.items() if not self.is_unchanged(case, entry.content)}
        if not changed:
            return dict(entries)
        before = {case: self.states(case) for case in changed}
        dataset = case_dataset_class(str(self.folder))(str(self.folder), list(changed))
        read = partial(stored_content, dataset=dataset)
        contents = run_parallel(read, changed, num_processes, f"comparing cases of {self.folder.name}")
        held = dict(entries)
        for case, content in contents.items():
            if content is None or entries[case].content not in (None, content):
                del held[case]
            else:
                held[case] = CaseEntry(entries[case].source, content)
                self.note(case, content, before[case])
        return held

    def _key(self, case: str) -> str:
        return f"preprocessed {self.folder.name}/{case}"


def _joined(content: CaseContent) -> str:
    return " ".join(content)


def same_files(first: Collection[FileState], second: Collection[FileState]) -> bool:
    """Return whether both are files of the same names, sizes and times; two empty collections are not."""
    return bool(first) and {state[:3] for state in first} == {state[:3] for state in second}
