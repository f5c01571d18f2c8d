from __future__ import annotations

from pathlib import Path

import pytest

from nnssl.comparison.sources import methods_of_dataset, named_methods, read_source
from nnssl.errors import DataError, EnvironmentProblem, UsageError
from tests.comparison.folders_for_tests import DATASET, numbered, write_run, write_summary

CASES = numbered([0.5, 0.6, 0.7])


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("nnUNet_results", str(tmp_path / "results"))
    return tmp_path / "results"


def test_every_kind_of_place(results: Path, tmp_path: Path, monkeypatch) -> None:
    fold = write_run(results, "CCETrainer", CASES, tag="seed1")
    folder = write_summary(tmp_path / "predictions", CASES)
    (folder / "summary.json").rename(folder / "scores.json")
    write_summary(folder, CASES)
    monkeypatch.chdir(tmp_path)
    places = {
        fold: "CCETrainer@seed1",
        fold / "validation": "CCETrainer@seed1",
        fold.parent: "CCETrainer@seed1",
        fold.parent.relative_to(results): "CCETrainer@seed1",  # below nnUNet_results
        folder: "predictions",
        Path("predictions"): "predictions",
        folder / "summary.json": "predictions",
        folder / "scores.json": "scores",
    }
    for place, name in places.items():
        source = read_source(place)
        assert (source.name, set(source.scores.cases)) == (name, set(CASES))
        assert ("0" in source.records) == (name == "CCETrainer@seed1")


def test_the_folds_of_a_model_are_taken_together(results: Path) -> None:
    for fold in ("0", "1"):
        write_run(results, "CCETrainer", {f"case_{fold}": 0.5}, fold=fold)
    write_run(results, "CCETrainer", CASES, fold="all")
    stopped = write_run(results, "CCETrainer", None, fold="2")
    source = read_source(stopped.parent)
    assert set(source.scores.cases) == {"case_0", "case_1"}
    assert set(source.records) == {"0", "1"}


def test_places_without_scores_say_what_to_do(results: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such run") as caught:
        read_source(tmp_path / "gone")
    assert "nnssl_runs" in caught.value.run
    with pytest.raises(DataError, match="the folder holds no summary") as caught:
        read_source(tmp_path)
    assert caught.value.run == f"nnssl_evaluate LABELS {tmp_path}"
    for state, option in (("done", "--val"), ("stopped", "--c")):
        fold = write_run(results, f"{state}Trainer", None, state=state)
        for place in (fold, fold.parent):
            with pytest.raises(DataError, match="not validated") as caught:
                read_source(place)
            assert caught.value.run == f"nnssl_train 1 2d 0 -tr {state}Trainer {option}"


def test_methods_stand_in_the_order_given(tmp_path: Path) -> None:
    places = [str(write_summary(tmp_path / name, CASES)) for name in "cab"]
    for baseline in (places[1], f"{places[1]}/", Path(places[1]), "a"):
        base, others = named_methods(places, baseline)
        assert (base.name, [other.name for other in others]) == ("a", ["c", "b"])


def test_the_baseline_may_stand_beside_the_methods(tmp_path: Path) -> None:
    places = [write_summary(tmp_path / name, CASES) for name in "abc"]
    base, others = named_methods(places[1:], places[0])
    assert (base.name, [other.name for other in others]) == ("a", ["b", "c"])


def test_clashing_names_become_the_places(tmp_path: Path) -> None:
    places = [str(write_summary(tmp_path / run / "scores", CASES)) for run in "ab"]
    base, (other,) = named_methods(places, places[0])
    assert [base.name, other.name] == places


def test_several_places_of_one_name_are_seeds(tmp_path: Path) -> None:
    for name in ("a0", "a1", "b0", "b1", "odd=name"):
        write_summary(tmp_path / name, CASES)
    texts = [f"A={tmp_path}/a0", f"B={tmp_path}/b0", f"A={tmp_path}/a1", f"B={tmp_path}/b1", f"{tmp_path}/odd=name"]
    base, others = named_methods(texts, "A")
    assert [method.name for method in (base, *others)] == ["A", "B", "odd=name"]
    assert [len(method.runs) for method in (base, *others)] == [2, 2, 1]


def test_the_supervised_run_is_the_baseline(results: Path, tmp_path: Path) -> None:
    places = [write_run(results, trainer, CASES) for trainer in ("CCETrainer", "SupervisedTrainer")]
    assert named_methods(places, None)[0].name == "SupervisedTrainer"
    places.append(write_run(results, "SupervisedTrainer", CASES, tag="seed1", seed=1))
    with pytest.raises(UsageError, match="choose the baseline") as caught:
        named_methods(places, None)
    assert "SupervisedTrainer@seed1" in caught.value.why
    with pytest.raises(UsageError, match="choose the baseline"):
        named_methods(places[:1], None)


def test_one_run_is_no_comparison(tmp_path: Path) -> None:
    a, b = (write_summary(tmp_path / name, CASES) for name in "ab")
    (tmp_path / "link").symlink_to(a)
    with pytest.raises(UsageError, match="no method beside"):
        named_methods([a], a)
    with pytest.raises(UsageError, match="named twice"):
        named_methods([a, tmp_path / "link", b], b)


def test_the_runs_of_a_data_set_are_grouped_by_settings(results: Path) -> None:
    write_run(results, "SupervisedTrainer", {"case_0": 0.5})
    write_run(results, "SupervisedTrainer", {"case_1": 0.5}, fold="1")
    write_run(results, "SupervisedTrainer", {"case_0": 0.6}, tag="mine", seed=4)
    for seed in (0, 1):
        write_run(results, "FixMatchTrainer", CASES, tag=f"s{seed}", seed=seed)
        control = {"unlabelled_weight": 0.0}
        write_run(results, "FixMatchTrainer", CASES, tag=f"c{seed}", seed=seed, config=control)
    write_run(results, "CCETrainer", None)  # not validated
    write_run(results, "DPTMTrainer", CASES, state="stopped")
    base, others = methods_of_dataset(1)
    assert (base.name, [len(run.cases) for run in base.runs]) == ("SupervisedTrainer", [2, 1])
    assert {other.name: len(other.runs) for other in others} == {
        "FixMatchTrainer": 2,
        "FixMatchTrainer@unlabelled_weight=0": 2,
    }
    write_run(results, "DSMTTrainer", CASES, fold="1")
    base, (other,) = methods_of_dataset(DATASET, fold=1)
    assert (base.runs[0].cases.keys(), other.name) == ({"case_1"}, "DSMTTrainer")


def test_runs_of_two_lengths_are_two_methods(results: Path) -> None:
    for length in (100, 200):
        write_run(results, "SupervisedTrainer", CASES, tag=f"n{length}", num_iterations=length)
    write_run(results, "CCETrainer", CASES)
    base, others = methods_of_dataset(1, baseline="SupervisedTrainer@iterations100")
    assert base.record.settings.num_iterations == 100
    assert [other.name for other in others] == ["CCETrainer", "SupervisedTrainer@iterations200"]


def test_runs_of_stock_nnunet_are_methods_too(results: Path) -> None:
    write_run(results, "SupervisedTrainer", CASES)
    (write_run(results, "nnUNetTrainer", CASES) / "run.json").unlink()
    assert [other.name for other in methods_of_dataset(1)[1]] == ["nnUNetTrainer"]


def test_a_data_set_needs_one_plan_and_a_known_baseline(results: Path, monkeypatch) -> None:
    write_run(results, "SupervisedTrainer", CASES)
    with pytest.raises(UsageError, match="no finished and validated run beside SupervisedTrainer"):
        methods_of_dataset(1)
    write_run(results, "CCETrainer", CASES)
    write_run(results, "CCETrainer", CASES, plans="nnUNetPlans@lab7")
    with pytest.raises(UsageError, match="several plans") as caught:
        methods_of_dataset(1)
    assert caught.value.why.count("\n") == 1
    assert methods_of_dataset(1, plans="nnUNetPlans")[1][0].name == "CCETrainer"
    with pytest.raises(UsageError, match="unknown method 'CCE'"):
        methods_of_dataset(1, plans="nnUNetPlans", baseline="CCE")
    with pytest.raises(UsageError, match="choose the baseline"):
        methods_of_dataset(1, plans="nnUNetPlans@lab7")
    with pytest.raises(UsageError, match="there is no finished run") as caught:
        methods_of_dataset(2)
    assert caught.value.run == "nnssl_runs lists all runs"
    monkeypatch.delenv("nnUNet_results")
    with pytest.raises(EnvironmentProblem):
        methods_of_dataset(1)
