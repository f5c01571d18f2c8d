"""MeanTeacherTrainer: Tarvainen and Valpola, Mean teachers are better role models, NeurIPS 2017.

A step uses labelled patches (x_l, y_l), and unlabelled patches in a weak and in a strong view (x_w, x_s):

1. The student θ predicts x_l and x_s in one forward pass.
2. The teacher θ' predicts x_w without a graph.
3. The loss is nnU-Net's Dice + cross-entropy on x_l  +  λ(t) · J (times `unlabelled_weight`), with
   J = E[‖f(x_s, θ) − f(x_w, θ')‖²]  (section 2 of the paper; the mean over classes and voxels that are not padding) and
   λ(t) = λ_max · exp(−5(1 − t/T)²), which rises over the first T iterations (appendix B of the paper).
4. After the optimiser step θ' ← α_t θ' + (1 − α_t) θ with α_t = min(1 − 1/(t + 1), α).

The teacher is deployed because the paper evaluates the teacher.

Departures from the paper:
- J uses the unlabelled patches only, because the labelled patches have labels. The paper uses all examples.
- nnU-Net's intensity augmentations replace the two noises η, η' of the paper. The weak view has only geometric
  augmentations; the strong view has many intensity augmentations. Both views share the geometry, so that their voxels
  correspond.
- Supervised loss, optimiser and learning rate are nnU-Net's, so that the gain over nnU-Net comes from the method.
- T is a share of the run, so that short and long runs follow the same curve. α is 0.99, as is usual in this field (the
  paper: 0.99 during the ramp-up, then 0.999).
- λ_max is 30 (the paper: 100 times the share of labelled examples, for image classification). With 1, J does not change
  a trained student; from random weights, with `preset=paper`, λ_max is 1, because there 10 slowed the learning from the
  labels (docs/results.md).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from nnssl.config import Value, hyper
from nnssl.ingredients.consistency import probability_mse
from nnssl.ingredients.perturb import add_shared_noise
from nnssl.ingredients.schedules import gaussian_rampup
from nnssl_trainers.frame.batch import Batch
from nnssl_trainers.frame.data_streams import StrongViewConfig
from nnssl_trainers.frame.stages import PAPER_CLOCK
from nnssl_trainers.frame.teacher_student import TeacherConfig, TeacherStudentTrainer

PAPER: dict[str, Value] = {"optimizer": "adamw", "learning_rate": 3e-3, "weight_decay": 0.0, "ema_decay": 0.999}
PAPER |= PAPER_CLOCK | {"learning_rate_schedule": "constant", "augmentation": "paper", "consistency_weight": 1.0}


@dataclass(frozen=True)
class MeanTeacherConfig(StrongViewConfig, TeacherConfig):
    """The settings of Mean Teacher."""

    presets: ClassVar[Mapping[str, Mapping[str, Value]]] = {"paper": PAPER}

    consistency_weight: float = hyper(30.0, "largest weight of the consistency term", "λ_max", low=0.0)
    rampup_share: float = hyper(0.4, "share of the run over which the weight rises", "T", low=0.0, high=1.0)
    noise_std: float = hyper(0.0, "standard deviation of noise on unlabelled patches, the same in both views", low=0.0)


class MeanTeacherTrainer(TeacherStudentTrainer[MeanTeacherConfig]):
    """Mean Teacher; the docstring of this module describes the algorithm and its departures from the paper."""

    config_class = MeanTeacherConfig

    def training_losses(self, batch: Batch) -> dict[str, Tensor]:
        """Return the supervised term and the consistency term of one step."""
        c, (weak, strong, mask) = self.config, batch.unlabelled
        weak, strong = add_shared_noise((weak, strong), c.noise_std)
        labelled, unlabelled = self.predict_together(batch.image_l, strong)
        target = self.teach(weak)
        length = c.rampup_share * self.method_iterations
        weight = c.unlabelled_weight * c.consistency_weight * gaussian_rampup(batch.iteration, length)
        consistency = probability_mse(self.probabilities(unlabelled[0]), target, mask)
        return {"supervised": self.supervised_loss(labelled, batch), "consistency": weight * consistency}
