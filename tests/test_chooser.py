"""What helps to choose a method: complete, from measurements, and arithmetic by hand."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from nnssl.chooser import ADVICE, Cost, costs, in_words, measurement, paces
from nnssl.registry import METHODS

RESULTS = (Path(__file__).parents[1] / "docs" / "results.md").read_text(encoding="utf-8")


def test_every_method_has_advice_and_costs() -> None:
    assert list(ADVICE) == list(METHODS)
    assert set(costs()) == {"2d", "3d_fullres"}
    for table in costs().values():
        assert set(table) == set(METHODS)
        assert table["SupervisedTrainer"] == Cost(1.0, 1.0)
    assert measurement()["command"].startswith("python -m benchmarks.chooser ")


@pytest.mark.parametrize("trainer", [name for name, method in METHODS.items() if not method.networks])
def test_measured_memory_agrees_with_what_planning_takes(trainer: str) -> None:
    for table in costs().values():
        assert table[trainer].memory == pytest.approx(METHODS[trainer].activations, rel=0.1)


@pytest.mark.parametrize("trainer", [name for name, advice in ADVICE.items() if advice.gains])
def test_gains_are_those_of_the_results_page(trainer: str) -> None:
    rows = re.findall(r"^\| ACDC 3 \| (\w+)([^|]*)\| ([^|]*) \| (\d) \| [\d.]+ \| ([\d.]+) \|", RESULTS, re.MULTILINE)
    settings = ADVICE[trainer].settings.partition(", bf16")[0]
    baseline = {int(seed): float(dice) for name, rest, length, seed, dice in rows
                if name == "SupervisedTrainer" and rest == " " and length == "5,000"}  # fmt: skip
    found = {int(seed): float(dice) for name, rest, _, seed, dice in rows
             if name == trainer and rest.strip(" ,`").partition("`, bf16")[0] == settings}  # fmt: skip
    gains = [100 * (dice - baseline[seed]) for seed, dice in sorted(found.items())]
    assert ADVICE[trainer].gains == pytest.approx(gains, abs=0.051)


def test_words_of_a_method() -> None:
    assert in_words("PLGDFTrainer")["gain"] == "+8.6 and +10.6 points (2 seeds)"
    assert in_words("SupervisedTrainer")["gain"] == "not measured"


def test_a_pace_is_the_median_of_own_runs_else_a_ratio(monkeypatch: pytest.MonkeyPatch) -> None:
    table = {name: Cost(1.0, 1.0) for name in METHODS} | {"FixMatchTrainer": Cost(3.0, 2.0)}
    monkeypatch.setattr("nnssl.chooser.costs", lambda: {"3d_fullres": table})
    assert paces({}, "2d") == {}
    found = paces({"SupervisedTrainer": [0.2, 0.4, 0.9]}, "2d")
    assert found["SupervisedTrainer"].seconds == 0.4
    assert found["FixMatchTrainer"].seconds == pytest.approx(0.4 * 2)  # half of the run costs 1, half of the run 3
    back = paces({"FixMatchTrainer": [0.8]}, "2d")
    assert back["SupervisedTrainer"].seconds == pytest.approx(0.4)
    assert back["SupervisedTrainer"].source == "from runs of FixMatchTrainer and the relative cost"
