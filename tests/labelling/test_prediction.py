from __future__ import annotations

import numpy as np
import torch

from nnssl.host import plans_manager
from nnssl.labelling.prediction import labels_and_confidence
from tests.conftest import LABELS, tiny_plans


def manager(**dataset_json):
    return plans_manager(tiny_plans(3, [16, 16, 16])).get_label_manager({"labels": LABELS, **dataset_json})


def test_classes_by_hand() -> None:
    probs = torch.tensor([[0.5, 0.1, 0.2], [0.3, 0.8, 0.2], [0.2, 0.1, 0.6]])
    labels, confidence = labels_and_confidence(probs.log().view(3, 1, 1, 3).half(), manager())
    assert labels.tolist() == [[[0, 1, 2]]]
    assert np.abs(confidence.astype(int) - [[[128, 204, 153]]]).max() <= 1
    assert confidence.dtype == np.uint8


def test_regions_take_the_least_sure_region() -> None:
    regions = {"labels": {"background": 0, "whole": [1, 2], "core": 1}, "regions_class_order": [2, 1]}
    probs = torch.tensor([[0.9, 0.8, 0.1], [0.7, 0.4, 0.2]])  # whole, core
    labels, confidence = labels_and_confidence(torch.logit(probs).view(2, 1, 1, 3), manager(**regions))
    assert labels.tolist() == [[[1, 2, 0]]]
    assert np.abs(confidence.astype(int) - [[[178, 153, 204]]]).max() <= 1
