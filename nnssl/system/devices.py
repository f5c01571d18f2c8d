"""The one rule that chooses the device on which a network runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from nnssl.errors import EnvironmentProblem, UsageError

if TYPE_CHECKING:
    import torch

AUTOMATIC = "auto"


def choose_device(
    name: str | torch.device | None = None,
    count: int = 1,
    *,
    automatic: Sequence[str] = ("cuda", "mps", "cpu"),
    run: str = "-device cpu",
) -> torch.device:
    """Return the device that a user names, or the best device of this machine.

    Args:
        name: `cuda`, `cpu` or `mps`, with an index where the caller wants one; `auto` and None choose.
        count: number of devices of this kind that the caller will use, at least 1.
        automatic: the kinds to choose from, best first; the last one is the fallback.
        run: what a user can do where the device is missing, for the message.

    Raises:
        UsageError: `count` is below 1.
        EnvironmentProblem: this machine has no such device, or fewer than `count` of them.
    """
    import torch

    if count < 1:
        raise UsageError("-num_gpus must be at least 1", where=f"-num_gpus {count}")
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name is None or name == AUTOMATIC:
        name = next((kind for kind in automatic if available[kind]), automatic[-1])
    device = torch.device(name)
    devices = torch.cuda.device_count() if device.type == "cuda" else 1
    if not available.get(device.type) or not devices:
        raise EnvironmentProblem(
            f"there is no {device.type} device",
            where=f"-device {name}",
            why=f"torch {torch.__version__} sees: {', '.join(kind for kind, there in available.items() if there)}",
            run=run,
        )
    if device.type == "cuda" and devices < count:
        raise EnvironmentProblem(
            f"this machine has {devices} cuda device(s), {count} are asked for",
            where=f"-device {name} -num_gpus {count}",
            run=f"-num_gpus {devices}",
        )
    return device


def has_bfloat16(device: torch.device) -> bool:
    """Return whether a device calculates in bfloat16 itself; a device without it emulates the arithmetic, slowly."""
    import torch

    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type == "cpu":
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return False
