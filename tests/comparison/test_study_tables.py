from __future__ import annotations

import csv
import io
import math
from pathlib import Path

import pytest

from nnssl.comparison.study import compare_study
from nnssl.comparison.study_tables import curve_csv, study_text
from tests.comparison.test_study import study  # noqa: F401 - a fixture


def test_the_text_has_each_budget_and_the_worth_of_labels(study: Path) -> None:  # noqa: F811
    text = study_text(compare_study(study))
    for title in ("2d, 2 labelled patients", "2d, 8 labelled patients", "2d, every label", "2d, what labels are worth"):
        assert text.count(f"{title}") == 1
    assert "FixMatchTrainer: sd 1." in text
    assert "over picks of the labelled patients" in text
    assert "the best of 4 seeds and picks: FixMatchTrainer in 100%" in text
    assert "2 labels with FixMatchTrainer are worth " in text
    assert "not done" not in text


def test_the_csv_has_a_row_for_each_mean(study: Path) -> None:  # noqa: F811
    found = compare_study(study)
    rows = list(csv.DictReader(io.StringIO(curve_csv(found))))
    assert [(row["method"], row["labelled"]) for row in rows] == [
        (name, budget) for name in found.curves["2d"].means for budget in ("2", "8")
    ]
    first = found.curves["2d"].means["SupervisedTrainer"][0]
    assert first is not None
    assert float(rows[0]["mean"]) == pytest.approx(first.mean)
    assert rows[0]["worth_labels"] == ""
    assert math.isfinite(float(rows[2]["worth_labels"]))
