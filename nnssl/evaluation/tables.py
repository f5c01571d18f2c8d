"""The evaluation as aligned text for a terminal."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from nnssl.evaluation.summary import EvaluationResult

GAP = "  "
LISTED_NAMES = 5


def results_table(result: EvaluationResult) -> str:
    """Return a row for each structure, the foreground mean, missed and spurious structures, and the conventions.

    Where the cases have several domains, a table of each domain follows the table of all cases.
    """
    parts = [line for name, part in result.domains.items() for line in ("", f"domain {name}", *_table(part))]
    return "\n".join([*_table(result), *parts, "", *_failures(result), *_unmatched(result), *_conventions(result)])


def _table(result: EvaluationResult) -> list[str]:
    tolerance = result.conventions["nsd_tolerance_mm"]
    distances = {"hd95_mm": "HD95 mm", "assd_mm": "ASSD mm"}
    voxels = {key: title for key, title in _VOXELS.items() if key in result.foreground_mean}
    header = ["structure", "Dice ± sd", "Jaccard", *distances.values(), f"NSD {tolerance:g} mm", *voxels.values()]
    header += ["cases", "missed", "spurious"]
    decimals = {"IoU": 3} | dict.fromkeys(distances, 2) | {"nsd": 3} | dict.fromkeys(voxels, 2)
    rows = [
        [name, *_numbers(result.mean[label], result.sd[label], decimals), *map(str, result.counts[label].values())]
        for label, name in result.structures.items()
    ]
    totals = [sum(counts[key] for counts in result.counts.values()) for key in ("n_missed", "n_spurious")]
    mean = ["foreground mean", *_numbers(result.foreground_mean, result.foreground_sd, decimals)]
    rows.append([*mean, str(len(result.cases)), *map(str, totals)])
    lines = _aligned([header, *rows])
    rule = "-" * max(map(len, lines))
    return [lines[0], rule, *lines[1:-1], rule, lines[-1]]


_VOXELS = {"hd95_vox_pooled": "HD95 vox", "asd_vox": "ASD vox"}


def _numbers(mean: Mapping[str, float], sd: Mapping[str, float], decimals: Mapping[str, int]) -> list[str]:
    dice = _number(mean["Dice"], 3) + ("" if math.isnan(sd["Dice"]) else f" ± {sd['Dice']:.3f}")
    return [dice, *(_number(mean[key], digits) for key, digits in decimals.items())]


def _number(value: float, digits: int) -> str:
    return "–" if math.isnan(value) else f"{value:.{digits}f}"


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        GAP.join(
            [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        )
        for row in rows
    ]


def _failures(result: EvaluationResult) -> list[str]:
    lines = []
    for flag in ("missed", "spurious"):
        found = [
            f"{case} {result.structures[label]}"
            for case, metrics in result.cases.items()
            for label in metrics
            if metrics[label][flag]
        ]
        if found:
            lines.append(f"{flag} ({len(found)}): {_some(found)}")
    return lines


def _unmatched(result: EvaluationResult) -> list[str]:
    parts = (
        (result.without_prediction, "references without a prediction, left out"),
        (result.without_reference, "predictions without a reference, left out"),
    )
    return [f"{what} ({len(names)}): {_some(names)}" for names, what in parts if names]


def _some(names: Sequence[str]) -> str:
    more = len(names) - LISTED_NAMES
    return ", ".join(names[:LISTED_NAMES]) + (f" and {more} more" if more > 0 else "")


def _conventions(result: EvaluationResult) -> list[str]:
    lines = [
        "HD95: larger of both directed 95th percentiles. ASSD, NSD: both surfaces pooled. sd: over cases.",
        "A structure in neither mask is not counted; in one only: Dice, Jaccard, NSD 0, distances the image diagonal.",
    ]
    if result.conventions["metrics"] == "paper":
        lines.append(
            "HD95 vox, ASD vox: medpy's definitions without spacing (95th percentile of both directions pooled;"
        )
        lines.append("prediction to reference only), as the semi-supervised papers report them.")
    return lines
