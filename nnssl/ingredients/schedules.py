"""Weights as functions of the iteration."""

from __future__ import annotations

import math


def gaussian_rampup(step: float, length: float) -> float:
    """Return exp(−5·(1 − min(step/length, 1))²): from exp(−5) at step 0 up to 1 at `length` and after.

    Args:
        step: iteration; a negative iteration counts as 0.
        length: number of iterations after which the value is 1; 0 or less gives 1 from the start.

    Reference: Laine and Aila, Temporal ensembling, ICLR 2017, section 3, which counts epochs.
    """
    if length <= 0:
        return 1.0
    phase = 1.0 - min(max(step, 0.0) / length, 1.0)
    return math.exp(-5.0 * phase * phase)


def sigmoid_rampup(step: float, length: float) -> float:
    """Return `gaussian_rampup(step, length)`; the field calls this curve the sigmoid ramp-up.

    Args:
        step: iteration; a negative iteration counts as 0.
        length: number of iterations after which the value is 1; 0 or less gives 1 from the start.
    """
    return gaussian_rampup(step, length)
