"""A loss between two networks on labelled and unlabelled patches, of which the unlabelled ones have a weight."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from nnssl_trainers.parts.region_logits import Pair


def weigh_unlabelled(
    loss: Callable[..., Tensor], own: Pair, peer: Pair, masks: Pair, weight: float, scope: str
) -> Tensor:
    """Return the loss of two networks, with a factor for the part of the unlabelled patches.

    unlabelled: weight·L_u
    all: (n_l·L_l + weight·n_u·L_u) / (n_l + n_u), where n are the numbers of voxels that count. With weight 1 this is
    the loss of all patches together.

    Args:
        loss: takes a tensor (B, C, *S) of each network, and the keyword `mask` (B, 1, *S); returns the mean (0-d) over
            the mask.
        own: tensors of a network for labelled and for unlabelled patches; they receive the gradient that `loss` gives.
        peer: tensors of the other network.
        masks: (B, 1, *S), True = the voxel counts, for labelled and for unlabelled patches. With the scope `all`, at
            least one voxel counts.
        weight: factor of the loss on unlabelled patches, >= 0.
        scope: `all` or `unlabelled`, the patches that have this loss.
    """
    on_unlabelled = loss(own[1], peer[1], mask=masks[1])
    if scope == "unlabelled":
        return weight * on_unlabelled
    (number_l, number_u), on_labelled = (mask.sum() for mask in masks), loss(own[0], peer[0], mask=masks[0])
    return (number_l * on_labelled + weight * number_u * on_unlabelled) / (number_l + number_u)
