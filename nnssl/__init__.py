"""nnssl: nnU-Net v2 made semi-supervised.

The Python API mirrors the commands: `convert`, `plan`, `train`, `predict`, `evaluate`. Importing this package is fast:
torch and nnU-Net are imported when a function is called.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
DISTRIBUTION = "nnssl-semi"

if TYPE_CHECKING:
    from nnssl.dataset_conversion.engine.writer import convert as convert
    from nnssl.evaluation.api import evaluate as evaluate
    from nnssl.inference.api import predict as predict
    from nnssl.planning.api import plan as plan
    from nnssl.training.api import train as train

_API = {
    "convert": "nnssl.dataset_conversion.engine.writer",
    "plan": "nnssl.planning.api",
    "train": "nnssl.training.api",
    "predict": "nnssl.inference.api",
    "evaluate": "nnssl.evaluation.api",
}
__all__ = ["DISTRIBUTION", "__version__", "convert", "evaluate", "plan", "predict", "train"]


def __getattr__(name: str) -> Any:  # noqa: ANN401 - a module attribute may be anything
    if name in _API:
        return getattr(import_module(_API[name]), name)
    raise AttributeError(f"module 'nnssl' has no attribute '{name}'")
