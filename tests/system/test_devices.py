from __future__ import annotations

import pytest
import torch

from nnssl.errors import EnvironmentProblem, UsageError
from nnssl.system.devices import choose_device


@pytest.fixture
def see(monkeypatch: pytest.MonkeyPatch):
    """Return a function that says what torch sees: a number of CUDA devices, and whether there is MPS."""

    def pretend(cuda: int = 0, mps: bool = False) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: cuda)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)

    return pretend


@pytest.mark.parametrize("name", [None, "auto"])
def test_the_best_device_is_chosen(see, name) -> None:
    for cuda, mps, expected in ((1, True, "cuda"), (0, True, "mps"), (0, False, "cpu")):
        see(cuda, mps)
        assert choose_device(name) == torch.device(expected)
    see(mps=True)
    assert choose_device(name, automatic=("cuda", "cpu")) == torch.device("cpu")


def test_a_named_device_is_taken(see) -> None:
    see(cuda=2, mps=True)
    for name in ("cuda", "cuda:1", "mps", "cpu", torch.device("cpu")):
        assert choose_device(name) == torch.device(name)
    assert choose_device("cuda", 2) == torch.device("cuda")


@pytest.mark.parametrize("name", ["cuda", "mps"])
def test_a_missing_device_is_named_with_what_torch_sees(see, name) -> None:
    see()
    with pytest.raises(EnvironmentProblem, match=f"there is no {name} device") as caught:
        choose_device(name, run="do this")
    assert caught.value.where == f"-device {name}"
    assert caught.value.why.endswith("sees: cpu")
    assert caught.value.run == "do this"


def test_too_few_devices(see) -> None:
    see(cuda=2)
    with pytest.raises(EnvironmentProblem, match=r"2 cuda device\(s\), 3 are asked for") as caught:
        choose_device("cuda", 3)
    assert caught.value.run == "-num_gpus 2"
    with pytest.raises(UsageError, match="-num_gpus must be at least 1"):
        choose_device("cpu", 0)
