"""Images, predictions and neighbours that the tests of box filters and of the refinement share."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch
from torch import Tensor

SHAPES = [(2, 2, 5, 6), (2, 1, 3, 4, 5)]


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def classes(*shape: int, seed: int = 0) -> Tensor:
    return (4 * drawn(*shape, seed=seed)).softmax(1)


def sides(*shape: int, low: int = 3, high: int = 7) -> Tensor:
    return torch.randint(low, high + 1, shape, generator=torch.Generator().manual_seed(9))


def places(shape: torch.Size) -> list[tuple[int, ...]]:
    return list(itertools.product(*(range(n) for n in shape)))


def window_places(centre: tuple[int, ...], side: int, shape: torch.Size, border: str) -> list[tuple[int, ...] | None]:
    """Every neighbour's place; None = a zero outside the image."""
    found: list[tuple[int, ...] | None] = []
    for offset in itertools.product(range(-(side // 2), (side - 1) // 2 + 1), repeat=len(shape)):
        place = tuple(c + o for c, o in zip(centre, offset, strict=True))
        nearest = tuple(min(max(p, 0), n - 1) for p, n in zip(place, shape, strict=True))
        if border == "replicate" or place == nearest:
            found.append(nearest)
        elif border == "zero":
            found.append(None)
    return found


def step_image(height: float, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.tensor([0, 0, height, height], dtype=dtype).expand(1, 1, 4, 4)


def step_probs() -> Tensor:
    foreground = torch.tensor([0.1, 0.4, 0.8, 0.95], dtype=torch.float64).expand(1, 1, 4, 4)
    return torch.cat([1 - foreground, foreground], 1)


def rows(values: Tensor, *expected: float, row: int = 0, atol: float = 1e-6) -> None:
    wanted = torch.tensor(expected, dtype=values.dtype)
    torch.testing.assert_close(values[0, -1, row], wanted, atol=atol, rtol=0)


def naive_similarity(image: Tensor, window: Tensor, border: str) -> Tensor:
    result = torch.zeros_like(image[:, :1])
    for b, centre in itertools.product(range(len(image)), places(image.shape[2:])):
        here = image[(b, slice(None), *centre)]
        near = window_places(centre, int(window[(b, 0, *centre)]), image.shape[2:], border)
        values = [image[(b, slice(None), *p)] if p else torch.zeros_like(here) for p in near]
        result[(b, 0, *centre)] = -torch.stack([(v - here).square().mean() for v in values]).mean()
    return result


def naive_propagate(
    probs: Tensor, weight_of: Callable[..., float], mask: Tensor, window: Tensor, iterations: int, retention: float
) -> Tensor:
    for _ in range(iterations):
        new = probs.clone()
        for b, centre in itertools.product(range(len(probs)), places(probs.shape[2:])):
            near = window_places(centre, int(window[(b, 0, *centre)]), probs.shape[2:], "replicate")
            weights = [float(weight_of(b, centre, p)) for p in near]
            here, m = probs[(b, slice(None), *centre)], mask[(b, 0, *centre)]
            total = sum(w * probs[(b, slice(None), *p)] for w, p in zip(weights, near, strict=True)) / len(near)
            neighbours = (total + retention * here) / (sum(weights) / len(near) + retention)
            new[(b, slice(None), *centre)] = m * here + (1 - m) * neighbours
        probs = new
    return probs
