"""Which method to take: use, measured cost and gain, weaknesses. This module imports the standard library only.

The costs are those of `costs.json`, which `benchmarks/chooser.py` writes. The gains are those of the table "Two stages"
of the results page.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnssl.config_source import settings_without_torch
from nnssl.registry import METHODS

COSTS = Path(__file__).with_name("costs.json")
WHERE_GAINS = "ACDC, 3 labelled patients, 5,000 iterations, Dice points over SupervisedTrainer after post-processing"
WHY_DEFAULT = (
    "FixMatchTrainer is the default: it gained in both seeds at about twice the time and memory of supervised "
    "training, with nnU-Net's network alone. PLGDFTrainer gained more there, at more than three times the time and "
    "four times the memory."
)


@dataclass(frozen=True)
class Advice:
    """What helps to choose a method.

    Attributes:
        use: when to take the method.
        weaknesses: what speaks against the method.
        gains: Dice points over the supervised run of the same length and seed, after post-processing; one number for
            each seed. Empty where nothing was measured.
        settings: the settings of these runs, where they are not the defaults.
    """

    use: str
    weaknesses: str
    gains: tuple[float, ...] = ()
    settings: str = ""


@dataclass(frozen=True)
class Cost:
    """Cost of a step in units of nnU-Net's supervised step at the same plan.

    Attributes:
        time: seconds of an iteration.
        memory: activations that a step keeps for its backward pass, all trained networks together.
    """

    time: float
    memory: float


@dataclass(frozen=True)
class Pace:
    """Seconds of an iteration on one data set and configuration.

    Attributes:
        seconds: of an iteration.
        source: where the number comes from, in words.
    """

    seconds: float
    source: str


ADVICE: dict[str, Advice] = {
    "SupervisedTrainer": Advice(
        "always, as the baseline; alone where nearly all scans are labelled", "learns nothing from unlabelled scans"
    ),
    "MeanTeacherTrainer": Advice(
        "as the simplest method, and where pseudo-labels would be wrong too often",
        "gains less than FixMatch, and nothing with a small consistency_weight",
        (5.1, 6.8),
    ),
    "FixMatchTrainer": Advice(
        "first: few labelled scans, many unlabelled ones of the same kind",
        "finds structures in empty slices before post-processing; useless where the supervised stage misses a class",
        (7.9, 8.7),
    ),
    "SelfTrainingTrainer": Advice(
        "where masks of the unlabelled scans shall be looked at, corrected or made elsewhere (-pseudo_labels)",
        "labels every scan between the stages, which is not part of the time of a step; its gain is small",
        (1.1, 4.3),
    ),
    "DSMTTrainer": Advice(
        "to reproduce DSMT-Net or BCP; with student2=plan where memory allows two networks",
        "Mamba-UNet is slow without a GPU and the extra mamba; two networks to train",
        (8.2,),
        "student2=plan, bf16, started from a supervised run",
    ),
    "DPTMTrainer": Advice(
        "to reproduce DPTM, on aligned scans in which a structure keeps its place",
        "its gain differs much between seeds; the threshold map needs scans of one orientation",
        (1.1, 7.1),
    ),
    "PLGDFTrainer": Advice(
        "where four times the memory is no problem: the largest gain that was measured",
        "four batches a step; memory grows with the number of classes",
        (8.6, 10.6),
    ),
    "CCETrainer": Advice(
        "to reproduce CCE, or where two networks shall be averaged at the end",
        "two networks to train and to deploy, which take twice the time in prediction",
        (5.4,),
        "network=plan student2=plan, bf16, started from a supervised run",
    ),
    "DTLPTrainer": Advice(
        "to reproduce DTLP-Net or A&D", "the dearest method, with a diffusion decoder; no gain measured in this table"
    ),
}


def costs() -> dict[str, dict[str, Cost]]:
    """Return the measured costs: configuration -> trainer -> cost."""
    return {
        name: {trainer: Cost(**cost) for trainer, cost in table.items()}
        for name, table in measurement()["configurations"].items()
    }


def measurement() -> dict[str, Any]:
    """Return the content of `costs.json`: `command`, `data`, `machine` and `configurations`."""
    content: dict[str, Any] = json.loads(COSTS.read_text(encoding="utf-8"))
    return content


def in_words(trainer: str) -> dict[str, str]:
    """Return what to show of a trainer: `use`, `cost`, `gain` and `weaknesses`."""
    advice = ADVICE[trainer]
    parts = [
        f"{name}: {table[trainer].time:g} x time, {table[trainer].memory:g} x memory" for name, table in costs().items()
    ]
    runs = "one run" if len(advice.gains) == 1 else f"{len(advice.gains)} seeds"
    gain = " and ".join(f"{points:+.1f}" for points in advice.gains) + f" points ({runs})" if advice.gains else ""
    gain += f" with {advice.settings}" if advice.settings else ""
    return {
        "use": advice.use,
        "cost": "; ".join(parts),
        "gain": gain or "not measured",
        "weaknesses": advice.weaknesses,
    }


def paces(measured: Mapping[str, Sequence[float]], configuration: str) -> dict[str, Pace]:
    """Return the pace of every trainer on a data set, from the runs that exist there; empty without runs.

    Args:
        measured: seconds of an iteration of each run of the configuration, by trainer.
        configuration: `2d` for example; another one than those of `costs.json` has the ratios of `3d_fullres`.

    Returns:
        The median over a trainer's own runs; for a trainer without runs, the median over the other trainers' runs
        divided by their relative cost, times its own. The cost of a run is that of its two stages with the defaults.
    """
    known = costs()
    table = {name: _cost_of_run(name, cost) for name, cost in known.get(configuration, known["3d_fullres"]).items()}
    own = {trainer: statistics.median(values) for trainer, values in measured.items() if values}
    bases = [seconds / table[trainer] for trainer, seconds in own.items() if trainer in table]
    found = {}
    for trainer in METHODS:
        if trainer in own:
            found[trainer] = Pace(own[trainer], f"measured in {len(measured[trainer])} run(s)")
        elif bases:
            seconds = statistics.median(bases) * table[trainer]
            found[trainer] = Pace(seconds, f"from runs of {', '.join(sorted(own))} and the relative cost")
    return found


def _cost_of_run(trainer: str, cost: Cost) -> float:
    """Return the mean time of an iteration of a whole run: its supervised stage costs 1."""
    config_class: Any = settings_without_torch(METHODS[trainer]) or METHODS[trainer].load().config_class
    defaults: dict[str, Any] = {item.name: item.default for item in dataclasses.fields(config_class)}
    share = float(defaults.get("supervised_share", 0.0))
    return share + (1 - share) * cost.time
