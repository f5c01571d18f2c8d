"""DSMTTrainer: Su, Sun, Adamyk, DSMT-Net, Computational Biology and Chemistry 119 (2025) 108579.

Students S1 and S2 have different architectures; the teacher T is the moving average of S1. The mask M is 0 in a random
box and 1 outside. Half of the labelled patches are (x_a, y_a), half (x_b, y_b); u_a and u_b halve the unlabelled ones.

1. Pre-training takes a quarter of the run (in short runs at least 2,000 iterations, or half). Both students learn the
   mixes M⊙x_a + (1−M)⊙x_b and M⊙x_b + (1−M)⊙x_a from their labels, box and surroundings as separate terms; then T ← S1.
2. Self-training. ŷ = largest components of argmax T(u). On x_L = M⊙x_b + (1−M)⊙u_b and x_U = M⊙u_a + (1−M)⊙x_a
   student s has L_psup^s: Dice + cross-entropy against labels (weight 1) and pseudo-labels (γ)    (eq. 15-17),
   and L_con^s: Dice distance to the other student's enhanced prediction of the same image         (eq. 18-19).
   Enhancement propagates confident predictions over windows of similar intensity                  (eq. 5-13).
3. L = α(t)·(L_psup^1 + δ·L_con^1) + β(t)·(L_psup^2 + δ·L_con^2), α: 0.5 → 1, β: 0.5 → 0 over self-training  (eq. 14);
   after the step θ_T ← 0.99·θ_T + 0.01·θ_1. S1 is deployed.

Departures from the paper, and choices where the paper is silent or contradicts itself:
- Eq. 12-13 as printed scale all classes of a voxel alike and then flatten them: they change no label, use no neighbour,
  and teach the students to be uncertain. `propagation=literal` is that formula, with the linear Dice, because the
  squared Dice would pull the students to the flat distribution. The default propagates, as the paper's text says.
- Eq. 9-10 use each voxel's confidence; the printed mean would make the mask one constant. The paper does not give the
  threshold factor and the steepness of eq. 8-9; they are -0.5 and 10.
- Eq. 17 as printed gives the weight 1 to all outside the box; here labels have 1, pseudo-labels γ, as in eq. 16.
- Pre-training mixes both ways to use the whole labelled batch (`pretrain_mix=one`: one way). The paper does not say how
  S2 is pre-trained; S2 learns the same images at the same time. Self-training starts with fresh momentum and the first
  learning rate; nnU-Net's schedule reaches zero at the end of the run (the paper's: of pre-training).
- δ rises over the first 2,000 iterations of self-training, in short runs over all of it. With the full δ at once, a
  student 2 that has not learned a structure makes student 1 forget it (`contrast_rampup=0`: the paper's constant).
- Networks, optimiser, learning rate and augmentation are nnU-Net's; `preset=paper` sets the paper's. Mamba-UNet starts
  from scratch and learns by AdamW, whose learning rate has the factor β (`optimizer=sgd`: the paper's optimiser).
- Padding counts as background, labelled or unlabelled. The teacher sees no intensity augmentation.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from nnssl.config import Value, hyper, redefine
from nnssl.ingredients.consistency import soft_dice_distance
from nnssl.ingredients.ema import ema_update
from nnssl.ingredients.mixing import copy_paste, copy_paste_mask
from nnssl.ingredients.refinement import enhance, neighbourhood
from nnssl.ingredients.schedules import gaussian_rampup
from nnssl_trainers.frame.architecture import unwrap
from nnssl_trainers.frame.batch import Batch, full_size_target, split_in_half
from nnssl_trainers.frame.stages import PAPER_CLOCK
from nnssl_trainers.frame.teacher_student import TeacherConfig, TeacherStudentTrainer
from nnssl_trainers.frame.two_students import TwoStudentsConfig, TwoStudentsTrainer
from nnssl_trainers.parts.segmentation_loss import MixedSegmentationLoss

PAPER: dict[str, Value] = {"network": "bcp", "optimizer": "sgd", "learning_rate": 0.01, "momentum": 0.9}
PAPER |= {"nesterov": False, "weight_decay": 1e-4, "augmentation": "paper", "learning_rate_schedule": "step"}
PAPER |= {"learning_rate_factor": 0.9, "learning_rate_interval": 1 / 12}  # every 2,500 of 30,000 iterations
PAPER |= PAPER_CLOCK | {"pretrain_mix": "one", "pretrain_least": 0, "contrast_rampup": 0}


@dataclass(frozen=True)
class DSMTConfig(TwoStudentsConfig, TeacherConfig):
    """The settings of DSMT-Net."""

    presets: ClassVar[Mapping[str, Mapping[str, Value]]] = {"paper": PAPER}
    deployed: str = redefine(
        TwoStudentsConfig, "deployed", "student1", choices=("student1", "teacher", "student2", "mean")
    )
    pretrain_share: float = redefine(TwoStudentsConfig, "pretrain_share", 0.25)
    pretrain_least: int = redefine(TwoStudentsConfig, "pretrain_least", 2000)
    teacher_mode: str = redefine(TeacherConfig, "teacher_mode", "bn_train_nodrop")
    pretrain_mix: str = hyper("both", "mixes of a step; none: nnU-Net's patches", choices=("both", "one", "none"))
    copy_paste: bool = hyper(True, "mix patches; off: labelled and unlabelled patches stay apart")
    box_ratio: float = hyper(2 / 3, "side of the pasted box as a share of the patch", low=0.0, high=1.0)
    noise_std: float = hyper(0.0, "standard deviation of noise on the students' unlabelled patches", low=0.0)
    pseudo_label_weight: float = hyper(0.5, "weight of pseudo-labels; labels have 1", "γ (eq. 16-17)", low=0.0)
    largest_component: bool = hyper(True, "keep only the largest component of each class of the pseudo-labels")
    contrast_weight: float = hyper(0.5, "weight of the other student's enhanced prediction", "δ (text: σ)", low=0.0)
    contrast_rampup: int = hyper(2000, "iterations over which δ rises, at most all of self-training", low=0)
    propagation: Literal["propagate", "literal", "off"] = hyper(
        "propagate", "label enhancement", "eq. 12-13", choices=("propagate", "literal", "off")
    )
    propagation_iterations: int = hyper(3, "rounds of propagation", "k", low=0)
    threshold_factor: float = hyper(-0.5, "confidence threshold in standard deviations from the mean", "γ (eq. 8)")
    mask_steepness: float = hyper(10.0, "steepness of the confidence mask", "α (eq. 9)", low=0.0)
    retention: float = hyper(0.1, "weight of a voxel's own prediction beside its window", "κ", low=0.0)
    similarity_temperature: float | None = hyper(
        None, "temperature of eq. 7; auto: the patch's mean dissimilarity", "τ", low=1e-6
    )


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
        )

    def training_losses(self, batch: Batch) -> dict[str, Tensor]:
        """Return the terms of pre-training or of self-training."""
        ratio = self.config.box_ratio if self.config.copy_paste else 0.0  # without a box x_L is a labelled patch
        mask = copy_paste_mask(batch.image_l.shape[2:], ratio, device=self.device)
        if batch.iteration < self.pretrain_iterations:
            return self.pretraining_losses(batch, mask)
        return self.self_training_losses(batch, mask)

    def pretraining_losses(self, batch: Batch, mask: Tensor) -> dict[str, Tensor]:
        """Return each student's loss on mixes of labelled patches, or on the patches themselves."""
        if self.config.pretrain_mix == "none":
            outputs = [self.outputs_of(student, [batch.image_l])[0] for student in self.students]
            return {f"supervised_{i + 1}": self.supervised_loss(z, batch) for i, z in enumerate(outputs)}
        (a, b), (y_a, y_b) = split_in_half(batch.image_l), split_in_half(full_size_target(batch))
        ways = [(a, b, y_a, y_b), (b, a, y_b, y_a)] if self.config.pretrain_mix == "both" else [(a, b, y_a, y_b)]
        images = [copy_paste(outside, inside, mask) for outside, inside, *_ in ways]
        terms = {}
        for number, student in enumerate(self.students, start=1):
            outputs = self.outputs_of(student, images)
            losses = [self.mixed_loss(z, way[2], way[3], mask) for z, way in zip(outputs, ways, strict=True)]
            terms[f"supervised_{number}"] = torch.stack(losses).mean()
        return terms

    def self_training_losses(self, batch: Batch, mask: Tensor) -> dict[str, Tensor]:
        """Return the weighted L_psup and L_con of each student, eq. 14-19."""
        weak, strong, scan = batch.unlabelled
        wait_for_labels = self.pseudo_labels(weak, scan, self.config.largest_component)
        x_b, x_a = split_in_half(batch.image_l)  # nnU-Net centres the last patches on foreground; x_U shows it
        y_b, y_a = split_in_half(full_size_target(batch))
        noise = self.config.noise_std
        u_a, u_b = split_in_half(strong + noise * torch.randn_like(strong) if noise else strong)
        images = [copy_paste(x_b, u_b, mask), copy_paste(u_a, x_a, mask)]  # x_L, x_U
        outputs = [self.outputs_of(student, images) for student in self.students]
        probs = [[self.probabilities(z[0]) for z in both] for both in outputs]
        targets = self.enhance_predictions(probs, images)
        guess_a, guess_b = split_in_half(wait_for_labels())
        gamma = self.config.pseudo_label_weight
        weights, (step, length) = self.loss_weights(batch.iteration), self.self_training_progress(batch.iteration)
        delta = self.config.contrast_weight * gaussian_rampup(step, min(self.config.contrast_rampup, length))
        terms, contrast = {}, {}
        for i, (weight, (z_l, z_u)) in enumerate(zip(weights[: len(outputs)], outputs, strict=True)):
            on_l = self.mixed_loss(z_l, y_b, guess_b, mask, 1.0, gamma)
            on_u = self.mixed_loss(z_u, guess_a, y_a, mask, gamma, 1.0)
            terms[f"supervised_{i + 1}"] = weight * (on_l + on_u)
            if targets:
                form: Any = "linear" if self.config.propagation == "literal" else "squared"
                distances = [soft_dice_distance(*pair, form) for pair in zip(probs[i], targets[1 - i], strict=True)]
                contrast[f"contrast_{i + 1}"] = weight * delta * torch.stack(distances).mean()
        return terms | contrast

    def loss_weights(self, step: int) -> tuple[float, float]:
        """Return α(t) and β(t) = 1 − α(t); α rises from 0.5 to 1 over self-training, and is 1 without student 2."""
        step, length = self.self_training_progress(step)
        alpha = 1.0 if self.network2 is None else 0.5 + 0.5 * step / max(1, length)
        return (1.0, 1.0) if step < 0 else (alpha, 1.0 - alpha)

    def self_training_progress(self, step: int) -> tuple[int, int]:
        """Return the number of finished steps of self-training at a step, and the number of all its steps."""
        return step - self.pretrain_iterations, self.method_iterations - self.pretrain_iterations

    @torch.no_grad()
    def enhance_predictions(self, probs: list[list[Tensor]], images: list[Tensor]) -> list[list[Tensor]]:
        """Return each student's enhanced predictions for x_L and x_U, eq. 5-13; empty if no term needs them."""
        c = self.config
        if len(probs) == 1 or not c.contrast_weight:
            return []
        if c.propagation == "off" or not c.propagation_iterations:
            return probs
        windows = neighbourhood(torch.cat(images).float(), temperature=c.similarity_temperature)
        enhance_all = partial(
            enhance,
            image=windows,
            threshold_factor=c.threshold_factor,
            steepness=c.mask_steepness,
            iterations=c.propagation_iterations,
            retention=c.retention,
            mode=c.propagation,
            regions=self.label_manager.has_regions,
        )
        return [list(enhance_all(torch.cat(both)).chunk(2)) for both in probs]

    def after_step(self) -> None:
        """Update the teacher; at the end of pre-training T = S1, and the optimisers lose their momentum."""
        pretraining = self.method_step <= self.pretrain_iterations
        ema_update(unwrap(self.teacher), unwrap(self.network), 0.0 if pretraining else self.config.ema_decay)
        if self.method_step == self.pretrain_iterations:
            self.restart_optimizers()
