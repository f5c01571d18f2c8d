"""FixMatchTrainer: Sohn et al., FixMatch, NeurIPS 2020, for segmentation; Yang et al., UniMatch, CVPR 2023.

The run has two stages: nnU-Net's supervised training, with a complete schedule of its own, and then, from its weights,
steps with labelled patches (x_l, y_l) and unlabelled patches in a weak and in a strong view (x_w, x_s):

1. The teacher, the moving average of the student, predicts P = softmax f'(x_w); ŷ = argmax P and κ = max P.
2. CutMix: in a random box, x_s, ŷ and κ take the voxels of another patch of the batch. All three are flipped.
3. Voxels count where κ ≥ τ and where the patch is no padding. With nnU-Net's loss (Dice + cross-entropy, deep
   supervision) L_l on x_l and L_u on x_s over these voxels, a step minimises (L_l + w·L_u) / (1 + w).
4. θ' ← α·θ' + (1 − α)·θ. The teacher is deployed.

`preset=two_stage`, the default, has τ = 0 and α = 0.99; w rises to 1 over the first tenth of the second stage as
exp(−5(1 − t/T)²). The classical recipes start from random weights:

- `preset=plain`: the student labels the patch that it has augmented, and learns the patch turned by 90° and flipped, in
  one loss with the labelled patches (w = 1, τ = 0). A twentieth of the run, 250 iterations at least, is supervised.
- `preset=fixmatch`: τ = 0.95, α = 0.996, w = 1, no CutMix.
- `preset=unimatch`: the student labels x_w; two strong views with CutMix, and one view with half of the channels of
  every skip connection dropped. L = ½·L_l + ½·(¼·D_1 + ¼·D_2 + ½·D_fp), D: Dice loss of all classes where κ ≥ 0.95.

Departures from the papers:
- FixMatch classifies images; τ holds for each voxel. `class_thresholds` gives each class a τ of its own, because nearly
  all background passes 0.95 and hardly any small structure does.
- The views are nnU-Net's: both share the geometry, and the strong view has intensity augmentation.
- Loss, optimiser, schedule and batch are nnU-Net's.
- A class that the teacher labels nowhere in an epoch is left out of L_u, so that it is not unlearned.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from nnssl.config import Value, hyper, parse_shares, redefine
from nnssl.errors import UsageError
from nnssl.ingredients.schedules import gaussian_rampup
from nnssl.ingredients.supervised import class_numbers, masked_dice
from nnssl.ingredients.symmetries import apply_symmetries, draw_symmetries
from nnssl_trainers.frame.architecture import unwrap
from nnssl_trainers.frame.augmentation import equal_axes
from nnssl_trainers.frame.batch import Batch, as_list, full_size_target
from nnssl_trainers.frame.data_streams import StrongViewConfig
from nnssl_trainers.frame.stages import PAPER_CLOCK
from nnssl_trainers.frame.teacher_student import TeacherConfig, TeacherStudentTrainer
from nnssl_trainers.parts.cutmix import cutmix_batch
from nnssl_trainers.parts.masked_nnunet_loss import MaskedNNUNetLoss

PLAIN: dict[str, Value] = {"supervised_share": 0.05, "supervised_least": 250, "restart": False, "deployed": "student"}
PLAIN |= {"labels_from": "student", "label_view": "strong", "joint_loss": True, "rampup_share": 0.0}
PLAIN |= {"cutmix_probability": 0.0, "turns": True}
CLASSICAL: dict[str, Value] = {"threshold": 0.95, "ema_decay": 0.996, "rampup_share": 0.0, "flips": False}
FIXMATCH = PAPER_CLOCK | CLASSICAL | {"cutmix_probability": 0.0}
UNIMATCH = PAPER_CLOCK | CLASSICAL | {"labels_from": "student", "deployed": "student", "strong_views": 2}
UNIMATCH |= {"feature_dropout": 0.5, "dice_only": True}


@dataclass(frozen=True)
class FixMatchConfig(StrongViewConfig, TeacherConfig):
    """The settings of FixMatch; the defaults are those of `preset=two_stage`."""

    presets: ClassVar[Mapping[str, Mapping[str, Value]]] = {
        "two_stage": {},
        "plain": PLAIN,
        "fixmatch": FIXMATCH,
        "unimatch": UNIMATCH,
        "paper": FIXMATCH,
    }
    ema_decay: float = redefine(TeacherConfig, "ema_decay", 0.99, symbol="α")
    restart: bool = hyper(True, "each stage has its own schedule and optimiser; off: one schedule over the run")
    labels_from: str = hyper("teacher", "the network that labels", choices=("teacher", "student"))
    label_view: str = hyper("weak", "the view that it labels", choices=("weak", "strong"))
    threshold: float = hyper(0.0, "confidence that a pseudo-label needs", "τ", low=0.0, high=1.0)
    class_thresholds: str = hyper("off", "τ of each class, background first: 0.95,0.7,0.7; off: threshold for all")
    rampup_share: float = hyper(0.1, "share of the second stage over which w rises to 1", low=0.0, high=1.0)
    cutmix_probability: float = hyper(0.5, "probability that a patch has a box of another patch", low=0.0, high=1.0)
    flips: bool = hyper(True, "flip the strong view and its pseudo-labels along nnU-Net's mirror axes")
    turns: bool = hyper(False, "turn them by 90° in a plane of equal axes")
    joint_loss: bool = hyper(False, "one loss over labelled and unlabelled patches; off: the mean of two losses")
    strong_views: int = hyper(1, "number of strong views", low=1, high=2)
    feature_dropout: float = hyper(
        0.0, "share of the channels of every skip dropped in a further view", low=0.0, high=0.9
    )
    dice_only: bool = hyper(False, "the loss on pseudo-labels is the Dice of all classes, without cross-entropy")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.class_thresholds != "off":
            parse_shares("class_thresholds", self.class_thresholds)


class FixMatchTrainer(TeacherStudentTrainer[FixMatchConfig]):
    """FixMatch; the docstring of this module describes the algorithm and its departures from the papers."""

    config_class = FixMatchConfig

    @property
    def restarts(self) -> bool:
        """Whether the second stage has optimisers and a schedule of its own."""
        return self.config.restart

    @property
    def strong_views(self) -> int:
        """Number of strong views of each unlabelled patch."""
        return self.config.strong_views

    def initialize(self) -> None:
        """Build student and teacher, the loss on pseudo-labels, and the thresholds."""
        super().initialize()
        labels, plan = self.label_manager, self.configuration_manager
        weights = tuple(getattr(self.loss, "weight_factors", (1.0,)))
        self.pseudo_loss = MaskedNNUNetLoss(weights, plan.batch_dice, labels.has_regions)
        self.turn_axes = sorted(equal_axes(plan.patch_size, plan.spacing)) if self.config.turns else []
        self.thresholds = self._thresholds(labels.num_segmentation_heads)

    def _thresholds(self, heads: int) -> Tensor:
        """Return τ of each class or region (C)."""
        text = self.config.class_thresholds
        values = parse_shares("class_thresholds", text) if text != "off" else [self.config.threshold] * heads
        if len(values) != heads:
            raise UsageError(
                f"class_thresholds has {len(values)} numbers for {heads} classes",
                where=f"--set class_thresholds={text}",
            )
        return torch.tensor(values, device=self.device)

    def training_losses(self, batch: Batch) -> dict[str, Tensor]:
        """Return (L_l + w·L_u) / (1 + w) as two terms, or one joint loss."""
        c, (weak, _, scan) = self.config, batch.unlabelled
        labels, counted = self.pseudo_labels_of(weak if c.label_view == "weak" else batch.strong_views[0], scan)
        views = [self.mix_and_move(strong, labels, counted) for strong in batch.strong_views]
        outputs = as_list(self.network(torch.cat([batch.image_l, *(image for image, _, _ in views)])))
        count = len(batch.image_l)
        known, others = [z[:count] for z in outputs], [self.without_lost_classes(z[count:]) for z in outputs]
        weight = c.unlabelled_weight * gaussian_rampup(batch.iteration, c.rampup_share * self.method_iterations)
        targets, masks = torch.cat([y for _, y, _ in views]), torch.cat([m for _, _, m in views])
        if c.joint_loss and weight:
            return {"joint": self.joint_loss(outputs, batch, targets, masks * min(1.0, weight))}
        loss = self.loss_on_pseudo_labels(others, targets, masks)
        if c.feature_dropout:
            loss = 0.5 * (loss + self.loss_on_pseudo_labels(self.drop_features(weak), labels, counted))
        return {"supervised": self.supervised_loss(known, batch) / (1 + weight), "pseudo": weight / (1 + weight) * loss}

    @torch.no_grad()
    def pseudo_labels_of(self, image: Tensor, scan: Tensor) -> tuple[Tensor, Tensor]:
        """Return ŷ (B, 1, *S), or regions (B, R, *S), and the mask (B, 1, *S) of the voxels that count."""
        network, regions = (
            self.teacher if self.config.labels_from == "teacher" else self.network,
            self.label_manager.has_regions,
        )
        probs = self.probabilities(as_list(network(image))[0])
        if regions:
            labels, sure = (probs >= 0.5).long(), torch.maximum(probs, 1 - probs)
            counted = (sure >= self.thresholds.view(-1, *[1] * (probs.ndim - 2))).all(1, keepdim=True)
        else:
            confidence, labels = probs.max(1, keepdim=True)
            counted = confidence >= self.thresholds[labels]
        self.count_taught_voxels(labels * scan)
        return labels, (counted & scan).float()

    def mix_and_move(self, image: Tensor, labels: Tensor, counted: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return image, labels and mask after CutMix within the batch, flips and turns."""
        c, tensors = self.config, cutmix_batch([image, labels, counted], self.config.cutmix_probability)
        flips: Any = (self.inference_allowed_mirroring_axes or ()) if c.flips else ()
        if flips or self.turn_axes:
            symmetries = draw_symmetries(len(image), flips, self.turn_axes)
            tensors = [apply_symmetries(x, symmetries) for x in tensors]
        return tensors[0], tensors[1].long(), tensors[2].float()

    def loss_on_pseudo_labels(self, outputs: list[Tensor], target: Tensor, mask: Tensor) -> Tensor:
        """Return nnU-Net's loss (0-d) where the mask is 1, or with `dice_only` the Dice loss of all classes."""
        if not self.config.dice_only:
            return self.pseudo_loss(outputs, target, mask)
        goal = target if self.label_manager.has_regions else target == class_numbers(outputs[0])
        return masked_dice(self.probabilities(outputs[0]), goal, mask, "squared_batch", epsilon=1e-5)

    def joint_loss(self, outputs: list[Tensor], batch: Batch, targets: Tensor, masks: Tensor) -> Tensor:
        """Return nnU-Net's loss (0-d) over labelled and unlabelled patches as one batch."""
        labelled, ignore = full_size_target(batch), self.label_manager.ignore_label
        known = torch.ones_like(labelled[:, :1], dtype=masks.dtype)
        if ignore is not None and self.label_manager.has_regions:
            labelled, known = labelled[:, :-1], 1 - labelled[:, -1:].to(masks.dtype)
        elif ignore is not None:
            labelled, known = labelled.masked_fill(labelled == ignore, 0), (labelled != ignore).to(masks.dtype)
        return self.pseudo_loss(outputs, torch.cat([labelled.long(), targets]), torch.cat([known, masks]))

    def drop_features(self, image: Tensor) -> list[Tensor]:
        """Return the outputs for an image when every skip connection loses a share of its channels."""
        network: Any = unwrap(self.network)
        skips = [
            functional.dropout1d(x.flatten(2), self.config.feature_dropout).view_as(x) for x in network.encoder(image)
        ]
        return as_list(network.decoder(skips))
