"""From logits on the network's grid to mask and probabilities on the scan's grid, slab by slab and class by class.

nnU-Net holds the resampled logits of all classes at once, and then once more in single precision for probabilities.
Here one class of one slab exists at a time, so that the largest array is the result. The masks are nnU-Net's.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from nnssl.host import ConfigurationManager, LabelManager, PlansManager, mask_from_logits, separate_axis
from nnssl.inference.interpolation import LINEAR, Array, Taps, interpolate, planes_a_slab

RESAMPLING = "resample_data_or_seg_to_shape"  # nnU-Net's default, which the slabs compute


@dataclass(frozen=True)
class Restoration:
    """What turns the logits of one scan into its mask; all axes are in the order of the scan.

    Attributes:
        logits: (K, z, y, x) on the network's grid.
        taps: from the network's grid to that of the cropped scan, of the three axes.
        shape: (z, y, x) of the scan.
        box: place of the cropped scan in the scan.
        labels: the plans' label manager.
    """

    logits: torch.Tensor
    taps: tuple[Taps, ...]
    shape: tuple[int, ...]
    box: tuple[slice, ...]
    labels: LabelManager

    @classmethod
    def of(
        cls,
        logits: torch.Tensor,
        plans: PlansManager,
        configuration: ConfigurationManager,
        labels: LabelManager,
        properties: dict[str, Any],
    ) -> Restoration:
        """Return the restoration of logits whose configuration `can_restore`.

        Args:
            logits: (K, *S) on the grid of the preprocessed case, on the CPU.
            plans: nnU-Net's plans.
            configuration: the configuration of the network.
            labels: the plans' label manager.
            properties: what preprocessing noted about the scan.
        """
        order = plans.transpose_backward
        cropped = properties["shape_after_cropping_and_before_resampling"]
        spacing = [properties["spacing"][axis] for axis in plans.transpose_forward]
        ours = list(configuration.spacing)
        ours = ours if len(ours) == len(cropped) else [spacing[0], *ours]
        separate, order_apart = separate_axis(
            configuration.configuration["resampling_fn_probabilities_kwargs"], ours, spacing
        )
        orders = [order_apart if axis == separate else LINEAR for axis in range(len(cropped))]
        sizes = logits.shape[1:]
        taps = [Taps.between(*each) for each in zip(sizes, map(int, cropped), orders, strict=True)]
        box = [slice(int(low), int(high)) for low, high in properties["bbox_used_for_cropping"]]
        return cls(
            logits.permute(0, *(axis + 1 for axis in order)),
            tuple(taps[axis] for axis in order),
            tuple(int(properties["shape_before_cropping"][axis]) for axis in order),
            tuple(box[axis] for axis in order),
            labels,
        )

    def slabs(self) -> Iterator[tuple[int, int]]:
        """Yield first and last plane, plus 1, of each slab of the cropped scan."""
        size = [each.index.shape[1] for each in self.taps]
        step = planes_a_slab([max(pair) for pair in zip(size, self.logits.shape[1:], strict=True)])
        for start in range(0, size[0], step):
            yield start, min(start + step, size[0])

    def values(self, head: int, start: int, stop: int) -> torch.Tensor:
        """Return the logits of one class or region in some planes of the cropped scan, (planes, y, x), float32.

        The values are rounded to the precision of the logits, as nnU-Net rounds them.
        """
        slab = interpolate(self.logits[head], self.taps, start, stop)
        return slab.to(self.logits.dtype).float()

    def mask(self) -> Array:
        """Return the mask (z, y, x) of labels."""
        mask = self._empty_mask()
        for start, stop in self.slabs():
            self._label(mask, start, stop, [None] * len(self.logits))
        return mask

    def _empty_mask(self) -> Array:
        # nnU-Net's own masks have these types
        return np.zeros(self.shape, np.uint8 if len(self.labels.foreground_labels) < 255 else np.uint16)

    def _label(self, mask: Array, start: int, stop: int, known: Sequence[torch.Tensor | None]) -> torch.Tensor:
        """Write the labels of a slab into the mask; return the largest logit of each voxel, (planes, y, x).

        Args:
            mask: (z, y, x) of the scan.
            start: first plane in the cropped scan.
            stop: last plane, plus 1.
            known: logits (planes, y, x) of each class or region, None for those to compute.
        """
        part = self._cropped(mask)[start:stop]
        regions = self.labels.regions_class_order if self.labels.has_regions else None
        best: torch.Tensor | None = None
        for head, given in enumerate(known):
            values = self.values(head, start, stop) if given is None else given
            if regions is not None:
                part[torch.sigmoid(values).numpy() > 0.5] = regions[head]
            if best is None:
                best = values.clone()
                continue
            if regions is None:
                part[(values > best).numpy()] = head
            torch.maximum(best, values, out=best)
        assert best is not None
        return best

    def _cropped(self, array: Array) -> Array:
        """Return the view of the cropped scan in an array (..., z, y, x)."""
        z, y, x = self.box
        view: Array = array[..., z, y, x]
        return view

    def mask_and_probabilities(self) -> tuple[Array, Array]:
        """Return mask (z, y, x) and probabilities (K, z, y, x), float32, of all classes or regions.

        Outside of the cropped scan the background has probability 1, or every region 0.
        """
        mask, made = self._empty_mask(), np.zeros((len(self.logits), *self.shape), np.float32)
        if not self.labels.has_regions:
            made[0] = 1
        inside = self._cropped(made)
        for start, stop in self.slabs():
            part = torch.from_numpy(inside[:, start:stop])
            for head in range(len(part)):
                part[head] = self.values(head, start, stop)
            best = self._label(mask, start, stop, list(part))
            if self.labels.has_regions:
                part.sigmoid_()
                continue
            total = torch.zeros_like(best)
            for values in part:
                total += values.sub_(best).exp_()
            for values in part:
                values.div_(total)
        return mask, made

    def mask_and_parts(self) -> tuple[Array, Iterator[Array]]:
        """Return the mask (z, y, x), and its probabilities (K, z, y, x) as an iterator of planes.

        The planes (n, y, x) come in order, the last axes first, and fill one class or region after the other. Between
        two of them only the sum of the exponentials of each voxel is kept.
        """
        mask = self._empty_mask()
        size = [each.index.shape[1] for each in self.taps]
        scale = torch.zeros(size) if not self.labels.has_regions else None  # log of the sum over classes
        for start, stop in self.slabs():
            best = self._label(mask, start, stop, [None] * len(self.logits))
            if scale is not None:
                total = torch.zeros_like(best)
                for head in range(len(self.logits)):
                    total += self.values(head, start, stop).sub_(best).exp_()
                scale[start:stop] = total.log_().add_(best)
        return mask, self._parts(scale)

    def _parts(self, scale: torch.Tensor | None) -> Iterator[Array]:
        before, after = self.box[0].start, self.shape[0] - self.box[0].stop
        for head in range(len(self.logits)):
            outside = np.float32(head == 0 and scale is not None)
            for planes in (before, None, after):
                if planes is not None:
                    yield from (np.full((1, *self.shape[1:]), outside) for _ in range(planes))
                    continue
                for start, stop in self.slabs():
                    made = np.full((stop - start, *self.shape[1:]), outside)
                    values = self.values(head, start, stop)
                    probs = values.sigmoid_() if scale is None else values.sub_(scale[start:stop]).exp_()
                    made[:, self.box[1], self.box[2]] = probs.numpy()
                    yield made


@dataclass(frozen=True)
class WholeRestoration:
    """The same results by nnU-Net's own functions, with all that these hold: for plans with another resampling.

    Attributes:
        logits: (K, *S) on the network's grid.
        managers: plans, configuration and label manager.
        properties: what preprocessing noted about the scan.
    """

    logits: torch.Tensor
    managers: tuple[PlansManager, ConfigurationManager, LabelManager]
    properties: dict[str, Any]

    def mask(self) -> Array:
        """Return the mask (z, y, x) of labels."""
        mask: Array = mask_from_logits(self.logits, *self.managers, self.properties, False)
        return mask

    def mask_and_probabilities(self) -> tuple[Array, Array]:
        """Return mask (z, y, x) and probabilities (K, z, y, x), float32, of all classes or regions."""
        mask, probs = mask_from_logits(self.logits, *self.managers, self.properties, True)
        return mask, probs

    def mask_and_parts(self) -> tuple[Array, Iterator[Array]]:
        """Return the mask (z, y, x), and its probabilities (K, z, y, x) as an iterator over classes or regions."""
        mask, probs = self.mask_and_probabilities()
        return mask, iter(probs)


def restoration_of(
    logits: torch.Tensor,
    plans: PlansManager,
    configuration: ConfigurationManager,
    labels: LabelManager,
    properties: dict[str, Any],
) -> Restoration | WholeRestoration:
    """Return what turns logits into mask and probabilities: slab by slab where the plans' resampling allows.

    Args:
        logits: (K, *S) on the grid of the preprocessed case, on the CPU.
        plans: nnU-Net's plans.
        configuration: the configuration of the network.
        labels: the plans' label manager.
        properties: what preprocessing noted about the scan.
    """
    if can_restore(configuration):
        return Restoration.of(logits, plans, configuration, labels, properties)
    return WholeRestoration(logits, (plans, configuration, labels), properties)


def can_restore(configuration: ConfigurationManager) -> bool:
    """Return whether the plans resample logits as nnU-Net does by default: linear, or apart along one axis."""
    entry = configuration.configuration
    chosen = entry["resampling_fn_probabilities_kwargs"]
    known = entry["resampling_fn_probabilities"] == RESAMPLING and not chosen.get("is_seg", False)
    return bool(known and chosen.get("order", 3) == LINEAR and chosen.get("order_z", 0) in (0, LINEAR))


def restoring_bytes(scan: Sequence[int], cropped: Sequence[int], heads: int, *, kept: bool, streamed: bool) -> int:
    """Return the memory that a restoration takes beside the logits.

    Args:
        scan: (z, y, x) of the scan.
        cropped: (z, y, x) of the cropped scan.
        heads: number of classes or regions.
        kept: the probabilities are returned as one array.
        streamed: the probabilities are returned plane by plane.
    """
    slab = min(planes_a_slab(cropped), cropped[0]) * math.prod(cropped[1:])
    mask = math.prod(scan)
    return 3 * 8 * slab + mask + (4 * heads * mask if kept else 0) + (4 * math.prod(cropped) if streamed else 0)
