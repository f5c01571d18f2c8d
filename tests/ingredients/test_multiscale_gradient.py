from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from nnssl.ingredients.consistency import multiscale_consistency
from nnssl.ingredients.multiscale_gradient import multiscale_consistency_reference, multiscale_value_and_gradients

FOREGROUNDS = [(0.9, 0.3), (0.8, 0.4), (0.6, 0.2), (0.5, 0.5)]
PRESETS = ["paper", "urpc", "code"]
HAND_VALUES = {"paper": 0.082347, "urpc": 0.068746, "code": 0.050424}
HAND_GRADIENTS = {
    "paper": [(0.023310, -0.011925), (0.018953, 0.012324), (-0.025107, -0.027092), (-0.049991, 0.038608)],
    "urpc": [(0.027158, -0.008194), (0.013663, 0.010440), (-0.022812, -0.023760), (-0.041340, 0.029640)],
}


def foreground_logits() -> list[Tensor]:
    return [torch.tensor(p, dtype=torch.float64).logit()[None, None].requires_grad_() for p in FOREGROUNDS]


def two_classes(z: Tensor) -> Tensor:
    return torch.cat([torch.zeros_like(z), z], 1)


def naive(probs: Tensor, preset: str, mask: Tensor) -> float:
    """Loops over scales and voxels; probs (S, B, R, K, *S) with K classes of each of R problems."""
    scales, classes = len(probs), probs.shape[3]
    mean, total = probs.mean(0), 0.0
    voxels = [(b, *index) for b, _, *index in mask.nonzero().tolist()]
    for s in range(scales):
        weighted = weights = divergences = 0.0
        for b, *v in voxels:
            errors, kls = [], []
            for r in range(probs.shape[2]):
                p = [probs[(s, b, r, k, *v)].item() for k in range(classes)]
                q = [mean[(b, r, k, *v)].item() for k in range(classes)]
                pairs = list(zip(p, q, strict=True))
                power = 3 if preset == "code" else 2
                errors.append(sum((x - y) ** power for x, y in pairs) / (1 if preset == "paper" else classes))
                kls.append(sum(x * math.log(x / y) if preset == "paper" else y * math.log(y / x) for x, y in pairs))
            error, kl = sum(errors) / len(errors), sum(kls) / len(kls)
            weighted += error * math.exp(-kl)
            weights += math.exp(-kl)
            divergences += kl
        total += weighted / weights + divergences / len(voxels)
    return total / scales


@pytest.mark.parametrize("preset", PRESETS)
def test_hand_values_of_softmax_and_of_regions(preset: str) -> None:
    logits = foreground_logits()
    value = multiscale_consistency([two_classes(z) for z in logits], preset)
    assert value.item() == pytest.approx(HAND_VALUES[preset], abs=1e-6)
    assert multiscale_consistency(logits, preset, regions=True).item() == pytest.approx(value.item(), abs=1e-12)


@pytest.mark.parametrize("preset", HAND_GRADIENTS)
def test_hand_gradients(preset: str) -> None:
    logits = foreground_logits()
    multiscale_consistency([two_classes(z) for z in logits], preset).backward()
    for z, expected in zip(logits, HAND_GRADIENTS[preset], strict=True):
        assert z.grad.flatten().tolist() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize(("shape", "regions"), [((2, 3, 3, 4), False), ((2, 4, 2, 3, 2), False), ((2, 2, 4, 3), True)])
def test_against_loops(preset: str, shape: tuple[int, ...], regions: bool) -> None:
    generator = torch.Generator().manual_seed(1)
    logits = [2 * torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(3)]
    mask = torch.rand(shape[0], 1, *shape[2:], generator=generator) > 0.4
    z = torch.stack(logits)
    probs = torch.stack([(-z).sigmoid(), z.sigmoid()], 3) if regions else z.softmax(2).unsqueeze(2)
    for region, given in ((mask, mask), (torch.ones_like(mask), None)):
        value = multiscale_consistency(logits, preset, given, regions).item()
        assert value == pytest.approx(naive(probs, preset, region), abs=1e-7)


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize(("shape", "regions"), [((2, 3, 3, 4), False), ((2, 4, 2, 3, 2), False), ((2, 2, 4, 3), True)])
@pytest.mark.parametrize("mask", ["none", "some", "shared", "empty"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_value_and_gradients_are_those_of_the_reference(
    preset: str, shape: tuple[int, ...], regions: bool, mask: str, dtype: torch.dtype, tolerance: float
) -> None:
    generator = torch.Generator().manual_seed(4)
    logits = [2 * torch.randn(shape, generator=generator).to(dtype).requires_grad_() for _ in range(3)]
    some = torch.rand(shape[0], 1, *shape[2:], generator=generator) > 0.4
    given = {"none": None, "some": some, "shared": some[:1], "empty": torch.zeros_like(some)}[mask]
    expected = multiscale_consistency_reference(logits, preset, given, regions)
    value, gradients = multiscale_value_and_gradients(logits, preset, given, regions)
    torch.testing.assert_close(value, expected, atol=tolerance, rtol=tolerance)
    assert bool(value) == (mask != "empty")
    for found, wanted in zip(gradients, torch.autograd.grad(expected, logits), strict=True):
        torch.testing.assert_close(found, wanted, atol=tolerance, rtol=tolerance)
        assert bool(wanted.any()) == (mask != "empty")
    loss = multiscale_consistency(logits, preset, given, regions)
    assert torch.equal(loss, value)
    for found, wanted in zip(torch.autograd.grad(loss, logits), gradients, strict=True):
        assert torch.equal(found, wanted)


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize(("shape", "regions"), [((2, 3, 2, 3), False), ((1, 4, 2, 3, 2), False), ((2, 2, 3, 2), True)])
def test_gradient_against_differences(preset: str, shape: tuple[int, ...], regions: bool) -> None:
    generator = torch.Generator().manual_seed(3)
    logits = [2 * torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_() for _ in range(3)]
    mask = torch.rand(shape[0], 1, *shape[2:], generator=generator) > 0.3
    for given in (mask, mask[:1], None):
        assert torch.autograd.gradcheck(
            lambda *z, given=given: multiscale_consistency(list(z), preset, given, regions), logits
        )


def test_the_cube_cancels_for_two_classes_only() -> None:
    generator = torch.Generator().manual_seed(2)
    for classes, equal in ((2, True), (3, False)):
        logits = [torch.randn(1, classes, 6, 6, generator=generator, dtype=torch.float64) for _ in range(4)]
        logs = torch.stack(logits).log_softmax(2)
        mean = logs.exp().mean(0)
        divergence = (mean * (mean.log() - logs)).sum(2).mean()
        value = multiscale_consistency(logits, "code")
        assert (abs(value.item() - divergence.item()) < 1e-12) == equal


@pytest.mark.parametrize("preset", ["paper", "urpc"])
@pytest.mark.parametrize("classes", [2, 4])
def test_not_negative_and_zero_where_all_agree(preset: str, classes: int) -> None:
    for seed in range(5):
        generator = torch.Generator().manual_seed(seed)
        logits = [5 * torch.randn(2, classes, 5, 5, generator=generator) for _ in range(4)]
        assert multiscale_consistency(logits, preset) > 0
        assert multiscale_consistency(logits[:1] * 4, preset).item() == pytest.approx(0.0, abs=1e-6)
        assert multiscale_consistency(logits[:1], preset).item() == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("regions", [False, True])
def test_extreme_logits_stay_finite(preset: str, regions: bool) -> None:
    signs = torch.tensor([[60.0, -60.0, 60.0, 0.0], [-60.0, 60.0, -60.0, 0.0]])[None]
    logits = [signs.clone().requires_grad_(), (-signs).requires_grad_(), signs.clone().requires_grad_()]
    value = multiscale_consistency(logits, preset, regions=regions)
    value.backward()
    assert value.isfinite()
    assert all(z.grad.isfinite().all() for z in logits)


def test_half_precision_is_taken_to_single() -> None:
    logits = [torch.randn(1, 2, 4, 4, generator=torch.Generator().manual_seed(s)).half() for s in range(2)]
    value = multiscale_consistency(logits)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, multiscale_consistency([z.float() for z in logits]))


def test_empty_mask() -> None:
    logits = [torch.randn(1, 2, 4, 4, requires_grad=True) for _ in range(2)]
    value = multiscale_consistency(logits, mask=torch.zeros(1, 1, 4, 4, dtype=torch.bool))
    value.backward()
    assert value.item() == 0.0
    assert all(not z.grad.any() for z in logits)


def test_unknown_preset() -> None:
    with pytest.raises(ValueError, match="preset must be"):
        multiscale_consistency([torch.zeros(1, 2, 2)], "cube")
