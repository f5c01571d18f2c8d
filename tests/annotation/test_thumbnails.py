from __future__ import annotations

import numpy as np
from PIL import Image

from nnssl.annotation.thumbnails import slice_to_show, write_thumbnail


def test_the_slice_with_the_largest_uncertainty_in_the_foreground_is_shown() -> None:
    unsure, foreground = np.zeros((5, 4, 4)), np.zeros((5, 4, 4), bool)
    assert slice_to_show(unsure, foreground) == 2
    foreground[3, 1, 1] = True
    unsure[3, 1, 1], unsure[0] = 0.5, 1.0
    assert slice_to_show(unsure, foreground) == 3


def test_the_picture_shows_image_mask_and_entropy(tmp_path) -> None:
    image = np.random.default_rng(0).normal(100, 20, (3, 20, 30))
    mask, unsure = np.zeros((3, 20, 30), np.uint8), np.zeros((3, 20, 30))
    mask[1, 5:15, 5:15], unsure[1, 5:15, 5:15] = 1, 0.9
    pictures = []
    for number, (labels, entropy) in enumerate(((mask, unsure), (mask * 0, unsure * 0))):
        write_thumbnail(tmp_path / f"{number}.png", image, labels, entropy, (3.0, 1.0, 1.0))
        pictures.append(np.asarray(Image.open(tmp_path / f"{number}.png").convert("RGB"), int))
    coloured = [(np.ptp(picture, axis=-1) > 20).mean() for picture in pictures]
    assert coloured[0] > 0.05
    assert coloured[1] == 0
    write_thumbnail(tmp_path / "flat.png", image * 0, mask, unsure, (3.0, 1.0, 1.0))
    assert (tmp_path / "flat.png").stat().st_size > 0
