from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from nnssl.ingredients.uncertainty import class_percentiles, entropy, entropy_ignore_mask, masked_percentile
from tests.ingredients.cce_vectors import H_A, H_B, PROBS_A, PROBS_B


def probabilities(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (2 * torch.randn(shape, generator=generator, dtype=torch.float64)).softmax(1)


def with_entropies(values: list[float]) -> Tensor:
    """Return two-class probabilities (1, 2, 1, n) whose entropies have these ranks; 0 is exactly 0."""
    p = torch.tensor(values, dtype=torch.float64) / 2
    return torch.stack([1 - p, p]).view(1, 2, 1, -1)


@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (1, 4, 3, 2, 3)])
def test_entropy_against_a_loop(shape: tuple[int, ...]) -> None:
    probs = probabilities(*shape)
    found = entropy(probs)
    assert found.shape == (shape[0], *shape[2:])
    for voxel, value in zip(probs.movedim(1, -1).flatten(0, -2).tolist(), found.flatten().tolist(), strict=True):
        assert value == pytest.approx(-sum(p * np.log(p) for p in voxel), abs=1e-12)


def test_entropy_hand_values() -> None:
    assert entropy(PROBS_A).flatten().tolist() == pytest.approx(H_A, abs=1e-6)
    assert entropy(PROBS_B).flatten().tolist() == pytest.approx(H_B, abs=1e-6)
    regions = torch.tensor([0.9, 0.5, 0.1])
    each = entropy(torch.stack([1 - regions, regions], 1)[..., None])
    assert each.flatten().tolist() == pytest.approx([0.325083, 0.693147, 0.325083], abs=1e-6)
    assert each.mean().item() == pytest.approx(0.447771, abs=1e-6)


def test_entropy_of_a_certain_voxel_is_zero_with_a_finite_gradient() -> None:
    probs = torch.tensor([[[1.0], [0.0], [0.0]]], requires_grad=True)
    value = entropy(probs)
    value.sum().backward()
    assert value.item() == 0.0
    assert probs.grad.isfinite().all()


@pytest.mark.parametrize("percentile", [0, 0.1, 17.25, 50, 70, 99.9999, 100])
@pytest.mark.parametrize("count", [1, 2, 7, 1000])
def test_percentiles_are_numpys(percentile: float, count: int) -> None:
    values = torch.randn(count, generator=torch.Generator().manual_seed(count), dtype=torch.float64)
    expected = np.percentile(values.numpy(), percentile)
    assert masked_percentile(values, percentile).item() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("percentile", [0, 33.3, 100])
def test_percentiles_of_the_values_that_count(percentile: float) -> None:
    generator = torch.Generator().manual_seed(1)
    values = torch.randn(4, 5, 6, generator=generator, dtype=torch.float64)
    mask = torch.rand(4, 5, 6, generator=generator) > 0.6
    expected = np.percentile(values[mask].numpy(), percentile)
    assert masked_percentile(values, percentile, mask).item() == pytest.approx(expected, abs=1e-12)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("percentile", [0, 33.3, 100])
def test_percentiles_on_a_device_that_nothing_waits_for(percentile: float) -> None:
    values = torch.randn(4, 5, 6, generator=torch.Generator().manual_seed(1))
    for mask in (None, values > -0.5):
        on_device = masked_percentile(values.cuda(), percentile, None if mask is None else mask.cuda())
        assert on_device.item() == pytest.approx(masked_percentile(values, percentile, mask).item(), abs=1e-6)


def test_percentiles_beyond_the_limit_of_torch_quantile() -> None:
    values = torch.zeros(2**24 + 3)
    values[:4] = 1.0
    assert masked_percentile(values, 100).item() == 1.0
    assert masked_percentile(values, 50).item() == 0.0


@pytest.mark.parametrize("percentile", [-1.0, 100.5])
def test_percentiles_out_of_range(percentile: float) -> None:
    with pytest.raises(ValueError, match="percentile must be"):
        masked_percentile(torch.zeros(3), percentile)


@pytest.mark.parametrize(
    ("percentile", "delta_a", "delta_b", "ignored"),
    [
        (20, 0.170331, 0.180173, [0, 1, 1, 1, 1, 0, 1, 0]),
        (50, 0.459018, 0.461556, [0, 0, 1, 1, 1, 0, 0, 0]),
        (70, 0.609073, 0.591977, [0, 0, 1, 1, 0, 0, 0, 0]),
    ],
)
def test_ignored_voxels_hand_values(percentile: float, delta_a: float, delta_b: float, ignored: list[int]) -> None:
    assert masked_percentile(entropy(PROBS_A), percentile).item() == pytest.approx(delta_a, abs=1e-6)
    assert masked_percentile(entropy(PROBS_B), percentile).item() == pytest.approx(delta_b, abs=1e-6)
    found = entropy_ignore_mask(PROBS_A, PROBS_B, percentile)
    assert found.dtype == torch.bool
    assert found.shape == (1, 1, 8)
    assert found.flatten().long().tolist() == ignored


def test_ties_at_zero_are_certain() -> None:
    probs = with_entropies([0, 0, 0, 0, 0, 0, 0.1, 0.5])
    assert entropy_ignore_mask(probs, probs, 50).flatten().long().tolist() == [0, 0, 0, 0, 0, 0, 1, 1]
    saturated = with_entropies([0.0] * 8)
    assert not entropy_ignore_mask(saturated, saturated, 50).any()


PERCENTILES = (0, 20, 40, 60, 80, 90)


@pytest.mark.parametrize("shape", [(2, 3, 9, 8), (2, 2, 6, 5, 4)])
def test_fewer_voxels_are_ignored_at_higher_percentiles(shape: tuple[int, ...]) -> None:
    a = probabilities(*shape)
    b = 0.8 * a + 0.2 * probabilities(*shape, seed=1)
    shares = [entropy_ignore_mask(a, b, k).double().mean().item() for k in PERCENTILES]
    assert shares == sorted(shares, reverse=True)
    assert shares[-1] > 0
    assert all(share <= 1 - k / 100 + 0.01 for share, k in zip(shares, PERCENTILES, strict=True))
    assert not entropy_ignore_mask(a, b, 100).any()


@pytest.mark.parametrize("percentile", [0, 17.25, 50, 99.9, 100])
@pytest.mark.parametrize("masked", [False, True])
def test_percentiles_of_classes_are_numpys_of_their_values(percentile: float, masked: bool) -> None:
    generator = torch.Generator().manual_seed(4)
    values = torch.randn(3, 7, 8, generator=generator, dtype=torch.float64)
    classes = torch.randint(3, (3, 7, 8), generator=generator)
    classes[0, 0, 0] = 3  # a class of one voxel; class 4 has none
    mask = torch.rand(3, 7, 8, generator=generator) > 0.4
    mask[0, 0, 0] = True
    found = class_percentiles(values, classes, 5, percentile, mask if masked else None)
    assert found.shape == (5,)
    for c in range(4):
        members = values[(classes == c) & mask] if masked else values[classes == c]
        assert found[c].item() == pytest.approx(np.percentile(members.numpy(), percentile), abs=1e-12)
    assert found[4] == torch.inf


def test_percentiles_of_classes_where_nothing_counts_and_out_of_range() -> None:
    values, classes = torch.zeros(4), torch.zeros(4, dtype=torch.long)
    nothing = class_percentiles(values, classes, 2, 50, torch.zeros(4, dtype=torch.bool))
    assert nothing.tolist() == [torch.inf, torch.inf]
    with pytest.raises(ValueError, match="percentile must be"):
        class_percentiles(values, classes, 2, 101)


@pytest.mark.parametrize("shape", [(2, 3, 9, 8), (2, 2, 6, 5, 4)])
def test_ignored_voxels_by_class_against_a_loop(shape: tuple[int, ...]) -> None:
    a = probabilities(*shape)
    b = 0.8 * a + 0.2 * probabilities(*shape, seed=1)
    mask = torch.rand(shape[0], 1, *shape[2:], generator=torch.Generator().manual_seed(2)) > 0.2
    high = []
    for probs in (a, b):
        values, guess, marked = entropy(probs), probs.argmax(1), torch.zeros_like(mask[:, 0])
        for c in range(shape[1]):
            members = (guess == c) & mask[:, 0]
            marked |= members & (values > np.percentile(values[members].numpy(), 60))
        high.append(marked)
    assert torch.equal(entropy_ignore_mask(a, b, 60, mask, by_class=True), high[0] & high[1])


def test_a_percentile_for_each_class_keeps_foreground_that_one_percentile_ignores() -> None:
    values = [0.001 * i for i in range(90)] + [0.6 + 0.02 * i for i in range(10)]
    probs = with_entropies(values)
    probs[:, :, :, 90:] = probs[:, :, :, 90:].flip(1)  # the ten uncertain voxels are foreground, the others background
    foreground = probs.argmax(1) == 1
    assert foreground.sum() == 10
    pooled, by_class = (entropy_ignore_mask(probs, probs, 70, by_class=each) for each in (False, True))
    assert (pooled & foreground).sum() == 10
    assert (by_class & foreground).sum() == 3
    assert (by_class & ~foreground).sum() == 27


def test_voxels_that_do_not_count_change_nothing() -> None:
    a, b = probabilities(1, 3, 6, 8), probabilities(1, 3, 6, 8, seed=1)
    mask = torch.ones(1, 1, 6, 8, dtype=torch.bool)
    mask[..., 5:] = False
    found = entropy_ignore_mask(a, b, 40, mask)
    assert torch.equal(found[..., :5], entropy_ignore_mask(a[..., :5], b[..., :5], 40))
    assert not found[..., 5:].any()
    assert not entropy_ignore_mask(a, b, 40, torch.zeros_like(mask)).any()


def test_no_gradient() -> None:
    probs = probabilities(1, 2, 4, 4).requires_grad_()
    assert not entropy_ignore_mask(probs, probs, 50).requires_grad
