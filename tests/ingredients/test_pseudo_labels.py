from __future__ import annotations

import itertools

import pytest
import torch

from nnssl.ingredients.pseudo_labels import largest_component


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
