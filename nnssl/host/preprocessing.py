"""nnU-Net's preprocessing, safe for scans thinner than a slice of the plan and for extreme intensities.

The module imports nnU-Net, so that other modules import it when they preprocess.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager

from nnssl.errors import DataError
from nnssl.names import CLIP_KEY

Array = np.ndarray[Any, Any]

OUTLIER_RATIO = 1e-3  # voxels below this part of the largest value are the scan, the others are outliers
LEAST_SCAN_SHARE = 0.999  # with fewer voxels below, bright structures are no outliers
LEAST_CONTRAST = 0.5  # in units of the normalised intensities, whose standard deviation is about 1
SAMPLED_VOXELS = 1_000_000
REPAIR = "replace the value by one of the scan's own range, its background for example"
log = logging.getLogger("nnssl.nnunet")
_files: ContextVar[Sequence[str]] = ContextVar("files of the scan that is preprocessed", default=("image",))


class KeepingConfiguration(ConfigurationManager):  # type: ignore[misc]
    """A configuration whose resampling keeps at least one voxel of every axis.

    nnU-Net rounds the size that a scan has on the grid of the plans. Less than half a slice then becomes no slice.
    Sizes of 1 and more stay as nnU-Net computes them.
    """

    @property
    def resampling_fn_data(self) -> Callable[..., Any]:
        """The function that resamples images."""
        return partial(_resample, super().resampling_fn_data)

    @property
    def resampling_fn_seg(self) -> Callable[..., Any]:
        """The function that resamples label maps."""
        return partial(_resample, super().resampling_fn_seg)


def _resample(function: Callable[..., Any], data: Array, new_shape: Array, *spacings: Sequence[float]) -> Any:  # noqa: ANN401
    return function(data, np.maximum(new_shape, 1), *spacings)


@dataclass(frozen=True)
class _RawChannel:
    """What the check compares with the normalised channel: the voxels of the scan without its outliers.

    Attributes:
        extreme: value with the largest magnitude.
        step: distance between the compared voxels in the flat array.
        core: which compared voxels are no outliers.
        is_scan: whether these are nearly the whole channel and differ from each other.
        varies: whether the channel has more than one value.
    """

    extreme: float
    step: int
    core: Array
    is_scan: bool
    varies: bool

    @classmethod
    def of(cls, channel: Array) -> _RawChannel:
        low, high = float(channel.min()), float(channel.max())
        extreme = low if abs(low) > abs(high) else high
        step = max(1, channel.size // SAMPLED_VOXELS)
        sample = channel.reshape(-1)[::step]
        core = np.abs(sample) <= abs(extreme) * OUTLIER_RATIO
        is_scan = bool(core.mean() >= LEAST_SCAN_SHARE and np.ptp(sample[core]) > 0)
        return cls(extreme, step, core, is_scan, low < high)

    def contrast(self, normalised: Array) -> float:
        """Return the range of the normalised voxels that are no outliers."""
        return float(np.ptp(normalised.reshape(-1)[:: self.step][self.core]))


def checked_preprocessor(base: Any) -> Any:  # noqa: ANN401 - one of nnU-Net's preprocessor classes
    """Return a subclass of `base` that checks the intensities after the normalisation, and clips before where planned.

    `run_case` and `run_case_npy` then raise a `DataError` that names scan, channel and value. A warning in the log says
    that outliers leave the other voxels without contrast.
    """

    class CheckedPreprocessor(base):  # type: ignore[misc]
        def run_case(self, image_files: list[str], seg_file: str | None, *managers: object) -> Any:  # noqa: ANN401
            token = _files.set(image_files)  # the instance has no room for this: threads share the instance
            try:
                return super().run_case(image_files, seg_file, *managers)
            finally:
                _files.reset(token)

        def _normalize(self, data: Array, seg: Array, manager: ConfigurationManager, properties: object) -> Array:
            before = [_RawChannel.of(channel) for channel in data]
            percentiles = manager.configuration.get(CLIP_KEY)
            clipped = clip_channels(data, percentiles) if percentiles else data
            with np.errstate(over="ignore", invalid="ignore"):  # the check below reports these
                normalised: Array = super()._normalize(clipped, seg, manager, properties)
            for number, raw in enumerate(before):
                _check_channel(number, raw, normalised[number])
            return normalised

    return CheckedPreprocessor


def clip_channels(data: Array, percentiles: Sequence[float]) -> Array:
    """Return an image whose channels are clipped at percentiles of their own voxels.

    A channel whose two percentiles are equal, as that of a scan that is nearly all background, stays as it is.

    Args:
        data: (C, *S).
        percentiles: the lower and the upper one, in percent.
    """
    clipped = data.copy()
    for channel in clipped:
        low, high = np.percentile(channel, list(percentiles))
        if low < high:
            np.clip(channel, low, high, out=channel)
    return clipped


def _check_channel(number: int, raw: _RawChannel, normalised: Array) -> None:
    files = _files.get()
    scan = files[min(number, len(files) - 1)]
    bad = normalised.size - int(np.count_nonzero(np.isfinite(normalised)))
    if bad:
        effect = f"makes {bad} of {normalised.size} normalised voxels NaN or infinite"
    elif raw.varies and np.ptp(normalised) == 0:
        effect = "makes all normalised voxels equal"
    elif not raw.is_scan or raw.contrast(normalised) > LEAST_CONTRAST:
        return
    else:
        text = "warning: %s: the value %.6g in channel %d is an outlier that leaves the other voxels no contrast; %s"
        log.warning(text, scan, raw.extreme, number, REPAIR)
        return
    raise DataError(
        f"the intensities of channel {number} cannot be normalised",
        where=scan,
        why=f"the value {raw.extreme:.6g} {effect}",
        run=REPAIR,
    )
