"""PLGDFTrainer: Wang et al., Pseudo label-guided data fusion and output consistency, BSPC 108 (2025) 107956.

A student θ_s with outputs at S ≤ 4 scales, up-sampled to full size, and a teacher θ_t, its moving average. Each step,
with labelled patches (x_l, y_l), unlabelled ones x_u, and η = clip(0.1·N(0, 1), ±0.2), drawn anew wherever it stands:

1. Copies x̃_k = x_u + η, k = 1..K; pseudo-labels ŷ = argmax_c (1/K)·Σ_k f(x̃_k, θ_t).
2. Mixes x_m = λ'·x̃_k + (1 − λ')·(x_l + η) with λ' = max(λ, 1 − λ), λ ~ Beta(α, α); their label is ŷ (eq. 1-3).
3. One pass of the student over x_l + η, the K mixes, and x_u; P_s = softmax of scale s, P̂ = mean of P_s. With
   ℓ(P, y) = ½·Σ_s [CE(P_s, y) + Dice(P_s, y)] (eq. 10), sharp_T(p)_c = p_c^{1/T} / Σ_j p_j^{1/T}, D_s = KL(P_s‖P̂):
   L_sup = ℓ(P(x_l + η), y_l),  L_semi = ℓ(P(x_m), ŷ),
   L_sharp = mean ‖P_s − sharp_T(P_s)‖² on x_u (eq. 4-5),
   L_consis = mean_s [Σ_v ‖P_s − P̂‖²·e^{−D_s} / Σ_v e^{−D_s} + mean_v D_s] on x_u and x_m (eq. 6-8).
4. L = L_sup + L_semi + w(t)·(L_sharp + L_consis) (eq. 9), w(t) = exp(−5·(1 − t/t_max)²) (eq. 11).
5. θ_t ← α_t·θ_t + (1 − α_t)·θ_s, α_t = min(1 − 1/(t + 1), 0.99).

The student's finest output is deployed. Departures from the paper (P) and from the authors' code (C):
- Student, optimiser, learning rate (polynomial, not constant), augmentations and sampling are nnU-Net's
  (`preset=paper`: the paper's, with `network=vnet_multiscale`). Unlabelled patches get the geometry, and only the noise
  above.
- P prints a sum over voxels outside 1/S for D in eq. 8, 10⁶ times larger than C's mean inside, which is taken here.
- `preset=code` is what C does instead of the equations: the cube instead of the square in eq. 8, which is 0 for two
  classes, with KL(P̂‖P_s); a gradient into sharp_T, which draws uncertain voxels to 0.5; each channel sharpened alone,
  so that more than two classes do not sum to 1; Dice without the factor 2; two updates of the teacher a step; the
  student's tensors shrunk by 2e-4 a step; scales after the second by nearest neighbour; a ramp in 40 stairs.
- P ramps to the last step, C over 6,000 of 15,000, here 0.4 of the run. P does not give α_t, α and K: C's are taken.
- P's algorithm has x_u in L_semi, its text and C have not: not here. C alone has noise on labelled patches: here, too.
- C counts padding, here no unlabelled term does. C picks a checkpoint on the test set; here the last one counts.
- Regions: sigmoids, ŷ > 0.5, each sharpened alone. C works for K = B_l = 2 and two classes; here for any.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from nnssl.config import Value, changed, hyper
from nnssl.ingredients.consistency import multiscale_consistency, sharpening_loss
from nnssl.ingredients.ema import ema_update, shrink, warmed_up_decay
from nnssl.ingredients.mixing import predominant_mixup
from nnssl.ingredients.perturb import add_clipped_noise
from nnssl.ingredients.schedules import gaussian_rampup
from nnssl.networks.outputs import resize_outputs
from nnssl_trainers.frame.architecture import unwrap
from nnssl_trainers.frame.batch import Batch, as_list, full_size_target
from nnssl_trainers.frame.teacher_student import TeacherConfig, TeacherStudentTrainer
from nnssl_trainers.parts.segmentation_loss import SegmentationLoss

UNIT_VARIANCE = ("ZScoreNormalization", "CTNormalization")
EXTRA_DECAY, STAIRS = 2e-4, 40  # of the authors' code
PAPER: dict[str, Value] = {"network": "vnet_multiscale", "optimizer": "sgd", "learning_rate": 0.01, "momentum": 0.9}
PAPER |= {"nesterov": False, "weight_decay": 1e-4, "learning_rate_schedule": "constant", "augmentation": "paper"}
PAPER |= {"rampup_share": 1.0}


@dataclass(frozen=True)
class PLGDFConfig(TeacherConfig):
    """Settings of PLGDF; `preset=code` also changes what no setting names, see the module's docstring."""

    presets: ClassVar[Mapping[str, Mapping[str, Value]]] = {"paper": PAPER, "code": {}}
    deployed: str = changed(TeacherConfig, "deployed", "student")
    ema_decay: float = changed(TeacherConfig, "ema_decay", 0.99, symbol="α_t")
    teacher_mode: str = changed(TeacherConfig, "teacher_mode", "train")
    copies: int = hyper(2, "noisy copies of an unlabelled patch", "K", low=1)
    noise_std: float = hyper(0.1, "standard deviation of the noise, images having 1", "σ", low=0.0)
    noise_limit: float = hyper(0.2, "largest change by noise", low=0.0)
    mix: bool = hyper(True, "mix the noisy copies with labelled patches; off: the copies as they are")
    mix_alpha: float = hyper(0.75, "both parameters of the Beta distribution", "α (eq. 1)", low=0.01)
    scales: int = hyper(4, "largest number of the network's outputs that learn, finest first", "n", low=1)
    semi_weight: float = hyper(1.0, "weight of L_semi", low=0.0)
    sharpening_weight: float = hyper(1.0, "largest weight of L_sharp", "w (eq. 11)", low=0.0)
    temperature: float = hyper(0.1, "temperature of sharpening", "T", low=0.01, high=1.0)
    consistency_weight: float = hyper(1.0, "largest weight of L_consis", "w (eq. 11)", low=0.0)
    rampup_share: float = hyper(0.4, "share of the run over which both weights rise", "t_max", low=0.0, high=1.0)


class PLGDFTrainer(TeacherStudentTrainer[PLGDFConfig]):
    """PLGDF; see the module's docstring for the algorithm and its departures from paper and code."""

    config_class = PLGDFConfig
    unused_heads: ClassVar[bool] = True  # those beyond the learned scales

    @property
    def as_code(self) -> bool:
        """Whether the run does what the authors' code does instead of the equations."""
        return self.config.preset == "code"

    def initialize(self) -> None:
        """Build the networks, the loss of labels and pseudo-labels, and the unit of the noise."""
        super().initialize()
        count, labels = len(getattr(self.loss, "weight_factors", (1.0,))[: self.config.scales]), self.label_manager
        self.segmentation_loss = SegmentationLoss(
            "halved_batch" if self.as_code else "squared_batch", (1.0,) * count, labels.has_regions, labels.ignore_label
        )
        raw = [name not in UNIT_VARIANCE for name in self.configuration_manager.normalization_schemes]
        axes = [1] * len(self.configuration_manager.patch_size)
        self.raw_channels = torch.tensor(raw, device=self.device).view(-1, *axes) if any(raw) else None

    def training_losses(self, batch: Batch) -> dict[str, Tensor]:
        """Return the terms of eq. 9, those with weight 0 left out."""
        c, (raw, _, padded) = self.config, batch.unlabelled
        labelled, mask, copies = self.noisy(batch.image_l), padded.to(raw.dtype), self.noisy(_repeat(raw, c.copies))
        guess = self.guess(copies) if c.semi_weight else None
        mixed = self.mixed(copies, labelled) if c.semi_weight or c.consistency_weight else copies[:0]
        raw = raw if c.sharpening_weight or c.consistency_weight else raw[:0]
        native = as_list(self.network(torch.cat([labelled, mixed, raw])))[: c.scales]
        known, others = (resize_outputs(z, mixed=self.as_code) for z in _split(native, len(labelled)))
        on_mixed, on_raw = _split(others, len(mixed))
        terms = {"supervised": self.segmentation_loss(known, full_size_target(batch), torch.ones_like(mask[:1]))}
        if guess is not None:
            target, counts = _repeat(guess, c.copies), _repeat(mask, c.copies)
            terms["semi"] = c.semi_weight * self.segmentation_loss(on_mixed, target, counts)
        rampup, regions = self.rampup(batch.iteration), self.label_manager.has_regions
        if c.sharpening_weight:
            probs, counts = torch.cat([self.probabilities(z) for z in on_raw]), _repeat(mask, len(others))
            loss = sharpening_loss(probs, c.temperature, not self.as_code, regions or self.as_code, counts)
            terms["sharpening"] = c.sharpening_weight * rampup * loss
        if c.consistency_weight and len(others) > 1:
            counts = _repeat(mask, c.copies + 1)
            loss = multiscale_consistency(others, "code" if self.as_code else "paper", counts, regions)
            terms["consistency"] = c.consistency_weight * rampup * loss
        return terms

    def noisy(self, image: Tensor) -> Tensor:
        """Return image + η, in units of a channel's deviation in the patch where normalisation has not made that 1."""
        unit: Tensor | float = 1.0
        if self.raw_channels is not None:
            unit = torch.where(self.raw_channels, image.std(tuple(range(2, image.ndim)), keepdim=True), 1.0)
        return add_clipped_noise(image, self.config.noise_std, self.config.noise_limit, unit)

    def guess(self, copies: Tensor) -> Tensor:
        """Return ŷ (B_u, 1, *S), or regions (B_u, R, *S), from the copies (K·B_u, C, *S), the first copies first."""
        probs = torch.stack(self.teach(copies).chunk(self.config.copies)).mean(0)
        return (probs > 0.5).long() if self.label_manager.has_regions else probs.max(1, keepdim=True).indices

    def mixed(self, copies: Tensor, labelled: Tensor) -> Tensor:
        """Return x_m, eq. 1-3; every labelled patch takes part equally often, give or take one."""
        if not self.config.mix:
            return copies
        partners = torch.randperm(len(copies), device=copies.device) % len(labelled)
        return predominant_mixup(copies, labelled[partners], self.config.mix_alpha)[0]

    def rampup(self, iteration: int) -> float:
        """Return w(t) / w, eq. 11; with the stairs of the authors' code t falls to the last stair."""
        length = self.config.rampup_share * self.settings.num_iterations
        reached = iteration * STAIRS // length * length / STAIRS if self.as_code and length else iteration
        return gaussian_rampup(reached, length)

    def after_step(self) -> None:
        """Move the teacher; as in the authors' code: move it before, too, and shrink the student."""
        decay, teacher, student = self.config.ema_decay, unwrap(self.teacher), unwrap(self.network)
        if self.as_code:
            ema_update(teacher, student, decay)
            shrink(student, EXTRA_DECAY)
        ema_update(teacher, student, warmed_up_decay(self.iteration, decay), buffers=not self.as_code)


def _repeat(x: Tensor, times: int) -> Tensor:
    return x.repeat(times, *[1] * (x.ndim - 1))


def _split(outputs: Sequence[Tensor], first: int) -> tuple[list[Tensor], list[Tensor]]:
    """Return the outputs of the first patches and those of the others."""
    parts = [torch.split(z, [first, len(z) - first]) for z in outputs]
    return [part for part, _ in parts], [part for _, part in parts]
