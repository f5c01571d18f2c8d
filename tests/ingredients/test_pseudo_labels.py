from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from nnssl.ingredients.consistency import sharpening_loss
from nnssl.ingredients.pseudo_labels import (
    confident_voxels,
    cross_pseudo_labels,
    entropy_weighted_ensemble,
    fuse_labels,
    largest_component,
    sharpen,
)
from tests.ingredients.cce_vectors import PROBS_A, PROBS_B


def naive(labels: torch.Tensor, num_classes: int) -> torch.Tensor:
    """Flood fill from every voxel, in raster order."""
    result = labels.clone()
    for image, kept in zip(labels, result, strict=True):
        for label in range(1, num_classes):
            voxels = [tuple(index) for index in (image == label).nonzero().tolist()]
            components: list[set[tuple[int, ...]]] = []
            for start in voxels:
                if any(start in component for component in components):
                    continue
                component, front = {start}, [start]
                while front:
                    here = front.pop()
                    near = {tuple(map(sum, zip(here, step, strict=True))) for step in steps(len(here))}
                    near = (near & set(voxels)) - component
                    component |= near
                    front += near
                components.append(component)
            largest = max(components, key=len, default=set())
            for index in set(voxels) - largest:
                kept[index] = 0
    return result


def steps(dim: int) -> list[tuple[int, ...]]:
    return list(itertools.product((-1, 0, 1), repeat=dim))


@pytest.mark.parametrize(("shape", "share"), [((6, 9, 11), 0.25), ((4, 5, 6, 7), 0.08), ((3, 1, 20), 0.4)])
@pytest.mark.parametrize("swap", [False, True])
def test_against_a_flood_fill(shape: tuple[int, ...], share: float, swap: bool) -> None:
    generator = torch.Generator().manual_seed(4)
    labels = torch.randint(1, 4, shape, generator=generator)
    labels[torch.rand(shape, generator=generator) > 3 * share] = 0
    labels = labels.transpose(-1, -2) if swap else labels  # other memory order, same raster order
    cleaned = largest_component(labels, 4)
    assert not torch.equal(cleaned, labels)
    assert torch.equal(cleaned, naive(labels, 4))


def test_hand_values_and_input_untouched() -> None:
    labels = torch.tensor([[[1, 1, 0, 2], [0, 1, 0, 2], [0, 0, 1, 0], [1, 0, 0, 2]]])
    before = labels.clone()
    expected = torch.tensor([[[1, 1, 0, 2], [0, 1, 0, 2], [0, 0, 1, 0], [0, 0, 0, 0]]])
    assert torch.equal(largest_component(labels, 3), expected)
    assert torch.equal(labels, before)
    assert largest_component(labels, 3, exempt=(2,))[0, 3].tolist() == [0, 0, 0, 2]
    assert largest_component(labels, 3, exempt=(1, 2)).tolist() == labels.tolist()
    assert largest_component(labels, 2)[0, 3].tolist() == [0, 0, 0, 2]  # 2 is none of the classes


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_of_equal_components_the_first_stays(axis: int) -> None:
    labels = torch.zeros(1, 5, 5, 5, dtype=torch.long)
    first, second = [2, 2, 2], [2, 2, 2]
    first[axis], second[axis] = 1, 4
    labels[(0, *first)] = labels[(0, *second)] = 1
    cleaned = largest_component(labels, 2)
    assert cleaned.nonzero().tolist() == [[0, *first]]


def test_samples_are_independent_and_empty_classes_stay_empty() -> None:
    labels = torch.tensor([[[1, 0, 1, 1]], [[1, 1, 0, 1]], [[0, 0, 0, 0]], [[-1, 1, 0, 1]]])
    expected = [[[0, 0, 1, 1]], [[1, 1, 0, 0]], [[0, 0, 0, 0]], [[-1, 1, 0, 0]]]
    assert largest_component(labels, 5).tolist() == expected


def test_cross_pseudo_labels_hand_values() -> None:
    assert cross_pseudo_labels(PROBS_A, 0.6).flatten().tolist() == [0, 0, 0, 0, 1, 1, 1, 0]
    assert cross_pseudo_labels(PROBS_B, 0.6).flatten().tolist() == [0, 0, 1, 1, 1, 1, 1, 0]
    assert cross_pseudo_labels(PROBS_A, 0.6, "ignore").flatten().tolist() == [0, 0, 0, -1, 1, 1, 1, 0]
    at_threshold = torch.tensor([[[0.25]], [[0.75]]])[None]
    assert cross_pseudo_labels(at_threshold, 0.75).item() == 0
    with pytest.raises(ValueError, match="below must be"):
        cross_pseudo_labels(PROBS_A, 0.6, "foreground")


@pytest.mark.parametrize(
    ("threshold", "below", "of_a", "of_b"),
    [
        (0.6, "background", 0.308699, 0.391151),
        (0.5, "background", 0.308699, 0.279228),
        (0.6, "ignore", 0.308699, 0.270191),
    ],
)
def test_cross_entropy_against_cross_pseudo_labels(threshold: float, below: str, of_a: float, of_b: float) -> None:
    for probs, peer, expected in ((PROBS_A, PROBS_B, of_a), (PROBS_B, PROBS_A, of_b)):
        labels = cross_pseudo_labels(peer, threshold, below)
        loss = torch.nn.functional.cross_entropy(probs.log(), labels, ignore_index=-1)
        assert loss.item() == pytest.approx(expected, abs=1e-6)


def test_fused_labels_of_two_classes_are_the_or() -> None:
    expected = PROBS_A.argmax(1) | PROBS_B.argmax(1)
    assert torch.equal(fuse_labels(PROBS_A, PROBS_B), expected)
    assert torch.equal(fuse_labels(PROBS_B, PROBS_A), expected)


def test_fused_labels_of_three_classes() -> None:
    a = torch.tensor([[0.7, 0.2, 0.1], [0.2, 0.5, 0.3], [0.1, 0.3, 0.6], [0.5, 0.1, 0.4]]).T.reshape(1, 3, 2, 2)
    b = torch.tensor([[0.6, 0.3, 0.1], [0.5, 0.3, 0.2], [0.2, 0.7, 0.1], [0.1, 0.2, 0.7]]).T.reshape(1, 3, 2, 2)
    assert fuse_labels(a, b).flatten().tolist() == [0, 1, 1, 2]
    tie = torch.tensor([0.1, 0.6, 0.3]).view(1, 3, 1, 1), torch.tensor([0.1, 0.3, 0.6]).view(1, 3, 1, 1)
    assert fuse_labels(*tie).item() == 1
    assert fuse_labels(*tie[::-1]).item() == 2


@pytest.mark.parametrize("shape", [(2, 4, 6, 5), (1, 3, 3, 4, 2)])
def test_fused_labels_against_a_loop(shape: tuple[int, ...]) -> None:
    a, b = (2 * torch.randn((2, *shape), generator=torch.Generator().manual_seed(6))).softmax(2)
    flat = [probs.movedim(1, -1).flatten(0, -2).tolist() for probs in (a, b)]
    expected = []
    for p, q in zip(*flat, strict=True):
        c, d = p.index(max(p)), q.index(max(q))
        foreground = [label for label in (c, d) if label]
        chosen = foreground[0] if len(foreground) == 1 else (c if max(p) >= max(q) else d)
        expected.append(chosen if foreground else 0)
    assert fuse_labels(a, b).flatten().tolist() == expected


def row_of_two_classes(foreground: list[float]) -> Tensor:
    p = torch.tensor(foreground, dtype=torch.float64)
    return torch.stack([1 - p, p])[None]  # (1, 2, n)


def row_of_three_classes() -> Tensor:
    return torch.tensor([[0.5, 0.3, 0.2], [0.4, 0.35, 0.25]], dtype=torch.float64).T[None]


FOREGROUND = [0.1, 0.3, 0.45, 0.5, 0.55, 0.7, 0.9]


@pytest.mark.parametrize(
    ("temperature", "expected"),
    [
        (0.1, [0, 0.000209, 0.118501, 0.5, 0.881499, 0.999791, 1]),
        (0.5, [0.012195, 0.155172, 0.400990, 0.5, 0.599010, 0.844828, 0.987805]),
        (1.0, FOREGROUND),
    ],
)
def test_sharpen_hand_values_of_two_classes(temperature: float, expected: list[float]) -> None:
    probs = row_of_two_classes(FOREGROUND)
    assert sharpen(probs, temperature)[0, 1].tolist() == pytest.approx(expected, abs=1e-6)
    assert sharpen(probs[:, 1:], temperature, binary=True).flatten().tolist() == pytest.approx(expected, abs=1e-6)


def test_sharpen_hand_values_of_three_classes() -> None:
    probs = row_of_three_classes()
    expected = {
        0.5: [[0.657895, 0.236842, 0.105263], [0.463768, 0.355072, 0.181159]],
        0.1: [[0.993886, 0.006010, 0.000104], [0.786058, 0.206793, 0.007149]],
    }
    for temperature, rows in expected.items():
        torch.testing.assert_close(
            sharpen(probs, temperature)[0].T, torch.tensor(rows, dtype=torch.float64), atol=1e-6, rtol=0
        )
    alone = sharpen(probs, 0.5, binary=True)
    assert alone.sum(1).flatten().tolist() == pytest.approx([0.713996, 0.632463], abs=1e-6)
    assert sharpening_loss(probs, 0.5).item() == pytest.approx(0.007788, abs=1e-6)
    assert sharpening_loss(probs, 0.1).item() == pytest.approx(0.099806, abs=1e-6)


@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (2, 4, 3, 2, 5)])
@pytest.mark.parametrize("temperature", [0.1, 0.7, 2.0])
def test_sharpen_against_the_formula(shape: tuple[int, ...], temperature: float) -> None:
    probs = torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).softmax(1)
    powers, complements = probs ** (1 / temperature), (1 - probs) ** (1 / temperature)
    torch.testing.assert_close(sharpen(probs, temperature), powers / powers.sum(1, keepdim=True))
    torch.testing.assert_close(sharpen(probs, temperature, binary=True), powers / (powers + complements))


@pytest.mark.parametrize("binary", [False, True])
def test_certain_voxels_stay_and_gradients_are_finite(binary: bool) -> None:
    probs = torch.tensor([[[0.0, 1.0, 1e-30, 1e-3, 0.5], [1.0, 0.0, 1.0, 0.999, 0.5]]], requires_grad=True)
    result = sharpen(probs, 0.1, binary)
    assert result[0, :, :3].tolist() == [[0.0, 1.0, 0.0], [1.0, 0.0, 1.0]]
    result.square().sum().backward()
    assert probs.grad.isfinite().all()
    assert sharpen(probs.half(), 0.1).dtype == torch.float32


@pytest.mark.parametrize("temperature", [0.0, -1.0])
def test_sharpen_needs_a_positive_temperature(temperature: float) -> None:
    with pytest.raises(ValueError, match="temperature must be positive"):
        sharpen(row_of_three_classes(), temperature)


@pytest.mark.parametrize(
    ("detach", "expected"),
    [(True, [0.05, 0.165750, -0.165750, -0.149896]), (False, [0.05, -0.533802, 0.533802, -0.148404])],
)
def test_gradient_with_and_without_detached_target(detach: bool, expected: list[float]) -> None:
    foreground = torch.tensor([0.1, 0.45, 0.55, 0.7], dtype=torch.float64, requires_grad=True)
    loss = sharpening_loss(torch.stack([1 - foreground, foreground])[None], 0.1, detach)
    loss.backward()
    assert loss.item() == pytest.approx(0.079915, abs=1e-6)
    assert foreground.grad.tolist() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("offset", [-1e-3, 1e-3])
def test_undetached_gradient_turns_where_the_sharpened_curve_has_slope_one(offset: float) -> None:
    foreground = torch.tensor([0.409213 + offset], dtype=torch.float64, requires_grad=True)
    sharpening_loss(torch.stack([1 - foreground, foreground])[None], 0.1, detach=False).backward()
    assert foreground.grad.sign().item() == (-1.0 if offset > 0 else 1.0)  # inside the interval towards 0.5


def test_loss_is_the_mean_over_the_voxels_of_the_mask() -> None:
    probs = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(2)).softmax(1).requires_grad_()
    mask = torch.rand(2, 1, 4, 5, generator=torch.Generator().manual_seed(3)) > 0.5
    squares = (probs - sharpen(probs, 0.1)).square().sum(1, keepdim=True)
    expected = sum(squares[b, 0, y, x] for b, _, y, x in mask.nonzero().tolist()) / (3 * mask.sum())
    torch.testing.assert_close(sharpening_loss(probs, 0.1, mask=mask), expected)
    torch.testing.assert_close(sharpening_loss(probs, 0.1), squares.mean() / 3)
    nothing = sharpening_loss(probs, 0.1, mask=torch.zeros_like(mask))
    nothing.backward()
    assert nothing.item() == 0.0
    assert torch.equal(probs.grad, torch.zeros_like(probs))


def test_confident_voxels_hand_values() -> None:
    probs = torch.tensor([[0.8, 0.1, 0.1], [0.79, 0.2, 0.01], [0.1, 0.05, 0.85], [0.4, 0.3, 0.3]]).T.view(1, 3, 1, 4)
    found = confident_voxels(probs, 0.8)
    assert found.dtype == torch.bool
    assert found.tolist() == [[[[True, False, True, False]]]]  # the least confidence itself counts
    assert confident_voxels(probs, 0.0).all()
    assert not confident_voxels(probs, 1.0).any()


def test_every_region_of_a_confident_voxel_is_confident() -> None:
    regions = torch.tensor([[0.9, 0.95], [0.9, 0.5], [0.05, 0.1], [0.3, 0.99]]).T.view(1, 2, 1, 4)
    assert confident_voxels(regions, 0.8, regions=True).tolist() == [[[[True, False, True, False]]]]


def test_entropy_weights_by_hand() -> None:
    p = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.8, 0.1]], dtype=torch.float64).view(2, 1, 3, 1, 1)
    probs, weight = entropy_weighted_ensemble(p[0], p[1])
    assert weight.shape == (1, 1, 1, 1)
    assert weight.item() == pytest.approx(0.4415555, abs=1e-6)
    assert probs.flatten().tolist() == pytest.approx([0.3649333, 0.5350667, 0.1], abs=1e-6)
    fg = [[0.5056026, 0.3848102, 0.1562327, 0.6194852], [0.7, 0.1, 0.4, 0.8]]
    first, second = (torch.stack([1 - x, x])[None] for x in torch.tensor(fg, dtype=torch.float64).view(2, 2, 2))
    probs, weight = entropy_weighted_ensemble(first, second)
    assert weight.flatten().tolist() == pytest.approx([0.4703801, 0.3793347, 0.5855818, 0.4411548], abs=1e-6)
    assert probs[0, 1].flatten().tolist() == pytest.approx([0.6085593, 0.2080384, 0.2572543, 0.7203650], abs=1e-6)
    assert probs.argmax(1).flatten().tolist() == [1, 0, 0, 1]


@pytest.mark.parametrize("size", [(4, 3), (2, 3, 4)])
def test_entropy_weights_prefer_the_certain_prediction(size: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    p, q = ((3 * torch.randn(2, 4, *size, generator=generator)).softmax(1) for _ in range(2))
    probs, weight = entropy_weighted_ensemble(p, q)
    swapped, other = entropy_weighted_ensemble(q, p)
    torch.testing.assert_close(probs, swapped)
    torch.testing.assert_close(weight, 1 - other)
    torch.testing.assert_close(probs.sum(1), torch.ones(2, *size))
    bits = [-(x * x.log2()).sum(1, keepdim=True) for x in (p, q)]
    assert torch.equal(weight > 0.5, bits[0] < bits[1])
    assert ((weight > 0) & (weight < 1)).all()
    assert torch.allclose(entropy_weighted_ensemble(p, p)[1], torch.tensor(0.5))
    one_hot = torch.eye(4)[:, :, None, None][:1]
    assert entropy_weighted_ensemble(one_hot, one_hot)[0].isfinite().all()
