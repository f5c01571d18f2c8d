"""Which configurations of the plans can be trained on the scans."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from nnssl.data.scans import ScanFacts
from nnssl.errors import DataError
from nnssl.planning.manifest import resolved_configuration

LEAST_STAGES = 3  # nnU-Net weighs the loss of the lowest supervised stage with zero: of two stages nothing remains
LEAST_VOXELS = 16  # two poolings down to nnU-Net's smallest feature map of four voxels
SHOWN_SCANS = 5
log = logging.getLogger(__name__)


def trainable_configurations(plans: Mapping[str, Any], names: Sequence[str]) -> list[str]:
    """Return the configurations whose network every method can train; a warning names the others.

    Raises:
        DataError: there is none, because the scans have too few voxels.
    """
    patches = {
        name: "x".join(map(str, configuration["patch_size"]))
        for name in names
        for configuration in [resolved_configuration(plans, name)]
        if len(configuration["architecture"]["arch_kwargs"]["features_per_stage"]) < LEAST_STAGES
    }
    if not patches:
        return list(names)
    small = ", ".join(f"{name} {patch}" for name, patch in patches.items())
    why = f"a U-Net needs two poolings, so at least {LEAST_VOXELS} voxels along an axis of the slice or volume"
    if len(patches) == len(set(names)):
        raise DataError(
            "the scans are too small to train on",
            where=f"patches on the grid of the plans: {small}",
            why=why,
            run=f"pad the scans to {LEAST_VOXELS} voxels, or choose smaller voxels with -overwrite_target_spacing",
        )
    log.warning("warning: left out, because the scans are too small: patch of %s; %s", small, why)
    return [name for name in names if name not in patches]


def check_slices(plans: Mapping[str, Any], names: Sequence[str], facts: Mapping[str, ScanFacts]) -> None:
    """Check that no scan is one voxel thick within the slices of a 2-D configuration.

    Args:
        plans: content of plans.json.
        names: the configurations to preprocess.
        facts: result of the check of the raw data, by case.

    Raises:
        DataError: a one-slice scan lies on other axes than the slices of the plans.
    """
    if not any(len(resolved_configuration(plans, name)["patch_size"]) == 2 for name in names):
        return
    across, *plane = plans["transpose_forward"]
    wrong = [scan for scan in facts.values() if any(scan.shape[axis] == 1 for axis in plane)]
    if wrong:
        listed = ", ".join(f"{scan.case} ({'x'.join(map(str, scan.shape))})" for scan in wrong[:SHOWN_SCANS])
        raise DataError(
            f"{len(wrong)} scan(s) are one voxel thick within the slices of the plans",
            where=listed + (", …" if len(wrong) > SHOWN_SCANS else ""),
            why=f"the 2-D slices of the plans lie across axis {'zyx'[across]} of the files",
            run="save these scans with the order of axes of the others, or remove them",
        )
