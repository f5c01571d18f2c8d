from __future__ import annotations

import math
from pathlib import Path

import pytest
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

from nnssl.evaluation.mask_pairs import FilePair, MeasuredCase, Measurement
from nnssl.evaluation.structures import Structures
from nnssl.evaluation.summary import EvaluationResult, conventions, summarise

NAMES = {0: "background", 1: "core", 2: "rim"}
VALUES = {  # Dice of each case and label
    "a": {0: 0.9, 1: 0.5, 2: 1.0},
    "b": {0: 0.7, 1: math.nan, 2: 0.4},
    "c": {0: 0.8, 1: 0.7, 2: math.nan},
}


def summary(paper: bool = False, domains: dict[str, str] | None = None) -> EvaluationResult:
    measured = {
        case: MeasuredCase(
            {
                label: {"Dice": dice, "TP": 10.0, "missed": case == "b" and label == 2, "spurious": False}
                for label, dice in labels.items()
            },
            (f"{case}: a note",) if case != "b" else (),
        )
        for case, labels in VALUES.items()
    }
    files = {case: FilePair(case, Path(f"r/{case}"), Path(f"p/{case}")) for case in VALUES}
    measurement = Measurement(SimpleITKIO, Structures(NAMES), 2.0, paper)
    places = {"summary_file": Path("s.json"), "unmatched": (("x",), ("y", "z")), "domains": domains or {}}
    return summarise(measured, files, measurement, **places)


def test_means_and_spreads_leave_out_cases_without_a_value() -> None:
    result = summary()
    assert {label: mean["Dice"] for label, mean in result.mean.items()} == pytest.approx({0: 0.8, 1: 0.6, 2: 0.7})
    assert result.sd[1] == {"Dice": pytest.approx(math.sqrt(0.02))}
    assert result.counts[1] == {"n_cases": 2, "n_missed": 0, "n_spurious": 0}
    assert result.counts[2] == {"n_cases": 2, "n_missed": 1, "n_spurious": 0}


def test_the_background_is_not_part_of_the_foreground() -> None:
    result = summary()
    assert result.foreground_mean["Dice"] == pytest.approx(0.65)
    case_means = [0.75, 0.4, 0.7]
    spread = math.sqrt(sum((value - sum(case_means) / 3) ** 2 for value in case_means) / 2)
    assert result.foreground_sd["Dice"] == pytest.approx(spread)


def test_the_content_of_the_file() -> None:
    content = summary().summary
    assert content["num_cases"] == 3
    assert content["notes"] == ["a: a note", "c: a note"]
    assert content["without_prediction"] == ["x"]
    assert content["without_reference"] == ["y", "z"]
    assert list(content["mean"]) == ["0", "1", "2"]
    assert content["metric_per_case"][0]["reference_file"] == str(Path("r/a"))


def test_the_conventions_say_which_metrics_are_there() -> None:
    for paper, name in ((False, "standard"), (True, "paper")):
        words = conventions(Measurement(SimpleITKIO, Structures(NAMES), 2.0, paper))
        assert (words["metrics"], words["nsd_tolerance_mm"], "asd_vox" in words) == (name, 2.0, paper)


def test_each_domain_has_scores_of_its_own() -> None:
    result = summary(domains={"a": "CT", "c": "CT", "b": "MR", "elsewhere": "US"})
    assert {name: list(part.cases) for name, part in result.domains.items()} == {"CT": ["a", "c"], "MR": ["b"]}
    assert result.domains["CT"].mean[1]["Dice"] == pytest.approx(0.6)
    assert result.domains["MR"].counts[2] == {"n_cases": 1, "n_missed": 1, "n_spurious": 0}
    assert result.mean[2]["Dice"] == pytest.approx(0.7)  # over all cases, as without domains
    content = result.summary["domains"]
    assert content["CT"]["foreground_mean"]["Dice"] == pytest.approx((0.6 + 1.0) / 2)
    assert content["MR"]["num_cases"] == 1


def test_one_domain_or_none_adds_nothing() -> None:
    assert "domains" not in summary().summary
    assert summary(domains=dict.fromkeys("abc", "CT")).summary.keys() == summary().summary.keys()


def test_cases_without_a_domain_are_in_none() -> None:
    result = summary(domains={"a": "CT", "b": "MR"})
    assert [list(part.cases) for part in result.domains.values()] == [["a"], ["b"]]
