from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from nnssl.ingredients import contrastive
from nnssl.ingredients.contrastive import nt_xent, prototype_contrast
from tests.ingredients.cce_vectors import PROBS_A, PROBS_B, two_classes

POINTS = [(3, 0), (4, 1), (1, 2), (1, 1), (0, 2), (0, 3), (1, 4), (2, 1)]


def points() -> Tensor:
    return torch.tensor(POINTS, dtype=torch.float64).T.reshape(1, 2, 1, 8)


def random_case(shape: tuple[int, ...], classes: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Return features (B, 4, *S) and two predictions that agree in most voxels."""
    generator = torch.Generator().manual_seed(seed)
    draw = {"generator": generator, "dtype": torch.float64}
    common = 2 * torch.randn(shape[0], classes, *shape[1:], **draw)
    a, b = (common + torch.randn(common.shape, **draw) for _ in range(2))
    return torch.randn(shape[0], 4, *shape[1:], **draw), a.softmax(1), b.softmax(1)


def naive(  # noqa: PLR0917
    z: Tensor,
    a: Tensor,
    b: Tensor,
    percentile: float,
    third: float | str,
    mask: Tensor | None = None,
    by_class: bool = False,
) -> float:
    rows, pa, pb = (x.movedim(1, -1).flatten(0, -2).tolist() for x in (z, a, b))
    count = [True] * len(rows) if mask is None else mask.flatten().tolist()
    entropies = [[-sum(p * math.log(p) for p in voxel) for voxel in probs] for probs in (pa, pb)]
    groups: dict[int, list[float]] = {}
    for values, probs in zip(entropies, (pa, pb), strict=True):
        for h, voxel, counts in zip(values, probs, count, strict=True):
            if counts:
                groups.setdefault(voxel.index(max(voxel)) if by_class else -1, []).append(h)
    delta = {group: np.percentile(found, percentile) for group, found in groups.items()}
    members: dict[tuple[bool, int], list[list[float]]] = {}
    for v, row in enumerate(rows):
        if count[v]:
            label, other = (p[v].index(max(p[v])) for p in (pa, pb))
            reliable = label == other and max(entropies[0][v], entropies[1][v]) <= delta[label if by_class else -1]
            members.setdefault((reliable, label), []).append(row)

    def unit(x: list[float]) -> list[float]:
        length = math.sqrt(sum(value**2 for value in x))
        return [value / length for value in x]

    prototypes = {
        label: [sum(column) / len(column) for column in zip(*found, strict=True)]
        for (reliable, label), found in members.items()
        if reliable
    }
    attraction = {
        label: sum(math.dist(unit(x), unit(prototypes[label])) for x in found) / len(found)
        for (reliable, label), found in members.items()
        if not reliable and label in prototypes
    }
    foreground = [value for label, value in attraction.items() if label]
    total = attraction.get(0, 0.0) + (sum(foreground) / len(foreground) if foreground else 0.0)
    pairs = [math.dist(unit(p), unit(q)) for p, q in itertools.combinations(prototypes.values(), 2)]
    if pairs:
        mean = sum(pairs) / len(pairs)
        total += 2 - mean if third == "repel" else third * mean
    return total


@pytest.mark.parametrize(("third", "expected"), [(1.0, 2.211406), (0.0, 1.011406), ("repel", 1.811406)])
@pytest.mark.parametrize("share", [None, 1.0])
def test_hand_values(third: float | str, expected: float, share: float | None) -> None:
    found = prototype_contrast(points(), PROBS_A, PROBS_B, 60, third, share)
    assert found.item() == pytest.approx(expected, abs=1e-6)


def test_hand_value_of_filtered_voxels() -> None:
    found = prototype_contrast(points(), PROBS_A, PROBS_B, 60, reliable="filtered")
    assert found.item() == pytest.approx(2.684824, abs=1e-6)
    with pytest.raises(ValueError, match="reliable must be"):
        prototype_contrast(points(), PROBS_A, PROBS_B, 60, reliable="all")


@pytest.mark.parametrize("share", [None, 1.0])
def test_gradient_reaches_voxels_and_prototypes(share: float | None) -> None:
    z = points().requires_grad_()
    a, b = PROBS_A.clone().requires_grad_(), PROBS_B.clone().requires_grad_()
    loss = prototype_contrast(z, a, b, 60, sample_fraction=share)
    to_z, *to_probs = torch.autograd.grad(loss, (z, a, b), allow_unused=True)
    expected = [(0.034729, -0.243101)] * 2 + [(-0.177156, 0.088578), (0.237171, -0.237171), (-0.249371, 0.0)]
    expected += [(-0.108584, 0.015512)] * 2 + [(-0.098709, 0.197417)]
    torch.testing.assert_close(to_z.view(2, 8).T, torch.tensor(expected, dtype=torch.float64), atol=1e-6, rtol=0)
    assert to_probs == [None, None]


@pytest.mark.parametrize(("shape", "classes"), [((2, 9, 8), 2), ((2, 9, 8), 4), ((2, 4, 5, 6), 3)])
@pytest.mark.parametrize("third", [1.0, 0.3, "repel"])
@pytest.mark.parametrize("share", [None, 1.0])
def test_against_loops(shape: tuple[int, ...], classes: int, third: float | str, share: float | None) -> None:
    z, a, b = random_case(shape, classes)
    mask = torch.rand(shape[0], 1, *shape[1:], generator=torch.Generator().manual_seed(5)) > 0.3
    for counted, by_class in ((None, False), (mask, False), (None, True), (mask, True)):
        expected = naive(z, a, b, 55, third, counted, by_class)
        found = prototype_contrast(z, a, b, 55, third, share, mask=counted, by_class=by_class)
        assert found.item() == pytest.approx(expected, abs=1e-6)


def test_distances_of_three_prototypes() -> None:
    z = torch.tensor([[1, 0, 0], [0, 1, 0], [0.6, 0.8, 0]], dtype=torch.float64).T.reshape(1, 3, 1, 3)
    certain = torch.eye(3, dtype=torch.float64).reshape(1, 3, 1, 3)
    assert prototype_contrast(z, certain, certain, 100).item() == pytest.approx(0.980365, abs=1e-6)


@pytest.mark.parametrize("share", [0.1, 0.5])
def test_samples_are_drawn_without_replacement_from_each_class(share: float, monkeypatch) -> None:
    z, a, b = random_case((2, 20, 20), 3)
    z.requires_grad_()
    sizes = drawn_numbers(z, a, b, share)
    everything = drawn_numbers(z, a, b, None)
    assert all(everything)
    assert sizes == [max(1, int(share * size)) for size in everything]
    monkeypatch.setattr(contrastive, "MOST_SAMPLES", 3)
    assert drawn_numbers(z, a, b, share) == [3] * 3


def drawn_numbers(z: Tensor, a: Tensor, b: Tensor, share: float | None) -> list[int]:
    """Return how many voxels of each class get a gradient, without that through prototypes: those have none there."""
    labels, groups = contrastive._split_voxels(a, b, 50, None, "agreement")
    generator = torch.Generator().manual_seed(3)
    loss = prototype_contrast(z, a, b, 50, 0.0, share, generator)
    touched = torch.autograd.grad(loss, z)[0].abs().sum(1).flatten(1) > 0
    assert touched[labels[:, 0] < 3].all()
    return [int((touched & (groups[:, 0] == c)).sum()) for c in range(3)]


def test_the_generator_decides_the_sample() -> None:
    z, a, b = random_case((2, 20, 20), 3)
    first, again, other = (
        prototype_contrast(z, a, b, 50, 1.0, 0.1, torch.Generator().manual_seed(seed)).item() for seed in (1, 1, 2)
    )
    assert first == again != other
    mean = np.mean([prototype_contrast(z, a, b, 50, 1.0, 0.1).item() for _ in range(200)])
    assert mean == pytest.approx(prototype_contrast(z, a, b, 50).item(), abs=0.02)


@pytest.mark.parametrize("share", [None, 0.01, 1.0])
@pytest.mark.parametrize("kind", ["all background", "zero entropy", "no agreement", "empty mask", "zero features"])
def test_finite_where_something_is_missing(kind: str, share: float | None) -> None:
    z, a, b = random_case((2, 6, 6), 3)
    mask = None
    if kind == "all background":
        a = b = torch.cat([a.amax(1, keepdim=True) + 1, a[:, 1:]], 1)
        a = b = a / a.sum(1, keepdim=True)
    elif kind == "zero entropy":
        a = b = torch.nn.functional.one_hot(a.argmax(1), 3).movedim(-1, 1).double()
    elif kind == "no agreement":
        b = a.roll(1, 1)
    elif kind == "empty mask":
        mask = torch.zeros(2, 1, 6, 6, dtype=torch.bool)
    else:
        z = torch.zeros_like(z)
    z = z.requires_grad_()
    loss = prototype_contrast(z, a, b, 50, 1.0, share, mask=mask)
    gradient = torch.autograd.grad(loss, z)[0]
    assert loss.isfinite()
    assert gradient.isfinite().all()
    assert bool(gradient.any()) == (kind in {"all background", "zero entropy"})
    if kind in {"no agreement", "empty mask"}:
        assert loss.item() == 0.0


def test_half_precision_features_under_autocast() -> None:
    z, a, b = (x.float() for x in random_case((2, 6, 6), 2))
    with torch.autocast("cpu", torch.bfloat16):
        loss = prototype_contrast(z.bfloat16(), a, b, 50)
    assert loss.dtype == torch.float32
    expected = prototype_contrast(z.bfloat16().float(), a, b, 50)
    assert loss.item() == pytest.approx(expected.item(), abs=1e-6)


def test_two_classes_written_as_three() -> None:
    empty = torch.zeros(1, 1, 1, 8, dtype=torch.float64)
    a, b = (torch.cat([probs, empty], 1) for probs in (PROBS_A, PROBS_B))
    expected = prototype_contrast(points(), PROBS_A, PROBS_B, 60).item()
    assert prototype_contrast(points(), a, b, 60).item() == pytest.approx(expected)
    swapped = prototype_contrast(points(), two_classes([0.1] * 8), two_classes([0.1] * 8), 60)
    assert swapped.item() == 0.0  # every voxel is certain, and there is one class


def naive_nt_xent(a: torch.Tensor, b: torch.Tensor, temperature: float) -> float:
    a, b = (x / x.norm(dim=1, keepdim=True) for x in (a, b))
    total, count = 0.0, len(a)
    for u, v in ((a, b), (b, a)):
        for i in range(count):
            positive = math.exp((u[i] @ v[i]).item() / temperature)
            negative = sum(
                math.exp((u[i] @ other[j]).item() / temperature) for j in range(count) if j != i for other in (u, v)
            )
            total -= math.log(positive / (positive + negative))
    return total / (2 * count)


@pytest.mark.parametrize("temperature", [0.1, 1.0])
def test_nt_xent_against_a_loop_over_pairs(temperature: float) -> None:
    generator = torch.Generator().manual_seed(5)
    a, b = (torch.randn(5, 7, generator=generator, dtype=torch.float64) for _ in range(2))
    assert nt_xent(a, b, temperature).item() == pytest.approx(naive_nt_xent(a, b, temperature))
    assert nt_xent(3 * a, b, temperature).item() == pytest.approx(nt_xent(b, a, temperature).item())


def test_nt_xent_vector() -> None:
    views = torch.eye(2)
    assert nt_xent(views, views, 1.0).item() == pytest.approx(0.5514, abs=1e-4)
    assert nt_xent(views, views.flip(0), 1.0).item() > 1


def test_nt_xent_gradient_goes_to_both_views_and_is_finite_for_zeros() -> None:
    a, b = torch.randn(3, 4, requires_grad=True), torch.randn(3, 4, requires_grad=True)
    nt_xent(a, b, 0.1).backward()
    assert a.grad.abs().sum() > 0
    assert b.grad.abs().sum() > 0
    zeros = torch.zeros(3, 4, requires_grad=True)
    loss = nt_xent(zeros, b.detach(), 0.1)
    loss.backward()
    assert torch.isfinite(loss)
    assert not zeros.grad.any()
    assert nt_xent(a[:1], b[:1], 0.1).item() == 0.0


def test_nt_xent_in_full_precision_and_with_a_wrong_temperature() -> None:
    a, b = torch.randn(3, 4), torch.randn(3, 4)
    with torch.autocast("cpu", torch.bfloat16):
        inside = nt_xent(a, b, 0.1)
    assert torch.equal(inside, nt_xent(a, b, 0.1))
    with pytest.raises(ValueError, match="temperature"):
        nt_xent(a, b, 0.0)
