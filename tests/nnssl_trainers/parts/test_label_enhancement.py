from __future__ import annotations

import pytest
import torch
from torch import Tensor

from nnssl.config import config_with
from nnssl.ingredients.refinement import enhance
from nnssl_trainers.parts.label_enhancement import EnhancementConfig, enhance_predictions

Predictions = tuple[list[list[Tensor]], list[Tensor]]


@pytest.fixture
def predictions() -> Predictions:
    """Return two networks' probabilities of two batches of images, and the images."""
    generator = torch.Generator().manual_seed(0)
    images = [torch.rand(2, 1, 9, 8, generator=generator) for _ in range(2)]
    probs = [[torch.randn(2, 3, 9, 8, generator=generator).softmax(1).requires_grad_() for _ in images] for _ in "12"]
    return probs, images


@pytest.mark.parametrize("regions", [False, True])
@pytest.mark.parametrize("mode", ["propagate", "literal"])
def test_each_prediction_is_enhanced_with_its_own_image(mode: str, regions: bool, predictions: Predictions) -> None:
    probs, images = predictions
    settings = {"propagation": mode, "propagation_iterations": 2, "threshold_factor": 0.1, "mask_steepness": 5.0}
    settings |= {"retention": 0.5, "similarity_temperature": 0.3}
    found = enhance_predictions(config_with(EnhancementConfig, settings), probs, images, regions)
    for of_network, originals in zip(found, probs, strict=True):
        for enhanced, original, image in zip(of_network, originals, images, strict=True):
            options = {"threshold_factor": 0.1, "steepness": 5.0, "iterations": 2, "retention": 0.5, "mode": mode}
            expected = enhance(original.detach(), image, regions=regions, temperature=0.3, **options)
            torch.testing.assert_close(enhanced, expected)
            assert not enhanced.requires_grad
            assert not torch.equal(enhanced, original)


@pytest.mark.parametrize("settings", [{"propagation": "off"}, {"propagation_iterations": 0}])
def test_without_enhancement_predictions_stay_as_targets(settings, predictions: Predictions) -> None:
    probs, images = predictions
    found = enhance_predictions(config_with(EnhancementConfig, settings), probs, images, False)
    assert all(
        torch.equal(p, q) for ours, theirs in zip(found, probs, strict=True) for p, q in zip(ours, theirs, strict=True)
    )
    assert not any(p.requires_grad for each in found for p in each)
