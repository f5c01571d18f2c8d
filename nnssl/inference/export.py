"""Masks and probabilities on disk, each file written under a temporary name and then renamed."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nnssl.errors import EnvironmentProblem

if TYPE_CHECKING:
    import numpy as np
    from nnunetv2.imageio.base_reader_writer import BaseReaderWriter


@contextlib.contextmanager
def replacing_with_ending(path: Path) -> Iterator[Path]:
    """Yield a hidden temporary path beside `path` with the same ending; it replaces `path` on success.

    Image writers choose the format by the file ending, so it must be kept. The name is always the same: a run that
    was killed leaves nothing that the next one does not clean up.

    Raises:
        EnvironmentProblem: the file cannot be written, or the disk is full.
    """
    temporary = path.with_name(f".part_{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except (OSError, RuntimeError) as error:  # ITK raises RuntimeError
        raise EnvironmentProblem(
            "a file could not be written",
            where=path,
            why=str(error).strip().splitlines()[-1],
            run="free space or choose another folder, then run the same command with --continue_prediction",
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


def write_mask(path: Path, mask: np.ndarray[Any, Any], properties: dict[str, Any], writer: BaseReaderWriter) -> None:
    """Write a mask of shape (z, y, x) with the geometry of its scan, and read it back before it counts as written.

    Raises:
        EnvironmentProblem: the file cannot be written, or what is on disk is not the mask.
    """
    with replacing_with_ending(path) as temporary:
        writer.write_seg(mask, str(temporary), properties)
        if not (writer.read_seg(str(temporary))[0][0] == mask).all():
            raise OSError("what was read back differs from what was written")


def write_probabilities(stem: Path, probabilities: np.ndarray[Any, Any], properties: dict[str, Any]) -> None:
    """Write `stem.npz` (probabilities, shape (C, z, y, x)) and `stem.pkl` (properties) as nnU-Net does.

    Raises:
        EnvironmentProblem: a file cannot be written.
    """
    import pickle

    import numpy as np

    with replacing_with_ending(Path(f"{stem}.npz")) as temporary:
        np.savez_compressed(temporary, probabilities=probabilities)
    with replacing_with_ending(Path(f"{stem}.pkl")) as temporary:
        temporary.write_bytes(pickle.dumps(properties))
