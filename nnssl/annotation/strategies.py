"""Which scans to label next: random with foreground, predictive entropy, or entropy by class with decaying noise.

Random choice among scans with foreground is a strong baseline for medical images (Lüth et al. 2023, nnActive 2025);
stratification by class and power noise follow the same line of work (Kirsch et al. 2021 for the noise).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

Strategy = Literal["random", "entropy", "class_entropy"]
STRATEGIES: tuple[Strategy, ...] = get_args(Strategy)
SMALLEST = 1e-6  # entropy, before its logarithm


@dataclass(frozen=True)
class Candidate:
    """A scan without a label, as the model sees it.

    Attributes:
        case: its name.
        patient: its patient.
        entropy: mean entropy of the voxels that a member calls foreground, in [0, 1]; of all voxels without foreground.
        by_structure: structure that the consensus has -> mean entropy of its voxels.
    """

    case: str
    patient: str
    entropy: float = 0.0
    by_structure: Mapping[str, float] | None = None

    @property
    def has_foreground(self) -> bool:
        """Whether the consensus has a structure; unknown without a model."""
        return bool(self.by_structure)


@dataclass(frozen=True)
class Pick:
    """A chosen scan: its name, the score that chose it (None for a random choice), and why in words."""

    case: str
    score: float | None
    why: str


def random_order(cases: Mapping[str, str], seed: int) -> list[str]:
    """Return cases in a random order in which each patient comes once before any patient comes again.

    Args:
        cases: case -> patient.
        seed: of the order.
    """
    names = sorted(cases)
    shuffled = [names[k] for k in np.random.default_rng(seed).permutation(len(names))]
    return _patients_first(shuffled, cases)


def _patients_first(order: Sequence[str], patients: Mapping[str, str]) -> list[str]:
    """Return the cases of an order, those of new patients first; the order within each turn stays."""
    turns: dict[str, int] = {}
    seen: dict[str, int] = {}
    for case in order:
        turns[case] = seen[patients[case]] = seen.get(patients[case], -1) + 1
    return sorted(order, key=turns.__getitem__)


def choose(candidates: Sequence[Candidate], count: int, strategy: Strategy, seed: int, number: int) -> list[Pick]:
    """Return the scans to label next, the first one first.

    A patient is chosen a second time only where no other patient is left.

    Args:
        candidates: all scans, or for `random` those with foreground in a random order.
        count: number of scans.
        strategy: see the module.
        seed: of the noise.
        number: of earlier rounds; the noise of `class_entropy` halves with each.
    """
    if strategy == "random":
        reason = "random, with foreground" if any(each.has_foreground for each in candidates) else "random"
        return [
            Pick(each.case, None, reason if each.has_foreground or each.by_structure is None else "no foreground left")
            for each in candidates[:count]
        ]
    if strategy == "entropy":
        ranked = sorted(candidates, key=lambda each: (-each.entropy, each.case))
        order = _patients_first([each.case for each in ranked], {each.case: each.patient for each in ranked})
        values = {each.case: each.entropy for each in candidates}
        return [Pick(case, values[case], "mean entropy of the foreground") for case in order[:count]]
    return _by_class(candidates, count, seed, number)


def _by_class(candidates: Sequence[Candidate], count: int, seed: int, number: int) -> list[Pick]:
    """Return scans class by class: for each class in turn the one with the largest log entropy plus Gumbel noise."""
    generator = np.random.default_rng([seed, number])
    names = sorted({name for each in candidates for name in each.by_structure or {}})
    turn = [names[k] for k in generator.permutation(len(names))] or [""]
    picks: list[Pick] = []
    left, patients = {each.case: each for each in candidates}, set[str]()
    while left and len(picks) < count:
        name = turn[len(picks) % len(turn)]
        fresh = [each for each in left.values() if each.patient not in patients] or list(left.values())
        pool = [each for each in fresh if name in (each.by_structure or {})] or fresh
        noise = generator.gumbel(size=len(pool)) / 2**number
        values = [_entropy_of(each, name) for each in pool]
        best = max(range(len(pool)), key=lambda k: math.log(max(values[k], SMALLEST)) + noise[k])
        chosen = pool[best]
        reason = f"entropy of {name}, with noise" if name in (chosen.by_structure or {}) else "mean entropy, with noise"
        picks.append(Pick(chosen.case, values[best], reason))
        patients.add(chosen.patient)
        del left[chosen.case]
    return picks


def _entropy_of(candidate: Candidate, name: str) -> float:
    return (candidate.by_structure or {}).get(name, candidate.entropy)
