from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from nnssl.networks import selective_scan as module
from nnssl.networks.selective_scan import selective_scan, selective_scan_reference

NAMES = ["u", "δ", "A", "B", "C", "D"]


def make(
    shape: tuple[int, int, int | None, int, int], dtype: torch.dtype = torch.float64, decay: float = 2.0
) -> list[Tensor]:
    """Return u, δ, A, B, C, D for batch, channels, groups (None: 3-D B and C), states, length; δ·|A| up to `decay`."""
    batch, channels, groups, states, length = shape
    generator = torch.Generator().manual_seed(7)

    def normal(*size: int) -> Tensor:
        return torch.randn(size, generator=generator, dtype=torch.float64)

    delta = torch.rand((batch, channels, length), generator=generator, dtype=torch.float64) + 1e-3
    A = -decay * torch.rand((channels, states), generator=generator, dtype=torch.float64)
    weights = (batch, states, length) if groups is None else (batch, groups, states, length)
    inputs = [normal(batch, channels, length), delta, A, normal(*weights), normal(*weights), normal(channels)]
    return [x.to(dtype).requires_grad_() for x in inputs]


def naive(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor) -> Tensor:
    """Return y, one channel and one step after the other, with the group of each channel looked up."""
    B, C = (x if x.ndim == 4 else x[:, None] for x in (B, C))
    share = u.shape[1] // B.shape[1]
    rows = []
    for d in range(u.shape[1]):
        h, ys = torch.zeros_like(B[:, 0, :, 0]), []
        for t in range(u.shape[2]):
            step, value = delta[:, d, t, None], u[:, d, t, None]
            h = (step * A[d]).exp() * h + step * B[:, d // share, :, t] * value
            ys.append((C[:, d // share, :, t] * h).sum(1) + D[d] * u[:, d, t])
        rows.append(torch.stack(ys, 1))
    return torch.stack(rows, 1)


def values_and_gradients(y: Tensor, inputs: list[Tensor]) -> list[Tensor]:
    weight = torch.randn(y.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    return [y.detach(), *torch.autograd.grad(y, inputs, weight.to(y.dtype))]


def check(found: list[Tensor], expected: list[Tensor], tolerance: float) -> None:
    for name, ours, theirs in zip(["y", *NAMES], found, expected, strict=True):
        scale = theirs.abs().max().item()
        assert ours.shape == theirs.shape, name
        assert (ours.double() - theirs).abs().max().item() <= tolerance * max(scale, 1e-30), name


def chunks_of(steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BUFFER", 1)
    monkeypatch.setattr(module, "LEAST_STEPS", steps)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
@pytest.mark.parametrize(
    ("shape", "chunk", "decay"),
    [
        ((2, 4, None, 3, 11), 4, 2.0),  # ragged: chunks of 4, 4 and 3 steps
        ((2, 6, 3, 2, 12), 4, 2.0),  # three groups of two channels, L a multiple of the chunk
        ((1, 3, 3, 4, 9), 2, 0.01),  # a group a channel, and a state that forgets little
        ((3, 2, 1, 1, 10), 3, 50.0),
        ((2, 3, None, 2, 1), 4, 2.0),
        ((1, 2, 2, 3, 7), 1, 2.0),
        ((2, 4, 2, 3, 13), None, 2.0),  # the chunk as it comes
    ],
)
def test_values_and_gradients_are_those_of_the_reference(
    shape: tuple[int, int, int | None, int, int],
    chunk: int | None,
    decay: float,
    dtype: torch.dtype,
    tolerance: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if chunk is not None:
        chunks_of(chunk, monkeypatch)
    inputs = make(shape, dtype, decay)
    exact = [x.detach().double().requires_grad_() for x in inputs]
    y = selective_scan(*inputs)
    assert y.dtype == dtype
    check(values_and_gradients(y, inputs), values_and_gradients(selective_scan_reference(*exact), exact), tolerance)


@pytest.mark.parametrize("shape", [(2, 4, None, 3, 7), (2, 6, 3, 2, 8), (1, 3, 3, 4, 5), (3, 2, 1, 1, 1)])
def test_the_reference_against_a_loop_over_channels(shape: tuple[int, int, int | None, int, int]) -> None:
    inputs = make(shape)
    expected = values_and_gradients(naive(*inputs), inputs)
    check(values_and_gradients(selective_scan_reference(*inputs), inputs), expected, 1e-12)


@pytest.mark.parametrize("selective_scan", [selective_scan, selective_scan_reference])
def test_hand_values(selective_scan: Callable[..., Tensor]) -> None:
    rows = [[1.0, 2.0, -1.0], [0.5, 0.2, 0.1], [1.0, 0.5, 2.0], [1.0, 1.0, -1.0]]
    u, delta, B, C = (torch.tensor([[row]], dtype=torch.float64) for row in rows)
    A, D = -torch.ones(1, 1, dtype=torch.float64), torch.full((1,), 0.5, dtype=torch.float64)
    expected = torch.tensor([[[1, 1.6093654, -0.8513766], [0.5, 0.6093654, 0.3513766]]], dtype=torch.float64)
    torch.testing.assert_close(selective_scan(u, delta, A, B, C, D), expected[:, :1], atol=1e-7, rtol=0)
    states = selective_scan(u, delta, A, B, torch.ones_like(C), torch.zeros_like(D))
    torch.testing.assert_close(states, expected[:, 1:], atol=1e-7, rtol=0)


def test_gradcheck(monkeypatch: pytest.MonkeyPatch) -> None:
    chunks_of(2, monkeypatch)
    inputs = make((1, 2, 2, 2, 5))
    assert torch.autograd.gradcheck(selective_scan, inputs)
    (grad,) = torch.autograd.grad(selective_scan(*inputs).square().sum(), inputs[:1], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


@pytest.mark.parametrize("layout", ["time-major", "channels last", "expanded"])
def test_any_memory_layout_and_inputs_stay_as_they_are(layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    chunks_of(4, monkeypatch)
    inputs = [x.detach() for x in make((2, 4, 2, 3, 10))]
    if layout == "expanded":
        inputs = [x[:1].expand(x.shape) for x in inputs]
    else:
        order = (2, 0, 1) if layout == "time-major" else (0, 2, 1)
        back = tuple(order.index(axis) for axis in range(3))
        inputs[:2] = [x.permute(order).contiguous().permute(back) for x in inputs[:2]]
    leaves = [x.requires_grad_() for x in inputs]
    plain = [x.detach().clone(memory_format=torch.contiguous_format).requires_grad_() for x in inputs]
    ones = torch.ones((), dtype=torch.float64).expand(2, 4, 10)  # a gradient without memory of its own
    for weight in (torch.randn(10, 2, 4, dtype=torch.float64).permute(1, 2, 0), ones):
        results = []
        for group in (leaves, plain):
            y = selective_scan(*group)
            results.append([y.detach(), *torch.autograd.grad(y, group, weight)])
        check(*results, 1e-12)
    assert all(torch.equal(x, old) for x, old in zip(leaves, plain, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_full_precision_inside_autocast(dtype: torch.dtype) -> None:
    inputs = make((2, 4, 2, 3, 9), dtype)
    plain = [x.detach().float().requires_grad_() for x in inputs]
    expected = values_and_gradients(selective_scan(*plain), plain)
    with torch.autocast("cpu", torch.bfloat16):
        found = values_and_gradients(selective_scan(*inputs), inputs)
    assert found[0].dtype == torch.float32
    assert all(torch.equal(ours, theirs.to(ours.dtype)) for ours, theirs in zip(found, expected, strict=True))


def test_only_wanted_gradients_reach_the_inputs() -> None:
    inputs = [x.detach() for x in make((1, 2, 1, 2, 4))]
    assert not selective_scan(*inputs).requires_grad
    inputs[2].requires_grad_()
    selective_scan(*inputs).sum().backward()
    assert [x.grad is not None for x in inputs] == [name == "A" for name in NAMES]


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("u", (2, 4)),
        ("u", (2, 4, 6)),
        ("δ", (1, 4, 5)),
        ("A", (4,)),
        ("A", (3, 3)),
        ("B", (2, 2, 4, 5)),
        ("B", (2, 3, 3, 5)),
        ("C", (2, 3, 5)),
        ("D", (3,)),
    ],
)
def test_wrong_shapes(name: str, size: tuple[int, ...]) -> None:
    inputs = dict(zip(NAMES, make((2, 4, 2, 3, 5)), strict=True))
    with pytest.raises(ValueError, match="shapes do not fit together"):
        selective_scan(*{**inputs, name: torch.ones(size)}.values())


def test_groups_must_divide_the_channels() -> None:
    with pytest.raises(ValueError, match="shapes do not fit together"):
        selective_scan(*make((1, 4, 3, 2, 5)))


def test_backends_that_are_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = make((1, 2, 1, 2, 3))
    monkeypatch.setitem(sys.modules, "mamba_ssm", None)
    with pytest.raises(ImportError, match="mamba_ssm"):
        selective_scan(*inputs, backend="mamba_ssm")
    with pytest.raises(ValueError, match="got 'Triton'"):
        selective_scan(*inputs, backend="Triton")


@pytest.mark.parametrize(
    ("cuda", "installed", "best"),
    [
        (True, {"mamba_ssm", "selective_scan_cuda", "triton"}, "mamba_ssm"),
        (True, {"mamba_ssm", "triton"}, "triton"),  # mamba_ssm was built without its CUDA part
        (True, {"triton"}, "triton"),
        (True, set(), "chunked"),
        (False, {"mamba_ssm", "triton"}, "chunked"),
    ],
)
def test_automatic_choice(cuda: bool, installed: set[str], best: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_is_installed", installed.__contains__)
    assert module._choose_backend(cuda) == best
    inputs = make((1, 2, 1, 2, 3))
    assert torch.equal(selective_scan(*inputs), selective_scan(*inputs, backend="chunked"))


def test_importing_needs_neither_triton_nor_mamba_ssm(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("triton", "mamba_ssm", "nnssl.networks.scan_triton"):
        monkeypatch.setitem(sys.modules, name, None)  # an import of it raises ImportError
    spec = importlib.util.spec_from_file_location("another_selective_scan", module.__file__)
    another = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(another)
    inputs = make((1, 2, 1, 2, 3))
    assert torch.equal(another.selective_scan(*inputs), selective_scan(*inputs))
    assert not another._is_installed("triton")
    assert another._is_installed("torch")


class Largest(TorchDispatchMode):
    """Keep the greatest number of elements that an operation returned."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for x in result if isinstance(result, tuple | list) else [result]:
            if isinstance(x, Tensor):
                self.numel = max(self.numel, x.numel())
        return result


def test_memory_is_linear_and_free_of_the_states(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BUFFER", 1)  # the shortest chunks, so the most states at their ends
    monkeypatch.setattr(module, "LEAST_STEPS", 16)
    saved = []
    for length in (64, 128, 192):
        inputs = make((1, 32, 1, 16, length), torch.float32)
        kept: dict[int, int] = {}

        def pack(x: Tensor, kept: dict[int, int] = kept) -> Tensor:
            kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
            return x

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x), Largest() as largest:
            y = selective_scan(*inputs)
            torch.autograd.grad(y, inputs, torch.ones_like(y))
        saved.append(sum(kept.values()))
        assert sum(kept.values()) <= 1.5 * sum(x.untyped_storage().nbytes() for x in inputs)
        assert largest.numel <= 5 * y.numel()  # all states are 16 times y
    assert saved[2] - saved[1] == saved[1] - saved[0] > 0


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("backend", ["triton", pytest.param("mamba_ssm", marks=pytest.mark.mamba)])
@pytest.mark.parametrize("groups", [1, 6])
def test_backends_agree_on_a_gpu(backend: str, groups: int) -> None:
    pytest.importorskip(backend)
    inputs = [x.detach().cuda().requires_grad_() for x in make((2, 96, groups, 16, 300), torch.float32)]

    def run(name: str) -> list[Tensor]:
        y = selective_scan(*inputs, backend=name)
        return [y.detach(), *torch.autograd.grad(y, inputs, torch.ones_like(y))]

    expected = run("chunked")
    check(run(backend), [x.double() for x in expected], 1e-4)
    assert torch.equal(selective_scan(*inputs), selective_scan(*inputs, backend=module._choose_backend(True)))
