"""Warnings where unlabelled or test scans look different from the labelled scans.

With a handful of labelled scans a p-value says little. The measure is therefore a robust effect size: the distance of
the two medians, in units of the scatter of the scans about the median of their group (1.4826 times the median absolute
deviation).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from nnssl.data.scans import ChannelIntensity, ScanFacts

GROUP_EFFECT = 1.0
SAMPLING_ERRORS = 3.0
MEDIAN_VARIANCE = math.pi / 2  # of a normal sample's median, in units of variance / n
OUTLIER_EFFECT = 8.0
SPACING_FLOOR = 0.05
SIZE_FLOOR = 0.1
INTENSITY_FLOOR = 0.1
SHOWN_CASES = 3


@dataclass(frozen=True)
class _Measure:
    """One number of a scan.

    `of` returns the number in its own unit. `scale` maps it to a scale on which equal steps are equal deviations.
    """

    family: str
    detail: str
    unit: str
    of: Callable[[ScanFacts], float]
    scale: Callable[[float], float]
    floor: float


@dataclass(frozen=True)
class _Finding:
    strength: float
    text: str


def shift_warnings(facts: Mapping[str, ScanFacts]) -> list[str]:
    """Return one line for each way in which unlabelled or test scans differ from the labelled scans.

    The function compares spacing, size in mm, intensity and orientation. A line says whether the whole group or only
    some scans stand apart, and names the scans that deviate most. Homogeneous scans give no line.

    Args:
        facts: case name -> facts, of all kinds together.
    """
    groups: dict[str, list[ScanFacts]] = {"labelled": [], "unlabelled": [], "test": []}
    for scan in facts.values():
        groups[scan.kind].append(scan)
    labelled = groups["labelled"]
    lines: list[str] = []
    for kind in ("unlabelled", "test"):
        if labelled and groups[kind]:
            lines += _compare_groups(labelled, groups[kind], kind)
    return lines


def _compare_groups(labelled: Sequence[ScanFacts], others: Sequence[ScanFacts], kind: str) -> list[str]:
    strongest: dict[str, _Finding] = {}
    for measure in _measures(labelled, others):
        found = _difference(labelled, others, measure, kind)
        if found and (measure.family not in strongest or found.strength > strongest[measure.family].strength):
            strongest[measure.family] = found
    lines = [found.text for found in strongest.values()]
    return lines + _orientation(labelled, others, kind)


def _measures(labelled: Sequence[ScanFacts], others: Sequence[ScanFacts]) -> Iterator[_Measure]:
    axes = min(len(scan.shape) for scan in (*labelled, *others))
    for axis in range(axes):
        yield _Measure("spacing", f"axis {axis}", " mm", _spacing(axis), math.log, SPACING_FLOOR)
    for axis in range(axes):
        yield _Measure("size", f"axis {axis}", " mm", _size(axis), math.log, SIZE_FLOOR)
    channels = min(len(scan.intensity) for scan in (*labelled, *others))
    for channel in range(channels):
        contrast = float(np.median([scan.intensity[channel].std for scan in (*labelled, *others)])) or 1.0
        where = f", channel {channel}" if channels > 1 else ""
        level = _channel(channel, lambda found: found.mean)
        spread = _channel(channel, lambda found: found.std)
        yield _Measure("intensity", f"mean{where}", "", level, _in_units_of(contrast), 2.5 * INTENSITY_FLOOR)
        yield _Measure("intensity", f"standard deviation{where}", "", spread, _safe_log, INTENSITY_FLOOR)


def _spacing(axis: int) -> Callable[[ScanFacts], float]:
    return lambda scan: scan.spacing_mm[axis]


def _size(axis: int) -> Callable[[ScanFacts], float]:
    return lambda scan: scan.spacing_mm[axis] * scan.shape[axis]


def _channel(channel: int, pick: Callable[[ChannelIntensity], float]) -> Callable[[ScanFacts], float]:
    return lambda scan: pick(scan.intensity[channel])


def _in_units_of(unit: float) -> Callable[[float], float]:
    return lambda value: math.asinh(value / unit)


def _safe_log(value: float) -> float:
    return math.log(max(value, 1e-12))


def _difference(
    labelled: Sequence[ScanFacts], others: Sequence[ScanFacts], measure: _Measure, kind: str
) -> _Finding | None:
    """Return the finding for one measure: the whole group stands apart, or single scans do, or None."""
    values_l = np.array([measure.scale(measure.of(scan)) for scan in labelled])
    values_o = np.array([measure.scale(measure.of(scan)) for scan in others])
    centre, other_centre = float(np.median(values_l)), float(np.median(values_o))
    scatter = 1.4826 * float(np.median(np.abs(np.concatenate([values_l - centre, values_o - other_centre]))))
    scatter = max(scatter, measure.floor)
    effect = abs(other_centre - centre) / scatter
    allowance = SAMPLING_ERRORS * math.sqrt(MEDIAN_VARIANCE / len(values_l) + MEDIAN_VARIANCE / len(values_o))
    apart = np.maximum(values_l.min() - values_o, values_o - values_l.max()) / scatter  # negative within their range
    order = np.argsort(-np.abs(values_o - centre), kind="stable")
    values = [measure.of(scan) for scan in others]
    if effect > GROUP_EFFECT + allowance:
        share, strength, named = "differ from", effect, order[:SHOWN_CASES]
    elif (apart > OUTLIER_EFFECT).any():
        count = int((apart > OUTLIER_EFFECT).sum())
        share, strength = f"({count} of {len(others)}) stand apart from", float(apart.max())
        named = order[: min(count, SHOWN_CASES)]
    else:
        return None
    cases = ", ".join(f"{others[i].case} ({values[i]:.4g}{measure.unit})" for i in named)
    median, other_median = (np.median([measure.of(scan) for scan in group]) for group in (labelled, others))
    return _Finding(
        strength,
        f"{measure.family}: {kind} scans {share} the labelled ones ({measure.detail}, median "
        f"{other_median:.4g}{measure.unit} against {median:.4g}{measure.unit}, effect size {strength:.1f}); "
        f"most deviating: {cases}",
    )


def _orientation(labelled: Sequence[ScanFacts], others: Sequence[ScanFacts], kind: str) -> list[str]:
    known = Counter(scan.orientation for scan in labelled)
    strange = [scan for scan in others if scan.orientation not in known]
    if not strange:
        return []
    codes = ", ".join(f"{code or 'none'} ({count})" for code, count in known.most_common())
    cases = ", ".join(f"{scan.case} ({scan.orientation or 'none'})" for scan in strange[:SHOWN_CASES])
    line = (
        f"orientation: {len(strange)} of {len(others)} {kind} scans have an axis order that no labelled scan has "
        f"(labelled: {codes}); for instance: {cases}"
    )
    return [line]
