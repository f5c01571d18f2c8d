"""The patches of one iteration, and small functions on batches and network outputs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """One iteration's patches on the device; `_l` labelled, `_u` unlabelled, `_w`/`_s` weak and strong view.

    Attributes:
        image_l: (B, C, *S).
        target_l: labels (B, 1, *S), or the list of them at the sizes of the deep supervision outputs.
        image_u_w: (B, C, *S), None for methods without unlabelled data.
        image_u_s: the same patches and geometry with intensity augmentations.
        mask_u: (B, 1, *S), True = scan, False = padding.
        iteration: number of optimiser steps before this one.
        box_u: (B, n, 2), see `LocatedPatches`, for methods that set `needs_boxes`, None for others.
    """

    image_l: Tensor
    target_l: Tensor | list[Tensor]
    image_u_w: Tensor | None
    image_u_s: Tensor | None
    mask_u: Tensor | None
    iteration: int
    box_u: Tensor | None = None

    @property
    def unlabelled(self) -> tuple[Tensor, Tensor, Tensor]:
        """Weak view, strong view and mask, for methods that have them."""
        assert self.image_u_w is not None
        assert self.image_u_s is not None
        assert self.mask_u is not None
        return self.image_u_w, self.image_u_s, self.mask_u


def full_size_target(batch: Batch) -> Tensor:
    """Return the labels (B, 1 or R, *S) at the size of the images."""
    return batch.target_l[0] if isinstance(batch.target_l, list) else batch.target_l


def as_list(outputs: Any) -> list[Tensor]:  # noqa: ANN401 - a tensor, or the outputs of deep supervision
    """Return a network's outputs as a list, finest first."""
    return list(outputs) if isinstance(outputs, list | tuple) else [outputs]


def split_in_half(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the two halves of a batch.

    A single sample stands in both halves. With an odd number of samples the middle one is left out.
    """
    count = max(1, len(x) // 2)
    return x[:count], x[-count:]
