from __future__ import annotations

import torch

from nnssl_trainers.parts.region_logits import class_labels, class_logits, softmax


def test_regions_are_problems_of_two_classes() -> None:
    z = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(9))
    pairs = class_logits(z.half(), regions=True)
    assert pairs.shape == (6, 2, 4, 5)
    assert pairs.dtype == torch.float32
    torch.testing.assert_close(pairs.softmax(1)[:, 1].unflatten(0, (2, 3)), z.half().float().sigmoid())
    assert torch.equal(class_logits(z, regions=False), z)
    target = torch.randint(2, (2, 4, 4, 5), generator=torch.Generator().manual_seed(10)).float()
    labels, known = class_labels(target, 3, regions=True, ignore_label=4)
    for b in range(2):
        for r in range(3):
            assert torch.equal(known[3 * b + r, 0], target[b, 3] == 0)
            assert torch.equal(labels[3 * b + r], (target[b, r] * (target[b, 3] == 0)).long())
    labels, known = class_labels(target[:, :3], 3, regions=True, ignore_label=None)
    assert known.all()
    assert torch.equal(labels.unflatten(0, (2, 3)), target[:, :3].long())


def test_the_ignore_label_does_not_count() -> None:
    target = torch.tensor([[[[0.0, 1.0, 2.0]]]])
    labels, known = class_labels(target, 2, regions=False, ignore_label=2)
    assert labels.tolist() == [[[0, 1, 0]]]
    assert known.tolist() == [[[[True, True, False]]]]


def test_labels_without_ignore_label_all_count() -> None:
    target = torch.tensor([[[[0.0, 1.0, 2.0]]]])
    labels, known = class_labels(target, 3, regions=False, ignore_label=None)
    assert labels.tolist() == [[[0, 1, 2]]]
    assert labels.dtype == torch.int64
    assert known.shape == (1, 1, 1, 3)
    assert known.all()


def test_probabilities_of_hand_made_logits() -> None:
    zero, three = torch.zeros(1, 2, 1), torch.tensor([[[0.0], [1.0986123]]])  # log 3
    first, second = softmax((zero, three))
    assert first.flatten().tolist() == [0.5, 0.5]
    torch.testing.assert_close(second.flatten(), torch.tensor([0.25, 0.75]))
