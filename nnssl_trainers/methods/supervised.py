"""SupervisedTrainer: nnU-Net on the labelled scans alone, in the frame and with the iterations of the other methods.

Every comparison of methods includes this baseline. Two things differ from nnU-Net's own trainer: each batch is a pure
function of the seed, and the polynomial learning rate falls in every iteration, not in every epoch.
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
    """The settings of the supervised baseline; the defaults are the paper's settings."""

    presets: ClassVar[Mapping[str, Mapping[str, Value]]] = {"paper": {}}


class SupervisedTrainer(SemiSupervisedTrainer[SupervisedConfig]):
    """Dice and cross-entropy with deep supervision on the labelled cases (Isensee et al., Nature Methods 2021)."""

    config_class = SupervisedConfig
    uses_unlabelled: ClassVar[bool] = False

    def supervised_key(self) -> str:
        """Return the key by which other methods find this run, to start from it."""
        return self.key_of_supervised(self.settings.num_iterations)

    def training_losses(self, batch: Batch) -> dict[str, Tensor]:
        """Return nnU-Net's loss of the labelled patches."""
        return {"supervised": self.supervised_loss(as_list(self.network(batch.image_l)), batch)}
