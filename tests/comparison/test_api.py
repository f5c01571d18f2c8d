from __future__ import annotations

import json
import math
import subprocess
import sys
import warnings

import numpy as np
import pytest
from scipy import stats

import nnssl
from nnssl.errors import DataError, EnvironmentProblem, UsageError
from tests.comparison.folders_for_tests import numbered, write_dataset_json, write_run, write_summary

RNG = np.random.default_rng(0)
BASE = RNG.uniform(0.5, 0.8, 12)
NOISE = RNG.normal(0, 0.02, 12)


@pytest.fixture
def places(tmp_path):
    values = {
        "A": BASE,
        "Better": BASE + 0.08 + NOISE,
        "Null": BASE + NOISE - NOISE.mean(),
        "Worse": BASE - 0.08 + NOISE,
    }
    return [write_summary(tmp_path / name, numbered(found)) for name, found in values.items()]


def test_planted_effects_are_found_and_nothing_else(places) -> None:
    result = nnssl.compare(places, baseline=places[0])
    assert result.baseline == "A"
    assert result.baseline_mean == pytest.approx(BASE.mean())
    assert [(method.name, method.verdict) for method in result.methods] == [
        ("Better", "helped"),
        ("Null", "no evidence"),
        ("Worse", "hurt"),
    ]
    raw = [stats.wilcoxon(difference).pvalue for difference in (0.08 + NOISE, NOISE - NOISE.mean(), -0.08 + NOISE)]
    assert [method.judgement.p for method in result.methods] == pytest.approx(raw)
    assert result.methods[0].judgement.p_holm == pytest.approx(3 * raw[0])
    better = result.methods[0].judgement.interval
    low, high = stats.ttest_rel(BASE + 0.08 + NOISE, BASE).confidence_interval(0.95)
    assert (better.low, better.high) == pytest.approx((low, high))


def test_the_named_keys_are_in_the_json_and_nan_is_kept_out_of_the_file(places, tmp_path) -> None:
    out = tmp_path / "out"
    content = nnssl.compare(places[:2], baseline=places[0], output_folder=out).to_dict()
    assert {"baseline", "methods"} <= set(content)
    named = {"name", "mean_difference", "ci_low", "ci_high", "p_holm", "patients", "verdict"}
    assert named <= set(content["methods"][0])
    assert math.isnan(content["methods"][0]["seed_sd"])
    written = json.loads((out / "comparison.json").read_text(), parse_constant=pytest.fail)
    assert written["methods"][0]["seed_sd"] is None
    assert written["methods"][0]["ci_low"] == content["methods"][0]["ci_low"]
    names = {f"comparison{end}" for end in (".csv", "_patients.csv", ".json", ".png", ".svg")}
    assert {file.name for file in out.iterdir()} == names


@pytest.mark.parametrize("count", [1, 2, 5, 12, 40])
def test_identical_folders_differ_by_nothing_without_a_warning(count: int, tmp_path) -> None:
    values = np.random.default_rng(count).uniform(0, 1, count)
    places = [write_summary(tmp_path / name, numbered(values)) for name in "AB"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (method,) = nnssl.compare(places, baseline=places[0], all_labels=places[1]).methods
    assert (method.verdict, method.judgement.p_holm, method.judgement.interval.mean) == ("no evidence", 1.0, 0.0)


def test_patients_of_the_data_set_are_counted_once(tmp_path) -> None:
    cases = numbered(BASE)
    patients = {case: f"P{i // 2}" for i, case in enumerate(cases)}
    a, b = (write_summary(tmp_path / name, numbered(BASE + shift)) for name, shift in (("A", 0), ("B", NOISE)))
    write_dataset_json(b, patients)  # beside one of the two is enough
    result = nnssl.compare([a, b], baseline=a)
    (method,) = result.methods
    assert len(method.pairs.patients) == 6
    assert method.pairs.differences == pytest.approx(NOISE.reshape(6, 2).mean(axis=1))
    assert not [note for note in result.notes if "patient" in note]
    (b / "dataset.json").unlink()
    result = nnssl.compare([a, b], baseline=a)
    assert len(result.methods[0].pairs.patients) == 12
    assert result.notes[0].startswith("no dataset.json names patients: 12 case(s)")


def test_missing_cases_are_named_and_do_not_change_other_methods(places, tmp_path) -> None:
    short = write_summary(tmp_path / "Short", dict(list(numbered(BASE + 0.01).items())[2:]))
    result = nnssl.compare([*places[:2], short], baseline=places[0])
    assert [len(method.pairs.patients) for method in result.methods] == [12, 10]
    assert "Short lacks 2 case(s) (case_00, case_01): left out beside Short" in result.notes
    assert result.to_dict()["methods"][1]["cases_missing"] == ["case_00", "case_01"]
    assert result.baseline_mean == pytest.approx(BASE.mean())


def test_each_structure_and_each_metric_has_its_difference(tmp_path) -> None:
    def rows(shift):
        return {
            case: {"1": {"Dice": value + shift, "hd95_mm": 9 - shift}, "2": {"Dice": value, "hd95_mm": 5.0}}
            for case, value in numbered(BASE).items()
        }

    a, b = (write_summary(tmp_path / name, rows(shift)) for name, shift in (("A", 0.0), ("B", 0.1)))
    for folder in (a, b):
        write_dataset_json(folder, labels={"background": 0, "core": 1, "rim": 2})
    (method,) = nnssl.compare([a, b], baseline=a).methods
    assert {name: found[0].mean for name, found in method.by_structure.items()} == pytest.approx(
        {"core": 0.1, "rim": 0.0}
    )
    assert {name: found[0].mean for name, found in method.by_metric.items()} == pytest.approx(
        {"Dice": 0.05, "hd95_mm": -0.05}
    )
    assert {found[1] for found in method.by_structure.values()} == {12}


def test_of_distances_less_helps(tmp_path) -> None:
    a, b = (
        write_summary(tmp_path / name, {case: {"1": {"hd95_mm": 10 * value + shift}} for case, value in found.items()})
        for name, shift, found in (("A", 0, numbered(BASE)), ("B", -2, numbered(BASE + NOISE)))
    )
    assert nnssl.compare([a, b], baseline=a, metric="hd95_mm").methods[0].verdict == "helped"
    assert nnssl.compare([b, a], baseline=b, metric="hd95_mm").methods[0].verdict == "hurt"
    with pytest.raises(DataError, match="no Dice") as caught:
        nnssl.compare([a, b], baseline=a)
    assert "hd95_mm" in caught.value.why


def test_the_gap_is_closed_over_common_patients(tmp_path) -> None:
    a = write_summary(tmp_path / "A", numbered(BASE))
    half = write_summary(tmp_path / "Half", numbered(BASE + 0.05 + NOISE / 2))
    whole = write_summary(tmp_path / "Whole", dict(list(numbered(BASE + 0.1 + NOISE).items())[:9]))
    result = nnssl.compare([a, half], baseline=a, all_labels=whole)
    assert result.methods[0].gap_closed.mean == pytest.approx(0.5)
    assert result.all_labels.name == "Whole"
    assert "Whole lacks 3 case(s) (case_09, case_10, case_11): left out beside Whole" in result.notes
    assert result.to_dict()["all_labels"]["patients"] == 9


def test_the_runs_of_a_data_set(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("nnUNet_results", str(tmp_path))
    write_run(tmp_path, "SupervisedTrainer", numbered(BASE))
    for seed in (0, 1):
        values = BASE + 0.08 + NOISE + 0.02 * seed
        write_run(tmp_path, "CCETrainer", numbered(values), tag=f"s{seed}", seed=seed, num_iterations=50)
    result = nnssl.compare(dataset=1, fold=0)
    (method,) = result.methods
    assert (method.name, method.verdict) == ("CCETrainer", "helped")
    assert method.pairs.differences == pytest.approx(0.09 + NOISE)
    assert method.seed_sd == pytest.approx(0.02 / math.sqrt(2))
    assert "unequal iterations: CCETrainer 50, SupervisedTrainer 100" in result.notes
    assert len(method.folders) == 2


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "runs or folders to compare, or a data set"),
        ({"places": ["A"], "dataset": 1}, "runs or folders to compare, or a data set"),
        ({"places": ["A"], "fold": 0}, "choose among the runs of a data set"),
        ({"places": ["A"], "metric": "dice"}, "unknown metric 'dice'"),
    ],
)
def test_wrong_options(options, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        nnssl.compare(**options)


def test_the_output_is_checked_before_anything_is_read(tmp_path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(EnvironmentProblem, match="output folder"):
        nnssl.compare([tmp_path / "gone"], baseline="x", output_folder=tmp_path / "file")


def test_neither_torch_nor_nnunet_is_imported(places) -> None:
    script = f"""
import sys
from nnssl.cli.compare import main
code = main(["{places[0]}", "{places[1]}", "-baseline", "{places[0]}", "--json"])
sys.exit(code or bool({{"torch", "nnunetv2", "matplotlib.pyplot"}} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert json.loads(done.stdout)["methods"][0]["verdict"] == "helped"
