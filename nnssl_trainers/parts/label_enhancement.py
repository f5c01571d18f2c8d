"""The label enhancement of DSMT-Net with its settings: confident predictions spread to similar voxels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from nnssl.config import MethodConfig, hyper
from nnssl.ingredients.refinement import enhance, neighbourhood


@dataclass(frozen=True)
class EnhancementConfig(MethodConfig):
    """The settings of the label enhancement."""

    propagation: Literal["propagate", "literal", "off"] = hyper(
        "propagate", "label enhancement", "eq. 12-13", choices=("propagate", "literal", "off")
    )
    propagation_iterations: int = hyper(3, "rounds of propagation", "k", low=0)
    threshold_factor: float = hyper(-0.5, "confidence threshold in standard deviations from the mean", "γ (eq. 8)")
    mask_steepness: float = hyper(10.0, "steepness of the confidence mask", "α (eq. 9)", low=0.0)
    retention: float = hyper(0.1, "weight of a voxel's own prediction beside its window", "κ", low=0.0)
    similarity_temperature: float | None = hyper(
        None, "temperature of eq. 7; auto: the patch's mean dissimilarity", "τ", low=1e-6
    )


@torch.no_grad()
def enhance_predictions(
    config: EnhancementConfig, probs: Sequence[Sequence[Tensor]], images: Sequence[Tensor], regions: bool
) -> list[list[Tensor]]:
    """Return the enhanced predictions of several networks for the same images.

    Args:
        config: the settings; with `propagation=off` or without rounds, the predictions stay as they are.
        probs: for each network its probabilities (B, C, *S) for each of the images; receive no gradient.
        images: batches of images (B, C_in, *S), all of the same B.
        regions: True = the channels of `probs` are regions.

    Returns:
        Tensors in the order of `probs`.

    Reference: Su, Sun, Adamyk, DSMT-Net, Comput. Biol. Chem. 119 (2025) 108579, eq. 5-13.
    """
    if config.propagation == "off" or not config.propagation_iterations:
        return [[p.detach() for p in of_network] for of_network in probs]
    windows = neighbourhood(torch.cat(list(images)).float(), temperature=config.similarity_temperature)
    enhanced = []
    for of_network in probs:
        together = enhance(
            torch.cat(list(of_network)),
            windows,
            threshold_factor=config.threshold_factor,
            steepness=config.mask_steepness,
            iterations=config.propagation_iterations,
            retention=config.retention,
            mode=config.propagation,
            regions=regions,
        )
        enhanced.append(list(together.chunk(len(images))))
    return enhanced
