"""Thresholds for pseudo-labels and weights of classes that follow the network's own predictions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from nnssl.ingredients.supervised import promote_to_fp32


class DynamicThresholdMap(nn.Module):
    """A threshold for each place and each class: a running mean of confidences, scaled for each class.

    Let q = max_c p be the confidence of a voxel and ĉ its likeliest class. A batch updates the map M and the class
    scales k:

        M(s) ← α·M(s) + (1 − α)·mean q   (the mean of all voxels of the batch in cell s)
        s_c = Σ 1[ĉ = c]·q / (Σ 1[ĉ = c] + ε),   k_c = s_c / max_c' s_c',   ε = 1e-6

    Cells without voxels and classes without voxels keep their values. The threshold of class c in cell s is k_c·M(s).
    The weight of a voxel is q where q exceeds the threshold of the voxel's own class, else 0.

    The cells divide the image evenly, from 0 to 1 along each axis. A box gives the position of a patch in the image:
    (lo, hi) along each axis, the outer edges of the first and of the last voxel; lo > hi means that the patch is
    mirrored. A voxel belongs to the cell that contains the voxel's centre; voxels outside [0, 1] belong to no cell.
    Without boxes each patch is the whole image.

    All calculations run on the device of the module, without a gradient; the host never waits for the device.

    Args:
        num_classes: C, with background.
        grid_shape: number of cells along each axis.
        momentum: weight of the old map, α, in [0, 1].
        initial: value of the map before the first batch; None = 1 / C. The class scales start at 1.
        reduce: function that changes the sums of a batch, a 1-d tensor, before they are used; for instance an
            all-reduce.

    Attributes:
        map: (*grid_shape), fp32, a buffer in the `state_dict`.
        scale: (C,), fp32, a buffer in the `state_dict`.

    Raises:
        ValueError: `momentum` is outside [0, 1].

    Reference: Mi et al., PLoS One 21(4): e0342567, 2026, eq. 5–10; the paper's map has the pixels of the whole image.
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
        """Update the map and the class scales from the confidences of a batch, eq. 5–8.

        Args:
            probs: (B, C, *S), sums to 1 over C; voxels that are not numbers do not count.
            boxes: (B, n, 2), normalised image coordinates; None = each patch is the whole image.
            mask: (B, 1, *S), True = the voxel counts; None = every voxel counts. An empty mask changes nothing.
        """
        confidence, guess = promote_to_fp32(probs).max(1)
        is_number = confidence >= 0
        counts = is_number if mask is None else mask[:, 0].bool() & is_number
        values_and_counts = torch.stack([torch.where(counts, confidence, 0.0), counts.to(confidence.dtype)], 1)
        sums = torch.cat(
            [
                self._sum_by_cell(values_and_counts, boxes),  # (2, cells)
                self._sum_by_class(values_and_counts, guess),  # (2, C)
            ],
            1,
        )
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
            size: number of voxels *S of a patch along each axis; None = the cells of the map.

        Returns:
            (B or 1, C, *S), linear between the centres of the cells and constant beyond the outermost centres.
        """
        map_values = self._interpolate_map(boxes, self.map.shape if size is None else size)
        return map_values * self.scale.view(-1, *[1] * self.map.ndim)

    @torch.no_grad()
    def weights(self, probs: Tensor, boxes: Tensor | None = None, hard: bool = False) -> Tensor:
        """Return the weight of every voxel, eq. 10: its confidence where that exceeds its class's threshold, else 0.

        Args:
            probs: (B, C, *S), sums to 1 over C.
            boxes: (B, n, 2), normalised image coordinates; None = each patch is the whole image.
            hard: weight 1 in place of the confidence.

        Returns:
            (B, 1, *S), in [0, 1]; 0 where probabilities are not numbers.
        """
        confidence, guess = promote_to_fp32(probs).max(1, keepdim=True)
        passes = confidence > self.scale[guess] * self._interpolate_map(boxes, probs.shape[2:])
        return torch.where(passes, 1.0 if hard else confidence, 0.0)

    def _sum_by_cell(self, values: Tensor, boxes: Tensor | None) -> Tensor:
        """Return (K, cells), the sums over the voxels of each cell, for values (B, K, *S)."""
        members = []  # (B or 1, cells, voxels) of each axis, 1 where the voxel lies in the cell
        for position, cells in self._locate_voxels(boxes, values.shape[2:]):
            cell = position.floor().clamp_max(cells - 1).unsqueeze(1)
            inside = (position <= cells).unsqueeze(1)
            members.append(((cell == _number_cells(cells, position)) & inside).to(values.dtype))
        return _multiply_along_axes(values, members).sum(0).flatten(1)

    def _sum_by_class(self, values: Tensor, guess: Tensor) -> Tensor:
        """Return (K, C), the sums over the voxels of each class, for values (B, K, *S) and classes (B, *S)."""
        sums = []
        for c in range(len(self.scale)):  # one class after the other, so that memory does not grow with C
            of_class = values * (guess == c).unsqueeze(1)
            sums.append(of_class.transpose(0, 1).flatten(1).sum(1))
        return torch.stack(sums, 1)

    @torch.no_grad()
    def _interpolate_map(self, boxes: Tensor | None, size: Sequence[int]) -> Tensor:
        """Return the map at the voxels of the patches, (B or 1, 1, *S)."""
        shares = []  # (B or 1, voxels, cells) of each axis
        for position, cells in self._locate_voxels(boxes, size):
            from_centre = (position - 0.5).clamp(0, cells - 1).unsqueeze(1) - _number_cells(cells, position)
            shares.append((1 - from_centre.abs()).clamp_min(0).transpose(1, 2))
        return _multiply_along_axes(self.map.to(shares[0].dtype)[None, None], shares)

    def _locate_voxels(self, boxes: Tensor | None, size: Sequence[int]) -> list[tuple[Tensor, int]]:
        """Return, for each axis, the voxels' centres in units of cells, (B or 1, voxels), and the number of cells."""
        if boxes is None:
            boxes = torch.arange(2, device=self.map.device).expand(1, self.map.ndim, 2)
        low, high = promote_to_fp32(boxes).unbind(2)
        positions = []
        for axis, (cells, voxels) in enumerate(zip(self.map.shape, size, strict=True)):
            odd = 2 * torch.arange(voxels, device=self.map.device) + 1
            first, length = low[:, axis, None], (high - low)[:, axis, None]
            # whole numbers are multiplied before the one division, so that a patch frame gives exact centres
            positions.append((first * cells + odd * cells * length / (2 * voxels), cells))
        return positions


class DifficultyWeights(nn.Module):
    """Weights of the classes: large for a class that is learned badly, or that is forgotten faster than learned.

    λ is the Dice of a class in one batch, Δ = λ − λ_prev, ℓ = ln(λ / λ_prev). Both sums are running means, with the
    momentum (τ − 1)/τ:

        learned ← mean of max(Δ, 0)·ℓ,   forgotten ← mean of min(Δ, 0)·ℓ,   d = (forgotten + 1e-8) / (learned + 1e-8)
        w = C · mean of (1 − λ) · d^{1/5};  the mean of 1 − λ starts at 1

    default: λ_prev starts with the first λ of the class, λ is at least 1e-6, and d^{1/5} is in [1/3, 3]; otherwise one
    falling step would divide by 1e-8
    adnd: as the public code of A&D; λ_prev starts at 1e-8, so that w is about 0.1 in the first thousand steps
    window: the sums over the last τ differences instead of running means, and 1 − λ instead of its mean

    All calculations run on the device of the module, without a gradient.

    Args:
        num_classes: C, with background.
        momentum_steps: τ >= 1.
        mode: one of the three modes above.

    Raises:
        ValueError: `momentum_steps` is below 1, or `mode` is unknown.

    Reference: Li et al., DTLP-Net, arXiv 2508.08549, eq. 4–6; Wang and Li, A&D, NeurIPS 2023, difficulty-aware weights.
    """

    previous: Tensor
    changes: Tensor
    badness: Tensor

    def __init__(
        self, num_classes: int, momentum_steps: int = 50, mode: Literal["default", "adnd", "window"] = "default"
    ) -> None:
        super().__init__()
        if momentum_steps < 1 or mode not in {"default", "adnd", "window"}:
            raise ValueError(f"momentum_steps must be at least 1, mode known, got {momentum_steps} and {mode!r}")
        self.momentum, self.mode = (momentum_steps - 1) / momentum_steps, mode
        first = 1e-8 if mode == "adnd" else torch.nan
        self.register_buffer("previous", torch.full((num_classes,), first, dtype=torch.float64))
        kept = momentum_steps if mode == "window" else 1
        self.register_buffer("changes", torch.zeros(kept, 2, num_classes, dtype=torch.float64))  # learned, forgotten
        self.register_buffer("badness", torch.ones(num_classes, dtype=torch.float64))

    @torch.no_grad()
    def update(self, dice: Tensor) -> Tensor:
        """Return the weights (C,), >= 0, in the type of `dice`, after one more batch.

        Args:
            dice: (C,), λ in [0, 1]; NaN where a class is absent: the class then keeps its state.
        """
        seen, floor = ~dice.isnan(), 1e-10 if self.mode == "adnd" else 1e-6
        now = torch.where(seen, dice, 1.0).to(self.previous.dtype).clamp_min(floor)
        before = torch.where(self.previous.isnan(), now, self.previous)
        step, ratio = now - before, (now / before).log()
        change = torch.stack([step.clamp_min(0) * ratio, step.clamp_max(0) * ratio])
        if self.mode == "window":
            self.changes = torch.where(seen, torch.cat([self.changes[1:], change[None]]), self.changes)
            self.badness = torch.where(seen, 1 - now, self.badness)
        else:
            m = self.momentum
            self.changes = torch.where(seen, m * self.changes + (1 - m) * change, self.changes)
            self.badness = torch.where(seen, m * self.badness + (1 - m) * (1 - now), self.badness)
        self.previous = torch.where(seen, now, self.previous)
        learned, forgotten = self.changes.sum(0)
        difficulty = ((forgotten + 1e-8) / (learned + 1e-8)) ** 0.2
        if self.mode == "default":
            difficulty = difficulty.clamp(1 / 3, 3)
        weights: Tensor = len(dice) * self.badness * difficulty
        return weights.to(dice.dtype)


def _number_cells(cells: int, like: Tensor) -> Tensor:
    """Return the numbers of the cells as a column (cells, 1), in type and device of `like`."""
    return torch.arange(cells, device=like.device, dtype=like.dtype).unsqueeze(1)


def _multiply_along_axes(values: Tensor, matrices: list[Tensor]) -> Tensor:
    """Return values (B or 1, K, *S) multiplied along each spatial axis by the matrix (B or 1, out, in) of this axis."""
    with torch.autocast(values.device.type, enabled=False):
        for matrix in matrices:  # removes the first spatial axis and appends the result as the last axis
            values = torch.einsum("bki...,boi->bk...o", values, matrix)
    return values
