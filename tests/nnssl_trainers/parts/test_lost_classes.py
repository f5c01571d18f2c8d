from __future__ import annotations

import torch

from nnssl_trainers.parts.lost_classes import without_classes


def test_a_lost_class_has_no_probability_and_no_gradient() -> None:
    logits = torch.randn(2, 3, 4, 4, requires_grad=True)
    hidden = without_classes(logits, [False, True], regions=False)
    assert torch.equal(hidden[:, :2], logits[:, :2])
    assert hidden.softmax(1)[:, 2].max() < 1e-10
    hidden.sum().backward()
    assert logits.grad[:, :2].eq(1).all()
    assert not logits.grad[:, 2].any()


def test_regions_have_no_background_channel() -> None:
    logits = torch.zeros(1, 2, 3)
    assert without_classes(logits, [True, False], regions=True)[0, :, 0].tolist() == [-30.0, 0.0]


def test_without_a_lost_class_the_logits_are_the_same() -> None:
    logits = torch.zeros(1, 3, 3)
    assert without_classes(logits, [False, False], regions=False) is logits
    assert without_classes(logits, [], regions=False) is logits
