from __future__ import annotations

import csv
import io

import numpy as np
import pytest

from nnssl.comparison.api import compare
from nnssl.comparison.tables import comparison_table, comparison_text, methods_csv, patients_csv, sentence
from tests.comparison.folders_for_tests import numbered, write_run, write_summary

BASE = np.linspace(0.5, 0.8, 8)
GAIN = np.linspace(0.05, 0.12, 8)


@pytest.fixture
def make(tmp_path, monkeypatch):
    """Return a function that compares folders with these values by case with the first of them."""
    monkeypatch.chdir(tmp_path)

    def made(metric: str = "Dice", all_labels: str | None = None, **folders):
        for name, values in folders.items():
            rows = {case: {"1": {metric: value}} for case, value in numbered(values).items()}
            write_summary(tmp_path / name, rows)
        names = [name for name in folders if name != all_labels]
        return compare(names, baseline=names[0], metric=metric, all_labels=all_labels)

    return made


def test_the_table_has_a_row_a_method(make) -> None:
    lines = comparison_table(make(A=BASE, FixMatch=BASE + GAIN, Same=BASE))
    assert [line.split()[0] for line in lines] == ["method", "A", "FixMatch", "Same"]
    assert lines[0].split(maxsplit=1)[1].startswith("mean Dice  difference [95 %], points  p (Holm)")
    assert lines[1].split() == ["A", "0.650", "-", "-", "-", "baseline"]
    assert lines[2].split() == ["FixMatch", "0.735", "+8.5", "[6.5,", "10.5]", "0.0156", "8", "helped,", "exploratory"]
    assert "+0.0 [0.0, 0.0]" in lines[3]
    column = lines[0].index("verdict")
    assert lines[3][column:] == "no evidence, exploratory"


def test_one_sentence_a_method(make) -> None:
    result = make(A=BASE, Better=BASE + GAIN, Worse=BASE - GAIN, Same=BASE)
    assert [sentence(method, result.described) for method in result.methods] == [
        "Better helped: +8.5 Dice points [6.5, 10.5] on 8 patients (exploratory)",
        "Worse hurt: -8.5 Dice points [-10.5, -6.5] on 8 patients (exploratory)",
        "no evidence that Same helped or hurt: +0.0 Dice points [0.0, 0.0] on 8 patients (exploratory)",
    ]
    (many,) = make(A=np.tile(BASE, 3), B=np.tile(BASE + GAIN, 3)).methods
    assert sentence(many, result.described).endswith("on 24 patients")
    (alone,) = make(A=[0.5], B=[0.7]).methods
    assert sentence(alone, result.described).endswith("+20.0 Dice points [no interval] on 1 patient (exploratory)")


def test_an_interval_without_zero_and_without_verdict_is_explained(make) -> None:
    noise = np.random.default_rng(0).normal(0, 0.1, (3, 8))
    others = {f"N{i}": BASE + values for i, values in enumerate(noise)}
    result = make(A=BASE, B=BASE + np.array([-0.01, 0.02, 0.03, 0.04, 0.05, 0.06, 0.07, 0.08]), **others)
    assert sentence(result.methods[0], result.described).endswith("on 8 patients (exploratory, p 0.062)")


def test_of_distances_less_is_better_and_the_unit_is_mm(make) -> None:
    result = make("hd95_mm", A=BASE * 10, Better=BASE * 10 - 2 + GAIN)
    text = comparison_text(result)
    assert "Better helped: -1.9 mm HD95" in text
    assert "difference [95 %], mm" in text
    assert "mean HD95 mm" in text
    assert "6.50" in text.splitlines()[1]


def test_what_decides_is_said(make) -> None:
    assert "t test (with Holm) decides" in comparison_text(make(A=BASE[:5], B=(BASE + GAIN)[:5]))
    assert "fewer than 5 patients are no evidence" in comparison_text(make(A=BASE[:4], B=(BASE + GAIN)[:4]))
    assert "note: no dataset.json names patients" in comparison_text(make(A=BASE, B=BASE + GAIN))


def test_the_gap_is_said_where_a_method_gains(make) -> None:
    result = make(A=BASE, Half=BASE + GAIN / 2, Worse=BASE - GAIN, Full=BASE + GAIN, all_labels="Full")
    lines = [line.strip() for line in comparison_text(result).splitlines()]
    assert lines.count("closes 50% [50%, 50%] of the gap to Full") == 1
    assert sum("gap" in line for line in lines) == 1
    unclear = BASE + np.array([0.1, -0.1] * 4) + 0.01
    assert "no interval" in comparison_text(make(A=BASE, B=BASE + GAIN, Full=unclear, all_labels="Full"))
    assert "no gap to Full" in comparison_text(make(A=BASE, B=BASE + GAIN, Full=BASE, all_labels="Full"))


def test_seeds_and_the_control_are_said(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("nnUNet_results", str(tmp_path))
    write_run(tmp_path, "SupervisedTrainer", numbered(BASE))
    for seed, shift in enumerate((0.0, 0.02)):
        tags = {"": {}, ",control": {"config": {"unlabelled_weight": 0.0}}}
        for tag, config in tags.items():
            values = BASE + (GAIN if not tag else 0.4 * GAIN) + shift
            write_run(tmp_path, "FixMatchTrainer", numbered(values), tag=f"seed{seed}{tag}", seed=seed, **config)
    text = comparison_text(compare(dataset=1))
    assert "FixMatchTrainer helped: +9.5 Dice points" in text
    assert "2 runs: +8.5, +10.5; sd 1.4 Dice points" in text
    control = "the same training without losses on unlabelled scans, has +4.4 of these +9.5 Dice points"
    assert f"FixMatchTrainer@unlabelled_weight=0, {control}" in text


def test_csv_files_hold_the_numbers(make) -> None:
    result = make(A=BASE, B=BASE + GAIN, C=BASE)
    rows = list(csv.DictReader(io.StringIO(methods_csv(result))))
    assert [(row["method"], row["baseline"], row["verdict"]) for row in rows] == [
        ("B", "A", "helped"),
        ("C", "A", "no evidence"),
    ]
    assert float(rows[0]["mean_difference"]) == pytest.approx(GAIN.mean())
    patients = list(csv.DictReader(io.StringIO(patients_csv(result))))
    assert [row["patient"] for row in patients] == [f"case_{i:02d}" for i in range(8)] * 2
    assert [float(row["difference"]) for row in patients[:8]] == pytest.approx(list(GAIN))
    assert float(patients[3]["method_value"]) == pytest.approx(BASE[3] + GAIN[3])
