"""From the scores of scans to decisions, and from held-out cases to what a score is worth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from nnssl.annotation.agreement import RiskCoverage, mean_of, rank_correlation, risk_coverage
from nnssl.annotation.known_cases import Size
from nnssl.labelling.scores import ScanScore, choose_scans

Decision = Literal["accept", "look", "drop"]
DECISIONS: tuple[Decision, ...] = ("drop", "look", "accept")  # the worst first
FEWEST_CASES = 8  # with fewer held-out cases a rank correlation says nothing
MORE_COMPONENTS = 3  # times those of the labelled cases


@dataclass(frozen=True)
class Quality:
    """What the members say about the mask of one scan, one value a structure where there are several.

    Attributes:
        dice: mean pairwise Dice, None where no member has the structure.
        entropy: mean entropy of the voxels that a member calls foreground, in [0, 1].
        size: of the consensus.
    """

    dice: tuple[float | None, ...]
    entropy: float
    size: Size

    @property
    def score(self) -> float | None:
        """Mean pairwise Dice over the structures, in [0, 1]; None for a scan in which no member sees a structure."""
        return mean_of(self.dice)


@dataclass(frozen=True)
class Calibration:
    """What the score is worth on held-out labelled cases.

    Attributes:
        cases: case -> score and true Dice.
        correlation: Spearman's; None with fewer than eight cases, or where it is not defined.
        curve: risk and coverage, None with fewer than eight cases.
        note: in words.
    """

    cases: dict[str, tuple[float, float]]
    correlation: float | None
    curve: RiskCoverage | None
    note: str

    def expected_dice(self, score: float) -> float | None:
        """Return the Dice that held-out cases of such a score have; None where the score is not calibrated.

        The values rise with the score: isotonic regression of Dice on score, linear in between.
        """
        from scipy.optimize import isotonic_regression

        if self.correlation is None or self.correlation <= 0:
            return None
        pairs = sorted(self.cases.values())
        fitted = isotonic_regression([dice for _, dice in pairs]).x
        return float(np.interp(score, [each for each, _ in pairs], fitted))

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        cases = {case: {"score": score, "dice": dice} for case, (score, dice) in self.cases.items()}
        return {**vars(self), "cases": cases, "curve": vars(self.curve) if self.curve else None}


def calibrate(cases: Mapping[str, tuple[float, float]], note: str = "") -> Calibration:
    """Return what scores are worth.

    Args:
        cases: held-out case -> score and true Dice.
        note: why there are no cases.
    """
    if len(cases) < FEWEST_CASES:
        reason = f" ({note})" if note else ""
        few = (
            f"{len(cases)} held-out labelled case(s), {FEWEST_CASES} are needed to say what the score is worth{reason}"
        )
        return Calibration(dict(cases), None, None, few)
    scores, dice = zip(*cases.values(), strict=True)
    correlation, curve = rank_correlation(scores, dice), risk_coverage(scores, dice)
    text = "undefined, as all values are equal" if correlation is None else f"{correlation:.2f}"
    areas = f"area {curve.area:.3f}; {curve.area_random:.3f} without a score, {curve.area_ideal:.3f} at best"
    points = ", ".join(
        f"{round(100 * share)} % → {curve.risk[max(0, round(share * len(scores)) - 1)]:.3f}"
        for share in (0.25, 0.5, 0.75, 1)
    )
    note = (
        f"{len(cases)} held-out labelled cases: rank correlation of score and Dice {text}; "
        f"mean error 1 − Dice of the best-scored share: {points} ({areas})"
    )
    return Calibration(dict(cases), correlation, curve, note)


@dataclass(frozen=True)
class Judged:
    """The decision about one scan: expected Dice (None without calibration), decision, and what speaks against it."""

    expected_dice: float | None
    decision: Decision
    why: str


def judge(
    qualities: Mapping[str, Quality],
    labelled: Sequence[Size],
    names: Sequence[str],
    calibration: Calibration,
    limits: tuple[float, float],
) -> dict[str, Judged]:
    """Return a decision for each scan.

    A mask is accepted where its expected Dice is at least the first limit and nothing else speaks against it, and
    dropped where the expected Dice is below the second limit, or where a structure is missing that every labelled case
    has. Without a calibration the score takes the place of the expected Dice.

    Args:
        qualities: case -> what the members say.
        labelled: volumes and components of the labelled cases; empty where they are not known.
        names: of the structures.
        calibration: of the score.
        limits: Dice from which on a mask is accepted, and below which it is dropped.
    """
    scores = {case: ScanScore((None,) * len(names), each.size.volumes_ml) for case, each in qualities.items()}
    outliers = choose_scans(scores, [size.volumes_ml for size in labelled], names, keep_share=1)
    return {
        case: _judge(each, _flaws(each, outliers[case].why, labelled, names), calibration, limits)
        for case, each in qualities.items()
    }


def _flaws(quality: Quality, outlier: str, labelled: Sequence[Size], names: Sequence[str]) -> list[str]:
    flaws = [outlier] if outlier else []
    most = [max(counts) for counts in zip(*(size.components for size in labelled), strict=True)]
    flaws += [
        f"{name} has {count} components, labelled scans have at most {limit}"
        for name, count, limit in zip(names, quality.size.components, most, strict=False)
        if count > MORE_COMPONENTS * max(limit, 1)
    ]
    return flaws


def _judge(quality: Quality, flaws: list[str], calibration: Calibration, limits: tuple[float, float]) -> Judged:
    if quality.score is None:
        return Judged(None, "look", "; ".join(["no member sees a structure", *flaws]))
    expected = calibration.expected_dice(quality.score)
    value, what = (quality.score, "score") if expected is None else (expected, "expected Dice")
    missing = any(flaw.startswith("no voxel of") for flaw in flaws)
    if value < limits[1] or missing:
        low = [f"{what} {value:.2f} is below {limits[1]:g}"] if value < limits[1] else []
        return Judged(expected, "drop", "; ".join([*flaws, *low]))
    if value < limits[0] or flaws:
        low = [f"{what} {value:.2f} is below {limits[0]:g}"] if value < limits[0] else []
        return Judged(expected, "look", "; ".join([*flaws, *low]))
    return Judged(expected, "accept", "")
