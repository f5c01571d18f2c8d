"""The kernels under Triton's interpreter on the CPU, compiled for a GPU, and on one; all of it needs Triton."""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from nnssl.networks import scan_triton
from nnssl.networks.selective_scan import selective_scan_reference

needs_gpu = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


@contextlib.contextmanager
def fresh_triton(interpret: bool) -> Iterator[Any]:
    """Import Triton anew, as it reads TRITON_INTERPRET while it is imported, and make the kernels anew with it."""

    def loaded() -> list[str]:
        return [name for name in sys.modules if name.split(".")[0] == "triton" and not name.startswith("triton._C")]

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", str(int(interpret)))
        for name in loaded():
            patch.delitem(sys.modules, name)
        try:
            scan_triton._kernels.cache_clear()
            yield pytest.importorskip("triton")
        finally:
            scan_triton._kernels.cache_clear()
            for name in loaded():
                del sys.modules[name]


@pytest.fixture(scope="module", params=["interpreter", pytest.param("cuda", marks=needs_gpu)])
def device(request: pytest.FixtureRequest) -> Iterator[torch.device]:
    interpret = request.param == "interpreter"
    with fresh_triton(interpret):
        yield torch.device("cpu" if interpret else "cuda")


def make(batch: int, channels: int, groups: int, states: int, length: int, decay: float = 1.0) -> list[Tensor]:
    """Return u, δ, A, B, C, D in float32; δ·|A| reaches `decay`."""
    generator = torch.Generator().manual_seed(11)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    delta = torch.rand((batch, channels, length), generator=generator) + 1e-3
    A = -decay * torch.rand((channels, states), generator=generator)
    weights = [normal(batch, groups, states, length) for _ in range(2)]
    return [normal(batch, channels, length), delta, A, *weights, normal(channels)]


def reference_states(inputs: list[Tensor]) -> Tensor:
    """Return h_0 … h_{L−1}, (B, D, L, N): y of the reference is state n where C picks this state and D is 0."""
    u, delta, A, B, C, D = inputs
    states = []
    for n in range(A.shape[1]):
        pick = torch.zeros_like(C)
        pick[:, :, n] = 1.0
        states.append(selective_scan_reference(u, delta, A, B, pick, torch.zeros_like(D)))
    after = torch.stack(states, -1)
    return torch.cat([torch.zeros_like(after[:, :, :1]), after[:, :, :-1]], 2)


def check(inputs: list[Tensor], chunk: int, device: torch.device, tolerance: float = 1e-5) -> None:
    """Compare y, the states and the six gradients with the reference in float64 and its autograd."""
    exact = [x.double().requires_grad_() for x in inputs]
    y, states = selective_scan_reference(*exact), reference_states(exact)
    grad_y = torch.randn(y.shape, generator=torch.Generator().manual_seed(5))
    expected = [y, states[:, :, ::chunk], *torch.autograd.grad(y, exact, grad_y.double())]
    moved = [x.to(device) for x in inputs]
    found = scan_triton.forward(*moved, chunk=chunk)
    found += scan_triton.backward(grad_y.to(device), *moved, found[1], chunk=chunk)
    for name, ours, theirs in zip(["y", "h", "u", "δ", "A", "B", "C", "D"], found, expected, strict=True):
        limit = tolerance * max(1.0, theirs.abs().max().item())
        torch.testing.assert_close(
            ours.cpu().double(),
            theirs.detach(),
            rtol=tolerance,
            atol=limit,
            msg=lambda text, name=name: f"{name} {text}",
        )


@pytest.mark.parametrize("programs", [scan_triton.PROGRAMS, 1], ids=["channels apart", "channels in turn"])
@pytest.mark.parametrize(
    ("shape", "chunk", "decay"),
    [
        ((2, 4, 2, 3, 13), 4, 1.0),  # two groups, N no power of two, L no multiple of the chunk
        ((1, 2, 2, 4, 8), 4, 1.0),  # one channel per group, L a multiple of the chunk
        ((2, 3, 1, 2, 7), 16, 1.0),  # L shorter than the chunk
        ((1, 2, 1, 1, 1), 4, 1.0),
        ((1, 2, 2, 3, 11), 4, 50.0),
        ((1, 2, 1, 2, 11), 4, 1e-3),  # the state forgets little
    ],
)
def test_against_the_reference(
    shape: tuple[int, int, int, int, int],
    chunk: int,
    decay: float,
    programs: int,
    device: torch.device,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(scan_triton, "PROGRAMS", programs)
    check(make(*shape, decay=decay), chunk, device)


def test_hand_values(device: torch.device) -> None:
    rows = [[1.0, 2.0, -1.0], [0.5, 0.2, 0.1], [1.0, 0.5, 2.0], [1.0, 1.0, -1.0]]
    u, delta, B, C = (torch.tensor(row, device=device) for row in rows)
    A, D = torch.full((1, 1), -1.0, device=device), torch.full((1,), 0.5, device=device)
    y, states = scan_triton.forward(u[None, None], delta[None, None], A, B[None, None, None], C[None, None, None], D, 2)
    torch.testing.assert_close(y.flatten().cpu(), torch.tensor([1.0, 1.6093654, -0.8513766]))
    torch.testing.assert_close(states.flatten().cpu(), torch.tensor([0.0, 0.6093654]))


def test_compiles_without_a_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The compiler refuses some Python that the interpreter runs; a launch only compiles here, for an A100."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    made = []

    class Kernel:
        def __init__(self, kernel: Any) -> None:
            self.kernel = kernel

        def __getitem__(self, grid: tuple[int, ...]) -> Any:
            return lambda *args, **named: made.append(self.kernel.warmup(*args, grid=grid, **named))

    with fresh_triton(interpret=False) as triton, monkeypatch.context() as patch:
        target = importlib.import_module("triton.backends.compiler").GPUTarget("cuda", 80, 32)
        driver = {"target": lambda: target, "device": lambda: 0, "stream": lambda _: 0}
        triton.runtime.driver.set_active(SimpleNamespace(**{f"get_current_{name}": f for name, f in driver.items()}))
        kernels = tuple(map(Kernel, scan_triton._kernels()))
        patch.setattr(scan_triton, "_kernels", lambda: kernels)
        inputs = make(1, 4, 2, 16, 70)
        y, states = scan_triton.forward(*inputs)
        scan_triton.backward(y, *inputs, states)
    assert [kernel.metadata.name for kernel in made] == ["_boundaries", "_outputs", "_boundaries", "_gradients"]
    assert all("ptx" in kernel.asm for kernel in made)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(
    ("shape", "decay"), [((2, 192, 6, 16, 1000), 2.0), ((1, 64, 2, 20, 130), 50.0), ((1, 8, 1, 64, 257), 0.1)]
)
def test_sizes_of_a_network(shape: tuple[int, int, int, int, int], decay: float) -> None:
    pytest.importorskip("triton")
    inputs = make(*shape, decay=decay)
    check(inputs, scan_triton.CHUNK, torch.device("cuda"), tolerance=3e-5)
    inputs = [x.cuda() for x in inputs]
    runs = []
    for _ in range(2):
        y, states = scan_triton.forward(*inputs)
        runs.append((y, states, *scan_triton.backward(torch.ones_like(y), *inputs, states)))
    assert all(torch.equal(first, second) for first, second in zip(*runs, strict=True))


def test_importing_needs_no_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "triton", None)
    module = importlib.reload(scan_triton)
    with pytest.raises(ImportError):
        module._kernels()
