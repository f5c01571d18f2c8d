"""Volumes whose files end too early, in every format that nnU-Net's readers or the converters read."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import SimpleITK as sitk
import tifffile

READER_ENDINGS = (".nii.gz", ".nrrd", ".mha", ".gipl", ".tif")
CONVERTER_ENDINGS = (*READER_ENDINGS, ".nii", ".img", ".mhd", ".nhdr")


def write_cut(path: Path, array: np.ndarray) -> Path:
    """Write an array (z, y, x) without its last voxels; a gzip file is complete and holds such a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.name.endswith(".nii.gz"):
        plain = write_cut(path.with_suffix(""), array)
        path.write_bytes(gzip.compress(plain.read_bytes()))
        plain.unlink()
        return path
    if path.suffix == ".tif":
        tifffile.imwrite(path, array, compression="zlib")
    else:
        sitk.WriteImage(sitk.GetImageFromArray(array), str(path))
    data = {".mhd": ".raw", ".nhdr": ".raw"}.get(path.suffix, path.suffix)
    file = path.with_suffix(data)
    file.write_bytes(file.read_bytes()[: -array.nbytes // 3])
    return path
