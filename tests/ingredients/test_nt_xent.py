from __future__ import annotations

import math

import pytest
import torch

from nnssl.ingredients.contrastive import nt_xent


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
