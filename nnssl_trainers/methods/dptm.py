"""DPTMTrainer: Mi et al., Dynamic thresholding and robust contrastive techniques, PLoS One 21(4): e0342567, 2026.

A step uses labelled patches (x_l, y_l), and unlabelled patches in a weak and in a strong view (x_w, x_s). C is the
number of classes.

1. The teacher predicts without a graph: P = softmax f'(x_w), confidence q = max_c P_c, pseudo-label ĉ = argmax_c P_c.
2. The threshold map follows the confidence: M ← α·M + (1 − α)·mean q; M starts at 1/C                       (eq. 5-6)
   Class scales k_c = s_c / max_c' s_c', where s_c is the mean of q over ĉ = c; an absent class keeps its scale (7-8)
   Thresholds M_c = k_c·M (eq. 9); weights γ = q·1[q > M_ĉ]                                                   (eq. 10)
3. L_rem = −1/N Σ_v γ_v·log softmax(f(x_s)_v / τ)[ĉ_v] over the N voxels that are not padding               (eq. 11-12)
4. L_cc = NT-Xent with temperature τ_c between two sets of encoder features (deepest stage, mean over space): those of
   the student's patches x_l and x_s, and those of an augmented copy of x_l and x_w                          (eq. 13-14)
5. L = L_sup + λ_u·L_rem + λ_c·L_cc (eq. 4), where L_sup is nnU-Net's loss of f(x_l) against y_l                (eq. 2)
6. After the optimiser step θ' ← β_t·θ' + (1 − β_t)·θ, β_t = min(1 − 1/(t + 1), β)                               (eq. 1)

The teacher is deployed; the paper says only that inference uses the plain network.

The equations follow the description in the paper's text. Departures, and choices where the paper is silent:
- The paper's M has the pixels of centre-cropped slices. Patches from random places would mix places. Here M is a grid
  over the whole scan, with at most as many cells along an axis as the median scan has voxels. A patch reads and writes
  the cells at its place before rotation and scaling. `map_frame=patch` follows the paper literally.
- The paper does not give α, β, τ, τ_c and λ_u. They are 0.99, 0.99, 0.5, 0.1, and 0.5 with a ramp-up over the first
  20 % of the run.
- nnU-Net's loss (`ce_only` leaves Dice out), optimiser, schedule, batch and augmentation replace the paper's
  cross-entropy, SGD with momentum 0.9 and weight decay 5e-4, cosine schedule, batch of 16 and geometric augmentation.
- The contrastive copy has a crop, contrast, brightness, noise and a cut-out box; the paper does not give strengths.
- Padding does not count: neither in M, s and N nor as a label.
- Each region is a problem with the two classes p and 1 − p; all regions share one map and one pair of class scales.
- `unlabelled_weight` is a factor of L_rem and of L_cc, which compares labelled patches with unlabelled ones.
- With several processes, M and s use the confidences of all processes; L_cc contrasts the patches of one process.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from nnssl.config import Value, hyper, redefine
from nnssl.ingredients.consistency import robust_cross_entropy
from nnssl.ingredients.contrastive import nt_xent
from nnssl.ingredients.perturb import augment_patches
from nnssl.ingredients.schedules import sigmoid_rampup
from nnssl.ingredients.thresholds import DynamicThresholdMap
from nnssl_trainers.frame.architecture import unwrap
from nnssl_trainers.frame.batch import Batch, as_list
from nnssl_trainers.frame.data_streams import StrongViewConfig
from nnssl_trainers.frame.stages import PAPER_CLOCK
from nnssl_trainers.frame.teacher_student import TeacherConfig, TeacherStudentTrainer
from nnssl_trainers.parts.encoder_features import EncoderFeatures
from nnssl_trainers.parts.region_logits import class_logits
from nnssl_trainers.parts.shared_passes import whole

CELLS = {2: 64, 3: 32}  # cells of the threshold map along each axis, by number of axes
PAPER: dict[str, Value] = {"learning_rate": 0.01, "learning_rate_schedule": "cosine", "weight_decay": 5e-4}
PAPER |= PAPER_CLOCK | {"optimizer": "sgd", "momentum": 0.9, "nesterov": False, "ce_only": True}


@dataclass(frozen=True)
class DPTMConfig(StrongViewConfig, TeacherConfig):
    """The settings of DPTM."""

    presets: ClassVar[Mapping[str, Mapping[str, Value]]] = {"paper": PAPER}

    ema_decay: float = redefine(TeacherConfig, "ema_decay", 0.99, symbol="β (eq. 1)")
    pseudo_label_weight: float = hyper(0.5, "largest weight of the pseudo-labels", "λ_u (eq. 4)", low=0.0)
    rampup_share: float = hyper(0.2, "share of the run over which pseudo_label_weight rises", low=0.0, high=1.0)
    contrast_weight: float = hyper(0.1, "weight of the contrastive term; 0: no such term", "λ_c (eq. 4)", low=0.0)
    threshold_map: bool = hyper(True, "thresholds follow the confidence; off: fixed_threshold everywhere")
    fixed_threshold: float = hyper(0.95, "the threshold where threshold_map is off", low=0.0, high=1.0)
    threshold_momentum: float = hyper(0.99, "weight of the old threshold map", "α (eq. 6)", low=0.0, high=1.0)
    map_frame: str = hyper("image", "the map covers the whole scan (image) or one patch", choices=("image", "patch"))
    map_cells: int = hyper(0, "cells of the scan's map along each axis; 0: 64 in 2-D, 32 in 3-D", low=0)
    robust_entropy: bool = hyper(True, "use weights and temperature; off: plain cross-entropy above the threshold")
    hard: bool = hyper(False, "weigh voxels above the threshold by 1 instead of their confidence", "γ (eq. 10)")
    temperature: float = hyper(0.5, "temperature of the student against pseudo-labels", "τ (eq. 12)", low=0.01)
    contrast_temperature: float = hyper(0.1, "temperature of the contrastive term", "τ_c (eq. 13)", low=0.01)
    projection_dim: int = hyper(0, "features after a projection by two layers; 0: no projection", low=0)
    ce_only: bool = hyper(False, "the loss on labels is cross-entropy without Dice", "eq. 2")


class DPTMTrainer(TeacherStudentTrainer[DPTMConfig]):
    """DPTM; the docstring of this module describes the algorithm and its departures from the paper."""

    config_class = DPTMConfig
    needs_boxes: ClassVar[bool] = True

    def initialize(self) -> None:
        """Build student and teacher, the threshold map, and the parts of the contrastive term."""
        super().initialize()
        c, regions = self.config, self.label_manager.has_regions
        if c.ce_only:
            getattr(self.loss, "loss", self.loss).weight_dice = 0
        self.threshold_map = DynamicThresholdMap(
            2 if regions else self.label_manager.num_segmentation_heads,
            self.map_shape(),
            c.threshold_momentum,
            None if c.threshold_map else c.fixed_threshold,
        ).to(self.device)
        self.projection: nn.Module = nn.Identity()
        if c.contrast_weight:
            network: Any = unwrap(self.network)
            self.features = EncoderFeatures(network)
            self.encoder: Any = torch.compile(network.encoder) if self._do_i_compile() else network.encoder
            if c.projection_dim:
                self.add_projection(self.features.width)

    def map_shape(self) -> list[int]:
        """Return the number of cells of the threshold map along each axis."""
        plan = self.configuration_manager
        if self.config.map_frame == "patch":
            return list(plan.patch_size)
        cells = self.config.map_cells or CELLS[len(plan.patch_size)]
        return [min(cells, max(1, round(size))) for size in plan.median_image_size_in_voxels]

    def add_projection(self, width: int) -> None:
        """Add two layers after the features; the student's optimiser trains the layers."""
        layers = nn.Linear(width, width), nn.ReLU(), nn.Linear(width, self.config.projection_dim)
        self.projection = nn.Sequential(*layers).to(self.device)
        self.train_with_student(self.projection)

    def training_losses(self, batch: Batch) -> dict[str, Tensor]:
        """Return the weighted terms of eq. 4, without the terms whose weight is 0."""
        c, w = self.config, self.config.unlabelled_weight
        weak, strong, mask = batch.unlabelled
        labelled, unlabelled = self.predict_together(batch.image_l, strong)
        terms = {"supervised": self.supervised_loss(labelled, batch)}
        if c.contrast_weight:
            seen = whole(self.network, self.features.take())
            self.encoder(augment_patches(torch.cat([batch.image_l, weak])))
            first, second = self.projection(torch.cat([seen, self.features.take()])).chunk(2)
            terms["contrast"] = w * c.contrast_weight * nt_xent(first, second, c.contrast_temperature)
        if c.pseudo_label_weight:
            rampup = sigmoid_rampup(batch.iteration, c.rampup_share * self.method_iterations)
            weight = w * c.pseudo_label_weight * rampup
            terms["pseudo_label"] = weight * self.pseudo_label_loss(unlabelled[0], weak, mask, batch.box_u)
        return terms

    def pseudo_label_loss(self, logits: Tensor, weak: Tensor, mask: Tensor, boxes: Tensor | None) -> Tensor:
        """Return L_rem of the student's logits (B, C, *S) against the teacher's labels of the weak view, eq. 5-12."""
        c, regions = self.config, self.label_manager.has_regions
        with torch.no_grad():
            probs = class_logits(as_list(self.teacher(weak))[0], regions).softmax(1)
        problems = len(probs) // len(mask)  # per patch: one, or one for each region
        mask = mask.repeat_interleave(problems, 0)
        boxes = boxes.repeat_interleave(problems, 0) if boxes is not None and c.map_frame == "image" else None
        if c.threshold_map:
            self.threshold_map.update(probs, boxes, mask)
        weights = self.threshold_map.weights(probs, boxes, c.hard or not c.robust_entropy)
        temperature = c.temperature if c.robust_entropy else 1.0
        return robust_cross_entropy(class_logits(logits, regions), probs.max(1).indices, weights, temperature, mask)

    def extra_content(self) -> dict[str, Any]:
        """Return the threshold map and its class scales, which every checkpoint keeps; see `plot_threshold_map`."""
        return {"threshold_map": self.threshold_map.state_dict()}

    def state(self) -> dict[str, Any]:
        """Return the state, including the threshold map and the projection."""
        parts = {"threshold_map": self.threshold_map, "projection": unwrap(self.projection)}
        return {**super().state(), **{name: part.state_dict() for name, part in parts.items()}}

    def load_state(self, state: dict[str, Any]) -> None:
        """Restore a state that includes a threshold map and a projection."""
        super().load_state(state)
        self.threshold_map.load_state_dict(state["threshold_map"])
        unwrap(self.projection).load_state_dict(state["projection"])
