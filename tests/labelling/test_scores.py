from __future__ import annotations

import itertools

import numpy as np
import pytest

from nnssl.labelling.scores import ScanScore, agreement, choose_scans, score_scan, voxel_volume_ml

NAMES = ["heart", "vessel"]
LABELLED = [(10.0, 2.0), (20.0, 0.0)]  # the second labelled scan has no vessel


def scan(confidence: float, heart: float = 12.0, vessel: float = 1.0) -> ScanScore:
    return ScanScore((confidence if heart else None, confidence if vessel else None), (heart, vessel))


def test_the_score_of_a_scan_by_hand() -> None:
    labels = np.array([[0, 1, 1], [2, 3, 0]])
    confidence = np.array([[255, 255, 102], [51, 204, 255]], np.uint8)
    score = score_scan(labels, confidence, [1, (2, 3), 4], 0.5)
    assert score.confidence == pytest.approx((0.7, 0.5, None))
    assert score.volumes_ml == (1.0, 1.0, 0.0)
    assert score.score == pytest.approx(0.6)
    assert score_scan(np.zeros((2, 2)), np.ones((2, 2), np.uint8), [1], 1.0).score is None


def test_the_volume_of_a_voxel_is_that_of_the_resampled_grid() -> None:
    properties = {"spacing": [2.0, 1.0, 1.5], "shape_after_cropping_and_before_resampling": (10, 20, 20)}
    assert voxel_volume_ml((10, 20, 20), properties) == pytest.approx(0.003)
    assert voxel_volume_ml((20, 20, 10), properties) == pytest.approx(0.003)
    assert voxel_volume_ml((10, 10, 10), properties) == pytest.approx(0.012)


def test_a_missing_structure_comes_before_a_volume_and_a_volume_before_a_low_score() -> None:
    scores = {
        "fine": scan(0.9),
        "huge": scan(0.8, heart=61.0),  # above 3 x 20 ml
        "low": scan(0.2),
        "missing": scan(0.95, heart=0.0),
        "no_vessel": scan(0.9, vessel=0.0),  # a labelled scan has none either
        "tiny": scan(0.85, heart=2.9),  # below 0.3 x 10 ml
        "edge": scan(0.9, heart=60.0, vessel=6.0),
        **{f"other_{i}": scan(0.9) for i in range(3)},
    }
    rejected = {
        share: [case for case, verdict in choose_scans(scores, LABELLED, NAMES, share).items() if not verdict.kept]
        for share in (1.0, 0.9, 0.8, 0.7, 0.6)
    }
    assert rejected == {
        1.0: [],
        0.9: ["missing"],
        0.8: ["huge", "missing"],
        0.7: ["huge", "missing", "tiny"],
        0.6: ["huge", "low", "missing", "tiny"],
    }
    verdicts = choose_scans(scores, LABELLED, NAMES, 0.6)
    assert list(verdicts) == list(scores)
    assert verdicts["missing"].why == "no voxel of heart"
    assert verdicts["huge"].why == "heart has 61 ml, labelled scans have 10 to 20 ml"
    assert verdicts["low"].why == "confidence 0.200 is among the lowest"
    assert verdicts["fine"].why == ""
    kept = choose_scans(scores, LABELLED, NAMES, 0.9)["tiny"]
    assert kept.kept
    assert kept.why == "heart has 2.9 ml, labelled scans have 10 to 20 ml"


def test_few_scans_are_all_kept() -> None:
    scores = {f"scan_{i}": scan(0.1, heart=0.0) for i in range(9)}
    assert all(verdict.kept for verdict in choose_scans(scores, LABELLED, NAMES, 0.9).values())


def test_without_labelled_volumes_only_the_score_speaks() -> None:
    scores = {"missing": scan(0.9, heart=0.0), "huge": scan(0.8, heart=1e6), "low": scan(0.3), "empty": scan(0, 0, 0)}
    verdicts = choose_scans(scores, [], NAMES, 0.75)
    assert [case for case, verdict in verdicts.items() if not verdict.kept] == ["low"]
    assert [case for case, verdict in choose_scans(scores, [], NAMES, 0.5).items() if not verdict.kept] == [
        "huge",
        "low",
    ]


def test_equal_scores_are_ordered_by_name() -> None:
    scores = {name: scan(0.5) for name in ("b", "a", "c", "d")}
    assert not choose_scans(scores, LABELLED, NAMES, 0.75)["a"].kept


def test_agreement_is_the_mean_dice_of_all_pairs() -> None:
    a, b, c = np.array([1, 1, 0, 2]), np.array([1, 0, 0, 2]), np.array([1, 1, 3, 0])
    pairs = [2 / 3, 1.0, 2 / 3]  # of 1: a and b, a and c, b and c
    assert agreement([a, b, c], [1, 2, 3, 4]) == pytest.approx((sum(pairs) / 3, 1 / 3, 0.0, None))
    assert agreement([a, b], [(1, 2)]) == pytest.approx((2 * 2 / 5,))
    assert agreement([a, a], [1]) == (1.0,)
    assert agreement([a], [1]) == ()


def test_agreement_takes_the_place_of_confidence() -> None:
    score = ScanScore((0.9, 0.8), (1.0, 1.0), (0.5, None))
    assert score.score == 0.5
    agreed = {f"scan_{i}": ScanScore((0.9,), (12.0,), (0.1 * (i + 1),)) for i in range(5)}
    verdicts = choose_scans(agreed, [(10.0,), (20.0,)], ["heart"], 0.8)
    assert [case for case, verdict in verdicts.items() if not verdict.kept] == ["scan_0"]
    assert verdicts["scan_0"].why == "agreement 0.100 is among the lowest"


def test_agreement_of_random_masks_is_the_mean_over_all_pairs() -> None:
    rng = np.random.default_rng(0)
    masks = [rng.integers(0, 3, (4, 5, 6)) for _ in range(3)]
    for structure in (1, 2, (1, 2)):
        values = []
        for a, b in itertools.combinations(masks, 2):
            x, y = np.isin(a, structure), np.isin(b, structure)
            values.append(2 * (x & y).sum() / (x.sum() + y.sum()))
        assert list(agreement(masks, [structure])) == [pytest.approx(np.mean(values))]


def test_a_structure_that_nobody_sees_has_no_dice_and_one_that_some_see_has_a_low_one() -> None:
    empty, full = np.zeros((2, 2), int), np.ones((2, 2), int)
    assert list(agreement([empty, empty, empty], [1])) == [None]
    assert list(agreement([empty, full, full], [1])) == [pytest.approx(1 / 3)]
    assert list(agreement([empty, empty, full], [1])) == [0.0]  # the pair of empty masks says nothing
