from __future__ import annotations

import itertools

import pytest
import torch

from nnssl.ingredients.box_filter import box_mean, box_sum, list_windows, pad, running_sum, spatial_axes, voxel_count
from nnssl.ingredients.refinement import local_similarity
from tests.ingredients.refinement_cases import SHAPES, drawn, places, sides, window_places


@pytest.mark.parametrize("width", [1, 2, 3, 5, 6, 8])
def test_running_sums_along_one_axis(width: int) -> None:
    values = drawn(2, 3, 9, 8)
    for axis in (2, 3):
        torch.testing.assert_close(running_sum(values, axis, width), values.unfold(axis, width, 1).sum(-1))


@pytest.mark.parametrize("size", [1, 2, 3])
def test_box_sums_and_padding(size: int) -> None:
    values = drawn(2, 1, 4, 5, 3)
    assert spatial_axes(values) == (2, 3, 4)
    boxes = values.unfold(2, size, 1).unfold(3, size, 1).unfold(4, size, 1)
    torch.testing.assert_close(box_sum(values, size), boxes.sum((-1, -2, -3)))
    padded = pad(values, 2, 1, "zero")
    assert torch.equal(padded[..., 2:-1, 2:-1, 2:-1], values)
    assert padded.sum().item() == pytest.approx(values.sum().item())
    assert torch.equal(pad(values, 2, 1, "replicate")[:, :, 0, 0, 0], values[:, :, 0, 0, 0])


@pytest.mark.parametrize("border", ["replicate", "zero", "valid"])
@pytest.mark.parametrize("shape", SHAPES)
def test_box_means_against_a_loop_over_neighbours(shape: tuple[int, ...], border: str) -> None:
    values = drawn(*shape)
    for window in (2, 3, sides(shape[0], 1, *shape[2:], low=1)):
        side = torch.full((shape[0], 1, *shape[2:]), window) if isinstance(window, int) else window // 2 * 2 + 1
        expected = torch.zeros_like(values)
        for b, centre in itertools.product(range(shape[0]), places(values.shape[2:])):
            near = window_places(centre, int(side[(b, 0, *centre)]), values.shape[2:], border)
            inside = [values[(b, slice(None), *place)] for place in near if place is not None]
            expected[(b, slice(None), *centre)] = sum(inside) / len(near)
        found = box_mean(values, list_windows(window, values, border, (1, 7)), border)
        torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)


def test_gradient_of_a_box_mean() -> None:
    values, windows = (
        drawn(1, 1, 4, 3).requires_grad_(),
        list_windows(sides(1, 1, 4, 3), drawn(1, 1, 4, 3), "zero", (3, 7)),
    )
    assert torch.autograd.gradcheck(lambda x: box_mean(x, windows, "zero"), values)


def test_weights_of_the_windows() -> None:
    image, window = drawn(1, 1, 1, 4), torch.tensor([2, 3, 4, 5]).view(1, 1, 1, 4)
    (three, of_three), (five, of_five) = list_windows(window, image, "replicate", (3, 7))
    assert (three, five) == (3, 5)
    assert of_three.flatten().tolist() == pytest.approx([1 / 9, 1 / 9, 0, 0])
    assert of_five.flatten().tolist() == pytest.approx([0, 0, 1 / 25, 1 / 25])
    assert voxel_count(3, image, "valid").flatten().tolist() == [2, 3, 3, 2]
    assert voxel_count(3, image, "zero").item() == 9


def test_off_the_cpu_the_windows_come_from_their_range_without_a_look() -> None:
    window, image = torch.empty(2, 1, 4, 4, dtype=torch.int64, device="meta"), torch.empty(2, 1, 4, 4, device="meta")
    for window_range, expected in (((3, 7), [3, 5, 7]), ((2, 6), [3, 5, 7]), ((1, 4), [1, 3, 5])):
        assert [side for side, _ in list_windows(window, image, "valid", window_range)] == expected
    assert local_similarity(image, window).shape == (2, 1, 4, 4)


def test_a_window_needs_a_voxel() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        list_windows(0, drawn(1, 1, 4, 4), "replicate", (3, 7))
