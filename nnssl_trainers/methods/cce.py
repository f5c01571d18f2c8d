"""CCETrainer: Lu et al., Enhancing dual network based semi-supervised medical image segmentation, KBS 2025.

Two students A and B have different architectures; the method has no teacher. Both students see the same labelled and
unlabelled patches. p_m are the probabilities of student m, ŷ_m = argmax p_m, H_m is the entropy of p_m, and z_m are the
features before the last layer. A step minimises

    L = Σ_m (L_s^m + L_cps^m + L_efs^m + L_ue^m) + λ(t)·L_c,   λ(t) = λ·exp(−5(1 − t/t_max)²)         (eq. 1, 3, 12)

- L_s^m = CE + Dice + α·Σ M(p_m − y)²/ΣM on labelled patches; M is 1 where exactly one student has p ≥ γ for a
  foreground class                                                                                          (eq. 2-6)
- L_cps^m = CE of p_m against the other student's labels, where the other student has p > τ                 (eq. 7-8)
- L_efs^m = N/N_kept · CE of p_m against ŷ_A OR ŷ_B, without the voxels where both entropies exceed the k-th percentile
  of their own student and its class there                                                                 (eq. 9-11)
- L_ue^m = mean e^(−D)·CE(p_m, softmax(f_o/T)) + mean D,  D = KL(p_o‖p_m), o is the other student          (eq. 13-15)
- L_c draws the features of uncertain voxels to the mean feature of the certain voxels of their class. A certain voxel
  has equal labels and low entropy in both students. L_c trains only the student with the higher Dice loss (eq. 16-20)

The mean of both probabilities is deployed. Departures from the paper, and choices where the paper is silent:
- Eq. 5 has the exclusive or, as the code. Eq. 6 compares with the labels.
- The supervised stage, the ramp-up of CPS, EFS and UE, and a percentile for each class: the paper's one percentile for
  all voxels (`entropy_by_class=off`) filters out the foreground.
- More than two classes: in eq. 8 voxels below τ do not count, because as background they would teach background. In
  eq. 11 the larger probability decides between two foreground classes. Eq. 16-20 average over classes and their pairs.
- Eq. 13-15 teach both students on unlabelled patches (`ue_scope=all`: on all). 1 % of a class's uncertain voxels count.
- L_s (with deep supervision), augmentation and optimiser are nnU-Net's. Padding and the ignore label do not count.
- Each region is a problem with two classes; all regions share percentiles, except in eq. 16.

`preset=paper` uses the paper's networks, optimiser and loss on labels (CE + Dice of the foreground). The authors' code
minimises another loss (`preset=code`): CE + Dice + α·eq. 6 + a cosine distance of the students that the paper does not
mention, and eq. 13 for student 1 alone with a hard target. Its EFS and contrast carry no gradient; it has no CPS.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from nnssl.config import DEFAULT_PRESET, Value, hyper, redefine
from nnssl.ingredients.consistency import (
    confident_disagreement_mse,
    cosine_distance,
    entropy_filtered_loss,
    kl_weighted_cross_entropy,
)
from nnssl.ingredients.contrastive import prototype_contrast
from nnssl.ingredients.pseudo_labels import cross_pseudo_labels, fuse_labels
from nnssl.ingredients.schedules import gaussian_rampup
from nnssl.ingredients.supervised import foreground_dice, masked_cross_entropy
from nnssl.ingredients.uncertainty import entropy_ignore_mask
from nnssl_trainers.frame.architecture import unwrap
from nnssl_trainers.frame.batch import Batch, as_list, full_size_target
from nnssl_trainers.frame.stages import PAPER_CLOCK
from nnssl_trainers.frame.two_students import TwoStudentsConfig, TwoStudentsTrainer
from nnssl_trainers.parts.all_patches import weigh_unlabelled
from nnssl_trainers.parts.decoder_features import DecoderFeatures
from nnssl_trainers.parts.region_logits import Pair, class_labels, class_logits, softmax
from nnssl_trainers.parts.shared_passes import whole

THIRD_TERM: dict[str, Any] = {"attract": 1.0, "off": 0.0, "repel": "repel"}
DRAWN_SHARE = 0.01  # share of a class's uncertain voxels that the contrast draws, as in the authors' code
CLOCK: dict[str, Value] = PAPER_CLOCK | {"rampup_share": 0.0, "entropy_by_class": False}
PAPER: dict[str, Value] = {"optimizer": "sgd", "learning_rate": 0.01, "momentum": 0.9, "nesterov": False}
PAPER |= CLOCK | {"weight_decay": 1e-4, "augmentation": "paper", "learning_rate_schedule": "step"}
PAPER |= {"learning_rate_factor": 0.1, "learning_rate_interval": 2500 / 6000}
CODE: dict[str, Value] = CLOCK | {"cps_weight": 0.0, "efs_weight": 0.0, "contrast_weight": 0.0, "ue_scope": "all"}


@dataclass(frozen=True)
class CCEConfig(TwoStudentsConfig):
    """The settings of the dual network; `preset` also chooses the loss on labels, see the docstring of this module."""

    presets: ClassVar[Mapping[str, Mapping[str, Value]]] = {"paper": PAPER, "code": CODE}
    network: str = redefine(TwoStudentsConfig, "network", "resnet34_vnet")
    student2: str = redefine(TwoStudentsConfig, "student2", "vnet")
    deployed: str = redefine(TwoStudentsConfig, "deployed", "mean")
    disagreement_weight: float = hyper(0.5, "weight of eq. 6 in the loss on labels", "α (eq. 2)", low=0.0)
    confidence: float = hyper(0.6, "least probability of a confident foreground voxel", "γ (eq. 5)", low=0.0, high=1.0)
    disagreement_distance: Literal["mse", "kl"] = hyper(
        "mse", "distance in eq. 6: squared error or divergence", choices=("mse", "kl")
    )
    cps_weight: float = hyper(1.0, "weight of cross pseudo supervision", "L_cps (eq. 8)", low=0.0)
    cps_threshold: float = hyper(0.6, "probability that a pseudo-label must exceed", "τ (eq. 7)", low=0.0, high=1.0)
    efs_weight: float = hyper(1.0, "weight of entropy-filtered supervision", "L_efs (eq. 11)", low=0.0)
    entropy_percentile: float = hyper(70.0, "percentile above which EFS ignores entropies", "k", low=0.0, high=100.0)
    prototype_percentile: float = hyper(
        70.0, "percentile up to which a voxel is certain for the contrast", "δ (eq. 16)", low=0.0, high=100.0
    )
    entropy_by_class: bool = hyper(True, "both percentiles for each predicted class; off: for all voxels together")
    ue_weight: float = hyper(1.0, "weight of the uncertainty loss", "L_ue (eq. 13)", low=0.0)
    ue_temperature: float = hyper(0.5, "temperature of the uncertainty loss's target", "T (eq. 15)", low=1e-3)
    ue_scope: str = hyper("unlabelled", "patches of the uncertainty loss", "eq. 3", choices=("unlabelled", "all"))
    contrast_weight: float = hyper(0.1, "largest weight of the contrast of features", "λ_c (eq. 1)", low=0.0)
    prototype_term: str = hyper("attract", "effect of eq. 20 on the prototypes", choices=tuple(THIRD_TERM))
    rampup_share: float = hyper(0.4, "share of the run in which the weights of CPS, EFS and UE rise", low=0.0, high=1.0)


class CCETrainer(TwoStudentsTrainer[CCEConfig]):
    """The dual network with uncertainty-guided pseudo-labels; the docstring of this module describes the algorithm."""

    config_class = CCEConfig
    needs_student2 = True

    def initialize(self) -> None:
        """Build the students, and keep their features if the contrast needs them."""
        super().initialize()
        self.features = [DecoderFeatures(unwrap(s)) for s in self.students] if self.config.contrast_weight else []

    def training_losses(self, batch: Batch) -> dict[str, Tensor]:
        """Return the weighted terms of eq. 1; in pre-training only those of the labels."""
        _, image_u, mask_u = batch.unlabelled
        step, count = batch.iteration - self.pretrain_iterations, len(batch.image_l)
        images = batch.image_l if step < 0 else torch.cat([batch.image_l, image_u])
        outputs = [as_list(student(images)) for student in self.students]
        kept = [each.take(images.shape[2:]) for each in self.features]
        features = [whole(self.students[k], part)[count:] for k, part in enumerate(kept)]
        a, b = (class_logits(z[0], self.label_manager.has_regions) for z in outputs)
        problems = len(a) // len(images)  # per patch: one, or one for each region
        n, mask = count * problems, mask_u.repeat_interleave(problems, 0)
        (a_l, a_u), (b_l, b_u) = (torch.split(z, [n, len(z) - n]) for z in (a, b))
        terms, dice = self.supervised_terms([[z[:count] for z in each] for each in outputs], (a_l, b_l), batch)
        if step < 0:
            return terms
        masks, w = (mask.new_ones(n, *mask.shape[1:]), mask), self.config.unlabelled_weight
        ramp = gaussian_rampup(step, self.config.rampup_share * self.method_iterations)
        probs = softmax((a_u.detach(), b_u.detach()))
        terms |= {name: ramp * w * term for name, term in self.cross_terms((a_u, b_u), probs, mask).items()}
        terms |= {name: ramp * term for name, term in self.uncertainty_terms((a_l, a_u), (b_l, b_u), masks).items()}
        if self.config.preset == "code":
            pairs = softmax((a_l, a_u)), softmax((b_l, b_u))
            terms["cosine"] = weigh_unlabelled(cosine_distance, *pairs, masks, w, "all")
        return terms | (self.contrast_terms(features, probs, mask_u, dice, step) if features else {})

    def supervised_terms(
        self, outputs: list[list[Tensor]], logits: Pair, batch: Batch
    ) -> tuple[dict[str, Tensor], list[Tensor]]:
        """Return L_s of both students, eq. 2-6, and the Dice loss of each student."""
        c, manager, probs = self.config, self.label_manager, softmax(logits)
        regions, heads = manager.has_regions, outputs[0][0].shape[1]
        labels, known = class_labels(full_size_target(batch), heads, regions, manager.ignore_label)
        errors = confident_disagreement_mse(*probs, labels, c.confidence, "xor", known, c.disagreement_distance)
        dice = [foreground_dice(p, labels, known) for p in probs]
        if c.preset == DEFAULT_PRESET:
            losses = [self.supervised_loss(each, batch) for each in outputs]
        else:
            losses = [masked_cross_entropy(z, labels, known) + d for z, d in zip(logits, dice, strict=True)]
        sums = [loss + c.disagreement_weight * error for loss, error in zip(losses, errors, strict=True)]
        return {f"supervised_{i}": loss for i, loss in enumerate(sums, start=1)}, dice

    def cross_terms(self, logits: Pair, probs: Pair, mask: Tensor) -> dict[str, Tensor]:
        """Return L_cps and L_efs of both students, eq. 7-11; `probs` is the detached softmax of `logits`."""
        c, terms = self.config, {}
        pairs = list(enumerate(zip(logits, probs[::-1], strict=True), start=1))
        if c.cps_weight:
            for i, (own, peer) in pairs:
                below: Any = "background" if peer.shape[1] == 2 else "ignore"
                labels = cross_pseudo_labels(peer, c.cps_threshold, below)
                counted = mask & (labels >= 0).unsqueeze(1)
                terms[f"cps_{i}"] = c.cps_weight * masked_cross_entropy(own, labels.clamp_min(0), counted)
        if c.efs_weight:
            ignore = entropy_ignore_mask(*probs, c.entropy_percentile, mask, c.entropy_by_class)
            fused = fuse_labels(*probs)
            for i, (own, _) in pairs:
                terms[f"efs_{i}"] = c.efs_weight * entropy_filtered_loss(own, fused, ignore, mask)
        return terms

    def uncertainty_terms(self, a: Pair, b: Pair, masks: Pair) -> dict[str, Tensor]:
        """Return L_ue of both students from their logits for labelled and unlabelled patches, eq. 13-15."""
        c, as_code = self.config, self.config.preset == "code"
        if not c.ue_weight:
            return {}
        loss = partial(kl_weighted_cross_entropy, temperature=c.ue_temperature, hard=as_code)
        pairs, weight = [(1, a, b)] if as_code else [(1, a, b), (2, b, a)], (c.unlabelled_weight, c.ue_scope)
        return {f"ue_{i}": c.ue_weight * weigh_unlabelled(loss, own, peer, masks, *weight) for i, own, peer in pairs}

    def contrast_terms(
        self, features: list[Tensor], probs: Pair, mask: Tensor, dice: list[Tensor], step: int
    ) -> dict[str, Tensor]:
        """Return λ(t)·L_c, eq. 16-20, of the student with the higher Dice loss (student 2 on a tie)."""
        c = self.config
        weight = c.contrast_weight * gaussian_rampup(step, self.method_iterations - self.pretrain_iterations)
        options = {"third_term": THIRD_TERM[c.prototype_term], "sample_fraction": DRAWN_SHARE, "mask": mask}
        options["by_class"] = c.entropy_by_class
        pairs = [torch.unflatten(p, 0, (len(mask), -1)).unbind(1) for p in probs]  # one tensor for each region
        losses = []
        for z, own, peer in zip(features, pairs, pairs[::-1], strict=True):
            each = [
                prototype_contrast(z, p, q, c.prototype_percentile, **options) for p, q in zip(own, peer, strict=True)
            ]
            losses.append(c.unlabelled_weight * weight * torch.stack(each).mean())
        return {"contrast": torch.where(dice[0] > dice[1], losses[0], losses[1])}

    def after_step(self) -> None:
        """At the end of pre-training, let both optimisers forget the momentum of its loss."""
        if self.iteration == self.pretrain_iterations:
            self.restart_optimizers()
