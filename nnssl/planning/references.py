"""Copies of the label files, with which nnU-Net's validation compares."""

from __future__ import annotations

import dataclasses
import filecmp
import shutil
from pathlib import Path

from nnssl.host import companion_file
from nnssl.names import GT_FOLDER
from nnssl.planning.scope import Scope
from nnssl.system.fact_store import Fact, FactStore, FileState, states_of
from nnssl.system.files import replacing


def copy_labels(scope: Scope, store: FactStore | None = None) -> None:
    """Copy the label files of `with_labels` to `gt_segmentations`, the folder of nnU-Net's validation references.

    The file with the voxel size of a TIFF label is copied first, so that the label never stands there without it.

    Args:
        scope: the cases.
        store: which copies an earlier call found to be the same; these are not read while both files are unchanged.

    Raises:
        EnvironmentProblem: a file cannot be written.
    """
    store = store or FactStore(None)
    for case in scope.with_labels:
        label = scope.raw.labelled[case].label
        target = scope.preprocessed / GT_FOLDER / f"{case}{scope.raw.file_ending}"
        if label is not None:
            companion, companion_target = companion_file(label), companion_file(target)
            if companion is not None and companion_target is not None:
                _copy_changed(companion, companion_target, store)
            _copy_changed(label, target, store)


def _copy_changed(source: Path, target: Path, store: FactStore) -> None:
    """Copy a file unless the target holds the same content; a target whose source is gone is deleted."""
    key = f"copy {target.name}"
    before = Fact("copy", states_of([source]) or (), None)
    known = store.find(key, before.settings)
    if known is not None and known.holds_for(before.files) and _stored_states(known) == states_of([target]):
        return
    if not source.is_file():
        target.unlink(missing_ok=True)
        return
    if not (target.is_file() and filecmp.cmp(source, target, shallow=False)):
        with replacing(target) as temporary:
            shutil.copyfile(source, temporary)
    if states_of([source]) == before.files:
        store.put(key, dataclasses.replace(before, value=states_of([target])))


def _stored_states(fact: Fact) -> tuple[FileState, ...] | None:
    """Return the states of the copy that a fact holds, None where the fact is damaged."""
    try:
        return tuple(FileState(*state) for state in fact.value)
    except TypeError:
        return None
