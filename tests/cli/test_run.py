from __future__ import annotations

import io
import json
import os
import shlex
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk

from nnssl.cli import run as module
from nnssl.cli.run import main
from nnssl.journey import api
from nnssl.journey.state import STATE_FILE, Measured
from nnssl.sweep.child import python_command
from tests.journey.stranger import write_stranger

VARIABLES = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")
STEPS = [
    "convert", "plan", "train_SupervisedTrainer", "train_FixMatchTrainer", "predict_SupervisedTrainer",
    "predict_FixMatchTrainer", "evaluate_SupervisedTrainer", "evaluate_FixMatchTrainer", "compare",
    "report",
]  # fmt: skip


@pytest.fixture
def stranger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    return write_stranger(tmp_path / "mine")


def words(root: Path, *more: str) -> list[str]:
    """Return a command line in US spelling."""
    named = {
        "-images": "scans/*",
        "-labels": "masks/*",
        "-unlabeled": "more/*",
        "-test": "new",
        "-test_labels": "answers",
    }
    files = [text for option, glob in named.items() for text in (option, str(root / glob))]
    return [*files, "-o", str(root / "STUDY"), "-budget", "laptop", "-num_iterations", "12", *more]


def test_what_is_found_and_left_out_is_said_before_the_question(
    stranger: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(api, "measure", lambda *_: Measured())
    monkeypatch.setattr("sys.stdin", io.StringIO("n\n"))
    caplog.set_level("INFO")
    assert main(words(stranger)) == 0
    captured = capsys.readouterr()
    assert captured.out == "nothing was trained; the same command asks again\n"
    assert "train now? [y/N]" in captured.err
    for said in (
        "4 labelled, 5 unlabelled, 2 test scans found",
        "pat_1: labels/pat_1.nii.gz gets the geometry of its image (--fix_geometry)",
        "left out by --skip_unreadable: x-5: unlabelled/x-5.nii.gz is cut off",
        "4 labelled, 4 unlabelled, 2 test scans can be used",
        "method:  FixMatchTrainer, beside SupervisedTrainer: 12 iterations each",
    ):
        assert said in caplog.text
    assert not (stranger / "STUDY" / "nnUNet_raw").exists()


def test_without_an_answer_the_command_asks_for_yes(stranger: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(api, "measure", lambda *_: Measured())
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    assert main(words(stranger)) == 2
    assert "run:   add --yes" in capsys.readouterr().err


@pytest.mark.parametrize("folder", ["scans", "masks", "new"])
def test_a_broken_file_that_cannot_be_left_out_safely_is_an_error(stranger: Path, capsys, folder: str) -> None:
    file = sorted((stranger / folder).iterdir())[1]
    file.write_bytes(file.read_bytes()[:200])
    assert main(words(stranger, "--yes")) == 3
    assert "nothing was written" in capsys.readouterr().err
    assert not (stranger / "STUDY").exists()


def test_every_option_reaches_the_function(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    seen: dict[str, Any] = {}

    def fake(**options: Any) -> Any:
        seen.update(options)
        return api.Journey(
            Path("s"), "d", (), {"A": Path("m")}, {"A": Path("a")}, "It helped.", Path("r"), "helped", {}, ()
        )

    monkeypatch.setattr(api, "run", fake)
    line = "-images a b -labels c -unlabelled d -test e -test_labels f -o g -budget workstation -time 2h -tr X -c 2d "
    assert main([*line.split(), *["-channel", "CT", "-label_names", "x", "y", "-patient", "p", "--yes"]]) == 0
    assert seen == {
        "images": ["a", "b"], "labels": ["c"], "unlabelled": ["d"], "test": ["e"], "test_labels": ["f"],
        "output_folder": "g", "budget": "workstation", "time": "2h", "num_iterations": None, "trainer": "X",
        "configuration": "2d", "channel": "CT", "label_names": ["x", "y"], "patient": "p", "agree": None,
    }  # fmt: skip
    assert capsys.readouterr().out.splitlines()[-3:] == [
        "It helped.", "report: r", "next: nnssl_predict -i IMAGES -o MASKS -m a",
    ]  # fmt: skip
    assert main(line.split()) == 0
    assert seen["agree"] is module._ask


def start(root: Path, output: Path) -> subprocess.Popen[bytes]:
    with output.open("wb") as file:
        command = python_command("run", words(root, "--yes", "--json"))
        return subprocess.Popen(
            command,
            stdout=file,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            preexec_fn=hear_signals,  # noqa: PLW1509 - no thread of this process runs here
        )


def hear_signals() -> None:
    """Undo what a shell or nohup does to processes in the background: they ignore Ctrl-C or hang-ups."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGHUP, 75), (signal.SIGINT, 130)])
def test_signals_end_the_command_with_their_code(stranger: Path, number: signal.Signals, code: int) -> None:
    process = start(stranger, stranger / "answer.json")
    work, deadline = stranger / "STUDY" / "measure", time.monotonic() + 60
    while not (work / "log.txt").is_file() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(process.pid, number)
    assert process.wait(60) == code
    assert json.loads((stranger / "answer.json").read_text())["exit_code"] == code
    assert not work.exists()


def begun(root: Path) -> list[str]:
    file = root / "STUDY" / STATE_FILE
    return json.loads(file.read_text())["begun"] if file.is_file() else []


@pytest.mark.nightly
@pytest.mark.slow
def test_a_study_killed_in_every_step_gives_the_masks_of_the_printed_commands(stranger: Path) -> None:
    output = stranger / "answer.json"
    for number, step in enumerate(STEPS):
        process = start(stranger, output)
        deadline = time.monotonic() + 300
        while step not in begun(stranger) and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        assert process.poll() is None, f"{step} did not begin: {output.read_text()}"
        time.sleep(0.7 * (number % 3))
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert start(stranger, output).wait(300) == 0, output.read_text()
    result = json.loads(output.read_text())
    assert result["verdict"] in ("helped", "no evidence", "hurt")
    assert result["answer"].startswith("The unlabelled scans ")
    assert Path(result["report"]).is_file()

    by_hand = stranger / "by_hand"
    by_hand.mkdir()
    shutil.copyfile(stranger / "STUDY" / "collect.sh", by_hand / "collect.sh")
    subprocess.run(["sh", str(by_hand / "collect.sh")], check=True)
    environment = {**os.environ, **{name: str(by_hand / name) for name in VARIABLES}}
    for line in result["commands"]:
        command, *arguments = shlex.split(line.replace(str(stranger / "STUDY"), str(by_hand)))
        done = subprocess.run(python_command(command.removeprefix("nnssl_"), arguments), env=environment, check=False)
        assert done.returncode == 0, line
    for trainer, folder in result["masks"].items():
        files = sorted(Path(folder).glob("*.nii.gz"))
        assert [file.name for file in files] == ["new1.nii.gz", "new2.nii.gz"]
        for file in files:
            there, here = (sitk.ReadImage(str(path)) for path in (file, by_hand / "masks" / trainer / file.name))
            np.testing.assert_array_equal(sitk.GetArrayFromImage(there), sitk.GetArrayFromImage(here))
