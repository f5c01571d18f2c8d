"""The parts of DTLP-Net that learn beside the deployed network: diffusion decoder, label decoder, correlation head."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from nnssl.ingredients.diffusion import DiffusionSchedule
from nnssl.ingredients.ema import aggregate
from nnssl.networks.denoising import DenoisingBranch, check_can_denoise, decode, detach_encoder, encode
from nnssl_trainers.parts.correlation_head import CorrelationHead
from nnssl_trainers.parts.dtlp_settings import DTLPSettings
from nnssl_trainers.parts.shared_passes import whole

Outputs = dict[str, list[Tensor]]


@dataclass(frozen=True)
class FirstTeacher:
    """What ξ and ψ predict for patches: logits of ψ, and ξ's sample before and after the clamp, all (B, K, *S)."""

    psi: Tensor
    raw: Tensor
    clamped: Tensor


class DTLPBranches(nn.Module):
    """Stem for noised maps, time code and decoder ξ; decoder ψ; correlation head. The encoder stays outside.

    Args:
        network: the deployed network, encoder and θ; not part of this module.
        decoders: two new decoders for its encoder, for ξ and ψ.
        heads: number of channels of the logits, K.
        config: settings of the method.
    """

    def __init__(self, network: Any, decoders: Sequence[nn.Module], heads: int, config: DTLPSettings) -> None:  # noqa: ANN401
        super().__init__()
        check_can_denoise(network)
        self.schedule, self.heads, self.steps = DiffusionSchedule(), heads, config.ddim_steps
        xi, psi = decoders
        self.xi = DenoisingBranch(network, xi, heads)
        self.psi = detach_encoder(psi)
        self.head: CorrelationHead | None = None
        if config.correlation_weight:
            self.head = CorrelationHead(
                network.encoder.output_channels,
                network.encoder.strides,
                config.correlation_width or heads,
                config.correlation_stride,
                config.correlation_projection,
                has_batch_norm(network),
            )

    def start_from(self, network: Any, start_xi: bool, fresh: Any = None) -> None:  # noqa: ANN401
        """Give ψ the weights of the trained decoder.

        Args:
            network: the trained network.
            start_xi: also give these weights to ξ, and those of the encoder's stem to ξ's stem.
            fresh: a network whose decoder's weights the network's decoder then takes; None = the decoder keeps its own.
        """
        self.psi.load_state_dict(_without_encoder(network.decoder))
        if start_xi:
            self.xi.decoder.load_state_dict(_without_encoder(network.decoder))
            self.xi.copy_stem(network)
        if fresh is not None:
            network.decoder.load_state_dict(_without_encoder(fresh.decoder), strict=False)

    def aggregate(self, network: Any, decay: float) -> None:  # noqa: ANN401
        """Move the network's decoder θ towards the mean of ξ and ψ: θ ← decay·θ + (1 − decay)·(ξ + ψ)/2."""
        aggregate(network.decoder, [self.xi.decoder, self.psi], decay)

    def denoise(self, network: Any, image: Tensor, maps: Tensor) -> tuple[list[Tensor], list[Tensor]]:  # noqa: ANN401
        """Return ξ's outputs and features for noised maps of labelled patches, at one random step for each patch.

        Args:
            network: the deployed network, whose encoder the pass shares.
            image: (B, C_in, *S).
            maps: noise-free maps (B, K, *S), −1 or 1.
        """
        t = torch.randint(self.schedule.num_steps, (len(image),), device=image.device)
        noised = self.schedule.q_sample(maps, t, torch.randn_like(maps))
        outputs: tuple[list[Tensor], list[Tensor]] = self.xi(network.encoder, self.xi.condition(image), noised, t)
        return outputs

    @torch.no_grad()
    def teach(self, network: Any, image: Tensor) -> FirstTeacher:  # noqa: ANN401
        """Return the predictions of ξ, by DDIM, and of ψ for patches (B, C_in, *S), without a graph."""
        psi = decode(self.psi, encode(network, image), image.shape[2:])[0]
        condition, shape = self.xi.condition(image), (len(image), self.heads, *image.shape[2:])

        def predict(x: Tensor, t: Tensor) -> Tensor:
            finest: Tensor = self.xi(network.encoder, condition, x, t)[0][0]
            return finest

        clamped, raw = self.schedule.ddim_sample(predict, shape, self.steps, device=image.device)
        return FirstTeacher(psi, raw, clamped)


class FeatureKeeper:
    """Keep the features of all stages of an encoder by a hook, in the passes while `keeping` is True.

    Other passes, as those of validation, leave no tensor behind.
    """

    def __init__(self, encoder: nn.Module) -> None:
        self.keeping = False
        self._latest: list[Tensor] | None = None
        encoder.register_forward_hook(self._keep)

    def _keep(self, _encoder: nn.Module, _image: tuple[Tensor, ...], stages: list[Tensor]) -> None:
        if self.keeping:
            self._latest = list(stages)

    def take(self) -> list[Tensor]:
        """Return the features of the last pass, the finest first, with graph; once per pass."""
        features, self._latest = self._latest, None
        assert features is not None
        return features


def predict_views(
    network: nn.Module, keeper: FeatureKeeper, views: Mapping[str, Tensor], together: bool
) -> tuple[Outputs, Outputs]:
    """Return a network's outputs and its encoder's features for several batches of images.

    Args:
        network: returns logits, or a list of logits.
        keeper: keeps the features of this network's encoder.
        views: images (B_i, C_in, *S) by name.
        together: one pass for all; otherwise each batch has a pass of its own, and its own batch statistics.

    Returns:
        For each name the logits (B_i, K, *S_j), and the features of all stages, both the finest first.
    """
    outputs: Outputs = {}
    features: Outputs = {}
    keeper.keeping = True
    for names in filter(None, [list(views)] if together else [[name] for name in views]):
        predicted, sizes = network(torch.cat([views[name] for name in names])), [len(views[name]) for name in names]
        logits = list(predicted) if isinstance(predicted, list | tuple) else [predicted]
        for found, tensors in ((outputs, logits), (features, whole(network, keeper.take()))):
            split = zip(*(torch.split(x, sizes) for x in tensors), strict=True)
            found |= {name: list(parts) for name, parts in zip(names, split, strict=True)}
    keeper.keeping = False
    return outputs, features


def with_decoder(network: Any, shell: Any, decoder: nn.Module) -> nn.Module:  # noqa: ANN401
    """Return a network that shares the encoder of one network and the layers of another decoder.

    Args:
        network: owner of the encoder.
        shell: another network of the same architecture, which is changed and returned.
        decoder: the decoder, with or without encoder.
    """
    shell.encoder = network.encoder
    shared = copy.copy(decoder)
    shared._modules = dict(decoder._modules)
    if "encoder" in shared._modules:  # nnU-Net's decoders hold the encoder, and so do their checkpoints
        shared._modules["encoder"] = network.encoder
    shell.decoder = shared
    built: nn.Module = shell
    return built


def _without_encoder(decoder: nn.Module) -> dict[str, Tensor]:
    return {name: value for name, value in decoder.state_dict().items() if not name.startswith("encoder.")}


def has_batch_norm(network: nn.Module) -> bool:
    """Return whether a network has batch normalisation."""
    return any(isinstance(module, _BatchNorm) for module in network.modules())
