from __future__ import annotations

import math

import pytest
import torch

from nnssl.ingredients import propagation
from nnssl.ingredients.propagation import correlation_propagate, correlation_propagate_reference

E1 = torch.tensor([[[1.0, 0, 0], [0, 1, 0]]], dtype=torch.float64)
E2, VALUES = 2 * E1, 3 * E1
EXPECTED = {
    ("row", "inside"): [[2.0185254, 0.4907373, 0.4907373], [0.4907373, 2.0185254, 0.4907373]],
    ("gather", "inside"): [[2.0185254, 0.4907373, 1], [0.4907373, 2.0185254, 1]],
    ("row", "outside"): [[1.6694495, 0.2259354, 0.2259354], [0.2259354, 1.6694495, 0.2259354]],
}
forms = pytest.mark.parametrize("form", ["row", "gather"])
scales = pytest.mark.parametrize("scale", ["inside", "outside"])


@pytest.mark.parametrize("options", EXPECTED)
def test_hand_values(options: tuple[str, str]) -> None:
    result = correlation_propagate(E1, E2, VALUES, *options)
    expected = torch.tensor([EXPECTED[options]], dtype=torch.float64)
    torch.testing.assert_close(result, expected, atol=1e-6, rtol=0)


def loop(e1: torch.Tensor, e2: torch.Tensor, values: torch.Tensor, form: str) -> torch.Tensor:
    """Return the result of one sample, one pair after the other."""
    count, depth = e1.shape[1], e1.shape[0]
    pairs = [
        [sum(e1[d, i] * e2[d, j] for d in range(depth)) / math.sqrt(depth) for j in range(count)] for i in range(count)
    ]
    result = torch.zeros_like(values)
    for i in range(count):
        for j in range(count):
            line = pairs[i] if form == "row" else [pairs[k][j] for k in range(count)]
            result[:, j] += values[:, i] * math.exp(pairs[i][j]) / sum(math.exp(s) for s in line)
    return result


@pytest.fixture
def tensors() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(2, depth, 7, generator=generator, dtype=torch.float64) for depth in (3, 3, 5)]


@forms
def test_against_loops_over_pairs(form: str, tensors: list[torch.Tensor]) -> None:
    expected = torch.stack([loop(*sample, form) for sample in zip(*tensors, strict=True)])
    torch.testing.assert_close(correlation_propagate(*tensors, form), expected)


@pytest.mark.parametrize("pairs", [1, 14, 56, 2**18], ids="{} pairs a chunk".format)
@scales
@forms
def test_values_and_gradients_do_not_depend_on_the_chunks(
    form: str, scale: str, pairs: int, tensors: list[torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(propagation.CHUNK_VALUES, "cpu", pairs)
    inputs = [x.requires_grad_() for x in tensors]
    factor = torch.randn(2, 5, 7, dtype=torch.float64)
    ours, theirs = (
        function(*inputs, form, scale) for function in (correlation_propagate, correlation_propagate_reference)
    )
    torch.testing.assert_close(ours, theirs)
    gradients = [torch.autograd.grad(z, inputs, factor) for z in (ours, theirs)]
    torch.testing.assert_close(*gradients)
    assert all(gradient.abs().max() > 0 for gradient in gradients[0])


@forms
def test_gradients_against_finite_differences(form: str, tensors: list[torch.Tensor]) -> None:
    small = [x[:, :, :4].requires_grad_() for x in tensors]
    assert torch.autograd.gradcheck(lambda *inputs: correlation_propagate(*inputs, form), small)


def test_what_each_form_keeps(tensors: list[torch.Tensor]) -> None:
    values = tensors[2]
    row, gather = (correlation_propagate(*tensors, form) for form in ("row", "gather"))
    torch.testing.assert_close(row.sum(2), values.sum(2))
    assert not torch.allclose(row.sum(1), gather.sum(1))
    assert (gather <= values.amax(2, keepdim=True) + 1e-9).all()
    assert (gather >= values.amin(2, keepdim=True) - 1e-9).all()


@forms
def test_the_order_of_the_places_does_not_matter(form: str, tensors: list[torch.Tensor]) -> None:
    order = torch.randperm(7, generator=torch.Generator().manual_seed(3))
    shuffled = correlation_propagate(*(x[:, :, order] for x in tensors), form)
    torch.testing.assert_close(shuffled, correlation_propagate(*tensors, form)[:, :, order])


@forms
def test_large_products_and_half_precision(form: str) -> None:
    e1, e2, values = (torch.randn(1, 4, 9, generator=torch.Generator().manual_seed(s)) for s in range(3))
    assert correlation_propagate(100 * e1, 100 * e2, values, form).isfinite().all()
    result = correlation_propagate(e1.bfloat16(), e2.bfloat16(), values.bfloat16(), form)
    assert result.dtype == torch.float32
    torch.testing.assert_close(result, correlation_propagate(e1, e2, values, form), atol=0.05, rtol=0.05)


def test_the_map_is_never_whole_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []
    softmax = torch.softmax

    def watch(x: torch.Tensor, *args: int, out: torch.Tensor) -> torch.Tensor:
        sizes.append(x.numel())
        return softmax(x, *args, out=out)

    monkeypatch.setattr(torch, "softmax", watch)
    monkeypatch.setitem(propagation.CHUNK_VALUES, "cpu", 1000)
    inputs = [torch.randn(1, 2, 100, requires_grad=True) for _ in range(3)]
    correlation_propagate(*inputs).sum().backward()
    assert len(sizes) == 20  # 10 rows of 100 pairs at a time, in both passes
    assert max(sizes) == 1000


@pytest.mark.parametrize("options", [("column", "inside"), ("row", "none")])
def test_unknown_options(options: tuple[str, str]) -> None:
    with pytest.raises(ValueError, match="must be row or gather"):
        correlation_propagate(E1, E2, VALUES, *options)
