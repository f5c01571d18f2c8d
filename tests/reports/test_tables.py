from __future__ import annotations

from pathlib import Path

from nnssl.comparison.api import compare
from nnssl.comparison.sources import Compared, read_source
from nnssl.reports.tables import (
    cases_table,
    differences_tables,
    main_method,
    methods_table,
    rank_cases,
    structures_table,
    summary_sentences,
)
from tests.comparison.folders_for_tests import numbered, write_summary

BASE = [0.5, 0.6, 0.7, 0.55, 0.65, 0.6]


def study(tmp_path: Path, gain: float, metric: str = "Dice"):
    base = write_summary(tmp_path / "base", numbered(BASE))
    wiggle = [0.01, -0.01, 0.0, 0.005, -0.005, 0.0]
    shifted = [value + gain + more for value, more in zip(BASE, wiggle, strict=True)]
    other = write_summary(tmp_path / "new", numbered(shifted))
    return compare([base, other], baseline=base, metric=metric)


def test_the_summary_has_a_verdict_and_says_how_certain_it_is(tmp_path: Path) -> None:
    first, second = summary_sentences(study(tmp_path / "a", 0.1))
    assert first.startswith("new helped: +10.0 Dice points [")
    assert second.startswith("The baseline base has a mean Dice of 0.600, new has 0.700; the difference is larger than")
    assert second.endswith("so few patients are a first look only.")
    first, second = summary_sentences(study(tmp_path / "b", -0.1))
    assert first.startswith("new hurt: -10.0 Dice points")
    assert "the loss is larger than chance explains" in second
    first, second = summary_sentences(study(tmp_path / "c", 0.0))
    assert first.startswith("No evidence that new helped or hurt")
    assert "can be chance" in second


def test_the_main_method_has_the_largest_gain(tmp_path: Path) -> None:
    base = write_summary(tmp_path / "base", numbered(BASE))
    small = write_summary(tmp_path / "small", numbered([value + 0.01 for value in BASE]))
    large = write_summary(tmp_path / "large", numbered([value + 0.2 for value in BASE]))
    result = compare([base, large, small], baseline=base)
    assert main_method(result).name == "large"
    table = methods_table(result)
    assert [row[0] for row in table.rows] == ["base", "large", "small"]
    assert table.rows[1][1:3] == ["0.800", "+20.0 [20.0, 20.0]"]
    by_structure, by_metric = differences_tables(result)
    assert by_structure.header == ("method", "label 1")
    assert by_structure.rows[0] == ["large", "+20.0 [20.0, 20.0], n = 6"]
    assert by_metric.header[:2] == ("method", "Dice, points")


def test_missed_and_spurious_structures_are_counted(tmp_path: Path) -> None:
    rows = {
        "a": {"1": {"Dice": 0.5, "n_ref": 10, "n_pred": 8}},
        "b": {"1": {"Dice": 0.0, "n_ref": 10, "n_pred": 0}},
        "c": {"1": {"Dice": 0.0, "n_ref": 0, "n_pred": 3}},
        "d": {"1": {"Dice": float("nan"), "n_ref": 0, "n_pred": 0}},
    }
    source = read_source(write_summary(tmp_path, rows, structures={"1": "heart"}))
    table = structures_table([Compared("m", (source,))])
    assert table.rows == [["m", "heart", "0.167", "2", "1", "1"]]


def test_cases_stand_from_the_worst_to_the_best(tmp_path: Path) -> None:
    rows = {
        "a": {"1": {"Dice": 0.9, "hd95_mm": 9.0}},
        "b": {"1": {"Dice": 0.1, "hd95_mm": 1.0}},
        "c": {"1": {"Dice": 0.5, "hd95_mm": float("nan")}},
    }
    method = Compared("m", (read_source(write_summary(tmp_path, rows)),))
    assert rank_cases(method, "Dice") == ["b", "c", "a"]
    assert rank_cases(method, "hd95_mm") == ["a", "b"]
    assert cases_table([method], "hd95_mm").rows == [["a", "9.00"], ["b", "1.00"]]
