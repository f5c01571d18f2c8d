"""nnssl: nnU-Net v2 made semi-supervised.

The Python API mirrors the commands: `convert`, `plan`, `train`, `runs`, `predict`, `pseudo_label`, `evaluate`,
`compare`, `find_best`, `report`, `look`, `pseudo_quality`, `suggest`, `accept`, `export_model`, `install_model`, `run`,
`clean`.
Importing this package is fast: torch and nnU-Net are imported when a function is called.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from nnssl.version import DISTRIBUTION as DISTRIBUTION
from nnssl.version import __version__ as __version__

if TYPE_CHECKING:
    from nnssl.annotation.accept import accept as accept
    from nnssl.annotation.quality import pseudo_quality as pseudo_quality
    from nnssl.annotation.suggest import suggest as suggest
    from nnssl.bundles.api import export_model as export_model
    from nnssl.bundles.api import install_model as install_model
    from nnssl.cleaning.api import clean as clean
    from nnssl.comparison.api import compare as compare
    from nnssl.dataset_conversion.api import convert as convert
    from nnssl.evaluation.api import evaluate as evaluate
    from nnssl.inference.api import predict as predict
    from nnssl.journey.api import run as run
    from nnssl.labelling.api import pseudo_label as pseudo_label
    from nnssl.planning.api import plan as plan
    from nnssl.reports.api import report as report
    from nnssl.reports.look import look as look
    from nnssl.selection.api import find_best as find_best
    from nnssl.training.api import train as train
    from nnssl.training.runs import evaluate_run as evaluate_run
    from nnssl.training.runs import runs as runs

_API = {
    "convert": "nnssl.dataset_conversion.api",
    "plan": "nnssl.planning.api",
    "train": "nnssl.training.api",
    "runs": "nnssl.training.runs",
    "predict": "nnssl.inference.api",
    "pseudo_label": "nnssl.labelling.api",
    "evaluate": "nnssl.evaluation.api",
    "evaluate_run": "nnssl.training.runs",
    "compare": "nnssl.comparison.api",
    "find_best": "nnssl.selection.api",
    "report": "nnssl.reports.api",
    "look": "nnssl.reports.look",
    "pseudo_quality": "nnssl.annotation.quality",
    "suggest": "nnssl.annotation.suggest",
    "accept": "nnssl.annotation.accept",
    "export_model": "nnssl.bundles.api",
    "install_model": "nnssl.bundles.api",
    "run": "nnssl.journey.api",
    "clean": "nnssl.cleaning.api",
}
__all__ = [
    "DISTRIBUTION", "__version__", "accept", "clean", "compare", "convert", "evaluate", "evaluate_run",
    "export_model", "find_best", "install_model", "look", "plan", "predict", "pseudo_label", "pseudo_quality", "report",
    "run", "runs", "suggest", "train",
]  # fmt: skip


def __getattr__(name: str) -> Any:  # noqa: ANN401 - a module attribute may be anything
    if name in _API:
        return getattr(import_module(_API[name]), name)
    raise AttributeError(f"module 'nnssl' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted({*globals(), *_API})
