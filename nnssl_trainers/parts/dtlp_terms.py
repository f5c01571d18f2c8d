"""The terms of DTLP-Net's loss, from the outputs of its decoders."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from nnssl.ingredients.consistency import relative_l2, soft_dice_distillation
from nnssl.ingredients.supervised import class_numbers, dice_of_labels
from nnssl.ingredients.thresholds import DifficultyWeights
from nnssl.networks.denoising import decode
from nnssl_trainers.parts.dice_ce_loss import DiceCELoss
from nnssl_trainers.parts.dtlp_branches import DTLPBranches
from nnssl_trainers.parts.dtlp_lessons import Lesson
from nnssl_trainers.parts.dtlp_settings import DTLPSettings
from nnssl_trainers.parts.masked_mixing import LabelledPatches
from nnssl_trainers.parts.region_logits import class_logits

ABSENT = 0.5  # the Dice that the smoothing of A&D's code gives an absent class


@dataclass(frozen=True)
class DTLPTerms:
    """The terms that are more than a `DiceCELoss`.

    Attributes:
        config: settings of the method.
        branches: holds the correlation head.
        dice_ce: the loss against labels.
        difficulty: weights of the classes in L_diff.
        regions: the channels of the logits are regions.
    """

    config: DTLPSettings
    branches: DTLPBranches
    dice_ce: DiceCELoss
    difficulty: DifficultyWeights
    regions: bool

    def labelled(self, network: nn.Module, known: LabelledPatches, features: list[Tensor]) -> dict[str, Tensor]:
        """Return the weighted terms L_deno, L_diff and the labelled part of L_corr, without those of weight 0.

        Args:
            network: the deployed network.
            known: the labelled patches.
            features: of its encoder for them, the finest first.
        """
        c, terms, target = self.config, {}, (known.labels, known.mask)
        xi, of_xi = self.branches.denoise(network, known.image, self.signed_maps(known, self.branches.heads))
        psi = decode(self.branches.psi, features, known.image.shape[2:])
        if c.denoising_weight:
            terms["labelled_xi"] = c.denoising_weight * self.dice_ce(xi, *target)
        if c.difficulty_weight:
            weights = self.class_weights(xi[0].detach(), known)
            terms["labelled_psi"] = c.difficulty_weight * self.dice_ce(psi, *target, weights)
        if c.correlation_weight:
            deep, logits = (features, psi[0]) if c.correlation_labelled == "psi" else (of_xi, xi[0])
            terms["labelled_correlation"] = c.correlation_weight * self.correlation(deep, logits, known)
        return terms

    def signed_maps(self, known: LabelledPatches, heads: int) -> Tensor:
        """Return y_0 (B, K, *S) in fp32: 1 at a voxel's class or in its regions, else −1; −1 without a label."""
        labels = (
            known.labels
            if self.regions
            else known.labels == class_numbers(known.image.new_empty(1, heads, *[1] * (known.image.ndim - 2)))
        )
        return (labels * known.mask) * 2.0 - 1.0

    def class_weights(self, logits: Tensor, known: LabelledPatches) -> Tensor | None:
        """Return the weights (C,) of the classes in L_diff after ξ's prediction (B, K, *S); None without weights."""
        if self.config.difficulty == "off":
            return None
        z, labels = class_logits(logits, self.regions), known.labels.flatten(0, 1)
        dice = dice_of_labels(z.argmax(1), labels, z.shape[1], known.mask.repeat_interleave(known.labels.shape[1], 0))
        return self.difficulty.update(dice.nan_to_num(ABSENT) if self.config.difficulty == "adnd" else dice)

    def correlation(self, features: Sequence[Tensor], logits: Tensor, target: LabelledPatches) -> Tensor:
        """Return the loss of logits (B, K, *S) that the correlation of features remixes, eq. 18-21."""
        c, head = self.config, self.branches.head
        assert head is not None
        values = logits.detach() if c.correlation_detach else logits
        remixed = head(features, values, c.correlation, c.correlation_scale)
        return self.dice_ce([remixed], target.labels, target.mask)

    def distillation(self, logits: Tensor, lesson: Lesson, scan: Tensor) -> Tensor:
        """Return the Dice distance of θ's logits (B, K, *S) to ξ's sample and to ψ, where `scan` is True, eq. 17."""
        first = lesson.first
        assert first is not None
        sample = first.raw if self.config.kd_source == "raw" else first.clamped
        p, of_xi, of_psi = (class_logits(z, self.regions).softmax(1) for z in (logits, sample, first.psi))
        mask = scan.repeat_interleave(len(p) // len(scan), 0)
        return soft_dice_distillation(p, of_xi, mask) + soft_dice_distillation(p, of_psi, mask)

    def reconstruction(self, logits: Tensor, deepest: Tensor, lesson: Lesson, scan: Tensor) -> Tensor:
        """Return the relative distance of masked patches to the second teacher's view of the whole patches, eq. 16.

        The paper's text and its symbols speak of logits, its conclusion of the feature level; `rec_space` chooses.

        Args:
            logits: θ's logits (B_l + B_u, K, *S) for masked patches.
            deepest: the encoder's deepest features (B_l + B_u, C, *S') for them.
            lesson: the second teacher's predictions for the whole patches.
            scan: (B_l + B_u, 1, *S), False = padding.
        """
        assert lesson.logits is not None
        assert lesson.features is not None
        if self.config.rec_space == "features":
            return relative_l2(deepest, lesson.features)
        if self.config.rec_space == "logits":
            return relative_l2(logits, lesson.logits, scan)
        own, target = (z.float().sigmoid() if self.regions else z.float().softmax(1) for z in (logits, lesson.logits))
        return relative_l2(own, target, scan)
