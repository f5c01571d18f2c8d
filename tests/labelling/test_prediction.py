from __future__ import annotations

import numpy as np
import torch

from nnssl.host import plans_manager
from nnssl.labelling.prediction import mean_probabilities, most_likely
from tests.conftest import LABELS, tiny_plans


def manager(**dataset_json):
    return plans_manager(tiny_plans(3, [16, 16, 16])).get_label_manager({"labels": LABELS, **dataset_json})


def test_classes_by_hand() -> None:
    probs = torch.tensor([[0.5, 0.1, 0.2], [0.3, 0.8, 0.2], [0.2, 0.1, 0.6]])
    labels, confidence = most_likely(probs.view(3, 1, 1, 3), manager())
    assert labels.tolist() == [[[0, 1, 2]]]
    assert np.abs(confidence.astype(int) - [[[128, 204, 153]]]).max() <= 1
    assert confidence.dtype == np.uint8


def test_regions_take_the_least_sure_region() -> None:
    regions = {"labels": {"background": 0, "whole": [1, 2], "core": 1}, "regions_class_order": [2, 1]}
    probs = torch.tensor([[0.9, 0.8, 0.1], [0.7, 0.4, 0.2]])  # whole, core
    labels, confidence = most_likely(probs.view(2, 1, 1, 3), manager(**regions))
    assert labels.tolist() == [[[1, 2, 0]]]
    assert np.abs(confidence.astype(int) - [[[178, 153, 204]]]).max() <= 1


def test_mean_of_the_members() -> None:
    members = [torch.tensor([[0.5, 0.2], [0.5, 0.8]]), torch.tensor([[0.1, 0.4], [0.9, 0.6]]).half()]
    expected = torch.tensor([[0.3, 0.3], [0.7, 0.7]])
    torch.testing.assert_close(mean_probabilities(members), expected, atol=1e-3, rtol=0)
    assert mean_probabilities(members[1:]) is members[1]
