from __future__ import annotations

import numpy as np
import pytest

from nnssl.errors import DataError
from nnssl.evaluation.masks import LARGEST_INDEXED_VALUE, label_map, mask_pairs


def counts(prediction, reference, labels, **options):
    return {label: pair.counts for label, pair in mask_pairs(prediction, reference, labels, **options)}


ARRAY = np.array([[0, 1, 1, 2], [0, 1, 0, 2], [5, 0, 0, 0]])
OTHER = np.array([[0, 0, 1, 2], [2, 2, 0, 2], [0, 0, 0, 0]])


@pytest.mark.parametrize("kind", ["u1", "i1", "<u2", ">u2", "<i4", ">i8", "u8", "f4", ">f8"])
def test_every_kind_of_number_gives_the_same_masks(kind):
    pair = ARRAY.astype(kind), np.asfortranarray(OTHER.astype(kind))
    assert counts(*pair, [1, 2, 5, (1, 5)]) == {1: (1, 3, 1), 2: (2, 2, 4), 5: (0, 1, 0), (1, 5): (1, 4, 1)}


def test_booleans_are_label_1():
    assert counts(ARRAY > 0, OTHER > 0, [1]) == {1: (4, 6, 5)}


def test_crops_hold_both_masks_and_no_more():
    pairs = dict(mask_pairs(ARRAY, OTHER, [1, 5, 7]))
    assert pairs[1].prediction.shape == pairs[1].reference.shape == (2, 2)
    assert pairs[5].prediction.tolist() == [[True]]
    assert pairs[5].reference.tolist() == [[False]]
    assert pairs[7].prediction.size == 0
    assert pairs[7].image_shape == (3, 4)


def test_background_negative_and_very_large_values_are_labels_too():
    large = LARGEST_INDEXED_VALUE + 10**9
    array = np.array([[0, large, -3], [0, large, large]])
    other = np.array([[0, 0, -3], [-3, large, 0]])
    assert counts(array, other, [0, large, -3]) == {0: (1, 2, 3), large: (1, 3, 1), -3: (1, 1, 2)}


def test_ignored_voxels_are_in_no_mask_and_not_counted():
    (_, pair), *_ = mask_pairs(ARRAY, np.where(ARRAY == 2, 9, ARRAY), [1, 2], ignore_label=9)
    assert pair.num_counted == 10
    assert counts(ARRAY, np.where(ARRAY == 2, 9, ARRAY), [1, 2], ignore_label=9)[2] == (0, 0, 0)


def test_numpy_labels_and_lists_become_plain_keys():
    found = counts(ARRAY, OTHER, [np.int64(1), [np.uint8(1), 5]])
    assert list(found) == [1, (1, 5)]
    assert type(next(iter(found))) is int


@pytest.mark.parametrize("values", [np.zeros((2, 2), complex), np.array([[None]]), np.array([["1"]])])
def test_other_kinds_of_values_are_refused(values):
    with pytest.raises(DataError, match="the label file holds values of type"):
        label_map(values, "label file")
