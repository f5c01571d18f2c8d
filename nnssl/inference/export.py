"""Masks and probabilities on disk; every file is written under a temporary name and then renamed."""

from __future__ import annotations

import contextlib
import pickle
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol
from zipfile import ZIP_DEFLATED, ZipFile

import numpy as np

from nnssl.host import companion_file
from nnssl.system.files import replacing

REPAIR = "free space or choose another folder, then run the same command with --continue_prediction"
SINGLE = np.dtype(np.float32)


class MaskWriter(Protocol):
    """What the export needs of nnU-Net's readers and writers."""

    def write_seg(self, seg: np.ndarray[Any, Any], output_fname: str, properties: dict[str, Any]) -> None:
        """Write a mask (z, y, x)."""
        ...

    def read_seg(self, seg_fname: str) -> tuple[np.ndarray[Any, Any], dict[str, Any]]:
        """Return the mask (1, z, y, x) and its properties."""
        ...


def write_mask(path: Path, mask: np.ndarray[Any, Any], properties: dict[str, Any], writer: MaskWriter) -> None:
    """Write a mask of shape (z, y, x) with the geometry of its scan, and check the file by reading the mask back.

    The file with the voxel size of a TIFF mask is moved to its place before the mask, so that a finished mask has it.

    Raises:
        EnvironmentProblem: the file cannot be written, or the file does not hold the mask.
    """
    with replacing(path, keep_ending=True, run=REPAIR) as temporary, _moving_companion(temporary, path):
        writer.write_seg(mask, str(temporary), properties)
        if not (writer.read_seg(str(temporary))[0][0] == mask).all():
            raise OSError("the file differs from the mask that was written")


@contextlib.contextmanager
def _moving_companion(temporary: Path, path: Path) -> Iterator[None]:
    """On success move the temporary mask's companion file to that of `path`, otherwise delete it."""
    source, target = companion_file(temporary), companion_file(path)
    try:
        yield
        if source is not None and target is not None and source.is_file():
            source.replace(target)
    finally:
        if source is not None:
            source.unlink(missing_ok=True)


def write_probabilities(stem: Path, probabilities: np.ndarray[Any, Any], properties: dict[str, Any]) -> None:
    """Write `stem.npz` (probabilities, shape (C, z, y, x)) and `stem.pkl` (properties) as nnU-Net does.

    Raises:
        EnvironmentProblem: a file cannot be written.
    """
    write_probability_parts(stem, probabilities.shape, iter(probabilities), properties, probabilities.dtype)


def write_probability_parts(
    stem: Path,
    shape: Sequence[int],
    parts: Iterable[np.ndarray[Any, Any]],
    properties: dict[str, Any],
    dtype: np.dtype[Any] = SINGLE,
) -> None:
    """Write `stem.npz` and `stem.pkl` as nnU-Net does, with probabilities that never exist as one array.

    Args:
        stem: path of the files without ending.
        shape: of the probabilities (C, z, y, x).
        parts: consecutive parts of the array in its order, the last axis first.
        properties: content of `stem.pkl`.
        dtype: of the parts.

    Raises:
        EnvironmentProblem: a file cannot be written.
    """
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": tuple(map(int, shape))}
    with (
        replacing(Path(f"{stem}.npz"), keep_ending=True, run=REPAIR) as temporary,
        ZipFile(temporary, "w", ZIP_DEFLATED) as archive,
        archive.open("probabilities.npy", "w", force_zip64=True) as file,
    ):
        np.lib.format.write_array_header_1_0(file, header)
        for part in parts:
            file.write(np.ascontiguousarray(part).data)
    with replacing(Path(f"{stem}.pkl"), keep_ending=True, run=REPAIR) as temporary:
        temporary.write_bytes(pickle.dumps(properties))
