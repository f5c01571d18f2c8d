"""The only module of the folder that `nnUNet_extTrainer` names: nnU-Net's commands look the trainers up here.

The classes live in `nnssl_trainers`, outside that folder, so that the classes stay picklable and keep their identity.
A class is imported when nnU-Net asks for its name, so that a method with a missing dependency does not hide the others.
"""

from __future__ import annotations

import logging
from typing import Any

from nnssl.registry import METHODS

logging.basicConfig(level=logging.INFO, format="%(message)s")


def __getattr__(name: str) -> Any:  # noqa: ANN401 - the class of a trainer, known by name only
    if name not in METHODS:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    try:
        return METHODS[name].load()
    except (ImportError, AttributeError) as error:
        # nnU-Net calls hasattr, which takes an AttributeError for "no such trainer" and hides the cause.
        raise ImportError(f"{name} cannot be imported from {METHODS[name].module}: {error}") from error


def __dir__() -> list[str]:
    return sorted([*globals(), *METHODS])
