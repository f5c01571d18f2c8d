"""The report about a folder of pseudo-labels: origin, scores and verdict of every scan, as JSON."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from nnssl.labelling.scores import ScanScore, Verdict
from nnssl.system.files import write_json


@dataclass(frozen=True)
class Origin:
    """Where a pseudo-label comes from.

    Attributes:
        origin: `model`: a network of this run or another one predicted the scan; `file`: a user gave the mask.
        source: the checkpoint or the mask.
        sha256: of the network's weights, or of the files with mask and confidence; empty where nothing was hashed.
    """

    origin: Literal["file", "model"]
    source: str
    sha256: str = ""


def write_report(
    path: Path,
    names: Sequence[str],
    scores: Mapping[str, ScanScore],
    verdicts: Mapping[str, Verdict],
    origins: Mapping[str, Origin],
) -> None:
    """Write the report: case → origin, score, numbers of each structure (volumes in ml), kept or not, and why.

    Args:
        path: of the JSON file.
        names: of the structures.
        scores: case → score.
        verdicts: case → verdict.
        origins: case → origin.

    Raises:
        EnvironmentProblem: the file cannot be written.
    """
    write_json(path, {case: _entry(names, scores[case], verdicts[case], origins[case]) for case in sorted(scores)})


def _entry(names: Sequence[str], score: ScanScore, verdict: Verdict, origin: Origin) -> dict[str, Any]:
    return {
        **dataclasses.asdict(origin),
        "score": score.score,
        "confidence": dict(zip(names, score.confidence, strict=True)),
        **({"agreement": dict(zip(names, score.agreement, strict=True))} if score.agreement else {}),
        "volumes_ml": dict(zip(names, score.volumes_ml, strict=True)),
        **dataclasses.asdict(verdict),
    }
