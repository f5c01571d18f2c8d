from __future__ import annotations

import pytest
import torch
from torch import Tensor

from nnssl.labelling.store import UNSURE
from nnssl_trainers.frame.batch import Batch, as_list, full_size_target, split_in_half


def batch(target: Tensor | list[Tensor], *unlabelled: Tensor | None) -> Batch:
    weak, strong, mask = unlabelled or (None, None, None)
    return Batch(torch.zeros(2, 1, 4, 4), target, weak, strong, mask, iteration=0)


@pytest.mark.parametrize(
    ("count", "first", "second"),
    [(1, [0], [0]), (2, [0], [1]), (3, [0], [2]), (4, [0, 1], [2, 3]), (5, [0, 1], [3, 4])],
)
def test_halves_of_a_batch(count: int, first: list[int], second: list[int]) -> None:
    halves = split_in_half(torch.arange(count))
    assert [half.tolist() for half in halves] == [first, second]


def test_outputs_are_a_list_in_any_case() -> None:
    fine, coarse = torch.zeros(1, 2, 4, 4), torch.zeros(1, 2, 2, 2)
    for outputs, expected in ((fine, [fine]), ([fine, coarse], [fine, coarse]), ((fine, coarse), [fine, coarse])):
        found = as_list(outputs)
        assert isinstance(found, list)
        assert all(one is other for one, other in zip(found, expected, strict=True))


def test_labels_at_the_size_of_the_images() -> None:
    fine, coarse = torch.zeros(2, 1, 4, 4), torch.zeros(2, 1, 2, 2)
    assert full_size_target(batch(fine)) is fine
    assert full_size_target(batch([fine, coarse])) is fine


def test_unlabelled_patches_are_weak_view_strong_view_and_mask() -> None:
    weak, strong, mask = torch.zeros(2, 1, 4, 4), torch.ones(2, 1, 4, 4), torch.ones(2, 1, 4, 4, dtype=torch.bool)
    found = batch(weak, weak, strong, mask).unlabelled
    assert all(one is other for one, other in zip(found, (weak, strong, mask), strict=True))
    with pytest.raises(AssertionError):
        _ = batch(weak).unlabelled


def test_stored_labels_count_inside_the_scan_and_where_they_are_sure() -> None:
    stored = torch.tensor([[[[-1, 0, 2, UNSURE]]]], dtype=torch.int16)
    weak = strong = torch.zeros(1, 1, 1, 4)
    made = Batch(weak, weak, weak, strong, stored >= 0, iteration=0, target_u=stored)
    labels, counted = made.stored_labels
    assert labels.tolist() == [[[[0, 0, 2, 0]]]]
    assert counted.tolist() == [[[[False, True, True, False]]]]
