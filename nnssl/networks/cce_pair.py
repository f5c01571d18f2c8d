"""The two sub-networks of the dual network with uncertainty-guided labels, deployed as one averaging network."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from nnssl.networks import plans_entry
from nnssl.networks.mean import MeanOfNetworks
from nnssl.networks.outputs import pool_outputs


class CCEPair(MeanOfNetworks):
    """Mean of the class probabilities of `resnet34_vnet` and `vnet`, returned as logits.

    The network has 27,379,220 parameters in 3-D for four poolings by two, one channel and two classes. The weights have
    the names that the mean of these two students has in the checkpoint of `CCETrainer`.

    Args:
        input_channels: image channels.
        num_classes: output channels, with the background.
        patch_size: accepted because plans contain it; the network fits any size.
        strides: pooling steps of every stage; the first entry is all ones.
        deep_supervision: return the logits at every resolution except the coarsest;
            `network.decoder.deep_supervision` changes this later.
        dropout: probability of every dropout layer.
        sigmoid: the channels are regions instead of exclusive classes.

    Reference: Lu et al., Enhancing dual network based semi-supervised medical image segmentation with
    uncertainty-guided pseudo-labeling, Knowledge-Based Systems 2025.
    """

    def __init__(  # noqa: PLR0913, PLR0917 - nnU-Net's arguments, and two options
        self,
        input_channels: int,
        num_classes: int,
        patch_size: Sequence[int],
        strides: Sequence[Sequence[int]],
        deep_supervision: bool = False,
        dropout: float = 0.5,
        sigmoid: bool = False,
    ) -> None:
        plan = {"patch_size": patch_size, "architecture": {"arch_kwargs": {"strides": strides}}}
        members = [plans_entry(name, plan, dropout=dropout) for name in ("resnet34_vnet", "vnet")]
        super().__init__(input_channels, num_classes, members, strides, sigmoid, deep_supervision)
        self.strides = tuple(map(tuple, strides))

    def forward(self, image: Tensor) -> Tensor | list[Tensor]:
        """Return logits (B, num_classes, *S) for an image (B, input_channels, *S); a list with deep supervision."""
        outputs = super().forward(image)
        return pool_outputs(outputs[0], self.strides) if isinstance(outputs, list) else outputs
