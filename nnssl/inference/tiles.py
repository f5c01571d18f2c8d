"""The sliding window in batches: tiles, slices and mirrored copies of a scan go through the network together."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from math import prod

import torch

Network = Callable[[torch.Tensor], torch.Tensor]
Slicer = tuple[slice | int, ...]  # all channels, then the place of a tile

# Images that pass the network together. On a CPU larger batches leave the cache. One 3-D patch alone would be computed
# by a slow kernel of torch, two are computed by a fast one.
CPU_VOXELS, CPU_VOLUMES = 98_304, 2
GPU_VOXELS = 4_194_304


def images_a_pass(tile: Sequence[int], device: torch.device) -> int:
    """Return how many images of the shape `tile` should pass the network together on a device, at least 1."""
    if device.type != "cpu":
        return max(1, GPU_VOXELS // prod(tile))
    return CPU_VOLUMES if len(tile) == 3 else max(1, CPU_VOXELS // prod(tile))


def mirrored_mean(network: Network, tiles: torch.Tensor, axes: Sequence[int], images: int) -> torch.Tensor:
    """Return the mean logits over the mirrored copies of tiles.

    The sum runs in nnU-Net's order, so that the result is nnU-Net's apart from the rounding of other kernels.

    Args:
        network: maps images (N, C, *S) to logits (N, K, *S).
        tiles: images (B, C, *S).
        axes: spatial axes, counted from 0, along which and along whose combinations images are mirrored; may be empty.
        images: images that pass the network together, at least B; tiles are not split.

    Returns:
        Logits (B, K, *S).
    """
    dims = [axis + 2 for axis in axes]
    flips = [chosen for count in range(len(dims) + 1) for chosen in itertools.combinations(dims, count)]
    together = max(1, images // len(tiles))
    mean: torch.Tensor | None = None
    for start in range(0, len(flips), together):
        chosen = flips[start : start + together]
        outputs = network(torch.cat([tiles.flip(flip) for flip in chosen])).chunk(len(chosen))
        for flip, output in zip(chosen, outputs, strict=True):
            mean = output.flip(flip) if mean is None else mean.add_(output.flip(flip))
    assert mean is not None
    return mean.div_(len(flips))


def add_tiles(
    logits_of: Callable[[torch.Tensor, int], torch.Tensor],
    data: torch.Tensor,
    slicers: Sequence[Slicer],
    images: int,
    add: Callable[[Slicer, torch.Tensor], None],
) -> None:
    """Compute the logits of all tiles of a scan in batches, and add each tile in nnU-Net's order.

    Where a GPU has too little memory for a batch, this and all later batches have half the size.

    Args:
        logits_of: maps tiles (B, C, *S), and the number of images that pass the network together, to (B, K, *S).
        data: the scan (C, z, y, x).
        slicers: places of the tiles.
        images: images that pass the network together.
        add: called with place and logits (K, *S) of each tile.

    Raises:
        torch.cuda.OutOfMemoryError: the GPU has too little memory for one image.
    """
    done = 0
    while done < len(slicers):
        batch = slicers[done : done + images]
        try:
            logits = logits_of(torch.stack([data[place] for place in batch]), images)
        except torch.cuda.OutOfMemoryError:
            if images == 1:
                raise
            images //= 2
            torch.cuda.empty_cache()
            continue
        for place, tile in zip(batch, logits, strict=True):
            add(place, tile)
        done += len(batch)
