"""SelfTrainingTrainer: Huang et al., Revisiting nnU-Net for iterative pseudo labeling, FLARE 2022 (LNCS 13816).

The run has three stages, with labelled scans (x_l, y_l) and unlabelled scans x_u:

1. nnU-Net's supervised training on the labels, with a complete schedule of its own.
2. Its network f predicts every unlabelled whole scan, mirrored copies averaged: ŷ = argmax softmax f(x_u), with the
   confidence κ = max softmax f(x_u). Labels and confidence are stored, and each scan gets a score, the mean confidence
   of its structures. The worst scans are left out, and voxels with κ < 0.7 do not count.
3. A network with new random weights learns labelled and pseudo-labelled patches, as many of the one as of the other:
   with nnU-Net's loss (Dice + cross-entropy, deep supervision) L_l on (x_l, y_l) and L_p on (x_u, ŷ), over the voxels
   that count, a step minimises (L_l + w·L_p) / (1 + w). The last 15 % of the stage use the labels alone.

With `members=n` the first stage trains n networks one after the other, each for its share of the stage with its own
seed and schedule; they label together: ŷ and κ are those of the mean probabilities, and the score of a scan is the mean
Dice of all pairs of networks. With `rounds=2` the third stage has two halves; before the second, its network labels the
scans anew, and a further network starts.

The last weights are deployed.

Departures from the paper:
- One round and one labelling network are the defaults (`rounds`, `members`). The paper has three rounds; in the first
  one five networks label, of a cross-validation.
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
from nnssl_trainers.frame.batch import Batch, as_list
from nnssl_trainers.frame.data_streams import StrongViewConfig
from nnssl_trainers.frame.rounds import RoundsConfig, RoundsTrainer
from nnssl_trainers.parts.cutmix import cutmix_batch
from nnssl_trainers.parts.lost_classes import without_classes
from nnssl_trainers.parts.masked_nnunet_loss import MaskedNNUNetLoss


@dataclass(frozen=True)
class SelfTrainingConfig(StrongViewConfig, RoundsConfig):
    """The settings of self-training."""

    cutmix_probability: float = hyper(
        0.5, "probability that a pseudo-labelled patch has a box of another one", low=0.0, high=1.0
    )


class SelfTrainingTrainer(RoundsTrainer[SelfTrainingConfig]):
    """Self-training; the docstring of this module describes the algorithm and its departures from the paper."""

    config_class = SelfTrainingConfig

    def initialize(self) -> None:
        """Build the network and the loss on pseudo-labels."""
        super().initialize()
        weights = tuple(getattr(self.loss, "weight_factors", (1.0,)))
        batch_dice, regions = self.configuration_manager.batch_dice, self.label_manager.has_regions
        self.pseudo_loss = MaskedNNUNetLoss(weights, batch_dice, regions)

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
