"""How good the pseudo-label of a scan is, and which scans are kept.

A scan is rejected where a structure is missing that every labelled scan has, where a volume is far outside those of the
labelled scans, or where the agreement of several networks, or the confidence of one, is among the lowest. Few scans are
rejected, because a rejected scan teaches nothing.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnssl.data.labels import Label

LEAST_VOLUME, LARGEST_VOLUME = 0.3, 3.0  # in units of the smallest and of the largest labelled volume


@dataclass(frozen=True)
class ScanScore:
    """What a pseudo-label says about its scan; one number for each structure.

    Attributes:
        confidence: mean confidence of the voxels of a structure, in [0, 1]; None where the scan has none.
        volumes_ml: volume of a structure, ml.
        agreement: see `agreement`; empty where one network labelled the scan.
    """

    confidence: tuple[float | None, ...]
    volumes_ml: tuple[float, ...]
    agreement: tuple[float | None, ...] = ()

    @property
    def score(self) -> float | None:
        """Mean agreement, or else mean confidence, over the structures that are there; None where there is none."""
        known = [value for value in self.agreement or self.confidence if value is not None]
        return sum(known) / len(known) if known else None


@dataclass(frozen=True)
class Verdict:
    """Whether a scan is kept, and what speaks against it: empty for a scan without a flaw."""

    kept: bool
    why: str = ""


def agreement(members: Sequence[NDArray[Any]], structures: Sequence[Label]) -> tuple[float | None, ...]:
    """Return how much the labels of several networks agree: the mean Dice over all pairs, in [0, 1].

    Args:
        members: label values (*S) of each network.
        structures: labels, or regions as tuples of labels.

    Returns:
        One number for each structure, None where no network finds it; empty for fewer than two networks.

    Reference: Roy et al., Bayesian QuickNAT, NeuroImage 2019: the quality of a scan without a reference.
    """
    if len(members) < 2:
        return ()
    found = []
    for each in structures:
        masks = [np.isin(labels, each) for labels in members]
        sizes = [int(np.count_nonzero(mask)) for mask in masks]
        pairs = [(i, j) for i, j in itertools.combinations(range(len(masks)), 2) if sizes[i] + sizes[j]]
        dice = [2 * int(np.count_nonzero(masks[i] & masks[j])) / (sizes[i] + sizes[j]) for i, j in pairs]
        found.append(sum(dice) / len(dice) if dice else None)
    return tuple(found)


def score_scan(
    labels: NDArray[Any],
    confidence: NDArray[np.uint8],
    structures: Sequence[Label],
    voxel_ml: float,
    agreed: Sequence[float | None] = (),
) -> ScanScore:
    """Return the score of a pseudo-label.

    Args:
        labels: label values (*S).
        confidence: (*S), 255 = certain.
        structures: labels, or regions as tuples of labels.
        voxel_ml: volume of a voxel, ml.
        agreed: what `agreement` returned for the scan.
    """
    masks = [np.isin(labels, each) for each in structures]
    means = tuple(float(confidence[mask].mean()) / 255 if mask.any() else None for mask in masks)
    volumes = tuple(int(np.count_nonzero(mask)) * voxel_ml for mask in masks)
    return ScanScore(means, volumes, tuple(agreed))


def voxel_volume_ml(shape: Sequence[int], properties: Mapping[str, Any]) -> float:
    """Return the volume of a voxel of a preprocessed scan, ml.

    Args:
        shape: voxels of the preprocessed scan along each axis.
        properties: what preprocessing noted about the scan; its spacing is in mm.
    """
    cropped = math.prod(int(n) for n in properties["shape_after_cropping_and_before_resampling"])
    return math.prod(float(mm) for mm in properties["spacing"]) * cropped / math.prod(shape) / 1000


def choose_scans(
    scores: Mapping[str, ScanScore],
    labelled_ml: Iterable[Sequence[float]],
    names: Sequence[str],
    keep_share: float,
) -> dict[str, Verdict]:
    """Return for each scan whether it is kept, and why not.

    At most the share 1 − `keep_share` of the scans, rounded down, is rejected: first those without a structure that
    every labelled scan has, then those with a volume outside 0.3 to 3 times the labelled range, then those with the
    lowest score. A scan without a flaw is kept where it is certain or shows no structure.

    Args:
        scores: case name → score.
        labelled_ml: volumes of the structures in each labelled scan, ml; empty where they say nothing, as with an
            ignore label, which leaves parts of the structures unlabelled.
        names: of the structures.
        keep_share: least share of the scans that is kept, in [0, 1].
    """
    known = list(labelled_ml)
    limits = [(min(volumes), max(volumes)) for volumes in zip(*known, strict=True)] if known else []
    flaws = {case: _flaw(score, limits, names) for case, score in scores.items()}
    order = sorted(scores, key=lambda case: (flaws[case][0], _tail(scores[case]), case))
    count = math.floor((1 - keep_share) * len(order) + 1e-9)
    verdicts = {}
    for number, case in enumerate(order):
        score, why = scores[case].score, flaws[case][1]
        unsure = score is not None and score < 1
        if number < count and not why and unsure:
            name = "agreement" if scores[case].agreement else "confidence"
            why = f"{name} {score:.3f} is among the lowest"
        verdicts[case] = Verdict(number >= count or not why, why)
    return {case: verdicts[case] for case in scores}


def _flaw(score: ScanScore, limits: Sequence[tuple[float, float]], names: Sequence[str]) -> tuple[int, str]:
    """Return the rank of the worst flaw of a scan (0 is worst, 2 is none), and the flaw in words."""
    triples = list(zip(names, score.volumes_ml, limits, strict=False))
    missing = [name for name, volume, (low, _) in triples if low > 0 and not volume]
    if missing:
        return 0, f"no voxel of {', '.join(missing)}"
    outside = [
        f"{name} has {volume:.3g} ml, labelled scans have {low:.3g} to {high:.3g} ml"
        for name, volume, (low, high) in triples
        if volume and not LEAST_VOLUME * low <= volume <= LARGEST_VOLUME * high
    ]
    return (1, "; ".join(outside)) if outside else (2, "")


def _tail(score: ScanScore) -> float:
    """Return what orders scans from the worst to the best; a scan without foreground is no part of the tail."""
    return math.inf if score.score is None else score.score
