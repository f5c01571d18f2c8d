"""Denoising diffusion of label maps: the noise schedule, and sampling in few deterministic steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from nnssl.ingredients.supervised import promote_to_fp32


class DiffusionSchedule:
    """The linear noise schedule, for a network that predicts the noise-free map directly.

    β_t rises linearly; ᾱ_t = Π_{s ≤ t} (1 − β_s). The noised map is y_t = √ᾱ_t·y_0 + √(1 − ᾱ_t)·ε, ε ~ N(0, 1).

    Args:
        num_steps: T >= 1.
        beta_start: β of step 0, in (0, 1).
        beta_end: β of step T − 1, in (0, 1).

    Attributes:
        num_steps: T.
        alpha_bar: (T,), fp64, on the CPU.

    Raises:
        ValueError: `num_steps` is below 1, or a β is outside (0, 1).

    Reference: Ho et al., Denoising diffusion probabilistic models, NeurIPS 2020; Song et al., Denoising diffusion
    implicit models, ICLR 2021, eq. 12 without noise; Li et al., DTLP-Net, arXiv 2508.08549, eq. 1.
    """

    def __init__(self, num_steps: int = 1000, beta_start: float = 1e-4, beta_end: float = 2e-2) -> None:
        if num_steps < 1 or not (0 < beta_start < 1 and 0 < beta_end < 1):
            raise ValueError(
                f"num_steps must be at least 1, both β in (0, 1), got {num_steps}, {beta_start}, {beta_end}"
            )
        self.num_steps = num_steps
        betas = torch.linspace(beta_start, beta_end, num_steps, dtype=torch.float64)
        self.alpha_bar = torch.cumprod(1 - betas, 0)

    def q_sample(self, y0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """Return the noised map y_t.

        Args:
            y0: (B, C, *S), noise-free map in [−1, 1]; receives the gradient.
            t: LongTensor (B,), 0 .. T − 1, the step of each sample.
            noise: (B, C, *S), ε.

        Returns:
            (B, C, *S) in the type of `y0`.
        """
        kept = self.alpha_bar.to(t.device)[t].view(-1, *[1] * (y0.ndim - 1))
        return kept.sqrt().to(y0.dtype) * y0 + (1 - kept).sqrt().to(y0.dtype) * noise

    def ddim_timesteps(self, count: int) -> list[int]:
        """Return `count` steps from 0 to T − 1 at equal distances, rounded, in rising order.

        Raises:
            ValueError: `count` is below 2 or above T.
        """
        if not 2 <= count <= self.num_steps:
            raise ValueError(f"count must be in [2, {self.num_steps}], got {count}")
        return [round(i * (self.num_steps - 1) / (count - 1)) for i in range(count)]

    @torch.no_grad()
    def ddim_sample(
        self,
        predict_x0: Callable[[Tensor, Tensor], Tensor],
        shape: Sequence[int],
        count: int,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return a noise-free map, sampled from pure noise in a few steps without further noise.

        From the last retained step t to the first: x̂_0 = clamp(f(x_t, t), −1, 1),
        ε̂ = (x_t/√ᾱ_t − x̂_0) / √(1/ᾱ_t − 1), and x_s = √ᾱ_s·x̂_0 + √(1 − ᾱ_s)·ε̂ for the retained step s before t.

        Only the current map is kept.

        Args:
            predict_x0: f(x_t (B, C, *S) in fp32, t LongTensor (B,)) -> (B, C, *S), the network's map without noise.
            shape: (B, C, *S).
            count: number of retained steps, see `ddim_timesteps`.
            generator: draws the first map, on the generator's device; None = torch's global generator.
            device: device of the maps; None = that of the generator, or the CPU.

        Returns:
            x̂_0 of step 0, (B, C, *S) in [−1, 1], and the network's output there before the clamp, both in fp32 (or in
            the network's fp64), without a graph.
        """
        drawn_on = generator.device if generator is not None else torch.device("cpu") if device is None else device
        x = torch.randn(list(shape), generator=generator, device=drawn_on).to(drawn_on if device is None else device)
        steps = self.ddim_timesteps(count)[::-1]
        raw = clamped = x
        for step, following in zip(steps, [*steps[1:], None], strict=True):
            t = torch.full((len(x),), step, dtype=torch.long, device=x.device)
            raw = promote_to_fp32(predict_x0(x, t))
            clamped = raw.clamp(-1, 1)
            if following is not None:
                now, after = float(self.alpha_bar[step]), float(self.alpha_bar[following])
                noise = (x / now**0.5 - clamped) / (1 / now - 1) ** 0.5
                x = after**0.5 * clamped + (1 - after) ** 0.5 * noise
        return clamped, raw
