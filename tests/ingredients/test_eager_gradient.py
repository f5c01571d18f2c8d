from __future__ import annotations

import pytest
import torch
from torch import Tensor

from nnssl.ingredients.eager_gradient import attach_gradients, attach_gradients_reference, with_eager_gradient


def loss(a: Tensor, scale: float, b: Tensor, counts: Tensor) -> Tensor:
    return ((a * b).sin().sum(0) * counts).mean() * scale


def arguments(learns_b: bool) -> tuple[Tensor, float, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(2, 3, 4, generator=generator, dtype=torch.float64) for _ in range(2))
    return a.requires_grad_(), 3.0, b.requires_grad_(learns_b), torch.tensor([1.0, 0.0, 1.0, 1.0], dtype=torch.float64)


@pytest.mark.parametrize("learns_b", [True, False])
def test_value_and_gradient_are_those_of_autograd(learns_b: bool) -> None:
    eager, plain = arguments(learns_b), arguments(learns_b)
    found, expected = with_eager_gradient(loss, *eager), loss(*plain)
    assert torch.equal(found.detach(), expected.detach())
    (-2.5 * found).backward()
    (-2.5 * expected).backward()
    assert eager[0].grad is not None
    torch.testing.assert_close(eager[0].grad, plain[0].grad)
    if learns_b:
        torch.testing.assert_close(eager[2].grad, plain[2].grad)
    else:
        assert eager[2].grad is None


@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (2, 2, 3, 4, 2)])
@pytest.mark.parametrize("mask", ["none", "some", "empty"])
def test_gradient_against_differences_and_against_the_plain_call(shape: tuple[int, ...], mask: str) -> None:
    generator = torch.Generator().manual_seed(2)
    a, b = torch.randn((2, *shape), generator=generator, dtype=torch.float64).requires_grad_().unbind(0)
    counts = (torch.rand(shape[0], 1, *shape[2:], generator=generator) > 0.5).double()
    counts = {"none": torch.ones_like(counts), "some": counts, "empty": torch.zeros_like(counts)}[mask]

    def masked(x: Tensor, y: Tensor) -> Tensor:
        return ((x * y).sin() * counts).sum() / counts.sum().clamp_min(1)

    eager, plain = with_eager_gradient(masked, a, b), masked(a, b)
    assert torch.equal(eager, plain)
    for found, expected in zip(torch.autograd.grad(eager, (a, b)), torch.autograd.grad(plain, (a, b)), strict=True):
        torch.testing.assert_close(found, expected)
        assert bool(found.any()) == (mask != "empty")
    leaves = [x.detach().requires_grad_() for x in (a, b)]
    assert torch.autograd.gradcheck(lambda x, y: with_eager_gradient(masked, x, y), leaves)


@pytest.mark.parametrize("shapes", [[(2, 3, 4, 5)], [(1, 2, 3, 4), (1, 2, 2, 3, 2)]])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
def test_attached_gradients_are_those_of_the_reference(shapes: list[tuple[int, ...]], dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(3)
    tensors = [torch.randn(shape, generator=generator).to(dtype).requires_grad_() for shape in shapes]
    wide = torch.promote_types(dtype, torch.float32)
    gradients = [torch.randn(shape, generator=generator).to(wide) for shape in shapes]
    value = torch.tensor(1.25)
    found, expected = (f(value, tensors, gradients) for f in (attach_gradients, attach_gradients_reference))
    assert found.item() == expected.item() == 1.25
    for ours, theirs in zip(*(torch.autograd.grad(-3 * v, tensors) for v in (found, expected)), strict=True):
        assert ours.dtype == dtype
        assert torch.equal(ours, theirs)


def test_no_double_backward() -> None:
    a, scale, b, counts = arguments(learns_b=False)
    (gradient,) = torch.autograd.grad(with_eager_gradient(loss, a, scale, b, counts) ** 2, a, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


def test_one_within_another() -> None:
    def outer(x: Tensor, y: Tensor) -> Tensor:
        mean = (x + y) / 2
        return with_eager_gradient(loss, x, 1.0, mean, y.detach()[0, 0]) + mean.square().sum()

    (a, _, b, _), (c, _, d, _) = arguments(learns_b=True), arguments(learns_b=True)
    with_eager_gradient(outer, a, b).backward()
    outer(c, d).backward()
    torch.testing.assert_close(a.grad, c.grad)
    torch.testing.assert_close(b.grad, d.grad)


def test_nothing_but_the_gradient_is_kept() -> None:
    a, scale, b, counts = arguments(learns_b=False)
    found = with_eager_gradient(loss, a, scale, b, counts)
    assert found.grad_fn is not None
    assert [t.shape for t in found.grad_fn.saved_tensors] == [a.shape]


def test_gradients_too_small_for_half_precision_wait_for_the_factor_of_the_scaler() -> None:
    a = torch.ones(4, dtype=torch.float16, requires_grad=True)
    loss = with_eager_gradient(lambda x: 1e-9 * x.float().sum(), a)
    (2.0**16 * loss).backward()
    assert a.grad is not None
    assert a.grad.dtype == torch.float16
    torch.testing.assert_close(a.grad.float(), torch.full((4,), 2.0**16 * 1e-9), rtol=1e-2, atol=0)


def test_without_gradients_nothing_is_derived() -> None:
    a, scale, b, counts = arguments(learns_b=False)
    with torch.no_grad():
        assert not with_eager_gradient(loss, a, scale, b, counts).requires_grad
    assert not with_eager_gradient(loss, a.detach(), scale, b, counts).requires_grad
