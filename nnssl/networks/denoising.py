"""A decoder that denoises label maps, beside a segmentation network whose encoder it shares."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from nnssl.errors import UsageError
from nnssl.networks.layers import pad_to_multiple

CODE, TIME = 128, 512  # numbers of the time code, and after its two layers


def time_code(t: Tensor, size: int = CODE) -> Tensor:
    """Return sines and cosines of diffusion steps.

    [sin(t·w_i), cos(t·w_i)] with w_i = 10000^(−i/(n − 1)), i = 0 .. n − 1, n = size / 2

    Args:
        t: LongTensor (B,), steps >= 0.
        size: an even number above 2.

    Returns:
        (B, size), in [−1, 1], fp32.
    """
    half = size // 2
    rates = torch.exp(torch.arange(half, device=t.device) * (-math.log(1e4) / (half - 1)))
    angles = t.float().unsqueeze(1) * rates
    return torch.cat([angles.sin(), angles.cos()], 1)


class DenoisingBranch(nn.Module):
    """The parts that let a segmentation network denoise label maps: second stem, time code, and a decoder of its own.

    The noised map and the image go through one convolution, which is the sum of a convolution of the image and one of
    the map. Then follow copies of the other layers of the encoder's first stage, or of its stem, and then the shared
    stages of the encoder. The time code is added in the encoder and in the decoder: after each stage of nnU-Net's
    networks; in DiffVNet after each change of size and after all convolutions of a stage but the last. A pass does not
    use the encoder's own stem.

    Args:
        network: a DiffVNet, or a network of nnU-Net with convolutional encoder; it stays unchanged and is not part of
            this module.
        decoder: a decoder for the features of the network's encoder; it becomes part of this module.
        maps: number of channels of the noised map.

    Raises:
        UsageError: the network is of another kind.

    Reference: Wang and Li, A&D, NeurIPS 2023, Diff-VNet; Li et al., DTLP-Net, arXiv 2508.08549, section III; Ho et al.,
    Denoising diffusion probabilistic models, NeurIPS 2020, the time code.
    """

    def __init__(self, network: nn.Module, decoder: nn.Module, maps: int) -> None:
        super().__init__()
        check_can_denoise(network)
        encoder: Any = network.encoder
        self.image_stem, self.map_stem, self.rest_of_stem = _split_first_convolution(_first_stage(encoder), maps)
        self.time = nn.Sequential(nn.Linear(CODE, TIME), nn.SiLU(), nn.Linear(TIME, TIME), nn.SiLU())
        self.encoder_shifts = _shift_layers(shift_widths(encoder))
        self.decoder_shifts = _shift_layers(shift_widths(decoder, encoder.output_channels))
        self.decoder = detach_encoder(decoder)
        self.multiples = getattr(network, "multiples", None)

    def copy_stem(self, network: nn.Module) -> None:
        """Give the stem the weights that the network's own stem has; those of the map's convolution stay."""
        encoder: Any = network.encoder
        image_stem, _, rest = _split_first_convolution(_first_stage(encoder), self.map_stem.in_channels)
        self.image_stem.load_state_dict(image_stem.state_dict())
        self.rest_of_stem.load_state_dict(rest.state_dict())

    def condition(self, image: Tensor) -> Tensor:
        """Return what the first convolution adds for an image (B, C_in, *S); the same for all steps of sampling."""
        summand: Tensor = self.image_stem(self._pad(image))
        return summand

    def forward(
        self, encoder: nn.Module, condition: Tensor, noised: Tensor, t: Tensor
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Return the predicted maps (B, K, *S_i), and the features of the encoder; both the finest first.

        Args:
            encoder: the encoder of the segmentation network.
            condition: the summand of the image, see `condition`.
            noised: the noised map (B, K, *S).
            t: LongTensor (B,), the diffusion steps.
        """
        x = self.rest_of_stem(condition + self.map_stem(self._pad(noised)))
        code = self.time(time_code(t).to(noised.dtype))
        shifts = [
            [layer(code).view(len(t), -1, *[1] * (noised.ndim - 2)) for layer in layers]
            for layers in (self.encoder_shifts, self.decoder_shifts)
        ]
        features = encode_after_stem(encoder, x, shifts[0])
        return decode(self.decoder, features, noised.shape[2:], shifts[1]), features

    def _pad(self, x: Tensor) -> Tensor:
        return x if self.multiples is None else pad_to_multiple(x, self.multiples)


def check_can_denoise(network: nn.Module) -> None:
    """Check that a network is one that `DenoisingBranch` can share the encoder of.

    Raises:
        UsageError: the network is another one.
    """
    encoder, decoder = getattr(network, "encoder", None), getattr(network, "decoder", None)
    of_nnunet = all(hasattr(decoder, name) for name in ("transpconvs", "stages", "seg_layers"))
    if not hasattr(encoder, "after_stem") and not (of_nnunet and hasattr(encoder, "stages")):
        raise UsageError(
            f"{type(network).__name__} cannot denoise label maps",
            where="--set network",
            why="this needs a network of nnU-Net with convolutional encoder, or diff_vnet",
            run="--set network=plan or --set network=diff_vnet",
        )


def encode(network: Any, image: Tensor) -> list[Tensor]:  # noqa: ANN401
    """Return the features of all stages of a network's encoder, finest first, for an image (B, C_in, *S)."""
    multiples = getattr(network, "multiples", None)
    features: list[Tensor] = network.encoder(image if multiples is None else pad_to_multiple(image, multiples))
    return features


def detach_encoder(decoder: Any) -> nn.Module:  # noqa: ANN401
    """Return a decoder without the encoder that nnU-Net's decoders hold; predicting does not need it."""
    if hasattr(decoder, "encoder"):
        decoder.encoder = None
    bare: nn.Module = decoder
    return bare


def shift_widths(part: Any, channels: Sequence[int] = ()) -> list[int]:  # noqa: ANN401
    """Return the number of channels at each place of an encoder or a decoder where the time code is added.

    Args:
        part: the encoder or decoder.
        channels: for a decoder, the channels of the encoder's stages, the finest first.
    """
    widths: list[int] | None = getattr(part, "shift_widths", None)
    if widths is not None:
        return widths
    return list(channels[-2::-1]) if channels else list(part.output_channels)


def encode_after_stem(encoder: Any, x: Tensor, shifts: list[Tensor]) -> list[Tensor]:  # noqa: ANN401
    """Return the features of all stages, finest first, for the output of another stem, with the time code.

    Args:
        encoder: of a network that `check_can_denoise` accepts.
        x: output of the stem; of the whole first stage, where the encoder has no stem.
        shifts: (B, C, 1, ...) for each place of `shift_widths`.
    """
    if hasattr(encoder, "after_stem"):
        outputs: list[Tensor] = encoder.after_stem(x, shifts)
        return outputs
    stages = list(encoder.stages)
    if getattr(encoder, "stem", None) is None:
        stages[0] = nn.Identity()
    features = []
    for stage, shift in zip(stages, shifts, strict=True):
        x = stage(x) + shift
        features.append(x)
    return features


def decode(
    decoder: Any,  # noqa: ANN401
    features: list[Tensor],
    size: Sequence[int],
    shifts: list[Tensor] | None = None,
) -> list[Tensor]:
    """Return the outputs of a decoder, the finest first.

    Args:
        decoder: of a network that `check_can_denoise` accepts, with or without its encoder.
        features: of all stages of the encoder, the finest first.
        size: number of voxels of the image along each axis, before padding.
        shifts: (B, C, 1, ...) for each place of `shift_widths`; None = no time code.
    """
    if hasattr(decoder, "shift_widths"):
        outputs = decoder(features, size, shifts)
    elif shifts is None:
        outputs = decoder(features)
    else:
        outputs = _decode_with_time(decoder, features, shifts)
    return outputs if isinstance(outputs, list) else [outputs]


def _decode_with_time(decoder: Any, features: list[Tensor], shifts: list[Tensor]) -> list[Tensor]:  # noqa: ANN401
    """Return the outputs of nnU-Net's decoder with the time code after each stage."""
    x, outputs = features[-1], []
    for up, stage, head, skip, shift in zip(
        decoder.transpconvs, decoder.stages, decoder.seg_layers, features[-2::-1], shifts, strict=True
    ):
        x = stage(torch.cat([up(x), skip], 1)) + shift
        outputs.append((head, x))
    kept = outputs if decoder.deep_supervision else outputs[-1:]
    return [head(x) for head, x in reversed(kept)]


def _first_stage(encoder: Any) -> nn.Module:  # noqa: ANN401
    first: nn.Module = encoder.stages[0] if getattr(encoder, "stem", None) is None else encoder.stem
    return first


def _shift_layers(widths: Sequence[int]) -> nn.ModuleList:
    return nn.ModuleList(nn.Linear(TIME, width) for width in widths)


def _split_first_convolution(first: nn.Module, maps: int) -> tuple[nn.Module, _ConvNd, nn.Module]:
    """Return a stage's first convolution for images, one with a map's channels, and copies of all other layers."""
    rest = copy.deepcopy(first)
    convolution: Any = next(module for module in rest.modules() if isinstance(module, _ConvNd))
    of_map = type(convolution)(
        maps,
        convolution.out_channels,
        convolution.kernel_size,
        convolution.stride,
        convolution.padding,
        bias=False,
    ).to(convolution.weight.device)
    nn.init.kaiming_normal_(of_map.weight, a=1e-2)  # as nnU-Net's networks
    for module in list(rest.modules()):
        for name, child in list(module.named_children()):
            if child is convolution:  # nnU-Net's blocks hold their layers under two names
                setattr(module, name, nn.Identity())
    return convolution, of_map, rest
