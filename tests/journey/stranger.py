"""The files of somebody who has never heard of nnU-Net: own names, a shifted mask, another spacing, a cut file."""

from __future__ import annotations

import shutil
from pathlib import Path

from benchmarks.stranger import spoil
from nnssl.data.phantom import write_phantom

SHAPE = (16, 24, 24)


def write_stranger(root: Path, labelled: int = 4, unlabelled: int = 5, test: int = 2) -> Path:
    """Write `scans/pat_N_T1.nii.gz`, `masks/pat_N_seg.nii.gz`, `more/x-N.nii.gz`, `new/` and `answers/` below a folder.

    The mask of patient 1 has a shifted origin, x-1 another spacing, and the last one of `more` is cut.
    """
    raw = write_phantom(root / "phantom", 1, labelled=labelled, unlabelled=unlabelled, test=test, shape=SHAPE)
    for part, folder, name in (
        ("imagesTr", "scans", "pat_{}_T1"),
        ("labelsTr", "masks", "pat_{}_seg"),
        ("imagesUn", "more", "x-{}"),
        ("imagesTs", "new", "new{}"),
        ("labelsTs", "answers", "new{}-truth"),
    ):
        (root / folder).mkdir()
        for number, file in enumerate(sorted((raw / part).glob("*.nii.gz")), start=1):
            shutil.copyfile(file, root / folder / f"{name.format(number)}.nii.gz")
    shutil.rmtree(root / "phantom")
    spoil(root, unlabelled)
    return root
