from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from nnssl.ingredients import refinement
from nnssl.ingredients.refinement import (
    Neighbourhood,
    confidence_mask,
    edge_adaptive_window,
    enhance,
    local_similarity,
    neighbourhood,
    normalised_similarity,
    propagate_labels,
    scale_intensities,
)
from tests.ingredients.refinement_cases import (
    SHAPES,
    classes,
    drawn,
    naive_propagate,
    naive_similarity,
    rows,
    sides,
    step_image,
    step_probs,
)


def delta() -> Tensor:
    image = torch.zeros(1, 1, 3, 3, 3, dtype=torch.float64)
    image[0, 0, 1, 1, 1] = 1
    return image


# --- scaling


@pytest.mark.parametrize("shape", [(2, 3, 9, 11), (2, 1, 7, 5, 6), (1, 1, 1, 1)])
def test_scaling_is_that_of_the_quantiles(shape: tuple[int, ...]) -> None:
    image = 40 * drawn(*shape) - 900
    low, high = (torch.from_numpy(np.quantile(image.flatten(2).numpy(), q, axis=-1)) for q in (0.005, 0.995))
    low, high = (q.view(*q.shape, *[1] * (len(shape) - 2)) for q in (low, high))
    torch.testing.assert_close(scale_intensities(image), ((image - low) / (high - low + 1e-8)).clamp(0, 1))


def test_scaling_of_large_images_sees_every_slice() -> None:
    image = torch.zeros(1, 1, 40, 100, 100)  # one voxel in four is looked at, if not those of the same columns
    image[..., 1::4] = drawn(1, 1, 40, 100, 25).float()
    scaled = scale_intensities(image)
    highest = torch.quantile(image.flatten(), 0.995)
    torch.testing.assert_close(scaled, (image / highest).clamp(max=1), atol=0.01, rtol=0)


def test_scaling_of_a_constant_image_is_zero() -> None:
    assert scale_intensities(torch.full((2, 1, 4, 4), 7, dtype=torch.int16)).abs().sum() == 0


# --- window


@pytest.mark.parametrize(("height", "side"), [(0.1, 3), (0.25, 4), (0.3, 4), (0.5, 5), (0.75, 6), (1.0, 7), (1.2, 7)])
def test_window_of_a_step(height: float, side: int) -> None:
    expected = torch.tensor([3, side, side, 3]).expand(1, 1, 4, 4)
    assert torch.equal(edge_adaptive_window(step_image(height)), expected)
    volume = step_image(height).unsqueeze(2).expand(1, 1, 3, 4, 4)
    assert torch.equal(edge_adaptive_window(volume), expected.unsqueeze(2).expand(1, 1, 3, 4, 4))


def test_window_options() -> None:
    image = step_image(0.5)
    assert edge_adaptive_window(image, border="zero")[0, 0, 1].tolist() == [3, 5, 5, 5]
    assert edge_adaptive_window(image, low=2, high=3).unique().tolist() == [2, 3]
    whole = edge_adaptive_window(image, scope="image")  # gradients (0, 2, 2, 0), mean 1
    assert whole.shape == (1, 1, 1, 1)
    assert whole.item() == 4
    two = torch.cat([image, torch.zeros_like(image)], 1)  # mean of the squares over channels: g = 2/√2
    assert edge_adaptive_window(two)[0, 0, 0].tolist() == [3, 4, 4, 3]


def test_gradient_of_a_single_bright_voxel() -> None:
    for factor, (centre, face, edge, corner) in ((1, (3, 4, 3, 3)), (2, (3, 5, 4, 3)), (3, (3, 6, 5, 4))):
        window = edge_adaptive_window(factor * delta())[0, 0]  # |G| is factor·(0, 1, 0.7071, 0.4330)
        found = window[1, 1, 1], window[0, 1, 1], window[0, 0, 1], window[0, 0, 0]
        assert [int(f) for f in found] == [centre, face, edge, corner]


# --- similarity


TABLE = {
    (3, "replicate"): ([0, -0.0208333, -0.0208333, 0], 1),
    (3, "zero"): ([0, -0.0138889, -0.0347222, -0.0347222], 0),
    (3, "valid"): ([0, -0.0208333, -0.0208333, 0], 1),
    (4, "replicate"): ([0, -0.015625, -0.03125, -0.015625], 1),
    (4, "zero"): ([0, -0.01171875, -0.0390625, -0.0390625], 1),
    (4, "valid"): ([0, -0.0208333, -0.03125, -0.0208333], 1),
    (5, "replicate"): ([-0.0125, -0.025, -0.025, -0.0125], 0),
    (5, "zero"): ([-0.0075, -0.015, -0.0475, -0.0475], 0),
    (5, "valid"): ([-0.0208333, -0.03125, -0.03125, -0.0208333], 0),
    (7, "replicate"): ([-0.0178571, -0.0267857, -0.0267857, -0.0178571], 0),
    (7, "zero"): ([-0.0102041, -0.0102041, -0.0522959, -0.0522959], 1),
    (7, "valid"): ([-0.03125] * 4, 0),
}


@pytest.mark.parametrize(("window", "border"), TABLE)
def test_similarity_of_a_step(window: int, border: str) -> None:
    expected, row = TABLE[window, border]
    rows(local_similarity(step_image(0.25), window, border), *expected, row=row)


def test_similarity_of_a_single_bright_voxel() -> None:
    expected = torch.full((1, 1, 3, 3, 3), -1 / 27, dtype=torch.float64)
    expected[0, 0, 1, 1, 1] = -26 / 27
    torch.testing.assert_close(local_similarity(delta(), 3), expected)


@pytest.mark.parametrize("border", ["replicate", "zero", "valid"])
@pytest.mark.parametrize("shape", SHAPES)
def test_similarity_against_a_loop_over_neighbours(shape: tuple[int, ...], border: str) -> None:
    image = drawn(*shape) + 3
    for window in (1, 2, 4):
        everywhere = torch.full((shape[0], 1, *shape[2:]), window)
        expected = naive_similarity(image, everywhere, border)
        torch.testing.assert_close(local_similarity(image, window, border), expected, atol=1e-12, rtol=0)
    mixed = sides(shape[0], 1, *shape[2:], low=1)
    expected = naive_similarity(image, mixed // 2 * 2 + 1, border)
    torch.testing.assert_close(local_similarity(image, mixed, border), expected, atol=1e-12, rtol=0)
    per_sample = torch.tensor([4, 5]).view(2, *[1] * (len(shape) - 1))
    torch.testing.assert_close(local_similarity(image, per_sample, border), local_similarity(image, 5, border))


def test_similarity_keeps_its_digits_far_from_zero() -> None:
    image = 0.1 * drawn(1, 1, 8, 8, 8)
    exact = local_similarity(image, 5)
    shifted = local_similarity((image + 100).float(), 5)
    torch.testing.assert_close(shifted.double(), exact, atol=0, rtol=2e-3)
    assert local_similarity(torch.full((1, 1, 5, 5), 1e3), 3).abs().max() == 0
    half = local_similarity(image.half(), 5)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half.double(), exact, atol=0, rtol=2e-2)
    assert torch.equal(normalised_similarity(torch.zeros(1, 1, 4, 4).half()), torch.ones(1, 1, 4, 4))


def test_samples_do_not_mix_however_they_are_grouped(monkeypatch: pytest.MonkeyPatch) -> None:
    image, probs, window = drawn(5, 1, 6, 7), classes(5, 3, 6, 7), sides(5, 1, 6, 7)
    together = local_similarity(image, window), enhance(probs, image)
    monkeypatch.setattr(refinement, "_CHUNK_VOXELS", 2 * 6 * 7)
    apart = local_similarity(image, window), enhance(probs, image)
    for a, b in zip(together, apart, strict=True):
        torch.testing.assert_close(a, b)
    alone = torch.cat([enhance(p[None], i[None]) for p, i in zip(probs, image, strict=True)])
    torch.testing.assert_close(alone, together[1])


def test_normalised_similarity() -> None:
    window = torch.tensor([3, 4, 5, 3]).expand(1, 1, 4, 4)
    similarity = local_similarity(step_image(0.25), window)
    rows(similarity, 0, -0.025, -0.025, 0)
    rows(normalised_similarity(similarity, 1.0), 1, 0.9753099, 0.9753099, 1)
    rows(normalised_similarity(similarity), 1, math.exp(-0.025 / (0.0125 + 1e-8)), 0.1353354, 1)
    assert torch.equal(normalised_similarity(torch.zeros(2, 1, 3, 3, 3)), torch.ones(2, 1, 3, 3, 3))
    pair = normalised_similarity(torch.cat([similarity, 2 * similarity - 1]), 0.1)
    torch.testing.assert_close(pair.amax((1, 2, 3)), torch.ones(2, dtype=torch.float64))


# --- confidence


@pytest.mark.parametrize(
    ("factor", "expected"),
    [
        (0.1, (0.6772041, 0, 0, 0.7757298)),
        (-0.5, (0.8242249, 0, 0.6330300, 0.8854655)),
        (2.0, (0, 0, 0, 0.5)),  # the threshold stops at the greatest confidence
    ],
)
def test_mask_of_a_step(factor: float, expected: tuple[float, ...]) -> None:
    rows(confidence_mask(step_probs(), factor), *expected)


@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (2, 4, 3, 4, 3)])
def test_mask_against_a_loop(shape: tuple[int, ...]) -> None:
    probs = classes(*shape)
    mask = confidence_mask(probs, 0.2, 7.0)
    for b in range(shape[0]):
        confidence = probs[b].flatten(1).numpy().max(0)
        threshold = min(confidence.mean() + 0.2 * confidence.std(), confidence.max())
        expected = [1 / (1 + math.exp(-7 * (c - threshold))) if c >= threshold else 0.0 for c in confidence]
        assert mask[b].flatten().tolist() == pytest.approx(expected)


@pytest.mark.parametrize("value", [0.3, 0.1, 1.0])
def test_equal_confidence_passes_the_threshold(value: float) -> None:
    foreground = torch.full((1, 1, 33, 17), value)
    mask = confidence_mask(torch.cat([foreground, 1 - foreground], 1), 3.0)
    torch.testing.assert_close(mask, torch.full_like(mask, 0.5))


# --- propagation


def test_propagate_step() -> None:
    image, probs = step_image(0.25), step_probs()
    window = edge_adaptive_window(image)
    similarity = local_similarity(image, window)
    paper = normalised_similarity(similarity, 1.0), confidence_mask(probs, 0.1), window
    ours = normalised_similarity(similarity), confidence_mask(probs), window
    for k, (a, b) in enumerate(((0.4028511, 0.7666157), (0.4048505, 0.7435241), (0.4062525, 0.7275518)), 1):
        rows(propagate_labels(probs, *paper, k, 1.0), 0.1, a, b, 0.95)
    for k, expected in enumerate(
        (
            (0.1, 0.4085716, 0.7640835, 0.9493175),
            (0.1, 0.4087653, 0.7387810, 0.9484747),
            (0.1, 0.4078623, 0.7208819, 0.9475206),
        ),
        1,
    ):
        rows(propagate_labels(probs, *ours, k), *expected)
        rows(enhance(probs, image, scale=False, iterations=k), *expected)


def test_propagate_to_one_unsure_voxel() -> None:
    foreground = torch.full((1, 1, 5, 5), 0.9, dtype=torch.float64)
    foreground[0, 0, 2, 2] = 0.45
    probs, image = torch.cat([1 - foreground, foreground], 1), torch.zeros(1, 1, 5, 5, dtype=torch.float64)
    for k, centre in enumerate((0.8307398, 0.8893401, 0.8983593), 1):
        refined = enhance(probs, image, iterations=k)
        expected = foreground.clone()
        expected[0, 0, 2, 2] = centre
        torch.testing.assert_close(refined[:, 1:], expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("shape", [(2, 3, 5, 6), (1, 2, 3, 4, 5)])
def test_propagate_against_a_loop(shape: tuple[int, ...]) -> None:
    probs, grid = classes(*shape), (shape[0], 1, *shape[2:])
    similarity, window = drawn(*grid, seed=1), sides(*grid, low=1)
    mask = drawn(*grid, seed=2) * (drawn(*grid, seed=3) > 0.3)
    refined = propagate_labels(probs, similarity, mask, window, 2, 0.3)
    weights = similarity * mask
    expected = naive_propagate(probs, lambda b, _, j: weights[(b, 0, *j)], mask, window // 2 * 2 + 1, 2, 0.3)
    torch.testing.assert_close(refined, expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize(("shape", "channels"), [((2, 3, 4, 5), 2), ((1, 2, 2, 3, 4), 1)])
def test_pairwise_against_a_loop(shape: tuple[int, ...], channels: int) -> None:
    probs, grid = classes(*shape), (shape[0], 1, *shape[2:])
    image, mask = drawn(shape[0], channels, *shape[2:], seed=4) / 3, drawn(*grid, seed=5)
    refined = propagate_labels(probs, mask, mask, 3, 2, 0.3, "pairwise", image)

    def weight(b: int, i: tuple[int, ...], j: tuple[int, ...]) -> float:
        distance = (image[(b, slice(None), *j)] - image[(b, slice(None), *i)]).square().mean()
        return math.exp(-distance / (2 * 0.1**2)) * mask[(b, 0, *j)]

    expected = naive_propagate(probs, weight, mask, torch.full(grid, 5), 2, 0.3)
    torch.testing.assert_close(refined, expected, atol=1e-12, rtol=0)


def test_literal_step() -> None:
    probs = step_probs()
    window = edge_adaptive_window(step_image(0.25))
    similarity = normalised_similarity(local_similarity(step_image(0.25), window), 1.0)
    mask = confidence_mask(probs, 0.1)
    for k, expected in enumerate(
        (
            (0.3100255, 0.4501660, 0.6456563, 0.7109495),
            (0.4061392, 0.4751036, 0.5723175, 0.6039376),
            (0.4532069, 0.4875544, 0.5360958, 0.5517825),
        ),
        1,
    ):
        rows(propagate_labels(probs, similarity, mask, 3, k, mode="literal"), *expected)
    one = torch.ones(1, 1, 1, 1, dtype=torch.float64)
    pair = torch.tensor([0.3, 0.7], dtype=torch.float64).view(1, 2, 1, 1)
    for k, expected in enumerate((0.5597136, 0.5179064, 0.5053717), 1):
        rows(propagate_labels(pair, 0.5 * one, 0.8 * one, 3, k, mode="literal"), expected)


@pytest.mark.parametrize(
    ("count", "expected"),
    [(4, (0.4753669, 0.3104271, 0.2654088, 0.2538720, 0.2509692)), (2, (0.7310586, 0.6135164, 0.5565156))],
)
def test_literal_flattens(count: int, expected: tuple[float, ...]) -> None:
    probs = torch.eye(count, dtype=torch.float64)[-1].view(1, count, 1, 1)
    one = torch.ones(1, 1, 1, 1, dtype=torch.float64)
    for k, value in enumerate(expected, 1):
        rows(propagate_labels(probs, one, one, 3, k, mode="literal"), value)


def test_literal_changes_no_label() -> None:
    probs, grid = classes(2, 4, 16, 16), (2, 1, 16, 16)
    refined = propagate_labels(probs, drawn(*grid, seed=1), drawn(*grid, seed=2), 3, 5, mode="literal")
    assert torch.equal(refined.argmax(1), probs.argmax(1))
    assert (refined - probs).abs().max() > 0.1


@pytest.mark.parametrize("mode", ["propagate", "pairwise"])
@pytest.mark.parametrize("shape", [(2, 3, 9, 8), (1, 4, 5, 6, 7)])
def test_propagation_stays_among_the_old_values(mode: str, shape: tuple[int, ...]) -> None:
    probs = classes(*shape).float()
    probs[0] = torch.nn.functional.one_hot(probs[0].argmax(0), shape[1]).movedim(-1, 0).float()
    refined = enhance(probs, drawn(shape[0], 1, *shape[2:]).float(), mode=mode)
    torch.testing.assert_close(refined.sum(1), torch.ones_like(refined[:, 0]))
    assert refined.min() >= 0
    assert refined.max() <= 1 + 1e-6
    axes = tuple(range(2, probs.dim()))
    assert bool((refined.amax(axes) <= probs.amax(axes) + 1e-6).all())
    assert bool((refined.amin(axes) >= probs.amin(axes) - 1e-6).all())
    assert (refined - probs).abs().max() > 0.05


@pytest.mark.parametrize("retention", [0.1, 0.0])
def test_nothing_confident_nearby_leaves_a_voxel_as_it_is(retention: float) -> None:
    probs, mask = classes(1, 3, 9, 9), torch.zeros(1, 1, 9, 9, dtype=torch.float64)
    ones = torch.ones_like(mask)
    torch.testing.assert_close(propagate_labels(probs, ones, mask, 5, 3, retention), probs)
    mask[0, 0, 0, 0] = 0.9
    refined = propagate_labels(probs, ones, mask, 3, 1, retention)
    changed = (refined - probs).abs().amax(1)[0] > 1e-9
    assert changed.nonzero().tolist() == [[0, 1], [1, 0], [1, 1]]


def test_no_iterations_and_wrong_modes() -> None:
    probs, one = classes(1, 2, 3, 3), torch.ones(1, 1, 3, 3, dtype=torch.float64)
    for mode in ("propagate", "literal", "pairwise"):
        assert propagate_labels(probs, one, one, 3, 0, mode=mode, image=one) is probs
    with pytest.raises(ValueError, match="mode"):
        propagate_labels(probs, one, one, 3, mode="unknown")
    with pytest.raises(ValueError, match="image"):
        propagate_labels(probs, one, one, 3, mode="pairwise")


@pytest.mark.parametrize("mode", ["propagate", "literal", "pairwise"])
def test_gradient_of_the_propagation(mode: str) -> None:
    probs, grid = classes(1, 2, 3, 4).requires_grad_(), (1, 1, 3, 4)
    similarity, mask = drawn(*grid, seed=1).requires_grad_(), drawn(*grid, seed=2).requires_grad_()
    window, image = sides(*grid, high=5), drawn(*grid, seed=3)

    def refined(p: Tensor, s: Tensor, m: Tensor) -> Tensor:
        return propagate_labels(p, s, m, window, 2, 0.2, mode, image)

    assert torch.autograd.gradcheck(refined, (probs, similarity, mask), check_undefined_grad=False)


def test_gradient_goes_to_the_probabilities_not_the_image() -> None:
    probs, image = classes(1, 3, 6, 6).requires_grad_(), drawn(1, 1, 6, 6).requires_grad_()
    enhance(probs, image)[:, 1].sum().backward()
    assert bool(probs.grad.isfinite().all())
    assert probs.grad.abs().sum() > 0
    assert image.grad is None
    flat = torch.full((1, 2, 4, 4), 0.5, requires_grad=True)
    confidence_mask(flat).sum().backward()  # no spread: the threshold must not divide by zero
    assert bool(flat.grad.isfinite().all())


# --- the whole


@pytest.mark.parametrize("scope", ["pixel", "image"])
@pytest.mark.parametrize("shape", [(3, 2, 9, 8), (2, 1, 6, 7, 8)])
def test_enhance_is_its_parts(shape: tuple[int, ...], scope: str) -> None:
    raw, probs = 900 + 300 * drawn(*shape), classes(shape[0], 3, *shape[2:], seed=1)
    image = scale_intensities(raw)
    window = edge_adaptive_window(image, 1, 9, scope=scope)
    similarity = normalised_similarity(local_similarity(image, window), 0.2)
    mask = confidence_mask(probs, 0.3, 5.0)
    expected = propagate_labels(probs, similarity, mask, window, 2, 0.4)
    around = neighbourhood(raw, window_scope=scope, low=1, high=9, temperature=0.2)
    assert isinstance(around, Neighbourhood)
    settings = {"threshold_factor": 0.3, "steepness": 5.0, "iterations": 2, "retention": 0.4}
    torch.testing.assert_close(enhance(probs, around, **settings), expected)
    direct = enhance(probs, raw, **settings, window_scope=scope, low=1, high=9, temperature=0.2)
    torch.testing.assert_close(direct, expected)
    with pytest.raises(TypeError, match="low"):
        enhance(probs, around, low=5)


def test_enhance_ignores_the_unit_of_the_image() -> None:
    image, probs = drawn(2, 1, 8, 8, 6), classes(2, 3, 8, 8, 6)
    torch.testing.assert_close(enhance(probs, 1000 * image - 400), enhance(probs, image))
    assert not torch.allclose(enhance(probs, 10 * image, scale=False), enhance(probs, image, scale=False))


@pytest.mark.parametrize("mode", ["propagate", "literal"])
def test_regions_are_pairs_of_classes(mode: str) -> None:
    image, regions = drawn(2, 1, 7, 6), drawn(2, 3, 7, 6, seed=1)
    refined = enhance(regions, image, regions=True, mode=mode)
    assert refined.shape == regions.shape
    for r in range(3):
        pair = torch.stack([1 - regions[:, r], regions[:, r]], 1)
        torch.testing.assert_close(refined[:, r], enhance(pair, image, mode=mode)[:, 1])
