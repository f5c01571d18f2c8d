from __future__ import annotations

import inspect
import json
import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

import nnssl
from nnssl.errors import NnsslError, StoppedBySignal, UsageError
from nnssl.journey import api
from nnssl.journey.api import answer_of, parse_time, run
from nnssl.journey.commands import Command, Ended, StepFailed
from nnssl.journey.state import Cost, Measured, Pace, State

NAMES = [
    "convert", "plan_and_preprocess", "train", "train", "predict", "predict", "evaluate", "evaluate", "compare",
    "report",
]  # fmt: skip
PACES = {name: Pace(0.1, 1.0, 1.0, 10, 0) for name in ("SupervisedTrainer", "FixMatchTrainer")}
MEASURED = Measured(PACES, dict.fromkeys(("convert", "plan_and_preprocess", "predict"), Cost(2.0, 0.5)))
METHOD = {"verdict": "helped", "mean_difference": 0.031, "ci_low": 0.01, "ci_high": 0.052, "patients": 7}
LENGTH = 30


class Commands:
    """Takes the place of the commands: each writes the files that mark its result as complete."""

    def __init__(self) -> None:
        self.seen: list[Command] = []
        self.stop_at: int | None = None
        self.error: NnsslError | None = None
        self.half = False

    def __call__(self, command: Command, folders: Mapping[str, str], log: Path, limit: float | None = None) -> Ended:
        self.seen.append(command)
        if self.stop_at is not None and len(self.real) - 1 == self.stop_at and "--dry_run" not in command.arguments:
            self.stop_at = None
            if self.half:
                self.write(command, folders)
            raise self.error or StoppedBySignal("stopped")
        if "--dry_run" in command.arguments:
            counts = {"labelled": 2, "unlabelled": 1, "test": 1}
            return Ended({**counts, "notes": ["a note"], "warnings": ["x is left out"]}, 1.0, 1)
        self.write(command, folders)
        return Ended({}, 1.0, 1)

    @property
    def real(self) -> list[Command]:
        return [command for command in self.seen if "--dry_run" not in command.arguments]

    def write(self, command: Command, folders: Mapping[str, str]) -> None:
        raw, preprocessed, results = (Path(folders[f"nnUNet_{name}"]) for name in ("raw", "preprocessed", "results"))
        words = command.arguments
        if command.name == "convert":
            place = raw / f"Dataset{int(words[words.index('-d') + 1]):03d}_{words[words.index('-o') + 1]}"
            for name in ("imagesTs/t_0000.nii.gz", "imagesUn/u_0000.nii.gz", "conversion.json"):
                put(place / name, "")
            put(place / "dataset.json", json.dumps({"file_ending": ".nii.gz"}))
        elif command.name == "plan_and_preprocess":
            put(preprocessed / words[1] / "nnUNetPlans.json", json.dumps({"configurations": {words[3]: {}}}))
        elif command.name == "train":
            tag = f"iterations{LENGTH},learning_rate=0.001,optimizer=adamw"
            fold = results / words[0] / f"{words[4]}__nnUNetPlans__{words[1]}@{tag}" / "fold_0"
            record = {"dataset": words[0], "trainer": words[4], "plans": "nnUNetPlans", "configuration": words[1],
                      "fold": "0", "state": "done", "iteration": LENGTH,
                      "settings": {"num_iterations": LENGTH}}  # fmt: skip
            put(fold / "run.json", json.dumps(record))
            put(fold / "validation" / "summary.json", "{}")
        elif command.name == "predict":
            assert Path(words[5]).is_dir()
            for image in Path(words[1]).iterdir():
                put(Path(words[3]) / image.name.replace("_0000", ""), "")
        elif command.name == "evaluate":
            put(Path(words[1]) / "summary.json", "{}")
        elif command.name == "compare":
            put(Path(words[-1]) / "comparison.json", json.dumps({"methods": [METHOD]}))
        else:
            put(Path(words[-1]) / "index.html", "")


def put(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> Commands:
    made = Commands()
    monkeypatch.setattr(api, "run_command", made)
    monkeypatch.setattr(api, "measure", lambda *_: MEASURED)
    for name in ("raw", "preprocessed", "results"):
        monkeypatch.delenv(f"nnUNet_{name}", raising=False)
    return made


Call = Callable[..., Any]


@pytest.fixture
def call(tmp_path: Path) -> Call:
    for name in ("scans/a", "scans/b", "masks/a", "masks/b", "more/u", "new/t", "answers/t"):
        put(tmp_path / f"{name}.nii.gz", name)

    def do(**changes: Any) -> Any:
        options = {"output_folder": tmp_path / "STUDY", "test": tmp_path / "new", "test_labels": tmp_path / "answers",
                   "budget": "laptop", "num_iterations": LENGTH, **changes}  # fmt: skip
        return run(tmp_path / "scans", tmp_path / "masks", tmp_path / "more", **options)

    return do


def test_all_steps_in_their_order(tmp_path: Path, commands: Commands, call: Call) -> None:
    result = call(channel="CT", label_names=["liver"], patient="[a-z]")
    assert [command.name for command in commands.real] == NAMES
    assert [str(command) for command in commands.real] == list(result.commands)
    study = tmp_path / "STUDY"
    assert result.commands[0] == (
        f"nnssl_convert folder -i {study}/scans -d 1 -o STUDY --fix_geometry --skip_unreadable -channel CT "
        "-label_names liver -patient '[a-z]'"
    )
    assert result.commands[1] == "nnssl_plan_and_preprocess -d Dataset001_STUDY -c 2d -hardware cpu --skip_unreadable"
    same = "-seed 0 -num_iterations 30 --set optimizer=adamw learning_rate=0.001 -device cpu"
    assert result.commands[2:4] == (
        f"nnssl_train Dataset001_STUDY 2d 0 -tr SupervisedTrainer {same}",
        f"nnssl_train Dataset001_STUDY 2d 0 -tr FixMatchTrainer {same}",
    )
    assert result.answer == (
        "The unlabelled scans helped: +3.1 Dice points, 95 % interval +1.0 to +5.2, on 7 test patients."
    )
    assert result.notes[1:] == ("a note", "x is left out", "2 labelled, 1 unlabelled, 1 test scans can be used")
    assert all(folder.is_dir() for folder in (*result.masks.values(), *result.models.values()))
    masks = " ".join(f"{name}={study}/masks/{name}" for name in ("SupervisedTrainer", "FixMatchTrainer"))
    assert result.commands[-1] == f"nnssl_report {masks} -baseline SupervisedTrainer -o {study}/report"
    assert result.report == study / "report" / "index.html"
    assert not list(study.glob("measure"))


def test_a_kill_before_the_question_holds_nothing_up(
    tmp_path: Path, commands: Commands, call: Call, monkeypatch
) -> None:
    """Neither a kill in the first look nor one in the measurement; until the user agrees the files may change."""

    def stopped(*_: object) -> None:
        raise StoppedBySignal("stopped")

    for name, value in (("run_command", commands), ("measure", api.measure)):
        monkeypatch.setattr(api, name, stopped)
        with pytest.raises(StoppedBySignal):
            call()
        monkeypatch.setattr(api, name, value)
    put(tmp_path / "more" / "v.nii.gz", "v")
    assert call().verdict == "helped"
    assert (tmp_path / "STUDY" / "scans" / "unlabelled" / "v.nii.gz").is_symlink()


def test_pictures_are_planned_in_2d(tmp_path: Path, commands: Commands) -> None:
    for name in ("scans/a", "masks/a", "more/u"):
        put(tmp_path / f"{name}.png", name)
    folders = (tmp_path / name for name in ("scans", "masks", "more"))
    run(*folders, tmp_path / "STUDY", budget="workstation", num_iterations=LENGTH)
    assert commands.real[1].arguments[:4] == ("-d", "Dataset001_STUDY", "-c", "2d")
    assert "-hardware" not in commands.real[1].arguments


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("number", range(len(NAMES)))
def test_a_study_that_is_stopped_in_a_step_goes_on_there(
    commands: Commands, call: Call, number: int, half: bool
) -> None:
    """`half`: the files of the step are complete, but nobody has seen the command end well."""
    commands.stop_at, commands.half = number, half
    with pytest.raises(StoppedBySignal):
        call()
    assert len(commands.real) == number + 1
    asked: list[object] = []
    result = call(agree=lambda lines: bool(asked.append(lines)))
    assert asked == []
    assert [command.name for command in commands.real[number + 1 :]] == NAMES[number:]
    flags = {"predict": ["--continue_prediction"]}.get(NAMES[number], [])
    assert list(commands.real[number + 1].arguments) == [*shlex.split(result.commands[number])[1:], *flags]
    before = len(commands.seen)
    assert call() == type(result)(**{**vars(result), "notes": result.notes[:1]})
    assert len(commands.seen) == before


def test_a_lost_result_is_made_again_with_all_that_depends_on_it(
    tmp_path: Path, commands: Commands, call: Call
) -> None:
    result = call()
    before = len(commands.real)
    (result.models["FixMatchTrainer"] / "fold_0" / "run.json").unlink()
    call()
    assert [command.name for command in commands.real[before:]] == NAMES[3:]
    assert not any("--continue_prediction" in command.arguments for command in commands.real[before:])


def test_a_begun_training_is_continued(tmp_path: Path, commands: Commands, call: Call) -> None:
    commands.stop_at = 3
    with pytest.raises(StoppedBySignal):
        call()
    tag = f"iterations{LENGTH},learning_rate=0.001,optimizer=adamw"
    results = tmp_path / "STUDY" / "nnUNet_results" / "Dataset001_STUDY"
    put(results / f"FixMatchTrainer__nnUNetPlans__2d@{tag}" / "fold_0" / "checkpoint_latest.pth", "")
    call()
    assert commands.real[4].arguments[-1] == "--c"


def test_a_command_without_a_result_is_an_error(commands: Commands, call: Call, monkeypatch) -> None:
    monkeypatch.setattr(commands, "write", lambda *_: None)
    with pytest.raises(StepFailed, match="its result is not complete"):
        call()
    assert len(commands.real) == 1


def test_files_that_cannot_be_converted_leave_nothing(
    tmp_path: Path, commands: Commands, call: Call, monkeypatch
) -> None:
    def broken(*_: object) -> None:
        raise StepFailed("the files have 1 problem(s)", exit_code=3)

    monkeypatch.setattr(api, "run_command", broken)
    with pytest.raises(StepFailed) as caught:
        call()
    assert caught.value.exit_code == 3
    assert not (tmp_path / "STUDY").exists()


def test_the_user_is_asked_once_and_may_say_no(tmp_path: Path, commands: Commands, call: Call) -> None:
    result = call(agree=lambda _: False)
    assert (result.verdict, commands.real) == ("", [])
    asked: list[list[str]] = []
    assert call(agree=lambda lines: not asked.append(list(lines))).verdict == "helped"
    assert asked[0][1] == "method:  FixMatchTrainer, beside SupervisedTrainer: 30 iterations each"


def test_without_test_scans_the_unlabelled_scans_are_segmented(commands: Commands, call: Call) -> None:
    result = call(test=(), test_labels=())
    assert [command.name for command in commands.real] == [name for name in NAMES if name != "evaluate"]
    assert "/imagesUn -o" in result.commands[4]
    assert [line.count("/fold_0") for line in result.commands[-2:]] == [2, 2]
    assert "validation patients" in result.answer


def test_folders_of_the_environment_are_used_and_the_id_is_free(
    tmp_path: Path, commands: Commands, call: Call, monkeypatch
) -> None:
    (tmp_path / "raw" / "Dataset001_Other").mkdir(parents=True)
    monkeypatch.setenv("nnUNet_raw", str(tmp_path / "raw"))
    assert call().dataset == "Dataset002_STUDY"
    assert (tmp_path / "raw" / "Dataset002_STUDY" / "dataset.json").is_file()
    assert (tmp_path / "STUDY" / "nnUNet_results").is_dir()
    state = State.read(tmp_path / "STUDY")
    assert state is not None
    assert state.done[0] == "convert"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"trainer": "SupervisedTrainer"}, "the baseline is trained in any case"),
        ({"trainer": "Fixmatch"}, "unknown trainer"),
        ({"budget": "cloud"}, "unknown budget"),
        ({"configuration": "3d"}, "unknown configuration"),
        ({"time": "2h"}, "exclude each other"),
        ({"time": "soon", "num_iterations": None}, "is no time"),
        ({"num_iterations": 0}, "must be at least 1"),
        ({"test": ()}, "are masks of -test scans"),
    ],
)
def test_wrong_options(tmp_path: Path, commands: Commands, call: Call, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        call(**changes)
    assert not (tmp_path / "STUDY").exists()
    assert commands.seen == []


def test_a_folder_with_other_content_or_another_study(tmp_path: Path, commands: Commands, call: Call) -> None:
    put(tmp_path / "other" / "thesis.doc", "")
    with pytest.raises(UsageError, match="holds no study"):
        call(output_folder=tmp_path / "other")
    call()
    with pytest.raises(UsageError, match="other files or options"):
        call(trainer="MeanTeacherTrainer")


def test_times() -> None:
    assert [parse_time(text) for text in ("90", 90, "90s", "1.5min", "2h", "1d")] == [90, 90, 90, 90, 7200, 86400]
    for text in ("", "h", "-1h", "0", "2 weeks"):
        with pytest.raises(UsageError):
            parse_time(text)


def test_the_answer_says_what_the_verdict_says() -> None:
    assert answer_of({**METHOD, "verdict": "hurt", "mean_difference": -0.02, "patients": 1}, on_test=False) == (
        "The unlabelled scans did harm: -2.0 Dice points, 95 % interval +1.0 to +5.2, on 1 validation patient."
    )
    nothing = answer_of({**METHOD, "verdict": "no evidence", "ci_low": None}, on_test=True)
    assert "neither helped nor harmed in a way that can be shown: +3.1 Dice points, on 7 test patients" in nothing


def test_the_package_has_the_function() -> None:
    assert nnssl.run is run
    assert inspect.signature(run).parameters["trainer"].default == "FixMatchTrainer"
