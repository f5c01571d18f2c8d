from __future__ import annotations

import io

import numpy as np
from PIL import Image

from nnssl.reports.colours import COLOURS
from nnssl.reports.drawing import draw_legend, draw_slice, figure_of, picture_bytes


def drawn(image: np.ndarray | None, mask: np.ndarray | None) -> np.ndarray:
    with figure_of(2, 2) as figure:
        draw_slice(figure.subplots(), image, mask, 1.0)
        return np.asarray(Image.open(io.BytesIO(picture_bytes(figure, "png"))).convert("RGB"))


def has_colour(picture: np.ndarray, colour: str) -> bool:
    wanted = np.array([int(colour[place : place + 2], 16) for place in (1, 3, 5)])
    return bool((np.abs(picture.astype(int) - wanted).max(axis=2) < 12).any())


def test_the_contour_of_a_label_has_its_colour() -> None:
    mask = np.zeros((20, 20), np.uint8)
    mask[5:12, 6:15] = 2
    picture = drawn(np.full((20, 20), 90, np.uint8), mask)
    assert has_colour(picture, COLOURS[1])
    assert not has_colour(picture, COLOURS[0])


def test_a_label_that_fills_the_slice_has_a_contour() -> None:
    assert has_colour(drawn(None, np.ones((10, 10), np.uint8)), COLOURS[0])


def test_dollars_in_names_are_dollars() -> None:
    with figure_of(2, 2) as figure:
        axes = figure.subplots()
        axes.set_title("$\\frac{$")  # as mathematics this would be an error
        draw_legend(figure, {1: "$x_$"})
        assert picture_bytes(figure, "svg").startswith(b"<?xml")
