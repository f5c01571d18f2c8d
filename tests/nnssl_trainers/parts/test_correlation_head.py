from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.functional import interpolate

from nnssl.ingredients.propagation import correlation_propagate_reference
from nnssl_trainers.parts.correlation_head import CorrelationHead


def features_of(dim: int, channels: tuple[int, ...] = (4, 6, 8)) -> list[torch.Tensor]:
    sizes = [[16 // 2**i] * dim for i in range(len(channels))]
    return [torch.randn(2, c, *size, requires_grad=True) for c, size in zip(channels, sizes, strict=True)]


def head_of(dim: int, **options: object) -> CorrelationHead:
    torch.manual_seed(0)
    return CorrelationHead((4, 6, 8), [[1] * dim, [2] * dim, [2] * dim], 3, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(("largest", "level"), [(16, 2), (4, 2), (3, 1), (1, 0)])
def test_the_deepest_stage_within_the_stride(largest: int, level: int) -> None:
    assert head_of(2, largest_stride=largest).level == level
    strides = [[1, 1, 1], [1, 2, 2], [1, 2, 2], [2, 2, 2], [2, 2, 2], [1, 2, 2]]
    assert CorrelationHead((4,) * 6, strides, 3, 16).level == 4


@pytest.mark.parametrize("form", ["row", "gather"])
@pytest.mark.parametrize("projection", ["block", "linear"])
@pytest.mark.parametrize("dim", [2, 3])
def test_the_formula(dim: int, projection: str, form: str) -> None:
    head, features, logits = (
        head_of(dim, projection=projection).eval(),
        features_of(dim),
        torch.randn(2, 3, *[16] * dim),
    )
    mode = "bilinear" if dim == 2 else "trilinear"
    deep = head.projection(features[2])
    assert isinstance(head.projection, nn.Identity) == (projection == "linear")
    assert deep.shape[1] == (8 if projection == "linear" else 4)
    coarse = interpolate(logits, [4] * dim, mode=mode, align_corners=True)
    mixed = correlation_propagate_reference(
        head.first(deep).flatten(2), head.second(deep).flatten(2), coarse.flatten(2), form
    )
    expected = interpolate(mixed.view_as(coarse), [16] * dim, mode=mode, align_corners=True)
    torch.testing.assert_close(head(features, logits, form), expected)


@pytest.mark.parametrize("batch_norm", [False, True])
def test_gradient_reaches_head_features_and_logits(batch_norm: bool) -> None:
    head, features = head_of(2, batch_norm=batch_norm), features_of(2)
    logits = torch.randn(2, 5, 16, 16, requires_grad=True)
    head(features, logits).square().mean().backward()
    assert any(isinstance(module, nn.BatchNorm2d) for module in head.modules()) == batch_norm
    assert all(p.grad is not None and p.grad.isfinite().all() for p in head.parameters())
    assert [x.grad is not None for x in features] == [False, False, True]
    assert logits.grad is not None
    assert logits.grad.abs().sum() > 0
