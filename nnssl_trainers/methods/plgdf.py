"""PLGDFTrainer: Wang et al., Pseudo label-guided data fusion and output consistency, BSPC 108 (2025) 107956.

The student θ_s has outputs at S ≤ 4 scales, all up-sampled to full size. The teacher θ_t is its moving average. A step
uses labelled patches (x_l, y_l), unlabelled patches x_u, and noise η = clip(0.1·N(0, 1), ±0.2); every η is a new draw.

1. Copies x̃_k = x_u + η, k = 1..K; pseudo-labels ŷ = argmax_c (1/K)·Σ_k f(x̃_k, θ_t).
2. Mixes x_m = λ'·x̃_k + (1 − λ')·(x_l + η) with λ' = max(λ, 1 − λ), λ ~ Beta(α, α); the label of a mix is ŷ (eq. 1-3).
3. The student predicts x_l + η, the K mixes, and x_u in one pass. P_s is the softmax of scale s, P̂ the mean of P_s.
   With ℓ(P, y) = mean_s [CE(P_s, y) + Dice(P_s, y)] (eq. 10), sharp_T(p)_c = p_c^{1/T} / Σ_j p_j^{1/T}, and
   D_s = KL(P_s‖P̂):
   L_sup = ℓ(P(x_l + η), y_l),  L_semi = ℓ(P(x_m), ŷ),
   L_sharp = mean_s mean_v ‖P_s − sharp_T(P_s)‖² on x_u (eq. 4-5),
   L_consis = mean_s [Σ_v ‖P_s − P̂‖²·e^{−D_s} / Σ_v e^{−D_s} + mean_v D_s] on x_u and x_m (eq. 6-8).
4. L = L_sup + L_semi + w(t)·(L_sharp + L_consis) (eq. 9), w(t) = exp(−5·(1 − t/t_max)²) (eq. 11).
5. θ_t ← α_t·θ_t + (1 − α_t)·θ_s, α_t = min(1 − 1/(t + 1), 0.99).

The student's finest output is deployed. Departures from the paper (P) and from the authors' code (C):
- Student, optimiser, learning rate (polynomial, not constant), augmentation and sampling are nnU-Net's;
  `preset=paper` sets those of P, with `network=vnet_multiscale`. Unlabelled patches get geometric augmentations and the
  noise above, but no other intensity augmentation.
- ℓ has the scale of nnU-Net's loss. C sums over the scales and halves, which is twice that with four scales, and so a
  larger learning rate (`scale_reduction=half_sum`, also in `preset=paper`).
- ‖·‖² is a sum over the classes in eq. 5 and in eq. 8.
- For D in eq. 8, P prints a sum over voxels outside the factor 1/S, which is 10⁶ times larger than C's mean inside that
  factor. The method uses C's mean.
- `preset=code` does what C does instead of the equations. Eq. 8 has the cube instead of the square, which is 0 for two
  classes, and KL(P̂‖P_s). ‖·‖² is a mean over the classes. sharp_T has a gradient, which draws uncertain voxels to 0.5,
  and sharpens each channel alone. Dice has no factor 2. A step updates the teacher twice and shrinks the student's
  tensors by 2e-4. Scales after the second are enlarged by nearest neighbour. The ramp has 40 stairs.
- The ramp ends at the last step in P, after 6,000 of 15,000 steps in C, and after 0.4 of the run here. P does not give
  α_t, α and K; the method uses those of C.
- P's algorithm, but neither its text nor C, has x_u in L_semi; here x_u is not in L_semi. As in C, x_l has noise.
- Padding counts in C, but in no unlabelled term here. C picks a checkpoint on the test set; here the last one counts.
- Regions have sigmoids and ŷ > 0.5, and are sharpened one by one. C needs K = B_l = 2 and two classes; here any work.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from nnssl.config import Value, hyper, redefine
from nnssl.ingredients.consistency import multiscale_consistency, sharpening_loss
from nnssl.ingredients.ema import ema_update, shrink
from nnssl.ingredients.mixing import predominant_mixup
from nnssl.ingredients.perturb import add_clipped_noise
from nnssl.ingredients.pseudo_labels import confident_voxels
from nnssl.ingredients.schedules import gaussian_rampup
from nnssl.ingredients.supervised import DiceForm
from nnssl.networks.outputs import resize_outputs
from nnssl_trainers.frame.architecture import unwrap
from nnssl_trainers.frame.batch import Batch, as_list, full_size_target
from nnssl_trainers.frame.stages import PAPER_CLOCK
from nnssl_trainers.frame.teacher_student import TeacherConfig, TeacherStudentTrainer
from nnssl_trainers.parts.segmentation_loss import SegmentationLoss

UNIT_VARIANCE = ("ZScoreNormalization", "CTNormalization")  # these schemes give images a deviation of about 1
EXTRA_DECAY, STAIRS = 2e-4, 40  # from the authors' code
PAPER: dict[str, Value] = {"network": "vnet_multiscale", "optimizer": "sgd", "learning_rate": 0.01, "momentum": 0.9}
PAPER |= {"nesterov": False, "weight_decay": 1e-4, "learning_rate_schedule": "constant", "augmentation": "paper"}
PAPER |= PAPER_CLOCK | {"rampup_share": 1.0, "scale_reduction": "half_sum"}
CODE: dict[str, Value] = PAPER_CLOCK | {"scale_reduction": "half_sum"}


@dataclass(frozen=True)
class PLGDFConfig(TeacherConfig):
    """The settings of PLGDF; `preset=code` also changes the formulas, see the docstring of this module."""

    presets: ClassVar[Mapping[str, Mapping[str, Value]]] = {"paper": PAPER, "code": CODE}
    deployed: str = redefine(TeacherConfig, "deployed", "student")
    ema_decay: float = redefine(TeacherConfig, "ema_decay", 0.99, symbol="α_t")
    teacher_mode: str = redefine(TeacherConfig, "teacher_mode", "train")
    copies: int = hyper(2, "noisy copies of an unlabelled patch", "K", low=1)
    noise_std: float = hyper(0.1, "standard deviation of the noise; that of images is 1", "σ", low=0.0)
    noise_limit: float = hyper(0.2, "largest amount of the noise in a voxel", low=0.0)
    mix: bool = hyper(True, "mix the noisy copies with labelled patches; off: use the copies unmixed")
    mix_alpha: float = hyper(0.75, "both parameters of the Beta distribution", "α (eq. 1)", low=0.01)
    scales: int = hyper(4, "largest number of network outputs that learn, the finest first", "n", low=1)
    scale_reduction: str = hyper(
        "mean", "L_sup and L_semi are the mean over the scales, or half the sum", "eq. 10", choices=("mean", "half_sum")
    )
    pseudo_confidence: float = hyper(0.0, "ignore less confident pseudo-labels; 0: use all", low=0.0, high=1.0)
    semi_weight: float = hyper(1.0, "weight of L_semi", low=0.0)
    sharpening_weight: float = hyper(1.0, "largest weight of L_sharp", "w (eq. 11)", low=0.0)
    temperature: float = hyper(0.1, "temperature of sharpening", "T", low=0.01, high=1.0)
    consistency_weight: float = hyper(1.0, "largest weight of L_consis", "w (eq. 11)", low=0.0)
    rampup_share: float = hyper(
        0.4, "share of the run over which the weights of L_sharp and L_consis rise", "t_max", low=0.0, high=1.0
    )


class PLGDFTrainer(TeacherStudentTrainer[PLGDFConfig]):
    """PLGDF; the docstring of this module describes the algorithm and its departures from paper and code."""

    config_class = PLGDFConfig
    learns_from_strong_view: ClassVar[bool] = False  # noisy copies of the weak view take its place

    @property
    def as_code(self) -> bool:
        """Whether the run follows the authors' code instead of the equations."""
        return self.config.preset == "code"

    def initialize(self) -> None:
        """Build the networks and the loss, and find the channels whose noise needs a unit of its own."""
        super().initialize()
        count, labels = len(getattr(self.loss, "weight_factors", (1.0,))[: self.config.scales]), self.label_manager
        scale = 1.0 if self.config.scale_reduction == "half_sum" else 2 / count  # the loss of a scale is half a sum
        dice: DiceForm = "halved_batch" if self.as_code else "squared_batch"
        self.segmentation_loss = SegmentationLoss(dice, (scale,) * count, labels.has_regions, labels.ignore_label)
        raw = [name not in UNIT_VARIANCE for name in self.configuration_manager.normalization_schemes]
        axes = [1] * len(self.configuration_manager.patch_size)
        self.raw_channels = torch.tensor(raw, device=self.device).view(-1, *axes) if any(raw) else None

    def training_losses(self, batch: Batch) -> dict[str, Tensor]:
        """Return the weighted terms of eq. 9, without the terms whose weight is 0."""
        c, w, (raw, scan) = self.config, self.config.unlabelled_weight, batch.weak_view
        labelled, copies = self.add_noise(batch.image_l), self.add_noise(_repeat(raw, c.copies))
        mask = scan.to(raw.dtype)
        guess = self.guess_labels(copies) if c.semi_weight else None
        mixed = self.mix_with_labelled(copies, labelled) if c.semi_weight or c.consistency_weight else copies[:0]
        raw = raw if c.sharpening_weight or c.consistency_weight else raw[:0]
        native = as_list(self.network(torch.cat([labelled, mixed, raw])))[: c.scales]
        known, others = (resize_outputs(z, mixed=self.as_code) for z in _split(native, len(labelled)))
        on_mixed, on_raw = _split(others, len(mixed))
        terms = {"supervised": self.segmentation_loss(known, full_size_target(batch), torch.ones_like(mask[:1]))}
        if guess is not None:
            labels, sure = guess
            target, counts = _repeat(labels, c.copies), _repeat(mask * sure, c.copies)
            terms["semi"] = w * c.semi_weight * self.segmentation_loss(on_mixed, target, counts)
        rampup, regions = self.rampup(batch.iteration), self.label_manager.has_regions
        if c.sharpening_weight:
            probs, counts = torch.cat([self.probabilities(z) for z in on_raw]), _repeat(mask, len(others))
            loss = sharpening_loss(probs, c.temperature, not self.as_code, regions or self.as_code, counts)
            if not self.as_code:  # a sum over the classes, as in L_consis; a region is a problem of two classes
                loss = loss * (2 if regions else probs.shape[1])
            terms["sharpening"] = w * c.sharpening_weight * rampup * loss
        if c.consistency_weight and len(others) > 1:
            counts = _repeat(mask, c.copies + 1)
            loss = multiscale_consistency(others, "code" if self.as_code else "paper", counts, regions)
            terms["consistency"] = w * c.consistency_weight * rampup * loss
        return terms

    def add_noise(self, image: Tensor) -> Tensor:
        """Return image + η.

        A channel whose normalisation does not give unit variance gets noise in units of its deviation in the patch.
        """
        unit: Tensor | float = 1.0
        if self.raw_channels is not None:
            unit = torch.where(self.raw_channels, image.std(tuple(range(2, image.ndim)), keepdim=True), 1.0)
        return add_clipped_noise(image, self.config.noise_std, self.config.noise_limit, unit)

    def guess_labels(self, copies: Tensor) -> tuple[Tensor, Tensor]:
        """Return labels and confident voxels of K copies (K·B_u, C, *S) of the batch.

        Labels are ŷ (B_u, 1, *S), or regions (B_u, R, *S). Voxels whose label counts are True in (B_u, 1, *S).
        """
        probs, regions = (
            torch.stack(self.teach(copies).chunk(self.config.copies)).mean(0),
            self.label_manager.has_regions,
        )
        labels = (probs > 0.5).long() if regions else probs.max(1, keepdim=True).indices
        return labels, confident_voxels(probs, self.config.pseudo_confidence, regions)

    def mix_with_labelled(self, copies: Tensor, labelled: Tensor) -> Tensor:
        """Return x_m, eq. 1-3; the numbers of mixes of any two labelled patches differ by at most one."""
        if not self.config.mix:
            return copies
        partners = torch.randperm(len(copies), device=copies.device) % len(labelled)
        return predominant_mixup(copies, labelled[partners], self.config.mix_alpha)[0]

    def rampup(self, iteration: int) -> float:
        """Return w(t) / w, eq. 11; the authors' code rounds t down to the last of its stairs."""
        length = self.config.rampup_share * self.method_iterations
        reached = iteration * STAIRS // length * length / STAIRS if self.as_code and length else iteration
        return gaussian_rampup(reached, length)

    def after_step(self) -> None:
        """Update the teacher; like the authors' code, also update the teacher before, and shrink the student."""
        decay, teacher, student = self.config.ema_decay, unwrap(self.teacher), unwrap(self.network)
        if self.as_code:
            ema_update(teacher, student, decay)
            shrink(student, EXTRA_DECAY)
        ema_update(teacher, student, self.teacher_decay, buffers=not self.as_code)


def _repeat(x: Tensor, times: int) -> Tensor:
    """Return a batch of `times` copies of a batch, one after the other."""
    return torch.cat([x] * times)


def _split(outputs: Sequence[Tensor], first: int) -> tuple[list[Tensor], list[Tensor]]:
    """Return the outputs of the first patches, and the outputs of the other patches."""
    parts = [torch.split(z, [first, len(z) - first]) for z in outputs]
    return [part for part, _ in parts], [part for _, part in parts]
