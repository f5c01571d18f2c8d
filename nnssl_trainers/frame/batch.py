"""The patches of one iteration, and small functions for batches and network outputs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from nnssl.labelling.store import UNSURE


@dataclass(frozen=True)
class Batch:
    """The patches of one iteration on the device: `_l` labelled, `_u` unlabelled, `_w` weak view, `_s` strong view.

    Attributes:
        image_l: labelled patches (B, C, *S).
        target_l: their labels (B, 1, *S); with deep supervision a list of labels, one tensor for the size of each
            output.
        image_u_w: unlabelled patches (B, C, *S); None for methods without unlabelled data.
        image_u_s: the same patches in the same geometry, with intensity augmentations; None for methods that learn
            from no strong view.
        mask_u: (B, 1, *S), True = scan, False = padding.
        iteration: number of optimiser steps before this batch.
        box_u: place of each unlabelled patch in its scan, (B, n, 2), see `LocatedPatches`; None unless the method sets
            `needs_boxes`.
        more_strong: further strong views like `image_u_s`, of methods with more than one.
        target_u: stored pseudo-labels of the unlabelled patches (B, 1, *S), `UNSURE` where they do not count, negative
            outside the scan; without stored pseudo-labels 0 inside the scan.
    """

    image_l: Tensor
    target_l: Tensor | list[Tensor]
    image_u_w: Tensor | None
    image_u_s: Tensor | None
    mask_u: Tensor | None
    iteration: int
    box_u: Tensor | None = None
    more_strong: tuple[Tensor, ...] = ()
    target_u: Tensor | None = None

    @property
    def strong_views(self) -> list[Tensor]:
        """All strong views (B, C, *S) of the unlabelled patches."""
        return [self.unlabelled[1], *self.more_strong]

    @property
    def unlabelled(self) -> tuple[Tensor, Tensor, Tensor]:
        """Weak view, strong view and mask of the unlabelled patches, for methods that use unlabelled data."""
        assert self.image_u_w is not None
        assert self.image_u_s is not None
        assert self.mask_u is not None
        return self.image_u_w, self.image_u_s, self.mask_u

    @property
    def weak_view(self) -> tuple[Tensor, Tensor]:
        """Weak view and mask of the unlabelled patches."""
        assert self.image_u_w is not None
        assert self.mask_u is not None
        return self.image_u_w, self.mask_u

    @property
    def stored_labels(self) -> tuple[Tensor, Tensor]:
        """Stored pseudo-labels (B, 1, *S), 0 where they do not count, and the mask of the voxels that count."""
        assert self.target_u is not None
        counted = (self.target_u >= 0) & (self.target_u != UNSURE)
        return self.target_u.masked_fill(~counted, 0).long(), counted


def full_size_target(batch: Batch) -> Tensor:
    """Return the labels (B, 1, *S), or regions (B, R, *S), at the size of the images."""
    return batch.target_l[0] if isinstance(batch.target_l, list) else batch.target_l


def as_list(outputs: Any) -> list[Tensor]:  # noqa: ANN401 - a tensor, or the outputs of deep supervision
    """Return a network's outputs as a list, the finest first."""
    return list(outputs) if isinstance(outputs, list | tuple) else [outputs]


def split_in_half(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the two halves of a batch.

    A batch of one sample gives that sample twice. An odd number of samples leaves the middle sample out.
    """
    count = max(1, len(x) // 2)
    return x[:count], x[-count:]
