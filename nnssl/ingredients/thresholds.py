"""Thresholds for pseudo-labels that follow the network's own confidence."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from nnssl.ingredients.supervised import at_least_fp32


class DynamicThresholdMap(nn.Module):
    """A threshold for each place and each class: an average of earlier confidences, scaled by class.

    With the confidence q = max_c p and its class ĉ, a batch changes the map M and the class scales k by

        M(s) ← α·M(s) + (1 − α)·mean q   (the mean of all voxels of the batch in cell s)
        s_c = Σ 1[ĉ = c]·q / (Σ 1[ĉ = c] + ε),   k_c = s_c / max_c' s_c',   ε = 1e-6

    where cells that no voxel falls into, and classes that no voxel has, stay as they are. The threshold of class c at
    s is k_c·M(s), and the weight of a voxel is q where q exceeds the threshold of its own class, 0 elsewhere.

    Cells divide the image, from 0 to 1 along each axis, evenly. A box says where a patch lies in it: (lo, hi) along
    each axis, the outer edges of the first and the last voxel, lo > hi where the patch is mirrored. A voxel belongs to
    the cell that holds its centre; voxels outside [0, 1] belong to none. Without boxes a patch is the whole image.

    All of it runs on the device of the module, without a gradient and without waiting for the device.

    Args:
        num_classes: C, with background.
        grid_shape: cells along each axis.
        momentum: weight of the old map, α, in [0, 1].
        initial: value of the map before the first batch; None = 1 / C. The class scales begin at 1.
        reduce: changes the sums of a batch, a 1-d tensor, before they are used; an all-reduce, for instance.

    Attributes:
        map: (*grid_shape), fp32, a buffer; in the `state_dict`.
        scale: (C,), fp32, a buffer; in the `state_dict`.

    Raises:
        ValueError: `momentum` is outside [0, 1].

    Reference: Mi et al., PLoS One 21(4): e0342567, 2026, eq. 5–10; there the map has the pixels of the whole image.
    """

    map: Tensor
    scale: Tensor

    def __init__(
        self,
        num_classes: int,
        grid_shape: Sequence[int],
        momentum: float,
        initial: float | None = None,
        reduce: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__()
        if not 0.0 <= momentum <= 1.0:
            raise ValueError(f"momentum must be in [0, 1], got {momentum}")
        self.momentum, self.reduce = momentum, reduce
        self.register_buffer("map", torch.full(list(grid_shape), 1.0 / num_classes if initial is None else initial))
        self.register_buffer("scale", torch.ones(num_classes))

    @torch.no_grad()
    def update(self, probs: Tensor, boxes: Tensor | None = None, mask: Tensor | None = None) -> None:
        """Take in the confidences of a batch, eq. 5-8.

        Args:
            probs: (B, C, *S), sums to 1 over C; voxels that are not numbers do not count.
            boxes: (B, n, 2), normalised image coordinates; None = each patch is the whole image.
            mask: (B, 1, *S), True = counts; None counts every voxel. An empty one changes nothing.
        """
        confidence, guess = at_least_fp32(probs).max(1)
        counts = confidence >= 0 if mask is None else mask[:, 0].bool() & (confidence >= 0)
        both = torch.stack([torch.where(counts, confidence, 0.0), counts.to(confidence.dtype)], 1)  # (B, 2, *S)
        members = [
            (place.floor().clamp_max(cells - 1).unsqueeze(1) == _column(cells, place)) & (place <= cells).unsqueeze(1)
            for place, cells in self._places(boxes, guess.shape[1:])
        ]
        in_cells = _along_axes(both, [member.to(both.dtype) for member in members]).sum(0)
        of_class = (both * (guess == c).unsqueeze(1) for c in range(len(self.scale)))  # one at a time
        in_classes = [values.transpose(0, 1).flatten(1).sum(1) for values in of_class]
        sums = torch.cat([in_cells.flatten(1), torch.stack(in_classes, 1)], 1)
        total, count = sums if self.reduce is None else self.reduce(sums)
        cells, classes = slice(self.map.numel()), slice(self.map.numel(), None)
        mean = (total[cells] / count[cells].clamp_min(1)).view_as(self.map).to(self.map.dtype)
        touched = count[cells].view_as(self.map) > 0
        self.map = torch.where(touched, self.momentum * self.map + (1 - self.momentum) * mean, self.map)
        score = (total[classes] / (count[classes] + 1e-6)).to(self.scale.dtype)
        self.scale = torch.where(count[classes] > 0, score / score.max().clamp_min(1e-6), self.scale)

    def thresholds(self, boxes: Tensor | None = None, size: Sequence[int] | None = None) -> Tensor:
        """Return the threshold of every class at every voxel of the patches, eq. 9.

        Args:
            boxes: (B, n, 2), normalised image coordinates; None = one patch that is the whole image.
            size: voxels *S of a patch; None = the cells of the map.

        Returns:
            (B or 1, C, *S), linear between the centres of the cells and constant beyond the outermost.
        """
        return self._read(boxes, self.map.shape if size is None else size) * self.scale.view(-1, *[1] * self.map.ndim)

    @torch.no_grad()
    def weights(self, probs: Tensor, boxes: Tensor | None = None, hard: bool = False) -> Tensor:
        """Return the weight of every voxel, eq. 10: its confidence where that exceeds its class's threshold, else 0.

        Args:
            probs: (B, C, *S), sums to 1 over C.
            boxes: (B, n, 2), normalised image coordinates; None = each patch is the whole image.
            hard: 1 in place of the confidence.

        Returns:
            (B, 1, *S), in [0, 1]; 0 where probabilities are not numbers.
        """
        confidence, guess = at_least_fp32(probs).max(1, keepdim=True)
        passes = confidence > self.scale[guess] * self._read(boxes, probs.shape[2:])
        return torch.where(passes, 1.0 if hard else confidence, 0.0)

    @torch.no_grad()
    def _read(self, boxes: Tensor | None, size: Sequence[int]) -> Tensor:
        """Return the map at the voxels of the patches, (B or 1, 1, *S)."""
        shares = []  # (B or 1, voxels, cells) of each axis
        for place, cells in self._places(boxes, size):
            from_centre = (place - 0.5).clamp(0, cells - 1).unsqueeze(1) - _column(cells, place)
            shares.append((1 - from_centre.abs()).clamp_min(0).transpose(1, 2))
        return _along_axes(self.map.to(shares[0].dtype)[None, None], shares)

    def _places(self, boxes: Tensor | None, size: Sequence[int]) -> list[tuple[Tensor, int]]:
        """Return, for each axis, the centres of the voxels in units of cells, (B or 1, voxels), and the cells."""
        if boxes is None:
            boxes = torch.arange(2, device=self.map.device).expand(1, self.map.ndim, 2)
        low, high = at_least_fp32(boxes).unbind(2)
        places = []
        for axis, (cells, voxels) in enumerate(zip(self.map.shape, size, strict=True)):
            odd = 2 * torch.arange(voxels, device=self.map.device) + 1
            first, length = low[:, axis, None], (high - low)[:, axis, None]
            places.append((first * cells + odd * cells * length / (2 * voxels), cells))
        return places


def _column(cells: int, like: Tensor) -> Tensor:
    return torch.arange(cells, device=like.device, dtype=like.dtype).unsqueeze(1)


def _along_axes(values: Tensor, matrices: list[Tensor]) -> Tensor:
    """Return values (B or 1, K, *S) multiplied along each spatial axis by its own matrix (B or 1, out, in)."""
    with torch.autocast(values.device.type, enabled=False):
        for matrix in matrices:  # takes the first spatial axis away and appends its own as the last
            values = torch.einsum("bki...,boi->bk...o", values, matrix)
    return values
