from __future__ import annotations

import pytest
import torch
from torch import Tensor

from nnssl.ingredients.consistency import cosine_distance
from nnssl_trainers.parts.all_patches import weigh_unlabelled
from nnssl_trainers.parts.region_logits import Pair

Case = tuple[Pair, Pair, Pair]


@pytest.fixture
def case() -> Case:
    """Return tensors of two networks and masks, for 2 labelled and 3 unlabelled patches."""
    generator = torch.Generator().manual_seed(0)
    own, peer = (
        tuple(torch.rand(count, 3, 4, 5, generator=generator).requires_grad_() for count in (2, 3)) for _ in range(2)
    )
    masks = tuple(torch.rand(count, 1, 4, 5, generator=generator) > 0.4 for count in (2, 3))
    return own, peer, masks


def distances(own: Tensor, peer: Tensor, mask: Tensor) -> Tensor:
    return (1 - torch.nn.functional.cosine_similarity(own, peer, dim=1))[mask[:, 0]]


@pytest.mark.parametrize("weight", [0.0, 0.5, 1.0])
def test_the_mean_over_all_voxels_with_a_factor_on_unlabelled_ones(weight: float, case: Case) -> None:
    found = weigh_unlabelled(cosine_distance, *case, weight, "all")
    labelled, unlabelled = (distances(*each) for each in zip(*case, strict=True))
    expected = (labelled.sum() + weight * unlabelled.sum()) / (len(labelled) + len(unlabelled))
    torch.testing.assert_close(found, expected)


def test_with_weight_one_it_is_the_loss_of_all_patches_together(case: Case) -> None:
    together = cosine_distance(*(torch.cat(pair) for pair in case[:2]), mask=torch.cat(case[2]))
    torch.testing.assert_close(weigh_unlabelled(cosine_distance, *case, 1.0, "all"), together)


def test_of_unlabelled_patches_alone(case: Case) -> None:
    (_, own), (_, peer), (_, mask) = case
    found = weigh_unlabelled(cosine_distance, *case, 0.5, "unlabelled")
    torch.testing.assert_close(found, 0.5 * distances(own, peer, mask).mean())
    assert torch.autograd.grad(found, case[0], allow_unused=True)[0] is None
