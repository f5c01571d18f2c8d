"""What DTLP-Net's two teachers predict for the patches of a step, and the pseudo-labels that follow."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nnssl.ingredients.perturb import gaussian_blur, gumbel_softmax
from nnssl.ingredients.pseudo_labels import entropy_weighted_ensemble
from nnssl.networks.denoising import decode, encode
from nnssl_trainers.parts.dtlp_branches import DTLPBranches, FirstTeacher
from nnssl_trainers.parts.dtlp_settings import DTLPSettings
from nnssl_trainers.parts.region_logits import class_logits

LABELS = {"pseudo", "mix", "mic", "correlation"}  # the terms that learn from pseudo-labels


@dataclass(frozen=True)
class Lesson:
    """The teachers' predictions for labelled patches and, after them, for unlabelled ones.

    Attributes:
        labels: pseudo-labels of the unlabelled patches, (B_u, 1, *S), or (B_u, R, *S) for regions; None where no term
            needs them.
        labels_l: pseudo-labels of the labelled patches; None where no term needs them.
        first: the first teacher's predictions for the unlabelled patches; None where no term needs them.
        logits: the second teacher's logits (B_l + B_u, K, *S); None where L_rec does not need them.
        features: the second teacher's deepest features (B_l + B_u, C, *S'); None as the logits.
    """

    labels: Tensor | None = None
    labels_l: Tensor | None = None
    first: FirstTeacher | None = None
    logits: Tensor | None = None
    features: Tensor | None = None


@dataclass(frozen=True)
class Teachers:
    """Both teachers of a step.

    Attributes:
        config: settings of the method.
        branches: decoders ξ and ψ.
        network: the deployed network, whose encoder both decoders share.
        average: the moving average of the deployed network.
        regions: the channels of the logits are regions.
    """

    config: DTLPSettings
    branches: DTLPBranches
    network: Any
    average: Any
    regions: bool

    @torch.no_grad()
    def teach(self, image_l: Tensor, image_u: Tensor, terms: Collection[str]) -> Lesson:
        """Return what some terms need; teachers that no term needs do not predict.

        Args:
            image_l: labelled patches (B_l, C_in, *S).
            image_u: unlabelled patches (B_u, C_in, *S), in the teachers' view.
            terms: names of the terms, see `DTLPSettings.unlabelled_weights`.
        """
        which, needs_labels = self.config.teachers, bool(LABELS & set(terms))
        both_sets = self.config.cutmix_labels == "teacher" and "mix" in terms
        image = torch.cat([image_l, image_u]) if both_sets else image_u
        count, all_images = len(image_u), image
        first = second = features = None
        if "kd" in terms or (needs_labels and which != "second"):
            first = self.branches.teach(self.network, image)
        if "rec" in terms or (needs_labels and which != "first"):
            all_images = torch.cat([image_l, image_u]) if "rec" in terms else image
            stages = encode(self.average, all_images)
            second, features = decode(self.average.decoder, stages, image.shape[2:])[0], stages[-1]
        labels = self.pseudo_labels(first, second, len(image)) if needs_labels else None
        return Lesson(
            labels=None if labels is None else labels[-count:],
            labels_l=labels[:-count] if labels is not None and both_sets else None,
            first=None if first is None else FirstTeacher(*(z[-count:] for z in (first.psi, first.raw, first.clamped))),
            logits=second if "rec" in terms else None,
            features=features if "rec" in terms else None,
        )

    def pseudo_labels(self, first: FirstTeacher | None, second: Tensor | None, count: int) -> Tensor:
        """Return ŷ of the last patches, eq. 7-10: LongTensor (count, 1, *S), or (count, R, *S) for regions.

        Args:
            first: predictions of ξ and ψ for these patches; None without the first teacher.
            second: logits (B, K, *S) of the moving average, B >= count; None without the second teacher.
            count: number of patches.
        """
        which = self.config.teachers
        if which == "first" and first is not None:
            probs = self.first_probabilities(first)
        elif which == "second" and second is not None:
            probs = class_logits(second[-count:], self.regions).softmax(1)
        else:
            assert first is not None
            assert second is not None
            of_average = class_logits(second[-count:], self.regions).softmax(1)
            probs, _ = entropy_weighted_ensemble(self.first_probabilities(first), of_average)
        labels = probs.argmax(1)
        return labels.view(count, -1, *labels.shape[1:])

    def first_probabilities(self, first: FirstTeacher) -> Tensor:
        """Return p_1, eq. 7: (B, K, *S), or (B·R, 2, *S) for regions."""
        noisy = gumbel_softmax(class_logits(first.clamped, self.regions), self.config.gumbel_temperature)
        sample = gaussian_blur(noisy, border=self.config.blur_border)
        return 0.5 * (sample + class_logits(first.psi, self.regions).softmax(1))
