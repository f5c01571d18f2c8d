"""DSMTTrainer: Su, Sun, Adamyk, DSMT-Net, Computational Biology and Chemistry 119 (2025) 108579.

Students S1 and S2 have different architectures; the teacher T is the moving average of S1. The mask M is 0 in a random
box and 1 outside. Labelled patches are x, unlabelled u. Of x_a and x_b, one is x, the other x rolled by one sample.

1. The supervised stage trains both students; then T ← S1. Without it (`supervised_share=0`), pre-training takes its
   place: both learn x and the mixes M⊙x_a + (1−M)⊙x_b and M⊙x_b + (1−M)⊙x_a from their labels.
2. Self-training, with ŷ = argmax T(u). On x, student s has nnU-Net's loss L_lab^s. On x_L = M⊙x_b + (1−M)⊙u_b and
   x_U = M⊙u_a + (1−M)⊙x_a it has L_psup^s: Dice + cross-entropy of labels (weight 1) and pseudo-labels (γ), eq. 15-17,
   and L_con^s: Dice distance to the other student's prediction (eq. 18-19), enhanced by propagation (eq. 5-13).
3. L = α(t)·(L_lab^1 + L_psup^1 + δ·L_con^1) + β(t)·(L_lab^2 + L_psup^2 + δ·L_con^2), α: 0.5 → 1, β: 0.5 → 0 (eq. 14);
   after the step θ_T ← 0.99·θ_T + 0.01·θ_1. S1 is deployed.

Departures from the paper, undone by `preset=paper`:
- L_lab; x_a, x_b are the halves of x in the paper: its students see half the labels of a supervised step, all in mixes.
- One Dice over a mix. With one on each side, false pseudo-labels pull too hard, see `MixedSegmentationLoss`.
- Pseudo-labels below a confidence of 0.8 are ignored. The paper keeps the largest component of each class instead.
- The supervised stage. Pre-training mixes both ways. δ rises over the first 2,000 iterations of self-training.
- Networks, optimiser, learning rate and augmentation are nnU-Net's; Mamba-UNet has AdamW, its rate the factor β.
Choices where the paper is silent or contradicts itself:
- Eq. 12-13 as printed change no label and flatten all predictions (`propagation=literal`, with the linear Dice). The
  default propagates, as the text says. Eq. 9-10 use each voxel's confidence.
- Eq. 17 as printed gives the weight 1 to all outside the box; here labels have 1, pseudo-labels γ, as in eq. 16.
- S2 is pre-trained beside S1. Self-training starts with fresh momentum and the first learning rate. Both students have
  deep supervision. Padding is background, except in L_con. T sees no intensity augmentation.

`preset=bcp`: bidirectional copy-paste (Bai et al., CVPR 2023) is the paper's loss with one student, α = 1 and δ = 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from nnssl.config import Value, hyper, redefine
from nnssl.ingredients.consistency import soft_dice_distance
from nnssl.ingredients.ema import ema_update
from nnssl.ingredients.mixing import copy_paste, copy_paste_mask
from nnssl.ingredients.perturb import add_shared_noise
from nnssl.ingredients.pseudo_labels import confident_voxels
from nnssl.ingredients.schedules import gaussian_rampup
from nnssl_trainers.frame.architecture import unwrap
from nnssl_trainers.frame.batch import Batch, full_size_target, split_in_half
from nnssl_trainers.frame.stages import PAPER_CLOCK
from nnssl_trainers.frame.teacher_student import TeacherConfig, TeacherStudentTrainer
from nnssl_trainers.frame.two_students import TwoStudentsConfig, TwoStudentsTrainer
from nnssl_trainers.parts.copy_paste_presets import COPY_PASTE_LOSSES, DSMT_TRAINING
from nnssl_trainers.parts.label_enhancement import EnhancementConfig, enhance_predictions
from nnssl_trainers.parts.segmentation_loss import MixedSegmentationLoss, Side, known_voxels

PAPER: dict[str, Value] = PAPER_CLOCK | COPY_PASTE_LOSSES | DSMT_TRAINING | {"contrast_rampup": 0}
BCP: dict[str, Value] = PAPER_CLOCK | COPY_PASTE_LOSSES | {"student2": "none", "contrast_weight": 0.0}


@dataclass(frozen=True)
class DSMTConfig(TwoStudentsConfig, TeacherConfig, EnhancementConfig):
    """The settings of DSMT-Net."""

    presets: ClassVar[Mapping[str, Mapping[str, Value]]] = {"paper": PAPER, "bcp": BCP}
    deployed: str = redefine(
        TwoStudentsConfig, "deployed", "student1", choices=("student1", "teacher", "student2", "mean")
    )
    pretrain_share: float = redefine(TwoStudentsConfig, "pretrain_share", 0.25)
    pretrain_least: int = redefine(TwoStudentsConfig, "pretrain_least", 2000)
    teacher_mode: str = redefine(TeacherConfig, "teacher_mode", "bn_train_nodrop")
    pretrain_mix: str = hyper("both", "mixes of a step; none: nnU-Net's patches", choices=("both", "one", "none"))
    labelled_loss: str = hyper(
        "both", "mixes beside nnU-Net's loss of the labelled patches, or mixes alone", choices=("both", "mixed")
    )
    copy_paste: bool = hyper(True, "mix patches; off: labelled and unlabelled patches stay apart")
    pairs: str = hyper("all", "mix every patch, or one half of a batch with the other", choices=("all", "halves"))
    mixed_dice: str = hyper("mix", "one Dice over a mix, or one on each side of it", choices=("mix", "regions"))
    box_ratio: float = hyper(2 / 3, "side of the pasted box as a share of the patch", low=0.0, high=1.0)
    noise_std: float = hyper(0.0, "standard deviation of noise on unlabelled patches", low=0.0)
    pseudo_label_weight: float = hyper(0.5, "weight of pseudo-labels; labels have 1", "γ (eq. 16-17)", low=0.0)
    pseudo_confidence: float = hyper(0.8, "ignore less confident pseudo-labels; 0: use all", low=0.0, high=1.0)
    largest_component: bool = hyper(False, "keep only the largest component of each class of the pseudo-labels")
    contrast_weight: float = hyper(0.5, "weight of the other student's enhanced prediction", "δ (text: σ)", low=0.0)
    contrast_rampup: int = hyper(2000, "iterations over which δ rises, at most all of self-training", low=0)


class DSMTTrainer(TwoStudentsTrainer[DSMTConfig], TeacherStudentTrainer[DSMTConfig]):
    """DSMT-Net; the docstring of this module describes the algorithm and its departures from the paper."""

    config_class = DSMTConfig

    def initialize(self) -> None:
        """Build the networks, and the loss of labels and pseudo-labels inside and outside of the box."""
        super().initialize()
        self.mixed_loss = MixedSegmentationLoss(
            dice="squared_batch" if len(self.configuration_manager.patch_size) == 2 else "linear_sample",
            scale_weights=tuple(getattr(self.loss, "weight_factors", (1.0,))),
            regions=self.label_manager.has_regions,
            ignore_label=self.label_manager.ignore_label,
            separate_sides=self.config.mixed_dice == "regions",
        )

    def training_losses(self, batch: Batch) -> dict[str, Tensor]:
        """Return the terms of pre-training or of self-training."""
        ratio = self.config.box_ratio if self.config.copy_paste else 0.0  # without a box x_L is a labelled patch
        mask = copy_paste_mask(batch.image_l.shape[2:], ratio, device=self.device)
        if batch.iteration < self.pretrain_iterations:
            return self.pretraining_losses(batch, mask)
        return self.self_training_losses(batch, mask)

    def partners(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the two batches that a batch gives for its mixes; without mixing both are the batch itself."""
        if not self.config.copy_paste:
            return x, x
        return split_in_half(x) if self.config.pairs == "halves" else (x, x.roll(1, 0))

    def predict(self, batch: Batch, mixes: list[Tensor]) -> tuple[list[list[list[Tensor]]], dict[str, Tensor]]:
        """Return each student's outputs for each mix, and its weighted L_lab; without mixing the first mix is x."""
        c, weights = self.config, self.loss_weights(batch.iteration)
        images = [batch.image_l, *mixes] if c.copy_paste and c.labelled_loss == "both" else mixes
        outputs = [self.outputs_of(student, images) for student in self.students]
        if c.labelled_loss == "mixed":
            return outputs, {}
        terms = {f"labelled_{i + 1}": weights[i] * self.supervised_loss(z[0], batch) for i, z in enumerate(outputs)}
        return [each[-len(mixes) :] for each in outputs], terms

    def pretraining_losses(self, batch: Batch, mask: Tensor) -> dict[str, Tensor]:
        """Return each student's loss on mixes of labelled patches, and on the patches themselves."""
        c = self.config
        if c.pretrain_mix == "none":
            alone = [self.outputs_of(student, [batch.image_l])[0] for student in self.students]
            return {f"supervised_{i + 1}": self.supervised_loss(z, batch) for i, z in enumerate(alone)}
        (a, b), (y_a, y_b) = self.partners(batch.image_l), self.partners(full_size_target(batch))
        ways = [(a, b, y_a, y_b), (b, a, y_b, y_a)] if c.pretrain_mix == "both" and c.copy_paste else [(a, b, y_a, y_b)]
        outputs, terms = self.predict(batch, [copy_paste(outside, inside, mask) for outside, inside, *_ in ways])
        for number, each in enumerate(outputs, start=1):
            pairs = zip(each, ways, strict=True)
            losses = [self.mixed_loss(z, Side(y), Side(q, float(c.copy_paste)), mask) for z, (_, _, y, q) in pairs]
            terms[f"supervised_{number}"] = torch.stack(losses).mean()
        return terms

    def self_training_losses(self, batch: Batch, mask: Tensor) -> dict[str, Tensor]:
        """Return the weighted L_psup, L_con and L_lab of each student, eq. 14-19."""
        c, (weak, strong, scan), labels = self.config, batch.unlabelled, self.label_manager
        weak, strong = add_shared_noise((weak, strong), c.noise_std)
        parts = weak.chunk(2 if c.pairs == "halves" else 1)  # T(u_a), T(u_b): a half has its own batch statistics
        taught, target = torch.cat([self.teach(part) for part in parts]), full_size_target(batch)
        sure = confident_voxels(taught, c.pseudo_confidence, labels.has_regions)
        wait_for_labels = self.pseudo_labels(taught, scan & sure, c.largest_component)
        (x_b, x_a), (u_a, u_b) = self.partners(batch.image_l), self.partners(strong)  # foreground in the box of x_U
        images = [copy_paste(x_b, u_b, mask), copy_paste(u_a, x_a, mask)]  # x_L, x_U
        outputs, terms = self.predict(batch, images)
        known_b, known_a = self.partners(known_voxels(target, labels.has_regions, labels.ignore_label))
        scan_a, scan_b = self.partners(scan)
        seen = [torch.where(mask > 0, known_b, scan_b), torch.where(mask > 0, scan_a, known_a)]
        contrast = self.contrast_terms(outputs, images, seen, batch.iteration)
        gamma, box = c.pseudo_label_weight * c.unlabelled_weight, float(c.copy_paste)
        (y_b, y_a), (guess_a, guess_b) = self.partners(target), self.partners(wait_for_labels())
        sure_a, sure_b = self.partners(sure | ~scan)
        on_l = Side(y_b), Side(guess_b, gamma * box, sure_b)
        on_u = Side(guess_a, gamma, sure_a), Side(y_a, box)
        for i, (z_l, z_u) in enumerate(outputs):
            loss = self.mixed_loss(z_l, *on_l, mask) + self.mixed_loss(z_u, *on_u, mask)
            terms[f"supervised_{i + 1}"] = self.loss_weights(batch.iteration)[i] * loss
        return terms | contrast

    def contrast_terms(
        self, outputs: list[list[list[Tensor]]], images: list[Tensor], seen: list[Tensor], iteration: int
    ) -> dict[str, Tensor]:
        """Return the weighted L_con of each student over the voxels (B, 1, *S) of x_L and x_U that count, eq. 18-19."""
        c = self.config
        if len(outputs) == 1 or not c.contrast_weight:
            return {}
        probs = [[self.probabilities(z[0]) for z in each] for each in outputs]
        targets = enhance_predictions(c, probs, images, self.label_manager.has_regions)
        step, length = self.self_training_progress(iteration)
        delta = c.contrast_weight * c.unlabelled_weight * gaussian_rampup(step, min(c.contrast_rampup, length))
        form: Any = "linear" if c.propagation == "literal" else "squared"
        terms = {}
        for i, weight in enumerate(self.loss_weights(iteration)):
            triples = zip(probs[i], targets[1 - i], seen, strict=True)
            distances = [soft_dice_distance(p, target, form, counts) for p, target, counts in triples]
            terms[f"contrast_{i + 1}"] = weight * delta * torch.stack(distances).mean()
        return terms

    def loss_weights(self, step: int) -> tuple[float, float]:
        """Return α(t) and β(t) = 1 − α(t); α rises from 0.5 to 1 over self-training, and is 1 without student 2."""
        step, length = self.self_training_progress(step)
        alpha = 1.0 if self.network2 is None else 0.5 + 0.5 * step / max(1, length)
        return (1.0, 1.0) if step < 0 else (alpha, 1.0 - alpha)

    def self_training_progress(self, step: int) -> tuple[int, int]:
        """Return the number of finished steps of self-training at a step, and the number of all its steps."""
        return step - self.pretrain_iterations, self.method_iterations - self.pretrain_iterations

    def after_step(self) -> None:
        """Update the teacher; at the end of pre-training T = S1, and the optimisers lose their momentum."""
        pretraining = self.method_step <= self.pretrain_iterations
        ema_update(unwrap(self.teacher), unwrap(self.network), 0.0 if pretraining else self.config.ema_decay)
        if self.method_step == self.pretrain_iterations:
            self.restart_optimizers()
