from __future__ import annotations

import fcntl
import os
import pty
import signal
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest

from nnssl_trainers.frame import reporting
from nnssl_trainers.frame.reporting import Reporter, header_lines, learning_warnings


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Return a list whose only number is the time."""
    now = [100.0]
    monkeypatch.setattr(reporting.time, "monotonic", lambda: now[0])
    return now


def lines_of(reporter: Reporter, clock: list[float], steps: int, seconds: float) -> list[str]:
    found = []
    with reporter:
        for _ in range(steps):
            clock[0] += seconds
            found.append(reporter.step())
    return [line for line in found if line]


def test_the_expected_time_comes_after_a_short_measurement(clock) -> None:
    (line,) = lines_of(Reporter("lines", 100, 0), clock, 12, 1.0)
    assert line == "expected time: 0:01:30 for 90 iterations (1.00 s each)"
    assert lines_of(Reporter("lines", 1000, 0), clock, 12, 0.1) == []  # measured for too short a time


def test_a_line_a_minute_where_no_bar_is_shown(clock) -> None:
    lines = lines_of(Reporter("lines", 500, 100), clock, 200, 1.0)
    assert [line.partition("  ")[0] for line in lines[1:]] == [f"iteration {n}/500" for n in (170, 230, 290)]
    assert lines[1].endswith("1.00 s/iteration  ETA 0:05:30")


@pytest.mark.parametrize(("style", "count"), [("bar", 1), ("off", 0)])
def test_a_bar_needs_no_further_lines(style, count: int, clock, capsys) -> None:
    assert len(lines_of(Reporter(style, 500, 0), clock, 200, 1.0)) == count
    assert ("200/500" in capsys.readouterr().err) == (style == "bar")


def test_without_a_terminal_lines_are_the_default(monkeypatch) -> None:
    for terminal, style in ((True, "bar"), (False, "lines")):
        monkeypatch.setattr(sys.stderr, "isatty", lambda terminal=terminal: terminal)
        assert Reporter(None, 10, 0).style == style


def row(iteration: int, *dice: float) -> dict[str, float]:
    return {"iteration": iteration, **{f"pseudo_dice_{k}": value for k, value in enumerate(dice, start=1)}}


NAN = float("nan")


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([row(10, 0.0, 0.0)], ""),  # at the begin of a run
        ([row(50, 0.0, 0.0)], "predicts only background"),
        ([row(50, 0.0, NAN)], "predicts only background"),
        ([row(50, NAN, NAN)], ""),
        ([row(50, 0.5, 0.6), row(60, 0.5, 0.0)], "no longer finds rim (pseudo-Dice 0.60 before)"),
        ([row(50, 0.5, 0.05), row(60, 0.5, 0.0)], ""),  # never learned
        ([row(50, 0.5, 0.6), row(60, 0.5, NAN)], ""),  # not in the validation patches
        ([row(50, 0.5, 0.6)], ""),
    ],
)
def test_a_network_that_finds_nothing_or_loses_a_structure_is_named(rows, said: str) -> None:
    warnings = learning_warnings(rows, ["core", "rim"], 100)
    assert len(warnings) == bool(said)
    assert all(said in warning and "-num_iterations" in warning for warning in warnings)


@pytest.mark.parametrize("name", ["SupervisedTrainer", "MeanTeacherTrainer", "CCETrainer"])
def test_every_method_says_that_it_predicts_only_background(name: str, make_trainer, caplog) -> None:
    trainer = make_trainer(name, 2, epoch=1, num_iterations=1)
    trainer.on_validation_epoch_end = lambda _: [
        trainer.logger.log(key, value, 0)
        for key, value in (("val_losses", 1.0), ("mean_fg_dice", 0.0), ("dice_per_class_or_region", [0.0, 0.0]))
    ]
    with caplog.at_level("INFO", logger="nnssl.train"):
        trainer.run_training()
    messages = [record.getMessage() for record in caplog.records]
    assert any("the network predicts only background" in message for message in messages)
    assert any("pseudo-Dice 0.000 (core 0.000, rim 0.000)" in message for message in messages)


def test_the_header_says_what_begins(make_trainer) -> None:
    trainer = make_trainer("MeanTeacherTrainer", seed=3, tag="seed3")
    trainer.initialize()
    text = "\n".join(header_lines(trainer))
    assert "MeanTeacherTrainer on Dataset905_Tiny, 3d_fullres, fold 0, run seed3" in text
    assert "cases: 4 labelled, 4 unlabelled, 2 for validation" in text
    assert "patch 16 x 16 x 16, batch 2, seed 3" in text
    assert "iterations: 0 of 6 done" in text
    assert trainer.output_folder in text


SLOW_RUN = """
import sys, time
import nnssl.planning.preprocessing, nnssl.training.settings
from nnssl_trainers.frame.run_loop import RunLoop

nnssl.planning.preprocessing.check_preprocessed = lambda *_: None
nnssl.training.settings.ITERATIONS_PER_EPOCH = 1000
step = RunLoop.train_step

def slow_step(self, batch):
    time.sleep(float(sys.argv[1]))
    return step(self, batch)

from nnssl_trainers.frame.step import TrainingStep
step = TrainingStep.train_step
TrainingStep.train_step = slow_step
from nnssl.cli.train import main
sys.exit(main(sys.argv[2:]))
"""


def start_slow_run(folder: Path, seconds: float, **pipes) -> subprocess.Popen:
    words = [folder.name, "3d_fullres", "0", "-device", "cpu", "-tr", "SupervisedTrainer", "-tag", "t", "--no_val"]
    command = [sys.executable, "-c", SLOW_RUN, str(seconds), *words, "-num_iterations", "1000"]
    return subprocess.Popen(command, start_new_session=True, **pipes)


def wait_for(found, seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not found():
        assert time.monotonic() < end
        time.sleep(0.1)


@pytest.mark.slow
def test_through_a_pipe_the_first_ctrl_c_saves_and_the_run_goes_on(make_tiny, tmp_path) -> None:
    folder, out = make_tiny(), tmp_path / "stderr"
    with out.open("w") as file:
        run = start_slow_run(folder, 0.05, stdout=subprocess.DEVNULL, stderr=file)
        wait_for(lambda: "iterations: 0 of 1000 done" in out.read_text())
        time.sleep(2)
        os.kill(run.pid, signal.SIGINT)
        assert run.wait(60) == 130
    text = out.read_text()
    assert "saving and stopping after this iteration; press Ctrl-C again to stop at once" in text
    assert "stopped by Ctrl-C; the run is saved" in text
    assert "the same command with --c continues it" in text
    assert "it/s" not in text  # no bar
    (latest,) = tmp_path.rglob("checkpoint_latest.pth")
    assert latest.is_file()
    (log_file,) = tmp_path.rglob("training_log_*.txt")
    assert "cases: 4 labelled" in log_file.read_text()


@pytest.mark.slow
def test_on_a_terminal_a_bar_and_a_second_ctrl_c_that_ends_at_once(make_tiny, tmp_path) -> None:
    folder = make_tiny()
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
    run = start_slow_run(folder, 20.0, stdout=subprocess.DEVNULL, stderr=theirs)
    os.close(theirs)
    text = b""
    while b"0/1000" not in text:
        text += os.read(ours, 4096)
    time.sleep(1)  # the loop has begun
    os.kill(run.pid, signal.SIGINT)
    while b"press Ctrl-C again to stop at once" not in text:
        text += os.read(ours, 4096)
    begun = time.monotonic()
    os.kill(run.pid, signal.SIGINT)
    assert run.wait(30) == 130
    assert time.monotonic() - begun < 10  # an iteration takes 20 s
    os.close(ours)
