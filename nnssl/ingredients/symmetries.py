"""Flips and turns by 90° of patches together with their labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Symmetry(NamedTuple):
    """A flip and a turn of one patch.

    Attributes:
        flipped: spatial axes to flip, counted from 0.
        quarter_turns: number of turns by 90°, 0 to 3.
        plane: the two spatial axes of the plane of the turns.
    """

    flipped: tuple[int, ...] = ()
    quarter_turns: int = 0
    plane: tuple[int, int] = (0, 1)


def draw_symmetries(
    count: int, flips: Sequence[int], turns: Sequence[int], generator: torch.Generator | None = None
) -> list[Symmetry]:
    """Return a random symmetry for each of `count` patches.

    Args:
        count: number of patches.
        flips: spatial axes that may be flipped, each with probability ½.
        turns: spatial axes of equal length and voxel size; two of them are drawn, and a number of turns from 0 to 3.
            Fewer than two axes: no turns.
        generator: CPU generator; None = torch's global generator.
    """
    drawn = []
    for _ in range(count):
        flipped = tuple(axis for axis in flips if torch.rand((), generator=generator).item() < 0.5)
        if len(turns) < 2:
            drawn.append(Symmetry(flipped))
            continue
        first, second = torch.randperm(len(turns), generator=generator)[:2].tolist()
        number = int(torch.randint(4, (), generator=generator))
        drawn.append(Symmetry(flipped, number, (turns[first], turns[second])))
    return drawn


def apply_symmetries(patches: Tensor, symmetries: Sequence[Symmetry]) -> Tensor:
    """Return patches (B, C, *S), each flipped and then turned by its own symmetry; gradients go through.

    Args:
        patches: (B, C, *S) of any type.
        symmetries: one for each patch.
    """
    moved = []
    for patch, symmetry in zip(patches, symmetries, strict=True):
        flipped = patch.flip([axis + 1 for axis in symmetry.flipped]) if symmetry.flipped else patch
        plane = [axis + 1 for axis in symmetry.plane]
        moved.append(torch.rot90(flipped, symmetry.quarter_turns, plane) if symmetry.quarter_turns else flipped)
    return torch.stack(moved)
