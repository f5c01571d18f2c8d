"""SupervisedTrainer: nnU-Net on the labelled few, in the same frame and at the same budget as every other method.

Each comparison has it beside it. Differences from nnU-Net's own trainer: the batches are a pure function of the seed,
and the polynomial learning rate falls every iteration instead of every epoch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from nnssl.config import MethodConfig, Value
from nnssl_trainers.frame.batch import Batch, as_list
from nnssl_trainers.frame.trainer import SemiSupervisedTrainer


@dataclass(frozen=True)
class SupervisedConfig(MethodConfig):
    """Settings of the supervised baseline; the paper's are the defaults."""

    presets: ClassVar[Mapping[str, Mapping[str, Value]]] = {"paper": {}}


class SupervisedTrainer(SemiSupervisedTrainer[SupervisedConfig]):
    """Dice and cross-entropy with deep supervision on the labelled cases (Isensee et al., Nature Methods 2021)."""

    config_class = SupervisedConfig
    uses_unlabelled: ClassVar[bool] = False

    def training_losses(self, batch: Batch) -> dict[str, Tensor]:
        """Return nnU-Net's loss."""
        return {"supervised": self.supervised_loss(as_list(self.network(batch.image_l)), batch)}
