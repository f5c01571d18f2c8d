from __future__ import annotations

import json

import pytest

from nnssl.cli.sweep import main
from nnssl.sweep.store import Store
from nnssl.sweep.study import study_runs
from tests.comparison.folders_for_tests import DATASET
from tests.sweep.conftest import world  # noqa: F401 - a fixture
from tests.sweep.studies_for_tests import World, runs_of, small_study

FLAGS = "-d 1 -c 2d -tr SupervisedTrainer FixMatchTrainer -labelled 5 20 -seeds 0 1 -num_iterations 30"


def answer(capsys: pytest.CaptureFixture[str], words: str) -> tuple[int, str]:
    code = main(words.split())
    return code, capsys.readouterr().out


def test_dry_run_as_json_is_a_list_with_one_object_a_run(world: World, capsys: pytest.CaptureFixture[str]) -> None:  # noqa: F811
    code, printed = answer(capsys, f"{FLAGS} -o {world.study} --dry_run --json")
    rows = json.loads(printed)
    assert (code, len(rows)) == (0, 8)
    first = "-tr SupervisedTrainer -labelled 5 -seed 0 -num_iterations 30"
    assert rows[0]["command"] == f"nnssl_train {DATASET} 2d 0 {first}"
    assert {(row["trainer"], row["labelled"], row["seed"]) for row in rows} == {
        (trainer, labels, seed)
        for trainer in ("SupervisedTrainer", "FixMatchTrainer")
        for labels in ("5", "20")
        for seed in (0, 1)
    }
    assert not world.study.exists()


def test_every_flag_reaches_the_runs(world: World, capsys: pytest.CaptureFixture[str]) -> None:  # noqa: F811
    words = "-f 0 1 -picks 2 --control --bf16 -p Mine --set unlabelled_weight=0.5 -hardware cpu"
    flags = FLAGS.replace("SupervisedTrainer ", "")
    code, printed = answer(capsys, f"{flags} {words} -o {world.study} --dry_run --json")
    rows = json.loads(printed)
    assert (code, len(rows)) == (0, 2 * 2 * 2 * 2 * 2)  # methods, budgets, picks, folds, seeds
    assert rows[-1]["command"] == (
        f"nnssl_train {DATASET} 2d 1 -tr FixMatchTrainer -p Mine -labelled 20 -pick 1 -seed 1 -num_iterations 30 "
        "--bf16 --set unlabelled_weight=0"
    )
    code, printed = answer(capsys, f"{flags} --variant ema_decay=0.9 -o {world.study} --dry_run")
    assert code == 0
    assert "ema_decay=0.9" in printed


def test_a_file_with_a_flag_in_the_place_of_a_value(world: World, capsys: pytest.CaptureFixture[str]) -> None:  # noqa: F811
    file = world.root / "study.toml"
    file.write_text('dataset = 1\nconfigurations = "2d"\ntrainers = "SupervisedTrainer"\nseeds = [0, 1, 2]\n')
    code, printed = answer(capsys, f"{file} -seeds 5 -o {world.study} --dry_run --json")
    assert (code, [row["seed"] for row in json.loads(printed)]) == (0, [5])


def test_commands_for_arrays_and_status(world: World, capsys: pytest.CaptureFixture[str]) -> None:  # noqa: F811
    code, printed = answer(capsys, f"{FLAGS} -o {world.study} --print_commands")
    assert code == 0
    with Store(world.study) as store:
        assert printed.splitlines() == [task.command for task in runs_of(store)]
        store.update(runs_of(store)[0], state="failed", message="broken")
    code, printed = answer(capsys, f"-o {world.study} --status")
    assert code == 0
    assert printed.splitlines()[0] == "8 run(s): 1 failed, 7 waiting"
    assert "      broken" in printed
    code, printed = answer(capsys, f"-o {world.study} --status --json")
    assert [row["state"] for row in json.loads(printed)] == ["failed"] + ["waiting"] * 7


def test_a_study_with_failed_runs_ends_with_an_error(world: World, capsys: pytest.CaptureFixture[str]) -> None:  # noqa: F811
    with world.store(small_study(1)) as store:
        for task in store.tasks():
            store.update(task, state="failed", message="broken")
    code = main(["-o", str(world.study), "-device", "cpu"])
    errors = capsys.readouterr().err
    assert code == 1
    assert "1 of 1 runs are not done" in errors
    assert study_runs(small_study(1))[0].command in errors
    assert "--retry_failed" in errors


@pytest.mark.parametrize(
    ("words", "fragment"),
    [
        ("-o OUT --dry_run", "no study in this folder"),
        ("-d 1 -o OUT", "a study needs -c and -tr"),
        (FLAGS.replace("FixMatch", "FixMetch") + " -o OUT", "-tr FixMatchTrainer"),
        (FLAGS.replace("-d 1", "-d 9") + " -o OUT", "there is no data set '9'"),
        (f"{FLAGS} -o OUT -slots 0", "-slots must be at least 1"),
        (FLAGS, "-o"),
    ],
)
def test_bad_input(words: str, fragment: str, world: World, capsys: pytest.CaptureFixture[str]) -> None:  # noqa: F811
    try:
        code = main(words.replace("OUT", str(world.study)).split())
    except SystemExit as error:
        code = int(str(error.code))
    assert code == 2
    assert fragment in capsys.readouterr().err
    assert not world.study.exists()
