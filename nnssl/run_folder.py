"""The folder of a run: an earlier run of the same fold is kept, a failed start leaves nothing."""

from __future__ import annotations

import contextlib
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path

LATEST, BEST, FINAL = "checkpoint_latest.pth", "checkpoint_best.pth", "checkpoint_final.pth"
MODEL_FILES = ("plans.json", "dataset.json", "dataset_fingerprint.json")
log = logging.getLogger("nnssl.train")


@contextlib.contextmanager
def in_place_of_previous(folder: Path, put_back: bool) -> Iterator[None]:
    """Move an earlier run of the same fold aside, so that a new one never overwrites it; one is kept.

    With `put_back` a new run that fails before its first checkpoint leaves nothing: its folders go, and the earlier run
    moves back.
    """
    made = next((place for place in (*reversed(folder.parents), folder) if not place.exists()), None)
    aside = folder.with_name(f"previous_{folder.name}")
    moved = any(folder.glob("checkpoint_*.pth"))
    if moved:
        shutil.rmtree(aside, ignore_errors=True)
        folder.rename(aside)
        log.info("the earlier run of this fold now stands in %s", aside)
    try:
        yield
    except BaseException:
        if put_back and not any(folder.glob("checkpoint_*.pth")):
            if moved or made:
                shutil.rmtree(folder, ignore_errors=True)
            if moved:
                aside.rename(folder)
            elif made:
                _remove_empty(folder.parent, made)
        raise


def _remove_empty(model: Path, made: Path) -> None:
    """Remove the folders from the model's up to `made` unless another run, started meanwhile, stands in them."""
    if not any(model.glob("*fold_*")):
        for name in MODEL_FILES:
            (model / name).unlink(missing_ok=True)
    for place in (model, *model.parents):
        if made not in (place, *place.parents):
            return
        try:
            place.rmdir()
        except OSError:
            return
