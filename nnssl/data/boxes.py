"""Where the patches of a batch lie in their scans."""

from __future__ import annotations

from typing import Any

import torch
from batchgeneratorsv2.transforms.spatial.mirroring import MirrorTransform
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader

from nnssl.data.views import TwoViews


class RecordingMirror(MirrorTransform):
    """nnU-Net's mirroring with the same draws, which also records the axes of every patch in `drawn_axes`."""

    def __init__(self, allowed_axes: tuple[int, ...]) -> None:
        super().__init__(allowed_axes)
        self.drawn_axes: list[list[int]] = []

    def get_parameters(self, **data_dict: Any) -> dict[str, Any]:  # noqa: ANN401
        """Draw the axes of one patch."""
        parameters: dict[str, Any] = super().get_parameters(**data_dict)
        self.drawn_axes.append(parameters["axes"])
        return parameters


class LocatedPatches(nnUNetDataLoader):
    """nnU-Net's batch maker with the same draws and patches, which also returns the box of every patch.

    The box is the crop of the final patch size before rotation, scaling and padding. Its coordinates are (lo, hi) of
    each axis in units of the preprocessed case's side: below 0 or above 1 where the patch is padded, and lo > hi where
    the patch is mirrored. In 2-D the box has the two axes of the slice.

    Args:
        *args: arguments of nnU-Net's batch maker.
        transforms: makes the views of the patches; a recording mirror replaces its mirror.
        **kwargs: further arguments of nnU-Net's batch maker.
    """

    def __init__(self, *args: Any, transforms: TwoViews, **kwargs: Any) -> None:  # noqa: ANN401
        super().__init__(*args, transforms=transforms, **kwargs)
        parts = transforms.geometric.transforms
        recording = [RecordingMirror(p.allowed_axes) if isinstance(p, MirrorTransform) else p for p in parts]
        transforms.geometric.transforms = recording
        self.mirrors = [part for part in recording if isinstance(part, RecordingMirror)]
        self.boxes: list[list[list[float]]] = []

    def get_bbox(self, data_shape: Any, *args: Any, **kwargs: Any) -> tuple[list[int], list[int]]:  # noqa: ANN401
        """Draw the place of one patch of the initial size, and record the box of its final size."""
        lows, highs = super().get_bbox(data_shape, *args, **kwargs)
        sizes = zip(lows, self.patch_size, self.final_patch_size, data_shape, strict=True)
        crops = [(low + initial // 2 - final // 2, final, length) for low, initial, final, length in sizes]
        box = [[int(start) / length, int(start + final) / length] for start, final, length in crops]
        self.boxes.append(box[1:] if self.patch_size_was_2d else box)
        return lows, highs

    def generate_train_batch(self) -> dict[str, Any]:
        """Return nnU-Net's batch with `boxes` (B, n, 2)."""
        self.boxes.clear()
        for mirror in self.mirrors:
            mirror.drawn_axes.clear()
        batch: dict[str, Any] = super().generate_train_batch()
        boxes = torch.tensor(self.boxes)
        for mirror in self.mirrors:
            for box, axes in zip(boxes, mirror.drawn_axes, strict=True):
                box[axes] = box[axes].flip(1)
        return {**batch, "boxes": boxes}
