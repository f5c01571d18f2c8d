from __future__ import annotations

import pytest
import torch

from nnssl.ingredients.consistency import probability_mse, soft_dice_distance


def naive(probs: torch.Tensor, target: torch.Tensor, mask: torch.Tensor) -> float:
    total, count = 0.0, 0.0
    for b in range(probs.shape[0]):
        for index in torch.cartesian_prod(*[torch.arange(n) for n in probs.shape[2:]]).tolist():
            if mask[(b, 0, *index)]:
                p, q = probs[(b, slice(None), *index)], target[(b, slice(None), *index)]
                total += ((p - q) ** 2).mean().item()
                count += 1
    return total / count


@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (2, 2, 3, 4, 2)])
def test_against_a_loop_over_voxels(shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(3)
    probs = torch.rand(shape, generator=generator).softmax(1)
    target = torch.rand(shape, generator=generator).softmax(1)
    mask = torch.rand((shape[0], 1, *shape[2:]), generator=generator) > 0.4
    assert probability_mse(probs, target, mask).item() == pytest.approx(naive(probs, target, mask), rel=1e-5)
    everywhere = torch.ones_like(mask)
    torch.testing.assert_close(probability_mse(probs, target), probability_mse(probs, target, everywhere))


def test_hand_value_and_empty_mask() -> None:
    probs, target = torch.tensor([[[1.0]], [[0.0]]])[None], torch.tensor([[[0.0]], [[0.0]]])[None]
    assert probability_mse(probs, target).item() == 0.5
    nothing = probability_mse(probs.requires_grad_(), target, torch.zeros(1, 1, 1, 1))
    nothing.backward()
    assert nothing.item() == 0.0
    assert torch.equal(probs.grad, torch.zeros_like(probs))


def test_gradient_goes_to_the_student_only() -> None:
    probs, target = torch.rand(1, 2, 4, 4, requires_grad=True), torch.rand(1, 2, 4, 4, requires_grad=True)
    probability_mse(probs, target).backward()
    assert probs.grad.abs().sum() > 0
    assert target.grad is None


def foregrounds() -> tuple[torch.Tensor, torch.Tensor]:
    pair = torch.tensor([[[0.9, 0.2], [0.6, 0.4]], [[0.8, 0.3], [0.3, 0.7]]], dtype=torch.float64)
    first, second = torch.stack([1 - pair, pair], 1).unsqueeze(1)
    return first, second


def naive_dice(probs: torch.Tensor, target: torch.Tensor, form: str) -> float:
    losses = []
    batches = [slice(None)] if form == "squared" else [slice(b, b + 1) for b in range(probs.shape[0])]
    power, epsilon = (2, 1e-10) if form == "squared" else (1, 1e-5)
    for batch in batches:
        for c in range(probs.shape[1]):
            pairs = list(zip(probs[batch, c].flatten().tolist(), target[batch, c].flatten().tolist(), strict=True))
            sizes = sum(p**power + q**power for p, q in pairs)
            losses.append(1 - (2 * sum(p * q for p, q in pairs) + epsilon) / (sizes + epsilon))
    return sum(losses) / len(losses)


@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (3, 2, 3, 4, 2)])
@pytest.mark.parametrize("form", ["squared", "linear"])
def test_soft_dice_against_loops(shape: tuple[int, ...], form: str) -> None:
    generator = torch.Generator().manual_seed(5)
    probs, target = (3 * torch.randn((2, *shape), generator=generator, dtype=torch.float64)).softmax(2)
    assert soft_dice_distance(probs, target, form).item() == pytest.approx(naive_dice(probs, target, form), abs=1e-12)


def test_soft_dice_hand_values() -> None:
    first, second = foregrounds()
    hard = torch.nn.functional.one_hot(second.argmax(1), 2).movedim(-1, 1).double()
    assert soft_dice_distance(first, second).item() == pytest.approx(0.0811731, abs=1e-6)
    assert soft_dice_distance(first, second, "linear").item() == pytest.approx(0.4310766, abs=1e-6)
    assert soft_dice_distance(first, hard).item() == pytest.approx(0.2356944, abs=1e-6)
    assert soft_dice_distance(first[:, 1:], second[:, 1:]).item() == pytest.approx(0.0746269, abs=1e-6)
    assert soft_dice_distance(first[:, 1:], second[:, 1:], "linear").item() == pytest.approx(0.4095228, abs=1e-6)
    assert soft_dice_distance(first.half(), second.half()).dtype == torch.float32


def test_soft_dice_optimum_is_the_target_only_with_squares() -> None:
    target, sharper = foregrounds()[1], foregrounds()[1].square()
    sharper = sharper / sharper.sum(1, keepdim=True)
    assert soft_dice_distance(target, target).item() == pytest.approx(0.0, abs=1e-9)
    assert soft_dice_distance(sharper, target) > 0.01
    assert soft_dice_distance(sharper, target, "linear") < soft_dice_distance(target, target, "linear") - 0.01


@pytest.mark.parametrize("form", ["squared", "linear"])
def test_soft_dice_gradient_goes_to_the_first_prediction_only(form: str) -> None:
    first, second = (probs.requires_grad_() for probs in foregrounds())
    soft_dice_distance(first, second, form).backward()
    assert first.grad.abs().min() > 0
    assert second.grad is None


def test_soft_dice_unknown_form() -> None:
    with pytest.raises(ValueError, match="form must be"):
        soft_dice_distance(*foregrounds(), "squared_batch")
