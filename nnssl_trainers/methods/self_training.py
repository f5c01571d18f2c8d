"""SelfTrainingTrainer: Huang et al., Revisiting nnU-Net for iterative pseudo labeling, FLARE 2022 (LNCS 13816).

The run has three stages, with labelled scans (x_l, y_l) and unlabelled scans x_u:

1. nnU-Net's supervised training on the labels, with a complete schedule of its own.
2. Its network f predicts every unlabelled whole scan, mirrored copies averaged: ŷ = argmax softmax f(x_u), with the
   confidence κ = max softmax f(x_u). Labels and confidence are stored, and each scan gets a score, the mean confidence
   of its structures. The worst scans are left out, and voxels with κ < 0.7 do not count.
3. A network with new random weights learns labelled and pseudo-labelled patches, as many of the one as of the other:
   with nnU-Net's loss (Dice + cross-entropy, deep supervision) L_l on (x_l, y_l) and L_p on (x_u, ŷ), over the voxels
   that count, a step minimises (L_l + w·L_p) / (1 + w). The last 15 % of the stage use the labels alone.

The last weights are deployed.

Departures from the paper:
- One round; the paper has three. One network labels; in the paper's first round five do, of a cross-validation.
- Labelled and pseudo-labelled patches are 1 : 1. The paper pools the cases, so that a few labelled cases are hardly
  seen among many pseudo-labelled ones.
- The paper drops the 4 % of the cases whose labels change most between its rounds. Here a missing structure, a volume
  far outside those of the labelled scans, or a low confidence speaks against a scan, and unsure voxels do not count.
- Where a structure is one component in every labelled scan, its pseudo-labels keep the largest component only.
- Pseudo-labelled patches have stronger intensity augmentation, and CutMix within the batch.
- The paper ends with all cases; the end on real labels alone follows noisy-student recipes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nnssl.config import hyper
from nnssl_trainers.frame.architecture import unwrap
from nnssl_trainers.frame.batch import Batch, as_list
from nnssl_trainers.frame.data_streams import StrongViewConfig
from nnssl_trainers.frame.stored_labels import StoredLabelsConfig, StoredLabelsTrainer
from nnssl_trainers.parts.cutmix import cutmix_batch
from nnssl_trainers.parts.lost_classes import without_classes
from nnssl_trainers.parts.masked_nnunet_loss import MaskedNNUNetLoss


@dataclass(frozen=True)
class SelfTrainingConfig(StrongViewConfig, StoredLabelsConfig):
    """The settings of self-training."""

    restart_weights: bool = hyper(
        True, "the last stage starts from new random weights; off: from the labelling network"
    )
    cutmix_probability: float = hyper(
        0.5, "probability that a pseudo-labelled patch has a box of another one", low=0.0, high=1.0
    )
    finetune_share: float = hyper(0.15, "share of the last stage, at its end, on labels alone", low=0.0, high=0.9)


class SelfTrainingTrainer(StoredLabelsTrainer[SelfTrainingConfig]):
    """Self-training; the docstring of this module describes the algorithm and its departures from the paper."""

    config_class = SelfTrainingConfig

    def initialize(self) -> None:
        """Build the network and the loss on pseudo-labels."""
        super().initialize()
        weights = tuple(getattr(self.loss, "weight_factors", (1.0,)))
        batch_dice, regions = self.configuration_manager.batch_dice, self.label_manager.has_regions
        self.pseudo_loss = MaskedNNUNetLoss(weights, batch_dice, regions)

    @property
    def finetune_begin(self) -> int:
        """Iteration from which on only labelled patches are learned."""
        return self.settings.num_iterations - round(self.config.finetune_share * self.method_iterations)

    @property
    def draws_unlabelled(self) -> bool:
        """Whether the streams hold pseudo-labelled patches: in the third stage, but not at its end."""
        return super().draws_unlabelled and self.iteration < self.finetune_begin

    def label_scans(self) -> None:
        """Label the unlabelled scans, and give the network new random weights from the seed of the run plus 1."""
        super().label_scans()
        if self.method_begin is None:
            return
        torch.manual_seed(self.settings.seed + 1)  # the same numbers follow where the labelling was interrupted
        if (
            self.config.restart_weights and not self.settings.pseudo_labels
        ):  # otherwise this network has labelled nothing
            unwrap(self.network).load_state_dict(self.new_network().state_dict())

    def before_step(self) -> None:
        """Begin the stage that is due, and leave pseudo-labelled patches out of the streams when their time is over."""
        super().before_step()
        if self.method_begin is not None and self.method_begin < self.iteration == self.finetune_begin:
            self.reopen_streams()

    def training_losses(self, batch: Batch) -> dict[str, Tensor]:
        """Return (L_l + w·L_p) / (1 + w) as two terms; without pseudo-labelled patches L_l."""
        if batch.target_u is None:
            return self.supervised_losses(batch)
        images, target, counted = self.mixed_patches(batch)
        outputs, count = as_list(self.network(torch.cat([batch.image_l, images]))), len(batch.image_l)
        known, others = [z[:count] for z in outputs], [z[count:] for z in outputs]
        weight, regions = self.config.unlabelled_weight, self.label_manager.has_regions
        loss = self.pseudo_loss([without_classes(z, self.lost_classes, regions) for z in others], target, counted)
        return {"supervised": self.supervised_loss(known, batch) / (1 + weight), "pseudo": weight / (1 + weight) * loss}

    def mixed_patches(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Return pseudo-labelled patches after CutMix: images (B, C, *S), labels and mask (B, 1, *S).

        Where the data set has regions, the labels are regions (B, R, *S).
        """
        labels, counted = batch.stored_labels
        image, labels, counted = cutmix_batch([batch.unlabelled[1], labels, counted], self.config.cutmix_probability)
        if self.label_manager.has_regions:
            values: list[Any] = [torch.tensor(region, device=labels.device) for region in self.structures]
            labels = torch.cat([torch.isin(labels.long(), each) for each in values], 1)
        return image, labels.long(), counted.float()
