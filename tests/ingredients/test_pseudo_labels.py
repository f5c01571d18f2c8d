from __future__ import annotations

import itertools

import pytest
import torch

from nnssl.ingredients.pseudo_labels import cross_pseudo_labels, fuse_labels, largest_component
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
