"""Image files whose axes are not at right angles."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import SimpleITK as sitk

SHEAR = 0.3


def write_sheared(path: Path, size: tuple[int, ...] = (7, 6, 5)) -> Path:
    """Write an image whose second axis leans towards the first one; ITK itself would write other axes as NIfTI."""
    path.parent.mkdir(parents=True, exist_ok=True)
    voxels = np.random.default_rng(0).normal(10, 5, size).astype(np.float32)
    axes = np.eye(3)
    axes[0, 1] = SHEAR
    if path.name.endswith(".nii.gz"):
        affine = np.eye(4)
        affine[:3, :3] = axes
        image = nibabel.Nifti1Image(voxels, affine)
        image.set_sform(affine, 1)
        image.header["qform_code"] = 0
        nibabel.save(image, path)
        return path
    scan = sitk.GetImageFromArray(voxels.T)
    scan.SetDirection((axes / np.linalg.norm(axes, axis=0)).ravel().tolist())
    sitk.WriteImage(scan, str(path))
    return path
