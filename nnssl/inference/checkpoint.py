"""Reads checkpoints without running code that a checkpoint may hold."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from nnssl.errors import EnvironmentProblem
from nnssl.training import checkpoints


@dataclass(frozen=True)
class Checkpoint:
    """The content of a checkpoint that prediction needs.

    Attributes:
        weights: state dict of the network that the plans describe.
        trainer: class name that nnU-Net looks up to build the network.
        configuration: name of the plans' configuration.
        mirror_axes: spatial axes that test-time mirroring may flip, None for none.
        ours: whether nnssl wrote the checkpoint; the network is then exactly the network of the plans.
    """

    weights: dict[str, torch.Tensor]
    trainer: str
    configuration: str
    mirror_axes: tuple[int, ...] | None
    ours: bool


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint of nnssl or of stock nnU-Net on the CPU.

    The function accepts tensors, plain values and, for stock nnU-Net, numpy scalars. It refuses all other objects.

    Raises:
        EnvironmentProblem: the file is truncated, is no checkpoint, or holds other objects.
    """
    content = checkpoints.load(path)
    try:
        axes = content.get("inference_allowed_mirroring_axes")
        return Checkpoint(
            weights=content["network_weights"],
            trainer=str(content["trainer_name"]),
            configuration=str(content["init_args"]["configuration"]),
            mirror_axes=tuple(int(axis) for axis in axes) if axes else None,
            ours=checkpoints.KEY in content,
        )
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise EnvironmentProblem(
            "the file is no checkpoint of nnU-Net",
            where=path,
            why=f"{type(error).__name__} {error}",
            run="copy the file again, or choose another checkpoint with -chk",
        ) from error
