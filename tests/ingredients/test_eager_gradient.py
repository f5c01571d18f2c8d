from __future__ import annotations

import pytest
import torch
from torch import Tensor

from nnssl.ingredients.eager_gradient import derived_at_once


def loss(a: Tensor, scale: float, b: Tensor, counts: Tensor) -> Tensor:
    return ((a * b).sin().sum(0) * counts).mean() * scale


def arguments(learns_b: bool) -> tuple[Tensor, float, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(2, 3, 4, generator=generator, dtype=torch.float64) for _ in range(2))
    return a.requires_grad_(), 3.0, b.requires_grad_(learns_b), torch.tensor([1.0, 0.0, 1.0, 1.0], dtype=torch.float64)


@pytest.mark.parametrize("learns_b", [True, False])
def test_value_and_gradient_are_those_of_autograd(learns_b: bool) -> None:
    at_once, plain = arguments(learns_b), arguments(learns_b)
    found, expected = derived_at_once(loss, *at_once), loss(*plain)
    assert torch.equal(found.detach(), expected.detach())
    (-2.5 * found).backward()
    (-2.5 * expected).backward()
    assert at_once[0].grad is not None
    torch.testing.assert_close(at_once[0].grad, plain[0].grad)
    if learns_b:
        torch.testing.assert_close(at_once[2].grad, plain[2].grad)
    else:
        assert at_once[2].grad is None


def test_one_within_another() -> None:
    def outer(x: Tensor, y: Tensor) -> Tensor:
        mean = (x + y) / 2
        return derived_at_once(loss, x, 1.0, mean, y.detach()[0, 0]) + mean.square().sum()

    (a, _, b, _), (c, _, d, _) = arguments(learns_b=True), arguments(learns_b=True)
    derived_at_once(outer, a, b).backward()
    outer(c, d).backward()
    torch.testing.assert_close(a.grad, c.grad)
    torch.testing.assert_close(b.grad, d.grad)


def test_nothing_but_the_gradient_is_kept() -> None:
    a, scale, b, counts = arguments(learns_b=False)
    found = derived_at_once(loss, a, scale, b, counts)
    assert found.grad_fn is not None
    assert [t.shape for t in found.grad_fn.saved_tensors] == [a.shape]


def test_gradients_too_small_for_half_precision_wait_for_the_factor_of_the_scaler() -> None:
    a = torch.ones(4, dtype=torch.float16, requires_grad=True)
    loss = derived_at_once(lambda x: 1e-9 * x.float().sum(), a)
    (2.0**16 * loss).backward()
    assert a.grad is not None
    assert a.grad.dtype == torch.float16
    torch.testing.assert_close(a.grad.float(), torch.full((4,), 2.0**16 * 1e-9), rtol=1e-2, atol=0)


def test_without_gradients_nothing_is_derived() -> None:
    a, scale, b, counts = arguments(learns_b=False)
    with torch.no_grad():
        assert not derived_at_once(loss, a, scale, b, counts).requires_grad
    assert not derived_at_once(loss, a.detach(), scale, b, counts).requires_grad
