from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from nnssl.cli.train import make_parser
from nnssl.errors import DataError, UsageError
from nnssl.sweep.study import Study, read_study, study_of, study_plans, study_runs
from nnssl.training.settings import RunSettings

TWO = ("SupervisedTrainer", "FixMatchTrainer")


def study(**changes: Any) -> Study:
    return Study(**{"dataset": "Dataset001_A", "configurations": ("2d",), "trainers": TWO, **changes})


def test_runs_are_the_product_with_all_methods_of_a_condition_side_by_side() -> None:
    runs = study_runs(study(labelled=("5", "20"), seeds=(0, 1), num_iterations=30))
    found = [(run.settings.labelled, run.settings.seed, run.trainer) for run in runs]
    assert found == [(labels, seed, trainer) for labels in ("5", "20") for seed in (0, 1) for trainer in TWO]


def test_a_command_says_all_that_the_run_is() -> None:
    asked = study(trainers=("FixMatchTrainer",), labelled=("10%",), picks=2, seeds=(3,), num_iterations=30,
                  settings=("unlabelled_weight=0.5",), plans="Mine", folds=("1",), bf16=True)  # fmt: skip
    first, second = study_runs(asked)
    assert first.command == (
        "nnssl_train Dataset001_A 2d 1 -tr FixMatchTrainer -p Mine -labelled 10% -seed 3 -num_iterations 30 --bf16 "
        "--set unlabelled_weight=0.5"
    )
    assert second.command == first.command.replace("-labelled 10%", "-labelled 10% -pick 1")
    assert second.settings.labelled == "10%-pick1"
    parsed = make_parser().parse_args(second.arguments)
    assert (parsed.labelled, parsed.pick, parsed.seed, parsed.set) == ("10%", 1, 3, ["unlabelled_weight=0.5"])


def test_the_tag_is_the_one_that_training_makes() -> None:
    (run,) = study_runs(study(trainers=("FixMatchTrainer",), seeds=(2,), num_iterations=30))
    assert run.settings.tag == "seed2,iterations30"
    (default,) = study_runs(study(trainers=("FixMatchTrainer",)))
    assert default.settings == RunSettings()


def test_the_control_is_the_default_method_without_unlabelled_losses() -> None:
    runs = study_runs(study(trainers=("SupervisedTrainer",), control=True))
    assert [(run.trainer, run.settings.config) for run in runs] == [
        ("SupervisedTrainer", {}),
        ("FixMatchTrainer", {"unlabelled_weight": 0.0}),
    ]


def test_variants_count_for_the_trainers_that_have_their_settings() -> None:
    runs = study_runs(study(variants=(("unlabelled_weight=0.5",), ("unlabelled_weight=2",))))
    assert [(run.trainer, run.settings.config) for run in runs] == [
        ("SupervisedTrainer", {}),
        ("FixMatchTrainer", {"unlabelled_weight": 0.5}),
        ("FixMatchTrainer", {"unlabelled_weight": 2.0}),
    ]
    with pytest.raises(UsageError, match="no trainer of the study has these settings"):
        study_runs(study(variants=(("no_such_setting=1",),)))


def test_equal_runs_are_one_run() -> None:
    assert len(study_runs(study(seeds=(0, 0), labelled=("5", "5.0"), trainers=(*TWO, *TWO)))) == 2
    assert len(study_runs(study(labelled=("all", "5"), picks=3))) == 2 + 3 * 2  # all labels have no picks


def test_every_budget_pick_and_fold_is_planned_once() -> None:
    both = ("2d", "3d_fullres")
    asked = study(labelled=("all", "5"), picks=2, folds=("0", "1"), seeds=(0, 1), configurations=both, hardware="cpu")
    assert [plan.command for plan in study_plans(asked)] == [
        "nnssl_plan_and_preprocess -d Dataset001_A -c 2d 3d_fullres -hardware cpu",
        *(
            f"nnssl_plan_and_preprocess -d Dataset001_A -c 2d 3d_fullres -labelled 5{pick} -f {fold} -hardware cpu"
            for pick in ("", " -pick 1")
            for fold in (0, 1)
        ),
    ]


@pytest.mark.parametrize(
    ("changes", "fragment"),
    [
        ({"seeds": ()}, "-seeds"),
        ({"picks": 0}, "-picks"),
        ({"labelled": ("many",)}, "not a label budget"),
        ({"labelled": ("5-pick1",)}, "-picks"),
        ({"folds": ("x",)}, "not a fold"),
        ({"hardware": "tpu"}, "tpu"),
        ({"plans": "nnUNetPlans@lab5"}, "without the tag"),
    ],
)
def test_wrong_values(changes: dict[str, Any], fragment: str) -> None:
    with pytest.raises(UsageError, match=fragment):
        study(**changes)


def test_wrong_trainers_settings_and_seeds_are_refused() -> None:
    for changes in ({"trainers": ("NoTrainer",)}, {"settings": ("no_setting=1",)}, {"seeds": (-1,)}):
        with pytest.raises(UsageError):
            study_runs(study(**changes))


def test_what_is_missing_is_named() -> None:
    with pytest.raises(UsageError, match="needs -c and -tr"):
        study_of({"dataset": "1"})


TOML = """
dataset = 901
configurations = "2d"
trainers = ["SupervisedTrainer", "FixMatchTrainer"]
control = true
labelled = [5, "10%", "all"]
picks = 3
seeds = [0, 1]
num_iterations = 30

[settings]
optimizer = "adamw"

[[variants]]
unlabelled_weight = 0.5
"""


def test_a_file_and_flags_make_one_study(tmp_path: Path) -> None:
    file = tmp_path / "study.toml"
    file.write_text(TOML)
    made = study_of(read_study(file, {"seeds": [7], "folds": ["0", "all"]}))
    assert made == Study(
        dataset="901", configurations=("2d",), trainers=TWO, control=True, settings=("optimizer=adamw",),
        variants=(("unlabelled_weight=0.5",),), folds=("0", "all"), labelled=("5", "10%", "all"), picks=3, seeds=(7,),
        num_iterations=30,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("text", "error", "fragment"),
    [
        ("dataset = ", DataError, "not valid TOML"),
        ("seed = [1]", UsageError, "unknown key 'seed'"),
        ('seeds = ["one"]', DataError, "whole numbers"),
        ('picks = "3"', DataError, "type int"),
        ("settings = 3", DataError, "table of settings"),
    ],
)
def test_wrong_files(text: str, error: type[Exception], fragment: str, tmp_path: Path) -> None:
    file = tmp_path / "study.toml"
    file.write_text(text)
    with pytest.raises(error, match=fragment):
        read_study(file, {})


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        read_study(tmp_path / "study.toml", {})
