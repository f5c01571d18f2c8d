from __future__ import annotations

import math

import pytest
import torch

from nnssl.ingredients.diffusion import DiffusionSchedule

ALPHA_BAR = [0.9999, 0.87360499, 0.59680883, 0.31862485, 0.13286481]
ALPHA_BAR += [0.04325007, 0.01098423, 0.00217529, 0.00033573, 0.00004036]


def test_the_schedule() -> None:
    schedule = DiffusionSchedule()
    assert schedule.ddim_timesteps(10) == list(range(0, 1000, 111))
    assert schedule.ddim_timesteps(2) == [0, 999]
    assert schedule.alpha_bar.shape == (1000,)
    assert schedule.alpha_bar.dtype == torch.float64
    torch.testing.assert_close(
        schedule.alpha_bar[::111], torch.tensor(ALPHA_BAR, dtype=torch.float64), atol=1e-8, rtol=0
    )
    product = 1.0
    for step in range(1000):
        product *= 1 - (1e-4 + step * (2e-2 - 1e-4) / 999)
    assert schedule.alpha_bar[-1].item() == pytest.approx(product, rel=1e-9)


def test_noised_map() -> None:
    y0, noise = torch.ones(2, 1, 1, 1, dtype=torch.float64), torch.full((2, 1, 1, 1), 0.5, dtype=torch.float64)
    noised = DiffusionSchedule().q_sample(y0, torch.tensor([555, 0]), noise).flatten()
    assert noised[0].item() == pytest.approx(0.6970345, abs=1e-6)
    assert noised[1].item() == pytest.approx(math.sqrt(0.9999) + 0.5 * math.sqrt(0.0001), abs=1e-9)


def test_steps_for_a_constant_prediction(monkeypatch: pytest.MonkeyPatch) -> None:
    """The maps that the network sees, from a first map of ones."""
    monkeypatch.setattr(torch, "randn", lambda *_args, **_options: torch.ones(1, 1, 1, 1, dtype=torch.float64))
    seen = {}

    def predict(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        seen[int(t)] = x.item()
        return torch.full_like(x, 0.5)

    clamped, raw = DiffusionSchedule().ddim_sample(predict, (1, 1, 1, 1), 10)
    assert list(seen) == list(range(999, -1, -111))
    assert seen[999] == 1.0
    assert seen[888] == pytest.approx(1.0058378, abs=1e-6)
    assert seen[777] == pytest.approx(1.0190789, abs=1e-6)
    assert seen[0] == pytest.approx(0.5099434, abs=1e-6)
    assert clamped.item() == raw.item() == 0.5


@pytest.mark.parametrize("size", [(4, 5), (2, 3, 4)])
def test_sample_is_clamped_and_the_last_output_is_not(size: tuple[int, ...]) -> None:
    weight = torch.ones((), requires_grad=True)
    clamped, raw = DiffusionSchedule().ddim_sample(
        lambda x, t: 3 * x * weight + t.view(-1, *[1] * (x.ndim - 1)),
        (2, 3, *size),
        4,
        torch.Generator().manual_seed(0),
    )
    assert clamped.shape == raw.shape == (2, 3, *size)
    assert not raw.requires_grad
    assert raw.abs().max() > 1
    assert torch.equal(clamped, raw.clamp(-1, 1))


def test_a_network_that_knows_the_map_gives_the_map() -> None:
    truth = torch.sign(torch.randn(1, 2, 6, 6, generator=torch.Generator().manual_seed(1)))
    clamped, _ = DiffusionSchedule().ddim_sample(lambda *_: truth, truth.shape, 5)
    assert torch.equal(clamped, truth)


def test_the_generator_decides_the_sample() -> None:
    samples = [
        DiffusionSchedule().ddim_sample(lambda x, _: 0.1 * x, (1, 1, 3, 3), 3, torch.Generator().manual_seed(seed))[0]
        for seed in (0, 0, 1)
    ]
    assert torch.equal(samples[0], samples[1])
    assert not torch.equal(samples[0], samples[2])


@pytest.mark.parametrize("count", [1, 1001])
def test_too_few_or_too_many_steps(count: int) -> None:
    with pytest.raises(ValueError, match="count must be"):
        DiffusionSchedule().ddim_timesteps(count)


@pytest.mark.parametrize("options", [{"num_steps": 0}, {"beta_start": 0.0}, {"beta_end": 1.0}])
def test_impossible_schedules(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="num_steps must be"):
        DiffusionSchedule(**options)  # type: ignore[arg-type]
